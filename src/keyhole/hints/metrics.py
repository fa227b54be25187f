"""How alike two layers are, from their features over the same inputs: one plain function a metric.

Every function takes an (n, p) and an (n, q) matrix, one row an input, computes in float64, and gives 1 for layers
that carry the same thing and about 0 for unrelated ones. None changes when a layer is shifted or rescaled, and none but
``pwcca`` when it is rotated; R2-CCA does not change under any invertible linear map either.

A layer that is constant over the inputs says nothing: its similarity to every layer, itself included, is 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from keyhole.errors import DivergenceError, ShapeError

# Eigenvalues of a covariance below this fraction of the largest one are rounding, not signal.
RANK_TOLERANCE = 1e-10


def r2_cca(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
    """Return the mean squared canonical correlation of two layers, from 0 to 1.

    The squared correlations are summed and divided by min(p, q); directions without variance (eigenvalues of the
    covariance under 1e-10 of the largest) count as zero correlation, so a layer with dead channels is like itself by
    rank / p only. With fewer inputs than channels the value is biased towards 1.

    Args:
        x: Features of one layer, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 2.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, equation 6 (R2-CCA).

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(r2_cca(x, x @ torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]])), 9)
        1.0
    """
    x, y = _centered(x, y)
    correlation = whitening(x.T @ x).T @ (x.T @ y) @ whitening(y.T @ y)
    return float(correlation.square().sum() / min(x.shape[1], y.shape[1]))


def svcca(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, variance: float = 0.99) -> float:
    """Return the mean canonical correlation of two layers reduced to their strongest directions, from 0 to 1.

    Of each layer the fewest principal directions are kept that carry ``variance`` of it; the canonical correlations
    between what is left are summed and divided by the smaller number of directions kept. Unlike :func:`r2_cca` it does
    not rise with directions that carry next to nothing.

    Args:
        x: Features of one layer, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.
        variance: The part of each layer's variance that is kept, above 0 and at most 1.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 2.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Raghu et al. (2017), https://arxiv.org/abs/1706.05806, section 2.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(svcca(x, 2 * x + 1), 9)
        1.0
    """
    x, y = _centered(x, y)
    white_x, white_y = (strongest(whitening(z.T @ z), z.T @ z, variance) for z in (x, y))
    kept = torch.minimum(rank(white_x), rank(white_y)).clamp_min(1)
    return float(torch.linalg.svdvals(white_x.T @ (x.T @ y) @ white_y).sum() / kept)


def pwcca(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
    """Return the canonical correlations of two layers, weighted by how much of the first layer each stands for.

    From 0 to 1. It is not symmetric: directions count by their share in the channels of ``x``, which a rotation of
    ``x`` changes; swap the two for the share in ``y``.

    Args:
        x: Features of the layer that gives the weights, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 2.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Morcos, Raghu, Bengio (2018), https://arxiv.org/abs/1806.05759, equations 2 and 3.

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(pwcca(x, 2 * x + 1), 9)
        1.0
    """
    x, y = _centered(x, y)
    white_x, white_y = whitening(x.T @ x), whitening(y.T @ y)
    return float(projection_weighted(x.T @ x, white_x, white_x.T @ (x.T @ y) @ white_y, rank(white_y)))


def projection_weighted(
    own: Float[Tensor, "*s p p"],
    white: Float[Tensor, "*s p p"],
    correlation: Float[Tensor, "*s p q"],
    other_rank: Int64[Tensor, "*s"],
) -> Float[Tensor, "*s"]:
    """Return the mean of the canonical correlations, weighted by the first layer's projections on their directions.

    Args:
        own: Covariance of the first layer (not divided by the number of inputs).
        white: Its :func:`whitening`.
        correlation: Covariance of both layers, whitened from both sides.
        other_rank: How many directions of the other layer carry variance.
    """
    left, values, _ = torch.linalg.svd(correlation, full_matrices=False)
    projections = (left.transpose(-1, -2) @ (white.transpose(-1, -2) @ own)).abs().sum(-1)
    there = torch.arange(values.shape[-1]) < torch.minimum(rank(white), other_rank).unsqueeze(-1)
    projections = torch.where(there, projections, 0.0)
    total = projections.sum(-1)
    return torch.where(total > 0, (projections * values).sum(-1) / total.clamp_min(1e-300), 0.0)


def rank(white: Float[Tensor, "*s p p"]) -> Int64[Tensor, "*s"]:
    """Return how many directions a :func:`whitening` keeps."""
    return (white.abs().sum(-2) > 0).sum(-1)


def strongest(
    white: Float[Tensor, "*s p p"], covariance: Float[Tensor, "*s p p"], variance: float
) -> Float[Tensor, "*s p p"]:
    """Return a :func:`whitening` with zero columns but for the fewest directions that carry a part of the variance."""
    spread = (white.transpose(-1, -2) @ covariance).square().sum(-1)  # of each direction, by W^T C = diag(sqrt(v)) V^T
    largest_first = spread.flip(-1)
    before = largest_first.cumsum(-1) - largest_first
    kept = (before < variance * spread.sum(-1, keepdim=True) * (1 - 1e-12)).flip(-1) & (spread > 0)
    return white * kept.unsqueeze(-2)


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
    """Return the centered kernel alignment of two layers with linear kernels, from 0 to 1.

    Memory is O(p q); no n x n matrix is formed.

    Args:
        x: Features of one layer, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 2.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, equation 4 with the feature form of section 3.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
        >>> round(linear_cka(x, 5 * x + 2), 9)
        1.0
    """
    x, y = _centered(x, y)
    shared = (x.T @ y).square().sum()
    return ratio(shared, (x.T @ x).norm() * (y.T @ y).norm())


def debiased_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
    """Return linear CKA with the unbiased estimator of HSIC: about 0, also below, for unrelated layers; 1 at most.

    Unlike :func:`linear_cka` it does not rise when there are few inputs and many channels.

    Args:
        x: Features of one layer, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 4.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Song et al. (2012), https://jmlr.org/papers/v13/song12a.html, equation 5, in the CKA of Kornblith et al. (2019).

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(debiased_cka(x, -x), 9)
        1.0
    """
    x, y = _centered(x, y, least=4)
    return _unbiased_alignment(x @ x.T, y @ y.T)


def rbf_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, minibatch: int = 250, bandwidth: float = 1.0) -> float:
    """Return CKA with Gaussian kernels, by the unbiased estimator over minibatches: about 0 to 1.

    The kernel is exp(-d^2 / (2 s^2)); s is ``bandwidth`` times the median distance between two inputs of the first
    minibatch, for each layer by itself, and stays the same for all minibatches. HSIC is averaged over the
    minibatches, weighted by their size, before the ratio is taken.

    Args:
        x: Features of one layer, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.
        minibatch: Inputs at a time; a last one with fewer than 4 is left out.
        bandwidth: Factor of the median distance.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 4.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, section 3 (kernel and median rule); Nguyen et al.
        (2021), https://arxiv.org/abs/2010.15327, equations 3 and 4 (minibatches).

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(rbf_cka(x, 2 * x + 1), 9)
        1.0
    """
    x, y = _centered(x, y, least=4)
    widths = [bandwidth * median_distance(value[:minibatch]) for value in (x, y)]
    sums = x.new_zeros(3)
    for first in range(0, len(x), minibatch):
        a, b = x[first : first + minibatch], y[first : first + minibatch]
        if len(a) >= 4:
            k, m = gaussian_kernel(a, widths[0]), gaussian_kernel(b, widths[1])
            sums += len(a) * torch.stack([unbiased_hsic(k, m), unbiased_hsic(k, k), unbiased_hsic(m, m)])
    return ratio(sums[0], _root(sums[1]) * _root(sums[2]))


def procrustes(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
    """Return how alike two layers are after the best rotation, from 0 to 1.

    Both are centered and scaled to unit Frobenius norm; the value is the nuclear norm of their product, 1 - d^2 / 2
    for the orthogonal Procrustes distance d. The layer with fewer channels is padded with zeros.

    Args:
        x: Features of one layer, one row per input.
        y: Features of the other layer; row i belongs to the same input as in ``x``.

    Raises:
        ShapeError: The numbers of rows differ, or there are fewer than 2.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Ding, Denain, Steinhardt (2021), https://arxiv.org/abs/2108.01661, section 2; Schonemann (1966), Psychometrika
        31.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
        >>> round(procrustes(x, x.flip(1) * 7), 9)
        1.0
    """
    x, y = _centered(x, y)
    return ratio(torch.linalg.svdvals(x.T @ y).sum(), x.norm() * y.norm())


def _centered(x: Tensor, y: Tensor, *, least: int = 2) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < least:
        raise ShapeError(
            f"Layers are compared over the same inputs: x has the shape {tuple(x.shape)} and y {tuple(y.shape)}, "
            f"expected (n, p) and (n, q) with n >= {least}. Tap both layers in one forward pass."
        )
    for value in (x, y):
        if not bool(torch.isfinite(value).all()):
            raise DivergenceError("A feature is NaN or infinite; check the weights and the images.")
    x, y = x.double(), y.double()
    return _zero_if_constant(x - x.mean(0), x), _zero_if_constant(y - y.mean(0), y)


def _zero_if_constant(centered: Tensor, raw: Tensor) -> Tensor:
    # what centering leaves of a constant column is rounding, and any ratio of it would be noise
    return centered if centered.norm() > 1e-12 * raw.norm() else torch.zeros_like(centered)


def whitening(covariance: Float[Tensor, "*s p p"]) -> Float[Tensor, "*s p p"]:
    """Return W with W^T C W = I on the directions that carry variance, and zero columns for the others."""
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[..., -1:]
    kept = (values > RANK_TOLERANCE * largest) & (largest > 0)
    scale = torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    return torch.as_tensor(vectors * scale.unsqueeze(-2))


def median_distance(x: Float[Tensor, "n p"]) -> float:
    """Return the median Euclidean distance between two different rows; the mean where more than half of them are 0."""
    distances = torch.pdist(x.double())
    return float(distances.median()) or float(distances.mean())


def gaussian_kernel(x: Float[Tensor, "n p"], width: float) -> Float[Tensor, "n n"]:
    """Return exp(-d^2 / (2 width^2)) between all rows; zeros for a constant layer, whose width is 0.

    A constant layer's kernel is a constant, which centering takes to zeros; given as such it leaves no rounding behind.
    """
    if width == 0:
        return x.new_zeros(len(x), len(x))
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * x @ x.T).clamp_min_(0)
    return torch.exp_(distances.div_(-2 * width**2))


def unbiased_hsic(k: Float[Tensor, "n n"], m: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Return the unbiased estimate of HSIC from two kernel matrices over at least 4 inputs.

    Reference:
        Song et al. (2012), https://jmlr.org/papers/v13/song12a.html, equation 5.
    """
    n = len(k)
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    rows_k, rows_m = k.sum(1), m.sum(1)
    trace = (k * m).sum()
    mean = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
    return (trace + mean - 2 / (n - 2) * (rows_k @ rows_m)) / (n * (n - 3))


def _unbiased_alignment(k: Tensor, m: Tensor) -> float:
    return ratio(unbiased_hsic(k, m), _root(unbiased_hsic(k, k)) * _root(unbiased_hsic(m, m)))


def _root(value: Tensor) -> Tensor:
    return value.clamp_min(0).sqrt()


def ratio(above: Tensor, below: Tensor) -> float:
    """Return a quotient, or 0 where a constant layer makes it 0 / 0."""
    return float(above / below) if float(below) > 0 else 0.0
