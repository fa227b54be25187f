"""One part of a data set (training, held out, test) as batches, in memory or streamed.

Everything random is drawn from the seed, the epoch and the position, never from global state, so a resumed
epoch sees the very images of an uninterrupted one, and teacher and students see the same view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from keyhole.errors import SettingError, ShapeError


@dataclass(frozen=True)
class Batch:
    """Some images.

    Attributes:
        images: In [0, 1].
        labels: Class of each image; -1 where it is not known.
        indices: Position of each image in the official order of its data set.
        shown: Makes what a teacher is shown of some of them (True in a mask), where that is another image than the
            students', such as the sharp one; it is called for those alone that the teacher is asked about.
        views: Number of each image, where the very same image comes again in other epochs, so that what a teacher says
            of it may be kept.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]
    shown: Callable[[Bool[Tensor, " n"]], Float[Tensor, "m c h2 w2"]] | None = None
    views: Int64[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Share:
    """Which part of every training batch one of several processes takes; a batch is that of all of them together.

    Attributes:
        number: Of the process.
        count: How many processes there are.
    """

    number: int = 0
    count: int = 1

    def steps(self, images: int, batch_size: int) -> int:
        """Return the steps of an epoch, in which every process sees ``batch_size`` images that no other one sees.

        Raises:
            SettingError: There are not enough images for one step.

        Example:
            >>> Share(1, 2).steps(images=10, batch_size=2)
            2
            >>> Share(1, 2).of_step(1, batch_size=2)
            slice(6, 8, None)
        """
        if images < batch_size * self.count:
            each = f" in each of {self.count} processes" if self.count > 1 else ""
            raise SettingError(f"Batch size {batch_size}{each} is above the {images} training images; lower it.")
        return images // (batch_size * self.count)

    def of_step(self, step: int, batch_size: int) -> slice:
        """Return where the images of this process stand in the order of the epoch."""
        first = (step * self.count + self.number) * batch_size
        return slice(first, first + batch_size)


WHOLE = Share()


class Split(Protocol):
    """Images in an order of their own, some with labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where there are no labels."""
        ...

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Class of each image; -1 where it is not known."""
        ...

    @property
    def indices(self) -> Int64[Tensor, " n"]:
        """Position of each image in the official order of the data set."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def subset(self, positions: Sequence[int] | Int64[Tensor, " m"]) -> Split:
        """Return the images at these positions of this split, in that order."""
        ...

    def to(self, device: torch.device) -> Split:
        """Return the same images with batches on that device."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images in order, as a test sees them: no augmentation."""
        ...

    def training_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, augment: bool = True, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Yield one epoch, shuffled and augmented, from step ``start``; the last incomplete batch is left out."""
        ...


@dataclass(frozen=True)
class MemorySplit:
    """A split held in memory as bytes: for CIFAR-size data the fastest way on any device.

    Attributes:
        pixels: The images, 0 to 255, color last.
        labels: Class of each image.
        indices: Position of each image in the official order.
        classes: Names of the classes.
        pad_px: Augmentation: zeros added on each side before a crop of the old size.
        flip: Augmentation: mirror half of the images.
    """

    pixels: UInt8[Tensor, "n h w c"]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    pad_px: int = 4
    flip: bool = True

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def subset(self, positions: Sequence[int] | Int64[Tensor, " m"]) -> MemorySplit:
        """Return the images at these positions of this split, in that order."""
        where = torch.as_tensor(positions, dtype=torch.int64, device=self.pixels.device)
        return replace(self, pixels=self.pixels[where], labels=self.labels[where], indices=self.indices[where])

    def to(self, device: torch.device) -> MemorySplit:
        """Return the same images on that device."""
        if self.pixels.device == device:
            return self
        return replace(
            self, pixels=self.pixels.to(device), labels=self.labels.to(device), indices=self.indices.to(device)
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images in order, as a test sees them: no augmentation."""
        for first in range(0, len(self), batch_size):
            where = slice(first, first + batch_size)
            yield Batch(to_unit(self.pixels[where]), self.labels[where], self.indices[where])

    def training_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, augment: bool = True, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Yield one epoch, shuffled, padded, cropped and flipped in batches on the device of the images."""
        device = self.pixels.device
        order = epoch_order(len(self), seed=seed, epoch=epoch)
        steps = share.steps(len(self), batch_size)
        generator = np.random.default_rng([seed, epoch, 1])
        views = generator.integers(0, (2 * self.pad_px + 1, 2 * self.pad_px + 1, 2), size=(len(self), 3))
        if not self.flip:
            views[:, 2] = 0
        padded = pad(self.pixels, self.pad_px) if augment else self.pixels
        order_there, views_there = torch.from_numpy(order).to(device), torch.from_numpy(views).to(device)
        for step in range(start, steps):
            where = share.of_step(step, batch_size)
            chosen = order_there[where]
            if augment:
                pixels = crop_and_flip(padded, chosen, views_there[where], self.pixels.shape[1:3])
            else:
                pixels = self.pixels[chosen]
            yield Batch(to_unit(pixels), self.labels[chosen], self.indices[chosen])


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits ``count`` images, the same on every machine."""
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


def to_unit(pixels: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """Return bytes as values in [0, 1], color first; in memory the color stays last (``channels_last``)."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def pad(pixels: UInt8[Tensor, "n h w c"], pad_px: int) -> UInt8[Tensor, "n h2 w2 c"]:
    """Return the images with ``pad_px`` black pixels added on each side."""
    return torch.nn.functional.pad(pixels, (0, 0, pad_px, pad_px, pad_px, pad_px))


def crop_and_flip(
    padded: UInt8[Tensor, "n h2 w2 c"],
    chosen: Int64[Tensor, " b"],
    views: Int64[Tensor, "b 3"],
    size_px: Sequence[int],
) -> UInt8[Tensor, "b h w c"]:
    """Return crops of padded images, gathered at once.

    Args:
        padded: The padded images.
        chosen: Which images.
        views: For each of them the first row, the first column, and 1 where it is mirrored.
        size_px: Height and width of a crop.

    Raises:
        ShapeError: A crop would reach over the border.
    """
    height, width = size_px
    if int(padded.shape[1]) < height or int(padded.shape[2]) < width:
        raise ShapeError(f"Crops of {height} x {width} do not fit into images of {tuple(padded.shape[1:3])}.")
    rows = views[:, 0, None] + torch.arange(height, device=padded.device)
    across = torch.arange(width, device=padded.device)
    columns = views[:, 1, None] + torch.where(views[:, 2, None] == 1, across.flip(0), across)
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def hold_out(split: Split, count: int, *, seed: int = 0) -> tuple[Split, Split]:
    """Return the training images without ``count`` of them, and those held out for choosing.

    The same images are held out for every training seed, so that results of several seeds compare.

    Raises:
        SettingError: Fewer than 0, or no image would be left to train on.
    """
    if not 0 <= count < len(split):
        raise SettingError(f"Cannot hold out {count} of {len(split)} training images; choose 0 to {len(split) - 1}.")
    order = np.random.default_rng([seed, 2]).permutation(len(split))
    kept, held = (torch.from_numpy(np.sort(part)) for part in (order[count:], order[:count]))
    return split.subset(kept), split.subset(held)
