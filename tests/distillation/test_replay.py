"""Steps that are recorded and replayed, and compiled students, against the plain ones."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from keyhole.data.splits import MemorySplit
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.kinds import HintPair
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.replay import WARM_UP, Replay
from keyhole.distillation.teaching import Teaching
from keyhole.distillation.training import Outcome, fit
from keyhole.models.network import InputSpec, Network

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=2, batch_size=8, precision="fp32", device="cpu", compile="off")
HINTS = (HintPair("layer1.1", "layer1.0"), HintPair("layer3.1", "layer3.0"))


def arm(terms: str, spec: InputSpec) -> Arm:
    parsed = parse_terms(terms)
    return Arm(terms, "resnet8", spec, parsed, HINTS if any(term.needs_hints for term in parsed) else ())


def assert_alike(outcomes: tuple[Outcome, ...], expected: tuple[Outcome, ...], *, rtol: float, atol: float) -> None:
    assert len(outcomes) == len(expected) > 0
    for one, other in zip(outcomes, expected, strict=True):
        own = other.last.module.state_dict()
        for name, tensor in one.last.module.state_dict().items():
            torch.testing.assert_close(tensor, own[name], rtol=rtol, atol=atol, msg=lambda text, name=name: name + text)
        for a, b in zip(one.history, other.history, strict=True):
            assert a == pytest.approx(b, rel=max(rtol, 1e-12))


def test_work_is_done_once_a_call_on_its_inputs() -> None:
    seen: list[Tensor] = []

    def work(a: Tensor, b: Tensor) -> Tensor:
        seen.append(a)
        return a + b

    replay = Replay(work, CPU)
    for i in range(WARM_UP + 3):
        assert torch.equal(replay(torch.full((3,), float(i)), torch.ones(3)), torch.full((3,), i + 1.0))
    assert len(seen) == WARM_UP + 3
    assert len({tensor.data_ptr() for tensor in seen}) == 1  # always the same memory


def test_inputs_are_copied_and_may_change_their_size() -> None:
    replay = Replay(lambda value: value, CPU)
    given = torch.ones(3)
    taken = replay(given)
    given.zero_()
    assert torch.equal(taken, torch.ones(3))
    assert torch.equal(replay(torch.ones(5)), torch.ones(5))
    assert replay(torch.ones(5, dtype=torch.int64)).dtype == torch.int64


def test_replayed_steps_are_the_plain_ones_bit_for_bit(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    arms = [arm("ce,kd,hint", toy_input), arm("ce,vid,at", toy_input), arm("ce", replace(toy_input, size_px=(4, 4)))]

    def outcomes(*, replays: bool) -> tuple[Outcome, ...]:
        cohort = Cohort(arms, CONFIG, classes=3, teacher=toy_teacher)
        cohort.replays = replays
        return fit(cohort, toy_split, toy_split.subset(range(9))).outcomes

    assert_alike(outcomes(replays=True), outcomes(replays=False), rtol=0, atol=0)


def test_a_replayed_cohort_goes_on_without_a_dropped_arm(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    wild = replace(arm("ce", toy_input), name="wild", terms=(replace(parse_terms("ce")[0], weight=1e38),))
    cohort = Cohort([wild, arm("ce", toy_input)], CONFIG, classes=3)
    cohort.replays = True
    trained = fit(cohort, toy_split, diverging="drop")
    assert list(trained.diverged) == ["wild"]
    alone = fit(Cohort([arm("ce", toy_input)], CONFIG, classes=3), toy_split).outcomes
    assert_alike(trained.outcomes, alone, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("terms", "balance", "repeats"),
    [("ce,kd,hint", "weights", True), ("ce,kd,hint", "gradients", False), ("ce,crd", "weights", False)],
)
def test_what_draws_or_decides_in_python_is_not_replayed(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec, terms: str, balance: str, repeats: bool
) -> None:
    one = replace(arm(terms, toy_input), balance=balance)
    cohort = Cohort([one], CONFIG, classes=3, teacher=toy_teacher, train=toy_split)
    assert cohort.learners[0].repeats == repeats
    assert not cohort.replays  # on a processor there is nothing to gain


def test_answers_of_a_replaying_teacher_are_not_overwritten(toy_teacher: Network) -> None:
    plain = Teaching(toy_teacher, ["layer1.1"], device=CPU, precision="fp32")
    replaying = Teaching(toy_teacher, ["layer1.1"], device=CPU, precision="fp32", replays=True)
    images = torch.rand(6, 4, 3, 8, 8)
    answers = [replaying.ask(some)() for some in images]
    for some, (logits, features) in zip(images, answers, strict=True):
        expected, kept = plain.ask(some)()
        assert torch.equal(logits, expected)
        assert torch.equal(features["layer1.1"], kept["layer1.1"])


def test_students_are_compiled_where_it_pays_or_is_asked_for(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    def compiled(way: str, epochs: int) -> bool:
        config = replace(CONFIG, compile=way, epochs=epochs)
        (learner,) = Cohort([arm("ce", toy_input)], config, classes=3, train=toy_split).learners
        return learner.tapped._compiled_call_impl is not None

    assert [compiled(way, 1) for way in ("on", "auto", "off")] == [True, False, False]
    assert not compiled("auto", 100_000)  # long, and on a processor


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_students_learn_what_plain_ones_learn(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    arms = [arm("ce,kd,hint", toy_input), arm("ce", toy_input)]
    config = replace(CONFIG, epochs=1, lr=0.01)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own libraries
        compiled = fit(Cohort(arms, replace(config, compile="on"), classes=3, teacher=toy_teacher), toy_split).outcomes
    plain = fit(Cohort(arms, config, classes=3, teacher=toy_teacher), toy_split).outcomes
    assert_alike(compiled, plain, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


def test_what_balances_gradients_is_not_compiled(toy_split: MemorySplit, toy_input: InputSpec) -> None:
    """Compiled code refuses a second gradient of one forward pass, or with its memory kept gives a wrong one."""
    arms = [arm("ce", toy_input), replace(arm("ce", toy_input), name="balanced", balance="gradients")]
    config = replace(CONFIG, compile="on")
    learners = Cohort(arms, config, classes=3, train=toy_split).learners
    assert [learner.tapped._compiled_call_impl is None for learner in learners] == [False, True]


# On a GPU

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@GPU
def test_a_recorded_step_adds_what_the_plain_one_adds() -> None:
    total = torch.zeros(2, device="cuda")
    add = Replay(lambda value: total.add_(value), torch.device("cuda"))
    for i in range(WARM_UP + 4):
        add(torch.full((2,), float(i), device="cuda"))
    assert total.tolist() == [sum(range(WARM_UP + 4))] * 2
    assert add._graph is not None


@pytest.mark.gpu
@GPU
def test_work_that_waits_for_the_gpu_goes_on_as_it_is() -> None:
    replay = Replay(lambda value: float(value.sum()), torch.device("cuda"))
    for i in range(WARM_UP):
        assert replay(torch.full((2,), float(i), device="cuda")) == 2 * i
    with pytest.warns(UserWarning, match="could not be recorded"):
        assert replay(torch.ones(2, device="cuda")) == 2
    assert replay(torch.full((2,), 3.0, device="cuda")) == 6


@pytest.mark.gpu
@GPU
def test_recorded_steps_on_a_gpu_learn_what_plain_ones_learn(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    arms = [arm("ce,kd,hint", toy_input), arm("ce,vid,at", toy_input)]

    def outcomes(*, replays: bool) -> tuple[Outcome, ...]:
        cohort = Cohort(arms, replace(CONFIG, device="cuda", lr=0.01), classes=3, teacher=toy_teacher)
        cohort.replays = replays
        trained = fit(cohort, toy_split)
        assert (cohort._replay is not None and cohort._replay._graph is not None) == replays
        return trained.outcomes

    assert_alike(outcomes(replays=True), outcomes(replays=False), rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@GPU
def test_a_step_on_a_gpu_waits_for_nothing(toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec) -> None:
    arms = [arm(terms, toy_input) for terms in ("ce,kd,hint", "dkd,dist,at", "ls,wttm,vid,sp", "ce,crd")]
    train = toy_split.to(torch.device("cuda"))
    cohort = Cohort(arms, replace(CONFIG, device="cuda"), classes=3, teacher=toy_teacher, train=toy_split)
    cohort.train_mode()
    for number, lesson in enumerate(cohort.lessons(train.training_batches(8, seed=0, epoch=0))):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            cohort.step(lesson, 0.01)
        finally:
            torch.cuda.set_sync_debug_mode("default")
