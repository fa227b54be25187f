"""Losses of the user's own, by package.module:function."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.distillation.test_training import Killed, killed_after, same

from keyhole.data.splits import MemorySplit
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.group import Group
from keyhole.distillation.kinds import HintPair
from keyhole.distillation.notation import parse_terms, write_term
from keyhole.distillation.terms import Term
from keyhole.distillation.training import Checkpointing, Outcome, Trained, fit
from keyhole.distillation.warmup import rehearse
from keyhole.errors import KeyholeError, SettingError
from keyhole.libraries import code_sha256
from keyhole.models.network import InputSpec, Network
from keyhole.plans import code_of

CONFIG = TrainConfig(epochs=2, batch_size=8, lr=0.05, precision="fp32", device="cpu", compile="off")
PAIRS = tuple(HintPair(f"layer{k}.1", f"layer{k}.0") for k in (1, 2, 3))

SOURCE = '''
"""Losses of a laboratory."""
import functools
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from keyhole.distillation.adapters import HintAdapter
from keyhole.distillation.losses import attention_loss, hint_loss, soft_target_loss

SCALE = 1.0


def scaled(value):
    return SCALE * value


def kd(logits, teacher_logits, temperature=4.0):
    return scaled(soft_target_loss(logits, teacher_logits, temperature=temperature))


def at(feature, teacher_feature):
    return attention_loss(feature, teacher_feature)


def ats(features, teacher_features):
    return torch.stack([attention_loss(*pair) for pair in zip(features, teacher_features, strict=True)]).mean()


class Hint(nn.Module):
    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.adapter = HintAdapter(student_channels, teacher_channels)

    def forward(self, feature, teacher_feature):
        return hint_loss(self.adapter(feature), teacher_feature)


class Told(nn.Module):
    def __init__(self, student_channels, teacher_channels, outputs, classes, batch_size, seed, gain=2.0):
        super().__init__()
        self.told = [student_channels, teacher_channels, outputs, classes, batch_size, seed, gain]

    def forward(self, features, labels, indices, step):
        assert len(features) == 3 and labels.shape == indices.shape and step >= 0
        return sum(feature.mean() for feature in features)


def ce(logits, labels):
    return functional.cross_entropy(logits, labels)


def noisy(logits, teacher_logits, share=0.5):
    kept = torch.rand(len(logits)) < share
    return (kept[:, None] * (logits - teacher_logits) ** 2).mean()


def later(logits, teacher_logits, step, first=3):
    return (step >= first) * soft_target_loss(logits, teacher_logits, temperature=4.0)


def fp32(logits, teacher_logits, labels):
    assert logits.dtype == teacher_logits.dtype == torch.float32
    return ce(logits, labels)


def cosine(embedding, teacher_embedding):
    return 1 - functional.cosine_similarity(embedding, teacher_embedding).mean()


def broken(logits):
    return logits.view(7, 7).mean()


def vector(logits):
    return logits.mean(1)


def number(logits):
    return 1.0


def constant(logits):
    return logits.detach().mean()


def in_place(logits, teacher_logits):
    teacher_logits -= 1
    return (logits - teacher_logits).pow(2).mean()


def asks(logits, target):
    return logits.mean()


def nothing(teacher_logits):
    return teacher_logits.mean()


def both(logits, teacher_embedding):
    return logits.mean()


def mixed(feature, teacher_features):
    return feature.mean()


def hidden(logits, /):
    return logits.mean()


class InForward(nn.Module):
    def __init__(self, outputs, width=4):
        super().__init__()
        self.to_width = nn.Linear(outputs, width)

    def forward(self, logits, teacher_logits, power=2.0, temperature=3, k=2, sharp=False):
        self.told = [power, temperature, k, sharp, self.to_width.out_features]
        return self.to_width(logits).pow(2).mean() + (logits.topk(k).values / temperature).mean()


partly = functools.partial(kd, temperature=4.0)


def drawn(logits):
    DRAWN.append([float(torch.rand(())), float(np.random.rand()), random.random()])
    return logits.mean()


def drawn_too(logits):
    return drawn(logits)


DRAWN = []


def cooling(logits, step, last=1):
    return logits.pow(2).mean() if step < last else logits.new_zeros(())


class Queue(nn.Module):
    def __init__(self, outputs, images):
        super().__init__()
        self.register_buffer("seen", torch.full((images, outputs), float("-inf")))

    def forward(self, logits, indices):
        old = self.seen[indices].clamp(min=0)
        self.seen[indices] = logits.detach()
        return (logits - old).pow(2).mean()


class Later(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("center", None)

    def forward(self, logits):
        self.center = logits.detach().mean(0)
        return (logits - self.center).pow(2).mean()


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(3)

    def forward(self, logits):
        return self.linear(logits).mean()


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1)

    def forward(self, logits):
        return self.conv(logits[None, None, None]).mean()


class Clings(nn.Module):
    before = 0.0

    def forward(self, logits):
        before, self.before = self.before, logits
        return (logits - before).pow(2).mean()


class NoFeature(nn.Module):
    def __init__(self, student_channels):
        super().__init__()

    def forward(self, logits):
        return logits.mean()


class NoModule:
    pass


class Wants(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, logits):
        return logits.mean()


class Fails(nn.Module):
    def forward(self, logits):
        return logits.mean()

    def __init__(self):
        super().__init__()
        raise ValueError("no such thing")


made = Fails.__new__(Fails)
'''


@pytest.fixture(autouse=True)
def mylab(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a user's losses, where it can be imported as mylab.losses."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mylab").mkdir()
    (folder / "mylab" / "__init__.py").write_text("")
    file = folder / "mylab" / "losses.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    for name in ("mylab", "mylab.losses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return file


def terms(text: str) -> tuple[Term, ...]:
    """Return terms, in which @ stands for the module of the user."""
    return parse_terms(text.replace("@", "mylab.losses:"))


def arm(text: str, spec: InputSpec, name: str = "") -> Arm:
    parsed = terms(text)
    return Arm(name or text, "resnet8", spec, parsed, PAIRS if any(term.needs_hints for term in parsed) else ())


@pytest.fixture
def train(toy_split: MemorySplit, toy_teacher: Network) -> object:
    def trained(*arms: Arm, config: TrainConfig = CONFIG, kept: Checkpointing | None = None, stop: int = -1) -> Trained:
        cohort = Cohort(arms, config, classes=3, teacher=toy_teacher, train=toy_split)
        return fit(cohort, toy_split, checkpointing=kept, progress=killed_after(stop))

    return trained


def alike(a: Outcome, b: Outcome, tolerance: float = 0.0) -> bool:
    states = [outcome.last.module.state_dict() for outcome in (a, b)]
    return all(
        torch.allclose(states[0][name].float(), states[1][name].float(), rtol=0, atol=tolerance) for name in states[0]
    )


@pytest.mark.parametrize(
    ("own", "known", "tolerance"),
    [
        ("ce=1,@kd=1", "ce=1,kd=1", 0.0),
        ("@ce=1,kd=1", "ce=1,kd=1", 0.0),
        ("ce=1,@at=3000", "ce=1,at=1000", 1e-5),  # the mean over the hints, and the sum over three
        ("ce=1,@ats=3000", "ce=1,at=1000", 1e-5),
        ("ce=1,@Hint=100", "ce=1,hint=100", 1e-5),
    ],
)
def test_what_a_user_writes_trains_as_what_is_built_in(train, toy_input, own, known, tolerance) -> None:
    one, other = (train(arm(text, toy_input, "an arm")).outcomes[0] for text in (own, known))
    assert alike(one, other, tolerance)
    assert not alike(one, train(arm("ce=1", toy_input, "an arm")).outcomes[0], 10 * tolerance)


def test_settings_and_temperature_reach_it(train, toy_input: InputSpec) -> None:
    plain, soft, known = (
        train(replace(arm(text, toy_input, "an arm"), terms=parsed)).outcomes[0]
        for text, parsed in (
            ("ce", terms("ce=1,@kd=1")),
            ("ce", parse_terms("ce=1,mylab.losses:kd=1", temperature=2.0)),
            ("ce", parse_terms("ce=1,kd=1", temperature=2.0)),
        )
    )
    assert alike(soft, known)
    assert not alike(plain, soft, 1e-4)
    all_, none = (train(arm(f"ce=1,@noisy(share={share})", toy_input, "an arm")).outcomes[0] for share in (1, 0))
    assert alike(none, train(arm("ce=1", toy_input, "an arm")).outcomes[0])
    assert not alike(all_, none, 1e-4)


def test_a_setting_may_be_negative_and_is_written_again() -> None:
    [term] = terms("@noisy(share=-2)=0.5")
    assert term.knobs == (("share", -2.0),)
    assert write_term(term) == "mylab.losses:noisy(share=-2)=0.5"
    assert terms("@kd")[0].temperature == 4.0


def test_a_class_is_told_what_it_is_made_for(
    toy_input: InputSpec, toy_split: MemorySplit, toy_teacher: Network
) -> None:
    cohort = Cohort(
        [arm("ce,@Told(gain=3)", toy_input)], replace(CONFIG, seed=7), classes=3, teacher=toy_teacher, train=toy_split
    )
    [built] = cohort.learners[0].terms["mylab/losses:Told"].parts
    assert built.told == [[16, 32, 64], [16, 32, 64], 3, 3, 8, 7, 3.0]


def test_settings_stand_where_they_are_asked_for(
    toy_input: InputSpec, toy_split: MemorySplit, toy_teacher: Network
) -> None:
    parsed = parse_terms("mylab.losses:InForward(width=5,power=1,k=3,sharp=1)", temperature=1.5)
    cohort = Cohort(
        [replace(arm("ce", toy_input), terms=parsed)], CONFIG, classes=3, teacher=toy_teacher, train=toy_split
    )
    fit(cohort, toy_split)
    [built] = cohort.learners[0].terms["mylab/losses:InForward"].parts
    assert built.told == [1.0, 1.5, 3, True, 5]
    assert [type(value) for value in built.told] == [float, float, int, bool, int]


def test_each_term_draws_for_itself(train, toy_input: InputSpec) -> None:
    def drawn() -> list[list[float]]:
        sys.modules["mylab.losses"].DRAWN.clear()
        train(arm("ce,@drawn,@drawn_too", toy_input), config=replace(CONFIG, epochs=1))
        return list(sys.modules["mylab.losses"].DRAWN)

    torch.manual_seed(5)
    state = random.getstate(), np.random.get_state()[1].tolist()
    terms("@drawn")
    found = drawn()
    numbers = [number for row in found for number in row]
    assert len({*numbers}) == len(numbers)  # another one in every step, of every term
    torch.manual_seed(6)
    assert drawn() == found
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


def test_a_constant_teaches_nothing_and_stops_nobody(train, toy_input: InputSpec) -> None:
    for balance in ("weights", "gradients"):
        cooled, never = (
            train(replace(arm(f"ce,@cooling(last={last})", toy_input, "an arm"), balance=balance)).outcomes[0]
            for last in (3, 0)
        )
        assert not alike(cooled, never, 1e-5)
        assert alike(never, train(arm("ce=1", toy_input, "an arm")).outcomes[0])
    alone = train(arm("@constant", toy_input)).outcomes[0]
    assert alone.history[-1]["loss"] != 0


def test_a_mistake_that_teaches_nothing_is_told(
    toy_input: InputSpec, toy_split: MemorySplit, toy_teacher: Network
) -> None:
    for text, silent in (("@constant", ["mylab.losses:constant"]), ("@cooling", [])):
        assert rehearse(arm(f"ce,{text}", toy_input), toy_split, config=CONFIG, teacher=toy_teacher) == silent


@pytest.mark.parametrize("text", ["@Queue", "@Volume", "@partly"])
def test_what_else_a_loss_may_be(train, tmp_path: Path, toy_input: InputSpec, text: str) -> None:
    whole = train(arm(f"ce,{text}", toy_input)).outcomes
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    with pytest.raises(Killed):
        train(arm(f"ce,{text}", toy_input), kept=kept, stop=7)
    assert same(whole[0], train(arm(f"ce,{text}", toy_input), kept=kept).outcomes[0])


def test_it_knows_the_step(train, toy_input: InputSpec) -> None:
    never, first, known, late = (
        train(arm(f"ce=1,{text}", toy_input, "an arm")).outcomes[0]
        for text in ("@later(first=99)", "@later(first=0)", "kd=1", "@later(first=3)")
    )
    assert alike(never, train(arm("ce=1", toy_input, "an arm")).outcomes[0])
    assert alike(first, known)
    assert not alike(late, first, 1e-5)
    assert not alike(late, never, 1e-5)


def test_it_sees_fp32_whatever_is_computed_in(train, toy_input: InputSpec) -> None:
    assert train(arm("@fp32", toy_input), config=replace(CONFIG, precision="bf16", epochs=1)).outcomes


def test_weights_of_hints_count(train, toy_input: InputSpec) -> None:
    weighed = tuple(replace(pair, weight=weight) for pair, weight in zip(PAIRS, (3.0, 0.0, 0.0), strict=True))
    one = replace(arm("ce=1,@at=900", toy_input, "an arm"), hints=weighed)
    other = replace(arm("ce=1,@at=900", toy_input, "an arm"), hints=PAIRS[:1])
    assert alike(train(one).outcomes[0], train(other).outcomes[0], 1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_it_draws_depends_on_seed_and_step_alone(train, toy_input: InputSpec, threads: int) -> None:
    torch.set_num_threads(threads)
    beside = [arm(text, toy_input) for text in ("ce,kd", "ce,@noisy", "ce,@noisy(share=0.3)", "ce,hint")]
    found = train(*beside).outcomes[1]
    torch.manual_seed(99)
    assert alike(found, train(beside[1]).outcomes[0])
    assert not alike(found, train(beside[1], config=replace(CONFIG, seed=1)).outcomes[0], 1e-4)


@pytest.mark.parametrize("steps", [1, 7, 8])
def test_it_goes_on_bit_for_bit(train, tmp_path: Path, toy_input: InputSpec, steps: int) -> None:
    arms = [arm(text, toy_input) for text in ("ce,@noisy,@Hint=10", "ce,@later,@kd")]
    whole = train(*arms).outcomes
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    with pytest.raises(Killed):
        train(*arms, kept=kept, stop=steps)
    again = train(*arms, kept=kept).outcomes
    assert all(map(same, whole, again))
    assert {"ce", "mylab.losses:noisy", "mylab.losses:Hint", "loss"} <= whole[0].history[0].keys()


def test_terms_of_the_users_pull_equally_hard(train, toy_input: InputSpec) -> None:
    one, other = (
        train(replace(arm(text, toy_input, "an arm"), balance="gradients")).outcomes[0].history[-1]["scales"]
        for text in ("ce=1,@kd=1", "ce=1,@kd=10")
    )
    assert one["mylab.losses:kd"] == pytest.approx(other["mylab.losses:kd"], rel=0.2)


def test_each_says_what_it_needs() -> None:
    needs = {
        text: (term.needs_teacher, term.needs_hints, term.needs_labels, term.kind.embeds, term.kind.memory)
        for text in ("@kd", "@ce", "@at", "@ats", "@Hint", "@cosine", "@Told")
        for term in terms(text)
    }
    assert needs == {
        "@kd": (True, False, False, False, False),
        "@ce": (False, False, True, False, False),
        "@at": (True, True, False, False, False),
        "@ats": (True, True, False, False, False),
        "@Hint": (True, True, False, False, False),
        "@cosine": (True, False, False, True, False),
        "@Told": (True, True, True, False, True),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("@asks", "asks for target, which a loss is not given; it may ask for logits,"),
        ("@Wants", "asks for width, which a loss is not given; it may ask for student_channels,"),
        ("@nothing", "asks for nothing of the student; expected logits, embedding, feature, features."),
        ("@both", "asks for logits and for teacher_embedding; expected one of the two."),
        ("@mixed", "asks for feature and for teacher_features; expected one of the two."),
        ("@hidden", "logits cannot be given by name. Wrap it in a function of yours."),
        ("@NoFeature", "is made for student_channels, and its forward asks for no feature; add one."),
        ("@NoModule", "is the class NoModule; expected a function, or a class that is a torch.nn.Module."),
        ("@made", "is a module that is made already; expected a function"),
        ("@absent", "Unknown function in mylab.losses 'absent'; nearest known:"),
        ("@SCALE", "Unknown function in mylab.losses 'SCALE'"),
        ("absent.losses:kd", "Cannot import 'absent.losses' of 'absent.losses:kd': No module named 'absent'."),
        ("math:hypot", "its parameters cannot be read"),
        ("@noisy(shar=1)", "Unknown setting of term mylab.losses:noisy 'shar'; nearest known: share."),
        ("@noisy(share=nan)", "share of term mylab.losses:noisy is nan; expected a finite number."),
        ("@kd(temperature=2)", "it is no setting of one term. Give --temperature"),
        ("@kd,@kd", "must name each term once"),
    ],
)
def test_what_cannot_be_a_term_is_told(text: str, told: str) -> None:
    with pytest.raises(KeyholeError) as caught:
        terms(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "@broken",
            r"failed: RuntimeError: shape '\[7, 7\]' is invalid for input of size 24 \(line \d+ of .*losses.py\)",
        ),
        ("@vector", r"gave a tensor of shape \(8,\); expected one number in a tensor, such as a mean."),
        ("@number", "gave float; expected one number in a tensor"),
        ("@Later", r"keeps parts.0.center since its first step, .* Give it its size in __init__."),
        ("@Lazy", "has weights whose size is not known yet; expected parameters and buffers of a known size."),
        ("@Clings", r"The gradient of mylab.losses:Clings failed: RuntimeError: Trying to backward .* without detach"),
        ("@InForward(k=2.5)", "k of term mylab.losses:InForward is 2.5; expected a whole number"),
        ("@in_place", "changes what it is given in place, which other terms and students see as well."),
    ],
)
def test_a_mistake_shows_at_the_first_step(train, toy_input: InputSpec, text: str, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        train(arm(f"ce,{text}", toy_input))


def test_a_class_that_cannot_be_made(train, toy_input: InputSpec) -> None:
    with pytest.raises(
        SettingError, match=r"Fails cannot be made: ValueError: no such thing \(line \d+ of .*losses.py\)."
    ):
        train(arm("ce,@Fails", toy_input))


def test_a_memory_is_not_shared_by_processes(
    toy_input: InputSpec, toy_split: MemorySplit, toy_teacher: Network
) -> None:
    with pytest.raises(SettingError, match=r"term mylab\.losses:Told keeps a memory of images"):
        Cohort([arm("ce,@Told", toy_input)], CONFIG, classes=3, teacher=toy_teacher, train=toy_split, group=Group(0, 2))


def test_the_digest_follows_what_a_loss_uses(mylab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(old: str = "", new: str = "") -> tuple[str, str]:
        mylab.write_text(SOURCE.replace(old, new))
        for name in ("mylab", "mylab.losses"):
            sys.modules.pop(name, None)
        return code_sha256("mylab.losses:kd"), code_sha256("mylab.losses:Hint")

    before = digests()
    assert before[0] != before[1]
    assert digests("SCALE = 1.0", "SCALE = 2.0") == (digests("SCALE = 1.0", "SCALE = 2.0")[0], before[1])
    assert digests("SCALE = 1.0", "SCALE = 2.0")[0] != before[0]
    assert digests("return SCALE * value", "return value")[0] != before[0]
    assert digests("hint_loss(self.adapter(feature)", "hint_loss(2 * self.adapter(feature)")[1] != before[1]
    assert digests("def vector(logits):\n    return logits.mean(1)", "") == before
    assert digests('"""Losses of a laboratory."""', '"""Losses."""\n\n# of ours') == before
    assert digests("def scaled(value):\n", 'def scaled(value):\n    """Return it."""  # times a number\n\n') == before
    for more in ("\nSCALE += 1\n", "\nif True:\n    def scaled(value):\n        return value\n", "\nkd.x = 3\n"):
        assert digests("made = ", f"{more}made = ")[0] != before[0], more


def test_of_what_is_no_plain_function_the_whole_file_counts(mylab: Path) -> None:
    before = code_sha256("mylab.losses:partly"), code_sha256("mylab.losses:kd")
    mylab.write_text(SOURCE.replace("partial(kd, temperature=4.0)", "partial(kd, temperature=2.0)"))
    for name in ("mylab", "mylab.losses"):
        sys.modules.pop(name, None)
    assert code_sha256("mylab.losses:partly") != before[0]
    assert code_sha256("mylab.losses:kd") == before[1]


def test_names_of_networks_and_terms_that_are_of_the_users() -> None:
    names = code_of(
        ["timm:hf-hub:timm/x", "resnet20", "C:/models/x.xml", None, "mylab.losses:Fails"],
        ["ce,dkd(alpha=1,beta=2),mylab.losses:kd=0.5,mylab.losses:noisy(share=1)", None],
    )
    assert list(names) == ["mylab.losses:kd", "mylab.losses:noisy", "mylab.losses:Fails"]
