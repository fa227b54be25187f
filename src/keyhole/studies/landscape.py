"""The landscape of all combinations of layers: how good each is, and where those stand that a rule would take."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from keyhole.plans import ArmPlan
from keyhole.studies.plan import Comparison, Study
from keyhole.studies.replay import Replayed, replay_searches
from keyhole.studies.standings import (
    Combination,
    Effect,
    Mark,
    Standing,
    Winner,
    effects_of,
    standings_of,
    winner_of,
)
from keyhole.studies.variance import Spread, rank_correlation, spread_of
from keyhole.studies.verdict import SURE, Gap, Row, paired

_CHOOSING = ("name", "hints", "metric", "count", "center", "hint", "samples", "layers", "seed")


@dataclass(frozen=True)
class Group:
    """The arms of a study that differ only in which combination of layers they take.

    Attributes:
        name: Of the arm that asked for combinations.
        plan: That arm; its name is as above and it has no hints.
        arms: Name of the arm of each combination.
        rivals: Name of each other arm of the same student and loss whose hints a rule chose.
    """

    name: str
    plan: ArmPlan
    arms: Mapping[tuple[str, ...], str]
    rivals: tuple[str, ...]


@dataclass(frozen=True)
class Landscape:
    """All combinations of one arm of a study, as far as they are finished.

    Attributes:
        name: Of the arm.
        arms: Names of the arms that it became, one a combination.
        seeds: The seeds that all told combinations have come to the end with.
        combinations: Those, in the order of the study.
        left_out: How many are not among them: not finished on these seeds, or diverged.
        mean: Of all of them, percent.
        spread: Between combinations and between seeds; None with one seed.
        seeds_agree: Mean rank correlation between two seeds; None where it is undefined.
        held_out_tells: Rank correlation of held-out and test means; None where it is undefined.
        effects: What each layer is worth.
        standings: Where each choice stands, the best first.
        winner: What trying all of them finds; None where no images were held out.
        over_baseline: The mean of all combinations minus the baseline, seed by seed; None where there is none.
        replays: What searches would have found among these runs; empty where no images were held out.
        seconds_a_cell: What the steps of one student took, and
        seconds_a_pass: what the teacher's passes took that a cohort shares, over the whole schedule: the time of whole
            cohorts, divided by multiply-accumulates. None where that is not known.
        look_s: What the look at the teacher took that told all choices without training; None where not known.
        sentence: In plain words.
    """

    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    combinations: tuple[Combination, ...]
    left_out: int
    mean: float
    spread: Spread | None
    seeds_agree: float | None
    held_out_tells: float | None
    effects: tuple[Effect, ...]
    standings: tuple[Standing, ...]
    winner: Winner | None
    over_baseline: Gap | None
    replays: tuple[Replayed, ...]
    seconds_a_cell: float | None
    seconds_a_pass: float | None
    look_s: float | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


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

    def rivals(of: ArmPlan) -> tuple[str, ...]:
        loss = replace(of, **blank)
        return tuple(plan.name for plan in study.arms if isinstance(plan.hints, str) and replace(plan, **blank) == loss)

    return tuple(Group(plan.name, plan, arms, rivals(plan)) for plan, arms in found.items() if len(arms) > 1)


def survey(
    group: Group,
    cells: Sequence[Mapping[str, Any] | None],
    *,
    rules: Mapping[str, tuple[str, ...]] | None = None,
    baseline: str | None = None,
    students_per_pass: int = 28,
    look_s: float | None = None,
    teacher_macs: int | None = None,
) -> Landscape | None:
    """Return the landscape of a group of combinations; None while fewer than two are finished.

    Args:
        group: The combinations.
        cells: What :class:`keyhole.studies.board.Board` holds of each cell of the study; None where it is not finished.
        rules: What each rule takes (see :func:`keyhole.studies.rules.choices_of_rules`); those that take a combination
            of the group get a standing.
        baseline: The arm that the mean of all combinations is compared with.
        students_per_pass: Of the searches that are replayed.
        look_s: Seconds of the look that told what each rule takes.
        teacher_macs: Multiply-accumulates of the teacher for one image, for cells that do not tell.

    Example:
        >>> arms = {("a",): "x a", ("b",): "x b", ("c",): "x c"}
        >>> cells = [
        ...     {"arm": f"x {name}", "seed": seed, "diverged": None, "top1": {"last": top1 + seed},
        ...      "held_out_top1": {"last": top1}}
        ...     for name, top1 in (("a", 60.0), ("b", 61.0), ("c", 64.0)) for seed in (0, 1)
        ... ]
        >>> found = survey(Group("x", ArmPlan(), arms, ()), cells, rules={"uniform": ("b",)})
        >>> found.winner.layers, found.standings[0].rank, round(found.standings[0].gain, 2)
        (('c',), 2, -0.67)
    """
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        if cell is not None and not cell["diverged"]:
            by_arm.setdefault(cell["arm"], {})[int(cell["seed"])] = cell
    layers, seeds = _whole_table({combo: set(by_arm.get(arm, ())) for combo, arm in group.arms.items()})
    if len(layers) < 2:
        return None
    rows = [[by_arm[group.arms[combo]][seed] for seed in seeds] for combo in layers]
    told = tuple(_combination(combo, row) for combo, row in zip(layers, rows, strict=True))
    top1 = np.array([each.top1 for each in told])
    spread = spread_of(top1)
    average = dict(zip(seeds, top1.mean(axis=0).tolist(), strict=True))
    standings = standings_of(told, spread, _marks(group, rules or {}, by_arm, average))
    held_out = np.array([each.held_out for each in told]) if all(each.held_out for each in told) else None
    winner = None if held_out is None else winner_of(layers, top1, held_out, spread)
    effects = effects_of(layers, top1, spread)
    known = {} if teacher_macs is None else {"teacher_macs": teacher_macs}
    times = _seconds([{**known, **cell} for row in rows for cell in row])
    return Landscape(
        name=group.name,
        arms=tuple(group.arms.values()),
        seeds=seeds,
        combinations=told,
        left_out=len(group.arms) - len(told),
        mean=float(top1.mean()),
        spread=spread,
        seeds_agree=_seeds_agree(top1),
        held_out_tells=None if held_out is None else rank_correlation(top1.mean(axis=1), held_out.mean(axis=1)),
        effects=effects,
        standings=standings,
        winner=winner,
        over_baseline=_over_baseline(average, baseline, by_arm.get(baseline or "", {})),
        replays=()
        if (curves := _curves(rows)) is None
        else replay_searches(curves, top1, students_per_pass=students_per_pass),
        seconds_a_cell=times and times[0],
        seconds_a_pass=times and times[1],
        look_s=look_s,
        sentence=_sentence(len(told), spread, standings, winner),
    )


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
    for name, layers in rules.items():
        takers.setdefault(layers, []).append(name)
    marks = []
    for rival in group.rivals:
        cells = {seed: cell for seed, cell in by_arm.get(rival, {}).items() if seed in average}
        if not cells:
            continue
        taught = tuple(pair["teacher"] for pair in next(iter(cells.values())).get("hints", ()))
        if taught in group.arms:  # the same student, trained the same way
            takers.setdefault(taught, []).append(rival)
            continue
        values = {seed: float(cell["top1"]["last"]) for seed, cell in cells.items()}
        gaps = tuple(value - average[seed] for seed, value in values.items())
        marks.append(Mark((rival,), (), gaps, statistics.fmean(values.values())))
    return [Mark(tuple(names), layers) for layers, names in takers.items() if layers in group.arms] + marks


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
        own, taught = 3 * int(cell["macs"]), int(cell["teacher_macs"])
        a_mac = float(cell["cohort_seconds"]) / (taught + int(cell["cohort_students"]) * own)
        found.append((own * a_mac, taught * a_mac))
    return statistics.fmean(own for own, _ in found), statistics.fmean(taught for _, taught in found)


def _seeds_agree(top1: Float[np.ndarray, "rows seeds"]) -> float | None:
    pairs = [rank_correlation(top1[:, a], top1[:, b]) for a, b in combinations(range(top1.shape[1]), 2)]
    known = [value for value in pairs if value is not None]
    return statistics.fmean(known) if known else None


def _over_baseline(
    average: Mapping[int, float], baseline: str | None, cells: Mapping[int, Mapping[str, Any]]
) -> Gap | None:
    if baseline is None:
        return None
    seeds = tuple(sorted(set(average) & set(cells)))
    mean = tuple(average[seed] for seed in seeds)
    base = tuple(float(cells[seed]["top1"]["last"]) for seed in seeds)
    both = [Row(name, seeds, each, each, (), None, None) for name, each in (("mean", mean), (baseline, base))]
    return paired(*both)


CENTERS, GUESSES, SEARCHED = "centers", "guesses", "searched"
_GUESSES = ("stage-ends", "uniform", "random")


@dataclass(frozen=True)
class Finalist:
    """A combination that is worth fresh seeds.

    Attributes:
        name: Of all that choose it.
        layers: What it is.
        kinds: Of those: :data:`CENTERS` of k-means clusters, :data:`GUESSES` without a look at similarities, or
            :data:`SEARCHED`.
    """

    name: str
    layers: tuple[str, ...]
    kinds: tuple[str, ...]


def finalists(landscape: Landscape, *, searched: int = 3) -> tuple[Finalist, ...]:
    """Return what is worth fresh seeds: the centers of each metric, the guesses, and the best that the search found.

    Args:
        landscape: The landscape.
        searched: How many of the combinations with the highest held-out means.
    """
    ranked = [each for each in landscape.combinations if each.held_out]
    ranked.sort(key=lambda each: -statistics.fmean(each.held_out))
    places = {each.layers: place for place, each in enumerate(ranked[:searched], start=1)}
    takers = {each.layers: each.names for each in landscape.standings if each.layers}
    found = []
    for layers in dict.fromkeys([*places, *takers]):
        names = takers.get(layers, ())
        metrics = [name.removeprefix("kmeans ") for name in names if name.startswith("kmeans ") and is_center(name)]
        guesses = [name for name in names if name.partition(",")[0] in _GUESSES]
        parts = {
            SEARCHED: f"searched {places[layers]}" if layers in places else "",
            CENTERS: f"centers by {' and '.join(metrics)}" if metrics else "",
            GUESSES: " and ".join(guesses),
        }
        if any(parts.values()):
            told = {kind: part for kind, part in parts.items() if part}
            found.append(Finalist("; ".join(told.values()), layers, tuple(told)))
    return tuple(found)


def comparisons_of(found: Sequence[Finalist]) -> tuple[Comparison, ...]:
    """Return the comparisons that fresh seeds are for; one that is of both sides counts on both."""
    sides = {kind: tuple(each.name for each in found if kind in each.kinds) for kind in (CENTERS, GUESSES, SEARCHED)}
    pairs = ((CENTERS, GUESSES), (CENTERS, SEARCHED), (SEARCHED, GUESSES))
    return tuple(
        Comparison(f"{first} against {second}", sides[first], sides[second])
        for first, second in pairs
        if sides[first] and sides[second] and sides[first] != sides[second]
    )


def is_center(name: str) -> bool:
    """Return whether a rule takes the centers of clusters, by its name.

    Example:
        >>> is_center("kmeans r2_cca"), is_center("kmeans r2_cca, last"), is_center("uniform")
        (True, False, False)
    """
    from keyhole.hints.clustering import CLUSTERINGS

    return name.partition(" ")[0] in CLUSTERINGS and "," not in name


def _sentence(count: int, spread: Spread | None, standings: Sequence[Standing], winner: Winner | None) -> str:
    """Return what the figures say on choosing, whichever way they fall."""
    if spread is None:
        return (
            f"{count} combinations of layers on one seed: whether choosing matters cannot be told from chance. "
            "It takes a second seed."
        )
    parts = [
        _does_it_matter(count, spread),
        _do_centers_pay(standings),
        _where_controls_stand(standings),
        _does_searching_pay(winner),
    ]
    return " ".join(part for part in parts if part)


def _does_it_matter(count: int, spread: Spread) -> str:
    told = (
        f"Over {count} combinations of layers and {spread.seeds} seeds, the combination accounts for "
        f"{100 * spread.share:.0f} % of the variance of single runs (95 % interval {100 * spread.share_low:.0f} to "
        f"{100 * spread.share_high:.0f} %): a standard deviation of {spread.between:.2f} points against "
        f"{spread.noise:.2f} between seeds."
    )
    if spread.p is not None and spread.p >= SURE:
        return (
            "Which layers are taken cannot be told to matter; if it does, then by a standard deviation of at most "
            f"{spread.between_high:.2f} points. {told}"
        )
    if spread.between < spread.noise:
        return f"Which layers are taken matters, but less than the seed does. {told}"
    return f"Which layers are taken matters, more than the seed does. {told}"


def _do_centers_pay(standings: Sequence[Standing]) -> str:
    centers = [each for each in standings if any(is_center(name) for name in each.names)]
    if not centers:
        return ""
    places = [100 * each.better_than for each in centers]
    better = sum(each.p is not None and each.p < SURE and each.gain > 0 for each in centers)
    worse = sum(each.p is not None and each.p < SURE and each.gain < 0 for each in centers)
    many = f"The {len(centers)} different choices of cluster centers are" if len(centers) > 1 else "Cluster centers are"
    between = f"{min(places):.0f} to {max(places):.0f}" if len(centers) > 1 else f"{places[0]:.0f}"
    told = f"{many} better than {between} % of the other combinations"
    if not better + worse:
        return f"{told}; that cannot be told from the average combination, so choosing them is not shown to pay."
    ends = [f"{better} better" if better else "", f"{worse} worse" if worse else ""]
    return f"{told}: {' and '.join(end for end in ends if end)} than the average combination beyond chance."


def _where_controls_stand(standings: Sequence[Standing]) -> str:
    """Return the places of the rules that look at no similarity."""
    named = {
        "stage-ends": "stage ends",
        "uniform": "uniform layers",
        "all": "all layers",
        "last-only": "the last alone",
    }
    found = [
        f"{told} {'beats' if rule == 'last-only' else 'beat'} {100 * each.better_than:.0f} %"
        for rule, told in named.items()
        for each in standings
        if any(name == rule or name.endswith(f" {rule}") for name in each.names)
    ]
    return f"Of the combinations, {', '.join(found)}." if found else ""


def _does_searching_pay(winner: Winner | None) -> str:
    if winner is None or winner.low is None or winner.high is None:
        return ""
    pays = "pays" if winner.low > 0 else "costs" if winner.high < 0 else "is not shown to pay"
    return (
        f"Trying them all {pays}: what is best on held-out images of the other seeds is {winner.gain:+.2f} points "
        f"from the average combination on a seed it has not seen (95 % interval {winner.low:+.2f} to "
        f"{winner.high:+.2f})."
    )
