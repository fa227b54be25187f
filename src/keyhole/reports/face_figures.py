"""Drawings of what a face model reaches: by the size of the probe, by rank, by threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keyhole.reports.figures import INK, SOFT, drawing, to_svg
from keyhole.reports.markup import color, dash

_MOST_MARKERS = 2000


class Band(NamedTuple):
    """A value with the ends of its interval, in percent."""

    value: float
    low: float
    high: float


def by_size(lines: Sequence[tuple[str, Mapping[float, Band]]], label: str, alt: str) -> str:
    """Return a measure over the size of the probe, one line a way of matching, with its interval.

    Args:
        lines: Name of the way, and its values by ``face_px``.
        label: Of the measure.
        alt: What it shows, for those who cannot see it.
    """
    sizes = sorted({px for _, values in lines for px in values})
    with drawing(8.4, 3.3) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        for number, (_, values) in enumerate(lines):
            # a little apart, so that bars of equal sizes are all seen
            shift = 1 + 0.012 * (number - (len(lines) - 1) / 2)
            xs = [px * shift for px in sorted(values)]
            bands = [values[px] for px in sorted(values)]
            pattern = _pattern(number)
            axes.plot(
                xs, [band.value for band in bands], color=color(number), linewidth=1.8, marker="o", markersize=4.5,
                linestyle=pattern,
            )  # fmt: skip
            for x, band in zip(xs, bands, strict=True):
                axes.plot([x, x], [band.low, band.high], color=color(number), linewidth=1.1, alpha=0.75)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{px:g}" for px in sizes])
        axes.minorticks_off()
        axes.set(xlabel="face_px of the probe: side of the aligned face in its own pixels", ylabel=label)
        axes.yaxis.grid(True)
        axes.tick_params(length=0)
        return to_svg(figure, alt, least=0.6)


def by_rank(lines: Sequence[tuple[str, Sequence[float]]], alt: str) -> str:
    """Return cumulative match curves: in how many percent of searches the mate is among the first k.

    Args:
        lines: Name, and the percent by rank from 1.
        alt: What it shows, for those who cannot see it.
    """
    with drawing(4.4, 2.8) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        for number, (_, values) in enumerate(lines):
            axes.plot(range(1, len(values) + 1), values, color=color(number), linewidth=1.7, linestyle=_pattern(number))
        axes.set(xlabel="rank", ylabel="mate among the first, %")
        axes.set_xscale("log")
        most = max((len(values) for _, values in lines), default=1)
        ticks = [rank for rank in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if rank <= most]
        axes.set_xticks(ticks, [str(rank) for rank in ticks])
        axes.minorticks_off()
        axes.yaxis.grid(True)
        axes.tick_params(length=0)
        return to_svg(figure, alt)


def by_threshold(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], labels: tuple[str, str], alt: str
) -> str:
    """Return error rates against each other, both on a logarithmic axis: DET, or FNIR over FPIR.

    Args:
        lines: Name, rates along x, rates along y; 0 to 1. Points where one is 0 are left out.
        labels: Of the axes.
        alt: What it shows, for those who cannot see it.
    """
    with drawing(4.4, 2.8) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, (_, xs, ys) in enumerate(lines):
            points = [(100 * x, 100 * y) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=color(number), linewidth=1.7, linestyle=_pattern(number),
                    drawstyle="steps-post",
                )  # fmt: skip
        axes.set_xlabel(labels[0], color=SOFT)
        axes.set_ylabel(labels[1], color=SOFT)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _at: f"{value:g}")
            axis.set_minor_formatter(lambda _value, _at: "")
            axis.grid(True)
        axes.tick_params(length=0, which="both")
        axes.title.set_color(INK)
        return to_svg(figure, alt)


def by_threshold_size(
    groups: Sequence[tuple[str, Mapping[float, np.ndarray]]], thresholds: Mapping[float, float], alt: str
) -> str:
    """Return how scores of groups lie at each size, and the threshold between them.

    A thin line spans the middle 98 % of a group's scores, a thick one the middle half, with a dot at the median.

    Args:
        groups: Name, and scores by size; what is not finite is left out.
        thresholds: Score by size.
        alt: What it shows, for those who cannot see it.
    """
    sizes = sorted(thresholds)
    with drawing(8.4, 3.3) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        for number, (_, scores) in enumerate(groups):
            for at, px in enumerate(sizes):
                values = np.asarray(scores.get(px, ()), float)
                values = values[np.isfinite(values)]
                if not len(values):
                    continue
                x = at + 0.22 * (number - (len(groups) - 1) / 2)
                low, first, middle, third, high = np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))
                axes.plot([x, x], [low, high], color=color(number), linewidth=1.1)
                axes.plot([x, x], [first, third], color=color(number), linewidth=5, solid_capstyle="butt", alpha=0.6)
                axes.plot(x, middle, "o", color=color(number), markersize=4)
        for at, px in enumerate(sizes):
            axes.plot([at - 0.36, at + 0.36], [thresholds[px]] * 2, color=INK, linewidth=1.8)
        axes.set_xticks(range(len(sizes)), [f"{px:g}" for px in sizes])
        axes.set(xlabel="face_px that the probe shows", ylabel="score")
        axes.yaxis.grid(True)
        axes.tick_params(length=0)
        return to_svg(figure, alt, least=0.6)


def over_frames(tracks: Sequence[Sequence[tuple[int, float, float]]], alt: str) -> str:
    """Return how many pixels of face a clip shows, one line a face.

    Args:
        tracks: Frame, ``face_px`` by the eyes (dotted), and ``face_px`` that is really shown (whole line).
        alt: What it shows, for those who cannot see it.
    """
    with drawing(8.4, 3.0) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        for number, track in enumerate(tracks):
            frames, eyes, shown = zip(*track, strict=True)
            axes.plot(frames, eyes, color=color(number), linewidth=1.1, linestyle=":")
            few = sum(map(len, tracks)) <= _MOST_MARKERS
            axes.plot(
                frames, shown, color=color(number), linewidth=1.8, linestyle=_pattern(number),
                marker="o" if few else "", markersize=3,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set(xlabel="frame", ylabel="face_px")
        axes.yaxis.grid(True)
        axes.tick_params(length=0)
        return to_svg(figure, alt, least=0.6)


def _pattern(number: int) -> str | tuple[float, tuple[float, ...]]:
    text = dash(number)
    return (0.0, tuple(float(part) for part in text.split())) if text else "-"
