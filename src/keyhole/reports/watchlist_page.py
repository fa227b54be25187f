"""Reports of a watch list: where thresholds stand, what was said of each probe, what a clip shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from keyhole.faces.images.clips import Clip
from keyhole.faces.protocols.samples import counted
from keyhole.faces.watchlist.calibration import Calibration
from keyhole.faces.watchlist.enrollment import Compared
from keyhole.faces.watchlist.thresholds import Answer, Thresholds
from keyhole.reports import face_figures
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
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

KICKER = "Keyhole: a watch list"
_SHOWN_PX = 112


def calibration_page(found: Calibration) -> str:
    """Return the report of thresholds, as one HTML file that needs nothing else.

    Args:
        found: What :func:`keyhole.faces.watchlist.calibration.calibrate` found.
    """
    thresholds = found.thresholds
    worst = max(level.fpir_bound for level in thresholds.levels)
    lead = (
        f"Thresholds for {plural(len(thresholds.levels), 'size')} of probes, at which strangers were asked to raise "
        f"an alarm in {100 * thresholds.fpir:g} % of searches. "
        f"With 95 % confidence, at each size by itself, they do in at most {100 * worst:.1f} %."
    )
    groups = [("strangers", found.strangers)] + ([("the enrolled, where first", found.mates)] if found.mates else [])
    drawn = face_figures.by_threshold_size(
        groups,
        {level.face_px: level.score for level in thresholds.levels},
        "Scores of searches by size, and thresholds",
    )
    caption = (
        "Best score of each search: thin lines span the middle 98 %, thick ones the middle half, dots are medians. The "
        "bar across is the threshold: a candidate at or above it is told. Searches of the enrolled whose mate was not "
        "first, in which no face was found, or that show too little to be answered, have no place here; the misses "
        "below count them."
    )
    return page(
        "Thresholds by the size of the probe",
        KICKER,
        paragraph(lead, "lead"),
        paragraph(
            f"{counted(thresholds.enrolled, 'person', 'people')} enrolled; a larger gallery raises more alarms at "
            f"the same score. Below {thresholds.least_px:g} px nothing is told. Compared by: {thresholds.mode}."
        ),
        section("Scores and thresholds", legend([name for name, _ in groups]), figure(drawn, caption)),
        section("Every size", _levels(thresholds)),
    )


def _levels(thresholds: Thresholds) -> Html:
    columns = [
        Column("probe"), Column("threshold"), Column("searches of strangers"), Column("false alarms at most, %"),
        Column("misses, %"), Column("of all, show too little, %"),
    ]  # fmt: skip
    rows = [
        [
            f"{level.face_px:g} px", f"{level.score:.3f}", f"{level.strangers:,}", f"{100 * level.fpir_bound:.2f}",
            *(NOTHING if share is None else f"{100 * share:.1f}" for share in (level.fnir, level.too_little)),
        ]
        for level in thresholds.levels
    ]  # fmt: skip
    return table(columns, rows)


def answers_page(answers: Mapping[str, Answer], thresholds: Thresholds) -> str:
    """Return the report of what was said of each probe, as one HTML file that needs nothing else.

    Args:
        answers: By name of the probe.
        thresholds: That decided.
    """
    verdicts = [each.verdict for each in answers.values()]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)))
    columns = [
        Column("probe", number=False), Column("verdict", number=False), Column("shows"), Column("threshold"),
        Column("best score"), Column("candidates", number=False),
    ]  # fmt: skip
    rows = [
        [
            name, each.verdict, NOTHING if each.face_px is None else f"{each.face_px:.0f} px",
            NOTHING if each.threshold is None else f"{each.threshold:.3f}",
            NOTHING if each.best is None else f"{each.best:.3f}",
            ", ".join(f"{hit.person} {hit.score:.3f}" for hit in each.hits) or NOTHING,
        ]
        for name, each in answers.items()
    ]  # fmt: skip
    return page(
        "Who the probes may be",
        KICKER,
        paragraph(f"{plural(len(answers), 'probe')}: {counts}.", "lead"),
        paragraph(
            f"A candidate is a suggestion for a person to check. Thresholds were set for false alarms in "
            f"{100 * thresholds.fpir:g} % of searches of strangers, with {thresholds.enrolled:,} enrolled; below "
            f"{thresholds.least_px:g} px nothing is told."
        ),
        section("Every probe", table(columns, rows)),
    )


def comparison_page(found: Compared) -> str:
    """Return the report of two photos, as one HTML file that needs nothing else.

    Args:
        found: What :func:`keyhole.faces.watchlist.enrollment.compare` found.
    """
    sizes = found.first_px, found.second_px
    pictures = [
        figure(_picture(crop, name), f"{name}: {px:.0f} px of face")
        for crop, px, name in zip(found.crops, sizes, ("first", "second"), strict=True)
    ]
    return page(
        "Two faces compared",
        KICKER,
        paragraph(f"Score {found.score:.3f}, of -1 to 1.", "lead"),
        paragraph("What score means one person depends on the sizes: 'keyhole faces calibrate' finds out."),
        section("As they were compared", grid(pictures, kind="thumbs")),
    )


def clip_page(found: Clip, *, name: str, examples: bool = False) -> str:
    """Return the report of a clip, as one HTML file that needs nothing else.

    Args:
        found: What :func:`keyhole.faces.images.clips.follow` found.
        name: Of the clip.
        examples: Show the first, middle and best face of each track; only where the terms of the data allow it.
    """
    lines = found.text().splitlines()
    names = [f"face {number}" for number in range(1, len(found.tracks) + 1)]
    drawn = ""
    if found.tracks:
        points = [[(seen.frame, seen.eyes_px, seen.shown_px) for seen in track] for track in found.tracks]
        drawn = face_figures.over_frames(points, "Pixels of face over the frames, one line a face")
    columns = [
        Column("face", number=False), Column("frames"), Column("found in"), Column("detector's score"),
        Column("px by the eyes"), Column("px shown"), Column("best frame"),
    ]  # fmt: skip
    rows = [
        [
            names[k], f"{track[0].frame} to {track[-1].frame}", f"{len(track)}",
            f"{min(s.face.score for s in track):.2f} to {max(s.face.score for s in track):.2f}",
            f"{min(s.eyes_px for s in track):.1f} to {max(s.eyes_px for s in track):.1f}",
            f"{min(s.shown_px for s in track):.1f} to {max(s.shown_px for s in track):.1f}",
            f"{found.best(k).frame}",
        ]
        for k, track in enumerate(found.tracks)
    ]  # fmt: skip
    caption = (
        "Whole lines: pixels that the face really shows. Dotted: the side of the aligned face in pixels of the frame, "
        "by the eyes."
    )
    return page(
        f"The faces of {name}",
        KICKER,
        paragraph(f"{lines[0]}; {plural(len(found.tracks), 'face')} followed.", "lead"),
        section("Pixels of face over the frames", legend(names), figure(drawn, caption)) if drawn else "",
        section("Every face", table(columns, rows)) if rows else "",
        section("As the model sees them", _faces(found)) if examples and rows else "",
    )


def _faces(found: Clip) -> Html:
    shown = []
    for number, track in enumerate(found.tracks, 1):
        chosen = (track[0], track[len(track) // 2], found.best(number - 1))
        for seen in {seen.frame: seen for seen in chosen}.values():
            alt = f"face {number}, frame {seen.frame}: {seen.shown_px:.0f} px"
            shown.append(figure(_picture(seen.crop, alt), alt))
    return grid(shown, kind="thumbs")


def _picture(crop: np.ndarray | None, alt: str) -> Html:
    file = io.BytesIO()
    if crop is None:
        return Html("")
    Image.fromarray(crop).resize((_SHOWN_PX, _SHOWN_PX), Image.Resampling.NEAREST).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return Html(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}" style="width:100%">')
