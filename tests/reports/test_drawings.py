"""Drawings taken out of a report: whole files that say the same as on the page, in any program that knows SVG."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from keyhole.errors import DataError
from keyhole.reports import figures, markup
from keyhole.reports.drawings import drawings, read_drawings

SVG = "{http://www.w3.org/2000/svg}"
LINES = [(0, ([1, 2, 3], [3.0, 2.0, 1.0])), (1, ([1, 2, 3], [3.0, 2.5, 2.0]))]
CURVES = figures.curves(LINES, "Loss of <kd> & others")
SILHOUETTES = figures.silhouettes({2: 0.4, 3: 0.6}, 3, "How many clusters")


def two_drawings(names: tuple[str, str] = ("<kd>", "at & hint")) -> str:
    """Return a page with two drawings, the first under a legend, the second in a section of its own."""
    return markup.page(
        "A run",
        "Keyhole",
        markup.section("Losses, by epoch", markup.legend(names), markup.figure(CURVES, "Thin lines > 3 & falls.")),
        markup.section("How many", markup.figure(SILHOUETTES)),
    )


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.encode())


def box(root: ElementTree.Element) -> list[float]:
    return [float(part) for part in root.attrib["viewBox"].split()]


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(SVG + "text")]


def drawn_parts(root: ElementTree.Element) -> Counter[tuple[str, str]]:
    """Return what is drawn: outlines, marks and words, however often."""
    found = ((each.tag, each.get("d") or each.get("transform") or each.text or "") for each in root.iter())
    return Counter(each for each in found if each[0] in {SVG + name for name in ("path", "use", "text", "g")})


def test_each_is_a_file_of_its_own_named_by_number_and_heading() -> None:
    first, second = drawings(two_drawings())
    assert (first.name, first.alt) == ("1-losses-by-epoch", "Loss of <kd> & others")
    assert (second.name, second.alt) == ("2-how-many", "How many clusters")
    for each in (first, second):
        root = parsed(each.svg)
        assert each.svg.startswith('<?xml version="1.0" encoding="utf-8"?>')
        assert root.tag == SVG + "svg"
        assert root.findtext(SVG + "title") == each.alt
        assert "http" not in each.svg.replace("http://www.w3.org/", "")


def test_everything_that_is_drawn_comes_along() -> None:
    for each, on_the_page in zip(drawings(two_drawings()), (CURVES, SILHOUETTES), strict=True):
        left = drawn_parts(parsed(on_the_page)) - drawn_parts(parsed(each.svg))
        assert not left
        assert sum(drawn_parts(parsed(each.svg)).values()) > 20


def test_colors_are_those_of_a_light_page_on_white() -> None:
    for each in drawings(two_drawings()):
        assert "var(" not in each.svg
        for name in ("ink", "soft", "line"):
            assert (f"var(--{name})" in CURVES + SILHOUETTES) <= (markup.variables()[name] in each.svg), name
        assert markup.variables()["soft"] in each.svg
        ground = parsed(each.svg).find(SVG + "rect")
        assert ground is not None
        assert ground.attrib["fill"] == "#ffffff"
        assert [float(ground.attrib[name]) for name in ("x", "y", "width", "height")] == box(parsed(each.svg))


def test_the_page_has_its_edge_and_the_legend_its_room() -> None:
    for each, on_the_page, room in zip(drawings(two_drawings()), (CURVES, SILHOUETTES), (2 * 14 + 6, 0), strict=True):
        x, y, width, height = box(parsed(on_the_page))
        root = parsed(each.svg)
        assert box(root) == pytest.approx([x - 6, y - 6 - room, width + 12, height + 12 + room], abs=0.01)
        assert root.attrib["width"] == f"{box(root)[2]:g}pt"
        assert root.attrib["height"] == f"{box(root)[3]:g}pt"


def test_a_legend_above_comes_along_and_lies_outside_of_the_drawing() -> None:
    first, second = (parsed(each.svg) for each in drawings(two_drawings()))
    assert texts(first)[:2] == ["<kd>", "at & hint"]
    assert not {"<kd>", "at & hint"} & set(texts(second))
    lines = [each for each in first if each.tag == SVG + "line"]
    words = [each for each in first if each.tag == SVG + "text"]
    assert [each.get("stroke") for each in lines] == [markup.color(0), markup.color(1)]
    for line, word in zip(lines, words, strict=True):
        left, right, y, other = (float(line.attrib[name]) for name in ("x1", "x2", "y1", "y2"))
        assert y == other
        assert box(first)[1] < y - 7 < y + 7 < 0
        assert box(first)[0] < left < right < float(word.attrib["x"])
        assert abs(float(word.attrib["y"]) - y) < 7
        assert float(line.attrib["stroke-width"]) > 1
        assert word.attrib["fill"] == markup.variables()["ink"]
    assert float(lines[1].attrib["y1"]) - float(lines[0].attrib["y1"]) == 14


def test_long_names_of_a_legend_have_room() -> None:
    long = (
        "ce,kd,hint centers by the consensus of five similarity metrics, weights by redundancy, matched by similarity"
    )
    drawn = figures.curves(LINES, "narrow", width_in=3.0)
    page = markup.page("A run", "", markup.section("Losses", markup.legend([long, "b"]), markup.figure(drawn)))
    left, _, width, _ = box(parsed(drawings(page)[0].svg))
    assert left + width > 30 + 4 * len(long)


def test_dashes_of_many_arms_are_kept() -> None:
    names = [f"arm {i}" for i in range(8)]
    drawn = markup.figure(figures.curves([(i, ([1, 2], [1.0, 2.0])) for i in range(8)], "many"))
    (found,) = drawings(markup.page("A run", "", markup.section("Losses", markup.legend(names), drawn)))
    lines = [each for each in parsed(found.svg) if each.tag == SVG + "line"]
    assert [each.get("stroke-dasharray", "") for each in lines] == [markup.dash(i) for i in range(8)]


def test_words_below_are_its_description() -> None:
    first, second = drawings(two_drawings())
    assert first.caption == "Thin lines > 3 & falls."
    assert parsed(first.svg).findtext(SVG + "desc") == first.caption
    assert second.caption == ""
    assert parsed(second.svg).find(SVG + "desc") is None


def test_a_drawing_goes_by_what_stands_above_it_in_its_own_section() -> None:
    figure = markup.figure(SILHOUETTES)
    section = markup.section("One", markup.legend(["a"]), figure, markup.legend(["b"]), figure)
    heading = markup.section(markup.Html("Größe <b>of</b> " + "x" * 200), figure)
    found = drawings(markup.page("A run", "", figure, section, figure, heading))
    names = ["1-drawing", "2-one", "3-one", "4-drawing", f"5-gr-e-of-{'x' * 32}"]
    assert [each.name for each in found] == names
    legends = [[word for word in texts(parsed(each.svg)) if word in ("a", "b")] for each in found]
    assert legends == [[], ["a"], ["b"], [], []]


def test_names_may_hold_anything() -> None:
    first, _ = drawings(two_drawings(("\x01 bell\x0b", "größer > <b>")))
    assert texts(parsed(first.svg))[:2] == ["bell", "größer > <b>"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("</g>", ""), ('viewBox="0 0 ', 'viewBox="nan 0 '), ('viewBox="0 0 ', 'viewBox="0 0 0 '), ('viewBox="', 'view="')],
)
def test_a_broken_drawing_is_refused(old: str, new: str) -> None:
    assert old in CURVES
    page = two_drawings().replace(CURVES, CURVES.replace(old, new, 1))
    with pytest.raises(DataError, match=r"^The page: drawing 1 is cut off or damaged; expected whole SVG\."):
        drawings(page)


def test_a_page_that_is_cut_off_is_refused_wherever_it_was() -> None:
    page = two_drawings()
    for number, end in ((2, page.rindex("</svg>")), (1, page.index("</g>"))):
        with pytest.raises(DataError, match=rf"drawing {number} is cut off"):
            drawings(page[:end])


@pytest.mark.parametrize(
    "foreign",
    [
        "<script>alert(1)</script>",
        "<foreignObject><p>x</p></foreignObject>",
        "<style>* { fill: red }</style>",
        '<path onclick="alert(1)" d="M 0 0"/>',
        '<image href="https://elsewhere.example/a.png"/>',
        '<use xlink:href="file:///etc/passwd"/>',
        '<path style="fill: url(https://elsewhere.example/a)" d="M 0 0"/>',
    ],
)
def test_what_is_not_ours_does_not_come_along(foreign: str) -> None:
    page = two_drawings().replace("</svg>", foreign + "</svg>")
    with pytest.raises(DataError, match=r"drawing 1 holds .*, which Keyhole does not draw; expected lines, text"):
        drawings(page)


def test_a_hostile_page_takes_no_time() -> None:
    begun = time.monotonic()
    for part in ('<line stroke="#aa"', '<ul class="legend">', "<h2>", '<svg role="img" aria-label="a">', "<svg "):
        with pytest.raises(DataError):
            drawings("<section>" + part * 20_000)
    assert time.monotonic() - begun < 20  # the first of them took minutes with nested repetitions


def test_a_page_without_drawings_is_refused(tmp_path: Path) -> None:
    wanted = (
        r"holds no drawing of Keyhole; expected a report with figures, as of 'keyhole hints' or 'keyhole study'\. Name"
    )
    with pytest.raises(DataError, match="^The page " + wanted):
        drawings("<html><svg><g/></svg></html>")
    (tmp_path / "report.html").write_text("<p>none</p>")
    with pytest.raises(DataError, match=r"report\.html " + wanted):
        read_drawings(tmp_path / "report.html")
    (tmp_path / "report.html").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"report\.html is not text; expected a report with figures\. Name"):
        read_drawings(tmp_path / "report.html")
    with pytest.raises(DataError, match=r"Expected a report there"):
        read_drawings(tmp_path / "none.html")


def test_lines_of_a_clip_have_the_dashes_of_their_legend() -> None:
    from keyhole.reports.face_figures import over_frames

    tracks = [[(frame, 20.0 + k, 10.0 + k) for frame in range(3)] for k in range(8)]
    root = parsed(over_frames(tracks, "eight faces"))
    styles = [each.get("style", "") for each in root.iter(SVG + "path")]
    dashed = [style for style in styles if markup.color(6).lower() in style.lower() and "stroke-dasharray" in style]
    assert len(dashed) == 3  # the first face by the eyes; the seventh, of its color, by the eyes and as shown
