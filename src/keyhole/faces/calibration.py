"""Thresholds from searches of strangers: by the size that a probe shows, for a wanted rate of false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keyhole.errors import DataError, SettingError
from keyhole.faces.enrollment import Note, faces_of, no_note, open_people, people_of, seen_px, way_of
from keyhole.faces.evaluation import Setting, Watched
from keyhole.faces.gallery import Gallery, Hit, candidates
from keyhole.faces.identification import Searches
from keyhole.faces.matching import Matcher
from keyhole.faces.samples import Sample
from keyhole.faces.thresholds import Threshold, Thresholds, level
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.detection import Detector
    from keyhole.faces.models import FaceModel


def calibrate(
    model: FaceModel,
    gallery: Gallery,
    strangers: Path,
    setting: Setting,
    *,
    mated: Path | None = None,
    mode: str = "none",
    matcher: Matcher | None = None,
    fpir: float = 0.01,
    least_px: float = 8.0,
    detector: Detector | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> Thresholds:
    """Return thresholds by the size of the probe, so that strangers raise an alarm at a wanted rate.

    Photos of strangers are made as small as each size of the setting and searched in the gallery. Each search is filed
    under the size that is nearest to what the probe's spectrum shows, as ``identify`` will look it up; of several of
    one photo under one size, the one with the highest score counts (of the enrolled, the lowest).

    Args:
        model: The model.
        gallery: The enrolled.
        strangers: Folder or archive of photos of people who are not.
        setting: The sizes are its ``probe_px``.
        mated: The same of other photos of the enrolled, to tell how many are missed.
        mode: ``none`` or ``fitted-estimated``.
        matcher: For the latter.
        fpir: The wanted rate, above 0 and below 1.
        least_px: Below this nothing will be told.
        detector: Finds faces.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        SettingError: A setting is out of range, or a stranger is enrolled.
        DataError: There is nobody to calibrate on.
    """
    fitted = _checked(model, gallery, strangers, setting, mode=mode, matcher=matcher, fpir=fpir, least_px=least_px)
    others = _searches(model, gallery, strangers, setting, fitted, detector, progress, note)
    own = _searches(model, gallery, mated, setting, fitted, detector, progress, note) if mated is not None else None
    if own is not None and (unknown := {sample.identity for sample in own.samples} - set(gallery.people)):
        names = ", ".join(sorted(unknown)[:3])
        note(f"{len(unknown)} people of {mated} are not enrolled and count for nothing: {names}.")
    levels = _levels(gallery, others, own, fpir=fpir, note=note)
    if least_px < 0.9 * levels[0].face_px:
        least_px = 0.9 * levels[0].face_px
        note(f"Below {least_px:.1f} px nothing will be told, as nothing was calibrated there.")
    enrolled, digest = len(set(gallery.people)), None if fitted is None else fitted.digest()
    return Thresholds(model.fingerprint, mode, fpir, enrolled, least_px, levels, margin=setting.margin, matcher=digest)


def _checked(
    model: FaceModel,
    gallery: Gallery,
    strangers: Path,
    setting: Setting,
    *,
    mode: str,
    matcher: Matcher | None,
    fpir: float,
    least_px: float,
) -> Matcher | None:
    """Return the matcher that is used; refuse before any work what does not fit together."""
    if not 0 < fpir < 1:
        raise SettingError(f"--fpir is {fpir}; expected a rate above 0 and below 1, such as 0.01.")
    if not 1 <= least_px <= 1000:
        raise SettingError(f"--least-px is {least_px}; expected 1 to 1000 px.")
    fitted = way_of(mode, matcher)
    gallery.check(model.fingerprint, setting.margin)
    with open_people(strangers) as album:
        named = {sample.identity for sample in people_of(album, aligned=False)}
    if fitted is not None:
        fitted.check(model.fingerprint, named | set(gallery.people), margin=setting.margin)
    if known := named & set(gallery.people):
        raise SettingError(
            f"{len(known)} of the strangers have the name of someone who is enrolled; expected none. Take them out."
        )
    return fitted


def _levels(gallery: Gallery, others: _Found, own: _Found | None, *, fpir: float, note: Note) -> tuple[Threshold, ...]:
    levels = []
    for face_px in others.sizes_px:
        filed = _filed(gallery, others, face_px, mated=False)
        if not len(filed.rank):
            note(
                f"No stranger shows about {face_px:g} px, so that size has no threshold of its own; the nearest counts."
            )
            continue
        mates = None if own is None else _filed(gallery, own, face_px, mated=True)
        found = level(face_px, filed, mates if mates is not None and mates.mated.any() else None, fpir=fpir)
        levels.append(found)
        if found.fpir_bound > 1.5 * fpir:
            note(
                f"Warning: at {face_px:g} px, {found.strangers} searches of strangers show only that false alarms stay "
                f"below {100 * found.fpir_bound:.1f} %, and {100 * fpir:g} % was asked for. Give more strangers."
            )
    if not levels:
        raise DataError("No photo of a stranger shows about any of the sizes. Give other --probe-px.")
    return tuple(levels)


@dataclass(frozen=True)
class _Found:
    """What searches of some photos at several sizes gave, one row a photo and one column a size.

    ``lost`` tells whom the photos show in which no face was found.
    """

    samples: tuple[Sample, ...]
    sizes_px: tuple[float, ...]
    shown_px: np.ndarray
    hits: list[list[Hit]]
    lost: tuple[str, ...]


def _searches(
    model: FaceModel,
    gallery: Gallery,
    root: Path,
    setting: Setting,
    matcher: Matcher | None,
    detector: Detector | None,
    progress: Progress,
    note: Note,
) -> _Found:
    """Return the best candidate of each photo with a face, at each size of the setting."""
    crops, kept, missed = faces_of(
        model, root, setting, detector=detector, progress=progress, note=note, kind=str(root)
    )
    if not kept:
        raise DataError(f"No face was found in any photo of {root}. Look at the photos, or at --detector.")
    watched = Watched(model, crops, setting, progress=progress, name="probes")
    sizes = tuple(sorted(setting.probe_px))
    shown = np.stack([seen_px(watched, px) for px in sizes], axis=1)
    best = [
        [hits[0] for hits in candidates(gallery, watched.at(px), shown[:, k], matcher=matcher, count=1)]
        for k, px in enumerate(sizes)
    ]
    with open_people(root) as album:
        lost = tuple(s.identity for s in people_of(album, aligned=False) if s.path in set(missed))
    return _Found(kept, sizes, shown, [list(row) for row in zip(*best, strict=True)], lost)


def _filed(gallery: Gallery, found: _Found, face_px: float, *, mated: bool) -> Searches:
    """Return the searches that show about a size, at most one a photo: the one that is worst for the system.

    A mate that is not first ranks second. Photos of the enrolled without a face are misses at every size.
    """
    nearest = np.abs(np.log(np.maximum(found.shown_px, 1.0))[:, :, None] - np.log(found.sizes_px)).argmin(axis=2)
    column = found.sizes_px.index(face_px)
    chosen: list[tuple[str, Hit | None]] = []
    for sample, hits, row in zip(found.samples, found.hits, nearest, strict=True):
        some = [hit for hit, at in zip(hits, row, strict=True) if at == column]
        if not some:
            continue
        person = sample.identity
        if mated:
            worst = min(some, key=lambda hit: hit.score if hit.person == person else -np.inf)
        else:
            worst = max(some, key=lambda hit: hit.score)
        chosen.append((person, worst))
    if mated:
        chosen += [(person, None) for person in found.lost if person in gallery.people]
    people = len(set(gallery.people))
    own = np.array([hit is not None and hit.person == person for person, hit in chosen], bool)
    there = np.array([hit is not None for _, hit in chosen], bool)
    scores = np.array([-np.inf if hit is None else hit.score for _, hit in chosen])
    known = np.isin([person for person, _ in chosen], gallery.people)
    return Searches(
        mate=np.where(own, scores, -np.inf),
        other=np.where(own, -np.inf, scores),
        rank=np.where(own, 1, np.where(known, np.where(there, 2, people + 1), 0)),
        found=there,
        subjects=np.array([person for person, _ in chosen]),
        people=people,
    )
