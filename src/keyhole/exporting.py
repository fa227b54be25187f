"""Networks as files for other runtimes: ONNX and OpenVINO IR, in single, half or integer precision, checked as written.

A file holds the preparation of its images as well: what goes in are RGB values from 0 to 255, so that a device needs to
know nothing but the size. Integers are calibrated on images (post-training quantization by NNCF: 8 bits for weights,
each channel on its own, and for features; the first convolution, which sees the image, stays as it is, and so do those
of 1 x 1 maps and products of features, which cost little and decide much).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import DivergenceError, KeyholeError, SettingError, WeightsError, reason_of, unknown_name
from keyhole.files import check_weights_beside, write_bytes
from keyhole.libraries import optional
from keyhole.models.network import InputSpec, Network
from keyhole.runtime import silence_toolkit

FORMS = {".onnx": "onnxruntime", ".xml": "openvino"}
PRECISIONS = ("fp32", "fp16", "int8")
_ALLOWED = {"fp32": 1e-3, "fp16": 2e-2}  # of the largest output
_COSINE = 0.95  # of int8, on average; below it a network is another one
_OPSET = 18
_INPUT, _OUTPUT = "images", "output"


@dataclass(frozen=True)
class Exported:
    """A file, and how it compares with the network that it was made of.

    Attributes:
        path: The file; an IR has its ``.bin`` beside it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        size_bytes: Of all its files.
        worst: Largest difference of an output, as a share of the largest output.
        cosine: Mean cosine of the outputs of both, -1 to 1.
        least_cosine: That of the image on which they differ most.
        checked: On how many images.
    """

    path: Path
    precision: str
    size_bytes: int
    worst: float
    cosine: float
    least_cosine: float
    checked: int


class Prepared(nn.Module):
    """A network that takes RGB values from 0 to 255, or gray ones where it sees no color.

    Args:
        network: Takes prepared images, gives a tensor.
        mean: Subtracted from each channel, 0 to 255, in the order of the network's channels.
        std: What each is divided by.
        reverse: The network takes BGR.
    """

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], reverse: bool) -> None:
        super().__init__()
        self.network, self.reverse = network, reverse
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output as rows (n, d)."""
        ordered = images.flip(1) if self.reverse else images
        found: Tensor = self.network((ordered - self.mean) / self.std)
        return found.flatten(1)


def export(
    network: Prepared,
    path: Path,
    images: Float[Tensor, "n 3 h w"],
    *,
    precision: str = "fp32",
) -> Exported:
    """Write a network for another runtime, and check there that it gives what it gave here.

    Args:
        network: The network with its preparation.
        path: Ends in ``.onnx`` or ``.xml``.
        images: RGB values from 0 to 255 that it is checked on: some hundred, of training data. For ``int8`` the first
            three quarters calibrate it, and only the others are checked on.
        precision: ``fp32``, ``fp16`` (weights; a runtime may compute in more) or ``int8``.

    Raises:
        UnknownNameError: There is no such form or precision.
        SettingError: A library is missing, there are no images, or the network cannot be written.
        DivergenceError: The file gives something else than the network.
        RunError: The file cannot be written.
    """
    if path.suffix not in FORMS:
        raise unknown_name("form to export", path.suffix, FORMS)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if not len(images):
        raise SettingError("There are no images to check the export on; give some of the training data.")
    network = network.eval().cpu()
    judging = len(images) // 4 if precision == "int8" else 0
    calibrating, checked = (images[:-judging], images[-judging:]) if judging else (images, images)
    with torch.no_grad():
        expected = torch.cat([network(part) for part in torch.split(checked, 32)]).numpy()
    with tempfile.TemporaryDirectory() as folder, _in_one_line(path):
        plain = Path(folder) / "plain.onnx"
        # traced on noise, so that a network that became a constant differs from itself on the images
        noise = torch.rand((2, *images.shape[1:]), generator=torch.Generator().manual_seed(0)) * 255
        _write_onnx(network, plain, noise)
        made = Path(folder) / f"made{path.suffix}"
        if path.suffix == ".xml":
            _write_ir(plain, made, precision, calibrating)
        else:
            _write_precision(plain, made, precision, calibrating)
        files = {path: made}
        if path.suffix == ".xml":
            files[path.with_suffix(".bin")] = made.with_suffix(".bin")
        found = np.concatenate([rows for rows in _run(made, checked)])
        agreement = _compared(found, expected, path, precision)
        _put(files)
    size = sum(target.stat().st_size for target in files)
    return Exported(path, precision, size, *agreement, len(checked))


def _put(files: Mapping[Path, Path]) -> None:
    """Put files that belong together where they shall stand: what can fail comes first, and the graph goes last."""
    fresh = {target: target.with_name(f".{target.name}.fresh") for target in files}
    try:
        for target, source in files.items():
            write_bytes(fresh[target], source.read_bytes())
        if len(files) > 1:  # a stop between the two shall not leave a graph beside weights that are not its own
            next(iter(files)).unlink(missing_ok=True)
        for target in reversed(fresh):
            fresh[target].replace(target)
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Turn what a runtime or quantizer raises, of a dozen types, into one line."""
    try:
        yield
    except KeyholeError:
        raise
    except Exception as error:
        raise SettingError(
            f"{path} cannot be made ({reason_of(error)}). Export it in another precision or form."
        ) from error


def _write_onnx(network: nn.Module, path: Path, example: Tensor) -> None:
    _needed("onnx")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter tells of its own successor
            torch.onnx.export(
                network,
                (example,),
                str(path),
                dynamo=False,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_axes={_INPUT: {0: "n"}, _OUTPUT: {0: "n"}},
                opset_version=_OPSET,
            )
    except Exception as error:  # of many types
        raise SettingError(f"The network cannot be written as ONNX ({reason_of(error)}). Use it as PyTorch.") from error


def _write_precision(source: Path, target: Path, precision: str, images: Tensor) -> None:
    """Write an ONNX file in another precision."""
    onnx = _needed("onnx")
    made = onnx.load(str(source))
    if precision == "int8":
        made = _quantized(made, [{_INPUT: image.numpy()} for image in torch.split(images, 1)], _sensitive(made))
    elif precision == "fp16":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _needed("onnxruntime.transformers.float16").convert_float_to_float16(made, keep_io_types=True)
    onnx.save(made, str(target))


def _write_ir(source: Path, target: Path, precision: str, images: Tensor) -> None:
    openvino = _needed("openvino")
    made = openvino.Core().read_model(str(source))
    if precision == "int8":
        fixed = openvino.Core().read_model(str(source))  # sizes are known for a number of images
        fixed.reshape([1, *images.shape[1:]])
        found = [op for op in fixed.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")]
        whole = [op.get_friendly_name() for k, op in enumerate(found) if not k or tuple(op.shape[2:]) == (1, 1)]
        made = _quantized(made, [image.numpy() for image in torch.split(images, 1)], whole)
    openvino.save_model(made, str(target), compress_to_fp16=precision != "fp32")


def _sensitive(model: Any) -> list[str]:
    """Return the names of the first convolution of an ONNX graph and of those that give 1 x 1 maps."""
    known = _needed("onnx").shape_inference.infer_shapes(model)
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*known.graph.value_info, *known.graph.output)
    }
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node.name for k, node in enumerate(found) if not k or shapes.get(node.output[0], ())[2:] == (1, 1)]


def _quantized(model: Any, images: Sequence[Any], whole: Sequence[str]) -> Any:
    """Return a model in integers but for some operations; what NNCF tells goes where progress goes."""
    nncf = _silent_nncf()
    with contextlib.redirect_stdout(sys.stderr):
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(names=list(whole), types=["Mul", "Multiply"], validate=False),
        )


def _silent_nncf() -> Any:
    """Return NNCF without its telemetry, which sends what is done with it to its maker unless it cannot be imported."""
    silence_toolkit()
    with _missing("openvino_telemetry"):
        nncf = _needed("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """Let a package be as if it were not installed."""
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _run(path: Path, images: Tensor) -> Iterator[np.ndarray]:
    """Yield what a file gives in its runtime."""
    run, _, _ = (_open_onnx if path.suffix == ".onnx" else _open_ir)(path)
    for part in torch.split(images, 32):
        yield run(part.numpy())


class ExportedFile(nn.Module):
    """An exported file, run in its own runtime; made by :func:`load_exported`."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        """Return the output (n, d) for images of values from 0 to 255."""
        return torch.from_numpy(self.run(images.float().contiguous().cpu().numpy())).to(images.device)


def load_exported(path: Path) -> Network:
    """Return a classifier that :func:`export` wrote, to be measured in the runtime that reads it.

    Args:
        path: The ``.onnx`` file, or the ``.xml`` file of an OpenVINO IR.

    Raises:
        WeightsError: The file is missing, broken, or none of :func:`export`.
        SettingError: Its runtime is not installed, or it is a face model.
    """
    if not path.is_file():
        raise WeightsError(f"Cannot read {path}: no such file. Name one of 'keyhole export'.")
    if path.with_name(f"{path.name}.toml").is_file():
        raise SettingError(
            f"{path} is a face model ({path.name}.toml lies beside it): 'keyhole faces evaluate' measures it."
        )
    check_weights_beside(path)
    try:
        run, taken, given = (_open_onnx if path.suffix == ".onnx" else _open_ir)(path)
        (channels, height, width), outputs = map(int, taken[1:]), int(given[1])
        if isinstance(taken[0], int) and taken[0] > 0:
            raise ValueError(f"it takes {taken[0]} images at a time, and no other number")
    except KeyholeError:
        raise
    except Exception as error:  # of a dozen types: not a whole file, or no images go in
        raise WeightsError(
            f"{path} is no classifier that 'keyhole export' wrote ({reason_of(error)}). Export one."
        ) from error
    values = InputSpec((height, width), (0.0,) * channels, (1 / 255,) * channels)  # from [0, 1] to 0 to 255
    return Network(path.name, ExportedFile(run), values, outputs)


_Opened = tuple[Callable[[np.ndarray], np.ndarray], Sequence[Any], Sequence[Any]]


def _open_onnx(path: Path) -> _Opened:
    session = optional("onnxruntime", user=path.name).InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([_OUTPUT], {_INPUT: images})[0])

    return run, shapes[_INPUT], shapes[_OUTPUT]


def _open_ir(path: Path) -> _Opened:
    compiled = (
        optional("openvino", user=path.name).Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    taken, given = (
        [side.get_length() if side.is_static else 0 for side in port.partial_shape]
        for port in (compiled.input(_INPUT), compiled.output(_OUTPUT))
    )
    return (lambda images: np.asarray(compiled(images)[0])), taken, given


def _compared(found: np.ndarray, expected: np.ndarray, path: Path, precision: str) -> tuple[float, float, float]:
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise DivergenceError(
            f"{path} gives {found.shape} instead of {expected.shape}, or NaN. Export it in another precision."
        )
    worst = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    cosines = functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
    cosine, least = float(cosines.mean()), float(cosines.min())
    if precision == "int8" and cosine < _COSINE:
        raise DivergenceError(
            f"{path} gives another direction than the network: mean cosine {cosine:.3f}, expected at least {_COSINE}. "
            "Give more images like those that it will see (--samples, --degrade), or take fp16."
        )
    if worst > _ALLOWED.get(precision, np.inf):
        raise DivergenceError(
            f"{path} differs from the network by {100 * worst:.2g} % of its largest output; expected at most "
            f"{100 * _ALLOWED[precision]:g} %. Export it in another precision or form."
        )
    return worst, cosine, least


def _needed(name: str) -> Any:
    return optional(name, user="Exporting")
