"""What a student is asked to be alike in: plain functions of the student's tensor and the teacher's, each one number.

The teacher's tensor gets no gradient. Losses of logits take (n, k) for n images and k classes; losses of features take
maps (n, c, h, w), tokens (n, t, c) or vectors (n, c).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
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
    student, teacher = _logits(student, teacher)
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return _divergence(log_student, log_teacher) * temperature**2


def _logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ShapeError(
            f"Logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape; "
            "build both for the same classes."
        )
    return student.float(), teacher.detach().float()


def standardize(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return each image's logits with mean 0 and standard deviation 1 (of a sample: divided by k - 1).

    A student that need not meet the size of the teacher's logits is left their order and proportions to learn. Logits
    that are all the same become 0.

    Reference:
        Sun et al. (2024), https://arxiv.org/abs/2403.01427, algorithm 1.

    Example:
        >>> import torch
        >>> standardize(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[-1.0, 0.0, 1.0]]
    """
    deviation = logits.float().std(dim=1, keepdim=True)
    centered = logits.float() - logits.float().mean(dim=1, keepdim=True)
    return centered / deviation.clamp_min(1e-7)


def standardized_loss(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], *, temperature: float = 2.0
) -> Float[Tensor, ""]:
    """Return :func:`soft_target_loss` of standardized logits; it is blind to their size as well as to a constant.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher for the same images.
        temperature: Divides both after they were standardized.

    Raises:
        ShapeError: The two have different shapes.

    Reference:
        Sun et al. (2024), https://arxiv.org/abs/2403.01427, algorithm 1.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> standardized_loss(logits, 7 * logits + 3).abs().item() < 1e-6
        True
    """
    student, teacher = _logits(student, teacher)
    return soft_target_loss(standardize(student), standardize(teacher), temperature=temperature)


def decoupled_loss(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    labels: Int64[Tensor, " n"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """Return the divergence of soft targets in two parts: the class itself against the rest, and the rest by itself.

    In :func:`soft_target_loss` the second part weighs little where the teacher is sure; here it has a weight of its
    own. With alpha 1 and beta 1 - p, p the teacher's probability of the class, the two losses are one.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher for the same images.
        labels: The class of each image.
        alpha: Weight of the class against the rest.
        beta: Weight of the rest; the authors' settings for CIFAR-100 have 8 where nothing else is said (ResNet-32x4 as
            the teacher), 6 for WRN-40-2 and VGG-13 as teachers, 2 for ResNet-56 -> 20 and ResNet-110 -> 32.
        temperature: Divides both logits.

    Raises:
        ShapeError: Student and teacher have different shapes.

    Reference:
        Zhao et al. (2022), https://arxiv.org/abs/2203.08679, equation 7. The authors' code lets the whole loss rise
        over the first 20 epochs of 240, which is not done here.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> decoupled_loss(logits, logits, torch.tensor([0])).abs().item() < 1e-6
        True
    """
    student, teacher = (value / temperature for value in _logits(student, teacher))
    own = functional.one_hot(labels, student.shape[1]).bool()
    whole = (functional.log_softmax(value, dim=1) for value in (student, teacher))
    rest = [value.masked_fill(own, _NEVER) for value in (student, teacher)]  # no indexing by a mask: a GPU would wait
    (s_own, s_rest), (t_own, t_rest) = (
        (log.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True) - value.logsumexp(1, keepdim=True))
        for log, others, value in zip(whole, rest, (student, teacher), strict=True)
    )
    target = _divergence(torch.cat([s_own, s_rest], dim=1), torch.cat([t_own, t_rest], dim=1))
    others = _divergence(*(functional.log_softmax(value, dim=1) for value in rest))
    return (alpha * target + beta * others) * temperature**2


_NEVER = -1e9  # a logit of no probability, finite so that its share of a divergence is 0 and not undefined


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def correlation_loss(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """Return how far softened probabilities are from being correlated, over classes and over images.

    The mean of 1 - r over the images (r over the classes) with weight beta, and over the classes (r over the images of
    the batch) with weight gamma, times the temperature squared. Where one side is constant, r counts as 0.

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher for the same images.
        beta: Weight of the correlations over classes.
        gamma: Weight of the correlations over images.
        temperature: Divides both logits.

    Raises:
        ShapeError: The two have different shapes.

    Reference:
        Huang et al. (2022), DIST, https://arxiv.org/abs/2205.10536, equations 6 to 10.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 5.0]])
        >>> correlation_loss(logits, logits).abs().item() < 1e-5
        True
    """
    a, b = (functional.softmax(value / temperature, dim=1) for value in _logits(student, teacher))
    over_classes, over_images = _correlations(a, b), _correlations(a.T, b.T)
    return temperature**2 * (beta * (1 - over_classes).mean() + gamma * (1 - over_images).mean())


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    a, b = (value - value.mean(dim=1, keepdim=True) for value in (a, b))
    return functional.cosine_similarity(a, b, dim=1, eps=1e-12)


def transformed_teacher_loss(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], *, exponent: float = 0.2
) -> Float[Tensor, ""]:
    """Return how far the student's probabilities are from the teacher's, softened by a power; sure images count less.

    The divergence from p^e / sum(p^e) to the student's probabilities at temperature 1, each image weighted by its
    sum(p^e), which is large where the teacher is unsure (1 for a certain one, k^(1-e) for an undecided one).

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher for the same images.
        exponent: The power, 0 to 1; the reciprocal of a temperature for the teacher alone.

    Raises:
        ShapeError: The two have different shapes.

    Reference:
        Zheng, Yang (2024), WTTM, https://arxiv.org/abs/2402.11148, equations 14 and 15.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> transformed_teacher_loss(0.2 * logits, logits).abs().item() < 1e-6
        True
    """
    student, teacher = _logits(student, teacher)
    powers = exponent * functional.log_softmax(teacher, dim=1)
    weights = powers.logsumexp(dim=1).exp()
    divergence = functional.kl_div(
        functional.log_softmax(student, dim=1), functional.log_softmax(powers, dim=1), reduction="none", log_target=True
    )
    return (weights * divergence.sum(dim=1)).mean()


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


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Float[Tensor, ""]:
    """Return how differently two layers find the images of a batch alike, from 0 to 4 / n for n images.

    The products of all pairs of images, each image's row scaled to unit length, are compared by their mean squared
    difference. Channels and sizes may differ, so no adapter is needed.

    Args:
        student: Feature of the student, (n, ...).
        teacher: Feature of the teacher for the same images, (n, ...).

    Raises:
        ShapeError: The number of images differs.

    Reference:
        Tung, Mori (2019), https://arxiv.org/abs/1907.09682, equations 2 to 4, for one pair of layers.

    Example:
        >>> import torch
        >>> feature = torch.rand(4, 8, 2, 2)
        >>> similarity_preserving_loss(feature, 3 * feature).item() < 1e-12
        True
    """
    if student.shape[0] != teacher.shape[0]:
        raise ShapeError(f"Features come from {student.shape[0]} and {teacher.shape[0]} images; expected the same.")
    return functional.mse_loss(_alikeness(student), _alikeness(teacher.detach()))


def _alikeness(feature: Tensor) -> Tensor:
    with torch.autocast(feature.device.type, enabled=False):
        rows = feature.float().flatten(1)
        return functional.normalize(rows @ rows.T, dim=1)


def variational_loss(
    mean: Float[Tensor, "n c h w"], deviation: Float[Tensor, " c"], teacher: Float[Tensor, "n c h w"]
) -> Float[Tensor, ""]:
    """Return how surprising the teacher's feature is to a student that predicts it with an uncertainty per channel.

    The negative logarithm of the density of a normal distribution without its constant, averaged over all elements;
    the smaller, the more the student's layer knows about the teacher's. It may be negative.

    Args:
        mean: The student's prediction of the teacher's feature.
        deviation: Its standard deviation by channel, above 0.
        teacher: Feature of the teacher; where the sizes differ, both are averaged down to the smaller one.

    Raises:
        ShapeError: The number of images or channels differs.

    Reference:
        Ahn et al. (2019), https://arxiv.org/abs/1904.05835, equation 5.

    Example:
        >>> import torch
        >>> feature = torch.zeros(2, 3, 4, 4)
        >>> variational_loss(feature, torch.ones(3), feature + 2).item()
        2.0
    """
    mean, teacher = to_common_size(mean.float(), teacher.detach().float())
    if mean.shape != teacher.shape or deviation.shape != mean.shape[1:2]:
        raise ShapeError(
            f"The prediction {tuple(mean.shape)}, its deviation {tuple(deviation.shape)} and the teacher's feature "
            f"{tuple(teacher.shape)} differ in images or channels; build the head for both layers."
        )
    scaled = (mean - teacher) / deviation.view(1, -1, 1, 1)
    loss: Tensor = 0.5 * _MeanSquare.apply(scaled) + deviation.log().mean()
    return loss


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
