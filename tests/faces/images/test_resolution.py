from __future__ import annotations

import io
import json
import zipfile
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft
from torch import Tensor

from keyhole.errors import SettingError, ShapeError
from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.images.resampling import resample
from keyhole.faces.images.resolution import band_edges, band_powers, effective_face_px


@pytest.fixture(scope="module")
def faces(shared: Path) -> Tensor:
    """Sharp crops of 24 people that the estimate was not fitted to."""
    with zipfile.ZipFile(shared / "data" / "faces" / "london" / "london_faces.zip") as archive:
        names = sorted(name for name in archive.namelist() if "/aligned224/" in name and "neutral" in name)[2::3][:24]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    return resample(torch.from_numpy(np.stack(pictures)), 112, "pil-box")


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def median_error(estimate: Tensor, truth: float) -> float:
    return float((estimate / truth - 1).abs().median())


@pytest.mark.parametrize("how", ["pil-bicubic", "pil-box", "cv2-area", "cv2-linear", "torch-bicubic-antialias"])
@pytest.mark.parametrize("codec", [None, 70])
def test_median_error_on_people_held_out(faces: Tensor, how: str, codec: int | None) -> None:
    for size in (8, 12, 24, 48, 64):
        file = {"codec": "jpeg", "quality": codec} if codec else {}
        seen = effective_face_px(degrade(faces, Degradation(size, down=how, **file)))
        assert median_error(seen, size) <= 0.15, size


def test_light_contrast_color_and_mirror_hardly_matter(faces: Tensor) -> None:
    changes = [
        faces // 2,
        (100 + faces * 0.3).to(torch.uint8),
        faces.flip(2),
        faces.float().mean(3, keepdim=True).expand(-1, -1, -1, 3).to(torch.uint8),
    ]
    for changed in changes:
        assert median_error(effective_face_px(degrade(changed, Degradation(16))), 16) <= 0.15


def test_sharp_crops_show_nearly_all_their_pixels(faces: Tensor) -> None:
    assert float(effective_face_px(faces).median()) > 95


def test_blur_lowers_the_answer(faces: Tensor) -> None:
    seen = [float(effective_face_px(degrade(faces, Degradation(112, blur_sigma_px=b))).median()) for b in (0, 1, 2, 4)]
    assert seen == sorted(seen, reverse=True)
    assert seen[2] == pytest.approx(112 / np.hypot(1, 2 / 0.48), rel=0.3)


def test_the_observed_size_is_only_corrected_downwards(faces: Tensor) -> None:
    small = degrade(faces, Degradation(16))
    alone = effective_face_px(small)
    assert torch.equal(effective_face_px(small, observed_px=[12.0] * 24), torch.full((24,), 12.0))
    assert torch.equal(effective_face_px(small, observed_px=torch.full((24,), 60.0)), alone)
    # within the estimate's own error the observed size stands, and beyond the crop's pixels nothing speaks against it
    assert torch.equal(effective_face_px(small, observed_px=alone * 1.2), alone * 1.2)
    assert (effective_face_px(faces, observed_px=[300.0] * 24) == 300).float().mean() > 0.7


def test_an_image_does_not_depend_on_its_batch(noise: Tensor) -> None:
    many = noise.repeat(30, 1, 1, 1)
    alone = torch.cat([effective_face_px(crop[None]) for crop in noise])
    torch.testing.assert_close(effective_face_px(many), alone.repeat(30), rtol=1e-4, atol=0)


def test_band_powers_equal_a_transform_by_the_library(noise: Tensor) -> None:
    ours = band_powers(noise).view(3, 2, -1).double().numpy()
    gray = noise.double().numpy() @ [0.299, 0.587, 0.114]
    edges = band_edges(112)
    for picture, found in zip(gray, ours, strict=True):
        powers = []
        for axis in (1, 0):
            power = (fft.dct(picture - picture.mean(), axis=axis, norm="ortho") ** 2).mean(axis=1 - axis)
            bands = [power[a:b].mean() for a, b in pairwise(edges)]
            powers.append(np.log10(np.array(bands) + 0.02))
        expected = np.stack(powers)
        np.testing.assert_allclose(found, expected - expected[:, :6].mean(), atol=2e-4)


def test_bands_cover_every_frequency_once() -> None:
    edges = band_edges(112)
    assert (edges[0], edges[-1]) == (1, 112)
    assert edges == sorted(set(edges))
    assert edges[:12] == list(range(1, 13))


def test_a_crop_of_one_color_shows_one_pixel(noise: Tensor) -> None:
    crops = torch.cat([torch.full((1, 112, 112, 3), 90, dtype=torch.uint8), noise[:1]])
    crops[0, :, :, 1] = 200
    seen = effective_face_px(crops)
    assert seen[0] == 1
    assert seen[1] >= 4


def test_no_crops_give_no_answers() -> None:
    assert effective_face_px(torch.empty((0, 112, 112, 3), dtype=torch.uint8)).shape == (0,)


def test_the_coefficients_say_where_they_come_from_and_are_small() -> None:
    file = resources.files("keyhole.faces.images") / "resolution.json"
    stored = json.loads(file.read_text("utf-8"))
    assert "London" in stored["fitted_on"]
    assert "CC BY 4.0" in stored["fitted_on"]
    assert len(file.read_bytes()) < 64_000


def test_what_is_refused(noise: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"read off crops of 112 x 112 px, got \(3, 64, 64, 3\); align"):
        effective_face_px(noise[:, :64, :64])
    with pytest.raises(ShapeError, match="Crops are a uint8 tensor"):
        effective_face_px(noise.float())
    with pytest.raises(ShapeError, match=r"3 crops came with observed sizes of shape \(2,\), expected one for each"):
        effective_face_px(noise, observed_px=[10.0, 12.0])
    with pytest.raises(SettingError, match=r"An observed size is 0\.0 px, expected above 0"):
        effective_face_px(noise, observed_px=[10.0, 0.0, 3.0])
    with pytest.raises(SettingError, match="An observed size is nan px"):
        effective_face_px(noise, observed_px=[10.0, float("nan"), 3.0])
