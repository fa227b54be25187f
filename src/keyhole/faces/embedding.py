"""From photos to embeddings: find the face, cut it out as the model wants it, degrade it, embed it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.alignment import align, crop_box, face_px_of, retemplate, similarity_transform, widen
from keyhole.faces.images.degradation import Degradation, degrade, image_seeds
from keyhole.faces.images.detection import Detector, choose
from keyhole.faces.images.photos import Photo, decode_photo
from keyhole.faces.images.threads import in_order
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.images.albums import Album
    from keyhole.faces.models.face_model import FaceModel
    from keyhole.faces.models.preparation import Preparation
    from keyhole.faces.protocols.samples import Sample

SIDE_PX = 112
FACE_PX = "face_px"  # attribute of an aligned crop: the side that it had in its photo
_CHUNK = 256  # faces embedded between two looks at the progress bar


@dataclass(frozen=True)
class Crops:
    """Faces cut out for one model, before any degradation.

    Attributes:
        pixels: One square crop a face that was found, RGB.
        extent: Side of each crop in sides of its 112-template crop.
        native_px: ``face_px`` that the photo itself has; 112 for crops that came aligned, unless it was told.
        found: Which of the samples have a face; the three above have a row for each of those, in their order.
        canonical: Whether the crops are 112-template crops, which a model's own template is cut from; else they are
            in the model's own form already.
        several: Names of photos that show several faces, the largest of which was taken.
        unreadable: Why a photo could not be read, by its name; such a sample has no face.
    """

    pixels: UInt8[Tensor, "f s s 3"]
    extent: Float[np.ndarray, " f"]
    native_px: Float[np.ndarray, " f"]
    found: Bool[np.ndarray, " n"]
    canonical: bool = True
    several: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many faces were found."""
        return len(self.pixels)

    def subset(self, rows: Sequence[int] | np.ndarray) -> Crops:
        """Return some of the faces, by row among those found, as crops of their own."""
        kept = np.asarray(rows, dtype=np.int64)
        some = self.pixels[torch.from_numpy(kept)]
        return Crops(some, self.extent[kept], self.native_px[kept], np.ones(len(kept), bool), self.canonical)


def crop_samples(
    album: Album,
    samples: Sequence[Sample],
    preparation: Preparation,
    *,
    margin: float | None = None,
    detector: Detector | None = None,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> Crops:
    """Cut the faces of samples out of their photos, as a model wants them.

    A sample that is an aligned 112 crop is taken as it is. Landmarks are used where a sample has them; else the
    detector looks for the face: the one in the sample's box, or the largest. A sample in which it finds none is a miss.
    Photos are read, searched and cut on all cores.

    Args:
        album: Where the photos lie.
        samples: What to cut out.
        preparation: What the model wants: a template, or a box with a margin.
        margin: Shown around the face beyond that, in sides of the crop, 0 to 1: the crop is then cut from the photo in
            the model's own form. None takes the 112-template crop where the model has a template.
        detector: Finds faces; needed for samples without landmarks that are no aligned crops.
        skip_unreadable: Leave out photos that cannot be read, and say so in the crops.
        progress: Wraps the loop.

    Raises:
        DataError: A photo cannot be read, or a sample needs a detector and there is none.
        SettingError: The margin is outside its range, or wants what lies outside of an aligned crop.
    """
    if margin is not None and not 0 <= margin <= 1:
        raise SettingError(f"margin is {margin}; expected 0 to 1, in sides of the crop.")
    beyond = (preparation.margin or 0.0) + (margin or 0.0)
    if not (-0.5 if preparation.template is not None else 0) <= beyond <= 1:
        raise SettingError(
            f"The model takes a margin of {preparation.margin or 0:g}, and {margin or 0:g} more make {beyond:g}; crops "
            "show up to 1 beyond the face. Lower --margin."
        )

    def cut(sample: Sample) -> _Cut | DataError | None:
        try:
            photo = decode_photo(album.read(sample.path), name=sample.path)
        except DataError as error:
            return error
        return _cut(photo, sample, preparation, margin, detector)

    cuts = list(progress(in_order(cut, samples), label="cropping", total=len(samples)))
    unreadable = {s.path: str(each) for s, each in zip(samples, cuts, strict=True) if isinstance(each, DataError)}
    if unreadable and not skip_unreadable:
        first = next(iter(unreadable.values()))
        more = f" So it is with {len(unreadable)} of {len(samples)} pictures." if len(unreadable) > 1 else ""
        raise DataError(first + more)
    there = [each for each in cuts if isinstance(each, _Cut)]
    canonical = preparation.template is not None and margin is None
    side = SIDE_PX if canonical else preparation.size_px
    pixels = np.stack([each.pixels for each in there]) if there else np.zeros((0, side, side, 3), np.uint8)
    return Crops(
        torch.from_numpy(pixels),
        np.array([each.extent for each in there], float),
        np.array([each.native_px for each in there], float),
        np.array([isinstance(each, _Cut) for each in cuts], bool),
        canonical,
        tuple(s.path for s, each in zip(samples, cuts, strict=True) if isinstance(each, _Cut) and each.faces > 1),
        unreadable,
    )


class _Cut(NamedTuple):
    pixels: np.ndarray
    extent: float
    native_px: float
    faces: int = 1  # among which it was chosen by its size alone


def _cut(
    photo: Photo, sample: Sample, preparation: Preparation, margin: float | None, detector: Detector | None
) -> _Cut | None:
    if sample.aligned:
        _check_aligned(photo, sample, preparation, margin)
        return _Cut(photo, 1.0, _known_px(sample))
    landmarks, box, seen = sample.landmarks, sample.box, 1
    if landmarks is None or (preparation.template is None and box is None):
        if detector is None:
            raise DataError(
                f"{sample.path} is a photo without landmarks, and there is no detector to find the face. "
                "Name one by --detector FILE, or give aligned 112 x 112 crops."
            )
        wanted = box if box is not None or landmarks is None else _around(landmarks)
        faces = detector.detect(photo)
        face = choose(faces, rule="largest" if wanted is None else "box", box=wanted)
        if face is None:
            return None
        seen = len(faces) if wanted is None else 1
        points, box = face.landmarks, face.box
    else:
        points = np.asarray(landmarks, float)
    native_px = face_px_of(points)
    if preparation.template is None:
        assert box is not None
        beyond = (preparation.margin or 0.0) + (margin or 0.0)
        crop = crop_box(photo, box, margin=beyond, size_px=preparation.size_px)
        return _Cut(crop, max(box[2], box[3]) * (1 + beyond) / native_px, native_px, seen)
    if margin is None:
        return _Cut(align(photo, points), 1.0, native_px, seen)
    template, size_px = np.asarray(preparation.template, float), preparation.size_px
    beyond = (preparation.margin or 0.0) + margin
    crop = align(photo, points, template=template, size_px=size_px, margin=beyond)
    matrix = similarity_transform(points, widen(template, size_px, beyond))
    return _Cut(crop, size_px / math.hypot(matrix[0, 0], matrix[1, 0]) / native_px, native_px, seen)


def _known_px(sample: Sample) -> float:
    """Return how many pixels an aligned crop had in its photo, where that was told with it; 112 else."""
    text = sample.attributes.get(FACE_PX)
    try:
        known = float(SIDE_PX) if text is None else float(text)
    except ValueError:
        known = math.nan
    if not 0 < known < math.inf:
        raise DataError(f"{sample.path} has {FACE_PX} {text!r}; expected its side in pixels of its photo, above 0.")
    return known


def _around(landmarks: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the box of some landmarks: the face that has them is meant, not the largest one."""
    points = np.asarray(landmarks, float)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


def _check_aligned(photo: np.ndarray, sample: Sample, preparation: Preparation, margin: float | None) -> None:
    height, width = photo.shape[:2]
    if (height, width) != (SIDE_PX, SIDE_PX):
        raise DataError(f"{sample.path} is {width} x {height}; an aligned crop is 112 x 112.")
    if preparation.template is None or margin is not None:
        wants = f"a margin of {margin:g}" if margin is not None else "the whole box, without alignment"
        raise SettingError(
            f"{sample.path} is an aligned crop that ends at the face, and {wants} was asked for. Give the photos "
            "themselves, or a model and setting for aligned crops."
        )


def shown_px(crops: Crops, face_px: float | None) -> Float[np.ndarray, " f"]:
    """Return the ``face_px`` of each face after a degradation to ``face_px``: never more than the photo has.

    Args:
        crops: The faces.
        face_px: What was asked for; None leaves them as they are.
    """
    return np.asarray(np.minimum(crops.native_px, np.inf if face_px is None else face_px))


def embed_crops(
    model: FaceModel,
    crops: Crops,
    *,
    how: Degradation | Sequence[Degradation] | None = None,
    seed: int = 0,
    progress: Progress = silent,
    label: str = "embedding",
) -> Float[np.ndarray, "f d"]:
    """Return the unit embeddings of faces, degraded first.

    Args:
        model: The model.
        crops: Faces cut out for it.
        how: The degradation of all, or of each; a face with fewer pixels than it asks for is left as it is.
        seed: Of sensor noise.
        progress: Wraps the loop.
        label: What the loop is called.

    Raises:
        DivergenceError: The model returns NaN or zeros.
    """
    parts = [
        model.embed(in_form(model, seen, canonical=crops.canonical)).numpy()
        for seen in progress(
            degraded(crops, how=how, seed=seed), label=label, total=-(-len(crops) // _CHUNK) if len(crops) else 0
        )
    ]
    return np.concatenate(parts) if parts else np.zeros((0, model.embedding_size), np.float32)


def degraded(
    crops: Crops, *, how: Degradation | Sequence[Degradation] | None, seed: int = 0
) -> Iterator[UInt8[Tensor, "b s s 3"]]:
    """Yield the crops in batches as a camera with a degradation would show them.

    ``face_px`` of a degradation is that of the 112-template crop, however much a crop shows around it. A photo that has
    no more pixels than that is left as it is.
    """
    seeds = image_seeds(seed, len(crops)) if how is not None else []
    for start in range(0, len(crops), _CHUNK):
        pixels = crops.pixels[start : start + _CHUNK]
        if how is not None:
            rows = range(start, start + len(pixels))
            each = [_of_crop(how if isinstance(how, Degradation) else how[row], crops, row) for row in rows]
            changed = [i for i, one in enumerate(each) if one is not None]
            if changed:
                pixels = pixels.clone()
                given = [one for one in each if one is not None]
                pixels[changed] = degrade(pixels[changed], given, seed=[seeds[rows[i]] for i in changed])
        yield pixels


def _of_crop(how: Degradation, crops: Crops, row: int) -> Degradation | None:
    """Return a degradation in pixels of the whole crop; None where the photo has no more pixels than it asks for."""
    if crops.native_px[row] <= how.face_px:
        return None
    return replace(how, face_px=max(1, round(how.face_px * float(crops.extent[row]))))


def in_form(model: FaceModel, pixels: UInt8[Tensor, "n s s 3"], *, canonical: bool) -> UInt8[Tensor, "n t t 3"]:
    """Return crops in the model's own template and size."""
    preparation = model.preparation
    if not canonical or preparation.template is None:
        return pixels
    template = np.asarray(preparation.template, float)
    return retemplate(pixels, template, preparation.size_px, margin=preparation.margin or 0.0)
