"""Several frames of one person as one search.

A camera shows a person many times, from few pixels to more. The frames of one such track are compared with the gallery
each in its own way, and their scores become one: that of the best frame alone (``best``), their plain mean (``equal``),
or a mean in which a frame counts for what can be restored of it (``quality``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from keyhole.errors import SettingError, ShapeError, unknown_name
from keyhole.faces.matching import SHARP_PX, Matcher
from keyhole.faces.protocols.samples import Sample

POOLINGS = ("best", "equal", "quality")


@dataclass(frozen=True)
class Tracks:
    """Which frames belong together.

    Attributes:
        first: Position of the first frame of each track, rising.
        of: Which track each frame belongs to.
    """

    first: Int[np.ndarray, " t"]
    of: Int[np.ndarray, " p"]

    def __len__(self) -> int:
        """Return how many tracks there are."""
        return len(self.first)

    def largest(self, values: Float[np.ndarray, " p"]) -> Float[np.ndarray, " t"]:
        """Return the largest value among the frames of each track."""
        found = np.full(len(self), -np.inf)
        np.maximum.at(found, self.of, values)
        return found


@dataclass(frozen=True)
class Pooled:
    """How frames become searches.

    Attributes:
        tracks: Which frames belong together.
        weights: How much each counts, of :func:`frame_weights`.
    """

    tracks: Tracks
    weights: Float[np.ndarray, " p"]


def check_poolings(names: Sequence[str]) -> None:
    """Check the names of ways of pooling.

    Raises:
        UnknownNameError: One does not exist.
        SettingError: One is there twice.
    """
    for name in names:
        if name not in POOLINGS:
            raise unknown_name("way of pooling", name, POOLINGS)
    if len(set(names)) < len(names):
        raise SettingError(f"Ways of pooling are {','.join(names)!r}; expected each once, of {', '.join(POOLINGS)}.")


def tracks_of(samples: Sequence[Sample], attribute: str) -> Tracks:
    """Return which samples are frames of one track: those of one person with one value of an attribute.

    A sample without it is a track of its own.

    Args:
        samples: The frames.
        attribute: Name of an attribute, or ``camera``.

    Raises:
        SettingError: No sample has the attribute.

    Example:
        >>> frames = [Sample(f"{k}.jpg", "ann", attributes={"track": name}) for k, name in enumerate("aab")]
        >>> tracks_of(frames, "track").of.tolist()
        [0, 0, 1]
    """
    values = [sample.camera if attribute == "camera" else sample.attributes.get(attribute, "") for sample in samples]
    if not any(values):
        known = {key for sample in samples for key in sample.attributes}
        known |= {"camera"} if any(sample.camera for sample in samples) else set()
        raise SettingError(
            f"No probe has {attribute!r}, which tells what frames belong together; there is "
            f"{', '.join(sorted(known)) or 'nothing'} else. Add that column to the manifest, or name one by --track."
        )
    return grouped([(s.identity, value) if value else (s.path, None) for s, value in zip(samples, values, strict=True)])


def grouped(keys: Sequence[object]) -> Tracks:
    """Return tracks of frames that have one key, in the order of their first frames."""
    number: dict[object, int] = {}
    first: list[int] = []
    of = np.empty(len(keys), np.int64)
    for position, key in enumerate(keys):
        if key not in number:
            number[key] = len(first)
            first.append(position)
        of[position] = number[key]
    return Tracks(np.array(first, np.int64), of)


def frame_quality(shown_px: Float[np.ndarray, " p"], matcher: Matcher | None = None) -> Float[np.ndarray, " p"]:
    """Return how much a frame of each size counts, 0 to 1.

    With a matcher it is what the matcher can restore: the mean cosine between restored and sharp embeddings, measured
    on unlabeled faces of the nearest size; 1 where nothing needs to be restored. Without one it is the size in pixels,
    up to where a model loses nothing.

    Args:
        shown_px: ``face_px`` of each frame, true or estimated.
        matcher: Fitted for the model.
    """
    shown = np.asarray(shown_px, float)
    if matcher is None:
        return np.asarray(np.clip(shown / SHARP_PX, 0, 1))
    restored = 1 - np.asarray(matcher.alike_shares)
    return np.asarray(np.where(shown < matcher.sharp_px, restored[matcher.nearest(shown)], 1.0))


def frame_weights(pooling: str, quality: Float[np.ndarray, " p"], tracks: Tracks) -> Float[np.ndarray, " p"]:
    """Return the share of each frame in its track; the shares of a track sum to 1.

    Args:
        pooling: ``best``, ``equal`` or ``quality``; of equally good frames the first is the best, and where all of a
            track show nothing, they count alike.
        quality: Of each frame, from 0.
        tracks: Which frames belong together.

    Raises:
        UnknownNameError: There is no such way.
        ShapeError: There is not one quality a frame.

    Example:
        >>> frame_weights("quality", np.array([0.25, 0.75, 0.5]), grouped(["a", "a", "b"])).tolist()
        [0.25, 0.75, 1.0]
    """
    check_poolings((pooling,))
    if quality.shape != tracks.of.shape:
        raise ShapeError(f"There are {quality.size} qualities for {tracks.of.size} frames; expected one for each.")
    if pooling == "best":
        # by track, then by falling quality; sorting is stable, so that of equals the first comes first
        order = np.lexsort((-quality, tracks.of))
        leads = order[np.unique(tracks.of[order], return_index=True)[1]]
        weights = np.zeros(len(quality))
        weights[leads] = 1.0
        return weights
    raw = np.ones(len(quality)) if pooling == "equal" else np.asarray(quality, float)
    sums = np.bincount(tracks.of, raw, minlength=len(tracks))[tracks.of]
    counts = np.bincount(tracks.of, minlength=len(tracks))[tracks.of]
    return np.asarray(np.where(sums > 0, raw / np.where(sums > 0, sums, 1), 1 / counts))


def pool(
    values: Float[np.ndarray, "p n"], weights: Float[np.ndarray, " p"], tracks: Tracks
) -> Float[np.ndarray, "t n"]:
    """Return the weighted sum of the rows of each track, such as the scores of its frames.

    Args:
        values: One row a frame.
        weights: Of :func:`frame_weights`.
        tracks: Which frames belong together.
    """
    found = np.zeros((len(tracks), values.shape[1]), np.result_type(values, np.float32))
    np.add.at(found, tracks.of, values * weights[:, None].astype(values.dtype))
    return found
