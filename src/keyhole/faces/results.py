"""What an evaluation found: figures with their intervals, as text, as JSON, and in a sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from keyhole.faces.metrics.intervals import Interval


@dataclass(frozen=True)
class Row:
    """What was reached at one size under one way of matching.

    Attributes:
        face_px: Asked of the probes.
        mode: The way of matching.
        figures: By name, with their intervals; rates 0 to 1. What is undefined is missing.
        gap: Difference in the main figure to ``against`` on the same searches or pairs.
        against: The row that the gap is measured from: the first one without matching.
        cmc: Share of searches by rank, for identification.
        errors: Points of the error curve: rates along x, rates along y.
        right: Whether each search was first, or each pair told right, in the order of the protocol.
    """

    face_px: float
    mode: str
    figures: dict[str, Interval]
    gap: Interval | None
    cmc: tuple[float, ...] = ()
    errors: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    right: tuple[bool, ...] = ()
    against: str = "none"


@dataclass(frozen=True)
class Group:
    """The main figure of some of the searches, such as those of one camera.

    Attributes:
        name: Of the group.
        face_px: Asked of the probes.
        mode: The way of matching.
        searches: How many, with a mate.
        missed: How many of them without a detected face.
        figure: The main figure.
    """

    name: str
    face_px: float
    mode: str
    searches: int
    missed: int
    figure: Interval


@dataclass(frozen=True)
class Example:
    """A face as the model sees it.

    Attributes:
        caption: What it is; no name.
        png: The picture.
    """

    caption: str
    png: bytes


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a protocol.

    Attributes:
        kind: ``pairs`` or ``searches``.
        model: Its name.
        protocol: Name of the protocol.
        summary: People, pictures, searches or pairs, and misses of the detector, in one line.
        main: Name of the main figure.
        rows: By size and way of matching.
        groups: By camera and the like.
        notes: All that was decided or deviates from the official form.
        about_model: Fingerprint and licenses.
        setting: The conditions, as JSON values.
        draws: Of the bootstrap.
        missed: Pictures without a detected face: ``gallery`` and ``probes``, or ``pictures`` of pairs.
        error_names: What the error curves show along x and y.
        examples: Faces, where they may be shown.
    """

    kind: Literal["pairs", "searches"]
    model: str
    protocol: str
    summary: str
    main: str
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    about_model: dict[str, str]
    setting: dict[str, Any]
    draws: int
    missed: dict[str, int]
    error_names: tuple[str, str]
    examples: tuple[Example, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways of matching, each once."""
        return tuple(dict.fromkeys(row.mode for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return figures and conditions as JSON values; rates in percent."""
        return {
            "kind": self.kind,
            "model": {"name": self.model, **self.about_model},
            "protocol": self.protocol,
            "summary": self.summary,
            "missed": self.missed,
            "setting": self.setting,
            "notes": list(self.notes),
            "rows": [
                {
                    "face_px": row.face_px,
                    "match": row.mode,
                    "figures": {name: _percent(value) for name, value in row.figures.items()},
                    "gap": None if row.gap is None else _percent(row.gap),
                    "against": None if row.gap is None else row.against,
                }
                for row in self.rows
            ],
            "groups": [
                {**{k: v for k, v in asdict(group).items() if k != "figure"}, "figure": _percent(group.figure)}
                for group in self.groups
            ],
        }

    def sentence(self) -> str:
        """Return in a sentence what was found at the smallest and at the largest size."""
        sizes = sorted({row.face_px for row in self.rows})
        parts = []
        for px in dict.fromkeys((sizes[-1], sizes[0])):
            at = {row.mode: row for row in self.rows if row.face_px == px}
            first = next((row for mode, row in at.items() if mode.split()[0] == "none"), next(iter(at.values())))
            parts.append(f"{100 * first.figures[self.main].value:.1f} % at {px:g} px ({first.mode})")
            best = max(at.values(), key=lambda row: row.figures[self.main].value)
            if best is not first and best.gap is not None:
                value = best.figures[self.main].value
                sure = "its interval over that lies above 0" if best.gap.low > 0 else "perhaps better by chance"
                among = f", the best of {len(at) - 1}" if len(at) > 2 else ""
                parts[-1] += f", {100 * value:.1f} % matched by {best.mode} ({sure}{among})"
        return f"{self.main.capitalize()} of {self.model} on {self.protocol}: {'; '.join(parts)}."

    def text(self) -> str:
        """Return the table as text."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        lines = [self.summary]
        for row in self.rows:
            cells = [f"{name} {_short(row.figures[name])}" for name in names if name in row.figures]
            if row.gap is not None:
                cells.append(f"against {row.against} {_short(row.gap, sign='+')}")
            lines.append(f"{row.face_px:>6g} px  {row.mode:<20} {', '.join(cells)}")
        return "\n".join(lines)


def _percent(value: Interval) -> dict[str, float]:
    return {name: 100 * getattr(value, name) for name in ("value", "low", "high")}


def _short(value: Interval, sign: str = "") -> str:
    center, low, high = (100 * part for part in (value.value, value.low, value.high))
    return f"{center:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
