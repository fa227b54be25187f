"""From samples to crops and embeddings: extents, misses, and what a degradation means for each kind of crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pattern_faces
from keyhole.errors import DataError, SettingError
from keyhole.faces.embedding import Crops, crop_samples, degraded, embed_crops, in_form, shown_px
from keyhole.faces.images.albums import open_album
from keyhole.faces.images.alignment import TEMPLATE_112, align, crop_box, face_px_of, widen
from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.models.face_model import load_face_model
from keyhole.faces.models.preparation import ARCFACE_112, Preparation, arcface_template
from keyhole.faces.protocols.samples import Sample

ALIGNED = Preparation(112, template=ARCFACE_112)
LARGE = Preparation(128, template=arcface_template(128))
BOXED = Preparation(64, margin=0.2)
PLACE = TEMPLATE_112 * 0.75 + (40, 30)  # a face of 84 pixels
POINTS = tuple((float(x), float(y)) for x, y in PLACE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pattern_faces.write(folder / "crop.png", 1)
    photo = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    return folder


def cut(root: Path, sample: Sample, preparation: Preparation, **settings: object) -> Crops:
    with open_album(root) as album:
        return crop_samples(album, [sample], preparation, **settings)  # type: ignore[arg-type]


def test_an_aligned_crop_is_taken_as_it_is(root: Path) -> None:
    found = cut(root, Sample("crop.png", "a", aligned=True), LARGE)
    assert np.array_equal(found.pixels[0].numpy(), pattern_faces.pattern(1))
    assert (found.extent.tolist(), found.native_px.tolist(), found.canonical) == ([1.0], [112.0], True)
    for preparation, margin in ((BOXED, None), (ALIGNED, 0.0), (ALIGNED, 0.3)):
        with pytest.raises(SettingError, match="an aligned crop that ends at the face"):
            cut(root, Sample("crop.png", "a", aligned=True), preparation, margin=margin)
    with pytest.raises(DataError, match="220 x 200; an aligned crop is 112 x 112"):
        cut(root, Sample("photo.png", "a", aligned=True), ALIGNED)


def test_landmarks_align_a_photo_to_the_canonical_crop(root: Path) -> None:
    found = cut(root, Sample("photo.png", "a", landmarks=POINTS), LARGE)
    photo = np.asarray(Image.open(root / "photo.png"))
    assert np.array_equal(found.pixels[0].numpy(), align(photo, PLACE))
    assert found.canonical
    assert found.native_px[0] == pytest.approx(84)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
def test_with_a_margin_a_photo_is_cut_in_the_models_own_form(root: Path, margin: float) -> None:
    found = cut(root, Sample("photo.png", "a", landmarks=POINTS), LARGE, margin=margin)
    photo = np.asarray(Image.open(root / "photo.png"))
    template = np.asarray(LARGE.template)
    assert np.array_equal(found.pixels[0].numpy(), align(photo, PLACE, template=template, size_px=128, margin=margin))
    assert not found.canonical
    # the crop shows 1 + margin as much as the 112 template does, which the larger template shows just as much of
    assert found.extent[0] == pytest.approx(1 + margin, rel=1e-3)
    assert face_px_of(widen(template, 128, margin)) == pytest.approx(128 / (1 + margin), rel=1e-3)


def test_a_box_is_cut_with_the_margins_of_model_and_setting(root: Path) -> None:
    box = (50.0, 40.0, 60.0, 80.0)
    sample = Sample("photo.png", "a", box=box, landmarks=POINTS)
    photo = np.asarray(Image.open(root / "photo.png"))
    for margin, beyond in ((None, 0.2), (0.3, 0.5), (0.8, 1.0)):
        found = cut(root, sample, BOXED, margin=margin)
        assert np.array_equal(found.pixels[0].numpy(), crop_box(photo, box, margin=beyond, size_px=64))
        assert found.extent[0] == pytest.approx(80 * (1 + beyond) / 84)
    with pytest.raises(SettingError, match=r"takes a margin of 0\.2, and 0\.9 more make 1\.1"):
        cut(root, sample, BOXED, margin=0.9)
    with pytest.raises(SettingError, match=r"margin is 1\.5; expected 0 to 1"):
        cut(root, sample, BOXED, margin=1.5)


def test_a_wall_has_no_face_and_its_place_is_kept(root: Path, shared: Path) -> None:
    from keyhole.faces.images.detection import Detector

    yunet = Detector(shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx")
    Image.fromarray(np.full((90, 90, 3), 128, np.uint8)).save(root / "wall.png")
    samples = [Sample("wall.png", "a"), Sample("crop.png", "b", aligned=True), Sample("wall.png", "c")]
    with open_album(root) as album:
        found = crop_samples(album, samples, ALIGNED, detector=yunet)
        none = crop_samples(album, samples[:1], ALIGNED, detector=yunet)
    assert found.found.tolist() == [False, True, False]
    assert len(found) == 1
    assert (len(none), none.found.tolist()) == (0, [False])
    with pytest.raises(DataError, match="there is no detector to find the face"):
        cut(root, Sample("wall.png", "a"), ALIGNED)


def crops_of(extent: list[float], native: list[float], side: int = 112) -> Crops:
    pixels = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (len(extent), side, side, 3), dtype=np.uint8))
    return Crops(pixels, np.array(extent), np.array(native), np.ones(len(extent), bool))


def test_a_degradation_counts_pixels_of_the_template_whatever_a_crop_shows() -> None:
    crops = crops_of([1.0, 2.0, 1.0], [112.0, 112.0, 10.0])
    (seen,) = degraded(crops, how=Degradation(16))
    assert torch.equal(seen[0], degrade(crops.pixels[:1], Degradation(16))[0])
    assert torch.equal(seen[1], degrade(crops.pixels[1:2], Degradation(32))[0])
    assert torch.equal(seen[2], crops.pixels[2])  # the photo has no more pixels than that
    assert shown_px(crops, 16).tolist() == [16, 16, 10]
    assert shown_px(crops, None).tolist() == [112, 112, 10]


def test_noise_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = crops_of([1.0] * 7, [112.0] * 7)
    how = Degradation(20, noise_sigma=3.0)
    whole = torch.cat(list(degraded(crops, how=how, seed=5)))
    monkeypatch.setattr("keyhole.faces.embedding._CHUNK", 3)
    assert torch.equal(torch.cat(list(degraded(crops, how=how, seed=5))), whole)
    assert not torch.equal(torch.cat(list(degraded(crops, how=how, seed=6))), whole)


def test_embeddings_are_those_of_the_model_on_its_own_form() -> None:
    model = load_face_model("pattern_faces:reader", threads=1)
    crops = crops_of([1.0, 1.0], [112.0, 112.0])
    found = embed_crops(model, crops, how=Degradation(12))
    expected = model.embed(in_form(model, degrade(crops.pixels, Degradation(12)), canonical=True)).numpy()
    assert np.array_equal(found, expected)
    assert embed_crops(model, crops.subset([])).shape == (0, model.embedding_size)
