"""ICB-RW: probes of a far camera outdoors against a watch list of three views a person."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import Album, open_album, picture_size
from keyhole.faces.protocols.samples import Box, IdentificationSet, Sample, counted, shortened, stray_note

SUBJECTS = 90
PROBES_EACH = 5
VIEWS = ("frontal", "best", "mean")

_FORM = (
    "the official form is a watch list 003_f.jpg, 003_l.jpg, 003_r.jpg, probes 003_01.jpg to 003_05.jpg, and two text "
    "files annotations_GalleryImages.txt and annotations_ProbeImages.txt with lines `imageFilename X Y W H`"
)
_WATCH = re.compile(r"(\d+)_([flr])\.jpe?g", re.IGNORECASE)
_PROBE = re.compile(r"(\d+)_0([1-5])\.jpe?g", re.IGNORECASE)
# Boxes may end this far outside of a picture before they count as not fitting: pixels counted from 1, or rounded.
_TOLERANCE_PX = 1.0
# Lines that fit as two corners alone, before a file is read so.
_LEAST_LINES, _LEAST_SHARE = 2, 0.05

Views = Literal["frontal", "best", "mean"]


def read(root: Path, *, views: Views = "frontal") -> IdentificationSet:
    """Return the watch list and the probes, each with its annotated box.

    The published protocol is 90 subjects with 5 probes each, ranked by the area under the CMC. How the three views of
    the watch list become one score is left open there, and is a setting here that a result has to state.

    An annotation line is ``imageFilename X Y W H`` with the upper left corner first. One official example reads like
    two corners instead, so each file is decided as a whole: every line is held against the size of its picture both
    ways, and the way that more lines fit is taken, the official one if equally many do. One strange line does not turn
    a file whose other lines fit both ways: two corners are believed only where at least two lines, and one in twenty,
    fit no other way (or the file has one line). The notes say which way was taken, and which lines do not fit it; those
    boxes are cut at the border.

    Args:
        root: Folder or zip archive; pictures are found by their names.
        views: Frontal views only, or all three with the best or the mean score of a person.

    Raises:
        SettingError: Another setting of views.
        DataError: A picture or its line is missing, stands twice, or a box lies outside of its picture.

    Reference:
        Neves, Proenca (2016), "ICB-RW 2016: International challenge on biometric recognition in the wild", ICB.
    """
    if views not in VIEWS:
        raise SettingError(f"views is {views!r}, expected one of {', '.join(VIEWS)}.")
    with open_album(root) as album:
        watch, probes, stray = _sorted_out(album)
        wanted = ("f",) if views == "frontal" else ("f", "l", "r")
        _check_complete(watch, probes, wanted=wanted, root=root)
        used = [name for (_, view), name in watch.items() if view in wanted] + list(probes.values())
        boxes, notes = _boxes(album, used)
    gallery = tuple(
        Sample(name, subject, box=boxes[name], attributes={"view": _VIEW_NAMES[view]})
        for (subject, view), name in sorted(watch.items())
        if view in wanted
    )
    found = tuple(
        Sample(name, subject, box=boxes[name], attributes={"take": take})
        for (subject, take), name in sorted(probes.items())
    )
    subjects = len({sample.identity for sample in gallery})
    if subjects != SUBJECTS or len(found) != SUBJECTS * PROBES_EACH:
        seen = f"{counted(subjects, 'subject')} and {counted(len(found), 'probe')}"
        notes += (f"{seen}; the published protocol has {SUBJECTS} and {SUBJECTS * PROBES_EACH}.",)
    notes += (f"Watch list: {_VIEW_TEXTS[views]}.",)
    return IdentificationSet("icbrw", root, gallery, found, stray + notes, "mean" if views == "mean" else "best")


_Files = dict[tuple[str, str], str]
_VIEW_NAMES = {"f": "frontal", "l": "left", "r": "right"}
_VIEW_TEXTS = {
    "frontal": "frontal views only",
    "best": "frontal, left and right view; the best score of a person counts",
    "mean": "frontal, left and right view; the mean score of a person counts",
}


def _sorted_out(album: Album) -> tuple[_Files, _Files, tuple[str, ...]]:
    watch: _Files = {}
    probes: _Files = {}
    stray = []
    for name in album.pictures():
        file = PurePosixPath(name).name
        where, found = watch, _WATCH.fullmatch(file)
        if not found:
            where, found = probes, _PROBE.fullmatch(file)
        if not found:
            stray.append(name)
            continue
        key = (found[1], found[2].lower())
        if key in where:
            raise DataError(f"{album.root} holds {file} twice: {where[key]} and {name}. Remove one; {_FORM}.")
        where[key] = name
    return watch, probes, stray_note(stray, expected="003_f.jpg or 003_01.jpg")


def _check_complete(watch: _Files, probes: _Files, *, wanted: tuple[str, ...], root: Path) -> None:
    if not watch or not probes:
        raise DataError(f"{root} holds no {'probe' if watch else 'watch list'} of ICB-RW; {_FORM}. Check --root.")
    subjects = sorted({subject for subject, _ in (*watch, *probes)})
    takes = [str(take) for take in range(1, PROBES_EACH + 1)]
    missing = [f"{s}_{view}.jpg" for s in subjects for view in wanted if (s, view) not in watch]
    missing += [f"{s}_0{take}.jpg" for s in subjects for take in takes if (s, take) not in probes]
    if missing:
        count = counted(len(missing), "picture")
        raise DataError(f"{root}: {count} missing: {shortened(missing)}; {_FORM}. Add them.")


def _boxes(album: Album, used: list[str]) -> tuple[dict[str, Box], tuple[str, ...]]:
    """Return the box of every picture in use, and what was decided for each annotation file."""
    by_stem = {PurePosixPath(name).stem.lower(): name for name in used}
    files = [n for n in album.names() if n.lower().endswith(".txt") and "annotation" in PurePosixPath(n).name.lower()]
    boxes: dict[str, Box] = {}
    notes: tuple[str, ...] = ()
    for file in files:
        lines, found = _lines(album, file)
        mine = {by_stem[stem]: numbers for stem, numbers in lines.items() if stem in by_stem}
        notes += found
        if twice := sorted(set(mine) & set(boxes)):
            raise DataError(f"{file} annotates {twice[0]}, as another file does. Remove one of the two lines.")
        if mine:
            decided, more = _decided(album, file, mine)
            boxes |= decided
            notes += more
    if missing := [PurePosixPath(name).name for name in used if name not in boxes]:
        where = shortened(files) if files else "no annotation file"
        raise DataError(
            f"{album.root}: {counted(len(missing), 'picture')} without an annotation line ({where} read): "
            f"{shortened(missing)}; {_FORM}. Add the lines."
        )
    return boxes, notes


def _lines(album: Album, file: str) -> tuple[dict[str, Box], tuple[str, ...]]:
    try:
        text = album.read(file).decode("utf-8-sig")
    except UnicodeError as error:
        raise DataError(f"{file} of {album.root} is not UTF-8 text; {_FORM}.") from error
    found: dict[str, Box] = {}
    repeats = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            x, y, w, h = (float(part) for part in parts[1:])
            if not all(map(math.isfinite, (x, y, w, h))):
                raise ValueError("not finite")
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {line.strip()!r}; {_FORM}. Correct it.") from error
        stem = PurePosixPath(parts[0].replace("\\", "/")).stem.lower()
        if stem in found and found[stem] != (x, y, w, h):
            raise DataError(f"{file}, line {number}: a second, different box for {parts[0]}. Remove one of the two.")
        if stem in found:
            repeats.append(parts[0])
        found[stem] = (x, y, w, h)
    return found, (f"{file}: repeated lines for {shortened(repeats)}.",) if repeats else ()


def _decided(album: Album, file: str, lines: Mapping[str, Box]) -> tuple[dict[str, Box], tuple[str, ...]]:
    sizes = {name: picture_size(album, name) for name in lines}
    as_size = dict(lines)
    as_corners = {name: (x, y, right - x, bottom - y) for name, (x, y, right, bottom) in lines.items()}
    fit_size = {name for name, box in as_size.items() if _fits(box, sizes[name])}
    fit_corners = {name for name, box in as_corners.items() if _fits(box, sizes[name])}
    sure = min(len(lines), max(_LEAST_LINES, math.ceil(_LEAST_SHARE * len(lines))))
    corners = len(fit_corners) > len(fit_size) and len(fit_corners - fit_size) >= sure
    boxes, fitting = (as_corners, fit_corners) if corners else (as_size, fit_size)
    form = "two corners X Y X Y" if corners else "corner and size X Y W H, as documented"
    note = (
        f"{file}: {counted(len(lines), 'line')} held against the pictures, {len(fit_size)} fit as corner and size, "
        f"{len(fit_corners)} as two corners; read as {form}."
    )
    odd = sorted(PurePosixPath(name).name for name in set(lines) - fitting)
    notes = (note, f"{file}: boxes cut at the border of their picture: {shortened(odd)}.") if odd else (note,)
    return {name: _cut(box, sizes[name], f"{file}: {name}") for name, box in boxes.items()}, notes


def _fits(box: Box, size: tuple[int, int]) -> bool:
    x, y, w, h = box
    inside = x + w <= size[0] + _TOLERANCE_PX and y + h <= size[1] + _TOLERANCE_PX
    return min(x, y) >= 0 and min(w, h) > 0 and inside


def _cut(box: Box, size: tuple[int, int], where: str) -> Box:
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(size[0]), box[0] + box[2]), min(float(size[1]), box[1] + box[3])
    if not (right > left and bottom > top):
        raise DataError(
            f"{where} has a box {box[0]:g} {box[1]:g} {box[2]:g} {box[3]:g} outside of its picture of "
            f"{size[0]} x {size[1]}; {_FORM}. Correct the line."
        )
    return left, top, right - left, bottom - top
