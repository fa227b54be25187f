"""Image folders, streamed by workers: labeled (``train/CLASS/*.jpg``, ``test/CLASS/*.jpg``) or without labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from keyhole.data.splits import WHOLE, Batch, Share, epoch_order
from keyhole.errors import DataError

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # what is read of them, whatever an ending says
_MOST_PIXELS = 100_000_000  # of an image that is decoded
_TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True)
class FolderSplit:
    """Images read from disk as they are needed, resized to one size.

    Attributes:
        paths: The image files.
        labels: Class of each image, -1 where it is not known.
        indices: Position of each image in the sorted list of all files.
        classes: Names of the classes; empty without labels.
        size_px: Height and width that a batch has. A test view is the largest centered crop of that shape, a
            training view a random crop of 35 to 100 percent of the area, mirrored half of the time.
        channels: 3 for color, 1 for gray.
        workers: Processes that read; 0 reads in this process.
        device: Where batches are put.
    """

    paths: tuple[Path, ...]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    size_px: tuple[int, int]
    channels: int = 3
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names, sizes and classes of the files, the same wherever the folder lies.

        Raises:
            DataError: A file is gone.
        """
        digest = hashlib.sha256()
        common = os.path.commonpath([path.parent for path in self.paths])
        try:
            for path, label in zip(self.paths, self.labels.tolist(), strict=True):
                line = f"{path.relative_to(common).as_posix()}\0{path.stat().st_size}\0{label}\n"
                digest.update(line.encode(errors="surrogateescape"))
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}. Start again with the folder as it is.") from error
        return digest.hexdigest()

    def subset(self, positions: Sequence[int] | Int64[Tensor, " m"]) -> FolderSplit:
        """Return the images at these positions of this split, in that order."""
        where = torch.as_tensor(positions, dtype=torch.int64)
        paths = tuple(self.paths[i] for i in where.tolist())
        return replace(self, paths=paths, labels=self.labels[where], indices=self.indices[where])

    def to(self, device: torch.device) -> FolderSplit:
        """Return the same images with batches on that device."""
        return replace(self, device=device)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images in order, as a test sees them: no augmentation."""
        yield from self._stream(np.arange(len(self)), batch_size, views=None, drop_last=False)

    def training_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, augment: bool = True, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Yield one epoch, shuffled and augmented, from step ``start``; the last incomplete batch is left out."""
        steps = share.steps(len(self), batch_size)
        whole = epoch_order(len(self), seed=seed, epoch=epoch)
        order = whole[:0]
        if start < steps:
            order = np.concatenate([whole[share.of_step(step, batch_size)] for step in range(start, steps)])
        yield from self._stream(order, batch_size, views=(seed, epoch) if augment else None, drop_last=True)

    def _stream(
        self, order: np.ndarray, batch_size: int, *, views: tuple[int, int] | None, drop_last: bool
    ) -> Iterator[Batch]:
        reader = _Reader(self, order, views)
        loader = DataLoader(
            reader,
            batch_size,
            num_workers=self.workers,
            drop_last=drop_last,
            collate_fn=_collate,
            generator=torch.Generator(),  # else each pass would draw from the global state
            pin_memory=self.device.type == "cuda",  # so that a step need not wait for the copy
        )
        for read in loader:
            if isinstance(read, DataError):
                raise read
            images, positions = read
            moved = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32).div_(255)
            labels, indices = (
                values[positions].to(self.device, non_blocking=True) for values in (self.labels, self.indices)
            )
            yield Batch(moved, labels, indices)


@dataclass(frozen=True)
class _Reader(Dataset["tuple[Tensor, int] | DataError"]):
    split: FolderSplit
    order: np.ndarray
    views: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> tuple[Tensor, int] | DataError:
        position = int(self.order[step])
        try:
            image = _open(self.split.paths[position], self.split.channels)
        except DataError as error:  # returned, because a worker that raises wraps the message in its own traceback
            return error
        if self.views is None:
            view = ImageOps.fit(image, self.split.size_px[::-1], Image.Resampling.BICUBIC)
        else:
            view = _random_view(image, self.split.size_px, np.random.default_rng([*self.views, position]))
        pixels = np.array(view, np.uint8)
        return torch.from_numpy(pixels.reshape(*self.split.size_px, self.split.channels)), position


def _collate(items: list[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    read = []
    for item in items:
        if isinstance(item, DataError):
            return item
        read.append(item)
    return torch.stack([pixels for pixels, _ in read]), torch.tensor([position for _, position in read])


def _open(path: Path, channels: int) -> Image.Image:
    try:
        with Image.open(path, formats=_FORMATS) as file:  # by content: other formats may start other programs
            if file.width * file.height > _MOST_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels, more than {_MOST_PIXELS // 10**6} million")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif "transparency" in image.info:  # Pillow warns when it drops the alpha of a palette
                image = image.convert("RGBA")
            return image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # the decoders raise nearly anything on broken bytes
        raise DataError(
            f"Cannot read the image {path}: {error}. Expected JPEG, PNG, WebP or BMP; convert, repair or remove it."
        ) from error


def _random_view(image: Image.Image, size_px: tuple[int, int], random: np.random.Generator) -> Image.Image:
    scale = np.sqrt(random.uniform(0.35, 1.0))
    stretch = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3))) ** 0.5
    width = min(image.width, max(1, round(image.width * scale * stretch)))
    height = min(image.height, max(1, round(image.height * scale / stretch)))
    left, top = int(random.integers(0, image.width - width + 1)), int(random.integers(0, image.height - height + 1))
    box = (left, top, left + width, top + height)
    view = image.resize(size_px[::-1], Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(view) if random.integers(2) else view


def load_folder(
    root: Path, *, size_px: tuple[int, int], channels: int = 3, workers: int = 0
) -> tuple[FolderSplit, FolderSplit | None]:
    """Return the training images and, where there is one, the test images of a folder.

    Args:
        root: Holds ``train/CLASS/*`` and perhaps ``test/CLASS/*`` (or ``val``, ``validation``); or images in
            any sub-folders, which then have no labels and serve to choose hints.
        size_px: Height and width that batches shall have.
        channels: 3 for color, 1 for gray.
        workers: Processes that read.

    Raises:
        DataError: The folder is missing, holds no image, or its test classes differ from its training classes.
    """
    if not root.is_dir():
        raise DataError(f"No folder {root}. Give --root a folder of images, or one that holds train/CLASS/.")
    if not (root / "train").is_dir():
        paths = _images(root)
        if not paths:
            raise DataError(f"No image under {root}; expected files ending in {', '.join(sorted(_ENDINGS))}.")
        nothing = torch.full((len(paths),), -1)
        return FolderSplit(paths, nothing, torch.arange(len(paths)), (), size_px, channels, workers), None
    train = _labeled(root / "train", size_px, channels, workers)
    test_root = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    if test_root is None:
        return train, None
    test = _labeled(test_root, size_px, channels, workers)
    if test.classes != train.classes:
        odd = sorted(set(test.classes) ^ set(train.classes))
        raise DataError(f"{test_root} and {root / 'train'} have different classes: {odd[0]!r} is only in one of them.")
    return train, test


def _labeled(folder: Path, size_px: tuple[int, int], channels: int, workers: int) -> FolderSplit:
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    found = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    if not found:
        raise DataError(f"No image under {folder}; expected {folder}/CLASS/IMAGE.jpg.")
    labels = torch.tensor([label for _, label in found])
    paths = tuple(path for path, _ in found)
    return FolderSplit(paths, labels, torch.arange(len(found)), classes, size_px, channels, workers)


def _images(folder: Path) -> tuple[Path, ...]:
    """Return all images below a folder, through links as well; what is hidden is left out."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"Cannot read the folder {error.filename}: {error.strerror}. Allow reading, or remove it.")

    found: list[Path] = []
    seen: set[str] = set()
    for here, below, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(here)
        below[:] = [] if real in seen else [name for name in below if not name.startswith(".")]
        if real not in seen:
            found += [Path(here, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return tuple(sorted(path for path in found if path.suffix.lower() in _ENDINGS and path.is_file()))
