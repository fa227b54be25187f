"""Which student layer learns from which hint."""

from __future__ import annotations

import numpy as np
import pytest

import oracles
from keyhole.distillation.matching import match_hints
from keyhole.errors import SettingError, ShapeError, UnknownNameError
from keyhole.models.layers import Layer, layers
from keyhole.models.zoo import build


def row(*sizes: int, prefix: str = "t") -> list[Layer]:
    return [Layer(f"{prefix}{i}", "Block", 8, (size, size), 10) for i, size in enumerate(sizes)]


def places(hints: list[int], teacher: list[Layer], student: list[Layer], how: str = "order") -> list[int]:
    pairs = match_hints([teacher[i].name for i in hints], teacher, student, how=how)
    assert [pair.teacher for pair in pairs] == [teacher[i].name for i in hints]
    names = [layer.name for layer in student]
    return [names.index(pair.student) for pair in pairs]


def test_as_many_hints_as_stages_go_to_the_stage_ends_whatever_their_sizes() -> None:
    teacher = layers(build("resnet56", classes=10))
    student = layers(build("resnet20", classes=10))
    for hints in (["layer1.0", "layer1.1", "layer1.2"], ["layer3.6", "layer3.7", "layer3.8"]):
        pairs = match_hints(hints, teacher, student)
        assert [pair.student for pair in pairs] == ["layer1.2", "layer2.2", "layer3.2"]


def test_hints_given_deepest_first_stay_so() -> None:
    teacher, student = row(*[8] * 9), row(32, 32, 16, 16, 8, 8, prefix="s")
    assert places([8, 4, 0], teacher, student) == [1, 3, 5]
    assert places([8, 3], teacher, student) == sorted(places([3, 8], teacher, student))
    assert places([8, 6, 4, 2], teacher, student) == places([2, 4, 6, 8], teacher, student)


@pytest.mark.parametrize("seed", range(60))
def test_by_depth_is_the_best_of_all_assignments_that_never_cross(seed: int) -> None:
    random = np.random.default_rng(seed)
    teacher, student = row(*[8] * int(random.integers(2, 12))), row(*[8] * int(random.integers(1, 7)), prefix="s")
    count = int(random.integers(2, min(6, len(teacher)) + 1))  # one hint would be as many as there are stages
    hints = sorted(int(i) for i in random.choice(len(teacher), count, replace=False))
    found = places(hints, teacher, student)
    assert found == sorted(found)
    if count <= len(student):
        assert len(set(found)) == count
    depths = [(i + 1) / len(teacher) for i in hints]
    cost = sum(abs((place + 1) / len(student) - depth) for place, depth in zip(found, depths, strict=True))
    assert cost == pytest.approx(oracles.best_depth_cost(depths, len(student)))


def test_more_hints_than_student_layers_share() -> None:
    assert places([0, 3, 4, 5, 9], row(*[8] * 10), row(8, 8, prefix="s")) == [0, 0, 0, 0, 1]


def test_a_layer_named_twice_teaches_two_layers() -> None:
    assert places([4, 4], row(*[8] * 9), row(8, 8, 8, 8, prefix="s")) == [1, 2]


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ([0, 4, 8], [0, 2, 5]),  # among layers of one size the nearest in relative depth: 1/9 is nearest to 1/6
        ([2], [1]),
        ([8, 0], [5, 0]),
        ([3, 3], [2, 2]),
    ],
)
def test_by_size(hints: list[int], expected: list[int]) -> None:
    teacher, student = row(32, 32, 32, 16, 16, 16, 8, 8, 8), row(32, 32, 16, 16, 8, 8, prefix="s")
    assert places(hints, teacher, student, how="size") == expected


def test_the_nearest_size_counts_in_doublings_of_both_sides() -> None:
    teacher = [Layer("t", "Block", 8, (14, 14), 1), Layer("u", "Block", 8, (7, 28), 1)]
    student = [
        Layer("wide", "Block", 8, (28, 28), 1),
        Layer("near", "Block", 8, (12, 12), 1),
        Layer("flat", "Block", 8, (7, 14), 1),
    ]
    assert [pair.student for pair in match_hints(["t", "u"], teacher, student, how="size")] == ["near", "flat"]
    assert places([0], row(8), row(12, 5, prefix="s"), how="size") == [0]  # 1.5 times as large is nearer than 1.6 times


@pytest.mark.parametrize("seed", range(40))
def test_by_similarity_is_the_best_of_all_assignments_that_never_cross(seed: int) -> None:
    random = np.random.default_rng(seed)
    teacher, student = row(*[8] * int(random.integers(2, 10))), row(*[8] * int(random.integers(1, 7)), prefix="s")
    count = int(random.integers(1, min(6, len(teacher)) + 1))
    hints = [int(i) for i in random.permutation(len(teacher))[:count]]  # in any order
    alike = random.random((len(teacher), len(student)))
    pairs = match_hints([teacher[i].name for i in hints], teacher, student, how="similarity", similarities=alike)
    assert [pair.teacher for pair in pairs] == [teacher[i].name for i in hints]
    names = [layer.name for layer in student]
    placed = dict(zip(hints, (names.index(pair.student) for pair in pairs), strict=True))
    ordered = [placed[hint] for hint in sorted(hints)]
    assert ordered == sorted(ordered)
    if count <= len(student):
        assert len(set(ordered)) == count
    cost = sum(1 - alike[hint, place] for hint, place in placed.items())
    assert cost == pytest.approx(oracles.best_monotone_cost(1 - alike[sorted(hints)]))


def test_by_similarity_each_hint_finds_its_own_layer() -> None:
    teacher, student = row(*[8] * 6), row(*[8] * 6, prefix="s")
    alike = np.eye(6) + 0.1
    pairs = match_hints(["t5", "t1"], teacher, student, how="similarity", similarities=alike)
    assert [(pair.teacher, pair.student) for pair in pairs] == [("t5", "s5"), ("t1", "s1")]


def test_by_name_each_hint_teaches_its_own_layer() -> None:
    teacher, student = row(32, 16, 8, 8), row(16, 16, 8)
    assert [pair.student for pair in match_hints(["t2", "t0"], teacher, student, how="name")] == ["t2", "t0"]
    with pytest.raises(SettingError, match="The student has no layer t3; expected"):
        match_hints(["t1", "t3"], teacher, student, how="name")


def test_what_cannot_be_matched() -> None:
    teacher, student = row(8, 8, 8), row(8, 8, prefix="s")
    with pytest.raises(UnknownNameError, match="Unknown hint layer 't9'; nearest known: t"):
        match_hints(["t9"], teacher, student)
    with pytest.raises(UnknownNameError, match="Unknown match 'depth'"):
        match_hints(["t0"], teacher, student, how="depth")
    with pytest.raises(SettingError, match="0 hints and 2 student layers"):
        match_hints([], teacher, student)
    with pytest.raises(SettingError, match="1 hints and 0 student layers"):
        match_hints(["t0"], teacher, [])
    with pytest.raises(SettingError, match="Matching by similarity needs that of the layers"):
        match_hints(["t0"], teacher, student, how="similarity")
    with pytest.raises(ShapeError, match=r"shape \(2, 3\); expected \(3, 2\)"):
        match_hints(["t0"], teacher, student, how="similarity", similarities=np.zeros((2, 3)))
