"""Choose the layers that teach: one from each cluster, or by one of the controls that a choice must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from keyhole.errors import SettingError, ShapeError, unknown_name
from keyhole.hints.clustering import CLUSTERINGS, Clusters, kmeans, silhouette
from keyhole.hints.moments import LABELS, Moments
from keyhole.hints.similarity import consensus, similarities
from keyhole.models.layers import Layer, stage_ends
from keyhole.progress import Progress, silent

CONTROLS = ("stage-ends", "uniform", "random", "reverse", "all", "last-only")
QUALITY = "quality"
SELECTORS = (*CLUSTERINGS, *CONTROLS, QUALITY)
CENTERS = ("medoid", "index")
HINT_RULES = ("center", "last", "informative")
_MOST_CLUSTERS = 10


@dataclass(frozen=True)
class Rule:
    """How layers are chosen.

    Attributes:
        clustering: ``kmeans``, ``segments``, ``agglomerative``; or a control, which looks at no similarity:
            ``stage-ends`` (the last ``count`` stage ends), ``uniform`` (the middles of ``count`` equal parts),
            ``random``, ``all``, ``last-only`` (the deepest layer, whatever the count); ``reverse`` takes the kmeans
            centers deepest first, so that the student's first stage learns from the deepest; or ``quality``, the
            ``count`` consecutive layers that are best to learn from by the labels.
        count: How many hints; None takes the count of clusters with the highest silhouette.
        center: Of ``kmeans``: ``medoid`` or ``index``.
        hint: Which layer of a cluster teaches: its ``center``, its ``last``, or the most ``informative`` about the
            classes (which alone needs labels).
        seed: Of ``random``.
    """

    clustering: str = "kmeans"
    count: int | None = 3
    center: str = "medoid"
    hint: str = "center"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for kind, name, known in (
            ("clustering", self.clustering, SELECTORS),
            ("center", self.center, CENTERS),
            ("hint rule", self.hint, HINT_RULES),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if self.seed < 0:
            raise SettingError(f"seed is {self.seed}; expected at least 0.")


@dataclass(frozen=True)
class Selection:
    """The chosen layers.

    Attributes:
        hints: Their positions among the candidates, in the order in which they are given to the student.
        clusters: The clusters, where there are any.
        silhouettes: Mean silhouette by count of clusters; empty for controls.
    """

    hints: tuple[int, ...]
    clusters: Clusters | None
    silhouettes: dict[int, float]


def select(
    candidates: Sequence[Layer],
    similarities: Float[np.ndarray, "l l"] | None,
    rule: Rule,
    *,
    information: Float[np.ndarray, " l"] | None = None,
    quality: Float[np.ndarray, " l"] | None = None,
) -> Selection:
    """Choose layers by a rule.

    Args:
        candidates: The layers to choose from, in the order of depth.
        similarities: Between them, from any metric; controls but ``reverse`` need none.
        rule: How to choose.
        information: What each layer knows about the task, for the rule ``informative`` (see :func:`task_information`).
        quality: How good each layer is to learn from, for ``quality``
            (see :func:`keyhole.hints.quality.layer_quality`).

    Raises:
        SettingError: More hints than layers or stages, a clustering without similarities, or no information or quality.
        ShapeError: The matrix does not fit the candidates.

    Example:
        >>> from keyhole.models.layers import layers
        >>> from keyhole.models.zoo import build
        >>> candidates = layers(build("resnet20", classes=10))
        >>> [candidates[i].name for i in select(candidates, None, Rule("stage-ends")).hints]
        ['layer1.2', 'layer2.2', 'layer3.2']
    """
    total = len(candidates)
    check_rule(candidates, rule)
    if rule.clustering in CONTROLS and rule.clustering != "reverse":
        return Selection(_control(candidates, rule), None, {})
    if rule.clustering == QUALITY:
        if quality is None or len(quality) != total:
            raise SettingError("Choosing by quality needs that of each layer, from labels; measure it first.")
        return Selection(_best_run(quality, rule.count or len(stage_ends(candidates))), None, {})
    if similarities is None:
        raise SettingError(f"Clustering {rule.clustering} needs similarities; measure them first.")
    if similarities.shape != (total, total):
        raise ShapeError(
            f"Similarities have the shape {similarities.shape}; expected one row for each of {total} layers."
        )
    distance = to_distance(similarities)
    silhouettes = _silhouettes(distance, rule)
    count = rule.count or (max(silhouettes, key=lambda k: (silhouettes[k], -k)) if silhouettes else 1)
    clusters = _cluster(distance, rule, count)
    hints = hint_layers(clusters, rule.hint, information)
    return Selection(hints[::-1] if rule.clustering == "reverse" else hints, clusters, silhouettes)


def check_rule(candidates: Sequence[Layer], rule: Rule) -> None:
    """Check that a rule can choose from these layers.

    Raises:
        SettingError: It wants more hints than there are layers or stages.
    """
    total = len(candidates)
    if rule.count is not None and not 1 <= rule.count <= total:
        raise SettingError(f"Cannot choose {rule.count} hints from {total} layers; choose 1 to {total}.")
    if rule.clustering == "stage-ends" and (rule.count or 0) > (ends := len(stage_ends(candidates))):
        raise SettingError(f"Cannot choose {rule.count} stage ends; the network has {ends} stages. Lower --count.")


def to_distance(similarities: Float[np.ndarray, "l l"]) -> Float[np.ndarray, "l l"]:
    """Return 1 - similarity, symmetric, never below 0, with zeros on the diagonal."""
    distance: np.ndarray = np.clip(1 - (similarities + similarities.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    return distance


def hint_layers(clusters: Clusters, rule: str, information: Float[np.ndarray, " l"] | None = None) -> tuple[int, ...]:
    """Return the layer of each cluster that teaches, in the order of depth.

    Args:
        clusters: The clusters.
        rule: ``center``, ``last``, or ``informative``: the one that knows most about the task, of equals the deepest.
        information: What each layer knows.

    Raises:
        SettingError: The rule needs information and there is none.
    """
    groups = [clusters.members(k) for k in range(len(clusters.centers))]
    if rule == "last":
        return tuple(sorted(members[-1] for members in groups))
    if rule == "informative":
        if information is None:
            raise SettingError("The most informative layer of a cluster needs labels; measure with them first.")
        return tuple(sorted(max(members, key=lambda i: (information[i], i)) for members in groups))
    return tuple(sorted(clusters.centers))


def task_information(moments: Moments, *, parts: Bool[Tensor, "s b"] | None = None) -> Float[np.ndarray, "s l"]:
    """Return how well the class of an image can be predicted linearly from each layer, from 0 to 1.

    The squared canonical correlations between a layer and the classes, summed and divided by the number of classes less
    one: the part of what tells the classes apart that the layer holds in its average over the image.

    Args:
        moments: Of a pass that kept the labels.
        parts: Which blocks of images each part holds; all blocks, as one part, when missing.

    Raises:
        SettingError: The pass did not keep the labels.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.hints.moments import observe
        >>> from keyhole.models.zoo import build
        >>> net = build("resnet8", classes=10, input=default_input("digits"))
        >>> moments = observe(net, open_data("digits").train, ["layer1.0", "layer3.0"], labels=True)
        >>> task_information(moments).shape
        (1, 2)
    """
    if moments.names[-1] != LABELS:
        raise SettingError("The pass kept no labels; observe with labels=True.")
    widths = np.diff(moments.starts)
    found = similarities(moments, ("r2_cca",), parts=parts)["r2_cca"][:, :-1, -1]
    return np.asarray(found * np.minimum(widths[:-1], widths[-1]) / max(int(widths[-1]) - 1, 1))


def _cluster(distance: np.ndarray, rule: Rule, count: int) -> Clusters:
    if rule.clustering in ("kmeans", "reverse"):
        return kmeans(distance, count, center=rule.center)
    return CLUSTERINGS[rule.clustering](distance, count)


def _silhouettes(distance: np.ndarray, rule: Rule) -> dict[int, float]:
    found = {}
    for count in range(2, min(_MOST_CLUSTERS, len(distance) - 1) + 1):
        value = silhouette(distance, _cluster(distance, rule, count))
        if value is not None:
            found[count] = value
    return found


def _best_run(quality: np.ndarray, count: int) -> tuple[int, ...]:
    """Return the consecutive layers with the largest total, of equals the deepest."""
    totals = np.convolve(quality, np.ones(count), mode="valid")
    first = len(totals) - 1 - int(np.argmax(totals[::-1]))
    return tuple(range(first, first + count))


def _control(candidates: Sequence[Layer], rule: Rule) -> tuple[int, ...]:
    total = len(candidates)
    if rule.clustering == "all":
        return tuple(range(total))
    if rule.clustering == "last-only":
        return (total - 1,)
    position = {layer.name: i for i, layer in enumerate(candidates)}
    ends = [position[layer.name] for layer in stage_ends(candidates)]
    count = rule.count or len(ends)
    if rule.clustering == "stage-ends":
        return tuple(ends[-count:])
    if rule.clustering == "uniform":
        return tuple(int((k + 0.5) * total / count) for k in range(count))
    chosen = np.random.default_rng(rule.seed).choice(total, count, replace=False)
    return tuple(sorted(int(i) for i in chosen))


def stability(
    candidates: Sequence[Layer],
    moments: Moments,
    metrics: Sequence[str],
    rule: Rule,
    *,
    draws: int = 100,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """Return how often each layer is chosen over half-samples of the images, from 0 to 1, without another pass.

    A half-sample is 10 of the 20 blocks of images, drawn without replacement. The count of hints is the same in all
    of them.

    Args:
        candidates: The layers to choose from.
        moments: What the pass over the images kept.
        metrics: One metric, or several for their consensus.
        rule: How to choose; its count must be set.
        draws: Number of half-samples.
        seed: Of the draws.
        progress: Wraps the layers of each metric.

    Raises:
        SettingError: There are too few images for halves, no draws, the count is not set, or the rule is a control
            or ``quality``, which look at no similarity.

    Reference:
        Meinshausen and Buehlmann (2010), Stability selection, https://arxiv.org/abs/0809.2932 (halves without
        replacement).
    """
    blocks = len(moments.counts)
    if blocks < 2 or rule.count is None:
        raise SettingError(f"Stability needs a set count and at least 8 images; there are {int(moments.counts.sum())}.")
    if draws < 1:
        raise SettingError(f"draws is {draws}; expected at least 1.")
    if rule.clustering in (*CONTROLS, QUALITY) and rule.clustering != "reverse":
        raise SettingError(f"{rule.clustering} looks at no similarity; stability needs a clustering.")
    random = np.random.default_rng([seed, 3])
    parts = torch.zeros(draws, blocks, dtype=torch.bool)
    for row in parts:
        row[torch.from_numpy(random.permutation(blocks)[: blocks // 2])] = True
    total = len(candidates)  # without the labels, where they were kept
    found = [
        each[:, :total, :total] for each in similarities(moments, metrics, parts=parts, progress=progress).values()
    ]
    known = task_information(moments, parts=parts) if rule.hint == "informative" else None
    times = np.zeros(total)
    for draw in range(draws):
        matrices = [values[draw] for values in found]
        matrix = matrices[0] if len(matrices) == 1 else consensus(matrices)
        distance = to_distance(matrix)
        clusters = _cluster(distance, rule, rule.count)
        times[list(hint_layers(clusters, rule.hint, None if known is None else known[draw]))] += 1
    return {layer.name: float(times[i] / draws) for i, layer in enumerate(candidates)}
