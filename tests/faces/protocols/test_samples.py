from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from faces.trees import picture, put
from keyhole.errors import DataError, SettingError
from keyhole.faces.protocols.samples import (
    IdentificationSet,
    PairSet,
    Sample,
    counted,
    read_manifest,
    read_pairs,
    repeated,
    shortened,
    stray_note,
    write_manifest,
)

POINTS = ((1.0, 2.5), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0), (9.0, 10.25))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a, b.jpg", "x/1.png", "x/2.png", "p.jpg"):
        put(tmp_path / "root", name, picture(1))
    return tmp_path / "root"


@pytest.fixture
def protocol(root: Path) -> IdentificationSet:
    gallery = (
        Sample("a, b.jpg", 'Ann "A"', box=(1, 2.5, 30, 40)),
        Sample("x/1.png", "Bob", aligned=True, attributes={"age": "31"}),
    )
    probes = (
        Sample("x/2.png", "Bob", "cam1", landmarks=POINTS, attributes={"distance": "1", "age": "32"}),
        Sample("p.jpg", "Zo\u00eb", box=(0.1, 1 / 3, 2, 3)),
    )
    return IdentificationSet("mine", root, gallery, probes, ("a note",), "mean")


def test_a_manifest_comes_back_as_it_was(protocol: IdentificationSet, root: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", protocol)
    again = read_manifest(tmp_path / "m.csv", root=root, views="mean")
    assert again.gallery == protocol.gallery
    assert again.probes == protocol.probes
    assert (again.root, again.views, again.notes) == (root, "mean", ())
    write_manifest(root / "m.csv", again)
    assert (root / "m.csv").read_text() == (tmp_path / "m.csv").read_text()
    assert read_manifest(root / "m.csv").probes == protocol.probes


def test_what_a_manifest_looks_like(protocol: IdentificationSet, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", protocol)
    assert (tmp_path / "m.csv").read_text().splitlines()[:4] == [
        "role,path,identity,camera,box,landmarks,aligned,age,distance",
        'gallery,"a, b.jpg","Ann ""A""",,1 2.5 30 40,,,,',
        "gallery,x/1.png,Bob,,,,yes,31,",
        "probe,x/2.png,Bob,cam1,,1 2.5 3 4 5 6 7 8 9 10.25,,32,1",
    ]


def test_an_attribute_must_not_be_called_like_a_column(protocol: IdentificationSet, tmp_path: Path) -> None:
    odd = IdentificationSet("o", tmp_path, protocol.gallery, (Sample("p.jpg", "Z", attributes={"box": "1"}),))
    with pytest.raises(SettingError, match="The attribute 'box' has the name of a column"):
        write_manifest(tmp_path / "m.csv", odd)
    assert not (tmp_path / "m.csv").exists()


def test_few_columns_in_any_order_with_spaces_and_a_mark(root: Path) -> None:
    name = unicodedata.normalize("NFD", "Zo\u00eb")
    text = f"\ufeffidentity, path ,role,place\n{name},p.jpg,gallery,\nBob ,x\\1.png,probe,home\n"
    found = read_manifest(put(root, "m.csv", text))
    assert found.gallery == (Sample("p.jpg", "Zo\u00eb"),)
    assert found.probes == (Sample("x/1.png", "Bob", attributes={"place": "home"}),)
    assert found.mated().tolist() == [False]


HEAD = "role,path,identity,box,landmarks,aligned\n"
GOOD = "gallery,p.jpg,Ann,,,\nprobe,x/1.png,Ann,,,\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'role'; expected a first line role,path,identity,camera,box,landmarks,aligned"),
        ("role;path;identity\n", "no column 'role'"),
        ("role,path\n", "no column 'identity'"),
        ("role,path,identity,path\n", "two columns of one name"),
        (HEAD, "has no line whose role is 'gallery'"),
        (HEAD + "gallery,p.jpg,Ann,,,\n", "has no line whose role is 'probe'"),
        (HEAD + "enrolled,p.jpg,Ann,,,\n", "line 2: the role is 'enrolled', expected gallery or probe"),
        (
            HEAD + GOOD + "probe,,Ann,,,\n",
            "line 4: no path or no identity. Give also people who are not enrolled a name",
        ),
        (HEAD + GOOD + "probe,p.jpg, ,,,\n", "line 4: no path or no identity"),
        (HEAD + GOOD + "probe,p.jpg,Ann\n", "line 4: more or fewer fields than columns"),
        (HEAD + GOOD + "probe,p.jpg,Ann,,,,,\n", "line 4: more or fewer fields than columns"),
        (HEAD + GOOD + "probe,p.jpg,Ann,1 2 3,,\n", "line 4: '1 2 3', expected 4 numbers with spaces between"),
        (HEAD + GOOD + "probe,p.jpg,Ann,1 2 3 x,,\n", "line 4: '1 2 3 x', expected 4 numbers"),
        (HEAD + GOOD + "probe,p.jpg,Ann,1 2 3 nan,,\n", "line 4: '1 2 3 nan', expected 4 numbers"),
        (HEAD + GOOD + "probe,p.jpg,Ann,1 2 0 4,,\n", "line 4: a box of 0 x 4 pixels"),
        (HEAD + GOOD + "probe,p.jpg,Ann,,1 2,\n", "line 4: '1 2', expected 10 numbers"),
        (HEAD + GOOD + "probe,p.jpg,Ann,,,maybe\n", "line 4: aligned is 'maybe', expected yes, no or nothing"),
        (HEAD + GOOD + "probe,q.jpg,Ann,,,\nprobe,r.jpg,Ann,,,\n", "2 pictures of 4 not found in .*, first 'q.jpg'"),
        (HEAD + GOOD + "probe,../secret.jpg,Ann,,,\n", r"1 picture of 3 not found in .*, first '../secret.jpg'"),
        (HEAD + GOOD + 'probe,"p.jpg,Ann,,,\n', "is not CSV: unexpected end of data"),
    ],
)
def test_bad_manifests(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_manifest(put(root, "m.csv", text))
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_missing_or_no_text(root: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*none.csv: No such file"):
        read_manifest(root / "none.csv")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_manifest(put(root, "m.csv", b"role,path\n\xff"))


def test_people_mates_and_summary(protocol: IdentificationSet) -> None:
    assert protocol.people() == ('Ann "A"', "Bob")
    assert protocol.mated().tolist() == [True, False]
    assert protocol.summary() == (
        "mine: 2 people enrolled with 2 pictures; 2 probes of 2 people, 1 mated, 1 not; cameras cam1"
    )


def test_pairs(tmp_path: Path) -> None:
    samples = (Sample("a", "Ann"), Sample("b", "Bob"), Sample("c", "Ann"))
    pairs = PairSet("p", tmp_path, samples, np.array([[0, 2], [0, 1]]), np.array([True, False]), np.array([1, 1]))
    assert pairs.subjects().tolist() == [["Ann", "Ann"], ["Ann", "Bob"]]
    assert pairs.summary() == "p: 2 pairs (1 of one person) in 1 fold; 3 pictures of 2 people"


PAIRS = "role,path,identity,pair,fold\nreference,p.jpg,Ann,1,1\nprobe,x/1.png,Ann,1,1\n"


def test_a_manifest_of_pairs(root: Path) -> None:
    more = "probe,p.jpg,Ann,2,2\nreference,x/2.png,Bob,2,2\n"
    found = read_pairs(put(root, "m.csv", PAIRS + more))
    assert [sample.path for sample in found.samples] == ["p.jpg", "x/1.png", "x/2.png"]
    assert found.pairs.tolist() == [[0, 1], [2, 0]]
    assert found.same.tolist() == [True, False]
    assert found.folds.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIRS.replace("reference", "gallery"), "line 2: the role is 'gallery', expected reference or probe"),
        (PAIRS + "probe,x/2.png,Ann,1,1\n", "pair '1' has two lines of the role probe"),
        (PAIRS + "probe,x/2.png,Ann,2,1\n", "pair '2'; expected a reference and a probe, both of one numbered fold"),
        (PAIRS.replace("1,1\nprobe", "1,2\nprobe"), "pair '1'; expected a reference and a probe, both of one numbered"),
        (PAIRS.replace(",1,1", ",1,x"), "pair '1'; expected a reference and a probe, both of one numbered fold"),
        (PAIRS.replace("p.jpg", "q.jpg"), "1 picture of 2 not found in .*, first 'q.jpg'"),
        ("role,path,identity\n", "has no pair; expected two lines each"),
        ("role,path,identity\nreference,p.jpg,Ann\nprobe,x/1.png,Ann\n", "pair ''; expected a reference and a probe"),
    ],
)
def test_bad_manifests_of_pairs(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(put(root, "m.csv", text))


def test_words() -> None:
    assert counted(0, "probe") == "0 probes"
    assert shortened([]) == ""
    assert shortened("abc") == "a, b, c"
    assert repeated(["b", "a", "b", "a", "c"]) == ["a", "b"]
    assert stray_note([], expected="x") == ()
    assert stray_note(["a"], expected="x") == ("1 stray picture left out: a; expected names like x.",)
