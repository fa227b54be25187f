from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from keyhole.errors import DataError, DivergenceError, SettingError, ShapeError
from keyhole.faces.metrics.verification import (
    LOST,
    FoldAccuracy,
    accuracy_statistic,
    det,
    eer_statistic,
    equal_error_rate,
    error_vs_discard,
    fold_accuracy,
    rates_at,
    roc,
    roc_area,
    tar_at_far,
    tar_statistic,
    threshold_at_far,
)

# Ten pairs: scores, same. Worked by hand below.
SCORES = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5, 0.3, 0.2, 0.1])
SAME = np.array([True, True, False, True, False, True, False, True, False, False])


def drawn(seed: int, count: int = 300, lost: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, higher for the same person; some lost."""
    random = np.random.default_rng(seed)
    same = random.random(count) < 0.4
    scores = np.round(random.normal(same * 1.0, 1.0), 1)
    scores[random.random(count) < lost] = LOST
    return scores, same


def slow_rates(scores: np.ndarray, same: np.ndarray, threshold: float) -> tuple[float, float]:
    far = tar = 0
    for score, one in zip(scores, same, strict=True):
        accepted = score >= threshold and score != LOST
        far += accepted and not one
        tar += accepted and one
    return far / int((~same).sum()), tar / int(same.sum())


def slow_tar_at_far(scores: np.ndarray, same: np.ndarray, far: float) -> float:
    known = sorted({s for s in scores.tolist() if s != LOST})
    best = 0.0
    for threshold in [*known, known[-1] + 1]:
        false, true = slow_rates(scores, same, threshold)
        if false * (~same).sum() <= far * (~same).sum() + 1e-9:
            best = max(best, true)
    return best


def slow_eer(scores: np.ndarray, same: np.ndarray) -> float | None:
    """Walk down the thresholds; where false accepts pass false rejects, cross the line between the two steps."""
    before = (0.0, 1.0)
    for threshold in sorted({s for s in scores.tolist() if s != LOST}, reverse=True):
        far, tar = slow_rates(scores, same, threshold)
        after = (far, 1 - tar)
        if after[0] >= after[1] - 1e-12:
            rise, fall = after[0] - before[0], before[1] - after[1]
            return before[0] + (before[1] - before[0]) * rise / (rise + fall)
        before = after
    return None


def test_the_roc_by_hand() -> None:
    curve = roc(SCORES, SAME)
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1]
    assert (5 * curve.true_accept).tolist() == [0, 1, 2, 3, 3, 4, 5, 5, 5]
    assert (5 * curve.false_accept).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5]
    assert np.array_equal(curve.false_reject, 1 - curve.true_accept)


def test_hand_worked_figures() -> None:
    assert rates_at(SCORES, SAME, 0.8) == (0.2, 0.4)
    assert rates_at(SCORES, SAME, 0.80001) == (0.0, 0.2)
    assert equal_error_rate(SCORES, SAME) == pytest.approx(0.4)  # at 0.6: 2 of 5 accepted, 2 of 5 rejected
    assert tar_at_far(SCORES, SAME, 0.6) == 1.0  # down to just above 0.2
    assert tar_at_far(SCORES, SAME, 0.7999) == 1.0
    assert tar_at_far(SCORES, SAME, 1.0) == 1.0
    assert threshold_at_far(SCORES, SAME, 0.6) == 0.25
    assert threshold_at_far(SCORES, SAME, 0.4) == 0.55  # the tie at 0.5 would make three of five
    assert threshold_at_far(SCORES, SAME, 1.0) == 0.1
    # same over different: 5, 4.5, 4, 2.5, 2 of 5
    assert roc_area(SCORES, SAME) == pytest.approx(18 / 25)


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    scores, same = drawn(seed)
    curve = roc(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    assert np.array_equal(curve.thresholds, thresholds)
    assert np.allclose(curve.false_accept, far, atol=1e-15)
    assert np.allclose(curve.true_accept, tar, atol=1e-15)
    assert roc_area(scores, same) == pytest.approx(roc_auc_score(same, scores), abs=1e-12)
    corners = det(scores, same)
    assert set(corners.thresholds.tolist()) < set(thresholds.tolist())
    assert (corners.thresholds[0], corners.thresholds[-1]) == (thresholds[0], thresholds[-1])
    assert np.trapezoid(corners.true_accept, corners.false_accept) == pytest.approx(roc_area(scores, same), abs=1e-12)


@pytest.mark.parametrize("lost", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_against_slow_loops(seed: int, lost: float) -> None:
    scores, same = drawn(seed, 200, lost)
    curve = roc(scores, same)
    for threshold, far, tar in zip(curve.thresholds, curve.false_accept, curve.true_accept, strict=True):
        assert slow_rates(scores, same, threshold) == pytest.approx((far, tar), abs=1e-15)
        assert rates_at(scores, same, threshold) == pytest.approx((far, tar), abs=1e-15)
    for far in (0.03, 0.1, 0.29, 0.5, 1.0):
        assert tar_at_far(scores, same, far) == pytest.approx(slow_tar_at_far(scores, same, far), abs=1e-12)
        threshold = threshold_at_far(scores, same, far)
        assert rates_at(scores, same, threshold)[1] == pytest.approx(slow_tar_at_far(scores, same, far), abs=1e-12)
    assert equal_error_rate(scores, same) == pytest.approx(slow_eer(scores, same), abs=1e-12)


def test_weights_count_as_repeated_pairs_do() -> None:
    scores, same = drawn(7, 150, 0.1)
    times = np.random.default_rng(0).integers(0, 4, (6, 150))
    for build, slow in (
        (lambda s, y: tar_statistic(s, y, 0.1), lambda s, y: slow_tar_at_far(s, y, 0.1)),
        (eer_statistic, slow_eer),
    ):
        statistic = build(scores, same)
        assert statistic is not None
        found = statistic.of(times.astype(float))
        expected = [slow(np.repeat(scores, row), np.repeat(same, row)) for row in times]
        assert np.allclose(found, expected, atol=1e-12)


def test_a_draw_without_one_kind_is_undefined() -> None:
    scores, same = drawn(0, 100)
    for statistic in (tar_statistic(scores, same, 0.5), eer_statistic(scores, same)):
        assert statistic is not None
        found = statistic.of(np.stack([same, ~same, np.ones(100)]).astype(float))
        assert np.isnan(found).tolist() == [True, True, False]


@pytest.mark.parametrize("order", [1, -1])
def test_no_figure_depends_on_the_order_of_pairs(order: int) -> None:
    scores, same = drawn(3, 400, 0.1)
    folds = np.arange(400) % 5
    shuffled = np.random.default_rng(order + 1).permutation(400)
    for figure in (equal_error_rate, roc_area, lambda s, y: tar_at_far(s, y, 0.05)):
        assert figure(scores, same) == pytest.approx(figure(scores[shuffled], same[shuffled]), abs=1e-12)
    one = fold_accuracy(scores, same, folds)
    other = fold_accuracy(scores[shuffled], same[shuffled], folds[shuffled])
    assert (one.accuracies, one.thresholds) == (other.accuracies, other.thresholds)


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_extreme_embedders(lost: float) -> None:
    same = np.arange(1000) % 2 == 0
    gone = np.arange(1000) < 1000 * lost
    perfect = np.where(gone, LOST, same.astype(float))
    assert tar_at_far(perfect, same, 0.01) == 1 - lost
    assert equal_error_rate(perfect, same) == pytest.approx(0.0 if not lost else slow_eer(perfect, same))
    blind = np.where(gone, LOST, 0.25)
    assert tar_at_far(blind, same, 0.5) == 0.0
    assert equal_error_rate(blind, same) == pytest.approx(0.5)
    if not lost:
        assert roc_area(perfect, same) == 1.0
        assert roc_area(blind, same) == 0.5
        assert roc_area(-perfect, same) == 0.0
        assert equal_error_rate(-perfect, same) == 1.0


def test_a_rate_with_fewer_than_three_pairs_behind_it_is_undefined() -> None:
    scores, same = np.arange(600.0), np.arange(600) % 2 == 0
    assert tar_at_far(scores, same, 0.01) is not None  # 3 of 300
    assert tar_at_far(scores, same, 0.0099) is None
    assert tar_statistic(scores, same, 0.0099) is None
    assert threshold_at_far(scores, same, 0.0099) == 595.5  # still a threshold: 2 of 300


def test_rates_never_meet_where_both_kinds_are_lost() -> None:
    scores, same = np.array([1.0, LOST, LOST, 0.5, LOST]), np.array([True, True, True, False, False])
    assert equal_error_rate(scores, same) is None
    assert eer_statistic(scores, same) is None
    everything = np.full(5, LOST)
    assert equal_error_rate(everything, same) is None
    assert roc(everything, same).thresholds.tolist() == [np.inf]
    assert tar_at_far(np.full(20, LOST), np.arange(20) < 10, 0.5) == 0.0
    assert threshold_at_far(everything, same, 0.5) == 0.0
    assert rates_at(everything, same, LOST) == (0.0, 0.0)


def test_thresholds_lie_where_rounding_moves_nothing() -> None:
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores = np.array([low, low, low, high], np.float32)
    same = np.array([False, False, True, True])
    threshold = threshold_at_far(scores, same, 0.4)
    assert (scores >= threshold).tolist() == [False, False, False, True]
    alone = threshold_at_far(np.array([high, low], np.float32), np.array([False, True]), 0.4)
    assert alone > high
    assert not np.float32(high) >= np.float32(alone)


def slow_folds(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> list[float]:
    """Try every threshold between two scores of the other folds, from the highest on; the middle one of the best."""
    result = []
    for fold in sorted(set(folds.tolist())):
        others = folds != fold
        known = sorted({s for s in scores[others].tolist() if s != LOST}, reverse=True)
        tried = [known[0] + 1, *[(a + b) / 2 for a, b in itertools.pairwise(known)], known[-1]]
        right = [int((((scores >= t) & (scores > LOST)) == same)[others].sum()) for t in tried]
        best = [t for t, count in zip(tried, right, strict=True) if count == max(right)]
        chosen = best[(len(best) - 1) // 2]
        result.append(float((((scores >= chosen) & (scores > LOST)) == same)[~others].mean()))
    return result


@pytest.mark.parametrize("lost", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_fold_accuracy_against_a_slow_loop(seed: int, lost: float) -> None:
    scores, same = drawn(seed, 200, lost)
    folds = np.random.default_rng(seed).integers(1, 6, 200)
    found = fold_accuracy(scores, same, folds)
    assert list(found.accuracies) == pytest.approx(slow_folds(scores, same, folds), abs=1e-15)
    assert found.folds == (1, 2, 3, 4, 5)
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    assert found.standard_error == pytest.approx(np.std(found.accuracies, ddof=1) / 5**0.5)
    assert [found.correct[folds == fold].mean() for fold in found.folds] == list(found.accuracies)


def test_fold_accuracy_by_hand() -> None:
    scores = np.array([0.9, 0.4, 0.6, 0.1])
    same = np.array([True, False, True, False])
    found = fold_accuracy(scores, same, np.array([1, 1, 2, 2]))
    assert found.thresholds == pytest.approx((0.35, 0.65))  # the second turns the 0.6 of its own fold away
    assert found.accuracies == (0.5, 0.5)
    people = np.array([["a", "a"], ["a", "b"], ["c", "c"], ["c", "d"]])
    assert accuracy_statistic(found, people).value() == found.mean == 0.5


def test_a_best_threshold_above_or_below_everything() -> None:
    folds = np.array([1, 1, 1, 2, 2, 2])
    same = np.array([True, False, False, False, True, True])
    found = fold_accuracy(np.array([0.0, 0.5, 0.6, 0.9, 0.5, 0.4]), same, folds)
    assert found.thresholds[0] == 0.4  # of the second fold: accept everything
    assert found.thresholds[1] > 0.6  # of the first: nothing
    everything_lost = fold_accuracy(np.full(6, LOST), same, folds)
    assert everything_lost.accuracies == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def by_brute_force(errors: np.ndarray, quality: np.ndarray, gone: int) -> float:
    """The mean over many random orders of equal qualities."""
    random = np.random.default_rng(0)
    left = []
    for _ in range(3000):
        order = np.lexsort([random.random(len(errors)), quality])
        left.append(errors[order[gone:]].mean())
    return float(np.mean(left))


def test_error_against_discard_by_hand_and_with_ties() -> None:
    errors = np.array([True, False, True, False, False])
    assert error_vs_discard(errors, np.array([1.0, 2, 3, 4, 5]), [0, 0.2, 0.4, 0.6, 0.8]).tolist() == pytest.approx(
        [2 / 5, 1 / 4, 1 / 3, 0, 0]
    )
    quality = np.array([1.0, 1, 1, 2, -np.inf])
    found = error_vs_discard(errors, quality, [0.2, 0.4, 0.6, 0.8])
    assert found[0] == 0.5
    for i, gone in enumerate((1, 2, 3, 4)):
        assert found[i] == pytest.approx(by_brute_force(errors, quality, gone), abs=0.02)
    assert np.array_equal(found, error_vs_discard(errors[::-1], quality[::-1], [0.2, 0.4, 0.6, 0.8]))


def test_discarding_by_the_error_itself_or_by_nothing() -> None:
    errors = np.arange(100) < 30
    assert error_vs_discard(errors, -errors.astype(float), [0.0, 0.3, 0.9]).tolist() == pytest.approx([0.3, 0, 0])
    assert error_vs_discard(errors, np.zeros(100), [0.0, 0.29, 0.57]).tolist() == pytest.approx([0.3] * 3)


@pytest.mark.parametrize("figure", [roc, det, roc_area, equal_error_rate, eer_statistic])
@pytest.mark.parametrize(
    ("scores", "same", "error", "message"),
    [
        ([0.1, np.nan, 0.2], [True, False, True], DivergenceError, "1 of 3 values of score are NaN or infinite. Check"),
        ([0.1, np.inf, 0.2], [True, False, True], DivergenceError, "1 of 3 values of score are NaN or infinite"),
        ([0.1, 0.2], [True, False, True], ShapeError, r"Scores of shape \(2,\) and labels of shape \(3,\)"),
        ([0.1, 0.2], [True, True], DataError, "All 2 pairs are of one person, expected both kinds"),
        ([0.1, 0.2], [False, False], DataError, "All 2 pairs are of two people"),
        ([], [], DataError, "All 0 pairs are of two people"),
    ],
)
def test_bad_scores(
    figure: Callable[..., object], scores: list[float], same: list[bool], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        figure(np.array(scores, float), np.array(same, bool))
    assert "\n" not in str(caught.value)


def test_bad_settings() -> None:
    for far in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(SettingError, match=r"expected above 0 and at most 1"):
            tar_at_far(SCORES, SAME, far)
        with pytest.raises(SettingError, match=r"expected above 0 and at most 1"):
            threshold_at_far(SCORES, SAME, far)
    with pytest.raises(DataError, match=r"One fold has no others"):
        fold_accuracy(SCORES, SAME, np.ones(10, int))
    with pytest.raises(ShapeError, match=r"9 folds for 10 pairs"):
        fold_accuracy(SCORES, SAME, np.ones(9, int))
    with pytest.raises(SettingError, match=r"expected numbers from 0 to below 1"):
        error_vs_discard(SAME, SCORES, [1.0])
    with pytest.raises(ShapeError, match=r"10 errors and 9 qualities"):
        error_vs_discard(SAME, SCORES[:9], [0])
    with pytest.raises(DivergenceError, match=r"values of quality are NaN"):
        error_vs_discard(SAME, np.full(10, np.nan), [0])


def test_accuracy_needs_both_people_of_every_pair() -> None:
    found = FoldAccuracy(1.0, 0.0, (1, 2), (1.0, 1.0), (0.5, 0.5), np.ones(4, bool))
    with pytest.raises(ShapeError, match=r"Subjects of shape \(3, 2\) for 4 searches or pairs"):
        accuracy_statistic(found, [["a", "b"]] * 3)


def test_a_threshold_that_other_folds_have_chosen() -> None:
    random = np.random.default_rng(5)
    folds = np.repeat([1, 2, 3], 40)
    same = np.tile([True, False], 60)
    scores = random.normal(size=120) + same
    by = folds < 3
    found = fold_accuracy(scores, same, folds, by=by)
    assert found.folds == (3,)
    every = fold_accuracy(scores, same, folds)
    assert (found.thresholds[0], found.accuracies[0]) == (every.thresholds[2], every.accuracies[2])
    assert found.correct.tolist() == every.correct[80:].tolist()
    assert math.isnan(found.standard_error)
    two = fold_accuracy(scores, same, folds, by=folds == 1)
    assert two.folds == (2, 3)
    assert len(set(two.thresholds)) == 1
    for wrong in (np.zeros(120, bool), np.ones(120, bool)):
        with pytest.raises(DataError, match="are both needed"):
            fold_accuracy(scores, same, folds, by=wrong)
