"""What a student wears while it learns from hints, and takes off afterwards: small networks between two layers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.distillation.losses import to_common_size, variational_loss
from keyhole.models.layers import as_map


class HintAdapter(nn.Module):
    """Bring a student's feature to the teacher's channels: a 1x1 convolution with batch norm.

    It is trained with the student and thrown away afterwards. Height and width stay; the loss averages the larger of
    the two features down. Unlike the regressor of the published comparisons it ends without a rectifier, as layers of
    other networks (tokens, linear bottlenecks) have negative values as well.

    Reference:
        Romero et al. (2015), FitNets, https://arxiv.org/abs/1412.6550, section 2.2, the regressor.

    Example:
        >>> HintAdapter(16, 64)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)

    def forward(self, feature: Tensor) -> Float[Tensor, "n c h w"]:
        """Return the adapted feature as a map."""
        adapted: Tensor = self.norm(self.conv(as_map(feature)))
        return adapted


class VariationalHead(nn.Module):
    """Predict a teacher's feature from a student's, with one uncertainty per channel: three 1x1 convolutions.

    Where the sizes differ, the larger of the two features is averaged down, the student's before anything is predicted.

    Args:
        student_channels: Channels of the student's feature.
        teacher_channels: Channels of the teacher's feature.
        variance: Of the prediction at the start.

    Reference:
        Ahn et al. (2019), https://arxiv.org/abs/1904.05835, section 3.1 and equation 6; the variance at the start, and
        what is averaged when, are those of the published comparisons.

    Example:
        >>> head = VariationalHead(16, 64)
        >>> round(head.deviation[0].item() ** 2, 4)
        5.0
        >>> head(torch.zeros(2, 16, 8, 8), torch.zeros(2, 64, 4, 4)).shape
        torch.Size([])
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, variance: float = 5.0) -> None:
        super().__init__()
        channels = (student_channels, teacher_channels, teacher_channels, teacher_channels)
        first, second, third = (nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(channels))
        self.predict = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), math.log(math.expm1(variance - _LEAST))))

    @property
    def deviation(self) -> Float[Tensor, " c"]:
        """Standard deviation of the prediction, by channel."""
        return (functional.softplus(self.raw_variance) + _LEAST).sqrt()

    def forward(self, student: Tensor, teacher: Tensor) -> Float[Tensor, ""]:
        """Return the loss between a student's feature and the teacher's."""
        own, wanted = to_common_size(student, teacher.detach().float())
        return variational_loss(self.predict(own), self.deviation, wanted)


_LEAST = 1e-5  # variance
