"""Progress of long work: a function that wraps a loop. The library is silent unless it is handed one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wrap an iterable of known length so that a person sees how far it is."""

    def __call__(self, items: Iterable[T], *, label: str, total: int, done: int = 0) -> Iterator[T]:
        """Yield the items; ``done`` of ``total`` were done before (a resumed run)."""
        ...


def silent(items: Iterable[T], *, label: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield the items and show nothing."""
    yield from items


def bar(items: Iterable[T], *, label: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield the items and draw a bar on standard error, with the count and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as shown:
        task = shown.add_task(label, total=total, completed=done)
        for item in items:
            yield item
            shown.advance(task)
