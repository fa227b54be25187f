"""Each metric against a slow version from its definition, by hand, and by what must and must not change it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import Tensor

import oracles
from keyhole.errors import DivergenceError, KeyholeError, ShapeError
from keyhole.hints.metrics import debiased_cka, linear_cka, procrustes, pwcca, r2_cca, rbf_cka, svcca

Metric = Callable[[Tensor, Tensor], float]
SYMMETRIC: list[Metric] = [r2_cca, linear_cka, debiased_cka, rbf_cka, procrustes, svcca]
METRICS: list[Metric] = [*SYMMETRIC, pwcca]
SIZES = [(50, 3, 3), (50, 7, 2), (40, 1, 5), (30, 1, 1), (12, 20, 9), (9, 4, 30), (200, 16, 64)]


def features(n: int, p: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two layers that share a signal, far from zero mean, with noise of their own."""
    random = np.random.default_rng(seed)
    signal = random.normal(size=(n, 3))
    x, y = (
        signal @ random.normal(size=(3, width)) + 0.5 * random.normal(size=(n, width)) + 4 * random.normal(size=width)
        for width in (p, q)
    )
    return x, y


def t(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value))


@pytest.mark.parametrize(("n", "p", "q"), SIZES)
@pytest.mark.parametrize("name", ["r2_cca", "linear_cka", "debiased_cka", "procrustes", "svcca", "pwcca"])
def test_a_metric_equals_its_definition(name: str, n: int, p: int, q: int) -> None:
    x, y = features(n, p, q)
    found = globals()[name](t(x), t(y))
    assert found == pytest.approx(getattr(oracles, name)(x, y), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("n", [40, 43])  # the last minibatch of 3 is left out
@pytest.mark.parametrize(("p", "q", "bandwidth"), [(3, 3, 1.0), (1, 6, 0.5), (25, 2, 2.0)])
def test_the_gaussian_metric_equals_a_loop_over_pairs_of_inputs(n: int, p: int, q: int, bandwidth: float) -> None:
    x, y = features(n, p, q)
    batches = [range(0, 20), range(20, 40)]
    expected = oracles.rbf_cka(x, y, batches, bandwidth)
    assert rbf_cka(t(x), t(y), minibatch=20, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-9)


def test_minibatches_of_unequal_size_are_weighted_by_their_size() -> None:
    x, y = features(31, 4, 5)
    expected = oracles.rbf_cka(x, y, [range(0, 20), range(20, 31)])
    assert rbf_cka(t(x), t(y), minibatch=20) == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    x = torch.tensor([[-1.0], [0.0], [1.0], [0.0]])
    y = torch.tensor([[0.0], [1.0], [0.0], [-1.0]])
    z = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    # x and y are orthogonal, the correlation of x and z is -2 / sqrt(2 * 4)
    for metric, power in ((r2_cca, 2), (linear_cka, 2), (procrustes, 1)):
        assert metric(x, y) == 0
        assert metric(x, z) == pytest.approx(0.5 ** (power / 2))
    # two channels, one shared: the sum of squared correlations is 1, of 2 channels
    assert r2_cca(torch.cat([x, y], 1), x) == pytest.approx(1.0)
    assert r2_cca(torch.cat([x, y], 1), torch.cat([x, x - y], 1)) == pytest.approx(1.0)
    # K = diag(2, 2) in the basis (x, y), L = 2 on x: <K, L> = 4, |K| = sqrt 8, |L| = 2
    assert linear_cka(torch.cat([x, y], 1), x) == pytest.approx(4 / (8**0.5 * 2))
    assert procrustes(torch.cat([x, y], 1), x) == pytest.approx(2 / (2 * 2**0.5))


def test_debiased_cka_by_hand() -> None:
    # 4 inputs: the U-centered matrices are K = [[0,a,b,c],[a,0,c,b],[b,c,0,a],[c,b,a,0]], a + b + c = 0
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    # K of x without its diagonal: +1 for pairs (0,1), (2,3), else -1; U-centered 4/3, -2/3, -2/3; of y the same, turned
    assert debiased_cka(x, y) == pytest.approx((4 / 3 * -2 / 3 * 2 + 4 / 9) / (16 / 9 + 8 / 9))
    assert debiased_cka(x, y) == pytest.approx(-0.5)


@pytest.mark.parametrize("metric", SYMMETRIC)
@pytest.mark.parametrize(("n", "p", "q"), [(60, 4, 6), (60, 6, 4), (20, 30, 5)])
def test_rotation_scaling_and_shift_change_nothing(metric: Metric, n: int, p: int, q: int) -> None:
    x, y = features(n, p, q, seed=1)
    rotation = ortho_group.rvs(p, random_state=2)
    changed = 7.5 * x @ rotation + np.random.default_rng(3).normal(size=p)
    assert metric(t(changed), t(y)) == pytest.approx(metric(t(x), t(y)), rel=1e-8, abs=1e-10)


def test_svcca_leaves_faint_directions_out() -> None:
    random = np.random.default_rng(6)
    x = random.normal(size=(200, 4)) * [10.0, 8.0, 0.1, 0.05]  # two directions carry 99 % and more
    y = x.copy()
    y[:, 2:] = random.normal(size=(200, 2)) * 0.1
    assert svcca(t(x), t(y)) == pytest.approx(1, abs=1e-3)
    assert r2_cca(t(x), t(y)) < 0.6
    assert svcca(t(x), t(y), variance=1.0) < 0.8


def test_pwcca_counts_directions_by_their_share_of_the_first_layer() -> None:
    random = np.random.default_rng(7)
    x = random.normal(size=(500, 2)) * [10.0, 0.1]
    y = np.stack([x[:, 0], random.normal(size=500)], axis=1)  # the strong direction is shared, the faint one is not
    z = np.stack([random.normal(size=500), x[:, 1]], axis=1)  # the other way round
    assert pwcca(t(x), t(y)) > 0.95
    assert pwcca(t(x), t(z)) < 0.1
    stretched = y @ np.array([[1.0, 2.0], [0.5, -3.0]])
    assert pwcca(t(x), t(stretched)) == pytest.approx(pwcca(t(x), t(y)), rel=1e-8)


def test_only_r2_cca_is_blind_to_invertible_maps() -> None:
    x, y = features(80, 4, 4, seed=4)
    stretched = x @ np.diag([10.0, 1.0, 0.3, 2.0]) @ np.random.default_rng(5).normal(size=(4, 4))
    assert r2_cca(t(stretched), t(y)) == pytest.approx(r2_cca(t(x), t(y)), rel=1e-8)
    for metric in (linear_cka, debiased_cka, rbf_cka, procrustes):
        assert abs(metric(t(stretched), t(y)) - metric(t(x), t(y))) > 0.01


def test_only_the_gaussian_metric_sees_what_is_not_linear() -> None:
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    for metric in (r2_cca, linear_cka, procrustes):
        assert metric(x, x.square()) == pytest.approx(0, abs=1e-12)
    assert debiased_cka(x, x.square()) < 0.01
    assert rbf_cka(x, x.square()) > 0.1


@pytest.mark.parametrize("metric", SYMMETRIC)
def test_a_metric_is_symmetric(metric: Metric) -> None:
    x, y = features(50, 5, 8)
    assert metric(t(x), t(y)) == pytest.approx(metric(t(y), t(x)), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("p", [1, 5, 80])
def test_a_layer_is_like_itself(metric: Metric, p: int) -> None:
    x, _ = features(100, p, 1)
    assert metric(t(x), t(x)) == pytest.approx(1, abs=1e-9)


def test_dead_channels_count_as_zero_correlation() -> None:
    x, _ = features(60, 5, 1)
    x[:, 1] = 3.0
    x[:, 4] = x[:, 0] + x[:, 2]
    assert r2_cca(t(x), t(x)) == pytest.approx(3 / 5)
    assert r2_cca(t(x), t(x[:, [0, 2, 3]])) == pytest.approx(1)
    assert r2_cca(t(x), t(x)) == pytest.approx(oracles.r2_cca(x, x))


def test_with_fewer_inputs_than_channels_r2_cca_tells_nothing() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(10, 30)), random.normal(size=(10, 30))
    assert r2_cca(t(x), t(y)) == pytest.approx(9 / 30)  # nine directions are left, in both layers the same


def test_unrelated_layers_are_zero_only_without_bias() -> None:
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=(40, 60)), random.normal(size=(40, 60))) for _ in range(40)]
    mean = {metric: np.mean([metric(t(x), t(y)) for x, y in pairs]) for metric in (linear_cka, debiased_cka, rbf_cka)}
    assert mean[linear_cka] > 0.5
    assert abs(mean[debiased_cka]) < 0.01
    assert abs(mean[rbf_cka]) < 0.01


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3, -1e-30])
@pytest.mark.parametrize("p", [1, 4])
def test_a_constant_layer_is_like_nothing_not_even_itself(metric: Metric, constant: float, p: int) -> None:
    x, _ = features(30, 3, 1)
    dead = torch.full((30, p), constant, dtype=torch.float64)
    assert metric(t(x), dead) == 0
    assert metric(dead, t(x)) == 0
    assert metric(dead, dead) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_what_rounding_leaves_of_a_constant_layer_is_nothing(metric: Metric) -> None:
    random = np.random.default_rng(0)
    x, _ = features(30, 3, 1)
    dead = 1e3 * (1 + 1e-16 * random.integers(-2, 3, size=(30, 4)))
    assert np.ptp(dead) > 0
    assert metric(t(x), t(dead)) == 0
    assert metric(t(dead), t(dead)) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_small_signal_on_a_large_mean_is_a_signal(metric: Metric) -> None:
    x, _ = features(60, 3, 1)
    assert metric(t(1e-6 * x + 100), t(x)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_single_precision_is_computed_in_double(metric: Metric) -> None:
    x, y = (t(value).float() for value in features(50, 4, 6))
    assert metric(x, y) == pytest.approx(metric(x.double(), y.double()), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("x", "y"),
    [((1, 3), (1, 3)), ((0, 3), (0, 3)), ((10, 3), (9, 3)), ((10,), (10, 3)), ((10, 3), (10,)), ((10, 3, 1), (10, 3))],
)
def test_layers_that_do_not_fit_are_an_error(metric: Metric, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        metric(torch.rand(x), torch.rand(y))
    assert str(x) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("metric", "least"), [(m, 4 if m in (debiased_cka, rbf_cka) else 2) for m in METRICS])
def test_the_fewest_inputs_that_do(metric: Metric, least: int) -> None:
    x, y = torch.rand(least, 3), torch.rand(least, 2)
    assert -1.0000001 <= metric(x, y) <= 1.0000001
    with pytest.raises(ShapeError, match=f"n >= {least}"):
        metric(x[1:], y[1:])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [True, False])
def test_nan_is_an_error(metric: Metric, bad: float, first: bool) -> None:
    x, y = torch.rand(8, 3), torch.rand(8, 2)
    (x if first else y)[5, 1] = bad
    with pytest.raises(DivergenceError) as caught:
        metric(x, y)
    assert isinstance(caught.value, KeyholeError)
    assert "\n" not in str(caught.value)
