"""Figures of verification: is this pair one person? From scores (higher is more alike) and labels.

A pair is accepted where its score is at or above the threshold. Pairs of equal score are accepted together or not at
all, so no figure depends on their order. A pair in which a picture shows no face has the score ``LOST``: it is never
accepted, and stays in every denominator. NaN and positive infinity are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from keyhole.errors import DataError, DivergenceError, SettingError, ShapeError
from keyhole.faces.metrics.intervals import Statistic, mean_statistic, share

# The score of a pair in which no face was found.
LOST = float("-inf")

# Fewer false accepts than this behind a rate say nothing about it: with none seen in n, the rate may be 3 / n.
FEWEST_EVENTS = 3

_Array = np.ndarray
_Scores = Float[_Array, " n"]
_Flags = Bool[_Array, " m"]


@dataclass(frozen=True)
class Curve:
    """What is accepted as the threshold falls.

    Attributes:
        thresholds: From infinity (nothing is accepted) down through every score that occurs.
        false_accept: Share of the pairs of two people that are accepted at each threshold.
        true_accept: Share of the pairs of one person that are accepted.
    """

    thresholds: Float64[_Array, " t"]
    false_accept: Float64[_Array, " t"]
    true_accept: Float64[_Array, " t"]

    @property
    def false_reject(self) -> Float64[_Array, " t"]:
        """Share of the pairs of one person that are not accepted."""
        return 1 - self.true_accept


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy over folds, each with the threshold that is best on the others.

    Attributes:
        mean: Over the folds.
        standard_error: Of that mean, from the spread of the folds; NaN for one fold.
        folds: Numbers of the folds.
        accuracies: Of each fold.
        thresholds: Of each fold.
        correct: Whether each pair that is judged was told right by the threshold of its fold.
    """

    mean: float
    standard_error: float
    folds: tuple[int, ...]
    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]
    correct: _Flags


def roc(scores: _Scores, same: _Flags) -> Curve:
    """Return the ROC: true accepts over false accepts, from 0 to 1, at every score that occurs.

    Lost pairs are never accepted, so a curve with lost pairs ends below 1.

    Args:
        scores: One a pair.
        same: Whether each pair shows one person.

    Raises:
        ShapeError: The lengths differ.
        DivergenceError: A score is NaN or infinite.
        DataError: All pairs are of one kind.

    Example:
        >>> curve = roc(np.array([0.9, 0.8, 0.3]), np.array([True, False, True]))
        >>> curve.false_accept.tolist(), curve.true_accept.tolist()
        ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0])
    """
    scores, same = _checked(scores, same)
    order, ends = _steps(scores)
    accepted = np.stack([_running(kind[None].astype(np.float64), order, ends)[0] for kind in (~same, same)])
    thresholds = np.concatenate([[np.inf], scores[order][ends]])
    return Curve(thresholds, accepted[0] / (~same).sum(), accepted[1] / same.sum())


def det(scores: _Scores, same: _Flags) -> Curve:
    """Return the points of the DET, false rejects over false accepts, without the runs between its corners.

    A point is left out where both neighbors have the same false accepts, or both the same false rejects; drawn, the
    curve is the same as with it. Args and errors are those of :func:`roc`.
    """
    whole = roc(scores, same)
    inner = np.ones(len(whole.thresholds), bool)
    for rate in (whole.false_accept, whole.true_accept):
        inner[1:-1] &= ~((rate[1:-1] == rate[:-2]) & (rate[1:-1] == rate[2:]))
    return Curve(whole.thresholds[inner], whole.false_accept[inner], whole.true_accept[inner])


def roc_area(scores: _Scores, same: _Flags) -> float:
    """Return the share of (same, different) couples of pairs in which the same one scores higher, ties half; 0 to 1.

    It is the area under the ROC; lost pairs tie with each other and lie below all others. Args and errors are those of
    :func:`roc`.

    Example:
        >>> roc_area(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]))
        0.75
    """
    from scipy.stats import rankdata

    scores, same = _checked(scores, same)
    genuine, impostor = int(same.sum()), int((~same).sum())
    ranks = float(rankdata(scores)[same].sum())
    return (ranks - genuine * (genuine + 1) / 2) / (genuine * impostor)


def rates_at(scores: _Scores, same: _Flags, threshold: float) -> tuple[float, float]:
    """Return the shares of pairs of two people and of one person with a score >= threshold.

    Args:
        scores: One a pair.
        same: Whether each pair shows one person.
        threshold: Any number; lost pairs are never accepted.

    Raises:
        ShapeError: The lengths differ.
        DivergenceError: A score is NaN or infinite.
        DataError: All pairs are of one kind.
    """
    scores, same = _checked(scores, same)
    accepted = (scores >= threshold) & (scores > LOST)
    return float(accepted[~same].mean()), float(accepted[same].mean())


def equal_error_rate(scores: _Scores, same: _Flags) -> float | None:
    """Return the rate at which false accepts and false rejects are equal, from 0 to 1.

    Between two neighboring scores the two rates are taken to change along a line; pairs that all score alike give 0.5.
    None where the rates never meet because pairs of both kinds are lost. Args and errors are those of :func:`roc`.

    Example:
        >>> equal_error_rate(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False]))
        0.5
    """
    scores, same = _checked(scores, same)
    value = float(_equal_errors(scores, same)(np.ones((1, len(scores))))[0])
    return None if np.isnan(value) else value


def threshold_at_far(scores: _Scores, same: _Flags, far: float) -> float:
    """Return the lowest useful threshold at which at most the share ``far`` of the pairs of two people is accepted.

    It lies midway between two scores that occur, so that rounding moves no pair across it; above all scores it is the
    next single-precision number. Args and errors are those of :func:`tar_at_far`.
    """
    scores, same = _checked(scores, same)
    _check_rate(far)
    return rate_threshold(scores[~same], scores, far)


def tar_at_far(scores: _Scores, same: _Flags, far: float) -> float | None:
    """Return the greatest share of pairs of one person accepted with at most ``far`` of the pairs of two, from 0 to 1.

    Of pairs of two people with equal scores all count as accepted as soon as one is: ties never help. None where fewer
    than 3 pairs of two people stand behind the rate (``far`` times their number): it could not be told from 0.

    Args:
        scores: One a pair.
        same: Whether each pair shows one person.
        far: The false accepts allowed, above 0 and at most 1.

    Raises:
        SettingError: ``far`` lies outside of that.
        ShapeError: The lengths differ.
        DivergenceError: A score is NaN or infinite.
        DataError: All pairs are of one kind.
    """
    statistic = tar_statistic(scores, same, far)
    return None if statistic is None else statistic.value()


def tar_statistic(
    scores: _Scores, same: _Flags, far: float, *, subjects: Sequence[Sequence[str]] | _Array | None = None
) -> Statistic | None:
    """Return :func:`tar_at_far` as a statistic for intervals; in every draw the threshold is found anew.

    Args:
        scores: One a pair.
        same: Whether each pair shows one person.
        far: The false accepts allowed.
        subjects: Both people of each pair; None: every pair is of people of its own.

    Raises:
        SettingError: As for :func:`tar_at_far`, and its other errors.
    """
    scores, same = _checked(scores, same)
    _check_rate(far)
    if far * (~same).sum() < FEWEST_EVENTS - 1e-9:
        return None
    accepted = accepted_at_rate(scores[same], scores[~same], far)

    def of(weights: Float64[_Array, "r n"]) -> Float64[_Array, " r"]:
        return accepted(weights[:, same], weights[:, ~same])

    return Statistic(of, _subjects(subjects, len(same)), same)


def eer_statistic(
    scores: _Scores, same: _Flags, *, subjects: Sequence[Sequence[str]] | _Array | None = None
) -> Statistic | None:
    """Return :func:`equal_error_rate` as a statistic for intervals, None where it is undefined.

    Args:
        scores: One a pair.
        same: Whether each pair shows one person.
        subjects: Both people of each pair; None: every pair is of people of its own.
    """
    scores, same = _checked(scores, same)
    found = Statistic(_equal_errors(scores, same), _subjects(subjects, len(same)), np.ones(len(same), bool))
    return None if np.isnan(found.value()) else found


def fold_accuracy(
    scores: _Scores, same: _Flags, folds: Int64[_Array, " k"], *, by: _Flags | None = None
) -> FoldAccuracy:
    """Return the share of pairs told right in each fold, with the threshold that is best on all other folds.

    Thresholds lie midway between scores of those other folds. Where several are equally good the middle one of them is
    taken (of an even number the higher of the two). A lost pair is never accepted: right for two people, wrong for one.

    Args:
        scores: One a pair.
        same: Whether each pair shows one person.
        folds: Which fold each pair belongs to.
        by: Pairs that choose the threshold, one for all other pairs, which alone are judged; None: each fold is judged
            by the threshold of all others.

    Raises:
        ShapeError: The lengths differ.
        DivergenceError: A score is NaN or infinite.
        DataError: There are fewer than 2 folds, or all pairs are of one kind.

    Reference:
        Huang, Ramesh, Berg, Learned-Miller (2007), "Labeled Faces in the Wild", section on View 2.
    """
    scores, same = _checked(scores, same)
    if folds.shape != same.shape:
        raise ShapeError(f"{folds.size} folds for {same.size} pairs; give one each.")
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise DataError("One fold has no others to choose its threshold on, expected at least 2. Choose more folds.")
    if by is not None:
        if by.all() or not by.any():
            raise DataError("Pairs that choose the threshold and pairs that are judged are both needed.")
        held = ~by
        threshold = _best_threshold(scores[by], same[by])
        correct = ((scores[held] >= threshold) & (scores[held] > LOST)) == same[held]
        numbers = np.unique(folds[held])
        accuracies = [float(correct[folds[held] == number].mean()) for number in numbers]
        return _folded(numbers, accuracies, [threshold] * len(numbers), correct)
    thresholds = [_best_threshold(scores[folds != number], same[folds != number]) for number in numbers]
    own = np.array(thresholds)[np.searchsorted(numbers, folds)]
    correct = ((scores >= own) & (scores > LOST)) == same
    accuracies = [float(correct[folds == number].mean()) for number in numbers]
    return _folded(numbers, accuracies, thresholds, correct)


def _folded(numbers: _Array, accuracies: list[float], thresholds: list[float], correct: _Flags) -> FoldAccuracy:
    error = float(np.std(accuracies, ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else math.nan
    named = tuple(int(number) for number in numbers)
    return FoldAccuracy(float(np.mean(accuracies)), error, named, tuple(accuracies), tuple(thresholds), correct)


def accuracy_statistic(accuracy: FoldAccuracy, subjects: Sequence[Sequence[str]] | _Array) -> Statistic:
    """Return the share of pairs told right as a statistic for intervals; the thresholds of the folds stay.

    With folds of equal size it is the mean over the folds.

    Args:
        accuracy: From :func:`fold_accuracy`.
        subjects: Both people of each pair.
    """
    return mean_statistic(accuracy.correct, np.asarray(subjects))


def error_vs_discard(errors: _Flags, quality: _Scores, discarded: Sequence[float]) -> Float64[_Array, " k"]:
    """Return the share of errors among what is left after the worst has been discarded, from 0 to 1.

    Of n pictures (or pairs, with the lower quality of the two) the ``share * n`` of lowest quality are left out. Where
    pictures of equal quality lie at the cut, each of them goes with the same chance, and the expected figure is
    returned, so the order never matters. A picture without a face may have the quality -infinity and goes first.

    Args:
        errors: Whether each was an error, at a threshold that stays.
        quality: Higher is better.
        discarded: Shares from 0 to below 1.

    Raises:
        ShapeError: The lengths differ.
        DivergenceError: A quality is NaN or positive infinity.
        SettingError: A share lies outside of that.

    Reference:
        Grother, Tabassi (2007), "Performance of biometric quality measures", IEEE TPAMI 29.

    Example:
        >>> error_vs_discard(np.array([True, False, True, False]), np.array([0.1, 0.9, 0.5, 0.7]), [0, 0.25, 0.5])
        array([0.5       , 0.33333333, 0.        ])
    """
    if errors.shape != quality.shape or not len(errors):
        raise ShapeError(f"{errors.size} errors and {quality.size} qualities, expected one each and at least one.")
    _check_finite(quality, "quality")
    shares = np.asarray(discarded, np.float64)
    if not ((shares >= 0) & (shares < 1)).all():
        raise SettingError(f"Discarded shares {list(discarded)}, expected numbers from 0 to below 1.")
    values, group, sizes = np.unique(quality, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=errors, minlength=len(values)) / sizes
    running = np.concatenate([[0.0], np.cumsum(mean[group[np.argsort(group, kind="stable")]])])
    gone = np.floor(shares * len(errors) + 1e-9).astype(int)
    left: Float64[_Array, " k"] = (running[-1] - running[gone]) / (len(errors) - gone)
    return left


def rate_threshold(impostor: Float64[_Array, " n"], all_scores: Float64[_Array, " m"], rate: float) -> float:
    """Return the threshold at or above which at most ``rate`` of the scores ``impostor`` lie, midway between scores.

    Args:
        impostor: Scores that shall not be accepted, in float64.
        all_scores: The scores between which it shall lie, those among them.
        rate: From 0 to 1.
    """
    order, ends = _steps(impostor)
    accepted = int((ends + 1 <= rate * len(impostor) + 1e-9).sum())
    known = all_scores[all_scores > LOST]
    if accepted == len(ends):  # everything may be accepted
        return float(known.min()) if len(known) else 0.0
    refused = float(impostor[order][ends[accepted]])
    higher = known[known > refused]
    return _between(refused, float(higher.min())) if len(higher) else _above(refused)


def accepted_at_rate(
    genuine: Float64[_Array, " n"], impostor: Float64[_Array, " m"], rate: float
) -> Callable[[Float64[_Array, "r n"], Float64[_Array, "r m"]], Float64[_Array, " r"]]:
    """Return how much of ``genuine`` is accepted with at most ``rate`` of ``impostor``, as a function of weights.

    Args:
        genuine: Scores that shall be accepted, in float64.
        impostor: Scores that shall not be.
        rate: From 0 to 1.
    """
    order, ends = _steps(impostor)
    genuine_order = np.argsort(-genuine, kind="stable")
    falling = -genuine[genuine_order]
    # how many genuine ones lie above each impostor score, and last how many could be accepted at all
    above = np.searchsorted(falling, -impostor[order][ends], side="left")
    above = np.append(above, np.searchsorted(falling, -LOST, side="left"))

    def of(wanted: Float64[_Array, "r n"], unwanted: Float64[_Array, "r m"]) -> Float64[_Array, " r"]:
        whole = unwanted.sum(1)
        running = _running(unwanted, order, ends)[:, 1:]
        passed = (running <= (rate * whole + 1e-9)[:, None]).sum(1)
        accepted = np.cumsum(np.pad(wanted[:, genuine_order], ((0, 0), (1, 0))), axis=1)
        rows = np.arange(len(wanted))
        return share(np.where(whole > 0, accepted[rows, above[passed]], np.nan), wanted.sum(1))

    return of


def _equal_errors(scores: _Array, same: _Array) -> Callable[[_Array], _Array]:
    order, ends = _steps(scores)

    def of(weights: Float64[_Array, "r n"]) -> Float64[_Array, " r"]:
        if not len(ends):  # all pairs are lost
            return np.full(len(weights), np.nan)
        false, true = (_running_share(weights * kind, order, ends) for kind in (~same, same))
        gap = false + true - 1  # false accepts minus false rejects, rising from -1
        met = gap >= -1e-12
        after = np.maximum(met.argmax(1), 1)
        rows = np.arange(len(weights))
        low, high = gap[rows, after - 1], gap[rows, after]
        part = -low / np.where(high > low, high - low, 1)
        value = false[rows, after - 1] + part * (false[rows, after] - false[rows, after - 1])
        return np.where(met.any(1), value, np.nan)

    return of


def _running_share(weights: _Array, order: _Array, ends: _Array) -> _Array:
    running = _running(weights, order, ends)
    return share(running, np.broadcast_to(weights.sum(1, keepdims=True), running.shape))


def _best_threshold(scores: _Array, same: _Array) -> float:
    order, ends = _steps(scores)
    gain = _running(np.where(same, 1.0, -1.0)[None], order, ends)[0]
    best = np.flatnonzero(gain == gain.max())
    count = int(best[(len(best) - 1) // 2])  # scores fall along the steps, so this is the higher of two middle ones
    values = scores[order][ends]
    if not len(values):
        return 0.0
    if count == 0:
        return _above(float(values[0]))
    return _between(float(values[count]), float(values[count - 1])) if count < len(values) else float(values[-1])


def _steps(scores: _Array) -> tuple[_Array, _Array]:
    """Return the order of falling scores without the lost ones, and where each run of equal scores ends in it."""
    order = np.argsort(-scores, kind="stable")[: int((scores > LOST).sum())]
    falling = scores[order]
    return order, np.flatnonzero(np.append(falling[1:] != falling[:-1], [True] * bool(len(falling))))


def _running(weights: _Array, order: _Array, ends: _Array) -> _Array:
    """Return the summed weights down to the end of each run, beginning with 0."""
    result: _Array = np.pad(np.cumsum(weights[:, order], axis=1)[:, ends], ((0, 0), (1, 0)))
    return result


def _between(low: float, high: float) -> float:
    middle = low + (high - low) / 2
    # scores may be compared in single precision, where the middle of two neighbors could fall on the lower one
    return middle if np.float32(low) < np.float32(middle) else high


def _above(score: float) -> float:
    return float(np.nextafter(np.float32(score), np.float32(np.inf)))


def _checked(scores: _Array, same: _Array) -> tuple[Float64[_Array, " n"], _Flags]:
    scores, same = np.asarray(scores), np.asarray(same)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ShapeError(f"Scores of shape {scores.shape} and labels of shape {same.shape}; give one each for n pairs.")
    _check_finite(scores, "score")
    same = same.astype(bool)
    if same.all() or not same.any():
        kind = "one person" if len(same) and same.all() else "two people"
        raise DataError(f"All {len(same)} pairs are of {kind}, expected both kinds. Choose other pairs.")
    return scores.astype(np.float64), same


def _check_finite(values: _Array, what: str) -> None:
    bad = np.isnan(values) | (values == np.inf)
    if bad.any():
        count = int(bad.sum())
        raise DivergenceError(
            f"{count} of {len(values)} values of {what} are NaN or infinite. Check the model and its input."
        )


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise SettingError(f"A rate of {rate}, expected above 0 and at most 1, such as 0.01.")


def _subjects(subjects: Sequence[Sequence[str]] | _Array | None, count: int) -> _Array:
    return np.arange(count) if subjects is None else np.asarray(subjects)
