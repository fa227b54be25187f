from __future__ import annotations

import numpy as np
import pytest

from keyhole.faces.images import kernels


def test_kernels_at_points_worked_by_hand() -> None:
    at = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(kernels.box(at), [0, 0, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(kernels.triangle(at), [0, 0.5, 1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(kernels.cubic(-0.5)(at), [0, 0.5625, 1, 0.5625, 0, -0.0625, 0], atol=1e-12)
    np.testing.assert_allclose(kernels.cubic(-0.75)(at), [0, 0.59375, 1, 0.59375, 0, -0.09375, 0], atol=1e-12)
    np.testing.assert_allclose(kernels.hamming(at), [0, 0.54 * 2 / np.pi, 1, 0.54 * 2 / np.pi, 0, 0, 0], atol=1e-12)
    half = np.sin(np.pi / 2) * np.sin(np.pi / 6) / (np.pi**2 / 12)
    np.testing.assert_allclose(kernels.lanczos(3)(np.array([0.0, 0.5, 1.0, 3.0])), [1, half, 0, 0], atol=1e-12)


@pytest.mark.parametrize("kernel", [kernels.triangle, kernels.cubic(-0.5), kernels.cubic(-0.75)])
def test_weights_around_any_point_sum_to_one(kernel: kernels.Callable) -> None:
    for offset in np.linspace(0, 1, 11):
        assert kernel(np.arange(-3, 4) + offset).sum() == pytest.approx(1)


def test_beyond_the_border_stands_the_pixel_at_the_border() -> None:
    taps = np.array([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(kernels.gather(taps, np.array([-1, 2]), 4), [[0.3, 0.7, 0, 0], [0, 0, 0.1, 0.9]])


def test_averages_are_cut_at_the_border_and_scaled() -> None:
    weights = kernels.averaged(kernels.triangle, 1.0)(4, 2)  # tents of half width 2 around 1 and 3
    np.testing.assert_allclose(weights, [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]])


def test_area_averages_by_overlap_and_enlarges_with_hard_cells() -> None:
    np.testing.assert_allclose(kernels.area(5, 2), [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])
    np.testing.assert_allclose(kernels.area(2, 4), [[1, 0], [1, 0], [0, 1], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(kernels.area(2, 3), [[1, 0], [0.5, 0.5], [0, 1]], atol=1e-12)


def test_whole_area_averages_every_pixel_it_touches() -> None:
    np.testing.assert_allclose(kernels.whole_area(5, 2), [[1 / 3] * 3 + [0, 0], [0, 0] + [1 / 3] * 3])


def test_nearest_picks_centers_or_corners() -> None:
    assert kernels.nearest_center(10, 3).argmax(axis=1).tolist() == [1, 5, 8]
    for corner in (kernels.nearest_corner_opencv, kernels.nearest_corner_torch):
        assert corner(10, 3).argmax(axis=1).tolist() == [0, 3, 6]
