from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import oracles
from keyhole.data.splits import Batch, MemorySplit, Share, crop_and_flip, epoch_order, hold_out, pad, to_unit
from keyhole.errors import SettingError, ShapeError


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(b, part) for b in batches]) for part in ("images", "labels", "indices")))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("images", "labels", "indices"))


@pytest.mark.parametrize(
    ("height", "width", "channels", "pad_px"), [(4, 4, 3, 1), (3, 5, 1, 2), (6, 2, 3, 4), (4, 4, 3, 0)]
)
def test_crops_and_mirrors_are_those_of_the_oracle(height: int, width: int, channels: int, pad_px: int) -> None:
    generator = np.random.default_rng(1)
    images = torch.from_numpy(generator.integers(1, 256, (5, height, width, channels)).astype(np.uint8))
    size = 2 * pad_px + 1
    views = torch.tensor([(top, left, flip) for top in range(size) for left in range(size) for flip in (0, 1)])
    chosen = torch.from_numpy(generator.integers(0, 5, len(views)))
    found = crop_and_flip(pad(images, pad_px), chosen, views, (height, width))
    assert found.dtype == torch.uint8
    for image, view, crop in zip(chosen.tolist(), views.tolist(), found, strict=True):
        assert np.array_equal(crop.numpy(), oracles.crop_and_flip(images[image].numpy(), pad_px, *view))


def test_crops_larger_than_the_images_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"Crops of 5 x 4 do not fit into images of \(4, 4\)"):
        crop_and_flip(
            torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64), (5, 4)
        )


def test_bytes_become_values_from_zero_to_one_with_color_first() -> None:
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert to_unit(pixels).tolist() == [[[[0.0]], [[pytest.approx(0.2)]], [[1.0]]]]
    assert to_unit(torch.zeros(2, 4, 4, 3, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch_size", [1, 7, 48, 100])
def test_a_test_sees_all_images_in_order_as_they_are(toy_split: MemorySplit, batch_size: int) -> None:
    batches = list(toy_split.batches(batch_size))
    assert [len(b.labels) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    whole = joined(batches)
    assert torch.equal(whole.labels, toy_split.labels)
    assert torch.equal(whole.indices, toy_split.indices)
    assert torch.equal(whole.images.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8), toy_split.pixels)


@pytest.mark.parametrize("augment", [True, False])
def test_an_epoch_holds_every_image_once(toy_split: MemorySplit, augment: bool) -> None:
    whole = joined(list(toy_split.training_batches(8, seed=0, epoch=0, augment=augment)))
    assert whole.indices.tolist() != toy_split.indices.tolist()
    assert sorted(whole.indices.tolist()) == toy_split.indices.tolist()
    label_of = dict(zip(toy_split.indices.tolist(), toy_split.labels.tolist(), strict=True))
    assert whole.labels.tolist() == [label_of[index] for index in whole.indices.tolist()]


def test_the_last_incomplete_batch_is_left_out(toy_split: MemorySplit) -> None:
    batches = list(toy_split.training_batches(20, seed=0, epoch=0))
    assert [len(b.labels) for b in batches] == [20, 20]
    assert len(set(joined(batches).indices.tolist())) == 40


def test_without_augmentation_images_are_as_they_are(toy_split: MemorySplit) -> None:
    for batch in toy_split.training_batches(8, seed=0, epoch=0, augment=False):
        where = (batch.indices - 1) // 2
        assert torch.equal(batch.images, to_unit(toy_split.pixels[where]))


@pytest.mark.parametrize("flip", [True, False])
def test_augmented_images_are_crops_of_their_own_image(toy_split: MemorySplit, flip: bool) -> None:
    split = replace(toy_split, flip=flip)
    seen = set()
    for batch in split.training_batches(16, seed=3, epoch=1):
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            original = split.pixels[(index - 1) // 2].numpy()
            found = image.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
            views = [(top, left, f) for top in range(5) for left in range(5) for f in ((0, 1) if flip else (0,))]
            matching = [v for v in views if np.array_equal(oracles.crop_and_flip(original, 2, *v), found)]
            assert len(matching) == 1
            seen.add(matching[0])
    assert {view[2] for view in seen} == ({0, 1} if flip else {0})
    assert {view[0] for view in seen} == {view[1] for view in seen} == {0, 1, 2, 3, 4}


def test_an_epoch_depends_on_seed_and_epoch_alone(toy_split: MemorySplit) -> None:
    def epoch(seed: int, epoch: int) -> Batch:
        torch.manual_seed(int(torch.randint(1000, ())))
        np.random.seed(int(torch.randint(1000, ())))
        return joined(list(toy_split.training_batches(8, seed=seed, epoch=epoch)))

    first = epoch(0, 0)
    assert equal(first, epoch(0, 0))
    for other in (epoch(0, 1), epoch(1, 0)):
        assert not torch.equal(first.indices, other.indices)
        by_index = [b.images[b.indices.argsort()] for b in (first, other)]
        assert not torch.equal(*by_index)


def test_batches_leave_the_global_random_state(toy_split: MemorySplit) -> None:
    state = torch.get_rng_state()
    list(toy_split.training_batches(8, seed=0, epoch=0))
    list(toy_split.batches(8))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("start", [0, 1, 4, 6])
@pytest.mark.parametrize("augment", [True, False])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(toy_split: MemorySplit, start: int, augment: bool) -> None:
    whole = list(toy_split.training_batches(8, seed=5, epoch=2, augment=augment))
    tail = list(toy_split.training_batches(8, seed=5, epoch=2, start=start, augment=augment))
    assert len(tail) == len(whole) - start
    assert all(map(equal, whole[start:], tail))


@pytest.mark.parametrize(("batch_size", "count", "start"), [(4, 2, 0), (3, 3, 2), (5, 2, 1), (24, 2, 0)])
def test_shares_of_several_processes_make_up_the_batch_of_one(
    toy_split: MemorySplit, batch_size: int, count: int, start: int
) -> None:
    whole = list(toy_split.training_batches(batch_size * count, seed=5, epoch=2, start=start))
    parts = [
        list(toy_split.training_batches(batch_size, seed=5, epoch=2, start=start, share=Share(number, count)))
        for number in range(count)
    ]
    assert len(whole) == 48 // (batch_size * count) - start
    for batch, *shares in zip(whole, *parts, strict=True):
        assert equal(batch, joined(shares))


def test_shares_larger_than_the_data_are_refused(toy_split: MemorySplit) -> None:
    with pytest.raises(SettingError, match="Batch size 25 in each of 2 processes is above the 48 training images"):
        next(toy_split.training_batches(25, seed=0, epoch=0, share=Share(0, 2)))


def test_a_batch_larger_than_the_data_is_refused(toy_split: MemorySplit) -> None:
    with pytest.raises(SettingError, match="Batch size 49 is above the 48 training images"):
        next(toy_split.training_batches(49, seed=0, epoch=0))


def test_epoch_orders_are_the_same_on_every_machine() -> None:
    assert epoch_order(8, seed=0, epoch=0).tolist() == np.random.default_rng([0, 0, 0]).permutation(8).tolist()
    assert sorted(epoch_order(100, seed=1, epoch=2).tolist()) == list(range(100))


# Parts of a split


def test_a_subset_keeps_its_order_and_the_official_indices(toy_split: MemorySplit) -> None:
    part = toy_split.subset([5, 0, 7])
    assert part.indices.tolist() == [11, 1, 15]
    assert part.labels.tolist() == [2, 0, 1]
    assert torch.equal(part.pixels[1], toy_split.pixels[0])
    assert (part.classes, part.pad_px, part.flip) == (toy_split.classes, toy_split.pad_px, toy_split.flip)
    assert part.subset(torch.tensor([2])).indices.tolist() == [15]
    assert len(toy_split.subset([])) == 0


def test_a_split_on_its_own_device_is_itself(toy_split: MemorySplit) -> None:
    assert toy_split.to(torch.device("cpu")) is toy_split


@pytest.mark.parametrize("count", [0, 1, 10, 47])
def test_held_out_images_are_never_trained_on(toy_split: MemorySplit, count: int) -> None:
    train, held = hold_out(toy_split, count)
    assert (len(train), len(held)) == (48 - count, count)
    assert sorted([*train.indices.tolist(), *held.indices.tolist()]) == toy_split.indices.tolist()
    assert train.indices.tolist() == sorted(train.indices.tolist())


def test_the_same_images_are_held_out_each_time_unless_a_seed_is_given(toy_split: MemorySplit) -> None:
    first = hold_out(toy_split, 10)[1].indices.tolist()
    torch.manual_seed(7)
    assert hold_out(toy_split, 10)[1].indices.tolist() == first
    assert hold_out(toy_split, 10, seed=1)[1].indices.tolist() != first


@pytest.mark.parametrize("count", [-1, 48, 100])
def test_holding_out_everything_is_refused(toy_split: MemorySplit, count: int) -> None:
    with pytest.raises(SettingError, match="choose 0 to 47"):
        hold_out(toy_split, count)
