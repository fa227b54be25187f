"""The whole way from a teacher to hint points, on the bundled digits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from conftest import shaken
from keyhole.data.sources import Data, default_input, open_data
from keyhole.errors import DataError, SettingError, UnknownNameError
from keyhole.hints.choice import CONSENSUS, ChoiceConfig, Hints, choose_hints
from keyhole.hints.moments import ObserveConfig
from keyhole.hints.selection import CONTROLS, Rule, select, stability
from keyhole.hints.similarity import ALWAYS, consensus
from keyhole.models.layers import layers
from keyhole.models.network import Network
from keyhole.models.zoo import build


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def teacher() -> Network:
    torch.manual_seed(0)
    return shaken(build("resnet14", classes=10, input=default_input("digits")))


@pytest.fixture(scope="module")
def found(digits: Data, teacher: Network) -> Hints:
    config = ChoiceConfig(samples=500, draws=20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests; with more, the last digits differ
    try:
        return choose_hints(teacher, digits.train, Rule(count=2), config=config, data="digits")
    finally:
        torch.set_num_threads(threads)


def test_what_is_found_fits_together(found: Hints, teacher: Network) -> None:
    assert found.layers == tuple(layers(teacher))
    names = [layer.name for layer in found.layers]
    assert (found.teacher, found.data, found.metric) == ("resnet14", "digits", "r2_cca")
    assert list(found.similarities) == list(ALWAYS)
    assert all(matrix.shape == (6, 6) for matrix in found.similarities.values())
    choice = found.choices["r2_cca"]
    assert list(found.choices) == ["r2_cca"]
    assert found.hints == choice.hints
    assert len(found.hints) == len(choice.clusters) == 2
    assert sorted(name for cluster in choice.clusters for name in cluster) == sorted(names)
    assert {next(k for k, cluster in enumerate(choice.clusters) if hint in cluster) for hint in found.hints} == {0, 1}
    expected = select(found.layers, found.similarities["r2_cca"], Rule(count=2))
    assert found.hints == tuple(names[i] for i in expected.hints)
    assert choice.silhouette == expected.silhouettes
    assert list(choice.stability) == names
    assert sum(choice.stability.values()) == pytest.approx(2)


def test_the_sample_is_named_by_position_in_the_official_order(found: Hints, digits: Data) -> None:
    assert len(found.sample_indices) == len(set(found.sample_indices)) == 500
    official = set(digits.train.indices.tolist())
    assert set(found.sample_indices) <= official
    assert max(found.sample_indices) > len(official)  # positions among all 1,797 digits, not among the training digits
    assert list(found.sample_indices) != sorted(found.sample_indices)


def test_the_same_seed_draws_the_same_images(digits: Data, teacher: Network, found: Hints) -> None:
    again, other = (
        choose_hints(
            teacher, digits.train, Rule(count=2), config=ChoiceConfig(samples=500, draws=20, bare=False, seed=seed)
        )
        for seed in (0, 1)
    )
    assert again.sample_indices == found.sample_indices
    assert again.choices == found.choices
    assert all(np.array_equal(again.similarities[name], found.similarities[name]) for name in ALWAYS)
    assert set(other.sample_indices) != set(found.sample_indices)


def test_all_images_are_taken_where_there_are_fewer(digits: Data, teacher: Network) -> None:
    few = digits.train.subset(range(30))
    found = choose_hints(teacher, few, Rule(count=2), config=ChoiceConfig(samples=1000, draws=0))
    assert sorted(found.sample_indices) == few.indices.tolist()
    assert found.choices["r2_cca"].stability == {}


def test_seconds_say_where_the_time_went(found: Hints) -> None:
    seconds = found.seconds
    assert set(seconds) == {"bare_forward", "tapped_forward", "metrics", "selection", "total", "stability"}
    assert all(isinstance(value, float) and value > 0 for value in seconds.values())
    parts = [seconds[name] for name in ("tapped_forward", "metrics", "selection")]
    assert seconds["total"] == pytest.approx(math.fsum(value for value in parts if value is not None))


def test_without_the_floor(digits: Data, teacher: Network) -> None:
    found = choose_hints(
        teacher, digits.train.subset(range(40)), Rule(count=2), config=ChoiceConfig(draws=0, bare=False)
    )
    assert found.seconds["bare_forward"] is None


def test_json_holds_everything_but_the_matrices(found: Hints) -> None:
    value = found.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["hints"] == list(found.hints)
    assert (value["samples"], value["count"], value["metric"]) == (500, 2, "r2_cca")
    assert (value["clustering"], value["center"], value["hint"]) == ("kmeans", "medoid", "center")
    assert value["layers"][0] == {"name": "layer1.0", "channels": 16, "size": [8, 8]}
    assert value["choices"]["r2_cca"]["clusters"] == value["clusters"]
    assert value["sample_indices"] == list(found.sample_indices)


def test_several_metrics_decide_by_consensus(digits: Data, teacher: Network) -> None:
    config = ChoiceConfig(samples=300, metrics=("debiased_cka", "procrustes"), draws=10)
    found = choose_hints(teacher, digits.train, Rule(count=2), config=config)
    assert list(found.choices) == ["debiased_cka", "procrustes", CONSENSUS]
    assert set(found.similarities) == {*ALWAYS, CONSENSUS}
    agreed = consensus([found.similarities["debiased_cka"], found.similarities["procrustes"]])
    np.testing.assert_array_equal(found.similarities[CONSENSUS], agreed)
    names = [layer.name for layer in found.layers]
    assert found.hints == tuple(names[i] for i in select(found.layers, agreed, Rule(count=2)).hints)
    assert found.to_json()["metric"] == CONSENSUS
    assert sum(found.choices[CONSENSUS].stability.values()) == pytest.approx(2)
    assert found.choices["procrustes"].stability == {}


def test_an_automatic_count_is_settled_before_the_stability(digits: Data, teacher: Network) -> None:
    found = choose_hints(teacher, digits.train, Rule(count=None), config=ChoiceConfig(samples=200, draws=5, bare=False))
    choice = found.choices["r2_cca"]
    assert found.to_json()["count"] == len(found.hints) == max(choice.silhouette, key=lambda k: choice.silhouette[k])
    assert sum(choice.stability.values()) == pytest.approx(len(found.hints))


@pytest.mark.parametrize("control", CONTROLS)
def test_controls(digits: Data, teacher: Network, control: str) -> None:
    few = digits.train.subset(range(60))
    found = choose_hints(teacher, few, Rule(control, count=3), config=ChoiceConfig(draws=5, bare=False))
    choice = found.choices["r2_cca"]
    assert len(found.hints) == {"all": 6, "last-only": 1}.get(control, 3)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    depth = [layer.name for layer in found.layers]
    assert list(found.hints) == sorted(found.hints, key=depth.index, reverse=control == "reverse")
    assert bool(choice.clusters) == bool(choice.stability) == bool(choice.silhouette) == (control == "reverse")


def test_candidates_by_glob(digits: Data, teacher: Network) -> None:
    few = digits.train.subset(range(60))
    found = choose_hints(teacher, few, Rule(count=2), config=ChoiceConfig(draws=0, bare=False, layers="*.conv1"))
    assert [layer.name for layer in found.layers] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1)]
    assert all(name.endswith("conv1") for name in found.hints)


def test_stability_by_hand_is_that_of_the_choice(digits: Data, teacher: Network) -> None:
    from keyhole.hints.moments import observe

    config = ChoiceConfig(samples=100, draws=7, bare=False, seed=3)
    found = choose_hints(teacher, digits.train, Rule(count=3), config=config, look=ObserveConfig(batch_size=50))
    place = {index: i for i, index in enumerate(digits.train.indices.tolist())}
    sample = digits.train.subset([place[index] for index in found.sample_indices])
    moments = observe(teacher, sample, [layer.name for layer in found.layers], config=ObserveConfig(batch_size=50))
    again = stability(found.layers, moments, ["r2_cca"], Rule(count=3), draws=7, seed=3)
    assert found.choices["r2_cca"].stability == again


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"metrics": ("linear",)}, UnknownNameError),
        ({"metrics": ()}, SettingError),
        ({"metrics": ("r2_cca", "r2_cca")}, SettingError),
        ({"samples": 1}, SettingError),
        ({"draws": -1}, SettingError),
        ({"seed": -1}, SettingError),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ChoiceConfig(**setting)  # type: ignore[arg-type]


def test_images_and_counts_that_cannot_be(digits: Data, teacher: Network) -> None:
    with pytest.raises(DataError, match="no images"):
        choose_hints(teacher, digits.train.subset([]))
    with pytest.raises(SettingError, match="Cannot choose 7 hints from 6 layers"):
        choose_hints(teacher, digits.train.subset(range(40)), Rule(count=7))
    few = digits.train.subset(range(3))
    with pytest.raises(SettingError, match="at least 4 images"):
        choose_hints(teacher, few, Rule(count=2), config=ChoiceConfig(metrics=("debiased_cka",)))
    found = choose_hints(teacher, few, Rule(count=2))
    assert sorted(found.similarities) == ["linear_cka", "procrustes", "r2_cca"]  # the others need four
