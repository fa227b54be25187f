from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import oracles
from keyhole.distillation.losses import attention_loss, hint_loss, soft_target_loss, to_common_size
from keyhole.errors import ShapeError

Loss = Callable[[Tensor, Tensor], Tensor]
SIZES = [
    ((2, 3, 4, 4), (2, 3, 4, 4)),
    ((1, 1, 1, 1), (1, 1, 1, 1)),
    ((3, 2, 8, 8), (3, 2, 4, 4)),
    ((2, 4, 4, 4), (2, 4, 8, 8)),
    ((2, 4, 7, 5), (2, 4, 3, 5)),
    ((2, 3, 8, 2), (2, 3, 4, 6)),
]


@pytest.mark.parametrize("images", [1, 2, 7])
@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_targets_are_those_of_the_oracle(images: int, classes: int, temperature: float) -> None:
    student, teacher = 3 * torch.randn(images, classes), 3 * torch.randn(images, classes)
    found = soft_target_loss(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(oracles.soft_target_loss(student, teacher, temperature), rel=1e-4, abs=1e-6)
    assert found.item() >= 0


def test_a_soft_target_worked_by_hand() -> None:
    # teacher 3:1, student 1:1 at temperature 1: 0.75 log(1.5) + 0.25 log(0.5)
    student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    assert soft_target_loss(student, teacher, temperature=1.0).item() == pytest.approx(0.130812, abs=1e-6)


def test_soft_targets_are_blind_to_a_constant() -> None:
    logits = torch.randn(4, 6)
    assert soft_target_loss(logits, logits + torch.randn(4, 1)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
def test_hints_are_those_of_the_oracle(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    student, teacher = torch.randn(sizes[0]), torch.randn(sizes[1])
    assert hint_loss(student, teacher).item() == pytest.approx(oracles.hint_loss(student, teacher), rel=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("more_channels", [0, 5])
def test_attention_is_that_of_the_oracle(sizes: tuple[tuple[int, ...], tuple[int, ...]], more_channels: int) -> None:
    n, c, h, w = sizes[1]
    student, teacher = torch.randn(sizes[0]), torch.randn(n, c + more_channels, h, w)
    found = attention_loss(student, teacher).item()
    assert found == pytest.approx(oracles.attention_loss(student, teacher), rel=1e-4, abs=1e-9)
    positions = min(sizes[0][2], h) * min(sizes[0][3], w)
    assert 0 <= found <= 2 / positions


def test_attention_is_blind_to_scale_and_at_most_two_over_the_positions() -> None:
    feature = torch.randn(2, 3, 4, 4)
    assert attention_loss(7 * feature, feature).item() == pytest.approx(0, abs=1e-12)
    left, right = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    left[..., 0, 0], right[..., 1, 0] = 5.0, 0.1
    assert attention_loss(left, right).item() == pytest.approx(2 / 4)


LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "soft targets": (soft_target_loss, (4, 6)),
    "hints": (hint_loss, (2, 3, 4, 4)),
    "hints of tokens": (hint_loss, (2, 17, 3)),
    "hints of vectors": (hint_loss, (2, 3)),
    "attention": (attention_loss, (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name: str) -> None:
    loss, shape = LOSSES[name]
    feature = torch.randn(shape)
    student = feature.clone().requires_grad_()
    value = loss(student, feature)
    value.backward()
    assert value.shape == ()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_reaches_the_student_and_not_the_teacher(name: str) -> None:
    loss, shape = LOSSES[name]
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", ["soft targets", "hints", "attention"])
def test_gradients_are_those_of_small_differences(name: str) -> None:
    loss, shape = LOSSES[name]
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    loss(student, teacher).backward()
    assert student.grad is not None
    direction = torch.randn(shape)
    step = 1e-2
    with torch.no_grad():
        slope = (loss(student + step * direction, teacher) - loss(student - step * direction, teacher)) / (2 * step)
    assert slope.item() == pytest.approx((student.grad * direction).sum().item(), rel=0.02, abs=1e-4)


def test_the_gradient_of_hints_keeps_the_memory_format() -> None:
    feature = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    gradients: list[Tensor] = []
    inner = feature * 1
    inner.register_hook(gradients.append)
    hint_loss(inner, torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)).backward()
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_in_half_precision_are_computed_in_full(name: str) -> None:
    loss, shape = LOSSES[name]
    student, teacher = (torch.randn(shape).to(torch.bfloat16) for _ in range(2))
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(student.float(), teacher.float()).item(), rel=1e-5)


def test_a_dead_layer_gives_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss(student, torch.rand(2, 3, 4, 4)).backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_maps_meet_at_the_smaller_height_and_width() -> None:
    a, b = torch.randn(2, 3, 8, 4), torch.randn(2, 5, 4, 6)
    found, other = to_common_size(a, b)
    assert found.shape == (2, 3, 4, 4)
    assert other.shape == (2, 5, 4, 4)
    torch.testing.assert_close(found, torch.from_numpy(oracles.average_to(a.numpy(), 4, 4)).float())
    torch.testing.assert_close(other, torch.from_numpy(oracles.average_to(b.numpy(), 4, 4)).float())


def test_a_transformer_teaches_a_convolutional_network() -> None:
    tokens = torch.randn(2, 1 + 16, 3)
    student = tokens[:, 1:].transpose(1, 2).reshape(2, 3, 4, 4)
    assert hint_loss(student, tokens).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "words"),
    [
        (soft_target_loss, (2, 3), (2, 4), "build both for the same classes"),
        (soft_target_loss, (2, 3), (1, 3), "must have one shape"),
        (hint_loss, (2, 3, 4, 4), (2, 5, 4, 4), "put an adapter between them"),
        (hint_loss, (2, 3, 4, 4), (1, 3, 4, 4), "differ in images or channels"),
        (hint_loss, (2, 3, 4, 4, 4), (2, 3, 4, 4), "A feature has the shape"),
        (attention_loss, (2, 3, 4, 4), (3, 3, 4, 4), "come from 2 and 3 images"),
        (attention_loss, (2,), (2, 3, 4, 4), "A feature has the shape"),
    ],
)
def test_shapes_that_do_not_fit(loss: Loss, student: tuple[int, ...], teacher: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
