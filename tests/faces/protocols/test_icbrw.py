from __future__ import annotations

from pathlib import Path

import pytest

from faces.trees import (
    Embedder,
    blind,
    half_right,
    icbrw_tree,
    names,
    perfect,
    picture,
    put,
    score_matrix,
    zipped,
)
from keyhole.errors import DataError, SettingError
from keyhole.faces.metrics.identification import cmc_area, rank_k, search
from keyhole.faces.protocols import icbrw

PROBES = "annotations_ProbeImages.txt"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return icbrw_tree(tmp_path_factory.mktemp("icbrw"), range(1, 91))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return icbrw_tree(tmp_path / "icbrw", (1, 3))


def rewrite(root: Path, old: str, new: str) -> None:
    path = root / PROBES
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_published_protocol(whole: Path) -> None:
    found = icbrw.read(whole)
    assert len(found.gallery) == 90
    assert len(found.probes) == 450
    assert found.views == "best"
    assert found.notes == (
        "annotations_GalleryImages.txt: 90 lines held against the pictures, 90 fit as corner and size, 0 as two "
        "corners; read as corner and size X Y W H, as documented.",
        "annotations_ProbeImages.txt: 450 lines held against the pictures, 450 fit as corner and size, 0 as two "
        "corners; read as corner and size X Y W H, as documented.",
        "Watch list: frontal views only.",
    )
    assert found.probes[6].path == "icbrw_ProbeImages/002_02.jpg"
    assert found.probes[6].box == (25, 40, 20, 30)
    assert found.probes[6].attributes == {"take": "2"}


@pytest.mark.parametrize("views", ["frontal", "best", "mean"])
@pytest.mark.parametrize(
    ("embedder", "first", "area"),
    [(perfect, 1.0, 1.0), (blind, 0.0, 1 / 90), (half_right, 0.5, 0.5 + 0.5 / 90)],
)
def test_embedders_get_what_they_must(
    whole: Path, views: icbrw.Views, embedder: Embedder, first: float, area: float
) -> None:
    found = icbrw.read(whole, views=views)
    assert len(found.gallery) == (90 if views == "frontal" else 270)
    assert found.views == ("mean" if views == "mean" else "best")
    assert found.notes[-1].startswith("Watch list: frontal")
    result = search(
        score_matrix(found, embedder), gallery=names(found.gallery), probes=names(found.probes), views=found.views
    )
    assert result.people == 90
    assert rank_k(result) == first
    assert cmc_area(result) == pytest.approx(area, abs=1e-12)


def test_lines_of_two_corners_are_found_out(tmp_path: Path) -> None:
    found = icbrw.read(icbrw_tree(tmp_path, (1, 3), corners=True))
    assert {sample.box for sample in found.probes} == {(25, 40, 20, 30)}
    assert found.notes[1] == (
        "annotations_ProbeImages.txt: 10 lines held against the pictures, 0 fit as corner and size, 10 as two corners; "
        "read as two corners X Y X Y."
    )


def test_files_are_decided_each_for_itself(small: Path) -> None:
    rewrite(small, "25 40 20 30", "25 40 45 70")
    found = icbrw.read(small)
    assert {sample.box for sample in (*found.gallery, *found.probes)} == {(25, 40, 20, 30)}
    assert found.notes[0].endswith("as documented.")
    assert found.notes[1].endswith("two corners X Y X Y.")


def test_one_strange_line_does_not_turn_a_file(tmp_path: Path) -> None:
    root = icbrw_tree(tmp_path, (1, 2), size=(200, 200))
    rewrite(root, "25 40 20 30", "25 40 60 90")  # fits both ways
    rewrite(root, "002_03.jpg 25 40 60 90", "002_03.jpg 150 150 160 170")  # fits as two corners alone
    found = icbrw.read(root)
    assert found.probes[0].box == (25, 40, 60, 90)
    assert "9 fit as corner and size, 10 as two corners; read as corner and size" in found.notes[1]
    assert found.notes[2].endswith("cut at the border of their picture: 002_03.jpg.")
    rewrite(root, "002_04.jpg 25 40 60 90", "002_04.jpg 150 150 160 170")  # two of them do
    assert "8 fit as corner and size, 10 as two corners; read as two corners" in icbrw.read(root).notes[1]


def test_lines_that_fit_both_ways_are_read_as_documented(tmp_path: Path) -> None:
    root = icbrw_tree(tmp_path, (1,), size=(200, 200))
    rewrite(root, "25 40 20 30", "25 40 60 90")
    found = icbrw.read(root)
    assert found.probes[0].box == (25, 40, 60, 90)
    assert "5 fit as corner and size, 5 as two corners; read as corner and size" in found.notes[1]


def test_a_line_that_does_not_fit_is_cut_and_told(small: Path) -> None:
    rewrite(small, "003_02.jpg 25 40 20 30", "003_02.jpg -5 40 20 60")
    found = icbrw.read(small)
    box = next(probe.box for probe in found.probes if probe.path.endswith("003_02.jpg"))
    assert box == (0, 40, 15, 40)
    assert found.notes[2] == f"{PROBES}: boxes cut at the border of their picture: 003_02.jpg."


def test_the_most_lines_decide_and_one_pixel_over_the_border_fits(small: Path) -> None:
    rewrite(small, "001_01.jpg 25 40 20 30", "001_01.jpg 10 10 60 80")  # corners of a box up to the border
    rewrite(small, "001_02.jpg 25 40 20 30", "001_02.jpg 25 40 36 41")
    found = icbrw.read(small)
    assert found.probes[0].box == (10, 10, 50, 70)
    assert found.probes[1].box == (25, 40, 35, 40)
    assert "9 fit as corner and size, 2 as two corners; read as corner and size" in found.notes[1]
    assert found.notes[2].endswith("001_01.jpg.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("003_02.jpg 70 40 20 30", "box 70 40 20 30 outside of its picture of 60 x 80; the official form"),
        ("003_02.jpg 25 40 0 0", "box 25 40 0 0 outside of its picture"),
        ("003_02.jpg 25 40 20", "line 7: '003_02.jpg 25 40 20'; the official form"),
        ("003_02.jpg 25 40 20 nan", "line 7: '003_02.jpg 25 40 20 nan'"),
        ("003_02.jpg -inf 40 20 30", "line 7: '003_02.jpg -inf 40 20 30'"),
        ("003_02.jpg 25 40 20 x", "line 7: '003_02.jpg 25 40 20 x'"),
        ("003_01.jpg 1 1 5 5", "line 7: a second, different box for 003_01.jpg"),
        ("", "1 picture without an annotation line .*annotations_ProbeImages.txt.*003_02.jpg; the official"),
    ],
)
def test_bad_lines(small: Path, line: str, message: str) -> None:
    rewrite(small, "003_02.jpg 25 40 20 30", line)
    with pytest.raises(DataError, match=message) as error:
        icbrw.read(small)
    assert "\n" not in str(error.value)


def test_a_line_that_is_repeated_is_told_and_one_for_nothing_does_no_harm(small: Path) -> None:
    rewrite(small, "001_01.jpg 25 40 20 30", "001_01.jpg 25 40 20 30\n\n001_01.JPG 25 40 20 30\n099_01.jpg 1 1 1 1")
    found = icbrw.read(small)
    assert found.notes[1] == f"{PROBES}: repeated lines for 001_01.JPG."
    assert "10 lines held" in found.notes[2]


def test_missing_annotations(small: Path) -> None:
    put(small, "annotations_more.txt", "001_01.jpg 25 40 20 30\n")
    with pytest.raises(DataError, match=r"annotations_more.txt annotates .*001_01.jpg, as another file does"):
        icbrw.read(small)
    (small / "annotations_more.txt").unlink()
    (small / PROBES).unlink()
    with pytest.raises(DataError, match=r"10 pictures without an annotation line .*and 7 more; the official form"):
        icbrw.read(small)
    put(small, PROBES, b"\xff\xff")
    with pytest.raises(DataError, match=r"is not UTF-8 text"):
        icbrw.read(small)


def test_missing_pictures(small: Path) -> None:
    (small / "icbrw_GalleryImages/003_l.jpg").unlink()
    assert len(icbrw.read(small).gallery) == 2
    with pytest.raises(DataError, match=r"1 picture missing: 003_l.jpg; the official form is a watch list 003_f.jpg"):
        icbrw.read(small, views="best")
    (small / "icbrw_ProbeImages/001_05.jpg").unlink()
    with pytest.raises(DataError, match=r"1 picture missing: 001_05.jpg"):
        icbrw.read(small)
    put(small, "icbrw_ProbeImages/007_01.jpg", picture(7))
    with pytest.raises(DataError, match=r"6 pictures missing: 007_f.jpg, 001_05.jpg, 007_02.jpg and 3 more"):
        icbrw.read(small)
    with pytest.raises(DataError, match=r"holds no watch list of ICB-RW"):
        icbrw.read(small / "icbrw_ProbeImages")


def test_deviations_are_told(small: Path) -> None:
    put(small, "icbrw_ProbeImages/001_06.jpg", picture(1))
    notes = icbrw.read(small).notes
    assert notes[0] == (
        "1 stray picture left out: icbrw_ProbeImages/001_06.jpg; expected names like 003_f.jpg or 003_01.jpg."
    )
    assert notes[-2] == "2 subjects and 10 probes; the published protocol has 90 and 450."


def test_a_picture_that_stands_twice(small: Path) -> None:
    put(small, "old/001_01.jpg", picture(1))
    with pytest.raises(DataError, match=r"holds 001_01.jpg twice: icbrw_ProbeImages/001_01.jpg and old/001_01.jpg"):
        icbrw.read(small)


def test_a_broken_picture_and_a_wrong_setting(small: Path) -> None:
    with pytest.raises(SettingError, match=r"views is 'left', expected one of frontal, best, mean"):
        icbrw.read(small, views="left")  # type: ignore[arg-type]
    put(small, "icbrw_ProbeImages/001_01.jpg", b"no picture")
    with pytest.raises(DataError, match=r"icbrw_ProbeImages/001_01.jpg of .* is no image that can be read"):
        icbrw.read(small)


def test_an_archive_reads_like_its_folder(small: Path, tmp_path: Path) -> None:
    there = icbrw.read(zipped(small, tmp_path / "a.zip", "ICBRW/"))
    found = icbrw.read(small)
    assert [sample.box for sample in there.probes] == [sample.box for sample in found.probes]
    assert names(there.probes) == names(found.probes)
