"""A watch list of people who are patterns: enrolled, calibrated, asked."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pattern_faces
from keyhole.errors import DataError, SettingError
from keyhole.faces.enrollment import calibrate, compare, enroll_folder, identify, open_gallery, people_of
from keyhole.faces.evaluation import Setting
from keyhole.faces.gallery import Gallery, save_gallery
from keyhole.faces.models import FaceModel, load_face_model
from keyhole.faces.thresholds import Threshold, Thresholds

SHARP = Setting(probe_px=(112.0,))


@pytest.fixture(scope="module")
def reader() -> FaceModel:
    return load_face_model("pattern_faces:reader", threads=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    for person in range(6):
        for photo in range(2):
            pattern_faces.write(folder / "people" / f"p{person}" / f"{photo}.png", person, photo)
        pattern_faces.write(folder / "again" / f"p{person}" / "9.png", person, 9)
    for person in range(100, 140):
        pattern_faces.write(folder / "strangers" / f"s{person}.png", person)
    return folder


@pytest.fixture(scope="module")
def gallery(reader: FaceModel, root: Path) -> Gallery:
    found, missed = enroll_folder(reader, root / "people", SHARP)
    assert missed == ()
    return found


def test_people_are_folders_or_files(root: Path, tmp_path: Path) -> None:
    where, samples = people_of(root / "people")
    assert where == root / "people"
    assert [(sample.path, sample.identity) for sample in samples[:3]] == [
        ("p0/0.png", "p0"), ("p0/1.png", "p0"), ("p1/0.png", "p1"),
    ]  # fmt: skip
    assert all(sample.aligned for sample in samples)
    assert people_of(root / "strangers")[1][0].identity == "s100"
    one = people_of(root / "strangers" / "s101.png")
    assert (one[0], [sample.path for sample in one[1]]) == (root / "strangers", ["s101.png"])
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as file:
        file.write(root / "people" / "p1" / "0.png", "p1/0.png")
    assert [sample.identity for sample in people_of(tmp_path / "people.zip")[1]] == ["p1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no photo"):
        people_of(tmp_path / "empty")


def test_a_gallery_holds_every_photo(gallery: Gallery, reader: FaceModel) -> None:
    assert len(gallery) == 12
    assert gallery.fingerprint == reader.fingerprint
    assert sorted(set(gallery.people)) == [f"p{k}" for k in range(6)]
    np.testing.assert_allclose(np.linalg.norm(gallery.sharp, axis=1), 1, rtol=1e-5)


def test_thresholds_keep_strangers_out_and_let_the_enrolled_in(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    told: list[str] = []
    # the blocks of a pattern are 8 pixels wide, so that a photo of 112 pixels shows no more than some 24
    setting = replace(SHARP, probe_px=(24.0, 6.0))
    found = calibrate(reader, gallery, root / "strangers", setting, mated=root / "again", fpir=0.1, note=told.append)
    assert [level.face_px for level in found.levels] == [6.0, 24.0]
    assert found.enrolled == 6
    assert found.levels[1].strangers == 40
    assert found.levels[1].fnir == 0.0
    assert found.levels[1].fpir_bound >= 0.1
    answers = identify(reader, gallery, root / "again", found, SHARP)
    assert [each.hits[0].person for each in answers.values()] == [f"p{k}" for k in range(6)]
    strangers = identify(reader, gallery, root / "strangers", found, SHARP)
    alarms = [name for name, each in strangers.items() if each.verdict == "candidate"]
    assert len(alarms) <= 4  # a tenth of 40
    quiet = [each for each in strangers.values() if each.verdict == "unknown"]
    assert quiet
    assert all(each.hits == () and "p" not in each.text().split("(")[0].replace("unknown", "") for each in quiet)


def test_too_few_strangers_are_told(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    told: list[str] = []
    calibrate(reader, gallery, root / "strangers", SHARP, fpir=0.01, note=told.append)
    (only,) = (text for text in told if text.startswith("Warning"))
    assert "40 searches of strangers show only that false alarms stay below 7.2 %, and 1 % was asked for" in only


def test_strangers_who_are_enrolled_are_refused(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    with pytest.raises(SettingError, match="6 of the strangers have the name of someone who is enrolled"):
        calibrate(reader, gallery, root / "again", SHARP)


def test_a_probe_of_few_pixels_gets_no_answer(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    levels = Thresholds(reader.fingerprint, "none", 0.1, 6, 200.0, (Threshold(112.0, 0.5, 40, 0.1),))
    answers = identify(reader, gallery, root / "again" / "p1" / "9.png", levels, SHARP)
    (only,) = answers.values()
    assert only.verdict == "too little to tell"
    assert only.hits == ()
    assert only.threshold is None
    assert only.best is None


def test_a_larger_gallery_than_calibrated_is_told(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    told: list[str] = []
    levels = Thresholds(reader.fingerprint, "none", 0.1, 3, 8.0, (Threshold(112.0, 0.5, 40, 0.1),))
    identify(reader, gallery, root / "again", levels, SHARP, note=told.append)
    assert told == [
        "Warning: the thresholds were calibrated for 3 people, and 6 are enrolled: expect more false alarms. "
        "Calibrate again.",
        "6 of 6 photos of the probes measure 112 x 112 and are taken as aligned crops.",
    ]


def test_galleries_are_files_or_folders_of_this_model(
    reader: FaceModel, gallery: Gallery, root: Path, tmp_path: Path
) -> None:
    save_gallery(tmp_path / "g.safetensors", gallery)
    assert len(open_gallery(reader, tmp_path / "g.safetensors", SHARP)) == 12
    assert len(open_gallery(reader, root / "people", SHARP)) == 12
    other = load_face_model("pattern_faces:blind", threads=1)
    with pytest.raises(SettingError, match="made by another model"):
        open_gallery(other, tmp_path / "g.safetensors", SHARP)


def test_two_photos_are_compared(reader: FaceModel, root: Path) -> None:
    same = compare(reader, root / "people" / "p0" / "0.png", root / "again" / "p0" / "9.png", SHARP)
    other = compare(reader, root / "people" / "p0" / "0.png", root / "again" / "p1" / "9.png", SHARP)
    assert same["score"] > 0.95 > 0.5 > other["score"]


def test_ways_of_a_watch_list_are_two(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    with pytest.raises(SettingError, match="a watch list compares by none or fitted-estimated"):
        calibrate(reader, gallery, root / "strangers", SHARP, mode="resolution")
    with pytest.raises(SettingError, match="needs a matcher"):
        calibrate(reader, gallery, root / "strangers", SHARP, mode="fitted-estimated")
    with pytest.raises(SettingError, match="expected a rate above 0 and below 1"):
        calibrate(reader, gallery, root / "strangers", SHARP, fpir=1.0)


def test_a_size_that_no_stranger_shows_has_no_threshold_of_its_own(
    reader: FaceModel, gallery: Gallery, root: Path
) -> None:
    told: list[str] = []
    found = calibrate(
        reader, gallery, root / "strangers", replace(SHARP, probe_px=(24.0, 112.0)), fpir=0.1, note=told.append
    )
    assert [level.face_px for level in found.levels] == [24.0]
    assert found.levels[0].strangers == 40  # each once, though both sizes were looked at
    assert any(text.startswith("No stranger shows about 112 px") for text in told)


def test_what_was_cut_or_matched_otherwise_is_refused(reader: FaceModel, gallery: Gallery, root: Path) -> None:
    levels = Thresholds(reader.fingerprint, "none", 0.1, 6, 8.0, (Threshold(112.0, 0.5, 40, 0.1),))
    with pytest.raises(SettingError, match=r"made with a margin of None, and this is 0\.2"):
        identify(reader, gallery, root / "again", levels, replace(SHARP, margin=0.2))
    with pytest.raises(SettingError, match=r"calibrated with a margin of 0\.2, and this is None"):
        identify(reader, gallery, root / "again", replace(levels, margin=0.2), SHARP)
    with pytest.raises(SettingError, match="calibrated with another matcher"):
        identify(reader, gallery, root / "again", replace(levels, matcher="other"), SHARP)
    with pytest.raises(SettingError, match="expected 1 to 1000 px"):
        calibrate(reader, gallery, root / "strangers", SHARP, least_px=float("inf"))


def test_a_folder_is_no_photo_to_compare(reader: FaceModel, root: Path) -> None:
    with pytest.raises(DataError, match="people is no photo"):
        compare(reader, root / "people", root / "again" / "p0" / "9.png", SHARP)
