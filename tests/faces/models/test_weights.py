"""Weights come out of every form in circulation, and nothing in a file is ever executed."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from keyhole.errors import UnknownNameError, WeightsError
from keyhole.faces.models import weights
from keyhole.faces.models.weights import read_weights

ARRAYS = {
    "conv": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bias": np.array([0.5, -1.5], dtype=np.float64),
    "count": np.array(7, dtype=np.int64),
}


def same(found: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_plain_forms(tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "check.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **ARRAYS)
    for name in ("a.pt", "old.pth", "check.pth", "a.safetensors", "a.npz"):
        same(read_weights(tmp_path / name), ARRAYS)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickled_dicts_of_arrays_of_all_protocols(tmp_path: Path, protocol: int) -> None:
    value = collections.OrderedDict(ARRAYS) if protocol % 2 else ARRAYS
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    same(read_weights(tmp_path / "a.pkl"), ARRAYS)


def test_the_old_names_of_numpy_are_known(tmp_path: Path) -> None:
    raw = pickle.dumps(ARRAYS, protocol=2)
    assert b"numpy._core" in raw
    (tmp_path / "a.pkl").write_bytes(raw.replace(b"numpy._core", b"numpy.core"))
    same(read_weights(tmp_path / "a.pkl"), ARRAYS)


def test_python_2_keeps_bytes_as_text(tmp_path: Path) -> None:
    # what Python 2 wrote: the array's bytes as a string of the same opcodes, without _codecs.encode
    raw = bytes(range(8)) * 2
    written = b"".join(
        [
            b"(dp0\nS'w'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\n",
            b"tp6\nRp7\n(I1\n(I4\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\nRp12\n",
            b"(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS"
            + repr(raw.decode("latin1")).encode()
            + b"\np15\ntp16\nbs.",
        ]
    )
    (tmp_path / "a.pkl").write_bytes(written)
    same(read_weights(tmp_path / "a.pkl"), {"w": np.frombuffer(raw, "<f4")})


def test_the_form_of_mmdnn(tmp_path: Path) -> None:
    layers = {
        "conv1/7x7_s2": {"weights": np.asfortranarray(ARRAYS["conv"])},
        "conv1/7x7_s2/bn": {"mean": ARRAYS["bias"].astype(">f4"), "var": np.ones(2, np.float16)},
    }
    np.save(tmp_path / "a.npy", np.array(layers, dtype=object), allow_pickle=True)
    found = read_weights(tmp_path / "a.npy")
    same(
        found,
        {
            "conv1/7x7_s2.weights": ARRAYS["conv"],
            "conv1/7x7_s2/bn.mean": ARRAYS["bias"],
            "conv1/7x7_s2/bn.var": np.ones(2),
        },
    )


class _Runs:
    """Pickles as a call that would leave a file."""

    def __init__(self, target: Path, how: str) -> None:
        self.target, self.how = target, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "system":
            return os.system, (f"touch {self.target}",)
        if self.how == "mkdir":
            return os.mkdir, (str(self.target),)
        return eval, (f"__import__('os').mkdir({str(self.target)!r})",)


@pytest.mark.parametrize("how", ["system", "mkdir", "eval"])
@pytest.mark.parametrize("ending", [".pkl", ".npy", ".pt", ".npz"])
def test_nothing_is_executed(tmp_path: Path, how: str, ending: str) -> None:
    path, target = tmp_path / f"bad{ending}", tmp_path / "executed"
    value = {"layer": {"weights": np.zeros(2), "more": _Runs(target, how)}}
    if ending == ".pkl":
        path.write_bytes(pickle.dumps(value))
    elif ending == ".npy":
        np.save(path, np.array(value, dtype=object), allow_pickle=True)
    elif ending == ".npz":
        np.savez(path, a=np.array(value, dtype=object))
    else:
        torch.save(value, path)
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    with path.open("rb") as file:  # the file would have run, had it been loaded as pickles are
        if ending == ".pkl" and how != "system":  # which starts a process, and needs no proof
            pickle.load(file)
            assert target.exists()


def test_a_name_that_runs_code_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"a": _Runs(tmp_path / "x", "eval")}))
    with pytest.raises(WeightsError, match=r"asks for (builtins|__builtin__)\.eval, which would run code"):
        read_weights(tmp_path / "bad.pkl")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage",
        pickle.dumps(ARRAYS)[:-60],
        pickle.dumps(ARRAYS, protocol=2).replace(b"f4", b"O4"),
        pickle.dumps(ARRAYS, protocol=2).replace(b"f4", b"f8"),
        pickle.dumps({"a": np.array(["text"])}),
        pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])}),
        b"\x80\x02c__builtin__\nobject\n)\x81.",
        b"\x80\x02cnumpy\nndarray\n(K\x05tR.",
        b"\x80\x02Pabc\n.",
        b"\x80\x02K\x01r\xff\xff\xff\xff.",  # a memo of four billion entries
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    ],
)
def test_damaged_pickles_are_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(raw)
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".pt", ".safetensors"])
def test_other_damaged_files_are_one_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    with pytest.raises(WeightsError, match="No such file"):
        read_weights(path)
    for content in (b"", b"garbage" * 20):
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)


class _Called:
    """Pickled as a call of a function that arrays are made by."""

    def __init__(self, module: str, name: str, *given: Any) -> None:
        self.module, self.name, self.given = module, name, given


def pickled(call: _Called) -> bytes:
    """Return what asks for the call, in the oldest form, which tells a name as text."""
    parts = b"".join(pickle.dumps(each, 0)[:-1] for each in call.given)
    return f"c{call.module}\n{call.name}\n".encode() + b"(" + parts + b"tR."


def test_a_file_cannot_ask_for_more_memory_than_it_holds(tmp_path: Path) -> None:
    kind = b"cnumpy\ndtype\n(S'u1'\ntR"
    bomb = b"cnumpy._core.numeric\n_frombuffer\n(I3000000000\n" + kind + b"(I3000000000\ntS'C'\ntR."
    (tmp_path / "a.pkl").write_bytes(b"(dS'a'\n" + bomb[:-1] + b"s.")
    with pytest.raises(WeightsError, match="int, where the bytes of an array are expected"):
        read_weights(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickled(_Called("_codecs", "encode", [[1], [1]], "latin1")))
    with pytest.raises(WeightsError, match="list, where a text is expected"):
        read_weights(tmp_path / "b.pkl")
    state = b"cnumpy\ndtype\n(S'u1'\ntR(I3\n(lp0\nNNNI-1\nI-1\nI0\ntb."
    (tmp_path / "c.pkl").write_bytes(state)
    with pytest.raises(WeightsError, match="where a text is expected"):
        read_weights(tmp_path / "c.pkl")


def test_a_file_cannot_change_what_reads_it(tmp_path: Path) -> None:
    """A state is for an array or its type; the usual unpickler sets it as attributes of a function as well."""
    before = weights._filled_array.__defaults__
    state = b"(N(dS'__defaults__'\n(S'F'\ntst"
    for named in (b"cnumpy._core.numeric\n_frombuffer\n", b"cnumpy\ndtype\n", b"(d"):
        (tmp_path / "a.pkl").write_bytes(named + state + b"b.")
        with pytest.raises(WeightsError, match="a state for what is no array"):
            read_weights(tmp_path / "a.pkl")
    assert weights._filled_array.__defaults__ == before


def test_files_without_names_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(WeightsError, match="one array without names"):
        read_weights(tmp_path / "a.npy")
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="no arrays by name"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(UnknownNameError, match=r"form of weights '\.h5'"):
        read_weights(tmp_path / "a.h5")
