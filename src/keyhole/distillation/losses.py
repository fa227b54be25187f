"""What a student is asked to be alike in. Each loss is a plain function of two tensors and gives one number >= 0."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from keyhole.errors import ShapeError
from keyhole.models.layers import as_map


def soft_target_loss(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], *, temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Return how far the student's softened class probabilities are from the teacher's.

    The Kullback-Leibler divergence at a temperature, times the temperature squared, averaged over the images; 0 when
    the logits agree up to a constant per image.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher for the same images; gets no gradient.
        temperature: Divides both; above 1 the small probabilities count more.

    Raises:
        ShapeError: The two have different shapes.

    Reference:
        Hinton, Vinyals, Dean (2015), https://arxiv.org/abs/1503.02531, section 2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> soft_target_loss(logits, logits + 3).abs().item() < 1e-6
        True
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"Logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape; "
            "build both for the same classes."
        )
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def hint_loss(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Return the mean squared difference between an adapted student feature and the teacher's.

    Args:
        student: Feature of the student, already brought to the teacher's channels by an adapter.
        teacher: Feature of the teacher; gets no gradient. Where the sizes differ, both are
            averaged down to the smaller height and width.

    Raises:
        ShapeError: The number of images or channels differs.

    Reference:
        Romero et al. (2015), FitNets, https://arxiv.org/abs/1412.6550, equation 3; the mean instead of
        half the sum, as in the published comparisons.

    Example:
        >>> import torch
        >>> hint_loss(torch.zeros(2, 4, 8, 8), torch.full((2, 4, 4, 4), 3.0)).item()
        9.0
    """
    student, teacher = to_common_size(student.float(), teacher.detach().float())
    if student.shape != teacher.shape:
        raise ShapeError(
            f"Features of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in images or "
            "channels; put an adapter between them."
        )
    loss: Tensor = _MeanSquare.apply(student - teacher)
    return loss


class _MeanSquare(torch.autograd.Function):
    """The mean of squares, whose gradient keeps the memory format of its input.

    That of ``mse_loss`` and of ``mean`` is channels first always, and batch norm, handed a gradient of the other
    format than its input's, takes ten times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, difference: Tensor) -> Tensor:
        ctx.save_for_backward(difference)
        return difference.square().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (difference,) = ctx.saved_tensors
        scaled: Tensor = difference * (gradients[0] * (2 / difference.numel()))
        return scaled


def attention_loss(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n d h w"]) -> Float[Tensor, ""]:
    """Return how differently two layers spread their energy over the image, from 0 to 2 over the number of positions.

    Each feature becomes a map of its mean squared channel, scaled to unit length; the loss is the mean squared
    difference. It is blind to channels, so no adapter is needed, and to scale.

    Args:
        student: Feature of the student.
        teacher: Feature of the teacher; gets no gradient. Where the sizes differ, both are
            averaged down to the smaller height and width.

    Raises:
        ShapeError: The number of images differs.

    Reference:
        Zagoruyko and Komodakis (2017), https://arxiv.org/abs/1612.03928, equation 2 with p = 2; squared and
        averaged over images and positions, as in the published comparisons.

    Example:
        >>> import torch
        >>> feature = torch.rand(2, 8, 4, 4)
        >>> attention_loss(feature, 3 * feature).item() < 1e-12
        True
    """
    if student.shape[0] != teacher.shape[0]:
        raise ShapeError(f"Features come from {student.shape[0]} and {teacher.shape[0]} images; expected the same.")
    student, teacher = to_common_size(student.float(), teacher.detach().float())
    return functional.mse_loss(_attention(student), _attention(teacher))


def _attention(feature: Tensor) -> Tensor:
    return functional.normalize(feature.square().mean(dim=1).flatten(1), dim=1)


def to_common_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both features averaged down to the smaller of their heights and widths.

    Example:
        >>> import torch
        >>> a, b = to_common_size(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 8, 8))
        >>> a.shape[2:] == b.shape[2:] == (4, 4)
        True
    """
    student, teacher = as_map(student), as_map(teacher)
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool_to(student, size), _pool_to(teacher, size)


def _pool_to(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else functional.adaptive_avg_pool2d(feature, size)
