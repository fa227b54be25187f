"""Thresholds from searches of strangers: by the size that a probe shows, for a wanted rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from keyhole.errors import DataError, SettingError
from keyhole.faces.comparison import Pipeline
from keyhole.faces.metrics.identification import Searches
from keyhole.faces.metrics.intervals import exact_ends
from keyhole.faces.protocols.samples import Sample, counted, shortened
from keyhole.faces.watchlist.enrollment import (
    Note,
    check_detector,
    faces_of,
    no_note,
    open_people,
    people_named,
    people_of,
    seen_px,
)
from keyhole.faces.watchlist.gallery import SAME, Gallery, Hit, candidates
from keyhole.faces.watchlist.search import search
from keyhole.faces.watchlist.thresholds import Threshold, Thresholds, level
from keyhole.progress import Progress, silent

_LOOSE = 1.5  # times the wanted rate; a bound above that is told
_BELOW = 0.9  # of a size: faces that were made so small show a little less or more


@dataclass(frozen=True)
class Wanted:
    """What thresholds are asked for.

    Attributes:
        fpir: Share of searches of strangers that may raise an alarm, above 0 and below 1.
        least_px: Below this nothing will be told, 1 to 1000; None takes nine tenths of the smallest size.
    """

    fpir: float = 0.01
    least_px: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.fpir < 1:
            raise SettingError(f"--fpir is {self.fpir}; expected a rate above 0 and below 1, such as 0.01.")
        if self.least_px is not None and not 1 <= self.least_px <= 1000:
            raise SettingError(f"--least-px is {self.least_px}; expected 1 to 1000 px.")


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and the scores that they rest on.

    Attributes:
        thresholds: What was found.
        strangers: By size, the best score of each search of a stranger.
        mates: By size, the score of the mate in each search of the enrolled, -infinity where it was not first; empty
            where no photos of the enrolled were given.
    """

    thresholds: Thresholds
    strangers: dict[float, Float[np.ndarray, " s"]]
    mates: dict[float, Float[np.ndarray, " m"]]


def calibrate(
    pipeline: Pipeline,
    gallery: Gallery,
    strangers: Path,
    wanted: Wanted,
    *,
    mated: Path | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> Calibration:
    """Return thresholds by the size of the probe, so that strangers raise an alarm at a wanted rate.

    Photos of strangers are made as small as each size of the setting and searched in the gallery. Each search is filed
    under the size that is nearest to what the probe's spectrum shows, as ``identify`` will look it up; of several of
    one photo under one size, the one with the highest score counts (of the enrolled, the lowest). One that shows less
    than the least that is answered raises no alarm and counts for no threshold; of the enrolled it is a miss.

    Args:
        pipeline: Model, detector, matcher, margin and camera; the sizes are the ``probe_px`` of its setting.
        gallery: The enrolled.
        strangers: Folder or archive of photos of people who are not.
        wanted: The rate of false alarms, and below which size nothing is told.
        mated: Folder or archive of other photos of the enrolled, to tell how many are missed.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        SettingError: A stranger is enrolled, or gallery and matcher are of another model.
        DataError: There is nobody to calibrate on.
    """
    _check(pipeline, gallery, strangers, mated, note)
    for doubt in pipeline.doubts():
        note(doubt)
    others = _searches(pipeline, gallery, strangers, progress, note)
    own = None if mated is None else _searches(pipeline, gallery, mated, progress, note)
    check_detector(others.detector or (own.detector if own else ""), {"gallery": gallery.detector}, note)
    if own is not None and (unknown := {sample.identity for sample in own.samples} - set(gallery.people)):
        note(f"{len(unknown)} people of {mated} are not enrolled and count for nothing: {shortened(sorted(unknown))}.")
    least_px = _least_px(gallery, others, wanted, note)
    filed = {px: _filed(gallery, others, px, least_px, mated=False) for px in others.sizes_px}
    mates = {} if own is None else {px: _filed(gallery, own, px, least_px, mated=True) for px in others.sizes_px}
    levels = _levels(filed, mates, least_px, fpir=wanted.fpir, note=note)
    found = Thresholds(
        pipeline.model.fingerprint,
        pipeline.mode,
        wanted.fpir,
        len(set(gallery.people)),
        least_px,
        levels,
        margin=pipeline.setting.margin,
        matcher=None if pipeline.matcher is None else pipeline.matcher.digest(),
        photos=len(gallery),
        gallery=gallery.digest(),
        detector=others.detector,
    )
    return Calibration(
        found,
        {px: each.searches.other for px, each in filed.items() if len(each.searches.rank)},
        {px: each.searches.mate[each.searches.mated] for px, each in mates.items() if each.searches.mated.any()},
    )


def _least_px(gallery: Gallery, others: _Found, wanted: Wanted, note: Note) -> float:
    """Return below which size nothing is told: nowhere below nine tenths of the smallest one that strangers show."""
    least_px = wanted.least_px or _BELOW * others.sizes_px[0]
    filed = ((px, _filed(gallery, others, px, max(least_px, _BELOW * px), mated=False)) for px in others.sizes_px)
    lowest = next((px for px, each in filed if len(each.searches.rank)), 0.0)
    if least_px < _BELOW * lowest:
        least_px = _BELOW * lowest
        note(f"Below {least_px:.1f} px nothing will be told, as nothing was calibrated there.")
    return least_px


def _check(pipeline: Pipeline, gallery: Gallery, strangers: Path, mated: Path | None, note: Note) -> None:
    """Refuse before any work what does not fit together."""
    gallery.check(pipeline.model.fingerprint, pipeline.setting.margin, pipeline.camera)
    if pipeline.matcher is not None:
        gallery.check_sizes(pipeline.matcher.sizes_px)
    named = people_named(strangers, note=note)
    if mated is not None:
        people_named(mated, note=note)
    if pipeline.matcher is not None:
        people = named | set(gallery.people)
        pipeline.matcher.check(pipeline.model.fingerprint, people, margin=pipeline.setting.margin)
    if known := named & set(gallery.people):
        raise SettingError(
            f"{len(known)} of the strangers have the name of someone who is enrolled; expected none. Take them out."
        )


def _levels(
    filed: dict[float, _Filed], mates: dict[float, _Filed], least_px: float, *, fpir: float, note: Note
) -> tuple[Threshold, ...]:
    levels = []
    for face_px, others in filed.items():
        if not len(others.searches.rank):
            note(
                f"No stranger shows about {face_px:g} px, so that size has no threshold of its own; the nearest counts."
            )
            continue
        own = mates.get(face_px)
        if own is None or not own.searches.mated.any():
            found = level(face_px, others.searches, fpir=fpir)
        else:
            refused = own.too_little / int(own.searches.mated.sum())
            found = replace(level(face_px, others.searches, own.searches, fpir=fpir), too_little=refused)
        levels.append(found)
    if not levels:
        raise DataError(
            f"No photo of a stranger shows the {least_px:.1f} px below which nothing is told. Give smaller --probe-px, "
            "or photos that show more."
        )
    _tell_bounds(levels, filed, fpir, note)
    return tuple(levels)


def _tell_bounds(levels: Sequence[Threshold], filed: Mapping[float, _Filed], fpir: float, note: Note) -> None:
    """Warn where so few strangers leave it open whether false alarms stay near what was asked for."""
    loose = [each for each in levels if each.fpir_bound > _LOOSE * fpir]
    if not loose:
        return
    worst = max(loose, key=lambda each: each.fpir_bound)
    people = counted(len(set(filed[worst.face_px].searches.subjects)), "stranger")
    others = f" (and at {counted(len(loose) - 1, 'other size')})" if len(loose) > 1 else ""
    note(
        f"Warning: at {worst.face_px:g} px{others}, {worst.strangers} searches of {people} show only that false alarms "
        f"stay below {100 * worst.fpir_bound:.1f} %, and {100 * fpir:g} % was asked for. Give about {_needed(fpir):,} "
        "different strangers."
    )


def _needed(fpir: float) -> int:
    """Return how many strangers bound the rate near enough, in round figures."""
    count = 3 / fpir
    while exact_ends(fpir * count, count, level=0.90)[1] > _LOOSE * fpir:
        count *= 1.02
    step = int(10 ** max(len(str(int(count))) - 2, 0))
    return math.ceil(count / step) * step


@dataclass(frozen=True)
class _Found:
    """What searches of some photos at several sizes gave, one row a photo and one column a size.

    ``lost`` tells whom the photos show in which no face was found, ``detector`` what found the others.
    """

    samples: tuple[Sample, ...]
    sizes_px: tuple[float, ...]
    shown_px: np.ndarray
    hits: list[list[Hit]]
    lost: tuple[str, ...]
    detector: str


def _searches(pipeline: Pipeline, gallery: Gallery, root: Path, progress: Progress, note: Note) -> _Found:
    """Return the best candidate of each photo with a face, at each size of the setting."""
    faces = faces_of(pipeline, root, kind=str(root), progress=progress, note=note)
    if not faces.samples:
        raise DataError(f"No face was found in any photo of {root}. Look at the photos, or at --detector.")
    closest = search(faces.watched.at(None), gallery.sharp, count=1).scores[:, 0]
    if same := [sample.path for sample, score in zip(faces.samples, closest, strict=True) if score > SAME]:
        note(
            f"Warning: {len(same)} photos of {root} are pictures of the gallery as well, so thresholds or misses are "
            f"not what they will be: {shortened(same)}. Take them out."
        )
    sizes = tuple(sorted(pipeline.setting.probe_px))
    shown = np.stack([seen_px(faces.watched, px) for px in sizes], axis=1)
    best = [
        [hits[0] for hits in candidates(gallery, faces.watched.at(px), shown[:, k], matcher=pipeline.matcher, count=1)]
        for k, px in enumerate(sizes)
    ]
    with open_people(root) as album:
        lost = tuple(s.identity for s in people_of(album, aligned=False) if s.path in set(faces.without_face))
    return _Found(faces.samples, sizes, shown, [list(row) for row in zip(*best, strict=True)], lost, faces.detector)


@dataclass(frozen=True)
class _Filed:
    """The searches that show about a size; ``too_little`` of them show less than is answered, and are misses."""

    searches: Searches
    too_little: int


def _filed(gallery: Gallery, found: _Found, face_px: float, least_px: float, *, mated: bool) -> _Filed:
    """Return the searches that show about a size, at most one a photo: the one that is worst for the system.

    A mate that is not first ranks second. Photos of the enrolled without a face are misses at every size, and so are
    those that show less than is answered; strangers who do raise no alarm, and are left out.
    """
    nearest = np.abs(np.log(np.maximum(found.shown_px, 1.0))[:, :, None] - np.log(found.sizes_px)).argmin(axis=2)
    column = found.sizes_px.index(face_px)
    chosen: list[tuple[str, Hit | None]] = []
    for k, (sample, hits) in enumerate(zip(found.samples, found.hits, strict=True)):
        here = nearest[k] == column
        answered = here & (found.shown_px[k] >= least_px)
        some = [hit for hit, takes_part in zip(hits, answered, strict=True) if takes_part]
        person = sample.identity
        if mated and (here & ~answered).any():
            chosen.append((person, None))
        elif some and mated:
            chosen.append((person, min(some, key=lambda hit: hit.score if hit.person == person else -np.inf)))
        elif some:
            chosen.append((person, max(some, key=lambda hit: hit.score)))
    enrolled = set(gallery.people)
    too_little = sum(hit is None and person in enrolled for person, hit in chosen)
    if mated:
        chosen += [(person, None) for person in found.lost if person in enrolled]
    people = len(enrolled)
    own = np.array([hit is not None and hit.person == person for person, hit in chosen], bool)
    there = np.array([hit is not None for _, hit in chosen], bool)
    scores = np.array([-np.inf if hit is None else hit.score for _, hit in chosen])
    known = np.isin([person for person, _ in chosen], gallery.people)
    searches = Searches(
        mate=np.where(own, scores, -np.inf),
        other=np.where(own, -np.inf, scores),
        rank=np.where(own, 1, np.where(known, np.where(there, 2, people + 1), 0)),
        found=there,
        subjects=np.array([person for person, _ in chosen]),
        people=people,
    )
    return _Filed(searches, too_little)
