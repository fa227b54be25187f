"""An arm: what is trained and on what; and a lesson: what each arm of a cohort is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from keyhole.data.splits import Batch
from keyhole.distillation.balance import BALANCES
from keyhole.distillation.kinds import HintPair
from keyhole.distillation.teaching import Answer
from keyhole.distillation.terms import Term, check_terms
from keyhole.errors import SettingError, unknown_name
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build


@dataclass(frozen=True)
class Arm:
    """One member of a cohort: what is trained, and on what.

    Attributes:
        name: How it is called in tables.
        student: Name of the network (see :func:`keyhole.models.zoo.build`).
        input: Size and normalization that the student expects; it gets the teacher's view, resized.
        terms: The terms of its loss.
        hints: Which of its layers learn from which layers of the teacher.
        balance: ``weights`` takes the terms as they are; ``gradients`` first scales each so that its gradient in the
            student's weights is as large as that of the first term, so that weights tell how hard each one pulls.
    """

    name: str
    student: str
    input: InputSpec
    terms: tuple[Term, ...]
    hints: tuple[HintPair, ...] = ()
    balance: str = "weights"

    def __post_init__(self) -> None:
        """Check the name of the balance."""
        if self.balance not in BALANCES:
            raise unknown_name("balance", self.balance, BALANCES)

    def build(self, classes: int) -> Network:
        """Return the student as it is before any step; random weights are drawn from the global state."""
        return build(self.student, classes=classes, input=self.input)


@dataclass(frozen=True)
class Lesson:
    """A batch as each network sees it, and the teacher's answer.

    Attributes:
        batch: The batch.
        views: Its images, prepared, by what a network expects.
        taught: The teacher's logits and features; None without a teacher.
    """

    batch: Batch
    views: Mapping[InputSpec, Tensor]
    taught: Answer | None

    def tensors(self) -> list[Tensor]:
        """Return all tensors that a learner may look at, in an order of their own."""
        answer = [] if self.taught is None else [self.taught[0], *self.taught[1].values()]
        return [self.batch.images, self.batch.labels, self.batch.indices, *self.views.values(), *answer]

    def of(self, tensors: Sequence[Tensor]) -> Lesson:
        """Return a lesson of the same form that holds these tensors."""
        left = iter(tensors)
        batch = Batch(next(left), next(left), next(left))
        views = {spec: next(left) for spec in self.views}
        taught = None if self.taught is None else (next(left), {name: next(left) for name in self.taught[1]})
        return Lesson(batch, views, taught)


def check_arms(arms: Sequence[Arm], *, teacher: bool, processes: int) -> None:
    """Check that arms can be trained together.

    Raises:
        SettingError: Two arms have one name, or a term of one lacks its teacher or its hints, or cannot be shared by
            processes.
    """
    names = [arm.name for arm in arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(f"Two arms are called {twice!r}; give each a name of its own.")
    for arm in arms:
        check_terms(arm.terms, teacher=teacher, hints=bool(arm.hints))
        kept = next((term.name for term in arm.terms if term.kind.memory), None)
        if processes > 1 and kept is not None:
            raise SettingError(
                f"Arm {arm.name}: term {kept} keeps a memory of images, which one process must fill. "
                "Leave the term out, or run without torchrun."
            )


def _term_text(term: Term) -> str:
    knobs = ", ".join(f"{knob} {value:g}" for knob, value in term.knobs)
    return f"{term.weight:g} {term.name}{f'({knobs})' if knobs else ''} {term.temperature or ''}".rstrip()


def loss_text(arm: Arm) -> str:
    """Return terms and hints in one line; two arms with the same line learn the same."""
    terms = " + ".join(_term_text(term) for term in arm.terms)
    balanced_by = f"; balance by {arm.balance}" if arm.balance != "weights" else ""
    weights = ["" if pair.weight == 1 else f" times {pair.weight:g}" for pair in arm.hints]
    pairs = (f"; {pair.teacher} -> {pair.student}{times}" for pair, times in zip(arm.hints, weights, strict=True))
    return terms + "".join(pairs) + balanced_by


def same_arms(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Return each arm that learns the very same as an earlier one, with the name of that.

    Rules often come to the same layers, and terms without hints are the same whatever hints stand beside them.

    Args:
        arms: By name.
    """
    firsts: dict[Arm, str] = {}
    found = {}
    for name, arm in arms.items():
        first = firsts.setdefault(replace(arm, name=""), name)
        if first != name:
            found[name] = first
    return found
