"""Single drawings: what stands where, and that the caller's matplotlib is left alone."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import matplotlib
import numpy as np
import pytest

from keyhole.reports import figures, maps
from keyhole.reports.markup import COLORS, Column, Html, color, dash, escape, swatch, table

NAMES = [f"layer{i}" for i in range(8)]


def similar(total: int) -> np.ndarray:
    where = np.arange(total)
    return np.asarray(1 / (1 + abs(where[:, None] - where)))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_figures_leave_settings_alone_whatever_they_are() -> None:
    with matplotlib.rc_context({"font.size": 33, "axes.facecolor": "red", "svg.fonttype": "path"}):
        drawn = figures.bars(NAMES, [50.0] * 8, {}, "bars")
        assert matplotlib.rcParams["font.size"] == 33
        assert matplotlib.rcParams["svg.fonttype"] == "path"
    assert drawn == figures.bars(NAMES, [50.0] * 8, {}, "bars")


def test_pages_import_matplotlib_late_and_pyplot_never() -> None:
    code = (
        "import sys; import keyhole.reports.hints_page; assert 'matplotlib' not in sys.modules;"
        "from keyhole.reports.figures import bars; bars(['a'], [1.0], {}, '');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_map_outlines_every_run_of_a_cluster_and_where_runs_meet() -> None:
    labels = [0, 0, 1, 1, 0, 2, 2, 2]
    svg = maps.similarity_map(NAMES, similar(8), maps.Marks([1, 3, 6], labels), "a map")
    boxes = {k: len(re.findall(f"stroke: {color(k)}", svg, flags=re.IGNORECASE)) for k in range(3)}
    # two runs of cluster 0 make 2 x 2 boxes; the other clusters one each
    assert boxes[0] == boxes[1] + 3 == boxes[2] + 3
    texts = [element.text for element in parsed(svg).iter() if element.tag.endswith("text")]
    assert all(texts.count(name) == 2 + (name in ("layer1", "layer3", "layer6")) for name in NAMES)


def test_map_of_many_layers_names_every_hint_and_thins_the_rest() -> None:
    names = [f"layer{i}" for i in range(120)]
    svg = maps.similarity_map(names, similar(120), maps.Marks([11, 57, 118], [0] * 120), "a map")
    texts = [element.text for element in parsed(svg).iter() if element.tag.endswith("text")]
    assert all(texts.count(f"layer{i}") == 3 for i in (11, 57, 118))
    assert 40 < len(texts) < 160


def test_map_of_one_layer_and_of_layers_that_are_all_alike() -> None:
    assert maps.limits(np.ones((1, 1))) == (0.0, 1.0)
    assert maps.limits(np.full((3, 3), 0.7)) == pytest.approx((0.2, 1.2))
    for matrix in (np.ones((1, 1)), np.ones((3, 3))):
        parsed(maps.similarity_map(NAMES[: len(matrix)], matrix, maps.Marks([0], []), "a map"))
        parsed(maps.small_map(matrix, maps.Marks([0], []), "a map"))


def test_limits_leave_the_diagonal_out() -> None:
    assert maps.limits(np.array([[9.0, 0.2], [0.4, 9.0]])) == (0.2, 0.4)


def test_labels_keep_their_distance_and_hints_come_first() -> None:
    for total, first, room in ((54, [3, 4, 30], 2.5), (10, [], 0.3), (1, [0], 4.0), (27, [26], 1.0)):
        kept = figures.spread_labels(total, first, room)
        assert all(later - earlier >= room for earlier, later in pairwise(kept))
        assert not first or first[0] in kept
    assert figures.spread_labels(10, [], 0.3) == list(range(10))
    assert 4 not in figures.spread_labels(54, [3, 4, 30], 2.5)


def test_names_that_are_markup_mathematics_or_missing_in_the_font() -> None:
    for name in ('<b>&"x"', "$x^{$", r"$\alpha$", "_hidden", "层", "url(#a)", 'id="x"', "#010203"):
        for svg in (
            figures.bars([name], [40.0], {name: "#D55E00"}, name),
            figures.dots([(name, [1.0, 2.0])], (name, 3.0), name),
            figures.intervals([(name, 1.0, 0.5, 1.5)], name),
            figures.curves([(0, ([1, 2], [1.0, 0.5]))], name, title=name),
        ):
            root = parsed(svg.replace("xlink:href", "href"))
            assert any(name in (element.text or "") for element in root.iter()), name
            assert root.attrib["aria-label"] == name


def test_curves_take_steep_falls_gaps_and_single_epochs() -> None:
    steep = figures.curves([(0, ([1, 2, 3], [1000.0, 1.0, 0.001]))], "falls")
    assert "10" in steep
    for values in ([1.0, math.nan, 2.0], [0.0, 0.0, 0.0]):
        parsed(figures.curves([(0, ([1, 2, 3], values))], "gap"))
    one = figures.curves([(0, ([7], [0.5]))], "one")
    assert ">7<" in one


def test_silhouette_marks_the_chosen_count_only_where_it_was_measured() -> None:
    values = {2: 0.4, 3: 0.51, 4: 0.3}
    assert "3 clusters: 0.51" in figures.silhouettes(values, 3, "s")
    assert "1 clusters" not in figures.silhouettes(values, 1, "s")


def test_arms_past_the_sixth_differ_by_their_line() -> None:
    lines = [(color(k), dash(k)) for k in range(4 * len(COLORS))]
    assert len(set(lines)) == len(lines)
    assert "stroke-dasharray" not in swatch(0)
    assert "stroke-dasharray" in swatch(6)


def test_cells_are_escaped_unless_they_are_html() -> None:
    assert "<td>" not in table([Column("<a>")], [["<i>"]]).replace('<td class="n">', "")
    assert "&lt;i&gt;" in table([Column("<a>")], [["<i>"]])
    assert escape(Html("<i>")) == "<i>"


def test_values_in_order_name_those_that_are_marked() -> None:
    svg = figures.ordered([(60.0, 61.0), (61.0, 62.5), (63.0,)], [("stage <ends>", 2), ("uniform", 0)], "an order")
    texts = [element.text for element in parsed(svg).iter() if element.tag.endswith("text")]
    assert {"stage <ends>", "uniform"} <= set(texts)
    assert [svg.lower().count(color(number).lower()) > 0 for number in (0, 1, 2)] == [True, True, False]


def test_costs_have_a_line_a_search_and_a_level_a_choice() -> None:
    points = [(1.0, 0.0, -0.5, 0.5), (20.3, 0.4, 0.1, 0.8)]
    svg = figures.costs([("random", points), ("halving", points[::-1])], [("cluster $centers$", 0.2)], "costs")
    texts = [element.text for element in parsed(svg).iter() if element.tag.endswith("text")]
    assert {"random", "halving", "cluster $centers$", "1", "10"} <= set(texts)
    assert all(svg.lower().count(color(number).lower()) > 1 for number in (0, 1))
