"""Crops of faces: five-point alignment, boxes with a margin, and the one unit of face size.

Coordinates are those of OpenCV: the center of the top left pixel is (0, 0). Points are in the order left eye in the
image, right eye, nose, left mouth corner, right mouth corner.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional

from keyhole.errors import DataError, SettingError, ShapeError
from keyhole.faces.images.photos import Photo, check_photo

Points: TypeAlias = Float[np.ndarray, "k 2"]
Affine: TypeAlias = Float[np.ndarray, "2 3"]
Crop: TypeAlias = UInt8[np.ndarray, "s s 3"]
Border: TypeAlias = Literal["black", "replicate"]

#: Where ArcFace and its followers put the five points in a crop of 112 x 112 pixels.
TEMPLATE_112: Points = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)

_LEAST_SPREAD_PX = 1e-3
_LEAST_LIKENESS = 1e-3
_CHUNK = 8  # crops warped at once; more leave the processor's cache


def similarity_transform(points: Points, template: Points) -> Affine:
    """Return the similarity (turn, scale, shift) that brings points closest to a template, as a 2 x 3 matrix.

    Closest in the sum of squares over the template's pixels. It never mirrors: in the plane the best similarity
    without a reflection is one complex number, the ratio of the centered points read as complex numbers.

    Args:
        points: Where the points are, such as landmarks in a photo; two or more.
        template: Where each of them should go.

    Raises:
        ShapeError: The two do not have the same number of points, at least two.
        DataError: Points are not finite, coincide, or are so unlike the template that no direction is best.

    Reference:
        Umeyama (1991), "Least-squares estimation of transformation parameters between two point patterns".

    Example:
        >>> abs(similarity_transform(2 * TEMPLATE_112 + 5, TEMPLATE_112)).round(3).tolist()
        [[0.5, 0.0, 2.5], [0.0, 0.5, 2.5]]
    """
    if points.ndim != 2 or points.shape != template.shape or points.shape[0] < 2 or points.shape[1] != 2:
        raise ShapeError(
            f"Cannot align: landmarks are {points.shape} and the template is {template.shape}, "
            "expected the same number of x, y pairs, at least 2. Give landmarks in the template's order."
        )
    if not (np.isfinite(points).all() and np.isfinite(template).all()):
        raise DataError("Landmarks are not finite numbers, expected x, y in pixels. Leave this face out.")
    source, target = (each.astype(np.float64) @ [1, 1j] for each in (points, template))
    source_center, target_center = source.mean(), target.mean()
    source, target = source - source_center, target - target_center
    spread, wanted = np.vdot(source, source).real, np.vdot(target, target).real
    if min(spread, wanted) < len(points) * _LEAST_SPREAD_PX**2:
        raise DataError("Landmarks coincide, expected points that lie apart. Leave this face out.")
    together = np.vdot(source, target)
    if abs(together) < _LEAST_LIKENESS * math.sqrt(spread * wanted):
        raise DataError("Landmarks do not resemble a face in any direction; check their order, or leave it out.")
    turn = together / spread
    shift = target_center - turn * source_center
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def face_px_of(landmarks: Points) -> float:
    """Return the size of a face, above 0: the side of its aligned 112 crop, counted in pixels of its photo.

    This is 112 divided by the scale of the alignment. For a face seen from the front it is 3.18 times the distance
    of the eyes (112 over the 35.24 pixels between the template's eyes). The alignment's scale is used, and not
    the eyes alone, because it is exactly what the crop shows, and because the eyes of a turned head come closer
    together while the face does not become smaller.

    Args:
        landmarks: Five points in the photo's pixels.

    Raises:
        ShapeError: There are not five.
        DataError: They are not finite, or coincide.

    Example:
        >>> round(face_px_of(TEMPLATE_112 / 4), 6)
        28.0
    """
    matrix = similarity_transform(landmarks, TEMPLATE_112)
    return 112 / math.hypot(matrix[0, 0], matrix[1, 0])


def widen(template: Points, size_px: int, margin: float) -> Points:
    """Return the template of a crop that shows ``1 + margin`` times as much to each side of its center.

    Args:
        template: Five points in a crop.
        size_px: Side of that crop; it stays.
        margin: 0 leaves the template as it is; 1 shows twice as much; below 0 shows less, down to -0.5.

    Raises:
        SettingError: ``margin`` is outside -0.5 to 1.

    Example:
        >>> widen(np.array([[0.5, 0.5], [2.5, 0.5]]), 4, 1.0).tolist()
        [[1.0, 1.0], [2.0, 1.0]]
    """
    _check_margin(margin, least=-0.5)
    center = (size_px - 1) / 2
    return center + (template - center) / (1 + margin)


def align(
    photo: Photo,
    landmarks: Points,
    *,
    template: Points = TEMPLATE_112,
    size_px: int = 112,
    margin: float = 0.0,
    antialias: bool = True,
    border: Border = "black",
) -> Crop:
    """Return the crop in which the landmarks lie on a template, 0 to 255.

    Args:
        photo: Upright RGB.
        landmarks: The points of the face in the photo.
        template: Where they go, in pixels of the crop.
        size_px: Side of the crop.
        margin: How much more the crop shows around the face; see :func:`widen`.
        antialias: See :func:`warp`.
        border: See :func:`warp`.

    Raises:
        ShapeError: Landmarks and template differ in number.
        DataError: The landmarks are not finite, or coincide.
        SettingError: A size or margin is out of range.

    Example:
        >>> photo = np.full((200, 200, 3), 90, np.uint8)
        >>> align(photo, TEMPLATE_112 + 30).shape
        (112, 112, 3)
    """
    matrix = similarity_transform(landmarks, widen(template, size_px, margin))
    return warp(photo, matrix, size_px, antialias=antialias, border=border)


def crop_box(
    photo: Photo,
    box: tuple[float, float, float, float],
    *,
    margin: float = 0.0,
    size_px: int = 112,
    square: bool = True,
    antialias: bool = True,
    border: Border = "black",
) -> Crop:
    """Return a face without alignment: its box, extended and resized, 0 to 255.

    Args:
        photo: Upright RGB.
        box: x, y of the top left corner, width, height; a box of integers covers what slicing would give.
        margin: Share by which the box is extended, half of it to each side: 0.3 is the crop of VGGFace2. 0 to 1.
        size_px: Side of the crop.
        square: A square around the box, of its longer side; otherwise the box is stretched to a square.
        antialias: See :func:`warp`.
        border: See :func:`warp`; what the extended box shows beyond the photo.

    Raises:
        DataError: The box is not finite, or empty.
        SettingError: A size or margin is out of range.

    Reference:
        Cao et al. (2018), "VGGFace2: A dataset for recognising faces across pose and age", for the extension by 0.3.

    Example:
        >>> photo = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        >>> bool((crop_box(photo, (2, 1, 4, 4), size_px=4) == photo[1:5, 2:6]).all())
        True
    """
    _check_margin(margin, least=0.0)
    _check_size(size_px)
    x, y, width, height = box
    if not all(map(math.isfinite, box)) or min(width, height) <= 0:
        raise DataError(f"A face's box is {_numbers(box)}, expected x, y, width, height above 0. Leave it out.")
    center = x + width / 2 - 0.5, y + height / 2 - 0.5
    if square:
        width = height = max(width, height)
    scales = [size_px / (side * (1 + margin)) for side in (width, height)]
    middle = (size_px - 1) / 2
    matrix = np.array(
        [[scales[0], 0.0, middle - scales[0] * center[0]], [0.0, scales[1], middle - scales[1] * center[1]]]
    )
    return warp(photo, matrix, size_px, antialias=antialias, border=border)


def warp(photo: Photo, matrix: Affine, size_px: int, *, antialias: bool = True, border: Border = "black") -> Crop:
    """Return a square crop of a photo under an affine map, bilinear, 0 to 255.

    Where the photo is not shrunk this is OpenCV's ``warpAffine`` within one gray level. Where it is, bilinear
    sampling would skip pixels and alias, so the photo is first averaged down, with a triangle as wide as the
    shrinking, to the scale of the crop. The width grows from nothing: there is no jump at any size.

    Args:
        photo: Upright RGB.
        matrix: Brings a position in the photo to one in the crop, both counted from pixel centers.
        size_px: Side of the crop.
        antialias: Average before shrinking; without it the crop is ``warpAffine``'s at every scale.
        border: What lies beyond the photo: ``black``, or ``replicate`` for its outermost pixels.

    Raises:
        ShapeError: The photo is not h x w x 3 of bytes.
        SettingError: ``size_px`` is below 1, or ``border`` is neither.
        DataError: The matrix is not finite, or squeezes the photo to a line.

    Example:
        >>> photo = np.full((9, 9, 3), 7, np.uint8)
        >>> warp(photo, np.array([[1.0, 0.0, -2.0], [0.0, 1.0, -2.0]]), 2).tolist()
        [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
    """
    check_photo(photo)
    _check_size(size_px)
    _check_border(border)
    inverse = _inverse(matrix)
    steps = np.hypot(matrix[0, :2], matrix[1, :2])  # pixels of the crop for one step along x, along y of the photo
    shrink = np.maximum(1.0, 1 / steps) if antialias else np.ones(2)
    left, top, right, bottom = _region(inverse, size_px, shrink, photo.shape)
    pixels = torch.from_numpy(photo[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
    inverse[:, 2] -= left, top
    small = [max(1, round(length / by)) for length, by in zip((right - left, bottom - top), shrink, strict=True)]
    if small != [right - left, bottom - top]:
        ratio = np.array(small) / (right - left, bottom - top)
        inverse[:, 2] += 0.5  # the two pictures have their corners in common, not the centers of their corner pixels
        inverse *= ratio[:, None]
        inverse[:, 2] -= 0.5
        pixels = functional.interpolate(pixels, size=(small[1], small[0]), mode="bilinear", antialias=True)
    return _sample(pixels, inverse, size_px, border)[0].numpy()


def retemplate(
    crops: UInt8[Tensor, "n h w 3"],
    template: Points,
    size_px: int,
    *,
    margin: float = 0.0,
    border: Border = "black",
) -> UInt8[Tensor, "n s s 3"]:
    """Return canonical 112 crops warped to another template, all by one similarity, 0 to 255.

    A model whose crop is wider than the canonical one, or a margin, looks beyond its edge; ``border`` says what it
    sees there. Align from the photo where that matters.

    Args:
        crops: Aligned to :data:`TEMPLATE_112`, 112 x 112 RGB; none is fine.
        template: Five points in a crop of ``size_px``.
        size_px: Side of the new crops.
        margin: See :func:`widen`.
        border: See :func:`warp`.

    Raises:
        ShapeError: The crops are not 112 x 112.
        DataError: The template's points are not finite, or coincide.
        SettingError: A size or margin is out of range.

    Example:
        >>> crops = torch.full((2, 112, 112, 3), 50, dtype=torch.uint8)
        >>> retemplate(crops, TEMPLATE_112, 112).equal(crops)
        True
    """
    _check_size(size_px)
    _check_border(border)
    if crops.shape[1:] != (112, 112, 3):
        raise ShapeError(f"Crops are {tuple(crops.shape)}, expected n x 112 x 112 x 3. Align them to TEMPLATE_112.")
    matrix = similarity_transform(TEMPLATE_112, widen(template, size_px, margin))
    if np.allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-6) and size_px == 112:
        return crops
    inverse, pixels = _inverse(matrix), crops.permute(0, 3, 1, 2)
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    small = min(112, max(1, round(112 * scale)))
    if small < 112:
        inverse[:, 2] += 0.5
        inverse *= small / 112
        inverse[:, 2] -= 0.5
    made = torch.empty(len(crops), size_px, size_px, 3, dtype=torch.uint8, device=crops.device)
    for start in range(0, len(crops), _CHUNK):
        part = pixels[start : start + _CHUNK]
        if small < 112:
            part = functional.interpolate(part, size=(small, small), mode="bilinear", antialias=True)
        made[start : start + _CHUNK] = _sample(part, inverse, size_px, border)
    return made


def _sample(
    pixels: UInt8[Tensor, "n 3 h w"], inverse: Affine, size_px: int, border: Border
) -> UInt8[Tensor, "n s s 3"]:
    """Sample pictures at ``inverse`` of every pixel of the crop."""
    sampled = functional.grid_sample(
        pixels.to(torch.float32),
        _grid(inverse, size_px, pixels).expand(len(pixels), -1, -1, -1),
        mode="bilinear",
        padding_mode="zeros" if border == "black" else "border",
        align_corners=False,
    )
    return sampled.add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _grid(inverse: Affine, size_px: int, pixels: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "s s 2"]:
    """Return where each pixel of the crop lies, from -1 to 1 between the edges of the pictures."""
    along = np.arange(size_px, dtype=np.float64)
    grid = np.empty((size_px, size_px, 2), np.float32)
    for axis, side in ((0, pixels.shape[3]), (1, pixels.shape[2])):
        x, y, shift = 2 * inverse[axis] / side
        np.add(x * along, (y * along + (shift + 1 / side - 1))[:, None], out=grid[:, :, axis], casting="same_kind")
    return torch.from_numpy(grid).to(pixels.device)


def _inverse(matrix: Affine) -> Affine:
    (a, b, x), (c, d, y) = matrix.tolist()
    area = a * d - b * c
    if not np.isfinite(matrix).all() or abs(area) < 1e-12:
        raise DataError("A map from photo to crop has no inverse: its numbers squeeze the photo. Leave this face out.")
    return np.asarray(np.array([[d, -b, b * y - d * x], [-c, a, c * x - a * y]]) / area)


def _region(
    inverse: Affine, size_px: int, shrink: Float[np.ndarray, " 2"], shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the part of a photo that a crop depends on."""
    last = size_px - 1
    corners = np.array([[0, 0, 1], [last, 0, 1], [0, last, 1], [last, last, 1]]) @ inverse.T
    reach = 2 * shrink + 1
    sides = np.array([shape[1], shape[0]])
    # at least the nearest pixel, which is what a replicated border shows
    low = np.clip(np.floor(corners.min(0) - reach), 0, sides - 1).astype(int)
    high = np.clip(np.ceil(corners.max(0) + reach) + 1, 1, sides).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _check_size(size_px: int) -> None:
    if size_px < 1:
        raise SettingError(f"A crop's size_px is {size_px}, expected 1 or more.")


def _check_margin(margin: float, *, least: float) -> None:
    if not least <= margin <= 1:
        raise SettingError(f"margin is {margin}, expected {least:g} to 1, the share by which a crop is extended.")


def _check_border(border: str) -> None:
    if border not in ("black", "replicate"):
        raise SettingError(f"border is {border!r}, expected 'black' or 'replicate'.")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
