from __future__ import annotations

import gc
import hashlib
import http.server
import io
import pickle
import shutil
import socket
import struct
import tarfile
import threading
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keyhole.data import cifar
from keyhole.data.cifar import load_cifar
from keyhole.errors import DataError, KeyholeError

COUNTS = {"cifar100": (100, 10), "cifar10": (10, 10)}


def message_of(error: pytest.ExceptionInfo[KeyholeError]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


# Files in the official form, drawn by the test


class _Python2(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Pickle as the Python 2 of the official files did: byte strings, and arrays of ``numpy.core``."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def _save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def _save_text(self, value: str) -> None:
        self._save_bytes(value.encode("latin1"))

    dispatch[bytes] = _save_bytes
    dispatch[str] = _save_text


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Python2(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def drawn(name: str) -> dict[str, bytes]:
    """File name to content: a few images of noise in the form of the official archive."""
    what = cifar._CIFARS[name]
    generator = np.random.default_rng(len(what.train))
    classes = COUNTS[name][0]
    files = {}
    for file, _ in (*what.train, *what.test):
        labels = [int(label) for label in generator.integers(0, classes, 4)]
        pixels = generator.integers(0, 256, (4, 3072)).astype(np.uint8)
        files[file] = pickled({"batch_label": file, what.label_key: labels, "coarse_labels": labels, "data": pixels})
    files[what.meta[0]] = pickled({what.names_key: [f"class {i}" for i in range(classes)], "num_vis": 3072})
    return files


def archive_of(name: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        folder = tarfile.TarInfo(cifar._CIFARS[name].folder)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for file, content in {**files, "readme.html": b"hello", "../outside": b"evil"}.items():
            info = tarfile.TarInfo(f"{cifar._CIFARS[name].folder}/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, bytes]], bytes]:
    """Make the checksums of these files the expected ones, and return their archive."""

    def trust(name: str, files: dict[str, bytes]) -> bytes:
        what = cifar._CIFARS[name]
        archive = archive_of(name, files)

        def anew(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
            return tuple((file, md5(files[file])) for file, _ in pairs)

        trusted = replace(
            what, train=anew(what.train), test=anew(what.test), meta=anew([what.meta])[0], archive_md5=md5(archive)
        )
        monkeypatch.setitem(cifar._CIFARS, name, trusted)
        return archive

    return trust


def write(root: Path, name: str, files: dict[str, bytes]) -> Path:
    folder = root / cifar._CIFARS[name].folder
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a real web server on this machine serves in place of the official site."""
    folder = tmp_path_factory.mktemp("site")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(cifar, "_SITE", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        server.shutdown()
        thread.join()


# The official files


def test_the_official_files(cifar100_root: Path, shared: Path) -> None:
    train, test = load_cifar("cifar100", cifar100_root, download=False)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.pixels.shape == (50_000, 32, 32, 3)
    assert len(train.classes) == 100
    assert train.classes[:2] == ("apple", "aquarium_fish")
    with np.load(shared / "data" / "cifar100" / "labels.npz") as labels:
        assert np.array_equal(train.labels.numpy(), labels["fine_train"])
        assert np.array_equal(test.labels.numpy(), labels["fine_test"])
    assert train.classes[int(train.labels[0])] == "cattle"
    assert test.indices.tolist() == list(range(10_000))


def test_the_official_pixels_are_in_order(cifar100_root: Path, shared: Path) -> None:
    from PIL import Image

    test = load_cifar("cifar100", cifar100_root, download=False)[1]
    with Image.open(shared / "data" / "cifar100" / "test_00.webp") as sheet:
        first_tiles = np.asarray(sheet.convert("RGB"))[:32]  # the first images of class 0, in their official order
    where = (test.labels == 0).nonzero().flatten()[:50]
    for tile, position in enumerate(where.tolist()):
        assert np.array_equal(test.pixels[position].numpy(), first_tiles[:, 32 * tile : 32 * tile + 32])


def test_one_flipped_byte_is_found(cifar100_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("meta", "test", "train"):
        (folder / name).symlink_to(cifar100_root / "cifar-100-python" / name)
    (folder / "train").unlink()
    shutil.copy(cifar100_root / "cifar-100-python" / "train", folder / "train")
    with (folder / "train").open("rb+") as file:
        file.seek(100_000_000)
        byte = file.read(1)[0]
        file.seek(100_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path, download=False)
    message = message_of(caught)
    assert f"{folder / 'train'} is corrupt: MD5 " in message
    assert "expected 16019d7e3df5f24257cddd939b257f8d" in message


# Drawn files


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_drawn_files_are_read_as_they_were_drawn(tmp_path: Path, name: str, trust: Any) -> None:
    files = drawn(name)
    trust(name, files)
    write(tmp_path, name, files)
    what = cifar._CIFARS[name]
    for split, parts in zip(load_cifar(name, tmp_path, download=False), (what.train, what.test), strict=True):
        assert len(split) == 4 * len(parts)
        assert split.classes == tuple(f"class {i}" for i in range(COUNTS[name][0]))
        assert split.indices.tolist() == list(range(len(split)))
        for k, (file, _) in enumerate(parts):
            value = pickle.loads(
                files[file].replace(b"numpy.core.multiarray", b"numpy._core.multiarray"), encoding="latin1"
            )
            assert split.labels[4 * k : 4 * k + 4].tolist() == value[what.label_key]
            for i in range(4):
                for channel, row, column in ((0, 0, 0), (1, 3, 7), (2, 31, 30)):
                    byte = value["data"][i, 1024 * channel + 32 * row + column]
                    assert int(split.pixels[4 * k + i, row, column, channel]) == byte


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_missing_file_is_named_with_its_checksum(tmp_path: Path, file: str, trust: Any) -> None:
    files = drawn("cifar100")
    trust("cifar100", files)
    folder = write(tmp_path, "cifar100", files)
    (folder / file).unlink()
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path)
    message = message_of(caught)
    assert f"No file {folder / file} (MD5 {md5(files[file])})" in message


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.mkdir, (self.path,))


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, file: str, protocol: int, trust: Any) -> None:
    mark = tmp_path / "mark"
    files = {**drawn("cifar100"), file: pickle.dumps({"data": Evil(mark)}, protocol)}
    trust("cifar100", files)
    write(tmp_path, "cifar100", files)
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path, download=False)
    assert "it was not executed" in message_of(caught)
    assert not mark.exists()


def test_the_malicious_file_of_the_test_really_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark"), 2))
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("name", ["system", "getattr", "eval", "_reconstruct"])
def test_no_other_function_is_found(tmp_path: Path, name: str) -> None:
    content = b"cbuiltins\n" + name.encode() + b"\n."
    with pytest.raises(DataError, match=f"asks for builtins.{name}"):
        cifar._OnlyArrays(io.BytesIO(content)).load()


# Downloads


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_a_download_from_beginning_to_end(tmp_path: Path, site: Path, name: str, trust: Any) -> None:
    files = drawn(name)
    what = cifar._CIFARS[name]
    (site / what.archive).write_bytes(trust(name, files))
    pieces = []

    def progress(items: Iterable[bytes], *, label: str, total: int, done: int = 0) -> Iterator[bytes]:
        for item in items:
            pieces.append((label, total))
            yield item

    train, test = load_cifar(name, tmp_path / "new" / "root", progress=progress)  # type: ignore[arg-type]
    assert (len(train), len(test)) == (4 * len(what.train), 4 * len(what.test))
    assert pieces[0][0] == f"{what.archive} (MiB)"
    folder = tmp_path / "new" / "root" / what.folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [path.name for path in (tmp_path / "new" / "root").iterdir()] == [what.folder]
    (site / what.archive).unlink()
    again, _ = load_cifar(name, tmp_path / "new" / "root")
    assert torch.equal(again.pixels, train.pixels)


def test_a_download_with_another_checksum_keeps_nothing(tmp_path: Path, site: Path, trust: Any) -> None:
    archive = trust("cifar100", drawn("cifar100"))
    (site / "cifar-100-python.tar.gz").write_bytes(archive[:-1] + b"x")
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path)
    message = message_of(caught)
    assert f"expected {md5(archive)}" in message
    assert md5(archive[:-1] + b"x") in message
    assert list(tmp_path.iterdir()) == []


def assert_says_what_to_do(message: str, root: Path) -> None:
    assert "cifar-100-python.tar.gz" in message
    assert "MD5 eb9058c3a382ffc7106e4002c42a8d85" in message
    assert str(root / "cifar-100-python") in message
    assert "--root" in message
    assert list(root.iterdir()) == []


def test_a_disk_that_is_full_while_unpacking_leaves_nothing(
    tmp_path: Path, site: Path, trust: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = drawn("cifar100")
    (site / cifar._CIFARS["cifar100"].archive).write_bytes(trust("cifar100", files))
    write, written = Path.write_bytes, []
    with monkeypatch.context() as patch:

        def full(self: Path, content: bytes) -> int:
            if written:
                raise OSError(28, "No space left on device")
            written.append(self)
            return write(self, content)

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match=r"Cannot write to .*: No space left on device"):
            load_cifar("cifar100", tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())
    train, _ = load_cifar("cifar100", tmp_path / "root")
    assert len(train) == 4
    assert [path.name for path in (tmp_path / "root").iterdir()] == [cifar._CIFARS["cifar100"].folder]


def test_a_root_that_cannot_be_written(tmp_path: Path, site: Path, trust: Any) -> None:
    (site / cifar._CIFARS["cifar100"].archive).write_bytes(trust("cifar100", drawn("cifar100")))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Give --root a folder that can be written"):
        load_cifar("cifar100", tmp_path / "file")


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar, "_SITE", "http://127.0.0.1:9/")
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path)
    message = message_of(caught)
    assert "Connection refused" in message
    assert_says_what_to_do(message, tmp_path)


def test_a_site_that_no_longer_has_the_archive(tmp_path: Path, site: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path)
    message = message_of(caught)
    assert "not found" in message.lower()
    assert_says_what_to_do(message, tmp_path)
    answer = caught.value.__cause__
    assert isinstance(answer, urllib.error.HTTPError)
    assert answer.closed  # or the connection stays open until somebody collects it


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # http.client leaves its socket open
@pytest.mark.parametrize(
    "reply", [b"go away\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nbroken off"]
)
def test_a_server_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(reply)
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar, "_SITE", f"http://127.0.0.1:{listener.getsockname()[1]}/")
    with listener, pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path)
    thread.join()
    assert_says_what_to_do(message_of(caught), tmp_path)
    del caught
    gc.collect()  # while the warning is ignored


def test_without_leave_to_download(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar("cifar100", tmp_path, download=False)
    assert_says_what_to_do(message_of(caught), tmp_path)
