"""Searches replayed from runs that are there: what each would have found, and for how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from keyhole.errors import ShapeError
from keyhole.studies.budget import Cost, Rung, SearchConfig, cost_of, plan_search

_POINTS = 10  # sizes of search, evenly spaced in their logarithm


@dataclass(frozen=True)
class Replayed:
    """One size of a search, replayed many times.

    Attributes:
        method: ``halving`` or ``random``.
        combinations: How many it begins with, drawn anew each time.
        cost: What one search costs.
        cells: The same in students trained to the end.
        gain: Mean, over the repetitions, of the points that what was found is above the mean of all combinations, on
            the test images of the seeds that the search did not see.
        low: A tenth of the repetitions are below it.
        high: A tenth of them are above it.
    """

    method: str
    combinations: int
    cost: Cost
    cells: float
    gain: float
    low: float
    high: float


def replay_searches(
    held_out: Float[np.ndarray, "rows seeds epochs"],
    top1: Float[np.ndarray, "rows seeds"],
    *,
    students_per_pass: int,
    keep: int = 3,
    repetitions: int = 400,
    seed: int = 0,
) -> tuple[Replayed, ...]:
    """Return what random search and successive halving find among runs that are there, by what they cost.

    Each repetition draws one training seed and the combinations that it begins with, looks at held-out accuracies as
    they were after each epoch, and is judged by test accuracies of the other seeds; with a single seed by those of that
    seed, which flatters it. A search that stopped early here saw what it would have seen, as a student learns the same
    whoever shares its pass, to rounding.

    Args:
        held_out: Top-1 on the held-out images after each epoch, one row a combination.
        top1: On the test images after the last epoch, in percent.
        students_per_pass: At most so many students learn from one teacher pass.
        keep: Of halving: one of so many goes on.
        repetitions: Of each size of each method.
        seed: Of all draws.

    Raises:
        ShapeError: The two do not fit together.

    Example:
        >>> top1 = np.array([[60.0, 60.0], [61.0, 61.0], [62.0, 62.0]])
        >>> found = replay_searches(top1[:, :, None] / 100, top1, students_per_pass=3)
        >>> [(each.method, each.combinations, each.gain) for each in found if each.combinations == 3]
        [('random', 3, 1.0), ('halving', 3, 1.0)]
    """
    if held_out.ndim != 3 or held_out.shape[:2] != top1.shape or not held_out.shape[2]:
        raise ShapeError(f"Held-out values are {held_out.shape} and test values {top1.shape}; expected the same rows "
                         "and seeds, and at least one epoch.")  # fmt: skip
    rows, seeds, epochs = held_out.shape
    gaps = top1 - top1.mean(axis=0)
    apart = np.array([np.delete(gaps, own, axis=1).mean(axis=1) if seeds > 1 else gaps[:, 0] for own in range(seeds)])
    sizes = sorted({round(float(size)) for size in np.geomspace(1, rows, _POINTS)})
    found = []
    for method in ("random", "halving"):
        config = SearchConfig(method, cells=rows, keep=keep, students_per_pass=students_per_pass)
        for size in sizes:
            rungs = plan_search(config, size, epochs)
            random = np.random.default_rng([seed, 9, size])
            gains = [_once(rungs, held_out, apart, random) for _ in range(repetitions)]
            cost = cost_of(rungs, students_per_pass)
            low, high = np.quantile(gains, (0.1, 0.9))
            found.append(
                Replayed(
                    method, size, cost, cost.student_epochs / epochs, float(np.mean(gains)), float(low), float(high)
                )
            )
    return tuple(found)


def _once(
    rungs: Sequence[Rung],
    held_out: Float[np.ndarray, "rows seeds epochs"],
    apart: Float[np.ndarray, "seeds rows"],
    random: np.random.Generator,
) -> float:
    """Return what one search is worth; ``apart`` holds gains of each combination on the seeds other than each."""
    own = int(random.integers(held_out.shape[1]))
    climbing = random.permutation(held_out.shape[0])
    for rung in rungs:
        climbing = climbing[: rung.students]
        climbing = climbing[np.argsort(-held_out[climbing, own, rung.until - 1], kind="stable")]
    return float(apart[own, climbing[0]])
