"""How much each hint counts, beside the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from keyhole.errors import SettingError, unknown_name

WEIGHTINGS = ("equal", "mass", "redundancy")


def hint_weights(
    how: str,
    hints: Sequence[int],
    similarities: Float[np.ndarray, "l l"] | None = None,
    *,
    clusters: Sequence[Sequence[int]] = (),
) -> tuple[float, ...]:
    """Return what the loss of each hint is multiplied with; the mean is 1.

    Args:
        how: ``equal``: all 1. ``mass``: by the number of layers that a hint stands for: those of its cluster where each
            cluster holds one hint, else those that are more alike to it than to any other hint (of equals the earlier
            one), itself always. ``redundancy``: by 1 - the mean similarity to the other hints, never below 0; where
            nothing is left, and for a single hint, all 1.
        hints: Positions of the hints among the layers.
        similarities: Between all layers; ``equal`` needs none, and ``mass`` none where clusters are given.
        clusters: The positions of the layers of each cluster, where there are clusters.

    Raises:
        UnknownNameError: No such way.
        SettingError: There is no hint, or there are no similarities where they are needed.

    Example:
        >>> depth = np.array([0.0, 0.1, 0.2, 0.9])
        >>> hint_weights("mass", [1, 3], 1 - abs(depth[:, None] - depth))
        (1.5, 0.5)
        >>> hint_weights("redundancy", [0, 1, 3], 1 - abs(depth[:, None] - depth))
        (0.833333, 0.75, 1.416667)
    """
    if how not in WEIGHTINGS:
        raise unknown_name("way to weigh hints", how, WEIGHTINGS)
    if not hints:
        raise SettingError("There are no hints to weigh; expected at least one.")
    if how == "equal" or len(hints) == 1:
        return (1.0,) * len(hints)
    if how == "mass" and one_in_each(hints, clusters):
        return _with_mean_one(
            np.array([len(members) for hint in hints for members in clusters if hint in members], float)
        )
    if similarities is None:
        raise SettingError(f"Weights by {how} need the similarities of all layers; measure them first.")
    if how == "mass":
        return _with_mean_one(_mass(hints, similarities))
    between = similarities[np.ix_(hints, hints)]
    others = (between.sum(axis=1) - between.diagonal()) / (len(hints) - 1)
    return _with_mean_one(np.clip(1 - others, 0, None))


def one_in_each(hints: Sequence[int], clusters: Sequence[Sequence[int]]) -> bool:
    """Return whether each cluster holds one of the hints, and each hint is in one.

    Example:
        >>> one_in_each([1, 3], [[0, 1], [2, 3]]), one_in_each([0, 1], [[0, 1], [2, 3]]), one_in_each([1, 3], [])
        (True, False, False)
    """
    own = [[k for k, members in enumerate(clusters) if hint in members] for hint in hints]
    return sorted(own) == [[k] for k in range(len(clusters))]


def _mass(hints: Sequence[int], similarities: np.ndarray) -> np.ndarray:
    nearest = similarities[:, list(hints)].argmax(axis=1)
    nearest[list(hints)] = np.arange(len(hints))
    return np.bincount(nearest, minlength=len(hints)).astype(float)


def _with_mean_one(values: np.ndarray) -> tuple[float, ...]:
    if not values.sum() > 0:
        return (1.0,) * len(values)
    # to six digits, so that what rounding does on another machine does not make another recipe
    return tuple(round(float(value), 6) for value in values / values.mean())
