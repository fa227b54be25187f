"""The look that all reports share: escaped HTML, tables, legends, numbers, and the page around them.

Text is escaped unless it is :class:`Html` already, so a layer named ``<b>`` stays a layer named ``<b>``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito's colors, told apart by the color-blind, without the yellow and the black that a page swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# A line pattern a round of colors, as SVG has it; the empty one is solid.
DASHES = ("", "6 3", "1.5 2.5", "8 3 2 3")
NOTHING = "–"  # noqa: RUF001 - an en dash, for a cell without a value


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        number: Whether it holds numbers, which stand at the right.
    """

    title: str
    number: bool = True


def escape(text: object) -> Html:
    """Return text as HTML, in which it says the same; :class:`Html` comes back as it is.

    Example:
        >>> escape('<b>&"x"')
        '&lt;b&gt;&amp;&quot;x&quot;'
    """
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Sequence[str], between: str = "") -> Html:
    """Return parts in a row, those that are not HTML escaped."""
    return Html(between.join(escape(part) for part in parts))


def words(names: Sequence[str]) -> str:
    """Return names as a person lists them.

    Example:
        >>> words(["a", "b", "c"])
        'a, b and c'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def code(name: str) -> Html:
    """Return a name that a program gave, set apart from the words around it."""
    return Html(f"<code>{escape(name)}</code>")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, strong: Sequence[int] = ()) -> Html:
    """Return a table that scrolls by itself where the screen is narrow.

    Args:
        columns: The headings.
        rows: One text a column; escaped unless it is :class:`Html`.
        strong: Rows that are set apart, such as the teacher's.
    """
    kinds = [f' class="{_kind(column, [row[i] for row in rows])}"' for i, column in enumerate(columns)]
    head = "".join(f"<th{kind}>{escape(column.title)}</th>" for column, kind in zip(columns, kinds, strict=True))
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        kind = ' class="strong"' if i in strong else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


_SHORT = 18  # letters; text up to it stays on a line, and longer text has a width that can be read


def _kind(column: Column, cells: Sequence[str]) -> str:
    if column.number:
        return "n"
    plain = (re.sub("<[^>]*>", "", cell) if isinstance(cell, Html) else cell for cell in cells)
    return "s" if all(len(cell) <= _SHORT for cell in plain) else "t"


def color(number: int) -> str:
    """Return the color of the cluster or arm of that number, from 0; they repeat after six."""
    return COLORS[number % len(COLORS)]


def text_color(number: int) -> str:
    """Return black or white, whichever is easier to read on :func:`color` of that number."""
    return "#fff" if number % len(COLORS) < 3 else "#14181c"


def dash(number: int) -> str:
    """Return the line pattern of the arm of that number; it changes when the colors repeat."""
    return DASHES[number // len(COLORS) % len(DASHES)]


def swatch(number: int) -> Html:
    """Return a short piece of the line that stands for an arm in the figures."""
    pattern = f' stroke-dasharray="{dash(number)}"' if dash(number) else ""
    return Html(
        f'<svg class="swatch" viewBox="0 0 22 10" width="22" height="10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="22" y2="5" stroke="{color(number)}" stroke-width="3.5"{pattern}/></svg>'
    )


def chip(number: int, text: str) -> Html:
    """Return a cluster's number in its color."""
    style = f"background:{color(number)};color:{text_color(number)}"
    return Html(f'<span class="chip" style="{style}">{escape(text)}</span>')


def legend(names: Sequence[str]) -> Html:
    """Return which line belongs to which arm."""
    items = "".join(f"<li>{swatch(i)} {escape(name)}</li>" for i, name in enumerate(names))
    return Html(f'<ul class="legend">{items}</ul>')


def figure(drawing: str, caption: str = "") -> Html:
    """Return a drawing with the words under it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><div class="wide">{drawing}</div>{below}</figure>')


def grid(figures: Sequence[str], *, kind: str = "grid") -> Html:
    """Return figures side by side, as many as the screen has room for."""
    return Html(f'<div class="{kind}">{"".join(figures)}</div>')


def section(title: str, *parts: str) -> Html:
    """Return a part of a page with its heading; nothing where it has no content."""
    filled = [part for part in parts if part]
    return Html(f"<section><h2>{escape(title)}</h2>{join(filled)}</section>") if filled else Html("")


def paragraph(text: str, kind: str = "") -> Html:
    """Return a paragraph."""
    inside = _unbroken(text)
    return Html(f'<p class="{kind}">{inside}</p>' if kind else f"<p>{inside}</p>")


def bullets(texts: Sequence[str]) -> Html:
    """Return a list of sentences."""
    return Html("<ul>" + "".join(f"<li>{_unbroken(text)}</li>" for text in texts) + "</ul>")


def _unbroken(text: str) -> str:
    """Return text as HTML in which no line ends between a number and its percent sign."""
    return re.sub(r"(\d) %", r"\1&nbsp;%", escape(text))


def page(title: str, kicker: str, *parts: str) -> str:
    """Return a whole page: one file that needs nothing else, light or dark as the reader likes it.

    Args:
        title: Its heading, also the name of the browser's tab.
        kicker: A line above the heading: what kind of report this is.
        parts: What stands below, as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{_unbroken(title)}</h1></header>\n'
        + "\n".join(escape(part) for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def variables() -> dict[str, str]:
    """Return the colors that a page has by light, by the names that its drawings know them by.

    Example:
        >>> variables()["paper"]
        '#fff'
    """
    return dict(re.findall(r"--(\w+):(#\w+)", _STYLE.partition("}")[0]))


def count(number: float) -> str:
    """Return a whole number with its thousands set apart."""
    return f"{number:,.0f}"


def amount(number: float) -> str:
    """Return a large number short: 1.74 M, 40.8 M, 272 k.

    Example:
        >>> amount(1_736_564), amount(40_818_688), amount(78_042), amount(999_999)
        ('1.74 M', '40.8 M', '78 k', '1 M')
    """
    for size, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")):
        if float(f"{number:.3g}") >= size:
            return f"{float(f'{number:.3g}') / size:g}{sign}"
    return f"{number:g}"


def plural(number: int, word: str) -> str:
    """Return a count and its word, such as ``1 image`` and ``1,000 images``."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    Example:
        >>> duration(0.043), duration(12.34), duration(125), duration(3599.9), duration(7300)
        ('0.04 s', '12.3 s', '2 min 5 s', '1 h 0 min', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


_STYLE = """
:root{--ink:#1d2227;--soft:#59626b;--line:#d9dde1;--faint:#eef0f2;--paper:#fff;--back:#fbfbfa;--bar:#b9c0c7}
@media (prefers-color-scheme:dark){:root{--ink:#e7e9eb;--soft:#a3acb5;--line:#3a4148;--faint:#262b30;--paper:#1b1f23;
--back:#15181b;--bar:#59626b}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1060px;margin:0 auto;padding:40px 24px 72px}
h1{font-size:1.85rem;line-height:1.22;font-weight:650;letter-spacing:-.012em;margin:.1em 0 .5em;overflow-wrap:anywhere}
h2{font-size:1.18rem;font-weight:650;margin:0 0 .5em}
section{margin-top:44px;border-top:1px solid var(--line);padding-top:22px}
p{max-width:76ch;margin:.55em 0;overflow-wrap:anywhere}
.kicker{color:var(--soft);font-size:.86rem;letter-spacing:.03em;margin:0}
.lead{font-size:1.09rem}
ul{padding-left:1.3em;margin:.55em 0}li{max-width:76ch;margin:.3em 0;overflow-wrap:anywhere}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.note{border-left:4px solid #E69F00;background:var(--faint);padding:12px 18px;font-size:1.05rem;
border-radius:0 6px 6px 0}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.93rem;margin:6px 0 10px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 22px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:.85rem;vertical-align:bottom}
th.n,td.n{text-align:right}td.n,td.s{white-space:nowrap}
td.t{min-width:min(15em,34vw);max-width:26em;overflow-wrap:anywhere}
td code{overflow-wrap:normal;white-space:pre}
tr.strong td{font-weight:650}
.span{display:block;height:8px;min-width:1px;background:#0072B2;border-radius:2px;margin-top:8px}
.track{width:min(30vw,260px)}
figure{margin:14px 0 18px}
figcaption{max-width:76ch;margin-top:4px;overflow-wrap:anywhere}
figure svg{display:block;height:auto}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:8px 28px;align-items:start}
.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:8px 22px}
.thumbs figure{margin:4px 0}
.chip{display:inline-block;min-width:1.6em;padding:0 .4em;border-radius:4px;text-align:center;font-weight:600}
.swatch{vertical-align:middle;margin-right:3px}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;padding:0;margin:6px 0;font-size:.93rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;font-size:.93rem;max-width:88ch}
dt{font-weight:600}dd{margin:0}
@media (max-width:600px){main{padding:24px 16px 48px}h1{font-size:1.45rem}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:8px}th,td{padding-right:14px}section{margin-top:32px}}
@media print{section{break-inside:avoid}}
"""


def times(ratio: float) -> str:
    """Return how many times less something is."""
    return f"{ratio:.2f} ×"  # noqa: RUF001


def named(number: int, name: str) -> Html:
    """Return the name of an arm with its color in drawings."""
    return join([swatch(number), Html(" "), name])
