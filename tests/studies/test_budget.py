from __future__ import annotations

from itertools import product

import pytest

from keyhole.errors import KeyholeError, SettingError, UnknownNameError
from keyhole.studies.budget import Rung, SearchConfig, cost_of, plan_search


def walked(rungs: tuple[Rung, ...], per_pass: int) -> tuple[int, int]:
    """Count student epochs and teacher passes one epoch of one cohort at a time."""
    student_epochs = passes = 0
    for epoch in range(rungs[-1].until):
        alive = next(rung.students for rung in rungs if epoch < rung.until)
        student_epochs += alive
        while alive > 0:
            passes, alive = passes + 1, alive - per_pass
    return student_epochs, passes


def test_a_cost_worked_by_hand() -> None:
    # 9 students for 1 epoch in 3 cohorts of at most 4, 3 for 2 more in one, 1 for 6 more
    cost = cost_of([Rung(9, 1), Rung(3, 3), Rung(1, 9)], 4)
    assert (cost.student_epochs, cost.passes) == (9 + 6 + 6, 3 + 2 + 6)


@pytest.mark.parametrize(("first", "epochs", "per_pass"), [(84, 10, 28), (5, 9, 2), (1, 1, 1), (40, 27, 7)])
def test_a_cost_is_what_one_counts(first: int, epochs: int, per_pass: int) -> None:
    rungs = plan_search(SearchConfig("halving", students_per_pass=per_pass), first, epochs)
    cost = cost_of(rungs, per_pass)
    assert (cost.student_epochs, cost.passes) == walked(rungs, per_pass)


def test_halving_of_all_84_combinations() -> None:
    assert plan_search(SearchConfig("halving"), 84, 10) == (Rung(84, 1), Rung(28, 3), Rung(9, 10))
    assert plan_search(SearchConfig("halving", keep=2), 8, 8) == (Rung(8, 1), Rung(4, 2), Rung(2, 4), Rung(1, 8))
    assert plan_search(SearchConfig("halving"), 84, 1) == (Rung(84, 1),)
    assert plan_search(SearchConfig("halving"), 2, 9) == (Rung(2, 1), Rung(1, 3), Rung(1, 9))
    assert plan_search(SearchConfig("all"), 84, 10) == (Rung(84, 10),)
    assert plan_search(SearchConfig("halving", least_epochs=2), 84, 10) == (Rung(84, 3), Rung(28, 10))
    assert plan_search(SearchConfig("halving", least_epochs=7), 84, 10) == (Rung(84, 7), Rung(28, 10))
    assert plan_search(SearchConfig("halving", least_epochs=10), 84, 10) == (Rung(84, 10),)
    assert plan_search(SearchConfig("halving"), 84, 2) == (Rung(84, 2),)


@pytest.mark.parametrize(
    ("method", "cells", "passes"),
    [
        (method, cells, passes)
        for method, cells, passes in product(["halving", "random"], [None, 1, 7, 30], [None, 10, 45])
        if method == "halving" or cells or passes
    ],
)
def test_a_budget_is_kept_and_used(method: str, cells: int | None, passes: int | None) -> None:
    config = SearchConfig(method, cells=cells, passes=passes, students_per_pass=6)
    rungs = plan_search(config, 84, 10)
    spent, taught = walked(rungs, 6)
    assert spent <= (cells or 84) * 10
    assert taught <= (passes or 10**9)
    if rungs[0].students < 84:  # one more would be too many
        more = tuple(Rung(max(1, (rungs[0].students + 1) // 3**k), rung.until) for k, rung in enumerate(rungs))
        spent, taught = walked(more, 6)
        assert spent > (cells or 84) * 10 or taught > (passes or 10**9)


def test_many_combinations_are_not_listed() -> None:
    assert plan_search(SearchConfig("random", cells=5), 10**18, 10) == (Rung(5, 10),)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SearchConfig("best"), "Unknown method of search 'best'"),
        (lambda: SearchConfig("random"), "A random search has no budget; give --cells or --passes"),
        (lambda: SearchConfig(keep=1), "keep of a search is 1; expected at least 2"),
        (lambda: SearchConfig(least_epochs=0), "least_epochs of a search is 0; expected at least 1"),
        (lambda: SearchConfig(holdout=0), "holdout of a search is 0; expected at least 1"),
        (lambda: SearchConfig(cells=0), "cells of a search is 0; expected at least 1"),
        (lambda: plan_search(SearchConfig("all", cells=83), 84, 10), "840 student epochs and 30 teacher passes"),
        (lambda: plan_search(SearchConfig("random", passes=9), 84, 10), "10 student epochs and 10 teacher passes"),
    ],
)
def test_what_cannot_be_searched_is_one_line(make: object, words: str) -> None:
    with pytest.raises(KeyholeError) as caught:
        make()  # type: ignore[operator]
    assert words in str(caught.value)
    assert isinstance(caught.value, (SettingError, UnknownNameError))
    assert len(str(caught.value).splitlines()) == 1
