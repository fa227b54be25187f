"""Alignment finds the similarity, never mirrors, and its crops are OpenCV's where nothing is shrunk."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keyhole.errors import DataError, KeyholeError, SettingError, ShapeError
from keyhole.faces.images.alignment import (
    TEMPLATE_112,
    align,
    crop_box,
    face_px_of,
    retemplate,
    similarity_transform,
    warp,
    widen,
)

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the similarity by the singular vectors of the covariance, as Umeyama (1991) has it."""
    a, b = source - source.mean(0), target - target.mean(0)
    left, values, right = np.linalg.svd(b.T @ a / len(a))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    turn = left @ np.diag(signs) @ right
    scale = (values * signs).sum() / a.var(0).sum()
    return np.column_stack([scale * turn, target.mean(0) - scale * turn @ source.mean(0)])


def bilinear(photo: np.ndarray, matrix: np.ndarray, size: int, *, replicate: bool = False) -> np.ndarray:
    """Return the crop by a loop over its pixels."""
    height, width = photo.shape[:2]
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    crop = np.zeros((size, size, 3))
    for v in range(size):
        for u in range(size):
            x, y, _ = back @ [u, v, 1]
            for column in (math.floor(x), math.floor(x) + 1):
                for row in (math.floor(y), math.floor(y) + 1):
                    weight = (1 - abs(x - column)) * (1 - abs(y - row))
                    if replicate:
                        crop[v, u] += weight * photo[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                    elif 0 <= row < height and 0 <= column < width:
                        crop[v, u] += weight * photo[row, column]
    return crop


def similarity(degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = math.radians(degrees)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    small = Image.fromarray(noise(max(2, height // 16), max(2, width // 16)))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def with_dots(points: np.ndarray, height: int, width: int, radius: float) -> np.ndarray:
    """Return a black photo with a soft white dot at every point."""
    y, x = np.mgrid[0:height, 0:width]
    light = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in points)
    return np.repeat((255 * np.clip(light, 0, 1)).round().astype(np.uint8)[:, :, None], 3, axis=2)


def centers_of_dots(crop: np.ndarray, near: np.ndarray, reach: int) -> np.ndarray:
    found = []
    for px, py in near:
        y, x = np.mgrid[round(py) - reach : round(py) + reach + 1, round(px) - reach : round(px) + reach + 1]
        light = crop[y, x, 0].astype(float)
        found.append(((x * light).sum() / light.sum(), (y * light).sum() / light.sum()))
    return np.array(found)


class TestSimilarity:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_random_similarity_is_recovered(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        truth = similarity(random.uniform(-180, 180), math.exp(random.uniform(-4, 4)), tuple(random.normal(0, 500, 2)))
        points = random.normal(0, 40, (5, 2)) + random.normal(0, 300, 2)
        found = similarity_transform(points, moved(points, truth))
        assert np.allclose(found, truth, rtol=1e-8, atol=1e-6)

    @pytest.mark.parametrize("seed", range(20))
    def test_of_noisy_points_it_is_umeyamas(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        points = TEMPLATE_112 * 2 + random.normal(0, 12, (5, 2))
        assert np.allclose(similarity_transform(points, TEMPLATE_112), umeyama(points, TEMPLATE_112))

    @pytest.mark.parametrize("seed", range(20))
    def test_no_similarity_nearby_is_closer(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        points = random.normal(0, 30, (5, 2))
        found = similarity_transform(points, TEMPLATE_112)

        def miss(a: float, b: float, x: float, y: float) -> float:
            return float(((moved(points, np.array([[a, -b, x], [b, a, y]])) - TEMPLATE_112) ** 2).sum())

        best = (found[0, 0], found[1, 0], found[0, 2], found[1, 2])
        for step in random.normal(0, 1e-3, (20, 4)):
            assert miss(*(np.array(best) + step)) >= miss(*best)

    def test_it_never_mirrors(self) -> None:
        random = np.random.default_rng(0)
        mirrored = [112 - TEMPLATE_112[:, 0], TEMPLATE_112[:, 1]]
        sets = [np.stack(mirrored, 1), *random.normal(0, 50, (200, 5, 2))]
        for points in sets:
            assert np.linalg.det(similarity_transform(points, TEMPLATE_112)[:, :2]) > 0
        assert np.linalg.det(umeyama(sets[0], TEMPLATE_112)[:, :2]) > 0

    @pytest.mark.parametrize(
        ("points", "words"),
        [
            (np.full((5, 2), 30.0), "coincide"),
            (np.zeros((5, 2)), "coincide"),
            (np.full((5, 2), np.nan), "not finite"),
            (np.where(np.arange(10).reshape(5, 2) == 3, np.inf, TEMPLATE_112), "not finite"),
        ],
    )
    def test_degenerate_landmarks_are_refused_in_one_line(self, points: np.ndarray, words: str) -> None:
        photo = np.zeros((20, 20, 3), np.uint8)
        for call in (
            lambda: similarity_transform(points, TEMPLATE_112),
            lambda: align(photo, points),
            lambda: face_px_of(points),
        ):
            with pytest.raises(DataError, match=words) as error:
                call()
            assert "\n" not in str(error.value)

    def test_points_without_a_direction_are_refused(self) -> None:
        square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        with pytest.raises(DataError, match="do not resemble"):
            similarity_transform(square, square * [1, -1])

    @pytest.mark.parametrize("shape", [(4, 2), (5, 3), (1, 2), (5,), (5, 2, 1)])
    def test_another_number_of_points_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match=r"template is \(5, 2\)"):
            similarity_transform(np.ones(shape), TEMPLATE_112)


class TestUnit:
    def test_it_is_3_18_times_the_distance_of_the_eyes(self) -> None:
        eyes = np.linalg.norm(TEMPLATE_112[0] - TEMPLATE_112[1])
        for scale in (0.05, 0.3, 1.0, 7.0):
            points = moved(TEMPLATE_112, similarity(25, scale, (3, 4)))
            assert face_px_of(points) == pytest.approx(112 * scale)
            assert face_px_of(points) == pytest.approx(3.18 * eyes * scale, rel=1e-3)

    def test_a_face_is_not_smaller_because_it_turns(self) -> None:
        turned = TEMPLATE_112.copy()
        turned[:, 0] = 56 + (turned[:, 0] - 56) * 0.5
        by_eyes = 3.18 * np.linalg.norm(turned[0] - turned[1])
        assert by_eyes == pytest.approx(56, rel=0.01)
        assert face_px_of(turned) > 1.3 * by_eyes


class TestWarp:
    @pytest.mark.parametrize("scale", [1.0, 1.3, 4.0])
    @pytest.mark.parametrize("border", ["black", "replicate"])
    def test_it_is_the_loops_bilinear_also_over_the_border(self, scale: float, border: str) -> None:
        photo = noise(23, 31)
        for degrees, shift in ((0, (0.25, 0.75)), (33, (2.0, -9.0)), (-140, (20.0, 30.0))):
            matrix = similarity(degrees, scale, shift)
            wanted = bilinear(photo, matrix, 24, replicate=border == "replicate")
            made = warp(photo, matrix, 24, border=border)  # type: ignore[arg-type]
            assert np.abs(made - wanted).max() <= 0.51

    @pytest.mark.parametrize("scale", [0.999, 1.0, 1.4, 3.0])
    def test_it_is_opencvs_within_one_gray_level(self, scale: float) -> None:
        cv2 = pytest.importorskip("cv2")
        for photo in (smooth(180, 240), smooth(64, 50)):
            for degrees in (0, 7, -31, 90, 171):
                matrix = similarity(degrees, scale, (20.3, 11.7))
                for border, flag in (("black", cv2.BORDER_CONSTANT), ("replicate", cv2.BORDER_REPLICATE)):
                    wanted = cv2.warpAffine(photo, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderMode=flag)
                    made = warp(photo, matrix, 112, antialias=scale >= 1, border=border)  # type: ignore[arg-type]
                    assert np.abs(made.astype(int) - wanted).max() <= 1

    def test_without_antialiasing_a_shrunk_crop_is_opencvs_as_well(self) -> None:
        cv2 = pytest.importorskip("cv2")
        photo = smooth(500, 400)
        matrix = similarity(12, 0.37, (-3.0, -20.0))
        wanted = cv2.warpAffine(photo, matrix, (112, 112))
        assert np.abs(warp(photo, matrix, 112, antialias=False).astype(int) - wanted).max() <= 1

    def test_a_crop_at_whole_pixels_is_a_slice(self) -> None:
        photo = noise(40, 50)
        made = warp(photo, similarity(0, 1, (-7, -5)), 30)
        assert np.array_equal(made, photo[5:35, 7:37])

    @pytest.mark.parametrize("shrink", [1.9, 2.0, 3.3, 4.7, 9.1])
    @pytest.mark.parametrize("degrees", [0, 17, 45])
    def test_a_fine_checkerboard_does_not_alias(self, shrink: float, degrees: float) -> None:
        y, x = np.mgrid[0:900, 0:900]
        board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[:, :, None], 3, axis=2)
        around = similarity(degrees, 1 / shrink, (0, 0))
        around[:, 2] = 24 - around[:, :2] @ [450, 450]
        assert np.abs(warp(board, around, 48).astype(float) - 127.5).max() < 12
        if degrees:
            assert warp(board, around, 48, antialias=False).std() > 25

    @pytest.mark.parametrize("shrink", [1.5, 3.0, 6.5])
    def test_what_the_crop_can_show_stays(self, shrink: float) -> None:
        y, x = np.mgrid[0:600, 0:600]
        waves = 127.5 + 100 * np.sin(2 * np.pi * (x * 0.6 + y * 0.8) / (12 * shrink))  # 12 pixels of the crop
        photo = np.repeat(waves.round().astype(np.uint8)[:, :, None], 3, axis=2)
        crop = warp(photo, similarity(20, 1 / shrink, (20.0, -20.0)), 48).astype(float)
        assert crop[8:-8, 8:-8].max() - crop[8:-8, 8:-8].min() > 0.85 * 200

    def test_nothing_jumps_where_shrinking_begins(self) -> None:
        photo = smooth(160, 160)
        changes = []
        for scale in (0.9999, 0.97, 0.9, 0.7):
            matrix = similarity(9, scale, (5.0, -10.0))
            plain = warp(photo, matrix, 112, antialias=False).astype(int)
            changes.append(np.abs(warp(photo, matrix, 112) - plain)[20:-20, 20:-20].mean())
        assert changes[0] == 0
        assert changes == sorted(changes)
        assert changes[-1] < 2

    @pytest.mark.parametrize("shrink", [0.25, 1.0, 2.7, 5.0, 8.3])
    def test_places_stay_exact_at_every_size(self, shrink: float) -> None:
        truth = similarity(-14, 1 / shrink, (0, 0))
        near = np.array([[30.0, 31.5], [82.25, 40.0], [55.5, 80.75]])
        side = math.ceil(190 * shrink)
        truth[:, 2] = 56 - truth[:, :2] @ [side / 2, side / 2]
        back = np.linalg.inv(np.vstack([truth, [0, 0, 1]]))[:2]
        photo = with_dots(moved(near, back), side, side, radius=2.5 * shrink)
        assert np.abs(centers_of_dots(warp(photo, truth, 112), near, 9) - near).max() < 0.05

    def test_beyond_the_photo_is_black_or_its_border(self) -> None:
        photo = np.full((10, 10, 3), 80, np.uint8)
        away = similarity(0, 1, (500, 0))
        assert not warp(photo, away, 8).any()
        assert (warp(photo, away, 8, border="replicate") == 80).all()
        tiny = np.full((1, 1, 3), 9, np.uint8)
        assert (warp(tiny, similarity(0, 0.01, (3, 3)), 8, border="replicate") == 9).all()

    def test_it_takes_views_and_read_only_photos(self) -> None:
        photo = smooth(60, 60)
        matrix = similarity(5, 0.6, (1.0, 2.0))
        wanted = warp(photo[:, ::-1].copy(), matrix, 30)
        locked = photo.copy()
        locked.setflags(write=False)
        assert np.array_equal(warp(locked[:, ::-1], matrix, 30), wanted)

    def test_what_is_out_of_range_is_named(self) -> None:
        photo = noise(9, 9)
        with pytest.raises(SettingError, match="size_px is 0"):
            warp(photo, IDENTITY, 0)
        with pytest.raises(SettingError, match="border is 'white'"):
            warp(photo, IDENTITY, 4, border="white")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="no inverse"):
            warp(photo, np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), 4)
        with pytest.raises(DataError, match="no inverse"):
            warp(photo, IDENTITY * np.nan, 4)
        with pytest.raises(ShapeError, match="9 x 9 of uint8"):
            warp(photo[:, :, 0], IDENTITY, 4)


class TestAlign:
    @pytest.mark.parametrize("scale", [0.6, 1.0, 3.7])
    def test_landmarks_come_to_lie_on_the_template(self, scale: float) -> None:
        landmarks = moved(TEMPLATE_112, similarity(28, scale, (140.0 * scale, 40.0 * scale)))
        photo = with_dots(landmarks, round(320 * scale), round(320 * scale), radius=2 * scale)
        found = centers_of_dots(align(photo, landmarks), TEMPLATE_112, 7)
        assert np.abs(found - TEMPLATE_112).max() < 0.15

    def test_a_margin_shows_more_around_the_same_center(self) -> None:
        landmarks = moved(TEMPLATE_112, similarity(0, 2.0, (100.0, 100.0)))
        photo = with_dots(landmarks, 500, 500, radius=4)
        wider = 55.5 + (TEMPLATE_112 - 55.5) / 1.5
        found = centers_of_dots(align(photo, landmarks, margin=0.5), wider, 6)
        assert np.abs(found - wider).max() < 0.15

    def test_another_template_and_size(self) -> None:
        landmarks = moved(TEMPLATE_112, similarity(10, 1.0, (60.0, 20.0)))
        photo = with_dots(landmarks, 220, 220, radius=2)
        template = 1.5 * TEMPLATE_112 - 3
        crop = align(photo, landmarks, template=template, size_px=160)
        assert crop.shape == (160, 160, 3)
        assert np.abs(centers_of_dots(crop, template, 9) - template).max() < 0.15

    def test_the_landmarks_of_lfw_lie_on_the_template(self, shared: Path) -> None:
        lines = (shared / "data" / "faces" / "lfw" / "index.csv").read_text().splitlines()
        head = lines[0].split(",")
        first = next(i for i, line in enumerate(head) if i > 2 and "score" not in line)
        rows = [line.split(",") for line in lines[1::200]]
        residuals = []
        for row in rows:
            points = np.array([float(value) for value in row[first : first + 10]]).reshape(5, 2)
            residuals.append(np.abs(moved(points, similarity_transform(points, TEMPLATE_112)) - TEMPLATE_112).mean())
            assert 50 < face_px_of(points) < 160
        assert np.median(residuals) < 3

    def test_portraits_align_to_the_published_crops(self, shared: Path) -> None:
        detection = pytest.importorskip("keyhole.faces.images.detection")
        pytest.importorskip("onnxruntime")
        faces = shared / "data" / "faces"
        detector = detection.Detector(faces / "models" / "yunet_n_640_640.onnx")
        with zipfile.ZipFile(faces / "london" / "london_faces.zip") as archive:
            names = sorted(name for name in archive.namelist() if "portrait512/" in name and name.endswith(".jpg"))
            for name in names[:40:10]:
                photo = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
                crop = archive.read(name.replace("portrait512", "aligned112"))
                wanted = np.array(Image.open(io.BytesIO(crop)).convert("RGB")).astype(int)
                (face,) = detector.detect(photo)
                made = align(photo, face.landmarks)
                assert np.abs(made - wanted).mean() < 8
                again = detector.detect(np.array(Image.fromarray(made).resize((224, 224))))
                assert np.abs(again[0].landmarks / 2 - TEMPLATE_112).mean() < 3


class TestBox:
    def test_whole_pixels_are_a_slice(self) -> None:
        photo = noise(40, 60)
        assert np.array_equal(crop_box(photo, (11, 5, 20, 20), size_px=20), photo[5:25, 11:31])

    def test_a_margin_is_shared_by_both_sides(self) -> None:
        photo = noise(60, 60)
        assert np.array_equal(crop_box(photo, (20, 20, 20, 20), margin=0.3, size_px=26), photo[17:43, 17:43])
        assert np.array_equal(crop_box(photo, (20, 20, 20, 20), margin=1, size_px=40), photo[10:50, 10:50])

    def test_a_box_becomes_square_around_its_center_or_is_stretched(self) -> None:
        photo = noise(60, 60)
        assert np.array_equal(crop_box(photo, (25, 20, 10, 20), size_px=20), photo[20:40, 20:40])
        stretched = crop_box(photo, (25, 20, 10, 20), size_px=20, square=False)
        narrow = photo[20:40, 25:35].astype(float)
        between = 0.75 * narrow[:, :-1] + 0.25 * narrow[:, 1:]
        assert np.abs(stretched[:, 1:-1:2] - between).max() <= 0.51

    def test_a_large_box_is_averaged(self) -> None:
        photo = smooth(400, 400)
        made = crop_box(photo, (40, 60, 300, 300), size_px=50)
        wanted = np.asarray(Image.fromarray(photo[60:360, 40:340]).resize((50, 50), Image.Resampling.BILINEAR))
        assert np.abs(made.astype(int) - wanted)[1:-1, 1:-1].mean() < 3

    def test_a_box_over_the_border(self) -> None:
        photo = np.full((20, 20, 3), 60, np.uint8)
        crop = crop_box(photo, (-10, 5, 20, 20), size_px=20)
        assert not crop[:, :10].any()
        assert (crop[:15, 10:] == 60).all()
        assert (crop_box(photo, (-10, 5, 20, 20), size_px=20, border="replicate") == 60).all()
        assert not crop_box(photo, (900, 900, 20, 20), size_px=20).any()

    @pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, 5, -1), (math.nan, 0, 5, 5), (0, 0, math.inf, 5)])
    def test_a_box_without_area_is_refused(self, box: tuple[float, float, float, float]) -> None:
        with pytest.raises(DataError, match="box is") as error:
            crop_box(noise(9, 9), box)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("margin", [-0.1, 1.1, math.nan])
    def test_a_margin_outside_0_to_1_is_refused(self, margin: float) -> None:
        with pytest.raises(SettingError, match="margin is"):
            crop_box(noise(9, 9), (0, 0, 4, 4), margin=margin)


class TestRetemplate:
    TIGHT = 1.45 * TEMPLATE_112 - (22.0, 18.0)

    def test_it_is_the_warp_of_every_crop(self) -> None:
        crops = np.stack([smooth(112, 112), noise(112, 112), noise(112, 112, 1)])
        for template, size, margin in ((self.TIGHT, 128, 0.0), (0.4 * TEMPLATE_112, 45, 0.0), (TEMPLATE_112, 112, 0.5)):
            made = retemplate(torch.from_numpy(crops), template, size, margin=margin)
            matrix = similarity_transform(TEMPLATE_112, widen(template, size, margin))
            for crop, own in zip(crops, made.numpy(), strict=True):
                wanted = warp(crop, matrix, size).astype(int)
                assert np.abs(own - wanted).max() <= 1

    def test_it_does_not_depend_on_the_batch(self) -> None:
        crops = torch.from_numpy(np.stack([noise(112, 112, seed) for seed in range(130)]))
        made = retemplate(crops, self.TIGHT, 128)
        assert made[100:101].equal(retemplate(crops[100:101], self.TIGHT, 128))
        assert retemplate(crops[:0], self.TIGHT, 128).shape == (0, 128, 128, 3)

    def test_beyond_the_crop(self) -> None:
        crops = torch.full((1, 112, 112, 3), 70, dtype=torch.uint8)
        assert retemplate(crops, TEMPLATE_112, 112, margin=1.0)[0, 0, 0].tolist() == [0, 0, 0]
        assert (retemplate(crops, TEMPLATE_112, 112, margin=1.0, border="replicate") == 70).all()

    def test_other_crops_are_refused(self) -> None:
        for call in (
            lambda: retemplate(torch.zeros(2, 96, 96, 3, dtype=torch.uint8), TEMPLATE_112, 112),
            lambda: retemplate(torch.zeros(2, 112, 112, 3, dtype=torch.uint8), TEMPLATE_112, 0),
            lambda: retemplate(torch.zeros(2, 112, 112, 3, dtype=torch.uint8), TEMPLATE_112, 112, margin=3.0),
            lambda: retemplate(torch.zeros(2, 112, 112, 3, dtype=torch.uint8), TEMPLATE_112[:4], 112),
        ):
            with pytest.raises(KeyholeError) as error:
                call()
            assert "\n" not in str(error.value)
