from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from keyhole.data.folders import FolderSplit, load_folder
from keyhole.data.splits import Batch, Share
from keyhole.errors import DataError, SettingError

SIZE = (8, 8)


def noise(seed: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """Three classes; 11 training and 4 test images of several sizes and kinds."""
    for part, counts in (("train", (4, 4, 3)), ("test", (1, 2, 1))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(noise(17 * i + len(part), 9 + i, 14 - i))
                image.save(tmp_path / part / name / f"{i}.{('png', 'jpg', 'webp', 'bmp')[i]}")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    return tmp_path


def everything(split: FolderSplit, batch_size: int = 3) -> Batch:
    batches = list(split.batches(batch_size))
    return Batch(*(torch.cat([getattr(b, part) for b in batches]) for part in ("images", "labels", "indices")))


def one(tmp_path: Path, size_px: tuple[int, int] = SIZE, channels: int = 3) -> torch.Tensor:
    """The only image of a folder, 0 to 255, color last."""
    split, _ = load_folder(tmp_path, size_px=size_px, channels=channels)
    return everything(split).images[0].mul(255).round().permute(1, 2, 0)


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("images", "labels", "indices"))


def test_a_labeled_tree(labeled: Path) -> None:
    train, test = load_folder(labeled, size_px=SIZE)
    assert test is not None
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 3
    assert test.labels.tolist() == [0, 1, 1, 2]
    assert [path.name for path in train.paths[:4]] == ["0.png", "1.jpg", "2.webp", "3.bmp"]
    found = everything(train)
    assert found.images.shape == (11, 3, 8, 8)
    assert torch.equal(found.labels, train.labels)
    assert found.indices.tolist() == list(range(11))
    assert 0 <= float(found.images.min()) < float(found.images.max()) <= 1


def test_a_folder_is_known_by_its_files_wherever_it_lies(labeled: Path, tmp_path: Path) -> None:
    def fingerprints(root: Path) -> list[str]:
        return [part.fingerprint() for part in load_folder(root, size_px=SIZE) if part is not None]

    train, test = fingerprints(labeled)
    moved = shutil.copytree(labeled, tmp_path / "moved", ignore=shutil.ignore_patterns("moved"))
    assert fingerprints(moved) == [train, test]
    Image.fromarray(noise(99)).save(moved / "train" / "cat" / "more.png")
    assert fingerprints(moved)[0] != train
    assert fingerprints(moved)[1] == test
    (moved / "train" / "cat" / "more.png").unlink()
    Image.fromarray(noise(5, 30, 30)).save(moved / "train" / "ant" / "0.png")  # another picture under an old name
    assert fingerprints(moved)[0] != train
    split, _ = load_folder(moved, size_px=SIZE)
    (moved / "train" / "bee" / "1.jpg").unlink()
    with pytest.raises(DataError, match="Start again with the folder as it is"):
        split.fingerprint()


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_names_of_the_test_folder(labeled: Path, name: str) -> None:
    (labeled / "test").rename(labeled / name)
    test = load_folder(labeled, size_px=SIZE)[1]
    assert test is not None
    assert len(test) == 4


def test_without_a_test_folder_there_is_none(labeled: Path) -> None:
    (labeled / "test").rename(labeled / "other")
    assert load_folder(labeled, size_px=SIZE)[1] is None


def test_an_unlabeled_tree(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/deep/3.Jpeg", "a/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(1)).save(tmp_path / name)
    split, test = load_folder(tmp_path, size_px=SIZE)
    assert test is None
    assert split.classes == ()
    assert [path.name for path in split.paths] == ["1.jpg", "2.PNG", "3.Jpeg"]
    assert everything(split).labels.tolist() == [-1, -1, -1]


def test_an_image_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    pixels = noise(3, 8, 8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(one(tmp_path).numpy(), pixels)


def test_a_test_view_is_the_largest_crop_in_the_center(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200  # only this third is seen
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert one(tmp_path).unique().tolist() == [200]
    assert one(tmp_path, (4, 12)).unique().tolist() != [200]


def test_gray_files_become_color_and_color_files_gray(tmp_path: Path) -> None:
    pixels = noise(4, 8, 8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "x.png")
    assert np.array_equal(one(tmp_path).numpy(), pixels[..., :1].repeat(3, axis=2))
    assert np.array_equal(one(tmp_path, channels=1).numpy(), pixels[..., :1])
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert one(tmp_path, channels=1).shape == (8, 8, 1)


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255  # the first row, which shall become the last column
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(one(tmp_path).numpy(), np.rot90(pixels, -1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(one(tmp_path, channels=1)[..., 0].numpy(), values >> 8)
    assert np.array_equal(one(tmp_path)[..., 2].numpy(), values >> 8)


def test_colors_for_print_become_colors_for_screens(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red, green, blue = one(tmp_path)[0, 0].tolist()
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P with bytes", "1"])
def test_transparency_palettes_and_bits(tmp_path: Path, mode: str) -> None:
    pixels = np.full((8, 8, 3), 255, np.uint8)
    pixels[:4] = 0
    image = Image.fromarray(pixels)
    if mode.startswith("P"):
        image = image.quantize(4)
        image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255, 255]) if mode != "P" else 0)
    else:
        image = image.convert(mode)
        if "A" in mode:
            image.putalpha(Image.fromarray(noise(5, 8, 8)[..., 0]))
        image.save(tmp_path / "x.png")
    assert np.array_equal(one(tmp_path).numpy(), pixels)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_image_is_named_in_one_line(tmp_path: Path, ending: str, damage: str, workers: int) -> None:
    for i in range(4):
        Image.fromarray(noise(i, 40, 40)).save(tmp_path / f"{i}.{ending}")
    path = tmp_path / f"2.{ending}"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "cut": content[:-400], "header": content[:20]}[damage])
    split, _ = load_folder(tmp_path, size_px=SIZE, workers=workers)
    with pytest.raises(DataError) as caught:
        list(split.batches(2))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"Cannot read the image {path}: ")


def test_any_damage_to_a_png_is_a_data_error_or_an_image(tmp_path: Path) -> None:
    Image.fromarray(noise(0, 10, 10)).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    split, _ = load_folder(tmp_path, size_px=SIZE)
    messages = []
    for position in range(120):
        (tmp_path / "x.png").write_bytes(
            content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
        )
        try:
            list(split.batches(1))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all(len(message.splitlines()) == 1 for message in messages)


def test_a_file_is_no_other_format_than_images_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript by the name of a photo would start Ghostscript."""
    started = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match=r"Cannot read the image .*a\.jpg"):
        one(tmp_path / "images")
    assert not started.exists()


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 6_000)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"Cannot read the image .*pixels"):
        one(tmp_path)


def test_one_broken_image_is_named_by_a_worker(labeled: Path) -> None:
    path = labeled / "train" / "bee" / "1.jpg"
    path.write_bytes(b"")
    train, _ = load_folder(labeled, size_px=SIZE, workers=2)
    with pytest.raises(DataError) as caught:
        list(train.training_batches(2, seed=0, epoch=0))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"Cannot read the image {path}: ")


@pytest.mark.parametrize("extra", ["test", "train"])
def test_classes_that_differ_are_named(labeled: Path, extra: str) -> None:
    (labeled / extra / "dog").mkdir()
    Image.fromarray(noise(0)).save(labeled / extra / "dog" / "0.png")
    with pytest.raises(DataError, match="have different classes: 'dog' is only in one of them") as caught:
        load_folder(labeled, size_px=SIZE)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("made", [[], ["a.txt"], ["train/"], ["train/ant/"], ["train/1.png"]])
def test_a_folder_without_images(tmp_path: Path, made: list[str]) -> None:
    for name in made:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"")
    with pytest.raises(DataError, match="No image under"):
        load_folder(tmp_path, size_px=SIZE)


def test_hidden_folders_and_files_are_no_classes_and_no_images(labeled: Path) -> None:
    for part in ("train", "test"):
        (labeled / part / ".ipynb_checkpoints").mkdir(exist_ok=True)
    shutil.copy(labeled / "train" / "ant" / "0.png", labeled / "train" / "ant" / "._0.png")
    train, _ = load_folder(labeled, size_px=SIZE)
    assert train.classes == ("ant", "bee", "cat")
    assert len(train) == 11


def test_images_behind_links_are_found_once(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("links")
    (other / "here").symlink_to(labeled / "train" / "ant")
    (other / "again").symlink_to(other)  # a circle
    train, _ = load_folder(other, size_px=SIZE)
    assert len(train) == 4


def test_a_class_that_cannot_be_read_is_named(labeled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)  # permissions do not bind the superuser
    with pytest.raises(DataError, match=r"Cannot read the folder .*bee: Permission denied"):
        load_folder(labeled, size_px=SIZE)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No folder .*nowhere\. Give --root"):
        load_folder(tmp_path / "nowhere", size_px=SIZE)


# Batches for training


@pytest.mark.parametrize("augment", [True, False])
def test_workers_give_the_same_bits(labeled: Path, augment: bool) -> None:
    alone, _ = load_folder(labeled, size_px=SIZE)
    helped, _ = load_folder(labeled, size_px=SIZE, workers=2)
    pairs = zip(
        alone.training_batches(3, seed=1, epoch=2, augment=augment),
        helped.training_batches(3, seed=1, epoch=2, augment=augment),
        strict=True,
    )
    assert [equal(a, b) for a, b in pairs] == [True] * 3


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(labeled: Path, start: int) -> None:
    train, _ = load_folder(labeled, size_px=SIZE)
    whole = list(train.training_batches(3, seed=1, epoch=2))
    tail = list(train.training_batches(3, seed=1, epoch=2, start=start))
    assert len(whole) == 3
    assert len(tail) == 3 - start
    assert all(map(equal, whole[start:], tail))


@pytest.mark.parametrize("start", [0, 1, 2])
def test_shares_of_two_processes_make_up_the_batch_of_one(labeled: Path, start: int) -> None:
    train, _ = load_folder(labeled, size_px=SIZE)
    whole = list(train.training_batches(4, seed=1, epoch=2, start=start))
    one, other = (
        list(train.training_batches(2, seed=1, epoch=2, start=start, share=Share(number, 2))) for number in (0, 1)
    )
    assert len(whole) == len(one) == len(other) == 2 - start
    for batch, *parts in zip(whole, one, other, strict=True):
        for name in ("images", "labels", "indices"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts]))


def test_an_epoch_is_shuffled_and_augmented_anew(labeled: Path) -> None:
    train, _ = load_folder(labeled, size_px=SIZE)
    epochs = [next(train.training_batches(11, seed=1, epoch=epoch)) for epoch in (0, 0, 1)]
    assert equal(epochs[0], epochs[1])
    assert sorted(epochs[0].indices.tolist()) == list(range(11))
    assert epochs[0].indices.tolist() != epochs[2].indices.tolist()
    images = [epoch.images[epoch.indices.argsort()] for epoch in epochs]
    assert not torch.equal(images[0], images[2])
    plain = next(iter(train.training_batches(11, seed=1, epoch=0, augment=False)))
    assert torch.equal(plain.images[plain.indices.argsort()], everything(train).images)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_random_state(labeled: Path, workers: int) -> None:
    train, _ = load_folder(labeled, size_px=SIZE, workers=workers)
    state = torch.get_rng_state()
    list(train.batches(4))
    list(train.training_batches(4, seed=0, epoch=0))
    assert torch.equal(state, torch.get_rng_state())


def test_augmented_views_lie_inside_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (31, 9), (90, 90, 90)).save(tmp_path / "x.png")
    split, _ = load_folder(tmp_path, size_px=SIZE)
    for epoch in range(30):
        batch = next(iter(split.training_batches(1, seed=0, epoch=epoch)))
        assert (batch.images * 255).round().unique().tolist() == [90]


def test_half_of_the_views_are_mirrored(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:] = np.linspace(0, 255, 16, dtype=np.uint8)[None, :, None]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    split, _ = load_folder(tmp_path, size_px=SIZE)
    views = [next(iter(split.training_batches(1, seed=0, epoch=epoch))).images[0, 0, 4] for epoch in range(60)]
    mirrored = sum(bool(view[0] > view[-1]) for view in views)
    assert 15 < mirrored < 45


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (90, 0, 0)).save(tmp_path / "x.png")
    split, _ = load_folder(tmp_path, size_px=SIZE)
    assert next(iter(split.training_batches(1, seed=0, epoch=0))).images.shape == (1, 3, 8, 8)


def test_a_subset_keeps_the_official_indices(labeled: Path) -> None:
    train, _ = load_folder(labeled, size_px=SIZE)
    part = train.subset([10, 4, 0])
    found = everything(part)
    assert found.indices.tolist() == [10, 4, 0]
    assert found.labels.tolist() == [2, 1, 0]
    assert torch.equal(found.images, everything(train).images[[10, 4, 0]])


def test_a_batch_larger_than_the_data_is_refused(labeled: Path) -> None:
    train, _ = load_folder(labeled, size_px=SIZE)
    with pytest.raises(SettingError, match="Batch size 12 is above the 11 training images"):
        next(train.training_batches(12, seed=0, epoch=0))
