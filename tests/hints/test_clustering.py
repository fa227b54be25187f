"""Clusterings on planted groups, against brute force, and on the distances that could break them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

import oracles
from keyhole.errors import SettingError, ShapeError, UnknownNameError
from keyhole.hints.clustering import CLUSTERINGS, Clusters, agglomerative, kmeans, segments, silhouette

Clustering = Callable[[np.ndarray, int], Clusters]


def kmeans_by_index(distance: np.ndarray, count: int) -> Clusters:
    return kmeans(distance, count, center="index")


ALL: list[Clustering] = [kmeans, kmeans_by_index, segments, agglomerative]


def along(*places: float) -> np.ndarray:
    points = np.array(places)
    return np.asarray(abs(points[:, None] - points))


def random_distance(layers: int, seed: int) -> np.ndarray:
    value = np.random.default_rng(seed).uniform(0.01, 1, size=(layers, layers))
    distance = (value + value.T) / 2
    np.fill_diagonal(distance, 0)
    return distance


def check(clusters: Clusters, layers: int, count: int) -> None:
    """Every layer in one cluster, none empty, each center a member, numbered by first layer."""
    assert len(clusters.labels) == layers
    assert len(clusters.centers) == count
    assert list(dict.fromkeys(clusters.labels)) == list(range(count))
    for number, center in enumerate(clusters.centers):
        assert center in clusters.members(number)
    assert sorted(i for k in range(count) for i in clusters.members(k)) == list(range(layers))


def planted(sizes: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    labels = tuple(k for k, size in enumerate(sizes) for _ in range(size))
    return along(*(10.0 * np.array(labels) + np.random.default_rng(0).uniform(0, 1, size=len(labels)))), labels


@pytest.mark.parametrize("clustering", ALL)
@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 4, 3), (1, 8, 3)])
def test_planted_blocks_are_found(clustering: Clustering, sizes: tuple[int, ...]) -> None:
    distance, labels = planted(sizes)
    assert clustering(distance, 3).labels == labels


@pytest.mark.parametrize("sizes", [(7, 3, 2), (2, 1, 9), (10, 1, 1)])
def test_uneven_blocks_are_found_where_no_start_can_mislead(sizes: tuple[int, ...]) -> None:
    distance, labels = planted(sizes)
    assert segments(distance, 3).labels == agglomerative(distance, 3).labels == labels
    check(kmeans(distance, 3), 12, 3)  # it starts from evenly spread layers, two of them in one block, and may stay


@pytest.mark.parametrize("layers", range(1, 9))
@pytest.mark.parametrize("seed", range(4))
def test_segments_are_the_optimum_over_all_cuts(layers: int, seed: int) -> None:
    distance = random_distance(layers, seed)
    for count in range(1, layers + 1):
        found = segments(distance, count)
        check(found, layers, count)
        assert list(found.labels) == sorted(found.labels)
        cost = sum(distance[found.centers[label], i] for i, label in enumerate(found.labels))
        assert cost == pytest.approx(oracles.best_segments_cost(distance, count))


@pytest.mark.parametrize("clustering", ALL)
@pytest.mark.parametrize("layers", [1, 2, 3, 7, 12])
def test_no_cluster_is_lost(clustering: Clustering, layers: int) -> None:
    twins = along(*np.repeat([0.0, 1.0, 2.0], 4)[:layers])
    for distance in (np.zeros((layers, layers)), twins, random_distance(layers, 1), np.ones((layers, layers))):
        for count in range(1, layers + 1):
            check(clustering(distance, count), layers, count)


@pytest.mark.parametrize("clustering", ALL)
def test_one_cluster_and_as_many_as_layers(clustering: Clustering) -> None:
    distance = along(0, 1, 2, 3, 9)
    one = clustering(distance, 1)
    assert one.labels == (0,) * 5
    assert one.centers == (2,)
    every = clustering(distance, 5)
    assert every.labels == every.centers == (0, 1, 2, 3, 4)


def test_the_medoid_is_the_member_with_the_smallest_total_distance() -> None:
    distance = along(0, 1, 5, 100, 101, 107, 108)
    for clustering in (kmeans, segments, agglomerative):
        found = clustering(distance, 2)
        assert found.labels == (0, 0, 0, 1, 1, 1, 1)
        assert found.centers == (1, 4)  # of two best ones the earlier


def test_the_index_center_is_the_member_nearest_to_the_truncated_mean_position() -> None:
    # layers 0, 1, 6 are alike and 2 ... 5 are: mean positions 7 / 3 -> 2 and 3.5 -> 3
    distance = along(0, 0.1, 9, 9.1, 9.2, 9.3, 0.2)
    found = kmeans(distance, 2, center="index")
    assert found.labels == (0, 0, 1, 1, 1, 1, 0)
    assert found.centers == (1, 3)
    assert kmeans(distance, 2).labels == found.labels


@pytest.mark.parametrize("seed", range(30))
def test_the_iteration_ends_where_it_repeats(seed: int) -> None:
    distance = random_distance(9, seed)
    for count in (2, 3, 4):
        found = kmeans(distance, count)
        check(found, 9, count)
        assert kmeans(distance, count, rounds=1000) == found
        for number, center in enumerate(found.centers):
            members = list(found.members(number))
            total = distance[np.ix_(members, members)].sum(1)
            assert total[members.index(center)] == pytest.approx(total.min())
        nearest = distance[:, list(found.centers)].min(1)
        own = [distance[i, found.centers[label]] for i, label in enumerate(found.labels)]
        np.testing.assert_allclose(own, nearest)


def test_a_circle_of_index_centers_keeps_its_best_round() -> None:
    """Some distances make index centers run in a circle; then the grouping is one of the circle's best."""
    circles = 0
    for seed in range(300):
        distance = random_distance(8, seed)
        costs, places, seen = [], [0, 4, 7], []
        while places not in seen:
            seen.append(places)
            labels = distance[:, places].argmin(1)
            labels[places] = range(3)
            costs.append(sum(distance[i, places[label]] for i, label in enumerate(labels)))
            means = [int(np.flatnonzero(labels == k).mean()) for k in range(3)]
            places = [
                min(np.flatnonzero(labels == k).tolist(), key=lambda i, mean=mean: (abs(i - mean), i))
                for k, mean in enumerate(means)
            ]
        found = kmeans(distance, 3, center="index")
        cost = sum(distance[i, found.centers[label]] for i, label in enumerate(found.labels))
        if places != seen[-1]:
            circles += 1
            assert cost == pytest.approx(min(costs))
        else:
            assert cost == pytest.approx(costs[-1])
    assert circles > 0


def test_another_order_of_the_layers_only_renames_the_groups_of_agglomeration() -> None:
    distance = random_distance(10, 3)
    order = np.random.default_rng(0).permutation(10)
    before, after = agglomerative(distance, 4), agglomerative(distance[np.ix_(order, order)], 4)
    groups = {frozenset(before.members(k)) for k in range(4)}
    assert {frozenset(int(order[i]) for i in after.members(k)) for k in range(4)} == groups
    assert {int(order[center]) for center in after.centers} == set(before.centers)


def test_segments_never_join_layers_across_another() -> None:
    distance = along(0, 9, 0, 9, 0, 9)
    assert agglomerative(distance, 2).labels == kmeans(distance, 2).labels == (0, 1, 0, 1, 0, 1)
    assert all(b - a in (0, 1) for a, b in pairwise(segments(distance, 2).labels))


@pytest.mark.parametrize("clustering", ALL)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_silhouette_equals_its_definition(clustering: Clustering, count: int) -> None:
    for seed in range(5):
        distance = random_distance(7, seed)
        found = clustering(distance, count)
        assert silhouette(distance, found) == pytest.approx(oracles.silhouette(distance, found.labels))


def test_the_silhouette_of_two_tight_pairs_by_hand() -> None:
    # a = 1 for all; b = 9.5, 8.5, 8.5, 9.5
    expected = (2 * 8.5 / 9.5 + 2 * 7.5 / 8.5) / 4
    assert silhouette(along(0, 1, 9, 10), segments(along(0, 1, 9, 10), 2)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 4])
def test_there_is_no_silhouette_of_one_cluster_or_of_single_layers(count: int) -> None:
    distance = along(0, 1, 2, 3)
    assert silhouette(distance, segments(distance, count)) is None


@pytest.mark.parametrize("clustering", CLUSTERINGS.values())
@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_count_that_cannot_be(clustering: Clustering, count: int) -> None:
    with pytest.raises(SettingError, match=f"Cannot make {count} clusters of 3 layers; choose 1 to 3"):
        clustering(along(0, 1, 2), count)


@pytest.mark.parametrize("clustering", CLUSTERINGS.values())
@pytest.mark.parametrize("shape", [(3, 2), (3,), (0, 0), (2, 2, 2)])
def test_distances_must_be_square(clustering: Clustering, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected a square matrix"):
        clustering(np.zeros(shape), 1)


def test_an_unknown_center() -> None:
    with pytest.raises(UnknownNameError, match="'mean'"):
        kmeans(along(0, 1, 2), 2, center="mean")
