"""How much each hint counts."""

from __future__ import annotations

import numpy as np
import pytest

import oracles
from keyhole.errors import SettingError, UnknownNameError
from keyhole.hints.weighting import WEIGHTINGS, hint_weights


def drawn(seed: int) -> tuple[list[int], np.ndarray]:
    random = np.random.default_rng(seed)
    layers = int(random.integers(2, 12))
    alike = random.random((layers, layers))
    alike = (alike + alike.T) / 2
    np.fill_diagonal(alike, 1)
    hints = [int(i) for i in random.permutation(layers)[: int(random.integers(2, layers + 1))]]
    return hints, alike


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_those_of_the_oracle_and_have_mean_one(seed: int) -> None:
    hints, alike = drawn(seed)
    for how, expected in (("mass", oracles.mass(hints, alike)), ("redundancy", oracles.rarity(hints, alike))):
        found = hint_weights(how, hints, alike)
        assert found == pytest.approx(expected, abs=1e-6)
        assert np.mean(found) == pytest.approx(1, abs=1e-6)
        assert min(found) >= 0


def test_equal_weights_are_one_and_need_nothing() -> None:
    assert hint_weights("equal", [3, 1, 2]) == (1.0, 1.0, 1.0)
    assert {hint_weights(how, [3]) for how in WEIGHTINGS} == {(1.0,)}


def test_clusters_of_one_hint_each_tell_the_mass_by_themselves() -> None:
    assert hint_weights("mass", [1, 4], clusters=[[0, 1, 2], [3, 4, 5, 6, 7]]) == (0.75, 1.25)
    assert hint_weights("mass", [4, 1], clusters=[[0, 1, 2], [3, 4, 5, 6, 7]]) == (1.25, 0.75)
    alike = np.eye(8)
    for clusters in ([[0, 1, 2, 4]], [[0, 1], [2, 3]], [[0, 1, 4], [2, 3]]):  # not one hint each
        assert hint_weights("mass", [1, 4], alike, clusters=clusters) == hint_weights("mass", [1, 4], alike)


def test_hints_that_are_all_the_same_weigh_the_same() -> None:
    assert hint_weights("redundancy", [0, 1, 2], np.ones((3, 3))) == (1.0, 1.0, 1.0)
    assert hint_weights("redundancy", [0, 2], 1 + np.ones((3, 3))) == (1.0, 1.0)


def test_what_cannot_be_weighed() -> None:
    with pytest.raises(UnknownNameError, match="Unknown way to weigh hints 'masse'; nearest known: mass"):
        hint_weights("masse", [0])
    with pytest.raises(SettingError, match="no hints to weigh"):
        hint_weights("mass", [])
    for how in ("mass", "redundancy"):
        with pytest.raises(SettingError, match=f"Weights by {how} need the similarities"):
            hint_weights(how, [0, 1])
