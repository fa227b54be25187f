"""Any form of model gives unit embeddings and one fingerprint; what cannot be right is an error in one line."""

from __future__ import annotations

import importlib.util
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from face_toys import SIDE, SIZE, ToyModule, toy_rows, toy_weights, write_onnx, write_openvino, write_toml
from keyhole.errors import DivergenceError, SettingError, ShapeError, UnknownNameError, WeightsError
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.models.mobilefacenet import MobileFaceNet
from keyhole.faces.models.registry import KNOWN_MODELS


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.randint(0, 256, (37, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def wanted(crops: torch.Tensor) -> np.ndarray:
    images = (crops.numpy().transpose(0, 3, 1, 2) - 127.5) / 127.5
    rows = toy_rows(images, toy_weights())
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def onnx_model(folder: Path, **how: object) -> FaceModel:
    write_onnx(folder / "toy.onnx", **how)
    return load_face_model(write_toml(folder / "toy.toml", 'file = "toy.onnx"'), threads=1)


def test_every_runtime_gives_the_unit_rows_of_loops(tmp_path: Path, crops: torch.Tensor, wanted: np.ndarray) -> None:
    write_onnx(tmp_path / "toy.onnx", batch=1)
    write_openvino(tmp_path / "toy.xml", tmp_path / "toy.onnx")
    paths = [
        write_toml(tmp_path / "a.toml", 'file = "toy.onnx"'),
        write_toml(tmp_path / "b.toml", 'file = "toy.xml"'),
        write_toml(tmp_path / "c.toml", 'module = "face_toys:bare"'),
        "face_toys:described",
    ]
    models = [load_face_model(path, threads=1, device="cpu") for path in paths]
    models.append(load_face_model(paths[0], threads=1, runtime="openvino"))
    for model in models:
        assert model.embedding_size == SIZE
        found = model.embed(crops)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert len({model.fingerprint for model in models[:4]}) == 3, "a module is one, from TOML or by itself"
    assert models[4].fingerprint == models[0].fingerprint


@pytest.mark.parametrize("batch", ["n", 1, 16])
def test_an_embedding_does_not_depend_on_its_neighbors(tmp_path: Path, crops: torch.Tensor, batch: int | str) -> None:
    model = onnx_model(tmp_path, batch=batch)
    together = model.embed(crops)
    for index in (0, 15, 16, 36):
        torch.testing.assert_close(model.embed(crops[index : index + 1])[0], together[index], atol=1e-6, rtol=0)
    assert model.embed(crops[:0]).shape == (0, SIZE)
    with pytest.raises(ShapeError, match=r"expected torch\.uint8"):
        model.embed(crops.float()[:0])


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [
        ("turns_nan", DivergenceError, "gave NaN or infinity for face 20 of 37 "),
        ("turns_zero", DivergenceError, "gave all zeros for face 20 of 37 "),
        ("grows", SettingError, "gave 5 numbers for a face; its description says 4"),
    ],
)
def test_what_is_no_embedding_is_one_line(
    tmp_path: Path, crops: torch.Tensor, function: str, error: type[Exception], reason: str
) -> None:
    model = load_face_model(write_toml(tmp_path / "m.toml", f'module = "face_toys:{function}"'), device="cpu")
    crops[20] = 0
    with pytest.raises(error, match=reason) as caught:
        model.embed(crops)
    assert "\n" not in str(caught.value)


def test_a_map_is_no_embedding(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"gave \(2, 3, 16, 16\) for 2 images"):
        load_face_model(write_toml(tmp_path / "m.toml", 'module = "face_toys:maps"'))


def test_a_network_that_promises_any_batch_and_fails_is_found_at_load(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="toy cannot run 2 images of 16 x 16 px") as caught:
        onnx_model(tmp_path, stiff=True)
    assert "\n" not in str(caught.value)


def test_the_promised_size_is_checked_at_load(tmp_path: Path) -> None:
    write_onnx(tmp_path / "toy.onnx")
    path = write_toml(tmp_path / "toy.toml", 'file = "toy.onnx"\nembedding_size = 512')
    with pytest.raises(SettingError, match="toy gives 8 numbers for a face; its description says 512"):
        load_face_model(path)


def test_the_fingerprint_covers_network_weights_and_preparation(tmp_path: Path) -> None:
    def fingerprint(text: str = "", **how: object) -> str:
        write_onnx(tmp_path / "toy.onnx", **how)
        return load_face_model(write_toml(tmp_path / "toy.toml", 'file = "toy.onnx"\n' + text)).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint("name = 'other'\n[licenses]\ndata = 'mine'") == first
    others = {
        fingerprint(weights=toy_weights(1)),
        fingerprint(flat=True),
        fingerprint("color = 'bgr'"),
        fingerprint("margin = 0.1"),
    }
    assert len(others | {first}) == 5


def test_the_fingerprint_covers_weights_in_another_file(tmp_path: Path) -> None:
    first = onnx_model(tmp_path, external="toy.weights")
    graph = (tmp_path / "toy.onnx").read_bytes()
    (tmp_path / "toy.weights").unlink()  # the exporter appends to a file that is there
    second = onnx_model(tmp_path, external="toy.weights", weights=toy_weights(1))
    assert (tmp_path / "toy.onnx").read_bytes() == graph
    assert first.fingerprint != second.fingerprint

    long = "w" * 200 + ".weights"  # a name whose length takes two bytes
    first = onnx_model(tmp_path, external=long)
    (tmp_path / long).unlink()
    second = onnx_model(tmp_path, external=long, weights=toy_weights(1))
    assert first.fingerprint != second.fingerprint

    onnx = write_onnx(tmp_path / "a.onnx")
    xml = write_toml(tmp_path / "a.toml", 'file = "a.xml"')
    write_openvino(tmp_path / "a.xml", onnx)
    first = load_face_model(xml)
    weights = bytearray((tmp_path / "a.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "a.bin").write_bytes(weights)
    assert load_face_model(xml).sha256 == first.sha256
    assert load_face_model(xml).fingerprint != first.fingerprint


def test_the_fingerprint_of_a_module_covers_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import face_toys

    first = load_face_model("face_toys:described", device="cpu")
    assert first.sha256 is None
    assert load_face_model("face_toys:described", device="cpu").fingerprint == first.fingerprint
    monkeypatch.setattr(face_toys, "toy_weights", lambda seed=0: toy_weights(1))
    assert load_face_model("face_toys:described", device="cpu").fingerprint != first.fingerprint
    assert isinstance(first.network.module, ToyModule)


@pytest.mark.parametrize(
    ("model", "error", "reason"),
    [
        ("no-such-model", UnknownNameError, r"Unknown face model 'no-such-model'.*Or name a file"),
        ("opencv-sfac", UnknownNameError, "nearest known: opencv-sface"),
        ("yunet-2023mar", WeightsError, "yunet-2023mar is not in"),
        ("face_toys:bare", SettingError, "face_toys:bare has no description"),
        ("face_toys:describe", UnknownNameError, "Unknown function in face_toys 'describe'; nearest known: described"),
        ("face_toy:described", UnknownNameError, "Cannot import 'face_toy' of 'face_toy:described': No module named"),
        ("none.onnx", WeightsError, "no such file"),
        ("none.pt", WeightsError, "no such file"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(
    tmp_path: Path, model: str, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        load_face_model(model, folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_file_asks_for_a_description_and_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "toy.onnx")
    with pytest.raises(SettingError, match=r"is no known model \(SHA-256 [0-9a-f]{64}\)\. Describe it in a \.toml"):
        load_face_model(path)
    text = f'file = "toy.onnx"\nsha256 = "{"0" * 64}"'
    with pytest.raises(WeightsError, match=r"has SHA-256 .*; its description says 0000"):
        load_face_model(write_toml(tmp_path / "toy.toml", text))
    with pytest.raises(UnknownNameError, match="Unknown runtime 'tensorrt'"):
        load_face_model(path, runtime="tensorrt")


def test_weights_alone_need_a_network_and_fit_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(MobileFaceNet().state_dict(), tmp_path / "w.pt")
    with pytest.raises(SettingError, match=r"holds weights alone\. Say network = one of mobilefacenet"):
        load_face_model(write_toml(tmp_path / "a.toml", 'file = "w.pt"'))
    model = load_face_model(write_toml(tmp_path / "b.toml", 'file = "w.pt"\nnetwork = "mobilefacenet"', base=""))
    assert model.preparation == KNOWN_MODELS["mobilefacenet"].preparation
    assert model.embed(torch.zeros(1, 112, 112, 3, dtype=torch.uint8)).shape == (1, 128)
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(UnknownNameError, match=r"Unknown form of model file '\.h5'"):
        load_face_model(write_toml(tmp_path / "c.toml", 'file = "w.h5"'))


@pytest.fixture(scope="module")
def faces(shared: Path) -> torch.Tensor:
    with zipfile.ZipFile(shared / "data" / "faces" / "london" / "london_faces.zip") as archive:
        names = sorted(name for name in archive.namelist() if "aligned112/" in name and name.endswith("jpg"))[:6]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    return torch.from_numpy(np.stack(pixels))


def tool(shared: Path, name: str) -> Callable[..., torch.nn.Module]:
    spec = importlib.util.spec_from_file_location(name, shared / "data" / "faces" / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.IRModule


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the second reader leaves its file open
def test_intels_model_needs_no_description_and_gives_what_a_second_reader_gives(
    shared: Path, faces: torch.Tensor
) -> None:
    folder = shared / "data" / "faces" / "models"
    stem = "face-reidentification-retail-0095"
    crops = torch.nn.functional.pad(faces.permute(0, 3, 1, 2), (8, 8, 8, 8)).permute(0, 2, 3, 1)
    second = tool(shared, "ir2torch")(str(folder / f"{stem}.fp16.xml"), str(folder / f"{stem}.fp16.bin")).eval()
    with torch.inference_mode():
        raw = second(crops.flip(-1).permute(0, 3, 1, 2).float()).flatten(1)
    wanted = torch.nn.functional.normalize(raw)
    for file in (f"{stem}.fp16.xml", f"{stem}.fp32.onnx"):
        model = load_face_model(folder / file, threads=1)
        assert (model.name, model.embedding_size) == (stem, 256)
        assert model.licenses.weights == "Apache-2.0"
        torch.testing.assert_close(model.embed(crops), wanted, atol=1e-4, rtol=0)


def test_a_model_by_name_is_found_in_its_folder_and_checked(shared: Path, faces: torch.Tensor, tmp_path: Path) -> None:
    source = shared / "data" / "faces" / "models" / "foamliu_mobilefacenet.pt"
    target = tmp_path / "mobilefacenet.pt"
    shutil.copyfile(source, target)
    model = load_face_model("mobilefacenet", folder=tmp_path, device="cpu", threads=1)
    assert model.fingerprint == load_face_model(source, device="cpu", threads=1).fingerprint
    scores = model.embed(faces) @ model.embed(faces).T
    torch.testing.assert_close(scores.diagonal(), torch.ones(6))
    target.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="Download it again"):
        load_face_model("mobilefacenet", folder=tmp_path)


def test_the_weights_beside_a_known_file_are_checked(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "faces" / "models"
    for kind in ("xml", "bin"):
        shutil.copyfile(folder / f"face-reidentification-retail-0095.fp16.{kind}", tmp_path / f"a.{kind}")
    (tmp_path / "a.bin").chmod(0o644)
    with (tmp_path / "a.bin").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match=r"a\.bin has SHA-256 .*Download it again"):
        load_face_model(tmp_path / "a.xml")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(WeightsError, match=r"a\.bin is missing; expected it beside the model"):
        load_face_model(tmp_path / "a.xml")


def test_a_detector_is_no_embedder(shared: Path) -> None:
    with pytest.raises(SettingError, match="yunet-n-640 is a detector"):
        load_face_model(shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx")
