"""The detector's faces are OpenCV's, at every size and in every order; and one face is chosen by a stated rule."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyhole.errors import KeyholeError, SettingError, ShapeError, WeightsError
from keyhole.faces.images.detection import Detector, Face, choose
from keyhole.faces.images.photos import read_frames

pytest.importorskip("onnxruntime")

POINTS = np.zeros((5, 2))


def made_detector(strides: tuple[int, ...] = (8, 16, 32), fixed: int = 64, box: float = 0.0) -> bytes:
    """Return a network of YuNet's form whose answers can be read off a photo.

    A cell of any stride is as sure of a face as its brightest blue is bright; the box has the cell's top left corner in
    its center and is 1 stride wide and high; landmark i is i strides right of the corner and 1 below.
    """
    onnx = pytest.importorskip("onnx")
    helper, numbers = onnx.helper, onnx.numpy_helper.from_array
    nodes, constants, outputs = [], [numbers(np.array([1 / 255], np.float32), "unit")], []
    kps = np.stack([np.arange(5), np.ones(5)], 1).astype(np.float32).ravel()
    for size, name in ((1, "rows_1"), (4, "rows_4"), (10, "rows_10")):
        constants.append(numbers(np.array([1, -1, size], np.int64), name))
    constants += [numbers(np.full((1, 4, 1, 1), box, np.float32), "box"), numbers(kps.reshape(1, 10, 1, 1), "points")]
    constants.append(numbers(np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1), "blue"))
    constants.append(numbers(np.zeros((1, 3, 1, 1), np.float32), "nothing"))
    for stride in strides:
        s = str(stride)
        nodes += [
            helper.make_node("MaxPool", ["input"], ["m" + s], kernel_shape=[stride] * 2, strides=[stride] * 2),
            helper.make_node("Mul", ["m" + s, "unit"], ["u" + s]),
            helper.make_node("Conv", ["u" + s, "blue"], ["sure" + s], kernel_shape=[1, 1]),
            helper.make_node("Conv", ["u" + s, "nothing"], ["zero" + s], kernel_shape=[1, 1]),
            helper.make_node("Add", ["zero" + s, "box"], ["b" + s]),
            helper.make_node("Add", ["zero" + s, "points"], ["k" + s]),
        ]
        for kind, source, size in (("cls", "sure", 1), ("obj", "sure", 1), ("bbox", "b", 4), ("kps", "k", 10)):
            name = f"{kind}_{s}"
            nodes += [
                helper.make_node("Transpose", [source + s], [f"t_{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t_{name}", f"rows_{size}"], [name]),
            ]
            rows = (fixed // stride) ** 2
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, rows, size]))
    given = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, fixed, fixed])]
    graph = helper.make_graph(nodes, "made", given, outputs, initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.onnx"
    path.write_bytes(made_detector())
    return path


@pytest.fixture(scope="module")
def yunet(shared: Path) -> Path:
    return shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx"


@pytest.fixture(scope="module")
def portraits(shared: Path) -> list[np.ndarray]:
    found = []
    with zipfile.ZipFile(shared / "data" / "faces" / "london" / "london_faces.zip") as archive:
        names = sorted(name for name in archive.namelist() if "portrait512/" in name and name.endswith(".jpg"))
        for name in names[::40]:
            found.append(np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
    return found


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[np.ndarray]:
    clips = sorted((shared / "data" / "faces" / "video").glob("*.gif"))
    return [frame for clip in clips for frame in list(read_frames(clip))[::6]]


def opencvs(path: Path, photo: np.ndarray, score: float = 0.6) -> np.ndarray:
    """Return OpenCV's faces as rows: box, landmarks, score."""
    cv2 = pytest.importorskip("cv2")
    detector = cv2.FaceDetectorYN.create(str(path), "", (photo.shape[1], photo.shape[0]), score, 0.3, 5000)
    found = detector.detect(np.ascontiguousarray(photo[:, :, ::-1]))[1]
    return np.zeros((0, 15)) if found is None else found


def rows(faces: tuple[Face, ...]) -> np.ndarray:
    return np.array([[*face.box, *face.landmarks.ravel(), face.score] for face in faces]).reshape(-1, 15)


def agree(faces: tuple[Face, ...], wanted: np.ndarray, scale: float = 1.0) -> None:
    found = rows(faces)
    assert found.shape == wanted.shape
    assert np.abs(found[:, :14] - wanted[:, :14] * scale).max(initial=0) < 1
    assert np.abs(found[:, 14] - wanted[:, 14]).max(initial=0) < 0.01


def crowd(portraits: list[np.ndarray], seed: int) -> np.ndarray:
    """Return a photo with turned and small portraits at random places, some of them over the border."""
    random = np.random.default_rng(seed)
    width, height = (int(side) for side in random.integers(150, 640, 2))
    scene = Image.new("RGB", (width, height), tuple(int(level) for level in random.integers(0, 255, 3)))
    for _ in range(6):
        portrait = Image.fromarray(portraits[int(random.integers(len(portraits)))])
        side = int(random.integers(24, 160))
        turned = portrait.resize((side, side)).rotate(float(random.uniform(-45, 45)), fillcolor=(128, 128, 128))
        scene.paste(turned, (int(random.integers(-side // 2, width)), int(random.integers(-side // 2, height))))
    return np.array(scene)


class TestAgainstOpenCV:
    def test_portraits(self, yunet: Path, portraits: list[np.ndarray]) -> None:
        detector = Detector(yunet)
        for photo in portraits:
            faces = detector.detect(photo)
            assert len(faces) == 1
            agree(faces, opencvs(yunet, photo))

    def test_frames_of_a_corridor(self, yunet: Path, frames: list[np.ndarray]) -> None:
        detector = Detector(yunet)
        sizes = []
        for photo in frames:
            faces = detector.detect(photo)
            agree(faces, opencvs(yunet, photo))
            sizes += [face.box[3] for face in faces]
        assert len(sizes) > 20
        assert min(sizes) < 25

    def test_turned_small_and_cut_faces(self, yunet: Path, portraits: list[np.ndarray]) -> None:
        detector = Detector(yunet)
        found = []
        for seed in range(8):
            photo = crowd(portraits, seed)
            faces = detector.detect(photo)
            agree(faces, opencvs(yunet, photo))
            found.append(len(faces))
            for face in faces:
                assert np.isfinite(rows((face,))).all()
        assert max(found) >= 4

    @pytest.mark.parametrize("score", [0.1, 0.9])
    def test_other_least_scores(self, yunet: Path, portraits: list[np.ndarray], score: float) -> None:
        photo = crowd(portraits, 3)
        agree(Detector(yunet, score=score).detect(photo), opencvs(yunet, photo, score))

    def test_a_larger_photo_is_looked_at_smaller(self, yunet: Path, portraits: list[np.ndarray]) -> None:
        photo = np.array(Image.fromarray(portraits[0]).resize((1280, 960), Image.Resampling.BICUBIC))
        small = np.array(Image.fromarray(photo).resize((640, 480), Image.Resampling.BILINEAR))
        agree(Detector(yunet).detect(photo), opencvs(yunet, small), scale=2.0)
        agree(Detector(yunet, side_px=1280).detect(photo), opencvs(yunet, photo))

    def test_enlarging_finds_smaller_faces(self, yunet: Path, portraits: list[np.ndarray]) -> None:
        scene = Image.new("RGB", (200, 120), (90, 110, 100))
        for step, portrait in enumerate(portraits[:5]):
            small = Image.fromarray(portrait).resize((20, 20), Image.Resampling.BICUBIC)
            scene.paste(small, (12 + 38 * step, 40))
        photo = np.array(scene)
        plain, enlarged = Detector(yunet).detect(photo), Detector(yunet, enlarge=4).detect(photo)
        assert len(plain) < len(enlarged) == 5
        for face in enlarged:
            middle = face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2
            assert min(math.dist(middle, (12 + 38 * step + 10, 50)) for step in range(5)) < 4

    def test_all_on_threads_is_one_by_one(self, yunet: Path, frames: list[np.ndarray]) -> None:
        detector = Detector(yunet)
        one_by_one = [detector.detect(photo) for photo in frames]
        for threads in (1, 3):
            assert list(detector.detect_all(iter(frames), threads=threads)) == one_by_one


class TestDecoding:
    def test_a_bright_spot_is_a_face_of_every_stride(self, made: Path) -> None:
        photo = np.zeros((64, 96, 3), np.uint8)
        photo[35, 50] = (0, 0, 204)  # RGB: the network sees blue first
        faces = Detector(made, score=0.5, overlap=1.0).detect(photo)
        assert [face.score for face in faces] == pytest.approx([0.8] * 3)
        for face, stride in zip(faces, (8, 16, 32), strict=True):
            column, row = 50 // stride * stride, 35 // stride * stride
            assert face.box == pytest.approx((column - stride / 2, row - stride / 2, stride, stride))
            wanted = [[column + stride * step, row + stride] for step in range(5)]
            assert face.landmarks.tolist() == pytest.approx(np.array(wanted, float))

    def test_the_surest_comes_first_and_the_least_score_counts_as_found(self, made: Path) -> None:
        photo = np.zeros((64, 64, 3), np.uint8)
        photo[4, 4, 2], photo[4, 60, 2], photo[60, 60, 2] = 51, 255, 153
        faces = Detector(made, score=0.2, overlap=1.0).detect(photo)
        scores = [face.score for face in faces]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(1.0)
        assert scores[-1] == pytest.approx(0.2)
        assert len(Detector(made, score=0.21, overlap=1.0).detect(photo)) == len(faces) - sum(s < 0.21 for s in scores)

    @pytest.mark.parametrize("overlap", [0.0, 0.2, 0.3, 0.6, 1.0])
    def test_of_overlapping_faces_the_surest_stays(self, made: Path, overlap: float) -> None:
        photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        every = rows(Detector(made, score=0.3, overlap=1.0).detect(photo))
        assert len(every) == 16 + 4 + 1
        kept: list[np.ndarray] = []
        for row in every:
            box = row[:4].astype(int)
            others = [other[:4].astype(int) for other in kept]
            if all(share(box, other) <= overlap for other in others):
                kept.append(row)
        found = rows(Detector(made, score=0.3, overlap=overlap).detect(photo))
        assert np.array_equal(found, np.array(kept))

    @pytest.mark.parametrize("size", [(1, 1), (31, 33), (1, 400), (2000, 3), (64, 64)])
    def test_photos_of_any_size(self, made: Path, size: tuple[int, int]) -> None:
        detector = Detector(made)
        assert detector.detect(np.zeros((*size, 3), np.uint8)) == ()
        assert detector.detect(np.full((*size, 3), 255, np.uint8))

    @pytest.mark.parametrize(("box", "count"), [(1000.0, 0), (math.nan, 0), (80.0, 1)])
    def test_numbers_without_bound_are_no_face(self, tmp_path: Path, box: float, count: int) -> None:
        path = tmp_path / "wild.onnx"
        path.write_bytes(made_detector(box=box))
        assert len(Detector(path).detect(np.full((64, 64, 3), 255, np.uint8))) == count

    def test_views_and_read_only_photos_are_fine(self, made: Path) -> None:
        photo = np.zeros((700, 500, 3), np.uint8)
        photo[100:140, 30:90] = photo[400:420, 300:330] = 200
        wanted = Detector(made).detect(photo[::-1].copy())
        photo.setflags(write=False)
        assert Detector(made).detect(photo[::-1]) == wanted

    def test_what_is_no_photo_is_refused(self, made: Path) -> None:
        detector = Detector(made)
        with pytest.raises(ShapeError, match="A photo is 5 x 5 of uint8"):
            detector.detect(np.zeros((5, 5), np.uint8))
        faces = detector.detect_all([np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5, 3))], threads=2)
        assert next(faces) == ()
        with pytest.raises(ShapeError):
            next(faces)


def share(a: np.ndarray, b: np.ndarray) -> float:
    """Return intersection over union by counting pixels."""

    def pixels(box: np.ndarray) -> set[tuple[int, int]]:
        x, y, w, h = box
        return {(i, j) for i in range(x, x + w) for j in range(y, y + h)}

    return len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b))


class TestFiles:
    def test_what_cannot_be_read_or_is_no_detector(self, made: Path, tmp_path: Path) -> None:
        files = {"empty": b"", "text": b"not a network", "cut": made.read_bytes()[:900]}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            with pytest.raises(WeightsError, match=f"{name} is no ONNX network that loads") as error:
                Detector(tmp_path / name)
            assert "\n" not in str(error.value)
        with pytest.raises(WeightsError, match=r"Cannot read .*gone"):
            Detector(tmp_path / "gone")

    def test_another_network(self, tmp_path: Path) -> None:
        path = tmp_path / "other.onnx"
        path.write_bytes(made_detector(strides=(8, 16)))
        with pytest.raises(WeightsError, match=r"other\.onnx is no YuNet: it has outputs cls_8, obj_8, ") as error:
            Detector(path)
        assert "\n" not in str(error.value)

    def test_a_network_with_the_names_but_other_shapes(self, made: Path, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load_from_string(made.read_bytes())
        for node in model.graph.node:
            if node.op_type == "Transpose":
                node.attribute[0].ints[:] = [0, 1, 2, 3]
            if node.output[0] == "bbox_8":
                node.input[1] = "rows_1"
        path = tmp_path / "odd.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(WeightsError, match=r"odd\.onnx is no") as error:
            Detector(path)
        assert "\n" not in str(error.value)

    def test_the_checksum_is_the_files(self, made: Path) -> None:
        from keyhole.files import sha256

        assert Detector(made).sha256 == sha256(made)

    @pytest.mark.parametrize(
        "setting",
        [{"score": -0.1}, {"score": 1.1}, {"overlap": math.nan}, {"side_px": 16}, {"side_px": 10**6}, {"enlarge": 0.5}],
    )
    def test_settings_out_of_range(self, made: Path, setting: dict[str, float]) -> None:
        with pytest.raises(SettingError, match=next(iter(setting))):
            Detector(made, **setting)  # type: ignore[arg-type]


class TestChoice:
    NEAR = Face((10.0, 10.0, 40.0, 40.0), POINTS, 0.7)
    FAR = Face((80.0, 40.0, 10.0, 12.0), POINTS, 0.9)

    def test_the_largest(self) -> None:
        assert choose([self.FAR, self.NEAR]) is self.NEAR

    def test_the_one_in_the_middle(self) -> None:
        assert choose([self.NEAR, self.FAR], rule="center", size_px=(170, 92)) is self.FAR
        assert choose([self.NEAR, self.FAR], rule="center", size_px=(60, 60)) is self.NEAR

    def test_the_one_that_was_annotated(self) -> None:
        faces = [self.NEAR, self.FAR]
        assert choose(faces, rule="box", box=(78, 38, 20, 20)) is self.FAR
        assert choose(faces, rule="box", box=(30, 30, 55, 15)) is self.NEAR
        assert choose(faces, rule="box", box=(200, 200, 10, 10)) is None

    def test_of_equals_the_surest(self) -> None:
        twin = Face((60.0, 60.0, 40.0, 40.0), POINTS, 0.6)
        assert choose([self.NEAR, twin]) is self.NEAR

    @pytest.mark.parametrize("rule", ["largest", "center", "box"])
    def test_without_faces_there_is_none(self, rule: str) -> None:
        assert choose([], rule=rule, box=(0, 0, 1, 1), size_px=(5, 5)) is None  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("rule", "words"),
        [("center", "needs size_px"), ("box", "needs box"), ("best", "expected largest, center or box")],
    )
    def test_what_is_missing_or_unknown(self, rule: str, words: str) -> None:
        with pytest.raises(KeyholeError, match=words):
            choose([self.NEAR], rule=rule)  # type: ignore[arg-type]

    def test_faces_are_equal_by_all_they_hold(self) -> None:
        same = Face(self.NEAR.box, POINTS.copy(), 0.7)
        assert same == self.NEAR
        assert hash(same) == hash(self.NEAR)
        assert same != Face(self.NEAR.box, POINTS + 1, 0.7)
        assert same != "a face"
