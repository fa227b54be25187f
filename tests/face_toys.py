"""Small face networks for tests: files of ONNX and OpenVINO, and PyTorch modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIDE = 16
SIZE = 8
DESCRIPTION = f"size_px = {SIDE}\nmean = 127.5\nstd = 127.5\ntemplate = 'arcface'\n"


def toy_weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SIZE, 3, 4, 4)).astype(np.float32)


def toy_rows(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same network by loops: a 4 x 4 convolution of stride 4, then the mean over all places."""
    rows = np.zeros((len(images), len(weights)))
    for index, image in enumerate(images):
        patches = [image[:, y : y + 4, x : x + 4] for y in range(0, SIDE, 4) for x in range(0, SIDE, 4)]
        for channel, kernel in enumerate(weights):
            rows[index, channel] = np.mean([(patch * kernel).sum() for patch in patches])
    return rows


def write_onnx(
    path: Path,
    *,
    weights: np.ndarray | None = None,
    batch: int | str = "n",
    side: int | str = SIDE,
    flat: bool = False,
    channels_last: bool = False,
    second_output: bool = False,
    stiff: bool = False,
    second_input: bool = False,
    external: str | None = None,
) -> Path:
    """Write an ONNX file of the toy network; its output is (n, 8, 1, 1), or (n, 8) when ``flat``.

    A ``stiff`` one reshapes inside to as many rows as its batch, and to one where its input names any.
    """
    kernel = numpy_helper.from_array(toy_weights() if weights is None else weights, "kernel")
    shape = [batch, side, side, 3] if channels_last else [batch, 3, side, side]
    nodes = [helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2])] if channels_last else []
    source = "first" if channels_last else "x"
    nodes.append(helper.make_node("Conv", [source, "kernel"], ["places"], strides=[4, 4]))
    nodes.append(helper.make_node("GlobalAveragePool", ["places"], ["pooled"]))
    weights_inside = [kernel]
    if stiff:
        weights_inside.append(
            numpy_helper.from_array(np.array([batch if isinstance(batch, int) else 1, SIZE], np.int64), "row")
        )
        nodes.append(helper.make_node("Reshape", ["pooled", "row"], ["e"]))
    elif flat:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["e"]))
    else:
        nodes.append(helper.make_node("Identity", ["pooled"], ["e"]))
    outputs = [helper.make_tensor_value_info("e", TensorProto.FLOAT, [batch, SIZE, *(() if flat or stiff else (1, 1))])]
    if second_output:
        nodes.append(helper.make_node("Neg", ["e"], ["minus"]))
        outputs.append(helper.make_tensor_value_info("minus", TensorProto.FLOAT, [batch, SIZE, 1, 1]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if second_input:
        inputs.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(nodes, "toy", inputs, outputs, weights_inside)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    onnx.save(model, str(path), **options)
    return path


def write_openvino(path: Path, source: Path) -> Path:
    """Convert an ONNX file to OpenVINO's ``.xml`` and ``.bin`` in 32 bits."""
    import openvino

    openvino.save_model(openvino.Core().read_model(str(source)), str(path), compress_to_fp16=False)
    return path


def write_toml(path: Path, text: str, base: str = DESCRIPTION) -> Path:
    path.write_text(base + text)
    return path


class ToyModule(nn.Module):
    """The toy network in PyTorch."""

    def __init__(self, weights: np.ndarray | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, SIZE, 4, 4, bias=False)
        self.conv.weight.data = torch.from_numpy(toy_weights() if weights is None else weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean(dim=(2, 3), keepdim=True)


def described() -> nn.Module:
    module = ToyModule()
    module.description = {"size_px": SIDE, "mean": 127.5, "std": 127.5, "template": "arcface"}
    return module


def bare() -> nn.Module:
    return ToyModule()


class _Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # dark images alone are hit, so that loading passes
        dark = x.mean(dim=(1, 2, 3)) < -0.5
        return torch.where(dark[:, None], self.value, x.mean(dim=(2, 3)) + 2)


def turns_nan() -> nn.Module:
    return _Constant(float("nan"))


def turns_zero() -> nn.Module:
    return _Constant(0.0)


class _Growing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(len(x), 4 if len(x) == 2 else 5)


def grows() -> nn.Module:
    return _Growing()


class _Map(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def maps() -> nn.Module:
    return _Map()


NUMBER = 3
