"""Association that is learned: how much each student layer takes from each teacher layer, image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.distillation.losses import to_common_size
from keyhole.errors import ShapeError
from keyhole.models.layers import as_map


class Association(nn.Module):
    """The loss of semantic calibration: every student layer learns from every teacher layer, by learned shares.

    Each layer tells how alike it finds the images of the batch: the products of all pairs. From an image's row of them
    a student layer makes a query and a teacher layer a key, unit vectors both; the softmax of their products over the
    teacher layers is the share that the student layer takes from each of them for that image. What is taken is the mean
    squared difference between the teacher's feature and the student's, brought to its channels by a projection of its
    own for each pair; where the sizes differ, both are averaged down to the smaller height and width first. The loss is
    the mean over images and student layers.

    Queries and keys are made from as many numbers as a batch has images, so all batches must have one size.

    Args:
        student_channels: Channels of each student layer.
        teacher_channels: Channels of each teacher layer.
        batch_size: Images in a batch.

    Raises:
        ShapeError: There is no layer on one side.

    Reference:
        Chen et al. (2021), https://arxiv.org/abs/2012.03236, section "Semantic Calibration Formulation": its loss
        function, and its attention allocation. Of the authors' code are: the form of the projections (1x1, 3x3 and 1x1
        convolutions over twice the teacher's channels), queries and keys of a quarter of the batch size by one hidden
        layer, scaled to unit length, averaging before projecting, and the mean over images and the student's layers.

    Example:
        >>> associate = Association([16, 32], [64], batch_size=4)
        >>> student = [torch.rand(4, 16, 8, 8), torch.rand(4, 32, 4, 4)]
        >>> associate(student, [torch.rand(4, 64, 8, 8)]).shape
        torch.Size([])
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, batch_size: int) -> None:
        super().__init__()
        if not student_channels or not teacher_channels:
            raise ShapeError(
                f"There are {len(student_channels)} student and {len(teacher_channels)} teacher layers to associate; "
                "expected at least one each."
            )
        self.batch_size = batch_size
        self.keys = nn.ModuleList(_embedding(batch_size) for _ in teacher_channels)
        self.queries = nn.ModuleList(_embedding(batch_size) for _ in student_channels)
        self.projections = nn.ModuleList(
            _projection(own, wanted) for own in student_channels for wanted in teacher_channels
        )

    def shares(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, "n s t"]:
        """Return how much of each teacher layer each student layer takes for each image; 1 over the teacher layers.

        Args:
            student: Features of the student's layers for one batch.
            teacher: Features of the teacher's layers for the same images.

        Raises:
            ShapeError: The batch has another size than the one this was built for.
        """
        for feature in (*student, *teacher):
            if len(feature) != self.batch_size:
                raise ShapeError(
                    f"A batch has {len(feature)} images and the association was built for {self.batch_size}; "
                    "give batches of that size."
                )
        with torch.autocast(student[0].device.type, enabled=False):
            queries = torch.stack([_vectors(embed, f) for embed, f in zip(self.queries, student, strict=True)], dim=1)
            keys = torch.stack(
                [_vectors(embed, f.detach()) for embed, f in zip(self.keys, teacher, strict=True)], dim=1
            )
            return torch.softmax(queries @ keys.transpose(1, 2), dim=2)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Return the loss of a batch.

        Args:
            student: Features of the student's layers: maps (n, c, h, w), tokens (n, t, c) or vectors (n, c).
            teacher: Features of the teacher's layers for the same images; they get no gradient.

        Raises:
            ShapeError: The batch has another size than the one this was built for.
        """
        shares = self.shares(student, teacher)
        pairs = [(own, hint) for own in student for hint in teacher]
        found = [_difference(project, *pair) for project, pair in zip(self.projections, pairs, strict=True)]
        differences = torch.stack(found, dim=1).reshape(shares.shape)
        loss: Tensor = (shares * differences).sum() / (self.batch_size * len(student))
        return loss


def _embedding(batch_size: int) -> nn.Module:
    size = max(1, batch_size // 4)
    return nn.Sequential(nn.Linear(batch_size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size))


def _projection(student_channels: int, teacher_channels: int) -> nn.Module:
    inner = 2 * teacher_channels
    return nn.Sequential(
        nn.Conv2d(student_channels, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, teacher_channels, 1, bias=False),
    )


def _vectors(embed: nn.Module, feature: Tensor) -> Float[Tensor, "n d"]:
    rows = feature.float().flatten(1)
    return functional.normalize(embed(rows @ rows.T), dim=1)


def _difference(project: nn.Module, student: Tensor, teacher: Tensor) -> Float[Tensor, " n"]:
    """Return the mean squared difference of each image, in a form whose gradient keeps the memory format."""
    own, wanted = to_common_size(as_map(student), teacher.detach())
    difference: Tensor = project(own).float() - wanted.float()
    return difference.square().sum((1, 2, 3)) / difference[0].numel()
