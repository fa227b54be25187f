"""Searches replayed from runs that are there: what each would have found, and for how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from keyhole.errors import ShapeError
from keyhole.studies.budget import Cost, Rung, SearchConfig, cost_of, plan_search
from keyhole.studies.variance import Spread

_POINTS = 10  # sizes of search, evenly spaced in their logarithm
_REPETITIONS = 4000
_KEEP = 3
_LATER = (3, 10, 30)  # times of one student trained alone, at which choices are compared with searches as well


@dataclass(frozen=True)
class Replayed:
    """One size of a search, replayed many times.

    Attributes:
        method: ``random``, ``halving``, or ``halving from epoch 3``, which leaves none out earlier.
        looks: The epochs after which it looks at held-out accuracies; after the last one it takes the best.
        combinations: How many it begins with, drawn anew each time.
        cost: What one search costs.
        cells: The same in students trained to the end.
        gain: Mean, over all that may be drawn, of the points that what is found is above the mean of all combinations,
            on the test images of the seeds that the search did not see.
        low: A tenth of what is found is below it.
        high: A tenth of it is above it.
    """

    method: str
    looks: tuple[int, ...]
    combinations: int
    cost: Cost
    cells: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Pace:
    """What training takes.

    Attributes:
        cell_s: Seconds of the steps of one student, over the whole schedule.
        pass_s: Seconds of the teacher's passes that a cohort shares, over the whole schedule.
        epochs: Of the schedule.
    """

    cell_s: float
    pass_s: float
    epochs: int

    @property
    def alone_s(self) -> float:
        """Seconds of one student trained to the end alone, with the teacher's passes."""
        return self.cell_s + self.pass_s

    def seconds(self, cost: Cost) -> float:
        """Return what a search takes: the steps of its students, and the passes of the teacher that it needs.

        Example:
            >>> Pace(cell_s=20.0, pass_s=5.0, epochs=10).seconds(Cost(student_epochs=30, passes=10))
            65.0
        """
        return (cost.student_epochs * self.cell_s + cost.passes * self.pass_s) / self.epochs


@dataclass(frozen=True)
class Match:
    """A choice that trains no student to choose, beside the largest search that takes no longer.

    Attributes:
        choice: The rules that choose it.
        seconds: What either may take, until there is a student trained to the end.
        method: Of the search.
        combinations: How many it begins with.
        choice_gain: Points that the choice is above the mean of all combinations.
        search_gain: Mean of the points that what the search found is above it, on the seeds that the search did not
            see; 0 where it can only take one blindly.
        difference: The first minus the second.
        low: Lower end of its 95 % interval by Student's t with the noise of the whole table, for the combinations that
            searches found here; None with one seed, as for the next.
        high: Its upper end.
    """

    choice: tuple[str, ...]
    seconds: float
    method: str
    combinations: int
    choice_gain: float
    search_gain: float
    difference: float
    low: float | None
    high: float | None


def replay_searches(
    held_out: Float[np.ndarray, "rows seeds epochs"],
    top1: Float[np.ndarray, "rows seeds"],
    *,
    students_per_pass: int,
    keep: int = _KEEP,
    repetitions: int = _REPETITIONS,
    seed: int = 0,
) -> tuple[Replayed, ...]:
    """Return what random search and successive halving find among runs that are there, by what they cost.

    A search draws one training seed and the combinations that it begins with, looks at held-out accuracies as they were
    after some epochs, and is judged by test accuracies of the other seeds; with a single seed by those of that seed,
    which flatters it. A search that stopped early here saw what it would have seen, as a student learns the same
    whoever shares its pass, to rounding. What random search finds is known exactly, what halving finds from draws.
    Halving stands there once for each epoch from which it may leave combinations out, as in Hyperband.

    Args:
        held_out: Top-1 on the held-out images after each epoch, one row a combination.
        top1: On the test images after the last epoch, in percent.
        students_per_pass: At most so many students learn from one teacher pass.
        keep: Of halving: one of so many goes on.
        repetitions: Draws of each size of halving.
        seed: Of these.

    Raises:
        ShapeError: The two do not fit together.

    Example:
        >>> top1 = np.array([[60.0, 60.0], [61.0, 61.0], [62.0, 62.0]])
        >>> found = replay_searches(top1[:, :, None] / 100, top1, students_per_pass=3)
        >>> [(each.method, each.combinations, each.gain) for each in found if each.combinations == 3]
        [('random', 3, 1.0), ('halving', 3, 1.0)]

    Reference:
        Li et al. (2018), Hyperband, Journal of Machine Learning Research 18, https://arxiv.org/abs/1603.06560.
    """
    rows, seeds, epochs = _checked(held_out, top1)
    gaps = top1 - top1.mean(axis=0)
    apart = np.stack(
        [np.delete(gaps, own, axis=1).mean(axis=1) if seeds > 1 else gaps[:, 0] for own in range(seeds)], 1
    )
    sizes = sorted({round(float(size)) for size in np.geomspace(1, rows, _POINTS)})
    found = []
    for method, config in _methods(rows, epochs, students_per_pass, keep).items():
        for size in sizes:
            rungs = plan_search(config, size, epochs)
            taken = _taken(rungs, held_out, repetitions, seed)
            cost, gain = cost_of(rungs, students_per_pass), float((taken * apart).sum())
            low, high = _quantiles(apart, taken, (0.1, 0.9))
            looks = tuple(rung.until for rung in rungs)
            found.append(Replayed(method, looks, size, cost, cost.student_epochs / epochs, gain, low, high))
    return tuple(found)


def _methods(rows: int, epochs: int, students_per_pass: int, keep: int = _KEEP) -> dict[str, SearchConfig]:
    """Return the searches that are replayed: random, and halving from each of its looks on."""
    first = SearchConfig("random", cells=rows, keep=keep, students_per_pass=students_per_pass)
    whole = replace(first, method="halving")
    looks = [rung.until for rung in plan_search(whole, rows, epochs)]
    later = {f"halving from epoch {look}": replace(whole, least_epochs=look) for look in looks[1:-1]}
    return {"random": first, "halving": whole, **later}


def _quantiles(
    values: Float[np.ndarray, "rows seeds"], weights: Float[np.ndarray, "rows seeds"], at: Sequence[float]
) -> list[float]:
    """Return the values up to which so much of the weight lies."""
    order = np.argsort(values, axis=None)
    reached = np.cumsum(weights.ravel()[order])
    places = np.minimum(np.searchsorted(reached, np.array(at) - 1e-9), len(order) - 1)
    return [float(value) for value in values.ravel()[order][places]]


def match_searches(
    choices: Mapping[tuple[str, ...], tuple[int, float]],
    held_out: Float[np.ndarray, "rows seeds epochs"],
    top1: Float[np.ndarray, "rows seeds"],
    *,
    pace: Pace,
    spread: Spread | None,
    students_per_pass: int,
) -> tuple[Match, ...]:
    """Return how choices that train no student to choose do against searches that may take as long.

    A choice takes its look and one student trained to the end, and has the same gain however much time there is. A
    search is as large as the time allows, and is replayed as in :func:`replay_searches`. Beside the time that the
    choice takes, both are compared at longer ones, up to that of trying everything.

    Args:
        choices: Row of each choice, and the seconds of its look, by the rules that choose it.
        held_out: Top-1 on the held-out images after each epoch, one row a combination.
        top1: On the test images after the last epoch, in percent.
        pace: What training takes.
        spread: Of ``top1``; None with one seed.
        students_per_pass: At most so many students learn from one teacher pass.

    Raises:
        ShapeError: The tables do not fit together.

    Example:
        >>> top1 = np.array([[60.0, 60.0], [61.0, 61.0], [65.0, 65.0]])
        >>> pace = Pace(cell_s=20.0, pass_s=5.0, epochs=1)
        >>> found = match_searches(
        ...     {("kmeans r2_cca",): (1, 2.0)}, top1[:, :, None], top1, pace=pace, spread=None, students_per_pass=3
        ... )
        >>> [(each.method, each.seconds, each.combinations, each.difference) for each in found]
        [('random', 27.0, 1, -1.0), ('halving', 27.0, 1, -1.0)]
    """
    rows, _, epochs = _checked(held_out, top1)
    gaps = top1 - top1.mean(axis=0)

    methods = _methods(rows, epochs, students_per_pass)

    def rungs_of(method: str, size: int) -> tuple[Rung, ...]:
        return plan_search(methods[method], size, epochs)

    def seconds_of(method: str, size: int) -> float:
        return pace.seconds(cost_of(rungs_of(method, size), students_per_pass))

    everything = seconds_of("random", rows)
    shares: dict[tuple[str, int], Float[np.ndarray, "rows seeds"]] = {}
    found = []
    for names, (row, look_s) in choices.items():
        first = look_s + pace.alone_s
        for seconds in (first, *(times * pace.alone_s for times in _LATER)):
            if seconds != first and not first < seconds <= everything:
                continue
            for method in methods:
                size = max(size for size in range(1, rows + 1) if size == 1 or seconds_of(method, size) <= seconds)
                if (method, size) not in shares:
                    shares[method, size] = _shares(rungs_of(method, size), held_out)
                own = np.zeros_like(gaps)
                own[row] = 1 / gaps.shape[1]
                apart = own - shares[method, size]
                apart -= apart.mean(axis=0)  # what all rows of a seed have in common is taken out of the gaps
                half = None if spread is None else spread.half_width(float((apart**2).sum()))
                gain = float((own * gaps).sum())
                search = 0.0 if size == 1 else float((shares[method, size] * gaps).sum())
                low, high = (None, None) if half is None else (gain - search - half, gain - search + half)
                found.append(Match(names, seconds, method, size, gain, search, gain - search, low, high))
    return tuple(found)


def _checked(
    held_out: Float[np.ndarray, "rows seeds epochs"], top1: Float[np.ndarray, "rows seeds"]
) -> tuple[int, int, int]:
    """Return rows, seeds and epochs of two tables that fit together."""
    if held_out.ndim != 3 or held_out.shape[:2] != top1.shape or not held_out.shape[2]:
        raise ShapeError(f"Held-out values are {held_out.shape} and test values {top1.shape}; expected the same rows "
                         "and seeds, and at least one epoch.")  # fmt: skip
    rows, seeds, epochs = held_out.shape
    return rows, seeds, epochs


def _shares(rungs: Sequence[Rung], held_out: Float[np.ndarray, "rows seeds epochs"]) -> Float[np.ndarray, "rows seeds"]:
    """Return the weight of each test value in the mean of what a search finds; the sum is 1."""
    taken, seeds = _taken(rungs, held_out, _REPETITIONS, 0), held_out.shape[1]
    return (taken.sum(axis=1, keepdims=True) - taken) / (seeds - 1) if seeds > 1 else taken


def _taken(
    rungs: Sequence[Rung], held_out: Float[np.ndarray, "rows seeds epochs"], repetitions: int, seed: int
) -> Float[np.ndarray, "rows seeds"]:
    """Return how likely a search is to draw each training seed and then find each combination; the sum is 1.

    Where all go on to the end, the best of them is found: exactly, over all draws. Otherwise from repetitions.
    """
    rows, seeds, _ = held_out.shape
    if rungs[0].students == 1:
        return np.full((rows, seeds), 1 / (rows * seeds))  # blindly, so all are as likely
    if len(rungs) == 1:
        likely = [_of_the_best(held_out[:, own, rungs[0].until - 1], rungs[0].students) for own in range(seeds)]
        return np.asarray(np.stack(likely, axis=1) / seeds)
    random = np.random.default_rng([seed, 9, rungs[0].students])
    own = random.integers(seeds, size=(repetitions, 1))
    climbing = np.argsort(random.random((repetitions, rows)), axis=1)
    for rung in rungs:
        climbing = climbing[:, : rung.students]
        order = np.argsort(-held_out[climbing, own, rung.until - 1], axis=1, kind="stable")
        climbing = np.take_along_axis(climbing, order, axis=1)
    taken = np.zeros((rows, seeds))
    np.add.at(taken, (climbing[:, 0], own[:, 0]), 1 / repetitions)
    return taken


def _of_the_best(values: Float[np.ndarray, " rows"], students: int) -> Float[np.ndarray, " rows"]:
    """Return how likely each is the best of so many that are drawn; of those that are equal, each is as likely."""
    _, kind, count = np.unique(values, return_inverse=True, return_counts=True)
    upto = np.cumsum(count)
    draws = math.comb(len(values), students)
    each = [(math.comb(int(up), students) - math.comb(int(up - own), students)) / draws / own
             for up, own in zip(upto, count, strict=True)]  # fmt: skip
    return np.array([each[k] for k in kind])
