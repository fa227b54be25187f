from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from keyhole.errors import SettingError, ShapeError, UnknownNameError
from keyhole.faces.images.resampling import METHODS, resample, resampling_matrix

SIZES = [(112, 8), (112, 13), (112, 37), (112, 64), (8, 112), (13, 112), (64, 112), (112, 111), (7, 5), (3, 9), (9, 1)]


def pictures(side: int, seed: int = 0) -> np.ndarray:
    """Noise, black and white noise (overshoots and clips everywhere), and a slope (many ties)."""
    generator = np.random.default_rng((seed, side))
    noise = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
    binary = (generator.integers(0, 2, (side, side, 3)) * 255).astype(np.uint8)
    slope = np.tile(np.linspace(0, 255, side).astype(np.uint8)[:, None, None], (1, side, 3))
    return np.stack([noise, binary, slope])


def by_library(picture: np.ndarray, size: int, method: str) -> np.ndarray:
    library, _, kernel = method.partition("-")
    if library == "pil":
        return np.asarray(Image.fromarray(picture).resize((size, size), getattr(Image.Resampling, kernel.upper())))
    if library == "cv2":
        cv2 = pytest.importorskip("cv2")
        return cv2.resize(picture, (size, size), interpolation=getattr(cv2, f"INTER_{kernel.upper()}"))
    mode, _, antialias = kernel.partition("-")
    options = {"align_corners": False, "antialias": bool(antialias)} if mode.startswith("bi") else {}
    pixels = torch.from_numpy(picture).movedim(2, 0)[None]
    if mode != "nearest":  # which picks other pixels for numbers of double precision
        pixels = pixels.double()
    resized = functional.interpolate(pixels, size=(size, size), mode=mode, **options)
    return resized.round().clamp(0, 255).to(torch.uint8)[0].movedim(0, 2).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_library_within_one_gray_level(method: str) -> None:
    unequal = []
    for side, size in SIZES:
        before = pictures(side)
        ours = resample(torch.from_numpy(before), size, method).numpy().astype(int)
        theirs = np.stack([by_library(picture, size, method) for picture in before])
        difference = np.abs(ours - theirs)
        assert difference.max() <= 1, (side, size)
        exact = method.startswith("pil") and size < side
        assert difference.max() == 0 or not exact, (side, size)
        unequal.append(difference.ravel() > 0)
    # ties, mostly, and OpenCV's fixed-point weights
    assert np.concatenate(unequal).mean() < (0.15 if method.startswith("cv2") else 0.06)


@pytest.mark.parametrize("method", [name for name in METHODS if "nearest" in name])
@pytest.mark.parametrize(("side", "size"), SIZES)
def test_nearest_picks_the_very_pixels_of_the_library(method: str, side: int, size: int) -> None:
    picture = pictures(side)[0]
    ours = resample(torch.from_numpy(picture)[None], size, method)[0].numpy()
    np.testing.assert_array_equal(ours, by_library(picture, size, method))


@pytest.mark.parametrize("method", [name for name in METHODS if "nearest" in name or name == "cv2-area"])
def test_every_size_picks_what_the_library_picks(method: str) -> None:
    """Where a cell begins on a pixel, the library's rounding errors decide, at some sizes only."""
    for side, size in [pair for px in range(1, 225) for pair in ((112, px), (px, 112))]:
        picture = pictures(side)[0]
        ours = resample(torch.from_numpy(picture)[None], size, method)[0].numpy().astype(int)
        assert np.abs(ours - by_library(picture, size, method)).max() <= (method == "cv2-area"), (side, size)


@pytest.mark.parametrize("method", METHODS)
def test_no_batch_and_no_thread_changes_a_pixel(method: str) -> None:
    crops = torch.from_numpy(np.concatenate([pictures(112, seed) for seed in range(4)]))
    for size in (12, 40, 130):
        together = resample(crops, size, method)
        alone = torch.cat([resample(crop[None], size, method) for crop in crops])
        assert torch.equal(together, alone)
        assert torch.equal(resample(crops.flip(0), size, method).flip(0), together)
    torch.set_num_threads(2)
    assert torch.equal(resample(crops, 130, method), together)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_weights_sum_to_one(method: str) -> None:
    for side, size in SIZES:
        weights = resampling_matrix(method, side, size)
        assert weights.shape == (size, side)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_one_color_stays_that_color_and_the_same_size_changes_nothing(method: str) -> None:
    crops = torch.tensor([0, 1, 77, 254, 255], dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 20, 20, 3)
    for size in (6, 33):
        assert torch.equal(resample(crops, size, method), crops[:, :1, :1].expand(-1, size, size, -1))
    noise = torch.from_numpy(pictures(20))
    assert torch.equal(resample(noise, 20, method), noise)


def slow_antialias(picture: Tensor, size: int) -> Tensor:
    """Pillow's bilinear filter as a loop over pixels, written from its definition."""
    side = picture.shape[0]
    scale = side / size

    def one_axis(rows: Tensor) -> Tensor:
        out = torch.empty(size, *rows.shape[1:], dtype=torch.float64)
        for target in range(size):
            center = (target + 0.5) * scale
            total, weight = torch.zeros(rows.shape[1:], dtype=torch.float64), 0.0
            for source in range(side):
                share = max(0.0, 1 - abs(source + 0.5 - center) / scale)
                total, weight = total + share * rows[source], weight + share
            out[target] = torch.floor(total / weight + 0.5)
        return out

    across = one_axis(picture.double().movedim(1, 0)).movedim(0, 1)
    return one_axis(across).to(torch.uint8)


def test_equals_a_loop_over_pixels() -> None:
    picture = torch.from_numpy(pictures(14)[0])
    ours = resample(picture[None], 5, "pil-bilinear")[0]
    assert (ours.int() - slow_antialias(picture, 5).int()).abs().max() <= 1


def test_a_hand_worked_row() -> None:
    np.testing.assert_allclose(resampling_matrix("cv2-area", 5, 2), [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])
    np.testing.assert_allclose(resampling_matrix("torch-bilinear", 2, 4)[1], [0.75, 0.25])


def test_views_and_empty_batches_work() -> None:
    crops = torch.from_numpy(pictures(20))
    assert resample(crops[:0], 7, "pil-bicubic").shape == (0, 7, 7, 3)
    flipped = crops.movedim(1, 2)
    assert not flipped.is_contiguous()
    assert torch.equal(resample(flipped, 7, "pil-box"), resample(flipped.contiguous(), 7, "pil-box"))


def test_what_is_refused() -> None:
    crops = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(UnknownNameError, match=r"Unknown resampler 'pil-cubic'; nearest known: .*pil-bicubic"):
        resample(crops, 4, "pil-cubic")
    with pytest.raises(SettingError, match="A picture of 0 px was asked for, expected 1 to 4096"):
        resample(crops, 0, "pil-box")
    for wrong in (crops.float(), crops[0], crops[:, :4], crops.movedim(3, 1)):
        with pytest.raises(ShapeError, match=r"Crops are a uint8 tensor of n x side x side x 3 \(RGB\), got"):
            resample(wrong, 4, "pil-box")


def test_extreme_sizes_are_exact() -> None:
    crops = torch.from_numpy(pictures(300)[:2])
    small = resample(crops, 1, "torch-area").double().flatten(1, 2)[:, 0]
    mean = crops.double().mean(dim=(1, 2))
    assert (small - mean).abs().max() <= 0.5 + 2**-4
    assert math.isfinite(float(small.sum()))
