"""What every rule of choosing takes from one teacher: each clustering under each metric, and the controls."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from keyhole.data.splits import Split
from keyhole.errors import SettingError
from keyhole.hints.choice import CONSENSUS, ChoiceConfig, choose_hints
from keyhole.hints.clustering import CLUSTERINGS
from keyhole.hints.moments import ObserveConfig, observe
from keyhole.hints.selection import HINT_RULES, QUALITY, Rule, select
from keyhole.hints.similarity import ALWAYS, METRICS, consensus, similarities
from keyhole.models.layers import layers
from keyhole.models.network import Network
from keyhole.plans import ArmPlan, parse_count
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device
from keyhole.studies.board import Board, Keep

_RANDOM = 3  # draws of the random rule


@dataclass(frozen=True)
class LookSeconds:
    """What looking at a teacher takes.

    Attributes:
        whole: Of the look that tells what every rule takes: all metrics, and what labels tell.
        centers: Of a look for the k-means centers of one metric alone, by that metric, or of their consensus; empty
            where that was not timed.
    """

    whole: float
    centers: Mapping[str, float]


def choices_of_rules(
    teacher: Network,
    train: Split,
    plan: ArmPlan,
    *,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
) -> dict[str, tuple[str, ...]]:
    """Return what each rule takes from a teacher, by the name of the rule; one pass, no training.

    Rules are called ``kmeans r2_cca`` where they take the centers of clusters, ``kmeans r2_cca, last`` and
    ``kmeans r2_cca, informative`` where another layer of the cluster teaches, and by their own name where they look at
    no similarity. ``consensus`` is that of the metrics that are always measured. A rule that cannot choose so many
    layers is left out, and so is ``informative`` where the images have no labels.

    Args:
        teacher: The teacher, with its trained weights.
        train: The training images; its ``samples`` are drawn from them.
        plan: The arm whose ``count``, ``layers``, ``samples`` and ``seed`` hold.
        device: Where to run the teacher.
        precision: In which.
        progress: Wraps the long loops.

    Raises:
        SettingError: The count is no number.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.models.zoo import build
        >>> teacher = build("resnet14", classes=10, input=default_input("digits"))
        >>> plan = ArmPlan(count=2, samples=100)
        >>> choices_of_rules(teacher, open_data("digits").train, plan, device="cpu")["stage-ends"]
        ('layer2.1', 'layer3.1')
    """
    count, candidates = parse_count(str(plan.count)), layers(teacher, plan.layers)
    if count is None:
        raise SettingError(f"Arm {plan.name!r} has the count auto; expected a number of layers to combine.")
    labels = bool(train.classes)
    measured = choose_hints(
        teacher,
        train,
        Rule(QUALITY, count, hint="informative", seed=plan.seed) if labels else Rule(count=count, seed=plan.seed),
        config=ChoiceConfig(plan.samples, METRICS, plan.layers, draws=0, bare=False, seed=plan.seed),
        look=ObserveConfig(precision=precision),
        device=choose_device(device),
        progress=progress,
    )
    matrices = {name: measured.similarities[name] for name in METRICS}
    matrices[CONSENSUS] = consensus([matrices[name] for name in ALWAYS])
    known = np.array([measured.information[layer.name] for layer in candidates]) if labels else None
    wanted = {
        f"{clustering} {metric}{'' if hint == 'center' else f', {hint}'}": (matrix, Rule(clustering, count, hint=hint))
        for hint in HINT_RULES
        if hint != "informative" or labels
        for clustering in CLUSTERINGS
        for metric, matrix in matrices.items()
    }
    controls = {name: (None, Rule(name, count)) for name in ("stage-ends", "uniform")}
    controls |= {f"random, seed {seed}": (None, Rule("random", count, seed=seed)) for seed in range(_RANDOM)}
    controls |= {QUALITY: (None, Rule(QUALITY, count))} if labels else {}
    scores = np.array([measured.quality[layer.name]["quality"] for layer in candidates]) if labels else None
    found = {}
    for name, (matrix, rule) in (wanted | controls).items():
        try:
            chosen = select(candidates, matrix, rule, information=known, quality=scores)
        except SettingError:  # more stage ends than there are stages
            continue
        found[name] = tuple(candidates[i].name for i in sorted(chosen.hints))
    return found


def is_center(name: str) -> bool:
    """Return whether a rule takes the centers of clusters, by its name.

    Example:
        >>> is_center("kmeans r2_cca"), is_center("kmeans r2_cca, last"), is_center("uniform")
        (True, False, False)
    """
    return name.partition(" ")[0] in CLUSTERINGS and "," not in name


def in_short(names: Sequence[str]) -> list[str]:
    """Return names of rules, those of one clustering together with the metrics that they go by.

    Example:
        >>> in_short(("kmeans r2_cca", "kmeans pwcca", "segments svcca, last", "segments svcca, informative", "all"))
        ['kmeans (r2_cca, pwcca)', 'segments svcca, last or informative', 'all']
    """
    metrics: dict[str, list[str]] = {}
    for name in names:
        clustering, _, rest = name.partition(" ")
        metric, _, hint = rest.partition(", ")
        if clustering in CLUSTERINGS and metric:
            metrics.setdefault(f"{clustering}{f', {hint}' if hint else ''}", []).append(metric)
        else:
            metrics[name] = []
    alike: dict[tuple[str, ...], list[str]] = {}  # clustering and metrics, and the hints that these take
    for rule, by in metrics.items():
        clustering, _, hint = rule.partition(", ") if by else (rule, "", "")
        alike.setdefault((clustering, "hint" if hint else "", *by), []).extend([hint] if hint else [])
    found = []
    for (clustering, _, *by), hints in alike.items():
        told = f" ({', '.join(by)})" if len(by) > 1 else "".join(f" {metric}" for metric in by)
        taken = f", {' or '.join(hints)}" if hints else ""
        found.append(f"{clustering}{told}{taken}")
    return found


def metrics_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics by which k-means centers are among what is named, of the names of rules.

    Example:
        >>> metrics_of(("stage-ends", "kmeans r2_cca", "segments linear_cka", "kmeans linear_cka, last"))
        ('r2_cca',)
    """
    return tuple(name.removeprefix("kmeans ") for name in names if name.startswith("kmeans ") and is_center(name))


def seconds_of_centers(
    teacher: Network,
    train: Split,
    plan: ArmPlan,
    *,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
) -> dict[str, float]:
    """Return what a look takes that tells the k-means centers of one metric and nothing else, by that metric.

    The pass over the images is timed once for the metrics that need no more than sums of products, and once with the
    sums of the Gaussian kernels for those that need them.

    Args:
        teacher: The teacher, with its trained weights.
        train: The training images; its ``samples`` are drawn from them.
        plan: The arm whose ``count``, ``layers``, ``samples`` and ``seed`` hold; the count is a number.
        device: Where to run the teacher.
        precision: In which.
        progress: Wraps the long loops.
    """
    candidates, rule = layers(teacher, plan.layers), Rule(count=parse_count(str(plan.count)))
    drawn = np.random.default_rng([plan.seed, 4]).permutation(len(train))[: plan.samples]
    sample = train.subset(torch.from_numpy(drawn.copy()))
    clock, found = time.perf_counter, {}
    names = [layer.name for layer in candidates]
    # what a first pass alone takes is part of no metric
    observe(teacher, sample.subset(range(min(len(sample), 256))), names, config=ObserveConfig(precision=precision),
            device=choose_device(device))  # fmt: skip
    for rbf in (False, True):
        started = clock()
        moments = observe(
            teacher,
            sample,
            names,
            config=ObserveConfig(precision=precision, rbf=rbf),
            device=choose_device(device),
            progress=progress,
        )
        seen = clock() - started
        for metric in (*METRICS, CONSENSUS):
            needed = ALWAYS if metric == CONSENSUS else (metric,)
            if ("rbf_cka" in needed) is rbf:
                started = clock()
                matrices = [values[0] for values in similarities(moments, needed, progress=progress).values()]
                select(candidates, consensus(matrices) if len(matrices) > 1 else matrices[0], rule)
                found[metric] = seen + clock() - started
    return found


def settled_rules(
    board: Board,
    teacher: Network,
    train: Split,
    plan: ArmPlan,
    *,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
    keep: Keep | None = None,
) -> tuple[dict[str, tuple[str, ...]], LookSeconds | None]:
    """Return :func:`choices_of_rules` as the folder of a study has them, and the seconds that looks take.

    Args:
        board: The folder; looked at once for it.
        teacher: The teacher of the study.
        train: Its training images.
        plan: The arm whose ``count``, ``layers``, ``samples`` and ``seed`` hold.
        device: Where to run the teacher.
        precision: In which.
        progress: Wraps the long loops.
        keep: :meth:`Board.settle`, which is meant where nothing is given, or :meth:`Board.peek`; with that, a look that
            nobody has had is not taken: there are no rules, and no seconds. Nor is one timed that nobody has timed.
    """
    asked = json.dumps([str(plan.count), plan.layers, plan.samples, plan.seed])
    asked = hashlib.sha256(asked.encode()).hexdigest()[:8]
    times = f"times-{asked}"  # beside the look, which folders have that were begun before looks were timed one by one

    def look() -> str:
        started = time.perf_counter()
        found = choices_of_rules(teacher, train, plan, device=device, precision=precision, progress=progress)
        return json.dumps({"seconds": round(time.perf_counter() - started, 1), "layers": found}, indent=1)

    def time_them() -> str:
        found = seconds_of_centers(teacher, train, plan, device=device, precision=precision, progress=progress)
        return json.dumps({metric: round(seconds, 3) for metric, seconds in found.items()}, indent=1)

    if keep == board.peek:
        seen = json.loads(board.peek(f"look-{asked}", lambda: json.dumps({"seconds": None, "layers": {}})))
        centers = json.loads(board.peek(times, lambda: "{}"))
    else:
        seen, centers = json.loads(board.settle(f"look-{asked}", look)), json.loads(board.settle(times, time_them))
    rules = {rule: tuple(layers) for rule, layers in seen["layers"].items()}
    return rules, None if seen["seconds"] is None else LookSeconds(float(seen["seconds"]), centers)
