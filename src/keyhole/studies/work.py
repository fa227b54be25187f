"""Run a study: cells of one seed go through the teacher together, and each finished one is kept at once."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from keyhole.arms import ArmMaker
from keyhole.data.sources import Data
from keyhole.data.splits import hold_out
from keyhole.distillation.arm import Arm, same_arms
from keyhole.distillation.evaluation import Accuracy, evaluate
from keyhole.distillation.experiment import Result, percent, run_cohort
from keyhole.errors import DataError, RunError
from keyhole.files import read_json, read_tensors, sweep, write_json, write_tensors
from keyhole.models.network import Network, count_macs
from keyhole.models.zoo import save
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device, describe
from keyhole.studies.board import Board
from keyhole.studies.plan import Cell, Study, by_student
from keyhole.studies.recipes import Recipes, recipes_of, settled


def run_study(
    study: Study,
    teacher: Network,
    data: Data,
    board: Board,
    *,
    wait: bool = False,
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
        wait: Stay until others have finished what they hold, and take up what one of them leaves when it dies.
        progress: Wraps the long loops.
        note: Is told what begins and what came out.

    Returns:
        How many cells this call finished.

    Raises:
        RunError: The folder holds a cell of another recipe, also one that came meanwhile, or cannot be written.
        KeyholeError: A cell asks for something that does not exist.
    """
    study = settled(study, board)
    recipes = recipes_of(study, teacher, data)
    board.check_recipes(recipes)
    if all(board.is_done(cell.id) for cell in study.cells):
        return 0
    train = hold_out(data.train, study.holdout)[0]
    maker = ArmMaker(teacher, train, study.config, keep=board.settle, progress=progress, note=note)
    arms, lost = maker.make_all(study.arms)  # so that a mistake shows at once
    job = _Job(study, recipes, arms, lost, teacher, data, board, progress, note)
    for twin, first in job.twins.items():
        note(f"{twin} is the same student as {first}: what is trained for one is kept for both.")
    _tell_left(job)
    finished, waiting, missed_since = 0, False, time.monotonic()
    while True:
        finished += _finish_lost(job) + _copy_twins(job)
        wanted = _next(job)
        if wanted is None:
            left = "; ".join(cell.name for cell in study.cells if not board.is_done(cell.id))
            if left and not wait:
                note(
                    f"Left to other processes, which hold them: {left}. Where one of those was stopped, run this again "
                    f"after {board.dead_after_s:.0f} seconds."
                )
            if not left or not wait:
                return finished
            if not waiting:
                note(f"Waiting for other processes, which hold {left}.")
            waiting, missed_since = True, time.monotonic() + board.beat_s
            time.sleep(board.beat_s)
            continue
        with board.hold(wanted.cells, wanted.most, least=wanted.least) as held:
            if held:
                finished += _run_held(job, wanted, held)
                missed_since = time.monotonic()
            else:  # another process was faster, or was killed when it took a dead one's cell over
                if time.monotonic() - missed_since > 2 * board.dead_after_s:
                    raise RunError(f"Cannot take a cell in {board.leases}; is it writable? Remove stale files there.")
                time.sleep(random.uniform(0.02, 0.2))


@dataclass(frozen=True)
class _Job:
    """A study under way.

    Attributes:
        study: All of it.
        recipes: Of all its cells.
        arms: By name; without those that cannot begin.
        lost: Arms that cannot begin, and why.
        teacher: The teacher.
        data: The data.
        board: The folder.
        progress: Wraps the long loops.
        note: Is told what begins and what came out.
    """

    study: Study
    recipes: Recipes
    arms: Mapping[str, Arm]
    lost: Mapping[str, str]
    teacher: Network
    data: Data
    board: Board
    progress: Progress
    note: Callable[[str], None]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All cells, by their id."""
        return {cell.id: cell for cell in self.study.cells}

    @cached_property
    def twins(self) -> dict[str, str]:
        """Each arm that learns the very same as an earlier one, with the name of that."""
        return same_arms(self.arms)

    @cached_property
    def teacher_accuracy(self) -> Accuracy:
        """Of the teacher on the test images; measured once for all cohorts."""
        device = choose_device(self.study.config.device)
        return evaluate(self.teacher, self.data.labeled_test(), device=device, progress=self.progress)

    @cached_property
    def trained(self) -> Recipes:
        """The recipes of the cells that can begin."""
        return {cell.id: self.recipes[cell.id] for cell in self.study.cells if cell.plan.name in self.arms}

    @cached_property
    def students(self) -> list[list[Cell]]:
        """The cells that can begin, those together that are one and the same student."""
        return by_student(map(self.cells.__getitem__, self.trained), self.twins)


def _run_held(job: _Job, wanted: _Wanted, held: list[str]) -> int:
    """Train the cells that are held and keep what came out; return how many were finished."""
    board = job.board
    board.check_recipes(job.trained)
    members = wanted.members or list(held)
    cells = [job.cells[cell] for cell in members]
    job.note(f"{len(cells)} students, seed {cells[0].seed}: {', '.join(cell.plan.name for cell in cells)}")
    folder = board.cohorts / _name_of(members, job.recipes)
    result = _run_together(job, cells, folder)
    board.check_recipes(job.trained)  # of a process that began at the same time, its file another
    finished = 0
    for cell, value in _results_of(job, cells, result):
        if cell.id not in held:  # done before, or this process had stalled and another took it over
            continue
        board.finish(cell.id, value)
        finished += 1
        job.note(_result_line(value))
    if all(map(board.is_done, members)):  # only now: until here a stop loses nothing
        for done in ("checkpoint.safetensors", "cells.json"):
            (folder / done).unlink(missing_ok=True)
    return finished


def _copy_twins(job: _Job) -> int:
    """Give each open cell whose student is finished in another one its result; return how many there were."""
    board = job.board
    found: dict[str, Cell] = {}
    for same in job.students:
        done = next((cell for cell in same if board.is_done(cell.id)), None) if len(same) > 1 else None
        if done is not None:
            found |= {cell.id: done for cell in same if not board.is_done(cell.id)}
    if not found:
        return 0
    finished = 0
    with board.hold(list(found), len(found)) as held:
        board.check_recipes({done.id: job.recipes[done.id] for done in found.values()})  # another's file may differ
        for cell, done in [(job.cells[one], found[one]) for one in held]:
            value = board.result(done.id)
            if value is None:  # the user has just removed it
                continue
            own = _kept(job, cell, value["diverged"], {"same_as": done.plan.name})
            made = sorted(board.cohorts.glob(f"*/{done.id}.safetensors"), key=lambda file: file.stat().st_mtime_ns)
            for network in made[-1:]:  # of a cell that was trained anew with another recipe the older one is there too
                # in a folder of its own, as that of the cohort may be swept by who takes it up; tensors alone are
                # copied, as a file of a network of the user's builds none
                tensors, told = read_tensors(network)
                target = board.cohorts / "same" / f"{cell.id}.safetensors"
                write_tensors(target, tensors, {**told, "about": {"cell": cell.name}})
            board.finish(cell.id, {**value, **own})
            finished += 1
            job.note(_result_line({**value, **own}))
    return finished


def _finish_lost(job: _Job) -> int:
    """Record the cells of arms that cannot begin, of all seeds, as the warm-up has the seed of the arm."""
    cells = {cell.id: cell for cell in job.study.cells if cell.plan.name in job.lost and not job.board.is_done(cell.id)}
    if not cells:
        return 0
    common = {"precision": job.study.config.precision, **_common(job.teacher)}
    finished = 0
    with job.board.hold(list(cells), len(cells)) as held:
        for cell in map(cells.__getitem__, list(held)):
            value = _kept(job, cell, job.lost[cell.plan.name], common)
            job.board.finish(cell.id, value)
            finished += 1
            job.note(_result_line(value))
    return finished


def _tell_left(job: _Job) -> None:
    """Tell which cohorts of these cells were broken off and will not be taken up, and why."""
    board, recipes = job.board, job.recipes
    for folder in sorted(board.cohorts.iterdir()):
        members = _members(folder)
        ours = [cell for cell in members if cell in recipes and not board.is_done(cell)]
        whole = set(members) <= recipes.keys()
        if (whole and folder.name == _name_of(members, recipes)) or any(map(board.is_held, members)):
            continue
        if ours and (folder / "checkpoint.safetensors").is_file():
            why = "with another recipe" if whole else "beside cells that this study lacks"
            job.note(
                f"{folder} was broken off {why} and is not taken up; these cells begin anew: "
                f"{'; '.join(recipes[cell][0] for cell in ours)}. Remove it, or go back to the study that it is of."
            )


@dataclass(frozen=True)
class _Wanted:
    """Cells to hold, and the members of the cohort where it was begun before: those that are done learn on with them.

    It was broken off while results were written, so its checkpoint is that of all members.
    """

    cells: list[str]
    most: int
    least: int
    members: list[str] | None = None


def _next(job: _Job) -> _Wanted | None:
    """Return the cells to try for: those left of a cohort that was broken off, else open cells of one seed."""
    board = job.board
    for folder in sorted(board.cohorts.iterdir()):
        members = _members(folder)
        if not members or not set(members) <= job.trained.keys() or folder.name != _name_of(members, job.trained):
            continue  # nothing was broken off there, or by another recipe
        left = [cell for cell in members if not board.is_done(cell)]
        if left and not any(map(board.is_held, left)):
            return _Wanted(left, len(left), len(left), members)
    for seed in job.study.seeds:
        same = [cells for cells in job.students if cells[0].seed == seed]
        free = [
            cells[0].id for cells in same if not any(board.is_done(cell.id) or board.is_held(cell.id) for cell in cells)
        ]
        if free:
            return _Wanted(free, job.study.students_per_pass, 1)
    return None


def _members(folder: Path) -> list[str]:
    path = folder / "cells.json"
    try:
        value = read_json(path, remedy=f"Remove {folder}, whose cells are run again then.")
    except DataError:
        if path.is_file():
            raise
        return []  # nothing was begun there, or another process has just finished it
    return [str(cell) for cell in value] if isinstance(value, list) else []


def _name_of(cells: Sequence[str], recipes: Recipes) -> str:
    """Return the name of a cohort's folder, which stands for its cells and all that decides their results."""
    text = json.dumps([[cell, recipes[cell][1]] for cell in cells], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run_together(job: _Job, cells: Sequence[Cell], folder: Path) -> Result:
    folder.mkdir(exist_ok=True)
    sweep(folder)
    write_json(folder / "cells.json", [cell.id for cell in cells])
    result = run_cohort(
        [job.arms[cell.plan.name] for cell in cells],
        job.data,
        replace(job.study.config, seed=cells[0].seed),
        teacher=job.teacher,
        held_out=job.study.holdout,
        checkpoint=folder / "checkpoint.safetensors",
        resume=True,
        diverging="drop",
        teacher_accuracy=job.teacher_accuracy,
        progress=job.progress,
    )
    by_arm = {job.arms[cell.plan.name].name: cell for cell in cells}
    for score in result.scores:
        cell = by_arm[score.outcome.arm.name]
        save(score.outcome.last, folder / f"{cell.id}.safetensors", about={"cell": cell.name})
    return result


_OF_ARM = ("top1", "top5", "best_epoch", "held_out_top1", "parameters", "macs", "hints")


def _results_of(job: _Job, cells: Sequence[Cell], result: Result) -> list[tuple[Cell, dict[str, Any]]]:
    """Return each cell with what is kept of it."""
    arms = {arm["name"]: {key: arm[key] for key in _OF_ARM} for arm in result.to_json()["arms"]}
    for score in result.scores:
        arms[score.outcome.arm.name]["history"] = list(score.outcome.history)
    common: dict[str, Any] = {
        "precision": result.config.precision,
        "cohort_seconds": round(result.seconds, 1),
        "cohort_students": len(cells),
        **_common(job.teacher),
    }
    if result.teacher_accuracy is not None:
        common["teacher_top1"] = percent(result.teacher_accuracy.top1)
    return [
        (
            cell,
            _kept(job, cell, result.diverged.get(cell.plan.name), {**common, **arms.get(cell.plan.name, {})}),
        )
        for cell in cells
    ]


def _common(teacher: Network) -> dict[str, Any]:
    return {"teacher_macs": count_macs(teacher), "environment": describe()}


def _kept(job: _Job, cell: Cell, diverged: str | None, more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": cell.name,
        "arm": cell.plan.name,
        "seed": cell.seed,
        "recipe": dict(job.recipes[cell.id][1]),
        "diverged": diverged,
        **more,
    }


def _result_line(value: Mapping[str, Any]) -> str:
    if value["diverged"]:
        return f"{value['name']}: diverged, {value['diverged']}"
    return f"{value['name']}: {value['top1']['last']:.2f} %"
