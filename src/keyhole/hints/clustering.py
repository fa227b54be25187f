"""Group the layers of a network by how alike they are, given all distances between them.

A distance matrix is symmetric with zeros on its diagonal; 1 - similarity is one. Every function returns a
:class:`Clusters` in which no cluster is empty; a single cluster is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_score

from keyhole.errors import SettingError, ShapeError, unknown_name


@dataclass(frozen=True)
class Clusters:
    """A grouping of layers.

    Attributes:
        labels: Cluster of each layer; clusters are numbered by their first layer.
        centers: Position of the center of each cluster, by that number.
    """

    labels: tuple[int, ...]
    centers: tuple[int, ...]

    def members(self, cluster: int) -> tuple[int, ...]:
        """Return the positions of the layers in a cluster."""
        return tuple(i for i, label in enumerate(self.labels) if label == cluster)


def kmeans(distance: Float[np.ndarray, "l l"], count: int, *, center: str = "medoid", rounds: int = 80) -> Clusters:
    """Group layers by Lloyd's iteration with layers as centers, as in the method of hint points by clustering.

    The first centers are spread evenly over the depth, the first and the last layer included. Each layer joins the
    nearest center, ties the earlier one, and a center stays in its own cluster, so none is lost. The iteration ends
    when the centers repeat; where they run in a circle, the round with the smallest total distance counts.

    Args:
        distance: Between all layers, in the order of depth.
        count: Number of clusters.
        center: ``medoid``, the member with the smallest total distance to the others; or ``index``, the member nearest
            to the mean position of the members, truncated to a whole number, the form of the public re-implementation.
        rounds: At most so many.

    Raises:
        SettingError: More clusters than layers, or fewer than one.
        UnknownNameError: Another ``center``.

    Reference:
        Keser et al. (2023), https://doi.org/10.1016/j.eswa.2022.119040.

    Example:
        >>> depth = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2])
        >>> kmeans(abs(depth[:, None] - depth), 2)
        Clusters(labels=(0, 0, 0, 1, 1, 1), centers=(1, 4))
    """
    _check(distance, count)
    if center not in ("medoid", "index"):
        raise unknown_name("center", center, ("medoid", "index"))
    layers = len(distance)
    centers = [layers // 2] if count == 1 else [round(k * (layers - 1) / (count - 1)) for k in range(count)]
    seen: list[list[int]] = []
    costs: list[float] = []
    for _ in range(rounds):
        labels = _assign(distance, centers)
        seen.append(centers)
        costs.append(float(distance[np.arange(layers), np.array(centers)[labels]].sum()))
        pick = _medoid if center == "medoid" else _middle
        centers = [pick(distance, np.flatnonzero(labels == k)) for k in range(count)]
        if centers in seen:
            break
    best = len(seen) - 1 if centers == seen[-1] else int(np.argmin(costs))
    return _ordered(_assign(distance, seen[best]), seen[best])


def segments(distance: Float[np.ndarray, "l l"], count: int) -> Clusters:
    """Group layers into runs of consecutive layers with the smallest total distance to their medoids.

    The exact optimum, by dynamic programming over all ends of runs, O(l^3) for l layers.

    Args:
        distance: Between all layers, in the order of depth.
        count: Number of clusters.

    Raises:
        SettingError: More clusters than layers, or fewer than one.

    Reference:
        Bellman (1961), Communications of the ACM 4(6), 284; here with medoids.

    Example:
        >>> depth = np.array([0.0, 0.1, 5.0, 5.1, 5.2, 0.1])
        >>> segments(abs(depth[:, None] - depth), 3).labels
        (0, 0, 1, 1, 1, 2)
    """
    _check(distance, count)
    layers = len(distance)
    cost = np.full((layers + 1, layers + 1), np.inf)  # cost[a, b] of the run a .. b - 1
    for first in range(layers):
        to_each = np.cumsum(distance[:, first:], axis=1)  # row c: distance of c to layers first .. b - 1
        for last in range(first + 1, layers + 1):
            cost[first, last] = to_each[first:last, last - 1 - first].min()
    best = np.full((count + 1, layers + 1), np.inf)
    cut = np.zeros((count + 1, layers + 1), int)
    best[0, 0] = 0.0
    for k in range(1, count + 1):
        total = best[k - 1][:, None] + cost
        cut[k], best[k] = total.argmin(axis=0), total.min(axis=0)
    ends = [layers]
    for k in range(count, 0, -1):
        ends.append(int(cut[k, ends[-1]]))
    edges = ends[::-1]
    labels = np.repeat(np.arange(count), np.diff(edges))
    return _ordered(labels, [_medoid(distance, np.arange(a, b)) for a, b in pairwise(edges)])


def agglomerative(distance: Float[np.ndarray, "l l"], count: int) -> Clusters:
    """Group layers by merging, again and again, the two clusters with the smallest mean distance; centers are medoids.

    Args:
        distance: Between all layers.
        count: Number of clusters.

    Raises:
        SettingError: More clusters than layers, or fewer than one.

    Example:
        >>> depth = np.array([0.0, 0.1, 5.0, 5.1])
        >>> agglomerative(abs(depth[:, None] - depth), 2).labels
        (0, 0, 1, 1)
    """
    _check(distance, count)
    if len(distance) == 1:
        return Clusters((0,), (0,))
    model = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average")
    labels = model.fit_predict(distance)
    return _ordered(labels, [_medoid(distance, np.flatnonzero(labels == k)) for k in range(count)])


CLUSTERINGS = {"kmeans": kmeans, "segments": segments, "agglomerative": agglomerative}


def silhouette(distance: Float[np.ndarray, "l l"], clusters: Clusters) -> float | None:
    """Return the mean silhouette of a grouping, from -1 to 1; None for one cluster or as many clusters as layers.

    Reference:
        Rousseeuw (1987), https://doi.org/10.1016/0377-0427(87)90125-7.
    """
    if not 1 < len(clusters.centers) < len(distance):
        return None
    return float(silhouette_score(distance, clusters.labels, metric="precomputed"))


def _check(distance: np.ndarray, count: int) -> None:
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1] or not len(distance):
        raise ShapeError(f"Distances have the shape {distance.shape}; expected a square matrix.")
    if not 1 <= count <= len(distance):
        raise SettingError(f"Cannot make {count} clusters of {len(distance)} layers; choose 1 to {len(distance)}.")


def _assign(distance: np.ndarray, centers: list[int]) -> Int[np.ndarray, " l"]:
    labels = np.asarray(distance[:, centers].argmin(axis=1))
    labels[centers] = np.arange(len(centers))
    return labels


def _medoid(distance: np.ndarray, members: np.ndarray) -> int:
    return int(members[distance[np.ix_(members, members)].sum(axis=1).argmin()])


def _middle(_distance: np.ndarray, members: np.ndarray) -> int:
    return int(members[abs(members - int(members.mean())).argmin()])


def _ordered(labels: np.ndarray, centers: list[int]) -> Clusters:
    order = list(dict.fromkeys(int(label) for label in labels))
    number = {old: new for new, old in enumerate(order)}
    return Clusters(tuple(number[int(label)] for label in labels), tuple(centers[old] for old in order))
