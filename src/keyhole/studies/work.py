"""Run a study: cells of one seed go through the teacher together, and each finished one is kept at once."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from keyhole.arms import ArmMaker, begun_with
from keyhole.data.sources import Data
from keyhole.data.splits import Split, hold_out
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.experiment import Result, percent, run_cohort
from keyhole.distillation.replay import WARM_UP
from keyhole.distillation.warmup import WarmUpError
from keyhole.errors import DataError, RunError
from keyhole.files import read_json, sweep, write_bytes, write_json
from keyhole.models.network import InputSpec, Network, count_macs, fingerprint
from keyhole.models.zoo import build, save
from keyhole.plans import ArmPlan
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device, choose_precision, describe, keep_freed_memory, synchronize
from keyhole.studies.board import Board, Keep
from keyhole.studies.plan import Cell, Study


@dataclass(frozen=True)
class Outlook:
    """What a study still has to do.

    Attributes:
        cells: All cells.
        done: Cells that are finished.
        passes: Passes of the teacher over the training images that the open cells need.
        hours: Estimated from a few steps of a cohort on this machine; None where nothing is left to train.
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
    recipes = _recipes(study, teacher, data)
    board.check_recipes(recipes)
    by_id = {cell.id: cell for cell in study.cells}
    if all(map(board.is_done, by_id)):
        return 0
    train = hold_out(data.train, study.holdout)[0]
    maker = ArmMaker(teacher, train, study.config, keep=board.settle, progress=progress, note=note)
    arms, lost = _made(maker, study.arms)  # all of them, so that a mistake shows at once
    finished = _finish_lost(study, lost, teacher, board, recipes, note)
    twins = _twins(arms)
    for twin, first in twins.items():
        note(f"{twin} is the same student as {first}, which is trained for both.")
    copy_twins = partial(_copy_twins, study.cells, twins, board, recipes, note)
    study = replace(study, arms=tuple(plan for plan in study.arms if plan.name in arms.keys() - twins.keys()))
    recipes = {cell.id: recipes[cell.id] for cell in study.cells}
    _tell_left(board, recipes, note)
    finished += copy_twins()
    missed_since: float | None = None
    for wanted in _as_they_open(study, board, recipes, list(by_id.values()), wait=wait, note=note):
        with board.hold(wanted.cells, wanted.most, least=wanted.least) as held:
            if not held:  # another process was faster, or was killed when it took a dead one's cell over
                missed_since = missed_since or time.monotonic()
                if time.monotonic() - missed_since > 2 * board.dead_after_s:
                    raise RunError(f"Cannot take a cell in {board.leases}; is it writable? Remove stale files there.")
                time.sleep(random.uniform(0.02, 0.2))
                continue
            missed_since = None
            board.check_recipes(recipes)
            members = wanted.members or list(held)
            cells = [by_id[cell] for cell in members]
            note(f"{len(cells)} students, seed {cells[0].seed}: {', '.join(cell.plan.name for cell in cells)}")
            folder = board.cohorts / _name_of(members, recipes)
            result = _run_together(study, cells, arms, teacher, data, folder, progress)
            board.check_recipes(recipes)  # of a process that began at the same time, its file another
            for cell, value in _results_of(cells, result, teacher, recipes):
                if cell.id not in held:  # done before, or this process had stalled and another took it over
                    continue
                board.finish(cell.id, value)
                finished += 1
                note(_result_line(value))
            if all(map(board.is_done, members)):  # only now: until here a stop loses nothing
                for done in ("checkpoint.safetensors", "cells.json"):
                    (folder / done).unlink(missing_ok=True)
        finished += copy_twins()
    return finished + copy_twins()  # of what others finished meanwhile


def _made(maker: ArmMaker, plans: Iterable[ArmPlan]) -> tuple[dict[str, Arm], dict[str, str]]:
    """Return arms by name, and of those whose student diverged before it was matched what happened to it."""
    arms, lost = {}, {}
    for plan in plans:
        try:
            arms[plan.name] = maker.make(plan)
        except WarmUpError as error:
            lost[plan.name] = str(error)
    return arms, lost


def _twins(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Return each arm that learns the very same as an earlier one, with the name of that.

    Rules often come to the same layers, and terms without hints are the same whatever hints stand beside them.
    """
    first: dict[Arm, str] = {}
    found = {}
    for name, arm in arms.items():
        known = first.setdefault(replace(arm, name=""), name)
        if known != name:
            found[name] = known
    return found


def _copy_twins(
    cells: Sequence[Cell],
    twins: Mapping[str, str],
    board: Board,
    recipes: Mapping[str, tuple[str, Mapping[str, Any]]],
    note: Callable[[str], None],
) -> int:
    """Give each open twin the result and the network of its finished first; return how many there were."""
    firsts = {(cell.plan.name, cell.seed): cell for cell in cells}
    found = {
        cell.id: (cell, first)
        for cell in cells
        if cell.plan.name in twins and not board.is_done(cell.id)
        for first in [firsts[twins[cell.plan.name], cell.seed]]
        if board.is_done(first.id)
    }
    if not found:
        return 0
    finished = 0
    with board.hold(list(found), len(found)) as held:
        for cell, first in map(found.__getitem__, list(held)):
            value = board.result(first.id)
            assert value is not None, "results are not taken away"
            for network in board.cohorts.glob(f"*/{first.id}.safetensors"):
                write_bytes(network.with_name(f"{cell.id}.safetensors"), network.read_bytes())
            own = _kept(cell, recipes, value["diverged"], {"same_as": first.plan.name})
            board.finish(cell.id, {**value, **own})
            finished += 1
            note(_result_line(own | {"top1": value.get("top1")}))
    return finished


def _finish_lost(
    study: Study,
    lost: Mapping[str, str],
    teacher: Network,
    board: Board,
    recipes: Mapping[str, tuple[str, Mapping[str, Any]]],
    note: Callable[[str], None],
) -> int:
    """Record the cells of arms that cannot begin, of all seeds, as the warm-up has the seed of the arm."""
    cells = {cell.id: cell for cell in study.cells if cell.plan.name in lost}
    common = {"precision": study.config.precision, **_common(teacher)} if lost else {}
    finished = 0
    with board.hold(list(cells), len(cells)) as held:
        for cell in map(cells.__getitem__, list(held)):
            value = _kept(cell, recipes, lost[cell.plan.name], common)
            board.finish(cell.id, value)
            finished += 1
            note(_result_line(value))
    return finished


def _tell_left(board: Board, recipes: Mapping[str, tuple[str, Mapping[str, Any]]], note: Callable[[str], None]) -> None:
    """Tell which cohorts of these cells were broken off and will not be taken up, and why."""
    for folder in sorted(board.cohorts.iterdir()):
        members = _members(folder)
        ours = [cell for cell in members if cell in recipes and not board.is_done(cell)]
        whole = set(members) <= recipes.keys()
        if (whole and folder.name == _name_of(members, recipes)) or any(map(board.is_held, members)):
            continue
        if ours and (folder / "checkpoint.safetensors").is_file():
            why = "with another recipe" if whole else "beside cells that this study lacks"
            note(
                f"{folder} was broken off {why} and is not taken up; these cells begin anew: "
                f"{'; '.join(recipes[cell][0] for cell in ours)}. Remove it, or go back to the study that it is of."
            )


def check_cells(study: Study, teacher: Network, data: Data, board: Board, *, code: bool = True) -> None:
    """Check that what is finished in a folder is of this study.

    Args:
        study: The study, its combinations written out.
        teacher: Its teacher, with weights.
        data: Its data.
        board: Its folder.
        code: Whether code of the user's must be what it was, for which it is imported.

    Raises:
        RunError: The folder holds a cell of another recipe.
    """
    board.check_recipes(_recipes(settled(study, board, keep=board.peek), teacher, data, code=code))


def _recipes(study: Study, teacher: Network, data: Data, *, code: bool = True) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name and recipe of each cell by its id; the teacher counts by its weights, wherever they came from."""
    files = data.fingerprint()
    own = {"teacher_sha256": fingerprint(teacher), **({"data_sha256": files} if files else {})}
    kinds = {(plan.student, plan.terms): plan for plan in study.arms}
    begun = {kind: begun_with(study.teacher, plan, code=code) for kind, plan in kinds.items()}
    return {
        cell.id: (cell.name, study.recipe(cell) | own | begun[cell.plan.student, cell.plan.terms])
        for cell in study.cells
    }


def settled(study: Study, board: Board, *, keep: Keep | None = None) -> Study:
    """Return the study with ``precision = "auto"`` replaced by what the first process of its folder took.

    Args:
        study: The study.
        board: Its folder.
        keep: :meth:`Board.settle`, which is meant where nothing is given, or :meth:`Board.peek`, which keeps nothing.
    """
    if study.config.precision != "auto":
        return study
    chosen = (keep or board.settle)("precision", lambda: choose_precision("auto", choose_device(study.config.device)))
    return replace(study, config=replace(study.config, precision=chosen))


@dataclass(frozen=True)
class _Wanted:
    """Cells to hold, and the members of the cohort where it was begun before: those that are done learn on with them.

    It was broken off while results were written, so its checkpoint is that of all members.
    """

    cells: list[str]
    most: int
    least: int
    members: list[str] | None = None


def _as_they_open(
    study: Study,
    board: Board,
    recipes: Mapping[str, tuple[str, Mapping[str, Any]]],
    all_cells: Sequence[Cell],
    *,
    wait: bool,
    note: Callable[[str], None],
) -> Iterator[_Wanted]:
    """Yield what to try for next, until nothing is open or, without waiting, all that is left is held by others."""
    said = False
    while True:
        while wanted := _next(study, board, recipes):
            yield wanted
        left = [cell for cell in all_cells if not board.is_done(cell.id)]
        names = "; ".join(cell.name for cell in left)
        if not wait and left:
            note(
                f"Left to other processes, which hold them: {names}. Where one of those was stopped, run this "
                f"again after {board.dead_after_s:.0f} seconds."
            )
        if not wait or not any(cell.id in recipes for cell in left):
            return
        if not said:
            note(f"Waiting for other processes, which hold {names}.")
        said = True
        time.sleep(board.beat_s)


def _next(study: Study, board: Board, recipes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> _Wanted | None:
    """Return the cells to try for: those left of a cohort that was broken off, else open cells of one seed."""
    for folder in sorted(board.cohorts.iterdir()):
        members = _members(folder)
        if not members or not set(members) <= recipes.keys() or folder.name != _name_of(members, recipes):
            continue  # nothing was broken off there, or by another recipe
        left = [cell for cell in members if not board.is_done(cell)]
        if left and not any(map(board.is_held, left)):
            return _Wanted(left, len(left), len(left), members)
    for seed in study.seeds:
        open_cells = [cell.id for cell in study.cells if cell.seed == seed and not board.is_done(cell.id)]
        free = [cell for cell in open_cells if not board.is_held(cell)]
        if free:
            return _Wanted(free, study.students_per_pass, 1)
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


def _name_of(cells: Sequence[str], recipes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    """Return the name of a cohort's folder, which stands for its cells and all that decides their results."""
    text = json.dumps([[cell, recipes[cell][1]] for cell in cells], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run_together(
    study: Study,
    cells: Sequence[Cell],
    arms: Mapping[str, Arm],
    teacher: Network,
    data: Data,
    folder: Path,
    progress: Progress,
) -> Result:
    folder.mkdir(exist_ok=True)
    sweep(folder)
    write_json(folder / "cells.json", [cell.id for cell in cells])
    result = run_cohort(
        [arms[cell.plan.name] for cell in cells],
        data,
        replace(study.config, seed=cells[0].seed),
        teacher=teacher,
        held_out=study.holdout,
        checkpoint=folder / "checkpoint.safetensors",
        resume=True,
        diverging="drop",
        progress=progress,
    )
    by_arm = {arms[cell.plan.name].name: cell for cell in cells}
    for score in result.scores:
        cell = by_arm[score.outcome.arm.name]
        save(score.outcome.last, folder / f"{cell.id}.safetensors", about={"cell": cell.name})
    return result


_OF_ARM = ("top1", "top5", "best_epoch", "held_out_top1", "parameters", "macs", "hints")


def _results_of(
    cells: Sequence[Cell], result: Result, teacher: Network, recipes: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> list[tuple[Cell, dict[str, Any]]]:
    """Return each cell with what is kept of it."""
    arms = {arm["name"]: {key: arm[key] for key in _OF_ARM} for arm in result.to_json()["arms"]}
    for score in result.scores:
        arms[score.outcome.arm.name]["history"] = list(score.outcome.history)
    common: dict[str, Any] = {
        "precision": result.config.precision,
        "cohort_seconds": round(result.seconds, 1),
        "cohort_students": len(cells),
        **_common(teacher),
    }
    if result.teacher_accuracy is not None:
        common["teacher_top1"] = percent(result.teacher_accuracy.top1)
    return [
        (
            cell,
            _kept(cell, recipes, result.diverged.get(cell.plan.name), {**common, **arms.get(cell.plan.name, {})}),
        )
        for cell in cells
    ]


def _common(teacher: Network) -> dict[str, Any]:
    return {"teacher_macs": count_macs(teacher), "environment": describe()}


def _kept(
    cell: Cell, recipes: Mapping[str, tuple[str, Mapping[str, Any]]], diverged: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": cell.name,
        "arm": cell.plan.name,
        "seed": cell.seed,
        "recipe": dict(recipes[cell.id][1]),
        "diverged": diverged,
        **more,
    }


def _result_line(value: Mapping[str, Any]) -> str:
    if value["diverged"]:
        return f"{value['name']}: diverged, {value['diverged']}"
    return f"{value['name']}: {value['top1']['last']:.2f} %"


def look_ahead(study: Study, teacher: Network, data: Data, board: Board, *, steps: int = 6) -> Outlook:
    """Return what is open, and how long it will take here, from a few steps of the first open cohort.

    The steps are timed as the study takes them, compiled where it compiles; the time of compiling does not count.
    Nothing is decided for the processes that will run it: what they have to choose is chosen here again, and forgotten.

    Raises:
        RunError: The folder holds a cell of another recipe.
        KeyholeError: A cell asks for something that does not exist.
    """
    study = settled(study, board, keep=board.peek)
    check_cells(study, teacher, data, board)
    open_cells = [cell for cell in study.cells if not board.is_done(cell.id)]
    train = hold_out(data.train, study.holdout)[0]
    maker = ArmMaker(teacher, train, study.config, keep=board.peek)
    arms, _ = _made(maker, study.arms if open_cells else ())
    trained = arms.keys() - _twins(arms).keys()
    cohorts = [
        group[first : first + study.students_per_pass]
        for seed in study.seeds
        if (group := [cell for cell in open_cells if cell.seed == seed and cell.plan.name in trained])
        for first in range(0, len(group), study.students_per_pass)
    ]
    if not cohorts:
        return Outlook(len(study.cells), len(study.cells) - len(open_cells), 0, None)
    works = [_work([arms[cell.plan.name] for cell in group], teacher, data.classes) for group in cohorts]
    first = [arms[cell.plan.name] for cell in cohorts[0]]
    cohort = Cohort(first, study.config, classes=data.classes, teacher=teacher, train=train)
    step_s = _seconds_a_step(cohort, train, study, steps)
    all_steps = study.config.epochs * (len(train) // study.config.batch_size)
    hours = step_s * all_steps * sum(map(sum, works)) / sum(works[0]) / 3600
    passes = study.config.epochs * sum(taught > 0 for taught, _ in works)
    return Outlook(len(study.cells), len(study.cells) - len(open_cells), passes, hours)


def _work(arms: Sequence[Arm], teacher: Network, classes: int) -> tuple[float, float]:
    """Return the multiply-accumulates of a step for one image: of the teacher, and of all students with gradients."""
    taught = any(term.needs_teacher for arm in arms for term in arm.terms)
    students = sum(_macs(arm.student, arm.input, classes) for arm in arms)
    return (float(count_macs(teacher)) if taught else 0.0), 3.0 * students


@lru_cache(maxsize=64)
def _macs(student: str, spec: InputSpec, classes: int) -> int:
    return count_macs(build(student, classes=classes, input=spec))


def _seconds_a_step(cohort: Cohort, train: Split, study: Study, steps: int) -> float:
    if cohort.device.type == "cpu":
        keep_freed_memory()  # as the training does
    cohort.train_mode()
    # compiles, and fills what is made ahead, so that each step timed holds one pass of the teacher; where steps are
    # replayed, the recording comes after those that run as they are
    warm_up = WARM_UP + 2 if cohort.replays else 3
    there, config = train.to(cohort.device), study.config
    epochs = (there.training_batches(config.batch_size, seed=0, epoch=k, augment=config.augment) for k in count())
    started = time.perf_counter()
    for taken, lesson in enumerate(cohort.lessons(chain.from_iterable(epochs)), start=1):
        cohort.step(lesson, 0.0)
        if taken == warm_up:
            synchronize(cohort.device)
            started = time.perf_counter()
        if taken == warm_up + steps:
            break
    synchronize(cohort.device)
    return (time.perf_counter() - started) / steps
