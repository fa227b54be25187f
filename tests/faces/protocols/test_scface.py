from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faces.trees import (
    Embedder,
    always_wrong,
    blind,
    half_right,
    names,
    perfect,
    picture,
    put,
    scface_tree,
    score_matrix,
    zipped,
)
from keyhole.errors import DataError, SettingError
from keyhole.faces.metrics.identification import cmc, cmc_area, rank_k, search
from keyhole.faces.protocols import scface


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scface_tree(tmp_path_factory.mktemp("scface"), range(1, 131), cameras=range(1, 6))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return scface_tree(tmp_path / "scface", (1, 2, 5))


def test_the_published_protocol(whole: Path) -> None:
    found = scface.read(whole, distances=(1,))
    assert found.notes == ()
    assert [sample.path for sample in found.gallery[:2]] == [
        "mugshot_frontal_original_all/001_frontal.jpg",
        "mugshot_frontal_original_all/002_frontal.jpg",
    ]
    assert len(found.gallery) == 130
    assert len(found.probes) == 650
    probe = found.probes[7]
    assert (probe.identity, probe.camera) == ("002", "cam3")
    assert probe.path == "surveillance_cameras_distance_1/cam_3/002_cam3_1.jpg"
    assert probe.attributes == {"distance": "1", "meters": "4.20", "light": "visible"}
    assert found.summary() == (
        "scface: 130 people enrolled with 130 pictures; 650 probes of 130 people, 650 mated, 0 not; "
        "cameras cam1, cam2, cam3, cam4, cam5"
    )
    every = scface.read(whole)
    assert len(every.probes) == 1950
    assert {probe.attributes["meters"] for probe in every.probes} == {"4.20", "2.60", "1.00"}


@pytest.mark.parametrize(
    ("embedder", "first", "area"),
    [(perfect, 1.0, 1.0), (blind, 0.0, 1 / 130), (always_wrong, 0.0, None), (half_right, 0.5, 0.5 + 0.5 / 130)],
)
def test_embedders_get_what_they_must(whole: Path, embedder: Embedder, first: float, area: float | None) -> None:
    found = scface.read(whole, distances=(3,))
    result = search(score_matrix(found, embedder), gallery=names(found.gallery), probes=names(found.probes))
    assert rank_k(result) == first
    if area is None:  # the person after the last is nobody, so all tie for that one; the others are all behind it
        area = 1 / 130
    assert cmc_area(result) == pytest.approx(area, abs=1e-12)
    assert cmc(result)[-1] == 1.0


def test_infrared_cameras_are_a_variant_and_are_told(small: Path) -> None:
    found = scface.read(small, cameras=(6, 7), distances=(2,))
    assert len(found.probes) == 6
    assert {probe.camera for probe in found.probes} == {"cam6", "cam7"}
    assert {probe.attributes["light"] for probe in found.probes} == {"infrared"}
    assert found.notes == (
        "3 subjects and 6 probes a distance; the published protocol has 130 and 650.",
        "Infrared probes (cameras 6 and 7) are compared with mugshots by day.",
    )


@pytest.mark.parametrize("text", ["1\n005\n", "# test\n001_frontal\n\nall/005_cam1_1.jpg\n", "\ufeff005\r\n001\r\n"])
def test_a_subject_list(small: Path, tmp_path: Path, text: str) -> None:
    found = scface.read(small, subjects=put(tmp_path, "list.txt", text))
    assert names(found.gallery) == ["001", "005"]
    assert len(found.probes) == 2 * 15
    assert found.notes == ("2 subjects and 10 probes a distance; the published protocol has 130 and 650.",)


def test_a_subject_that_is_listed_twice_counts_once(small: Path) -> None:
    found = scface.read(small, subjects=["1", "001", "2"])
    assert names(found.gallery) == ["001", "002"]
    assert found.notes[0] == "The subject list has 3 lines for 2 subjects; each counts once."


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["7"], "has no mugshot of 007, named in the list of subjects; the official form is mugshot_"),
        (["Bob"], "the list of subjects has the line 'Bob', expected a subject such as 001"),
        (["", "# 1"], "the list of subjects names no subject, expected one a line"),
    ],
)
def test_bad_subject_lists(small: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scface.read(small, subjects=lines)


def test_a_subject_list_that_is_missing_or_binary(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read the subject list .*Expected a subject a line"):
        scface.read(small, subjects=tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"Cannot read the subject list"):
        scface.read(small, subjects=put(tmp_path, "b.txt", b"\xff\xfe\x00"))


def test_a_missing_camera_names_the_official_form(small: Path) -> None:
    for path in small.glob("surveillance_cameras_distance_*/cam_4/*"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"no picture of camera 4; the official form is .*cam_1/001_cam1_1.jpg"
    ) as error:
        scface.read(small)
    assert "\n" not in str(error.value)
    assert len(scface.read(small, cameras=(1, 2, 3, 5)).probes) == 36


def test_missing_pictures_are_counted_and_named(small: Path) -> None:
    (small / "surveillance_cameras_distance_2/cam_1/005_cam1_2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 45 probe pictures missing: 005_cam1_2.jpg; the official form"):
        scface.read(small)
    assert len(scface.read(small, distances=(1, 3)).probes) == 30
    assert len(scface.read(small, subjects=["1", "2"]).probes) == 30


def test_people_without_a_mugshot_are_told(small: Path) -> None:
    for path in small.glob("mugshot*/002_frontal.jpg"):
        path.unlink()
    found = scface.read(small)
    assert names(found.gallery) == ["001", "005"]
    assert found.notes[0] == "Subjects with probes but without a mugshot are left out: 002."
    with pytest.raises(DataError, match=r"holds no mugshot like 001_frontal.jpg"):
        scface.read(small / "surveillance_cameras_distance_1")


def test_strays_are_told_and_official_extras_are_not(small: Path) -> None:
    for name in ("mugshot_rotation_all/001_L1.jpg", "surveillance_cameras_IR_cam8/001_cam8.jpg", "readme.txt"):
        put(small, name, picture(1))
    put(small, "mugshot_rotation_all/001_frontal.jpg", picture(7))
    assert scface.read(small).notes == ("3 subjects and 15 probes a distance; the published protocol has 130 and 650.",)
    put(small, "holiday.jpg", picture(1))
    put(small, "cam_1/001_cam1_4.jpg", picture(1))
    found = scface.read(small)
    assert found.notes[0] == (
        "2 stray pictures left out: cam_1/001_cam1_4.jpg, holiday.jpg; "
        "expected names like 001_frontal.jpg or 001_cam1_1.jpg."
    )
    assert found.gallery[0].path == "mugshot_frontal_original_all/001_frontal.jpg"


def test_copies_are_told_and_the_official_folder_wins(small: Path) -> None:
    put(small, "surveillance_cameras_all/001_cam1_1.jpg", picture(1))
    put(small, "a/002_cam1_1.jpg", picture(2, (32, 32)))
    found = scface.read(small)
    assert found.notes[:2] == (
        "2 probes in more than one folder; that of the official folder is taken.",
        "Copies that are not alike: surveillance_cameras_distance_1/cam_1/002_cam1_1.jpg.",
    )
    assert all("distance_1/cam_1/" in p.path for p in found.probes if p.camera == "cam1" and "_1." in p.path)


def test_which_mugshots(small: Path) -> None:
    cropped = scface.read(small, mugshots="cropped")
    assert {sample.path.split("/")[0] for sample in cropped.gallery} == {"mugshot_frontal_cropped_all"}
    for path in small.glob("mugshot_frontal_original_all/*"):
        path.unlink()
    found = scface.read(small)
    assert found.notes[0].startswith(
        "3 mugshots not from mugshot_frontal_original_all: mugshot_frontal_cropped_all/001"
    )
    with pytest.raises(SettingError, match=r"mugshots is 'best'"):
        scface.read(small, mugshots="best")  # type: ignore[arg-type]


def test_cameras_and_distances_that_there_are_not(small: Path) -> None:
    with pytest.raises(SettingError, match=r"camera 8 asked for, expected some of 1, 2, 3, 4, 5, 6, 7"):
        scface.read(small, cameras=(1, 8))
    with pytest.raises(SettingError, match=r"distance 0 asked for, expected some of 1, 2, 3"):
        scface.read(small, distances=(0,))
    with pytest.raises(SettingError, match=r"no camera asked for"):
        scface.read(small, cameras=())


def test_an_archive_reads_like_its_folder(small: Path, tmp_path: Path) -> None:
    archive = zipped(small, tmp_path / "scface.zip", "SCface_database/")
    found, there = scface.read(small), scface.read(archive)
    assert [p.path.removeprefix("SCface_database/") for p in there.probes] == [p.path for p in found.probes]
    assert there.notes == found.notes
    assert np.array_equal(score_matrix(there, perfect), score_matrix(found, perfect))
