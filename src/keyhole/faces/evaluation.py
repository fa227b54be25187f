"""What a face model reaches on a protocol: plain and matched, at every size of the probe, with intervals."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from keyhole.errors import DataError, SettingError
from keyhole.faces.comparison import Pipeline, Setting, Watched, compare, crops_of
from keyhole.faces.embedding import SIDE_PX, Crops, degraded
from keyhole.faces.images.degradation import Degradation
from keyhole.faces.matching import Matcher, fit_matcher
from keyhole.faces.metrics import identification, verification
from keyhole.faces.metrics.intervals import Interval, Resampling, Statistic, difference, interval
from keyhole.faces.pooling import Tracks, frame_quality, frame_weights, grouped, pool, tracks_of
from keyhole.faces.protocols.samples import IdentificationSet, PairSet, Sample
from keyhole.faces.results import Evaluation, Example, Group, Row
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.models.face_model import FaceModel


def evaluate(
    pipeline: Pipeline,
    protocol: IdentificationSet | PairSet,
    *,
    examples: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Return what a pipeline reaches on a protocol at each size of the probe, under each way of matching.

    A probe in which no face is found is a miss, whatever its scores; so is a pair with such a picture, and a track
    without a face in any frame.

    Args:
        pipeline: Model, detector, matcher and conditions; the matcher may not have been fitted on people of the
            protocol.
        protocol: What is compared.
        examples: Keep a few faces for the report; only where the terms of the data allow it.
        progress: Wraps the loops.

    Raises:
        DataError: A photo cannot be read, there is nothing to compare, or no face at all.
        SettingError: Settings exclude each other, or the matcher knows people of the protocol.
    """
    _check(pipeline, protocol)
    parts = crops_of(pipeline, protocol, progress=progress)
    for crops, name in zip(parts, ("pictures",) if len(parts) == 1 else ("gallery", "probes"), strict=True):
        if not len(crops):
            raise DataError(f"No face was found in any picture of the {name}. Look at the pictures, or at --detector.")
    if isinstance(protocol, PairSet):
        found, probes = _pairs(pipeline, protocol, parts[0], progress)
    else:
        found, probes = _searches(pipeline, protocol, parts, progress)
    notes = (*found.notes, *_not_degraded(pipeline.setting), *pipeline.doubts())
    return replace(found, notes=notes, examples=_examples(probes, pipeline.setting) if examples else ())


def _check(pipeline: Pipeline, protocol: IdentificationSet | PairSet) -> None:
    """Refuse before any work what would fail after it."""
    setting, matcher, model = pipeline.setting, pipeline.matcher, pipeline.model
    if matcher is None and any(mode.startswith("fitted") for mode in setting.match):
        raise SettingError("Matching 'fitted' needs a matcher; fit one: keyhole faces fit.")
    aligned = model.preparation.template is not None and setting.margin is None
    if not aligned and any(mode.endswith("-estimated") for mode in setting.match):
        raise SettingError(
            "Sizes are estimated on aligned 112 crops; with a margin, or a model without alignment, they are not. "
            "Use --match none, resolution or fitted."
        )
    if isinstance(protocol, PairSet):
        if setting.pool:
            raise SettingError("--pool makes one search of several probes, and this protocol compares pairs. Leave it.")
        pictures = protocol.samples
    else:
        pictures = (*protocol.gallery, *protocol.probes)
        if setting.pool:
            tracks_of(protocol.probes, setting.track)
    if matcher is not None:
        matcher.check(model.fingerprint, {sample.identity for sample in pictures}, margin=setting.margin)
    if isinstance(protocol, IdentificationSet) and not protocol.mated().any():
        raise DataError(
            "No probe is of anyone in the gallery, so there is no search that could succeed. Compare the names of "
            "people in gallery and probes."
        )


def _not_degraded(setting: Setting) -> tuple[str, ...]:
    """Return the note on probes that no camera stood before, where one was asked for."""
    whole = [px for px in setting.probe_px if px >= SIDE_PX]
    if not whole or replace(setting.how, face_px=SIDE_PX) == Degradation(SIDE_PX):
        return ()
    return (
        f"At {', '.join(f'{px:g}' for px in whole)} px the probes are as they are: blur, noise and codec of the camera "
        "are applied to smaller ones only.",
    )


def _pairs(pipeline: Pipeline, protocol: PairSet, crops: Crops, progress: Progress) -> tuple[Evaluation, Watched]:
    setting = pipeline.setting
    place = np.where(crops.found, np.cumsum(crops.found) - 1, -1)[protocol.pairs]
    whole = (place >= 0).all(axis=1)
    probe_rows, probe_places = np.unique(place[whole, 1], return_inverse=True)
    mate_rows, mate_places = np.unique(place[whole, 0], return_inverse=True)
    pictures = pipeline.watch(crops, progress=progress, name="pictures")
    probes, gallery = pictures.subset(probe_rows, name="probes"), pictures.subset(mate_rows, name="gallery")
    subjects = protocol.subjects()
    by = np.isin(protocol.folds, protocol.threshold_folds) if protocol.threshold_folds else None
    judged = np.ones(len(place), bool) if by is None else ~by

    def rows(face_px: float, mode: str) -> Iterator[tuple[Statistic, Row]]:
        scores = np.full(len(place), verification.LOST)
        pairs = probe_places, mate_places
        scores[whole] = compare(probes, gallery, face_px, mode=mode, matcher=pipeline.matcher, pairs=pairs)
        by_fold = verification.fold_accuracy(scores, protocol.same, protocol.folds, by=by)
        scores, same, people = scores[judged], protocol.same[judged], subjects[judged]
        main = verification.accuracy_statistic(by_fold, people)
        more = {
            "EER": verification.eer_statistic(scores, same, subjects=people),
            "TAR at FAR 1 %": verification.tar_statistic(scores, same, 0.01, subjects=people),
            "TAR at FAR 0.1 %": verification.tar_statistic(scores, same, 0.001, subjects=people),
        }
        curve = verification.det(scores, same)
        errors = tuple(curve.false_accept.tolist()), tuple(curve.false_reject.tolist())
        figures = _with_intervals({"accuracy": main, **more}, setting)
        yield main, Row(face_px, mode, figures, None, (), errors, _flags(by_fold.correct))

    missed = int((~crops.found).sum())
    summary = f"{protocol.summary()}; {missed} without a face, {int((~whole).sum())} pairs lost by that"
    found = Evaluation(
        "pairs", pipeline.model.name, protocol.name, summary, "accuracy", _rows(rows, setting), (), protocol.notes,
        _about(pipeline.model), _setting_values(setting), setting.draws, {"pictures": missed},
        ("false accepts, %", "false rejects, %"),
    )  # fmt: skip
    return found, probes


def _searches(
    pipeline: Pipeline, protocol: IdentificationSet, parts: tuple[Crops, ...], progress: Progress
) -> tuple[Evaluation, Watched]:
    enrolled, sought = parts
    setting = pipeline.setting
    probes = pipeline.watch(sought, progress=progress, name="probes")
    gallery = pipeline.watch(enrolled, progress=progress, name="gallery")
    tracked, there, pools = _tracked(protocol, sought, setting)
    open_set = not tracked.mated().all()
    held: dict[tuple[float, str], identification.Searches] = {}

    def rows(face_px: float, mode: str) -> Iterator[tuple[Statistic, Row]]:
        of_frames = compare(probes, gallery, face_px, mode=mode, matcher=pipeline.matcher)
        # what a frame is worth is read off its spectrum wherever that can be read, whatever size it is matched by
        shown = probes.sizes_px(face_px, "-estimated" if sought.canonical else mode) if setting.pool else np.zeros(0)
        quality = frame_quality(shown, pipeline.matcher if mode.startswith("fitted") else None)
        for way, pooled in pools(of_frames, quality):
            scores = np.zeros((len(tracked.probes), len(tracked.gallery)), np.float32)
            scores[np.ix_(there, enrolled.found)] = pooled
            found = identification.search(
                scores,
                gallery=[sample.identity for sample in tracked.gallery],
                probes=[sample.identity for sample in tracked.probes],
                found=there,
                enrolled=enrolled.found,
                views=tracked.views,
            )
            held[face_px, label := mode + way] = found
            yield _row_of(found, face_px, label, setting, open_set=open_set)

    made = _rows(rows, setting)
    missed = {"gallery": int((~enrolled.found).sum()), "probes": int((~sought.found).sum())}
    summary = f"{protocol.summary()}; without a face {missed['gallery']} of the gallery, {missed['probes']} probes"
    if setting.pool:
        summary += f"; {len(tracked.probes):,} tracks of the probes, {int((~there).sum())} of them without a face"
    found = Evaluation(
        "searches", pipeline.model.name, protocol.name, summary, "rank-1", made, _groups(tracked, held, setting),
        (*protocol.notes, *_too_few(held, setting)), _about(pipeline.model), _setting_values(setting), setting.draws,
        missed, ("FPIR, %", "FNIR, %"),
    )  # fmt: skip
    return found, probes


# from scores and qualities of frames with a face to the scores of searches, one for each way of pooling
_Pools = Callable[[np.ndarray, np.ndarray], Iterator[tuple[str, np.ndarray]]]


def _tracked(
    protocol: IdentificationSet, sought: Crops, setting: Setting
) -> tuple[IdentificationSet, Bool[np.ndarray, " t"], _Pools]:
    """Return the searches of a protocol, which of them show a face, and how frames become searches."""
    if not setting.pool:
        return protocol, sought.found, lambda scores, _quality: iter([("", scores)])
    tracks = tracks_of(protocol.probes, setting.track)
    seen = np.zeros(len(tracks), bool)
    seen[tracks.of[sought.found]] = True
    frames = grouped(tracks.of[sought.found].tolist())
    order = np.argsort(tracks.of[sought.found][frames.first])  # rows of searches are in the order of all tracks

    def pools(scores: np.ndarray, quality: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for way in setting.pool:
            yield f" {way}", pool(scores, frame_weights(way, quality, frames), frames)[order]

    return replace(protocol, probes=_whole(protocol.probes, tracks, setting.track)), seen, pools


def _whole(frames: Sequence[Sample], tracks: Tracks, track: str) -> tuple[Sample, ...]:
    """Return one sample a track: what all of its frames have in common, less what tells tracks apart."""
    members: list[list[Sample]] = [[] for _ in range(len(tracks))]
    for sample, number in zip(frames, tracks.of, strict=True):
        members[number].append(sample)

    def common(values: Iterable[str]) -> str:
        found = set(values)
        return found.pop() if len(found) == 1 else ""

    return tuple(
        replace(
            own[0],
            camera=common(sample.camera for sample in own),
            attributes={
                key: common(sample.attributes.get(key, "") for sample in own)
                for key in own[0].attributes
                if key != track
            },
        )
        for own in members
    )


def _row_of(
    found: identification.Searches, face_px: float, label: str, setting: Setting, *, open_set: bool
) -> tuple[Statistic, Row]:
    main = identification.rank_statistic(found)
    more: dict[str, Statistic | None] = {"rank-1": main}
    if found.people >= 10:
        more["rank-5"] = identification.rank_statistic(found, 5)
    more["CMC area"] = identification.cmc_area_statistic(found)
    errors = None
    if open_set and found.alarms.any():
        more[f"FNIR at FPIR {100 * setting.fpir:g} %"] = identification.fnir_at_fpir_statistic(found, setting.fpir)
        curve = identification.open_set_curve(found)
        errors = tuple(curve.fpir.tolist()), tuple(curve.fnir.tolist())
    cmc = tuple(identification.cmc(found).tolist())
    right = _flags(identification.hits(found))
    return main, Row(face_px, label, _with_intervals(more, setting), None, cmc, errors, right)


def _rows(rows: Callable[[float, str], Iterator[tuple[Statistic, Row]]], setting: Setting) -> tuple[Row, ...]:
    """Return the rows of each size, with the gap to the first row of ``none``."""
    found: list[Row] = []
    for face_px in setting.probe_px:
        made = [each for mode in setting.match for each in rows(face_px, mode)]
        plain = next(((main, row) for main, row in made if row.mode.split()[0] == "none"), None)
        for main, row in made:
            gap = None
            if plain is not None and row is not plain[1]:
                gap = difference(main, plain[0], resampling=_draws(setting))
            found.append(replace(row, gap=gap, against="none" if plain is None else plain[1].mode))
    return tuple(found)


def _flags(values: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(value) for value in values)


def _too_few(held: dict[tuple[float, str], identification.Searches], setting: Setting) -> tuple[str, ...]:
    """Return the note on a rate of false alarms that so few searches cannot show."""
    found = next(iter(held.values()))
    if not found.alarms.any():
        return ()
    warning = identification.threshold_for_fpir(found, setting.fpir).warning
    return () if warning is None else (f"No FNIR is told: {warning}",)


def _draws(setting: Setting) -> Resampling:
    return Resampling(setting.draws, seed=setting.seed)


def _with_intervals(statistics: dict[str, Statistic | None], setting: Setting) -> dict[str, Interval]:
    return {name: interval(each, resampling=_draws(setting)) for name, each in statistics.items() if each is not None}


def _groups(
    protocol: IdentificationSet, held: dict[tuple[float, str], identification.Searches], setting: Setting
) -> tuple[Group, ...]:
    """Return the main figure by camera and by each attribute that has from 2 to 12 values."""
    labels: dict[str, list[str]] = {"camera": [sample.camera for sample in protocol.probes]}
    for key in sorted({key for sample in protocol.probes for key in sample.attributes}):
        labels[key] = [sample.attributes.get(key, "") for sample in protocol.probes]
    groups = []
    for kind, values in labels.items():
        names = sorted(set(values) - {""})
        if not 2 <= len(names) <= 12:
            continue
        for name in names:
            where = np.array([value == name for value in values])
            for (face_px, mode), found in held.items():
                some = found.subset(where)
                if some.mated.any():
                    figure = interval(identification.rank_statistic(some), resampling=_draws(setting))
                    missed = int((some.mated & ~some.found).sum())
                    groups.append(Group(f"{kind} {name}", face_px, mode, int(some.mated.sum()), missed, figure))
    return tuple(groups)


def _about(model: FaceModel) -> dict[str, str]:
    terms = model.licenses
    return {
        "fingerprint": model.fingerprint,
        "license of the code": terms.code,
        "license of the weights": terms.weights,
        "training data": terms.data,
    }


def _setting_values(setting: Setting) -> dict[str, Any]:
    values = asdict(setting)
    lists = {name: list(getattr(setting, name)) for name in ("probe_px", "match", "pool")}
    return {**values, **lists, "how": asdict(setting.how)}


def _examples(probes: Watched, setting: Setting, *, most: int = 4) -> tuple[Example, ...]:
    """Return a few probes at each size, spread over all of them, without names."""
    from PIL import Image

    if not len(probes.crops):
        return ()
    chosen = np.unique(np.linspace(0, len(probes.crops) - 1, most).round().astype(int))
    some, found = probes.crops.subset(chosen), []
    for face_px in sorted(setting.probe_px, reverse=True):
        for pixels in degraded(some, how=setting.at(face_px), seed=probes.seed):
            for k, crop in enumerate(pixels):
                file = io.BytesIO()
                Image.fromarray(crop.numpy()).save(file, "PNG")
                found.append(Example(f"probe {k + 1} at {face_px:g} px", file.getvalue()))
    return tuple(found)


def fit(pipeline: Pipeline, faces: IdentificationSet | PairSet, *, progress: Progress = silent) -> Matcher:
    """Return a matcher fitted on all faces of a set, without its labels; see :mod:`keyhole.faces.matching`.

    Args:
        pipeline: Model, detector, margin and camera.
        faces: The faces; who they are of is only remembered as digests, so that nobody tests on them.
        progress: Wraps the loops.

    Raises:
        DataError: A photo cannot be read, or there are too few faces.
    """
    parts = crops_of(pipeline, faces, progress=progress)
    samples: tuple[Sample, ...]
    samples = faces.samples if isinstance(faces, PairSet) else (*faces.gallery, *faces.probes)
    with_face = np.concatenate([part.found for part in parts])
    seen = [pipeline.watch(part, progress=progress, name=f"faces {k + 1}") for k, part in enumerate(parts)]

    def at(face_px: float | None) -> np.ndarray:
        return np.concatenate([watched.at(face_px) for watched in seen])

    setting = pipeline.setting
    return fit_matcher(
        at(None),
        at,
        fingerprint=pipeline.model.fingerprint,
        people=[sample.identity for sample, there in zip(samples, with_face, strict=True) if there],
        about={"faces_of": faces.name, "camera": asdict(setting.how), "margin": setting.margin},
    )
