from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from conftest import shaken
from keyhole.models.frozen import fold_batch_norm, freeze
from keyhole.models.layers import tap
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

INPUT = InputSpec((16, 16), (0.5,) * 3, (0.5,) * 3)


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def wrapped(module: nn.Module) -> Network:
    return shaken(Network("own", module.eval(), INPUT, 3))


@torch.no_grad()
def assert_same_outputs(found: nn.Module, expected: nn.Module, size_px: int = 16) -> None:
    images = torch.randn(3, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    output = expected(images)
    assert float((found(images) - output).abs().max()) <= 1e-4 * float(output.abs().max())


def test_resnet20_is_folded_whole_and_gives_the_same() -> None:
    network = shaken(build("resnet20", classes=10))
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    folded = fold_batch_norm(network)
    assert norms_in(folded) == 0
    assert_same_outputs(folded, network.module)
    after = network.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_random_statistics_of_the_tests_do_something() -> None:
    network = shaken(build("resnet20", classes=10))
    bare = build("resnet20", classes=10)
    bare.module.load_state_dict({**network.module.state_dict(), **_statistics(bare.module)})
    with pytest.raises(AssertionError):
        assert_same_outputs(bare.module, network.module)


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if "running" in name}


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_100", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_timm_networks_give_the_same(name: str) -> None:
    pytest.importorskip("timm")
    network = shaken(build(f"timm:{name}", classes=5, input=InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3)))
    folded = fold_batch_norm(network)
    if name == "resnet50":
        assert norms_in(folded) == 0
    assert_same_outputs(folded, network.module, 32)


def test_torchvision_mobilenet_is_folded_whole_and_gives_the_same() -> None:
    models = pytest.importorskip("torchvision.models")
    network = wrapped(models.mobilenet_v2(num_classes=3))
    folded = fold_batch_norm(network)
    assert norms_in(folded) == 0
    assert_same_outputs(folded, network.module, 32)


class Elsewhere(nn.Module):
    """Uses the output of a convolution before and after its batch norm."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.scale * self.head((self.norm(y).relu() + y).mean(dim=(2, 3)))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_network_that_uses_the_convolution_elsewhere_stays_unfolded(scale: float) -> None:
    network = wrapped(Elsewhere(scale))
    folded = fold_batch_norm(network)
    assert norms_in(folded) == 1
    assert_same_outputs(folded, network.module)


class Wrapping(nn.Module):
    """A convolution inside a part of its own, whose batch norm stands outside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.last = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.last(self.conv(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("keep", ["stem", "stem.0", "norm", "conv", "last"])
def test_features_of_kept_layers_are_unchanged(keep: str) -> None:
    network = wrapped(Wrapping())
    folded = fold_batch_norm(network, keep=[keep])
    assert norms_in(folded) >= 1
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), tap(folded, [keep]) as found, tap(network.module, [keep]) as expected:
        torch.testing.assert_close(folded(images), network.module(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """One convolution that runs twice, before two batch norms; and one batch norm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second, self.third = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.conv(self.first(self.conv(self.stem(x))).relu())).relu()
        x = self.third(self.b(self.third(self.a(x)).relu()))
        return self.head(x.mean(dim=(2, 3)))


class Overwritten(nn.Module):
    """A rectifier overwrites the convolution's output in place: the batch norm is given the very same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x).relu_()).mean(dim=(2, 3)))


class Keyword(Overwritten):
    """Calls its batch norm by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(input=self.conv(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("kind", [Shared, Overwritten, Keyword])
def test_pairs_that_cannot_be_folded_are_left(kind: type[nn.Module]) -> None:
    network = wrapped(kind())
    folded = fold_batch_norm(network)
    assert norms_in(folded) == norms_in(network.module)
    assert_same_outputs(folded, network.module)


@pytest.mark.parametrize("conv", [nn.Conv2d(3, 6, 3, bias=True), nn.Conv2d(3, 6, 3, groups=3, bias=False, dilation=2)])
@pytest.mark.parametrize("affine", [True, False])
def test_kinds_of_convolutions_and_norms(conv: nn.Conv2d, affine: bool) -> None:
    norm = nn.BatchNorm2d(6, affine=affine, eps=0.1)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    network = Network("own", nn.Sequential(conv, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), INPUT, 6)
    folded = fold_batch_norm(network)
    assert norms_in(folded) == 0
    assert_same_outputs(folded, network.module)


def test_a_norm_that_uses_the_statistics_of_its_batch_stays() -> None:
    network = Network(
        "own", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval(), INPUT, 4
    )
    assert norms_in(fold_batch_norm(network)) == 1


def test_folding_leaves_the_mode_of_each_part() -> None:
    network = shaken(build("resnet8", classes=10))
    network.module.train()
    network.module.layer2.eval()
    modes = [part.training for part in network.module.modules()]
    folded = fold_batch_norm(network)
    assert [part.training for part in network.module.modules()] == modes
    assert not any(part.training for part in folded.modules())


def test_a_frozen_network_gives_logits_and_features_and_learns_nothing() -> None:
    network = shaken(build("resnet8", classes=10))
    network.module.train()
    names = ["layer1.0", "layer2.0.conv1", "layer3"]
    frozen = freeze(network, names)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(part.training for part in frozen.modules() if part is not frozen)
    assert all(p.requires_grad for p in network.module.parameters())
    images = torch.rand(2, 3, 32, 32)
    logits, features = frozen(images)
    network.module.eval()
    with torch.no_grad(), tap(network.module, names) as expected:
        torch.testing.assert_close(logits, network.module(images), rtol=1e-3, atol=1e-3)
    assert list(features) == names
    for name in names:
        torch.testing.assert_close(features[name], expected[name], rtol=1e-3, atol=1e-3)


def test_frozen_in_half_precision() -> None:
    network = shaken(build("resnet20", classes=10))
    frozen = freeze(network, ["layer2"], precision="bf16")
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        logits, features = frozen(images.to(torch.bfloat16))
        expected = network.module(images)
    assert logits.dtype == features["layer2"].dtype == torch.bfloat16
    assert float((logits.float() - expected).norm() / expected.norm()) < 0.05
    assert network.module.conv1.weight.dtype == torch.float32


def test_frozen_keeps_only_the_reduced_features() -> None:
    frozen = freeze(build("resnet8", classes=10), ["layer1"], reduce=lambda feature: feature.mean(dim=(2, 3)))
    assert frozen(torch.rand(2, 3, 32, 32))[1]["layer1"].shape == (2, 16)


class OfTwoTypes(nn.Module):
    """Multiplies by a tensor that it makes in full precision, and gives the product to a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.scale = nn.Parameter(torch.full((3, 1, 1), 2.0))

    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.arange(images.shape[-1], dtype=torch.float32) / images.shape[-1]
        return self.second(self.first(images * self.scale) * ramp).mean(dim=(2, 3))


def test_a_network_that_cannot_run_in_half_precision_throughout_runs_all_the_same() -> None:
    network = wrapped(OfTwoTypes())
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad(), pytest.raises(RuntimeError):
        OfTwoTypes().bfloat16()(images.bfloat16())
    logits, features = freeze(network, ["first"], precision="bf16")(images.bfloat16())
    assert features["first"].dtype == torch.bfloat16
    with torch.no_grad(), tap(network.module, ["first"]) as expected:
        whole = network.module(images)
    torch.testing.assert_close(logits.float(), whole, rtol=0.05, atol=0.05)
    torch.testing.assert_close(features["first"].float(), expected["first"], rtol=0.05, atol=0.05)
