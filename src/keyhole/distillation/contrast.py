"""Contrastive representation distillation: tell the teacher's view of one image from its views of many others."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import ShapeError
from keyhole.models.layers import as_map


class Contrast(nn.Module):
    """The loss of contrastive representation distillation, with its two embeddings and their memories.

    Each image's features are embedded to unit vectors. The student's vector must be told from noise by the teacher's
    vectors that a memory keeps for all training images (its own image against ``negatives`` images of other classes,
    drawn anew in each step, with repetition), and the other way round. What is drawn depends on the seed and the step
    alone. Only a step of learning changes the memories and, the first one, the normalization.

    Args:
        student_channels: Channels of the student's feature.
        teacher_channels: Channels of the teacher's feature.
        labels: Class of each training image; -1 for an image that is never trained on.
        negatives: Images of other classes for each image.
        size: Channels of the embeddings.
        temperature: Divides the products of embeddings.
        momentum: How much of the old vector the memory keeps.
        seed: Of the memory and the draws.

    Raises:
        ShapeError: There are fewer than two classes.

    Reference:
        Tian et al. (2020), https://arxiv.org/abs/1910.10699, equations 9 to 19; the normalization is set in the
        first step, as in the published comparisons, which draw negatives without repetition where they can.

    Example:
        >>> contrast = Contrast(16, 64, torch.tensor([0, 0, 1, 2]), negatives=3)
        >>> loss = contrast(torch.rand(2, 16, 8, 8), torch.rand(2, 64, 4, 4), torch.tensor([0, 3]))
        >>> bool(loss > 0)
        True
    """

    student_memory: Tensor
    teacher_memory: Tensor
    normalization: Tensor
    steps: Tensor
    labels: Tensor
    order: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        labels: Int64[Tensor, " n"],
        *,
        negatives: int = 16384,
        size: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        known = torch.nonzero(labels >= 0)[:, 0]
        order = known[torch.argsort(labels[known], stable=True)]
        counts = torch.bincount(labels[known])
        if int((counts > 0).sum()) < 2:
            raise ShapeError("Contrast needs images of at least two classes; got one. Leave the term out.")
        self.negatives, self.temperature, self.momentum, self.seed = negatives, temperature, momentum, seed
        self.student = nn.Linear(student_channels, size)
        self.teacher = nn.Linear(teacher_channels, size)
        generator = torch.Generator().manual_seed(seed)
        bound = 1 / math.sqrt(size / 3)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, (2 * torch.rand(len(labels), size, generator=generator) - 1) * bound)
        self.register_buffer("normalization", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.remembers = True  # off while gradients are taken only to look at them
        self._step: int | None = None
        self.register_load_state_dict_post_hook(_forget_step)  # type: ignore[no-untyped-call]
        # training images by class; those of one class stand together
        self.register_buffer("labels", labels.clone(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, indices: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the loss of a batch; its embeddings go into the memories when its gradient is computed.

        Args:
            student: Feature of the student, a map (n, c, h, w), tokens (n, t, c) or a vector (n, c).
            teacher: Feature of the teacher for the same images.
            indices: Which training images they are.
        """
        with torch.autocast(student.device.type, enabled=False):
            return self._loss(student, teacher, indices)

    def _loss(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        s = functional.normalize(self.student(_pooled(student)), dim=1)
        t = functional.normalize(self.teacher(_pooled(teacher.detach())), dim=1)
        drawn = torch.cat([indices[:, None], self.draw(indices)], dim=1)
        scores = [
            torch.exp(_products(vectors, memory, drawn) / self.temperature)
            for vectors, memory in ((s, self.teacher_memory), (t, self.student_memory))
        ]
        with torch.no_grad():
            first = torch.stack([score.mean() for score in scores]) * len(self.order)
            scales = torch.where(self.normalization > 0, self.normalization, first)
        losses = [self._against_noise(score / scale) for score, scale in zip(scores, scales, strict=True)]
        if self.training and torch.is_grad_enabled():
            self.normalization.copy_(scales)
            self._remember_after_gradient(indices, s, t)
        return losses[0] + losses[1]

    def draw(self, indices: Int64[Tensor, " n"]) -> Int64[Tensor, "n k"]:
        """Return training images of other classes than each image's own, uniformly and with repetition."""
        if (
            self._step is None
        ):  # just built or restored; afterwards the count is kept here, as reading it waits on a GPU
            self._step = int(self.steps)
        seed = int(np.random.SeedSequence([self.seed, self._step]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(indices.device).manual_seed(seed)
        size = (len(indices), self.negatives)
        uniform = torch.rand(size, generator=generator, dtype=torch.float64, device=indices.device)
        own = self.labels[indices]
        others = (len(self.order) - self.counts[own])[:, None]
        place = (uniform * others).long()
        place += (place >= self.starts[own][:, None]) * self.counts[own][:, None]  # over the images of the own class
        return torch.as_tensor(self.order[place])

    def _against_noise(self, scores: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
        """Return - log h of the positive, - log (1 - h) of the negatives, summed, averaged over the images."""
        noise = self.negatives / len(self.order)
        positive = torch.log(scores[:, 0] / (scores[:, 0] + noise))
        negative = torch.log(noise / (scores[:, 1:] + noise))
        return -(positive.sum() + negative.sum()) / len(scores)

    def _remember_after_gradient(self, indices: Tensor, student: Tensor, teacher: Tensor) -> None:
        # the gradient of one side's vectors reads the other side's memory, which must be as it was until then
        student.register_hook(lambda _: self._remember(self.teacher_memory, indices, teacher))  # type: ignore[no-untyped-call]
        teacher.register_hook(lambda _: self._remember(self.student_memory, indices, student))  # type: ignore[no-untyped-call]
        teacher.register_hook(self._count)  # type: ignore[no-untyped-call]

    def _count(self, _gradient: Tensor) -> None:
        if not self.remembers:
            return
        self.steps += 1
        self._step = None if self._step is None else self._step + 1

    @torch.no_grad()
    def _remember(self, memory: Tensor, indices: Tensor, vectors: Tensor) -> None:
        if not self.remembers:
            return
        mixed = self.momentum * memory[indices] + (1 - self.momentum) * vectors
        memory[indices] = functional.normalize(mixed, dim=1)


def _forget_step(contrast: nn.Module, _keys: object) -> None:
    if isinstance(contrast, Contrast):
        contrast._step = None


def _pooled(feature: Tensor) -> Float[Tensor, "n c"]:
    return as_map(feature).float().mean(dim=(2, 3))


def _products(vectors: Float[Tensor, "n d"], memory: Float[Tensor, "m d"], chosen: Int64[Tensor, "n k"]) -> Tensor:
    """Return the products of each vector with the chosen rows of the memory."""
    if len(memory) <= 8 * chosen.shape[1]:  # one product with all rows reads less than the chosen rows would
        return (vectors @ memory.T).gather(1, chosen)
    return torch.einsum("nd,nkd->nk", vectors, memory[chosen])
