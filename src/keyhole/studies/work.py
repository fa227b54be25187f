"""Run a study: cells of one seed go through the teacher together, and each finished one is kept at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keyhole.arms import ArmMaker
from keyhole.data.sources import Data
from keyhole.data.splits import hold_out
from keyhole.distillation.cohort import Arm, Cohort
from keyhole.distillation.experiment import Result, percent, run_cohort
from keyhole.errors import SettingError
from keyhole.files import read_json, write_json
from keyhole.models.network import Network, count_macs
from keyhole.models.zoo import save
from keyhole.progress import Progress, silent
from keyhole.runtime import describe
from keyhole.studies.board import Board
from keyhole.studies.plan import Cell, Study


@dataclass(frozen=True)
class Outlook:
    """What a study still has to do.

    Attributes:
        cells: All cells.
        done: Cells that are finished.
        passes: Passes of the teacher over the training images that the open cells need.
        hours: Estimated from a few steps of a cohort on this machine; None where nothing is open.
    """

    cells: int
    done: int
    passes: int
    hours: float | None


def run_study(
    study: Study,
    teacher: Network,
    data: Data,
    board: Board,
    *,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda _text: None,
) -> int:
    """Run what is open of a study, as long as there is something that nobody else is at work on.

    Several processes, also on several machines, may do this at once on one folder.

    Args:
        study: The study, its combinations written out.
        teacher: Its teacher, with weights.
        data: Its data.
        board: Its folder.
        progress: Wraps the long loops.
        note: Is told what begins and what came out.

    Returns:
        How many cells this call finished.

    Raises:
        RunError: The folder holds a cell of another recipe, or cannot be written.
        KeyholeError: A cell asks for something that does not exist.
    """
    recipes = {cell.id: (cell.name, study.recipe(cell)) for cell in study.cells}
    board.check_recipes(recipes)
    train = hold_out(data.train, study.holdout)[0]
    maker = ArmMaker(teacher, train, study.config, progress=progress, note=note)
    needed = {cell.plan.name: cell.plan for cell in study.cells if board.result(cell.id) is None}
    arms = {name: maker.make(plan) for name, plan in needed.items()}  # all of them, so that a mistake shows at once
    by_id = {cell.id: cell for cell in study.cells}
    finished = 0
    while True:
        wanted = _next(study, board)
        if not wanted:
            return finished
        with board.hold(wanted, study.students_per_pass) as held:
            if not held:  # another process was faster
                continue
            cells = [by_id[cell] for cell in held]
            note(f"{len(cells)} students, seed {cells[0].seed}: {', '.join(cell.plan.name for cell in cells)}")
            result = _run_together(study, cells, arms, teacher, data, board, progress)
            for cell in cells:
                value = _result_of(cell, result, recipes[cell.id][1])
                board.finish(cell.id, value)
                finished += 1
                note(_told(value))


def _next(study: Study, board: Board) -> list[str]:
    """Return the ids of the cells to try for: a cohort that was broken off, else open cells of one seed."""
    for folder in sorted(board.cohorts.iterdir()):
        cells = _members(folder)
        if not cells or any(board.is_held(cell) or board.result(cell) for cell in cells):
            continue
        if set(cells) <= {cell.id for cell in study.cells}:
            return cells
    for seed in study.seeds:
        open_cells = [cell.id for cell in study.cells if cell.seed == seed and not board.result(cell.id)]
        free = [cell for cell in open_cells if not board.is_held(cell)]
        if free:
            return free
    return []


def _members(folder: Path) -> list[str]:
    path = folder / "cells.json"
    value = read_json(path) if path.is_file() else []
    return [str(cell) for cell in value] if isinstance(value, list) else []


def _run_together(
    study: Study,
    cells: Sequence[Cell],
    arms: Mapping[str, Arm],
    teacher: Network,
    data: Data,
    board: Board,
    progress: Progress,
) -> Result:
    name = hashlib.sha256("\n".join(cell.id for cell in cells).encode()).hexdigest()[:16]
    folder = board.cohorts / name
    folder.mkdir(exist_ok=True)
    write_json(folder / "cells.json", [cell.id for cell in cells])
    checkpoint = folder / "checkpoint.safetensors"
    result = run_cohort(
        [arms[cell.plan.name] for cell in cells],
        data,
        replace(study.config, seed=cells[0].seed),
        teacher=teacher,
        held_out=study.holdout,
        checkpoint=checkpoint,
        resume=True,
        diverging="drop",
        progress=progress,
    )
    for score in result.scores:
        cell = next(cell for cell in cells if cell.plan.name == score.outcome.arm.name)
        save(score.outcome.last, folder / f"{cell.id}.safetensors", about={"cell": cell.name})
    checkpoint.unlink(missing_ok=True)
    (folder / "cells.json").unlink(missing_ok=True)
    return result


def _result_of(cell: Cell, result: Result, recipe: Mapping[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": cell.name,
        "arm": cell.plan.name,
        "seed": cell.seed,
        "recipe": dict(recipe),
        "diverged": result.diverged.get(cell.plan.name),
        "precision": result.config.precision,
        "cohort_seconds": round(result.seconds, 1),
        "environment": describe(),
    }
    for score, told in zip(result.scores, result.to_json()["arms"], strict=True):
        if score.outcome.arm.name == cell.plan.name:
            value |= {key: told[key] for key in ("top1", "top5", "best_epoch", "held_out_top1", "parameters", "macs")}
            value["hints"] = told["hints"]
            value["history"] = list(score.outcome.history)
    if result.teacher_accuracy is not None:
        value["teacher_top1"] = percent(result.teacher_accuracy.top1)
    return value


def _told(value: Mapping[str, Any]) -> str:
    if value["diverged"]:
        return f"{value['name']}: diverged, {value['diverged']}"
    return f"{value['name']}: {value['top1']['last']:.2f} %"


def look_ahead(study: Study, teacher: Network, data: Data, board: Board, *, steps: int = 3) -> Outlook:
    """Return what is open, and how long it will take here, from a few steps of the first open cohort.

    Raises:
        RunError: The folder holds a cell of another recipe.
        KeyholeError: A cell asks for something that does not exist.
    """
    board.check_recipes({cell.id: (cell.name, study.recipe(cell)) for cell in study.cells})
    open_cells = [cell for cell in study.cells if board.result(cell.id) is None]
    done = len(study.cells) - len(open_cells)
    cohorts = [
        group[first : first + study.students_per_pass]
        for seed in study.seeds
        if (group := [cell for cell in open_cells if cell.seed == seed])
        for first in range(0, len(group), study.students_per_pass)
    ]
    passes = len(cohorts) * study.config.epochs
    if not cohorts:
        return Outlook(len(study.cells), done, 0, None)
    train = hold_out(data.train, study.holdout)[0]
    maker = ArmMaker(teacher, train, replace(study.config, epochs=1))
    arms = [maker.make(cell.plan) for cell in cohorts[0]]
    cohort = Cohort(arms, replace(study.config, compile="off"), classes=data.classes, teacher=teacher, train=train)
    step_s = _seconds_a_step(cohort, train, study, steps)
    work = {
        cell.plan.student: count_macs(learner.network)
        for cell, learner in zip(cohorts[0], cohort.learners, strict=True)
    }
    teacher_macs = count_macs(teacher)
    first = teacher_macs + 3 * sum(work[cell.plan.student] for cell in cohorts[0])
    others = [teacher_macs + 3 * sum(work.get(cell.plan.student, first) for cell in group) for group in cohorts]
    epochs = study.config.epochs * (len(train) // study.config.batch_size)
    return Outlook(len(study.cells), done, passes, step_s * epochs * sum(others) / first / 3600)


def _seconds_a_step(cohort: Cohort, train: Any, study: Study, steps: int) -> float:
    cohort.train_mode()
    batches = train.to(cohort.device).training_batches(study.config.batch_size, seed=0, epoch=0)
    lessons = cohort.lessons(batch for batch, _ in zip(batches, range(steps + 1), strict=False))
    cohort.step(next(lessons), 0.0)  # warm-up
    started = time.perf_counter()
    taken = 0
    for lesson in lessons:
        cohort.step(lesson, 0.0)
        taken += 1
    if taken == 0:
        raise SettingError("There are too few training images for two batches; lower batch_size.")
    return (time.perf_counter() - started) / taken
