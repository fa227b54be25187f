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

_VARIANCE = 0.95  # of a class, that the directions hold whose entropy counts
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
      directions of a class, as many as hold 95 % of it on average over the classes, divided by log 5;
    - efficiency: 2 (n / pi)^(1 / r) times the distance from a class to the nearest image of another one, divided by the
      norm of a feature; r is the number of directions of all features that vary at all.

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
        https://github.com/Thegolfingocto/KD_wo_CE, with its log 5 for any number of classes; it looks at whole feature
        maps of all training images, here they are averaged over the image, as for all other choices.

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
    within, between = [], np.zeros((len(counts), len(counts)))
    least, nearest = [], []
    for k, (count, end) in enumerate(zip(counts, ends, strict=True)):
        compared = _compared(x, int(end - count), int(end), ends - counts)
        between[k] = compared.alike / counts / count
        nearest.append(compared.nearest)
        if count > 1:
            within.append(compared.alike_within / (count * (count - 1)))
            least.append(compared.least_within)
    apart = between[~np.eye(len(counts), dtype=bool)].mean()
    norms = x.double().norm(dim=1).numpy()
    size = float(np.mean(np.add.reduceat(norms, ends - counts) / counts))
    density = (len(x) / math.pi) ** (1 / max(_rank(x), 1))
    return Quality(
        separation=float(np.mean(within) - apart),
        information=(1 - float(np.mean(least))) * _entropy(x, ends - counts, ends) / math.log(5),
        efficiency=2 * density * float(np.mean(nearest)) / size if size > 0 else 0.0,
    )


@dataclass
class _Compared:
    """One class with all images: sums of |cos| with each class, the same and the least of pairs within, the nearest."""

    alike: np.ndarray
    alike_within: float = 0.0
    least_within: float = 1.0
    nearest: float = math.inf


def _compared(x: Tensor, begin: int, end: int, starts: np.ndarray) -> _Compared:
    squares = x.square().sum(1)
    norms = squares.sqrt().clamp_min(1e-30)
    found = _Compared(np.zeros(len(starts)))
    for first, last in _cut(begin, end):
        products = x[first:last] @ x.T
        alike = (products / norms[first:last, None] / norms).abs_()
        found.alike += np.add.reduceat(alike.numpy(), starts, axis=1).sum(axis=0, dtype=float)
        others = ~torch.eye(end - begin, dtype=torch.bool)[first - begin : last - begin]
        inside = alike[:, begin:end][others]
        if inside.numel():
            found.alike_within += float(inside.sum(dtype=torch.float64))
            found.least_within = min(found.least_within, float(inside.min()))
        apart = squares[first:last, None] + squares - 2 * products
        apart[:, begin:end] = math.inf
        i, j = divmod(int(apart.argmin()), len(x))
        # of the nearest pair the distance itself: the difference of large products is inexact
        found.nearest = min(found.nearest, float((x[first + i].double() - x[j].double()).norm()))
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
    """Return the mean entropy over classes of the variances along as many directions as hold enough on average."""
    parts = []
    for begin, end in zip(starts, ends, strict=True):
        if end - begin > 1:
            own = x[begin:end].double()
            values = torch.linalg.svdvals(own - own.mean(0)).square().numpy()
            total = values.sum()
            parts.append(values / total if total > 0 else np.eye(1, len(values))[0])
    held = [int(np.searchsorted(np.cumsum(values), _VARIANCE * (1 - 1e-12))) + 1 for values in parts]
    directions = max(1, int(np.mean(np.minimum(held, [len(values) for values in parts]))))
    entropies = []
    for values in parts:
        kept = values[:directions] / values[:directions].sum()
        kept = kept[kept > 0]
        entropies.append(-float((kept * np.log(kept)).sum()))
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
