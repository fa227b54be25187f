"""Any folder or archive: ``gallery/PERSON/*.jpg`` and ``probes/PERSON/*.jpg``, or a manifest."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import PICTURE_ENDINGS, Album, open_album
from keyhole.faces.protocols.samples import (
    IdentificationSet,
    Sample,
    Views,
    counted,
    manifest_set,
    read_manifest,
    repeated,
    shortened,
)

_FORM = "gallery/PERSON/*.jpg and probes/PERSON/*.jpg (or one file a person, gallery/PERSON.jpg), or manifest.csv"
_PARTS = ("gallery", "probes")


def read(root: Path, *, manifest: Path | None = None, views: Views = "best") -> IdentificationSet:
    """Return who is enrolled and who is searched for.

    A person is a folder below ``gallery`` or ``probes``, or one file there, whose name without ending is the person.
    Probes of people who are not in the gallery are non-mated searches. Where there is a ``manifest.csv`` and no folder
    ``gallery``, that is read; its form is told at :func:`keyhole.faces.protocols.samples.read_manifest`.

    The notes tell all that could change a figure unseen: pictures that are gallery and probe at once, one picture for
    two people, names that differ only in case or blanks, stray files, people who are not enrolled, a gallery of one.

    Args:
        root: Folder or zip archive; in an archive the two folders may lie in one folder above them.
        manifest: A manifest whose paths are below the root.
        views: How several enrolled pictures of one person become one score: the best, or the mean.

    Raises:
        SettingError: Another setting of views.
        DataError: There is neither form, or nobody is enrolled or searched for.
    """
    if views not in ("best", "mean"):
        raise SettingError(f"views is {views!r}, expected 'best' or 'mean'.")
    with open_album(root) as album:
        above = _above(album)
        if manifest is not None:
            found = read_manifest(manifest, root=root, views=views)
        elif above is None and album.has("manifest.csv"):
            where = f"{root}: manifest.csv"
            found = manifest_set(album.read("manifest.csv"), album, where=where, views=views)
        elif above is None:
            raise DataError(f"{root} holds no folder gallery with pictures; expected {_FORM}.")
        else:
            found = _from_tree(album, above, views)
        return replace(found, name="folder", notes=found.notes + _doubts(album, found))


def is_set(root: Path) -> bool:
    """Return whether a folder or archive says who is enrolled and who is searched for, as :func:`read` wants it.

    Raises:
        DataError: There is no such folder, or the archive is broken.
    """
    with open_album(root) as album:
        forgotten = any(name.startswith("probes/") for name in album.pictures())  # a set without its gallery
        return _above(album) is not None or album.has("manifest.csv") or forgotten


def _above(album: Album) -> str | None:
    """Return what stands before ``gallery/``: nothing, or the one folder that an archive was packed with."""
    names = album.pictures()
    if any(name.startswith("gallery/") for name in names):
        return ""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) == 1 and any(name.split("/")[1:2] == ["gallery"] for name in names):
        return f"{tops.pop()}/"
    return None


def _from_tree(album: Album, above: str, views: Views) -> IdentificationSet:
    found: dict[str, list[Sample]] = {part: [] for part in _PARTS}
    stray = []
    for name in album.names():
        parts = PurePosixPath(name.removeprefix(above)).parts
        inside = name.startswith(above) and parts[0] in found and len(parts) > 1
        if not inside or PurePosixPath(name).suffix.lower() not in PICTURE_ENDINGS:
            stray.append(name)
            continue
        person = parts[1] if len(parts) > 2 else PurePosixPath(parts[1]).stem
        found[parts[0]].append(Sample(name, person))
    for part, samples in found.items():
        if not samples:
            raise DataError(f"{album.root} holds no picture in {above}{part}; expected {_FORM}.")
    notes = (f"{counted(len(stray), 'stray file')} left out: {shortened(stray)}.",) if stray else ()
    gallery, probes = (tuple(found[part]) for part in _PARTS)
    return IdentificationSet("folder", album.root, gallery, probes, notes + _twofold(gallery), views)


def _doubts(album: Album, found: IdentificationSet) -> tuple[str, ...]:
    return (*_shared(album, found), *_alike(found), *_enrolled(found))


def _shared(album: Album, found: IdentificationSet) -> tuple[str, ...]:
    """Return notes on pictures with the same bytes."""
    same = _same_bytes(album, sorted({sample.path for sample in (*found.gallery, *found.probes)}))
    gallery, probes = _by_picture(found.gallery, same), _by_picture(found.probes, same)
    notes = []
    if both := sorted(set(gallery) & set(probes)):
        what = f"{counted(len(both), 'picture')} in gallery and probes at once: {shortened(both)}"
        notes.append(f"{what}; a picture always finds itself.")
    for kind, group in (("gallery", gallery), ("probes", probes)):
        several = {name: people for name, people in group.items() if len(set(people)) > 1}
        if several:
            listed = shortened(f"{name} ({shortened(sorted(set(people)))})" for name, people in several.items())
            notes.append(f"One picture for several people in the {kind}: {listed}.")
        if twice := [name for name, people in group.items() if len(people) > len(set(people))]:
            notes.append(f"One picture several times for one person in the {kind}: {shortened(twice)}.")
    return tuple(notes)


def _by_picture(samples: Sequence[Sample], same: dict[str, str]) -> dict[str, list[str]]:
    people: dict[str, list[str]] = {}
    for sample in samples:
        people.setdefault(same[sample.path], []).append(sample.identity)
    return people


def _same_bytes(album: Album, names: Sequence[str]) -> dict[str, str]:
    """Return for each name the first one with the same content; only files of equal length are read."""
    by_size: dict[int, list[str]] = {}
    for name in names:
        by_size.setdefault(album.size_bytes(name), []).append(name)
    first: dict[str, str] = {}
    for group in by_size.values():
        seen: dict[bytes, str] = {}
        for name in group:
            content = hashlib.sha256(album.read(name)).digest() if len(group) > 1 else b""
            first[name] = seen.setdefault(content, name)
    return first


def _alike(found: IdentificationSet) -> tuple[str, ...]:
    names = {sample.identity for sample in (*found.gallery, *found.probes)}
    forms: dict[str, list[str]] = {}
    for name in sorted(names):
        forms.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    groups = [" / ".join(repr(name) for name in group) for group in forms.values() if len(group) > 1]
    if not groups:
        return ()
    return (f"Names that differ only in case, blanks or form count as different people: {shortened(groups)}.",)


def _twofold(gallery: Sequence[Sample]) -> tuple[str, ...]:
    """Return the note on people with a file of their own and another one or a folder beside it."""
    single = {sample.identity for sample in gallery if PurePosixPath(sample.path).parent.name == "gallery"}
    several = sorted(single & set(repeated(sample.identity for sample in gallery)))
    return (
        (f"Enrolled by more than one file or folder, counted as one person: {shortened(several)}.",) if several else ()
    )


def _enrolled(found: IdentificationSet) -> tuple[str, ...]:
    enrolled = found.people()
    others = sorted({sample.identity for sample in found.probes} - set(enrolled))
    notes = []
    if len(enrolled) == 1:
        notes.append("The gallery holds one person, who is first in every search: only thresholds mean anything.")
    if not found.mated().any():
        seen = f"probes of {shortened(others)}, enrolled {shortened(enrolled)}"
        notes.append(f"No probe belongs to a person who is enrolled ({seen}): only false positives can be measured.")
    elif others:
        searches = counted(len(found.probes) - int(found.mated().sum()), "search", "searches")
        notes.append(f"{counted(len(others), 'person', 'people')} not enrolled, {searches}: {shortened(others)}.")
    return tuple(notes)
