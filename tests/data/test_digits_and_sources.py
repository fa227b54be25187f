from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from keyhole.data.digits import load_digits
from keyhole.data.folders import FolderSplit
from keyhole.data.sources import DATA_NAMES, Data, default_input, open_data
from keyhole.data.splits import MemorySplit
from keyhole.errors import DataError, UnknownNameError
from keyhole.models.network import InputSpec


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load_digits()
    again, _ = load_digits()
    assert (len(train), len(test)) == (1297, 500)
    assert sorted([*train.indices.tolist(), *test.indices.tolist()]) == list(range(1797))
    assert torch.equal(train.indices, again.indices)
    assert train.labels.bincount().tolist() == pytest.approx([1297 / 10] * 10, abs=5)
    assert train.pixels.dtype == torch.uint8
    assert int(train.pixels.max()) == 255


def test_a_digit_is_the_scan_of_its_index() -> None:
    from sklearn.datasets import load_digits as bundled

    scans = bundled()
    _, test = load_digits()
    for position in (0, 99, 499):
        index = int(test.indices[position])
        assert int(test.labels[position]) == scans.target[index]
        assert test.pixels[position, :, :, 0].tolist() == [
            [round(v / 16 * 255) for v in row] for row in scans.images[index]
        ]


def test_digits_are_shifted_but_never_mirrored() -> None:
    train, _ = load_digits()
    assert (train.pad_px, train.flip) == (1, False)


def statistics(split: MemorySplit) -> tuple[list[float], list[float]]:
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = [torch.bincount(split.pixels[..., c].flatten(), minlength=256) for c in range(split.pixels.shape[-1])]
    means = [float((count * values).sum() / count.sum()) for count in counts]
    squares = [float((count * values**2).sum() / count.sum()) for count in counts]
    return means, [(square - mean**2) ** 0.5 for mean, square in zip(means, squares, strict=True)]


def test_the_normalization_of_digits_is_that_of_its_training_pixels() -> None:
    spec = default_input("digits")
    assert spec is not None
    mean, std = statistics(load_digits()[0])
    assert spec.mean == pytest.approx(mean, abs=1e-4)
    assert spec.std == pytest.approx(std, abs=1e-4)
    assert spec.size_px == (8, 8)


def test_the_normalization_of_cifar100_is_that_of_its_training_pixels(cifar100_root: Path) -> None:
    spec = default_input("cifar100")
    assert spec is not None
    train = open_data("cifar100", cifar100_root).train
    assert isinstance(train, MemorySplit)
    mean, std = statistics(train)
    assert spec.mean == pytest.approx(mean, abs=2e-4)
    assert spec.std == pytest.approx(std, abs=2e-4)


def test_a_folder_has_no_input_of_its_own() -> None:
    assert default_input("folder") is None


def test_an_unknown_data_set_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Unknown data set 'cifar'; nearest known: cifar10"):
        open_data("cifar")


@pytest.mark.parametrize("name", [name for name in DATA_NAMES if name != "digits"])
def test_data_sets_on_disk_need_a_folder(name: str) -> None:
    with pytest.raises(DataError, match="needs --root") as caught:
        open_data(name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--input-size"):
        open_data("folder", tmp_path)


def test_a_folder_takes_size_and_color_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(tmp_path / "train" / "a" / "1.png")
    data = open_data("folder", str(tmp_path), input=InputSpec((6, 4), (0.5,), (0.5,)))
    assert isinstance(data.train, FolderSplit)
    assert next(iter(data.train.batches(1))).images.shape == (1, 1, 6, 4)
    assert data.classes == 1
    with pytest.raises(DataError, match="no labeled test images"):
        data.labeled_test()


def test_labeled_test_images_are_given() -> None:
    data = open_data("digits")
    assert data.labeled_test() is data.test
    assert data.classes == 10
    assert isinstance(data, Data)
