"""Networks run alike in ONNX Runtime, OpenVINO and PyTorch, and what does not fit is refused when it is loaded."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from face_toys import SIDE, SIZE, ToyModule, toy_rows, toy_weights, write_onnx, write_openvino
from keyhole.errors import SettingError, ShapeError, UnknownNameError, WeightsError
from keyhole.faces.models.runtimes import (
    OnnxNetwork,
    OpenVinoNetwork,
    TorchNetwork,
    import_module,
    module_source,
    rows,
    run_padded,
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def wanted(images: torch.Tensor) -> np.ndarray:
    return toy_rows(images.numpy(), toy_weights())


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("batch", ["n", 1, 8])
def test_onnx_gives_the_rows_of_loops_at_any_batch(
    tmp_path: Path, images: torch.Tensor, wanted: np.ndarray, flat: bool, batch: int | str
) -> None:
    network = OnnxNetwork(write_onnx(tmp_path / "toy.onnx", batch=batch, flat=flat), size_px=SIDE, threads=1)
    assert network.batch == (None if batch == "n" else batch)
    step = network.batch or 5
    found = torch.cat([run_padded(network, images[i : i + step]) for i in range(0, 5, step)])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_onnx_with_channels_last_or_free_sides(tmp_path: Path, images: torch.Tensor, wanted: np.ndarray) -> None:
    last = OnnxNetwork(write_onnx(tmp_path / "last.onnx", channels_last=True), size_px=SIDE)
    np.testing.assert_allclose(last(images).numpy(), wanted, atol=1e-5)
    free = OnnxNetwork(write_onnx(tmp_path / "free.onnx", side="s"), size_px=SIDE)
    np.testing.assert_allclose(free(images).numpy(), wanted, atol=1e-5)


def test_openvino_gives_the_rows_of_loops_and_frees_a_fixed_batch(
    tmp_path: Path, images: torch.Tensor, wanted: np.ndarray
) -> None:
    for batch in ("n", 1):
        onnx = write_onnx(tmp_path / f"{batch}.onnx", batch=batch)
        network = OpenVinoNetwork(write_openvino(tmp_path / f"{batch}.xml", onnx), size_px=SIDE, threads=1)
        assert network.batch is None
        np.testing.assert_allclose(network(images).numpy(), wanted, atol=1e-5)
        np.testing.assert_allclose(network(images[:2]).numpy(), wanted[:2], atol=1e-5)


def test_openvino_keeps_a_batch_that_is_fixed_inside(tmp_path: Path, images: torch.Tensor, wanted: np.ndarray) -> None:
    onnx = write_onnx(tmp_path / "stiff.onnx", batch=2, stiff=True)
    network = OpenVinoNetwork(write_openvino(tmp_path / "stiff.xml", onnx), size_px=SIDE, threads=1)
    assert network.batch == network.chunk == 2
    np.testing.assert_allclose(network(images[:2]).numpy(), wanted[:2], atol=1e-5)
    one = write_onnx(tmp_path / "one.onnx", batch=1, stiff=True)
    network = OpenVinoNetwork(write_openvino(tmp_path / "one.xml", one), size_px=SIDE, threads=1)
    assert network.batch is None  # one by one is what it wants
    np.testing.assert_allclose(network(images).numpy(), wanted, atol=1e-5)


def test_openvino_gives_an_image_the_same_row_whatever_comes_with_it(tmp_path: Path, images: torch.Tensor) -> None:
    network = OpenVinoNetwork(write_openvino(tmp_path / "n.xml", write_onnx(tmp_path / "n.onnx")), size_px=SIDE)
    many = images[torch.arange(300) % 5] + torch.arange(300)[:, None, None, None] / 300
    together = network(many)
    alone = torch.cat([network(image[None]) for image in many])
    assert torch.equal(together, alone)
    with ThreadPoolExecutor(4) as callers:  # who call it at once wait for each other
        parts = list(callers.map(network, many.split(30)))
    assert torch.equal(torch.cat(parts), together)


def test_openvino_reads_onnx_too(tmp_path: Path, images: torch.Tensor, wanted: np.ndarray) -> None:
    network = OpenVinoNetwork(write_onnx(tmp_path / "toy.onnx", flat=True), size_px=SIDE, threads=1)
    np.testing.assert_allclose(network(images).numpy(), wanted, atol=1e-5)


def test_torch_gives_the_rows_of_loops_and_leaves_the_thread_count(images: torch.Tensor, wanted: np.ndarray) -> None:
    before = torch.get_num_threads()
    network = TorchNetwork(ToyModule(), threads=2)
    np.testing.assert_allclose(network(images).numpy(), wanted, atol=1e-5)
    assert torch.get_num_threads() == before
    assert not network.module.training


class _Several(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean(dim=(2, 3)), x


class _Words(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"e": x}


def test_of_a_tuple_the_first_counts_and_a_dict_is_refused(images: torch.Tensor) -> None:
    torch.testing.assert_close(TorchNetwork(_Several())(images), images.mean(dim=(2, 3)))
    with pytest.raises(ShapeError, match="gave dict; expected a tensor"):
        TorchNetwork(_Words())(images)


@pytest.mark.parametrize("shape", [(5,), (4, 8), (5, 8, 2, 1), (5, 8, 1), (1, 5, 8)])
def test_rows_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"for 5 images; expected \(5, d\) or \(5, d, 1, 1\)"):
        rows(torch.zeros(shape), 5)


@pytest.mark.parametrize("convert", [False, True])
def test_other_images_than_described_are_refused_at_load(tmp_path: Path, convert: bool) -> None:
    path = write_onnx(tmp_path / "toy.onnx")
    kind = OnnxNetwork
    if convert:
        path, kind = write_openvino(tmp_path / "toy.xml", path), OpenVinoNetwork
    with pytest.raises(SettingError, match=r"takes \? x 3 x 16 x 16; its description says n x 3 x 20 x 20"):
        kind(path, size_px=20)


def test_two_inputs_or_outputs_are_refused_and_an_output_can_be_named(tmp_path: Path, images: torch.Tensor) -> None:
    with pytest.raises(SettingError, match="has 2 inputs; expected one"):
        OnnxNetwork(write_onnx(tmp_path / "inputs.onnx", second_input=True), size_px=SIDE)
    path = write_onnx(tmp_path / "outputs.onnx", second_output=True)
    with pytest.raises(SettingError, match=r"has outputs e, minus; say which is the embedding"):
        OnnxNetwork(path, size_px=SIDE)
    with pytest.raises(SettingError, match="has no output 'z'; it has e, minus"):
        OnnxNetwork(path, size_px=SIDE, output="z")
    for kind in (OnnxNetwork, OpenVinoNetwork):
        both = [kind(path, size_px=SIDE, output=name)(images) for name in ("e", "minus")]
        assert torch.equal(both[0], -both[1])


@pytest.mark.parametrize(("kind", "name"), [(OnnxNetwork, "a.onnx"), (OpenVinoNetwork, "a.xml")])
def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path, kind: type, name: str) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        kind(tmp_path / name, size_px=SIDE)
    if name == "a.xml":
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(WeightsError, match=r"a\.bin, the weights of .*a\.xml, is not beside it; expected both"):
            kind(tmp_path / name, size_px=SIDE)
        (tmp_path / "a.bin").write_bytes(b"")
    for content in (b"", b"garbage" * 9):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="Copy it again") as caught:
            kind(tmp_path / name, size_px=SIDE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [(OnnxNetwork, "onnxruntime"), (OpenVinoNetwork, "openvino")])
def test_a_missing_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingError, match=rf"toy\.onnx needs {name}\. Install it: pip install {name}\."):
        kind(write_onnx(tmp_path / "toy.onnx"), size_px=SIDE)


def test_threads_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="threads is 0; expected at least 1"):
        OnnxNetwork(write_onnx(tmp_path / "toy.onnx"), size_px=SIDE, threads=0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no.such.package:f", "Cannot import 'no.such.package' of 'no.such.package:f'"),
        ("face_toys:nothing", "Unknown function in face_toys 'nothing'"),
        ("face_toys:NUMBER", "Unknown function in face_toys 'NUMBER'"),
        ("face_toys:write_onnx", "face_toys:write_onnx failed when called"),
        ("face_toys:toy_weights", "gave ndarray; expected a torch.nn.Module"),
    ],
)
def test_what_cannot_be_imported_is_one_line(text: str, reason: str) -> None:
    with pytest.raises((SettingError, UnknownNameError), match=reason):
        import_module(text)


def test_the_source_of_a_module_covers_its_own_classes_and_its_structure() -> None:
    source = module_source(ToyModule())
    assert "return self.conv(x).mean" in source
    assert f"Conv2d(3, {SIZE}" in source
