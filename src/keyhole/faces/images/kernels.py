"""The weights of Pillow, OpenCV and PyTorch along one axis, from pixels before (columns) to pixels after (rows)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np

Axis = Callable[[int, int], np.ndarray]


def gather(taps: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """Return the matrix of rows of taps that start at given pixels; the border's pixel stands for those beyond."""
    rows, count = taps.shape
    matrix = np.zeros((rows, size))
    columns = np.clip(first[:, None] + np.arange(count), 0, size - 1)
    np.add.at(matrix, (np.arange(rows)[:, None], columns), taps)
    return matrix


def averaged(kernel: Callable[[np.ndarray], np.ndarray], support: float) -> Axis:
    """Return an axis whose kernel is widened when shrinking, cut at the border and scaled to sum 1."""

    def axis(from_px: int, to_px: int) -> np.ndarray:
        scale = from_px / to_px
        widened = max(scale, 1.0)
        center = (np.arange(to_px) + 0.5) * scale
        low = np.maximum((center - support * widened + 0.5).astype(int), 0)
        high = np.minimum((center + support * widened + 0.5).astype(int), from_px)
        pixels = np.arange(from_px)
        weights = kernel((pixels - center[:, None] + 0.5) / widened)
        weights = weights * ((pixels >= low[:, None]) & (pixels < high[:, None]))
        return cast(np.ndarray, weights / weights.sum(axis=1, keepdims=True))

    return axis


def sampled(kernel: Callable[[np.ndarray], np.ndarray], taps: int) -> Axis:
    """Return an axis that reads a fixed number of pixels around each point, whatever the scale."""

    def axis(from_px: int, to_px: int) -> np.ndarray:
        point = (np.arange(to_px) + 0.5) * (from_px / to_px) - 0.5
        first = np.floor(point).astype(int) - (taps // 2 - 1)
        weights = kernel(first[:, None] + np.arange(taps) - point[:, None])
        return gather(weights / weights.sum(axis=1, keepdims=True), first, from_px)

    return axis


def nearest_center(from_px: int, to_px: int) -> np.ndarray:
    """Return the weights that pick the pixel at each cell's center.

    Pillow adds up the step from pixel to pixel, so its rounding errors decide where a cell begins.
    """
    step = from_px / to_px
    points = np.cumsum(np.concatenate([[0.5 * step], np.full(to_px - 1, step)]))
    return cast(np.ndarray, np.eye(from_px)[points.astype(int)])


def nearest_corner_opencv(from_px: int, to_px: int) -> np.ndarray:
    """Return the weights that pick the pixel at each cell's first corner, with the rounding errors of OpenCV."""
    points = np.floor(np.arange(to_px) * _scale_opencv(from_px, to_px)).astype(int)
    return cast(np.ndarray, np.eye(from_px)[np.minimum(points, from_px - 1)])


def nearest_corner_torch(from_px: int, to_px: int) -> np.ndarray:
    """Return the weights that pick the pixel at each cell's first corner, with the rounding errors of PyTorch."""
    scale = np.float32(from_px) / np.float32(to_px)
    points = np.floor(np.arange(to_px, dtype=np.float32) * scale).astype(int)
    return cast(np.ndarray, np.eye(from_px)[np.minimum(points, from_px - 1)])


def _scale_opencv(from_px: int, to_px: int) -> float:
    """Return the step from pixel to pixel as OpenCV computes it: in 112 to 72, for one, not from_px / to_px."""
    return 1 / (to_px / from_px)


def area(from_px: int, to_px: int) -> np.ndarray:
    """Return averages by overlap when shrinking; OpenCV enlarges by mixing two pixels only where a cell has both."""
    scale = _scale_opencv(from_px, to_px)
    if from_px < to_px:
        first = np.floor(np.arange(to_px) * scale).astype(int)
        share = ((np.arange(to_px) + 1) - (first + 1) * (to_px / from_px)).astype(np.float32)
        share = np.where(share <= 0, 0.0, share - np.floor(share)).astype(float)
        return gather(np.stack([1 - share, share], axis=1), first, from_px)
    edges = np.arange(to_px + 1)[:, None] * scale
    covered = np.clip(edges - np.arange(from_px), 0, 1)
    return cast(np.ndarray, np.diff(covered, axis=0) / scale)


def whole_area(from_px: int, to_px: int) -> np.ndarray:
    """Return averages over every pixel that a cell touches, all alike (adaptive average pooling)."""
    cell = np.arange(to_px)[:, None]
    low, high = cell * from_px // to_px, -(-(cell + 1) * from_px // to_px)
    pixels = np.arange(from_px)
    inside = (pixels >= low) & (pixels < high)
    return cast(np.ndarray, inside / inside.sum(axis=1, keepdims=True))


def box(x: np.ndarray) -> np.ndarray:
    """Return 1 within half a pixel, else 0."""
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def triangle(x: np.ndarray) -> np.ndarray:
    """Return the tent of linear interpolation."""
    return cast(np.ndarray, np.maximum(0.0, 1.0 - np.abs(x)))


def hamming(x: np.ndarray) -> np.ndarray:
    """Return a sinc of one lobe under a Hamming window."""
    return cast(np.ndarray, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)) * (np.abs(x) < 1))


@cache
def cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the cubic convolution kernel of a parameter.

    Reference:
        Keys (1981), Cubic convolution interpolation for digital image processing, IEEE Trans. ASSP 29(6).
    """

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))

    return kernel


@cache
def lanczos(lobes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a sinc of some lobes under its own first lobe, stretched."""

    def kernel(x: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, np.sinc(x) * np.sinc(x / lobes) * (np.abs(x) < lobes))

    return kernel
