"""Drawings taken out of a report: whole files that say the same as on the page, in any program that knows SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from keyhole.errors import DataError
from keyhole.reports import figures, markup
from keyhole.reports.drawings import drawings, read_drawings

SVG = "{http://www.w3.org/2000/svg}"


def two_lines() -> str:
    """Return a page with two drawings, the first under a legend, the second in a section of its own."""
    lines = [(0, ([1, 2, 3], [3.0, 2.0, 1.0])), (1, ([1, 2, 3], [3.0, 2.5, 2.0]))]
    curves = markup.figure(figures.curves(lines, "Loss of <kd> & others"), "falls")
    silhouettes = markup.figure(figures.silhouettes({2: 0.4, 3: 0.6}, 3, "How many clusters"))
    return markup.page(
        "A run",
        "Keyhole",
        markup.section("Losses, by epoch", markup.legend(["<kd>", "at & hint"]), curves),
        markup.section("How many", silhouettes),
    )


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(SVG + "text")]


def test_each_is_a_file_of_its_own_named_by_number_and_heading() -> None:
    first, second = drawings(two_lines())
    assert (first.name, first.told) == ("1-losses-by-epoch", "Loss of <kd> & others")
    assert (second.name, second.told) == ("2-how-many", "How many clusters")
    for each in (first, second):
        root = ElementTree.fromstring(each.svg)
        assert root.tag == SVG + "svg"
        assert root.find(SVG + "title").text == each.told  # type: ignore[union-attr]
        assert "var(" not in each.svg
        assert "http" not in each.svg.replace("http://www.w3.org/", "")


def test_a_legend_above_comes_along_and_lies_outside_of_the_drawing() -> None:
    first, second = (ElementTree.fromstring(each.svg) for each in drawings(two_lines()))
    assert texts(first)[:2] == ["<kd>", "at & hint"]
    assert "<kd>" not in texts(second)
    lines = [each for each in first if each.tag == SVG + "line"]
    assert [each.get("stroke") for each in lines] == [markup.color(0), markup.color(1)]
    _, top, _, height = (float(part) for part in first.attrib["viewBox"].split())
    assert top == -2 * 14 - 2 * 6
    assert all(top + 6 < float(each.attrib["y1"]) < -6 for each in lines)
    ground = first.find(SVG + "rect")
    assert ground is not None
    assert (float(ground.attrib["y"]), float(ground.attrib["height"])) == (top, height)
    assert ElementTree.fromstring(drawings(two_lines())[1].svg).attrib["viewBox"].split()[:2] == ["-6", "-6"]


def test_dashes_of_many_arms_are_kept() -> None:
    names = [f"arm {i}" for i in range(8)]
    drawn = markup.figure(figures.curves([(i, ([1, 2], [1.0, 2.0])) for i in range(8)], "many"))
    (found,) = drawings(markup.page("A run", "", markup.section("Losses", markup.legend(names), drawn)))
    lines = [each for each in ElementTree.fromstring(found.svg) if each.tag == SVG + "line"]
    assert [each.get("stroke-dasharray", "") for each in lines] == [markup.dash(i) for i in range(8)]


def test_a_page_without_drawings_or_with_a_cut_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no drawing of Keyhole\. Name the report\.html"):
        drawings("<html><svg><g/></svg></html>")
    broken = two_lines().replace("</g>", "", 1)
    with pytest.raises(DataError, match=r"Drawing 1 of the page is not whole"):
        drawings(broken)
    (tmp_path / "report.html").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"report\.html is not text"):
        read_drawings(tmp_path / "report.html")
    with pytest.raises(DataError, match=r"Expected a report there"):
        read_drawings(tmp_path / "none.html")
