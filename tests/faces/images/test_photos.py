"""Photos are upright RGB whatever the file holds, and what cannot be decided is refused in one line."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyhole.errors import DataError, SettingError, ShapeError
from keyhole.faces.images import photos
from keyhole.faces.images.photos import check_photo, decode_photo, photo_size, read_frames, read_photo


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def gradient(width: int = 20, height: int = 12) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 3, y * 5, 255 - x * 4], -1).astype(np.uint8))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """Return a PNG written by hand, for what Pillow itself does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats_give_the_pixels(form: str) -> None:
    image = gradient(8, 8) if form == "GIF" else gradient()
    photo = decode_photo(encoded(image, form), name="x")
    assert photo.dtype == np.uint8
    assert np.array_equal(photo, np.asarray(image))
    assert photo.flags.writeable


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_give_nearly_the_pixels(form: str) -> None:
    photo = decode_photo(encoded(gradient(64, 48), form, quality=95), name="x")
    assert np.abs(photo.astype(int) - np.asarray(gradient(64, 48))).mean() < 5


@pytest.mark.parametrize("turned", range(1, 9))
def test_every_exif_orientation_comes_out_upright(turned: int) -> None:
    upright = gradient()
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[turned]
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = turned
    data = encoded(stored, "PNG", exif=exif)
    assert np.array_equal(decode_photo(data, name="x"), np.asarray(upright))
    assert photo_size(data, name="x") == upright.size


def test_gray_becomes_three_equal_channels() -> None:
    gray = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    photo = decode_photo(encoded(gray), name="x")
    assert np.array_equal(photo, np.repeat(np.asarray(gray)[:, :, None], 3, axis=2))
    assert decode_photo(encoded(gray.convert("1")), name="x").shape == (3, 4, 3)


def test_of_sixteen_bits_the_upper_eight_are_kept() -> None:
    values = np.array([[0, 255, 256, 25_700, 65_535]], np.uint16)
    gray = decode_photo(encoded(Image.fromarray(values)), name="x")
    assert gray[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    color = np.repeat(values[0][:, None], 3, axis=1).astype(">u2").tobytes()
    assert decode_photo(png(5, 1, 16, 2, b"\0" + color), name="x")[0, :, 1].tolist() == [0, 0, 1, 100, 255]
    tiff = decode_photo(encoded(Image.fromarray(values), "TIFF"), name="x")
    assert tiff[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    portable = b"P5 5 1 65535\n" + values.astype(">u2").tobytes()
    assert decode_photo(portable, name="x")[0, :, 0].tolist() == [0, 0, 1, 100, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_range_are_refused(kind: type) -> None:
    data = encoded(Image.fromarray(np.ones((3, 3), kind)), "TIFF")
    with pytest.raises(DataError, match=r"odd\.tif holds numbers of 32 bits") as error:
        decode_photo(data, name="odd.tif")
    one_line(error)


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    photo = decode_photo(encoded(red, "JPEG", quality=95), name="x")
    assert np.abs(photo.reshape(-1, 3).mean(0) - (255, 0, 0)).max() < 6


def test_other_color_spaces_become_rgb() -> None:
    lab = Image.new("LAB", (4, 4), (136, 208, 195))  # the red of sRGB: L 53, a 80, b 67
    photo = decode_photo(encoded(lab, "TIFF"), name="x")
    assert np.abs(photo.reshape(-1, 3).astype(int) - (255, 0, 0)).max() <= 12
    yellow = Image.new("RGB", (8, 8), (200, 200, 20)).convert("YCbCr")
    photo = decode_photo(encoded(yellow, "TIFF"), name="x")
    assert np.abs(photo.reshape(-1, 3).astype(int) - (200, 200, 20)).max() <= 3


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (100, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    photo = decode_photo(encoded(image), name="x")
    assert photo[0].tolist() == [[255, 255, 255], [100, 0, 0], [204, 204, 204]]
    gray = Image.new("LA", (1, 1), (50, 0))
    assert decode_photo(encoded(gray), name="x").tolist() == [[[255, 255, 255]]]


def test_a_palette_may_have_a_transparent_color() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    photo = decode_photo(encoded(image, "PNG", transparency=0), name="x")
    assert photo[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert decode_photo(encoded(image, "PNG"), name="x")[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    by_bytes = encoded(image, "PNG", transparency=b"\xff\x00")  # an alpha for each color
    assert decode_photo(by_bytes, name="x")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused_and_can_be_had_one_by_one(form: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), (60 * step, 0, 0)) for step in range(3)]
    options = {"lossless": True} if form == "WEBP" else {}
    path = tmp_path / "moving"
    path.write_bytes(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
    with pytest.raises(DataError, match="moving has 3 frames or pages, expected one photo") as error:
        read_photo(path)
    one_line(error)
    assert [frame[0, 0, 0] for frame in read_frames(path)] == [0, 60, 120]


def test_frames_of_a_single_photo_are_that_photo(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    path.write_bytes(encoded(gradient()))
    (frame,) = read_frames(path)
    assert np.array_equal(frame, read_photo(path))


def test_of_a_phones_two_pictures_the_first_is_the_photo() -> None:
    first, second = gradient(), Image.new("RGB", (20, 12))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(decode_photo(data, name="x").astype(int) - np.asarray(first)).mean() < 20
    assert photo_size(data, name="x") == (20, 12)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), form)
    for share in (0.3, 0.7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own words on a short TIFF
            with pytest.raises(DataError, match=r"cut\.bin") as error:
                decode_photo(whole[: int(len(whole) * share)], name="cut.bin")
        one_line(error)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_whatever_is_damaged_a_photo_or_one_line_comes_out(form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    whole = np.frombuffer(encoded(gradient(40, 30), form, **options), np.uint8)
    random = np.random.default_rng(0)
    path = tmp_path / "damaged"
    refused = 0
    for _ in range(60):
        data = whole.copy()
        data[random.integers(0, min(len(data), 200), 3)] = random.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        for read in (
            read_photo,
            lambda at: list(read_frames(at)),
            lambda at: photo_size(at.read_bytes(), name="damaged"),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own words on damaged tags
                try:
                    read(path)
                except DataError as error:
                    refused += 1
                    assert "damaged" in str(error)  # noqa: PT017
                    assert "\n" not in str(error)  # noqa: PT017
    assert refused > 5


def test_empty_and_foreign_bytes_are_refused() -> None:
    with pytest.raises(DataError, match=r"a\.jpg is empty"):
        decode_photo(b"", name="a.jpg")
    for function in (decode_photo, photo_size):
        with pytest.raises(DataError, match=r"a\.jpg is no image that can be read") as error:
            function(b"%!PS-Adobe-3.0 EPSF-3.0\n", name="a.jpg")
        one_line(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*gone.jpg: No such file"):
        read_photo(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="Cannot read"):
        list(read_frames(tmp_path / "gone.gif"))


@pytest.mark.parametrize("sides", [(10_001, 10_000), (13_000, 13_000), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_is_decoded(sides: tuple[int, int]) -> None:
    bomb = png(*sides, 8, 0, b"")  # no pixels at all: decoding would fail otherwise
    for function in (decode_photo, photo_size):
        with pytest.raises(DataError, match="the 100 million pixels") as error:
            function(bomb, name="bomb.png")
        one_line(error)


def test_the_limit_is_the_product_of_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 240)
    assert decode_photo(encoded(gradient(20, 12)), name="x").shape == (12, 20, 3)
    with pytest.raises(DataError, match="20 x 13"):
        decode_photo(encoded(gradient(20, 13)), name="x")


def test_a_large_jpeg_may_be_decoded_smaller() -> None:
    image = gradient().resize((1600, 960))
    data = encoded(image, "JPEG")
    assert decode_photo(data, name="x").shape == (960, 1600, 3)
    small = decode_photo(data, name="x", reduce_to_px=400)
    assert small.shape == (240, 400, 3)
    assert decode_photo(data, name="x", reduce_to_px=401).shape == (480, 800, 3)
    assert decode_photo(data, name="x", reduce_to_px=5000).shape == (960, 1600, 3)
    wanted = np.asarray(image.resize((400, 240), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - wanted).mean() < 3
    assert photo_size(data, name="x") == (1600, 960)
    assert decode_photo(encoded(image), name="x", reduce_to_px=400).shape == (960, 1600, 3)
    with pytest.raises(SettingError, match="reduce_to_px is 0"):
        decode_photo(data, name="x", reduce_to_px=0)
    assert decode_photo(encoded(image.convert("CMYK"), "JPEG"), name="x", reduce_to_px=400).shape == (240, 400, 3)


def test_the_size_of_a_jpeg_needs_no_pixels() -> None:
    data = encoded(gradient(640, 480), "JPEG")
    assert photo_size(data[:700], name="x") == (640, 480)
    with pytest.raises(DataError):
        decode_photo(data[:700], name="x")


def test_decoding_on_threads_leaves_the_filters_of_warnings_alone() -> None:
    data, before = encoded(gradient()), list(warnings.filters)
    workers = [threading.Thread(target=decode_photo, args=(data,), kwargs={"name": "x"}) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3))],
)
def test_arrays_that_are_no_photo_are_named(array: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected height x width x 3 of uint8") as error:
        check_photo(array)
    one_line(error)
