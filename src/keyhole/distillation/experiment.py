"""A cohort from beginning to result: train the arms, then measure them on the test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keyhole.data.sources import Data
from keyhole.data.splits import hold_out
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.evaluation import Accuracy, evaluate
from keyhole.distillation.group import ALONE, Group
from keyhole.distillation.training import Checkpointing, Outcome, fit
from keyhole.errors import DivergenceError
from keyhole.models.network import Network, count_macs
from keyhole.progress import Progress, silent


@dataclass(frozen=True)
class Score:
    """What an arm reached on the test images.

    Attributes:
        outcome: The trained networks and their history.
        last: Accuracy after the last epoch.
        best: Accuracy after the epoch that was best on the held-out images.
        parameters: Of the student; adapters are thrown away and do not count.
        macs: Multiply-accumulates for one image.
    """

    outcome: Outcome
    last: Accuracy
    best: Accuracy
    parameters: int
    macs: int


@dataclass(frozen=True)
class Result:
    """What came out of a cohort.

    Attributes:
        scores: One an arm that came to the end, in the order given.
        teacher: The teacher, where there was one.
        teacher_accuracy: Its accuracy on the same test images.
        data: Name of the data.
        images: Number of images trained on, held out, and tested on.
        config: How it was trained.
        seconds: From the first batch to the last test image, over all processes of a resumed run.
        diverged: What happened to arms that did not come to the end, where they were dropped.
        processes: How many trained together; each took a batch of the configured size in every step.
    """

    scores: tuple[Score, ...]
    teacher: Network | None
    teacher_accuracy: Accuracy | None
    data: str
    images: Mapping[str, int]
    config: TrainConfig
    seconds: float
    diverged: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values; accuracies in percent. With a single arm its figures also stand on top."""
        teacher: dict[str, Any] | None = None
        if self.teacher is not None and self.teacher_accuracy is not None:
            teacher = {
                "name": self.teacher.name,
                "top1": percent(self.teacher_accuracy.top1),
                "top5": percent(self.teacher_accuracy.top5),
                "parameters": self.teacher.parameters,
                "macs": count_macs(self.teacher),
            }
        arms = [_arm_json(score, teacher) for score in self.scores]
        common = {
            "teacher": teacher,
            "data": self.data,
            "epochs": self.config.epochs,
            "seed": self.config.seed,
            "precision": self.config.precision,
            "images": dict(self.images),
            "seconds": self.seconds,
            "diverged": dict(self.diverged),
            **({"processes": self.processes} if self.processes > 1 else {}),
        }
        return {**common, **(arms[0] if len(arms) == 1 else {}), "arms": arms}


def percent(rate: float) -> float:
    """Return a rate of 0 to 1 in percent, rounded to a thousandth."""
    return round(100 * rate, 3)


def _arm_json(score: Score, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    arm, history = score.outcome.arm, score.outcome.history
    held_out = [record["held_out_top1"] for record in history if "held_out_top1" in record]
    return {
        "name": arm.name,
        "student": arm.student,
        "terms": [asdict(term) for term in arm.terms],
        "balance": arm.balance,
        "scales": history[-1].get("scales", {}) if history else {},
        "hints": [asdict(pair) for pair in arm.hints],
        "top1": {"last": percent(score.last.top1), "best": percent(score.best.top1)},
        "top5": {"last": percent(score.last.top5), "best": percent(score.best.top5)},
        "best_epoch": score.outcome.best_epoch,
        "held_out_top1": {"last": percent(held_out[-1]), "best": percent(max(held_out))} if held_out else None,
        "parameters": score.parameters,
        "macs": score.macs,
        "compression": {
            "parameters": round(teacher["parameters"] / score.parameters, 3),
            "macs": round(teacher["macs"] / score.macs, 3),
        }
        if teacher
        else None,
    }


def run_cohort(
    arms: Sequence[Arm],
    data: Data,
    config: TrainConfig,
    *,
    teacher: Network | None = None,
    held_out: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    diverging: str = "raise",
    teacher_accuracy: Accuracy | None = None,
    group: Group = ALONE,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress = silent,
) -> Result:
    """Train students (or teachers) side by side and measure them on the test images.

    Args:
        arms: What is trained, and on what.
        data: The data; its test images are used once, after the training, in fp32. The teacher is measured on them
            before it, so that one that cannot be costs no training.
        config: How to train.
        teacher: The teacher, with its trained weights.
        held_out: So many training images are not trained on; the best epoch is chosen on them.
        checkpoint: Keep the state in this file.
        resume: Go on from that file where it is there.
        diverging: ``raise`` where the loss of an arm becomes NaN or infinite, or ``drop`` that arm and go on.
        teacher_accuracy: Of the teacher on the test images, where it was measured before.
        group: The processes that run this together (see :func:`keyhole.distillation.group.join_group`), each with the
            same arguments; the first one alone measures, logs and writes, and all return the same result.
        log: Called with one record per arm and epoch.
        progress: Wraps the long loops.

    Raises:
        SettingError: Settings that do not fit together.
        DataError: No labels to train on.
        DivergenceError: A loss became NaN or infinite.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.distillation.notation import parse_terms
        >>> arm = Arm("alone", "resnet8", default_input("digits"), parse_terms("ce"))
        >>> result = run_cohort([arm], open_data("digits"), TrainConfig(epochs=2, precision="fp32"))
        >>> result.scores[0].last.images
        500
    """
    test = data.labeled_test()
    train, chosen_on = hold_out(data.train, held_out)
    cohort = Cohort(arms, config, classes=data.classes, teacher=teacher, train=train, group=group)

    def measured(network: Network) -> Accuracy:
        return group.broadcast(lambda: evaluate(network, test, device=cohort.device, progress=progress))

    if teacher is not None and teacher_accuracy is None:
        teacher_accuracy = measured(teacher)
    started = time.perf_counter()
    keep = Checkpointing(checkpoint, resume=resume) if checkpoint else None
    trained = fit(cohort, train, chosen_on, checkpointing=keep, diverging=diverging, progress=progress, log=log)
    scores, diverged = [], dict(trained.diverged)
    for outcome in trained.outcomes:
        try:
            last = measured(outcome.last)
            best = last if outcome.best_epoch == config.epochs else measured(outcome.best)
        except DivergenceError as error:
            if diverging == "raise":
                raise
            diverged[outcome.arm.name] = str(error)
            continue
        scores.append(Score(outcome, last, best, outcome.last.parameters, count_macs(outcome.last)))
    return Result(
        scores=tuple(scores),
        teacher=teacher,
        teacher_accuracy=teacher_accuracy,
        data=data.name,
        images={"train": len(train), "held_out": len(chosen_on), "test": len(test)},
        config=cohort.config,
        seconds=trained.earlier_s + time.perf_counter() - started,
        diverged=diverged,
        processes=group.count,
    )
