"""What one forward pass leaves behind: enough to compute every similarity of all layers, for any part of the images.

The images are cut into 20 fixed blocks. For each block the pass leaves sums of products between all channels
(or the pooled features that give them, whichever is smaller), and a few sums that the unbiased estimators need. Sums of
blocks are sums of images, so the similarity over any selection of blocks needs no other pass.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.data.splits import Split
from keyhole.errors import DataError, DivergenceError, SettingError
from keyhole.hints.metrics import gaussian_kernel, median_distance
from keyhole.models.frozen import freeze
from keyhole.models.network import Network
from keyhole.progress import Progress, silent
from keyhole.runtime import PRECISIONS, check_precision, choose_precision

BLOCKS = 20
LABELS = "(labels)"  # no module path can be called so


class Products(Protocol):
    """Sums over each block of the products between the channels of two layers."""

    def between(self, rows: slice, columns: slice, parts: Float[Tensor, "s b"]) -> Float[Tensor, "s p q"]:
        """Return the sums between two ranges of channels over the blocks of each part, in float64."""
        ...


@dataclass
class Moments:
    """Sums over blocks of images, from which all similarities follow.

    Features were shifted by the mean of the first minibatch, which no similarity notices and which keeps the sums
    exact.

    Attributes:
        names: The layers.
        starts: First channel of each layer in the row of all channels, and their total at the end.
        counts: Images in each block.
        products: Sums of products between channels.
        sums: Sum of each channel, by block.
        squares: Sum over images of |x_i|^2 for each layer, by block.
        norms: Sum over images of |x_i|^2 |x_j|^2 for each pair of layers, by block.
        weighted: Sum over images of each channel times |x_j|^2, by block.
        rbf: Sum over minibatches of their size times the unbiased HSIC of Gaussian kernels, by block; None when not
            asked for.
        shift: What was taken off each channel.
        seconds: Time in the tapped forward pass, and in the sums.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    counts: Float[Tensor, " b"]
    products: Products
    sums: Float[Tensor, "b c"]
    squares: Float[Tensor, "b l"]
    norms: Float[Tensor, "b l l"]
    weighted: Float[Tensor, "b c l"]
    rbf: Float[Tensor, "b l l"] | None
    shift: Float[Tensor, " c"]
    seconds: dict[str, float] = field(default_factory=dict)

    def features(self, layer: int) -> Float[Tensor, "n c"]:
        """Return the pooled features of a layer as the network gave them, one row an image.

        Raises:
            SettingError: The pass did not keep them.
        """
        if not isinstance(self.products, _KeptFeatures):
            raise SettingError("The pass kept sums and no features; observe with features=True.")
        channels = self.channels(layer)
        return self.products.features[:, channels] + self.shift[channels]

    def channels(self, layer: int) -> slice:
        """Return where the channels of a layer stand in the row of all channels."""
        return slice(self.starts[layer], self.starts[layer + 1])


@dataclass(frozen=True)
class _KeptFeatures:
    """Pooled features, in memory or in a file; products are made when they are asked for."""

    features: Float[Tensor, "n c"]
    bounds: tuple[int, ...]

    def add(self, first: int, features: Tensor, _block: int) -> None:
        self.features[first : first + len(features)] = features

    def between(self, rows: slice, columns: slice, parts: Float[Tensor, "s b"]) -> Float[Tensor, "s p q"]:
        blocks = (self.features[first:last] for first, last in pairwise(self.bounds))
        return _over_parts(parts, (block[:, rows].double().T @ block[:, columns].double() for block in blocks))


@dataclass(frozen=True)
class _KeptSums:
    """Sums of products themselves, in memory or in a file."""

    sums: Float[Tensor, "b c c"]

    def add(self, _first: int, features: Tensor, block: int) -> None:
        double = features.double()
        self.sums[block] += double.T @ double

    def between(self, rows: slice, columns: slice, parts: Float[Tensor, "s b"]) -> Float[Tensor, "s p q"]:
        return _over_parts(parts, (block[rows, columns] for block in self.sums))


def _over_parts(parts: Float[Tensor, "s b"], blocks: Iterable[Float[Tensor, "p q"]]) -> Float[Tensor, "s p q"]:
    """Return the sum over the blocks of each part; a single part needs only one block in memory at a time."""
    if len(parts) > 1:
        together = torch.stack(list(blocks))
        return (parts @ together.flatten(1)).reshape(len(parts), *together.shape[1:])
    total: Tensor | None = None
    for weight, block in zip(parts[0].tolist(), blocks, strict=True):
        total = weight * block if total is None else total.add_(block, alpha=weight)
    assert total is not None, "there is at least one block"
    return total[None]


@dataclass(frozen=True)
class ObserveConfig:
    """How to look at the layers.

    Attributes:
        grid: Features are averaged over a grid x grid raster of the image; 1 averages over all of it.
        batch_size: Images at a time (a processor takes them in smaller pieces), and the minibatch of the Gaussian
            kernels, where that is no more than a twentieth of the images.
        memory_mib: What may be kept in memory; more is spilled to a temporary file.
        precision: ``bf16``, ``fp32`` or ``auto`` (the faster one here) for the forward pass; features are fp32 and
            sums fp64 always.
        compile: Use ``torch.compile`` for the network.
        rbf: Also make the sums of the Gaussian kernels.
        bandwidth: Their width, as a factor of the median distance.
    """

    grid: int = 1
    batch_size: int = 250
    memory_mib: int = 1024
    precision: str = "auto"
    compile: bool = False
    rbf: bool = True
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.grid < 1 or self.batch_size < 4 or self.memory_mib < 1 or self.bandwidth <= 0:
            raise SettingError(
                f"grid {self.grid}, batch size {self.batch_size}, memory {self.memory_mib} MiB and "
                f"bandwidth {self.bandwidth}; expected at least 1, 4, 1 and above 0."
            )
        check_precision(self.precision)


@torch.no_grad()
def observe(
    network: Network,
    images: Split,
    names: Sequence[str],
    *,
    config: ObserveConfig | None = None,
    labels: bool = False,
    features: bool = False,
    device: torch.device | None = None,
    progress: Progress = silent,
) -> Moments:
    """Run a network once over images and keep what the similarities of its layers need.

    Args:
        network: The network; it is copied, with batch norm folded.
        images: The images, seen as a test sees them.
        names: The layers, dotted paths.
        config: How to look; the defaults when missing.
        labels: Also keep the classes of the images, as one more layer at the end, called :data:`LABELS`, with a channel
            for each class; similarities to it tell what a layer knows about the task. Without it labels are not used.
        features: Keep the pooled features themselves, also where sums of products would take less room.
        device: Where to run the network.
        progress: Wraps the batches.

    Raises:
        SettingError: Fewer than two images.
        DataError: Labels are asked for and there are none.
        UnknownNameError: A layer does not exist.
        DivergenceError: A feature is NaN or infinite; names the layer.

    Example:
        >>> from keyhole.data.digits import load_digits
        >>> from keyhole.data.sources import default_input
        >>> from keyhole.models.zoo import build
        >>> net = build("resnet8", classes=10, input=default_input("digits"))
        >>> moments = observe(net, load_digits()[0], ["layer1.0", "layer3.0"])
        >>> moments.starts, int(moments.counts.sum())
        ((0, 16, 80), 1297)
    """
    if len(images) < 2:
        raise SettingError(f"Layers are compared over at least 2 images; got {len(images)}.")
    device = device or torch.device("cpu")
    config = config or ObserveConfig()
    if labels and not images.classes:
        raise DataError("What a layer knows about the task needs labeled images (train/CLASS/IMAGE.jpg).")
    classes = len(images.classes)
    teacher = watched(network, names, config, device)
    dtype = PRECISIONS[choose_precision(config.precision, device)]
    bounds = block_bounds(len(images))
    collector: _Collector | None = None
    seconds = {"tapped_forward": 0.0, "sums": 0.0}
    total = sum(1 for _ in _pieces(bounds, config.batch_size))
    stream = _by_piece(images.to(device), bounds, config.batch_size)
    called = (*names, LABELS) if labels else tuple(names)
    for block, first, batch, known in progress(stream, label="look at layers", total=total):
        prepared = network.input.prepare(batch).to(dtype)
        started = time.perf_counter()
        rows = _rows(teacher, prepared, names)
        if labels:
            rows.append(functional.one_hot(known, classes).float().cpu())
        passed = time.perf_counter()
        collector = collector or _Collector.begin(called, rows, bounds, config, features=features)
        collector.add(block, first, rows)
        seconds["tapped_forward"] += passed - started
        seconds["sums"] += time.perf_counter() - passed
    assert collector is not None, "there are at least two images"
    return collector.moments(seconds)


def watched(network: Network, names: Sequence[str], config: ObserveConfig, device: torch.device) -> nn.Module:
    """Return a frozen copy that gives its logits and, in fp32, the averages of named layers over the raster.

    Args:
        network: The network; it is not changed.
        names: The layers, dotted paths.
        config: How to look.
        device: Where it shall run.
    """

    def pool(feature: Tensor) -> Tensor:
        if config.grid == 1:
            return feature.mean((2, 3), dtype=torch.float32)
        return functional.adaptive_avg_pool2d(feature.float(), config.grid).flatten(1)

    precision = choose_precision(config.precision, device)
    return freeze(network, names, device=device, precision=precision, compile=config.compile, reduce=pool)


def _rows(teacher: nn.Module, images: Tensor, names: Sequence[str]) -> list[Tensor]:
    parts = [teacher(piece)[1] for piece in at_a_time(images)]
    return [torch.cat([features[name] for features in parts]).cpu() for name in names]


def at_a_time(images: Float[Tensor, "n c h w"]) -> tuple[Tensor, ...]:
    """Return images in the pieces in which a network alone is fastest: all at once on a GPU, few on a processor.

    There a piece stays near its caches (on one core a ResNet-56 is a sixth faster than with 250 images at once), and
    large images do not fill the memory.
    """
    if images.device.type != "cpu":
        return (images,)
    return torch.split(images, max(16, 65536 // (images.shape[2] * images.shape[3])))


def block_bounds(count: int) -> tuple[int, ...]:
    """Return where the blocks of ``count`` images begin and end: 20 blocks, or fewer so that each holds 4 images."""
    blocks = max(1, min(BLOCKS, count // 4))
    return tuple(round(count * k / blocks) for k in range(blocks + 1))


def _pieces(bounds: Sequence[int], batch_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, first, last): each block in equal parts of at most ``batch_size``, none of them tiny."""
    for block, (first, last) in enumerate(pairwise(bounds)):
        parts = max(1, min(-(-(last - first) // batch_size), (last - first) // 4))
        edges = [first + round((last - first) * k / parts) for k in range(parts + 1)]
        for begin, end in pairwise(edges):
            yield block, begin, end


def _by_piece(images: Split, bounds: Sequence[int], batch_size: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield block, first image, images and labels of each piece."""
    waiting: list[tuple[Tensor, Tensor]] = []
    stream = images.batches(batch_size)
    for block, first, last in _pieces(bounds, batch_size):
        size = last - first
        while sum(len(labels) for _, labels in waiting) < size:
            batch = next(stream)
            waiting.append((batch.images, batch.labels))
        pixels, labels = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*waiting, strict=True))
        waiting = [(pixels[size:], labels[size:])] if len(labels) > size else []
        yield block, first, pixels[:size], labels[:size]


@dataclass
class _Collector:
    names: tuple[str, ...]
    starts: tuple[int, ...]
    bounds: tuple[int, ...]
    config: ObserveConfig
    shift: Tensor
    widths: list[float]
    products: _KeptFeatures | _KeptSums
    sums: Tensor
    squares: Tensor
    norms: Tensor
    weighted: Tensor
    rbf: Tensor | None

    @classmethod
    def begin(
        cls,
        names: Sequence[str],
        rows: Sequence[Tensor],
        bounds: tuple[int, ...],
        config: ObserveConfig,
        *,
        features: bool,
    ) -> _Collector:
        starts = tuple(int(x) for x in np.cumsum([0, *(row.shape[1] for row in rows)]))
        blocks, channels, layers = len(bounds) - 1, starts[-1], len(rows)
        widths = [config.bandwidth * median_distance(row) for row in rows] if config.rbf else []
        return cls(
            names=tuple(names),
            starts=starts,
            bounds=bounds,
            config=config,
            shift=torch.cat([row.double().mean(0) for row in rows]).float(),
            widths=widths,
            products=_room(bounds, channels, config.memory_mib << 20, features=features),
            sums=torch.zeros(blocks, channels, dtype=torch.float64),
            squares=torch.zeros(blocks, layers, dtype=torch.float64),
            norms=torch.zeros(blocks, layers, layers, dtype=torch.float64),
            weighted=torch.zeros(blocks, channels, layers, dtype=torch.float64),
            rbf=torch.zeros(blocks, layers, layers, dtype=torch.float64) if config.rbf else None,
        )

    def add(self, block: int, first: int, rows: Sequence[Tensor]) -> None:
        features = torch.cat(list(rows), dim=1)
        if not bool(torch.isfinite(features.sum())):
            broken = next(
                name for name, row in zip(self.names, rows, strict=True) if not bool(torch.isfinite(row).all())
            )
            raise DivergenceError(
                f"Layer {broken} gave NaN or infinity in the batch from image {first} on; check the weights."
            )
        features = features - self.shift
        self.products.add(first, features, block)
        double = features.double()
        parts = [double[:, a:b] for a, b in pairwise(self.starts)]
        squares = torch.stack([part.square().sum(1) for part in parts], dim=1)
        self.sums[block] += double.sum(0)
        self.squares[block] += squares.sum(0)
        self.norms[block] += squares.T @ squares
        self.weighted[block] += double.T @ squares
        if self.rbf is not None and len(features) >= 4:
            self.rbf[block] += len(features) * _pairwise_hsic(
                [features[:, a:b] for a, b in pairwise(self.starts)], self.widths
            )

    def moments(self, seconds: dict[str, float]) -> Moments:
        counts = torch.tensor(np.diff(self.bounds), dtype=torch.float64)
        return Moments(
            names=self.names,
            starts=self.starts,
            counts=counts,
            products=self.products,
            sums=self.sums,
            squares=self.squares,
            norms=self.norms,
            weighted=self.weighted,
            rbf=self.rbf,
            shift=self.shift,
            seconds=seconds,
        )


def _pairwise_hsic(rows: Sequence[Tensor], widths: Sequence[float]) -> Float[Tensor, "l l"]:
    """Return the unbiased HSIC between all layers of one minibatch: Song et al. (2012), equation 5, for all pairs."""
    n = len(rows[0])
    kernels = torch.stack([gaussian_kernel(row, width) for row, width in zip(rows, widths, strict=True)])
    kernels.diagonal(dim1=1, dim2=2).zero_()
    flat = kernels.flatten(1).double()
    totals = flat.reshape(-1, n, n).sum(2)
    sums = totals.sum(1)
    mean = torch.outer(sums, sums) / ((n - 1) * (n - 2))
    return (flat @ flat.T + mean - 2 / (n - 2) * (totals @ totals.T)) / (n * (n - 3))


def _room(bounds: tuple[int, ...], channels: int, memory: int, *, features: bool) -> _KeptFeatures | _KeptSums:
    images, blocks = bounds[-1], len(bounds) - 1
    if features or images * channels * 4 <= blocks * channels**2 * 8:
        return _KeptFeatures(_zeros((images, channels), torch.float32, memory), bounds)
    return _KeptSums(_zeros((blocks, channels, channels), torch.float64, memory))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, memory: int) -> Tensor:
    numpy_type = np.float32 if dtype == torch.float32 else np.float64
    size = int(np.prod(shape)) * np.dtype(numpy_type).itemsize
    if size <= memory:
        return torch.zeros(shape, dtype=dtype)
    try:
        # the file has no name and goes with the last reference to the array
        with tempfile.TemporaryFile(prefix="keyhole-", dir=tempfile.gettempdir()) as file:
            if hasattr(os, "posix_fallocate"):  # where there is one, a full disk is an error here, not a crash later
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, numpy_type, mode="w+", shape=shape))
    except OSError as error:
        raise SettingError(
            f"Cannot spill {size >> 20} MiB to {Path(tempfile.gettempdir())}: {error.strerror}. "
            "Free space there, or raise --memory, or take fewer --samples."
        ) from error
