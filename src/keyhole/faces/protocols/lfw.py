"""LFW: 6,000 pairs in ten folds, from the official folders or from aligned crops."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import PICTURE_ENDINGS, Album, open_album, picture_size
from keyhole.faces.protocols.samples import PairSet, Sample, counted, shortened, stray_note

FOLDS = 10
_DIGITS = 9  # of a number in pairs.txt
PAIRS_EACH = 300

_FORM = (
    "the official form of pairs.txt is a line `10 300`, then for each of 10 folds 300 lines `NAME 1 4` and 300 lines "
    "`NAME 1 OTHER 2`, for pictures NAME/NAME_0001.jpg"
)
_ALIGNED_PX = (112, 112)

_Picture = tuple[str, int]


@dataclass(frozen=True)
class _Line:
    first: _Picture
    second: _Picture
    fold: int


def read(
    root: Path,
    *,
    pairs: Path | None = None,
    folds: Sequence[int] | None = None,
    threshold_folds: Sequence[int] | None = None,
) -> PairSet:
    """Return the pairs of the folds asked for, with the pictures that they need.

    The first picture of a pair is the reference (the gallery), the second the probe. Pictures count as aligned where
    every one in use is 112 x 112 pixels; otherwise faces are to be found in them.

    Args:
        root: A folder of ``NAME/NAME_0001.jpg``, or a zip archive of such folders, at any depth.
        pairs: The official ``pairs.txt``; None: the one under or beside the root.
        folds: Some of the folds, from 1; None: all, less those that choose the threshold.
        threshold_folds: Folds that choose the threshold of the others; None: each is judged by the threshold of the
            others.

    Raises:
        SettingError: A fold that there is not.
        DataError: ``pairs.txt`` is missing or not of its official form, or pictures are missing or stand twice.

    Reference:
        Huang, Ramesh, Berg, Learned-Miller (2007), "Labeled Faces in the Wild", University of Massachusetts, 07-49.
    """
    with open_album(root) as album:
        lines, notes = _pairs(*_pairs_text(album, pairs))
        count = max(line.fold for line in lines)
        every, apart = set(range(1, count + 1)), set(threshold_folds or ())
        judged = set(folds) if folds is not None else every - apart
        chosen = sorted(judged | apart)
        if not judged or not set(chosen) <= every:
            raise SettingError(f"LFW: folds {chosen} asked for, expected some of 1 to {count}, and one to judge.")
        if both := judged & apart:
            raise SettingError(
                f"LFW: fold {min(both)} is judged and chooses the threshold; leave it out of one of them."
            )
        lines = [line for line in lines if line.fold in chosen]
        needed = sorted({picture for line in lines for picture in (line.first, line.second)})
        paths, stray = _located(album, needed)
        aligned = all(picture_size(album, paths[picture]) == _ALIGNED_PX for picture in needed)
    position = {picture: i for i, picture in enumerate(needed)}
    if folds is not None and len(chosen) < count:
        notes += (f"Folds {', '.join(map(str, chosen))} of {count}: {counted(len(lines), 'pair')}.",)
    if apart:
        named = ", ".join(map(str, sorted(apart)))
        notes += (f"Threshold from folds {named} alone; judged are folds {', '.join(map(str, sorted(judged)))}.",)
    return PairSet(
        name="lfw",
        root=root,
        samples=tuple(Sample(paths[picture], picture[0], aligned=aligned) for picture in needed),
        pairs=np.array([[position[line.first], position[line.second]] for line in lines], np.int64),
        same=np.array([line.first[0] == line.second[0] for line in lines], bool),
        folds=np.array([line.fold for line in lines], np.int64),
        notes=stray + notes,
        threshold_folds=tuple(sorted(apart)),
    )


def people_in(root: Path, folds: Sequence[int]) -> frozenset[str]:
    """Return who is shown in the pairs of some folds; in LFW nobody is in the pairs of two folds.

    Args:
        root: As in :func:`read`.
        folds: The folds, from 1.

    Raises:
        SettingError: A fold that there is not, or none.
        DataError: ``pairs.txt`` is missing or not of its official form.
    """
    with open_album(root) as album:
        lines, _ = _pairs(*_pairs_text(album, None))
    every = {line.fold for line in lines}
    if not folds or not set(folds) <= every:
        raise SettingError(f"LFW: folds {sorted(folds)} asked for, expected some of 1 to {max(every)}.")
    return frozenset(person for line in lines if line.fold in folds for person, _ in (line.first, line.second))


def _pairs_text(album: Album, pairs: Path | None) -> tuple[str, str]:
    """Return the text of the list of pairs, and where it was found."""
    inside = [name for name in album.names() if PurePosixPath(name).name == "pairs.txt"]
    beside = album.root.absolute().parent / "pairs.txt"
    if pairs is None and inside:
        data, where = album.read(min(inside, key=len)), f"{album.root}: {min(inside, key=len)}"
    elif pairs is not None or beside.is_file():
        path = pairs or beside
        try:
            data, where = path.read_bytes(), str(path)
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}; {_FORM}.") from error
    else:
        raise DataError(f"No pairs.txt in or beside {album.root}; {_FORM}. Put it there, or name it.")
    try:
        return unicodedata.normalize("NFC", data.decode("utf-8-sig")), where
    except UnicodeError as error:
        raise DataError(f"{where} is not UTF-8 text; {_FORM}.") from error


def _pairs(text: str, where: str) -> tuple[list[_Line], tuple[str, ...]]:
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows or len(rows[0][1]) != 2 or not all(_is_number(part) and int(part) for part in rows[0][1]):
        raise DataError(f"{where} does not begin with the numbers of folds and of pairs; {_FORM}.")
    folds, each = (int(part) for part in rows[0][1])
    if len(rows) - 1 != folds * each * 2:
        raise DataError(f"{where}: {len(rows) - 1} pairs, expected {folds} x {each} x 2 by its first line; {_FORM}.")
    lines = [_line(parts, i // (2 * each) + 1, f"{where}, line {n}") for i, (n, parts) in enumerate(rows[1:])]
    for i, line in enumerate(lines):
        if (line.first[0] == line.second[0]) != (i % (2 * each) < each):
            raise DataError(
                f"{where}, line {rows[i + 1][0]}: expected {each} pairs of one person, then {each} of two, in every "
                f"fold; {_FORM}."
            )
    notes = []
    if (folds, each) != (FOLDS, PAIRS_EACH):
        official = f"the published protocol has {FOLDS} of {PAIRS_EACH} + {PAIRS_EACH}"
        notes.append(f"{counted(folds, 'fold')} of {each} + {each} pairs; {official}.")
    if twice := len(lines) - len({frozenset((line.first, line.second)) for line in lines}):
        notes.append(f"{counted(twice, 'pair')} of pairs.txt listed more than once.")
    if alone := sum(line.first == line.second for line in lines):
        notes.append(f"{counted(alone, 'pair')} of a picture with itself in pairs.txt.")
    return lines, tuple(notes)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _DIGITS


def _line(parts: list[str], fold: int, where: str) -> _Line:
    numbers = [*parts[1:2], *parts[-1:]] if len(parts) in (3, 4) else []
    if not numbers or not all(map(_is_number, numbers)):
        raise DataError(f"{where}: {' '.join(parts)!r}; {_FORM}.")
    other = parts[2] if len(parts) == 4 else parts[0]
    return _Line((parts[0], int(numbers[0])), (other, int(numbers[1])), fold)


def _located(album: Album, needed: Sequence[_Picture]) -> tuple[dict[_Picture, str], tuple[str, ...]]:
    endings = "|".join(sorted(ending[1:] for ending in PICTURE_ENDINGS))
    form = re.compile(rf"(?:.*/)?([^/]+)/\1_(\d{{4}})\.(?:{endings})", re.IGNORECASE)
    wanted = set(needed)
    paths: dict[_Picture, str] = {}
    stray = []
    for name in album.pictures():
        found = form.fullmatch(name)
        if not found:
            stray.append(name)
            continue
        picture = (found[1], int(found[2]))
        if picture in wanted and picture in paths:
            raise DataError(
                f"{album.root} holds {paths[picture]} and {name}. Name the folder of one of them as --root."
            )
        paths[picture] = name
    if missing := [picture for picture in needed if picture not in paths]:
        names = shortened(f"{name}_{number:04d}" for name, number in missing)
        raise DataError(
            f"{album.root}: {len(missing)} of {counted(len(needed), 'picture')} in pairs.txt missing: {names}; "
            f"expected NAME/NAME_0001.jpg. Get the whole set, or choose folds that do not need them."
        )
    return paths, stray_note(stray, expected="NAME/NAME_0001.jpg")
