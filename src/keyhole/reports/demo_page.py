"""The report of the demonstration, in which the same students are trained with several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from keyhole.hints.choice import Hints
from keyhole.reports import figures, hint_parts
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    amount,
    figure,
    named,
    page,
    paragraph,
    plural,
    section,
    table,
    times,
)


def demo_page(summary: Mapping[str, Any], *, hints: Hints | None = None) -> str:
    """Return the report about the demonstration, in which the same students are trained with several seeds.

    Args:
        summary: ``title``, ``note``, ``teacher``, ``arms`` with one ``top1`` a seed, and ``paired`` differences, all
            in percent; the ends of an interval are None with a single seed.
        hints: The choice of the hints, to be shown as well.
    """
    arms, teacher = summary["arms"], summary["teacher"]
    seeds = max((len(arm["top1"]) for arm in arms), default=0)
    rows = [(arm["name"], arm["top1"]) for arm in arms]
    line = (teacher["name"], teacher["top1"]) if teacher else None
    alt = f"Top-1 of each arm over {plural(seeds, 'seed')}"
    caption = "One dot a seed; the upright bar is their mean." if seeds > 1 else "One seed only."
    dots = figure(figures.dots(rows, line, alt), caption) if rows else ""
    parts = [
        paragraph(summary["note"], "note"),
        section("What the students reach", _demo_table(summary), dots),
        _paired_section(summary["paired"]),
    ]
    if hints is not None:
        lead = paragraph(f"{hint_parts.title(hints)}.")
        shown = (hint_parts.lead(hints), hint_parts.hint_table(hints), hint_parts.map_figure(hints))
        parts.append(section("Which layers teach", lead, *shown))
    return page(summary["title"], "Keyhole: demonstration", *parts)


def _demo_table(summary: Mapping[str, Any]) -> Html:
    teacher = summary["teacher"]
    heads = ["top-1, %: mean", "standard deviation", "lowest", "highest", "seeds"]
    heads += ["parameters", "fewer by", "MACs fewer by"]
    columns = [Column("", number=False), *(Column(head) for head in heads)]
    rows = []
    if teacher:
        spread = [NOTHING] * 3
        sizes = [amount(teacher["parameters"]), NOTHING, NOTHING]
        rows.append([f"{teacher['name']} (teacher)", f"{teacher['top1']:.2f}", *spread, "1", *sizes])
    for number, arm in enumerate(summary["arms"]):
        values, saved = arm["top1"], arm["compression"]
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else NOTHING
        ends = [f"{min(values):.2f}", f"{max(values):.2f}"]
        scores = [f"{statistics.fmean(values):.2f}", deviation, *ends, str(len(values))]
        fewer = [times(saved["parameters"]), times(saved["macs"])] if saved else [NOTHING, NOTHING]
        rows.append([named(number, arm["name"]), *scores, amount(arm["parameters"]), *fewer])
    return table(columns, rows, strong=[0] if teacher else [])


def _paired_section(pairs: Sequence[Mapping[str, Any]]) -> Html:
    if not pairs:
        return Html("")
    rows, lines = [], []
    for pair in pairs:
        low, high = pair["low"], pair["high"]
        known = low is not None and high is not None
        verdict = ("yes" if low <= 0 <= high else "no") if known else NOTHING
        ends = f"{low:+.2f} to {high:+.2f}" if known else NOTHING
        rows.append([f"{pair['name']} minus {pair['against']}", f"{pair['mean']:+.2f}", ends, verdict])
        lines.append((f"{pair['name']} minus {pair['against']}", pair["mean"], low, high))
    heads = [Column("seed by seed", number=False)]
    heads += [Column(head) for head in ("mean, points", "95 % interval", "includes 0")]
    drawn = figures.intervals(lines, "Paired differences in top-1 with their intervals")
    text = "Each student is compared with the one of the same seed. "
    if all(pair["low"] is None for pair in pairs):
        text += "One seed gives no interval, so no difference here can be told from chance."
    else:
        text += "Where the interval includes 0, the difference cannot be told from chance."
    return section("Differences", table(heads, rows), figure(drawn, text))
