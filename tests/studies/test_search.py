from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from keyhole.arms import ArmMaker
from keyhole.data.sources import Data, default_input, open_data
from keyhole.distillation.config import TrainConfig
from keyhole.errors import DivergenceError, RunError, SettingError
from keyhole.models.layers import layers
from keyhole.models.network import Network
from keyhole.models.zoo import build, save
from keyhole.plans import ArmPlan
from keyhole.studies.board import Board
from keyhole.studies.budget import Cost, Rung, SearchConfig
from keyhole.studies.plan import Study
from keyhole.studies.search import Found, _Ground, count_combinations, draw_combinations, search_hints
from keyhole.studies.work import run_study

PLAN = ArmPlan(student="resnet8", terms="ce,kd,at", count=2)
TRAIN = TrainConfig(epochs=4, batch_size=20, lr=0.2, precision="fp32", device="cpu", compile="off")
HALVING = SearchConfig("halving", keep=2, students_per_pass=4, holdout=40)


@pytest.fixture(scope="module")
def digits() -> Data:
    whole = open_data("digits")
    return replace(whole, train=whole.train.subset(range(120)), test=whole.labeled_test().subset(range(40)))


@pytest.fixture(scope="module")
def teacher() -> Network:
    torch.manual_seed(0)
    return build("resnet14", classes=10, input=default_input("digits"))


def searched(teacher: Network, data: Data, folder: Path, **more: Any) -> Found:
    given: dict[str, Any] = {"train": TRAIN, "search": HALVING, **more}
    return search_hints(teacher, data, given.pop("plan", PLAN), folder=folder, **given)


def stopped_after(steps: int) -> Any:
    left = [steps]

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        for item in items:
            if label.startswith("epoch"):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            yield item

    return progress


@pytest.fixture(scope="module")
def whole(teacher: Network, digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return searched(teacher, digits, tmp_path_factory.mktemp("search"))


def test_halving_trains_what_it_says(whole: Found) -> None:
    assert whole.combinations == 15
    assert whole.rungs == (Rung(15, 1), Rung(7, 2), Rung(3, 4))
    assert sorted(len(each.held_out) for each in whole.tried) == [1] * 8 + [2] * 4 + [4] * 3
    assert whole.cost == Cost(student_epochs=15 + 7 + 3 * 2, passes=4 + 2 + 1 * 2)
    assert whole.seconds > 0
    assert whole.hints == whole.tried[0].layers
    last = [each.held_out[-1] for each in whole.tried[:3]]
    assert last == sorted(last, reverse=True)
    for epochs, rest in ((1, 8), (2, 4)):  # who was left behind was not better at that look
        gone = [each.held_out[epochs - 1] for each in whole.tried if len(each.held_out) == epochs]
        stayed = [each.held_out[epochs - 1] for each in whole.tried if len(each.held_out) > epochs]
        assert len(gone) == rest
        assert max(gone) <= min(stayed)


def test_who_goes_on_learns_as_if_nobody_had_left(whole: Found, teacher: Network, digits: Data, tmp_path: Path) -> None:
    """Three cohorts become one on the way; a study trains the same students each in one piece."""
    best = whole.tried[:3]
    arms = tuple(replace(PLAN, name=f"arm {i}", hints=each.layers) for i, each in enumerate(best))
    study = Study("resnet14", None, "digits", None, TRAIN, (TRAIN.seed,), HALVING.holdout, 1, arms)
    board = Board(tmp_path)
    run_study(study, teacher, digits, board)
    for cell, each in zip(study.cells, best, strict=True):
        value = board.result(cell.id)
        assert value is not None
        assert tuple(record["held_out_top1"] for record in value["history"]) == each.held_out


@pytest.mark.parametrize("steps", [3, 21, 27])
def test_a_stopped_search_goes_on_to_the_same_end(
    whole: Found, teacher: Network, digits: Data, tmp_path: Path, steps: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(teacher, digits, tmp_path, progress=stopped_after(steps))
    found = searched(teacher, digits, tmp_path)
    assert found.tried == whole.tried
    assert found.cost == whole.cost
    assert not list((tmp_path / "cohorts").iterdir())
    told: list[str] = []
    again = searched(teacher, digits, tmp_path, note=told.append)  # finished: nothing is trained again
    assert again.tried == whole.tried
    assert not [line for line in told if "students to epoch" in line]


def test_a_search_tells_what_it_matches_with_what(teacher: Network, digits: Data, tmp_path: Path) -> None:
    told: list[str] = []
    searched(
        teacher,
        digits,
        tmp_path,
        plan=replace(PLAN, terms="ce,hint", student_size=4),
        train=replace(TRAIN, epochs=1),
        search=replace(HALVING, method="random", cells=1),
        note=told.append,
    )
    assert "averaged to" in told[0]
    assert "(hint: 1x1 convolution" in told[0]


def test_all_and_random(teacher: Network, digits: Data, tmp_path: Path) -> None:
    one = replace(TRAIN, epochs=1)
    everything = searched(teacher, digits, tmp_path / "a", train=one, search=replace(HALVING, method="all"))
    assert {each.layers for each in everything.tried} == set(combinations([layer.name for layer in layers(teacher)], 2))
    some = searched(
        teacher, digits, tmp_path / "r", train=one, search=replace(HALVING, method="random", cells=3, seed=5)
    )
    assert len(some.tried) == 3
    by_layers = {each.layers: each.held_out for each in everything.tried}
    assert all(by_layers[each.layers] == each.held_out for each in some.tried)  # whoever else is there
    assert some.to_json()["cost"]["cells"] == 3


def test_what_is_found_is_taken_as_hints(whole: Found, teacher: Network, digits: Data, tmp_path: Path) -> None:
    value = whole.to_json()
    (tmp_path / "search.json").write_text(json.dumps(value, allow_nan=False))
    arm = ArmMaker(teacher, digits.train, TRAIN).make(replace(PLAN, hints=str(tmp_path / "search.json")))
    assert tuple(pair.teacher for pair in arm.hints) == whole.hints
    assert value["held_out_top1"] == round(100 * whole.tried[0].held_out[-1], 3)


def test_another_search_is_refused(teacher: Network, digits: Data, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"train": replace(TRAIN, epochs=1), "search": SearchConfig("random", cells=1, holdout=40)}
    searched(teacher, digits, tmp_path, **quick)
    with pytest.raises(RunError, match=r"holds another search: train\.lr is 0\.2 there and 0\.1 now"):
        searched(teacher, digits, tmp_path, **(quick | {"train": replace(TRAIN, epochs=1, lr=0.1)}))
    later = replace(quick["search"], least_epochs=2)
    with pytest.raises(RunError, match=r"holds another search: search\.least_epochs is"):
        searched(teacher, digits, tmp_path, **(quick | {"search": later}))
    assert "least_epochs" not in Board(tmp_path, of="search").settle(
        "search", lambda: ""
    )  # as it was before there was such a setting
    dark = replace(teacher, input=replace(teacher.input, mean=(0.9,)))
    with pytest.raises(RunError, match=r"input\.mean is \[.*\] there and \[0\.9\] now"):
        searched(dark, digits, tmp_path, **quick)
    torch.manual_seed(1)
    other = build("resnet14", classes=10, input=teacher.input)
    with pytest.raises(RunError, match="teacher_sha256 is"):
        searched(other, digits, tmp_path, **quick)
    with pytest.raises(RunError, match='data is "digits" there and "cifar10" now'):
        searched(teacher, replace(digits, name="cifar10"), tmp_path, **quick)
    with pytest.raises(RunError, match="images is 120 there and 119 now"):
        searched(teacher, replace(digits, train=digits.train.subset(range(119))), tmp_path, **quick)
    with Board(tmp_path, of="search").hold(["search"], 1), pytest.raises(RunError, match="Another process is at work"):
        searched(teacher, digits, tmp_path, **quick)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"plan": replace(PLAN, count="auto")}, "A search combines a number of layers from 1 to 6; got auto"),
        ({"plan": replace(PLAN, count=7)}, "from 1 to 6; got 7"),
        ({"plan": replace(PLAN, terms="ce,kd")}, "Terms ce,kd have no use for hints"),
        ({"search": replace(HALVING, method="all", cells=14)}, "60 student epochs and 16 teacher passes"),
        ({"search": replace(HALVING, holdout=120)}, "Cannot hold out 120 of 120"),
    ],
)
def test_what_cannot_be_searched(
    teacher: Network, digits: Data, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError) as caught:
        searched(teacher, digits, tmp_path, **more)
    assert words in str(caught.value)
    board = Board(tmp_path)
    board.agree("search", {"of": "another"})  # a mistake claims no folder
    assert board.settle("precision", lambda: "free") == "free"  # nor does what it gave stand for the next


def test_a_student_that_is_a_file_is_told_from_another_of_its_name(
    teacher: Network, digits: Data, tmp_path: Path
) -> None:
    plan = replace(PLAN, student=str(tmp_path / "begun.safetensors"))
    quick: dict[str, Any] = {"train": replace(TRAIN, epochs=1), "search": SearchConfig("random", cells=1, holdout=40)}
    for seed in range(2):
        torch.manual_seed(seed)
        save(build("resnet8", classes=10, input=teacher.input), plan.student)
        if seed == 0:
            searched(teacher, digits, tmp_path / "out", plan=plan, **quick)
    with pytest.raises(RunError, match="holds another search: student_sha256 is"):
        searched(teacher, digits, tmp_path / "out", plan=plan, **quick)


def test_a_search_whose_last_students_diverge_keeps_what_the_others_reached(
    teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = _Ground.run, []

    def last_rung_diverges(self: Any, group: str, *given: Any) -> Any:
        record = run(self, group, *given)
        if group.startswith("rung-3"):
            record = {**record, "diverged": dict.fromkeys(record["held_out"], "made up")}
        return record

    monkeypatch.setattr(_Ground, "run", last_rung_diverges)
    found = searched(teacher, digits, tmp_path, note=told.append)
    assert len(found.rungs) == 3
    assert [each.diverged for each in found.tried[:2]] == [None, None]
    assert [each.diverged for each in found.tried].count("made up") == found.rungs[-1].students
    assert told[-1].startswith("All students that were left diverged before the end of epoch 4; the search ends here")


def test_students_that_diverge_are_left_behind(
    teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ArmMaker.make

    def wild(self: ArmMaker, plan: ArmPlan) -> Any:
        broken = plan.name.startswith("layer1.0")
        return make(self, replace(plan, terms="ce=1e38,at") if broken else plan)

    monkeypatch.setattr(ArmMaker, "make", wild)
    short = replace(TRAIN, epochs=2)
    found = searched(teacher, digits, tmp_path / "some", train=short)
    broken = [each for each in found.tried if each.diverged]
    assert sorted(each.layers[0] for each in broken) == ["layer1.0"] * 5
    assert [each.diverged is None for each in found.tried] == [True] * 10 + [False] * 5
    assert "in epoch 1" in str(broken[0].diverged)
    assert json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(DivergenceError, match="All 15 students diverged"):
        searched(teacher, digits, tmp_path / "all", train=short, plan=replace(PLAN, terms="ce=1e38,at"))


@pytest.mark.parametrize(("total", "count"), [(6, 2), (9, 3), (5, 1), (5, 5), (12, 6)])
def test_combinations_are_drawn_from_all_of_them(total: int, count: int) -> None:
    names = [f"l{i}" for i in range(total)]
    everything = list(combinations(names, count))
    assert count_combinations(total, count) == len(everything)
    assert draw_combinations(names, count, len(everything)) == everything
    some = draw_combinations(names, count, min(3, len(everything)), seed=1)
    assert len(set(some)) == len(some)
    assert set(some) <= set(everything)
    assert some == sorted(some, key=everything.index)
    assert some == draw_combinations(names, count, min(3, len(everything)), seed=1)


def test_each_combination_is_drawn_as_often() -> None:
    counts: dict[tuple[str, ...], int] = {}
    for seed in range(3000):
        (one,) = draw_combinations(["a", "b", "c", "d"], 2, 1, seed=seed)
        counts[one] = counts.get(one, 0) + 1
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts.values())


def test_a_draw_from_more_than_can_be_listed() -> None:
    names = [f"l{i}" for i in range(200)]
    some = draw_combinations(names, 20, 5, seed=0)
    assert len(set(some)) == 5
    assert all(len(set(one)) == 20 and list(one) == sorted(one, key=names.index) for one in some)
