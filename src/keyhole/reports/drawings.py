"""The drawings of a report as files of their own, to stand in a paper, on slides or in another page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from keyhole.errors import DataError
from keyhole.files import read_text
from keyhole.reports.markup import escape, variables

_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_ROW, _EDGE = 14.0, 6.0  # height of a line of the legend, and white around everything, in the drawing's own units
_DRAWING = re.compile(r'<svg role="img" aria-label="([^"]*)".*?</svg>', re.DOTALL)
_HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
_LEGEND = re.compile(r'<ul class="legend">(.*?)</ul>', re.DOTALL)
_ENTRY = re.compile(r'<line [^>]*?stroke="(#\w+)"[^>]*?(?:stroke-dasharray="([\d. ]+)")?/></svg>(.*?)</li>', re.DOTALL)


@dataclass(frozen=True)
class Drawing:
    """A drawing of a report.

    Attributes:
        name: Its number in the report and the heading that it stands under, fit for a file: ``1-the-map``.
        told: What it shows, in words.
        svg: An SVG file: light, on white, with its legend, and with no reference outside of itself.
    """

    name: str
    told: str
    svg: str


def drawings(page: str) -> list[Drawing]:
    """Return the drawings of a report of Keyhole, in their order.

    A page colors its drawings by variables, light or dark as the reader likes it, and explains lines above them; here
    both are written into the drawing, as most programs that place an SVG know no variables.

    Args:
        page: The report, as HTML.

    Raises:
        DataError: Nothing in it is a drawing of Keyhole, or one is cut off.

    Example:
        >>> from keyhole.reports import figures, markup
        >>> drawn = markup.figure(figures.silhouettes({2: 0.41, 3: 0.62}, 3, "Silhouette by number of clusters"))
        >>> [(each.name, each.told) for each in drawings(markup.page("Hints", "", markup.section("How many", drawn)))]
        [('1-how-many', 'Silhouette by number of clusters')]
    """
    found = [_alone(page, number, drawn) for number, drawn in enumerate(_DRAWING.finditer(page), start=1)]
    if not found:
        message = "The page holds no drawing of Keyhole. Name the report.html of a command such as 'keyhole hints'."
        raise DataError(message)
    return found


def read_drawings(report: Path) -> list[Drawing]:
    """Return the drawings of a report in a file, as :func:`drawings` does.

    Raises:
        DataError: The file cannot be read, is no text, or holds no whole drawing.
    """
    try:
        return drawings(read_text(report, "a report"))
    except UnicodeDecodeError as error:
        raise DataError(f"{report} is not text. Name the report.html of a command such as 'keyhole hints'.") from error


def _alone(page: str, number: int, drawn: re.Match[str]) -> Drawing:
    """Return one drawing as a file: its colors, its legend and its ground written into it."""
    told, svg = html.unescape(drawn[1]), _colored(drawn[0])
    try:
        x, y, width, height = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        message = f"Drawing {number} of the page is not whole. Write the report again."
        raise DataError(message) from error
    before = page[: drawn.start()]
    section = before.rfind("<section>")
    above = before[section:] if section >= 0 else ""
    entries = _entries(above)
    room = _ROW * len(entries) + (_EDGE if entries else 0)
    left, top, wide, high = x - _EDGE, y - room - _EDGE, width + 2 * _EDGE, height + room + 2 * _EDGE
    parts = [
        f'<?xml version="1.0" encoding="utf-8"?>\n<svg {_NAMESPACES} viewBox="{left:g} {top:g} {wide:g} {high:g}"',
        f' width="{wide:g}pt" height="{high:g}pt" font-family="{_FONT}">\n<title>{escape(told)}</title>\n',
        f'<rect x="{left:g}" y="{top:g}" width="{wide:g}" height="{high:g}" fill="#ffffff"/>\n',
        *_legend(entries, x, y - room),
        svg[svg.index(">") + 1 :],  # from the opening tag on
    ]
    return Drawing(f"{number}-{_slug(above)}", told, "".join(parts) + "\n")


def _colored(svg: str) -> str:
    """Return a drawing with the page's light colors in the place of its variables."""
    for name, value in variables().items():
        svg = svg.replace(f"var(--{name})", value)
    return svg


def _entries(above: str) -> list[tuple[str, str, str]]:
    """Return color, dashes and name of each line of the last legend above a drawing."""
    lists = _LEGEND.findall(above)
    return [(tint, dashes, _text(name)) for tint, dashes, name in _ENTRY.findall(lists[-1])] if lists else []


def _legend(entries: list[tuple[str, str, str]], x: float, top: float) -> Iterator[str]:
    for row, (tint, dashes, name) in enumerate(entries):
        middle = top + _ROW * (row + 0.5)
        pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<line x1="{x + 2:g}" x2="{x + 24:g}" y1="{middle:g}" y2="{middle:g}" stroke="{tint}" '
        yield f'stroke-width="2.5"{pattern}/>\n<text x="{x + 30:g}" y="{middle + 3:g}" font-size="8.5" '
        yield f'fill="{variables()["ink"]}">{escape(name)}</text>\n'


def _slug(above: str) -> str:
    headings = _HEADING.findall(above)
    plain = re.sub(r"[^a-z0-9]+", "-", _text(headings[-1]).lower()).strip("-") if headings else ""
    return plain[:40].strip("-") or "drawing"


def _text(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())
