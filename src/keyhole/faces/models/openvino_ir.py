"""OpenVINO IR as a PyTorch module: its weights can be trained, and its layers tapped by name.

An IR is a graph in XML and its numbers in a ``.bin`` file. Each operation becomes a module called by its type and its
name in the file (``convolution_9``, ``add_440``), so a layer keeps its name from run to run. A constant that is added
to a convolution becomes its bias. Nothing of the files is executed: an operation that is not known is an error.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import WeightsError, reason_of
from keyhole.gradients import DepthwiseConv2d, PReLU

_MOST_XML_BYTES = 64 * 2**20
_NUMBERS = {
    "f32": np.float32,
    "f16": np.float16,
    "f64": np.float64,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "u8": np.uint8,
    "boolean": np.bool_,
}


@dataclass(frozen=True)
class _Node:
    """A layer of the file: its kind, settings, and which layers it takes, by their ids."""

    id: str
    name: str
    kind: str
    settings: Mapping[str, str]
    inputs: tuple[str, ...]


@dataclass
class _Step:
    """One operation of the graph, as values that JSON can hold: enough to build its module, without its weights.

    Attributes:
        name: Of its module, and of what it gives.
        kind: Its type in the file.
        settings: Its attributes in the file.
        takes: Names of the features that it takes; the images have none.
        shapes: Of its weights.
        numbers: Its whole numbers, such as axes.
        bias: Whether a constant was added to a convolution.
        fixed: Whether its constant acts on the images themselves, and stays as it is.
    """

    name: str
    kind: str
    settings: dict[str, str]
    takes: list[str]
    shapes: list[list[int]]
    numbers: list[list[int]]
    bias: bool = False
    fixed: bool = False

    def module(self) -> nn.Module:
        """Return the module, its weights zero."""
        constants = [np.zeros(shape, np.float32) for shape in self.shapes]
        constants += [np.asarray(values, np.int64) for values in self.numbers]
        made = _MAKERS[self.kind](self.settings, constants, len(self.takes))
        if self.bias and isinstance(made, nn.Conv2d):
            made.bias = nn.Parameter(torch.zeros(made.out_channels))
        if self.fixed and isinstance(made, _Affine):
            made.freeze()
        return made


class IrModule(nn.Module):
    """The graph of an IR; made by :func:`read_ir`, or by :func:`rebuild` from its own plan.

    Attributes:
        input_shape: Channels, height and width of the images that it takes.
    """

    def __init__(
        self, operations: Mapping[str, nn.Module], steps: Sequence[_Step], input_shape: Sequence[int], result: str
    ) -> None:
        super().__init__()
        for name, operation in operations.items():
            self.add_module(name, operation)
        self.input_shape = tuple(input_shape)
        self._steps, self._result = tuple(steps), result
        last = {taken: number for number, step in enumerate(self._steps) for taken in step.takes}
        self._free = [[name for name, number in last.items() if number == k] for k in range(len(self._steps))]

    def plan(self) -> dict[str, Any]:
        """Return the graph without its weights as JSON values, from which :func:`rebuild` makes it again."""
        steps = [asdict(step) for step in self._steps]
        return {"input": list(self.input_shape), "steps": steps, "result": self._result}

    def forward(self, images: Tensor) -> Tensor:
        """Return the graph's result for images (n, c, h, w), in its own scale: this graph may hold the scaling."""
        values = {"": images}
        for step, free in zip(self._steps, self._free, strict=True):
            values[step.name] = self._modules[step.name](*(values[name] for name in step.takes))  # type: ignore[misc]
            for name in free:
                if name != self._result:
                    values.pop(name, None)
        return values[self._result]


def read_ir(path: Path) -> IrModule:
    """Return the network of an IR, whose weights are ordinary parameters in single precision.

    Constants that act on the images before any layer with weights (mean and scale) are buffers, which stay as they are.

    Args:
        path: The ``.xml`` file; the ``.bin`` lies beside it.

    Raises:
        WeightsError: A file is missing, cut off or no IR, or it holds an operation that is not known.
    """
    nodes, shape = _nodes(path)
    numbers = path.with_suffix(".bin")
    try:
        data = numbers.read_bytes()
    except OSError as error:
        raise WeightsError(f"Cannot read {numbers}: {error.strerror}. Put it beside {path.name}.") from error
    try:
        return _Builder(path, nodes, data, shape).build()
    except (LookupError, ValueError, RuntimeError) as error:
        reason = reason_of(error)
        raise WeightsError(f"{path} is no whole OpenVINO IR ({reason}). Get it anew.") from error


def rebuild(plan: Mapping[str, Any], weights: Mapping[str, Tensor]) -> IrModule:
    """Return the network of a plan, with these weights; only operations that are known here are ever built.

    Args:
        plan: From :meth:`IrModule.plan`.
        weights: Its state dict.

    Raises:
        WeightsError: The plan is none, or the weights are of another network.
    """
    try:
        steps = [_Step(**step) for step in plan["steps"]]
        known = {""}
        for step in steps:
            if not known >= set(step.takes) or step.name in known or not re.fullmatch(r"\w+", step.name):
                raise ValueError(f"{step.name!r} takes what is not there")
            known.add(step.name)
        if plan["result"] not in known:
            raise ValueError(f"no step gives {plan['result']!r}")
        asked = sum(math.prod(shape) + shape[0] * bool(step.bias) for step in steps for shape in step.shapes if shape)
        if (
            asked > 2 * sum(tensor.numel() for tensor in weights.values()) + 1000
            or min((side for step in steps for shape in step.shapes for side in shape), default=1) < 1
        ):
            raise ValueError(f"{asked} numbers are asked for, and the file holds fewer")
        module = IrModule({step.name: step.module() for step in steps}, steps, plan["input"], plan["result"])
        module.load_state_dict(dict(weights))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = reason_of(error)
        raise WeightsError(f"The file holds no network that can be built again ({reason}). Write it anew.") from error
    return module


def residual_sums(module: IrModule) -> tuple[str, ...]:
    """Return the names of the sums of two features in their order: where residual blocks end."""
    return tuple(step.name for step in module._steps if isinstance(module._modules[step.name], _Sum))


def _nodes(path: Path) -> tuple[list[_Node], tuple[int, ...]]:
    """Return the layers in an order in which each comes after what it takes, and the shape of the input."""
    wrong = f"{path} is no OpenVINO IR of version 10 or later"
    try:
        large = path.stat().st_size > _MOST_XML_BYTES
        text = b"" if large else path.read_bytes()
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}. Name an .xml file.") from error
    if large or b"<!" in text.replace(b"<!--", b"") or b"\0" in text:
        raise WeightsError(f"{wrong}: it is larger than 64 MiB, no UTF-8, or defines entities. Get it anew.")
    try:
        root = ElementTree.fromstring(text)
        layers = {layer.attrib["id"]: layer for layer in root.findall("./layers/layer")}
        takes: dict[str, dict[int, str]] = {name: {} for name in layers}
        for edge in root.findall("./edges/edge"):
            takes[edge.attrib["to-layer"]][int(edge.attrib["to-port"])] = edge.attrib["from-layer"]
        nodes = {
            name: _Node(
                name,
                layer.attrib["name"],
                layer.attrib["type"],
                {key: value for data in layer.findall("data") for key, value in data.attrib.items()},
                tuple(takes[name][port] for port in sorted(takes[name])),
            )
            for name, layer in layers.items()
        }
        ordered = _in_order(nodes)
        inputs = [node for node in ordered if node.kind == "Parameter"]
        shape = tuple(int(side) for side in inputs[0].settings["shape"].split(",")) if len(inputs) == 1 else ()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise WeightsError(f"{wrong} ({' '.join(str(error).split())}). Get it anew.") from error
    if len(shape) != 4:
        raise WeightsError(f"{path} has {len(inputs)} inputs; expected one of images (n, c, h, w).")
    return ordered, shape


def _in_order(nodes: Mapping[str, _Node]) -> list[_Node]:
    """Return nodes so that each comes after its inputs; raises a ``ValueError`` on a circle."""
    ordered: list[_Node] = []
    state: dict[str, bool] = {}  # absent: not seen; False: being visited; True: placed
    for start in nodes:
        stack = [start]
        while stack:
            name = stack[-1]
            if state.get(name):
                stack.pop()
                continue
            waiting = [given for given in nodes[name].inputs if not state.get(given)]
            if waiting and state.get(name) is False and any(state.get(given) is False for given in waiting):
                raise ValueError("its layers form a circle")
            state[name] = False
            if waiting:
                stack += waiting
            else:
                state[name] = True
                ordered.append(nodes[name])
                stack.pop()
    return ordered


class _Builder:
    """Turns the nodes of a file into modules and steps."""

    def __init__(self, path: Path, nodes: Sequence[_Node], data: bytes, shape: Sequence[int]) -> None:
        self.path, self.nodes, self.data, self.shape = path, nodes, data, shape
        self.uses = Counter(given for node in nodes for given in node.inputs)
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[str, str] = {}  # of the value that a node gives
        self.raw: set[str] = set()  # nodes on which no layer with weights has acted yet
        self.operations: dict[str, nn.Module] = {}
        self.steps: list[_Step] = []
        self.by_name: dict[str, _Step] = {}

    def build(self) -> IrModule:
        result = None
        for node in self.nodes:
            if node.kind == "Const":
                self.constants[node.id] = self._constant(node)
            elif node.kind == "Convert" and node.inputs[0] in self.constants:
                self.constants[node.id] = self.constants[node.inputs[0]]
            elif node.kind == "Parameter":
                self.names[node.id] = ""
                self.raw.add(node.id)
            elif node.kind == "Result":
                result = self.names[node.inputs[0]]
            else:
                self._add(node)
        if result is None:
            raise self._wrong("it has no result")
        return IrModule(self.operations, self.steps, self.shape[1:], result)

    def _constant(self, node: _Node) -> np.ndarray:
        try:
            kind = _NUMBERS[node.settings["element_type"]]
            sides = [int(side) for side in node.settings["shape"].split(",") if side.strip()]
            start, size = int(node.settings["offset"]), int(node.settings["size"])
            part = self.data[start : start + size]
            if len(part) != size or start < 0:
                raise ValueError(f"{self.path.with_suffix('.bin').name} is cut off at {len(self.data)} bytes")
            return np.frombuffer(part, kind).reshape(sides).copy()
        except (LookupError, ValueError) as error:
            raise self._wrong(f"the numbers of {node.name!r} cannot be read: {error}") from error

    def _add(self, node: _Node) -> None:
        make = _MAKERS.get(node.kind)
        if make is None:
            raise self._wrong(
                f"{node.name!r} is a {node.kind}, which is not known here; known are {', '.join(_MAKERS)}"
            )
        values = [given for given in node.inputs if given not in self.constants]
        numbers = [self.constants[given] for given in node.inputs if given in self.constants]
        if not values:
            raise self._wrong(f"{node.name!r} takes constants alone")
        if self._becomes_bias(node, values, numbers):
            return
        try:
            module = make(node.settings, numbers, len(values))
        except (LookupError, ValueError, IndexError) as error:
            raise self._wrong(f"{node.name!r} ({node.kind}) has settings that are not known here: {error}") from error
        fixed = all(given in self.raw for given in values) and isinstance(module, _Affine)
        if fixed and isinstance(module, _Affine):
            module.freeze()
            self.raw.add(node.id)
        name = f"{node.kind.lower()}_{re.sub(r'[^0-9A-Za-z]+', '_', node.name)}"
        while name in self.operations:
            name += "_"
        self.operations[name] = module
        whole = [number for number in numbers if number.dtype.kind in "iu"]
        step = _Step(
            name,
            node.kind,
            dict(node.settings),
            [self.names[given] for given in values],
            [list(number.shape) for number in numbers if number.dtype.kind == "f"],
            [np.atleast_1d(number).tolist() for number in whole],
            fixed=fixed,
        )
        self.steps.append(step)
        self.by_name[name] = step
        self.names[node.id] = name

    def _becomes_bias(self, node: _Node, values: Sequence[str], numbers: Sequence[np.ndarray]) -> bool:
        """Give a convolution the constant that is added to it, where nothing else takes the convolution."""
        if node.kind != "Add" or len(values) != 1 or self.uses[values[0]] != 1:
            return False
        module = self.operations.get(self.names[values[0]])
        if not isinstance(module, nn.Conv2d) or module.bias is not None:
            return False
        number = numbers[0]
        if number.size != module.out_channels or number.shape != (1, module.out_channels, 1, 1):
            return False
        module.bias = nn.Parameter(_tensor(number).flatten())
        self.by_name[self.names[values[0]]].bias = True
        self.names[node.id] = self.names[values[0]]
        return True

    def _wrong(self, why: str) -> WeightsError:
        return WeightsError(f"{self.path}: {why}. Export the network in another way, or use it as it is (--model).")


class _Affine(nn.Module):
    """A feature times or plus a constant, which is a weight."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], number: np.ndarray) -> None:
        super().__init__()
        self.call = call
        self.weight: Tensor = nn.Parameter(_tensor(number))

    def freeze(self) -> None:
        """Make the constant a buffer."""
        number = self.weight.detach()
        del self.weight
        self.register_buffer("weight", number)

    def forward(self, feature: Tensor) -> Tensor:
        return self.call(feature, self.weight)


class _Sum(nn.Module):
    """Two features, added."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class _Of(nn.Module):
    """A function of features without weights."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *features: Tensor) -> Tensor:
        return self.call(*features)


def _tensor(number: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(number, np.float32))


def _pair(text: str) -> tuple[int, int]:
    values = tuple(int(part) for part in text.split(","))
    if len(values) != 2:
        raise ValueError(f"{text!r} instead of two numbers")
    return values[0], values[1]


def _padding(settings: Mapping[str, str]) -> tuple[int, int]:
    if settings.get("auto_pad", "explicit") not in ("explicit", "notset", "valid"):
        raise ValueError(f"auto_pad {settings['auto_pad']}")
    begin, end = (_pair(settings.get(name, "0,0")) for name in ("pads_begin", "pads_end"))
    if begin != end:
        raise ValueError(f"pads of {begin} and {end}")
    return begin


def _convolution(
    settings: Mapping[str, str], numbers: Sequence[np.ndarray], _count: int, *, grouped: bool = False
) -> nn.Module:
    kernel = numbers[0]
    groups = kernel.shape[0] if grouped else 1
    weight = _tensor(kernel.reshape(-1, *kernel.shape[-3:]) if grouped else kernel)
    if weight.ndim != 4:
        raise ValueError(f"a kernel of shape {kernel.shape}")
    kind = DepthwiseConv2d if groups > 1 else nn.Conv2d
    module = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        stride=_pair(settings["strides"]),
        padding=_padding(settings),
        dilation=_pair(settings["dilations"]),
        groups=groups,
        bias=False,
    )
    module.weight = nn.Parameter(weight)
    return module


def _binary(call: Callable[[Tensor, Tensor], Tensor]) -> _Make:
    def make(_settings: Mapping[str, str], numbers: Sequence[np.ndarray], count: int) -> nn.Module:
        if count == 2:
            return _Sum() if call is torch.add else _Of(call)
        return _Affine(call, numbers[0])

    return make


def _prelu(_settings: Mapping[str, str], numbers: Sequence[np.ndarray], _count: int) -> nn.Module:
    module = PReLU(numbers[0].size)
    module.weight = nn.Parameter(_tensor(numbers[0]).flatten())
    return module


def _matmul(settings: Mapping[str, str], numbers: Sequence[np.ndarray], _count: int) -> nn.Module:
    if settings.get("transpose_a", "false").lower() == "true" or numbers[0].ndim != 2:
        raise ValueError("a product of other than rows with a matrix")
    weight = _tensor(numbers[0] if settings.get("transpose_b", "false").lower() == "true" else numbers[0].T.copy())
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight)
    return module


def _pool(settings: Mapping[str, str], _numbers: Sequence[np.ndarray], _count: int) -> nn.Module:
    kernel, strides, pads = _pair(settings["kernel"]), _pair(settings["strides"]), _padding(settings)
    counted = settings.get("exclude-pad", settings.get("exclude_pad", "true")).lower() != "true"
    rounding = settings.get("rounding_type", "floor")
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding {rounding}")
    ceil = rounding == "ceil"
    return nn.AvgPool2d(kernel, strides, pads, ceil_mode=ceil, count_include_pad=counted)


def _mean(settings: Mapping[str, str], numbers: Sequence[np.ndarray], _count: int) -> nn.Module:
    axes = tuple(int(axis) for axis in np.atleast_1d(numbers[0]))
    keep = settings.get("keep_dims", "false").lower() in ("true", "1")
    return _Of(lambda feature: feature.mean(dim=axes, keepdim=keep))


def _reshape(settings: Mapping[str, str], numbers: Sequence[np.ndarray], _count: int) -> nn.Module:
    sides = [int(side) for side in numbers[0]]
    if sides[0] not in (0, 1, -1) or 0 in sides[1:]:
        raise ValueError(f"a target of {sides}")
    # a file of one image says 1 or -1 where any number of images is meant
    return _Of(lambda feature: feature.reshape(feature.shape[0], *sides[1:]))


def _clamp(settings: Mapping[str, str], _numbers: Sequence[np.ndarray], _count: int) -> nn.Module:
    low, high = float(settings["min"]), float(settings["max"])
    return _Of(lambda feature: feature.clamp(low, high))


def _plain(call: Callable[..., Tensor]) -> _Make:
    return lambda _settings, _numbers, _count: _Of(call)


_Make = Callable[[Mapping[str, str], Sequence[np.ndarray], int], nn.Module]
_MAKERS: dict[str, _Make] = {
    "Convolution": _convolution,
    "GroupConvolution": lambda settings, numbers, count: _convolution(settings, numbers, count, grouped=True),
    "Add": _binary(torch.add),
    "Multiply": _binary(torch.mul),
    "PReLU": _prelu,
    "ReLU": _plain(functional.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Swish": _plain(functional.silu),
    "HSwish": _plain(functional.hardswish),
    "Tanh": _plain(torch.tanh),
    "Clamp": _clamp,
    "AvgPool": _pool,
    "ReduceMean": _mean,
    "MatMul": _matmul,
    "Reshape": _reshape,
}
