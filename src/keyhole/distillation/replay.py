"""A step recorded once as a CUDA graph and replayed: the processor no longer has to launch each of its operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from keyhole.errors import reason_of

R = TypeVar("R")

WARM_UP = 3  # calls before recording, in which libraries choose their kernels and code is compiled


class Replay(Generic[R]):
    """Work on tensors that runs the same operations in every call.

    On a GPU the first calls run as they are; the next one is recorded, and from then on the record is replayed, so what
    the work returns is overwritten by the next call. What Python does besides is done only while recording. Work that
    cannot be recorded goes on as it is, with a warning. On other devices it always runs as it is, on the same fixed
    inputs.

    Args:
        work: Takes tensors; it may change others in place, but must not wait for the GPU.
        device: Where the tensors are.

    Example:
        >>> total = torch.zeros(2)
        >>> add = Replay(lambda value: total.add_(value), torch.device("cpu"))
        >>> for _ in range(5):
        ...     _ = add(torch.ones(2))
        >>> total
        tensor([5., 5.])
    """

    def __init__(self, work: Callable[..., R], device: torch.device) -> None:
        self._work = work
        self._records = device.type == "cuda"
        self._inputs: list[Tensor] = []
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed: torch.cuda.CUDAGraph | None = None
        self._output: R | None = None

    def __call__(self, *inputs: Tensor) -> R:
        """Do the work on these inputs, which are copied."""
        self._take(inputs)
        self._calls += 1
        if not self._records:
            return self._work(*self._inputs)
        if self._calls <= WARM_UP:
            return self._on_a_side_stream()
        if self._graph is None:
            self._record()
        if self._graph is None:  # it could not be recorded
            return self._work(*self._inputs)
        self._graph.replay()
        return self._output  # type: ignore[return-value]

    def _take(self, inputs: Sequence[Tensor]) -> None:
        alike = len(inputs) == len(self._inputs) and all(
            old.shape == new.shape and old.dtype == new.dtype for old, new in zip(self._inputs, inputs, strict=True)
        )
        if not alike:  # the first call, or batches of another size
            self._inputs = [tensor.clone() for tensor in inputs]
            self._calls, self._graph = 0, None
            return
        for old, new in zip(self._inputs, inputs, strict=True):
            old.copy_(new)

    def _on_a_side_stream(self) -> R:
        # as recording does, for what belongs to a stream
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            output = self._work(*self._inputs)
        current.wait_stream(stream)
        return output

    def _record(self) -> None:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # workers may pin memory meanwhile
                self._output = self._work(*self._inputs)
        except RuntimeError as error:
            reason = reason_of(error)
            warnings.warn(f"A step could not be recorded as a CUDA graph and runs as it is: {reason}", stacklevel=3)
            self._records, self._failed = False, graph  # the allocator may still know of it
            torch.cuda.set_stream(current)
            torch.cuda.synchronize()
            return
        self._graph = graph
