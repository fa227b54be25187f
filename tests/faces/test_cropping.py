"""Crops for training out of photos: the face of each, aligned, once."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyhole.errors import DataError
from keyhole.faces.cropping import crop_folder
from keyhole.faces.images import photos as files
from keyhole.faces.images.alignment import align, face_px_of
from keyhole.faces.images.detection import Detector
from keyhole.faces.images.distributions import FixedSizes
from keyhole.faces.models.preparation import Preparation, arcface_template
from keyhole.students.views import read_faces
from test_cli import keyhole


@pytest.fixture(scope="module")
def yunet(shared: Path) -> Path:
    return shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx"


@pytest.fixture
def photos(shared: Path, tmp_path: Path) -> Path:
    """Two people with two photos each, one of them without a face, and a file that is no photo."""
    root = tmp_path / "photos"
    with zipfile.ZipFile(shared / "data" / "faces" / "london" / "london_faces.zip") as archive:
        names = sorted(name for name in archive.namelist() if "portrait512/" in name and name.endswith(".jpg"))
        for place, name in zip(("ann/1.jpg", "ann/2.jpg", "bob/1.jpg"), names[::40], strict=False):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(archive.read(name))
    Image.fromarray(np.full((90, 90, 3), 120, np.uint8)).save(root / "bob" / "2.png")
    (root / "bob" / "3.jpg").write_bytes(b"no photo")
    return root


def test_each_photo_becomes_a_crop_that_training_reads(photos: Path, yunet: Path, tmp_path: Path) -> None:
    detector, out = Detector(yunet), tmp_path / "crops"
    found = crop_folder(photos, detector, out)
    assert (found.written, found.there, found.people) == (3, 0, 2)
    assert found.without_face == ("bob/2.png",)
    assert list(found.unreadable) == ["bob/3.jpg"]
    for name in ("ann/1", "ann/2", "bob/1"):
        photo = files.read_photo(photos / f"{name}.jpg")
        (face,) = detector.detect(photo)
        crop = (out / f"{name}.png").read_bytes()
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(crop))), align(photo, face.landmarks))
        assert files.noted_face_px(crop) == pytest.approx(face_px_of(face.landmarks), abs=0.01)
        assert stat.S_IMODE((out / f"{name}.png").stat().st_mode) == 0o600
    how = Preparation(112, template=arcface_template(112))
    views = read_faces(out, shown=how, seen=how, camera=FixedSizes((12,)))
    assert (len(views), views.classes) == (3, ("ann", "bob"))


def test_it_goes_on_after_a_stop(photos: Path, yunet: Path, tmp_path: Path) -> None:
    detector, out = Detector(yunet), tmp_path / "crops"
    crop_folder(photos, detector, out)
    kept = (out / "ann" / "1.png").stat().st_mtime_ns
    (out / "ann" / "2.png").unlink()
    again = crop_folder(photos, detector, out)
    assert (again.written, again.there, again.people) == (1, 2, 2)
    assert (out / "ann" / "1.png").stat().st_mtime_ns == kept


def test_what_is_wrong_is_told(photos: Path, yunet: Path, tmp_path: Path) -> None:
    (photos / "ann" / "1.png").write_bytes((photos / "ann" / "1.jpg").read_bytes())
    with pytest.raises(DataError, match=r"ann/1\.jpg and ann/1\.png of .* would become one crop"):
        crop_folder(photos, Detector(yunet), tmp_path / "crops")
    (tmp_path / "broken" / "x").mkdir(parents=True)
    (tmp_path / "broken" / "x" / "1.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match="So it is with all photos"):
        crop_folder(tmp_path / "broken", Detector(yunet), tmp_path / "crops")


def test_the_command(photos: Path, yunet: Path, tmp_path: Path) -> None:
    found = keyhole("faces", "crop", photos, "--detector", yunet, "--out", tmp_path / "crops", "--json")
    assert found.json["written"] == 3
    assert found.json["without_face"] == ["bob/2.png"]
    assert "No face was found in 1 photo: bob/2.png." in found.err
    assert "bob/3.jpg" in found.err
    told = keyhole("faces", "crop", photos, "--detector", yunet, "--out", tmp_path / "crops").out
    assert "0 crops written, 3 were there; 2 people" in told


def test_small_faces_of_a_wide_frame_are_found_where_they_are_looked_for(
    photos: Path, yunet: Path, tmp_path: Path
) -> None:
    """A face of 30 pixels in a frame of 1920 has 10 where 640 are looked at."""
    frame = Image.new("RGB", (1920, 1080), (90, 100, 110))
    frame.paste(Image.open(photos / "ann" / "1.jpg").resize((56, 56)), (900, 500))
    (tmp_path / "wide").mkdir()
    frame.save(tmp_path / "wide" / "ann.png")
    command = ("faces", "crop", tmp_path / "wide", "--detector", yunet, "--out", tmp_path / "out", "--json")
    assert keyhole(*command).json["without_face"] == ["ann.png"]
    assert keyhole(*command, "--detect-px", 1920).json["written"] == 1
    found = keyhole(*command, "--detect-px", 9)
    assert found.code == 1
    assert "side_px is 9" in found.err
