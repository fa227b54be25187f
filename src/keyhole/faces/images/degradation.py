"""What a camera does to a face: a frozen description, and the pictures that come of it.

The order is fixed: blur, shrink, noise, codec, enlarge. The small picture in the middle holds whole gray levels, as a
file does; the enlargement brings it back to the size of the crop, which is what a face model sees.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from keyhole.errors import SettingError, ShapeError, unknown_name
from keyhole.faces.images.resampling import (
    CHUNK,
    MAX_SIZE_PX,
    Trip,
    Workspace,
    check_crops,
    find_method,
    passes_of,
    run_each,
    run_passes,
    run_trips,
    to_pixels,
)

CODECS = ("jpeg", "webp")
_NOISE_ROLE = 1  # so that noise shares no random numbers with what else is drawn from the same seed


@dataclass(frozen=True)
class Degradation:
    """How a crop loses resolution.

    Attributes:
        face_px: Side of the small picture: how many of the probe's own pixels the side of the aligned crop has. A crop
            that has no more pixels than this is not resampled.
        down: The resampler that shrinks, from :data:`keyhole.faces.images.resampling.METHODS`.
        up: The resampler that enlarges; the same when not given.
        blur_sigma_px: Width of a Gaussian blur before the shrinking, in pixels of the small picture.
        noise_sigma: Standard deviation of Gaussian noise on the small picture, in gray levels, per pixel and channel.
        codec: ``"jpeg"`` or ``"webp"`` (both Pillow's, with its other settings as they are), or None.
        quality: The codec's quality, 1 to 100; given with a codec, and only then.

    Raises:
        SettingError: A value is outside its range.
        UnknownNameError: There is no such resampler or codec.

    Example:
        >>> str(Degradation(12, down="cv2-area", codec="jpeg", quality=70))
        'face_px=12,down=cv2-area,jpeg=70'
    """

    face_px: int
    down: str = "pil-bicubic"
    up: str | None = None
    blur_sigma_px: float = 0.0
    noise_sigma: float = 0.0
    codec: str | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.face_px, bool) or not isinstance(self.face_px, int) or not 1 <= self.face_px <= MAX_SIZE_PX:
            raise SettingError(f"face_px is {self.face_px!r}, expected a whole number from 1 to {MAX_SIZE_PX}.")
        find_method(self.down)
        find_method(self.enlarger)
        for name, most in (("blur_sigma_px", 100.0), ("noise_sigma", 255.0)):
            if not 0 <= getattr(self, name) <= most:
                raise SettingError(f"{name} is {getattr(self, name)}, expected 0 to {most:g}; 0 leaves it out.")
        if self.codec is not None and self.codec not in CODECS:
            raise unknown_name("codec", self.codec, CODECS)
        if (self.codec is None) != (self.quality is None):
            raise SettingError(
                f"codec is {self.codec!r} and quality {self.quality!r}, expected both or neither; such as jpeg=70."
            )
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise SettingError(f"quality is {self.quality}, expected 1 to 100.")

    @property
    def enlarger(self) -> str:
        """The resampler that enlarges."""
        return self.up or self.down

    def __str__(self) -> str:
        """Return the text that :func:`parse_degradation` reads; what is left out is as by default."""
        parts = [f"face_px={self.face_px}", f"down={self.down}"]
        if self.up is not None:
            parts.append(f"up={self.up}")
        if self.blur_sigma_px:
            parts.append(f"blur={self.blur_sigma_px!r}")
        if self.noise_sigma:
            parts.append(f"noise={self.noise_sigma!r}")
        if self.codec is not None:
            parts.append(f"{self.codec}={self.quality}")
        return ",".join(parts)


def parse_degradation(text: str) -> Degradation:
    """Return the degradation that a text describes, such as ``face_px=12,down=cv2-area,blur=0.5,noise=2,jpeg=70``.

    Raises:
        SettingError: The text is not of this form, or a value is outside its range.
        UnknownNameError: There is no such setting, resampler or codec.

    Example:
        >>> parse_degradation("face_px=16,jpeg=70") == Degradation(16, codec="jpeg", quality=70)
        True
    """
    return degradation_of(parse_settings(text), seen=text)


def parse_settings(text: str) -> dict[str, Any]:
    """Return the fields that a text such as ``down=cv2-area,jpeg=70`` sets.

    Raises:
        SettingError: The text is not of this form, or sets a field twice.
        UnknownNameError: There is no such setting.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise SettingError(f"{part!r} in {text!r} is no setting, expected name=value; such as face_px=12,jpeg=70.")
        settings = {"codec": name, "quality": _number(value, int, part)} if name in CODECS else _setting(name, value)
        twice = found.keys() & settings
        if twice:
            raise SettingError(f"{text!r} sets {min(twice)} twice; give it once.")
        found.update(settings)
    return found


def degradation_of(settings: dict[str, Any], *, seen: str) -> Degradation:
    """Return the degradation with these fields.

    Args:
        settings: From :func:`parse_settings`.
        seen: The text that they come from, for the error.

    Raises:
        SettingError: ``face_px`` is missing, or a value is outside its range.
    """
    if "face_px" not in settings:
        raise SettingError(f"{seen!r} names no face_px, expected one; such as face_px=12.")
    return Degradation(**settings)


def image_seeds(seed: int, count: int) -> list[int]:
    """Return the seed of each image of a set; the first ones do not depend on ``count``.

    Args:
        seed: Seed of the whole set, 0 or more.
        count: How many images.

    Raises:
        SettingError: ``seed`` is negative.

    Example:
        >>> image_seeds(0, 3)[:2] == image_seeds(0, 2)
        True
    """
    if seed < 0:
        raise SettingError(f"seed is {seed}, expected 0 or more.")
    return [int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]) for index in range(count)]


@overload
def shrink(crops: Tensor, how: Degradation, *, seed: int | Sequence[int] = 0) -> Tensor: ...


@overload
def shrink(crops: Tensor, how: Sequence[Degradation], *, seed: int | Sequence[int] = 0) -> list[Tensor]: ...


def shrink(
    crops: UInt8[Tensor, "n s s 3"], how: Degradation | Sequence[Degradation], *, seed: int | Sequence[int] = 0
) -> UInt8[Tensor, "n r r 3"] | list[Tensor]:
    """Return the small pictures that the camera would deliver, before they are enlarged.

    Args:
        crops: Square RGB pictures.
        how: One degradation for all, which gives a batch, or one for each, which gives a list.
        seed: As in :func:`degrade`.

    Raises:
        ShapeError: The crops are not square RGB of type uint8, or there are not as many degradations or seeds.
        SettingError: A seed is negative.
    """
    groups = _groups(crops, how, seed)
    work = Workspace.of(crops.device)
    pictures = {
        row: picture
        for each, rows, seeds in groups
        for row, picture in zip(rows, _small(crops[rows], each, seeds, work).clone(), strict=True)
    }
    small = [pictures[row] for row in range(len(crops))]
    if not isinstance(how, Degradation):
        return small
    size = min(how.face_px, check_crops(crops))
    return torch.stack(small) if small else crops.new_empty((0, size, size, 3))


def degrade(
    crops: UInt8[Tensor, "n s s 3"], how: Degradation | Sequence[Degradation], *, seed: int | Sequence[int] = 0
) -> UInt8[Tensor, "n s s 3"]:
    """Return crops as they look after a camera, at their own size again.

    An image's result depends on the image, its degradation and its seed alone, not on the batch that it comes in.

    Args:
        crops: Square RGB pictures.
        how: One degradation for all, or one for each.
        seed: One seed for the whole set, from which :func:`image_seeds` makes one for each image by its place, or one
            for each image. Only noise is random.

    Raises:
        ShapeError: The crops are not square RGB of type uint8, or there are not as many degradations or seeds.
        SettingError: A seed is negative.

    Example:
        >>> crops = torch.arange(2 * 16 * 16 * 3).view(2, 16, 16, 3).to(torch.uint8)
        >>> degrade(crops, [Degradation(4), Degradation(8, noise_sigma=2.0)], seed=1).shape
        torch.Size([2, 16, 16, 3])
    """
    side = check_crops(crops)
    out = torch.empty_like(crops, memory_format=torch.contiguous_format)
    groups = _groups(crops, how, seed)

    def one_by_one(group: _Group) -> None:
        each, rows, seeds = group
        work = Workspace.of(crops.device)
        some = crops[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] == len(rows) - 1 else crops[rows]
        _enlarge(_small(some, each, seeds, work), each.enlarger, work, out, rows)

    def together(trips: list[tuple[int, int, Trip]]) -> None:
        run_trips(crops, [row for _, row, _ in trips], [trip for _, _, trip in trips], out=out)

    run_each(one_by_one, [group for group in groups if not _is_quick(group[0], side)], device=crops.device)
    run_each(together, _trips([group for group in groups if _is_quick(group[0], side)], side), device=crops.device)
    return out


def _is_quick(how: Degradation, side: int) -> bool:
    """Return whether nothing happens to the small picture, and nothing is rounded on the way to it and back."""
    exact = any(find_method(method).rounds_between for method in (how.down, how.enlarger))
    return how.face_px < side and not exact and not how.noise_sigma and how.codec is None


def _trips(groups: list[_Group], side: int) -> list[list[tuple[int, int, Trip]]]:
    """Return the trips of images of all sizes in chunks, each with its neighbors in size: size, row and trip."""
    trips = sorted(
        (how.face_px, row, Trip(how.face_px, how.down, how.enlarger, how.blur_sigma_px * side / how.face_px))
        for how, rows, _ in groups
        for row in rows
    )
    return [trips[start : start + CHUNK] for start in range(0, len(trips), CHUNK)]


_Group = tuple[Degradation, list[int], list[int]]


def _groups(crops: Tensor, how: Degradation | Sequence[Degradation], seed: int | Sequence[int]) -> list[_Group]:
    """Return images of the same degradation together, at most a chunk of them: where they stand, and their seeds."""
    check_crops(crops)
    count = len(crops)
    each = [how] * count if isinstance(how, Degradation) else list(how)
    noisy = any(degradation.noise_sigma for degradation in each)
    seeds = image_seeds(seed, count if noisy else 0) if isinstance(seed, int) else list(seed)
    seeds = seeds if noisy else [0] * count
    if len(each) != count or len(seeds) != count:
        raise ShapeError(
            f"{count} crops came with {len(each)} degradations and {len(seeds)} seeds, expected one for each, or one."
        )
    rows: dict[Degradation, list[int]] = {}
    for row, degradation in enumerate(each):
        rows.setdefault(degradation, []).append(row)
    groups = []
    for degradation, places in rows.items():
        for start in range(0, len(places), CHUNK):
            part = places[start : start + CHUNK]
            groups.append((degradation, part, [seeds[row] for row in part]))
    return groups


def _small(crops: Tensor, how: Degradation, seeds: list[int], work: Workspace) -> Tensor:
    side = crops.shape[1]
    size = min(how.face_px, side)
    blur = how.blur_sigma_px * side / size
    pictures = _shrunk(crops, how.down, size, blur, work)
    if how.noise_sigma:
        pictures = _noisy(pictures, how.noise_sigma, seeds)
    if how.codec is not None and how.quality is not None:
        coded = np.stack([_coded(picture, how.codec, how.quality) for picture in pictures.cpu().numpy()])
        pictures = torch.from_numpy(coded).to(crops.device)
    return pictures


def _shrunk(pictures: Tensor, method: str, size: int, blur_sigma_px: float, work: Workspace) -> Tensor:
    """Return the pictures at another size, in memory that the next call uses again."""
    if pictures.shape[1] == size and not blur_sigma_px:
        return pictures
    passes = passes_of(method, pictures.shape[1], size, device=pictures.device, blur_sigma_px=blur_sigma_px)
    small = work.take("small", (len(pictures), size, size, 3), torch.uint8)
    to_pixels(run_passes(pictures, passes, work), small)
    return small


def _enlarge(pictures: Tensor, method: str, work: Workspace, out: Tensor, rows: list[int]) -> None:
    if pictures.shape[1] == out.shape[1]:
        out[rows] = pictures
        return
    passes = passes_of(method, pictures.shape[1], out.shape[1], device=out.device)
    to_pixels(run_passes(pictures, passes, work), out, rows)


def _noisy(pictures: Tensor, sigma: float, seeds: list[int]) -> Tensor:
    shape = pictures.shape[1:]
    noise = np.stack([np.random.default_rng((_NOISE_ROLE, seed)).standard_normal(shape, np.float32) for seed in seeds])
    noisy = pictures + sigma * torch.from_numpy(noise).to(pictures.device)
    return noisy.round_().clamp_(0, 255).to(torch.uint8)


def _coded(picture: np.ndarray, codec: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, codec, quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def _setting(name: str, value: str) -> dict[str, Any]:
    if name not in _SETTINGS:
        raise unknown_name("setting", name, (*_SETTINGS, *CODECS))
    field, kind = _SETTINGS[name]
    return {field: _number(value, kind, f"{name}={value}") if kind is not str else value}


def _number(value: str, kind: type[int] | type[float], seen: str) -> int | float:
    try:
        number = kind(value)
    except ValueError as error:
        raise SettingError(f"{seen!r} is not set to a number, expected one; such as face_px=12,jpeg=70.") from error
    if not math.isfinite(number):
        raise SettingError(f"{seen!r} is not set to a finite number; give one.")
    return number


_SETTINGS: dict[str, tuple[str, Any]] = {
    "face_px": ("face_px", int),
    "down": ("down", str),
    "up": ("up", str),
    "blur": ("blur_sigma_px", float),
    "noise": ("noise_sigma", float),
}
