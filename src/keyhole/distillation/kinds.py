"""Kinds of terms of a loss: what each computes from a step, its published weight, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from keyhole.distillation import losses
from keyhole.distillation.adapters import HintAdapter, VariationalHead
from keyhole.distillation.association import Association
from keyhole.distillation.contrast import Contrast
from keyhole.distillation.embeddings import (
    MarginSoftmax,
    SimilarityQueue,
    attention_similarity_loss,
    embedding_loss,
    relation_loss,
)
from keyhole.errors import SettingError


@dataclass(frozen=True)
class HintPair:
    """A layer of the student that learns from a layer of the teacher, both by dotted path.

    Attributes:
        teacher: The layer of the teacher.
        student: The layer of the student.
        weight: What the pair's share of a term of hints is multiplied with; ``semckd`` takes none.
    """

    teacher: str
    student: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.weight < float("inf"):
            raise SettingError(f"Hint {self.teacher} has the weight {self.weight}; expected a number >= 0.")


@dataclass(frozen=True)
class View:
    """What the terms of one student see of one step.

    Attributes:
        logits: Of the student.
        features: Of the student's tapped layers, as maps (n, c, h, w).
        teacher_logits: Of the teacher; None without one.
        teacher_features: Of the teacher's hint layers.
        labels: Class of each image.
        indices: Position of each image in the official order of its data set.
        step: Steps that the student has taken before.
    """

    logits: Float[Tensor, "n k"]
    features: Mapping[str, Tensor]
    teacher_logits: Float[Tensor, "n k"] | None
    teacher_features: Mapping[str, Tensor]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]
    step: int = 0


@dataclass(frozen=True)
class Setting:
    """What a term is built for.

    Attributes:
        pairs: The hints; for a term of last layers that pair alone.
        channels: Channels of the student's and the teacher's layer of each pair.
        labels: Class of each image of the data set by official position, -1 for those not trained on.
        seed: Of what the term draws.
        batch_size: Images in a step.
        outputs: Numbers that the student gives for an image.
        classes: Classes of the training images.
        knobs: Other settings of the term, by name, where they are not as the source has them.
        images: One more than the highest position of an image.
        rank: Number of the process among those that train together.
    """

    pairs: Sequence[HintPair] = ()
    channels: Sequence[tuple[int, int]] = ()
    labels: Int64[Tensor, " n"] | None = None
    seed: int = 0
    batch_size: int = 64
    outputs: int = 0
    classes: int = 0
    knobs: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    rank: int = 0


class _OfLogits(nn.Module):
    """A loss of the student's logits and the teacher's."""

    def __init__(self, loss: Callable[..., Tensor], **knobs: float) -> None:
        super().__init__()
        self.loss, self.knobs = loss, knobs

    def forward(self, view: View) -> Tensor:
        return self.loss(view.logits, view.teacher_logits, **self.knobs)


class _OfLabels(nn.Module):
    """Cross entropy, which needs no teacher."""

    def forward(self, view: View) -> Tensor:
        return functional.cross_entropy(view.logits.float(), view.labels)


class _OfBoth(_OfLogits):
    """A loss of both logits and the labels."""

    def forward(self, view: View) -> Tensor:
        return self.loss(view.logits, view.teacher_logits, view.labels, **self.knobs)


class _OfPeople(nn.Module):
    """A loss of embeddings and the people that they are of."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.head = MarginSoftmax(setting.outputs, setting.classes, seed=setting.seed)

    def forward(self, view: View) -> Tensor:
        found: Tensor = self.head(view.logits, view.labels)
        return found


class _OfQueue(nn.Module):
    """A loss of embeddings and the teacher's embeddings of images that came before."""

    def __init__(self, setting: Setting, temperature: float) -> None:
        super().__init__()
        self.queue = SimilarityQueue(setting.outputs, temperature=temperature)

    def forward(self, view: View) -> Tensor:
        assert view.teacher_logits is not None, "the cohort saw to it"
        found: Tensor = self.queue(view.logits, view.teacher_logits)
        return found


class _OfPairs(nn.ModuleList):
    """The sum over hint pairs of a loss between two features, by a module of its own for each pair.

    It is scaled to a sum over so many pairs, that a term weighs the same with more or fewer hints.
    """

    def __init__(self, pairs: Sequence[HintPair], parts: Sequence[nn.Module], *, over: int) -> None:
        super().__init__(parts)
        self.factors = [pair.weight * over / len(pairs) for pair in pairs]
        self.pairs = tuple(pairs)

    def forward(self, view: View) -> Tensor:
        found = [
            part(view.features[pair.student], view.teacher_features[pair.teacher])
            for pair, part in zip(self.pairs, self, strict=True)
        ]
        if any(factor != 1 for factor in self.factors):
            found = [factor * value for factor, value in zip(self.factors, found, strict=True)]
        return torch.stack(found).sum()


class _Adapted(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.adapter = HintAdapter(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return losses.hint_loss(self.adapter(student), teacher)


class _Plain(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher)


class _OfAll(nn.Module):
    """A loss between all student layers and all teacher layers of the hints, whichever belong together."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        pairs = list(zip(setting.pairs, setting.channels, strict=True))
        student = {pair.student: own for pair, (own, _) in pairs}
        teacher = {pair.teacher: wanted for pair, (_, wanted) in pairs}
        self.student, self.teacher = tuple(student), tuple(teacher)
        self.associate = Association([*student.values()], [*teacher.values()], batch_size=setting.batch_size)

    def forward(self, view: View) -> Tensor:
        found: Tensor = self.associate(
            [view.features[name] for name in self.student], [view.teacher_features[name] for name in self.teacher]
        )
        return found


class _OfMemory(nn.Module):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        assert setting.labels is not None, "the cohort saw to it"
        self.pair = setting.pairs[0]
        self.contrast = Contrast(*setting.channels[0], setting.labels, seed=setting.seed)

    def forward(self, view: View) -> Tensor:
        found: Tensor = self.contrast(
            view.features[self.pair.student], view.teacher_features[self.pair.teacher], view.indices
        )
        return found


def _softened(loss: Callable[..., Tensor]) -> Callable[[float | None, Setting], nn.Module]:
    return lambda temperature, setting: _OfLogits(loss, temperature=temperature or 1.0, **setting.knobs)


def _paired(make: Callable[[int, int], nn.Module], over: int = 1) -> Callable[[float | None, Setting], nn.Module]:
    """Return what makes a loss of hint pairs, whose published weight is that of a sum over so many of them."""
    return lambda _temperature, setting: _OfPairs(setting.pairs, [make(*each) for each in setting.channels], over=over)


@dataclass(frozen=True)
class Kind:
    """A kind of term: its published weight and temperature, what it needs, and how it is made.

    Attributes:
        weight: Where no weight is given.
        make: Builds the module that computes it from a :class:`View`, for a temperature and a setting.
        source: Where weight and temperature were published.
        temperature: Where none is given; None for terms that have none.
        teacher: Needs a teacher.
        hints: Compares features of hint layers.
        labels: Needs the classes of the training images.
        last: Compares the last layers of both networks, whatever the hints.
        embeds: Takes the outputs for embeddings, not for logits of the classes.
        knobs: Names of its other settings, which are arguments of its loss.
        adapter: What fits a feature of the student to the teacher's, where something does.
        memory: Keeps something of images that were seen before, which processes do not share.
        weighs: Takes the weights of hint pairs; a term that does not finds out by itself how much each counts.
        own: It is a loss of the user's.
    """

    weight: float
    make: Callable[[float | None, Setting], nn.Module]
    source: str
    temperature: float | None = None
    teacher: bool = True
    hints: bool = False
    labels: bool = False
    last: bool = False
    embeds: bool = False
    knobs: tuple[str, ...] = ()
    adapter: str | None = None
    memory: bool = False
    weighs: bool = True
    own: bool = False


_OURS = "by this package: a cosine is its own scale"
_REPDISTILLER = "https://github.com/HobbitLong/RepDistiller"

TERMS: dict[str, Kind] = {
    "ce": Kind(1.0, lambda *_: _OfLabels(), "by definition", teacher=False, labels=True),
    "kd": Kind(1.0, _softened(losses.soft_target_loss), _REPDISTILLER, temperature=4.0),
    "dkd": Kind(
        1.0,
        lambda temperature, setting: _OfBoth(losses.decoupled_loss, temperature=temperature or 1.0, **setting.knobs),
        "https://github.com/megvii-research/mdistiller, without its warm-up; beta 8, by pair it has 2 to 8",
        temperature=4.0,
        labels=True,
        knobs=("alpha", "beta"),
    ),
    "dist": Kind(
        2.0,
        _softened(losses.correlation_loss),
        "https://arxiv.org/abs/2205.10536, section 4; at this temperature "
        "https://github.com/WangYZ1608/Knowledge-Distillation-via-ND has 2 for ResNet-56 -> 20, 1.5 to 7 by pair",
        temperature=4.0,
        knobs=("beta", "gamma"),
    ),
    "ls": Kind(
        9.0,
        _softened(losses.standardized_loss),
        "https://github.com/sunshangquan/logit-standardization-KD, where ce beside it has 0.1",
        temperature=2.0,
    ),
    "wttm": Kind(
        4.0,
        lambda _, setting: _OfLogits(losses.transformed_teacher_loss, **setting.knobs),
        "https://github.com/zkxufo/TTM, where it stands beside crd",
        knobs=("exponent",),
    ),
    "hint": Kind(
        100.0, _paired(_Adapted), _REPDISTILLER, hints=True, adapter="1x1 convolution and batch norm on the student's"
    ),
    "at": Kind(1000.0, _paired(lambda *_: _Plain(losses.attention_loss), over=3), _REPDISTILLER, hints=True),
    "vid": Kind(
        1.0,
        _paired(VariationalHead, over=3),
        _REPDISTILLER,
        hints=True,
        adapter="three 1x1 convolutions on the student's",
    ),
    "sp": Kind(3000.0, _paired(lambda *_: _Plain(losses.similarity_preserving_loss)), _REPDISTILLER, hints=True),
    "semckd": Kind(
        400.0,
        lambda _, setting: _OfAll(setting),
        "https://github.com/DefangChen/SemCKD, for CIFAR-100",
        hints=True,
        adapter="three convolutions on the student's for each two layers",
        weighs=False,
    ),
    "embedding": Kind(1.0, lambda *_: _OfLogits(embedding_loss), _OURS, embeds=True),
    "relations": Kind(
        30.0,
        lambda *_: _OfLogits(relation_loss),
        "by this package: beside embedding it pulls half as hard, which with weight 1 is one fiftieth",
        embeds=True,
    ),
    "seed": Kind(
        0.1,
        lambda temperature, setting: _OfQueue(setting, temperature or 0.05),
        "by this package, for a student that begins near its teacher; alone, from nothing, the source has 1",
        temperature=0.05,
        embeds=True,
        memory=True,
    ),
    "askd": Kind(
        5.0,
        _paired(lambda *_: _Plain(attention_similarity_loss)),
        "https://github.com/gist-ailab/teaching-where-to-look, there for each attention map of 24 blocks, "
        "here for the mean over the hints",
        hints=True,
    ),
    "margin": Kind(
        1.0,
        lambda _, setting: _OfPeople(setting),
        "https://arxiv.org/abs/1801.07698, margin 0.5 and scale 64; beside an embedding 0.02, by this package",
        teacher=False,
        labels=True,
        embeds=True,
    ),
    "crd": Kind(0.8, lambda _, setting: _OfMemory(setting), _REPDISTILLER, labels=True, last=True, memory=True),
}
