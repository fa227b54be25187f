"""Files that are written whole or not at all, and read without executing anything.

Every file of a run goes through :func:`write_bytes`: a temporary file in the same folder, flushed to the
disk, then renamed over the old one. A killed process or a full disk leaves the old file as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from keyhole.errors import DataError, RunError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

_UMASK = os.umask(0o077)  # can only be read by setting it, so once, while there is one thread
os.umask(_UMASK)


def write_bytes(path: Path, data: bytes | Callable[[Path], None], *, private: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        path: Where the file shall stand; its folder is made when missing.
        data: The content, or a function that writes it to the path that it is given.
        private: Readable by its owner only, from its first byte on; else by whom the user's umask lets.

    Raises:
        RunError: The folder cannot be made or written, or the disk is full; an older file at ``path`` is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
        if not isinstance(data, bytes):
            data(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o600 if private else 0o666 & ~_UMASK)  # a library may have replaced the file and its rights
        temporary.replace(path)
        _settle_names(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"Cannot write {path}: {reason}. Free space or choose another --out; an older file there is untouched."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _settle_names(folder: Path) -> None:
    """Have the disk keep the names of a folder too, so that a file outlives a power cut with its new name."""
    with suppress(OSError):  # not every system opens folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove files that a killed process left half written; of a folder that no other process writes to."""
    for pattern in (".*.part", ".tmp??????"):  # of :func:`write_bytes` and of safetensors
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a UTF-8 text file whole or not at all; arguments and errors are those of :func:`write_bytes`.

    What UTF-8 cannot hold, such as a file name of other bytes, stands as an escape.
    """
    write_bytes(path, text.encode(errors="backslashreplace"), private=private)


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write a value as indented JSON, whole or not at all; NaN is refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", private=private)


def read_text(path: Path, kind: str) -> str:
    """Return the text of a UTF-8 file, without the byte order mark that some editors put in front.

    Args:
        path: The file.
        kind: What is expected there, for the error: ``"a JSON file"``.

    Raises:
        DataError: The file cannot be read.
        UnicodeDecodeError: It holds bytes that are no text; a ``ValueError`` like those of JSON and TOML.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Expected {kind} there.") from error


def read_json(path: Path, *, remedy: str = "Write it anew, or name another file.") -> Any:
    """Return the value of a JSON file.

    Args:
        path: The file.
        remedy: What to do where it is damaged.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    try:
        return json.loads(read_text(path, "a JSON file"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}). {remedy}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        DataError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(read_text(path, "a TOML file"))
    except (ValueError, RecursionError) as error:  # of TOML, or of bytes that are no text
        raise DataError(f"{path} is not TOML: {error}.") from error


def append_line(path: Path, line: str) -> None:
    """Append one line to a log; raises like :func:`write_bytes`."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise RunError(f"Cannot append to {path}: {error.strerror}. Free space or choose another --out.") from error


def md5(path: Path) -> str:
    """Return the MD5 of a file, the checksum that the official data sets publish."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_weights_beside(path: Path) -> None:
    """Check that the weights of an OpenVINO IR (``.xml``) lie beside it, as they must; other files are left alone.

    Raises:
        WeightsError: There is no such ``.bin`` file.
    """
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and path.is_file() and not weights.is_file():
        raise WeightsError(
            f"{weights.name}, the weights of {path}, is not beside it; expected both. Copy them together."
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Name another file.") from error


def halved_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network in fp16, half the size, where that loses no more than fp16's own rounding.

    A tensor that fp16 cannot hold stays as it is: one with a value above 65,504 or so small throughout that it would be
    lost, and running statistics of batch norm in which any single value would be lost, as they are divided by.
    """
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: _halved(tensor, each=name not in weights) for name, tensor in module.state_dict().items()}


def _halved(tensor: Tensor, *, each: bool) -> Tensor:
    """Return a tensor in fp16, or as it was where that would lose more than fp16's own rounding.

    Args:
        tensor: Any tensor.
        each: Every value must be kept to that rounding, not only the large ones.
    """
    if not tensor.is_floating_point() or tensor.element_size() == 2 or not tensor.numel():
        return tensor
    halved = tensor.half()
    size = tensor.double().abs()
    error = (halved.double() - tensor.double()).abs()
    kept = error <= (size if each else size.max()) * 2.0**-11
    return halved if bool(kept.all()) else tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, private: bool = False
) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all.

    Args:
        path: Where the file shall stand.
        tensors: Name to tensor, on any device; shared memory is copied.
        metadata: Values that JSON can hold; stored as one string under ``keyhole``.
        private: Readable by its owner only.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    text = {"keyhole": json.dumps(dict(metadata), allow_nan=False)}

    def save(target: Path) -> None:
        """Write the tensors, and tell a full disk as other writers do."""
        try:
            save_file(plain, target, metadata=text)
        except SafetensorError as error:  # safetensors reports a full disk in its own type
            raise OSError(None, str(error)) from error

    write_bytes(path, save, private=private)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file on the CPU and the metadata of :func:`write_tensors` (else empty).

    Raises:
        WeightsError: The file is missing, truncated, or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise WeightsError(f"{path} is a folder. Expected a safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("keyhole", "{}"))
        if not isinstance(metadata, dict):
            raise ValueError("what it tells of itself is no table")
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror or error}. Expected a safetensors file.") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}). Copy or make it again.") from error
    return tensors, metadata


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one ``.npz`` file, whole or not at all."""

    def save(target: Path) -> None:
        with target.open("wb") as file:
            np.savez_compressed(file, **cast("dict[str, Any]", dict(arrays)))

    write_bytes(path, save)
