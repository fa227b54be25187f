"""A gallery: who is enrolled, as embeddings at several sizes, in a file that its owner alone can read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from keyhole.errors import DataError, SettingError, ShapeError
from keyhole.faces.matching import Matcher, Views
from keyhole.faces.pooling import Pooled, Tracks, pool
from keyhole.faces.watchlist.search import search
from keyhole.files import read_tensors, write_tensors

_KIND = "keyhole gallery 1"
_SHARP = "sharp"
SAME = 0.9999  # cosine from which two embeddings are of one picture
_TRACKS = 64  # of a gallery of 100,000 photos, their scores take 26 MB


@dataclass(frozen=True)
class Gallery:
    """Enrolled photos, as embeddings of one model.

    Attributes:
        fingerprint: Of the model.
        people: Whom each photo shows; a person may have several.
        photos: Where each photo was.
        sharp: Embedding of each as it is.
        small: Embeddings of each at smaller sizes, by ``face_px``.
        margin: Shown around each face; None for aligned 112 crops.
        camera: How the photos were made small, as :class:`keyhole.faces.images.degradation.Degradation` says it; empty
            where they were not, or where an earlier version did not tell.
        detector: SHA-256 of what found the faces; empty for aligned crops, or where an earlier version did not tell.
    """

    fingerprint: str
    people: tuple[str, ...]
    photos: tuple[str, ...]
    sharp: Float[np.ndarray, "g d"]
    small: dict[float, Float[np.ndarray, "g d"]]
    margin: float | None = None
    camera: str = ""
    detector: str = ""

    def __len__(self) -> int:
        """Return how many photos are enrolled."""
        return len(self.people)

    def view(self, face_px: float | None) -> Float[np.ndarray, "g d"]:
        """Return the embeddings at a size; None for the photos as they are.

        Raises:
            SettingError: The gallery was not made for that size.
        """
        if face_px is None:
            return self.sharp
        if face_px not in self.small:
            sizes = ", ".join(f"{px:g}" for px in self.small) or "none"
            raise SettingError(
                f"The gallery has no embeddings at {face_px:g} px; it was made for {sizes}. Make it again: "
                "keyhole faces embed --matcher FILE."
            )
        return self.small[face_px]

    def digest(self) -> str:
        """Return what tells it from other galleries: a digest of who is enrolled by which photos."""
        listed = sorted(zip(self.people, self.photos, strict=True))
        return hashlib.sha256(json.dumps([self.fingerprint, listed]).encode()).hexdigest()

    def check(self, fingerprint: str, margin: float | None, camera: str = "") -> None:
        """Check that it was made by a model, with a margin, and its small views by a camera.

        Raises:
            SettingError: It was not.
        """
        if self.camera and camera and self.camera != camera:
            raise SettingError(
                f"The gallery was made with the camera {self.camera} of its matcher, and this matcher has {camera}: "
                "other small views, other scores. Make it again: keyhole faces embed."
            )
        if fingerprint == self.fingerprint and margin != self.margin:
            raise SettingError(
                f"The gallery was made with a margin of {self.margin}, and this is {margin}: other crops, other "
                "scores. Give the same --margin, or make it again: keyhole faces embed."
            )
        if fingerprint != self.fingerprint:
            raise SettingError(
                "The gallery was made by another model (or another preparation of this one), whose embeddings cannot "
                "be compared. Make it again: keyhole faces embed."
            )

    def check_sizes(self, sizes_px: Sequence[float]) -> None:
        """Check that it was made for the sizes of a matcher.

        Raises:
            SettingError: It was not.
        """
        if missing := [px for px in sizes_px if px not in self.small]:
            made = "without a matcher" if not self.small else f"with another matcher, without {missing[0]:g} px"
            raise SettingError(
                f"The gallery was made {made}, and this matcher compares at {len(sizes_px)} sizes. Make it again: "
                "keyhole faces embed --matcher FILE."
            )


@dataclass(frozen=True)
class Hit:
    """A candidate.

    Attributes:
        person: Who.
        photo: The photo that was most alike.
        score: -1 to 1.
    """

    person: str
    photo: str
    score: float


def candidates(
    gallery: Gallery,
    probes: Float[np.ndarray, "p d"],
    shown_px: Float[np.ndarray, " p"],
    *,
    matcher: Matcher | None = None,
    count: int = 5,
    pooled: Pooled | None = None,
) -> tuple[tuple[Hit, ...], ...]:
    """Return the people who are most alike to each probe, best first, each by the best of their photos.

    The gallery is searched exactly and in blocks: memory does not grow with it. A fitted comparison is one inner
    product, of the two embeddings that it takes the mean of side by side.

    Args:
        gallery: The enrolled.
        probes: Unit embeddings.
        shown_px: ``face_px`` of each probe; decides how it is matched.
        matcher: Match as it was fitted; None compares as it is.
        count: How many people.
        pooled: Take probes for frames of tracks, each of which is one search; its score is the weighted mean of those
            of its frames.

    Returns:
        Candidates of each probe, or of each track.

    Raises:
        ShapeError: Probes and sizes differ in number.
        SettingError: The matcher is of another model.

    Example:
        >>> eye = np.eye(2, dtype=np.float32)
        >>> some = Gallery("f", ("ann", "bob"), ("a.jpg", "b.jpg"), eye, {})
        >>> [hit.person for hit in candidates(some, eye[1:], np.array([112.0]))[0]]
        ['bob', 'ann']
    """
    if len(shown_px) != len(probes):
        raise ShapeError(f"There are {len(probes)} probes and {len(shown_px)} sizes; expected one for each probe.")
    if not len(gallery):
        raise DataError("The gallery is empty. Enroll someone first: keyhole faces embed.")
    if matcher is not None:
        matcher.check(gallery.fingerprint, (), margin=gallery.margin)
    if pooled is not None:
        return tuple(_pooled_people(gallery, probes, np.asarray(shown_px, float), matcher, pooled, count))
    found: list[tuple[Hit, ...]] = [()] * len(probes)
    for rows, left, right in _products(gallery, probes, np.asarray(shown_px, float), matcher):
        for row, hits in zip(rows, _best_people(gallery, left, right, count), strict=True):
            found[row] = hits
    return tuple(found)


def _products(
    gallery: Gallery, probes: np.ndarray, shown_px: np.ndarray, matcher: Matcher | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return rows of probes with what is multiplied with what: probe side, gallery side."""
    low = np.zeros(len(probes), bool) if matcher is None else shown_px < matcher.sharp_px
    parts = [(np.flatnonzero(~low), probes[~low], gallery.sharp)]
    if matcher is not None and low.any():
        where = np.flatnonzero(low)
        sizes = matcher.nearest(shown_px[where])
        for size in np.unique(sizes):
            rows = where[sizes == size]
            alike = matcher.centered(gallery.view(matcher.sizes_px[size]), int(size))
            share, seen = matcher.alike_shares[size], probes[rows]
            left = (share * matcher.centered(seen, int(size)), (1 - share) * matcher.restore(seen, int(size)))
            parts.append((rows, np.hstack(left), np.hstack((alike, gallery.sharp))))
    return [part for part in parts if len(part[0])]


def _pooled_people(
    gallery: Gallery,
    probes: np.ndarray,
    shown_px: np.ndarray,
    matcher: Matcher | None,
    pooled: Pooled,
    count: int,
) -> Iterator[tuple[Hit, ...]]:
    """Yield the best people of each track; scores of a few tracks at a time are held for the whole gallery."""
    tracks = pooled.tracks
    parts = _products(gallery, probes, shown_px, matcher)
    for start in range(0, len(tracks), _TRACKS):
        scores = np.zeros((min(_TRACKS, len(tracks) - start), len(gallery)), np.float32)
        for rows, left, right in parts:
            here = np.flatnonzero((tracks.of[rows] >= start) & (tracks.of[rows] < start + len(scores)))
            if len(here):
                # the mean of products is the product of the mean: frames of one size are pooled, then compared
                members = Tracks(tracks.first[start : start + len(scores)], tracks.of[rows[here]] - start)
                scores += pool(left[here], pooled.weights[rows[here]], members) @ right.T
        for each in scores:
            order = np.argsort(-each, kind="stable")
            yield _people(gallery, each[order], order, count)


def _best_people(gallery: Gallery, left: np.ndarray, right: np.ndarray, count: int) -> list[tuple[Hit, ...]]:
    photos_a_person = max(np.unique(gallery.people, return_counts=True)[1])
    found = search(left, right, count=int(min(len(gallery), count * photos_a_person)))
    return [_people(gallery, *each, count) for each in zip(found.scores, found.rows, strict=True)]


def _people(gallery: Gallery, scores: np.ndarray, rows: np.ndarray, count: int) -> tuple[Hit, ...]:
    """Return the first few people among gallery rows that are sorted by falling score."""
    best: dict[str, Hit] = {}
    for score, row in zip(scores, rows, strict=True):
        if len(best) == count:
            break
        person = gallery.people[row]
        best.setdefault(person, Hit(person, gallery.photos[row], float(score)))
    return tuple(best.values())


def enroll(
    fingerprint: str,
    people: Sequence[str],
    photos: Sequence[str],
    view: Views,
    *,
    sizes_px: Sequence[float] = (),
    margin: float | None = None,
    camera: str = "",
    detector: str = "",
    note: Callable[[str], None] = lambda _text: None,
) -> Gallery:
    """Return a gallery of photos, with their embeddings at each of the sizes.

    Args:
        fingerprint: Of the model.
        people: Whom each photo shows.
        photos: Where each photo is.
        view: Gives the embeddings at a ``face_px``, and as they are for None.
        sizes_px: For which sizes of probes; those of a matcher.
        margin: With which the faces were cut.
        camera: How ``view`` makes them small.
        detector: SHA-256 of what found the faces; empty for aligned crops.
        note: Is told what looks wrong.

    Raises:
        ShapeError: The numbers differ.
    """
    sharp = view(None)
    if not len(people) == len(photos) == len(sharp):
        raise ShapeError(f"There are {len(people)} people, {len(photos)} photos and {len(sharp)} embeddings.")
    for i, j in _copies(sharp):
        if people[i] != people[j]:
            note(f"Warning: {photos[i]} and {photos[j]} are the same picture under two people.")
    small = {float(px): view(px) for px in sizes_px}
    return Gallery(fingerprint, tuple(people), tuple(photos), sharp, small, margin, camera if small else "", detector)


def _copies(sharp: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows, the first one earlier, that are the same to rounding; of many copies, some of the pairs."""
    found = search(sharp, sharp, count=8) if len(sharp) > 1 else None
    for i, (scores, rows) in enumerate(zip(found.scores, found.rows, strict=True) if found else ()):
        for score, j in zip(scores, rows, strict=True):
            if score > SAME and j > i:
                yield i, int(j)


def save_gallery(path: Path, gallery: Gallery) -> None:
    """Write a gallery as safetensors, readable by its owner only; raises like :func:`keyhole.files.write_bytes`."""
    views = {_SHARP: gallery.sharp} | {f"{px:g}": view for px, view in gallery.small.items()}
    values = {
        "kind": _KIND,
        "fingerprint": gallery.fingerprint,
        "people": list(gallery.people),
        "photos": list(gallery.photos),
        "margin": gallery.margin,
        "camera": gallery.camera,
        "detector": gallery.detector,
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(view, np.float32)) for name, view in views.items()}
    write_tensors(path, tensors, values, private=True)


def load_gallery(path: Path) -> Gallery:
    """Return the gallery of a file.

    Raises:
        WeightsError: The file is missing, or no safetensors.
        DataError: It is no gallery.
    """
    tensors, values = read_tensors(path)
    wrong = DataError(f"{path} is no gallery of 'keyhole faces embed'. Make one, or name another file.")
    if values.get("kind") != _KIND:
        raise wrong
    try:
        people, photos = (tuple(map(str, values[name])) for name in ("people", "photos"))
        sharp = tensors.pop(_SHARP).float().numpy()
        small = {float(name): view.float().numpy() for name, view in tensors.items()}
        fingerprint = str(values["fingerprint"])
        margin = None if values["margin"] is None else float(values["margin"])
        camera, detector = (str(values.get(name, "")) for name in ("camera", "detector"))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise wrong from error
    same = all(view.shape == sharp.shape and np.isfinite(view).all() for view in (sharp, *small.values()))
    if not same or sharp.ndim != 2 or not len(people) == len(photos) == len(sharp):
        raise wrong
    return Gallery(fingerprint, people, photos, sharp, dict(sorted(small.items())), margin, camera, detector)
