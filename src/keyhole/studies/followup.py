"""The study that comes next: what a search or a landscape points at, on seeds that had no part in it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from keyhole.distillation.notation import parse_terms, write_term
from keyhole.errors import SettingError
from keyhole.plans import ArmPlan
from keyhole.studies.plan import Comparison, Study
from keyhole.studies.verdict import first_of, judge

FRESH_SEEDS = 6
MOST_ARMS = 5


def fresh_study(
    study: Study,
    plan: ArmPlan,
    choices: Mapping[str, str | tuple[str, ...]],
    *,
    comparisons: Sequence[Comparison] = (),
    seeds: int = FRESH_SEEDS,
) -> Study:
    """Return a study that compares choices of hints on seeds that chose none of them; its baseline has no hints.

    Args:
        study: The study that pointed at the choices; its teacher, data and schedule are kept.
        plan: The student and its loss.
        choices: Layers, or a rule's name, by what the arm shall be called.
        comparisons: Comparisons that it is made for.
        seeds: How many fresh seeds.

    Example:
        >>> from keyhole.distillation.config import TrainConfig
        >>> old = Study("resnet20", None, "digits", None, TrainConfig(epochs=1), (0, 1), 100, 4, ())
        >>> new = fresh_study(old, ArmPlan(terms="ce,kd,hint"), {"searched": ("layer1.0", "layer3.0")})
        >>> new.seeds, [(arm.name, arm.terms) for arm in new.arms]
        ((2, 3, 4, 5, 6, 7), [('no hints', 'ce=1,kd=1'), ('searched', 'ce,kd,hint')])
    """
    first = max(study.seeds) + 1
    arms = [replace(plan, name=name, hints=layers) for name, layers in choices.items()]
    bare = _without_hints(plan)
    if bare is not None:
        arms.insert(0, bare)
    return replace(
        study,
        arms=tuple(arms),
        seeds=tuple(range(first, first + seeds)),
        students_per_pass=max(study.students_per_pass, len(arms)),
        baseline=arms[0].name,
        comparisons=tuple(comparisons),
    )


def followup(
    study: Study,
    results: Sequence[Mapping[str, Any] | None],
    *,
    most: int = MOST_ARMS,
    seeds: Sequence[int] = (),
) -> Study:
    """Return a study that judges on fresh seeds what the held-out images chose, against the same baseline.

    An arm goes on where its held-out mean lies above that of the baseline by more than the spread of such differences:
    their standard deviation over seeds, pooled over all arms, as that of one arm with two seeds says next to nothing.
    An arm that diverged on a seed does not go on.

    Args:
        study: The study that chooses; its baseline is its first arm when it names none.
        results: Of its cells, in their order; test accuracies are not looked at.
        most: At most so many arms go on, those with the highest means.
        seeds: The fresh seeds; the next six when missing.

    Raises:
        SettingError: A cell is open, nothing was held out, the baseline diverged, there are fewer than two seeds, a
            fresh seed had a part in the choice, or no arm is far enough above the baseline.

    Example:
        >>> from keyhole.distillation.config import TrainConfig
        >>> arms = tuple(ArmPlan(name, terms="ce,kd,hint", hints=name) for name in ("auto", "all", "random"))
        >>> old = Study("resnet20", None, "digits", None, TrainConfig(epochs=1), (0, 1), 100, 4, arms)
        >>> common = {"diverged": None, "top1": {"last": 50.0, "best": 50.0}, "parameters": 1, "macs": 1}
        >>> results = [
        ...     {"arm": cell.plan.name, "seed": cell.seed, "held_out_top1": {"last": top1}, **common}
        ...     for cell, top1 in zip(old.cells, (60.0, 62.0, 60.1, 61.0, 63.1, 60.8))
        ... ]
        >>> new = followup(old, results, seeds=range(20, 26))
        >>> new.seeds, [arm.name for arm in new.arms]
        ((20, 21, 22, 23, 24, 25), ['auto', 'all'])
    """
    first = max(study.seeds) + 1
    fresh = tuple(seeds) or tuple(range(first, first + FRESH_SEEDS))
    known = sorted(set(fresh) & set(study.seeds))
    if known:
        raise SettingError(f"Seed {known[0]} had a part in the choice; expected seeds that the study does not have.")
    if len(study.seeds) < 2:
        raise SettingError("The study has one seed, which has no spread; expected at least two to choose by.")
    verdict = judge(results, [plan.name for plan in study.arms], baseline=study.baseline)
    if verdict.open_cells:
        raise SettingError(f"{verdict.open_cells} cells of the study are open; finish it before its arms are chosen.")
    base_of = next(row for row in verdict.rows if row.arm == verdict.baseline)
    held_out = {
        row.arm: row.held_out
        for row in verdict.rows
        if row.held_out and not row.diverged
        # of what is one student under several names one goes on, and nothing that is the baseline itself
        if row is base_of or (row.same_as is None and first_of(row) != first_of(base_of))
    }
    base = held_out.pop(verdict.baseline, None)
    if base is None:
        raise SettingError(
            f"The baseline {verdict.baseline!r} has no held-out accuracy of every seed; expected a study with holdout "
            "in which it came to the end."
        )
    gaps = {arm: [own - other for own, other in zip(each, base, strict=True)] for arm, each in held_out.items()}
    spread = math.sqrt(statistics.fmean(statistics.variance(each) for each in gaps.values())) if gaps else 0.0
    leads = {arm: mean for arm, each in gaps.items() if (mean := statistics.fmean(each)) > spread}
    if not leads:
        raise SettingError(
            f"No arm is above {verdict.baseline!r} on the held-out images by more than the spread, {spread:.2f} "
            "points; there is nothing to judge on fresh seeds."
        )
    chosen = sorted(leads, key=lambda arm: -leads[arm])[:most]
    kept = [plan for name in (verdict.baseline, *chosen) for plan in study.arms if plan.name == name]
    return replace(study, arms=tuple(kept), seeds=fresh, baseline=verdict.baseline, comparisons=())


def _without_hints(plan: ArmPlan) -> ArmPlan | None:
    """Return the plan without its terms of hints, the others as they are; None where it has no others."""
    terms = parse_terms(plan.terms, temperature=plan.temperature, equal=plan.balance == "gradients")
    kept = [write_term(term) for term in terms if not term.needs_hints]
    if not kept:
        return None
    return ArmPlan(
        name="no hints",
        student=plan.student,
        student_size=plan.student_size,
        terms=",".join(kept),
        temperature=plan.temperature,
        balance=plan.balance,
    )


def study_toml(study: Study) -> str:
    """Return a study as the text of a study file; read by :func:`keyhole.studies.plan.read_study`, it is the same.

    Layers of an arm stand as a text, as a list would ask for one arm each. Paths are written whole, so that the file
    may stand anywhere.

    Args:
        study: The study.
    """
    head: dict[str, Any] = {
        "teacher": _whole(study.teacher) if study.teacher.endswith(".safetensors") else study.teacher,
        "weights": study.weights and _whole(study.weights),
        "data": study.data,
        "root": study.root and _whole(study.root),
        "seeds": list(study.seeds),
        "holdout": study.holdout,
        "students_per_pass": study.students_per_pass,
        "baseline": study.baseline,
    }
    config = {key: value for key, value in asdict(study.config).items() if key not in ("seed", "device")}
    lines = [*_lines(head), "", "[train]", *_lines(config)]
    usual = {each.name: each.default for each in fields(ArmPlan)}
    for plan in study.arms:
        values: dict[str, Any] = {key: value for key, value in vars(plan).items() if value != usual[key]}
        if isinstance(plan.hints, tuple):
            values["hints"] = ",".join(plan.hints)
        elif plan.hints is not None and plan.hints.endswith(".json"):
            values["hints"] = _whole(plan.hints)
        student = _whole(plan.student) if plan.student.endswith(".safetensors") else plan.student
        values |= {"name": _braced(plan.name), "terms": plan.terms, "student": student}
        lines += ["", "[[arm]]", *_lines(values)]
    if (count := len(study.comparisons)) > 1:
        surest = "the surest of them is beyond chance where its own p is below"
        lines += ["", f"# {count} comparisons, corrected together by Holm's procedure: {surest} {0.05 / count:.2g}."]
    for comparison in study.comparisons:
        lines += ["", "[[comparison]]", *_lines({key: _plain(value) for key, value in vars(comparison).items()})]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _braced(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _whole(path: str | Path) -> str:
    return str(Path(path).resolve())


def _lines(table: Mapping[str, Any]) -> Sequence[str]:
    """Return the lines of a TOML table; JSON's texts, numbers, lists, true and false are TOML's."""
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items() if value is not None]
