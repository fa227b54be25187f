"""Photos as upright RGB arrays, decoded in one stated way whatever the file holds.

What is decided:

- Formats: JPEG (also with several pictures, as phones write it: the first), PNG, WebP, BMP, GIF, TIFF, PPM.
- EXIF orientation is applied: a photo is upright, and its size is that of the upright picture.
- Gray, palette, CMYK, YCbCr and L*a*b* become RGB as Pillow converts them; a color profile is not applied.
- 16 bits: the upper eight are kept. 32-bit integers and floats have no agreed range and are refused.
- Transparency lies over white.
- Animated files and files of several pages are refused, as nobody said which frame; :func:`read_frames` gives all.
- Empty, corrupt and truncated files, and more than :data:`MAX_PIXELS`, are a :class:`~keyhole.errors.DataError`.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from keyhole.errors import DataError, SettingError, ShapeError

Photo: TypeAlias = UInt8[np.ndarray, "h w 3"]

#: Width times height above which a file is refused before it is decoded; 300 MB once it is RGB.
MAX_PIXELS = 100_000_000

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_ORIENTATION = 0x0112
_FACE_PX = "keyhole:face_px"
_opening = threading.Lock()  # the filters of warnings belong to the whole process


def read_photo(path: Path, *, reduce_to_px: int | None = None) -> Photo:
    """Return the photo in a file, as :func:`decode_photo` decodes it.

    Raises:
        DataError: The file cannot be read, or holds no single photo.
    """
    return decode_photo(_read(path), name=str(path), reduce_to_px=reduce_to_px)


def decode_photo(data: bytes, *, name: str, reduce_to_px: int | None = None) -> Photo:
    """Return the photo in the bytes of an image file, upright RGB, 0 to 255; the module says what is decided.

    Args:
        data: The whole file.
        name: What errors call it.
        reduce_to_px: A JPEG whose long side is at least twice this may be decoded at a half, a quarter or an eighth of
            its size, which is several times faster, and keeps a long side of at least this. Positions and sizes
            are then those of the smaller picture; :func:`photo_size` gives the original's. Other formats stay whole.

    Raises:
        DataError: The bytes are no image of a known format, are damaged, hold several frames or too many pixels.
        SettingError: ``reduce_to_px`` is below 1.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (3, 2), 200).save(file, "PNG")
        >>> decode_photo(file.getvalue(), name="gray.png").tolist()[0][0]
        [200, 200, 200]
    """
    if reduce_to_px is not None and reduce_to_px < 1:
        raise SettingError(f"reduce_to_px is {reduce_to_px}, expected 1 or more.")
    with _open(data, name) as image:
        frames = _frames(image, name)
        if frames > 1 and image.format != "MPO":
            raise DataError(
                f"{name} has {frames} frames or pages, expected one photo. Name a photo, or take its frames."
            )
        if reduce_to_px is not None and image.format in ("JPEG", "MPO"):
            share = min(1.0, reduce_to_px / max(image.size))
            image.draft(None, (max(1, round(image.width * share)), max(1, round(image.height * share))))
        try:
            return _rgb(ImageOps.exif_transpose(image), name, image.format)
        except DataError:
            raise
        except Exception as error:  # the decoders raise nearly anything on broken bytes
            raise _damaged(name, error) from error


def photo_size(data: bytes, *, name: str, upright: bool = True) -> tuple[int, int]:
    """Return width and height of the upright photo in pixels, mostly from the header alone.

    A PNG is decoded for it, as its EXIF orientation may follow the pixels.

    Args:
        data: The bytes of the photo.
        name: What errors call it.
        upright: As it is to be seen; else as it is stored, which the header alone tells.

    Raises:
        DataError: The bytes are no image of a known format, or hold too many pixels.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (3, 2)).save(file, "PNG")
        >>> photo_size(file.getvalue(), name="small.png")
        (3, 2)
    """
    with _open(data, name) as image:
        try:
            turned = upright and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception as error:  # a damaged EXIF block
            raise _damaged(name, error) from error
        return (image.height, image.width) if turned else (image.width, image.height)


def read_frames(path: Path) -> Iterator[Photo]:
    """Yield every frame of an animated file, or every page, as photos; a file with one frame yields that.

    Raises:
        DataError: The file cannot be read, or a frame is damaged; frames before it were yielded.
    """
    with _open(_read(path), str(path)) as image:
        for number in range(_frames(image, str(path))):
            try:
                image.seek(number)
                frame = _rgb(image.copy(), f"frame {number} of {path}", image.format)
            except DataError:
                raise
            except Exception as error:
                raise _damaged(f"frame {number} of {path}", error) from error
            yield frame


def noted_face_px(data: bytes) -> float | None:
    """Return the ``face_px`` that a PNG of this package tells of its face, in a text chunk; None where it tells none.

    Example:
        >>> file = io.BytesIO()
        >>> png_with_face_px(np.zeros((2, 2, 3), np.uint8), 12.5, file)
        >>> noted_face_px(file.getvalue())
        12.5
    """
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        value = float(image.info.get(_FACE_PX, "nan"))
    except Exception:  # no PNG, or a damaged one: whoever reads the pixels will tell
        return None
    return value if 0 < value < float("inf") else None


def png_with_face_px(photo: Photo, face_px: float, file: io.BytesIO) -> None:
    """Write a crop as PNG that tells how many pixels its face had in its photo."""
    chunks = PngInfo()
    chunks.add_text(_FACE_PX, f"{face_px:.2f}")
    Image.fromarray(photo).save(file, "PNG", pnginfo=chunks)


def frame_count(path: Path) -> int:
    """Return how many frames or pages an image file has; raises like :func:`read_frames`."""
    with _open(_read(path), str(path)) as image:
        return _frames(image, str(path))


def check_photo(photo: Photo) -> None:
    """Check that an array is a photo: height x width x 3, at least one pixel, of bytes.

    Raises:
        ShapeError: It is not.

    Example:
        >>> check_photo(np.zeros((4, 5, 3), np.uint8))
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape or photo.dtype != np.uint8:
        raise ShapeError(
            f"A photo is {' x '.join(map(str, photo.shape))} of {photo.dtype}, expected height x width x 3 of uint8, "
            "RGB. Convert it, or read it with read_photo."
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Expected an image file there.") from error


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise DataError(f"{name} is empty (0 bytes), expected an image. Copy it again, or remove it.")
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below says it as an error
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(name, "far more than")) from error
    except UnidentifiedImageError as error:
        remedy = "Convert it, or remove it."
        if name.lower().endswith(_VIDEOS):
            remedy = "Turn a video into frames first: mkdir frames && ffmpeg -i VIDEO frames/%05d.png"
        raise DataError(f"{name} is no image that can be read; expected {', '.join(_FORMATS)}. {remedy}") from error
    except Exception as error:
        raise _damaged(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(name, f"{image.width} x {image.height}, more than"))
    return image


def _too_large(name: str, seen: str) -> str:
    return f"{name} has {seen} the {MAX_PIXELS // 10**6} million pixels that are decoded. Shrink it first."


def _damaged(name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{name} is damaged: {reason}. Copy it again, or remove it.")


def _frames(image: Image.Image, name: str) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # counting reads the whole file
        raise _damaged(name, error) from error


def _rgb(image: Image.Image, name: str, form: str | None) -> Photo:
    if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(
            f"{name} holds numbers of 32 bits, which have no agreed range; expected 8 or 16 bits. Convert it first."
        )
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.new("RGBA", clear.size, "white")
        image.alpha_composite(clear)
    return np.array(image.convert("RGB"), np.uint8)
