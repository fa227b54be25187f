from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from keyhole.errors import ShapeError
from keyhole.studies.variance import draw_true_values, rank_correlation, spread_of


def drawn(rows: int, seeds: int, between: float, noise: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (
        60
        + between * random.standard_normal((rows, 1))
        + random.standard_normal((1, seeds))
        + noise * random.standard_normal((rows, seeds))
    )


def mean_squares(values: np.ndarray) -> tuple[float, float]:
    """Return the mean squares of rows and of the rest, summed cell by cell."""
    rows, seeds = values.shape
    level = sum(values[i, j] for i in range(rows) for j in range(seeds)) / (rows * seeds)
    by_row = [sum(values[i]) / seeds for i in range(rows)]
    by_seed = [sum(values[:, j]) / rows for j in range(seeds)]
    across = sum(seeds * (each - level) ** 2 for each in by_row) / (rows - 1)
    rest = sum((values[i, j] - by_row[i] - by_seed[j] + level) ** 2 for i in range(rows) for j in range(seeds)) / (
        (rows - 1) * (seeds - 1)
    )
    return across, rest


def test_the_intraclass_share_of_shrout_and_fleiss() -> None:
    # table 2 of their paper, six targets and four judges: ICC(3, 1) is 0.71, F is 11.03 with 5 and 15 degrees
    table = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    found = spread_of(table)
    assert found is not None
    assert round(found.share, 2) == 0.71
    assert found.p == pytest.approx(float(stats.f.sf(11.03, 5, 15)), rel=0.01)
    assert found.noise**2 == pytest.approx(1.02, abs=0.005)


@pytest.mark.parametrize(("rows", "seeds"), [(2, 2), (84, 2), (10, 6)])
def test_the_parts_of_the_spread_from_sums_cell_by_cell(rows: int, seeds: int) -> None:
    values = drawn(rows, seeds, 2.0, 0.5)
    across, rest = mean_squares(values)
    found = spread_of(values)
    assert found is not None
    assert found.noise**2 == pytest.approx(rest)
    assert found.between**2 == pytest.approx(max(0, (across - rest) / seeds))
    assert found.share == pytest.approx(max(0, (across - rest) / (across + (seeds - 1) * rest)))
    freedom = (rows - 1, (rows - 1) * (seeds - 1))
    ends = [across / rest / stats.f.isf(0.025, *freedom), across / rest * stats.f.isf(0.025, *reversed(freedom))]
    low, high = (float(np.sqrt(max(0, rest * (end - 1) / seeds))) for end in ends)
    assert (found.between_low, found.between_high) == pytest.approx((low, high))
    assert found.share_low <= found.share <= found.share_high
    assert found.between_low <= found.between <= found.between_high


def test_without_seeds_the_test_is_that_of_paired_differences() -> None:
    values = drawn(2, 12, 0.3, 0.5)
    found = spread_of(values)
    assert found is not None
    assert found.p == pytest.approx(float(stats.ttest_rel(values[0], values[1]).pvalue))  # F with two rows is t squared


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = within = 0
    for seed in range(200):
        found = spread_of(drawn(30, 2, 1.0, 0.8, seed))
        assert found is not None
        held += found.share_low <= 1 / (1 + 0.64) <= found.share_high
        within += found.between_low <= 1.0 <= found.between_high
    assert 0.92 < held / 200 < 0.98
    assert within / 200 > 0.9  # of the deviation, for the noise as it was estimated


def test_rows_that_are_all_the_same_are_rarely_told_apart() -> None:
    false = sum((found := spread_of(drawn(20, 2, 0.0, 1.0, seed))) is not None and (found.p or 1) < 0.05
                for seed in range(200))  # fmt: skip
    assert 0.02 < false / 200 < 0.085


def test_what_cannot_be_told() -> None:
    assert spread_of(np.ones((5, 1))) is None
    assert spread_of(np.ones((1, 5))) is None
    with pytest.raises(ShapeError, match="1 dimensions; expected rows and seeds"):
        spread_of(np.ones(3))
    same = spread_of(np.full((4, 3), 60.0))
    assert same is not None
    assert (same.between, same.noise, same.share, same.p) == (0, 0, 0, None)
    certain = spread_of(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert certain is not None
    assert (certain.noise, certain.share, certain.p) == (0, 1, None)
    assert certain.probability(1, 1) is None


def test_draws_of_true_values_are_drawn_towards_the_mean_as_far_as_noise_reaches() -> None:
    values = drawn(200, 2, 1.0, 1.0)
    found, means = spread_of(values), values.mean(axis=1)
    assert found is not None
    draws = draw_true_values(means, found)
    kept = found.between**2 / (found.between**2 + found.noise**2 / 2)
    expected = means.mean() + kept * (means - means.mean())
    assert np.abs(draws.mean(axis=0) - expected).max() < 0.06
    assert draws.std(axis=0).mean() == pytest.approx(np.sqrt(kept * found.noise**2 / 2), rel=0.02)
    assert np.array_equal(draws, draw_true_values(means, found))
    nothing = spread_of(np.array([[60.0, 61.0], [61.0, 60.0], [60.0, 61.0]]))
    assert nothing is not None
    assert (nothing.between, nothing.noise > 0) == (0, True)
    alike = draw_true_values(np.arange(3.0), nothing)
    assert np.ptp(alike) < 1e-6
    best = np.bincount(alike.argmax(axis=1), minlength=3) / len(alike)
    np.testing.assert_allclose(best, 1 / 3, atol=0.03)  # any order is as likely


def test_rank_correlation_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 8, 30).astype(float)
    b = a + random.normal(size=30)
    assert rank_correlation(a, b) == pytest.approx(float(stats.spearmanr(a, b).statistic))
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None
    assert rank_correlation(np.ones(1), np.ones(1)) is None
