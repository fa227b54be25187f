"""People of a test are kept out of training, by name and by face."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import pattern_faces
from keyhole.errors import DataError, SettingError
from keyhole.faces.images.distributions import parse_distribution
from keyhole.students.apart import Apart, leave_out, people_apart
from keyhole.students.teachers import FaceTeacher, load_teacher
from keyhole.students.views import FaceViews, Who, read_faces

CAMERA = parse_distribution("fixed:8,12")
NUMBER = {name: number for number, name in enumerate(("ann", "ben", "cid", "dot", "eve", "fay"))}
PAIRS = """2 1
ann 1 2
ann 1 ben 1
cid 1 2
cid 1 dot 2
"""


@pytest.fixture(scope="module")
def teacher() -> FaceTeacher:
    return load_teacher("pattern_faces:reader")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people of two photos, of whom two folds of pairs show four."""
    root = tmp_path_factory.mktemp("lfw")
    for name, number in NUMBER.items():
        for photo in (1, 2):
            pattern_faces.write(root / name / f"{name}_{photo:04d}.png", number, photo)
    (root / "pairs.txt").write_text(PAIRS)
    return root


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    """One of somebody who is apart in fold 2, under another name; one of nobody; and one of somebody of fold 1."""
    for name, person in (("x1", NUMBER["cid"]), ("x2", 70), ("x3", NUMBER["ben"])):
        pattern_faces.write(tmp_path / "portraits" / f"{name}.png", person, 9)
    return tmp_path / "portraits"


def read(roots: list[Path], teacher: FaceTeacher, leave: Iterable[str] = ()) -> FaceViews:
    how = teacher.preparation
    return read_faces(roots, shown=how, seen=how, camera=CAMERA, who=Who(leave=frozenset(leave)))


def test_the_one_person_of_a_test_is_apart_by_name(tmp_path: Path) -> None:
    for photo in (1, 2):
        pattern_faces.write(tmp_path / "test" / "ann" / f"{photo}.png", NUMBER["ann"], photo)
    assert people_apart(Apart(tmp_path / "test", None)).apart == {"1", "2", "ann"}  # or it is a folder of one each
    assert people_apart(Apart(tmp_path / "test" / "ann", None)).apart == {"1", "2"}


def test_people_of_folds_are_apart_by_name(album: Path, teacher: FaceTeacher) -> None:
    people = people_apart(Apart(album, (2,)))
    assert people.apart == {"cid", "dot"}
    assert people.known == set(NUMBER)
    assert read([album], teacher, people.apart).classes == ("ann", "ben", "eve", "fay")
    assert people_apart(Apart(album)).apart == set(NUMBER)
    with pytest.raises(SettingError, match=r"folds \[3\] asked for, expected some of 1 to 2"):
        people_apart(Apart(album, (3,)))
    with pytest.raises(SettingError, match=r"folds \[\] asked for"):
        people_apart(Apart(album, ()))
    with pytest.raises(SettingError, match=r"score of people apart is 1\.5"):
        Apart(album, score=1.5)


def test_folds_need_their_list(portraits: Path) -> None:
    with pytest.raises(DataError, match=r"No pairs\.txt"):
        people_apart(Apart(portraits, (1,)))


def test_people_are_found_by_their_faces(album: Path, portraits: Path, teacher: FaceTeacher) -> None:
    apart = Apart(album, (2,), score=0.5)
    people = people_apart(apart)
    faces = read([album, portraits], teacher, people.apart)
    assert faces.classes == ("ann", "ben", "eve", "fay", "x1", "x2", "x3")
    left, found = leave_out(faces, apart, people, teacher)
    assert found.people == ("x1",)
    assert left.classes == ("ann", "ben", "eve", "fay", "x2", "x3")
    assert left.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]
    assert left.indices.tolist() == list(range(10))
    assert torch.equal(left.crops, faces.crops[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10]])
    assert found.highest is not None
    assert found.highest < 0.5
    assert found.near == 0
    for above, near in ((0.09, 1), (0.11, 0)):  # the other one who stays is not alike enough
        just_above = Apart(album, (2,), score=found.highest + above)
        assert leave_out(faces, just_above, people, teacher)[1].near == near


def test_a_score_says_from_where_on(album: Path, portraits: Path, teacher: FaceTeacher) -> None:
    people = people_apart(Apart(album, (2,)))
    faces = read([album, portraits], teacher, people.apart)
    same, found = leave_out(faces, Apart(album, (2,), score=1.0), people, teacher)
    assert same is faces
    assert found.people == ()
    assert found.highest is not None
    assert found.highest > 0.9
    none, found = leave_out(faces, Apart(album, (2,), score=-1.0), people, teacher)
    assert found.people == ("x1", "x2", "x3")
    assert found.highest is None
    assert none.classes == ("ann", "ben", "eve", "fay")
    with pytest.raises(DataError, match="At a score of -1 all 3 people are taken for some of"):
        leave_out(read([portraits], teacher), Apart(album, (2,), score=-1.0), people, teacher)


def test_names_that_the_album_has_need_no_look(album: Path, teacher: FaceTeacher) -> None:
    people = people_apart(Apart(album, (2,)))
    faces = read([album], teacher, people.apart)
    same, found = leave_out(faces, Apart(album, (2,), score=-1.0), people, teacher)
    assert same is faces
    assert (found.people, found.highest) == ((), None)
