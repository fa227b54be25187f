"""How good a layer is to learn from, judged by the labels: how it separates classes, and how much else it tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from keyhole.errors import SettingError, ShapeError
from keyhole.hints.moments import LABELS, Moments
from keyhole.progress import Progress, silent

_LEAST_VARIANCE = 1e-12  # of the strongest direction; below it is rounding
_ROWS = 1000  # of images that are compared with all others at once


@dataclass(frozen=True)
class Quality:
    """The three parts of a layer's quality.

    Attributes:
        separation: How much more alike images of one class are than images of two, -1 to 1.
        information: How much images of one class differ, in how many directions; at least 0.
        efficiency: How far the nearest images of other classes are, for the size and number of the features; at least
            0.
    """

    separation: float
    information: float
    efficiency: float

    @property
    def total(self) -> float:
        """The quality: separation, and the geometric mean of the other two."""
        return self.separation + math.sqrt(self.information * self.efficiency)


def feature_quality(x: Float[Tensor, "n p"], labels: Int64[Tensor, " n"]) -> Quality:
    """Return how good a layer is to learn from.

    With |cos| between two images, unlike 0 and alike 1, and each mean first taken within a class (or a pair of classes)
    and then over them:

    - separation: the mean |cos| within classes less that between classes;
    - information: (1 - the least |cos| within a class) times the entropy of the variances along the principal
      directions of a class, divided by log 5;
    - efficiency: 2 (n / pi)^(1 / r) times the distance from a class to the nearest image of another one, divided by the
      norm of a feature; r is the number of principal directions of all features, not centered, in which they are more
      than rounding: their sum of squares there is above 1e-12 of that in the strongest.

    A feature of zeros is like nothing, a class of equal features has entropy 0, and classes of one image count in
    separation between classes and in efficiency alone. The cost is that of comparing all pairs of images.

    Args:
        x: Features of the layer, averaged over the image.
        labels: Class of each image.

    Raises:
        ShapeError: The numbers of rows differ.
        SettingError: There are no two classes, or none of two images.

    Reference:
        Cooper et al. (2025), https://arxiv.org/abs/2511.14981. The formulas are those of the authors' code,
        https://github.com/Thegolfingocto/KD_wo_CE, with its log 5 for any number of classes. It cuts the directions at
        as many as hold 95 % of the variance, summed over the classes, which are more than there are: nothing is cut
        here. It looks at whole feature maps, with n the size of the data set and r the number of all directions, as it
        replaces zeros by 1e-127 before it counts what is not 0; here maps are averaged over the image, as for all other
        choices, n counts the images looked at, and r leaves out what is rounding.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> right, wrong = (feature_quality(x, torch.tensor(y)) for y in ([0, 0, 1, 1], [0, 1, 0, 1]))
        >>> right.separation > 0 > wrong.separation
        True
    """
    if len(x) != len(labels):
        raise ShapeError(f"There are {len(x)} features and {len(labels)} labels; expected as many.")
    order = torch.argsort(labels, stable=True)
    x, counts = x.float()[order], torch.unique(labels, return_counts=True)[1].numpy()
    if len(counts) < 2 or counts.max() < 2:
        raise SettingError(
            f"Quality compares images of one class and of several; got {len(x)} images of {len(counts)} classes. "
            "Raise --samples, or choose otherwise."
        )
    ends = np.cumsum(counts)
    starts = ends - counts
    units = x / x.norm(dim=1, keepdim=True).clamp_min(1e-30)
    alike = _alike(units, starts) / counts / counts[:, None]
    apart = alike[~np.eye(len(counts), dtype=bool)].mean()
    within = [_within(units[begin:end]) for begin, end in zip(starts, ends, strict=True) if end - begin > 1]
    mean, least = np.mean(within, axis=0)
    nearest = np.mean([_nearest(x, int(begin), int(end)) for begin, end in zip(starts, ends, strict=True)])
    norms = x.double().norm(dim=1).numpy()
    size = float(np.mean(np.add.reduceat(norms, starts) / counts))
    density = (len(x) / math.pi) ** (1 / max(_rank(x), 1))
    return Quality(
        separation=float(mean - apart),
        information=float(1 - least) * _entropy(x, starts, ends) / math.log(5),
        efficiency=2 * density * float(nearest) / size if size > 0 else 0.0,
    )


def _alike(units: Tensor, starts: np.ndarray) -> Float[np.ndarray, "k k"]:
    """Return the sum of |cos| over the pairs of images of each two classes."""
    if float(units.min()) >= 0:  # after a rectifier: no cosine is negative, and sums of vectors tell the sums
        sums = np.add.reduceat(units.double().numpy(), starts, axis=0)
        return np.asarray(sums @ sums.T)
    rows = [
        np.add.reduceat((units[first:last] @ units.T).abs_().numpy(), starts, axis=1)
        for first, last in _cut(0, len(units))
    ]
    return np.asarray(np.add.reduceat(np.concatenate(rows).astype(float), starts, axis=0))


def _within(units: Tensor) -> tuple[float, float]:
    """Return the mean and the least |cos| over the pairs of images of one class."""
    count, total, least = len(units), 0.0, 1.0
    for first, last in _cut(0, count):
        alike = (units[first:last] @ units.T).abs_()
        alike[range(last - first), range(first, last)] = math.inf  # an image and itself are no pair
        least = min(least, float(alike.min()))
        total += float(alike.masked_fill_(alike.isinf(), 0).sum(dtype=torch.float64))
    return total / (count * (count - 1)), least


def _nearest(x: Tensor, begin: int, end: int) -> float:
    """Return the distance from a class, the images begin to end - 1, to the nearest image of another one."""
    squares = x.square().sum(1)
    found = math.inf
    for first, last in _cut(begin, end):
        apart = torch.addmm(squares, x[first:last], x.T, alpha=-2)  # squared, less what is the same in a row
        apart[:, begin:end] = math.inf
        values, columns = apart.min(dim=1)
        row = int((values + squares[first:last]).argmin())
        # of the nearest pair the distance itself: the difference of large products is inexact
        found = min(found, float((x[first + row].double() - x[columns[row]].double()).norm()))
    return found


def _cut(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(begin, end, _ROWS):
        yield first, min(first + _ROWS, end)


def _rank(x: Tensor) -> int:
    values = torch.linalg.svdvals(x.double()).square() if len(x) < x.shape[1] else _eigenvalues(x.double())
    return int((values > _LEAST_VARIANCE * values.max()).sum()) if float(values.max()) > 0 else 0


def _eigenvalues(x: Tensor) -> Tensor:
    return torch.as_tensor(torch.linalg.eigvalsh(x.T @ x)).clamp_min(0)


def _entropy(x: Tensor, starts: np.ndarray, ends: np.ndarray) -> float:
    """Return the mean entropy over classes of the variances along all principal directions."""
    entropies = []
    for begin, end in zip(starts, ends, strict=True):
        if end - begin > 1:
            own = x[begin:end].double()
            values = torch.linalg.svdvals(own - own.mean(0)).square().numpy()
            shares = values[values > 0] / max(values.sum(), np.finfo(float).tiny)
            entropies.append(-float((shares * np.log(shares)).sum()))
    return float(np.mean(entropies))


def layer_quality(moments: Moments, *, progress: Progress = silent) -> list[Quality]:
    """Return the quality of each layer (see :func:`feature_quality`), the labels not among them.

    Args:
        moments: Of a pass that kept the labels and the features.
        progress: Wraps the layers.

    Raises:
        SettingError: The pass did not keep them, or there are too few images or classes.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.hints.moments import observe
        >>> from keyhole.models.zoo import build
        >>> net, train = build("resnet8", classes=10, input=default_input("digits")), open_data("digits").train
        >>> moments = observe(net, train.subset(range(100)), ["layer1.0", "layer3.0"], labels=True, features=True)
        >>> len(layer_quality(moments))
        2
    """
    if moments.names[-1] != LABELS:
        raise SettingError("The pass kept no labels; observe with labels=True.")
    last = len(moments.names) - 1
    labels = moments.features(last).argmax(1)
    steps = progress(range(last), label="quality", total=last)
    return [feature_quality(moments.features(layer), labels) for layer in steps]
