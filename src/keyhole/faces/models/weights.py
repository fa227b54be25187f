"""Weight files of all forms in circulation, read without executing anything that they contain.

PyTorch files are read by PyTorch's restricted loader. Files of NumPy that hold Python objects (``.npy`` as MMdnn
writes it, pickled dicts of arrays) are read by an unpickler that knows arrays and builtin containers only: the names in
the file choose among our own functions, and any other name is refused.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from keyhole.errors import WeightsError, reason_of, unknown_name
from keyhole.files import read_tensors

_PLAIN = re.compile(r"[<>|=]?([fiu][1248]|b1)")
_WRAPPERS = ("state_dict", "model", "net", "model_state_dict")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a weight file by name, on the CPU; nothing in the file is executed.

    A dict of dicts (``{layer: {"weights": ...}}``) becomes ``layer.weights``. A state dict inside a checkpoint is
    found, and the prefix ``module.`` of parallel training is dropped.

    Args:
        path: ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.npz``, ``.npy`` or ``.pkl``.

    Raises:
        WeightsError: The file is missing, damaged, asks for code to be run, or holds no arrays.
        UnknownNameError: Its ending is none of these.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise unknown_name("form of weights", path.suffix, READERS)
    try:
        value = reader(path)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror or error}. Expected a weight file.") from error
    except Exception as error:  # each library reports damage in types of its own
        reason = reason_of(error)
        raise WeightsError(f"{path} is no weight file of that form ({reason}). Copy or convert it again.") from error
    tensors = _flat(value)
    if not tensors:
        raise WeightsError(f"{path} holds no arrays by name; expected a state dict or a dict of layers.")
    return tensors


def _flat(value: Any) -> dict[str, Tensor]:
    if isinstance(value, Mapping):
        for key in _WRAPPERS:
            if isinstance(value.get(key), Mapping) and any(isinstance(one, Tensor) for one in value[key].values()):
                value = value[key]
                break
    found: dict[str, Tensor] = {}
    for name, one in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(name, (str, bytes)):
            continue
        parts = one.items() if isinstance(one, Mapping) else (("", one),)
        for part, array in parts:
            tensor = _tensor(array)
            if tensor is not None:
                found[".".join(_text(key) for key in (name, part) if key).removeprefix("module.")] = tensor
    return found


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _tensor(array: Any) -> Tensor | None:
    if isinstance(array, Tensor):
        return array
    if isinstance(array, _Array):
        array = array.value
    return torch.from_numpy(array.copy()) if isinstance(array, np.ndarray) else None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds objects, which would run code when loaded. Save its state_dict() alone."
        ) from error


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_npy(path: Path) -> Any:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        if not header(file)[2].hasobject:
            raise WeightsError(f"{path} is one array without names; expected a dict of layers.")
        return _unpickled(file)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _unpickled(file)


def _unpickled(file: BinaryIO) -> Any:
    value = _Arrays(file, encoding="latin1").load()
    return value.value if isinstance(value, _Array) else value


# ending -> reader
READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": lambda path: read_tensors(path)[0],
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pkl": _read_pickle,
}


def _plain(text: Any) -> str:
    """Return a text of a pickle; of anything else even its description may be without end."""
    if not isinstance(text, str | bytes):
        raise pickle.UnpicklingError(f"{type(text).__name__}, where a text is expected")
    return _text(text)


class _Kind:
    """A NumPy type in a pickle: a number type of one letter and a size, or objects."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = _plain(name)
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _plain(state[1])

    def numpy(self) -> np.dtype[Any]:
        if not _PLAIN.fullmatch(self.name):
            raise pickle.UnpicklingError(f"type {self.name[:20]!r}, where only numbers are expected")
        plain = np.dtype(self.name)
        return plain if self.order not in ("<", ">") else plain.newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """An array in a pickle; ``value`` is a NumPy array, or the object that an array of one object holds."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if kind.name.startswith("O"):
            if not isinstance(data, list) or len(data) != 1:
                raise pickle.UnpicklingError("an array of objects, where only numbers are expected")
            self.value = data[0]
        else:
            self.value = _numbers(data, kind, shape, order="F" if fortran else "C")


def _numbers(data: Any, kind: _Kind, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(data, str | bytes | bytearray):  # a number would make so many bytes
        raise pickle.UnpicklingError(f"{type(data).__name__}, where the bytes of an array are expected")
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    dtype = kind.numpy()
    sizes = tuple(int(size) for size in shape)
    if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != len(raw):
        raise pickle.UnpicklingError(f"{len(raw)} bytes for an array of shape {sizes}")
    array = np.frombuffer(raw, dtype).reshape(sizes, order=order)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("=")))


def _new_array(*_: Any) -> _Array:
    return _Array()


def _filled_array(data: Any, kind: _Kind, shape: Any, order: Any = "C", *_: Any) -> _Array:
    array = _Array()
    array.value = _numbers(data, kind, shape, order="F" if order == "F" else "C")
    return array


def _scalar(kind: _Kind, data: Any = b"", *_: Any) -> _Array:
    return _filled_array(data, kind, ())


def _mapping(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return dict(pairs)


def _encoded(text: Any, *_: Any) -> bytes:
    return _plain(text).encode("latin1")


# what a pickle of arrays may name; every target is ours, and none calls what it is given
_ADMITTED: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled_array for core in ("core", "_core")},
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Kind,
    ("collections", "OrderedDict"): _mapping,
    ("_codecs", "encode"): _encoded,
}


class _Arrays(pickle._Unpickler):
    """An unpickler of arrays and builtin containers; every other name is refused.

    It is the one in Python: the one in C reserves memory for whatever index a file names.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise WeightsError(
                f"The file asks for {module}.{name}, which would run code; only arrays in dicts are read. "
                "Save the arrays alone, as .npz or .safetensors."
            )
        return _ADMITTED[module, name]

    def load_build(self) -> None:
        """Give an array or its type its state; the usual one would set attributes of whatever a file admits."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Kind | _Array):
            raise pickle.UnpicklingError("a state for what is no array")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}
