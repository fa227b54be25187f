from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from faces.trees import Embedder, blind, half_right, lfw_tree, pair_scores, perfect, picture, put, zipped
from keyhole.errors import DataError, SettingError
from keyhole.faces.metrics.verification import equal_error_rate, fold_accuracy, tar_at_far
from keyhole.faces.protocols import lfw
from keyhole.faces.protocols.samples import PairSet, read_pairs, write_manifest


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive in the official form: 10 folds of 300 + 300 pairs of 300 people with 5 pictures each."""
    folder = tmp_path_factory.mktemp("lfw")
    return zipped(lfw_tree(folder / "lfw"), folder / "lfw.zip", "lfw/")


@pytest.fixture(scope="module")
def whole(official: Path) -> PairSet:
    return lfw.read(official)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return lfw_tree(tmp_path / "lfw", folds=3, each=30)


def test_the_published_protocol(whole: PairSet) -> None:
    assert whole.notes == ()
    assert whole.summary() == "lfw: 6,000 pairs (3,000 of one person) in 10 folds; 1,500 pictures of 300 people"
    assert np.bincount(whole.folds)[1:].tolist() == [600] * 10
    assert whole.same.reshape(10, 2, 300).all(axis=2).tolist() == [[True, False]] * 10
    assert [whole.samples[i].path for i in whole.pairs[0]] == ["lfw/P_000/P_000_0001.jpg", "lfw/P_000/P_000_0002.jpg"]
    assert whole.subjects()[300].tolist() == ["P_000", "P_001"]
    assert not any(sample.aligned for sample in whole.samples)


@pytest.mark.parametrize(("embedder", "accuracy", "error", "tar"), [(perfect, 1.0, 0.0, 1.0), (blind, 0.5, 0.5, 0.0)])
def test_embedders_get_what_they_must(
    whole: PairSet, embedder: Embedder, accuracy: float, error: float, tar: float
) -> None:
    scores = pair_scores(whole, embedder)
    found = fold_accuracy(scores, whole.same, whole.folds)
    assert (found.mean, found.standard_error, found.accuracies) == (accuracy, 0.0, (accuracy,) * 10)
    assert equal_error_rate(scores, whole.same) == error
    assert tar_at_far(scores, whole.same, 0.001) == tar


def test_a_half_right_embedder(whole: PairSet) -> None:
    """Pictures of odd people are like nobody and so like each other: 15 of 30 people a fold are told right."""
    scores = pair_scores(whole, half_right)
    odd = np.array([sample.identity[-1] in "13579" for sample in whole.samples])[whole.pairs].all(axis=1)
    assert np.array_equal(scores == 1, whole.same | odd)
    found = fold_accuracy(scores, whole.same, whole.folds)
    expected = [float(((scores == 1) == whole.same)[whole.folds == fold].mean()) for fold in range(1, 11)]
    assert list(found.accuracies) == expected
    assert 0.5 < found.mean < 1


def test_folds_are_chosen_and_told(small: Path) -> None:
    for path in small.glob("P_00[012]/*"):  # of the first fold alone
        path.unlink()
    found = lfw.read(small, folds=(3, 2, 3))
    assert found.folds.tolist() == [2] * 60 + [3] * 60
    assert {sample.identity for sample in found.samples} == {f"P_{i:03d}" for i in range(3, 9)}
    assert found.notes == (
        "3 folds of 30 + 30 pairs; the published protocol has 10 of 300 + 300.",
        "Folds 2, 3 of 3: 120 pairs.",
    )
    with pytest.raises(
        DataError, match=r"15 of 45 pictures in pairs.txt missing: P_000_0001, P_000_0002, P_000_0003 and 12"
    ):
        lfw.read(small)


def test_folds_may_choose_the_threshold_alone(small: Path) -> None:
    found = lfw.read(small, folds=(3,), threshold_folds=(1, 2))
    assert found.folds.tolist() == [1] * 60 + [2] * 60 + [3] * 60
    assert found.threshold_folds == (1, 2)
    assert "Threshold from folds 1, 2 alone; judged are folds 3." in found.notes
    assert lfw.read(small, threshold_folds=(2,)).folds.tolist() == [1] * 60 + [2] * 60 + [3] * 60
    with pytest.raises(SettingError, match="fold 2 is judged and chooses the threshold"):
        lfw.read(small, folds=(2, 3), threshold_folds=(1, 2))
    with pytest.raises(SettingError, match="expected some of 1 to 3"):
        lfw.read(small, folds=(3,), threshold_folds=(4,))


@pytest.mark.parametrize("folds", [(0,), (4,), ()])
def test_folds_that_there_are_not(small: Path, folds: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"expected some of 1 to 3"):
        lfw.read(small, folds=folds)


def test_crops_count_as_aligned_where_all_are_112_px(tmp_path: Path) -> None:
    root = lfw_tree(tmp_path, folds=1, each=20, size=(112, 112))
    assert all(sample.aligned for sample in lfw.read(root).samples)
    put(root, "P_001/P_001_0003.jpg", picture(1, (112, 113)))
    assert not any(sample.aligned for sample in lfw.read(root).samples)


def test_where_pairs_are_looked_for(small: Path, tmp_path: Path) -> None:
    text = (small / "pairs.txt").read_text()
    (small / "pairs.txt").unlink()
    archive = zipped(small, tmp_path / "crops.zip", "lfw112/")
    with pytest.raises(
        DataError, match=r"No pairs.txt in or beside .*crops.zip; the official form of pairs.txt is a line"
    ):
        lfw.read(archive)
    put(tmp_path, "pairs.txt", text)
    assert len(lfw.read(archive).same) == 180
    moved = tmp_path / "elsewhere" / "list.txt"
    moved.parent.mkdir()
    shutil.move(tmp_path / "pairs.txt", moved)
    assert len(lfw.read(archive, pairs=moved).same) == 180
    with pytest.raises(DataError, match=r"Cannot read .*none.txt"):
        lfw.read(archive, pairs=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\t30\n", "", "does not begin with the numbers of folds and of pairs; the official form"),
        ("3\t30\n", "3 0\n", "does not begin with the numbers"),
        ("3\t30\n", f"3 {'9' * 5000}\n", "does not begin with the numbers"),
        ("P_000\t1\t2\n", f"P_000\t1\t{'9' * 5000}\n", "line 2: 'P_000 1 9999"),
        ("3\t30\n", "3\t31\n", "180 pairs, expected 3 x 31 x 2 by its first line"),
        ("P_000\t1\t2\n", "P_000\t1\n", "line 2: 'P_000 1'; the official form"),
        ("P_000\t1\t2\n", "P_000\tone\t2\n", "line 2: 'P_000 one 2'"),
        ("P_000\t1\t2\n", "P_000\t1\tP_001\t2\n", "line 2: expected 30 pairs of one person, then 30 of two"),
        (
            "P_000\t1\t2\n",
            "P_000\t1\t9\n",
            r"1 of 46 pictures in pairs.txt missing: P_000_0009; expected NAME/NAME_0001",
        ),
    ],
)
def test_bad_pairs(small: Path, old: str, new: str, message: str) -> None:
    text = (small / "pairs.txt").read_text()
    assert old in text
    (small / "pairs.txt").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as error:
        lfw.read(small)
    assert "\n" not in str(error.value)


def test_pairs_that_are_no_text_or_stand_twice(small: Path) -> None:
    text = (small / "pairs.txt").read_text()
    (small / "pairs.txt").write_text(text.replace("P_000\t1\t3", "P_000\t2\t1").replace("P_001\t2\t3", "P_001\t2\t2"))
    assert lfw.read(small).notes[1:] == (
        "1 pair of pairs.txt listed more than once.",
        "1 pair of a picture with itself in pairs.txt.",
    )
    (small / "pairs.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"is not UTF-8 text; the official form"):
        lfw.read(small)


def test_strays_are_told_and_copies_refused(small: Path) -> None:
    put(small, "contact_sheet.png", picture(1))
    put(small, "P_000/P_001_0001.jpg", picture(1))
    assert lfw.read(small).notes[0] == (
        "2 stray pictures left out: P_000/P_001_0001.jpg, contact_sheet.png; expected names like NAME/NAME_0001.jpg."
    )
    put(small, "funneled/P_004/P_004_0002.png", picture(4))
    with pytest.raises(
        DataError, match=r"holds P_004/P_004_0002.jpg and funneled/P_004/P_004_0002.png. Name the folder"
    ):
        lfw.read(small)


def test_pairs_become_a_manifest(small: Path) -> None:
    found = lfw.read(small)
    write_manifest(small / "manifest.csv", found)
    again = read_pairs(small / "manifest.csv")
    for which in (0, 1):
        before, after = ([p.samples[i] for i in p.pairs[:, which]] for p in (found, again))
        assert before == after
    assert np.array_equal(found.same, again.same)
    assert np.array_equal(found.folds, again.folds)


def test_names_are_compared_in_composed_form(small: Path) -> None:
    name = "P_Jos\u00e9"
    decomposed = unicodedata.normalize("NFD", name)
    text = (small / "pairs.txt").read_text()
    (small / "pairs.txt").write_text(text.replace("P_000", decomposed), encoding="utf-8")
    (small / "P_000").rename(small / decomposed)
    for path in (small / decomposed).iterdir():
        path.rename(path.with_name(path.name.replace("P_000", name)))
    assert name in {sample.identity for sample in lfw.read(small).samples}


def test_the_real_archive(shared: Path) -> None:
    found = lfw.read(shared / "data" / "faces" / "lfw" / "lfw112.zip", folds=(10,))
    assert found.notes == ("Folds 10 of 10: 600 pairs.",)
    assert len(found.same) == 600
    assert all(sample.aligned for sample in found.samples)
