"""SCFace: surveillance cameras at three distances against mugshots by day."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import Album, open_album
from keyhole.faces.protocols.samples import IdentificationSet, Sample, counted, shortened, stray_note

SUBJECTS = 130
CAMERAS = (1, 2, 3, 4, 5)
INFRARED_CAMERAS = (6, 7)
DISTANCES_M = {1: 4.20, 2: 2.60, 3: 1.00}

_FORM = (
    "the official form is mugshot_frontal_original_all/001_frontal.jpg and "
    "surveillance_cameras_distance_1/cam_1/001_cam1_1.jpg (subject, camera, distance)"
)
_FRONTAL = re.compile(r"(\d{3})_frontal\.jpe?g", re.IGNORECASE)
_PROBE = re.compile(r"(\d{3})_cam([1-7])_([1-3])\.jpe?g", re.IGNORECASE)
# what is official but no part of this protocol: rotated mugshots, and the infrared mugshot of camera 8
_OTHER = re.compile(r"\d{3}_([LR][1-4]|cam8)\.jpe?g", re.IGNORECASE)
_MUGSHOT_FOLDERS = {"original": "mugshot_frontal_original_all", "cropped": "mugshot_frontal_cropped_all"}

Mugshots = Literal["original", "cropped"]
_Key = tuple[str, int, int]


def read(
    root: Path,
    *,
    subjects: Path | Sequence[str] | None = None,
    cameras: Sequence[int] = CAMERAS,
    distances: Sequence[int] = (1, 2, 3),
    mugshots: Mugshots = "original",
) -> IdentificationSet:
    """Return the gallery of frontal mugshots by day and the probes of the cameras and distances asked for.

    The published closed-set protocol is 130 subjects, 130 mugshots, cameras 1 to 5: 650 probes a distance. Each probe
    carries its camera and the attributes ``distance`` (1, 2, 3), ``meters`` (4.20, 2.60, 1.00) and ``light``.

    Pictures are found by their names wherever they lie below the root. Of several copies of one picture that in the
    official folder is taken, and the notes say so.

    Args:
        root: Folder or zip archive.
        subjects: A text file with a subject or a picture of it a line (``001`` or ``001_frontal``), as for the
            80-subject and the world, dev and test splits; or the subjects themselves; None: all that have a mugshot.
        cameras: 1 to 5 by day; 6 and 7 are infrared, and are compared with the same mugshots by day.
        distances: 1 = 4.20 m, 2 = 2.60 m, 3 = 1.00 m.
        mugshots: The original mugshots, or the official crops of them.

    Raises:
        SettingError: A camera or distance that there is not, or none.
        DataError: Pictures of a subject, a whole camera, or listed subjects are missing.

    Reference:
        Grgic, Delac, Grgic (2011), "SCface - surveillance cameras face database", Multimedia Tools and Applications 51.
    """
    _check_choice("camera", cameras, (*CAMERAS, *INFRARED_CAMERAS))
    _check_choice("distance", distances, tuple(DISTANCES_M))
    if mugshots not in _MUGSHOT_FOLDERS:
        raise SettingError(f"mugshots is {mugshots!r}, expected 'original' or 'cropped'.")
    with open_album(root) as album:
        frontal, probes, notes = _sorted_out(album, mugshots)
        if not frontal:
            raise DataError(f"{root} holds no mugshot like 001_frontal.jpg; {_FORM}. Check --root.")
        chosen, listed = _chosen(subjects, sorted(frontal), root)
        grid = [(s, camera, d) for s in chosen for d in sorted(set(distances)) for camera in sorted(set(cameras))]
        _check_grid(grid, probes, root)
        notes += _copies(album, {key: probes[key] for key in grid})
    gallery = tuple(Sample(frontal[subject][0], subject) for subject in chosen)
    notes += listed + _mugshot_note(gallery, mugshots) + _orphans(probes, frontal) + _counts(chosen, cameras)
    return IdentificationSet("scface", root, gallery, tuple(_probe(probes[key][0], *key) for key in grid), notes)


def _check_choice(kind: str, asked: Sequence[int], known: tuple[int, ...]) -> None:
    odd = [value for value in asked if value not in known]
    if odd or not asked:
        seen = f"{kind} {odd[0]}" if odd else f"no {kind}"
        raise SettingError(f"SCFace: {seen} asked for, expected some of {', '.join(map(str, known))}.")


def _sorted_out(
    album: Album, mugshots: Mugshots
) -> tuple[dict[str, list[str]], dict[_Key, list[str]], tuple[str, ...]]:
    """Return mugshots and probes with all copies of each, the best place first, and the note on stray pictures."""
    frontal: dict[str, list[str]] = {}
    probes: dict[_Key, list[str]] = {}
    stray = []
    for name in album.pictures():
        file = PurePosixPath(name).name
        if found := _FRONTAL.fullmatch(file):
            frontal.setdefault(found[1], []).append(name)
        elif found := _PROBE.fullmatch(file):
            probes.setdefault((found[1], int(found[2]), int(found[3])), []).append(name)
        elif not _OTHER.fullmatch(file):
            stray.append(name)
    for names in frontal.values():
        names.sort(key=lambda name: _mugshot_place(name, mugshots))
    for key, names in probes.items():
        names.sort(key=lambda name, key=key: _probe_place(name, key))  # type: ignore[misc]
    return frontal, probes, stray_note(stray, expected="001_frontal.jpg or 001_cam1_1.jpg")


def _mugshot_place(name: str, mugshots: Mugshots) -> int:
    other = next(folder for kind, folder in _MUGSHOT_FOLDERS.items() if kind != mugshots)
    if _MUGSHOT_FOLDERS[mugshots] in name:
        return 0
    return 3 if "rotation" in name else 2 if other in name else 1


def _probe_place(name: str, key: _Key) -> int:
    return 0 if f"distance_{key[2]}/cam_{key[1]}/" in name else 2 if "surveillance_cameras_all" in name else 1


def _chosen(subjects: Path | Sequence[str] | None, known: list[str], root: Path) -> tuple[list[str], tuple[str, ...]]:
    if subjects is None:
        return known, ()
    if isinstance(subjects, Path):
        try:
            lines = subjects.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise DataError(f"Cannot read the subject list {subjects}: {error}. Expected a subject a line.") from error
        where = str(subjects)
    else:
        lines, where = list(subjects), "the list of subjects"
    lines = [line.partition("#")[0].strip() for line in lines]
    asked = [_subject(line, where) for line in lines if line]
    if not asked:
        raise DataError(f"{where} names no subject, expected one a line, such as 001.")
    if absent := sorted(set(asked) - set(known)):
        raise DataError(f"{root} has no mugshot of {shortened(absent)}, named in {where}; {_FORM}.")
    unique = sorted(set(asked))
    repeats = f"The subject list has {len(asked)} lines for {counted(len(unique), 'subject')}; each counts once."
    return unique, (repeats,) if len(unique) < len(asked) else ()


def _subject(line: str, where: str) -> str:
    found = re.fullmatch(r"(\d{1,3})(_.*)?", PurePosixPath(line.replace("\\", "/")).name)
    if not found:
        raise DataError(
            f"{where} has the line {line!r}, expected a subject such as 001 or a picture such as 001_cam1_1."
        )
    return found[1].zfill(3)


def _check_grid(grid: list[_Key], probes: dict[_Key, list[str]], root: Path) -> None:
    missing = [key for key in grid if key not in probes]
    if not missing:
        return
    for camera in sorted({camera for _, camera, _ in missing}):
        if not any(key[1] == camera and key in probes for key in grid):
            raise DataError(f"{root} holds no picture of camera {camera}; {_FORM}. Add them, or choose other cameras.")
    names = shortened(f"{s}_cam{camera}_{d}.jpg" for s, camera, d in missing)
    raise DataError(
        f"{root}: {len(missing)} of {counted(len(grid), 'probe picture')} missing: {names}; {_FORM}. "
        f"Add them, or leave those people out by a subject list."
    )


def _probe(name: str, subject: str, camera: int, distance: int) -> Sample:
    light = "infrared" if camera in INFRARED_CAMERAS else "visible"
    attributes = {"distance": str(distance), "meters": f"{DISTANCES_M[distance]:.2f}", "light": light}
    return Sample(name, subject, f"cam{camera}", attributes=attributes)


def _copies(album: Album, probes: dict[_Key, list[str]]) -> tuple[str, ...]:
    several = [names for names in probes.values() if len(names) > 1]
    if not several:
        return ()
    unlike = [names[0] for names in several if len({album.size_bytes(name) for name in names}) > 1]
    note = f"{counted(len(several), 'probe')} in more than one folder; that of the official folder is taken."
    return (note, f"Copies that are not alike: {shortened(unlike)}.") if unlike else (note,)


def _mugshot_note(gallery: Iterable[Sample], mugshots: Mugshots) -> tuple[str, ...]:
    elsewhere = [sample.path for sample in gallery if _MUGSHOT_FOLDERS[mugshots] not in sample.path]
    if not elsewhere:
        return ()
    where = _MUGSHOT_FOLDERS[mugshots]
    return (f"{counted(len(elsewhere), 'mugshot')} not from {where}: {shortened(elsewhere)}.",)


def _orphans(probes: dict[_Key, list[str]], frontal: dict[str, list[str]]) -> tuple[str, ...]:
    orphans = sorted({subject for subject, _, _ in probes} - set(frontal))
    return (f"Subjects with probes but without a mugshot are left out: {shortened(orphans)}.",) if orphans else ()


def _counts(chosen: list[str], cameras: Sequence[int]) -> tuple[str, ...]:
    each = len(chosen) * len(set(cameras))
    notes = []
    if len(chosen) != SUBJECTS or each != SUBJECTS * len(CAMERAS):
        seen = f"{counted(len(chosen), 'subject')} and {counted(each, 'probe')} a distance"
        notes.append(f"{seen}; the published protocol has {SUBJECTS} and {SUBJECTS * len(CAMERAS)}.")
    if set(cameras) & set(INFRARED_CAMERAS):
        notes.append("Infrared probes (cameras 6 and 7) are compared with mugshots by day.")
    return tuple(notes)
