"""The layer-similarity map: which layers of a network are alike, in which clusters, and which of them teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from keyhole.reports.figures import INK, PAPER, POINT, SOFT, drawing, label_layers, shorten, to_svg
from keyhole.reports.markup import color, text_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_SIDE_IN = 7.2
_DARKEST = "#2b323b"
MOST_NAMED = 12  # names on the diagonal; with more hints the axes name them


@dataclass(frozen=True)
class Marks:
    """What is drawn over a map.

    Attributes:
        hints: Positions of the chosen layers, in the order in which they are given to the student.
        labels: Cluster of each layer; empty where there are no clusters.
    """

    hints: Sequence[int]
    labels: Sequence[int]

    def color(self, layer: int) -> str:
        """Return the color of a layer's cluster; that of the first without clusters."""
        return color(self.labels[layer] if self.labels else 0)

    def text_color(self, layer: int) -> str:
        """Return the color of text on that color."""
        return text_color(self.labels[layer] if self.labels else 0)


def runs(members: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of consecutive positions.

    Example:
        >>> runs([0, 1, 2, 5, 7, 8])
        [(0, 2), (5, 5), (7, 8)]
    """
    found: list[tuple[int, int]] = []
    for i in members:
        if found and found[-1][1] == i - 1:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found


def limits(matrix: Float[np.ndarray, "l l"]) -> tuple[float, float]:
    """Return the lowest and the highest similarity of two different layers; around it where there is one only."""
    different = matrix[~np.eye(len(matrix), dtype=bool)]
    low, high = (float(different.min()), float(different.max())) if different.size else (0.0, 1.0)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def similarity_map(names: Sequence[str], matrix: Float[np.ndarray, "l l"], marks: Marks, alt: str) -> str:
    """Return the large map: layer names, clusters as outlines and as strips at the side, hints on the diagonal.

    Args:
        names: The layers, in the order of depth.
        matrix: Their similarities.
        marks: Clusters and hints.
        alt: What it shows, for those who cannot see it.
    """
    total = len(names)
    side = _SIDE_IN if total > 12 else max(2.2, 0.5 * total)
    cell_pt = side / POINT / total
    with drawing(side + 1.2, side) as figure:
        unit = side / (side + 1.2)
        axes = figure.add_axes((0, 0, unit, 1))
        image = _heat(axes, matrix)
        label_layers(axes, names, marks.hints, cell_pt, axis="x")
        label_layers(axes, names, marks.hints, cell_pt, axis="y")
        axes.tick_params(length=0)
        _outline(axes, marks, 2.4)
        _hint_points(axes, names, marks, cell_pt)
        if marks.labels:
            _strip(figure.add_axes((unit * (1 + 0.08 / side), 0, unit * 0.2 / side, 1), sharey=axes), marks, cell_pt)
        height = min(0.55, 2.4 / side)
        _scale(figure, image, (unit * (1 + 0.5 / side), 1 - height - 0.02, unit * 0.14 / side, height))
        return to_svg(figure, alt, least=0.62 if total > 12 else 0.0)


def small_map(matrix: Float[np.ndarray, "l l"], marks: Marks, alt: str, *, side_in: float = 2.4) -> str:
    """Return a map without names: clusters as outlines and hints as points."""
    with drawing(side_in, side_in) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        _heat(axes, matrix)
        axes.set(xticks=[], yticks=[])
        _outline(axes, marks, 1.5)
        for i in marks.hints:
            axes.plot(i, i, "o", markersize=5.5, color=marks.color(i), markeredgecolor="white", markeredgewidth=1)
        return to_svg(figure, alt)


def _heat(axes: Axes, matrix: Float[np.ndarray, "l l"]) -> AxesImage:
    low, high = limits(matrix)
    image = axes.imshow(matrix, cmap=_grays(), vmin=low, vmax=high, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _grays() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("keyhole", ["#f6f5f1", "#c6ccd0", "#86929c", "#505c68", _DARKEST])


def _outline(axes: Axes, marks: Marks, width: float) -> None:
    """Draw a square around each run of a cluster, and thin boxes where two runs of the same cluster meet."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    for cluster in sorted(set(marks.labels)):
        parts = runs([i for i, label in enumerate(marks.labels) if label == cluster])
        for first, last in parts:
            for left, right in parts:
                own = (first, last) == (left, right)
                box = Rectangle(
                    (left - 0.5, first - 0.5), right - left + 1, last - first + 1, fill=False, edgecolor=color(cluster),
                    linewidth=width if own else 0.45 * width, zorder=3 if own else 2, clip_on=False,
                )  # fmt: skip
                box.set_path_effects([Stroke(linewidth=box.get_linewidth() + 1.6, foreground="white"), Normal()])
                axes.add_patch(box)


def _hint_points(axes: Axes, names: Sequence[str], marks: Marks, cell_pt: float) -> None:
    many = len(marks.hints) > MOST_NAMED
    last = len(names) - 1
    named: dict[bool, list[int]] = {True: [], False: []}
    for order, i in enumerate(marks.hints, 1):
        size = max(4.0, min(13.0, 0.9 * cell_pt)) if many else 13.0
        axes.plot(
            i, i, "o", markersize=size, color=marks.color(i), markeredgecolor="white", markeredgewidth=1.4,
            zorder=5, clip_on=False,
        )  # fmt: skip
        if many:
            continue
        axes.text(
            i, i, str(order), ha="center", va="center_baseline", fontsize=8, fontweight="bold",
            color=marks.text_color(i), zorder=7,
        )  # fmt: skip
        right = i <= 0.55 * last
        free = [side for side in (right, not right) if all(abs(i - j) * cell_pt >= 17 for j in named[side])]
        if free:
            named[free[0]].append(i)
            _name(axes, shorten(names[i]), i, right=free[0])


def _name(axes: Axes, name: str, i: int, *, right: bool) -> None:
    axes.annotate(
        name, (i, i), xytext=(10, 7) if right else (-10, -7), textcoords="offset points",
        ha="left" if right else "right", va="center", fontsize=9, fontweight="bold", color=INK, parse_math=False,
        zorder=6, annotation_clip=False,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.88},
    )  # fmt: skip


def _strip(axes: Axes, marks: Marks, cell_pt: float) -> None:
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, 1), xticks=[])
    axes.tick_params(left=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for cluster in sorted(set(marks.labels)):
        for first, last in runs([i for i, label in enumerate(marks.labels) if label == cluster]):
            axes.add_patch(Rectangle((0, first - 0.46), 1, last - first + 0.92, color=color(cluster), linewidth=0))
            if (last - first + 1) * cell_pt >= 9:
                axes.text(
                    0.5, (first + last) / 2, str(cluster + 1), ha="center", va="center_baseline", fontsize=8,
                    fontweight="bold", color=text_color(cluster),
                )  # fmt: skip


def _scale(figure: Figure, image: AxesImage, where: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(where)
    bar = figure.colorbar(image, cax=axes)
    bar.outline.set_visible(False)
    axes.tick_params(length=0, labelcolor=SOFT)
    axes.set_ylabel("similarity", rotation=90)


def cluster_of(names: Sequence[str], clusters: Sequence[Sequence[str]]) -> list[int]:
    """Return the cluster of each layer, in the order of the names; empty where there are none."""
    number: Mapping[str, int] = {name: k for k, members in enumerate(clusters) for name in members}
    return [number[name] for name in names] if clusters else []
