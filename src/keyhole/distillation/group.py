"""Processes that train one cohort together, each on its own share of every batch; ``torchrun`` starts them.

Gradients are averaged over the processes by one all-reduce after the backward pass of each student, with the result of
``DistributedDataParallel``, so all of them hold the same weights. What a loss computes over a whole batch rather than
image by image (batch norm, and the terms dist, sp and semckd) it computes over the share of its process; on GPUs batch
norm computes over all shares. With more than one process, no step is recorded as a CUDA graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from keyhole.errors import KeyholeError, RunError, SettingError, reason_of
from keyhole.runtime import choose_device

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process
TOLD = "told by the first process"  # a note on an error, in the others
_WAIT = timedelta(hours=6)  # others wait while the first process chooses hints or measures


@dataclass(frozen=True)
class Group:
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: Its number; 0 leads, and it alone writes and prints.
        count: How many there are.
        device: Where it computes; None where that is for the settings to say.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    _words: Any = field(default=None, repr=False, compare=False)

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def broadcast(self, make: Callable[[], T]) -> T:
        """Return, in every process, what the first one makes; a :class:`KeyholeError` in it is raised in every one."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = make()
            except KeyholeError as error:
                box[1] = error
        with self._among_others():
            distributed.broadcast_object_list(box, src=0, group=self._words)
        if box[1] is not None:
            if not self.leads:
                box[1].add_note(TOLD)
            raise box[1]
        made: T = box[0]
        return made

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with self._among_others():
            distributed.all_gather_object(found, value, group=self._words)
        return found

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Check that all processes were started alike.

        Raises:
            SettingError: A setting differs; it is named with both values.
        """
        found = self.gathered(dict(settings))
        self.broadcast(lambda: _compare(found))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes; every process gives the same shapes."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._among_others():
            distributed.all_reduce(flat)
        flat /= self.count
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def share_statistics(self, module: M) -> M:
        """Return a module whose batch norm computes over the images of all processes, where they run on GPUs."""
        if self.count == 1 or self.device is None or self.device.type != "cuda":
            return module
        converted: M = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted

    @contextmanager
    def _among_others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = reason_of(error)
            raise RunError(
                f"Process {self.rank} lost the others ({reason}). See what they said, then go on with --resume."
            ) from error


ALONE = Group()


def _compare(found: Sequence[Mapping[str, Any]]) -> None:
    for rank, other in enumerate(found):
        for name, value in found[0].items():
            if other.get(name) != value:
                raise SettingError(
                    f"Process {rank} has {name} {other.get(name)}, process 0 has {value}. "
                    "Start all of them with the same command on the same data."
                )


@contextmanager
def join_group(device: str = "auto") -> Iterator[Group]:
    """Join the processes that ``torchrun`` started beside this one; without ``torchrun`` this one is alone.

    GPUs talk by NCCL, one process a GPU; processors by Gloo.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each process takes the GPU of its own number.

    Raises:
        SettingError: There are more processes on this machine than GPUs, or the device is a certain one.
        RunError: The others cannot be reached.

    Example:
        >>> with join_group() as group:
        ...     group.leads, group.count
        (True, 1)
    """
    if any(name not in os.environ for name in _STARTED) or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    if not distributed.is_available():
        raise SettingError("This PyTorch cannot join processes. Install another build, or run without torchrun.")
    place = _place(device)
    backend = "nccl" if place.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_WAIT)
    except (RuntimeError, ValueError) as error:
        reason = reason_of(error)
        raise RunError(f"Cannot join the other processes: {reason}. Check the addresses given to torchrun.") from error
    try:
        # objects and what lies on the CPU go by Gloo
        words = distributed.new_group(backend="gloo", timeout=_WAIT) if backend == "nccl" else None
        yield Group(distributed.get_rank(), distributed.get_world_size(), place, words)
    finally:
        distributed.destroy_process_group()


def _place(device: str) -> torch.device:
    """Return where this process computes."""
    if ":" in device:
        raise SettingError(f"--device {device} names one GPU for several processes; use cuda, cpu or auto.")
    place = choose_device(device)
    if place.type != "cuda":
        return place
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", own + 1))
    if beside > there:
        raise SettingError(
            f"{beside} processes on a machine with {there} GPUs; start at most {there}, or --device cpu."
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)
