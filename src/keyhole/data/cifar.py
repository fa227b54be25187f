"""CIFAR-10 and CIFAR-100 from their official files, checked before they are read, and read without executing anything.

Reference:
    Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keyhole.data.splits import MemorySplit
from keyhole.errors import DataError
from keyhole.files import md5
from keyhole.progress import Progress, silent


@dataclass(frozen=True)
class _Cifar:
    folder: str
    archive: str
    archive_md5: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    meta: tuple[str, str]
    label_key: str
    names_key: str


# File names and MD5 sums as published at https://www.cs.toronto.edu/~kriz/cifar.html
_CIFARS = {
    "cifar100": _Cifar(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        (("train", "16019d7e3df5f24257cddd939b257f8d"),),
        (("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        ("meta", "7973b15100ade9c7d40fb424638fde48"),
        "fine_labels",
        "fine_label_names",
    ),
    "cifar10": _Cifar(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        (
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        (("test_batch", "40351d587109b95175f43aff81a1287e"),),
        ("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        "labels",
        "label_names",
    ),
}
_SITE = "https://www.cs.toronto.edu/~kriz/"


def load_cifar(
    name: str, root: Path, *, download: bool = True, progress: Progress = silent
) -> tuple[MemorySplit, MemorySplit]:
    """Return the training and test images of ``cifar10`` or ``cifar100`` in their official order.

    Args:
        name: ``cifar10`` or ``cifar100``.
        root: The folder that holds ``cifar-100-python/`` (or ``cifar-10-batches-py/``).
        download: Fetch the official archive when the folder is missing.
        progress: Shows the download.

    Raises:
        DataError: A file is missing and cannot be fetched, or its checksum is wrong.
    """
    what = _CIFARS[name]
    folder = root / what.folder
    if not folder.is_dir():
        if not download:
            raise DataError(_missing(what, folder, "it is not there"))
        _download(what, root, progress)
    names = _read(folder, what.meta)[what.names_key]
    return _split(folder, what, what.train, names), _split(folder, what, what.test, names)


def _split(folder: Path, what: _Cifar, files: tuple[tuple[str, str], ...], names: list[str]) -> MemorySplit:
    parts = [_read(folder, file) for file in files]
    pixels = np.concatenate([np.asarray(part["data"]) for part in parts])
    labels = np.concatenate([np.asarray(part[what.label_key]) for part in parts])
    color_last = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return MemorySplit(
        pixels=torch.from_numpy(np.ascontiguousarray(color_last)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        indices=torch.arange(len(labels)),
        classes=tuple(names),
    )


def _read(folder: Path, file: tuple[str, str]) -> dict[str, Any]:
    name, checksum = file
    path = folder / name
    if not path.is_file():
        raise DataError(f"No file {path} (MD5 {checksum}). Unpack the official archive so that it stands in {folder}.")
    found = md5(path)
    if found != checksum:
        raise DataError(f"{path} is corrupt: MD5 {found}, expected {checksum}. Unpack the official archive again.")
    value: dict[str, Any] = _OnlyArrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    return value


class _OnlyArrays(pickle.Unpickler):
    """Read dictionaries, lists, strings, numbers and byte arrays; any other object in the file is an error."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise DataError(f"The file asks for {module}.{name}, which no CIFAR file holds; it was not executed.")
        return allowed[module, name]


def _reconstruct(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    return np.ndarray(shape, np.int8)  # what the pickled array sets its own content into


def _missing(what: _Cifar, folder: Path, reason: str) -> str:
    return (
        f"No folder {folder}, and {what.archive} (MD5 {what.archive_md5}) was not fetched: {reason}. "
        f"Unpack that archive into {folder.parent}, or give --root the folder that holds {what.folder}/."
    )


def _download(what: _Cifar, root: Path, progress: Progress) -> None:
    url = _SITE + what.archive
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            total = int(answer.headers.get("Content-Length", 0)) >> 20
            pieces = iter(lambda: answer.read(1 << 20), b"")
            data = b"".join(progress(pieces, label=f"{what.archive} (MiB)", total=total))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        reason = " ".join(str(getattr(error, "reason", error)).split())  # a server's answer can have several lines
        raise DataError(_missing(what, root / what.folder, reason)) from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != what.archive_md5:
        raise DataError(f"{url} gave a file with MD5 {found}, expected {what.archive_md5}. Nothing was kept; retry.")
    wanted = {f"{what.folder}/{name}" for name, _ in (*what.train, *what.test, what.meta)}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".keyhole-") as fresh:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
                for member in archive.getmembers():
                    content = archive.extractfile(member) if member.name in wanted else None
                    if content is not None:
                        path = Path(fresh) / member.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(content.read())
            (Path(fresh) / what.folder).rename(root / what.folder)  # whole, or not at all
    except OSError as error:
        if (root / what.folder).is_dir():  # another process was faster
            return
        raise DataError(
            f"Cannot write to {root}: {error.strerror}. Give --root a folder that can be written."
        ) from error
