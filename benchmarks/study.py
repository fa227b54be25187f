"""Cells per hour of a study, against students trained one by one in the plain way and against the floor, in one run.

    python benchmarks/study.py --root DIR [--study docs/results/studies/reference.toml] [--out FILE.json]

Ours: the arms of one seed of the study as one cohort. The plain way is that of benchmarks/distillation.py (fp32, NCHW,
eager, a DataLoader, KD and three hints), which trains one student at a time with a teacher pass of its own. A cell is
the same number of steps in both, so cells per hour compare as student steps per second do. Arms whose hints are chosen
by similarity take uniform layers here: what is chosen does not change the work.

Floor: one teacher pass and all students alone on images that are ready, one after the other, each with all cores.

The three take turns, so that a machine that drifts slows all of them. Memory is the peak of a process of its own with
one student, and of another with all of them; what a student needs for itself is counted: weights, gradients, momentum,
the copy of the best epoch, and what one step keeps for its backward pass.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from distillation import BATCH, endless, median, plain, seconds
from keyhole.arms import ArmMaker
from keyhole.data.sources import open_data
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort, Learner
from keyhole.distillation.teaching import Teaching
from keyhole.models.zoo import CIFAR100_INPUT, build
from keyhole.runtime import choose_device, describe, keep_freed_memory
from keyhole.studies.plan import read_study

TARGETS = {"cells_over_plain": 3, "cohort_over_floor": 1.15, "memory_growth_over_own": 1.0}
MIB = 1 << 20


def main() -> None:
    options = parsed()
    keep_freed_memory()  # as training does; the plain way gains by it as well
    if options.memory_of:
        print(json.dumps(memory_of(options)))
        return
    device = choose_device(options.device)
    data = open_data("cifar100", options.root).train
    cohort = cohort_of(options, data)
    speed = speeds(options, data, device, cohort)
    result = {
        "what": f"{options.study.name}: {options.teacher}, {len(cohort.learners)} students a pass, batch {BATCH}",
        **speed,
        **memory(options, cohort, data),
        "targets": TARGETS,
        "environment": describe(),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--study", type=Path, default=Path("docs/results/studies/reference.toml"))
    parser.add_argument("--students", type=int, help="only so many of its arms")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # of a process of its own
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.plan = read_study(options.study)
    options.teacher, options.student = options.plan.teacher, options.plan.arms[-1].student
    return options


def cohort_of(
    options, data, students: int | None = None, *, compile: str | None = None, arms: list[Arm] | None = None
) -> Cohort:
    """Return the arms of one seed of the study as a cohort; of fewer students, the last arms, which have hints."""
    compile = compile or ("on" if choose_device(options.device).type == "cuda" else "auto")
    config = replace(options.plan.config, device=options.device, precision=options.precision, compile=compile)
    teacher = build(options.teacher, classes=100)
    if arms is None:
        maker = ArmMaker(teacher, data, config)
        chosen = [replace(plan, hints="uniform" if plan.hints == "auto" else plan.hints) for plan in options.plan.arms]
        arms = [maker.make(plan) for plan in chosen]
        arms = arms[-(students or options.students or len(arms)) :]
    cohort = Cohort(arms, config, classes=100, teacher=teacher, train=data)
    cohort.train_mode()
    return cohort


def speeds(options, data, device, cohort: Cohort) -> dict[str, object]:
    """Return student steps per second of the cohort, of the plain way and of the floor, and their ratios."""
    students = len(cohort.learners)
    lessons = cohort.lessons(endless(data.to(device)))
    other, floor = plain(options, data, device), floor_of(options, data, cohort, next(lessons))

    def ours() -> None:
        cohort.step(next(lessons), 0.01)

    rounds = []
    for _ in range(options.rounds):
        step_s = seconds(ours, options.steps, device) / options.steps
        alone_s = seconds(other, options.steps, device) / options.steps
        rounds.append((step_s, alone_s, floor(options.steps, device) / options.steps))
    cell_steps = options.plan.config.epochs * ((len(data) - options.plan.holdout) // BATCH)
    return {
        "precision": cohort.config.precision,
        "students": students,
        "cells_per_hour": median(3600 * students / step_s / cell_steps for step_s, _, _ in rounds),
        "plain_cells_per_hour": median(3600 / alone_s / cell_steps for _, alone_s, _ in rounds),
        "cells_over_plain": median(students * alone_s / step_s for step_s, alone_s, _ in rounds),
        "cohort_over_floor": median(step_s / floor_s for step_s, _, floor_s in rounds),
    }


def floor_of(options, data, cohort: Cohort, lesson) -> Callable[[int, torch.device], float]:
    """Return a function that times the parts of a step alone, one after the other."""
    names = sorted({pair.teacher for learner in cohort.learners for pair in learner.arm.hints})
    teacher = Teaching(
        build(options.teacher, classes=100),
        names,
        device=cohort.device,
        precision=cohort.config.precision,
        compile=True,
        replays=cohort.replays,
    )
    view = lesson.views[CIFAR100_INPUT]
    alone = [cohort_of(options, data, arms=[learner.arm]) for learner in cohort.learners] if cohort.replays else []

    def floor(steps: int, device: torch.device) -> float:
        teacher_s = seconds(lambda: teacher.ask(view)(), steps, device)
        if alone:  # recorded, as the cohort is
            return teacher_s + sum(seconds(lambda one=one: one.step(lesson, 0.01), steps, device) for one in alone)
        return teacher_s + sum(
            seconds(lambda learner=learner: cohort._learn(learner, lesson, 0.01), steps, device)
            for learner in cohort.learners
        )

    return floor


def memory(options, cohort: Cohort, data) -> dict[str, object]:
    """Return how much each further student adds to the peak, and what it needs for itself."""
    students = len(cohort.learners)
    one, many = (peak_mib(count) for count in (1, students))
    growth = (many - one) / max(students - 1, 1)
    lesson = next(cohort.lessons(endless(data.to(cohort.device))))
    own = sum(own_mib(cohort, learner, lesson) for learner in cohort.learners) / students
    shared = data.pixels.nbytes + sum(p.nbytes for p in build(options.teacher, classes=100).module.parameters())
    return {
        "peak_mib_one_student": one,
        "peak_mib_all_students": many,
        "memory_growth_mib_a_student": round(growth, 1),
        "own_mib_a_student": round(own, 1),
        "memory_growth_over_own": round(growth / own, 3),
        "data_and_teacher_mib": round(shared / MIB, 1),
    }


def peak_mib(students: int) -> float:
    """Return the peak memory of a process that does a few steps with so many students."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", str(students)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def memory_of(options) -> dict[str, float]:
    device = choose_device(options.device)
    data = open_data("cifar100", options.root).train
    forget_peak()
    cohort = cohort_of(options, data, options.memory_of, compile="off")  # a compiler's peak would hide theirs
    lessons = cohort.lessons(endless(data.to(device)))
    for _ in range(3):
        cohort.step(next(lessons), 0.01)
    for learner in cohort.learners:  # as at the end of an epoch
        state = learner.network.module.state_dict()
        learner.best = {name: tensor.detach().clone() for name, tensor in state.items()}
    cohort.step(next(lessons), 0.01)
    if device.type == "cuda":
        return {"peak_mib": round(torch.cuda.max_memory_allocated(device) / MIB, 1)}
    status = Path("/proc/self/status").read_text()
    return {"peak_mib": round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024, 1)}


def forget_peak() -> None:
    """Give free memory back and count the peak anew (Linux), as that of reading the images would hide the students'."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def own_mib(cohort: Cohort, learner: Learner, lesson) -> float:
    """Return what a student needs: its state four times over, and what a step keeps for the backward pass."""
    parameters = [p for module in learner.modules().values() for p in module.parameters()]
    fixed = 3 * sum(p.nbytes for p in parameters) + sum(t.nbytes for t in learner.network.module.state_dict().values())
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cohort._learn(learner, lesson, 0.0)
    return (fixed + sum(kept.values())) / MIB


if __name__ == "__main__":
    main()
