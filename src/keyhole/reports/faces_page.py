"""The report of a face model on a protocol: what it reaches by the size of the probe, what matching brings, and how."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from keyhole.faces.factors import Factors
from keyhole.faces.metrics.intervals import Interval
from keyhole.faces.results import Evaluation, Row
from keyhole.reports import face_figures, figures
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    bullets,
    escape,
    figure,
    grid,
    legend,
    page,
    paragraph,
    plural,
    section,
    table,
)


def evaluation_page(found: Evaluation) -> str:
    """Return the report of an evaluation, as one HTML file that needs nothing else.

    Args:
        found: What :func:`keyhole.faces.evaluation.evaluate` measured.
    """
    return page(
        f"{found.model} on {found.protocol}",
        "Keyhole: faces of few pixels",
        paragraph(found.sentence(), "lead"),
        paragraph(found.summary),
        section(f"{found.main.capitalize()} by the size of the probe", _by_size(found), _table(found)),
        section("What matching brings", _gaps(found)),
        section("Curves", _curves(found)),
        section("By group", _groups(found)),
        section("What was seen", _examples(found)),
        section("What was decided", _notes(found)),
        section("Model and setting", _model(found)),
    )


def _by_size(found: Evaluation) -> Html:
    lines = [
        (
            mode,
            {
                row.face_px: face_figures.Band(*(100 * part for part in _parts(row.figures[found.main])))
                for row in found.rows
                if row.mode == mode and found.main in row.figures
            },
        )
        for mode in found.modes
    ]
    alt = f"{found.main} in percent over the size of the probe, one line a way of matching"
    drawn = face_figures.by_size(lines, f"{found.main}, %", alt)
    caption = "Bars are 95 % intervals from a bootstrap over people, with the gallery as it is."
    return Html(legend(found.modes) + figure(drawn, caption))


def _parts(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _table(found: Evaluation) -> Html:
    names = list(dict.fromkeys(name for row in found.rows for name in row.figures))
    rows = [[f"{row.face_px:g} px", row.mode, *(_cell(row.figures.get(name)) for name in names)] for row in found.rows]
    columns = [Column("probe"), Column("matching", number=False), *(Column(f"{name}, %") for name in names)]
    return table(columns, rows)


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    value, low, high = (100 * part for part in _parts(interval))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _gaps(found: Evaluation) -> Html:
    rows = [(f"{row.face_px:g} px, {row.mode}", row.gap) for row in found.rows if row.gap is not None]
    if not rows:
        return Html("")
    drawn = figures.intervals(
        [(name, 100 * gap.value, 100 * gap.low, 100 * gap.high) for name, gap in rows],
        f"Differences in {found.main} to no matching, in points",
        of=found.main,
    )
    caption = (
        f"Difference in {found.main} to {_baseline(found)}, in points, on the same {found.kind}; 95 % intervals over "
        "people. Right of the line is better."
    )
    return figure(drawn, caption)


def _baseline(found: Evaluation) -> str:
    """Return in words what gaps are measured from."""
    against = next(row.against for row in found.rows if row.gap is not None)
    return "comparing the photos as they are" if against == "none" else f"'{against}', compared as they are"


def _curves(found: Evaluation) -> Html:
    """Return the curves of the smallest and of the largest size, where they have any."""
    sizes = sorted({row.face_px for row in found.rows})
    shown = list(dict.fromkeys([sizes[-1], *sizes[: min(3, len(sizes))]]))
    drawings = []
    for px in shown:
        rows = [row for row in found.rows if row.face_px == px and row.mode in found.modes]
        drawings += _curves_at(found, px, rows)
    return Html(legend(found.modes) + grid(drawings, kind="grid two")) if drawings else Html("")


def _curves_at(found: Evaluation, px: float, rows: Sequence[Row]) -> list[Html]:
    drawings = []
    if any(row.cmc for row in rows):
        lines = [(row.mode, [100 * value for value in row.cmc]) for row in rows]
        drawings.append(
            figure(face_figures.by_rank(lines, f"Match curve at {px:g} px"), f"{px:g} px: searches by rank.")
        )
    if any(row.errors for row in rows):
        curves = [(row.mode, *row.errors) for row in rows if row.errors is not None]
        labels = found.error_names
        drawn = face_figures.by_threshold(curves, labels, f"{labels[1]} over {labels[0]} at {px:g} px")
        drawings.append(figure(drawn, f"{px:g} px, one point a threshold."))
    return drawings


def _groups(found: Evaluation) -> Html:
    if not found.groups:
        return Html("")
    rows = [
        [group.name, f"{group.face_px:g} px", group.mode, str(group.searches), str(group.missed), _cell(group.figure)]
        for group in found.groups
    ]
    columns = [
        Column("group", number=False), Column("probe"), Column("matching", number=False), Column("searches"),
        Column("without a face"), Column(f"{found.main}, %"),
    ]  # fmt: skip
    return table(columns, rows)


def _examples(found: Evaluation) -> Html:
    if not found.examples:
        return Html("")
    cells = []
    for example in found.examples:
        data = base64.b64encode(example.png).decode()
        picture = Html(f'<img alt="{escape(example.caption)}" src="data:image/png;base64,{data}" style="width:100%">')
        cells.append(figure(picture, example.caption))
    return grid(cells, kind="thumbs")


def _notes(found: Evaluation) -> Html:
    if not found.notes:
        return Html("")
    return bullets(found.notes)


def _model(found: Evaluation) -> Html:
    pairs = {**found.about_model, **found.setting}.items()
    inside = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_shown(value))}</dd>" for name, value in pairs
    )
    return Html(f"<dl>{inside}</dl>" + paragraph(f"{plural(found.draws, 'draw')} of the bootstrap.", "soft"))


def _shown(value: Any) -> str:
    """Return a JSON value as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return NOTHING if value is None else str(value)


def factors_page(found: Factors) -> str:
    """Return the report of a study of factors, as one HTML file that needs nothing else.

    Args:
        found: What :func:`keyhole.faces.factors.study_factors` measured.
    """
    sure = [effect for effect in found.effects if effect.gain.low > 0]
    lead = (
        f"{len(sure)} of {len(found.effects)} changes are better than the first condition at their size, each by its "
        "own 95 % interval; of many, some are by chance."
        if found.effects
        else "Nothing was varied but the size of the probe."
    )
    alone = f"{found.figures[0][0].model}, " if len({c.model for c, _ in found.figures}) == 1 else ""
    rows = [
        (f"{e.factor}: {e.after.label().removeprefix(alone)}", 100 * e.gain.value, 100 * e.gain.low, 100 * e.gain.high)
        for e in found.effects
    ]
    drawn = figures.intervals(rows, "What each factor brings", of=found.main) if rows else ""
    table_rows = [
        [c.model, "aligned" if c.margin is None else f"{c.margin:g}", f"{c.face_px:g} px", c.mode, _cell(figure_)]
        for c, figure_ in found.figures
    ]
    columns = [
        Column("model", number=False), Column("margin"), Column("probe"), Column("matching", number=False),
        Column(f"{found.main}, %"),
    ]  # fmt: skip
    caption = (
        "Differences to the first model and margin without matching, at the same size, on the same searches or pairs; "
        "95 % intervals over people."
    )
    return page(
        "Which factor helps",
        "Keyhole: faces of few pixels",
        paragraph(lead, "lead"),
        paragraph(found.summary),
        section("What each factor brings, alone and together", figure(drawn, caption) if rows else ""),
        section("Every combination", table(columns, table_rows)),
        section("What to know", Html("".join(paragraph(note) for note in found.notes))),
    )
