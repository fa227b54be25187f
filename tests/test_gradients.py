"""The layers that learn fast give PyTorch's own outputs and gradients, and are PyTorch's own everywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from keyhole import gradients
from keyhole.gradients import DepthwiseConv2d, PReLU


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def learnt(layer: nn.Module, feature: Tensor) -> list[Tensor]:
    """The output, and the gradients of feature and weights for a random gradient of the output."""
    taken = feature.clone().requires_grad_(True)
    found = layer(taken)
    weights = list(layer.parameters())
    return [found, *torch.autograd.grad(found, [taken, *weights], drawn(*found.shape, seed=9, dtype=found.dtype))]


def pair(ours: type[nn.Module], theirs: type[nn.Module], *given: int, **how: object) -> tuple[nn.Module, nn.Module]:
    one, other = ours(*given, **how).double(), theirs(*given, **how).double()
    other.load_state_dict(one.state_dict())
    return one, other


def test_prelu_gives_what_pytorch_gives() -> None:
    for weights in (1, 3):
        ours, theirs = pair(PReLU, nn.PReLU, weights)
        for layer in (ours, theirs):
            nn.init.constant_(layer.weight, -0.3)
        feature = drawn(4, 3, 5, 6)
        feature[0, 0, 0, 0] = 0.0
        for mine, its in zip(learnt(ours, feature), learnt(theirs, feature), strict=True):
            torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "side"),
    [
        (3, 2, 1, 1, (8, 8)), (3, 2, 1, 1, (7, 10)), (5, 3, 2, 1, (11, 9)), (3, 2, 0, 2, (9, 8)),
        (3, (1, 2), 1, 1, (6, 6)), (3, 1, 1, 1, (6, 6)), (1, 2, 0, 1, (5, 5)),
    ],
)  # fmt: skip
def test_strided_depthwise_convolutions_give_what_pytorch_gives(
    kernel: int, stride: int, padding: int, dilation: int, side: tuple[int, int], bias: bool
) -> None:
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 4, "bias": bias}
    ours, theirs = pair(DepthwiseConv2d, nn.Conv2d, 4, 4, kernel, **how)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        feature = drawn(3, 4, *side).to(memory_format=memory_format)
        for mine, its in zip(learnt(ours, feature), learnt(theirs, feature), strict=True):
            torch.testing.assert_close(mine, its)


def test_other_convolutions_are_pytorchs_own() -> None:
    for how in ({"groups": 2, "stride": 2}, {"groups": 4, "stride": 2, "padding": "valid"}):
        ours, theirs = pair(DepthwiseConv2d, nn.Conv2d, 4, 4, 3, **how)
        for mine, its in zip(learnt(ours, drawn(2, 4, 7, 7)), learnt(theirs, drawn(2, 4, 7, 7)), strict=True):
            torch.testing.assert_close(mine, its)
    ours, theirs = pair(DepthwiseConv2d, nn.Conv2d, 4, 4, 3, groups=4, stride=2, padding=1, padding_mode="reflect")
    for mine, its in zip(learnt(ours, drawn(2, 4, 7, 7)), learnt(theirs, drawn(2, 4, 7, 7)), strict=True):
        torch.testing.assert_close(mine, its)


def test_in_half_precision_gradients_are_pytorchs_to_rounding() -> None:
    ours = nn.Sequential(DepthwiseConv2d(4, 4, 3, stride=2, padding=1, groups=4), PReLU())
    theirs = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.PReLU())
    theirs.load_state_dict(ours.state_dict())
    feature = drawn(8, 4, 12, 12, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, its = learnt(ours, feature), learnt(theirs, feature)
    assert [tensor.dtype for tensor in mine] == [tensor.dtype for tensor in its]
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.detach().abs().max()))


def test_frozen_weights_get_no_gradient() -> None:
    layer = DepthwiseConv2d(4, 4, 3, stride=2, padding=1, groups=4)
    layer.weight.requires_grad_(False)
    feature = drawn(2, 4, 6, 6, dtype=torch.float32).requires_grad_(True)
    layer(feature).sum().backward()
    assert layer.weight.grad is None
    assert feature.grad is not None


def test_single_precision_gradients_are_pytorchs_to_rounding() -> None:
    ours = nn.Sequential(DepthwiseConv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), PReLU())
    theirs = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.PReLU())
    theirs.load_state_dict(ours.state_dict())
    feature = drawn(8, 16, 15, 16, dtype=torch.float32).to(memory_format=torch.channels_last)
    for mine, its in zip(learnt(ours, feature), learnt(theirs, feature), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5 * float(its.detach().abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_gives_pytorchs_precision(dtype: torch.dtype) -> None:
    layers = [(PReLU(), nn.PReLU()), (DepthwiseConv2d(4, 4, 3, 2, groups=4), nn.Conv2d(4, 4, 3, 2, groups=4))]
    for ours, theirs in layers:
        feature = drawn(2, 4, 6, 6, dtype=dtype).requires_grad_(True)
        if dtype == torch.float64:
            ours.double()
            theirs.double()
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(feature).dtype == theirs(feature).dtype


def test_a_single_image_without_its_batch_is_taken_as_pytorch_does() -> None:
    ours, theirs = pair(DepthwiseConv2d, nn.Conv2d, 4, 4, 3, stride=2, groups=4)
    for mine, its in zip(learnt(ours, drawn(4, 7, 7)), learnt(theirs, drawn(4, 7, 7)), strict=True):
        torch.testing.assert_close(mine, its)


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    for layer in (PReLU(), DepthwiseConv2d(4, 4, 3, stride=2, groups=4)):
        feature = drawn(2, 4, 6, 6, dtype=torch.float32).requires_grad_(True)
        (gradient,) = torch.autograd.grad(layer(feature).square().sum(), feature, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_without_gradients_and_in_exported_graphs_they_are_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(DepthwiseConv2d(4, 4, 3, stride=2, padding=1, groups=4), PReLU())
    images = torch.rand(2, 4, 8, 8)

    def refused(*_given: object) -> Tensor:
        raise AssertionError("a function of our own")

    monkeypatch.setattr(gradients._Strided, "apply", refused)
    monkeypatch.setattr(gradients._Leaky, "apply", refused)
    with torch.no_grad():
        network(images)
    program = torch.export.export(network, (images,))
    kinds = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("prelu" in kind for kind in kinds)
    with pytest.raises(AssertionError, match="a function of our own"):
        network(images)


def test_they_are_shown_as_what_they_compute() -> None:
    assert repr(PReLU()) == repr(nn.PReLU())
    how = {"stride": 2, "groups": 4}
    assert repr(DepthwiseConv2d(4, 4, 3, **how)) == repr(nn.Conv2d(4, 4, 3, **how))
