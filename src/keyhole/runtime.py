"""Device, precision and the record of where and how a result was made."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keyhole.bf16 import fast_products, has_kernels
from keyhole.errors import SettingError

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` takes a GPU where there is one.

    Raises:
        SettingError: The device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError) as error:
        others = "cpu, cuda or auto" if torch.cuda.is_available() else "cpu or auto"
        raise SettingError(f"Device {name!r} is not available here; use {others}.") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return ``bf16`` or ``fp32``; ``auto`` takes the one that is faster on the device.

    A GPU computes in bf16 where it can. Processors differ: with matrix units bf16 is two to three times as fast as
    fp32, without them it may be half as fast, so a convolution is timed in both, once a process; where PyTorch has no
    kernels for it, it is never faster.

    Raises:
        SettingError: The name is none of the three.

    Example:
        >>> choose_precision("fp32", torch.device("cpu"))
        'fp32'
    """
    check_precision(name)
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return _faster_on_cpu() if device.type == "cpu" else "fp32"


def check_precision(name: str) -> None:
    """Check the name of a precision.

    Raises:
        SettingError: It is none of ``auto``, ``bf16``, ``fp32``.
    """
    if name not in ("auto", *PRECISIONS):
        raise SettingError(f"precision is {name!r}; expected auto, {' or '.join(PRECISIONS)}.")


@cache
@torch.no_grad()
def _faster_on_cpu() -> str:
    if not has_kernels():
        return "fp32"
    trials = {}
    for name, dtype in PRECISIONS.items():
        conv = nn.Conv2d(32, 32, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)
        images = torch.ones(64, 32, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
        trials[name] = (conv, images)
        conv(images)
    fastest = dict.fromkeys(trials, float("inf"))
    for _ in range(5):  # in turns, so that a busy machine slows both
        for name, (conv, images) in trials.items():
            started = time.perf_counter()
            conv(images)
            fastest[name] = min(fastest[name], time.perf_counter() - started)
    return "bf16" if fastest["fp32"] > 1.1 * fastest["bf16"] else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context that computes in bf16 where that is safe, or one that does nothing for ``fp32``.

    A processor for which there are no kernels of bf16 gives the same numbers to rounding, in little more than the
    time of fp32 (see :mod:`keyhole.bf16`).

    Raises:
        SettingError: The precision is none of ``auto``, ``bf16``, ``fp32``.
    """
    return nullcontext() if choose_precision(precision, device) == "fp32" else _in_bf16(device)


@contextmanager
def _in_bf16(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16), fast_products(device):
        yield


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Let convolutions of fp32 be that on a GPU too, where they are otherwise rounded to TF32."""
    if device.type != "cuda":
        yield
        return
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def synchronize(device: torch.device) -> None:
    """Wait for the work on a GPU, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors leave, for those of the next step; return whether it does so now.

    The GNU C library gives large blocks back to the system as soon as they are free, so that every step of a training
    on the CPU waits anew until the system has cleared its pages: up to two fifths of the step. The process then stays
    as large as it once was. Nothing is changed on other systems, and where the user has tuned the allocation
    (``MALLOC_...``, ``GLIBC_TUNABLES``) or replaced it (``LD_PRELOAD``).
    """
    tuned = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if tuned or not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version.restype = ctypes.c_char_p
        library.gnu_get_libc_version()
        # blocks of up to 1 GiB; older libraries take 32 MiB at most, and are left alone where they take neither
        large = any(library.mallopt(_MMAP_THRESHOLD, most) == 1 for most in (1 << 30, 1 << 25))
        # and never give back; without room on top, a thread that is no longer in need gives its whole heap back
        return large and library.mallopt(_TRIM_THRESHOLD, -1) == 1 and library.mallopt(_TOP_PAD, _HEAP) == 1
    except (OSError, AttributeError):  # another C library
        return False


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt, from malloc.h
_HEAP = 1 << 26  # of a thread


def ready_compiler() -> None:
    """Let ``torch.compile`` keep the code of many networks of one kind; it gives up on the ninth by default."""
    import torch._dynamo.config as dynamo

    silence_toolkit()
    dynamo.recompile_limit = max(dynamo.recompile_limit, 256)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 1024)


def silence_toolkit() -> None:
    """Let torch say nothing of CUDA's compiler where that is installed without a GPU: it compiles for the processor."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def describe() -> dict[str, Any]:
    """Return versions, hardware and the state of the source tree, as JSON values, for the recipe of a run."""
    packages = ("torch", "numpy", "scikit-learn", "safetensors", "Pillow")
    return {
        "keyhole": _version("keyhole"),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "git": _git_state(),
        "source_sha256": _source(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": "kernels" if has_kernels() else "products in fp32",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": sys.platform,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> str | None:
    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _source() -> str:
    """Return one SHA-256 over the source files of this package, which tells versions apart where there is no git."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
