"""The drawings of a report as files of their own, to stand in a paper, on slides or in another page."""

from __future__ import annotations

import html
import math
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
# Height of a line of the legend, its width by letter, and white around everything, in the drawing's own units.
_ROW, _LETTER, _EDGE = 14.0, 4.8, 6.0
_DRAWING = re.compile(r'<svg role="img" aria-label="([^"<>]*)"[^<>]*>(.*?)(?:</svg>|\Z)', re.DOTALL)
_CAPTION = re.compile(r"\s*</div><figcaption>(.*?)</figcaption>", re.DOTALL)
_PARTS = {"svg", "g", "defs", "path", "use", "text", "tspan", "rect", "line", "image", "clipPath", "title", "desc"}
_WITHIN = ("#", "data:image/png;base64,")


@dataclass(frozen=True)
class Drawing:
    """A drawing of a report.

    Attributes:
        name: Its number in the report and the heading that it stands under, fit for a file: ``1-the-map``.
        alt: What it shows, in words.
        caption: What stood below it: what bars, dots and thin lines are; empty where nothing did.
        svg: An SVG file: light, on white, with its legend, and with no reference outside of itself.
    """

    name: str
    alt: str
    caption: str
    svg: str


def drawings(page: str, *, where: str = "The page") -> list[Drawing]:
    """Return the drawings of a report of Keyhole, in their order.

    A page colors its drawings by variables, light or dark as the reader likes it, and explains lines above them; here
    both are written into the drawing, as most programs that place an SVG know no variables.

    Args:
        page: The report, as HTML.
        where: What it is called in errors.

    Raises:
        DataError: Nothing in it is a drawing of Keyhole, one is cut off, or one holds what Keyhole does not draw, such
            as a script or a reference to another file.

    Example:
        >>> from keyhole.reports import figures, markup
        >>> drawn = markup.figure(figures.silhouettes({2: 0.41, 3: 0.62}, 3, "Silhouette by number of clusters"))
        >>> [(each.name, each.alt) for each in drawings(markup.page("Hints", "", markup.section("How many", drawn)))]
        [('1-how-many', 'Silhouette by number of clusters')]
    """
    found = [_alone(page, number, drawn, where) for number, drawn in enumerate(_DRAWING.finditer(page), start=1)]
    if not found:
        raise DataError(
            f"{where} holds no drawing of Keyhole; expected a report with figures, as of 'keyhole hints' or 'keyhole "
            "study'. Name another report."
        )
    return found


def read_drawings(report: Path) -> list[Drawing]:
    """Return the drawings of a report in a file, as :func:`drawings` does.

    Raises:
        DataError: The file cannot be read, is no text, holds no drawing, or holds one that is not whole.
    """
    try:
        return drawings(read_text(report, "a report"), where=str(report))
    except UnicodeDecodeError as error:
        raise DataError(f"{report} is not text; expected a report with figures. Name another file.") from error


def _alone(page: str, number: int, drawn: re.Match[str], where: str) -> Drawing:
    """Return one drawing as a file: its colors, its legend and its ground written into it."""
    alt, svg = _plain(drawn[1]), drawn[0]
    for name, value in variables().items():
        svg = svg.replace(f"var(--{name})", value)
    try:
        root = ElementTree.fromstring(svg)
        x, y, width, height = map(float, root.attrib["viewBox"].split())
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise _broken(where, number) from error
    if not (all(map(math.isfinite, (x, y, width, height))) and min(width, height) > 0):
        raise _broken(where, number)
    for part in root.iter():
        _check(part, where, number)
    above = page[page.rfind("<section>", 0, drawn.start()) : drawn.start()] if "<section>" in page else ""
    if "</section>" in above:
        above = ""
    entries = list(_entries(above))
    room = _ROW * len(entries) + (_EDGE if entries else 0)
    longest = max((len(name) for _, _, name in entries), default=0)
    left, top, high = x - _EDGE, y - room - _EDGE, height + room + 2 * _EDGE
    wide = max(width, (30 + _LETTER * longest) if entries else 0) + 2 * _EDGE
    caption = _caption(page, drawn.end())
    text = "".join(
        [
            f'<?xml version="1.0" encoding="utf-8"?>\n<svg {_NAMESPACES} viewBox="{left:g} {top:g} {wide:g} {high:g}"',
            f' width="{wide:g}pt" height="{high:g}pt" font-family="{_FONT}">\n<title>{escape(alt)}</title>\n',
            f"<desc>{escape(caption)}</desc>\n" if caption else "",
            f'<rect x="{left:g}" y="{top:g}" width="{wide:g}" height="{high:g}" fill="#ffffff"/>\n',
            *_legend(entries, x, y - room),
            svg[svg.index(">") + 1 :],  # from the opening tag on, in which no other tag ends
            "\n",
        ]
    )
    return Drawing(f"{number}-{_slug(above)}", alt, caption, text)


def _broken(where: str, number: int) -> DataError:
    return DataError(f"{where}: drawing {number} is cut off or damaged; expected whole SVG. Write the report again.")


def _check(part: ElementTree.Element, where: str, number: int) -> None:
    """Refuse what a file must not bring along to another page."""
    kind = part.tag.rpartition("}")[2]
    strange = [] if kind in _PARTS else [f"<{kind}>"]
    for name, value in part.attrib.items():
        plain = name.rpartition("}")[2]
        outside = plain == "href" and not value.startswith(_WITHIN)
        if plain.startswith("on") or outside or re.search(r"url\((?!#)", value):
            strange.append(f"{plain}={value[:40]!r}")
    if strange:
        raise DataError(
            f"{where}: drawing {number} holds {strange[0]}, which Keyhole does not draw; expected lines, text and "
            "pictures of its own. Write the report again."
        )


def _entries(above: str) -> Iterator[tuple[str, str, str]]:
    """Yield color, dashes and name of each line of the last legend above a drawing."""
    start = above.rfind('<ul class="legend">')
    for item in above[start : above.find("</ul>", start)].split("<li>")[1:] if start >= 0 else ():
        line = re.search(r"<line [^<>]*>", item)
        if line is not None:
            tint, dashes = (re.search(rf'{name}="([#\w. ]*)"', line[0]) for name in (" stroke", " stroke-dasharray"))
            yield tint[1] if tint else "", dashes[1] if dashes else "", _text(item)


def _legend(entries: list[tuple[str, str, str]], x: float, top: float) -> Iterator[str]:
    for row, (tint, dashes, name) in enumerate(entries):
        middle = top + _ROW * (row + 0.5)
        pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<line x1="{x + 2:g}" x2="{x + 24:g}" y1="{middle:g}" y2="{middle:g}" stroke="{tint}" '
        yield f'stroke-width="2.5"{pattern}/>\n<text x="{x + 30:g}" y="{middle + 3:g}" font-size="8.5" '
        yield f'fill="{variables()["ink"]}">{escape(name)}</text>\n'


def _caption(page: str, end: int) -> str:
    """Return the words under a drawing."""
    below = _CAPTION.match(page, end)
    return _text(below[1]) if below else ""


def _slug(above: str) -> str:
    start = above.rfind("<h2>")
    heading = _text(above[start : above.find("</h2>", start)]) if start >= 0 else ""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower())[:40].strip("-") or "drawing"


def _text(markup: str) -> str:
    return _plain(re.sub(r"<[^<>]*>", "", markup))


def _plain(text: str) -> str:
    """Return text in one line, without what XML cannot hold."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f\ufffe\uffff]", " ", html.unescape(text)).split())
