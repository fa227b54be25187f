"""Device, precision and the record of where and how a result was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from keyhole.errors import SettingError

PRECISIONS = ("bf16", "fp32")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` takes a GPU where there is one.

    Raises:
        SettingError: The device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"Device {name!r} is not available here; use cpu, cuda or auto.") from error
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context that computes in bf16 where that is safe, or one that does nothing for ``fp32``.

    Raises:
        SettingError: The precision is neither ``bf16`` nor ``fp32``.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"Precision {precision!r} is not known; use bf16 or fp32.")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def describe() -> dict[str, Any]:
    """Return versions, hardware and the state of the source tree, as JSON values, for the recipe of a run."""
    packages = ("torch", "numpy", "scikit-learn", "safetensors", "Pillow")
    return {
        "keyhole": _version("keyhole"),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "git": _git_state(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
