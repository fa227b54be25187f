"""Work on many items at once, on threads, with the answers in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from keyhole.errors import SettingError

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

_AHEAD = 2  # items begun per thread beyond those that are asked for; bounds memory


def in_order(
    work: Callable[[_Item], _Answer], items: Iterable[_Item], *, threads: int | None = None
) -> Iterator[_Answer]:
    """Yield ``work(item)`` of every item in their order, several being worked on at once.

    Answers are those of a plain loop. Items are taken as they are needed, a few ahead, so that a stream of any length
    runs in bounded memory. Threads help where the work leaves Python: decoding, ONNX Runtime, large arrays.

    Args:
        work: Is called from several threads at once.
        items: Taken from one after another by the thread that asks for the answers.
        threads: How many; all cores this process may use when missing. 1 works in the calling thread.

    Raises:
        SettingError: ``threads`` is below 1.
        Exception: What ``work`` raised, in place of that item's answer; nothing follows it.

    Example:
        >>> list(in_order(abs, [-1, 2, -3], threads=2))
        [1, 2, 3]
    """
    count = threads if threads is not None else cores()
    if count < 1:
        raise SettingError(f"threads is {count}, expected 1 or more.")
    return (work(item) for item in items) if count == 1 else _pooled(work, items, count)


def _pooled(work: Callable[[_Item], _Answer], items: Iterable[_Item], threads: int) -> Iterator[_Answer]:
    waiting: deque[Future[_Answer]] = deque()
    coming = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="keyhole") as pool:
        try:
            waiting.extend(pool.submit(work, item) for item in islice(coming, (1 + _AHEAD) * threads))
            while waiting:
                answer = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(coming, 1))
                yield answer
        finally:
            for future in waiting:
                future.cancel()


def cores() -> int:
    """Return how many cores this process may use, 1 or more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
