"""What a study found, and how sure it is: means and spreads, differences seed by seed, corrected for their number."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from keyhole.errors import SettingError, unknown_name

if TYPE_CHECKING:
    from keyhole.studies.landscape import Landscape


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
    """

    arm: str
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    diverged: tuple[int, ...]
    parameters: int | None
    macs: int | None


@dataclass(frozen=True)
class Gap:
    """The difference of two arms, seed by seed, in points of top-1 after the last epoch.

    Attributes:
        arm: The arm.
        against: What it is compared with.
        seeds: How many seeds both came to the end with.
        mean: Mean difference; above 0 where ``arm`` is better.
        low: Lower end of the 95 % interval by Student's t; None with fewer than two seeds.
        high: Its upper end.
        p: Two-sided probability of such a mean if there were no difference; None with fewer than two seeds, or where
            all differences are the same.
        corrected: The same after Holm's correction for all comparisons of the study.
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
        sentence: In plain words.
        baseline: The arm that all others are compared with.
        rows: The arms, in the order of the study.
        gaps: Each other arm against the baseline.
        open_cells: Cells that are not finished; the verdict leaves them out.
        landscapes: Of arms that try all combinations of layers.
    """

    sentence: str
    baseline: str
    rows: tuple[Row, ...]
    gaps: tuple[Gap, ...]
    open_cells: int
    landscapes: tuple[Landscape, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    def to_csv(self) -> str:
        """Return one line a cell: arm, seed, top-1 last and best, parameters, MACs; empty where a cell diverged."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["arm", "seed", "top1_last", "top1_best", "parameters", "macs", "diverged"])
        for row in self.rows:
            for seed, last, best in zip(row.seeds, row.last, row.best, strict=True):
                writer.writerow([row.arm, seed, last, best, row.parameters, row.macs, 0])
            for seed in row.diverged:
                writer.writerow([row.arm, seed, "", "", "", "", 1])
        return out.getvalue()


def judge(
    cells: Sequence[Mapping[str, Any] | None],
    arms: Sequence[str],
    *,
    baseline: str | None = None,
    landscapes: Sequence[Landscape] = (),
) -> Verdict:
    """Return the verdict over the cells of a study.

    Args:
        cells: What :class:`keyhole.studies.board.Board` holds of each cell; None where it is not finished.
        arms: Names of the arms, in order.
        baseline: The arm that the others are compared with; the first one when missing.
        landscapes: Of arms that try all combinations. What is said of those is said there: the highest of many
            combinations is high by chance as well, and no finding.

    Raises:
        UnknownNameError: There is no such arm.
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
    rows = tuple(_row(arm, [cell for cell in done if cell["arm"] == arm]) for arm in arms)
    base = next(row for row in rows if row.arm == against)
    gaps = [found for row in rows if row.arm != against and (found := paired(row, base)) is not None]
    corrected = holm([gap.p for gap in gaps])
    gaps = [Gap(**{**asdict(gap), "corrected": p}) for gap, p in zip(gaps, corrected, strict=True)]
    missing = len(cells) - len(done)
    tried = {arm for landscape in landscapes for arm in landscape.arms}
    told = [row for row in rows if row.arm not in tried]
    parts = [landscape.sentence for landscape in landscapes]
    if not landscapes or sum(bool(row.last) for row in told) > 1:
        parts.append(_sentence(told, [gap for gap in gaps if gap.arm not in tried], against))
    if missing and any(row.last for row in rows):
        parts.append(f"{missing} cells are still open.")
    return Verdict(" ".join(parts), against, rows, tuple(gaps), missing, tuple(landscapes))


def _row(arm: str, cells: Sequence[Mapping[str, Any]]) -> Row:
    ordered = sorted(cells, key=lambda cell: int(cell["seed"]))
    whole = [cell for cell in ordered if not cell["diverged"]]
    return Row(
        arm=arm,
        seeds=tuple(cell["seed"] for cell in whole),
        last=tuple(cell["top1"]["last"] for cell in whole),
        best=tuple(cell["top1"]["best"] for cell in whole),
        diverged=tuple(cell["seed"] for cell in ordered if cell["diverged"]),
        parameters=whole[0]["parameters"] if whole else None,
        macs=whole[0]["macs"] if whole else None,
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
    if count < 2:
        return Gap(row.arm, against.arm, count, mean, None, None, None)
    error = statistics.stdev(gaps) / math.sqrt(count)
    half = float(t.ppf(0.975, count - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, count - 1)) if error > 0 else None
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


def _sentence(rows: Sequence[Row], gaps: Sequence[Gap], against: str) -> str:
    """Return the finding in plain words, with how sure it is."""
    told = [row for row in rows if row.last]
    if not told:
        return "Nothing has come to the end yet."
    best = max(told, key=lambda row: statistics.fmean(row.last))
    seeds = max(len(row.last) for row in told)
    parts = [f"{best.arm} is highest with {statistics.fmean(best.last):.2f} % over {len(best.last)} seed"
             f"{'' if len(best.last) == 1 else 's'}."]  # fmt: skip
    if seeds < 2:
        parts.append("With one seed nothing can be said about chance.")
    elif gaps:
        sure = [gap for gap in gaps if gap.corrected is not None and gap.corrected < 0.05]
        better, worse = [gap for gap in sure if gap.mean > 0], [gap for gap in sure if gap.mean < 0]
        parts.append(_sure(len(better), len(worse), len(gaps), against))
        leading = next((gap for gap in gaps if gap.arm == best.arm), None)
        if leading is not None and leading.low is not None and leading.high is not None:
            parts.append(
                f"{leading.arm} minus {against}: {leading.mean:+.2f} points "
                f"(95 % interval {leading.low:+.2f} to {leading.high:+.2f})."
            )
    return " ".join(parts)


def _sure(better: int, worse: int, total: int, against: str) -> str:
    """Return how many arms differ from the baseline beyond chance."""
    chance = "beyond chance (Holm-corrected p below 0.05)"
    if not better + worse:
        what = "the one arm" if total == 1 else f"any of {total} arms"
        return f"This study cannot tell {what} from {against} {chance}."
    rest = total - better - worse
    parts = [f"{better} better" if better else "", f"{worse} worse" if worse else ""]
    told = f"Of {total} arms compared with {against}, {' and '.join(part for part in parts if part)} {chance}"
    return told + (f"; of the other {rest} it cannot tell." if rest else ".")
