"""Faces in photos: YuNet in ONNX Runtime with its own decoding, and the choice of one face among several."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch.nn import functional

from keyhole.errors import SettingError, WeightsError
from keyhole.faces.images.dimensions import free_dimensions
from keyhole.faces.images.photos import Photo, check_photo
from keyhole.faces.images.threads import in_order
from keyhole.libraries import optional

Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height

_STRIDES = (8, 16, 32)
_OUTPUTS = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in _STRIDES)
_MOST_CANDIDATES = 5000  # as OpenCV's top_k
_MOST_SIDE_PX = 8192


@dataclass(frozen=True)
class Face:
    """A face found in a photo, in the photo's own pixels; it may reach beyond the border.

    Attributes:
        box: x, y of the top left corner, width, height.
        landmarks: Left eye in the image, right eye, nose, left and right mouth corner: x, y each.
        score: How sure the detector is, 0 to 1.
    """

    box: Box
    landmarks: Float[np.ndarray, "5 2"]
    score: float

    def __eq__(self, other: object) -> bool:
        """Return whether the other is the same face, to the last bit."""
        if not isinstance(other, Face):
            return NotImplemented
        same = self.box == other.box and self.score == other.score
        return same and np.array_equal(self.landmarks, other.landmarks)

    def __hash__(self) -> int:
        """Return a number that is the same for equal faces."""
        return hash((self.box, self.score))


class Detector:
    """YuNet, a small face detector: boxes, five landmarks and scores, those of OpenCV's ``FaceDetectorYN``.

    The network is told the size of each photo, so that a photo is neither stretched nor padded to a square: it is
    scaled by ``enlarge`` and, where it is larger than ``side_px``, down to that, and filled with black to a multiple of
    32 pixels. One detector may be used from several threads.

    Args:
        path: YuNet's ONNX file, with outputs ``cls_8`` to ``kps_32``.
        score: The least score of a face, 0 to 1.
        overlap: Of two faces whose boxes overlap by more than this share of their union, the surer one stays.
        side_px: The long side at which a photo is looked at; a smaller photo keeps its size. Faces below about
            10 pixels at that scale are not found.
        enlarge: How many times larger than that the network sees it; 2 finds faces half as large, in four times
            the time.

    Attributes:
        sha256: The checksum of the file.

    Raises:
        WeightsError: The file cannot be read, or is no YuNet.
        SettingError: A setting is out of range, or ONNX Runtime is not installed.

    Reference:
        Wu, Peng and Yu (2023), "YuNet: A tiny millisecond-level face detector", Machine Intelligence Research 20.
    """

    def __init__(
        self, path: Path, *, score: float = 0.6, overlap: float = 0.3, side_px: int = 640, enlarge: float = 1.0
    ) -> None:
        for name, value in (("score", score), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise SettingError(f"{name} is {value}, expected 0 to 1.")
        if not 32 <= side_px <= _MOST_SIDE_PX or not 1 <= enlarge <= 8:
            raise SettingError(
                f"side_px is {side_px} and enlarge {enlarge}, expected 32 to {_MOST_SIDE_PX} and 1 to 8."
            )
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"Cannot read {path}: {error.strerror}. Expected the ONNX file of YuNet.") from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.score, self.overlap, self.side_px, self.enlarge = score, overlap, side_px, enlarge
        self._session = _load(data, path)

    def detect(self, photo: Photo) -> tuple[Face, ...]:
        """Return the faces of a photo, the surest first; none where there is none.

        Raises:
            ShapeError: The photo is not h x w x 3 of bytes.
        """
        check_photo(photo)
        height, width = photo.shape[:2]
        share = self.enlarge * min(1.0, self.side_px / max(width, height))
        sides = max(1, round(width * share)), max(1, round(height * share))
        blob = _blob(_scaled(photo, sides))
        outputs = dict(zip(_OUTPUTS, self._session.run(_OUTPUTS, {"input": blob}), strict=True))
        rows = _suppressed(_decoded(outputs, blob.shape[3], self.score), self.overlap)
        rows[:, 0:14:2] *= width / sides[0]
        rows[:, 1:14:2] *= height / sides[1]
        return tuple(
            Face((float(row[0]), float(row[1]), float(row[2]), float(row[3])), row[4:14].reshape(5, 2), float(row[14]))
            for row in rows.astype(np.float64)
        )

    def detect_all(self, photos: Iterable[Photo], *, threads: int | None = None) -> Iterator[tuple[Face, ...]]:
        """Yield the faces of each photo, exactly those of :meth:`detect`, on several threads.

        Args:
            photos: Taken as they are needed, a few ahead.
            threads: How many photos at once; all cores when missing.

        Raises:
            ShapeError: A photo is not h x w x 3 of bytes; faces of those before it were yielded.
        """
        return in_order(self.detect, photos, threads=threads)


def choose(
    faces: Sequence[Face],
    *,
    rule: Literal["largest", "center", "box"] = "largest",
    box: Box | None = None,
    size_px: tuple[int, int] | None = None,
) -> Face | None:
    """Return one of the faces of a photo, or nothing when no face fits: then the photo is a miss.

    Args:
        faces: As :meth:`Detector.detect` gives them; of equals the first, the surest, is taken.
        rule: ``largest`` by area of the box; ``center`` closest to the middle of the photo; ``box`` overlapping the
            annotated box most, and not at all is no face.
        box: The annotated box, for ``box``: x, y, width, height.
        size_px: Width and height of the photo, for ``center``.

    Raises:
        SettingError: The rule is unknown, or what it needs is missing.

    Example:
        >>> points = np.zeros((5, 2))
        >>> near, far = Face((0, 0, 9, 9), points, 0.9), Face((20, 0, 4, 4), points, 0.95)
        >>> choose([far, near], rule="largest") is near
        True
    """
    if rule == "largest":
        return max(faces, key=lambda face: face.box[2] * face.box[3], default=None)
    if rule == "center" and size_px is not None:
        middle = size_px[0] / 2, size_px[1] / 2
        return min(faces, key=lambda face: math.dist(_center(face.box), middle), default=None)
    if rule == "box" and box is not None:
        shares = [overlap(box, face.box) for face in faces]
        best = max(range(len(faces)), key=shares.__getitem__, default=None)
        return faces[best] if best is not None and shares[best] > 0 else None
    needs = {"center": "size_px", "box": "box"}
    if rule in needs:
        raise SettingError(f"The rule {rule!r} needs {needs[rule]}; give it, or choose the largest face.")
    raise SettingError(f"The rule for choosing a face is {rule!r}, expected largest, center or box.")


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over the union of two boxes (left, top, width, height), 0 to 1.

    Example:
        >>> overlap((0, 0, 2, 2), (1, 0, 2, 2))
        0.3333333333333333
    """
    return float(_shares(np.array(first, np.float64), np.array([second], np.float64))[0])


def _center(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _scaled(photo: Photo, sides: tuple[int, int]) -> UInt8[np.ndarray, "y x 3"]:
    if photo.shape[:2] == sides[::-1]:
        return photo
    pixels = torch.from_numpy(photo if photo.flags.writeable else photo.copy()).permute(2, 0, 1)[None]
    resized = functional.interpolate(pixels, size=sides[::-1], mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _blob(photo: Photo) -> Float32[np.ndarray, "1 3 y x"]:
    """Return a photo as YuNet takes it: BGR, 0 to 255, black to the right and below up to a multiple of 32."""
    height, width = photo.shape[:2]
    blob = np.zeros((1, 3, -height % 32 + height, -width % 32 + width), np.float32)
    blob[0, :, :height, :width] = photo[:, :, ::-1].transpose(2, 0, 1)
    return blob


def _decoded(outputs: dict[str, np.ndarray], width: int, least: float) -> Float32[np.ndarray, "k 15"]:
    """Return x, y, w, h, ten landmark coordinates and score of every cell that is sure enough, surest first.

    A cell (column, row) of a stride speaks of a face with center (column + b0, row + b1) and size exp(b2), exp(b3),
    in strides; the score is the geometric mean of face and object (Wu et al., 2023, and OpenCV's face_detect.cpp).
    """
    found = []
    for stride in _STRIDES:
        sure, there = (outputs[f"{kind}_{stride}"].reshape(-1).clip(0, 1) for kind in ("cls", "obj"))
        scores = np.sqrt(sure * there)
        cells = np.flatnonzero(scores >= least)
        places = np.stack([cells % (width // stride), cells // (width // stride)], axis=1).astype(np.float32)
        box = outputs[f"bbox_{stride}"].reshape(-1, 4)[cells]
        points = outputs[f"kps_{stride}"].reshape(-1, 5, 2)[cells]
        with np.errstate(over="ignore"):
            sizes = np.exp(box[:, 2:])
        corners = places + box[:, :2] - sizes / 2
        landmarks = (points + places[:, None]).reshape(-1, 10)
        rows = np.concatenate([corners, sizes, landmarks], axis=1) * stride
        found.append(np.concatenate([rows, scores[cells, None]], axis=1))
    every = np.concatenate(found)
    every = every[np.isfinite(every).all(1)]
    return np.asarray(every[np.argsort(-every[:, 14], kind="stable")[:_MOST_CANDIDATES]])


def _suppressed(rows: Float32[np.ndarray, "k 15"], overlap: float) -> Float32[np.ndarray, "m 15"]:
    """Return the rows that no surer row overlaps by more than a share of the union."""
    boxes = rows[:, :4].clip(-1e9, 1e9).astype(np.int64)  # whole pixels as in OpenCV, so that the same faces stay
    kept: list[int] = []
    left = np.arange(len(rows))
    while len(left):
        first, left = left[0], left[1:]
        kept.append(int(first))
        left = left[_shares(boxes[first], boxes[left]) <= overlap]
    return rows[kept]


def _shares(
    box: Float[np.ndarray, " 4"] | Int[np.ndarray, " 4"], boxes: Float[np.ndarray, "k 4"] | Int[np.ndarray, "k 4"]
) -> Float[np.ndarray, " k"]:
    """Return the intersection over union of a box with others; two boxes without area are the same box."""
    ends = np.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:])
    shared = np.clip(ends - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(1)
    union = box[2:].prod() + boxes[:, 2:].prod(1) - shared
    return np.asarray(np.where(union > 0, shared / np.maximum(union, 1e-12), 1.0))


def _load(data: bytes, path: Path) -> Any:
    runtime = optional("onnxruntime", user="Detecting faces")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # photos are spread over threads, not layers
    options.log_severity_level = 4
    try:
        sized = free_dimensions(data, {"input": (2, 3)} | dict.fromkeys(_OUTPUTS, (1,)))
        session = runtime.InferenceSession(sized, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has types of its own
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} is no ONNX network that loads ({reason}). Download YuNet's file again.") from error
    _check_session(session, path)
    return session


def _check_session(session: Any, path: Path) -> None:
    names = [output.name for output in session.get_outputs()]
    seen = f"outputs {', '.join(names[:4])}"
    if set(names) >= set(_OUTPUTS):
        try:
            outputs = session.run(_OUTPUTS, {"input": np.zeros((1, 3, 64, 32), np.float32)})
        except Exception as error:  # the runtime has types of its own
            seen = " ".join(str(error).split())
        else:
            shapes = [output.shape for output in outputs]
            if shapes == [(1, 2048 // stride**2, size) for size in (1, 1, 4, 10) for stride in _STRIDES]:
                return
            seen = f"outputs of shapes {shapes[:4]} for a photo of 32 x 64 pixels"
    raise WeightsError(
        f"{path} is no YuNet: it has {seen}; expected {_OUTPUTS[0]} to {_OUTPUTS[-1]}, one row a cell. "
        "Name YuNet's ONNX file of 2023 or later."
    )
