"""A watch list in use: enroll a folder of people, calibrate on strangers, and answer who a probe may be."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from keyhole.errors import DataError, SettingError
from keyhole.faces.albums import Album, album_of_file, open_album, picture_size
from keyhole.faces.embedding import Crops, crop_samples, shown_px
from keyhole.faces.evaluation import Setting, Watched
from keyhole.faces.gallery import Gallery, candidates, enroll, load_gallery
from keyhole.faces.matching import Matcher, check_modes
from keyhole.faces.samples import Sample
from keyhole.faces.thresholds import NO_FACE, Answer, Thresholds, answer
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.detection import Detector
    from keyhole.faces.models import FaceModel

Note = Callable[[str], None]
# a watch list compares photos as they are, or by a matcher; how small a probe is, is never told from outside
WAYS = ("none", "fitted-estimated")


def no_note(_text: str) -> None:
    """Say nothing."""


def open_people(root: Path) -> Album:
    """Return the pictures of a folder or archive, or one picture by itself.

    Raises:
        DataError: There is none, or the archive is broken.
    """
    single = root.is_file() and root.suffix.lower() != ".zip"
    return album_of_file(root) if single else open_album(root)


def people_of(album: Album, *, aligned: bool | None = None) -> tuple[Sample, ...]:
    """Return the pictures of an album with the person that each shows: ``PERSON/*.jpg``, or ``PERSON.jpg``.

    An archive may be packed with one folder around files ``PERSON.jpg``.

    Args:
        album: The pictures.
        aligned: Whether they are aligned 112 crops; None takes those for it that measure 112 x 112.

    Raises:
        DataError: There is no picture, or one cannot be read.
    """
    names = album.pictures()
    parts = {name: PurePosixPath(name).parts for name in names}
    around = {each[0] for each in parts.values() if len(each) == 2}
    wrapped = album.root.suffix.lower() == ".zip" and len(around) == 1 and all(len(p) == 2 for p in parts.values())
    samples = []
    for name, each in parts.items():
        person = PurePosixPath(name).stem if len(each) == 1 or wrapped else each[-2]
        crop = picture_size(album, name) == (112, 112) if aligned is None else aligned
        samples.append(Sample(name, unicodedata.normalize("NFC", person), aligned=crop))
    if not samples:
        raise DataError(
            f"{album.root} holds no photo; expected PERSON/*.jpg or PERSON.jpg. Name the folder of the people."
        )
    return tuple(samples)


def faces_of(
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
    with open_people(root) as album:
        samples = people_of(album)
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
    crops, kept, missed = faces_of(
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


def seen_px(watched: Watched, face_px: float | None) -> Float[np.ndarray, " f"]:
    """Return how many pixels of face probes show: by their spectrum where aligned, else as their photos say."""
    if watched.crops.canonical:
        return watched.estimated_px(face_px)
    return shown_px(watched.crops, face_px)


def way_of(mode: str, matcher: Matcher | None) -> Matcher | None:
    """Return the matcher of a watch list's way of comparing, None where photos are compared as they are.

    Raises:
        UnknownNameError: There is no such way.
        SettingError: It is none of a watch list's, or lacks its matcher.
    """
    check_modes((mode,))
    if mode not in WAYS:
        raise SettingError(f"--match is {mode!r}; a watch list compares by {' or '.join(WAYS)}.")
    if mode != "none" and matcher is None:
        raise SettingError("Matching 'fitted' needs a matcher; fit one: keyhole faces fit.")
    if mode == "none" or matcher is None:
        return None
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
        SettingError: Gallery or thresholds are of another model, margin or matcher.
    """
    fitted = way_of(thresholds.mode, matcher)
    gallery.check(model.fingerprint, setting.margin)
    if thresholds.fingerprint != model.fingerprint:
        raise SettingError(
            "The thresholds were calibrated for another model. Calibrate this one: keyhole faces calibrate."
        )
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
    crops, kept, lost = faces_of(
        model, probes, setting, detector=detector, progress=progress, note=note, kind="the probes"
    )
    watched = Watched(model, crops, setting, progress=progress, name="probes")
    sizes = seen_px(watched, None)
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
    fitted = way_of(mode, matcher)
    seen, shown = [], []
    for path in (first, second):
        if not path.is_file():
            raise DataError(f"{path} is no photo. Name two photos; of folders, 'keyhole faces identify' tells more.")
        crops, kept, _ = faces_of(
            model, path, setting, detector=detector, progress=silent, note=no_note, kind=str(path)
        )
        if not kept:
            raise DataError(f"No face was found in {path}. Look at the photo, or at --detector.")
        watched = Watched(model, crops, setting)
        seen.append(watched)
        shown.append(float(seen_px(watched, None)[0]))
    sharp, small = sorted((0, 1), key=lambda i: -shown[i])
    sizes = fitted.sizes_px if fitted is not None else ()
    gallery = enroll(model.fingerprint, ["first"], [str(first)], seen[sharp].at, sizes_px=sizes)
    hits = candidates(gallery, seen[small].at(None), np.array([shown[small]]), matcher=fitted, count=1)
    return {"score": hits[0][0].score, "first_px": shown[0], "second_px": shown[1]}
