from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from keyhole.errors import ShapeError
from keyhole.studies.budget import Cost
from keyhole.studies.replay import Match, Pace, match_searches, replay_searches
from keyhole.studies.variance import spread_of


def curves(rows: int, seeds: int, epochs: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    true = random.normal(size=(rows, 1))
    top1 = 60 + true + noise * random.normal(size=(rows, seeds))
    early = noise * random.normal(size=(rows, seeds, epochs)) * np.linspace(3, 1, epochs)
    return true[:, :, None] + early, top1


def test_random_search_finds_what_the_mean_over_all_draws_says() -> None:
    held_out, top1 = curves(8, 2, 1, 0.5)
    found = {each.combinations: each for each in replay_searches(held_out, top1, students_per_pass=4)
             if each.method == "random"}  # fmt: skip
    gaps = top1 - top1.mean(axis=0)
    for size, each in found.items():
        exact = np.mean(
            [
                gaps[max(subset, key=lambda row: held_out[row, own, 0]), 1 - own]
                for own in (0, 1)
                for subset in combinations(range(8), size)
            ]
        )
        assert each.gain == pytest.approx(exact)
        ends = np.quantile(
            [
                gaps[max(subset, key=lambda row: held_out[row, own, 0]), 1 - own]
                for own in (0, 1)
                for subset in combinations(range(8), size)
            ],
            (0.1, 0.9),
            method="inverted_cdf",
        )
        assert (each.low, each.high) == pytest.approx(tuple(ends))
    assert found[1].gain == pytest.approx(0, abs=1e-12)  # one combination, blindly


def test_of_equal_combinations_each_is_as_likely_to_be_found() -> None:
    top1 = np.array([[1.0], [2.0], [6.0], [3.0]])
    held_out = np.array([0.5, 0.7, 0.7, 0.1])[:, None, None]
    found = {each.combinations: each.gain for each in replay_searches(held_out, top1, students_per_pass=4)
             if each.method == "random"}  # fmt: skip
    pairs = [(2 + 6) / 2 if {1, 2} <= set(pair) else top1[max(pair, key=lambda row: held_out[row, 0, 0]), 0]
             for pair in combinations(range(4), 2)]  # fmt: skip
    assert found[2] == pytest.approx(np.mean(pairs) - 3)
    assert found[4] == pytest.approx((2 + 6) / 2 - 3)


def test_halving_by_one_draw_at_a_time() -> None:
    held_out, top1 = curves(9, 2, 9, 0.8)
    found = {(each.method, each.combinations): each for each in replay_searches(held_out, top1, students_per_pass=9)}
    gaps, random = top1 - top1.mean(axis=0), np.random.default_rng(5)
    for method, looks, after in (("halving", (1, 3, 9), (9, 3, 1)), ("halving from epoch 3", (3, 9), (9, 3))):
        gains = []
        for _ in range(3000):
            own, left = int(random.integers(2)), list(random.permutation(9))
            for look, students in zip(looks, after, strict=True):
                left = sorted(left[:students], key=lambda row: -held_out[row, own, look - 1])
            gains.append(gaps[left[0], 1 - own])
        assert found[method, 9].looks == looks
        assert found[method, 9].gain == pytest.approx(np.mean(gains), abs=0.02)


def test_costs_and_sizes() -> None:
    held_out, top1 = curves(84, 2, 10, 0.5)
    found = replay_searches(held_out, top1, students_per_pass=28, repetitions=5)
    assert {each.method for each in found} == {"random", "halving", "halving from epoch 3"}
    late = next(each for each in found if each.method == "halving from epoch 3" and each.combinations == 84)
    assert late.cost.student_epochs == 84 * 3 + 28 * 7
    whole = {each.method: each for each in found if each.combinations == 84}
    assert (whole["random"].cells, whole["random"].cost.passes) == (84, 30)
    assert whole["halving"].cost.student_epochs == 84 + 28 * 2 + 9 * 7
    assert whole["halving"].cells == pytest.approx(20.3)
    assert whole["halving"].cost.passes == 3 + 2 + 7
    assert all(each.low <= each.gain <= each.high or each.low == each.high for each in found)


def test_halving_that_sees_the_truth_finds_the_best_and_one_that_is_misled_does_not() -> None:
    top1 = np.repeat(np.arange(9.0)[:, None], 2, axis=1)
    truth = np.repeat(top1[:, :, None], 9, axis=2)
    whole = [
        each for each in replay_searches(truth, top1, students_per_pass=9, repetitions=3) if each.combinations == 9
    ]
    assert [each.gain for each in whole] == pytest.approx([4, 4, 4])
    misled = truth.copy()
    misled[:, :, 0] *= -1  # the first look favors the worst
    found = {each.method: each.gain for each in replay_searches(misled, top1, students_per_pass=9, repetitions=3)
             if each.combinations == 9}  # fmt: skip
    # 0, 1 and 2 go on, but where nobody looks after the first epoch
    assert found == pytest.approx({"random": 4, "halving": 2 - 4, "halving from epoch 3": 4})


def test_one_seed_is_judged_by_itself_and_draws_repeat() -> None:
    held_out, top1 = curves(6, 1, 2, 0.5)
    found = replay_searches(held_out, top1, students_per_pass=2, repetitions=20)
    assert found == replay_searches(held_out, top1, students_per_pass=2, repetitions=20)
    best = int(held_out[:, 0, -1].argmax())
    (whole,) = [each for each in found if each.combinations == 6 and each.method == "random"]
    assert whole.gain == pytest.approx(top1[best, 0] - top1.mean())


def test_a_choice_is_matched_with_the_largest_search_that_takes_no_longer() -> None:
    held_out, top1 = curves(9, 2, 9, 0.5)
    pace = Pace(cell_s=80.0, pass_s=20.0, epochs=9)
    assert pace.seconds(Cost(student_epochs=18, passes=9)) == 2 * 80 + 20
    choices = {("kmeans r2_cca",): (4, 5.0), ("kmeans svcca",): (2, 250.0)}
    found = match_searches(choices, held_out, top1, pace=pace, spread=spread_of(top1), students_per_pass=9)
    searches = {(each.method, each.combinations): each for each in replay_searches(held_out, top1, students_per_pass=9)}
    at = [(each.choice[0], each.method, each.seconds, each.combinations) for each in found]
    # one pass teaches up to nine: n students take 80 n + 20 seconds, everything 740; halving trains n, n // 3 and
    # n // 9 of them, at least one, for 1, 2 and 6 of nine epochs; from epoch 3 on n and n // 3 of them for 3 and 6
    late = "halving from epoch 3"
    assert at == [
        ("kmeans r2_cca", "random", 105, 1), ("kmeans r2_cca", "halving", 105, 1), ("kmeans r2_cca", late, 105, 1),
        ("kmeans r2_cca", "random", 300, 3), ("kmeans r2_cca", "halving", 300, 9), ("kmeans r2_cca", late, 300, 6),
        ("kmeans svcca", "random", 350, 4), ("kmeans svcca", "halving", 350, 9), ("kmeans svcca", late, 350, 8),
    ]  # fmt: skip
    gains = (top1 - top1.mean(axis=0)).mean(axis=1)
    for each in found:
        assert each.choice_gain == pytest.approx(gains[4 if each.choice == ("kmeans r2_cca",) else 2])
        blindly = each.combinations == 1
        if blindly or (each.method, each.combinations) in searches:
            assert each.search_gain == pytest.approx(0 if blindly else searches[each.method, each.combinations].gain)
        assert each.difference == pytest.approx(each.choice_gain - each.search_gain)
    one = match_searches(choices, held_out[:, :1], top1[:, :1], pace=pace, spread=None, students_per_pass=9)
    assert [(each.combinations, each.low, each.high) for each in one] == [(size, None, None) for *_, size in at]


def test_differences_at_equal_seconds_lie_in_their_intervals_as_often_as_they_say() -> None:
    """The noise of a test value is drawn anew while held-out values, and so what is chosen and found, stay."""
    random = np.random.default_rng(3)
    true = random.normal(size=(12, 1))
    held_out = true[:, :, None] + 0.7 * random.normal(size=(12, 2, 4))
    pace = Pace(cell_s=9.0, pass_s=1.0, epochs=4)

    def matched(top1: np.ndarray) -> tuple[Match, ...]:
        return match_searches(
            {("center",): (5, 1.0)}, held_out, top1, pace=pace, spread=spread_of(top1), students_per_pass=4
        )

    exact = [each.difference for each in matched(np.repeat(true, 2, axis=1))]
    held = [0] * len(exact)
    for _ in range(150):
        found = matched(60 + true + random.normal(size=(1, 2)) + 0.4 * random.normal(size=(12, 2)))
        for i, each in enumerate(found):
            assert each.low is not None
            assert each.high is not None
            held[i] += each.low <= exact[i] <= each.high
    assert len(held) == 6
    assert all(0.89 < count / 150 < 0.995 for count in held)


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 0), (2, 2, 1)])
def test_what_does_not_fit_is_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected the same rows and seeds, and at least one epoch"):
        replay_searches(np.zeros(shape), np.zeros((3, 2)), students_per_pass=1)
    pace = Pace(1.0, 1.0, 1)
    with pytest.raises(ShapeError, match="expected the same rows and seeds, and at least one epoch"):
        match_searches({}, np.zeros(shape), np.zeros((3, 2)), pace=pace, spread=None, students_per_pass=1)
