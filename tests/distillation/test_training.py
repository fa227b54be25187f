from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from keyhole.data.digits import load_digits
from keyhole.data.splits import Batch, MemorySplit
from keyhole.distillation.arm import Arm
from keyhole.distillation.balance import gradient_scales
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig, make_optimizer
from keyhole.distillation.evaluation import Accuracy
from keyhole.distillation.group import ALONE
from keyhole.distillation.kinds import HintPair, View
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.terms import Term
from keyhole.distillation.training import Checkpointing, Outcome, fit
from keyhole.errors import (
    DataError,
    DivergenceError,
    KeyholeError,
    RunError,
    SettingError,
    UnknownNameError,
    WeightsError,
)
from keyhole.files import read_tensors
from keyhole.models.layers import tap
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

T = TypeVar("T")
CONFIG = TrainConfig(epochs=2, batch_size=8, lr=0.05, precision="fp32", device="cpu", compile="off")
HINTS = (HintPair("layer1.1", "layer1.0"), HintPair("layer3.1", "layer3.0"))
TERMS = ("ce", "ce,kd", "ce,hint", "ce,kd,at", "ce,dkd,dist", "ls", "ce,wttm", "ce,vid,sp", "ce,crd", "ce,crd,hint")
TERMS += ("ce,semckd", "ce,hint,semckd", "embedding", "embedding,relations,askd", "margin")


def arm(terms: str, spec: InputSpec, name: str = "", student: str = "resnet8") -> Arm:
    parsed = parse_terms(terms)
    return Arm(name or terms, student, spec, parsed, HINTS if any(term.needs_hints for term in parsed) else ())


def cohort_of(
    *arms: Arm, teacher: Network | None = None, config: TrainConfig = CONFIG, train: MemorySplit | None = None
) -> Cohort:
    return Cohort(arms, config, classes=3, teacher=teacher, train=train)


def weights(network: Network) -> dict[str, torch.Tensor]:
    return network.module.state_dict()


def same(a: Outcome, b: Outcome) -> bool:
    pairs = ((weights(x), weights(y)) for x, y in ((a.last, b.last), (a.best, b.best)))
    equal = all(one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one) for one, other in pairs)
    return equal and a.history == b.history and a.best_epoch == b.best_epoch


class Killed(BaseException):
    """What a killed process raises nowhere, so that nothing can catch it."""


def killed_after(steps: int) -> Callable[..., Any]:
    """Return a progress that breaks off after so many steps, as a killed process does."""
    left = [steps]

    def progress(items: Iterable[T], *, label: str, total: int, done: int = 0) -> Iterator[T]:
        for item in items:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            yield item

    return progress


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> int:
    """One after the other, and side by side."""
    torch.set_num_threads(request.param)
    return int(request.param)


# Learning


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_on_digits(precision: str) -> None:
    train, test = load_digits()
    spec = InputSpec((8, 8), (0.3,), (0.38,))
    config = replace(CONFIG, epochs=3, batch_size=32, precision=precision)
    cohort = Cohort([Arm("student", "resnet8", spec, parse_terms("ce"))], config, classes=10)
    records: list[dict[str, Any]] = []
    outcome = fit(cohort, train, test.subset(range(100)), log=records.append).outcomes[0]
    losses = [record["loss"] for record in outcome.history]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.5 * losses[0]
    assert outcome.history[-1]["held_out_top1"] > 0.8
    assert [record["epoch"] for record in outcome.history] == [1, 2, 3]
    assert records == [{**record, "arm": "student"} for record in outcome.history]


@pytest.mark.parametrize("terms", TERMS)
def test_each_term_is_learned(toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec, terms: str) -> None:
    config = replace(CONFIG, epochs=12 if "crd" in terms else 6, augment=False, lr=0.02)
    cohort = cohort_of(arm(terms, toy_input), teacher=toy_teacher, config=config, train=toy_split)
    outcome = fit(cohort, toy_split).outcomes[0]
    first, last = outcome.history[0], outcome.history[-1]
    for name in (*terms.split(","), "loss"):
        assert math.isfinite(last[name])
    if "crd" in terms:  # its first epoch fills the memories with what is hard to tell apart
        first = outcome.history[1]
    assert last["loss"] < first["loss"]
    total = sum(term.weight * first[term.name] for term in outcome.arm.terms)
    assert first["loss"] == pytest.approx(total, rel=1e-4)


def test_a_layer_with_as_many_channels_as_rows_is_no_other_layer(toy_split: MemorySplit) -> None:
    spec = InputSpec((16, 8), (0.5,) * 3, (0.25,) * 3)  # the first stage gives 16 channels of 16 x 8
    cohort = cohort_of(arm("ce,hint", spec), teacher=build("resnet14", classes=3, input=spec), train=toy_split)
    adapters = [part for part in cohort.learners[0].terms.modules() if isinstance(part, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in adapters] == [(16, 16), (64, 64)]
    assert all(math.isfinite(record["loss"]) for record in fit(cohort, toy_split).outcomes[0].history)


def test_a_term_of_weight_zero_changes_nothing(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    alone = fit(cohort_of(arm("ce", toy_input)), toy_split).outcomes[0]
    beside = fit(cohort_of(arm("ce,kd=0", toy_input), teacher=toy_teacher), toy_split).outcomes[0]
    for name, tensor in weights(alone.last).items():
        torch.testing.assert_close(tensor, weights(beside.last)[name])


def test_the_first_step_is_that_of_plain_gradient_descent(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    config = replace(CONFIG, epochs=1, batch_size=48, augment=False, weight_decay=0.01, lr=0.1)
    found = fit(cohort_of(arm("ce", toy_input), config=config), toy_split).outcomes[0].last
    torch.manual_seed(config.seed)
    network = build("resnet8", classes=3, input=toy_input)
    before = {name: p.detach().clone() for name, p in network.module.named_parameters()}
    network.module.train()
    batch = next(toy_split.training_batches(48, seed=0, epoch=0, augment=False))
    nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
    after = dict(found.module.named_parameters())
    for name, p in network.module.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(
            after[name], before[name] - 0.1 * (p.grad + 0.01 * before[name]), rtol=1e-4, atol=1e-5
        )


def test_the_teacher_is_left_as_it_was(toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec) -> None:
    before = {name: tensor.clone() for name, tensor in weights(toy_teacher).items()}
    toy_teacher.module.train()
    fit(cohort_of(arm("ce,kd,at", toy_input), teacher=toy_teacher), toy_split)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(toy_teacher).items())
    assert toy_teacher.module.training
    assert all(p.grad is None and p.requires_grad for p in toy_teacher.module.parameters())


def test_a_student_that_expects_another_size_gets_the_same_view(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    small = InputSpec((4, 4), toy_input.mean, toy_input.std)
    cohort = cohort_of(arm("ce,kd", small), arm("ce,kd", toy_input, "large"), teacher=toy_teacher)
    batch = next(toy_split.training_batches(8, seed=0, epoch=0))
    (lesson,) = cohort.lessons([batch])
    assert torch.equal(lesson.views[small], small.prepare(batch.images))
    assert torch.equal(lesson.views[toy_input], toy_input.prepare(batch.images))
    assert len(fit(cohort, toy_split).outcomes) == 2


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_learners_go_before_the_answers_to_later_batches(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    cohort = cohort_of(arm("ce,kd", toy_input), teacher=toy_teacher)
    assert cohort._workers is not None
    order: list[str] = []
    submit = cohort._workers.submit

    def noted(work: Callable[..., Any], *args: Any) -> Any:
        order.append(work.__name__)
        return submit(work, *args)

    cohort._workers.submit = noted  # type: ignore[method-assign, assignment]
    for lesson in cohort.lessons(toy_split.training_batches(8, seed=0, epoch=0)):
        cohort.step(lesson, 0.01)
    steps = len(toy_split) // 8
    assert steps > 3
    assert order == ["_answer"] * 2 + ["_learn", "_answer"] * (steps - 2) + ["_learn"] * 2


@pytest.mark.usefixtures("threads")
def test_each_lesson_holds_the_teachers_answer_to_its_own_batch(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    teacher = build("resnet32", classes=3, input=toy_input)  # slower than the student
    hints = (HintPair("layer1.0", "layer1.0"), HintPair("layer3.4", "layer3.0"))
    cohort = cohort_of(Arm("student", "resnet8", toy_input, parse_terms("ce,kd,at"), hints), teacher=teacher)
    batches = list(toy_split.training_batches(4, seed=0, epoch=0))
    lessons = list(cohort.lessons(iter(batches)))
    torch.set_num_threads(1)
    assert len(lessons) == len(batches)
    for batch, lesson in zip(batches, lessons, strict=True):
        assert torch.equal(lesson.batch.indices, batch.indices)
        assert lesson.taught is not None
        with torch.no_grad(), tap(teacher.module, ["layer1.0", "layer3.4"]) as expected:
            logits = teacher(batch.images)
        torch.testing.assert_close(lesson.taught[0], logits, rtol=1e-3, atol=1e-3)
        for name, feature in expected.items():
            torch.testing.assert_close(lesson.taught[1][name], feature, rtol=1e-3, atol=1e-3)


# Cohorts


@pytest.mark.usefixtures("threads")
def test_arms_of_a_cohort_learn_what_each_learns_alone(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    arms = [arm(terms, toy_input) for terms in ("ce,hint", "ce,kd", "ce,semckd=1")]
    together = fit(cohort_of(*arms, teacher=toy_teacher), toy_split, toy_split.subset(range(9))).outcomes
    for one, outcome in zip(arms, together, strict=True):
        alone = fit(cohort_of(one, teacher=toy_teacher), toy_split, toy_split.subset(range(9))).outcomes[0]
        assert outcome.arm == one
        assert same(outcome, alone)


def test_arms_without_a_teacher_learn_what_each_learns_alone(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    arms = [arm("ce", toy_input, "small"), arm("ce", toy_input, "large", "resnet14")]
    together = fit(cohort_of(*arms), toy_split).outcomes
    for one, outcome in zip(arms, together, strict=True):
        assert same(outcome, fit(cohort_of(one), toy_split).outcomes[0])


def test_working_side_by_side_leaves_the_threads_of_its_caller(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    torch.set_num_threads(2)
    fit(cohort_of(arm("ce,kd", toy_input), teacher=toy_teacher), toy_split)
    assert torch.get_num_threads() == 2


DROPPING = """
from torch import nn
def net(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )
def other(classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, 8), nn.Dropout(0.5), nn.Linear(8, classes))
"""


@pytest.fixture
def dropping_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_input: InputSpec) -> list[Arm]:
    """Two networks that draw random numbers as they run."""
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "dropping_nets.py").write_text(DROPPING)
    monkeypatch.syspath_prepend(folder)
    return [Arm(name, f"dropping_nets:{name}", toy_input, parse_terms("ce")) for name in ("net", "other")]


@pytest.mark.usefixtures("threads")
def test_dropout_does_not_depend_on_the_other_arms(toy_split: MemorySplit, dropping_arms: list[Arm]) -> None:
    together = fit(cohort_of(*dropping_arms), toy_split).outcomes
    assert same(together[1], fit(cohort_of(dropping_arms[1]), toy_split).outcomes[0])
    assert same(together[0], fit(cohort_of(dropping_arms[0]), toy_split).outcomes[0])


def test_dropout_differs_from_step_to_step(toy_split: MemorySplit, dropping_arms: list[Arm]) -> None:
    cohort = cohort_of(*dropping_arms)
    cohort.train_mode()
    state = torch.get_rng_state()
    (lesson,) = cohort.lessons([next(toy_split.training_batches(8, seed=0, epoch=0))])
    cohort.step(lesson, 0.0)
    first = float(cohort.learners[0].sums["loss"])
    cohort.step(lesson, 0.0)
    assert float(cohort.learners[0].sums["loss"]) - first != pytest.approx(first, rel=1e-6)
    assert not torch.equal(state, torch.get_rng_state())


def test_a_run_is_the_same_each_time_and_depends_on_its_seed(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    def run(seed: int) -> Outcome:
        torch.manual_seed(torch.seed() % 1000)
        return fit(cohort_of(arm("ce", toy_input), config=replace(CONFIG, seed=seed)), toy_split).outcomes[0]

    assert same(run(0), run(0))
    assert not same(run(0), run(1))


# Going on after a kill


@pytest.mark.parametrize(("steps", "threads"), [(1, 1), (5, 2), (6, 1), (8, 1)], indirect=["threads"])
@pytest.mark.usefixtures("threads")
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec, steps: int
) -> None:
    arms = [arm(terms, toy_input) for terms in ("ce,kd", "ce,hint", "ce,crd,vid", "ce,semckd=1")]
    held_out = toy_split.subset(range(0, 48, 5))
    whole = fit(cohort_of(*arms, teacher=toy_teacher, train=toy_split), toy_split, held_out).outcomes
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    with pytest.raises(Killed):
        fit(
            cohort_of(*arms, teacher=toy_teacher, train=toy_split),
            toy_split,
            held_out,
            checkpointing=kept,
            progress=killed_after(steps),
        )
    torch.manual_seed(99)
    trained = fit(cohort_of(*arms, teacher=toy_teacher, train=toy_split), toy_split, held_out, checkpointing=kept)
    assert trained.earlier_s > 0
    for a, b in zip(whole, trained.outcomes, strict=True):
        assert same(a, b)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "adamw", "lr": 1e-3}, "lr 0.001, optimizer adamw, not with lr 0.05, optimizer sgd"),
        ({"nesterov": True}, "nesterov True, not with nesterov False"),
    ],
)
def test_any_optimizer_goes_on_bit_for_bit(
    tmp_path: Path, toy_split: MemorySplit, toy_input: InputSpec, settings: dict[str, Any], told: str
) -> None:
    torch.set_num_threads(1)
    config = replace(CONFIG, **settings)
    whole = fit(cohort_of(arm("ce", toy_input), config=config), toy_split).outcomes[0]
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    with pytest.raises(Killed):
        fit(cohort_of(arm("ce", toy_input), config=config), toy_split, checkpointing=kept, progress=killed_after(4))
    assert same(whole, fit(cohort_of(arm("ce", toy_input), config=config), toy_split, checkpointing=kept).outcomes[0])
    assert not same(whole, fit(cohort_of(arm("ce", toy_input)), toy_split).outcomes[0])
    with pytest.raises(RunError, match=f"was made with {told}"):
        fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept)


def test_adamw_takes_the_steps_of_its_equations() -> None:
    rate, decay, b1, b2 = 0.1, 0.2, 0.8, 0.999
    weight = nn.Parameter(torch.tensor([1.0]))
    config = TrainConfig(epochs=1, optimizer="adamw", lr=rate, momentum=b1, weight_decay=decay)
    optimizer = make_optimizer([weight], config)
    expected, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -2.0, 0.1), start=1):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        first, second = b1 * first + (1 - b1) * gradient, b2 * second + (1 - b2) * gradient**2
        expected -= rate * decay * expected
        expected -= rate * (first / (1 - b1**step)) / (math.sqrt(second / (1 - b2**step)) + 1e-8)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_run_that_ends_an_epoch_early_goes_on_bit_for_bit(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    arms = [arm("ce,kd", toy_input), arm("ce,hint", toy_input)]
    config = replace(CONFIG, epochs=3)
    whole = fit(cohort_of(*arms, teacher=toy_teacher, config=config), toy_split).outcomes
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", resume=True)
    for until in (1, 1, 2, 9):
        cohort = cohort_of(*arms, teacher=toy_teacher, config=config)
        trained = fit(cohort, toy_split, until=until, checkpointing=kept)
        assert [len(outcome.history) for outcome in trained.outcomes] == [min(until, 3)] * 2
    for a, b in zip(whole, trained.outcomes, strict=True):
        assert same(a, b)


@pytest.mark.usefixtures("threads")
def test_a_resumed_run_with_dropout(tmp_path: Path, toy_split: MemorySplit, dropping_arms: list[Arm]) -> None:
    whole = fit(cohort_of(*dropping_arms), toy_split).outcomes
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    with pytest.raises(Killed):
        fit(cohort_of(*dropping_arms), toy_split, checkpointing=kept, progress=killed_after(8))
    torch.manual_seed(99)
    again = fit(cohort_of(*dropping_arms), toy_split, checkpointing=kept).outcomes
    assert all(map(same, whole, again))


def test_a_run_killed_while_it_writes_its_log(tmp_path: Path, toy_split: MemorySplit, toy_input: InputSpec) -> None:
    whole = fit(cohort_of(arm("ce", toy_input)), toy_split).outcomes[0]
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)

    def log(record: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept, log=log)
    records: list[dict[str, Any]] = []
    again = fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept, log=records.append).outcomes[0]
    assert same(whole, again)
    assert [record["epoch"] for record in records] == [1, 2]


def test_a_finished_run_gives_its_result_again(tmp_path: Path, toy_split: MemorySplit, toy_input: InputSpec) -> None:
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", resume=True)
    first = fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept).outcomes[0]
    again = fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept, progress=killed_after(0)).outcomes[0]
    assert same(first, again)


def test_without_resume_a_run_starts_anew(tmp_path: Path, toy_split: MemorySplit, toy_input: InputSpec) -> None:
    kept = Checkpointing(tmp_path / "checkpoint.safetensors")
    first = fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept).outcomes[0]
    records: list[dict[str, Any]] = []
    again = fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept, log=records.append).outcomes[0]
    assert len(records) == 2
    assert same(first, again)


@pytest.mark.parametrize(
    ("other", "config", "kind", "words"),
    [
        ("name", CONFIG, WeightsError, "holds the arms ['ce'], expected ['another']"),
        ("student", CONFIG, WeightsError, "arm ce belongs to another model"),
        ("", replace(CONFIG, lr=0.1), RunError, "was made with lr 0.05, not with lr 0.1"),
        ("", replace(CONFIG, batch_size=16), RunError, "was made with batch_size 8, not with batch_size 16"),
        ("", replace(CONFIG, milestones=(0.5,)), RunError, "was made with milestones"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    tmp_path: Path,
    toy_split: MemorySplit,
    toy_input: InputSpec,
    other: str,
    config: TrainConfig,
    kind: type[KeyholeError],
    words: str,
) -> None:
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", resume=True)
    fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept)
    student = "resnet8x4" if other == "student" else "resnet8"
    new = arm("ce", toy_input, "another" if other == "name" else "ce", student)
    with pytest.raises(kind) as caught:
        fit(cohort_of(new, config=config), toy_split, checkpointing=kept)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_checkpoint_of_other_weights_of_hints_is_refused(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", resume=True)
    plain = arm("ce,at", toy_input)
    weighed = replace(plain, hints=tuple(replace(pair, weight=w) for pair, w in zip(HINTS, (0.5, 1.5), strict=True)))
    one = fit(cohort_of(plain, teacher=toy_teacher), toy_split, checkpointing=kept).outcomes[0]
    with pytest.raises(WeightsError, match=r"layer1.1 -> layer1.0; .* not by .*layer1.1 -> layer1.0 times 0.5; "):
        fit(cohort_of(weighed, teacher=toy_teacher), toy_split, checkpointing=kept)
    other = fit(cohort_of(weighed, teacher=toy_teacher), toy_split).outcomes[0]
    assert not same(one, replace(other, arm=one.arm))


def test_a_truncated_checkpoint_is_one_line(tmp_path: Path, toy_split: MemorySplit, toy_input: InputSpec) -> None:
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", resume=True)
    kept.path.write_bytes(b"\x00" * 100)
    with pytest.raises(WeightsError) as caught:
        fit(cohort_of(arm("ce", toy_input)), toy_split, checkpointing=kept)
    assert str(kept.path) in str(caught.value)


# Divergence


@pytest.mark.parametrize("lr", [1e6, 1e30])
@pytest.mark.parametrize("every_s", [0.0, 1000.0])
def test_a_run_that_diverges_names_the_arm_and_keeps_a_good_checkpoint(
    tmp_path: Path, toy_split: MemorySplit, toy_input: InputSpec, lr: float, every_s: float
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    config = replace(CONFIG, epochs=30, lr=lr, momentum=0.99)
    with pytest.raises(DivergenceError) as caught:
        fit(
            cohort_of(arm("ce", toy_input, "wild"), config=config),
            toy_split,
            checkpointing=Checkpointing(path, every_s=every_s),
        )
    message = str(caught.value)
    assert message.startswith("Arm wild: ")
    assert ("last good checkpoint is kept in" in message) == path.exists()
    assert len(message.splitlines()) == 1
    if path.exists():
        tensors, values = read_tensors(path)
        assert values["arms"] == ["wild"]
        for name, tensor in tensors.items():
            assert bool(tensor.isfinite().all()), name


def test_an_arm_that_diverges_is_dropped_and_the_others_go_on(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    calm = arm("ce,kd", toy_input, "calm")
    wild = replace(arm("ce,kd", toy_input, "wild"), terms=(Term("ce", 1e38), Term("kd", 1.0)))
    alone = fit(cohort_of(calm, teacher=toy_teacher), toy_split).outcomes[0]
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    cohort = cohort_of(wild, calm, teacher=toy_teacher)
    with pytest.raises(Killed):
        fit(cohort, toy_split, checkpointing=kept, diverging="drop", progress=killed_after(9))
    trained = fit(cohort_of(wild, calm, teacher=toy_teacher), toy_split, checkpointing=kept, diverging="drop")
    assert [outcome.arm.name for outcome in trained.outcomes] == ["calm"]
    assert same(alone, trained.outcomes[0])
    assert list(trained.diverged) == ["wild"]
    assert "in epoch 1" in trained.diverged["wild"]


def test_all_terms_that_are_not_finite_are_named(toy_teacher: Network, toy_input: InputSpec) -> None:
    cohort = cohort_of(arm("ce,kd", toy_input, "a"), teacher=toy_teacher)
    (learner,) = cohort.learners
    for sums, told in (
        ({"ce": 1.0, "kd": 1.0, "loss": 2.0}, {}),
        ({"ce": math.nan, "kd": math.inf, "loss": math.nan}, {"a": "ce is nan, kd is inf in epoch 2"}),
        ({"ce": 1.0, "kd": math.inf, "loss": math.inf}, {"a": "kd is inf in epoch 2"}),
        ({"ce": 1.0, "kd": 1.0, "loss": math.inf}, {"a": "loss is inf in epoch 2"}),
    ):
        learner.sums = {name: torch.tensor(value) for name, value in sums.items()}
        assert cohort.diverged("in epoch 2") == told


def test_a_cohort_that_diverges_whole_comes_to_an_end(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    config = replace(CONFIG, epochs=30, lr=1e30, momentum=0.99)
    trained = fit(cohort_of(arm("ce", toy_input), config=config), toy_split, diverging="drop")
    assert trained.outcomes == ()
    assert list(trained.diverged) == ["ce"]


def test_ways_of_diverging_are_two(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    with pytest.raises(UnknownNameError, match="drop"):
        fit(cohort_of(arm("ce", toy_input)), toy_split, diverging="dropp")


@pytest.mark.parametrize(("terms", "named"), [("ce,kd", "kd"), ("ce,hint", "hint"), ("ce,at", "at")])
def test_a_teacher_that_gives_nan_is_found_in_its_term(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec, terms: str, named: str
) -> None:
    with torch.no_grad():
        toy_teacher.module.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(DivergenceError, match=rf"^Arm taught: {named} is nan in epoch 1"):
        fit(cohort_of(arm(terms, toy_input, "taught"), teacher=toy_teacher), toy_split)


# Settings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(epochs=240), {0: 0.05, 149.99: 0.05, 150: 0.005, 179.9: 0.005, 180: 5e-4, 210: 5e-5, 239.9: 5e-5}),
        (TrainConfig(epochs=8, lr=1.0, milestones=(0.5,)), {0: 1.0, 3.99: 1.0, 4: 0.1, 7.99: 0.1}),
        (TrainConfig(epochs=10, lr=1.0, schedule="cosine"), {0: 1.0, 5: 0.5, 10: 0.0, 2.5: 0.5 * (1 + 0.5**0.5)}),
        (
            TrainConfig(epochs=11, lr=1.0, schedule="cosine", warmup_epochs=1),
            {0: 0.000999, 0.5: 0.5005, 1: 1.0, 6: 0.5, 11: 0.0},
        ),
        (TrainConfig(epochs=10, lr=1.0, milestones=(), warmup_epochs=2), {1: 0.50025, 2: 1.0, 9.9: 1.0}),
    ],
)
def test_learning_rates(config: TrainConfig, expected: dict[float, float]) -> None:
    assert {epoch: config.rate(epoch) for epoch in expected} == pytest.approx(expected, abs=1e-5)


def test_the_rate_of_the_last_step_is_recorded(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    config = replace(CONFIG, schedule="cosine")
    history = fit(cohort_of(arm("ce", toy_input), config=config), toy_split).outcomes[0].history
    assert [record["rate"] for record in history] == pytest.approx([config.rate(5 / 6), config.rate(11 / 6)])


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"momentum": float("inf")},
        {"momentum": 1.0},
        {"warmup_epochs": 1.5},
        {"weight_decay": -1e-4},
        {"warmup_epochs": -1.0},
        {"seed": -1},
        {"nesterov": True, "momentum": 0.0},
        {"precision": "fp16"},
        {"compile": "yes"},
        {"milestones": ("a",)},
        {"milestones": ((0.5,), 0.7)},
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        TrainConfig(**{"epochs": 1, **setting})
    assert next(iter(setting)) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_schedule_lists_the_others() -> None:
    with pytest.raises(UnknownNameError, match="Unknown schedule 'steps'; nearest known: step"):
        TrainConfig(epochs=1, schedule="steps")


def test_arms_have_names_of_their_own(toy_input: InputSpec) -> None:
    with pytest.raises(SettingError, match="Two arms are called 'ce'"):
        cohort_of(arm("ce", toy_input), arm("kd", toy_input), arm("ce", toy_input))


@pytest.mark.parametrize(
    ("terms", "words"), [("ce,kd", "Term kd needs a teacher"), ("hint", "Term hint needs a teacher")]
)
def test_a_term_without_its_teacher(toy_input: InputSpec, terms: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        cohort_of(arm(terms, toy_input))


def test_a_term_without_its_hints(toy_teacher: Network, toy_input: InputSpec) -> None:
    with pytest.raises(SettingError, match="Term hint needs hints"):
        cohort_of(Arm("x", "resnet8", toy_input, parse_terms("ce,hint")), teacher=toy_teacher)


def test_a_term_with_a_memory_needs_the_training_images(toy_teacher: Network, toy_input: InputSpec) -> None:
    with pytest.raises(SettingError, match="term crd needs the labels of the training images"):
        cohort_of(arm("ce,crd", toy_input), teacher=toy_teacher)


def gradient_norm(network: Network, value: torch.Tensor) -> float:
    found = torch.autograd.grad(value, list(network.module.parameters()), retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in found if gradient is not None))


@pytest.mark.parametrize("terms", ["ce,kd,hint", "kd,at,vid", "ce,crd,sp", "ce,semckd"])
def test_balanced_terms_pull_equally_hard(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec, terms: str
) -> None:
    one = replace(arm(terms, toy_input), balance="gradients")
    cohort = cohort_of(one, teacher=toy_teacher, train=toy_split)
    (learner,) = cohort.learners
    cohort.train_mode()
    lesson = next(cohort.lessons(toy_split.training_batches(8, seed=0, epoch=0)))
    logits, features = learner.tapped(lesson.views[toy_input])
    assert lesson.taught is not None
    view = View(logits, features, *lesson.taught, lesson.batch.labels, lesson.batch.indices)
    values = {name: compute(view) for name, compute in learner.terms.items()}
    memory = {name: tensor.clone() for name, tensor in learner.terms.state_dict().items()}
    scales = gradient_scales(learner.network.module, learner.terms, values, {})
    pulls = [scales[name] * gradient_norm(learner.network, value) for name, value in values.items() if name != "crd"]
    assert pulls == pytest.approx([pulls[0]] * len(pulls), rel=1e-4)
    assert scales[terms.split(",")[0]] == 1
    changed = [name for name, tensor in learner.terms.state_dict().items() if not torch.equal(tensor, memory[name])]
    assert not [name for name in changed if "memory" in name or "steps" in name]  # looking is not learning
    if "crd" not in terms:
        old = {name: 4.0 * scale for name, scale in scales.items()}
        again = gradient_scales(learner.network.module, learner.terms, values, old)
        assert again == pytest.approx({name: 2.0 * scale for name, scale in scales.items()})


def test_balanced_arms_learn_and_are_resumed_bit_for_bit(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    arms = [replace(arm(terms, toy_input), balance="gradients") for terms in ("ce,kd,hint", "ce,crd")]

    def cohort() -> Cohort:
        return cohort_of(*arms, teacher=toy_teacher, train=toy_split)

    whole = fit(cohort(), toy_split).outcomes
    kept = Checkpointing(tmp_path / "checkpoint.safetensors", every_s=0, resume=True)
    with pytest.raises(Killed):
        fit(cohort(), toy_split, checkpointing=kept, progress=killed_after(7))
    again = fit(cohort(), toy_split, checkpointing=kept).outcomes
    assert all(map(same, whole, again))
    plain = fit(cohort_of(replace(arms[0], balance="weights"), teacher=toy_teacher), toy_split).outcomes[0]
    assert not same(plain, whole[0])


def test_balanced_terms_keep_their_weights(toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec) -> None:
    one = replace(arm("ce=1,kd=3", toy_input), balance="gradients")
    cohort = cohort_of(one, teacher=toy_teacher, train=toy_split)
    (learner,) = cohort.learners
    cohort.train_mode()
    learner.look(next(cohort.lessons(toy_split.training_batches(8, seed=0, epoch=0))), "fp32", ALONE)
    found, scales = learner.sums_as_numbers(), learner.scales
    assert scales["kd"] != 1
    assert found["loss"] == pytest.approx(scales["ce"] * found["ce"] + 3 * scales["kd"] * found["kd"], rel=1e-5)


def test_the_balance_is_looked_at_every_so_many_steps(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyhole.distillation.learner.BALANCE_EVERY", 2)
    cohort = cohort_of(replace(arm("ce,kd", toy_input), balance="gradients"), teacher=toy_teacher, train=toy_split)
    cohort.train_mode()
    seen = []
    for lesson in cohort.lessons(toy_split.training_batches(8, seed=0, epoch=0)):
        cohort.step(lesson, 0.05)
        seen.append(cohort.learners[0].scales["kd"])
    assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4] == seen[5]


def test_a_balance_that_does_not_exist(toy_input: InputSpec) -> None:
    with pytest.raises(UnknownNameError, match="Unknown balance 'gradient'; nearest known: gradients"):
        replace(arm("ce", toy_input), balance="gradient")


@pytest.mark.parametrize("pair", [HintPair("layer9", "layer1"), HintPair("layer1", "layer9")])
def test_hints_that_name_no_layer(toy_teacher: Network, toy_input: InputSpec, pair: HintPair) -> None:
    with pytest.raises(UnknownNameError, match="layer9"):
        cohort_of(Arm("x", "resnet8", toy_input, (Term("at", 1.0),), (pair,)), teacher=toy_teacher)


def test_images_without_labels_cannot_teach_cross_entropy(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    unlabeled = replace(toy_split, classes=(), labels=torch.full((48,), -1))
    with pytest.raises(DataError, match="Arm ce,kd: term ce needs labeled images"):
        fit(cohort_of(arm("ce,kd", toy_input), teacher=toy_teacher), unlabeled)
    outcome = fit(cohort_of(arm("kd", toy_input), teacher=toy_teacher), unlabeled).outcomes[0]
    assert outcome.history[-1]["kd"] < outcome.history[0]["kd"]


def test_more_classes_than_outputs(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    with pytest.raises(DataError, match="4 classes and arm ce 3 outputs"):
        fit(cohort_of(arm("ce", toy_input)), replace(toy_split, classes=tuple("abcd")))


def test_a_batch_larger_than_the_data(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    with pytest.raises(SettingError, match="Batch size 49 is above the 48 training images"):
        fit(cohort_of(arm("ce", toy_input), config=replace(CONFIG, batch_size=49)), toy_split)


# The best epoch


def test_the_best_epoch_is_that_of_the_held_out_images(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    config = replace(CONFIG, epochs=4, lr=0.3)
    outcome = fit(cohort_of(arm("ce", toy_input), config=config), toy_split, toy_split.subset(range(12))).outcomes[0]
    scores = [record["held_out_top1"] for record in outcome.history]
    assert scores[outcome.best_epoch - 1] == max(scores)
    assert max(scores[outcome.best_epoch :], default=-1) < max(scores)  # of equals the last


def test_the_best_weights_are_those_of_their_epoch(
    toy_split: MemorySplit, toy_input: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(
        "keyhole.distillation.training.evaluate", lambda *_, **__: Accuracy(next(scores), top5=1.0, images=12)
    )
    cohort = cohort_of(arm("ce", toy_input), config=replace(CONFIG, epochs=3))
    copies: list[dict[str, torch.Tensor]] = []

    def log(_record: dict[str, Any]) -> None:
        copies.append({name: tensor.clone() for name, tensor in weights(cohort.learners[0].network).items()})

    outcome = fit(cohort, toy_split, toy_split.subset(range(12)), log=log).outcomes[0]
    assert outcome.best_epoch == 1
    for found, epoch in ((outcome.best, 0), (outcome.last, 2)):
        assert all(torch.equal(tensor, copies[epoch][name]) for name, tensor in weights(found).items())
    assert any(not torch.equal(tensor, copies[2][name]) for name, tensor in copies[0].items())


@pytest.mark.parametrize("held_out", [False, True])
def test_without_held_out_images_the_best_is_the_last(
    toy_split: MemorySplit, toy_input: InputSpec, held_out: bool
) -> None:
    nothing = toy_split.subset([]) if held_out else None
    outcome = fit(cohort_of(arm("ce", toy_input)), toy_split, nothing).outcomes[0]
    assert outcome.best_epoch == 2
    assert all(torch.equal(tensor, weights(outcome.last)[name]) for name, tensor in weights(outcome.best).items())
    assert "held_out_top1" not in outcome.history[0]
    assert not outcome.last.module.training


# Two views


@dataclass(frozen=True)
class _Dimmed(MemorySplit):
    """Images that students see at half their brightness, in half the size."""

    def training_batches(self, batch_size: int, **settings: Any) -> Iterator[Batch]:
        for batch in super().training_batches(batch_size, **settings):
            yield replace(batch, images=nn.functional.avg_pool2d(batch.images, 2) / 2, shown=batch.images.__getitem__)


def test_students_may_see_other_images_than_their_teacher(toy_teacher: Network, toy_split: MemorySplit) -> None:
    torch.set_num_threads(1)
    whole = toy_teacher.input
    half = InputSpec((whole.size_px[0] // 2, whole.size_px[1] // 2), whole.mean, whole.std)
    dimmed = _Dimmed(**vars(toy_split))
    arms = [arm("kd", half, "small"), arm("kd", whole, "as large as the teacher")]
    cohort = cohort_of(*arms, teacher=toy_teacher, train=dimmed)
    batch = next(dimmed.training_batches(8, seed=0, epoch=0, augment=False))
    lesson = next(cohort.lessons([batch]))
    assert lesson.taught is not None
    assert batch.shown is not None
    sharp = batch.shown(torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(lesson.taught[0], toy_teacher(sharp), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lesson.views[half], half.prepare(batch.images))
    torch.testing.assert_close(lesson.views[whole], whole.prepare(batch.images))
    assert [len(outcome.history) for outcome in fit(cohort, dimmed).outcomes] == [2, 2]


def test_people_may_be_more_than_numbers_of_an_embedding(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    many = replace(toy_split, classes=("a", "b", "c", "d", "e"))
    cohort = cohort_of(arm("margin", toy_input), train=many)
    assert cohort.learners[0].terms["margin"].head.weight.shape == (5, 3)  # type: ignore[union-attr]
    fit(cohort, many)
    with pytest.raises(DataError, match="has 5 classes and arm ce 3 outputs"):
        fit(cohort_of(arm("ce", toy_input), train=many), many)
