"""The report of students for few pixels: what they learned from which layers, and how their losses fell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keyhole.reports import explained, figures
from keyhole.reports.markup import Column, Html, duration, figure, grid, legend, page, paragraph, plural, section, table

_NO_TERMS = ("epoch", "rate", "loss", "scales")


def students_page(value: Mapping[str, Any]) -> str:
    """Return the report of a cohort of students, as one HTML file that needs nothing else.

    Args:
        value: What ``keyhole faces distill`` writes to result.json.
    """
    arms = value["arms"]
    names = [str(arm["name"]) for arm in arms]
    blends = f" and {value['blends']:,} blends of two" if value["blends"] else ""
    lead = (
        f"{plural(len(arms), 'student')} taught by {value['teacher']} on {value['faces']:,} faces of "
        f"{value['people']:,} people{blends}" + (f", in {duration(value['seconds'])}." if "seconds" in value else ".")
    )
    columns = [Column("student", number=False), Column("network", number=False), Column("parameters"),
               Column("learns from", number=False), Column("trained weights, the rest first ones")]  # fmt: skip
    rows = [
        [
            str(arm["name"]), str(arm["student"]), f"{arm['parameters']:,}",
            ", ".join(f"{teacher} → {student}" for teacher, student in arm["hints"].items()) or "the embedding alone",
            f"{100 * arm['wise_ft']:g} %",
        ]
        for arm in arms
    ]  # fmt: skip
    if all(arm["wise_ft"] == 1 for arm in arms):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return page(
        "Students for few pixels",
        "Keyhole: faces of few pixels",
        paragraph(lead, "lead"),
        paragraph(
            "The teacher saw each face sharp, the students as the camera delivers it. What they reach is told by "
            "'keyhole faces evaluate --model student.safetensors'."
        ),
        section("Students", table(columns, rows)),
        section("Losses by epoch", legend(names), _curves(arms)),
    )


def _curves(arms: list[Mapping[str, Any]]) -> Html:
    terms = dict.fromkeys(key for arm in arms for record in arm["history"] for key in record if key not in _NO_TERMS)
    drawings = []
    for term in (*terms, "loss"):
        lines = [
            (number, ([record["epoch"] for record in arm["history"]], [record[term] for record in arm["history"]]))
            for number, arm in enumerate(arms)
            if all(term in record for record in arm["history"])
        ]
        title = explained.TERM_NAMES.get(term, term)
        drawn = figures.curves(lines, f"{title} over the epochs", title=title, width_in=4.4)
        drawings.append(figure(drawn, f"{term}, mean of an epoch."))
    return grid(drawings, kind="grid two")
