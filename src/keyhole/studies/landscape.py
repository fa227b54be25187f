"""The landscape of all combinations of layers: how good each is, and where those stand that a rule would take."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from keyhole.plans import ArmPlan
from keyhole.studies.findings import what_is_found, what_is_there
from keyhole.studies.plan import Study
from keyhole.studies.replay import Match, Pace, Replayed, match_searches, replay_searches
from keyhole.studies.rules import LookSeconds, metrics_of
from keyhole.studies.standings import (
    Combination,
    Effect,
    Mark,
    Standing,
    Winner,
    additive_share,
    effects_of,
    standings_of,
    winner_of,
)
from keyhole.studies.variance import Spread, rank_correlation, spread_of
from keyhole.studies.verdict import Gap, Row, paired

_OF_A_COUNT, _OF_ANY_COUNT = ("stage-ends", "uniform"), ("all", "last-only")  # rules that their name tells in whole
_CHOOSING = ("name", "hints", "metric", "count", "center", "hint", "samples", "layers", "seed")
# Of the speed of a large matrix product, measured (docs/results/distillation.md); a student steps, a teacher looks.
_STUDENT_SPEED, _TEACHER_SPEED = 0.52, 0.84


@dataclass(frozen=True)
class Group:
    """The arms of a study that differ only in which combination of layers they take.

    Attributes:
        name: Of the arm that asked for combinations.
        plan: That arm; its name is as above and it has no hints.
        arms: Name of the arm of each combination.
        rivals: Each other arm of the same student and loss whose hints a rule chose, with that rule.
    """

    name: str
    plan: ArmPlan
    arms: Mapping[tuple[str, ...], str]
    rivals: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """All combinations of one arm of a study, as far as they are finished.

    Combinations come to the end in the order of their layers, so a part of them says nothing of the others, and would
    take what one layer is worth for what another is. Until all of them have come to the end with one seed, or diverged,
    all that is told is which are there.

    Attributes:
        name: Of the arm.
        arms: Names of the arms that it became, one a combination.
        seeds: The seeds that all of these combinations have come to the end with.
        combinations: Those, in the order of the study.
        left_out: How many are not among them: not finished on these seeds, or diverged.
        whole: Whether those that are left out have all diverged. A part has None or nothing in what follows, but for
            seconds.
        mean: Of all of them, percent.
        spread: Between combinations and between seeds; None with one seed.
        seeds_agree: Mean rank correlation between two seeds; None where it is undefined.
        held_out_tells: Rank correlation of held-out accuracies of one seed with test accuracies of another, both after
            the last epoch, mean over the seeds; with one seed of the same runs. None where it is undefined.
        early_tells: The same of held-out accuracies after each earlier epoch at which a search may look.
        effects: What each layer is worth.
        additive: Share of the variance of the combinations that a sum over their layers explains, adjusted for the
            number of layers; None where undefined.
        standings: Where each choice stands, the best first.
        winner: What trying all of them finds; None where no images were held out.
        over_baseline: The mean of all combinations minus the baseline, seed by seed; None where there is none.
        replays: What searches would have found among these runs; empty where no images were held out.
        matches: Centers of k-means clusters beside searches that take as long; empty where seconds are not known.
        seconds_a_cell: What the steps of one student took, and
        seconds_a_pass: what the teacher's passes took that a cohort shares, over the whole schedule: the time of whole
            cohorts, divided by multiply-accumulates and by how fast either makes them. None where that is not known.
        look_s: What the look at the teacher took that told all choices without training; None where not known.
        centers_s: What a look takes that tells the centers of one metric alone, by that metric; empty where not known.
        findings: In plain words, the answer first.
    """

    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    combinations: tuple[Combination, ...]
    left_out: int
    whole: bool
    mean: float | None = None
    spread: Spread | None = None
    seeds_agree: float | None = None
    held_out_tells: float | None = None
    early_tells: Mapping[int, float] = field(default_factory=dict)
    effects: tuple[Effect, ...] = ()
    additive: float | None = None
    standings: tuple[Standing, ...] = ()
    winner: Winner | None = None
    over_baseline: Gap | None = None
    replays: tuple[Replayed, ...] = ()
    matches: tuple[Match, ...] = ()
    seconds_a_cell: float | None
    seconds_a_pass: float | None
    look_s: float | None
    centers_s: Mapping[str, float]
    findings: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The findings in one text."""
        return " ".join(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "sentence": self.sentence}


def groups_of(study: Study) -> tuple[Group, ...]:
    """Return the combinations of a study, by the arm that asked for them.

    Args:
        study: The study, its combinations written out.
    """
    found: dict[ArmPlan, dict[tuple[str, ...], str]] = {}
    for plan in study.arms:
        if isinstance(plan.hints, tuple):
            name = plan.name.removesuffix("+".join(plan.hints)).rstrip()
            found.setdefault(replace(plan, name=name, hints=None), {})[plan.hints] = plan.name
    blank: dict[str, Any] = {each.name: each.default for each in fields(ArmPlan) if each.name in _CHOOSING}

    def rivals(of: ArmPlan) -> dict[str, str]:
        loss = replace(of, **blank)
        return {
            plan.name: plan.hints
            for plan in study.arms
            if isinstance(plan.hints, str) and replace(plan, **blank) == loss
        }

    return tuple(Group(plan.name, plan, arms, rivals(plan)) for plan, arms in found.items() if len(arms) > 1)


def survey(
    group: Group,
    cells: Sequence[Mapping[str, Any] | None],
    *,
    rules: Mapping[str, tuple[str, ...]] | None = None,
    baseline: str | None = None,
    students_per_pass: int = 28,
    look_s: LookSeconds | None = None,
    teacher_macs: int | None = None,
) -> Landscape | None:
    """Return the landscape of a group of combinations; None while fewer than two are finished.

    Args:
        group: The combinations.
        cells: What :class:`keyhole.studies.board.Board` holds of each cell of the study; None where it is not finished.
        rules: What each rule takes (see :func:`keyhole.studies.rules.choices_of_rules`); those that take a combination
            of the group get a standing.
        baseline: The arm that the mean of all combinations is compared with, where it is none of them.
        students_per_pass: Of the searches that are replayed.
        look_s: Seconds of the looks that tell what each rule takes.
        teacher_macs: Multiply-accumulates of the teacher for one image, for cells that do not tell.

    Example:
        >>> arms = {("a",): "x a", ("b",): "x b", ("c",): "x c"}
        >>> cells = [
        ...     {"arm": f"x {name}", "seed": seed, "diverged": None, "top1": {"last": top1 + seed},
        ...      "held_out_top1": {"last": top1}}
        ...     for name, top1 in (("a", 60.0), ("b", 61.0), ("c", 64.0)) for seed in (0, 1)
        ... ]
        >>> found = survey(Group("x", ArmPlan(), arms, {}), cells, rules={"uniform": ("b",)})
        >>> found.winner.layers, found.standings[0].rank, round(found.standings[0].gain, 2)
        (('c',), 2, -0.67)
    """
    by_arm, ended = _by_arm(group, cells)
    by_all = set.intersection(*(ended[arm] for arm in group.arms.values()))
    done = {combo: set(by_arm.get(arm, ())) for combo, arm in group.arms.items()}
    layers, seeds = _whole_table({combo: at & by_all if by_all else at for combo, at in done.items()})
    if len(layers) < 2:
        return None
    rows = [[by_arm[group.arms[combo]][seed] for seed in seeds] for combo in layers]
    known = {} if teacher_macs is None else {"teacher_macs": teacher_macs}
    times = _seconds([{**known, **cell} for row in rows for cell in row])
    combinations = tuple(_combination(combo, row) for combo, row in zip(layers, rows, strict=True))
    part = Landscape(
        name=group.name,
        arms=tuple(group.arms.values()),
        seeds=seeds,
        combinations=combinations,
        left_out=len(group.arms) - len(combinations),
        whole=bool(by_all),
        seconds_a_cell=times and times[0],
        seconds_a_pass=times and times[1],
        look_s=None if look_s is None else look_s.whole,
        centers_s={} if look_s is None else look_s.centers,
        findings=what_is_there(len(combinations), len(group.arms), seeds),
    )
    if not part.whole:
        return part
    top1 = np.array([each.top1 for each in combinations])
    spread = spread_of(top1)
    average = dict(zip(seeds, top1.mean(axis=0).tolist(), strict=True))
    found = replace(
        part,
        mean=float(top1.mean()),
        spread=spread,
        seeds_agree=_seeds_agree(top1),
        effects=effects_of(layers, top1, spread),
        additive=additive_share(layers, top1.mean(axis=1)),
        standings=standings_of(combinations, spread, _marks(group, rules or {}, by_arm, average)),
        over_baseline=None if baseline in part.arms else _over_baseline(average, baseline, by_arm, spread),
    )
    if all(each.held_out for each in combinations):
        found = _with_held_out(found, top1)
    if (curves := _curves(rows)) is not None:
        found = _with_searches(found, top1, curves, times=times, look_s=look_s, students_per_pass=students_per_pass)
    told = (found.standings, found.winner, found.held_out_tells, found.early_tells)
    return replace(found, findings=what_is_found(len(combinations), spread, *told))


def _with_held_out(found: Landscape, top1: Float[np.ndarray, "rows seeds"]) -> Landscape:
    """Return a landscape with what held-out images tell at the end: which combination wins, and how well they know."""
    layers = [each.layers for each in found.combinations]
    held_out = np.array([each.held_out for each in found.combinations])
    winner = winner_of(layers, top1, held_out, found.spread)
    return replace(found, winner=winner, held_out_tells=_across_seeds(held_out, top1))


def _with_searches(
    found: Landscape,
    top1: Float[np.ndarray, "rows seeds"],
    curves: Float[np.ndarray, "rows seeds epochs"],
    *,
    times: tuple[float, float] | None,
    look_s: LookSeconds | None,
    students_per_pass: int,
) -> Landscape:
    """Return a landscape with what searches, which look at held-out images early, would have found in it."""
    replays = replay_searches(curves, top1, students_per_pass=students_per_pass)
    found = replace(found, replays=replays, early_tells=_early_tells(curves, top1, replays))
    if times is None:
        return found
    pace = Pace(*times, curves.shape[2])
    centers = _timed_centers(found.standings, [each.layers for each in found.combinations], look_s)
    matches = match_searches(centers, curves, top1, pace=pace, spread=found.spread, students_per_pass=students_per_pass)
    return replace(found, matches=matches)


def _by_arm(
    group: Group, cells: Sequence[Mapping[str, Any] | None]
) -> tuple[dict[str, dict[int, Mapping[str, Any]]], dict[str, set[int]]]:
    """Return by arm and seed the cells that did not diverge, and by arm the seeds that came to an end at all."""
    whole: dict[str, dict[int, Mapping[str, Any]]] = {}
    ended: dict[str, set[int]] = {arm: set() for arm in group.arms.values()}
    for cell in cells:
        if cell is not None:
            ended.setdefault(cell["arm"], set()).add(int(cell["seed"]))
            if not cell["diverged"]:
                whole.setdefault(cell["arm"], {})[int(cell["seed"])] = cell
    return whole, ended


def _timed_centers(
    standings: Sequence[Standing], layers: Sequence[tuple[str, ...]], look_s: LookSeconds | None
) -> dict[tuple[str, ...], tuple[int, float]]:
    """Return row and seconds of each combination that k-means centers are, by the metrics that choose it.

    Of several metrics the slowest counts, and where looks were not timed one by one, that of everything.
    """
    if look_s is None:
        return {}
    return {
        metrics: (layers.index(each.layers), max(look_s.centers.get(metric, look_s.whole) for metric in metrics))
        for each in standings
        if each.layers and (metrics := metrics_of(each.rules))
    }


def _whole_table(done: Mapping[tuple[str, ...], set[int]]) -> tuple[list[tuple[str, ...]], tuple[int, ...]]:
    """Return combinations and seeds that make the largest table without a hole, seeds finished by most first."""
    counts: dict[int, int] = {}
    for seeds in done.values():
        for seed in seeds:
            counts[seed] = counts.get(seed, 0) + 1
    best: tuple[list[tuple[str, ...]], tuple[int, ...]] = ([], ())
    ordered = sorted(counts, key=lambda seed: (-counts[seed], seed))
    for many in range(1, len(ordered) + 1):
        taken = set(ordered[:many])
        rows = [combo for combo, seeds in done.items() if taken <= seeds]
        if len(rows) * many >= len(best[0]) * len(best[1]) and len(rows) > 1:
            best = (rows, tuple(sorted(taken)))
    return best


def _combination(layers: tuple[str, ...], cells: Sequence[Mapping[str, Any]]) -> Combination:
    held_out = [cell["held_out_top1"]["last"] for cell in cells if cell.get("held_out_top1")]
    return Combination(
        layers,
        tuple(cell["top1"]["last"] for cell in cells),
        tuple(held_out) if len(held_out) == len(cells) else (),
    )


def _marks(
    group: Group,
    rules: Mapping[str, tuple[str, ...]],
    by_arm: Mapping[str, Mapping[int, Mapping[str, Any]]],
    average: Mapping[int, float],
) -> list[Mark]:
    """Return what gets a standing: one mark a combination that rules take, and one a rival with its own cells."""
    takers: dict[tuple[str, ...], list[str]] = {}
    for rule, layers in rules.items():
        takers.setdefault(layers, []).append(rule)
    arms: dict[tuple[str, ...], list[str]] = {}
    marks = []
    for rival, rule in group.rivals.items():
        cells = {seed: cell for seed, cell in by_arm.get(rival, {}).items() if seed in average}
        if not cells:
            continue
        layers = tuple(pair["teacher"] for pair in next(iter(cells.values())).get("hints", ()))
        told = rule in _OF_ANY_COUNT or (rule in _OF_A_COUNT and len(layers) == len(next(iter(group.arms))))
        plain = (rule,) if told else ()
        if layers in group.arms and _trained_alike(cells, by_arm.get(group.arms[layers], {})):
            arms.setdefault(layers, []).append(rival)
            takers.setdefault(layers, []).extend(own for own in plain if own not in takers[layers])
            continue
        values = {seed: float(cell["top1"]["last"]) for seed, cell in cells.items()}
        gaps = tuple(value - average[seed] for seed, value in values.items())
        marks.append(Mark((rival,), (), gaps, statistics.fmean(values.values()), plain))
    found = []
    for layers, own in takers.items():
        if layers in group.arms:
            names = own if layers not in arms else [*(rule for rule in own if rule in rules), *arms[layers]]
            found.append(Mark(tuple(names), layers, rules=tuple(own)))
    return found + marks


def _trained_alike(first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]) -> bool:
    """Return whether cells of two arms learnt the same student layers from the same hints, each with its weight."""
    return all(
        _as_set(first[seed].get("hints", ())) == _as_set(second[seed].get("hints", ()))
        for seed in first.keys() & second.keys()
    )


def _as_set(pairs: Sequence[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    return {(pair["teacher"], pair.get("student"), pair.get("weight", 1.0)) for pair in pairs}


def _curves(rows: Sequence[Sequence[Mapping[str, Any]]]) -> Float[np.ndarray, "rows seeds epochs"] | None:
    """Return held-out accuracies after each epoch; None where they are not there for all."""
    values = [[[each.get("held_out_top1") for each in cell.get("history", ())] for cell in row] for row in rows]
    lengths = {len(curve) for row in values for curve in row}
    if len(lengths) != 1 or lengths == {0} or any(value is None for row in values for curve in row for value in curve):
        return None
    return np.array(values, dtype=float)


def _seconds(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the mean over cells of the seconds of a student's own steps, and of the passes that its cohort shares."""
    known = {"cohort_seconds", "cohort_students", "macs", "teacher_macs"}
    if not all(known <= cell.keys() for cell in cells):
        return None
    found = []
    for cell in cells:
        own, taught = 3 * int(cell["macs"]) / _STUDENT_SPEED, int(cell["teacher_macs"]) / _TEACHER_SPEED
        a_mac = float(cell["cohort_seconds"]) / (taught + int(cell["cohort_students"]) * own)
        found.append((own * a_mac, taught * a_mac))
    return statistics.fmean(own for own, _ in found), statistics.fmean(taught for _, taught in found)


def _seeds_agree(top1: Float[np.ndarray, "rows seeds"]) -> float | None:
    pairs = [rank_correlation(top1[:, a], top1[:, b]) for a, b in combinations(range(top1.shape[1]), 2)]
    known = [value for value in pairs if value is not None]
    return statistics.fmean(known) if known else None


def _early_tells(
    held_out: Float[np.ndarray, "rows seeds epochs"], top1: Float[np.ndarray, "rows seeds"], replays: Sequence[Replayed]
) -> dict[int, float]:
    """Return how each look of a search before the last ranks combinations as the end does, by its epoch."""
    looks = sorted({look for each in replays for look in each.looks[:-1]})
    found = {look: _across_seeds(held_out[:, :, look - 1], top1) for look in looks}
    return {look: value for look, value in found.items() if value is not None}


def _across_seeds(held_out: Float[np.ndarray, "rows seeds"], top1: Float[np.ndarray, "rows seeds"]) -> float | None:
    """Return how held-out values of one seed rank rows as test values of another do; with one seed of its own."""
    seeds = range(top1.shape[1])
    pairs = [(own, other) for own in seeds for other in seeds if own != other or len(seeds) == 1]
    each = [rank_correlation(held_out[:, own], top1[:, other]) for own, other in pairs]
    known = [value for value in each if value is not None]
    return statistics.fmean(known) if known else None


def _over_baseline(
    average: Mapping[int, float],
    baseline: str | None,
    by_arm: Mapping[str, Mapping[int, Mapping[str, Any]]],
    spread: Spread | None,
) -> Gap | None:
    """Return the mean of all combinations minus the baseline, with the noise of their table, which knows it better.

    That a run of the baseline has as much noise as one of a combination is taken for granted.
    """
    cells = by_arm.get(baseline or "", {})
    if baseline is None or not cells:
        return None
    seeds = tuple(sorted(set(average) & set(cells)))
    mean = tuple(average[seed] for seed in seeds)
    base = tuple(float(cells[seed]["top1"]["last"]) for seed in seeds)
    both = [Row(name, seeds, each, each, (), None, None) for name, each in (("mean", mean), (baseline, base))]
    found = paired(*both)
    if found is None or spread is None:
        return found
    factor = (1 + 1 / spread.rows) / found.seeds
    half = spread.half_width(factor)
    return replace(found, low=found.mean - half, high=found.mean + half, p=spread.probability(found.mean, factor))
