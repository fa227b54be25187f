"""What a search may cost, and how it spends that: how many combinations are trained for how many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keyhole.errors import SettingError, unknown_name

METHODS = ("all", "halving", "random")


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
        method: ``all`` trains every combination to the end; ``random`` as many as the budget allows; ``halving``
            trains many for a few epochs, and again and again only the best of them go on.
        cells: At most the epochs of so many students trained to the end; no limit when missing.
        passes: At most so many passes of the teacher over the training images; no limit when missing.
        keep: Of ``halving``: one of so many goes on.
        least_epochs: Of ``halving``: none is left out earlier.
        students_per_pass: At most so many students learn from one teacher pass.
        holdout: Training images held out, on which combinations are chosen.
        seed: Of what is drawn where not all combinations are tried.
    """

    method: str = "halving"
    cells: int | None = None
    passes: int | None = None
    keep: int = 3
    least_epochs: int = 1
    students_per_pass: int = 28
    holdout: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.method not in METHODS:
            raise unknown_name("method of search", self.method, METHODS)
        for name, least in (
            ("keep", 2),
            ("least_epochs", 1),
            ("students_per_pass", 1),
            ("holdout", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise SettingError(f"{name} of a search is {getattr(self, name)}; expected at least {least}.")
        for name in ("cells", "passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} of a search is {value}; expected at least 1.")
        if self.method == "random" and self.cells is None and self.passes is None:
            raise SettingError("A random search has no budget; give --cells or --passes, or take --method all.")


@dataclass(frozen=True)
class Rung:
    """A step of a search.

    Attributes:
        students: How many combinations are in it.
        until: Epochs of the schedule that they have behind them at its end.
    """

    students: int
    until: int


@dataclass(frozen=True)
class Cost:
    """What a search costs.

    Attributes:
        student_epochs: Epochs of all students together.
        passes: Passes of the teacher over the training images.
    """

    student_epochs: int
    passes: int


def cost_of(rungs: Sequence[Rung], students_per_pass: int) -> Cost:
    """Return what a search costs whose rungs are known.

    Args:
        rungs: In the order in which they are run.
        students_per_pass: At most so many students learn from one teacher pass.

    Example:
        >>> cost_of([Rung(9, 1), Rung(3, 3), Rung(1, 9)], 4)
        Cost(student_epochs=21, passes=11)
    """
    student_epochs = passes = before = 0
    for rung in rungs:
        epochs, before = rung.until - before, rung.until
        student_epochs += rung.students * epochs
        passes += -(-rung.students // students_per_pass) * epochs
    return Cost(student_epochs, passes)


def plan_search(config: SearchConfig, combinations: int, epochs: int) -> tuple[Rung, ...]:
    """Return the rungs of a search: as many combinations as there are and as the budget allows.

    Halving looks after ``epochs``, ``epochs / keep``, ``epochs / keep^2`` ... epochs, down to ``least_epochs``, and
    each time one of ``keep`` goes on. Where none of these but the last is so late, it looks after ``least_epochs``.

    Args:
        config: How to search, and its budget.
        combinations: How many there are.
        epochs: Of the schedule.

    Raises:
        SettingError: The budget is too small for a single combination, or for all of them where all are asked for.

    Reference:
        Jamieson and Talwalkar (2016), Non-stochastic best arm identification and hyperparameter optimization,
        https://arxiv.org/abs/1502.07943: successive halving.

    Example:
        >>> plan_search(SearchConfig("halving", cells=20), 84, 9)
        (Rung(students=80, until=1), Rung(students=26, until=3), Rung(students=8, until=9))
    """
    looks = _looks(config, epochs)

    def rungs(first: int) -> tuple[Rung, ...]:
        return tuple(Rung(max(1, first // config.keep**k), until) for k, until in enumerate(looks))

    def affordable(first: int) -> bool:
        cost = cost_of(rungs(first), config.students_per_pass)
        return (config.cells is None or cost.student_epochs <= config.cells * epochs) and (
            config.passes is None or cost.passes <= config.passes
        )

    low, high = 0, combinations
    while low < high:  # costs grow with the number of combinations
        middle = (low + high + 1) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle - 1)
    if low == 0 or (config.method == "all" and low < combinations):
        least = cost_of(rungs(combinations if config.method == "all" else 1), config.students_per_pass)
        raise SettingError(
            f"The budget is too small: {least.student_epochs} student epochs and {least.passes} teacher passes are "
            f"needed at least. Raise --cells or --passes, or lower --epochs."
        )
    return rungs(low)


def _looks(config: SearchConfig, epochs: int) -> list[int]:
    found = [epochs]
    while config.method == "halving" and (earlier := found[0] // config.keep) >= config.least_epochs:
        found.insert(0, earlier)
    if config.method == "halving" and found == [epochs] and 1 < config.least_epochs < epochs:
        found.insert(0, config.least_epochs)
    return found
