"""A watch list in use: enroll a folder of people, calibrate on strangers, and answer who a probe may be."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, UInt8

from keyhole.errors import DataError, SettingError
from keyhole.faces.comparison import Pipeline, Watched
from keyhole.faces.embedding import FACE_PX, shown_px
from keyhole.faces.images.albums import Album, album_of_file, open_album, picture_size
from keyhole.faces.images.photos import noted_face_px
from keyhole.faces.matching import Matcher, fit_matcher
from keyhole.faces.pooling import Pooled, frame_quality, frame_weights, grouped, pool
from keyhole.faces.protocols.samples import Sample, shortened
from keyhole.faces.watchlist.gallery import Gallery, candidates, enroll, load_gallery
from keyhole.faces.watchlist.thresholds import NO_FACE, UNREADABLE, Answer, Thresholds, answer
from keyhole.progress import Progress, silent

Note = Callable[[str], None]


def no_note(_text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Faces:
    """The faces of a folder of photos.

    Attributes:
        watched: The faces, to be embedded.
        samples: The photos in which a face was found, in the order of the faces.
        without_face: Names of those in which none was.
        unreadable: Why each photo that could not be read was left out, by its name.
        detector: SHA-256 of what found them; empty where all are aligned crops.
    """

    watched: Watched
    samples: tuple[Sample, ...]
    without_face: tuple[str, ...]
    unreadable: dict[str, str]
    detector: str = ""


def open_people(root: Path) -> Album:
    """Return the pictures of a folder or archive, or one picture by itself.

    Raises:
        DataError: There is none, or the archive is broken.
    """
    single = root.is_file() and root.suffix.lower() != ".zip"
    return album_of_file(root) if single else open_album(root)


def people_of(album: Album, *, aligned: bool | None = None) -> tuple[Sample, ...]:
    """Return the pictures of an album with the person that each shows: ``PERSON/*.jpg``, or ``PERSON.jpg``.

    An archive may be packed with folders around all of them.

    Args:
        album: The pictures.
        aligned: Whether they are aligned 112 crops; None takes those for it that measure 112 x 112.

    Raises:
        DataError: There is no picture.
    """
    names = album.pictures()
    samples = []
    for name, each in zip(names, _inside(album, names), strict=True):
        person = PurePosixPath(name).stem if len(each) == 1 else each[-2]
        crop = _is_crop(album, name) if aligned is None else aligned
        face_px = noted_face_px(album.read(name)) if crop and name.lower().endswith(".png") else None
        known = {} if face_px is None else {FACE_PX: f"{face_px:g}"}
        samples.append(Sample(name, unicodedata.normalize("NFC", person), aligned=crop, attributes=known))
    if not samples:
        raise DataError(
            f"{album.root} holds no photo; expected a photo, or a folder of them such as PERSON/*.jpg or PERSON.jpg. "
            "Name another one."
        )
    return tuple(samples)


def _inside(album: Album, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the parts of the names of pictures without the folders that all lie in, which are no person.

    A folder that was named may be of a single person, whose own folder stays; an archive is packed with what is around
    its people.
    """
    parts = [PurePosixPath(name).parts for name in names]
    depth, least = max(map(len, parts), default=0), 1 if album.root.suffix.lower() == ".zip" else 2
    around = 0
    while depth - around > least and len({each[: around + 1] for each in parts}) == 1:
        around += 1
    return [each[around:] for each in parts]


def people_named(root: Path, *, note: Note = no_note) -> frozenset[str]:
    """Return who is in a folder or archive, where it is plain whom each picture shows, as a watch list needs it.

    Args:
        root: Where the pictures are.
        note: Is told how an archive of one folder is taken: it may be around people, or be one of them.

    Raises:
        DataError: There is none, or they lie in folders within folders, any of which may be the person.
    """
    with open_people(root) as album:
        names = album.pictures()
        parts = _inside(album, names)
        named = frozenset(sample.identity for sample in people_of(album, aligned=False))
    if len(names) > 1 and "/" in names[0] and all(len(each) == 1 for each in parts):
        folder = PurePosixPath(names[0]).parent
        note(f"{root} holds one folder, {folder}: each of its {len(names)} photos is taken for a person of its own.")
    if deep := next((name for name, each in zip(names, parts, strict=True) if len(each) > 2), None):
        first, second = PurePosixPath(deep).parts[-3:-1]
        raise DataError(
            f"{root} holds {deep}, in which {first} or {second} may be the person; expected PERSON/*.jpg or "
            "PERSON.jpg. Name the folder that holds the people."
        )
    return named


def _is_crop(album: Album, name: str) -> bool:
    try:
        return picture_size(album, name, upright=False) == (112, 112)
    except DataError:  # told where the picture itself is read
        return False


def faces_of(
    pipeline: Pipeline,
    root: Path,
    *,
    kind: str,
    role: str = "probes",
    refuse: bool = True,
    progress: Progress = silent,
    note: Note = no_note,
) -> Faces:
    """Return the faces of a folder or archive of photos, or of one photo, and what was left out.

    Args:
        pipeline: Finds the faces and cuts them out.
        root: Where the photos are.
        kind: What notes call them.
        role: Faces of another role get other noise.
        refuse: Raise where no photo can be read; else they are all told as unreadable.
        progress: Wraps the loop.
        note: Is told what was left out, and what was taken for an aligned crop.

    Raises:
        DataError: There is no photo, or none that can be read.
    """
    with open_people(root) as album:
        samples = people_of(album)
        crops = pipeline.crop(album, samples, skip_unreadable=True, progress=progress)
    if crops.unreadable:
        first = next(iter(crops.unreadable.values()))
        if refuse and len(crops.unreadable) == len(samples):
            more = f" So it is with all {len(samples)} photos." if len(samples) > 1 else ""
            raise DataError(first + more)
        left = " and are left out" if refuse else ""
        note(f"{len(crops.unreadable)} of {len(samples)} photos of {kind} cannot be read{left}: {first}")
    if crops_taken := sum(sample.aligned for sample in samples):
        note(f"{crops_taken} of {len(samples)} photos of {kind} measure 112 x 112 and are taken as aligned crops.")
    kept = tuple(sample for sample, there in zip(samples, crops.found, strict=True) if there)
    missed = tuple(
        sample.path
        for sample, there in zip(samples, crops.found, strict=True)
        if not there and sample.path not in crops.unreadable
    )
    if missed:
        note(f"No face was found in {len(missed)} of {len(samples)} photos of {kind}: {shortened(missed)}.")
    if several := crops.several:
        note(f"{len(several)} photos of {kind} show several faces, and the largest is taken: {shortened(several)}.")
    detector = "" if pipeline.detector is None or all(sample.aligned for sample in kept) else pipeline.detector.sha256
    return Faces(pipeline.watch(crops, progress=progress, name=role), kept, missed, dict(crops.unreadable), detector)


def enroll_folder(
    pipeline: Pipeline, root: Path, *, progress: Progress = silent, note: Note = no_note
) -> tuple[Gallery, Faces]:
    """Return the gallery of a folder of people, and the faces that it is of.

    Args:
        pipeline: Model, detector and margin; the sizes of its matcher are embedded too.
        root: Folder or archive of ``PERSON/*.jpg`` or ``PERSON.jpg``.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        DataError: There is no photo, or no face in any.
    """
    pipeline = pipeline.enrolling()
    named = people_named(root, note=note)
    if pipeline.matcher is not None:
        pipeline.matcher.check(pipeline.model.fingerprint, named, margin=pipeline.setting.margin)
    faces = faces_of(pipeline, root, kind="the gallery", role="gallery", progress=progress, note=note)
    if not faces.samples:
        raise DataError(f"No face was found in any photo of {root}. Look at the photos, or at --detector.")
    gallery = enroll(
        pipeline.model.fingerprint,
        [sample.identity for sample in faces.samples],
        [sample.path for sample in faces.samples],
        faces.watched.at,
        sizes_px=() if pipeline.matcher is None else pipeline.matcher.sizes_px,
        margin=pipeline.setting.margin,
        camera=pipeline.camera,
        detector=faces.detector,
        note=note,
    )
    return gallery, faces


def fit_folder(pipeline: Pipeline, root: Path, *, progress: Progress = silent, note: Note = no_note) -> Matcher:
    """Return a matcher fitted on all faces of a folder of people, without their labels.

    Args:
        pipeline: Model, detector, margin and camera.
        root: Folder or archive of ``PERSON/*.jpg`` or ``PERSON.jpg``; who they are is only remembered as digests, so
            that nobody is tested on them.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        DataError: There is no photo, or there are too few faces.
    """
    people_named(root, note=note)
    faces = faces_of(pipeline, root, kind=str(root), role="faces", progress=progress, note=note)
    if not faces.samples:
        raise DataError(f"No face was found in any photo of {root}. Look at the photos, or at --detector.")
    return fit_matcher(
        faces.watched.at(None),
        faces.watched.at,
        fingerprint=pipeline.model.fingerprint,
        people=[sample.identity for sample in faces.samples],
        about={"faces_of": "folder", "camera": asdict(pipeline.setting.how), "margin": pipeline.setting.margin},
    )


def open_gallery(pipeline: Pipeline, path: Path, *, note: Note = no_note) -> Gallery:
    """Return the gallery of a file of ``keyhole faces embed``, or of a folder of people; arguments as above.

    Raises:
        SettingError: The gallery was made by another model.
    """
    if path.suffix == ".safetensors":
        gallery = load_gallery(path)
        gallery.check(pipeline.model.fingerprint, pipeline.setting.margin, pipeline.camera)
        return gallery
    return enroll_folder(pipeline, path, note=note)[0]


def seen_px(watched: Watched, face_px: float | None) -> Float[np.ndarray, " f"]:
    """Return how many pixels of face probes show: by their spectrum where aligned, else as their photos say."""
    if watched.crops.canonical:
        return watched.estimated_px(face_px)
    return shown_px(watched.crops, face_px)


def identify(
    pipeline: Pipeline,
    gallery: Gallery,
    probes: Path,
    thresholds: Thresholds,
    *,
    frames: bool = False,
    count: int = 5,
    progress: Progress = silent,
    note: Note = no_note,
) -> dict[str, Answer]:
    """Return what may be said of each probe, by its name; of a photo without a face, that there is none.

    Args:
        pipeline: Model, detector, matcher and margin.
        gallery: The enrolled.
        probes: A photo, or a folder or archive of them.
        thresholds: Of the same model and matcher.
        frames: The photos of each folder are frames of one person, and get one answer under the folder's name: their
            scores are pooled by quality, and so are the thresholds of their sizes.
        count: Candidates at most.
        progress: Wraps the loops.
        note: Is told what looks wrong.

    Raises:
        SettingError: Gallery or thresholds are of another model, margin or matcher.
    """
    _check_thresholds(pipeline, gallery, thresholds, note)
    if pipeline.matcher is not None:
        gallery.check_sizes(pipeline.matcher.sizes_px)
    faces = faces_of(pipeline, probes, kind="the probes", refuse=False, progress=progress, note=note)
    check_detector(faces.detector, {"thresholds": thresholds.detector, "gallery": gallery.detector}, note)

    def named(path: str) -> str:
        return path if not frames else _folder_of(path, probes)

    names = [named(sample.path) for sample in faces.samples]
    answers = {named(path): Answer(UNREADABLE) for path in faces.unreadable}
    answers |= {named(path): Answer(NO_FACE) for path in faces.without_face}
    if frames and (loose := [s.path for s in faces.samples if "/" not in s.path]) and len(set(names)) > 1:
        note(f"Warning: {len(loose)} photos lie beside the folders and are taken as frames of one person: {loose[0]}.")
    if names:
        sizes, tracks = seen_px(faces.watched, None), grouped(names)
        # a frame of too few pixels does not count, and where no other is there, nothing is told
        quality = np.where(sizes < thresholds.least_px, 0.0, frame_quality(sizes, pipeline.matcher))
        weights = frame_weights("quality", quality, tracks)
        pooled = Pooled(tracks, weights) if frames else None
        hits = candidates(gallery, faces.watched.at(None), sizes, matcher=pipeline.matcher, count=count, pooled=pooled)
        largest = tracks.largest(sizes)
        wanted = pool(np.array([[thresholds.at(px).score] for px in sizes]), weights, tracks)[:, 0]
        for track, row in enumerate(tracks.first):
            answers[names[row]] = answer(hits[track], float(largest[track]), thresholds, score=float(wanted[track]))
    return dict(sorted(answers.items()))


def check_detector(found_by: str, others: Mapping[str, str], note: Note) -> None:
    """Tell where faces were found by another detector than those that they meet; at which scale does not matter.

    Args:
        found_by: SHA-256 of the detector of these faces; empty for aligned crops.
        others: The same of thresholds and gallery, by name; empty where it is not known.
        note: Is told.
    """
    for name, other in others.items():
        if found_by and other and found_by != other:
            note(
                f"Warning: the detector of the {name} has the SHA-256 {other[:12]}..., this one {found_by[:12]}...: "
                f"other crops, other scores. Give the same --detector, or make the {name} again."
            )


def _folder_of(name: str, root: Path) -> str:
    """Return the folder that a frame lies in; the root's own name for those that lie in it."""
    parent = str(PurePosixPath(name).parent)
    return root.name if parent == "." else parent


def _check_thresholds(pipeline: Pipeline, gallery: Gallery, thresholds: Thresholds, note: Note) -> None:
    model, margin, matcher = pipeline.model, pipeline.setting.margin, pipeline.matcher
    gallery.check(model.fingerprint, margin, pipeline.camera)
    if thresholds.fingerprint != model.fingerprint:
        raise SettingError(
            "The thresholds were calibrated for another model. Calibrate this one: keyhole faces calibrate."
        )
    if thresholds.margin != margin:
        raise SettingError(
            f"The thresholds were calibrated with a margin of {thresholds.margin}, and this is {margin}. "
            "Use the same, or calibrate again: keyhole faces calibrate."
        )
    if thresholds.matcher != (None if matcher is None else matcher.digest()):
        seen = "without a matcher" if thresholds.matcher is None else "with another matcher"
        given = "none is given" if matcher is None else "this one is given"
        raise SettingError(
            f"The thresholds were calibrated {seen}, and {given}. Give the same --matcher, or calibrate again: keyhole "
            "faces calibrate."
        )
    people, photos = len(set(gallery.people)), len(gallery)
    if people > thresholds.enrolled:
        note(
            f"Warning: the thresholds were calibrated for {thresholds.enrolled} people, and {people} are enrolled: "
            "expect more false alarms. Calibrate again."
        )
    elif thresholds.photos is not None and photos > thresholds.photos:
        note(
            f"Warning: the thresholds were calibrated for {thresholds.photos} photos of the enrolled, and there are "
            f"{photos}: expect more false alarms. Calibrate again."
        )
    elif thresholds.gallery not in (None, gallery.digest()):
        note(
            "Warning: the thresholds were calibrated for a gallery of other people or photos, so nothing is known of "
            "how often this one raises false alarms. Calibrate again."
        )


@dataclass(frozen=True)
class Compared:
    """Two photos, compared.

    Attributes:
        score: How alike the faces are, -1 to 1.
        first_px: ``face_px`` that the first one shows.
        second_px: That of the second.
        crops: The two faces as they were compared.
    """

    score: float
    first_px: float
    second_px: float
    crops: tuple[UInt8[np.ndarray, "s s 3"], UInt8[np.ndarray, "s s 3"]]

    def to_json(self) -> dict[str, float]:
        """Return the figures as JSON values."""
        return {"score": self.score, "first_px": self.first_px, "second_px": self.second_px}


def compare(pipeline: Pipeline, first: Path, second: Path, *, note: Note = no_note) -> Compared:
    """Return how alike the faces of two photos are, and how many pixels each shows.

    Args:
        pipeline: Model, detector, matcher and margin.
        first: A photo.
        second: Another; the sharper of the two stands for the gallery.
        note: Is told where a photo shows several faces.

    Raises:
        DataError: There is no face in one of them.
    """
    pipeline = pipeline.enrolling()
    seen, shown = [], []
    for path in (first, second):
        if not path.is_file():
            raise DataError(f"{path} is no photo. Name two photos; of folders, 'keyhole faces identify' tells more.")
        faces = faces_of(pipeline, path, kind=str(path), note=note)
        if not faces.samples:
            raise DataError(f"No face was found in {path}. Look at the photo, or at --detector.")
        seen.append(faces.watched)
        shown.append(float(seen_px(faces.watched, None)[0]))
    sharp, small = sorted((0, 1), key=lambda i: -shown[i])
    sizes = pipeline.matcher.sizes_px if pipeline.matcher is not None else ()
    gallery = enroll(
        pipeline.model.fingerprint,
        ["first"],
        [str(first)],
        seen[sharp].at,
        sizes_px=sizes,
        margin=pipeline.setting.margin,
    )
    hits = candidates(gallery, seen[small].at(None), np.array([shown[small]]), matcher=pipeline.matcher, count=1)
    crops = tuple(watched.crops.pixels[0].numpy() for watched in seen)
    return Compared(hits[0][0].score, shown[0], shown[1], (crops[0], crops[1]))
