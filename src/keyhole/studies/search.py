"""Search over combinations of hint layers on a short schedule: the honest rival of choosing without training."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from keyhole.arms import ArmMaker, begun_with
from keyhole.data.sources import Data
from keyhole.data.splits import Split, hold_out
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.experiment import percent
from keyhole.distillation.regrouping import regroup
from keyhole.distillation.training import Checkpointing, fit
from keyhole.errors import DivergenceError, RunError, SettingError
from keyhole.models.layers import Layer, layers
from keyhole.models.network import Network, fingerprint
from keyhole.plans import ArmPlan, parse_count, settled_before
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device, choose_precision, describe
from keyhole.studies.board import Board
from keyhole.studies.budget import Cost, Rung, SearchConfig, cost_of, plan_search

_LEASE = "search"  # one process at a time


@dataclass(frozen=True)
class Tried:
    """One combination that a search trained.

    Attributes:
        layers: Its layers, in the order of depth.
        held_out: Top-1 on the held-out images after each epoch that it was trained for, 0 to 1.
        diverged: What happened to it where a loss became NaN or infinite; it is out of the search then.
    """

    layers: tuple[str, ...]
    held_out: tuple[float, ...]
    diverged: str | None = None

    @property
    def last(self) -> float:
        """The last of them, which decides; 0 where it diverged in its first epoch."""
        return self.held_out[-1] if self.held_out else 0.0


@dataclass(frozen=True)
class Found:
    """What a search found, and what it cost.

    Attributes:
        teacher: Name of the network.
        data: Name of the data set.
        student: Name of the student.
        terms: Of its loss.
        config: How was searched.
        epochs: Of the schedule.
        combinations: How many there are in all.
        rungs: What was planned.
        tried: The combinations that were trained, the best first: those that came further, then by their last top-1.
        layers: The candidates, in the order of depth.
        cost: Student epochs and teacher passes, as they were spent.
        seconds: Over all processes that were at it.
    """

    teacher: str
    data: str
    student: str
    terms: str
    config: SearchConfig
    epochs: int
    combinations: int
    rungs: tuple[Rung, ...]
    tried: tuple[Tried, ...]
    layers: tuple[Layer, ...]
    cost: Cost
    seconds: float

    @property
    def hints(self) -> tuple[str, ...]:
        """The combination that was best on the held-out images."""
        return self.tried[0].layers

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; what takes a ``hints.json`` takes this as well. Accuracies in percent."""
        return {
            "teacher": self.teacher,
            "data": self.data,
            "student": self.student,
            "terms": self.terms,
            "count": len(self.hints),
            "hints": list(self.hints),
            "held_out_top1": percent(self.tried[0].last),
            "search": asdict(self.config),
            "epochs": self.epochs,
            "combinations": self.combinations,
            "rungs": [asdict(rung) for rung in self.rungs],
            "cost": {
                **asdict(self.cost),
                "cells": round(self.cost.student_epochs / self.epochs, 3),
                "seconds": round(self.seconds, 1),
            },
            "tried": [
                {
                    "layers": list(each.layers),
                    "held_out_top1": [percent(value) for value in each.held_out],
                    "diverged": each.diverged,
                }
                for each in self.tried
            ],
            "layers": [
                {"name": layer.name, "channels": layer.channels, "size": list(layer.size)} for layer in self.layers
            ],
        }


def search_hints(
    teacher: Network,
    data: Data,
    plan: ArmPlan,
    *,
    train: TrainConfig,
    folder: Path,
    search: SearchConfig | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda _text: None,
) -> Found:
    """Search the combination of a teacher's layers with which a student does best on held-out images.

    Test images are never looked at. What is found was chosen by its own score, which therefore flatters it: judge it
    on other seeds. A search that was stopped goes on in its folder.

    Args:
        teacher: The teacher, with its trained weights.
        data: The data; of its training images some are held out.
        plan: The student, its loss, and the ``count`` and ``layers`` to combine; its ``hints`` do not count.
        train: The schedule and the seed, the same for all.
        folder: Where the state is kept.
        search: How to search, and the budget.
        progress: Wraps the long loops.
        note: Is told what begins and what came out.

    Raises:
        SettingError: The count is no number of layers, the budget is too small, or the loss has no term for hints.
        RunError: The folder holds another search, cannot be written, or another process is at work in it.
        DivergenceError: All students diverged.

    Reference:
        Jamieson and Talwalkar (2016), https://arxiv.org/abs/1502.07943, for the method ``halving``.

    Example:
        >>> import tempfile
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.models.zoo import build
        >>> teacher = build("resnet8", classes=10, input=default_input("digits"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = search_hints(
        ...         teacher, open_data("digits"), ArmPlan(student="resnet8", terms="ce,at", count=2),
        ...         train=TrainConfig(epochs=1, precision="fp32"), folder=Path(folder),
        ...         search=SearchConfig("random", cells=2, holdout=200),
        ...     )
        >>> found.combinations, len(found.tried), found.cost
        (3, 2, Cost(student_epochs=2, passes=1))
    """
    search, board = search or SearchConfig(), Board(folder, of="search")
    if train.precision == "auto":
        measured = board.settle("precision", lambda: choose_precision("auto", choose_device(train.device)))
        train = replace(train, precision=measured)
    candidates = layers(teacher, plan.layers)
    total = count_combinations(len(candidates), plan.count)
    rungs = plan_search(search, total, train.epochs)
    if search.method == "halving" and len(rungs) == 1:
        note(f"Halving looks after epoch {train.epochs} alone, so all {rungs[0].students} students train to the end. "
             "More --epochs, or a smaller --keep or --least-epochs, let it look earlier.")  # fmt: skip
    kept, held_out = hold_out(data.train, search.holdout)
    maker = ArmMaker(teacher, kept, train, keep=board.settle, progress=progress, note=note)
    names = [layer.name for layer in candidates]
    drawn = draw_combinations(names, int(plan.count), rungs[0].students, seed=search.seed)
    arms = {layers: maker.make(replace(plan, name="+".join(layers), hints=layers)) for layers in drawn}
    if not next(iter(arms.values())).hints:
        raise SettingError(f"Terms {plan.terms} have no use for hints; add one that has, such as hint or at.")
    board.agree("search", _recipe(teacher, data, plan, search, train))  # only now, so that a mistake claims no folder
    ground = _Ground(board, teacher, data.classes, kept, held_out, train, search.students_per_pass, progress, note)
    with board.hold([_LEASE], 1) as held:
        ground = replace(ground, held=held)
        ground.check()
        tried, cost, seconds = _climb(ground, rungs, arms)
    return Found(
        teacher=teacher.name,
        data=data.name,
        student=plan.student,
        terms=plan.terms,
        config=search,
        epochs=train.epochs,
        combinations=total,
        rungs=rungs,
        tried=tried,
        layers=tuple(candidates),
        cost=cost,
        seconds=seconds,
    )


def count_combinations(layers: int, count: int | str) -> int:
    """Return how many combinations of so many layers there are.

    Args:
        layers: Number of candidates.
        count: How many a combination takes; a number, also as text.

    Raises:
        SettingError: It is no number from 1 to the number of candidates.

    Example:
        >>> count_combinations(9, 3), count_combinations(54, "3")
        (84, 24804)
    """
    wanted = parse_count(str(count))
    if wanted is None or not 1 <= wanted <= layers:
        raise SettingError(f"A search combines a number of layers from 1 to {layers}; got {count}.")
    return math.comb(layers, wanted)


def draw_combinations(names: Sequence[str], count: int, number: int, *, seed: int = 0) -> list[tuple[str, ...]]:
    """Return different combinations of layers, each as likely as any other; all of them in order where all are asked.

    Args:
        names: The layers, in the order of depth.
        count: How many a combination takes.
        number: How many combinations.
        seed: Of the draw.

    Example:
        >>> draw_combinations(["a", "b", "c"], 2, 3)
        [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    total = math.comb(len(names), count)
    places = range(total) if number >= total else _drawn(total, number, random.Random(seed))
    return [tuple(names[i] for i in _unranked(place, len(names), count)) for place in places]


def _drawn(total: int, number: int, draw: random.Random) -> list[int]:
    if total < 2**31:
        return sorted(draw.sample(range(total), number))
    found: set[int] = set()
    while len(found) < number:  # of so many, hardly one is drawn twice
        found.add(draw.randrange(total))
    return sorted(found)


def _unranked(place: int, total: int, count: int) -> Iterator[int]:
    """Yield the members of the combination at a place of the lexicographic order, without listing those before."""
    first = 0
    for left in range(count, 0, -1):
        while place >= (behind := math.comb(total - first - 1, left - 1)):
            place -= behind
            first += 1
        yield first
        first += 1


def _recipe(teacher: Network, data: Data, plan: ArmPlan, search: SearchConfig, train: TrainConfig) -> dict[str, Any]:
    """Return all that decides the result of a search."""
    settings = settled_before(train.deciding)
    return {
        "teacher_sha256": fingerprint(teacher),
        "data": data.name,
        "images": len(data.train),
        **({"data_sha256": files} if (files := data.fingerprint()) else {}),
        "input": asdict(teacher.input),
        **begun_with(teacher.name, plan),
        "arm": asdict(replace(plan, name="", hints=None)),
        # as it was before there was least_epochs, where that is the usual one
        "search": {name: value for name, value in asdict(search).items() if (name, value) != ("least_epochs", 1)},
        "train": settings,
    }


@dataclass(frozen=True)
class _Ground:
    """What all groups of a search have in common."""

    board: Board
    teacher: Network
    classes: int
    kept: Split
    held_out: Split
    train: TrainConfig
    students_per_pass: int
    progress: Progress
    note: Callable[[str], None]
    held: Sequence[str] = ()

    def check(self) -> None:
        """Stop where another process is at work, from the beginning on or since this one had stalled."""
        if not self.held or not self.board.owns(_LEASE):
            raise RunError(f"Another process is at work in {self.board.path}. Wait for it, or choose another --out.")

    def checkpoint(self, group: str) -> Path:
        return self.board.cohorts / f"{group}.safetensors"

    def run(self, group: str, members: Sequence[Arm], until: int, sources: Sequence[Path]) -> dict[str, Any]:
        """Return the record of a group: what is on disk, or what comes out now, from where the rung before left it."""
        names = [arm.name for arm in members]
        if (record := self.board.result(group)) is not None and record["recipe"] == {"arms": names, "until": until}:
            return record
        self.check()
        self.note(f"{group}: {len(members)} students to epoch {until}")
        if sources and not self.checkpoint(group).is_file():
            regroup(sources, names, self.checkpoint(group))
        started, keep = time.perf_counter(), Checkpointing(self.checkpoint(group), resume=True)
        cohort = Cohort(members, self.train, classes=self.classes, teacher=self.teacher, train=self.kept)
        trained = fit(
            cohort, self.kept, self.held_out, until=until, checkpointing=keep, diverging="drop", progress=self.progress
        )
        record = {
            "recipe": {"arms": names, "until": until},
            "held_out": {
                outcome.arm.name: [epoch["held_out_top1"] for epoch in outcome.history] for outcome in trained.outcomes
            },
            "diverged": dict(trained.diverged),
            "seconds": round(trained.earlier_s + time.perf_counter() - started, 2),
            "environment": describe(),
        }
        self.board.finish(group, record)
        return record


def _climb(
    ground: _Ground, rungs: Sequence[Rung], arms: Mapping[tuple[str, ...], Arm]
) -> tuple[tuple[Tried, ...], Cost, float]:
    """Run rung after rung and return what was tried, the best first, and what it cost."""
    tried: dict[tuple[str, ...], Tried] = {}
    climbing, seconds = list(arms), 0.0
    left_at: dict[tuple[str, ...], Path] = {}  # by the rung before
    spent: list[Rung] = []
    for number, rung in enumerate(rungs, start=1):
        climbing = climbing[: rung.students]
        spent.append(Rung(len(climbing), rung.until))
        starts = range(0, len(climbing), ground.students_per_pass)
        groups = {
            f"rung-{number}-{k}": climbing[first : first + ground.students_per_pass]
            for k, first in enumerate(starts, 1)
        }
        for group, together in groups.items():
            sources = list(dict.fromkeys(left_at[combo] for combo in together if combo in left_at))
            record = ground.run(group, [arms[combo] for combo in together], rung.until, sources)
            seconds += record["seconds"]
            tried |= {combo: _tried(combo, arms[combo].name, record, tried.get(combo)) for combo in together}
        ground.check()
        for path in set(left_at.values()):  # only now: until here a stop loses nothing
            path.unlink(missing_ok=True)
        left_at = {combo: ground.checkpoint(group) for group, together in groups.items() for combo in together}
        climbing = sorted((combo for combo in climbing if tried[combo].diverged is None), key=lambda c: -tried[c].last)
        if not climbing:
            if all(each.diverged is not None for each in tried.values()):
                raise DivergenceError(f"All {len(tried)} students diverged. Lower --lr or the weight of a term.")
            ground.note(
                f"All students that were left diverged before the end of epoch {rung.until}; the search ends here."
            )
            break
        ground.note(f"after epoch {rung.until}: {'+'.join(climbing[0])}, {percent(tried[climbing[0]].last):.2f} %")
    for path in set(left_at.values()):
        path.unlink(missing_ok=True)
    ordered = sorted(tried.values(), key=lambda each: (each.diverged is not None, -len(each.held_out), -each.last))
    return tuple(ordered), cost_of(spent, ground.students_per_pass), seconds


def _tried(combo: tuple[str, ...], name: str, record: Mapping[str, Any], before: Tried | None) -> Tried:
    known = before.held_out if before is not None else ()
    return Tried(combo, tuple(record["held_out"].get(name, known)), record["diverged"].get(name))
