"""How alike the layers of two networks are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracles
from keyhole.data.splits import MemorySplit
from keyhole.hints.likeness import likeness
from keyhole.hints.moments import ObserveConfig
from keyhole.models.layers import layers, tap
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

LOOK = ObserveConfig(batch_size=10, precision="fp32", rbf=False)


@pytest.mark.parametrize("side", [8, 4])
def test_likeness_is_that_of_the_oracle(
    toy_teacher: Network, toy_split: MemorySplit, toy_input: InputSpec, side: int
) -> None:
    student = build("resnet8", classes=3, input=InputSpec((side, side), toy_input.mean, toy_input.std))
    names = (["layer1.1", "layer3.0"], ["layer1.0", "layer2.0", "layer3.0"])
    found = likeness((toy_teacher, student), names, toy_split, config=LOOK)
    pooled = []
    images = toy_split.pixels.permute(0, 3, 1, 2) / 255
    for network, wanted in zip((toy_teacher, student), names, strict=True):
        network.module.eval()
        with torch.no_grad(), tap(network.module, wanted) as features:
            network(images)
        pooled.append([feature.mean((2, 3)).double().numpy() for feature in features.values()])
    expected = [[oracles.linear_cka(x, y) for y in pooled[1]] for x in pooled[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_network_is_like_itself(toy_teacher: Network, toy_split: MemorySplit) -> None:
    names = [layer.name for layer in layers(toy_teacher)]
    found = likeness((toy_teacher, toy_teacher), (names, names), toy_split, config=LOOK)
    np.testing.assert_allclose(np.diag(found), 1)
    np.testing.assert_allclose(found, found.T, rtol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-9
