from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from keyhole.studies.standings import Combination, Mark, additive_share, effects_of, standings_of, winner_of
from keyhole.studies.variance import Spread, spread_of
from keyhole.studies.verdict import holm

LAYERS = ("a", "b", "c", "d", "e")
COMBOS = list(combinations(LAYERS, 2))
TRUE = {"a": 0.8, "e": -0.5}


def table(noise: float, seed: int, *, seeds: int = 2) -> np.ndarray:
    random = np.random.default_rng(seed)
    worth = np.array([[sum(TRUE.get(name, 0.0) for name in combo)] for combo in COMBOS])
    return 60 + worth + random.normal(size=(1, seeds)) + noise * random.normal(size=(len(COMBOS), seeds))


def spread_over(values: np.ndarray) -> Spread:
    found = spread_of(values)
    assert found is not None
    return found


def combined(values: np.ndarray) -> list[Combination]:
    return [Combination(combo, tuple(row), ()) for combo, row in zip(COMBOS, values.tolist(), strict=False)]


def chance(mean: float, error: float) -> float:
    return float(2 * stats.t.sf(abs(mean) / error, len(COMBOS) - 1))  # two seeds


def half_width(error: float) -> float:
    return float(stats.t.ppf(0.975, len(COMBOS) - 1)) * error


def with_minus_without(layer: str, values: np.ndarray) -> float:
    inside = [values[i].mean() for i, combo in enumerate(COMBOS) if layer in combo]
    outside = [values[i].mean() for i, combo in enumerate(COMBOS) if layer not in combo]
    return float(sum(inside) / len(inside) - sum(outside) / len(outside))


def test_effects_are_the_difference_of_two_means_and_their_intervals_hold_the_truth() -> None:
    exact = {layer: with_minus_without(layer, table(0.0, 0)) for layer in LAYERS}
    held = total = 0
    for seed in range(150):
        values = table(0.4, seed)
        effects = effects_of(COMBOS, values, spread_of(values))
        assert [each.layer for each in effects] == list(LAYERS)
        for each in effects:
            assert each.mean == pytest.approx(with_minus_without(each.layer, values))
            assert np.mean(each.by_seed) == pytest.approx(each.mean)
            assert each.low is not None
            assert each.high is not None
            held += each.low <= exact[each.layer] <= each.high
            total += 1
    # intervals of one draw share its noise, so 150 draws count: three standard deviations of 0.018 about 0.95
    assert 0.896 < held / total < 0.995


def test_effects_are_corrected_for_their_number() -> None:
    values = table(0.4, 0)
    effects = effects_of(COMBOS, values, spread_of(values))
    error = spread_over(values).noise * np.sqrt((1 / 4 + 1 / 6) / 2)  # 4 of the 10 have a layer
    raw = [chance(with_minus_without(layer, values), error) for layer in LAYERS]
    assert [each.p for each in effects] == pytest.approx(holm(raw))
    assert min(each.p or 0 for each in effects) == pytest.approx(len(LAYERS) * min(raw))


def test_effects_without_the_strongest_layer_by_loops() -> None:
    values = table(0.4, 0)
    effects = effects_of(COMBOS, values, spread_of(values))
    strongest = max(effects, key=lambda each: abs(each.mean)).layer
    rest = [i for i, combo in enumerate(COMBOS) if strongest not in combo]
    for each in effects:
        if each.layer == strongest:
            assert (each.apart, each.apart_low, each.apart_high) == (None, None, None)
            continue
        inside = [values[i].mean() for i in rest if each.layer in COMBOS[i]]
        outside = [values[i].mean() for i in rest if each.layer not in COMBOS[i]]
        assert each.apart == pytest.approx(np.mean(inside) - np.mean(outside))
        error = spread_over(values).noise * np.sqrt((1 / len(inside) + 1 / len(outside)) / 2)
        assert each.apart is not None
        assert each.apart_high is not None
        assert each.apart_high - each.apart == pytest.approx(half_width(error))
    # of additive worths the strongest moves all others by its own share of what they stand against
    additive = np.array([[sum(2.0 ** LAYERS.index(name) for name in combo)] for combo in COMBOS])
    assert additive_share(COMBOS, additive[:, 0]) == pytest.approx(1)
    random = np.random.default_rng(0)
    by_chance = [additive_share(COMBOS, random.normal(size=len(COMBOS))) or 0 for _ in range(400)]
    assert np.mean(by_chance) == pytest.approx(0, abs=0.1)
    assert additive_share(COMBOS[:4], np.arange(4.0)) is None  # four layers of a fit to four values
    assert additive_share(COMBOS, np.ones(len(COMBOS))) is None
    worth = np.array([float(combo == ("b", "c")) for combo in COMBOS])  # worth something in company alone
    assert additive_share(COMBOS, worth) == pytest.approx(0, abs=0.01)


def test_a_layer_that_is_in_all_or_in_none_has_no_effect() -> None:
    found = effects_of([("a", "b"), ("a", "c")], np.array([[1.0, 2.0], [3.0, 4.5]]), None)
    assert [(each.layer, each.mean, each.low) for each in found] == [("b", -2.25, None), ("c", 2.25, None)]


def test_the_winner_without_each_seed_by_loops() -> None:
    random = np.random.default_rng(1)
    for seeds in (1, 2, 3, 6):
        top1, held_out = (random.normal(size=(len(COMBOS), seeds)) for _ in "th")
        found = winner_of(COMBOS, top1, held_out, spread_of(top1))
        fair = []
        for seed in range(seeds):
            others = [s for s in range(seeds) if s != seed] or [seed]
            best = max(range(len(COMBOS)), key=lambda row: sum(held_out[row, s] for s in others))
            assert found.chosen[seed] == COMBOS[best]
            fair.append(top1[best, seed])
        assert found.fair == pytest.approx(sum(fair) / seeds)
        assert found.gain == pytest.approx(found.fair - top1.mean())
        assert found.layers == COMBOS[int(held_out.sum(axis=1).argmax())]
        assert (found.low is None) is (seeds == 1)


def test_what_a_search_gains_lies_in_its_interval_as_often_as_it_says() -> None:
    true = table(0.0, 0).mean(axis=1)
    held = 0
    for seed in range(150):
        values = table(0.4, seed)
        found = winner_of(COMBOS, values, table(0.4, 1000 + seed), spread_of(values))
        gain = np.mean([true[COMBOS.index(combo)] for combo in found.chosen]) - true.mean()
        assert found.low is not None
        assert found.high is not None
        held += found.low <= gain <= found.high
        half = half_width(spread_over(values).noise * np.sqrt((1 - 1 / len(COMBOS)) / 2))
        assert (found.low, found.high) == pytest.approx((found.gain - half, found.gain + half))
    assert 0.9 < held / 150 < 0.99


@pytest.mark.parametrize(
    ("mark", "factor"),
    [
        (Mark(("rule",), COMBOS[7]), (1 - 1 / len(COMBOS)) / 2),  # it is part of the mean that it is compared with
        (Mark(("beside",), (), (0.9, 0.3), 60.5), (1 + 1 / len(COMBOS)) / 2),
    ],
)
def test_a_gain_has_the_interval_and_the_chance_of_students_t(mark: Mark, factor: float) -> None:
    values = table(0.4, 3)
    gain = np.mean(mark.gaps) if mark.gaps else values[7].mean() - values.mean()
    error = spread_over(values).noise * np.sqrt(factor)
    (found,) = standings_of(combined(values), spread_of(values), [mark])
    assert found.gain == pytest.approx(gain)
    assert (found.low, found.high) == pytest.approx((gain - half_width(error), gain + half_width(error)))
    assert found.p == pytest.approx(chance(found.gain, error))
    marks = [mark, Mark(("a",), COMBOS[0]), Mark(("b",), COMBOS[1])]
    alone = {one.names: standings_of(combined(values), spread_of(values), [one])[0].p for one in marks}
    together = standings_of(combined(values), spread_of(values), marks)
    assert [each.p for each in together] == pytest.approx(holm([alone[each.names] for each in together]))


def test_gains_lie_in_their_intervals_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last combination is taken for an arm beside the others."""
    monkeypatch.setattr("keyhole.studies.variance._DRAWS", 10)  # of places, which are no matter here
    true = table(0.0, 0).mean(axis=1)
    true -= true[:-1].mean()
    combos = [COMBOS[0], COMBOS[4], COMBOS[8]]
    held = dict.fromkeys([*combos, ()], 0)
    for seed in range(150):
        values = table(0.4, seed)
        gaps = values[-1] - values[:-1].mean(axis=0)
        marks = [Mark(("rule",), combo) for combo in combos] + [Mark(("beside",), (), tuple(gaps.tolist()))]
        for each in standings_of(combined(values[:-1]), spread_of(values[:-1]), marks):
            row = COMBOS.index(each.layers) if each.layers else -1
            assert each.low is not None
            assert each.high is not None
            held[each.layers] += each.low <= true[row] <= each.high
    assert 0.9 < held.pop(()) / 150 < 0.99
    assert 0.92 < sum(held.values()) / 450 < 0.98


def test_gains_that_are_none_are_rarely_told_beyond_chance() -> None:
    false = 0
    for seed in range(150):
        values = 60 + 0.5 * np.random.default_rng(seed).normal(size=(len(COMBOS), 2))
        marks = [Mark((f"rule {i}",), COMBOS[i]) for i in (0, 4, 9)] + [Mark(("beside",), (), (0.1, -0.1), 60.0)]
        found = standings_of(combined(values), spread_of(values), marks)
        false += any(each.p is not None and each.p < 0.05 for each in found if each.layers)
        assert [each.rank for each in found] == sorted(each.rank for each in found)
    assert false / 150 < 0.1


def test_means_that_are_equal_share_their_place() -> None:
    # of 73.85 and 70.92 the mean is that of 74.51 and 70.26, but for the last digit that a computer keeps
    tops = np.array([[73.85, 70.92], [74.51, 70.26], [60.0, 60.0]])
    assert tops[0].mean() != tops[1].mean()
    found = standings_of(combined(tops), spread_over(tops), [Mark(("one",), COMBOS[0]), Mark(("two",), COMBOS[1])])
    assert [(each.rank, each.better_than) for each in found] == [(1, 0.75), (1, 0.75)]
