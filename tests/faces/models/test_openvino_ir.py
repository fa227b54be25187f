"""OpenVINO IR read into PyTorch: equal to OpenVINO itself, trainable, and safe to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import face_toys
from keyhole.errors import WeightsError
from keyhole.faces.models.openvino_ir import read_ir, rebuild, residual_sums

RETAIL = Path("data") / "faces" / "models" / "face-reidentification-retail-0095.fp16.xml"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy network of the other tests, written by OpenVINO itself."""
    import openvino
    from openvino import opset13 as ops

    images = ops.parameter([1, 3, face_toys.SIDE, face_toys.SIDE], np.float32, name="images")
    kernel = ops.constant(face_toys.toy_weights())
    places = ops.convolution(images, kernel, [4, 4], [0, 0], [0, 0], [1, 1], name="places")
    pooled = ops.reduce_mean(places, ops.constant(np.array([2, 3], np.int64)), keep_dims=True)
    path = tmp_path_factory.mktemp("ir") / "toy.xml"
    openvino.save_model(openvino.Model([pooled], [images], "toy"), str(path), compress_to_fp16=False)
    return path


def test_a_toy_gives_what_its_loops_give(toy: Path) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, face_toys.SIDE, face_toys.SIDE)).astype(np.float32)
    module = read_ir(toy)
    with torch.no_grad():
        found = module(torch.from_numpy(images)).flatten(1).numpy()
    np.testing.assert_allclose(found, face_toys.toy_rows(images, face_toys.toy_weights()), atol=1e-5)
    assert module.input_shape == (3, face_toys.SIDE, face_toys.SIDE)


def test_a_published_network_equals_openvino_and_can_be_trained(shared: Path) -> None:
    import openvino

    path = shared / RETAIL
    module = read_ir(path)
    core = openvino.Core()
    read = core.read_model(str(path))
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128)).astype(np.float32)
    found = module(torch.from_numpy(images))
    expected = np.concatenate([compiled(image[None])[0] for image in images]).reshape(2, -1)
    np.testing.assert_allclose(found.detach().flatten(1).numpy(), expected, atol=2e-4 * np.abs(expected).max())
    assert sum(weight.numel() for weight in module.parameters()) == pytest.approx(1.107e6, rel=0.002)
    found.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in module.parameters())
    scaling = [name for name, _ in module.named_buffers()]
    assert len(scaling) == 2  # scale and shift of the image stay as they are
    assert len(residual_sums(module)) == 12
    assert all(name.startswith("add_") and hasattr(module, name) for name in residual_sums(module))


def test_a_plan_makes_the_network_again(shared: Path, toy: Path) -> None:
    for path, side in ((toy, face_toys.SIDE), (shared / RETAIL, 128)):
        module = read_ir(path)
        plan = json.loads(json.dumps(module.plan()))
        again = rebuild(plan, module.state_dict())
        images = torch.rand(2, 3, side, side) * 255
        with torch.no_grad():
            assert torch.equal(module(images), again(images))
        assert [name for name, _ in again.named_parameters()] == [name for name, _ in module.named_parameters()]
        assert [name for name, _ in again.named_buffers()] == [name for name, _ in module.named_buffers()]


def test_plans_that_make_no_sense_are_told(toy: Path) -> None:
    module = read_ir(toy)
    plan, state = module.plan(), module.state_dict()
    first = plan["steps"][0]
    for broken in (
        {},
        {**plan, "result": "nothing"},
        {**plan, "steps": [{**first, "kind": "Loop"}]},
        {**plan, "steps": [{**first, "takes": ["later"]}]},
        {**plan, "steps": [{**first, "name": "a.b"}]},
        {**plan, "steps": plan["steps"][:1]},
        {**plan, "steps": [{**first, "shapes": [[10**9, 0, 1, 1]]}]},  # no weights, and a bias of so many
        {**plan, "steps": [{**first, "shapes": [[40_000, 40_000, 1, 1]], "bias": -40_000}]},
    ):
        with pytest.raises(WeightsError, match="no network that can be built again"):
            rebuild(broken, state)
    with pytest.raises(WeightsError, match="no network that can be built again"):
        rebuild(plan, {})


def test_names_stay_and_states_load(toy: Path) -> None:
    first, second = read_ir(toy), read_ir(toy)
    assert [name for name, _ in first.named_modules()] == [name for name, _ in second.named_modules()]
    assert any(name.startswith("convolution_") for name, _ in first.named_modules())
    second.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace('type="Convolution"', 'type="Deconvolution"'), "is a Deconvolution, which is not"),
        (lambda text: text[: len(text) // 2], "is no OpenVINO IR of version 10 or later"),
        (lambda text: "<!DOCTYPE x [<!ENTITY a 'b'>]>" + text, "or defines entities"),
        (
            lambda text: text.replace('strides="4,4"', 'strides="4"').replace('strides="4, 4"', 'strides="4"'),
            "settings",
        ),
        (lambda text: text.replace('type="Parameter"', 'type="Const"'), "has 0 inputs; expected one of images"),
        (lambda text: text.replace('offset="0"', 'offset="999999"'), "cut off at"),
    ],
)
def test_what_is_wrong_is_told(change: object, told: str, toy: Path, tmp_path: Path) -> None:
    text = toy.read_text()
    changed = change(text)  # type: ignore[operator]
    assert changed != text
    (tmp_path / "x.xml").write_text(changed)
    shutil.copy(toy.with_suffix(".bin"), tmp_path / "x.bin")
    with pytest.raises(WeightsError, match=told):
        read_ir(tmp_path / "x.xml")


def test_missing_files_are_told(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"Cannot read .*no\.xml"):
        read_ir(tmp_path / "no.xml")
    shutil.copy(toy, tmp_path / "x.xml")
    with pytest.raises(WeightsError, match=r"Cannot read .*x\.bin: .* Put it beside x\.xml"):
        read_ir(tmp_path / "x.xml")
