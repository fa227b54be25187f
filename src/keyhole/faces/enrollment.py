"""A watch list in use: enroll a folder of people, calibrate on strangers, and answer who a probe may be."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from keyhole.errors import DataError, SettingError
from keyhole.faces.albums import open_album
from keyhole.faces.embedding import Crops, crop_samples, shown_px
from keyhole.faces.evaluation import Setting, Watched
from keyhole.faces.gallery import Gallery, Hit, candidates, enroll, load_gallery
from keyhole.faces.identification import Searches
from keyhole.faces.matching import Matcher, check_modes
from keyhole.faces.samples import Sample
from keyhole.faces.thresholds import NO_FACE, Answer, Thresholds, answer, level
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.detection import Detector
    from keyhole.faces.models import FaceModel

Note = Callable[[str], None]
# a watch list compares photos as they are, or by a matcher; how small a probe is, is never told from outside
WAYS = ("none", "fitted-estimated")


def no_note(_text: str) -> None:
    """Say nothing."""


def people_of(root: Path, *, aligned: bool | None = None) -> tuple[Path, tuple[Sample, ...]]:
    """Return the photos of a folder or archive with the person that each shows: ``PERSON/*.jpg``, or ``PERSON.jpg``.

    A path to one photo is that photo alone.

    Args:
        root: The folder, archive or photo.
        aligned: Whether the pictures are aligned 112 crops; None takes those for it that measure 112 x 112.

    Returns:
        The album's root, and its samples.

    Raises:
        DataError: There is no photo.
    """
    from keyhole.faces.albums import picture_size

    one = root.name if root.is_file() and root.suffix.lower() != ".zip" else None
    where = root.parent if one else root
    samples = []
    with open_album(where) as album:
        for name in [one] if one else album.pictures():
            parts = PurePosixPath(name).parts
            person = parts[-2] if len(parts) > 1 else PurePosixPath(name).stem
            crop = picture_size(album, name) == (112, 112) if aligned is None else aligned
            samples.append(Sample(name, unicodedata.normalize("NFC", person), aligned=crop))
    if not samples:
        raise DataError(f"{root} holds no photo; expected PERSON/*.jpg or PERSON.jpg. Name the folder of the people.")
    return where, tuple(samples)


def _faces(
    model: FaceModel,
    root: Path,
    setting: Setting,
    *,
    detector: Detector | None,
    progress: Progress,
    note: Note,
    kind: str,
) -> tuple[Crops, tuple[Sample, ...], tuple[str, ...]]:
    """Return crops, the samples in which a face was found, and the names of the others."""
    where, samples = people_of(root)
    with open_album(where) as album:
        crops = crop_samples(
            album, samples, model.preparation, margin=setting.margin, detector=detector, progress=progress
        )
    if crops_taken := sum(sample.aligned for sample in samples):
        note(f"{crops_taken} of {len(samples)} photos of {kind} measure 112 x 112 and are taken as aligned crops.")
    kept = tuple(sample for sample, there in zip(samples, crops.found, strict=True) if there)
    missed = tuple(sample.path for sample, there in zip(samples, crops.found, strict=True) if not there)
    if missed:
        note(f"No face was found in {len(missed)} of {len(samples)} photos of {kind}: {', '.join(missed[:3])}.")
    return crops, kept, missed


def enroll_folder(
    model: FaceModel,
    root: Path,
    setting: Setting,
    *,
    detector: Detector | None = None,
    sizes_px: Sequence[float] = (),
    progress: Progress = silent,
    note: Note = no_note,
) -> tuple[Gallery, tuple[str, ...]]:
    """Return the gallery of a folder of people, and the photos in which no face was found.

    Args:
        model: The model.
        root: Folder or archive of ``PERSON/*.jpg`` or ``PERSON.jpg``.
        setting: Margin and camera.
        detector: Finds faces.
        sizes_px: Also embedded at these sizes; those of a matcher.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        DataError: There is no photo, or no face in any.
    """
    crops, kept, missed = _faces(
        model, root, setting, detector=detector, progress=progress, note=note, kind="the gallery"
    )
    if not kept:
        raise DataError(f"No face was found in any photo of {root}. Look at the photos, or at --detector.")
    watched = Watched(model, crops, setting, progress=progress, name="gallery")
    people, photos = [sample.identity for sample in kept], [sample.path for sample in kept]
    gallery = enroll(model.fingerprint, people, photos, watched.at, sizes_px=sizes_px, margin=setting.margin, note=note)
    return gallery, missed


def open_gallery(
    model: FaceModel,
    path: Path,
    setting: Setting,
    *,
    detector: Detector | None = None,
    matcher: Matcher | None = None,
    note: Note = no_note,
) -> Gallery:
    """Return the gallery of a file of ``keyhole faces embed``, or of a folder of people; arguments as above.

    Raises:
        SettingError: The gallery was made by another model.
    """
    if path.suffix == ".safetensors":
        gallery = load_gallery(path)
        gallery.check(model.fingerprint, setting.margin)
        return gallery
    sizes = matcher.sizes_px if matcher is not None else ()
    return enroll_folder(model, path, setting, detector=detector, sizes_px=sizes, note=note)[0]


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
    if not 0 < fpir < 1:
        raise SettingError(f"--fpir is {fpir}; expected a rate above 0 and below 1, such as 0.01.")
    fitted = _way(mode, matcher, setting.margin)
    if not 1 <= least_px <= 1000:
        raise SettingError(f"--least-px is {least_px}; expected 1 to 1000 px.")
    gallery.check(model.fingerprint, setting.margin)
    known = {sample.identity for sample in people_of(strangers)[1]} & set(gallery.people)
    if known:
        raise SettingError(
            f"{len(known)} of the strangers have the name of someone who is enrolled; expected none. Take them out."
        )
    others = _searches(model, gallery, strangers, setting, fitted, detector, progress, note)
    own = _searches(model, gallery, mated, setting, fitted, detector, progress, note) if mated is not None else None
    levels = []
    for face_px in sorted(setting.probe_px):
        filed = _filed(gallery, others, face_px, worst=max)
        if not len(filed.rank):
            note(
                f"No stranger shows about {face_px:g} px, so that size has no threshold of its own; the nearest counts."
            )
            continue
        mates = None if own is None else _filed(gallery, own, face_px, worst=min)
        levels.append(level(face_px, filed, mates if mates is not None and len(mates.rank) else None, fpir=fpir))
    for each in levels:
        if each.fpir_bound > 1.5 * fpir:
            note(
                f"Warning: at {each.face_px:g} px, {each.strangers} searches of strangers show only that false alarms "
                f"stay below {100 * each.fpir_bound:.1f} %, and {100 * fpir:g} % was asked for. Give more strangers."
            )
    enrolled, digest = len(set(gallery.people)), None if fitted is None else fitted.digest()
    return Thresholds(
        model.fingerprint, mode, fpir, enrolled, least_px, tuple(levels), margin=setting.margin, matcher=digest
    )


@dataclass(frozen=True)
class _Found:
    """What searches of some photos at several sizes gave, one row a photo and one column a size."""

    samples: tuple[Sample, ...]
    sizes_px: tuple[float, ...]
    shown_px: np.ndarray
    hits: list[list[Hit]]


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
    crops, kept, _ = _faces(model, root, setting, detector=detector, progress=progress, note=note, kind=str(root))
    if not kept:
        raise DataError(f"No face was found in any photo of {root}. Look at the photos, or at --detector.")
    watched = Watched(model, crops, setting, progress=progress, name="probes")
    sizes = tuple(sorted(setting.probe_px))
    shown = np.stack([_seen_px(watched, px) for px in sizes], axis=1)
    best = [
        [hits[0] for hits in candidates(gallery, watched.at(px), shown[:, k], matcher=matcher, count=1)]
        for k, px in enumerate(sizes)
    ]
    return _Found(kept, sizes, shown, [list(row) for row in zip(*best, strict=True)])


def _seen_px(watched: Watched, face_px: float | None) -> Float[np.ndarray, " f"]:
    if watched.crops.canonical:
        return watched.estimated_px(face_px)
    return shown_px(watched.crops, face_px)


def _filed(gallery: Gallery, found: _Found, face_px: float, *, worst: Callable[..., tuple[float, Hit]]) -> Searches:
    """Return the searches that show about a size, at most one a photo; a mate that is not first ranks second."""
    nearest = np.abs(np.log(np.maximum(found.shown_px, 1.0))[:, :, None] - np.log(found.sizes_px)).argmin(axis=2)
    column = found.sizes_px.index(face_px)
    chosen = [
        (
            sample,
            worst(((hit.score, hit) for hit, at in zip(hits, row, strict=True) if at == column), key=lambda s: s[0])[1],
        )
        for sample, hits, row in zip(found.samples, found.hits, nearest, strict=True)
        if (row == column).any()
    ]
    names = np.array([sample.identity for sample, _ in chosen])
    own = np.array([hit.person == sample.identity for sample, hit in chosen], bool)
    known = np.isin(names, gallery.people)
    scores = np.array([hit.score for _, hit in chosen])
    return Searches(
        mate=np.where(own, scores, -np.inf),
        other=np.where(own, -np.inf, scores),
        rank=np.where(own, 1, np.where(known, 2, 0)),
        found=np.ones(len(chosen), bool),
        subjects=names,
        people=len(set(gallery.people)),
    )


def _way(mode: str, matcher: Matcher | None, margin: float | None) -> Matcher | None:
    check_modes((mode,))
    if mode not in WAYS:
        raise SettingError(f"--match is {mode!r}; a watch list compares by {' or '.join(WAYS)}.")
    if mode != "none" and matcher is None:
        raise SettingError("Matching 'fitted' needs a matcher; fit one: keyhole faces fit.")
    if mode == "none" or matcher is None:
        return None
    fitted_with = matcher.about.get("margin", margin)
    if fitted_with != margin:
        raise SettingError(
            f"The matcher was fitted with a margin of {fitted_with}, and this is {margin}. Use the same."
        )
    return matcher


def identify(
    model: FaceModel,
    gallery: Gallery,
    probes: Path,
    thresholds: Thresholds,
    setting: Setting,
    *,
    matcher: Matcher | None = None,
    detector: Detector | None = None,
    count: int = 5,
    progress: Progress = silent,
    note: Note = no_note,
) -> dict[str, Answer]:
    """Return what may be said of each probe, by its name; of a photo without a face, that there is none.

    Args:
        model: The model.
        gallery: The enrolled.
        probes: A photo, or a folder or archive of them.
        thresholds: Of the same model and way of matching.
        setting: Margin and camera.
        matcher: For ``fitted-estimated``.
        detector: Finds faces.
        count: Candidates at most.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        SettingError: Gallery or thresholds are of another model, or of a smaller gallery.
    """
    fitted = _way(thresholds.mode, matcher, setting.margin)
    gallery.check(model.fingerprint, setting.margin)
    if thresholds.margin != setting.margin:
        raise SettingError(
            f"The thresholds were calibrated with a margin of {thresholds.margin}, and this is {setting.margin}. "
            "Use the same, or calibrate again: keyhole faces calibrate."
        )
    if thresholds.matcher != (None if fitted is None else fitted.digest()):
        raise SettingError(
            "The thresholds were calibrated with another matcher. Use the same, or calibrate again: keyhole faces "
            "calibrate."
        )
    enrolled = len(set(gallery.people))
    if enrolled > thresholds.enrolled:
        note(
            f"Warning: the thresholds were calibrated for {thresholds.enrolled} people, and {enrolled} are enrolled: "
            "expect more false alarms. Calibrate again."
        )
    crops, kept, lost = _faces(
        model, probes, setting, detector=detector, progress=progress, note=note, kind="the probes"
    )
    watched = Watched(model, crops, setting, progress=progress, name="probes")
    sizes = _seen_px(watched, None)
    found = candidates(gallery, watched.at(None), sizes, matcher=fitted, count=count) if kept else ()
    answers = {
        sample.path: answer(hits, float(px), thresholds) for sample, hits, px in zip(kept, found, sizes, strict=True)
    }
    return dict(sorted({**answers, **{name: Answer(NO_FACE, None, None, (), None) for name in lost}}.items()))


def compare(
    model: FaceModel,
    first: Path,
    second: Path,
    setting: Setting,
    *,
    mode: str = "none",
    matcher: Matcher | None = None,
    detector: Detector | None = None,
) -> dict[str, float]:
    """Return how alike the faces of two photos are, ``score`` from -1 to 1, and how many pixels each shows.

    Raises:
        DataError: There is no face in one of them.
    """
    fitted = _way(mode, matcher, setting.margin)
    seen, shown = [], []
    for path in (first, second):
        if not path.is_file():
            raise DataError(f"{path} is no photo. Name two photos; of folders, 'keyhole faces identify' tells more.")
        crops, kept, _ = _faces(model, path, setting, detector=detector, progress=silent, note=no_note, kind=str(path))
        if not kept:
            raise DataError(f"No face was found in {path}. Look at the photo, or at --detector.")
        watched = Watched(model, crops, setting)
        seen.append(watched)
        shown.append(float(_seen_px(watched, None)[0]))
    sharp, small = sorted((0, 1), key=lambda i: -shown[i])
    sizes = fitted.sizes_px if fitted is not None else ()
    gallery = enroll(model.fingerprint, ["first"], [str(first)], seen[sharp].at, sizes_px=sizes)
    hits = candidates(gallery, seen[small].at(None), np.array([shown[small]]), matcher=fitted, count=1)
    return {"score": hits[0][0].score, "first_px": shown[0], "second_px": shown[1]}
