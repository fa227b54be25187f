from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from keyhole.errors import DataError, SettingError, ShapeError
from keyhole.faces.metrics import intervals
from keyhole.faces.metrics.intervals import (
    Resampling,
    Statistic,
    difference,
    exact_ends,
    interval,
    mean_statistic,
    share,
)

FEW = Resampling(400)


def people(count: int, each: int) -> np.ndarray:
    return np.repeat([f"p{i:03d}" for i in range(count)], each)


def slow_bootstrap(values: np.ndarray, subjects: np.ndarray, resamples: int = 4000) -> tuple[float, float]:
    """Draw people, and take the mean over all that they did."""
    random = np.random.default_rng(99)
    names = sorted(set(subjects.tolist()))
    means = []
    for _ in range(resamples):
        taken = random.choice(names, len(names))
        means.append(np.mean(np.concatenate([values[subjects == name] for name in taken])))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_the_interval_of_a_mean_against_a_slow_loop() -> None:
    random = np.random.default_rng(1)
    subjects = people(40, 5)
    values = random.random(200) < np.repeat(random.random(40), 5)
    found = interval(mean_statistic(values, subjects), resampling=Resampling(8000))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(slow_bootstrap(values, subjects, 2000), abs=0.015)
    assert (found.level, found.subjects) == (0.95, 40)


def test_people_are_drawn_and_not_searches() -> None:
    """Where all searches of a person go alike, five of them are worth one."""
    once = np.random.default_rng(2).random(60) < 0.6
    alone = interval(mean_statistic(once, people(60, 1)))
    repeated = interval(mean_statistic(np.repeat(once, 5), people(60, 5)))
    assert (repeated.low, repeated.high) == (alone.low, alone.high)
    naive = interval(mean_statistic(np.repeat(once, 5), people(300, 1)))
    assert naive.high - naive.low < 0.6 * (repeated.high - repeated.low)


def test_the_width_is_that_of_the_binomial() -> None:
    hits = np.arange(400) < 300
    found = interval(mean_statistic(hits, people(400, 1)), resampling=Resampling(4000))
    assert (found.low, found.high) == pytest.approx((0.75 - 0.0424, 0.75 + 0.0424), abs=0.006)
    narrow = interval(mean_statistic(hits, people(400, 1)), resampling=Resampling(4000, level=0.5))
    assert found.low < narrow.low < 0.75 < narrow.high < found.high


def slow_pairs(values: np.ndarray, pairs: np.ndarray, resamples: int) -> tuple[float, float]:
    """Draw people; a pair of two counts once for every copy of the one with every copy of the other."""
    random = np.random.default_rng(7)
    names = sorted(set(pairs.ravel().tolist()))
    means = []
    for _ in range(resamples):
        taken = random.choice(names, len(names)).tolist()
        total = weight = 0.0
        for value, (a, b) in zip(values, pairs, strict=True):
            times = taken.count(a) if a == b else taken.count(a) * taken.count(b)
            total, weight = total + times * value, weight + times
        means.append(total / weight)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_pairs_count_by_both_of_their_people() -> None:
    random = np.random.default_rng(3)
    pairs = np.array([[f"p{i}", f"p{j}"] for i in range(8) for j in range(i, 8)])
    values = (random.random(len(pairs)) < 0.6).astype(float)
    statistic = mean_statistic(values, pairs)
    found = interval(statistic, resampling=Resampling(8000), bounds=(statistic.value(),) * 2)  # the draws alone
    assert (found.low, found.high) == pytest.approx(slow_pairs(values, pairs, 1500), abs=0.03)
    assert found.subjects == 8


def test_the_weights_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of each weight over the draws is 1 for one person, and 1 - 1/n for two of n."""
    seen = []

    def of(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights.mean(1)

    pairs = np.array([["a", "a"], ["a", "b"], ["b", "c"], ["c", "d"]])
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 40)
    interval(Statistic(of, pairs, np.ones(4, bool)), resampling=Resampling(20_000))
    weights = np.concatenate(seen[1:])
    assert len(weights) == 20_000
    assert weights.mean(0) == pytest.approx([1, 0.75, 0.75, 0.75], abs=0.03)


def test_blocks_do_not_change_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(90)
    whole = interval(mean_statistic(values, people(30, 3)), resampling=FEW)
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 1000)
    blocks = interval(mean_statistic(values, people(30, 3)), resampling=FEW)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 10, 90, 130])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_at_a_bound_the_ends_are_exact(count: int, level: float) -> None:
    for value in (0.0, 1.0):
        found = interval(mean_statistic(np.full(5 * count, value), people(count, 5)), resampling=Resampling(100, level))
        assert (found.low, found.high) == pytest.approx(exact_ends(int(value) * count, count, level=level), abs=1e-12)
        assert found.high - found.low > 3 / (count + 3)


def test_exact_ends_against_the_beta_distribution() -> None:
    assert exact_ends(7, 50) == pytest.approx((beta.ppf(0.025, 7, 44), beta.ppf(0.975, 8, 43)))
    assert exact_ends(0, 30) == pytest.approx((0, 1 - 0.025 ** (1 / 30)))
    assert exact_ends(0, 300, level=0.9)[1] == pytest.approx(3 / 300, rel=0.01)  # the rule of three, one-sided at 95
    for hits, trials in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(SettingError, match=r"hits in .* trials, expected"):
            exact_ends(hits, trials)


@pytest.mark.parametrize("each", [1, 5])
def test_a_figure_with_a_few_errors_is_not_surer_than_one_without(each: int) -> None:
    lows = []
    for wrong in range(8):
        values = np.ones(130 * each)
        values[: wrong * each : each] = 0  # one search of each of these people
        found = interval(mean_statistic(values, people(130, each)))
        assert found.high <= 1
        lows.append(found.low)
    assert sorted(lows, reverse=True) == lows


def test_a_gain_by_very_few_people_is_not_told_from_none() -> None:
    before = np.zeros(130)
    told = {}
    for gain in (0, 1, 3, 6, 12):
        after = (np.arange(130) < gain).astype(float)
        told[gain] = difference(mean_statistic(after, people(130, 1)), mean_statistic(before, people(130, 1))).low
    assert [low > 0 for low in told.values()] == [False, False, False, True, True]


@pytest.mark.parametrize(("rate", "low", "high"), [(0.6, 0.91, 0.97), (0.93, 0.95, 1.0), (0.99, 0.97, 1.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(rate: float, low: float, high: float) -> None:
    """Of 400 worlds in which people differ, the interval from 60 of them with 5 searches each.

    Over many more worlds it is 94 percent in the middle, as percentiles are a little short, and 99 percent near 1.
    """
    random = np.random.default_rng(8)
    skill = random.beta(8 * rate, 8 * (1 - rate), (400, 60, 1))
    worlds = random.random((400, 60, 5)) < skill
    found = [interval(mean_statistic(world.ravel(), people(60, 5)), resampling=Resampling(400)) for world in worlds]
    held = np.mean([each.low <= rate <= each.high for each in found])
    assert low <= held <= high


def test_one_person_says_next_to_nothing() -> None:
    found = interval(mean_statistic(np.array([1.0, 1, 1, 0, 0]), people(1, 5)), resampling=FEW)
    assert found.subjects == 1
    assert found.low < 0.02 < 0.98 < found.high


def test_systems_that_agree_differ_by_nothing_with_an_interval() -> None:
    values = np.random.default_rng(5).random(100) < 0.5
    one = mean_statistic(values, people(20, 5))
    found = difference(one, mean_statistic(values, people(20, 5)), resampling=FEW)
    unseen = 1 - 0.025 ** (1 / 20)
    assert (found.value, found.low, found.high) == (0, pytest.approx(-unseen), pytest.approx(unseen))


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    random = np.random.default_rng(6)
    hard = np.repeat(random.random(80), 5)
    first = random.random(400) < hard
    second = first | (random.random(400) < 0.08)  # never worse
    a, b = mean_statistic(second, people(80, 5)), mean_statistic(first, people(80, 5))
    found = difference(a, b)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.low > 0
    assert (found.low, found.high) == pytest.approx(
        slow_bootstrap(second.astype(float) - first, people(80, 5), 2000), abs=0.015
    )
    assert interval(a).low < interval(b).high  # which could not tell them apart
    back = difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_a_difference_over_everything_has_exact_ends() -> None:
    found = difference(mean_statistic(np.ones(30), people(30, 1)), mean_statistic(np.zeros(30), people(30, 1)))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 30)))


def test_two_kinds_are_drawn_apart() -> None:
    kind = np.repeat([True, False], [30, 6])
    seen = []

    def of(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return share((weights * kind).sum(1), np.full(len(weights), 100.0))

    found = interval(Statistic(of, people(36, 1), kind, strata=kind), resampling=FEW)
    assert all((weights[:, kind].sum(1) == 30).all() and (weights[:, ~kind].sum(1) == 6).all() for weights in seen)
    assert (found.value, found.subjects) == (0.3, 30)
    mixed = Statistic(of, people(18, 2), kind, strata=np.arange(36) % 2 == 0)
    with pytest.raises(ShapeError, match=r"A person is of both kinds"):
        interval(mixed, resampling=FEW)


def test_where_most_draws_are_undefined_nothing_is_known() -> None:
    def of(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] == 1, 0.5, np.nan)  # 37 percent of the draws

    assert interval(Statistic(of, people(50, 1), np.ones(50, bool)), resampling=FEW).low == 0.0


def test_only_some_values_count() -> None:
    values = np.array([1.0, 0.0, np.nan, 1.0])
    where = np.array([True, True, False, True])
    statistic = mean_statistic(values, np.array(["a", "b", "c", "a"]), where=where)
    assert statistic.value() == pytest.approx(2 / 3)
    assert statistic.people() == 2


def test_bad_input() -> None:
    with pytest.raises(SettingError, match=r"50 resamples, expected at least 100"):
        Resampling(50)
    with pytest.raises(SettingError, match=r"An interval of level 95, expected"):
        Resampling(level=95)
    with pytest.raises(DataError, match=r"A value is NaN or infinite"):
        mean_statistic(np.array([1.0, np.nan]), people(2, 1))
    with pytest.raises(DataError, match=r"No search or pair counts towards this figure"):
        mean_statistic(np.ones(2), people(2, 1), where=np.zeros(2, bool))
    with pytest.raises(ShapeError, match=r"3 flags for 2 values"):
        mean_statistic(np.ones(2), people(2, 1), where=np.ones(3, bool))
    with pytest.raises(ShapeError, match=r"Subjects of shape \(3,\) for 2 searches or pairs"):
        mean_statistic(np.ones(2), people(3, 1))
    with pytest.raises(ShapeError, match=r"Two systems over different searches"):
        difference(mean_statistic(np.ones(2), people(2, 1)), mean_statistic(np.ones(2), people(1, 2)))
    nothing = Statistic(lambda weights: np.full(len(weights), np.nan), people(2, 1), np.ones(2, bool))
    with pytest.raises(DataError, match=r"The figure is undefined on all the data"):
        interval(nothing)
    with pytest.raises(DataError, match=r"A figure is undefined on all the data"):
        difference(nothing, nothing)
