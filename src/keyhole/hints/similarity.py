"""Similarity of all layers from the sums of one pass, for all images or for many parts of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keyhole.errors import SettingError, unknown_name
from keyhole.hints.metrics import projection_weighted, rank, strongest, whitening
from keyhole.hints.moments import Moments
from keyhole.progress import Progress, silent

METRICS = ("r2_cca", "linear_cka", "debiased_cka", "rbf_cka", "procrustes", "svcca", "pwcca")

# those that are measured whether or not they decide; the others cost a decomposition for each pair of layers
ALWAYS = ("r2_cca", "linear_cka", "debiased_cka", "rbf_cka", "procrustes")

SVCCA_VARIANCE = 0.99
LEAST_IMAGES = {"debiased_cka": 4, "rbf_cka": 4}  # of the others: 2

_WORKING_BYTES = 128 << 20  # of one intermediate; several stand at a time
_ROWS = 128  # channels of a group of layers, at least, whose products are made together: a matrix product needs as many


def similarity(
    moments: Moments,
    metric: str,
    *,
    parts: Bool[Tensor, "s b"] | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "s l l"]:
    """Return the similarity of all pairs of layers under one metric, once for each part of the images.

    The values are those of the plain function of that name in :mod:`keyhole.hints.metrics`; of ``pwcca``, which is not
    symmetric, the mean of both directions. ``rbf_cka`` takes its minibatches, and the width of its kernels, from the
    blocks that were looked at, of which there are twenty at least: over few images it is another estimate of the same.

    Args:
        moments: What :func:`keyhole.hints.moments.observe` kept.
        metric: One of :data:`METRICS`.
        parts: Which blocks of images each part holds; all blocks, as one part, when missing.
        progress: Wraps the layers.

    Raises:
        UnknownNameError: No such metric.
        SettingError: The metric needs at least 4 images, or sums that were not made.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.hints.moments import observe
        >>> from keyhole.models.zoo import build
        >>> net = build("resnet8", classes=10, input=default_input("digits"))
        >>> moments = observe(net, open_data("digits").train, ["layer1.0", "layer3.0"])
        >>> similarity(moments, "linear_cka").shape
        (1, 2, 2)
    """
    return similarities(moments, (metric,), parts=parts, progress=progress)[metric]


def similarities(
    moments: Moments,
    metrics: Sequence[str] = ALWAYS,
    *,
    parts: Bool[Tensor, "s b"] | None = None,
    progress: Progress = silent,
) -> dict[str, Float[np.ndarray, "s l l"]]:
    """Return what :func:`similarity` gives, by metric; the products between layers are made once for all metrics.

    Args:
        moments: What :func:`keyhole.hints.moments.observe` kept.
        metrics: The metrics.
        parts: Which blocks of images each part holds; all blocks, as one part, when missing.
        progress: Wraps the layers.

    Raises:
        UnknownNameError: No such metric.
        SettingError: A metric needs at least 4 images, or sums that were not made.
    """
    if parts is None:
        parts = torch.ones(1, len(moments.counts), dtype=torch.bool)
    _check(moments, metrics, parts)
    found: dict[str, np.ndarray] = {}
    if "rbf_cka" in metrics and moments.rbf is not None:
        found["rbf_cka"] = _alignment(torch.einsum("sb,bij->sij", parts.double(), moments.rbf))
    others = [metric for metric in metrics if metric != "rbf_cka"]
    if not others:
        return found
    groups = _groups(moments.starts)
    widths = np.diff(moments.starts)
    # whitening matrices of one part are kept for all layers at once
    at_once = max(1, int(2 * _WORKING_BYTES / (8 * float(np.square(widths.astype(float)).sum()))))
    chunks = [parts[first : first + at_once] for first in range(0, len(parts), at_once)]
    work = ((chunk, group) for chunk in chunks for group in groups)
    done: list[dict[str, np.ndarray]] = []
    run: _Run | None = None
    for chunk, group in progress(work, label="similarity", total=len(chunks) * len(groups)):
        if group is groups[0]:
            run = _Run(moments, chunk.double(), others)
        assert run is not None, "the first layers of a chunk come first"
        run.add_rows(group)
        if group is groups[-1]:
            done.append(run.finish())
    found |= {metric: np.concatenate([each[metric] for each in done]) for metric in others}
    return {metric: found[metric] for metric in metrics}


def _groups(starts: Sequence[int]) -> list[range]:
    """Return layers in groups of neighbors, each just wide enough."""
    groups, first = [], 0
    for last in range(1, len(starts)):
        if starts[last] - starts[first] >= _ROWS or last == len(starts) - 1:
            groups.append(range(first, last))
            first = last
    return groups


def _check(moments: Moments, metrics: Sequence[str], parts: Bool[Tensor, "s b"]) -> None:
    fewest = float((parts.double() @ moments.counts).min())
    for metric in metrics:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        least = LEAST_IMAGES.get(metric, 2)
        if fewest < least:
            raise SettingError(f"{metric} compares layers over at least {least} images; raise --samples.")
    if "rbf_cka" in metrics and moments.rbf is None:
        raise SettingError("The sums of the Gaussian kernels were not made; observe with rbf=True.")


class _Run:
    """Some metrics over a few parts of the images, a row of layer pairs at a time."""

    def __init__(self, moments: Moments, parts: Float[Tensor, "s b"], metrics: Sequence[str]) -> None:
        layers = len(moments.names)
        self.moments, self.parts = moments, parts
        self.counts = parts @ moments.counts
        self.sums = parts @ moments.sums
        self.squares = parts @ moments.squares
        self.values = {name: torch.zeros(len(parts), layers, layers, dtype=torch.float64) for name in metrics}
        self.scales = torch.zeros(len(parts), layers, dtype=torch.float64)
        self.white: list[Tensor] = []
        self.strong: list[Tensor] = []
        self.own: list[Tensor] = []
        if {"r2_cca", "svcca", "pwcca"} & set(metrics):
            for layer in range(layers):
                ((own,),) = self._covariances(range(layer, layer + 1), range(layer, layer + 1))
                own = _nothing_if_constant(own, self.squares[:, layer])
                self.white.append(whitening(own))
                if "svcca" in metrics:
                    self.strong.append(strongest(self.white[-1], own, SVCCA_VARIANCE))
                if "pwcca" in metrics:
                    self.own.append(own)

    def add_rows(self, group: range) -> None:
        first = group.start
        while first < len(self.moments.names):
            columns = range(first, self._reach(group, first))
            for i, row in zip(group, self._covariances(group, columns), strict=True):
                for j, covariance in zip(columns, row, strict=True):
                    if j >= i:
                        self._add(i, j, covariance)
            first = columns.stop

    def _add(self, i: int, j: int, covariance: Float[Tensor, "s p q"]) -> None:
        if i == j:
            covariance = _nothing_if_constant(covariance, self.squares[:, i])
        for metric, values in self.values.items():
            values[:, i, j] = values[:, j, i] = self._value(metric, i, j, covariance)

    def finish(self) -> dict[str, Float[np.ndarray, "s l l"]]:
        return {metric: self._scaled(metric, values) for metric, values in self.values.items()}

    def _scaled(self, metric: str, values: Float[Tensor, "s l l"]) -> Float[np.ndarray, "s l l"]:
        if metric in ("r2_cca", "svcca", "pwcca"):
            return np.asarray(values)
        if metric == "procrustes":
            below = self.scales[:, :, None] * self.scales[:, None, :]
            return torch.where(below > 0, values / below.clamp_min(1e-300), 0.0).numpy()
        return _alignment(values)

    def _value(self, metric: str, i: int, j: int, covariance: Float[Tensor, "s p q"]) -> Float[Tensor, " s"]:
        if metric == "r2_cca":
            correlation = self.white[i].transpose(1, 2) @ covariance @ self.white[j]
            return torch.as_tensor(correlation.square().sum((1, 2)) / min(covariance.shape[1:]))
        if metric == "svcca":
            a, b = self.strong[i], self.strong[j]
            kept = torch.minimum(rank(a), rank(b)).clamp_min(1)
            return torch.as_tensor(torch.linalg.svdvals(a.transpose(1, 2) @ covariance @ b).sum(1) / kept)
        if metric == "pwcca":
            there = self.white[i].transpose(1, 2) @ covariance @ self.white[j]
            one = projection_weighted(self.own[i], self.white[i], there, rank(self.white[j]))
            other = projection_weighted(self.own[j], self.white[j], there.transpose(1, 2), rank(self.white[i]))
            return (one + other) / 2
        if metric == "procrustes":
            if i == j:
                self.scales[:, i] = covariance.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0).sqrt()
                return self.scales[:, i].square()
            return torch.as_tensor(torch.linalg.svdvals(covariance).sum(1))
        if metric == "linear_cka":
            return covariance.square().sum((1, 2))
        return self._unbias(i, j, covariance)

    def _unbias(self, i: int, j: int, covariance: Float[Tensor, "s p q"]) -> Float[Tensor, " s"]:
        """Return n (n - 3) times the unbiased HSIC of linear kernels, from sums alone.

        With centered features the kernel matrix K has row sums 0, so K without its diagonal has row sums -d, where
        d_i = |x_i|^2. Song et al. (2012), equation 5, then is |X^T Y|^2 - d.e + (1.d)(1.e) / ((n-1)(n-2)) - 2 d.e /
        (n-2).
        """
        n = self.counts
        dots, total_i, total_j = self._centered_norms(i, j, covariance)
        shared = covariance.square().sum((1, 2))
        return shared - dots + total_i * total_j / ((n - 1) * (n - 2)) - 2 * dots / (n - 2)

    def _centered_norms(self, i: int, j: int, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sum d_k e_k, sum d_k and sum e_k, d_k = |x_k - mean|^2, from sums of uncentered features."""
        m, n = self.moments, self.counts
        a, b = m.channels(i), m.channels(j)
        mean_i, mean_j = self.sums[:, a] / n[:, None], self.sums[:, b] / n[:, None]
        len_i, len_j = mean_i.square().sum(1), mean_j.square().sum(1)
        norms = torch.einsum("sb,b->s", self.parts, m.norms[:, i, j])
        x_by_j = (torch.einsum("sb,bc->sc", self.parts, m.weighted[:, a, j]) * mean_i).sum(1)
        y_by_i = (torch.einsum("sb,bc->sc", self.parts, m.weighted[:, b, i]) * mean_j).sum(1)
        cross = torch.einsum("sp,spq,sq->s", mean_i, covariance, mean_j) + n * len_i * len_j
        raw_i, raw_j = self.squares[:, i], self.squares[:, j]
        # d_k = |x_k|^2 - 2 x_k.mu + |mu|^2, likewise e_k; multiplied out and summed over k
        dots = norms - 2 * y_by_i + len_j * raw_i - 2 * x_by_j + 4 * cross - 2 * len_j * n * len_i
        dots = dots + len_i * raw_j - 2 * len_i * n * len_j + n * len_i * len_j
        return dots, raw_i - n * len_i, raw_j - n * len_j

    def _reach(self, group: range, first: int) -> int:
        """Return the layer after the last one whose products with a group fit into the working memory."""
        starts = self.moments.starts
        rows = starts[group.stop] - starts[group.start]
        per_channel = rows * 8 * max(len(self.parts), len(self.moments.counts))
        last = first + 1
        while last < len(self.moments.names) and (starts[last + 1] - starts[first]) * per_channel <= _WORKING_BYTES:
            last += 1
        return last

    def _covariances(self, group: range, others: range) -> list[tuple[Float[Tensor, "s p q"], ...]]:
        """Return the centered sums of products of each layer of a group with each of others, row by row."""
        starts = self.moments.starts
        rows, columns = (slice(starts[layers.start], starts[layers.stop]) for layers in (group, others))
        raw = self.moments.products.between(rows, columns, self.parts)
        mean = self.sums[:, rows] / self.counts[:, None]
        raw = raw - mean[:, :, None] * self.sums[:, None, columns]
        heights, widths = ([starts[k + 1] - starts[k] for k in layers] for layers in (group, others))
        return [torch.split(row, widths, dim=2) for row in torch.split(raw, heights, dim=1)]


def _nothing_if_constant(covariance: Float[Tensor, "s p p"], squares: Float[Tensor, " s"]) -> Float[Tensor, "s p p"]:
    """Return zeros for a layer whose variance is only what rounding left of its squares."""
    variance = covariance.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where((variance > 1e-12 * squares)[:, None, None], covariance, 0.0)


def _alignment(hsic: Float[Tensor, "s l l"]) -> Float[np.ndarray, "s l l"]:
    own = hsic.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    below = own[:, :, None] * own[:, None, :]
    return torch.where(below > 0, hsic / below.clamp_min(1e-300), 0.0).numpy()


def consensus(matrices: Sequence[Float[np.ndarray, "l l"]]) -> Float[np.ndarray, "l l"]:
    """Return what several metrics agree on: the mean of their rank-normalized similarities, from 0 to 1.

    In each matrix the pairs of different layers are replaced by their rank, 0 for the least alike and 1 for the most
    alike, ties sharing the mean rank, so that no metric outweighs another by its scale. The diagonal is 1.

    Example:
        >>> a = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
        >>> consensus([a, a**3]).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]
    """
    size = len(matrices[0])
    where = np.triu_indices(size, 1)
    out = np.eye(size)
    if size > 1:
        ranks = np.mean([_ranks(matrix[where]) for matrix in matrices], axis=0)
        out[where] = ranks
        out.T[where] = ranks
    return out


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts + 1) / 2
    return np.asarray(middle[inverse] / max(len(values) - 1, 1))
