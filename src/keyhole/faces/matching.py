"""Matching a probe of few pixels with sharp photos of a gallery.

Three ways of comparing, from an embedding model that was trained on sharp faces:

- ``none``: the probe as it is with the gallery as it is.
- ``resolution``: the gallery is shown to the model with as few pixels as the probe, or nearly: one of a fixed ladder of
  sizes, so that a gallery is embedded a limited number of times. Both then lose the same, which helps where the model
  is blind, and throws information away where it copes.
- ``fitted``: a mean of two cosines. One compares sharp images, after a linear map took the probe's embedding to where
  the model would have put the sharp image; the other compares alike ones, as above, after what all faces of that size
  have in common was taken off. The second counts as much as the first falls short: its share is 1 less the mean cosine
  between restored and sharp embeddings, measured on faces that the map was not fitted on. All of it is learnt from
  unlabeled faces of other people; nothing is tuned to a benchmark.

Each takes the size of the probe as given, or (``-estimated``) as its spectrum shows it. From ``sharp_px`` on nothing is
matched: there the model sees enough, and it costs nothing.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from keyhole.errors import DataError, SettingError, ShapeError, unknown_name
from keyhole.files import read_tensors, write_tensors

SHARP_PX = 48.0  # on LFW, a model loses nothing that matching could win back from there on
LADDER_PX = (6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 16.0, 20.0, 24.0, 32.0, 40.0)
# sizes at which a gallery is shown to match probes of any size: whole pixels, then steps of at most an eighth
GALLERY_PX = (*range(4, 17), 18, 20, 22, 24, 27, 30, 32, 36, 40, 44)
RIDGE = 0.002  # of the number of faces; 0.0006 to 0.002 do as well on LFW at 12 px, 0.02 loses four points
MODES = ("none", "resolution", "resolution-estimated", "fitted", "fitted-estimated")
_KIND = "keyhole matcher 1"

# from a number of pixels (None: as the photos are) to one embedding a gallery photo
Views = Callable[[float | None], Float[np.ndarray, "g d"]]


def check_modes(modes: Sequence[str]) -> None:
    """Check the names of ways of matching.

    Raises:
        UnknownNameError: One does not exist.
        SettingError: None is given, or one twice.
    """
    for mode in modes:
        if mode not in MODES:
            raise unknown_name("way of matching", mode, MODES)
    if not modes or len(set(modes)) < len(modes):
        raise SettingError(f"Ways of matching are {','.join(modes)!r}; expected each once, of {', '.join(MODES)}.")


@dataclass(frozen=True)
class Matcher:
    """What the ``fitted`` way of matching has learnt, for one model.

    Attributes:
        fingerprint: Of the model.
        sizes_px: ``face_px`` for which there is a map, rising.
        maps: Takes the embedding of a small face, less its mean, to that of the sharp one, less its mean.
        small_means: Mean embedding of faces of each size.
        sharp_mean: Mean embedding of sharp faces.
        alike_shares: How much the comparison of alike images counts at each size, 0 to 1.
        sharp_px: From here on nothing is matched.
        people: Digests of the people that it was fitted on; it refuses to be tested on them.
        about: How it was made, as JSON values.
    """

    fingerprint: str
    sizes_px: tuple[float, ...]
    maps: Float[np.ndarray, "s d d"]
    small_means: Float[np.ndarray, "s d"]
    sharp_mean: Float[np.ndarray, " d"]
    alike_shares: tuple[float, ...]
    sharp_px: float = SHARP_PX
    people: frozenset[str] = frozenset()
    about: dict[str, Any] = field(default_factory=dict)

    def nearest(self, face_px: Float[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
        """Return for each size the position of the nearest one that there is a map for, by ratio."""
        return _nearest(face_px, self.sizes_px)

    def restore(self, small: Float[np.ndarray, "p d"], size: int) -> Float[np.ndarray, "p d"]:
        """Return where the model would have put the sharp images, from the embeddings of small ones; of unit length.

        Args:
            small: Embeddings of faces of one size.
            size: Position of that size in ``sizes_px``.
        """
        return _unit((small - self.small_means[size]) @ self.maps[size] + self.sharp_mean)

    def centered(self, small: Float[np.ndarray, "p d"], size: int) -> Float[np.ndarray, "p d"]:
        """Return embeddings of small faces less what all faces of that size have in common; of unit length."""
        return _unit(small - self.small_means[size])

    def digest(self) -> str:
        """Return what tells it from other matchers: a digest of its numbers."""
        parts = (self.maps.astype(np.float16), self.small_means, self.sharp_mean, np.array([self.sharp_px]))
        settings = [self.fingerprint, repr(self.sizes_px), repr(self.alike_shares)]
        return hashlib.sha256(
            b"".join([*(np.ascontiguousarray(part).tobytes() for part in parts), repr(settings).encode()])
        ).hexdigest()

    def check(self, fingerprint: str, people: Iterable[str], *, margin: float | None) -> None:
        """Check that it fits a model and a margin, and was not fitted on people that it is to be tested on.

        Raises:
            SettingError: It does not, or it was.
        """
        if fingerprint != self.fingerprint:
            raise SettingError(
                "The matcher was fitted for another model (or another preparation of this one). Fit one: "
                "keyhole faces fit."
            )
        if self.about.get("margin", margin) != margin:
            raise SettingError(
                f"The matcher was fitted with a margin of {self.about['margin']}, and this is {margin}. Use the same."
            )
        known = sum(digest(person) in self.people for person in set(people))
        if known:
            raise SettingError(
                f"The matcher was fitted on {known} of the people that it is to be tested on, which flatters it. "
                "Fit it on others, or test on others (--folds)."
            )


def digest(person: str) -> str:
    """Return the digest under which a person is remembered: no name is kept."""
    return hashlib.sha256(unicodedata.normalize("NFC", person).encode()).hexdigest()[:16]


def fit_matcher(
    sharp: Float[np.ndarray, "n d"],
    small: Callable[[float], Float[np.ndarray, "n d"]],
    *,
    fingerprint: str,
    sizes_px: Sequence[float] = LADDER_PX,
    people: Sequence[str] = (),
    about: dict[str, Any] | None = None,
) -> Matcher:
    """Learn to match from embeddings of the same faces, sharp and small; no labels are used.

    For each size, a ridge regression takes embeddings of small faces to those of the sharp ones. How well it restores
    is measured on every fifth person, with a map of the others.

    Args:
        sharp: Embeddings of sharp faces.
        small: Gives the embeddings of the same faces at a ``face_px``.
        fingerprint: Of the model that made them.
        sizes_px: The sizes.
        people: Who each face is of, for that alone; only digests are kept. Without them, or with fewer than five, the
            last fifth of the faces stands apart.
        about: How it was made, for the record.

    Raises:
        DataError: There are fewer than 100 faces.
        ShapeError: There are people for more or fewer faces.
        SettingError: The sizes do not rise.

    Example:
        >>> random = np.random.default_rng(0)
        >>> faces = _unit(random.normal(size=(400, 8)))
        >>> noise = random.normal(size=faces.shape)
        >>> found = fit_matcher(faces, lambda px: _unit(faces + noise / px), fingerprint="f", sizes_px=(8.0, 16.0))
        >>> small = _unit(faces + noise / 8)
        >>> bool(((found.restore(small, 0) - faces) ** 2).sum() < ((small - faces) ** 2).sum())
        True
    """
    count = len(sharp)
    if count < 100:
        raise DataError(f"There are {count} faces to fit a matcher on; expected at least 100, of many people.")
    if not sizes_px or list(sizes_px) != sorted(set(sizes_px)) or sizes_px[0] <= 0:
        raise SettingError(f"The sizes of a matcher are {tuple(sizes_px)}; expected positive ones that rise.")
    if people and len(people) != count:
        raise ShapeError(f"There are {count} faces of {len(people)} people; expected one for each face.")
    apart = _apart(count, people)
    maps, means, shares = [], [], []
    for px in sizes_px:
        seen = small(px)
        tried = _ridge(seen[~apart], sharp[~apart])
        restored = _unit((seen[apart] - seen[~apart].mean(axis=0)) @ tried + sharp[~apart].mean(axis=0))
        shares.append(1 - float(np.clip((restored * sharp[apart]).sum(axis=1).mean(), 0, 1)))
        maps.append(_ridge(seen, sharp).astype(np.float32))
        means.append(seen.mean(axis=0).astype(np.float32))
    return Matcher(
        fingerprint,
        tuple(float(px) for px in sizes_px),
        np.stack(maps),
        np.stack(means),
        sharp.mean(axis=0).astype(np.float32),
        tuple(shares),
        people=frozenset(map(digest, people)),
        about={"faces": count, **(about or {})},
    )


def _apart(count: int, people: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Return which faces stand apart from those that a map is tried with: nobody is on both sides."""
    names, codes = np.unique(np.asarray(people, str), return_inverse=True)
    return codes % 5 == 4 if len(names) >= 5 else np.arange(count) >= count - count // 5


def _ridge(small: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    x, y = ((each - each.mean(axis=0)).astype(float) for each in (small, sharp))
    return np.asarray(np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y))


def matched_scores(
    probes: Float[np.ndarray, "p d"],
    shown_px: Float[np.ndarray, " p"],
    views: Views,
    *,
    mode: str = "none",
    matcher: Matcher | None = None,
    mates: Int[np.ndarray, " p"] | None = None,
) -> Float[np.ndarray, "p g"] | Float[np.ndarray, " p"]:
    """Return how alike probes and gallery photos are, from -1 to 1.

    Args:
        probes: Unit embeddings of the probes as they are.
        shown_px: ``face_px`` of each, true or estimated.
        views: Gives the gallery's unit embeddings at a ``face_px``, and as it is for None; asked for each size once.
        mode: The way of matching; whether sizes are estimated is the caller's choice.
        matcher: For ``fitted``.
        mates: The one gallery row to which each probe is compared (verification); all where missing.

    Raises:
        UnknownNameError: The mode does not exist.
        SettingError: ``fitted`` without a matcher.
        ShapeError: The probes and their sizes, or their mates, differ in number.

    Example:
        >>> gallery = np.eye(3, dtype=np.float32)
        >>> matched_scores(gallery[:2], np.array([112.0, 112.0]), lambda _px: gallery).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    check_modes((mode,))
    if len(shown_px) != len(probes) or (mates is not None and len(mates) != len(probes)):
        others = f"{len(shown_px)} sizes" + (f" and {len(mates)} mates" if mates is not None else "")
        raise ShapeError(f"There are {len(probes)} probes and {others}; expected one for each probe.")
    sharp = views(None)
    scores = _compare(probes, sharp, mates)
    kind = mode.removesuffix("-estimated")
    if kind == "none":
        return scores
    if kind == "fitted" and matcher is None:
        raise SettingError("Matching 'fitted' needs a matcher; fit one: keyhole faces fit.")
    from_px = matcher.sharp_px if matcher is not None and kind == "fitted" else SHARP_PX
    low = np.flatnonzero(np.asarray(shown_px) < from_px)
    if kind == "resolution":
        steps = _nearest(np.asarray(shown_px)[low], GALLERY_PX)
        for step in np.unique(steps):
            rows = low[steps == step]
            scores[rows] = _compare(probes[rows], views(float(GALLERY_PX[step])), _of(mates, rows))
        return scores
    assert matcher is not None
    sizes = matcher.nearest(np.asarray(shown_px)[low])
    for size in np.unique(sizes):
        rows = low[sizes == size]
        scores[rows] = _fitted(probes[rows], int(size), views, matcher, _of(mates, rows))
    return scores


def _fitted(probes: np.ndarray, size: int, views: Views, matcher: Matcher, mates: np.ndarray | None) -> np.ndarray:
    alike = matcher.centered(views(matcher.sizes_px[size]), size)
    restored = _compare(matcher.restore(probes, size), views(None), mates)
    share = matcher.alike_shares[size]
    return share * _compare(matcher.centered(probes, size), alike, mates) + (1 - share) * restored


def _compare(probes: np.ndarray, gallery: np.ndarray, mates: np.ndarray | None) -> np.ndarray:
    return np.asarray(probes @ gallery.T if mates is None else np.einsum("pd,pd->p", probes, gallery[mates]))


def _nearest(face_px: np.ndarray, sizes_px: Sequence[float]) -> np.ndarray:
    """Return the position of the nearest size by ratio, of equals the smaller one."""
    ladder = np.log(np.asarray(sizes_px, float))
    return np.asarray(np.abs(np.log(np.maximum(face_px, 1.0))[:, None] - ladder).argmin(axis=1))


def _of(mates: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if mates is None else mates[rows]


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def save_matcher(path: Path, matcher: Matcher) -> None:
    """Write a matcher as safetensors, readable by its owner only; raises like :func:`keyhole.files.write_bytes`."""
    tensors = {
        "maps": torch.from_numpy(matcher.maps).half(),
        "small_means": torch.from_numpy(matcher.small_means),
        "sharp_mean": torch.from_numpy(matcher.sharp_mean),
    }
    values = {
        "kind": _KIND,
        "fingerprint": matcher.fingerprint,
        "sizes_px": list(matcher.sizes_px),
        "sharp_px": matcher.sharp_px,
        "alike_shares": list(matcher.alike_shares),
        "people": sorted(matcher.people),
        "about": matcher.about,
    }
    write_tensors(path, tensors, values, private=True)


def load_matcher(path: Path) -> Matcher:
    """Return the matcher of a file.

    Raises:
        WeightsError: The file is missing, or no safetensors.
        DataError: It is no matcher.
    """
    tensors, values = read_tensors(path)
    wrong = DataError(f"{path} is no matcher of 'keyhole faces fit'. Fit one, or name another file.")
    if values.get("kind") != _KIND:
        raise wrong
    try:
        maps, means, mean = (tensors[name].float().numpy() for name in ("maps", "small_means", "sharp_mean"))
        sizes = tuple(float(px) for px in values["sizes_px"])
        people = frozenset(str(person) for person in values["people"])
        shares, sharp_px = tuple(float(share) for share in values["alike_shares"]), float(values["sharp_px"])
        about = dict(values["about"])
        made = Matcher(str(values["fingerprint"]), sizes, maps, means, mean, shares, sharp_px, people, about)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise wrong from error
    width = mean.shape[-1]
    fits = maps.shape == (len(sizes), width, width) and means.shape == (len(sizes), width) and mean.ndim == 1
    finite = all(np.isfinite(x).all() for x in (maps, means, mean, np.asarray(sizes)))
    shared = len(shares) == len(sizes) and all(0 <= share <= 1 for share in shares)
    if not (fits and finite and shared and sizes and sizes[0] > 0 and list(sizes) == sorted(set(sizes))):
        raise wrong
    return made
