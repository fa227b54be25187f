from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keyhole.data.cifar import load_cifar
from keyhole.distillation.evaluation import evaluate
from keyhole.errors import SettingError
from keyhole.models.network import count_macs
from keyhole.models.resnet import CIFAR_RESNETS, CifarResNet
from keyhole.models.zoo import build

# From the tables of the RepDistiller and pytorch-cifar-models repositories.
PARAMETERS = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert build(name, classes=100).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_parameters_counted_by_hand(name: str) -> None:
    """Of each stage n blocks of two convolutions with batch norm; a shortcut where the width changes."""
    digits, _, wide = name.removeprefix("resnet").partition("x")
    blocks = (int(digits) - 2) // 6
    stem, first = (32, 16 * int(wide)) if wide else (16, 16)
    count, width = 3 * stem * 9 + 2 * stem, stem
    for stage in (first, 2 * first, 4 * first):
        count += 9 * stage * width + 9 * stage * stage * (2 * blocks - 1) + 2 * stage * 2 * blocks
        count += width * stage + 2 * stage if width != stage else 0
        width = stage
    count += 100 * width + 100
    assert build(name, classes=100).parameters == count
    assert PARAMETERS.get(name, count) == count


def test_multiply_accumulates_of_resnet20() -> None:
    stem, fc = 32 * 32 * 9 * 3 * 16, 64 * 100
    stages = [(32, 16, 16), (16, 16, 32), (8, 32, 64)]
    blocks = sum(size**2 * (9 * (a * b + 5 * b * b) + (a * b if a != b else 0)) for size, a, b in stages)
    assert stem + blocks + fc == 40_818_944
    network = build("resnet20", classes=100)
    network.module.train()
    network.module.bn1.eval()
    assert count_macs(network) == 40_818_944
    assert network.module.training
    assert not network.module.bn1.training


def test_multiply_accumulates_of_another_precision() -> None:
    network = build("resnet8", classes=10)
    expected = count_macs(network)
    network.module.to(torch.bfloat16)
    assert count_macs(network) == expected


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet20", "resnet8x4"])
def test_stages_have_full_half_and_quarter_resolution(name: str) -> None:
    network = build(name, classes=7).module
    assert network(torch.rand(2, 3, 16, 24)).shape == (2, 7)
    x = torch.relu(network.bn1(network.conv1(torch.rand(2, 3, 16, 24))))
    for stage, size in (("layer1", (16, 24)), ("layer2", (8, 12)), ("layer3", (4, 6))):
        x = getattr(network, stage)(x)
        assert x.shape == (2, CIFAR_RESNETS[name][1][int(stage[-1])], *size)


@pytest.mark.parametrize("depth", [2, 7, 9, 18, 51])
def test_a_depth_that_does_not_exist_is_refused(depth: int) -> None:
    with pytest.raises(SettingError, match=rf"6 b \+ 2 layers .* got depth {depth}\.$"):
        CifarResNet(depth)


def test_gray_images_of_another_size() -> None:
    assert CifarResNet(8, 10, inputs=1)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "file", "top1"),
    [
        pytest.param("resnet20", "cifar100_resnet20.pth", 68.83, marks=pytest.mark.slow),
        pytest.param("resnet32", "cifar100_resnet32.pth", 70.16, marks=pytest.mark.slow),
        pytest.param("resnet56", "cifar100_resnet56-f2eff4c8.pt", 72.63, marks=pytest.mark.slow),
    ],
)
def test_published_weights_reach_their_published_accuracy(
    shared: Path, cifar100_root: Path, name: str, file: str, top1: float
) -> None:
    network = build(name, classes=100, weights=shared / "data" / "weights" / file)
    found = evaluate(network, load_cifar("cifar100", cifar100_root, download=False)[1])
    assert found.images == 10_000
    assert 100 * found.top1 == pytest.approx(top1, abs=0.005)


def test_published_weights_are_right_on_the_first_images(shared: Path, cifar100_root: Path) -> None:
    network = build("resnet20", classes=100, weights=shared / "data" / "weights" / "cifar100_resnet20.pth")
    test = load_cifar("cifar100", cifar100_root, download=False)[1].subset(range(500))
    assert evaluate(network, test).top1 == pytest.approx(0.6883, abs=0.06)  # three standard errors
