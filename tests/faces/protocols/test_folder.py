from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from faces.trees import half_right, names, perfect, picture, put, score_matrix, zipped
from keyhole.errors import DataError, SettingError
from keyhole.faces.metrics.identification import fnir, fpir, rank_k, search
from keyhole.faces.protocols import folder
from keyhole.faces.protocols.samples import write_manifest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Ann (a folder) and Bob (a file) are enrolled; Ann, Bob and a stranger are searched for."""
    root = tmp_path / "tree"
    put(root, "gallery/Ann/1.jpg", picture(2))
    put(root, "gallery/Ann/deeper/2.png", picture(2, (20, 20), "PNG"))
    put(root, "gallery/Bob.jpg", picture(3))
    for person, number in (("Ann", 2), ("Bob", 3), ("Zoe", 4)):
        for i in range(2):
            put(root, f"probes/{person}/{i}.jpg", picture(number, (30 + i, 40)))
    return root


def test_a_tree(tree: Path) -> None:
    found = folder.read(tree)
    assert [(s.identity, s.path) for s in found.gallery] == [
        ("Ann", "gallery/Ann/1.jpg"),
        ("Ann", "gallery/Ann/deeper/2.png"),
        ("Bob", "gallery/Bob.jpg"),
    ]
    assert names(found.probes) == ["Ann", "Ann", "Bob", "Bob", "Zoe", "Zoe"]
    assert found.mated().tolist() == [True, True, True, True, False, False]
    assert found.notes == ("1 person not enrolled, 2 searches: Zoe.",)
    assert found.summary() == (
        "folder: 2 people enrolled with 3 pictures; 6 probes of 3 people, 4 mated, 2 not; cameras not told"
    )


def test_embedders_get_what_they_must(tree: Path) -> None:
    found = folder.read(tree)
    perfectly, halfway = (
        search(score_matrix(found, embedder), gallery=names(found.gallery), probes=names(found.probes))
        for embedder in (perfect, half_right)
    )
    assert (rank_k(perfectly), fnir(perfectly, 0.5), fpir(perfectly, 0.5)) == (1.0, 0.0, 0.0)
    assert (rank_k(halfway), fnir(halfway, 0.5), fpir(halfway, 0.5), fpir(halfway, 0.0)) == (0.5, 0.5, 0.0, 1.0)


@pytest.mark.parametrize("above", ["", "my faces/"])
def test_an_archive_reads_like_its_folder(tree: Path, tmp_path: Path, above: str) -> None:
    found, there = folder.read(tree), folder.read(zipped(tree, tmp_path / "a.zip", above))
    assert names(there.gallery) == names(found.gallery)
    assert names(there.probes) == names(found.probes)
    assert there.notes == found.notes
    assert np.array_equal(score_matrix(there, perfect), score_matrix(found, perfect))


def test_strays_are_told(tree: Path) -> None:
    put(tree, "gallery/notes.txt", "x")
    put(tree, "other/3.jpg", picture(1))
    put(tree, "probes/Ann/.hidden.jpg", picture(1))
    assert folder.read(tree).notes[0] == "2 stray files left out: gallery/notes.txt, other/3.jpg."


def test_pictures_that_are_gallery_and_probe_at_once_are_told(tree: Path) -> None:
    put(tree, "probes/Ann/copy.jpg", picture(2))
    put(tree, "probes/Cid.jpg", picture(3))
    notes = folder.read(tree).notes
    assert notes[0] == (
        "2 pictures in gallery and probes at once: gallery/Ann/1.jpg, gallery/Bob.jpg; a picture always finds itself."
    )


def test_one_picture_for_two_people_is_told(tree: Path) -> None:
    put(tree, "gallery/Cid.jpg", picture(3))
    put(tree, "gallery/Ann/again.jpg", picture(2))
    notes = folder.read(tree).notes
    assert "One picture for several people in the gallery: gallery/Bob.jpg (Bob, Cid)." in notes
    assert "One picture several times for one person in the gallery: gallery/Ann/1.jpg." in notes


def test_people_that_are_written_in_two_ways_are_told(tree: Path) -> None:
    put(tree, "gallery/Bob.png", picture(3, (20, 20), "PNG"))
    put(tree, "gallery/Ann.jpg", picture(2, (50, 50)))
    put(tree, "probes/ann/1.jpg", picture(2, (60, 60)))
    notes = folder.read(tree).notes
    assert "Enrolled by more than one file or folder, counted as one person: Ann, Bob." in notes
    assert "Names that differ only in case, blanks or form count as different people: 'Ann' / 'ann'." in notes


def test_names_are_compared_in_composed_form(tree: Path) -> None:
    put(tree, "gallery/Jos\u00e9.jpg", picture(5))
    put(tree, unicodedata.normalize("NFD", "probes/Jos\u00e9/1.jpg"), picture(5, (33, 33)))
    found = folder.read(tree)
    assert "Jos\u00e9" in found.people()
    assert found.mated()[names(found.probes).index("Jos\u00e9")]


def test_no_mated_probe_and_one_person_are_told(tmp_path: Path) -> None:
    put(tmp_path, "gallery/Ann/1.jpg", picture(1))
    put(tmp_path, "probes/Bob/1.jpg", picture(2))
    assert folder.read(tmp_path).notes == (
        "The gallery holds one person, who is first in every search: only thresholds mean anything.",
        "No probe belongs to a person who is enrolled (probes of Bob, enrolled Ann): "
        "only false positives can be measured.",
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "probes/Ann/1.jpg",
            r"holds no folder gallery with pictures; expected gallery/PERSON/\*.jpg and probes/PERSON",
        ),
        ("gallery/Ann/1.jpg", "holds no picture in probes; expected gallery/PERSON"),
        ("gallery/x.txt", "holds no folder gallery with pictures"),
    ],
)
def test_a_part_that_is_missing(tmp_path: Path, path: str, message: str) -> None:
    put(tmp_path, path, picture(1))
    with pytest.raises(DataError, match=message):
        folder.read(tmp_path)


def test_a_manifest_within_is_read_where_there_is_no_gallery(tree: Path, tmp_path: Path) -> None:
    found = folder.read(tree)
    (tree / "gallery").rename(tree / "enrolled")
    write_manifest(tree / "manifest.csv", found)
    text = (tree / "manifest.csv").read_text().replace("gallery/", "enrolled/")
    (tree / "manifest.csv").write_text(text)
    for root in (tree, zipped(tree, tmp_path / "a.zip")):
        again = folder.read(root)
        assert again.name == "folder"
        assert again.notes == found.notes
        assert names(again.gallery) == names(found.gallery)
        assert [s.path for s in again.probes] == [s.path for s in found.probes]


def test_a_manifest_elsewhere(tree: Path, tmp_path: Path) -> None:
    rows = [("role", "path", "identity"), ("gallery", "gallery/Bob.jpg", "Bob"), ("probe", "gallery/Bob.jpg", "Bob")]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    found = folder.read(tree, manifest=put(tmp_path, "own.csv", text.getvalue()), views="mean")
    assert found.views == "mean"
    assert found.notes[0].startswith("1 picture in gallery and probes at once: gallery/Bob.jpg")


def test_a_wrong_setting(tree: Path) -> None:
    with pytest.raises(SettingError, match="views is 'all', expected 'best' or 'mean'"):
        folder.read(tree, views="all")  # type: ignore[arg-type]
