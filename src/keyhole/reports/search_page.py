"""The report of a search: what was found, how the combinations fared, and what it cost."""

from __future__ import annotations

from keyhole.reports import figures
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    code,
    duration,
    figure,
    join,
    legend,
    page,
    paragraph,
    section,
    table,
)
from keyhole.studies.search import Found

_ROWS, _SHOWN = 30, 5  # of the table, and lines in color


def search_page(found: Found) -> str:
    """Return the report of a search, as one HTML file.

    Args:
        found: What :func:`keyhole.studies.search.search_hints` returned.
    """
    best = found.tried[0]
    lead = (
        f"Of {len(found.tried)} tried of {found.combinations:,} combinations of {len(best.layers)} layers, "
        f"{', '.join(best.layers)} did best: {100 * best.last:.2f} % on the held-out images after "
        f"{len(best.held_out)} epochs. That score chose it and so flatters it; judge it on other seeds "
        "(fresh.toml beside this report)."
    )
    return page(
        f"{found.teacher} teaches {found.student}: a search",
        "Keyhole: search",
        paragraph(lead, "lead"),
        section("What it cost", _cost(found)),
        section("How the combinations fared", _curves(found), _table(found)),
    )


def _cost(found: Found) -> Html:
    cost = found.to_json()["cost"]
    rungs = [f"{rung.students} to epoch {rung.until}" for rung in found.rungs]
    rows = [
        ["method", f"{found.config.method}: {', '.join(rungs)}"],
        ["student epochs", f"{cost['student_epochs']}, as much as {cost['cells']:g} students to the end"],
        ["teacher passes over the training images", str(cost["passes"])],
        ["time", duration(found.seconds)],
    ]
    how = (
        f"{found.terms}, {found.epochs} epochs on {found.data}, {found.config.holdout:,} training images held out, "
        "which alone chose; the test images were not looked at."
    )
    return join([table([Column("", number=False), Column("", number=False)], rows), paragraph(how)])


def _curves(found: Found) -> Html:
    tried = [each for each in found.tried if each.held_out]
    lines = [(list(range(1, len(each.held_out) + 1)), [100 * value for value in each.held_out]) for each in tried]
    alt = "Top-1 on the held-out images by epoch, one line a combination"
    drawn = figures.curves(list(enumerate(lines[:_SHOWN]))[::-1], alt, unit="%", others=lines[_SHOWN:])
    rest = f", the other {len(lines) - _SHOWN} in gray" if len(lines) > _SHOWN else ""
    caption = f"Top-1 on the held-out images, best first{rest}; a line ends where its combination was left behind."
    return join([legend([", ".join(each.layers) for each in tried[:_SHOWN]]), figure(drawn, caption)])


def _table(found: Found) -> Html:
    rows = [
        [
            join([code(name) for name in each.layers], " "),
            f"{100 * each.last:.2f}" if each.held_out else NOTHING,
            str(len(each.held_out)),
            each.diverged or "",
        ]
        for each in found.tried[:_ROWS]
    ]
    columns = [Column("layers", number=False), Column("held out, %"), Column("epochs"), Column("", number=False)]
    more = len(found.tried) - _ROWS
    return join([table(columns, rows, strong=[0]), paragraph(f"{more} more stand in search.json.") if more > 0 else ""])
