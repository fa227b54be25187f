"""bf16 without instructions for it: the numbers of bf16, whatever the processor, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from keyhole.bf16 import RoundedProducts, convolution_backward, fast_products, has_instructions
from keyhole.gradients import DepthwiseConv2d
from keyhole.models.frozen import freeze
from keyhole.models.layers import Tapped
from keyhole.models.zoo import build
from keyhole.runtime import autocast, ready_compiler

CPU = torch.device("cpu")
PRODUCTS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv1d": (functional.conv1d, [(4, 8, 32), (8, 8, 3), (8,)]),
    "conv2d": (lambda x, w: functional.conv2d(x, w, stride=2, padding=1), [(4, 8, 9, 9), (8, 8, 3, 3)]),
    "conv2d by name": (lambda x, w: functional.conv2d(input=x, weight=w, groups=8), [(4, 8, 9, 9), (8, 1, 3, 3)]),
    "conv3d": (functional.conv3d, [(2, 4, 5, 5, 5), (4, 4, 3, 3, 3)]),
    "conv_transpose2d": (functional.conv_transpose2d, [(2, 4, 5, 5), (4, 4, 3, 3)]),
    "linear": (functional.linear, [(8, 16), (4, 16), (4,)]),
    "@": (lambda a, b: a @ b, [(8, 16), (16, 4)]),
    "matmul": (lambda a, b: a.matmul(b), [(3, 8, 16), (16, 4)]),
    "mm": (torch.mm, [(8, 16), (16, 4)]),
    "bmm": (torch.bmm, [(3, 8, 16), (3, 16, 4)]),
    "addmm": (torch.addmm, [(8, 4), (8, 16), (16, 4)]),
    "baddbmm": (torch.baddbmm, [(3, 8, 4), (3, 8, 16), (3, 16, 4)]),
    "einsum": (lambda a, b: torch.einsum("ij,kj->ik", a, b), [(8, 16), (4, 16)]),
    "einsum of a list": (lambda a, b: torch.einsum("ij,kj->ik", [a, b]), [(8, 16), (4, 16)]),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyhole.bf16._INSTRUCTIONS", False)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("by", ["dtype", "autocast"])
def test_a_product_is_that_of_rounded_numbers_rounded_once(name: str, by: str) -> None:
    product, shapes = PRODUCTS[name]
    given = [drawn(*shape, seed=k) for k, shape in enumerate(shapes)]
    exact = product(*[tensor.bfloat16().double() for tensor in given])
    context = torch.autocast("cpu", torch.bfloat16) if by == "autocast" else nullcontext()
    with context, RoundedProducts():
        found = product(*[tensor if by == "autocast" else tensor.bfloat16() for tensor in given])
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= exact.abs().max() / 256 * 1.01
    assert (found == exact.bfloat16()).float().mean() > 0.99


def test_what_is_not_bf16_stays_as_it_is() -> None:
    image, weight = drawn(2, 3, 8, 8), drawn(4, 3, 3, 3)
    with RoundedProducts():
        assert torch.conv2d(image, weight).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.conv2d(image.double(), weight.double()).dtype == torch.float64
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(torch.conv2d(image, weight), functional.conv2d(image, weight))
                assert torch.conv2d(image, weight).dtype == torch.float32
        with torch.autocast("cpu", torch.float16):
            assert torch.conv2d(image, weight).dtype == torch.float16
        with pytest.raises(RuntimeError, match=r"scalar type|same type|same dtype"):
            torch.conv2d(image.bfloat16(), weight)
        assert torch.conv2d(image.bfloat16().to("meta"), weight.bfloat16().to("meta")).device.type == "meta"


def gradients(module: nn.Module, images: Tensor, context: AbstractContextManager[Any]) -> Tensor:
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), context:
        logits = module(images)
    assert logits.dtype == torch.bfloat16
    logits.float().logsumexp(1).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in module.parameters()])


def test_gradients_are_rounded_as_instructions_for_bf16_do(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("resnet8", classes=10)
    images = drawn(16, 3, 32, 32)
    for part in network.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()  # noise of a small batch is not what is looked at
    plain = gradients(network.module, images, nullcontext())
    monkeypatch.setattr("keyhole.bf16._INSTRUCTIONS", False)
    found = gradients(network.module, images, fast_products(CPU))
    network.module.zero_grad()
    network.module(images).logsumexp(1).mean().backward()
    full = torch.cat([weight.grad.flatten() for weight in network.module.parameters()])
    assert torch.linalg.vector_norm(found - plain) < 0.5 * torch.linalg.vector_norm(full - plain)
    assert torch.linalg.vector_norm(found - full) < 2 * torch.linalg.vector_norm(full - plain)


def test_a_strided_depthwise_convolution_learns_in_bf16_alike(without_instructions: None) -> None:
    ours = DepthwiseConv2d(4, 4, 3, stride=2, padding=1, groups=4)
    theirs = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        feature = drawn(8, 4, 8, 8).requires_grad_()
        with autocast(CPU, "bf16"):
            out = layer(feature)
        out.float().square().sum().backward()
        found.append((out.float(), feature.grad, layer.weight.grad, layer.bias.grad))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1 / 64, atol=1 / 64)


def test_a_gradient_that_is_not_wanted_is_none(without_instructions: None) -> None:
    tensors = [tensor.bfloat16() for tensor in (drawn(2, 4, 6, 6), drawn(2, 4, 8, 8), drawn(4, 4, 3, 3))]
    how = (None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False))
    feature, weight, bias = convolution_backward(*tensors, *how)
    assert feature is None
    assert bias is None
    exact = torch.ops.aten.convolution_backward(*[tensor.double() for tensor in tensors], *how)[1]
    assert weight is not None
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight.double(), exact, rtol=1 / 128, atol=0.01)


def test_a_frozen_teacher_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, images = build("resnet8", classes=10), drawn(4, 3, 32, 32).bfloat16()
    monkeypatch.setattr("keyhole.bf16._INSTRUCTIONS", True)
    logits, features = freeze(teacher, ["layer2.0"], precision="bf16")(images)
    monkeypatch.setattr("keyhole.bf16._INSTRUCTIONS", False)
    frozen = freeze(teacher, ["layer2.0"], precision="bf16")
    found, hints = frozen(images)
    assert found.dtype == logits.dtype == hints["layer2.0"].dtype == torch.bfloat16
    for mine, its in ((found, logits), (hints["layer2.0"], features["layer2.0"])):
        assert torch.linalg.vector_norm((mine - its).float()) < 0.01 * torch.linalg.vector_norm(its.float())


@pytest.mark.slow
def test_compiled_networks_give_the_same(without_instructions: None) -> None:
    ready_compiler()
    images = drawn(8, 3, 32, 32)
    found = []
    for compiles in (False, True):
        torch.manual_seed(0)
        network = build("resnet8", classes=10)
        frozen = freeze(network, precision="bf16", compile=compiles)
        student = Tapped(network.module.train(), [])
        if compiles:
            student.compile(dynamic=False)
        with autocast(CPU, "bf16"):
            found.append([frozen(images.bfloat16())[0].float(), student(images)[0].float()])
    for mine, its in zip(*found, strict=True):
        assert torch.linalg.vector_norm(mine - its) < 0.02 * torch.linalg.vector_norm(its)


def test_products_are_left_alone_where_there_are_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr("keyhole.bf16._INSTRUCTIONS", there)
        assert has_instructions() == there
        assert isinstance(fast_products(CPU), RoundedProducts) != there
        assert not isinstance(fast_products(torch.device("meta")), RoundedProducts)
