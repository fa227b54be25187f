"""When a candidate is told: thresholds by the size of the probe, for a wanted rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keyhole.errors import DataError, SettingError
from keyhole.faces.metrics.identification import Searches, fnir, threshold_for_fpir
from keyhole.faces.watchlist.gallery import Hit
from keyhole.files import read_json, write_json

_KIND = "keyhole thresholds 1"
UNKNOWN, TOO_LITTLE, NO_FACE, UNREADABLE = "unknown", "too little to tell", "no face", "cannot be read"


@dataclass(frozen=True)
class Threshold:
    """From which score on a probe of about this size is told a name.

    Attributes:
        face_px: Size of the probes.
        score: A candidate at or above it is told.
        strangers: How many searches of people who are not enrolled it rests on.
        fpir_bound: With 95 % confidence, strangers raise an alarm at most this often; 0 to 1.
        fnir: Share of searches of the enrolled that it misses, where such were given; with those that show too little.
        too_little: Share of searches of the enrolled that show less than the least that is answered.
    """

    face_px: float
    score: float
    strangers: int
    fpir_bound: float
    fnir: float | None = None
    too_little: float | None = None


@dataclass(frozen=True)
class Thresholds:
    """What ``keyhole faces calibrate`` has found, for one model, one way of matching and one gallery.

    Attributes:
        fingerprint: Of the model.
        mode: The way of matching.
        fpir: The wanted share of searches of strangers that raise an alarm, 0 to 1.
        enrolled: People in the gallery; a larger one raises more alarms at the same score.
        least_px: Below this, nothing is told.
        levels: By rising size.
        margin: Shown around each face; None for aligned 112 crops.
        matcher: Digest of the matcher, for ``fitted-estimated``.
        photos: Of those people; more of one person raise more alarms as well. None where an earlier version did not
            tell.
        gallery: Digest of the gallery; None as well.
        detector: SHA-256 of what found the strangers' faces; empty for aligned crops, or where an earlier version did
            not tell.
    """

    fingerprint: str
    mode: str
    fpir: float
    enrolled: int
    least_px: float
    levels: tuple[Threshold, ...]
    margin: float | None = None
    matcher: str | None = None
    photos: int | None = None
    gallery: str | None = None
    detector: str = ""

    def at(self, face_px: float) -> Threshold:
        """Return the threshold for a probe of a size: that of the nearest size, by ratio."""
        return min(self.levels, key=lambda level: abs(math.log(max(face_px, 1.0) / level.face_px)))


@dataclass(frozen=True)
class Answer:
    """What is said of a probe.

    Attributes:
        verdict: ``candidate``, ``unknown``, ``too little to tell``, ``no face`` or ``cannot be read``.
        face_px: What its spectrum shows, of several frames the best one's; None without a face.
        threshold: The score that decided; None where there is too little.
        hits: The candidates at or above it, best first; none unless the verdict is ``candidate``.
        best: The best score, told without a name.
    """

    verdict: str
    face_px: float | None = None
    threshold: float | None = None
    hits: tuple[Hit, ...] = ()
    best: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Return it as a person reads it, in one line."""
        if self.face_px is None:
            return self.verdict
        if self.threshold is None:
            return f"{self.verdict} ({self.face_px:.0f} px)"
        decided = f"{self.face_px:.0f} px, threshold {self.threshold:.3f}"
        if not self.hits:
            return f"{self.verdict} ({decided}, best score {self.best or 0:.3f})"
        named = ", ".join(f"{' '.join(hit.person.split())} {hit.score:.3f}" for hit in self.hits)
        return f"{named} ({decided})"


def answer(hits: Sequence[Hit], face_px: float, thresholds: Thresholds, *, score: float | None = None) -> Answer:
    """Return what may be said of a probe: candidates at or above the threshold, and no name below it.

    Args:
        hits: The candidates, best first.
        face_px: What the probe shows.
        thresholds: Of the model and the way of matching that made the scores.
        score: From which a candidate is told; that of the nearest size where missing.

    Example:
        >>> found = Thresholds("f", "none", 0.01, 2, 8.0, (Threshold(16.0, 0.5, 300, 0.03),))
        >>> answer([Hit("ann", "a.jpg", 0.4)], 15.0, found).verdict
        'unknown'
    """
    best = float(hits[0].score) if hits else None
    if face_px < thresholds.least_px:
        return Answer(TOO_LITTLE, face_px)
    least = thresholds.at(face_px).score if score is None else score
    candidates = tuple(hit for hit in hits if hit.score >= least)
    return Answer("candidate" if candidates else UNKNOWN, face_px, least, candidates, best)


def level(face_px: float, strangers: Searches, mated: Searches | None = None, *, fpir: float) -> Threshold:
    """Return the threshold at one size for a wanted rate of false alarms.

    Args:
        face_px: The size.
        strangers: Searches of people who are not enrolled.
        mated: Searches of people who are.
        fpir: The wanted rate, above 0 and below 1.

    Raises:
        DataError: There are no strangers.
        SettingError: The rate is outside its range.
    """
    found = threshold_for_fpir(strangers, fpir)
    missed = None if mated is None else fnir(mated, found.threshold)
    return Threshold(float(face_px), float(found.threshold), found.searches, float(found.bound), missed)


def save_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write thresholds as JSON; raises like :func:`keyhole.files.write_bytes`."""
    write_json(path, {"kind": _KIND, **asdict(thresholds)})


def load_thresholds(path: Path, *, fingerprint: str | None = None, mode: str | None = None) -> Thresholds:
    """Return the thresholds of a file.

    Args:
        path: The file.
        fingerprint: Of the model that they shall be for.
        mode: The way of matching that they shall be for.

    Raises:
        DataError: The file is missing, or holds no thresholds.
        SettingError: They are for another model or another way of matching.
    """
    value = read_json(path)
    wrong = DataError(f"{path} holds no thresholds of 'keyhole faces calibrate'. Make it anew, or name another file.")
    if not isinstance(value, dict) or value.get("kind") != _KIND:
        raise wrong
    try:
        levels = tuple(_read_level(entry) for entry in value["levels"])
        found = Thresholds(
            _text(value["fingerprint"]),
            _text(value["mode"]),
            _number(value["fpir"]),
            int(_number(value["enrolled"])),
            _number(value["least_px"]),
            levels,
            None if value["margin"] is None else _number(value["margin"]),
            None if value["matcher"] is None else _text(value["matcher"]),
            None if value.get("photos") is None else int(_number(value["photos"])),
            None if value.get("gallery") is None else _text(value["gallery"]),
            _text(value.get("detector", "")),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise wrong from error
    sizes = [each.face_px for each in levels]
    if not levels or sizes != sorted(set(sizes)) or sizes[0] <= 0 or not 0 < found.fpir < 1:
        raise wrong
    if fingerprint is not None and found.fingerprint != fingerprint:
        raise SettingError(f"{path} was calibrated for another model. Calibrate this one: keyhole faces calibrate.")
    if mode is not None and found.mode != mode:
        raise SettingError(f"{path} was calibrated with --match {found.mode}, and this is {mode}. Use the same.")
    return found


def _read_level(entry: Any) -> Threshold:
    missed, refused = entry["fnir"], entry.get("too_little")
    return Threshold(
        _number(entry["face_px"]),
        _number(entry["score"]),
        int(_number(entry["strangers"])),
        _number(entry["fpir_bound"]),
        None if missed is None else _number(missed),
        None if refused is None else _number(refused),
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # nor NaN
        raise TypeError(value)
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
