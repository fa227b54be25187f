from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from keyhole.studies.standings import Combination, Mark, effects_of, standings_of, winner_of
from keyhole.studies.variance import spread_of

LAYERS = ("a", "b", "c", "d", "e")
COMBOS = list(combinations(LAYERS, 2))
TRUE = {"a": 0.8, "e": -0.5}


def table(noise: float, seed: int, *, seeds: int = 2) -> np.ndarray:
    random = np.random.default_rng(seed)
    worth = np.array([[sum(TRUE.get(name, 0.0) for name in combo)] for combo in COMBOS])
    return 60 + worth + random.normal(size=(1, seeds)) + noise * random.normal(size=(len(COMBOS), seeds))


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


def test_gains_that_are_none_are_rarely_told_beyond_chance() -> None:
    false = 0
    for seed in range(150):
        values = 60 + 0.5 * np.random.default_rng(seed).normal(size=(len(COMBOS), 2))
        told = [Combination(combo, tuple(row), ()) for combo, row in zip(COMBOS, values.tolist(), strict=True)]
        marks = [Mark((f"rule {i}",), COMBOS[i]) for i in (0, 4, 9)] + [Mark(("beside",), (), (0.1, -0.1), 60.0)]
        found = standings_of(told, spread_of(values), marks)
        false += any(each.p is not None and each.p < 0.05 for each in found if each.layers)
        assert [each.rank for each in found] == sorted(each.rank for each in found)
    assert false / 150 < 0.1
