"""Data sets by name, as the command line names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from keyhole.data.cifar import load_cifar
from keyhole.data.digits import load_digits
from keyhole.data.folders import FolderSplit, load_folder
from keyhole.data.splits import Split
from keyhole.errors import DataError, unknown_name
from keyhole.models.network import InputSpec
from keyhole.progress import Progress, silent

DATA_NAMES = ("cifar100", "cifar10", "digits", "folder")

# Mean and standard deviation over all training pixels, a channel at a time, on the scale 0 to 1.
_NORMALIZATION = {
    "cifar100": ((32, 32), (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "cifar10": ((32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((8, 8), (0.3053,), (0.3758,)),
}


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        name: ``cifar100``, ``cifar10``, ``digits`` or ``folder``.
        train: The training images.
        test: The test images, where there are any.
    """

    name: str
    train: Split
    test: Split | None

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.train.classes)

    def fingerprint(self) -> dict[str, str]:
        """Return what tells the images of a folder from others, by part; nothing of official files, which are one.

        Raises:
            DataError: A file is gone.
        """
        parts = {"train": self.train, "test": self.test}
        return {name: part.fingerprint() for name, part in parts.items() if isinstance(part, FolderSplit)}

    def labeled_test(self) -> Split:
        """Return the test images.

        Raises:
            DataError: There are none.
        """
        if self.test is None or not self.test.classes:
            raise DataError("This data has no labeled test images; expected test/CLASS/IMAGE.jpg beside train/.")
        return self.test


def default_input(name: str) -> InputSpec | None:
    """Return the image size and normalization of a data set; None for a folder, whose networks decide."""
    return InputSpec(*_NORMALIZATION[name]) if name in _NORMALIZATION else None


def open_data(
    name: str,
    root: Path | str | None = None,
    *,
    input: InputSpec | None = None,
    workers: int = 0,
    progress: Progress = silent,
) -> Data:
    """Return a data set by name.

    Args:
        name: ``cifar100``, ``cifar10``, ``digits`` or ``folder``.
        root: The folder that holds the official files, or the image folder; not needed for ``digits``.
        input: What size images of a ``folder`` get, and whether they are gray.
        workers: Processes that read a ``folder``.
        progress: Shows a download.

    Raises:
        UnknownNameError: No such data set.
        DataError: The files are missing or corrupt.

    Example:
        >>> open_data("digits").train.training_batches(64, seed=0, epoch=0)  # doctest: +ELLIPSIS
        <generator object ...>
    """
    if name not in DATA_NAMES:
        raise unknown_name("data set", name, DATA_NAMES)
    if name == "digits":
        return Data(name, *load_digits())
    if root is None:
        raise DataError(f"The data set {name} needs --root, the folder where its files are.")
    if name == "folder":
        if input is None:
            raise DataError("An image folder needs a network with a known input; give --input-size, --mean and --std.")
        if input.channels not in (1, 3):
            raise DataError(f"Images have 1 or 3 colors, and --mean and --std give {input.channels}; give as many.")
        return Data(name, *load_folder(Path(root), size_px=input.size_px, channels=input.channels, workers=workers))
    return Data(name, *load_cifar(name, Path(root), progress=progress))
