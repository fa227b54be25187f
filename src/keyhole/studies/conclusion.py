"""What a study found so far: its verdict, with the landscapes of all combinations and what they point at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keyhole.data.sources import Data
from keyhole.data.splits import hold_out
from keyhole.models.network import Network, count_macs
from keyhole.progress import Progress, silent
from keyhole.studies.board import Board, Keep
from keyhole.studies.finalists import comparisons_of, finalists
from keyhole.studies.followup import fresh_study
from keyhole.studies.landscape import Group, Landscape, groups_of, survey
from keyhole.studies.plan import Study
from keyhole.studies.recipes import check_cells, settled
from keyhole.studies.rules import settled_rules
from keyhole.studies.verdict import Verdict, judge


@dataclass(frozen=True)
class Conclusion:
    """What a study found so far.

    Attributes:
        verdict: Means, differences, and a sentence on them; over what is finished.
        setting: What a report says of the study, as JSON values; ``mixed`` holds in what its cells differ beside arm
            and seed (see :func:`mixture`).
        fresh: Studies that judge what whole landscapes point at on seeds that had no part in it, by the number of the
            landscape from 1.
    """

    verdict: Verdict
    setting: dict[str, Any]
    fresh: dict[int, Study]


def conclude(
    study: Study, teacher: Network, data: Data, board: Board, *, decide: bool = True, progress: Progress = silent
) -> Conclusion:
    """Return what a study found so far, over the cells that are finished.

    Args:
        study: The study, its combinations written out.
        teacher: Its teacher, with weights.
        data: Its data.
        board: Its folder.
        decide: Keep in the folder what rules choose, and say what comes next; off for a look while others are at work.
        progress: Wraps the look at similarities, where all combinations were tried.

    Raises:
        RunError: The folder holds a cell of another recipe.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.distillation.config import TrainConfig
        >>> from keyhole.models.zoo import build
        >>> from keyhole.plans import ArmPlan
        >>> teacher = build("resnet8", classes=10, input=default_input("digits"))
        >>> arms = (ArmPlan("kd", "resnet8", terms="ce,kd"),)
        >>> study = Study("resnet8", None, "digits", None, TrainConfig(epochs=1), (0, 1), 200, 4, arms)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = conclude(study, teacher, open_data("digits"), Board(Path(folder)), decide=False)
        >>> found.verdict.sentence
        'Nothing has come to the end yet.'
        >>> found.setting["mixed"]
        []
    """
    check_cells(study, teacher, data, board, code=decide)
    results = [board.result(cell.id) for cell in study.cells]
    keep = board.settle if decide else board.peek
    landscapes, fresh = [], {}
    whole = settled(study, board, keep=keep)
    for number, group in enumerate(groups_of(study), start=1):
        seen = _landscape(whole, group, results, teacher, data, board, keep, progress)
        if seen is None:
            continue
        landscapes.append(seen)
        if decide and not _is_open(study, group.arms.values(), results):  # more cells would point elsewhere
            final = finalists(seen)
            choices = {each.name: each.layers for each in final}
            fresh[number] = fresh_study(whole, group.plan, choices, comparisons=comparisons_of(final))
    names = [plan.name for plan in study.arms]
    verdict = judge(
        results,
        names,
        baseline=study.baseline,
        comparisons=study.comparisons,
        landscapes=landscapes,
        classes=data.classes,
    )
    return Conclusion(verdict, {**study.described(teacher.name, results), "mixed": mixture(results)}, fresh)


def mixture(results: Iterable[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Return in what the cells of a study differ beside arm and seed; nothing where they are alike.

    Code and machine are no part of a recipe, so cells of several stand in one study.

    Args:
        results: Of cells; None where one is not finished.

    Returns:
        For each of source, version of torch, precision and hardware in which cells differ: ``what`` it is, how many
        ``cells`` there are of each, and the ``seeds`` whose own cells differ.

    Example:
        >>> cells = [{"seed": seed, "precision": kind} for seed, kind in ((0, "bf16"), (1, "bf16"), (1, "fp32"))]
        >>> mixture(cells)
        [{'what': 'precision', 'cells': {'bf16': 2, 'fp32': 1}, 'seeds': [1]}]
    """
    found = []
    kinds = [(int(each["seed"]), _kinds(each)) for each in results if each is not None]
    for what in ("source", "version of torch", "precision", "hardware"):
        counts = Counter(kind[what] for _, kind in kinds)
        if len(counts) > 1:
            pairs = {(seed, kind[what]) for seed, kind in kinds}
            seeds = [seed for seed, count in sorted(Counter(seed for seed, _ in pairs).items()) if count > 1]
            found.append({"what": what, "cells": dict(counts), "seeds": seeds})
    return found


def _kinds(cell: Mapping[str, Any]) -> dict[str, str]:
    environment = cell.get("environment", {})
    kinds = {
        "source": (environment.get("source_sha256") or "")[:8],
        "version of torch": environment.get("torch"),
        "precision": cell.get("precision"),
        "hardware": _hardware(environment, cell.get("precision")),
    }
    return {what: str(value or "not told") for what, value in kinds.items()}


def _hardware(environment: Mapping[str, Any], precision: Any) -> str | None:
    if gpu := environment.get("gpu"):
        return str(gpu)
    how = environment.get("bf16", "kernels") if precision == "bf16" else "kernels"
    processor = environment.get("processor")
    return f"{processor}, {how}" if processor and how != "kernels" else processor


def _landscape(
    study: Study,
    group: Group,
    results: Sequence[Mapping[str, Any] | None],
    teacher: Network,
    data: Data,
    board: Board,
    keep: Keep,
    progress: Progress,
) -> Landscape | None:
    train = hold_out(data.train, study.holdout)[0]
    rules, look_s = settled_rules(
        board,
        teacher,
        train,
        group.plan,
        device=study.config.device,
        precision=study.config.precision,
        progress=progress,
        keep=keep,
    )
    return survey(
        group,
        results,
        rules=rules,
        baseline=study.baseline or study.arms[0].name,
        students_per_pass=study.students_per_pass,
        look_s=look_s,
        teacher_macs=count_macs(teacher),
    )


def _is_open(study: Study, arms: Iterable[str], results: Sequence[Mapping[str, Any] | None]) -> bool:
    names = set(arms)
    return any(result is None for cell, result in zip(study.cells, results, strict=True) if cell.plan.name in names)
