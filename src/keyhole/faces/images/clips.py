"""The faces of a clip, frame by frame: where they are, which belong to one person, and how many pixels each shows."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from keyhole.errors import DataError, RunError
from keyhole.faces.images.albums import open_album
from keyhole.faces.images.alignment import align, face_px_of
from keyhole.faces.images.detection import Detector, Face, overlap
from keyhole.faces.images.photos import Photo, decode_photo, frame_count, png_with_face_px, read_frames
from keyhole.faces.images.resolution import effective_face_px
from keyhole.faces.images.threads import in_order
from keyhole.files import sha256, write_bytes

LEAST_OVERLAP = 0.3  # of the union, from one frame to the next
MOST_GAP = 3  # a face that was last seen so many frames ago goes on; it may be missing in the two between


@dataclass(frozen=True)
class Seen:
    """A face in a frame.

    Attributes:
        frame: Number of the frame, from 0.
        face: Where it is.
        eyes_px: ``face_px`` as its landmarks say.
        shown_px: ``face_px`` that it really shows: at most ``eyes_px``, less where its spectrum says so.
        crop: Aligned to the 112 template; None where it was not kept.
    """

    frame: int
    face: Face
    eyes_px: float
    shown_px: float
    crop: UInt8[np.ndarray, "112 112 3"] | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, without the picture."""
        return {
            "frame": self.frame,
            "box": [round(side, 1) for side in self.face.box],
            "score": round(self.face.score, 3),
            "eyes_px": round(self.eyes_px, 1),
            "shown_px": round(self.shown_px, 1),
        }


@dataclass(frozen=True)
class Clip:
    """The faces of a clip.

    Attributes:
        frames: How many frames there are.
        tracks: The faces that belong together, by their first frame; each by rising frame.
    """

    frames: int
    tracks: tuple[tuple[Seen, ...], ...]

    def best(self, track: int) -> Seen:
        """Return the face of a track that shows most."""
        return max(self.tracks[track], key=lambda seen: seen.shown_px)

    def text(self) -> str:
        """Return in a few lines who is seen in how many frames, from how many to how many pixels."""
        lines = [f"{self.frames} frames, {len({seen.frame for t in self.tracks for seen in t})} of them with a face"]
        for number, track in enumerate(self.tracks, 1):
            shown = [seen.shown_px for seen in track]
            lines.append(
                f"face {number}: frames {track[0].frame} to {track[-1].frame}, found in {len(track)}, "
                f"{min(shown):.0f} to {max(shown):.0f} px"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "frames": self.frames,
            "with_a_face": len({seen.frame for track in self.tracks for seen in track}),
            "tracks": [[seen.to_json() for seen in track] for track in self.tracks],
        }


def read_clip(path: Path) -> Iterator[Photo]:
    """Yield the frames of an animated file (GIF, WebP, TIFF), or of a folder or zip archive in the order of names.

    Numbers in names count as numbers: ``frame_9.png`` comes before ``frame_10.png``.

    Raises:
        DataError: There is none, or one cannot be read.
    """
    if path.is_file() and path.suffix.lower() != ".zip":
        yield from read_frames(path)
        return
    with open_album(path) as album:
        names = sorted(album.pictures(), key=_by_number)
        if not names:
            raise DataError(f"{path} holds no picture; expected the frames of a clip. Name its folder, or a GIF.")
        for name in names:
            yield decode_photo(album.read(name), name=name)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return what to sort a name by: its digits as numbers, the rest as text."""
    parts = re.split(r"(\d+)", name)
    return [(int(part[:4000]), "") if part.isdecimal() else (-1, part) for part in parts if part]


def clip_digest(path: Path) -> str:
    """Return the SHA-256 of a clip: of its file, or of the names and contents of its pictures."""
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    with open_album(path) as album:
        for name in album.pictures():
            digest.update(hashlib.sha256(f"{name}\n".encode() + album.read(name)).digest())
    return digest.hexdigest()


def clip_length(path: Path) -> int:
    """Return how many frames a clip has; raises like :func:`read_clip`."""
    if path.is_file() and path.suffix.lower() != ".zip":
        return frame_count(path)
    with open_album(path) as album:
        return len(album.pictures())


def follow(
    frames: Iterable[Photo],
    detector: Detector,
    *,
    keep_crops: bool = True,
    sink: Callable[[int, Seen], None] = lambda _track, _seen: None,
) -> Clip:
    """Return the faces of a clip, those of one person linked from frame to frame.

    A face continues the track whose last box it overlaps most, by at least 0.3 of their union, if that was seen within
    the last 3 frames; surer faces choose first. Nobody is recognized: whoever leaves and returns is a track of its own.

    Args:
        frames: The frames, in their order.
        detector: Finds the faces; frames are searched on all cores.
        keep_crops: Keep every face's picture; a long clip has many.
        sink: Is given each face with its picture, and the number of its track, from 1, as it is found.

    Raises:
        DataError: There is no frame.
    """
    tracks: list[list[Seen]] = []
    count = 0
    searched = in_order(lambda frame: (frame, detector.detect(frame)), frames)
    for number, (frame, faces) in enumerate(searched):
        count += 1
        taken: set[int] = set()
        for seen in _look(number, frame, faces):
            track = _continued(tracks, seen, taken)
            if track is None:
                track = len(tracks)
                tracks.append([])
            taken.add(track)
            sink(track + 1, seen)
            tracks[track].append(seen if keep_crops else replace(seen, crop=None))
    if not count:
        raise DataError("The clip has no frame. Name another file or folder.")
    return Clip(count, tuple(map(tuple, tracks)))


def _look(number: int, frame: Photo, faces: Iterable[Face]) -> list[Seen]:
    ordered = sorted(faces, key=lambda face: -face.score)
    if not ordered:
        return []
    crops = np.stack([align(frame, face.landmarks) for face in ordered])
    eyes = [face_px_of(face.landmarks) for face in ordered]
    shown = effective_face_px(torch.from_numpy(crops), observed_px=eyes).tolist()
    return [Seen(number, *each) for each in zip(ordered, eyes, shown, crops, strict=True)]


def _continued(tracks: list[list[Seen]], seen: Seen, taken: set[int]) -> int | None:
    shares = {
        k: overlap(seen.face.box, track[-1].face.box)
        for k, track in enumerate(tracks)
        if k not in taken and seen.frame - track[-1].frame <= MOST_GAP
    }
    best = max(shares, key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] >= LEAST_OVERLAP else None


def crop_writer(folder: Path) -> Callable[[int, Seen], None]:
    """Return a sink that writes aligned faces as ``face-01/00012.png``, readable by their owner only.

    What the folder held before is removed first, so that faces of two clips never mix. Each file tells how many pixels
    the face had, so that ``keyhole faces identify`` goes by the same size.

    Raises:
        RunError: A file cannot be written or removed.
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise RunError(f"Cannot remove {folder}: {error.strerror}. Choose another --out.") from error

    def write(track: int, seen: Seen) -> None:
        assert seen.crop is not None, "follow gives it"
        file = io.BytesIO()
        png_with_face_px(seen.crop, seen.eyes_px, file)
        write_bytes(folder / f"face-{track:02}" / f"{seen.frame:05}.png", file.getvalue(), private=True)

    return write
