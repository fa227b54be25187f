"""Which layers are chosen: by clusters, by controls, and how steadily."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from keyhole.data.splits import MemorySplit
from keyhole.errors import DataError, SettingError, ShapeError, UnknownNameError
from keyhole.hints import metrics
from keyhole.hints.choice import ChoiceConfig, choose_hints
from keyhole.hints.clustering import agglomerative, kmeans, segments, silhouette
from keyhole.hints.moments import Moments, ObserveConfig, observe
from keyhole.hints.selection import Rule, hint_layers, select, stability, task_information, to_distance
from keyhole.hints.similarity import consensus
from keyhole.models.layers import Layer, layers, tap
from keyhole.models.network import InputSpec, Network


def row(*sizes: int) -> list[Layer]:
    return [Layer(f"block{i}", "Block", 8, (size, size), 10) for i, size in enumerate(sizes)]


def alike(*places: float) -> np.ndarray:
    """Similarities of layers that lie on a line."""
    points = np.array(places)
    return np.asarray(1 - abs(points[:, None] - points) / 100)


STAGES = row(32, 32, 32, 16, 16, 8, 8, 8, 8)
PLACES = (0, 1, 2, 30, 31, 33, 70, 71, 73)


def names(rule: Rule, similarities: np.ndarray | None = None) -> list[int]:
    return list(select(STAGES, similarities, rule).hints)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("stage-ends", count=3), [2, 4, 8]),
        (Rule("stage-ends", count=2), [4, 8]),
        (Rule("stage-ends", count=None), [2, 4, 8]),
        (Rule("uniform", count=3), [1, 4, 7]),
        (Rule("uniform", count=1), [4]),
        (Rule("uniform", count=9), list(range(9))),
        (Rule("uniform", count=2), [2, 6]),
        (Rule("uniform", count=None), [1, 4, 7]),
        (Rule("all", count=None), list(range(9))),
        (Rule("all", count=3), list(range(9))),
        (Rule("last-only", count=3), [8]),
        (Rule("last-only", count=None), [8]),
    ],
)
def test_controls_look_at_no_similarity(rule: Rule, expected: list[int]) -> None:
    found = select(STAGES, None, rule)
    assert list(found.hints) == expected
    assert (found.clusters, found.silhouettes) == (None, {})


def test_random_layers_differ_by_seed_and_come_in_order() -> None:
    draws = [names(Rule("random", count=3, seed=seed)) for seed in range(200)]
    assert draws == [names(Rule("random", count=3, seed=seed)) for seed in range(200)]
    assert all(draw == sorted(set(draw)) and len(draw) == 3 for draw in draws)
    times = np.bincount(np.concatenate(draws), minlength=9)
    assert times.min() > 40  # 67 expected, 6.7 is one standard deviation
    assert times.max() < 94
    assert len(names(Rule("random", count=None))) == 3  # as many as stages


def test_reverse_gives_the_kmeans_centers_deepest_first() -> None:
    similarities = alike(*PLACES)
    forward, reverse = select(STAGES, similarities, Rule("kmeans")), select(STAGES, similarities, Rule("reverse"))
    assert forward.hints == (1, 4, 7)
    assert reverse.hints == (7, 4, 1)
    assert reverse.clusters == forward.clusters
    assert reverse.silhouettes == forward.silhouettes


@pytest.mark.parametrize(
    ("clustering", "function"), [("kmeans", kmeans), ("segments", segments), ("agglomerative", agglomerative)]
)
def test_a_cluster_is_taught_by_its_center_or_its_last_layer(clustering: str, function: object) -> None:
    similarities = alike(*PLACES)
    assert names(Rule(clustering), similarities) == [1, 4, 7]
    assert names(Rule(clustering, hint="last"), similarities) == [2, 5, 8]
    assert function(to_distance(similarities), 3) == select(STAGES, similarities, Rule(clustering)).clusters  # type: ignore[operator]


def test_last_layers_of_clusters_that_interlace_come_in_order() -> None:
    found = agglomerative(to_distance(alike(0, 90, 1, 91, 2)), 2)
    assert hint_layers(found, "last") == (3, 4)
    assert hint_layers(found, "center") == (1, 2)


def test_the_index_form_is_passed_on() -> None:
    similarities = alike(0, 0, 0, 0, 5, 90, 90, 90, 99)
    medoid, index = (select(STAGES, similarities, Rule(count=2, center=center)).hints for center in ("medoid", "index"))
    assert medoid == (0, 5)
    assert index == (2, 6)


@pytest.mark.parametrize("clustering", ["kmeans", "segments", "agglomerative", "reverse"])
def test_auto_takes_the_count_with_the_highest_silhouette(clustering: str) -> None:
    similarities = alike(*PLACES)
    found = select(STAGES, similarities, Rule(clustering, count=None))
    assert sorted(found.silhouettes) == list(range(2, 9))
    assert len(found.hints) == max(found.silhouettes, key=lambda count: found.silhouettes[count]) == 3
    distance = to_distance(similarities)
    for count, value in found.silhouettes.items():
        other = select(STAGES, similarities, Rule(clustering, count=count)).clusters
        assert other is not None
        assert silhouette(distance, other) == pytest.approx(value)


@pytest.mark.parametrize("total", [1, 2])
def test_auto_with_hardly_any_layers_takes_one(total: int) -> None:
    found = select(row(*[8] * total), np.eye(total), Rule(count=None))
    assert len(found.hints) == 1
    assert found.silhouettes == {}


@pytest.mark.parametrize("clustering", ["kmeans", "segments", "stage-ends", "uniform", "random", "all"])
@pytest.mark.parametrize("count", [0, 10, -1])
def test_more_hints_than_layers(clustering: str, count: int) -> None:
    with pytest.raises(SettingError, match=f"Cannot choose {count} hints from 9 layers; choose 1 to 9"):
        select(STAGES, alike(*PLACES), Rule(clustering, count=count))


def test_more_hints_than_stages() -> None:
    with pytest.raises(SettingError, match=r"Cannot choose 4 stage ends; the network has 3 stages. Lower --count"):
        select(STAGES, None, Rule("stage-ends", count=4))


def test_a_clustering_needs_similarities_of_the_right_shape() -> None:
    with pytest.raises(SettingError, match="kmeans needs similarities"):
        select(STAGES, None, Rule())
    with pytest.raises(ShapeError, match=r"\(4, 4\); expected one row for each of 9 layers"):
        select(STAGES, np.eye(4), Rule())


@pytest.mark.parametrize("wrong", [{"clustering": "kmean"}, {"center": "mediod"}, {"hint": "first"}])
def test_unknown_names(wrong: dict[str, str]) -> None:
    with pytest.raises(UnknownNameError, match=next(iter(wrong.values()))):
        Rule(**wrong)  # type: ignore[arg-type]


def test_a_negative_seed() -> None:
    with pytest.raises(SettingError, match="seed is -1"):
        Rule("random", seed=-1)


def test_distances_are_symmetric_and_never_negative() -> None:
    similarities = np.array([[0.2, 1.1, -0.3], [0.9, 1.0, 0.5], [-0.1, 0.5, 3.0]])
    np.testing.assert_allclose(to_distance(similarities), [[0, 0, 1.2], [0, 0, 0.5], [1.2, 0.5, 0]])
    assert to_distance(np.array([[1, 1.3], [1.2, 1]]))[0, 1] == 0


@pytest.fixture
def watched(toy_teacher: Network, toy_split: MemorySplit) -> tuple[list[Layer], Moments]:
    candidates = layers(toy_teacher)
    config = ObserveConfig(batch_size=4)
    return candidates, observe(toy_teacher, toy_split, [layer.name for layer in candidates], config=config)


@pytest.mark.parametrize("metric_names", [("procrustes",), ("linear_cka", "debiased_cka")])
@pytest.mark.parametrize("rule", [Rule(count=2), Rule("segments", count=3, hint="last"), Rule("reverse", count=2)])
def test_stability_counts_every_hint_of_every_half(
    watched: tuple[list[Layer], Moments], metric_names: tuple[str, ...], rule: Rule
) -> None:
    candidates, moments = watched
    found = stability(candidates, moments, metric_names, rule, draws=30)
    assert list(found) == [layer.name for layer in candidates]
    assert sum(found.values()) == pytest.approx(rule.count)
    assert all(0 <= value <= 1 for value in found.values())
    assert found == stability(candidates, moments, metric_names, rule, draws=30)


def test_stability_draws_other_halves_with_another_seed(watched: tuple[list[Layer], Moments]) -> None:
    found = [stability(*watched, ["debiased_cka"], Rule(count=2), draws=9, seed=seed) for seed in range(5)]
    assert any(other != found[0] for other in found)


@pytest.mark.parametrize("metric_names", [("linear_cka",), ("linear_cka", "debiased_cka", "procrustes")])
def test_stability_equals_a_recomputation_on_the_features_of_each_half(
    watched: tuple[list[Layer], Moments],
    toy_teacher: Network,
    toy_split: MemorySplit,
    metric_names: tuple[str, ...],
) -> None:
    candidates, moments = watched
    rule = Rule(count=2)
    with torch.no_grad(), tap(toy_teacher.module, [layer.name for layer in candidates]) as features:
        toy_teacher(toy_split.pixels.permute(0, 3, 1, 2) / 255)
    pooled = [feature.mean((2, 3)) for feature in features.values()]
    block_of = np.repeat(np.arange(12), 4)  # 48 images in 12 blocks
    random = np.random.default_rng([5, 3])
    times = dict.fromkeys((layer.name for layer in candidates), 0.0)
    for _ in range(3):
        inside = torch.from_numpy(np.isin(block_of, random.permutation(12)[:6]))
        matrices = [
            np.array([[getattr(metrics, name)(x[inside], y[inside]) for y in pooled] for x in pooled])
            for name in metric_names
        ]
        matrix = consensus(matrices) if len(matrices) > 1 else matrices[0]
        for i in select(candidates, matrix, rule).hints:
            times[candidates[i].name] += 1 / 3
    assert stability(candidates, moments, metric_names, rule, draws=3, seed=5) == pytest.approx(times)


def test_stability_needs_a_count_and_halves(toy_teacher: Network, toy_split: MemorySplit) -> None:
    candidates = layers(toy_teacher)
    wanted = [layer.name for layer in candidates]
    few = observe(toy_teacher, toy_split.subset(range(7)), wanted)
    with pytest.raises(SettingError, match="at least 8 images; there are 7"):
        stability(candidates, few, ["r2_cca"], Rule(count=2))
    enough = observe(toy_teacher, toy_split.subset(range(8)), wanted)
    assert sum(stability(candidates, enough, ["debiased_cka"], Rule(count=2), draws=5).values()) == pytest.approx(2)
    with pytest.raises(SettingError, match="set count"):
        stability(candidates, enough, ["r2_cca"], Rule(count=None))
    with pytest.raises(SettingError, match="draws is 0"):
        stability(candidates, enough, ["r2_cca"], Rule(count=2), draws=0)
    with pytest.raises(SettingError, match="stage-ends"):
        stability(candidates, enough, ["r2_cca"], Rule("stage-ends", count=2))


class Knowing(nn.Module):
    """Three layers: noise, the class with noise, and the class itself; none looks at another."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.hazy, self.sure = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.mean((2, 3))  # red: the class, 0 to 2; green and blue: noise
        kind = (2 * values[:, :1]).round()
        known = torch.cat([kind == 0, kind == 1], dim=1).float()
        self.noise(values[:, 1:])
        self.hazy(known + 4 * values[:, 1:])
        return self.sure(torch.cat([known, values[:, 1:]], dim=1))


@pytest.fixture
def knowing() -> tuple[Network, MemorySplit]:
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, 3, 400))
    pixels = torch.zeros(400, 1, 1, 3, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = (labels * 127.5).round().to(torch.uint8)
    pixels[:, 0, 0, 1:] = torch.from_numpy(random.integers(0, 256, (400, 2)).astype(np.uint8))
    split = MemorySplit(pixels, labels, torch.arange(400), ("a", "b", "c"))
    return Network("knowing", Knowing(), InputSpec((1, 1), (0.0,) * 3, (1.0,) * 3), 3), split


KNOWING = ("noise", "hazy", "sure")


def test_what_layers_know_about_the_task(knowing: tuple[Network, MemorySplit]) -> None:
    network, split = knowing
    moments = observe(network, split, KNOWING, config=ObserveConfig(batch_size=20, precision="fp32"), labels=True)
    (found,) = task_information(moments)
    assert found[0] < 0.03
    assert found[0] < found[1] < 0.7
    assert found[2] == pytest.approx(1, abs=1e-6)
    with torch.no_grad(), tap(network.module, KNOWING) as features:
        network(split.pixels.permute(0, 3, 1, 2) / 255)
    classes = torch.nn.functional.one_hot(split.labels, 3).float()
    for value, feature in zip(found, features.values(), strict=True):
        width = min(feature.shape[1], 3)
        assert value == pytest.approx(metrics.r2_cca(feature, classes) * width / 2, abs=1e-6)
    parts = torch.zeros(2, 20, dtype=torch.bool)
    parts[0, :10] = parts[1, 10:] = True
    halves = task_information(moments, parts=parts)
    assert halves.shape == (2, 3)
    half = slice(200, 400)
    assert halves[1, 1] == pytest.approx(metrics.r2_cca(features["hazy"][half], classes[half]), abs=1e-6)
    plain = observe(network, split, KNOWING, config=ObserveConfig(precision="fp32"))
    with pytest.raises(SettingError, match="kept no labels"):
        task_information(plain)
    with pytest.raises(DataError, match="needs labeled images"):
        observe(network, replace(split, classes=()), KNOWING, labels=True)


def test_of_a_cluster_the_layer_that_knows_most_about_the_task() -> None:
    similarities = alike(*PLACES)
    known = np.array([0.3, 0.1, 0.2, 0.5, 0.5, 0.4, 0.0, 0.9, 0.1])
    rule = Rule("segments", count=3, hint="informative")
    assert select(STAGES, similarities, rule, information=known).hints == (0, 4, 7)  # of equals the deepest
    assert select(STAGES, similarities, Rule("segments", count=3)).hints != (0, 4, 7)
    with pytest.raises(SettingError, match="needs labels; measure with them first"):
        select(STAGES, similarities, rule)


def test_informative_hints_are_chosen_with_their_stability(knowing: tuple[Network, MemorySplit]) -> None:
    network, split = knowing
    rule = Rule("segments", count=1, hint="informative")
    config = ChoiceConfig(layers="noise,hazy,sure", draws=10, bare=False)
    found = choose_hints(network, split, rule, config=config, look=ObserveConfig(precision="fp32", batch_size=20))
    assert found.hints == ("sure",)
    assert found.choices["r2_cca"].stability == {"noise": 0.0, "hazy": 0.0, "sure": 1.0}
    assert list(found.information) == list(KNOWING)
    assert found.similarities["linear_cka"].shape == (3, 3)
    assert found.to_json()["information"]["sure"] == pytest.approx(1, abs=1e-6)
    same = choose_hints(network, split, Rule("segments", count=1), config=config, look=ObserveConfig(precision="fp32"))
    assert same.information == {}
    with pytest.raises(DataError, match="needs labeled images"):
        choose_hints(network, replace(split, classes=()), rule, config=config)


def test_auto_looks_at_ten_clusters_at_most_and_of_equals_takes_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    many = row(*[8] * 14)
    found = select(many, alike(*range(0, 98, 7)), Rule(count=None))
    assert max(found.silhouettes) == 10
    monkeypatch.setattr("keyhole.hints.selection._silhouettes", lambda *_: {2: 0.5, 3: 0.5, 4: 0.4})
    assert len(select(STAGES, alike(*PLACES), Rule(count=None)).hints) == 2
