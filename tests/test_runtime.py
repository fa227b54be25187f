from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from keyhole import runtime
from keyhole.errors import SettingError
from keyhole.runtime import autocast, choose_device, choose_precision, describe, without_tf32


def test_the_automatic_device_is_a_gpu_where_there_is_one() -> None:
    assert choose_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:99", "cpu:x", "mps:7"])
def test_a_device_that_is_not_here_is_one_line(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        choose_device(name)
    others = "cpu, cuda or auto" if torch.cuda.is_available() else "cpu or auto"
    assert str(caught.value) == f"Device {name!r} is not available here; use {others}."


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precisions(precision: str, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingError, match="expected auto, bf16 or fp32"):
        autocast(torch.device("cpu"), "fp16")


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_a_precision_that_was_asked_for_is_taken(name: str) -> None:
    assert choose_precision(name, CPU) == name


def test_the_automatic_precision_of_a_processor_is_the_one_that_was_faster(
    monkeypatch: pytest.MonkeyPatch, measured_precision: Any
) -> None:
    monkeypatch.setattr(runtime, "_faster_on_cpu", measured_precision)
    monkeypatch.setattr(runtime, "has_kernels", lambda: True)
    waits = {torch.bfloat16: 0.0, torch.float32: 0.0}

    def forward(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        time.sleep(waits[images.dtype])
        return images  # of some processors one precision is as slow by itself as anything that is waited for here

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    for slow, expected in ((torch.bfloat16, "fp32"), (torch.float32, "bf16")):
        measured_precision.cache_clear()
        waits[slow] = 0.05
        assert choose_precision("auto", CPU) == expected
        assert choose_precision("auto", CPU) == expected
        waits[slow] = 0.0
    monkeypatch.setattr(runtime, "has_kernels", lambda: False)
    assert choose_precision("auto", CPU) == "bf16", "timed once a process"
    measured_precision.cache_clear()
    assert choose_precision("auto", CPU) == "fp32", "where there is nothing to time"
    measured_precision.cache_clear()


def test_the_record_of_a_run_is_plain_json() -> None:
    found = describe()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert found["git"] is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", found["git"])


_FAULTS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from keyhole.runtime import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        kept = [torch.ones(500_000) for _ in range(200)]  # 400 MB, many heaps of a thread
        while kept:
            kept.pop(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as workers:
    threads = [lambda: faults(), lambda: workers.submit(faults).result()]
    first = [count() for count in threads]
    kept = keep_freed_memory()
    for count in threads:
        count()
    print(kept, *first, *[count() for count in threads])
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 36),
    reason="the allocation of a GNU C library that takes large blocks",
)
def test_memory_of_freed_tensors_is_kept_unless_the_user_has_tuned_it() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    told = {}
    for name, environment in {"plain": plain, "tuned": {**plain, "MALLOC_TOP_PAD_": "1024"}}.items():
        made = subprocess.run(
            [sys.executable, "-c", _FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        told[name] = made.stdout.split()
    kept, *faults = told["plain"]
    assert kept == "True"
    for first, then in zip(faults[:2], faults[2:], strict=True):  # of the main thread, and of a worker
        assert int(first) > 100  # pages, of 4 KiB or 2 MiB
        assert int(then) < int(first) / 10  # a small object may come to lie in the hole; then it grows once more
    assert told["tuned"][0] == "False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_compiling_says_nothing_of_a_toolkit_without_a_gpu() -> None:
    told = {}
    for ready in ("pass", "runtime.ready_compiler()", "exporting._silent_nncf()"):
        code = f"from keyhole import exporting, runtime\n{ready}\nimport torch.utils.cpp_extension"
        environment = {**os.environ, "CUDA_HOME": sys.prefix}
        made = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=True
        )
        told[ready] = made.stderr
    assert "No CUDA runtime is found" in told["pass"]
    assert told["runtime.ready_compiler()"] == told["exporting._silent_nncf()"] == ""


def test_convolutions_are_exact_within_and_as_before_afterwards() -> None:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    for asked in ("tf32", "ieee"):
        convolutions.fp32_precision = asked
        try:
            with without_tf32(torch.device("cuda")):
                assert convolutions.fp32_precision == "ieee"
            assert convolutions.fp32_precision == asked
            with without_tf32(torch.device("cpu")):
                assert convolutions.fp32_precision == asked
        finally:
            convolutions.fp32_precision = before
