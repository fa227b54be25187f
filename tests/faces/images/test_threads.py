"""Answers come in order from threads, errors in their place, and no more than a few items are begun ahead."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.threads import cores, in_order


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_answers_are_those_of_a_loop(threads: int | None) -> None:
    assert list(in_order(lambda n: n * n, range(200), threads=threads)) == [n * n for n in range(200)]
    assert list(in_order(abs, [], threads=threads)) == []


def test_slow_first_items_do_not_change_the_order() -> None:
    second = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second.wait(30)  # goes on only once a later item was worked on beside it
        else:
            second.set()
        return number

    assert list(in_order(work, range(6), threads=2)) == list(range(6))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_stands_in_its_place(threads: int) -> None:
    def work(number: int) -> int:
        if number == 4:
            raise DataError("photo 4 is damaged")
        return number

    answers = in_order(work, range(100), threads=threads)
    assert list(itertools.islice(answers, 4)) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="photo 4"):
        next(answers)
    assert list(answers) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def stream() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    answers = in_order(abs, stream(), threads=2)
    assert [next(answers) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 3 * 2
    answers.close()  # type: ignore[attr-defined]


def test_threads_below_one_are_refused_at_once() -> None:
    with pytest.raises(SettingError, match="threads is 0"):
        in_order(abs, [1], threads=0)


def test_there_is_a_core() -> None:
    assert cores() >= 1
