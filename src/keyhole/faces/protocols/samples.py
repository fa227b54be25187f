"""What a protocol consists of: pictures of people, who is enrolled, who is searched for, which pairs are compared."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import Album, open_album
from keyhole.files import write_text

Box = tuple[float, float, float, float]
Landmarks = tuple[tuple[float, float], ...]
Views = Literal["best", "mean"]


@dataclass(frozen=True)
class Sample:
    """One picture of one person.

    Attributes:
        path: Name of the picture in the album of its set.
        identity: Who it shows; never empty.
        camera: What took it, where that is known.
        box: Where the face is, as left, top, width and height in pixels of the upright picture; None: to be found.
        landmarks: The five points of the face (eyes, nose, corners of the mouth, left in the image first), or None.
        aligned: Whether the picture is an aligned 112 x 112 crop already.
        attributes: What else is known, such as ``{"distance": "1"}``.
    """

    path: str
    identity: str
    camera: str = ""
    box: Box | None = None
    landmarks: Landmarks | None = None
    aligned: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IdentificationSet:
    """Who is enrolled and who is searched for.

    Attributes:
        name: Of the protocol.
        root: Folder or archive that the pictures are in.
        gallery: The enrolled pictures; a person may have several.
        probes: The pictures searched for; a person who is not in the gallery makes a non-mated search.
        notes: All that deviates from the official form or that was decided in reading, one sentence each.
        views: How several enrolled pictures of one person become one score: the best, or the mean over them.
    """

    name: str
    root: Path
    gallery: tuple[Sample, ...]
    probes: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    views: Views = "best"

    def people(self) -> tuple[str, ...]:
        """Return who is enrolled, sorted, each once."""
        return tuple(sorted({sample.identity for sample in self.gallery}))

    def mated(self) -> Bool[np.ndarray, " p"]:
        """Return for every probe whether its person is enrolled."""
        enrolled = set(self.people())
        return np.array([sample.identity in enrolled for sample in self.probes], bool)

    def summary(self) -> str:
        """Return in one line how many people, pictures, cameras and searches there are.

        Example:
            >>> one = IdentificationSet("toy", Path("."), (Sample("a.jpg", "Ann"),), (Sample("b.jpg", "Bob", "cam1"),))
            >>> one.summary()
            'toy: 1 person enrolled with 1 picture; 1 probe of 1 person, 0 mated, 1 not; cameras cam1'
        """
        mated = int(self.mated().sum())
        cameras = sorted({sample.camera for sample in self.probes if sample.camera})
        return (
            f"{self.name}: {counted(len(self.people()), 'person', 'people')} enrolled with "
            f"{counted(len(self.gallery), 'picture')}; {counted(len(self.probes), 'probe')} of "
            f"{counted(len({sample.identity for sample in self.probes}), 'person', 'people')}, {mated:,} mated, "
            f"{len(self.probes) - mated:,} not; cameras {', '.join(cameras) or 'not told'}"
        )


@dataclass(frozen=True)
class PairSet:
    """Which pictures are compared, and whether they show one person.

    Attributes:
        name: Of the protocol.
        root: Folder or archive that the pictures are in.
        samples: The pictures, each once.
        pairs: Two positions in ``samples`` for each pair; the first is the reference, the second the probe.
        same: Whether a pair shows one person.
        folds: Which fold a pair belongs to, from 1.
        notes: All that deviates from the official form or that was decided in reading, one sentence each.
        threshold_folds: Folds that choose the threshold, and are not judged; with none each fold is judged by the
            threshold of all others.
    """

    name: str
    root: Path
    samples: tuple[Sample, ...]
    pairs: Int64[np.ndarray, "n 2"]
    same: Bool[np.ndarray, " n"]
    folds: Int64[np.ndarray, " n"]
    notes: tuple[str, ...] = ()
    threshold_folds: tuple[int, ...] = ()

    def subjects(self) -> np.ndarray:
        """Return the two identities of every pair, as an (n, 2) array of strings."""
        identities = np.array([sample.identity for sample in self.samples], str)
        pairs: np.ndarray = identities[self.pairs]
        return pairs

    def summary(self) -> str:
        """Return in one line how many people, pictures, pairs and folds there are."""
        people = len({sample.identity for sample in self.samples})
        return (
            f"{self.name}: {counted(len(self.same), 'pair')} ({int(self.same.sum()):,} of one person) in "
            f"{counted(len(np.unique(self.folds)), 'fold')}; {counted(len(self.samples), 'picture')} of "
            f"{counted(people, 'person', 'people')}"
        )


def write_manifest(path: Path, protocol: IdentificationSet | PairSet) -> None:
    """Write the samples of a set as CSV, whole or not at all.

    The columns are ``role``, ``path`` (below the root), ``identity``, ``camera``, ``box`` (left, top, width, height),
    ``landmarks`` (ten numbers), ``aligned`` (yes or nothing), then one for every attribute. The role is gallery or
    probe. Pairs are two lines each, reference and probe, with the columns ``pair`` (from 1) and ``fold`` more. Notes
    and the setting of views are not in it.

    Args:
        path: The CSV file.
        protocol: What is written.

    Raises:
        SettingError: An attribute has the name of a column.
        RunError: The file cannot be written.
    """
    columns = _COLUMNS if isinstance(protocol, IdentificationSet) else (*_COLUMNS, *_PAIR_COLUMNS)
    rows = _set_rows(protocol) if isinstance(protocol, IdentificationSet) else _pair_rows(protocol)
    extra = sorted({key for _, sample, _ in rows for key in sample.attributes})
    if clash := set(extra) & {*_COLUMNS, *_PAIR_COLUMNS}:
        raise SettingError(f"The attribute {min(clash)!r} has the name of a column of the manifest. Rename it.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *extra])
    for role, sample, pair in rows:
        points = [number for point in sample.landmarks or () for number in point]
        fixed = [role, sample.path, sample.identity, sample.camera, _numbers(sample.box or ()), _numbers(points)]
        more = [sample.attributes.get(key, "") for key in extra]
        writer.writerow([*fixed, "yes" if sample.aligned else "", *pair, *more])
    write_text(path, text.getvalue())


def read_manifest(path: Path, *, root: Path | None = None, views: Views = "best") -> IdentificationSet:
    """Return the set that a manifest describes; its form is that of :func:`write_manifest`.

    Only ``role``, ``path`` and ``identity`` are needed; unknown columns become attributes. Names are read as UTF-8 and
    brought to Unicode's composed form (NFC).

    Args:
        path: The CSV file.
        root: Folder or archive that its paths are in; None: the folder of the CSV file.
        views: How several enrolled pictures of one person become one score.

    Raises:
        DataError: It is missing or not of that form, a picture is missing, or nobody is enrolled or searched for.
    """
    data = _bytes_of(path)
    with open_album(root or path.parent) as album:
        return manifest_set(data, album, where=str(path), views=views)


def manifest_set(data: bytes, album: Album, *, where: str, views: Views = "best") -> IdentificationSet:
    """Return the set that the content of a manifest describes, as :func:`read_manifest` does for a file.

    Args:
        data: What the CSV file holds.
        album: What its paths are in.
        where: How errors call the file.
        views: How several enrolled pictures of one person become one score.

    Raises:
        DataError: As for :func:`read_manifest`.
    """
    lines = _manifest_lines(data, where, ("gallery", "probe"))
    _check_there(lines, album, where)
    gallery = tuple(sample for role, sample, _ in lines if role == "gallery")
    probes = tuple(sample for role, sample, _ in lines if role == "probe")
    for role, found in (("gallery", gallery), ("probe", probes)):
        if not found:
            raise DataError(f"{where} has no line whose role is {role!r}; expected at least one. Add it.")
    return IdentificationSet("manifest", album.root, gallery, probes, views=views)


def read_pairs(path: Path, *, root: Path | None = None) -> PairSet:
    """Return the pairs that a manifest describes; its form is that of :func:`write_manifest`.

    Args:
        path: The CSV file, with two lines for each number in the column ``pair``: a reference and a probe.
        root: Folder or archive that its paths are in; None: the folder of the CSV file.

    Raises:
        DataError: It is missing or not of that form, or a picture is missing.
    """
    data = _bytes_of(path)
    with open_album(root or path.parent) as album:
        lines = _manifest_lines(data, str(path), ("reference", "probe"))
        _check_there(lines, album, str(path))
    position: dict[str, int] = {}
    samples: list[Sample] = []
    pairs, folds = [], []
    for reference, probe, fold in _couples(lines, str(path)):
        for sample in (reference, probe):
            if repr(sample) not in position:
                position[repr(sample)] = len(samples)
                samples.append(sample)
        pairs.append([position[repr(reference)], position[repr(probe)]])
        folds.append(fold)
    same = np.array([samples[a].identity == samples[b].identity for a, b in pairs])
    return PairSet("manifest", album.root, tuple(samples), np.array(pairs, np.int64), same, np.array(folds, np.int64))


def shortened(names: Iterable[str], *, most: int = 3) -> str:
    """Return the first few of some names, and how many more there are.

    Example:
        >>> shortened(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    listed = list(names)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")


def stray_note(names: Sequence[str], *, expected: str) -> tuple[str, ...]:
    """Return the note on pictures whose names are not of the official form; none where there are none."""
    if not names:
        return ()
    return (f"{counted(len(names), 'stray picture')} left out: {shortened(names)}; expected names like {expected}.",)


def _set_rows(protocol: IdentificationSet) -> list[_Line]:
    parts = (("gallery", protocol.gallery), ("probe", protocol.probes))
    return [(role, sample, ()) for role, samples in parts for sample in samples]


def _pair_rows(protocol: PairSet) -> list[_Line]:
    return [
        (role, protocol.samples[i], (str(number), str(fold)))
        for number, (pair, fold) in enumerate(zip(protocol.pairs.tolist(), protocol.folds.tolist(), strict=True), 1)
        for role, i in zip(("reference", "probe"), pair, strict=True)
    ]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Expected a manifest in CSV there.") from error


def _check_there(lines: Sequence[tuple[str, Sample, object]], album: Album, where: str) -> None:
    missing = [sample.path for _, sample, _ in lines if not album.has(sample.path)]
    if missing:
        raise DataError(
            f"{where}: {counted(len(missing), 'picture')} of {len(lines)} not found in {album.root}, first "
            f"{missing[0]!r}. Expected paths below that folder; put the pictures there or correct the manifest."
        )


def _manifest_lines(data: bytes, where: str, roles: tuple[str, str]) -> list[tuple[str, Sample, dict[str, str]]]:
    """Return role, sample and all fields of every line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    reader = csv.DictReader(io.StringIO(unicodedata.normalize("NFC", text), newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        absent = [name for name in ("role", "path", "identity") if name not in columns]
        if absent or len(set(columns)) != len(columns):
            odd = f"no column {absent[0]!r}" if absent else "two columns of one name"
            raise DataError(f"{where} has {odd}; expected a first line {','.join(_COLUMNS)}. Correct it.")
        return [_line(row, roles, f"{where}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}, is not CSV: {error}. Correct it.") from error


def _couples(lines: Sequence[tuple[str, Sample, dict[str, str]]], where: str) -> list[tuple[Sample, Sample, int]]:
    """Return reference, probe and fold of every pair."""
    two: dict[str, dict[str, tuple[Sample, str]]] = {}
    for role, sample, row in lines:
        members = two.setdefault(row.get("pair", ""), {})
        if role in members:
            raise DataError(f"{where}: pair {row.get('pair', '')!r} has two lines of the role {role}. Correct it.")
        members[role] = (sample, row.get("fold", ""))
    if not two:
        raise DataError(f"{where} has no pair; expected two lines each, reference and probe. Add them.")
    couples = []
    for name, members in two.items():
        folds = {fold for _, fold in members.values()}
        if len(members) != 2 or len(folds) != 1 or not (fold := folds.pop()).isdecimal():
            raise DataError(f"{where}: pair {name!r}; expected a reference and a probe, both of one numbered fold.")
        couples.append((members["reference"][0], members["probe"][0], int(fold)))
    return couples


def _line(row: dict[str, str], roles: tuple[str, str], where: str) -> tuple[str, Sample, dict[str, str]]:
    if None in row or None in row.values():
        raise DataError(f"{where}: more or fewer fields than columns. Put names that hold a comma into quotes.")
    row = {key: value.strip() for key, value in row.items()}
    role, path, identity = row["role"], row["path"], row["identity"]
    if role not in roles:
        raise DataError(f"{where}: the role is {role!r}, expected {roles[0]} or {roles[1]}. Correct it.")
    if not path or not identity:
        raise DataError(f"{where}: no path or no identity. Give also people who are not enrolled a name each.")
    if (aligned := row.get("aligned", "")) not in ("", "yes", "no"):
        raise DataError(f"{where}: aligned is {aligned!r}, expected yes, no or nothing. Correct it.")
    box = _read_numbers(row.get("box", ""), 4, where)
    if box and (box[2] <= 0 or box[3] <= 0):
        raise DataError(f"{where}: a box of {box[2]:g} x {box[3]:g} pixels; expected left, top, width and height.")
    flat = _read_numbers(row.get("landmarks", ""), 10, where)
    known = {*_COLUMNS, *_PAIR_COLUMNS}
    sample = Sample(
        path=path.replace("\\", "/"),
        identity=identity,
        camera=row.get("camera", ""),
        box=(box[0], box[1], box[2], box[3]) if box else None,
        landmarks=tuple(zip(flat[::2], flat[1::2], strict=True)) if flat else None,
        aligned=aligned == "yes",
        attributes={key: value for key, value in row.items() if key not in known and value},
    )
    return role, sample, row


def _numbers(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)).removesuffix(".0") for value in values)


def _read_numbers(text: str, count: int, where: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split())
    except ValueError:
        values = (float("nan"),)
    if text and (len(values) != count or not np.isfinite(values).all()):
        raise DataError(f"{where}: {text!r}, expected {count} numbers with spaces between. Correct it.")
    return values


def counted(count: int, one: str, more: str | None = None) -> str:
    """Return a count with its noun.

    Example:
        >>> counted(1, "probe"), counted(1200, "person", "people")
        ('1 probe', '1,200 people')
    """
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def repeated(values: Iterable[str]) -> list[str]:
    """Return the values that stand more than once, sorted."""
    return sorted(value for value, count in Counter(values).items() if count > 1)


_Line = tuple[str, Sample, tuple[str, ...]]
_COLUMNS = ("role", "path", "identity", "camera", "box", "landmarks", "aligned")
_PAIR_COLUMNS = ("pair", "fold")
