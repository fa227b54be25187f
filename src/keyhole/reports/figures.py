"""Drawings as inline SVG: bars, curves and dots that follow the page's colors, light or dark.

Drawn with matplotlib, which is imported when the first figure is made, without pyplot and its global state. Text
stays text, and the ink of the page is a CSS variable in the drawing.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from keyhole.reports.markup import color, dash

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors that stand for variables of the page's style sheet; no other color may equal them.
INK, SOFT, LINE, PAPER, BAR = "#010203", "#020304", "#030405", "#040506", "#050607"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper", BAR: "--bar"}
ACCENT = "#D55E00"
POINT = 1 / 72  # in inches, the unit of matplotlib's sizes

Curve = tuple[Sequence[float], Sequence[float]]


@contextmanager
def drawing(width_in: float, height_in: float) -> Iterator[Figure]:
    """Give a figure of that size in the look of the reports; the caller's matplotlib settings come back afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "keyhole",
                "font.size": 8.5,
                "text.color": INK,
                "axes.labelcolor": SOFT,
                "axes.edgecolor": LINE,
                "axes.facecolor": "none",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "axes.titlesize": 9.5,
                "axes.titlelocation": "left",
                "figure.facecolor": "none",
                "grid.color": LINE,
                "grid.linewidth": 0.6,
                "xtick.color": LINE,
                "ytick.color": LINE,
                "xtick.labelcolor": SOFT,
                "ytick.labelcolor": SOFT,
            }
        )
        yield Figure(figsize=(width_in, height_in))


def to_svg(figure: Figure, alt: str, *, least: float = 0.0) -> str:
    """Return a figure as an SVG element to stand in a page, cut to what is drawn.

    Args:
        figure: The figure of :func:`drawing`.
        alt: What it shows, for those who cannot see it.
        least: It is not drawn smaller than this fraction of its full size; then the page scrolls sideways.

    Returns:
        An ``<svg>`` element with no reference outside of itself; its ids are its own among all figures of a page.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.03, dpi=144)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    own = hashlib.sha256((alt + svg).encode()).hexdigest()[:8]
    svg = re.sub(r"<[^>]*>", lambda found: _tag(found[0], own), svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    width_px = float(size[1]) * 4 / 3 if size else 0.0
    style = f"width:100%;max-width:{width_px:.0f}px;min-width:{least * width_px:.0f}px"
    return f'<svg role="img" aria-label="{html.escape(alt)}" style="{style}"' + svg.removeprefix("<svg")


def _tag(tag: str, own: str) -> str:
    """Return one tag with page colors, ids of its own, and no font family or size in points."""
    if tag.startswith("<svg"):
        tag = re.sub(r' (?:width|height)="[\d.]+pt"', "", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)
    for sentinel, variable in _VARIABLES.items():
        tag = tag.replace(sentinel, f"var({variable})")
    tag = re.sub(r'\bid="', f'id="{own}-', tag)
    return re.sub(r'(url\(|href=")#', rf"\1#{own}-", tag)


def shorten(name: str, most: int = 26) -> str:
    """Return a name that fits an axis: the middle of a long one is left out.

    Example:
        >>> shorten("features.denseblock3.denselayer12.conv2", 20)
        'features.d…r12.conv2'
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def spread_labels(total: int, first: Sequence[int], room: float) -> list[int]:
    """Return which of many positions get a label, none closer than ``room`` to another, those of ``first`` before all.

    Example:
        >>> spread_labels(8, [3], 2)
        [1, 3, 5, 7]
    """
    step = max(1, math.ceil(room))
    kept: list[int] = []
    anchor = first[0] % step if first else 0
    for i in (*first, *range(anchor, total, step), *range(total)):
        if all(abs(i - other) >= room for other in kept):
            kept.append(i)
    return sorted(kept)


def bars(names: Sequence[str], values_pct: Sequence[float], chosen: Mapping[str, str], alt: str) -> str:
    """Return bars by layer from 0 to 100 %, the chosen ones in their color and with their value.

    Args:
        names: The layers, in the order of depth.
        values_pct: One value a layer.
        chosen: Color of each chosen layer.
        alt: What it shows, for those who cannot see it.
    """
    width = min(9.6, 1.2 + 0.45 * len(names))
    with drawing(width, 2.1) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        colors = [chosen.get(name, BAR) for name in names]
        axes.bar(range(len(names)), values_pct, width=0.72, color=colors)
        axes.set(xlim=(-0.7, len(names) - 0.3), ylim=(0, 109), yticks=[0, 25, 50, 75, 100])
        axes.set_ylabel("chosen in … % of half-samples")
        axes.yaxis.grid(True)
        axes.tick_params(length=0)
        cell_pt = width / POINT / (len(names) + 0.4)
        hints = [i for i, name in enumerate(names) if name in chosen]
        label_layers(axes, names, hints, cell_pt, axis="x")
        ordered = sorted(range(len(names)), key=lambda i: (i not in hints, -values_pct[i]))
        for i in spread_labels(len(names), ordered, 15 / cell_pt):
            if i in hints or values_pct[i] >= 0.5:
                axes.text(i, values_pct[i] + 2, f"{values_pct[i]:.0f}", ha="center", fontsize=8, color=INK)
        return to_svg(figure, alt, least=0.6 if len(names) > 15 else 0.0)


def label_layers(axes: Axes, names: Sequence[str], hints: Sequence[int], cell_pt: float, *, axis: str) -> None:
    """Name the layers along an axis, as many as there is room for; hints first, and bold."""
    shown = spread_labels(len(names), hints, 10.5 / cell_pt)
    texts = [shorten(names[i]) for i in shown]
    if axis == "x":
        axes.set_xticks(shown, texts, rotation=90, parse_math=False)
        labels = axes.get_xticklabels()
    else:
        axes.set_yticks(shown, texts, parse_math=False)
        labels = axes.get_yticklabels()
    for i, label in zip(shown, labels, strict=True):
        label.set_fontsize(8)
        if i in hints:
            label.set(color=INK, fontweight="bold")


def silhouettes(values: Mapping[int, float], chosen: int, alt: str) -> str:
    """Return the mean silhouette by count of clusters, the chosen count marked."""
    counts = sorted(values)
    with drawing(4.4, 2.1) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot(counts, [values[k] for k in counts], color=SOFT, linewidth=1.2, marker="o", markersize=4)
        if chosen in values:
            axes.plot([chosen], [values[chosen]], color=ACCENT, marker="o", markersize=9)
            axes.set_title(f"{chosen} clusters: {values[chosen]:.2f}", color=INK, fontweight="bold")
        axes.set_xticks(counts)
        axes.set(xlabel="clusters", ylabel="mean silhouette", xlim=(counts[0] - 0.5, counts[-1] + 0.5))
        axes.margins(y=0.12)
        axes.yaxis.grid(True)
        axes.tick_params(length=0)
        return to_svg(figure, alt)


def curves(
    lines: Sequence[tuple[int, Curve]],
    alt: str,
    *,
    title: str = "",
    unit: str = "",
    width_in: float = 9.0,
    others: Sequence[Curve] = (),
) -> str:
    """Return curves over the epochs, one a numbered arm, in the arms' colors.

    Args:
        lines: Number of the arm, epochs and values; values that are not finite leave gaps.
        alt: What it shows, for those who cannot see it.
        title: Stands above, such as the name of a term.
        unit: Of the values.
        width_in: Width; narrow ones stand side by side.
        others: Drawn thin and gray behind them, as what they are to be seen among.
    """
    with drawing(width_in, 2.5 if width_in > 5 else 1.9) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        for epochs, values in others:
            axes.plot(epochs, values, color=SOFT, linewidth=0.7, alpha=0.45, marker="o", markersize=1.5)
        for number, (epochs, values) in lines:
            pattern = dash(number)
            style = (0.0, [float(part) for part in pattern.split()]) if pattern else "solid"
            few = len(epochs) <= 12
            axes.plot(
                epochs, values, color=color(number), linestyle=style, linewidth=1.6, alpha=0.95,
                marker="o" if few else "", markersize=4,
            )  # fmt: skip
        drawn = [*(curve for _, curve in lines), *others]
        everything = [value for _, values in drawn for value in values if math.isfinite(value)]
        if everything and min(everything) > 0 and max(everything) > 40 * min(everything):
            axes.set_yscale("log")
        ends = [epoch for epochs, _ in drawn for epoch in epochs]
        _epoch_axis(axes, min(ends), max(ends))
        axes.set_title(title, parse_math=False)
        axes.set(xlabel="epoch", ylabel=unit)
        axes.grid(True, axis="y")
        axes.tick_params(length=0, which="both")
        return to_svg(figure, alt, least=0.6 if width_in > 5 else 0.0)


def _epoch_axis(axes: Axes, first: float, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    room = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def dots(rows: Sequence[tuple[str, Sequence[float]]], line: tuple[str, float] | None, alt: str) -> str:
    """Return one dot a seed and a bar at the mean, one row an arm, with a line for the teacher.

    Args:
        rows: Name and values in percent.
        line: Name and value of the teacher.
        alt: What it shows, for those who cannot see it.
    """
    with drawing(7.6, 0.55 + 0.42 * len(rows)) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        for number, (_, values) in enumerate(rows):
            for k, value in enumerate(values):  # a little apart, so that equal seeds are both seen
                lift = 0.11 * ((k % 3) - 1) if len(values) > 1 else 0.0
                axes.plot(value, number + lift, "o", color=color(number), markersize=5.5, alpha=0.75, markeredgewidth=0)
            mean = sum(values) / len(values)
            if len(values) > 1:
                axes.plot([mean, mean], [number - 0.31, number + 0.31], color=INK, linewidth=2)
        if line is not None:
            axes.axvline(line[1], color=SOFT, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"{shorten(line[0])} (teacher)", (line[1], 1), xycoords=("data", "axes fraction"), xytext=(-4, 3),
                textcoords="offset points", ha="right", fontsize=8, color=SOFT, parse_math=False,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [shorten(name, 40) for name, _ in rows], parse_math=False, color=INK)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="top-1 on the test images, %")
        axes.grid(True, axis="x")
        axes.tick_params(length=0)
        return to_svg(figure, alt, least=0.7)


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]], alt: str, *, of: str = "top-1") -> str:
    """Return differences in points with their intervals, and a line at none.

    Args:
        rows: What is compared, the mean difference, and the ends of its interval where there is one.
        alt: What it shows, for those who cannot see it.
        of: The measure.
    """
    with drawing(7.0, 0.5 + 0.36 * len(rows)) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axvline(0, color=SOFT, linewidth=1.1)
        for i, (_, mean, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [i, i], color=color(0), linewidth=2.4, solid_capstyle="round")
            axes.plot(mean, i, "o", color=color(0), markersize=7.5)
        axes.set_yticks(range(len(rows)), [shorten(name, 60) for name, *_ in rows], parse_math=False, color=INK)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"difference in {of}, percentage points")
        axes.margins(x=0.08)
        axes.grid(True, axis="x")
        axes.tick_params(length=0)
        return to_svg(figure, alt, least=0.7)


def frontier(points: Sequence[tuple[str, float, float]], label: str, alt: str) -> str:
    """Return values against a cost on a logarithmic axis, with the line of those that no cheaper one beats.

    Args:
        points: Name, cost, and value in percent.
        label: Of the cost.
        alt: What it shows, for those who cannot see it.
    """
    with drawing(7.0, 3.4) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xscale("log")
        best: list[tuple[float, float]] = []
        for cost, value in sorted({(cost, -value) for _, cost, value in points}):
            if not best or -value > best[-1][1]:
                best.append((cost, -value))
        axes.plot([x for x, _ in best], [y for _, y in best], color=SOFT, linewidth=1.2, drawstyle="steps-post")
        for number, (name, cost, value) in enumerate(points):
            axes.plot(cost, value, "o", color=color(number), markersize=7)
            axes.annotate(
                shorten(name, 34), (cost, value), xytext=(7, 3), textcoords="offset points", fontsize=8, color=INK,
                parse_math=False,
            )  # fmt: skip
        axes.set(xlabel=label, ylabel="top-1, %")
        axes.margins(x=0.25, y=0.12)
        axes.grid(True)
        axes.tick_params(length=0, which="both")
        return to_svg(figure, alt, least=0.7)


def ordered(values: Sequence[Sequence[float]], marks: Sequence[tuple[str, int]], alt: str) -> str:
    """Return values in their order, each a line from its lowest to its highest with its mean, some of them named.

    Args:
        values: Percent, several for each position.
        marks: Name and position of those that are named.
        alt: What it shows, for those who cannot see it.
    """
    with drawing(9.0, 3.0) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        means = [sum(each) / len(each) for each in values]
        axes.vlines(range(len(values)), [min(e) for e in values], [max(e) for e in values], color=BAR, linewidth=2)
        axes.plot(range(len(values)), means, "o", color=SOFT, markersize=3.5)
        # the curve rises, so there is room above its first half and below its second: the outermost label is furthest
        placed = sorted(marks, key=lambda mark: mark[1])
        low = [mark for mark in placed if 2 * mark[1] <= len(values)]
        high = [mark for mark in reversed(placed) if mark not in low]
        for side, start, step, ends in ((low, 0.95, -0.085, "left"), (high, 0.05, 0.085, "right")):
            for number, (name, place) in enumerate(side):
                shade = color(placed.index((name, place)))
                axes.plot(place, means[place], "o", color=shade, markersize=7.5)
                axes.annotate(
                    shorten(name, 44), (place, means[place]), xytext=(place, start + step * number),
                    textcoords=("data", "axes fraction"), fontsize=8, ha=ends, va="center", color=INK,
                    parse_math=False, arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.7, "shrinkA": 0,
                                                   "relpos": (0 if ends == "left" else 1, 0.5)},
                )  # fmt: skip
        axes.set_xticks([])
        axes.set(xlabel="combinations, from the lowest to the highest mean", ylabel="top-1 on the test images, %")
        axes.margins(x=0.02, y=0.15)
        axes.grid(True, axis="y")
        axes.tick_params(length=0)
        return to_svg(figure, alt, least=0.6)


def costs(
    lines: Sequence[tuple[str, Sequence[tuple[float, float, float, float]]]],
    levels: Sequence[tuple[str, float]],
    alt: str,
) -> str:
    """Return gains against costs on a logarithmic axis, with bands, and level lines of what costs nothing.

    Args:
        lines: Name, and cost, gain, and the ends of its band.
        levels: Name and gain.
        alt: What it shows, for those who cannot see it.
    """
    with drawing(8.0, 3.4) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        for number, (name, points) in enumerate(lines):
            cost, gain, low, high = zip(*sorted(points), strict=True)
            axes.fill_between(cost, low, high, color=color(number), alpha=0.15, linewidth=0)
            axes.plot(cost, gain, color=color(number), linewidth=2, marker="o", markersize=4, label=name)
        axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
        axes.axhline(0, color=SOFT, linewidth=1.1)
        highest = max((high for _, points in lines for *_, high in points), default=0.0)
        lowest = min([low for _, points in lines for _, _, low, _ in points] + [value for _, value in levels])
        columns: list[float] = []  # the value of the last label of each
        for name, value in sorted(levels, key=lambda level: level[1]):
            axes.axhline(value, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
            apart = (highest - lowest) / 18  # the height of a label
            free = next((k for k, last in enumerate(columns) if value - last > apart), len(columns))
            free = min(free, 3)  # there is room for four side by side
            columns[free : free + 1] = [value]
            axes.annotate(
                shorten(name, 44), (0.27 * free, value), xycoords=("axes fraction", "data"), xytext=(3, 2),
                textcoords="offset points", fontsize=7.5, color=SOFT, parse_math=False,
            )  # fmt: skip
        axes.set(xlabel="cost in students trained to the end", ylabel="points above the mean of all combinations")
        axes.margins(x=0.1, y=0.1)
        axes.grid(True, axis="y")
        axes.tick_params(length=0, which="both")
        return to_svg(figure, alt, least=0.7)
