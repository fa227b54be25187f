from __future__ import annotations

import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conftest import shaken
from keyhole.errors import KeyholeError, SettingError, UnknownNameError, WeightsError
from keyhole.files import read_tensors, write_tensors
from keyhole.models import zoo
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build, load, load_weights, read_about, save

GRAY = InputSpec((8, 8), (0.5,), (0.5,))


def message_of(error: pytest.ExceptionInfo[KeyholeError]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Saving and loading


@pytest.mark.parametrize(("name", "input"), [("resnet8", None), ("resnet8x4", GRAY), ("timm:resnet18", None)])
def test_a_saved_network_comes_back_bit_for_bit(tmp_path: Path, name: str, input: InputSpec | None) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    network = shaken(build(name, classes=5, input=input))
    network.module.train()
    save(network, tmp_path / "deep" / "student.safetensors", about={"why": "test"})
    found = load(tmp_path / "deep" / "student.safetensors")
    assert same(found.module, network.module)
    assert (found.name, found.classes, found.input) == (network.name, network.classes, network.input)
    assert not found.module.training
    images = torch.rand(2, found.input.channels, *found.input.size_px)
    network.module.eval()
    with torch.no_grad():
        assert torch.equal(found(images), network(images))


def test_a_network_whose_own_parts_are_called_module_comes_back(tmp_path: Path, module_folder: Path) -> None:
    (module_folder / "wrapping_zoo.py").write_text(
        "from torch import nn\n"
        "class Wrapped(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.module = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
    )
    network = build("wrapping_zoo:Wrapped", classes=3, input=GRAY)
    save(network, tmp_path / "student.safetensors")
    again = build("wrapping_zoo:Wrapped", classes=3, weights=tmp_path / "student.safetensors")
    assert same(again.module, network.module)
    parallel = {f"module.{name}": tensor for name, tensor in network.module.state_dict().items()}
    torch.save(parallel, tmp_path / "parallel.pth")
    other = build("wrapping_zoo:Wrapped", classes=3, input=GRAY, weights=tmp_path / "parallel.pth")
    assert same(other.module, network.module)


# Half precision


@pytest.mark.parametrize(("name", "input"), [("resnet20", GRAY), ("timm:resnet18", None)])
def test_half_a_file_is_a_network_in_full_precision(tmp_path: Path, name: str, input: InputSpec | None) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    network = shaken(build(name, classes=5, input=input))
    for half in (False, True):
        save(network, tmp_path / f"{half}.safetensors", half=half, about={"epochs": 240, "recipe": {"lr": 0.05}})
    full_bytes, half_bytes = ((tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True))
    assert half_bytes < 0.55 * full_bytes
    found = load(tmp_path / "True.safetensors")
    assert (found.name, found.classes, found.input) == (network.name, network.classes, network.input)
    assert not found.module.training
    own = network.module.state_dict()
    for key, tensor in found.module.state_dict().items():
        assert tensor.dtype == own[key].dtype
        if tensor.is_floating_point():
            assert torch.equal(tensor, own[key].half().float()) or key.endswith("running_mean")
            torch.testing.assert_close(tensor, own[key], rtol=2.0**-11, atol=2.0**-25)
    images = torch.rand(2, found.input.channels, *found.input.size_px)
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(found(images), expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    assert read_about(tmp_path / "True.safetensors") == {"epochs": 240, "recipe": {"lr": 0.05}}


def test_a_file_saved_half_and_loaded_is_saved_half_without_change(tmp_path: Path) -> None:
    save(shaken(build("resnet8", classes=5)), tmp_path / "a.safetensors", half=True)
    save(load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", half=True)
    (one, _), (other, _) = (read_tensors(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("bn1.running_var", 1e5, "fp32"),  # above the largest value of fp16
        ("bn1.running_var", 1e-7, "fp32"),  # too small for all bits of fp16
        ("bn1.running_var", 1e-12, "fp32"),  # too small for any
        ("bn1.running_mean", -1e-8, "fp32"),
        ("bn1.running_var", 2.0**-24, "fp16"),  # small, and held all the same
        ("bn1.running_mean", 0.0, "fp16"),
        ("conv1.weight", -7e4, "fp32"),
        ("conv1.weight", 1e-9, "fp16"),  # nothing beside the other weights
    ],
)
def test_what_half_precision_cannot_hold_stays_as_it_is(tmp_path: Path, key: str, value: float, kept: str) -> None:
    network = build("resnet8", classes=3)
    tensor = network.module.state_dict()[key]
    tensor.view(-1)[1] = value
    save(network, tmp_path / "w.safetensors", half=True)
    written = read_tensors(tmp_path / "w.safetensors")[0]
    assert written[key].dtype == {"fp32": torch.float32, "fp16": torch.float16}[kept]
    assert sum(t.dtype == torch.float32 for t in written.values()) == (kept == "fp32")
    assert written["bn1.num_batches_tracked"].dtype == torch.int64
    loaded = load(tmp_path / "w.safetensors").module.state_dict()[key]
    if kept == "fp32":
        assert torch.equal(loaded, tensor)
    torch.testing.assert_close(loaded, tensor, rtol=2.0**-11, atol=2.0**-25)


def test_weights_that_are_tiny_throughout_stay_as_they_are(tmp_path: Path) -> None:
    network = build("resnet8", classes=3)
    with torch.no_grad():
        network.module.fc.weight.mul_(1e-7)  # type: ignore[union-attr, operator]
    save(network, tmp_path / "w.safetensors", half=True)
    assert torch.equal(load(tmp_path / "w.safetensors").module.fc.weight, network.module.fc.weight)  # type: ignore[union-attr, arg-type]


def test_broken_weights_are_found_in_a_half_file_too(tmp_path: Path) -> None:
    network = build("resnet8", classes=3)
    with torch.no_grad():
        network.module.fc.bias[0] = float("nan")  # type: ignore[union-attr, index, operator]
    save(network, tmp_path / "w.safetensors", half=True)
    with pytest.raises(WeightsError, match=r"fc\.bias holds NaN or infinity"):
        load(tmp_path / "w.safetensors")


def test_what_a_file_tells_about_itself(tmp_path: Path) -> None:
    network = build("resnet8", classes=3)
    save(network, tmp_path / "w.safetensors")
    assert read_about(tmp_path / "w.safetensors") == {}
    for about in ({"path": tmp_path}, {"loss": float("nan")}):
        with pytest.raises(SettingError, match="about cannot be kept") as caught:
            save(network, tmp_path / "other.safetensors", about=about)
        assert message_of(caught)
        assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "what it tells of itself is no table"),
        ("3", "what it tells of itself is no table"),
        ("{}", r"was not written by keyhole\.save"),
        (json.dumps({"about": [1]}), r"was not written by keyhole\.save"),
    ],
)
def test_a_file_that_tells_nothing_about_itself(tmp_path: Path, text: str, told: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"keyhole": text})
    with pytest.raises(WeightsError, match=told):
        read_about(tmp_path / "w.safetensors")


def test_a_description_nested_beyond_measure_is_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"keyhole": "[" * 200_000})
    with pytest.raises(WeightsError) as caught:
        read_about(tmp_path / "w.safetensors")
    assert message_of(caught)


@pytest.mark.parametrize(
    "form", ["plain", "safetensors", "old torch", "DataParallel", "state_dict", "model", "net", "no counts"]
)
def test_weights_in_every_form_in_circulation(tmp_path: Path, form: str) -> None:
    network = shaken(build("resnet8", classes=5))
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    state: dict[str, Any] = network.module.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "DataParallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    elif form in ("state_dict", "model", "net"):
        torch.save({"epoch": 3, form: state, "optimizer": {"lr": 0.1}}, path)
    elif form == "no counts":
        torch.save({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form != "old torch")
    other = build("resnet8", classes=5, weights=str(path))
    assert same(other.module, network.module)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20", "cifar100_resnet20.pth"),
        ("resnet32", "cifar100_resnet32.pth"),
        ("resnet56", "cifar100_resnet56-f2eff4c8.pt"),
    ],
)
def test_published_weights_load_strictly(shared: Path, name: str, file: str) -> None:
    path = shared / "data" / "weights" / file
    published = torch.load(path, weights_only=True)
    network = build(name, classes=100, weights=path)
    network.module.load_state_dict(published, strict=True)
    assert same(build(name, classes=100, weights=path).module, network.module)


# Weight files that do not fit, are broken, or want to run code


class Evil:
    """What a pickle can hold: an instruction to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def _evil(path: Path, mark: Path) -> None:
    torch.save({"conv1.weight": torch.ones(1), "x": Evil(mark)}, path)


def _evil_under_key(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": Evil(mark)}}, path)


def _evil_raw(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(mark), protocol=2))


def _evil_old(path: Path, mark: Path) -> None:
    torch.save({"x": Evil(mark)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [_evil, _evil_under_key, _evil_raw, _evil_old])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, write: Callable[[Path, Path], None]) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    write(path, mark)
    network = build("resnet8", classes=5)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(network.module, path)
    message = message_of(caught)
    assert str(path) in message
    assert "could run code, so it was not read" in message
    assert not mark.exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.module.state_dict().items())


def test_the_malicious_file_of_the_test_really_works(tmp_path: Path) -> None:
    _evil(tmp_path / "w.pth", tmp_path / "mark")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "mark").is_dir()


def test_a_saved_module_is_refused(tmp_path: Path) -> None:
    network = build("resnet8", classes=5)
    torch.save(network.module, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(network.module, tmp_path / "w.pth")
    assert "Save the state dict alone" in message_of(caught)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [None, b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", "folder"]
)
def test_what_is_no_weight_file_is_one_line(tmp_path: Path, suffix: str, content: bytes | str | None) -> None:
    path = tmp_path / f"w{suffix}"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        build("resnet8", classes=5, weights=path)
    message = message_of(caught)
    assert str(path) in message
    assert "run code" not in message
    assert ("No weight file" in message) == (content in (None, "folder"))


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_a_file_cut_off_anywhere_is_one_line(tmp_path: Path, form: str) -> None:
    network = build("resnet8", classes=5)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(network.module.state_dict(), path)
    else:
        torch.save(network.module.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    for length in (*range(1, 300, 7), *range(300, len(content), len(content) // 20), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError) as caught:
            load_weights(network.module, path)
        assert str(path) in message_of(caught)


def test_a_file_with_flipped_bits_never_gives_a_traceback(tmp_path: Path) -> None:
    network = build("resnet8", classes=5)
    buffer = io.BytesIO()
    torch.save(network.module.state_dict(), buffer, _use_new_zipfile_serialization=False)
    content = bytearray(buffer.getvalue())
    messages = []
    for position in range(0, 1500, 9):
        broken = bytearray(content)
        broken[position] ^= 0x55
        (tmp_path / "w.pth").write_bytes(broken)
        try:
            load_weights(network.module, tmp_path / "w.pth")
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(len(message.splitlines()) == 1 for message in messages)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_architecture_names_the_first_tensor_and_both_shapes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = build("resnet8x4", classes=5).module.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        build("resnet8", classes=5, weights=path)
    assert "conv1.weight has the shape (32, 3, 3, 3), expected (16, 3, 3, 3)" in message_of(caught)


def test_too_few_and_too_many_tensors_are_named(tmp_path: Path) -> None:
    torch.save(build("resnet8", classes=5).module.state_dict(), tmp_path / "8.pth")
    torch.save(build("resnet14", classes=5).module.state_dict(), tmp_path / "14.pth")
    with pytest.raises(WeightsError) as caught:
        build("resnet14", classes=5, weights=tmp_path / "8.pth")
    assert "has no tensor layer1.1.conv1.weight (16, 16, 3, 3)" in message_of(caught)
    with pytest.raises(WeightsError) as caught:
        build("resnet8", classes=5, weights=tmp_path / "14.pth")
    assert "holds layer1.1.conv1.weight (16, 16, 3, 3), which the model lacks" in message_of(caught)


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    torch.save(build("resnet8", classes=10).module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"fc\.weight has the shape \(10, 64\), expected \(5, 64\)"):
        build("resnet8", classes=5, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_changed(tmp_path: Path, value: float) -> None:
    state = build("resnet8", classes=5).module.state_dict()
    state["layer3.0.bn2.running_var"][3] = value
    torch.save(state, tmp_path / "w.pth")
    network = build("resnet8", classes=5)
    before = network.module.conv1.weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_weights(network.module, tmp_path / "w.pth")
    assert "layer3.0.bn2.running_var holds NaN or infinity" in message_of(caught)
    assert torch.equal(before, network.module.conv1.weight)


@pytest.mark.parametrize("value", [[torch.ones(1)], {"a": 1}, torch.ones(3), {}])
def test_a_file_without_a_state_dict(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        build("resnet8", classes=5, weights=tmp_path / "w.pth")
    assert "state dict" in message_of(caught) or "has no tensor conv1.weight" in message_of(caught)


def test_load_needs_a_file_that_says_which_network_it_holds(tmp_path: Path) -> None:
    save_file(build("resnet8", classes=5).module.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "w.safetensors")
    assert "does not say which network" in message_of(caught)


@pytest.mark.parametrize("text", ["[]", "3", json.dumps({"network": {}}), json.dumps({"network": {"name": "resnet8"}})])
def test_load_refuses_a_description_of_another_form(tmp_path: Path, text: str) -> None:
    state = build("resnet8", classes=5).module.state_dict()
    save_file(state, tmp_path / "w.safetensors", metadata={"keyhole": text})
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "w.safetensors")
    message_of(caught)


# Names


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "folder is a folder; expected a network. Name the file in it, such as student.safetensors"),
        ("a.pth", "a.pth is a file of weights; expected a network. Name that, and this file by --weights"),
        ("a.onnx", "a.onnx is for another runtime; expected a network of PyTorch"),
        ("report.html", "report.html holds no network; expected a .safetensors file of Keyhole, a name such as"),
    ],
)
def test_what_is_no_network_says_what_to_name_instead(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "report.html").write_text("")
    with pytest.raises(SettingError) as caught:
        build(name, classes=5)
    assert message_of(caught).startswith(told)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet21", "resnet20"), ("ResNet56", "resnet56"), ("resnet32x8", "resnet32x4")]
)
def test_an_unknown_model_lists_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        build(name, classes=5)
    message = message_of(caught)
    assert f"Unknown model {name!r}" in message
    assert near in message
    assert "timm:NAME" in message


def test_built_in_networks_take_the_input_they_are_given() -> None:
    network = build("resnet8", classes=5, input=GRAY)
    assert network.module.conv1.in_channels == 1
    assert build("resnet8", classes=5).input == zoo.CIFAR100_INPUT


@pytest.mark.parametrize(("name", "size"), [("timm:resnet18", (224, 224)), ("timm:vit_tiny_patch16_224", (224, 224))])
def test_timm_networks_bring_their_own_input(name: str, size: tuple[int, int]) -> None:
    pytest.importorskip("timm")
    network = build(name, classes=5)
    assert network.input.size_px == size
    assert network.input.channels == 3
    assert not network.module.training
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_timm_networks_take_gray_images_when_they_are_told_to() -> None:
    pytest.importorskip("timm")
    network = build("timm:resnet18", classes=5, input=InputSpec((32, 32), (0.5,), (0.5,)))
    with torch.no_grad():
        assert network(torch.rand(1, 1, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "near"), [("timm:resnet19", "resnet18"), ("timm:vit_tiny_patch16", "vit_tiny_patch16_224"), ("timm:", "")]
)
def test_an_unknown_timm_model_lists_the_nearest(name: str, near: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError) as caught:
        build(name, classes=5)
    message = message_of(caught)
    assert "Unknown timm model" in message
    assert near in message


def test_an_unknown_tag_of_a_timm_model_is_one_line() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError) as caught:
        build("timm:resnet18.nobody_in1k", classes=5)
    assert "nobody_in1k" in message_of(caught)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingError) as caught:
        build("timm:resnet18", classes=5)
    assert "pip install timm torchvision" in message_of(caught)


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "importable"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


NETS = """
from torch import nn
def tiny(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
def number(classes):
    return classes
broken = 3
"""


def test_a_function_of_ones_own_is_built_saved_and_loaded(module_folder: Path, tmp_path: Path) -> None:
    (module_folder / "own_nets").mkdir()
    (module_folder / "own_nets" / "__init__.py").write_text("")
    (module_folder / "own_nets" / "small.py").write_text(NETS)
    network = build("own_nets.small:tiny", classes=6, input=GRAY)
    assert network.module[-1].out_features == 6
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 6)
    save(network, tmp_path / "w.safetensors")
    again = build("own_nets.small:tiny", classes=6, weights=tmp_path / "w.safetensors")
    assert same(again.module, network.module)
    assert again.input == GRAY  # the file tells of it


def test_a_file_does_not_choose_the_code_that_runs(
    module_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module_folder / "trap_nets.py").write_text("raise SystemExit('ran')")
    network = build("resnet8", classes=3, input=GRAY)
    for name in ("trap_nets:tiny", "os:abort", "resnet9", "", "timm:hf-hub:someone/something"):
        save(replace(network, name=name), tmp_path / "w.safetensors")
        with pytest.raises((WeightsError, UnknownNameError)) as caught:
            load(tmp_path / "w.safetensors")
        message_of(caught)
        assert "trap_nets" not in sys.modules
    save(replace(network, name="os:abort"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="a file may not choose the code that runs"):
        build(str(tmp_path / "w.safetensors"), classes=3)


@pytest.mark.parametrize(
    "described",
    [
        {"classes": "10"},
        {"classes": 10.0},
        {"classes": -3},
        {"classes": True},
        {"name": 5},
        {"input": {"size_px": [8.5, 8], "mean": [0.5], "std": [0.5]}},
        {"input": {"size_px": [8], "mean": [0.5], "std": [0.5]}},
        {"input": {"size_px": [8, 8], "mean": ["a"], "std": [0.5]}},
        {"input": {"size_px": [8, 8], "mean": [0.5], "std": [0]}},
        {"input": None},
    ],
)
def test_a_file_that_tells_nonsense_of_its_network(tmp_path: Path, described: dict[str, Any]) -> None:
    network = build("resnet8", classes=3, input=GRAY)
    told = {"name": "resnet8", "classes": 3, "input": {"size_px": [8, 8], "mean": [0.5], "std": [0.25]}} | described
    write_tensors(tmp_path / "w.safetensors", network.module.state_dict(), {"network": told})
    with pytest.raises(WeightsError, match="does not say which network it holds"):
        load(tmp_path / "w.safetensors")


def test_a_file_of_keyhole_is_a_network_by_name(tmp_path: Path) -> None:
    network = build("resnet8", classes=3, input=GRAY)
    path = tmp_path / "student.safetensors"
    save(network, path)
    again = build(str(path), classes=3)
    assert same(again.module, network.module)
    assert (again.name, again.input) == ("resnet8", GRAY)
    other = replace(GRAY, size_px=(16, 16))
    assert build(str(path), classes=3, input=other).input == other
    with pytest.raises(WeightsError, match="has 3 outputs, expected 10"):
        build(str(path), classes=10)


ODD = """
import torch
from torch import nn
class Odd(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give, self.weight = give, nn.Parameter(torch.ones(1))
    def forward(self, x):
        return self.give(x)
def pair(classes): return Odd(lambda x: (torch.zeros(len(x), classes), x))
def table(classes): return Odd(lambda x: {"logits": torch.zeros(len(x), classes)})
def seven(classes): return Odd(lambda x: torch.zeros(len(x), 7))
def spatial(classes): return Odd(lambda x: torch.zeros(len(x), classes, 2, 2))
def cube(classes): return nn.Conv3d(1, 4, 3)
def flat(classes): return nn.Sequential(nn.Flatten(), nn.Linear(99, classes))
def fails(classes): raise RuntimeError("no such thing")
def nothing(): return None
def leaves(classes): raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("pair", "gave tuple for two images; expected logits of the shape (2, 3)"),
        ("table", "gave dict for two images"),
        ("seven", "gave (2, 7) for two images"),
        ("spatial", "gave (2, 3, 2, 2) for two images"),
        ("cube", "fails on images of 1 x 8 x 8"),
        ("flat", "Check --input-size"),
        ("fails", "failed when called with classes=3: no such thing"),
        ("nothing", "failed when called with classes=3"),
        ("leaves", "failed when called with classes=3"),
    ],
)
def test_networks_of_ones_own_that_give_no_logits(module_folder: Path, function: str, words: str) -> None:
    (module_folder / "odd_nets.py").write_text(ODD)
    with pytest.raises(SettingError) as caught:
        build(f"odd_nets:{function}", classes=3, input=GRAY)
    assert words in message_of(caught)


def test_a_file_of_ones_own_with_a_mistake_in_it(module_folder: Path) -> None:
    (module_folder / "mistaken_nets.py").write_text("def tiny(:\n")
    with pytest.raises(UnknownNameError, match="Cannot import 'mistaken_nets'"):
        build("mistaken_nets:tiny", classes=3, input=GRAY)


def test_tensors_that_are_no_plain_weights(tmp_path: Path) -> None:
    network = build("resnet8", classes=3, input=GRAY)
    name, weight = "fc.weight", network.module.state_dict()["fc.weight"]
    odd = {
        "sparse": weight.to_sparse(),
        "meta": weight.to("meta"),
        "complex": weight.to(torch.complex64),
        "whole": weight.long(),
    }
    for kind, tensor in odd.items():
        torch.save({**network.module.state_dict(), name: tensor}, tmp_path / f"{kind}.pt")
        with pytest.raises(WeightsError) as caught:
            load_weights(network.module, tmp_path / f"{kind}.pt")
        assert name in message_of(caught)
    torch.save({1: weight}, tmp_path / "numbers.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_weights(network.module, tmp_path / "numbers.pt")


def test_what_a_function_of_ones_own_must_give(module_folder: Path) -> None:
    (module_folder / "more_nets.py").write_text(NETS)
    with pytest.raises(SettingError) as caught:
        build("more_nets:tiny", classes=6)
    assert "needs its input" in message_of(caught)
    with pytest.raises(SettingError) as caught:
        build("more_nets:number", classes=6, input=GRAY)
    assert "returned a int; expected a torch.nn.Module" in message_of(caught)
    for wrong in ("tinny", "broken", ""):
        with pytest.raises(UnknownNameError) as caught:
            build(f"more_nets:{wrong}", classes=6, input=GRAY)
        assert "tiny" in message_of(caught)


@pytest.mark.parametrize("name", ["no_such_package:net", "no.such.package:net", ":net", ".relative:net"])
def test_a_module_that_cannot_be_imported_is_one_line(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        build(name, classes=6, input=GRAY)
    assert "Cannot import" in message_of(caught)


def test_a_network_is_a_plain_value() -> None:
    network = build("resnet8", classes=5)
    assert isinstance(network, Network)
    with pytest.raises(AttributeError):
        network.name = "other"  # type: ignore[misc]


def test_a_timm_network_that_cannot_run_at_a_size_is_one_line() -> None:
    pytest.importorskip("timm")
    with pytest.raises(SettingError) as caught:
        build("timm:inception_v3", classes=10, input=InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3))
    assert "timm:inception_v3" in message_of(caught)
    assert "32 x 32" in message_of(caught)


def test_a_file_cannot_ask_for_more_classes_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(build("resnet8", classes=10), path)
    tensors, metadata = read_tensors(path)
    metadata["network"]["classes"] = 10**8
    write_tensors(path, tensors, metadata)
    with pytest.raises(WeightsError, match="speaks of 100000000 classes, and none of its weights has so many"):
        load(path)
