"""What a study found, and how sure it is: means and spreads, differences seed by seed, corrected for their number."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from keyhole.errors import SettingError, unknown_name
from keyhole.studies.plan import Comparison, sides_of

if TYPE_CHECKING:
    from keyhole.studies.landscape import Landscape

SURE = 0.05  # a corrected probability below it is beyond chance
_MOST_TOLD = 3  # cells or arms by name, where there may be many
SAME = 1e-6  # points; accuracies of a million images differ by more, and sums of rounded numbers by less


@dataclass(frozen=True)
class Row:
    """One arm over its seeds.

    Attributes:
        arm: Its name.
        seeds: The seeds that came to the end, in ascending order.
        last: Top-1 on the test images after the last epoch, percent, one a seed.
        best: The same after the epoch that was best on the held-out images.
        diverged: Seeds that did not come to the end.
        parameters: Of the student; None where no seed came to the end.
        macs: Multiply-accumulates for one image, likewise.
        held_out: Top-1 on the held-out images after the last epoch, percent, one a seed; empty where none were.
        same_as: The first arm of which every loss of every seed is the very same; None where it is that one itself.
        why: What happened to each seed that diverged.
    """

    arm: str
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    diverged: tuple[int, ...]
    parameters: int | None
    macs: int | None
    held_out: tuple[float, ...] = ()
    same_as: str | None = None
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gap:
    """The difference of two arms, seed by seed, in points of top-1 after the last epoch.

    Attributes:
        arm: The arm.
        against: What it is compared with.
        seeds: How many seeds both came to the end with.
        mean: Mean difference; above 0 where ``arm`` is better.
        low: Lower end of the 95 % interval by Student's t; None with fewer than two seeds, or where all differences
            are the same: accuracies come in steps, and that so few fall on one step says nothing of their spread. What
            a landscape holds has the noise of its whole table instead.
        high: Its upper end.
        p: Two-sided probability of such a mean if there were no difference; None where there is no interval.
        corrected: The same after Holm's correction for the differences that are told together: those of arms to the
            baseline (of arms that try combinations among themselves), and the further comparisons.
    """

    arm: str
    against: str
    seeds: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    corrected: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a study found.

    Attributes:
        findings: In plain words, the answer first.
        baseline: The arm that all others are compared with.
        rows: The arms, in the order of the study.
        gaps: Each other arm against the baseline.
        comparisons: The further comparisons that the study asks for; ``arm`` is the name of one. They are corrected for
            their own number.
        unanswered: Names of those for which no seed has come to the end with all arms.
        open_cells: Cells that are not finished; the verdict leaves them out.
        landscapes: Of arms that try all combinations of layers.
    """

    findings: tuple[str, ...]
    baseline: str
    rows: tuple[Row, ...]
    gaps: tuple[Gap, ...]
    open_cells: int
    landscapes: tuple[Landscape, ...] = ()
    comparisons: tuple[Gap, ...] = ()
    unanswered: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The findings in one text."""
        return " ".join(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        landscapes = [each.to_json() for each in self.landscapes]
        return {"sentence": self.sentence, **asdict(replace(self, landscapes=())), "landscapes": landscapes}

    def to_csv(self) -> str:
        """Return one line a cell; empty where a cell diverged or nothing was held out.

        The columns are arm, seed, top1_last, top1_best, held_out_last, parameters, macs and diverged.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["arm", "seed", "top1_last", "top1_best", "held_out_last", "parameters", "macs", "diverged"])
        for row in self.rows:
            held_out = row.held_out or [""] * len(row.seeds)
            for seed, last, best, held in zip(row.seeds, row.last, row.best, held_out, strict=True):
                writer.writerow([row.arm, seed, last, best, held, row.parameters, row.macs, 0])
            for seed in row.diverged:
                writer.writerow([row.arm, seed, "", "", "", "", "", 1])
        return out.getvalue()


def judge(
    cells: Sequence[Mapping[str, Any] | None],
    arms: Sequence[str],
    *,
    baseline: str | None = None,
    comparisons: Sequence[Comparison] = (),
    landscapes: Sequence[Landscape] = (),
    classes: int | None = None,
) -> Verdict:
    """Return the verdict over the cells of a study.

    Args:
        cells: What :class:`keyhole.studies.board.Board` holds of each cell; None where it is not finished.
        arms: Names of the arms, in order.
        baseline: The arm that the others are compared with; the first one when missing.
        comparisons: Further ones; of several arms on a side the mean counts, over the seeds that all of them came to
            the end with, and two names of one student count as two.
        landscapes: Of arms that try all combinations. What is said of those is said there: the highest of many
            combinations is high by chance as well, and no finding.
        classes: Of the data; with it is told which arms have hardly learnt anything.

    Raises:
        UnknownNameError: There is no such arm, as baseline or in a comparison.
        SettingError: There is no arm.

    Example:
        >>> common = {"diverged": None, "parameters": 1, "macs": 1}
        >>> cells = [
        ...     {"arm": arm, "seed": seed, "top1": {"last": top1, "best": top1}, **common}
        ...     for arm, values in {"kd": (60.0, 61.0, 62.0), "kd + hints": (61.0, 61.9, 63.1)}.items()
        ...     for seed, top1 in enumerate(values)
        ... ]
        >>> gap = judge(cells, ["kd", "kd + hints"]).gaps[0]
        >>> round(gap.mean, 3), round(gap.low, 3), round(gap.high, 3)
        (1.0, 0.752, 1.248)
    """
    if not arms:
        raise SettingError("There is no arm to judge; expected at least one.")
    if baseline is not None and baseline not in arms:
        raise unknown_name("baseline", baseline, arms)
    against = baseline or arms[0]
    done = [cell for cell in cells if cell is not None]
    rows = _with_firsts([_row(arm, [cell for cell in done if cell["arm"] == arm]) for arm in arms], done)
    base = next(row for row in rows if row.arm == against)
    tried = {arm for landscape in landscapes for arm in landscape.arms}
    beside = [row for row in rows if row.arm not in tried]
    own = {gap.arm: gap for gap in _gaps(beside, base) + _gaps([row for row in rows if row.arm in tried], base)}
    judged = _different(beside, base)
    apart = [own[row.arm] for row in judged if row.arm in own]
    gaps = tuple(own[row.arm] for row in rows if row.arm in own)
    asked = [_comparison(comparison, rows) for comparison in comparisons]
    answers = _corrected(asked, [_sides(comparison, rows) for comparison in comparisons])
    unanswered = tuple(one.name for one, gap in zip(comparisons, asked, strict=True) if gap is None)
    missing = len(cells) - len(done)
    parts = [text for landscape in landscapes for text in landscape.findings]
    if not landscapes or sum(bool(row.last) for row in judged) > 1:
        among = "Beside the combinations " if landscapes else ""
        parts += _highest_and_surest(judged, apart, against, among=among, whole=not missing)
    if base.diverged and not base.last and any(row.last for row in rows):
        parts.append(f"The baseline {against} diverged with every seed that has ended, so no arm is compared with it.")
    parts += _answers(answers) + _on_both_sides(comparisons, arms)
    if unanswered and any(row.last for row in rows):
        parts.append(f"No seed has come to the end with all arms of: {'; '.join(unanswered)}.")
    if missing and any(row.last for row in rows):
        parts.append(f"{missing} cells are still open.")
    parts += _diverged(rows, judged)
    if classes:
        parts += _learnt_nothing(rows, classes)
    return Verdict(tuple(parts), against, rows, gaps, missing, tuple(landscapes), tuple(answers), unanswered)


def _with_firsts(rows: Sequence[Row], cells: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Return the rows, each with the first one that learned the very same: rules often come to the same layers."""
    learned: dict[str, list[tuple[int, str]]] = {row.arm: [] for row in rows}
    for cell in cells:
        if cell["arm"] in learned and cell.get("history"):
            learned[cell["arm"]].append((int(cell["seed"]), json.dumps(cell["history"])))
    firsts: dict[Any, str] = {}
    found = []
    for row in rows:
        own = tuple(sorted(learned[row.arm]))
        whole = row.last and len(own) == len(row.seeds) + len(row.diverged)
        first = firsts.setdefault(own, row.arm) if whole else row.arm
        found.append(replace(row, same_as=None if first == row.arm else first))
    return tuple(found)


def first_of(row: Row) -> str:
    """Return the name that stands for a row and all that learned the very same."""
    return row.same_as or row.arm


def _different(rows: Sequence[Row], base: Row) -> list[Row]:
    """Return the baseline, and of the other rows one for each student that is another one."""
    seen = {first_of(base)}
    found = []
    for row in rows:
        if row.arm == base.arm or first_of(row) not in seen:
            found.append(row)
        seen.add(first_of(row))
    return found


def _gaps(rows: Sequence[Row], base: Row) -> list[Gap]:
    """Return the differences to the baseline of rows that are told together."""
    others = [row for row in rows if row.arm != base.arm]
    return _corrected([paired(row, base) for row in others], [first_of(row) for row in others])


def _corrected(found: Sequence[Gap | None], what: Sequence[Any]) -> list[Gap]:
    """Return differences with corrected probabilities; those that compare the same, by ``what``, count once."""
    once = {key: gap.p for gap, key in zip(found, what, strict=True) if gap is not None}
    corrected = dict(zip(once, holm(list(once.values())), strict=True))
    return [replace(gap, corrected=corrected[key]) for gap, key in zip(found, what, strict=True) if gap is not None]


def _sides(comparison: Comparison, rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """Return which students a comparison compares, whatever they are called."""
    firsts = {row.arm: first_of(row) for row in rows}
    return tuple(tuple(sorted(firsts[name] for name in names)) for names in sides_of(comparison, list(firsts)))


def _comparison(comparison: Comparison, rows: Sequence[Row]) -> Gap | None:
    arms, against = sides_of(comparison, [row.arm for row in rows])
    found = paired(_mean_row(arms, rows), _mean_row(against, rows))
    return None if found is None else replace(found, arm=comparison.name)


def _mean_row(names: Sequence[str], rows: Sequence[Row]) -> Row:
    """Return the mean of arms, over the seeds that all of them came to the end with."""
    values = [dict(zip(row.seeds, row.last, strict=True)) for row in rows if row.arm in names]
    seeds = tuple(sorted(set.intersection(*(set(each) for each in values))))
    last = tuple(statistics.fmean(each[seed] for each in values) for seed in seeds)
    return Row(" and ".join(names), seeds, last, last, (), None, None)


def _row(arm: str, cells: Sequence[Mapping[str, Any]]) -> Row:
    ordered = sorted(cells, key=lambda cell: int(cell["seed"]))
    whole = [cell for cell in ordered if not cell["diverged"]]
    held = [cell["held_out_top1"]["last"] for cell in whole if cell.get("held_out_top1")]
    return Row(
        arm=arm,
        seeds=tuple(cell["seed"] for cell in whole),
        last=tuple(cell["top1"]["last"] for cell in whole),
        best=tuple(cell["top1"]["best"] for cell in whole),
        diverged=tuple(cell["seed"] for cell in ordered if cell["diverged"]),
        parameters=whole[0]["parameters"] if whole else None,
        macs=whole[0]["macs"] if whole else None,
        held_out=tuple(held) if len(held) == len(whole) else (),
        why=tuple(str(cell["diverged"]) for cell in ordered if cell["diverged"]),
    )


def paired(row: Row, against: Row) -> Gap | None:
    """Return the difference of two arms over the seeds that both came to the end with; None where there is none.

    Reference:
        Student (1908), https://doi.org/10.2307/2331554: the t interval of the mean of paired differences.

    Example:
        >>> a = Row("a", (0, 1), (61.0, 63.0), (61.0, 63.0), (), 1, 1)
        >>> b = Row("b", (1, 2), (62.0, 70.0), (62.0, 70.0), (), 1, 1)
        >>> paired(a, b)
        Gap(arm='a', against='b', seeds=1, mean=1.0, low=None, high=None, p=None, corrected=None)
    """
    from scipy.stats import t

    other = dict(zip(against.seeds, against.last, strict=True))
    gaps = [value - other[seed] for seed, value in zip(row.seeds, row.last, strict=True) if seed in other]
    if not gaps:
        return None
    mean, count = statistics.fmean(gaps), len(gaps)
    if count < 2 or max(gaps) - min(gaps) < SAME:
        return Gap(row.arm, against.arm, count, mean, None, None, None)
    error = statistics.stdev(gaps) / math.sqrt(count)
    half = float(t.ppf(0.975, count - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, count - 1))
    return Gap(row.arm, against.arm, count, mean, mean - half, mean + half, p)


def holm(probabilities: Sequence[float | None]) -> list[float | None]:
    """Return probabilities corrected for their number, so that the chance of any false one is kept; None stays.

    Reference:
        Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.

    Example:
        >>> holm([0.01, 0.04, 0.03, None])
        [0.03, 0.06, 0.06, None]
    """
    known = sorted((p, i) for i, p in enumerate(probabilities) if p is not None)
    out: list[float | None] = [None] * len(probabilities)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        out[i] = highest
    return out


def _highest_and_surest(
    rows: Sequence[Row], gaps: Sequence[Gap], against: str, *, among: str, whole: bool
) -> list[str]:
    """Return the finding in plain words, with how sure it is; ``among`` goes before the name of the highest arm."""
    ended = [row for row in rows if row.last]
    if not ended:
        return ["No student came to the end." if whole else "Nothing has come to the end yet."]
    best, first = _highest(_ranked(ended))
    parts = [first if best is None else f"{among}{first}"]
    if max(len(row.last) for row in ended) < 2:
        parts.append("With one seed nothing can be said about chance.")
    elif gaps:
        sure = [gap for gap in gaps if gap.corrected is not None and gap.corrected < SURE]
        better, worse = [gap for gap in sure if gap.mean > 0], [gap for gap in sure if gap.mean < 0]
        parts.append(_sure(len(better), len(worse), len(gaps), against))
        if not sure and all(gap.seeds == 2 for gap in gaps):
            own = ", and by those of each arm alone," if among else ""
            parts.append(f"With 2 seeds{own} hardly any difference could be told.")
        leading = next((gap for gap in gaps if gap.arm == best), None)
        if leading is not None and leading.low is None and leading.seeds > 1:
            parts.append(f"{leading.arm} minus {against}: {_without_interval(leading)}")
        if leading is not None and leading.low is not None:
            low, high = _for_the_best_of(leading, len(gaps))
            kind = "95 % interval" if len(gaps) == 1 else f"95 % interval for the best of {len(gaps)}"
            parts.append(
                f"{leading.arm} minus {against}: {leading.mean:+.2f} points ({kind} {low:+.2f} to {high:+.2f})."
            )
    return parts


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the arms that may be called the highest: a mean over the seeds that an arm survived is no mean of it."""
    ended = [row for row in rows if row.last]
    return [row for row in ended if not row.diverged] or ended


def _diverged(rows: Sequence[Row], judged: Sequence[Row]) -> list[str]:
    """Return how many cells diverged, if any did, and whether that kept an arm from being called the highest."""
    count = sum(len(row.diverged) for row in rows)
    if not count:
        return []
    kept = len(_ranked(judged)) < sum(bool(row.last) for row in judged)
    cells = "1 cell" if count == 1 else f"{count} cells"
    reasons = [(row.arm, seed, why) for row in rows for seed, why in zip(row.diverged, row.why, strict=False)]
    shown = "; ".join(f"{arm}, seed {seed}: {why.rstrip('.')}" for arm, seed, why in reasons[:_MOST_TOLD])
    shown += "; ..." if len(reasons) > _MOST_TOLD else ""
    which = f"{cells} diverged, and no arm that did is called the highest" if kept else f"{cells} diverged"
    return [f"{which} ({shown})." if shown else f"{which}."]


def _learnt_nothing(rows: Sequence[Row], classes: int) -> list[str]:
    """Return which arms are hardly better than chance in the mean; how they differ says nothing of how they learn."""
    chance = 100 / classes
    hardly = min(1.5 * chance, 0.9 * chance + 10)
    found = [row for row in rows if row.last and statistics.fmean(row.last) < hardly]
    if not found:
        return []
    shown = ", ".join(row.arm for row in found[:_MOST_TOLD]) + (", ..." if len(found) > _MOST_TOLD else "")
    count = "1 arm is" if len(found) == 1 else f"{len(found)} arms are"
    return [
        f"{count} hardly better than chance ({chance:.1f} %) and learnt next to nothing, so differences of "
        f"{'it' if len(found) == 1 else 'them'} say little: {shown}."
    ]


def _highest(rows: Sequence[Row]) -> tuple[str | None, str]:
    """Return the arm that is highest over the seeds that all arms share, and a sentence on it; None where none are.

    Seeds have levels of their own: means over different ones would compare seeds as well as arms.
    """
    shared = sorted(set.intersection(*(set(row.seeds) for row in rows)))
    if not shared:
        return None, f"No seed has come to the end with all {len(rows)} arms, so none is called the highest."
    held_out = all(row.held_out for row in rows)

    def mean(row: Row, values: Sequence[float]) -> float:
        return statistics.fmean(value for seed, value in zip(row.seeds, values, strict=True) if seed in shared)

    best = max(rows, key=lambda row: mean(row, row.held_out if held_out else row.last))
    where = "highest on the held-out images, and reaches" if held_out else "highest with"
    seeds = "1 seed" if len(shared) == 1 else f"{len(shared)} seeds"
    over = seeds if all(len(row.seeds) == len(shared) for row in rows) else f"the {seeds} that the arms share"
    return best.arm, f"{best.arm} is {where} {mean(best, best.last):.2f} % over {over}."


def _for_the_best_of(gap: Gap, count: int) -> tuple[float, float]:
    """Return an interval that holds for whichever of so many arms the same runs put first (Bonferroni)."""
    from scipy.stats import t

    assert gap.low is not None, "it has an interval"
    wider = float(t.ppf(1 - 0.025 / count, gap.seeds - 1) / t.ppf(0.975, gap.seeds - 1))
    half = wider * (gap.mean - gap.low)
    return gap.mean - half, gap.mean + half


def _answers(comparisons: Sequence[Gap]) -> list[str]:
    """Return a sentence for each comparison that was asked for; of more than three for those that are sure."""
    sure = [gap for gap in comparisons if gap.corrected is not None and gap.corrected < SURE]
    shown = comparisons if len(comparisons) <= 3 else sure
    parts = [_answer(gap, certain=gap in sure) for gap in shown]
    if len(comparisons) > 3:
        rest = len(comparisons) - len(sure)
        parts.append(f"Of {len(comparisons)} comparisons that were asked for, {rest} cannot be told from chance.")
    return parts


def _on_both_sides(comparisons: Sequence[Comparison], arms: Sequence[str]) -> list[str]:
    """Return a sentence for each comparison with an arm on both sides, where a pattern may have put it unseen."""
    parts = []
    for comparison in comparisons:
        some, others = sides_of(comparison, arms)
        if both := [name for name in some if name in others]:
            which = "is" if len(both) == 1 else "are"
            parts.append(
                f"{comparison.name}: {', '.join(both)} {which} on both sides, which pulls the difference towards zero."
            )
    return parts


def _answer(gap: Gap, *, certain: bool) -> str:
    if gap.low is None or gap.high is None:
        return f"{gap.arm}: {_without_interval(gap)}"
    ending = "beyond chance" if certain else "which cannot be told from chance"
    return f"{gap.arm}: {gap.mean:+.2f} points (95 % interval {gap.low:+.2f} to {gap.high:+.2f}), {ending}."


def _without_interval(gap: Gap) -> str:
    seeds = "one seed" if gap.seeds == 1 else f"each of {gap.seeds} seeds"
    return f"{gap.mean:+.2f} points on {seeds}, of which nothing can be said."


def _sure(better: int, worse: int, total: int, against: str) -> str:
    """Return how many arms differ from the baseline beyond chance."""
    chance = "beyond chance (Holm-corrected p below 0.05)"
    if not better + worse:
        what = "the one arm" if total == 1 else f"any of {total} arms"
        return f"This study cannot tell {what} from {against} {chance}."
    if total == 1:
        return f"The one arm beside {against} is {'better' if better else 'worse'} {chance}."
    rest = total - better - worse
    parts = [f"{better} better" if better else "", f"{worse} worse" if worse else ""]
    text = f"Of {total} arms compared with {against}, {' and '.join(part for part in parts if part)} {chance}"
    return text + (f"; of the other {rest} it cannot tell." if rest else ".")
