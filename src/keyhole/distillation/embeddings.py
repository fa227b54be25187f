"""Losses of networks whose outputs are embeddings: vectors that are compared by their cosine.

The teacher's tensors get no gradient. A student may see another image than its teacher, such as the same one with fewer
pixels: what it is asked to give is then what the teacher sees in the better image.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from keyhole.distillation.losses import to_common_size
from keyhole.errors import SettingError, ShapeError


def embedding_loss(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return 1 less the mean cosine between the student's embeddings and the teacher's, 0 to 2.

    Args:
        student: Embeddings of the student, of any length.
        teacher: Embeddings of the teacher for the same images; gets no gradient.

    Raises:
        ShapeError: The two have different shapes.

    Reference:
        Duong et al. (2019), "ShrinkTeaNet", https://arxiv.org/abs/1905.10620, the angular loss of the last layer,
        without its square.

    Example:
        >>> import torch
        >>> embedding_loss(torch.eye(2), 3 * torch.eye(2)).item()
        0.0
    """
    student, teacher = _embeddings(student, teacher)
    return 1 - (student * teacher).sum(dim=1).mean()


def relation_loss(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return how differently the student's images relate to the teacher's than the teacher's do among themselves.

    The cosine of every student embedding with every *other* image's teacher embedding, less the cosine of the two
    teacher embeddings; the mean square of it, 0 to 4. A probe of few pixels shall lie to everybody else as its sharp
    image does. 0 for a single image.

    Args:
        student: Embeddings of the student, of any length.
        teacher: Embeddings of the teacher for the same images; gets no gradient.

    Raises:
        ShapeError: The two have different shapes.

    Reference:
        Park et al. (2019), Relational Knowledge Distillation, https://arxiv.org/abs/1904.05068, section 3.2: what the
        embeddings of a batch are to each other. Theirs are distances and angles among the student's images; here it is
        the cosine, from a student's image to the teacher's. Sharp-sharp is held against sharp-small in Shin et al.
        (2023), https://arxiv.org/abs/2303.04681, as well, but by the cosine of affinities between places of feature
        maps, not between embeddings.

    Example:
        >>> import torch
        >>> relation_loss(torch.eye(2), torch.eye(2)).item()
        0.0
    """
    student, teacher = _embeddings(student, teacher)
    count = len(student)
    with torch.autocast(student.device.type, enabled=False):
        gap = student @ teacher.T - teacher @ teacher.T
        squares = gap.square().sum() - gap.diagonal().square().sum()
    return squares / max(count * (count - 1), 1)


def attention_similarity_loss(
    student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n d h w"]
) -> Float[Tensor, ""]:
    """Return 1 less the mean cosine between where student and teacher look, 0 to 1.

    A feature's spatial attention is its mean squared channel; where both have the same number of channels, their
    channel attention (the mean square over the image) counts as much. The published form takes the attention maps of
    modules that both networks must have (CBAM); this one works for any two.

    Args:
        student: Feature of the student.
        teacher: Feature of the teacher; gets no gradient. Both are averaged down to the smaller height and width.

    Raises:
        ShapeError: The number of images differs.

    Reference:
        Shin et al. (2022), "Teaching Where to Look", https://arxiv.org/abs/2209.14498, the cosine distance of
        attention maps.

    Example:
        >>> import torch
        >>> feature = torch.rand(2, 8, 4, 4)
        >>> attention_similarity_loss(feature, 3 * feature).abs().item() < 1e-6
        True
    """
    if student.shape[0] != teacher.shape[0]:
        raise ShapeError(f"Features come from {student.shape[0]} and {teacher.shape[0]} images; expected the same.")
    student, teacher = to_common_size(student.float(), teacher.detach().float())
    same = student.shape[1] == teacher.shape[1]
    looks = [_distance(student.square().mean(dim=1).flatten(1), teacher.square().mean(dim=1).flatten(1))]
    if same:
        looks.append(_distance(student.square().mean(dim=(2, 3)), teacher.square().mean(dim=(2, 3))))
    return torch.stack(looks).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(first, second, dim=1, eps=1e-12).mean()


class MarginSoftmax(nn.Module):
    """Cross entropy over people whose own angle is made larger by a margin, so that people come to lie apart.

    Args:
        size: Numbers in an embedding.
        people: How many people there are; each has a weight vector.
        margin: Radians added to the angle between an embedding and its own person, 0 to pi / 2.
        scale: What cosines are multiplied with, above 0.
        seed: Of the weight vectors.

    Raises:
        SettingError: A setting is out of its range.

    Reference:
        Deng et al. (2019), ArcFace, https://arxiv.org/abs/1801.07698, equation 3. Beyond an angle of pi - margin, where
        the cosine would rise again, it goes on falling along its tangent's chord, as in the authors' code.

    Example:
        >>> head = MarginSoftmax(4, 3)
        >>> head(torch.eye(4)[:2], torch.tensor([0, 1])).ndim
        0
    """

    def __init__(self, size: int, people: int, *, margin: float = 0.5, scale: float = 64.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= margin <= math.pi / 2 or not 0 < scale < math.inf or people < 2:
            raise SettingError(
                f"A margin of {margin} and a scale of {scale} for {people} people; expected 0 to pi / 2, above 0, and "
                "at least 2 people."
            )
        generator = torch.Generator().manual_seed(seed)
        # short vectors, as in the authors' code: the gradient of a direction is divided by the length
        self.weight = nn.Parameter(0.01 * torch.randn(people, size, generator=generator))
        self.margin, self.scale = margin, scale

    def forward(self, embeddings: Float[Tensor, "n d"], people: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Return the loss of embeddings of any length; images of nobody known (-1) do not count."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = functional.normalize(embeddings.float()) @ functional.normalize(self.weight.float()).T
            known = people >= 0
            named = people.clamp_min(0)
            own = cosines.gather(1, named[:, None])
            sine = (1 - own.square()).clamp_min(1e-12).sqrt()
            harder = own * math.cos(self.margin) - sine * math.sin(self.margin)
            harder = torch.where(own > -math.cos(self.margin), harder, own - self.margin * math.sin(self.margin))
            logits = self.scale * cosines.scatter(1, named[:, None], harder)
            losses = functional.cross_entropy(logits, named, reduction="none")
            return torch.where(known, losses, 0).sum() / known.sum().clamp_min(1)


class SimilarityQueue(nn.Module):
    """How alike the student finds an image to many others, against how alike its teacher finds it.

    The teacher's embeddings of this batch and of the last batches are kept. The student's cosines with all of them
    become a distribution, as the teacher's do: cross entropy between the two. What is far from its own place, such as a
    face of few pixels that lies nearer to others, pulls most; of an image that all can tell nothing is asked.

    Args:
        size: Numbers in an embedding.
        length: How many embeddings of earlier batches are kept.
        temperature: Divides the cosines of both, above 0.

    Raises:
        SettingError: A setting is out of its range.

    Reference:
        Fang et al. (2021), SEED, https://arxiv.org/abs/2101.04731, equations 2 to 5, with one temperature for both (the
        source has 0.01 for the teacher and 0.2 for the student), and all images of the batch among the candidates.

    Example:
        >>> queue = SimilarityQueue(4, length=8)
        >>> loss = queue(torch.eye(4)[:2], torch.eye(4)[:2])
        >>> queue.filled.item()
        2
    """

    queue: Tensor
    filled: Tensor
    place: Tensor

    def __init__(self, size: int, *, length: int = 8192, temperature: float = 0.05) -> None:
        super().__init__()
        if length < 1 or not 0 < temperature < math.inf:
            raise SettingError(
                f"A queue of {length} at temperature {temperature}; expected at least 1, and a temperature above 0."
            )
        self.temperature = temperature
        self.register_buffer("queue", torch.zeros(length, size))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Float[Tensor, "n d"], teacher: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Return the loss of a batch of embeddings of any length; in training the teacher's then join the queue.

        Raises:
            ShapeError: The two have different shapes.
        """
        student, teacher = _embeddings(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            others = torch.cat([teacher, self.queue])
            there = torch.arange(len(others), device=others.device) < len(teacher) + self.filled
            asked = (teacher @ others.T / self.temperature).masked_fill(~there, -math.inf).softmax(dim=1)
            given = (student @ others.T / self.temperature).masked_fill(~there, -math.inf).log_softmax(dim=1)
            loss = -(asked * given.masked_fill(~there, 0)).sum(dim=1).mean()
        if self.training and torch.is_grad_enabled():
            self._join(teacher)
        return loss

    @torch.no_grad()
    def _join(self, teacher: Tensor) -> None:
        length = len(self.queue)
        teacher = teacher[-length:]
        where = (self.place + torch.arange(len(teacher), device=teacher.device)) % length
        self.queue[where] = teacher
        self.place.copy_((self.place + len(teacher)) % length)
        self.filled.copy_((self.filled + len(teacher)).clamp_max(length))


def _embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ShapeError(
            f"Embeddings of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape; "
            "give the student as many outputs."
        )
    return functional.normalize(student.float()), functional.normalize(teacher.detach().float())
