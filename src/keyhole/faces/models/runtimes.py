"""Where a network's file runs: ONNX Runtime, OpenVINO or PyTorch, all as one call from images to rows of numbers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keyhole.errors import SettingError, ShapeError, WeightsError, reason_of
from keyhole.files import check_weights_beside
from keyhole.libraries import call_named, optional

CHUNK = 16  # images at once on a processor: more leave its caches, fewer do not fill it
_QUEUED = 64  # images that wait for their turn one by one


class Network(Protocol):
    """A network ready to run.

    ``batch`` is the number of images that it must be given at a time, ``None`` for any; ``chunk`` is how many are best.
    """

    batch: int | None
    chunk: int

    def __call__(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Return one row for each image, on the CPU."""
        ...


def run_padded(network: Network, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
    """Return the rows of at most one batch of images; a network of fixed batch is given zeros for what lacks.

    Example:
        >>> class Means:
        ...     batch = chunk = 4
        ...     def __call__(self, images):
        ...         assert len(images) == 4
        ...         return images.mean(dim=(2, 3))
        >>> run_padded(Means(), torch.ones(3, 3, 8, 8)).shape
        torch.Size([3, 3])
    """
    count, wanted = len(images), network.batch or len(images)
    if count < wanted:
        images = torch.cat([images, images.new_zeros(wanted - count, *images.shape[1:])])
    return network(images)[:count]


def rows(output: Tensor, count: int) -> Float[Tensor, "n d"]:
    """Return a network's output as one row for each image: (n, d) as it is, (n, d, 1, 1) flattened.

    Raises:
        ShapeError: It has another shape.

    Example:
        >>> rows(torch.zeros(2, 256, 1, 1), 2).shape
        torch.Size([2, 256])
    """
    shape = tuple(output.shape)
    if not _is_rows(shape) or shape[0] != count:
        raise ShapeError(
            f"The network gave {shape} for {count} images; expected ({count}, d) or ({count}, d, 1, 1). "
            "Name the output that is the embedding."
        )
    return output.flatten(1).to("cpu", torch.float32)


def _is_rows(shape: Sequence[Any]) -> bool:
    return len(shape) == 2 or (len(shape) == 4 and tuple(shape[2:]) == (1, 1))


class OnnxNetwork:
    """An ONNX file in ONNX Runtime, on the CPU.

    Args:
        path: The file.
        size_px: Side of the images that the description promises; checked against the file.
        output: Name of the output that is the embedding; needed only where several could be.
        threads: Number of threads; ``None`` for one a core.

    Raises:
        SettingError: ONNX Runtime is not installed, or the file takes other images or has no such output.
        WeightsError: The file is missing or no ONNX file.
    """

    def __init__(self, path: Path, *, size_px: int, output: str | None = None, threads: int | None = None) -> None:
        runtime = _library("onnxruntime", path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = _threads(threads)
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of a dozen types, none of them public
            raise WeightsError(
                f"{path} is no ONNX file that can be run ({reason_of(error)}). Copy it again."
            ) from error
        inputs = [(one.name, _sizes(one.shape), one.type) for one in self._session.get_inputs()]
        self._input, self.batch, self._last = _checked_input(inputs, path, size_px=size_px)
        outputs = [(one.name, _sizes(one.shape)) for one in self._session.get_outputs()]
        self._output = _checked_output(outputs, path, wanted=output)
        self.chunk = self.batch or CHUNK

    def __call__(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Return one row for each image, on the CPU."""
        array = (images.permute(0, 2, 3, 1).contiguous() if self._last else images).cpu().numpy()
        (output,) = self._session.run([self._output], {self._input: array})
        return rows(torch.from_numpy(output), len(images))


class OpenVinoNetwork:
    """An OpenVINO IR (``.xml`` with its ``.bin`` beside it), or any other file that OpenVINO reads, on the CPU.

    Images go through it one by one, several at a time on threads of their own: the features of one stay in a core's
    caches, which those of a batch leave, and an image's embedding does not depend on what comes with it. A file whose
    layers allow no batch of 1 is given the batches that it wants.

    Args:
        path: The ``.xml`` file.
        size_px: Side of the images that the description promises; checked against the file.
        output: Name of the output that is the embedding; needed only where several could be.
        threads: Number of threads; ``None`` for one a core.

    Raises:
        SettingError: OpenVINO is not installed, or the file takes other images or has no such output.
        WeightsError: The file is missing or cannot be read.
    """

    def __init__(self, path: Path, *, size_px: int, output: str | None = None, threads: int | None = None) -> None:
        library = _library("openvino", path)
        check_weights_beside(path)
        core = library.Core()
        try:
            model = core.read_model(str(path))
            inputs = [
                (_first_name(one, 0), _partial(one), one.get_element_type().get_type_name()) for one in model.inputs
            ]
            _, self.batch, self._last = _checked_input(inputs, path, size_px=size_px)
            outputs = [(_first_name(one, index), _partial(one)) for index, one in enumerate(model.outputs)]
            names = [name for name, _ in outputs]
            self._output = names.index(_checked_output(outputs, path, wanted=output))
            side = (size_px, size_px, 3) if self._last else (3, size_px, size_px)
            self._queue = self._one_by_one(library, core, model, (1, *side), threads)
            self._lock = Lock()
            if self._queue is None:
                self._compiled = core.compile_model(model, "CPU", _settings(threads))
            else:
                self.batch = None
            self.chunk = self.batch or _QUEUED
        except RuntimeError as error:
            raise WeightsError(
                f"{path} is no model that OpenVINO can run ({reason_of(error)}). Copy it again."
            ) from error

    def _one_by_one(self, library: Any, core: Any, model: Any, shape: tuple[int, ...], threads: int | None) -> Any:
        """Return a queue that takes images one by one, as many at a time as there are threads; None where none fits."""
        one = model.clone()
        try:
            one.reshape(shape)
            settings = {**_settings(threads), "NUM_STREAMS": _threads(threads)}
            compiled = core.compile_model(one, "CPU", settings)
            if compiled([np.zeros(shape, np.float32)])[self._output].shape[0] != 1:
                return None
        except RuntimeError:  # a layer inside is fixed to another number
            return None
        queue = library.AsyncInferQueue(compiled, _threads(threads))
        queue.set_callback(self._keep)
        return queue

    def _keep(self, request: Any, place: tuple[list[Any], int]) -> None:
        found, index = place
        found[index] = np.array(request.get_output_tensor(self._output).data)

    def __call__(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Return one row for each image, on the CPU."""
        array = (images.permute(0, 2, 3, 1) if self._last else images).contiguous().cpu().numpy()
        with self._lock:
            if self._queue is None:
                return rows(torch.from_numpy(np.array(self._compiled([array])[self._output])), len(images))
            found: list[Any] = [None] * len(images)
            for k in range(len(images)):
                self._queue.start_async([array[k : k + 1]], (found, k))
            self._queue.wait_all()
        return rows(torch.from_numpy(np.concatenate(found)), len(images))


def _settings(threads: int | None) -> dict[str, Any]:
    # 32 bits everywhere: a processor with bf16 units would give other embeddings for the same file
    return {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": _threads(threads)}


class TorchNetwork:
    """A PyTorch module in evaluation mode.

    Args:
        module: Takes (n, 3, s, s) and gives (n, d) or (n, d, 1, 1), or a tuple that starts with it.
        device: Where it runs.
        threads: Number of threads on the CPU; ``None`` leaves PyTorch's own number.
    """

    batch: int | None = None

    def __init__(self, module: nn.Module, *, device: torch.device | None = None, threads: int | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._threads = threads
        self.chunk = CHUNK if self._device.type == "cpu" else 256
        self.module = module.eval().requires_grad_(False).to(self._device).to(memory_format=torch.channels_last)

    def __call__(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Return one row for each image, on the CPU."""
        images = images.to(self._device).contiguous(memory_format=torch.channels_last)
        with _torch_threads(self._threads), torch.inference_mode():
            output = self.module(images)
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise ShapeError(f"The network gave {type(output).__name__}; expected a tensor (n, d).")
        return rows(output, len(images)).clone()


def import_module(text: str) -> nn.Module:
    """Return the PyTorch module that ``package.module:function`` builds.

    This runs the code that it names, as ``import`` does; nothing is imported unless a person wrote its name.

    Raises:
        UnknownNameError: The package cannot be imported, or has no such function; the nearest are listed.
        SettingError: The function fails, or returns something else.

    Example:
        >>> import_module("torch.nn:Identity")
        Identity()
    """
    module = call_named(text)
    if not isinstance(module, nn.Module):
        raise SettingError(f"{text} gave {type(module).__name__}; expected a torch.nn.Module in evaluation mode.")
    return module


def module_source(module: nn.Module) -> str:
    """Return the source of all parts of a module that are not PyTorch's, and its structure, for a fingerprint.

    Layers that differ from PyTorch's in how gradients are computed alone count as PyTorch's.
    """
    own = ("torch.", "keyhole.gradients")
    kinds = {type(part) for part in module.modules() if not type(part).__module__.startswith(own)}
    texts = []
    for kind in sorted(kinds, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}"):
        try:
            texts.append(inspect.getsource(kind))
        except (OSError, TypeError):  # made at run time
            texts.append(f"{kind.__module__}.{kind.__qualname__}")
    return "\n".join([*texts, repr(module)])


def _library(name: str, path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"Cannot read {path}: no such file. Name a model file, or download one.")
    return optional(name, user=path.name)


def _threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise SettingError(f"threads is {threads}; expected at least 1, or none for one a core.")
    return threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(_threads(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sizes(shape: Sequence[Any]) -> list[int | None]:
    return [size if isinstance(size, int) and size > 0 else None for size in shape]


def _partial(port: Any) -> list[Any]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [size.get_length() if size.is_static else -1 for size in shape]


def _first_name(port: Any, index: int) -> str:
    return min(port.get_names(), default=f"output {index}")


def _checked_input(
    inputs: Sequence[tuple[str, Sequence[int | None], str]], path: Path, *, size_px: int
) -> tuple[str, int | None, bool]:
    """Return the input's name, its fixed batch or none, and whether channels come last."""
    if len(inputs) != 1:
        raise SettingError(f"{path} has {len(inputs)} inputs; expected one, a batch of images.")
    name, shape, kind = inputs[0]
    if kind not in ("tensor(float)", "f32"):
        raise SettingError(f"{path} takes {kind}; expected 32-bit floats. Export it with a float input.")
    sizes = [size if size is not None and size > 0 else None for size in shape]
    last = len(sizes) == 4 and sizes[3] == 3 and sizes[1] != 3
    channels, sides = (sizes[3], sizes[1:3]) if last else (sizes[1], sizes[2:]) if len(sizes) == 4 else (None, [])
    if len(sizes) != 4 or channels not in (3, None) or any(side not in (size_px, None) for side in sides):
        seen = " x ".join("?" if size is None else str(size) for size in sizes)
        raise SettingError(
            f"{path} takes {seen or 'no images'}; its description says n x 3 x {size_px} x {size_px}. "
            "Correct size_px, or name another file."
        )
    return name, sizes[0], last


def _checked_output(outputs: Sequence[tuple[str, Sequence[int | None]]], path: Path, *, wanted: str | None) -> str:
    names = [name for name, _ in outputs]
    if wanted is not None:
        if wanted not in names:
            raise SettingError(f"{path} has no output {wanted!r}; it has {', '.join(names)}.")
        return wanted
    fitting = names if len(names) == 1 else [name for name, shape in outputs if _is_rows(shape)]
    if len(fitting) != 1:
        raise SettingError(f"{path} has outputs {', '.join(names)}; say which is the embedding (output).")
    return fitting[0]
