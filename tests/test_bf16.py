"""bf16 without kernels for it: the numbers of bf16, no product of bf16 computed, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from keyhole.bf16 import ProductsInFp32, fast_products, has_kernels
from keyhole.data.sources import default_input, open_data
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.notation import parse_terms
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
    "conv2d, a named tuple": (lambda x, w: functional.conv2d(x, w, stride=Sides(2, 1)), [(4, 8, 9, 9), (8, 8, 3, 3)]),
    "conv3d": (functional.conv3d, [(2, 4, 5, 5, 5), (4, 4, 3, 3, 3)]),
    "conv_transpose1d": (functional.conv_transpose1d, [(2, 4, 5), (4, 4, 3)]),
    "conv_transpose2d": (functional.conv_transpose2d, [(2, 4, 5, 5), (4, 4, 3, 3)]),
    "conv_transpose3d": (functional.conv_transpose3d, [(2, 4, 5, 5, 5), (4, 4, 3, 3, 3)]),
    "linear": (functional.linear, [(8, 16), (4, 16), (4,)]),
    "@": (lambda a, b: a @ b, [(8, 16), (16, 4)]),
    "matmul": (torch.matmul, [(3, 8, 16), (16, 4)]),
    "linalg.matmul": (torch.linalg.matmul, [(3, 8, 16), (16, 4)]),
    "Tensor.matmul": (lambda a, b: a.matmul(b), [(3, 8, 16), (16, 4)]),
    "mm": (torch.mm, [(8, 16), (16, 4)]),
    "Tensor.mm": (lambda a, b: a.mm(b), [(8, 16), (16, 4)]),
    "bmm": (torch.bmm, [(3, 8, 16), (3, 16, 4)]),
    "Tensor.bmm": (lambda a, b: a.bmm(b), [(3, 8, 16), (3, 16, 4)]),
    "addmm": (torch.addmm, [(8, 4), (8, 16), (16, 4)]),
    "Tensor.addmm": (lambda c, a, b: c.addmm(a, b), [(8, 4), (8, 16), (16, 4)]),
    "addbmm": (torch.addbmm, [(8, 4), (3, 8, 16), (3, 16, 4)]),
    "Tensor.addbmm": (lambda c, a, b: c.addbmm(a, b), [(8, 4), (3, 8, 16), (3, 16, 4)]),
    "baddbmm": (torch.baddbmm, [(3, 8, 4), (3, 8, 16), (3, 16, 4)]),
    "Tensor.baddbmm": (lambda c, a, b: c.baddbmm(a, b), [(3, 8, 4), (3, 8, 16), (3, 16, 4)]),
}


class Sides(NamedTuple):
    down: int
    across: int


class Spy(TorchDispatchMode):
    """Lists the products of bf16 that are computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if any(part in name for part in ("conv", "mm", "matmul", "linear", "attention")):
            self.products += 1
            if any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in args):
                self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def no_product_of_bf16() -> Iterator[None]:
    with Spy() as spy:
        yield
    assert spy.products > 0
    assert spy.seen == []


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyhole.bf16._KERNELS", False)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("by", ["dtype", "autocast"])
def test_a_product_is_that_of_rounded_numbers_rounded_once(name: str, by: str) -> None:
    product, shapes = PRODUCTS[name]
    given = [drawn(*shape, seed=k) for k, shape in enumerate(shapes)]
    exact = product(*[tensor.bfloat16().double() for tensor in given])
    context = torch.autocast("cpu", torch.bfloat16) if by == "autocast" else nullcontext()
    with no_product_of_bf16(), context, ProductsInFp32():
        found = product(*[tensor if by == "autocast" else tensor.bfloat16() for tensor in given])
    assert found.dtype == torch.bfloat16
    assert (found == exact.bfloat16()).float().mean() > 0.99
    assert (found.double() - exact).abs().max() <= exact.abs().max() / 256 * 1.01


@pytest.mark.parametrize("mask", [None, torch.ones(6, 6, dtype=torch.bool).tril(), torch.zeros(6, 6)])
def test_attention_is_that_of_rounded_numbers(mask: Tensor | None) -> None:
    given = [drawn(2, 3, 6, 8, seed=k) for k in range(3)]
    exact = functional.scaled_dot_product_attention(*[t.bfloat16().float() for t in given], attn_mask=mask)
    with no_product_of_bf16(), torch.autocast("cpu", torch.bfloat16), ProductsInFp32():
        found = functional.scaled_dot_product_attention(*given, attn_mask=mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=1 / 128, atol=1e-6)


def test_gradients_are_those_of_rounded_numbers_rounded_once() -> None:
    feature, weight, above = drawn(4, 8, 9, 9), drawn(8, 8, 3, 3, seed=1), drawn(4, 8, 7, 7, seed=2)

    def gradients(dtype: torch.dtype, *, mode: bool) -> list[Tensor]:
        # weights of more than bf16, as a training has them
        taken = [tensor.to(torch.promote_types(dtype, torch.float32)).requires_grad_() for tensor in (feature, weight)]
        with ProductsInFp32() if mode else nullcontext():
            found = functional.conv2d(*[tensor.to(torch.bfloat16).to(dtype) for tensor in taken])
            found.backward(above.bfloat16().to(dtype))
        return [tensor.grad for tensor in taken if tensor.grad is not None]

    exact = gradients(torch.float64, mode=False)
    for mine, its in zip(gradients(torch.bfloat16, mode=True), exact, strict=True):
        assert torch.equal(mine.bfloat16().to(mine.dtype), mine), "as they come from a product, so they are rounded"
        assert (mine.bfloat16() == its.bfloat16()).float().mean() > 0.99


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_that_is_only_looked_at_computes_no_product_of_bf16(mode: Any, without_kernels: None) -> None:
    module = build("resnet8", classes=10).module.eval()
    images = drawn(4, 3, 32, 32)
    with mode(), no_product_of_bf16(), autocast(CPU, "bf16"):
        found = module(images)
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(found.float(), module(images), rtol=0.05, atol=0.05)


def test_what_is_not_bf16_stays_as_it_is() -> None:
    image, weight = drawn(2, 3, 8, 8), drawn(4, 3, 3, 3)
    with ProductsInFp32():
        assert torch.conv2d(image, weight).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.conv2d(image.double(), weight.double()).dtype == torch.float64
            assert torch.einsum("nchw->nc", image).dtype == torch.float32
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(torch.conv2d(image, weight), functional.conv2d(image, weight))
                assert torch.conv2d(image, weight).dtype == torch.float32
        with torch.autocast("cpu", torch.float16):
            assert torch.conv2d(image, weight).dtype == torch.float16
            assert torch.conv2d(image.bfloat16(), weight.bfloat16()).dtype == torch.float16
        with pytest.raises(RuntimeError, match=r"scalar type|same type|same dtype"):
            torch.conv2d(image.bfloat16(), weight)
        assert torch.conv2d(image.bfloat16().to("meta"), weight.bfloat16().to("meta")).device.type == "meta"


def test_a_tensor_that_is_given_to_be_filled_is_filled() -> None:
    one, other = drawn(4, 5).bfloat16(), drawn(5, 3, seed=1).bfloat16()
    out = torch.zeros(4, 3, dtype=torch.bfloat16)
    with ProductsInFp32():
        found = torch.mm(one, other, out=out)
    assert found is out
    assert torch.equal(out, (one.double() @ other.double()).bfloat16())


def test_a_strided_depthwise_convolution_learns_in_bf16_alike(without_kernels: None) -> None:
    ours = DepthwiseConv2d(4, 4, 3, stride=2, padding=1, groups=4)
    theirs = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        feature = drawn(8, 4, 8, 8).requires_grad_()
        with no_product_of_bf16():
            with autocast(CPU, "bf16"):
                out = layer(feature)
            assert out.dtype == torch.bfloat16
            with fast_products(CPU):
                out.float().square().sum().backward()
        found.append((out.float(), feature.grad, layer.weight.grad, layer.bias.grad))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1 / 64, atol=1 / 64)


class OfTwoTypes(nn.Module):
    """A network that makes a tensor of fp32 on the way, so that it cannot run in bf16 throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.conv(images * self.scale + torch.zeros(images.shape)).mean((2, 3))
        return logits


@pytest.mark.parametrize("kind", ["resnet8", "of two types"])
def test_a_frozen_teacher_gives_the_same_by_no_product_of_bf16(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = build("resnet8", classes=10)
    if kind != "resnet8":
        object.__setattr__(teacher, "module", OfTwoTypes())
    names = ["layer2.0"] if kind == "resnet8" else ["conv"]
    images = drawn(4, 3, 32, 32).bfloat16()
    monkeypatch.setattr("keyhole.bf16._KERNELS", True)
    logits, features = freeze(teacher, names, precision="bf16")(images)
    monkeypatch.setattr("keyhole.bf16._KERNELS", False)
    with no_product_of_bf16():
        frozen = freeze(teacher, names, precision="bf16")
        found, hints = frozen(images)
    assert found.dtype == logits.dtype
    assert hints[names[0]].dtype == torch.bfloat16
    for mine, its in ((found, logits), (hints[names[0]], features[names[0]])):
        assert torch.linalg.vector_norm((mine - its).float()) < 0.01 * torch.linalg.vector_norm(its.float())
    if kind != "resnet8":
        assert {name.rpartition("module.")[2] for name, _ in frozen.named_parameters()} == {
            "scale", "conv.weight", "conv.bias",
        }  # fmt: skip


AGAIN = """
from torch import nn
from torch.utils.checkpoint import checkpoint

class Again(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, classes)

    def forward(self, images):
        found = checkpoint(lambda x: self.second(self.first(x).relu()), images, use_reentrant=False)
        return self.fc(found.relu().mean((2, 3)))

def build(classes):
    return Again(classes)
"""


@pytest.mark.parametrize("balance", ["weights", "gradients"])
def test_a_step_takes_no_product_of_bf16_also_of_a_network_that_computes_again_in_its_backward_pass(
    balance: str, without_kernels: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "net_that_computes_again.py").write_text(AGAIN)
    monkeypatch.syspath_prepend(tmp_path)
    teacher, digits = build("resnet8", classes=10, input=default_input("digits")), open_data("digits").train
    arms = [
        Arm(name, student, teacher.input, parse_terms("ce,kd"), balance=balance)
        for name, student in (("one", "resnet8"), ("two", "net_that_computes_again:build"))
    ]
    config = TrainConfig(epochs=1, precision="bf16", device="cpu", compile="off")
    cohort = Cohort(arms, config, classes=10, teacher=teacher, train=digits)
    cohort.train_mode()
    before = [weight.clone() for learner in cohort.learners for weight in learner.weights]
    with no_product_of_bf16():
        (lesson,) = cohort.lessons([next(digits.training_batches(8, seed=0, epoch=0))])
        cohort.step(lesson, 0.1)
    after = [weight for learner in cohort.learners for weight in learner.weights]
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.slow
def test_compiled_networks_give_the_same(without_kernels: None) -> None:
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


def test_products_are_left_alone_where_there_are_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr("keyhole.bf16._KERNELS", there)
        assert has_kernels() == there
        assert isinstance(fast_products(CPU), ProductsInFp32) != there
        assert not isinstance(fast_products(torch.device("meta")), ProductsInFp32)
