"""Networks as files: equal to what they were made of in the runtime that reads them, and refused where they are not."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import pattern_faces
from keyhole import exporting
from keyhole.errors import DivergenceError, RunError, SettingError, UnknownNameError, WeightsError
from keyhole.exporting import Exported, Prepared, export, load_exported
from keyhole.faces.models.compact import compact, form_of
from keyhole.faces.models.face_model import load_face_model, save_face_model
from keyhole.faces.models.preparation import Licenses
from keyhole.models.zoo import build, save
from test_cli import keyhole


@pytest.fixture(scope="module")
def network() -> Prepared:
    torch.manual_seed(0)
    made = compact("compact-24-s").train()
    for _ in range(3):  # running statistics of something like images
        made(torch.randn(16, 3, 24, 24))
    return Prepared(made.eval(), mean=(120.0, 125.0, 130.0), std=(60.0, 61.0, 62.0), reverse=True)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 24, 24)).astype(np.float32))


@pytest.fixture(scope="module")
def exported(
    network: Prepared, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Exported]:
    """The network in a form and precision, made once, in a folder of its own."""

    @cache
    def made(ending: str, precision: str) -> Exported:
        return export(network, tmp_path_factory.mktemp("exported") / f"x{ending}", images, precision=precision)

    return made


def test_preparation_is_inside(network: Prepared, images: torch.Tensor) -> None:
    blue_first = images.flip(1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((120.0, 125.0, 130.0), (60.0, 61.0, 62.0)))
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.network((blue_first - mean) / std))


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_file_gives_what_the_network_gives(
    network: Prepared,
    images: torch.Tensor,
    exported: Callable[[str, str], Exported],
    ending: str,
    precision: str,
) -> None:
    found = exported(ending, precision)
    again = np.concatenate(list(exporting._run(found.path, images[:5])))
    with torch.no_grad():
        expected = network(images[:5]).numpy()
    worst = np.abs(again - expected).max() / np.abs(expected).max()
    assert worst <= {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.5}[precision]
    assert found.cosine > {"fp32": 0.99999, "fp16": 0.999, "int8": 0.95}[precision]
    assert found.checked == (10 if precision == "int8" else 40)  # those that calibrated are not judged by
    assert found.size_bytes == sum(each.stat().st_size for each in found.path.parent.iterdir())
    if precision == "fp32":
        assert found.size_bytes > 4 * sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(("ending", "weights"), [(".onnx", ".onnx"), (".xml", ".bin")])
def test_half_and_integers_are_smaller(exported: Callable[[str, str], Exported], ending: str, weights: str) -> None:
    sizes = [
        exported(ending, precision).path.with_suffix(weights).stat().st_size for precision in ("fp32", "fp16", "int8")
    ]
    assert sizes[0] > 1.6 * sizes[1]
    assert sizes[0] > 1.7 * sizes[2]  # what stays whole is a fifth of this small network


def test_an_ir_in_integers_computes_in_integers(exported: Callable[[str, str], Exported]) -> None:
    import openvino

    kinds = {}
    for precision in ("fp16", "int8"):
        graph = openvino.Core().read_model(str(exported(".xml", precision).path)).get_ops()
        kinds[precision] = [f"{op.get_type_name()} {op.get_output_element_type(0).get_type_name()}" for op in graph]
    assert kinds["int8"].count("FakeQuantize f32") > 20
    assert kinds["int8"].count("Constant i8") > 10
    assert not any(kind.startswith("FakeQuantize") or kind.endswith(" i8") for kind in kinds["fp16"])


def rows_at(cosines: list[float]) -> np.ndarray:
    """Rows that lie so to the first axis."""
    return np.array([(cosine, math.sqrt(1 - cosine**2)) for cosine in cosines], np.float32)


AXIS = np.array([(1, 0)] * 2, np.float32)


def test_integers_may_turn_outputs_by_a_mean_cosine_of_95_hundredths() -> None:
    worst, cosine, least = exporting._compared(rows_at([0.92, 1.0]), AXIS, Path("x.xml"), "int8")
    assert worst == pytest.approx(math.sqrt(1 - 0.92**2), abs=1e-6)
    assert (cosine, least) == pytest.approx((0.96, 0.92), abs=1e-6)
    with pytest.raises(DivergenceError, match=r"another direction than the network: mean cosine 0\.940, expected at"):
        exporting._compared(rows_at([0.88, 1.0]), AXIS, Path("x.xml"), "int8")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_numbers_that_are_none_and_other_shapes_are_refused(precision: str) -> None:
    broken = AXIS.copy()
    broken[1, 1] = np.nan
    for found, shape in ((broken, "(2, 2)"), (AXIS[:1], "(1, 2)"), (AXIS[:, :1], "(2, 1)")):
        with pytest.raises(DivergenceError) as caught:
            exporting._compared(found, AXIS, Path("x.onnx"), precision)
        assert f"x.onnx gives {shape} instead of (2, 2), or NaN" in str(caught.value)


def test_what_is_wrong_is_told_and_nothing_is_written(
    network: Prepared, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match=r"form to export '\.tflite'"):
        export(network, tmp_path / "x.tflite", images)
    with pytest.raises(UnknownNameError, match="Unknown precision 'int4'; nearest known: int8"):
        export(network, tmp_path / "x.onnx", images, precision="int4")
    with pytest.raises(SettingError, match="no images to check"):
        export(network, tmp_path / "x.onnx", images[:0])
    monkeypatch.setitem(exporting._ALLOWED, "fp16", 1e-9)
    with pytest.raises(DivergenceError, match="differs from the network by"):
        export(network, tmp_path / "x.onnx", images, precision="fp16")
    monkeypatch.setattr(exporting, "_COSINE", 1.0)
    with pytest.raises(DivergenceError, match=r"another direction than the network: mean cosine [01]\."):
        export(network, tmp_path / "x.xml", images[:4], precision="int8")
    assert list(tmp_path.iterdir()) == []


class _Branching(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(images[..., :8, :8].mean(1)).real


def test_a_network_that_onnx_cannot_hold_is_told(images: torch.Tensor, tmp_path: Path) -> None:
    odd = Prepared(_Branching(), mean=(0.0,) * 3, std=(1.0,) * 3, reverse=False)
    with pytest.raises(SettingError, match="cannot be written as ONNX"):
        export(odd, tmp_path / "x.onnx", images)


def test_nothing_is_told_to_the_maker_of_the_quantizer() -> None:
    """NNCF sends what is done with it unless somebody objects; in a process of its own, as it knows pytest."""
    code = (
        "import sys; from keyhole.exporting import _silent_nncf; _silent_nncf(); "
        "from nncf.telemetry import wrapper; "
        "print(type(wrapper.telemetry).__name__, 'openvino_telemetry' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert told.split()[-2:] == ["MagicMock", "False"]


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_the_shipped_face_model_keeps_its_directions_in_integers(shared: Path, tmp_path: Path, ending: str) -> None:
    faces = shared / "data" / "faces" / "congress" / "congress_faces.zip"
    command = ("export", "--model", "keyhole-face", "--faces", faces, "--samples", 24, "--precision", "int8", "--json")
    found = keyhole(*command, "--out", tmp_path / f"face{ending}").json
    assert found["cosine"] > 0.985
    assert found["least_cosine"] > 0.95
    assert found["bytes"] < 3.0e6  # of 4.4e6 in fp32
    assert load_face_model(tmp_path / f"face{ending}.toml", threads=1).embedding_size == 256


def _file(folder: Path, text: str) -> Path:
    (folder / "other.txt").write_text(text)
    return folder / "other.txt"


def test_a_face_model_is_exported_and_used_like_any_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, how = tmp_path / "student.safetensors", form_of("compact-24-s").preparation
    save_face_model(source, compact("compact-24-s").eval(), "compact-24-s", how, licenses=Licenses(data='"drawn"'))
    for person in range(6):
        pattern_faces.write(tmp_path / "faces" / f"p{person}" / "0.png", person)
    command = ("export", "--model", source, "--faces", tmp_path / "faces", "--precision", "fp32")
    found = keyhole(*command, "--out", tmp_path / "x.onnx", "--json").json
    assert found["images"] == 6
    exported = load_face_model(tmp_path / "x.onnx.toml", threads=1)
    original = load_face_model(source, threads=1, device="cpu")
    crops = torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8)
    torch.testing.assert_close(exported.embed(crops), original.embed(crops), rtol=0, atol=1e-3)
    assert exported.licenses.data == '"drawn"'
    (tmp_path / "people.txt").write_bytes(b"\xef\xbb\xbfp1\np2\np4\n")  # with a byte order mark
    some = (*command[:-1], "int8", "--people", tmp_path / "people.txt", "--degrade", "fixed:8;jpeg=50")
    small = keyhole(*some, "--out", tmp_path / "small.onnx", "--json").json
    sharp = keyhole(*some[:-2], "--out", tmp_path / "sharp.onnx", "--json").json
    assert (small["images"], sharp["images"]) == (3, 3)
    assert small["cosine"] != sharp["cosine"]  # other faces, other ranges
    assert (
        "no picture of 1 of the people" in keyhole(*command, "--people", _file(tmp_path, "p9"), "--out", "w.onnx").err
    )
    pairs = "2 1\np0 1 2\np0 1 p1 1\np2 1 2\np2 1 p3 1\n"
    (tmp_path / "faces" / "pairs.txt").write_text(pairs)
    apart = ("--apart", tmp_path / "faces", "--apart-folds", 2, "--out", tmp_path / "apart.onnx", "--json")
    assert keyhole(*command, *apart).json["images"] == 4  # all but p2 and p3
    assert "name those as well" in keyhole(*command, "--apart-folds", 2, "--out", tmp_path / "no.onnx").err
    classes = ("export", "--model", "resnet8", "--data", "digits", "--out", tmp_path / "no.onnx")
    assert "choose among --faces" in keyhole(*classes, "--apart", tmp_path / "faces").err
    assert load_face_model(tmp_path / "x.onnx", threads=1).fingerprint == exported.fingerprint  # described beside it
    again = keyhole("export", "--model", tmp_path / "x.onnx.toml", *command[3:], "--out", tmp_path / "y.onnx")
    assert "is ONNX already" in again.err
    over = ("export", "--model", tmp_path / "x.onnx.toml", *command[3:], "--out", tmp_path / "x.onnx")
    assert f"would write over {tmp_path / 'x.onnx'}, of the model itself" in keyhole(*over).err
    assert "is a face model" in keyhole("export", "--model", source, "--out", tmp_path / "z.onnx").err
    assert "the model itself" in keyhole(*command, "--out", source).err


def test_a_classifier_is_exported(tmp_path: Path, cifar100_root: Path) -> None:
    torch.manual_seed(0)
    student = tmp_path / "student.safetensors"
    save(build("resnet8", classes=100), student)
    command = ("export", "--model", student, "--data", "cifar100", "--root", cifar100_root, "--samples", 16)
    (tmp_path / "x.onnx.toml").write_text("file = 'x.onnx'\n")  # of a face model that lay there
    found = keyhole(*command, "--out", tmp_path / "x.onnx", "--json").json
    assert found["cosine"] > 0.9999
    assert not (tmp_path / "x.onnx.toml").exists()
    assert "mean cosine" in keyhole(*command, "--out", tmp_path / "x.xml").out
    told = ("--data", "cifar100", "--root", cifar100_root, "--json")
    for name in ("x.onnx", "x.xml"):
        again = keyhole("evaluate", "--model", tmp_path / name, *told).json
        here = keyhole("evaluate", "--model", student, *told).json
        assert (again["model"], again["images"]) == (name, here["images"])
        assert again["top1"] == pytest.approx(here["top1"], abs=0.5)
        assert again["top5"] == pytest.approx(here["top5"], abs=0.5)
    assert (
        "x.onnx brings its own weights"
        in keyhole("evaluate", "--model", tmp_path / "x.onnx", "--weights", "a", *told).err
    )
    assert "no such file" in keyhole("evaluate", "--model", tmp_path / "none.onnx", *told).err
    (tmp_path / "x.bin").unlink()
    assert "x.bin, the weights of" in keyhole("evaluate", "--model", tmp_path / "x.xml", *told).err
    untrained = ("--model", "resnet8", "--data", "cifar100", "--root", cifar100_root)
    assert "resnet8 has random weights; expected a trained" in keyhole("export", *untrained, "--out", "n.onnx").err
    assert "Warning: resnet8 has random weights; give --weights" in keyhole("evaluate", *untrained).err
    (tmp_path / "x.onnx.toml").write_text("")
    assert "is a face model" in keyhole("evaluate", "--model", tmp_path / "x.onnx", *told).err
    (tmp_path / "bad.onnx").write_bytes(b"text")
    broken = keyhole("evaluate", "--model", tmp_path / "bad.onnx", *told)
    assert broken.code == 1
    assert "no classifier that 'keyhole export' wrote" in broken.err.splitlines()[-1]
    assert "Unknown precision" in keyhole(*command, "--out", tmp_path / "y.onnx", "--precision", "int7").err


def test_a_network_of_gray_images_is_exported_and_measured(tmp_path: Path) -> None:
    keyhole("train", "--model", "resnet8", "--data", "digits", "--epochs", 2, "--out", tmp_path / "run")
    student = tmp_path / "run" / "student.safetensors"
    here = keyhole("evaluate", "--model", student, "--data", "digits", "--json").json
    assert here["top1"] > 50
    for ending in ("onnx", "xml"):
        path = tmp_path / f"x.{ending}"
        keyhole("export", "--model", student, "--data", "digits", "--samples", 32, "--out", path)
        again = keyhole("evaluate", "--model", path, "--data", "digits", "--json").json
        assert again["top1"] == pytest.approx(here["top1"], abs=0.3)


def test_a_file_that_takes_so_many_images_and_no_other_number_is_told(network: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with warnings.catch_warnings(action="ignore"):  # the exporter tells of its own successor
        example = (torch.zeros(1, 3, 24, 24),)
        torch.onnx.export(network, example, path, input_names=["images"], output_names=["output"], dynamo=False)
    with pytest.raises(WeightsError, match="it takes 1 images at a time, and no other number"):
        load_exported(path)


def test_an_export_that_cannot_be_written_leaves_the_earlier_one(
    network: Prepared, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.xml"
    export(network, path, images[:4])
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    def full(target: Path, data: bytes) -> None:
        if target.name.startswith(".x.bin"):
            raise RunError("No space left on device")
        target.write_bytes(data)

    monkeypatch.setattr("keyhole.exporting.write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        export(network, path, images[:4], precision="fp16")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
