"""What the tests share: fixed seeds, small networks and images, and the real CIFAR-100 where it can be had."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from keyhole import runtime
from keyhole.data.splits import MemorySplit
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

CLASSES = 3


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread, which is fastest for networks this small on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def measured_precision() -> Iterator[Callable[[], str]]:
    """Take fp32 where the precision is left open, so that a test means the same on every processor.

    With matrix units ``auto`` takes bf16, in which nothing equals its oracle to rounding. What ``auto`` takes is tested
    by itself, with what this gives; processes that tests start decide for themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        measured = runtime._faster_on_cpu
        patch.setattr(runtime, "_faster_on_cpu", lambda: "fp32")
        yield measured


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published weights and data that lies beside the repository, where it does."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder shared/ beside the repository, with published weights and CIFAR-100")
    return folder


@pytest.fixture(scope="session")
def cifar100_root(shared: Path) -> Path:
    """A folder that holds the official files of CIFAR-100; decoded once, then kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "keyhole" / "data"
    if not all((root / "cifar-100-python" / name).is_file() for name in ("train", "test", "meta")):
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(shared / "data" / "cifar100" / "decode.py"), str(root)]
        subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.fixture
def toy_input() -> InputSpec:
    return InputSpec((8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def toy_split() -> MemorySplit:
    """48 images of 8 x 8 pixels whose class is the brightest channel, in an official order with gaps."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 120, (48, 8, 8, 3))
    labels = np.arange(48) % CLASSES
    pixels[np.arange(48), :, :, labels] += 100
    return MemorySplit(
        pixels=torch.from_numpy(pixels.astype(np.uint8)),
        labels=torch.from_numpy(labels),
        indices=torch.arange(48) * 2 + 1,
        classes=tuple("abc"),
        pad_px=2,
    )


@pytest.fixture
def toy_teacher(toy_input: InputSpec) -> Network:
    """A small network whose batch norms have statistics of their own."""
    return shaken(build("resnet14", classes=CLASSES, input=toy_input))


def shaken(network: Network, seed: int = 0) -> Network:
    """Give every batch norm of a network random statistics, weights and biases."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.module.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data.uniform_(low, low + 1.0, generator=generator)
    return network
