from __future__ import annotations

import pytest
import torch
from torch import nn

from keyhole.errors import SettingError, ShapeError
from keyhole.models.network import InputSpec, Network, count_macs, evaluating, fingerprint, random_images
from keyhole.models.zoo import build


def test_images_are_normalized_a_channel_at_a_time() -> None:
    spec = InputSpec((2, 2), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    images = torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert spec.prepare(images)[0, :, 0, 0].tolist() == [1.0, 1.0, 0.5]


def test_shrinking_takes_means_of_areas() -> None:
    images = torch.rand(2, 1, 4, 8)
    found = InputSpec((2, 2), (0.0,), (1.0,)).prepare(images)
    expected = images.view(2, 1, 2, 2, 2, 4).mean(dim=(3, 5))
    torch.testing.assert_close(found, expected)


def test_growing_keeps_a_constant_image() -> None:
    found = InputSpec((9, 5), (0.0,), (1.0,)).prepare(torch.full((1, 1, 3, 3), 0.25))
    torch.testing.assert_close(found, torch.full((1, 1, 9, 5), 0.25))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 4, 4), (2, 4, 4, 3)])
def test_images_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(n, 3, height, width\)"):
        InputSpec((4, 4), (0.5,) * 3, (0.5,) * 3).prepare(torch.zeros(shape))


@pytest.mark.parametrize(
    ("size_px", "mean", "std"),
    [((4, 4), (0.5,), (0.5, 0.5)), ((4, 4), (), ()), ((4, 4), (0.5,), (0.0,)), ((0, 4), (0.5,), (0.5,))],
)
def test_an_input_that_makes_no_sense_is_refused(
    size_px: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(SettingError):
        InputSpec(size_px, mean, std)


def test_a_network_leaves_gradients_and_mode_to_its_caller() -> None:
    network = build("resnet8", classes=4)
    network.module.train()
    logits = network(torch.rand(2, 3, 64, 48))
    assert logits.shape == (2, 4)
    assert logits.requires_grad
    assert network.module.training


def test_evaluating_gives_each_part_its_mode_back_after_an_exception() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    module[2].eval()
    seen = []

    def fail() -> None:
        seen.extend(part.training for part in module.modules())
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), evaluating(module):
        fail()
    assert seen == [False] * 5
    assert [part.training for part in module.modules()] == [True, True, True, False, False]


def test_random_images_are_the_same_each_time_and_leave_the_global_state() -> None:
    network = Network("net", nn.Conv2d(3, 2, 1).to(torch.float64), InputSpec((5, 4), (0.5,) * 3, (0.5,) * 3), 2)
    state = torch.get_rng_state()
    images = random_images(network, 3)
    assert images.shape == (3, 3, 5, 4)
    assert images.dtype == torch.float64
    assert torch.equal(images, random_images(network, 3))
    assert torch.equal(state, torch.get_rng_state())


def test_random_images_for_a_module_without_weights() -> None:
    network = Network("net", nn.Flatten(), InputSpec((5, 4), (0.5,), (0.5,)), 20)
    assert random_images(network, 1).shape == (1, 1, 5, 4)


def test_a_fingerprint_is_that_of_the_weights() -> None:
    torch.manual_seed(0)
    one, other = build("resnet8", classes=3), build("resnet8", classes=3)
    assert fingerprint(one) != fingerprint(other)
    before = fingerprint(one)
    other.module.load_state_dict(one.module.state_dict())
    assert fingerprint(other) == before
    other.module.to(memory_format=torch.channels_last)
    assert fingerprint(other) == before
    other.module.bn1.running_mean[0] += 1
    assert fingerprint(other) != before


class Attending(nn.Module):
    """One attention over the pixels of an image, by PyTorch's fused function."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(dim=(1, 2))


def test_multiply_accumulates_of_attention() -> None:
    network = Network("attends", Attending(), InputSpec((4, 6), (0.5,) * 3, (0.5,) * 3), 3)
    assert count_macs(network) == 2 * 24 * 24 * 3  # queries by keys, and their weights by values
