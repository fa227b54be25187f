from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from keyhole import files
from keyhole.errors import DataError, KeyholeError, RunError, WeightsError


def one_line(error: KeyholeError) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1
    return text


def test_a_file_is_written_into_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    files.write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("boom"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "kept.bin"
    files.write_bytes(path, b"old")

    def write(target: Path) -> None:
        target.write_bytes(b"half of the n")
        raise error

    with pytest.raises(RunError if isinstance(error, OSError) else type(error)):
        files.write_bytes(path, write)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.bin"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    files.write_bytes(path, b"old")
    seen = []

    def write(target: Path) -> None:
        target.write_bytes(b"new")
        seen.append(path.read_bytes())

    files.write_bytes(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "x", b"1")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: files.write_bytes(path, b"x"),
    "text": lambda path: files.write_text(path, "x"),
    "json": lambda path: files.write_json(path, {"x": 1}),
    "tensors": lambda path: files.write_tensors(path, {"x": torch.ones(2)}, {}),
    "arrays": lambda path: files.write_arrays(path, {"x": np.ones(2)}),
    "line": lambda path: files.append_line(path, "x"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "out"
    with pytest.raises(RunError) as caught:
        WRITERS[kind](path)
    message = one_line(caught.value)
    assert str(path) in message
    assert "Not a directory" in message or "File exists" in message
    assert "--out" in message
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "line"])
def test_a_folder_in_the_place_of_the_file_is_one_line_and_leaves_no_part(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError) as caught:
        WRITERS[kind](tmp_path / "out")
    assert "Is a directory" in one_line(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_a_full_disk_under_a_log_is_one_line() -> None:
    with pytest.raises(RunError) as caught:
        files.append_line(Path("/dev/full"), "x")
    assert "No space left on device" in one_line(caught.value)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 4 KiB, which fails in the middle of a write as a full disk does.

    Only around the write: the report of the tests may itself go to a file.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["bytes", "tensors", "arrays"])
def test_a_disk_that_fills_up_inside_a_write_is_one_line_and_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").write_bytes(b"old")
    noise = np.random.default_rng(0).integers(0, 256, 1 << 16).astype(np.uint8)
    writers = {
        "bytes": lambda path: files.write_bytes(path, noise.tobytes()),
        "tensors": lambda path: files.write_tensors(path, {"x": torch.from_numpy(noise)}, {}),
        "arrays": lambda path: files.write_arrays(path, {"x": noise}),
    }
    with full_disk(), pytest.raises(RunError) as caught:
        writers[kind](tmp_path / "out")
    one_line(caught.value)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("out", b"old")]


def test_lines_are_appended(tmp_path: Path) -> None:
    for line in ("one", "zwei ö"):
        files.append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\nzwei ö\n"


def test_json_round_trip_and_refusal_of_nan(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "ü": {"b": "c"}}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert files.read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00", b"[1,]"])
def test_what_is_no_json_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        files.read_json(path)
    assert str(path) in one_line(caught.value)


def test_md5_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than two of the pieces in which it is read
    (tmp_path / "x").write_bytes(content)
    assert files.md5(tmp_path / "x") == hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_tensors_round_trip_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "float": base,
        "shared": base[:2],
        "transposed": base.T,
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.randn(3).to(torch.bfloat16),
        "int": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "empty": torch.zeros(0, 3),
        "grad": torch.ones(2, requires_grad=True),
    }
    about = {"name": "ü", "list": [1, 2.5, None], "deep": {"a": {"b": True}}}
    files.write_tensors(tmp_path / "x.safetensors", tensors, about)
    found, metadata = files.read_tensors(tmp_path / "x.safetensors")
    assert metadata == about
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        a, b = found[name].contiguous(), tensor.detach().contiguous()
        assert a.view(torch.uint8).tolist() == b.view(torch.uint8).tolist() if a.ndim else bool(a == b)


def test_no_tensors_and_no_metadata_round_trip(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "x.safetensors", {}, {})
    assert files.read_tensors(tmp_path / "x.safetensors") == ({}, {})


def test_a_file_of_another_program_has_no_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert files.read_tensors(tmp_path / "x.safetensors")[1] == {}


@pytest.mark.parametrize("keep", [None, 0, 5, 8, 60, -1])
def test_a_broken_safetensors_file_is_one_line(tmp_path: Path, keep: int | None) -> None:
    path = tmp_path / "x.safetensors"
    if keep is not None:
        files.write_tensors(path, {"a": torch.ones(100)}, {})
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError) as caught:
        files.read_tensors(path)
    assert str(path) in one_line(caught.value)


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array([1.5])}
    files.write_arrays(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in arrays.items()}


def test_a_fingerprint_is_a_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("abc")
    assert files.sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataError, match="No such file"):
        files.sha256(tmp_path / "none")


def test_rights_are_those_of_the_umask_and_private_ones_narrower(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from keyhole import files\n"
    script += (
        "files.write_text(Path(sys.argv[1], 'a'), 'x'); files.write_text(Path(sys.argv[1], 'b'), 'x', private=True)"
    )
    for umask, wanted in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, umask=umask)
        assert (tmp_path / "a").stat().st_mode & 0o777 == wanted
        assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_what_utf_8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "Jos\udce9")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Jos\\udce9"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfx = 1\n")
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"x": 1}')
    assert files.read_toml(tmp_path / "a.toml") == files.read_json(tmp_path / "a.json") == {"x": 1}


def test_metadata_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"keyhole": "[1]"})
    with pytest.raises(WeightsError, match="what it tells of itself is no table") as caught:
        files.read_tensors(tmp_path / "a.safetensors")
    one_line(caught.value)
