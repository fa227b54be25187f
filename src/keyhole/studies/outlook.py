"""What a study still has to do, and how long that will take here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count

from keyhole.arms import ArmMaker
from keyhole.data.sources import Data
from keyhole.data.splits import Split, hold_out
from keyhole.distillation.arm import Arm, same_arms
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.replay import WARM_UP
from keyhole.models.network import InputSpec, Network, count_macs
from keyhole.models.zoo import build
from keyhole.runtime import keep_freed_memory, synchronize
from keyhole.studies.board import Board
from keyhole.studies.plan import Study, by_student
from keyhole.studies.recipes import check_cells, settled


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
    arms, _ = maker.make_all(study.arms if open_cells else ())
    students = by_student((cell for cell in study.cells if cell.plan.name in arms), same_arms(arms))
    trained = [same[0] for same in students if not any(board.is_done(cell.id) for cell in same)]
    cohorts = [
        group[first : first + study.students_per_pass]
        for seed in study.seeds
        if (group := [cell for cell in trained if cell.seed == seed])
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
