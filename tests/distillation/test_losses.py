from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import oracles
from keyhole.distillation.losses import (
    attention_loss,
    correlation_loss,
    decoupled_loss,
    hint_loss,
    similarity_preserving_loss,
    soft_target_loss,
    standardize,
    standardized_loss,
    to_common_size,
    transformed_teacher_loss,
    variational_loss,
)
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


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_targets_are_those_of_the_oracle(classes: int, alpha: float, beta: float, temperature: float) -> None:
    student, teacher = 3 * torch.randn(4, classes), 3 * torch.randn(4, classes)
    labels = torch.randint(classes, (4,))
    found = decoupled_loss(student, teacher, labels, alpha=alpha, beta=beta, temperature=temperature).item()
    expected = oracles.decoupled_loss(student, teacher, labels, alpha, beta, temperature)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_decoupled_targets_put_together_again_are_soft_targets() -> None:
    student, teacher, labels = torch.randn(1, 6), torch.randn(1, 6), torch.tensor([2])
    sure = float(torch.softmax(teacher / 4, dim=1)[0, 2])
    found = decoupled_loss(student, teacher, labels, beta=1 - sure)
    assert found.item() == pytest.approx(soft_target_loss(student, teacher).item(), rel=1e-4)


def test_a_decoupled_teacher_that_is_certain_still_teaches_the_rest() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    decoupled_loss(student, torch.tensor([[200.0, 4.0, 0.0]]), torch.tensor([0])).backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert float(student.grad[0, 1]) < float(student.grad[0, 2])


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_correlations_are_those_of_the_oracle(classes: int, temperature: float) -> None:
    student, teacher = 3 * torch.randn(5, classes), 3 * torch.randn(5, classes)
    found = correlation_loss(student, teacher, beta=2.0, gamma=0.5, temperature=temperature).item()
    assert found == pytest.approx(oracles.correlation_loss(student, teacher, 2.0, 0.5, temperature), rel=1e-4)


def test_a_constant_student_has_no_correlation_and_a_finite_gradient() -> None:
    student = torch.zeros(4, 6, requires_grad=True)
    found = correlation_loss(student, torch.randn(4, 6), temperature=1.0)
    found.backward()
    assert found.item() == pytest.approx(2.0)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_standardized_targets_are_those_of_the_oracle(classes: int) -> None:
    student, teacher = 3 * torch.randn(4, classes), 3 * torch.randn(4, classes)
    rows = [torch.tensor([oracles.standardized(row) for row in value.tolist()]) for value in (student, teacher)]
    torch.testing.assert_close(standardize(student), rows[0])
    expected = oracles.soft_target_loss(rows[0], rows[1], 2.0)
    assert standardized_loss(student, teacher).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_logits_that_are_all_the_same_become_zero_with_a_finite_gradient() -> None:
    student = torch.full((2, 5), 3.0, requires_grad=True)
    assert standardize(student).abs().max().item() == 0
    standardized_loss(student, torch.randn(2, 5)).backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("exponent", [0.1, 0.2, 1.0])
def test_a_transformed_teacher_is_that_of_the_oracle(exponent: float) -> None:
    student, teacher = 3 * torch.randn(4, 7), 3 * torch.randn(4, 7)
    found = transformed_teacher_loss(student, teacher, exponent=exponent).item()
    assert found == pytest.approx(oracles.transformed_teacher_loss(student, teacher, exponent), rel=1e-4)


def test_a_transformed_teacher_without_a_power_is_the_divergence_itself() -> None:
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    found = transformed_teacher_loss(student, teacher, exponent=1.0).item()
    assert found == pytest.approx(soft_target_loss(student, teacher, temperature=1.0).item(), rel=1e-5)


def test_a_transformed_teacher_weighs_the_images_where_it_is_unsure() -> None:
    student = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    sure, unsure = torch.tensor([[60.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert transformed_teacher_loss(student, unsure).item() == pytest.approx(
        4**0.8 * soft_target_loss(student, unsure, temperature=1.0).item(), rel=1e-4
    )
    assert transformed_teacher_loss(sure, sure, exponent=1.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (5, 3, 4, 4), (4, 17, 3)])
def test_similarity_preserving_is_that_of_the_oracle(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape[0], 6, 2, 2)
    found = similarity_preserving_loss(student, teacher).item()
    assert found == pytest.approx(oracles.similarity_preserving_loss(student, teacher), rel=1e-4)
    assert 0 <= found <= 4 / shape[0]


@pytest.mark.parametrize("sizes", SIZES)
def test_surprise_is_that_of_the_oracle(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    mean, teacher = torch.randn(sizes[0]), torch.randn(sizes[1])
    deviation = torch.rand(sizes[0][1]) + 0.5
    found = variational_loss(mean, deviation, teacher).item()
    assert found == pytest.approx(oracles.variational_loss(mean, deviation, teacher), rel=1e-4, abs=1e-5)


def test_the_least_surprise_is_at_the_deviation_of_the_error() -> None:
    mean, teacher = torch.zeros(2, 1, 8, 8), 3 * torch.randn(2, 1, 8, 8)
    error = teacher.square().mean().sqrt()
    best = variational_loss(mean, error.view(1), teacher)
    for factor in (0.9, 1.1):
        assert variational_loss(mean, factor * error.view(1), teacher) > best


LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "soft targets": (soft_target_loss, (4, 6)),
    "hints": (hint_loss, (2, 3, 4, 4)),
    "hints of tokens": (hint_loss, (2, 17, 3)),
    "hints of vectors": (hint_loss, (2, 3)),
    "attention": (attention_loss, (2, 3, 4, 4)),
    "decoupled": (lambda s, t: decoupled_loss(s, t, torch.tensor([0, 3, 5, 0])), (4, 6)),
    "correlations": (correlation_loss, (4, 6)),
    "standardized": (standardized_loss, (4, 6)),
    "alike images": (similarity_preserving_loss, (5, 3, 4, 4)),
    "alike images of tokens": (similarity_preserving_loss, (5, 17, 3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name: str) -> None:
    loss, shape = LOSSES[name]
    feature = torch.randn(shape)
    student = feature.clone().requires_grad_()
    value = loss(student, feature)
    value.backward()
    assert value.shape == ()
    rounding = 1e-5 if name == "correlations" else 1e-12  # 1 - r, r rounded
    assert value.item() == pytest.approx(0, abs=rounding)
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e-6 + rounding


# what is not 0 where both are equal
OTHERS: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "transformed teacher": (transformed_teacher_loss, (4, 6)),
    "surprise": (lambda s, t: variational_loss(s, torch.tensor([0.5, 1.0, 2.0]), t), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_rest_reaches_the_student_alone_along_its_slope_and_in_full_precision(name: str) -> None:
    loss, shape = OTHERS[name]
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
    direction, step = torch.randn(shape), 1e-2
    with torch.no_grad():
        slope = (loss(student + step * direction, teacher) - loss(student - step * direction, teacher)) / (2 * step)
    assert slope.item() == pytest.approx((student.grad * direction).sum().item(), rel=0.02, abs=1e-4)
    half = [value.detach().to(torch.bfloat16) for value in (student, teacher)]
    assert loss(*half).item() == pytest.approx(loss(half[0].float(), half[1].float()).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_reaches_the_student_and_not_the_teacher(name: str) -> None:
    loss, shape = LOSSES[name]
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
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
        (correlation_loss, (2, 3), (2, 4), "must have one shape"),
        (standardized_loss, (2, 3), (2, 4), "must have one shape"),
        (transformed_teacher_loss, (2, 3), (2, 4), "must have one shape"),
        (similarity_preserving_loss, (2, 3, 4, 4), (3, 3, 4, 4), "come from 2 and 3 images"),
        (lambda s, t: variational_loss(s, torch.ones(3), t), (2, 3, 4, 4), (2, 5, 4, 4), "differ in images or"),
        (lambda s, t: variational_loss(s, torch.ones(4), t), (2, 3, 4, 4), (2, 3, 4, 4), "deviation (4,)"),
    ],
)
def test_shapes_that_do_not_fit(loss: Loss, student: tuple[int, ...], teacher: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
