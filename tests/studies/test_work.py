from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from keyhole.arms import ArmMaker
from keyhole.data.sources import Data, default_input, open_data
from keyhole.data.splits import hold_out
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.replay import WARM_UP
from keyhole.distillation.warmup import WarmUpError
from keyhole.errors import DataError, RunError, UnknownNameError
from keyhole.files import read_tensors, write_tensors
from keyhole.models.network import Network, count_macs, fingerprint
from keyhole.models.zoo import build, load, read_about, save
from keyhole.plans import ArmPlan
from keyhole.studies.board import Board
from keyhole.studies.outlook import _seconds_a_step, _work, look_ahead
from keyhole.studies.plan import Cell, Study, expand
from keyhole.studies.recipes import settled
from keyhole.studies.verdict import judge
from keyhole.studies.work import run_study


@pytest.fixture(scope="module")
def digits() -> Data:
    whole = open_data("digits")
    return replace(whole, train=whole.train.subset(range(160)), test=whole.labeled_test().subset(range(40)))


@pytest.fixture(scope="module")
def teacher() -> Network:
    torch.manual_seed(0)
    return build("resnet8", classes=10, input=default_input("digits"))


@pytest.fixture
def study() -> Study:
    table = {"student": "resnet8", "terms": ["ce,kd", "ce,kd,at"], "hints": ["uniform", "stage-ends"], "count": 2}
    return Study(
        teacher="resnet8",
        weights=None,
        data="digits",
        root=None,
        config=TrainConfig(epochs=1, batch_size=16, precision="fp32", device="cpu", compile="off"),
        seeds=(0, 1),
        holdout=40,
        students_per_pass=2,
        arms=tuple(plan for plan in expand(table) if plan.hints == "uniform" or "at" in plan.terms),
    )


def recipe_of(cell: Cell, study: Study, teacher: Network) -> dict[str, Any]:
    return {**study.recipe(cell), "teacher_sha256": fingerprint(teacher)}


def results(board: Board, study: Study) -> dict[str, Any]:
    """Return what decides each cell's row of a table."""
    found = {cell.name: board.result(cell.id) for cell in study.cells}
    return {name: value and {key: value[key] for key in ("top1", "held_out_top1", "history", "hints")}
            for name, value in found.items()}  # fmt: skip


def test_every_cell_is_run_in_cohorts_of_one_seed(study: Study, teacher: Network, digits: Data, tmp_path: Path) -> None:
    board, told, labels = Board(tmp_path), [], []

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        labels.append(label)
        yield from items

    assert run_study(study, replace(teacher, name="master"), digits, board, progress=progress, note=told.append) == 6
    assert labels.count("evaluate master") == 1  # for all four cohorts
    cohorts = [line for line in told if "students, seed" in line]
    assert [line.split(":")[0] for line in cohorts] == [f"{n} students, seed {s}" for s in (0, 1) for n in (2, 1)]
    for cell in study.cells:
        value = board.result(cell.id)
        assert value is not None
        assert (value["name"], value["seed"], value["recipe"]) == (
            cell.name,
            cell.seed,
            recipe_of(cell, study, teacher),
        )
        assert value["diverged"] is None
        assert 0 <= value["top1"]["last"] <= 100
        assert len(value["history"]) == 1
        (weights,) = board.cohorts.glob(f"*/{cell.id}.safetensors")
        assert load(weights).classes == 10
    assert not list(board.cohorts.glob("*/checkpoint.safetensors"))
    assert list(board.leases.iterdir()) == []


def test_a_cell_is_the_same_whoever_shares_its_pass(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    torch.set_num_threads(2)  # conftest puts it back
    study = replace(study, arms=(*study.arms, replace(study.arms[0], name="alone", terms="ce")), seeds=(0,))
    together, alone = Board(tmp_path / "a"), Board(tmp_path / "b")
    run_study(replace(study, students_per_pass=8), teacher, digits, together)
    run_study(replace(study, students_per_pass=1), teacher, digits, alone)
    assert results(together, study) == results(alone, study)


def test_another_row_runs_the_new_cells_alone(study: Study, teacher: Network, digits: Data, tmp_path: Path) -> None:
    board = Board(tmp_path)
    fewer = replace(study, arms=study.arms[:2], seeds=(0,))
    assert run_study(fewer, teacher, digits, board) == 2
    before = {path.name: path.stat().st_mtime_ns for path in board.cells.iterdir()}
    assert run_study(study, teacher, digits, board) == 4
    assert run_study(study, teacher, digits, board) == 0
    assert all((board.cells / name).stat().st_mtime_ns == when for name, when in before.items())


def with_twins(study: Study) -> Study:
    """Return a study whose rules come to the same layers, and where hints stand beside terms that need none."""
    tables = (
        {"name": "{hints}", "terms": "ce,kd", "hints": ["uniform", "stage-ends", "random"], "student": "resnet8"},
        {"name": "at {hints}", "terms": "ce,at", "hints": ["layer1.0,layer3.0", "last-only"], "student": "resnet8"},
        {"name": "by hand", "terms": "ce,at", "hints": "layer1.0,layer3.0", "student": "resnet8"},
    )
    return replace(study, arms=tuple(plan for table in tables for plan in expand(table)))


def test_students_that_learn_the_very_same_are_trained_once(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study, board, told = with_twins(study), Board(tmp_path / "once"), []
    ahead = look_ahead(study, teacher, digits, board)
    assert (ahead.cells, ahead.passes) == (12, 4)  # of three students a seed, two at a time
    assert run_study(study, teacher, digits, board, note=told.append) == 12
    assert [line for line in told if "is the same student as" in line] == [
        "stage-ends is the same student as uniform: what is trained for one is kept for both.",
        "random is the same student as uniform: what is trained for one is kept for both.",
        "by hand is the same student as at layer1.0,layer3.0: what is trained for one is kept for both.",
    ]
    assert sum(int(line.split()[0]) for line in told if "students, seed" in line) == 6
    assert all(board.is_done(cell.id) for cell in study.cells)
    assert list(board.leases.iterdir()) == []
    assert run_study(study, teacher, digits, board) == 0
    for each in study.arms:  # and they are what they would have been alone
        alone = Board(tmp_path / each.name)
        run_study(replace(study, arms=(each,)), teacher, digits, alone)
        own = replace(study, arms=(each,))
        assert results(board, own) == results(alone, own)
        for cell in own.cells:
            value, expected = board.result(cell.id) or {}, alone.result(cell.id) or {}
            assert value["recipe"] == expected["recipe"]
            assert (value["name"], value["arm"], value["seed"]) == (cell.name, each.name, cell.seed)
            (ours,), (theirs,) = (b.cohorts.glob(f"*/{cell.id}.safetensors") for b in (board, alone))
            one, other = read_tensors(ours)[0], read_tensors(theirs)[0]
            assert all(torch.equal(one[name], other[name]) for name in one)
            assert read_about(ours) == {"cell": cell.name}
    rows = judge([board.result(cell.id) for cell in study.cells], [plan.name for plan in study.arms]).rows
    assert [row.same_as for row in rows] == [None, "uniform", "uniform", None, None, "at layer1.0,layer3.0"]
    assert {cell.plan.name: (board.result(cell.id) or {}).get("same_as") for cell in study.cells} == {
        "uniform": None, "stage-ends": "uniform", "random": "uniform", "at layer1.0,layer3.0": None,
        "at last-only": None, "by hand": "at layer1.0,layer3.0",
    }  # fmt: skip


def test_twins_may_be_networks_of_the_users(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def small(classes):\n"
        "    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    table = {"name": "{hints}", "terms": "ce,kd", "hints": ["uniform", "stage-ends"], "student": "own_nets:small"}
    study, board = replace(study, arms=tuple(expand(table)), seeds=(0,)), Board(tmp_path / "out")
    assert run_study(study, teacher, digits, board) == 2
    one, other = (read_tensors(next(board.cohorts.glob(f"*/{cell.id}.safetensors"))) for cell in study.cells)
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert other[1] == {**one[1], "about": {"cell": study.cells[1].name}}


def test_a_twin_of_what_is_finished_needs_no_training_and_one_of_what_another_holds_waits(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(with_twins(study), seeds=(0,))
    board, told = Board(tmp_path), []
    run_study(replace(study, arms=study.arms[:1]), teacher, digits, board)
    assert look_ahead(replace(study, arms=study.arms[:3]), teacher, digits, board).hours is None
    (network,) = board.cohorts.glob(f"*/{study.cells[0].id}.safetensors")
    older = board.cohorts / "z" / network.name  # of the same cell under an older recipe
    write_tensors(older, {"x": torch.zeros(1)}, {})
    os.utime(older, (1, 1))
    hand = next(cell.id for cell in study.cells if cell.plan.name == "at layer1.0,layer3.0")
    left_by_another(board, hand, 5)
    assert run_study(study, teacher, digits, board, note=told.append) == 3
    assert "Left to other processes, which hold them: at layer1.0,layer3.0, seed 0; by hand, seed 0." in told[-1]
    for cell in study.cells[1:3]:
        (copied,) = board.cohorts.glob(f"*/{cell.id}.safetensors")
        assert read_tensors(copied)[0].keys() == read_tensors(network)[0].keys()
    left_by_another(board, hand, 100)
    assert run_study(study, teacher, digits, board) == 2


def test_whichever_of_some_twins_is_finished_serves_the_others(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(with_twins(study), seeds=(0,))
    board, told = Board(tmp_path), []
    run_study(replace(study, arms=study.arms[2:3]), teacher, digits, board)  # the last of three
    three = replace(study, arms=study.arms[:3])
    assert look_ahead(three, teacher, digits, board).hours is None
    assert run_study(three, teacher, digits, board, note=told.append) == 2
    assert not any("students, seed" in line for line in told)
    assert {(board.result(cell.id) or {}).get("same_as") for cell in three.cells[:2]} == {"random"}


def test_a_twin_is_not_trained_beside_another_process_that_is_at_it(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(with_twins(study), seeds=(0,))
    three, board, told = replace(study, arms=study.arms[:3]), Board(tmp_path, beat_s=0.01), []
    left_by_another(board, three.cells[2].id, 5)  # its file has no other of them
    assert run_study(three, teacher, digits, board, note=told.append) == 0
    assert told[-1].startswith("Left to other processes")

    def dies(text: str) -> None:
        if text.startswith("Waiting"):
            left_by_another(board, three.cells[2].id, 100)

    assert run_study(three, teacher, digits, board, wait=True, note=dies) == 3


def test_a_twin_does_not_take_the_result_of_another_recipe(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(with_twins(study), seeds=(0,))
    two, board, other = replace(study, arms=study.arms[:2]), Board(tmp_path / "a", beat_s=0.01), Board(tmp_path / "b")
    longer = replace(two, config=replace(two.config, epochs=2))
    run_study(longer, teacher, digits, other)
    first = two.cells[0].id
    left_by_another(board, first, 5)

    def finishes(text: str) -> None:
        if text.startswith("Waiting"):
            board.finish(first, other.result(first) or {})

    with pytest.raises(RunError, match=r"holds cell 'uniform, seed 0' of another recipe: train\.epochs is 2 there"):
        run_study(two, teacher, digits, board, wait=True, note=finishes)
    assert not board.is_done(two.cells[1].id)


def test_who_waits_stays_until_twins_that_others_hold_are_done(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(with_twins(study), seeds=(0,))
    two, board, told = replace(study, arms=study.arms[:2]), Board(tmp_path, beat_s=0.01), []
    run_study(replace(two, arms=two.arms[:1]), teacher, digits, board)
    left_by_another(board, two.cells[1].id, 5)

    def dies(text: str) -> None:
        told.append(text)
        if text.startswith("Waiting"):
            left_by_another(board, two.cells[1].id, 100)

    assert run_study(two, teacher, digits, board, wait=True, note=dies) == 1
    assert "Waiting for other processes, which hold stage-ends, seed 0." in told


def test_a_cohort_with_twins_that_was_broken_off_goes_on(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(with_twins(study), seeds=(0,), students_per_pass=9)
    board, told = Board(tmp_path), []
    with monkeypatch.context() as patch:  # as it was before twins were known
        patch.setattr("keyhole.studies.work.same_arms", lambda _arms: {})

        def full(*_: object) -> None:
            raise RunError("Cannot write: No space left on device.")

        patch.setattr(Board, "finish", full)
        with pytest.raises(RunError, match="No space left"):
            run_study(study, teacher, digits, board)
    assert run_study(study, teacher, digits, board, note=told.append) == 6
    assert [line.split(",")[0] for line in told if "students, seed" in line] == ["6 students"]
    assert not any("broken off" in line for line in told)
    rows = judge([board.result(cell.id) for cell in study.cells], [plan.name for plan in study.arms]).rows
    assert [row.same_as for row in rows] == [None, "uniform", "uniform", None, None, "at layer1.0,layer3.0"]


def test_a_cell_that_was_missed_before_waiting_does_not_count(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, board = replace(study, seeds=(0,), arms=study.arms[:1]), Board(tmp_path)
    lease, now, faster = board.leases / f"{study.cells[0].id}.lease", [1000.0], [1000.0, 1390.0]
    take = Board._take

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1390:
            lease.unlink(missing_ok=True)

    def missed(self: Board, cell: str) -> bool:
        if faster and now[0] >= faster[0]:  # another process is, twice, and holds it for 390 seconds between
            if faster.pop(0) == 1000:
                left_by_another(board, cell, 5)
            return False
        return take(self, cell)

    monkeypatch.setattr("keyhole.studies.work.time.sleep", sleep)
    monkeypatch.setattr("keyhole.studies.work.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Board, "_take", missed)
    assert run_study(study, teacher, digits, board, wait=True) == 1
    assert not faster


def test_twins_diverge_together(study: Study, teacher: Network, digits: Data, tmp_path: Path) -> None:
    study = replace(with_twins(study), seeds=(0,), config=replace(study.config, lr=1e30))
    board = Board(tmp_path)
    assert run_study(study, teacher, digits, board) == 6
    told = {cell.plan.name: (board.result(cell.id) or {})["diverged"] for cell in study.cells}
    assert told["uniform"]
    assert told["random"] == told["stage-ends"] == told["uniform"]
    assert told["by hand"] == told["at layer1.0,layer3.0"]


def test_a_changed_recipe_is_refused_before_anything_runs(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    board = Board(tmp_path)
    run_study(replace(study, arms=study.arms[:1], seeds=(0,)), teacher, digits, board)
    changed = replace(study, config=replace(study.config, lr=0.01))
    with pytest.raises(RunError, match=r"another recipe: train\.lr is 0\.05 there and 0\.01 now"):
        run_study(changed, teacher, digits, board)
    assert len(list(board.cells.iterdir())) == 1


def test_another_teacher_of_the_same_name_is_another_recipe(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    board = Board(tmp_path)
    one = replace(study, arms=study.arms[:1], seeds=(0,))
    run_study(one, teacher, digits, board)
    torch.manual_seed(1)
    other = build("resnet8", classes=10, input=teacher.input)
    with pytest.raises(RunError, match="another recipe: teacher_sha256 is"):
        run_study(one, other, digits, board)


def test_other_images_of_a_folder_are_another_recipe(study: Study, teacher: Network, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, label, i in product(("train", "test"), range(10), range(2)):
        path = tmp_path / "images" / part / f"{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    board = Board(tmp_path / "study")
    one = replace(study, data="folder", arms=study.arms[:1], seeds=(0,), holdout=0)

    def run(root: Path) -> int:
        return run_study(one, teacher, open_data("folder", root, input=teacher.input), board)

    assert run(tmp_path / "images") == 1
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    assert run(tmp_path / "moved") == 0
    larger = random.integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(larger).save(tmp_path / "moved" / "train" / "3" / "0.png")
    with pytest.raises(RunError, match=r"another recipe: data_sha256\.train is"):
        run(tmp_path / "moved")


def test_a_cell_that_diverges_is_recorded_and_the_rest_goes_on(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    board = Board(tmp_path)
    wild = replace(study.arms[0], name="wild", terms="ce=1e38,kd")
    assert run_study(replace(study, arms=(wild, study.arms[0]), seeds=(0,)), teacher, digits, board) == 2
    found = {value["arm"]: value for path in board.cells.iterdir() if (value := json.loads(path.read_text()))}
    assert "in epoch 1" in found["wild"]["diverged"]
    assert "top1" not in found["wild"]
    assert found[study.arms[0].name]["diverged"] is None


def test_a_warm_up_that_diverges_takes_the_cells_of_its_arm_and_the_rest_goes_on(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exploding(*_: object, **__: object) -> Network:
        raise WarmUpError("The warm-up of resnet8: ce is nan after 2 steps.")

    monkeypatch.setattr("keyhole.arms.warm_up", exploding)
    wild = replace(study.arms[-1], name="wild", hints="uniform", match="similarity", match_steps=2)
    study = replace(study, arms=(wild, study.arms[0]))
    board, told = Board(tmp_path), []
    seen = look_ahead(study, teacher, digits, board)
    assert (seen.cells, seen.done, seen.passes) == (4, 0, 2)  # those of the other arm
    assert look_ahead(replace(study, arms=(wild,)), teacher, digits, board).hours is None
    assert run_study(study, teacher, digits, board, note=told.append) == 4
    assert "wild, seed 1: diverged, The warm-up of resnet8: ce is nan after 2 steps." in told
    for cell in study.cells:
        value = board.result(cell.id)
        assert value is not None
        assert bool(value["diverged"]) is (cell.plan.name == "wild") is ("top1" not in value)
        assert value["recipe"] == recipe_of(cell, study, teacher)
    verdict = judge([board.result(cell.id) for cell in study.cells], [plan.name for plan in study.arms])
    assert [row.diverged for row in verdict.rows if row.arm == "wild"] == [(0, 1)]
    assert list(board.leases.iterdir()) == []
    assert run_study(study, teacher, digits, board) == 0


def test_a_mistake_in_one_arm_shows_before_anything_runs(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    board = Board(tmp_path)
    wrong = replace(study, arms=(*study.arms, replace(study.arms[-1], name="wrong", match="near")))
    with pytest.raises(UnknownNameError, match="near"):
        run_study(wrong, teacher, digits, board)
    assert list(board.cells.iterdir()) == []


def test_pairs_by_similarity_are_settled_for_all_processes_of_a_study(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    board = Board(tmp_path)
    plan = replace(study.arms[-1], student="resnet14", hints="uniform", match="similarity", match_steps=2)
    weighed = replace(plan, name="weighed", hint_weights="redundancy")
    whole = replace(study, arms=(replace(plan, name="plain"), weighed), seeds=(0,))
    train = hold_out(digits.train, whole.holdout)[0]
    ArmMaker(teacher, train, settled(whole, board).config, keep=board.settle).make(plan)
    (path,) = tmp_path.glob("likeness-*.txt")
    alike = [[0.0] * 6, [0.0] * 6, [0.0] * 6]  # what another process might have found
    alike[1][0] = alike[2][4] = 1.0
    path.write_text(json.dumps(alike))
    run_study(whole, teacher, digits, board)
    plain, found = (board.result(cell.id) for cell in whole.cells)
    assert plain is not None
    assert found is not None
    assert [(pair["teacher"], pair["student"]) for pair in plain["hints"]] == [
        ("layer1.0", "layer1.0"),
        ("layer3.0", "layer3.0"),
    ]
    assert {pair["weight"] for pair in plain["hints"]} == {1.0}
    assert sum(pair["weight"] for pair in found["hints"]) == pytest.approx(2, abs=1e-5)
    assert "hint_weights" not in plain["recipe"]["arm"]
    assert (found["recipe"]["arm"]["hint_weights"], found["recipe"]["arm"]["match_steps"]) == ("redundancy", 2)


def test_looking_ahead_runs_nothing(study: Study, teacher: Network, digits: Data, tmp_path: Path) -> None:
    seen = look_ahead(study, teacher, digits, Board(tmp_path / "study", make=False))
    assert list(tmp_path.iterdir()) == []  # nor decides anything for those who run it
    board = Board(tmp_path)
    assert (seen.cells, seen.done, seen.passes) == (6, 0, 4)
    assert seen.hours is not None
    assert 0 < seen.hours < 1
    larger = replace(study, arms=(study.arms[0], replace(study.arms[0], name="big", student="resnet20")), seeds=(0,))
    cohorts = [_work([ArmMaker(teacher, digits.train, study.config).make(plan)], teacher, 10) for plan in larger.arms]
    assert cohorts[0][0] == cohorts[1][0] == count_macs(teacher)
    assert cohorts[1][1] == 3 * count_macs(build("resnet20", classes=10, input=teacher.input))
    plain = replace(study.arms[0], terms="ce")
    assert _work([ArmMaker(teacher, digits.train, study.config).make(plain)], teacher, 10)[0] == 0
    run_study(replace(study, seeds=(0,)), teacher, digits, board)
    after = look_ahead(study, teacher, digits, board)
    assert (after.cells, after.done, after.passes) == (6, 3, 2)
    run_study(study, teacher, digits, board)
    assert look_ahead(study, teacher, digits, board).hours is None


def test_hours_and_passes_are_those_of_all_epochs_of_all_cohorts(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyhole.studies.outlook._seconds_a_step", lambda *_: 36.0)
    study = replace(study, config=replace(study.config, epochs=3))
    seen = look_ahead(study, teacher, digits, Board(tmp_path))
    assert seen.passes == 3 * 4
    # of 120 images 7 batches; teacher and students are alike, and a student has 3 of its operations: two of them were
    # timed, 1 + 2 * 3, and for each of two seeds there is one more cohort of a single one, 1 + 3
    assert seen.hours == pytest.approx(36 * 3 * 7 * 2 * (7 + 4) / 7 / 3600)


@pytest.mark.parametrize("compiles", [False, True])
def test_steps_are_timed_as_the_study_takes_them(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool
) -> None:
    compiled = []

    def timed(cohort: Cohort, *_: object) -> float:
        compiled.extend(learner.tapped._compiled_call_impl is not None for learner in cohort.learners)
        return 1.0

    monkeypatch.setattr("keyhole.studies.outlook._seconds_a_step", timed)
    study = replace(
        study, config=replace(study.config, compile="on" if compiles else "auto")
    )  # short, so auto does not
    look_ahead(study, teacher, digits, Board(tmp_path, make=False))
    assert compiled == [compiles, compiles]


class Slow:
    """A cohort whose first steps take long; those after them one second."""

    device = torch.device("cpu")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, replays: bool) -> None:
        self.replays, self.steps, self.now = replays, 0, 0.0
        monkeypatch.setattr("keyhole.studies.outlook.time.perf_counter", lambda: self.now)

    def train_mode(self) -> None:
        pass

    def lessons(self, batches: Iterable[Any]) -> Iterable[Any]:
        return batches

    def step(self, _lesson: object, _rate: float) -> None:
        self.steps += 1
        self.now += 100.0 if self.steps <= (WARM_UP + 1 if self.replays else 1) else 1.0


@pytest.mark.parametrize("replays", [False, True])
def test_compiling_and_recording_are_not_timed_nor_need_many_batches(
    study: Study, digits: Data, monkeypatch: pytest.MonkeyPatch, replays: bool
) -> None:
    slow = Slow(monkeypatch, replays=replays)
    assert _seconds_a_step(slow, digits.train.subset(range(40)), study, 6) == 1.0  # type: ignore[arg-type]


def killed_after(steps: int) -> Callable[..., Any]:
    left = [steps]

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        for item in items:
            if label.startswith("epoch"):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            yield item

    return progress


def test_a_broken_off_cohort_is_not_taken_up_with_another_recipe(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,), config=replace(study.config, epochs=3))
    changed = replace(study, arms=tuple(replace(plan, student_size=4) for plan in study.arms))
    fresh = Board(tmp_path / "fresh")
    run_study(changed, teacher, digits, fresh)
    board = Board(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        run_study(study, teacher, digits, board, progress=killed_after(10))
    (checkpoint,) = board.cohorts.glob("*/checkpoint.safetensors")
    told: list[str] = []
    run_study(changed, teacher, digits, board, note=told.append)
    assert results(board, changed) == results(fresh, changed)
    (line,) = [line for line in told if "broken off" in line]
    begun = "; ".join(cell.name for cell in study.cells[:2])
    assert line.startswith(f"{checkpoint.parent} was broken off with another recipe and is not taken up")
    assert f"these cells begin anew: {begun}. Remove it" in line
    run_study(replace(changed, seeds=(0, 1)), teacher, digits, board, note=told.append)
    assert len([line for line in told if "broken off" in line]) == 1  # its cells are there by now


def test_a_cohort_that_was_broken_off_beside_other_cells_is_told(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,), config=replace(study.config, epochs=2))
    board = Board(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, teacher, digits, board, progress=killed_after(10))
    told: list[str] = []
    run_study(replace(study, arms=study.arms[:1]), teacher, digits, board, note=told.append)
    assert "was broken off beside cells that this study lacks and is not taken up" in told[0]
    told.clear()
    run_study(study, teacher, digits, board, note=told.append)  # which takes it up
    assert not [line for line in told if "broken off" in line]


def test_a_process_of_another_recipe_that_began_at_the_same_time_is_not_mixed_in(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,))
    board, other = Board(tmp_path), replace(study, config=replace(study.config, lr=0.01))
    last = other.cells[-1]

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        if label.startswith("epoch"):  # by now the other one has come to its end
            Board(tmp_path).finish(last.id, {"recipe": recipe_of(last, other, teacher)})
        yield from items

    with pytest.raises(RunError, match=r"another recipe: train\.lr is 0\.01 there and 0\.05 now"):
        run_study(study, teacher, digits, board, progress=progress)
    assert [path.stem for path in board.cells.iterdir()] == [last.id]
    assert list(board.cohorts.glob("*/checkpoint.safetensors"))
    assert list(board.leases.iterdir()) == []


def left_by_another(board: Board, cell: str, age_s: float) -> None:
    """Leave a lease as a process on another machine would that was last alive so long ago."""
    lease = board.leases / f"{cell}.lease"
    lease.write_text("another-machine 1 0123")
    before = time.time() - age_s
    os.utime(lease, (before, before))


def test_cells_that_others_hold_are_told_at_the_end(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,))
    board, told = Board(tmp_path), []
    left_by_another(board, study.cells[1].id, 5)
    assert run_study(study, teacher, digits, board, note=told.append) == 2
    assert told[-1] == (
        f"Left to other processes, which hold them: {study.cells[1].name}. "
        "Where one of those was stopped, run this again after 90 seconds."
    )
    left_by_another(board, study.cells[1].id, 100)
    assert run_study(study, teacher, digits, board, note=told.append) == 1
    assert "Left to" not in told[-1]


def test_who_waits_takes_up_what_another_left_when_it_died(
    study: Study, teacher: Network, digits: Data, tmp_path: Path
) -> None:
    study = replace(study, seeds=(0,))
    board, told = Board(tmp_path, beat_s=0.2, dead_after_s=60.0), []
    theirs = study.cells[1]
    left_by_another(board, theirs.id, 5)

    def dies(text: str) -> None:
        told.append(text)
        if text.startswith("Waiting"):
            left_by_another(board, theirs.id, 100)

    assert run_study(study, teacher, digits, board, wait=True, note=dies) == 3
    assert told.count(f"Waiting for other processes, which hold {theirs.name}.") == 1
    assert all(board.is_done(cell.id) for cell in study.cells)


def test_who_waits_ends_when_another_has_finished(study: Study, teacher: Network, digits: Data, tmp_path: Path) -> None:
    study = replace(study, seeds=(0,))
    board, told = Board(tmp_path / "shared", beat_s=0.05), []
    other = Board(tmp_path / "other")
    theirs = study.cells[1].id
    run_study(study, teacher, digits, other)
    left_by_another(board, theirs, 5)

    def finishes(text: str) -> None:
        told.append(text)
        if text.startswith("Waiting"):
            threading.Timer(0.3, lambda: board.finish(theirs, other.result(theirs) or {})).start()

    assert run_study(study, teacher, digits, board, wait=True, note=finishes) == 2
    assert board.result(theirs) == other.result(theirs)
    assert sum(text.startswith("Waiting") for text in told) == 1
    assert not any(text.startswith("Left to") for text in told)


def test_what_a_killed_takeover_left_is_waited_for(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyhole.studies.work.random.uniform", lambda *_: 0.001)
    study = replace(study, seeds=(0,), arms=study.arms[:1])
    board = Board(tmp_path, dead_after_s=2.0)
    left_by_another(board, study.cells[0].id, 100)
    (board.leases / f"{study.cells[0].id}.takeover").touch()
    assert run_study(study, teacher, digits, board) == 1
    assert list(board.leases.iterdir()) == []


def test_cells_that_cannot_be_taken_are_not_waited_for_forever(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Board, "_take", lambda *_: False)
    with pytest.raises(RunError, match="Cannot take a cell in"):
        run_study(study, teacher, digits, Board(tmp_path, dead_after_s=0.2))


def test_a_damaged_list_of_a_cohort_is_one_line(study: Study, teacher: Network, digits: Data, tmp_path: Path) -> None:
    board = Board(tmp_path)
    folder = board.cohorts / "0123456789abcdef"
    folder.mkdir()
    (folder / "cells.json").write_text("[")
    with pytest.raises(
        DataError, match=r"is not JSON \(.*\)\. Remove .*0123456789abcdef, whose cells are run again then"
    ):
        run_study(study, teacher, digits, board)


def test_a_full_disk_when_results_are_written_loses_no_training(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(study, seeds=(0,))
    board = Board(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise RunError("Cannot write: No space left on device.")

        patch.setattr(Board, "finish", full)
        with pytest.raises(RunError, match="No space left"):
            run_study(study, teacher, digits, board)
    assert list(board.cohorts.glob("*/checkpoint.safetensors"))
    steps: list[str] = []

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        for item in items:
            steps.append(label)
            yield item

    run_study(replace(study, arms=study.arms[:2]), teacher, digits, board, progress=progress)
    assert not [label for label in steps if label.startswith("epoch")]  # the epochs were there already
    assert not list(board.cohorts.glob("*/cells.json"))


def test_a_stop_between_two_results_loses_no_training(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(study, seeds=(0,), students_per_pass=3)
    whole = Board(tmp_path / "whole")
    run_study(study, teacher, digits, whole)
    board, finish, written = Board(tmp_path / "stopped"), Board.finish, []
    with monkeypatch.context() as patch:

        def full(self: Board, cell: str, value: dict[str, Any]) -> None:
            if written:
                raise RunError("Cannot write: No space left on device.")
            written.append(cell)
            finish(self, cell, value)

        patch.setattr(Board, "finish", full)
        with pytest.raises(RunError, match="No space left"):
            run_study(study, teacher, digits, board)
    steps: list[str] = []

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        for item in items:
            steps.append(label)
            yield item

    assert run_study(study, teacher, digits, board, progress=progress) == 2
    assert not [label for label in steps if label.startswith("epoch")]  # the epochs were there already
    assert results(board, study) == results(whole, study)
    assert not [path for name in ("cells.json", "checkpoint.safetensors") for path in board.cohorts.glob(f"*/{name}")]


class Bursts(nn.Module):
    """A student whose logits are finite while it learns, and infinite where it is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(images)
        if self.training:
            self.steps += 1
        elif self.steps > 0:
            found = found * torch.inf
        return found


def bursting(classes: int) -> nn.Module:
    assert classes == 10
    return Bursts()


@pytest.mark.parametrize("holdout", [0, 40])
def test_an_arm_that_cannot_be_measured_is_recorded_and_the_rest_goes_on(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, holdout: int
) -> None:
    odd = ArmPlan(name="odd", student=f"{__name__}:bursting", terms="ce")
    study = replace(study, seeds=(0,), holdout=holdout, students_per_pass=4, arms=(odd, *study.arms))
    board = Board(tmp_path)
    assert run_study(study, teacher, digits, board) == 4
    told = [board.result(cell.id) for cell in study.cells]
    assert [bool(value and value["diverged"]) for value in told] == [True, False, False, False]
    assert "NaN or infinite" in (told[0] or {})["diverged"]


def test_automatic_precision_is_the_same_for_all_processes_of_a_study(
    study: Study, teacher: Network, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(study, config=replace(study.config, precision="auto"), seeds=(0,))
    board = Board(tmp_path)
    for name, fastest in (("first", "fp32"), ("second", "bf16")):
        monkeypatch.setattr("keyhole.runtime._faster_on_cpu", lambda fastest=fastest: fastest)
        arms = tuple(replace(plan, name=f"{name} {plan.name}") for plan in study.arms[:1])
        run_study(replace(study, arms=arms), teacher, digits, board)
    found = [json.loads(path.read_text()) for path in board.cells.iterdir()]
    assert {value["precision"] for value in found} == {"fp32"}
    assert {value["recipe"]["train"]["precision"] for value in found} == {"fp32"}


FILE = """
teacher = "teacher.safetensors"
data = "digits"
seeds = [0, 1]
holdout = 200
students_per_pass = 2
[train]
epochs = 3
batch_size = 32
precision = "fp32"
compile = "off"
[[arm]]
student = "resnet8"
terms = ["ce,kd", "ce,kd,at", "ce,kd,hint"]
hints = "uniform"
"""


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(build("resnet14", classes=10, input=default_input("digits")), tmp_path / "teacher.safetensors")
    (tmp_path / "study.toml").write_text(FILE)
    return tmp_path


def started(folder: Path, out: str, code: str = "from keyhole.cli import main; main()") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, "study", str(folder / "study.toml"), "--out", str(folder / out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FULL_DISK = """
import importlib, resource
from keyhole.cli import main
module, whole = importlib.import_module("{module}"), [{whole}]
write = module.{name}
def filled(*given, **more):
    whole[0] -= 1
    if whole[0] < 0:  # files can be made from now on, and hold nothing
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return write(*given, **more)
module.{name} = filled
main()
"""


def run_to_the_end(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def told(folder: Path, out: str) -> dict[str, Any]:
    found = {}
    for path in sorted((folder / out / "cells").iterdir()):
        value = json.loads(path.read_text())
        found[value["name"]] = (value["top1"], value["held_out_top1"], value["history"])
    return found


@pytest.mark.slow
def test_two_processes_share_a_study_and_a_killed_one_is_taken_over(on_disk: Path) -> None:
    run_to_the_end(started(on_disk, "alone"))

    first = started(on_disk, "shared")
    deadline = time.time() + 120
    while not list((on_disk / "shared").glob("cohorts/*/checkpoint.safetensors")) and time.time() < deadline:
        time.sleep(0.05)
    first.kill()
    first.communicate(timeout=60)
    assert list((on_disk / "shared" / "leases").glob("*.lease"))  # it was at work
    both = [started(on_disk, "shared") for _ in range(2)]
    for process in both:
        run_to_the_end(process)
    assert len(told(on_disk, "shared")) == 6
    assert told(on_disk, "shared") == told(on_disk, "alone")
    assert list((on_disk / "shared" / "leases").iterdir()) == []
    ours = sorted(on_disk.glob("shared/cohorts/*/*.safetensors"), key=lambda path: path.name)
    theirs = sorted(on_disk.glob("alone/cohorts/*/*.safetensors"), key=lambda path: path.name)
    assert [path.name for path in ours] == [path.name for path in theirs]
    for a, b in zip(ours, theirs, strict=True):
        one, other = read_tensors(a)[0], read_tensors(b)[0]
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_study_whose_disk_fills_up_loses_nothing_and_goes_on(on_disk: Path) -> None:
    pytest.importorskip("resource")
    (on_disk / "study.toml").write_text(FILE.replace("seeds = [0, 1]", "seeds = [0]"))
    run_to_the_end(started(on_disk, "alone"))
    places = {  # where, after so many whole files: what cannot be written, and the cells that are there by then
        ("keyhole.distillation.training", "write_tensors", 1): ("checkpoint.safetensors", 0),
        ("keyhole.studies.board", "write_json", 1): (".json", 1),
    }
    for i, ((module, name, whole), (file, cells)) in enumerate(places.items()):
        out = on_disk / f"full-{i}"
        process = started(on_disk, out.name, FULL_DISK.format(module=module, name=name, whole=whole))
        _, errors = process.communicate(timeout=300)
        line = errors.splitlines()[-1]
        assert process.returncode == 1
        assert "Traceback" not in errors
        assert line.startswith(f"Error: Cannot write {out}")
        assert f"{file}: " in line
        assert "File too large" in line
        assert "Free space or choose another --out" in line
        assert list((out / "leases").iterdir()) == []
        assert not list(out.rglob("*.part"))
        assert len(list((out / "cells").iterdir())) == cells
        for path in out.rglob("*.safetensors"):
            read_tensors(path)  # what is there is whole
        run_to_the_end(started(on_disk, out.name))
        assert told(on_disk, out.name) == told(on_disk, "alone")


@pytest.mark.slow
def test_who_waits_in_one_study_of_a_file_has_done_what_is_open_in_the_others(on_disk: Path) -> None:
    (on_disk / "study.toml").write_text(
        FILE.replace("seeds = [0, 1]", "seeds = [0]").replace("epochs = 3", "epochs = [1, 2]")
    )
    run_to_the_end(started(on_disk, "shared"))
    for cells in on_disk.glob("shared/*/cells"):
        for path in list(cells.iterdir())[1:]:
            path.unlink()
    held = Board(on_disk / "shared" / "epochs-1")
    ours = [path.stem for path in (on_disk / "shared" / "epochs-2" / "cells").iterdir()]
    whole = {path.stem for path in on_disk.glob("shared/epochs-2/cohorts/*/*.safetensors")}
    for cell in whole - {path.stem for path in held.cells.iterdir()}:
        left_by_another(held, cell, -600)  # at work for some time to come
    waiting = started(on_disk, "shared", "import sys; sys.argv.append('--wait'); from keyhole.cli import main; main()")
    deadline = time.time() + 300
    while len(list((on_disk / "shared" / "epochs-2" / "cells").iterdir())) < 3 and time.time() < deadline:
        assert waiting.poll() is None, waiting.communicate()
        time.sleep(0.05)
    assert len(ours) == 1
    assert len(list(held.cells.iterdir())) == 1
    for lease in held.leases.glob("*.lease"):
        lease.unlink()
    run_to_the_end(waiting)
    assert len(list(held.cells.iterdir())) == 3
