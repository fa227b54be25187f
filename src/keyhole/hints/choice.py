"""From a teacher and images to hint points, in one call: watch, compare, cluster, choose, and say how sure that is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keyhole.data.splits import Split
from keyhole.errors import DataError, SettingError, unknown_name
from keyhole.hints.moments import Moments, ObserveConfig, at_a_time, observe
from keyhole.hints.quality import Quality, layer_quality
from keyhole.hints.selection import QUALITY, Rule, Selection, check_rule, select, stability, task_information
from keyhole.hints.similarity import ALWAYS, LEAST_IMAGES, METRICS, consensus, similarities
from keyhole.models.frozen import freeze
from keyhole.models.layers import Layer, layers
from keyhole.models.network import Network
from keyhole.progress import Progress, silent
from keyhole.runtime import PRECISIONS, choose_precision, synchronize

CONSENSUS = "consensus"


@dataclass(frozen=True)
class Choice:
    """The hint layers under one metric.

    Attributes:
        hints: The chosen layers, in the order in which they are given to the student.
        clusters: The layers of each cluster; empty for controls.
        silhouette: Mean silhouette by count of clusters; empty for controls.
        stability: How often each layer is chosen over half-samples, 0 to 1; empty when it was not measured.
    """

    hints: tuple[str, ...]
    clusters: tuple[tuple[str, ...], ...]
    silhouette: dict[int, float]
    stability: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hints:
    """Which layers of a teacher shall teach, and all that led there.

    Attributes:
        teacher: Name of the network.
        data: Name of the data set.
        sample_indices: The images looked at, by position in the official training order.
        metric: The metric that decided; ``consensus`` where several were asked for.
        rule: How layers were chosen.
        layers: The candidates, in the order of depth.
        choices: The choice under each metric that was asked for, and under their consensus.
        similarities: One matrix over all candidates for each metric that was asked for and for the cheap ones.
        seconds: Where the time went.
        information: What each layer knows about the classes, 0 to 1, where labels were asked for.
        quality: How good each layer is to learn from by the labels, with its parts, where that was asked for.
    """

    teacher: str
    data: str
    sample_indices: tuple[int, ...]
    metric: str
    rule: Rule
    layers: tuple[Layer, ...]
    choices: dict[str, Choice]
    similarities: dict[str, Float[np.ndarray, "l l"]]
    seconds: dict[str, float | None]
    information: dict[str, float] = field(default_factory=dict)
    quality: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def hints(self) -> tuple[str, ...]:
        """The chosen layers, in the order in which they are given to the student."""
        return self.choices[self.metric].hints

    def to_json(self) -> dict[str, Any]:
        """Return everything but the matrices as values that JSON can hold."""
        decided = self.choices[self.metric]
        return {
            "teacher": self.teacher,
            "data": self.data,
            "samples": len(self.sample_indices),
            "metric": self.metric,
            "clustering": self.rule.clustering,
            "center": self.rule.center,
            "hint": self.rule.hint,
            "count": len(decided.hints),
            "hints": list(decided.hints),
            "clusters": [list(cluster) for cluster in decided.clusters],
            "silhouette": {str(count): value for count, value in decided.silhouette.items()},
            "stability": decided.stability,
            "layers": [
                {"name": layer.name, "channels": layer.channels, "size": list(layer.size)} for layer in self.layers
            ],
            "choices": {
                name: {
                    "hints": list(choice.hints),
                    "clusters": [list(cluster) for cluster in choice.clusters],
                    "silhouette": {str(count): value for count, value in choice.silhouette.items()},
                    "stability": choice.stability,
                }
                for name, choice in self.choices.items()
            },
            "seconds": self.seconds,
            "information": self.information,
            "quality": self.quality,
            "sample_indices": list(self.sample_indices),
        }


@dataclass(frozen=True)
class ChoiceConfig:
    """What to look at and what to measure beside the choice.

    Attributes:
        samples: How many images, drawn from the seed; all of them where there are fewer.
        metrics: The metrics that decide; with several, their consensus does.
        layers: Candidates by glob; None finds them.
        draws: Half-samples for the stability; 0 leaves it out.
        bare: Also time the forward pass without any hook, as the floor.
        seed: Of the samples and the half-samples.
    """

    samples: int = 10_000
    metrics: tuple[str, ...] = ("r2_cca",)
    layers: str | None = None
    draws: int = 100
    bare: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for metric in self.metrics:
            if metric not in METRICS:
                raise unknown_name("metric", metric, METRICS)
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise SettingError(f"Metrics {','.join(self.metrics)!r} must name each metric once.")
        if self.samples < 2 or self.draws < 0:
            raise SettingError(f"samples is {self.samples} and draws {self.draws}; expected at least 2 and 0.")
        if self.seed < 0:
            raise SettingError(f"seed is {self.seed}; expected at least 0.")


def choose_hints(
    teacher: Network,
    images: Split,
    rule: Rule | None = None,
    *,
    config: ChoiceConfig | None = None,
    look: ObserveConfig | None = None,
    device: torch.device | None = None,
    data: str = "images",
    progress: Progress = silent,
) -> Hints:
    """Choose the layers of a teacher that a student shall learn from: one pass, no labels, no search.

    Args:
        teacher: The teacher, with its trained weights.
        images: Training images; labels are used only where the rule takes the most ``informative`` layers or chooses
            by ``quality``.
        rule: How layers are chosen.
        config: What to look at; the defaults when missing, as for the next.
        look: How to look.
        device: Where to run the teacher.
        data: Name of the data, for the record.
        progress: Wraps the long loops.

    Raises:
        SettingError: More hints than layers, or too few images.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Keser et al. (2023), https://doi.org/10.1016/j.eswa.2022.119040.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.models.zoo import build
        >>> digits = open_data("digits")
        >>> teacher = build("resnet14", classes=10, input=default_input("digits"))
        >>> found = choose_hints(teacher, digits.train, Rule(count=2), config=ChoiceConfig(draws=10))
        >>> len(found.hints), sorted(found.similarities)[0]
        (2, 'debiased_cka')
    """
    if not len(images):
        raise DataError("There are no images to look at.")
    device = device or torch.device("cpu")
    rule, config, look = rule or Rule(), config or ChoiceConfig(), look or ObserveConfig()
    candidates = layers(teacher, config.layers)
    check_rule(candidates, rule)
    random = np.random.default_rng([config.seed, 4])
    sample = images.subset(torch.from_numpy(random.permutation(len(images))[: config.samples].copy()))
    seen = _look_at(teacher, sample, candidates, rule=rule, config=config, look=look, device=device, progress=progress)

    started = time.perf_counter()
    deciding = {name: seen.matrices[name] for name in config.metrics}
    if len(deciding) > 1:
        deciding[CONSENSUS] = consensus(list(deciding.values()))
    choices = {
        name: _choice(candidates, select(candidates, matrix, rule, information=seen.information, quality=seen.quality))
        for name, matrix in deciding.items()
    }
    selection_s = time.perf_counter() - started

    metric = CONSENSUS if len(config.metrics) > 1 else config.metrics[0]
    started = time.perf_counter()
    choices[metric] = _with_stability(choices[metric], candidates, seen.moments, rule, config, progress)
    tapped_s = seen.moments.seconds["tapped_forward"]
    seconds = {
        "bare_forward": None,
        "tapped_forward": tapped_s,
        "metrics": seen.metrics_s,
        "selection": selection_s,
        "total": tapped_s + seen.metrics_s + selection_s,
        "stability": time.perf_counter() - started,
    }
    if config.bare:
        seconds["bare_forward"] = bare_forward_seconds(teacher, sample, look, device, progress=progress)
    return Hints(
        teacher=teacher.name,
        data=data,
        sample_indices=tuple(sample.indices.tolist()),
        metric=metric,
        rule=rule,
        layers=tuple(candidates),
        choices=choices,
        similarities=seen.matrices | ({CONSENSUS: deciding[CONSENSUS]} if len(config.metrics) > 1 else {}),
        seconds=seconds,
        **seen.from_labels([layer.name for layer in candidates]),
    )


@dataclass(frozen=True)
class _Seen:
    """What a look at the images gave: sums, similarities, and what labels tell of the layers where that was asked."""

    moments: Moments
    matrices: dict[str, Float[np.ndarray, "l l"]]
    information: Float[np.ndarray, " l"] | None
    scores: Sequence[Quality]
    metrics_s: float

    @property
    def quality(self) -> Float[np.ndarray, " l"] | None:
        return np.array([score.total for score in self.scores]) if self.scores else None

    def from_labels(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what labels tell of the layers, by name."""
        known = () if self.information is None else self.information
        scores = [{"quality": score.total, **asdict(score)} for score in self.scores]
        return {
            "information": dict(zip(names, map(float, known), strict=False)),
            "quality": dict(zip(names, scores, strict=False)),
        }


def _look_at(
    teacher: Network,
    sample: Split,
    candidates: Sequence[Layer],
    *,
    rule: Rule,
    config: ChoiceConfig,
    look: ObserveConfig,
    device: torch.device,
    progress: Progress,
) -> _Seen:
    metrics = [
        name
        for name in METRICS
        if name in config.metrics or (name in ALWAYS and len(sample) >= LEAST_IMAGES.get(name, 2))
    ]
    informed, scored = rule.hint == "informative", rule.clustering == QUALITY
    moments = observe(
        teacher,
        sample,
        [layer.name for layer in candidates],
        config=replace(look, rbf="rbf_cka" in metrics),
        labels=informed or scored,
        features=scored,
        device=device,
        progress=progress,
    )
    started = time.perf_counter()
    total = len(candidates)
    found = similarities(moments, metrics, progress=progress)
    matrices = {name: values[0, :total, :total] for name, values in found.items()}
    known = task_information(moments)[0] if informed else None
    scores = layer_quality(moments, progress=progress) if scored else []
    return _Seen(moments, matrices, known, scores, moments.seconds["sums"] + time.perf_counter() - started)


def _choice(candidates: Sequence[Layer], selection: Selection) -> Choice:
    grouped = selection.clusters
    count = len(grouped.centers) if grouped else 0
    return Choice(
        hints=tuple(candidates[i].name for i in selection.hints),
        clusters=tuple(tuple(candidates[i].name for i in grouped.members(k)) for k in range(count)) if grouped else (),
        silhouette=selection.silhouettes,
    )


def _with_stability(
    choice: Choice,
    candidates: Sequence[Layer],
    moments: Moments,
    rule: Rule,
    config: ChoiceConfig,
    progress: Progress,
) -> Choice:
    if not choice.clusters or config.draws == 0 or len(moments.counts) < 2:
        return choice
    fixed = replace(rule, count=len(choice.hints))
    found = stability(
        candidates, moments, config.metrics, fixed, draws=config.draws, seed=config.seed, progress=progress
    )
    return replace(choice, stability=found)


@torch.no_grad()
def bare_forward_seconds(
    network: Network, images: Split, look: ObserveConfig, device: torch.device, *, progress: Progress = silent
) -> float:
    """Return how long the network alone takes for the images: in memory, prepared, no hooks, after a warm-up."""
    precision = choose_precision(look.precision, device)
    module = freeze(network, device=device, precision=precision, compile=look.compile)
    dtype = PRECISIONS[precision]
    total = -(-len(images) // look.batch_size)
    seconds = 0.0
    batches = images.to(device).batches(look.batch_size)
    for step, batch in enumerate(progress(batches, label="bare forward pass", total=total)):
        prepared: Tensor = network.input.prepare(batch.images).to(dtype)
        pieces = at_a_time(prepared)
        if step == 0:
            module(pieces[0])
        synchronize(device)
        started = time.perf_counter()
        for piece in pieces:
            module(piece)
        synchronize(device)
        seconds += time.perf_counter() - started
    return seconds
