"""One training loop for teachers, baselines and students, which goes on where a killed process stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyhole.data.splits import Share, Split
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import OF_MACHINE
from keyhole.distillation.evaluation import evaluate
from keyhole.distillation.learner import Learner
from keyhole.errors import DataError, DivergenceError, RunError, unknown_name
from keyhole.files import read_tensors, write_tensors
from keyhole.models.network import Network
from keyhole.progress import Progress, silent
from keyhole.runtime import keep_freed_memory


@dataclass(frozen=True)
class Outcome:
    """What became of an arm.

    Attributes:
        arm: The arm.
        last: The network after the last epoch, on the CPU.
        best: The network after the epoch that was best on the held-out images; the last one where none were held out.
        best_epoch: That epoch, counted from 1.
        history: One record an epoch: loss by term, learning rate, held-out top-1 (0 to 1) where images were held out.
    """

    arm: Arm
    last: Network
    best: Network
    best_epoch: int
    history: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Trained:
    """What came out of :func:`fit`.

    Attributes:
        outcomes: One an arm that came to the end, in the order given.
        earlier_s: Seconds that earlier processes spent on a resumed run.
        seconds: Of all processes, from the first step to the last.
        diverged: What happened to the others, by arm.
    """

    outcomes: tuple[Outcome, ...]
    earlier_s: float
    seconds: float
    diverged: Mapping[str, str]


@dataclass(frozen=True)
class Checkpointing:
    """Where a run keeps the state from which a killed process goes on.

    Attributes:
        path: The file; replaced whole each time.
        every_s: Seconds between two writes inside an epoch; each epoch's end is written as well.
        resume: Go on from the file where there is one.
        private: The file is readable by its owner only, as where it holds a vector for each person's face.
    """

    path: Path
    every_s: float = 120.0
    resume: bool = False
    private: bool = False


def fit(
    cohort: Cohort,
    train: Split,
    held_out: Split | None = None,
    *,
    until: int | None = None,
    checkpointing: Checkpointing | None = None,
    diverging: str = "raise",
    progress: Progress = silent,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Train a cohort to the end, or to the end of an epoch on the way.

    Where several processes train it, each takes its share of every batch; the first one alone measures, logs and
    writes, and all return the same.

    Args:
        cohort: The learners.
        train: The training images.
        held_out: Images to choose the best epoch on; never test images.
        until: Stop after so many epochs of the schedule; what is on disk goes on from there.
        checkpointing: Keep the state on disk, and perhaps go on from it.
        diverging: ``raise`` where the loss of an arm becomes NaN or infinite, or ``drop`` that arm and go on.
        progress: Wraps the steps of each epoch.
        log: Called with one record per arm and epoch.

    Raises:
        DataError: The images lack labels that a term needs, or have more classes than the learners.
        DivergenceError: A loss became NaN or infinite; the last good checkpoint is kept.
        UnknownNameError: ``diverging`` is neither of the two.
        RunError: The checkpoint was made with other settings, or another process was lost.
        SettingError: Processes were started with different settings.
    """
    if diverging not in ("raise", "drop"):
        raise unknown_name("way of diverging", diverging, ("raise", "drop"))
    config, group = cohort.config, cohort.group
    if cohort.device.type == "cpu":
        keep_freed_memory()
    _check_processes(cohort, train)
    group.broadcast(lambda: _check_labels(cohort, train))
    share = Share(group.rank, group.count)
    steps = group.broadcast(lambda: share.steps(len(train), config.batch_size))
    train = train.to(cohort.device)
    held_out = held_out.to(cohort.device) if held_out is not None and len(held_out) else None
    begin, step, earlier = _begin(cohort, checkpointing, len(train))
    seconds = earlier
    for epoch in range(begin, config.epochs if until is None else min(until, config.epochs)):
        if not cohort.learners:  # all of them diverged
            break
        started = saved = time.perf_counter()
        cohort.train_mode()
        batches = train.training_batches(
            config.batch_size, seed=config.seed, epoch=epoch, start=step, augment=config.augment, share=share
        )
        label = f"epoch {epoch + 1}/{config.epochs}"
        for lesson in progress(cohort.lessons(batches), label=label, total=steps, done=step):
            cohort.step(lesson, config.rate(epoch + step / steps))
            step += 1
            checked = step == 1 or step % 100 == 0  # in the first step, a broken teacher shows in its own term alone
            due = _due(cohort, checkpointing, time.perf_counter() - saved, checked=checked)
            if due or checked:
                _check_finite(cohort, f"in epoch {epoch + 1}, step {step}", diverging, checkpointing)
            if due:
                saved = time.perf_counter()
                _save(cohort, checkpointing, len(train), (epoch, step), seconds + saved - started)
            if not cohort.learners:
                break
        _check_finite(cohort, f"in epoch {epoch + 1}", diverging, checkpointing)
        _close_epoch(cohort, epoch + 1, steps, held_out, log, drop=diverging == "drop")
        step = 0
        seconds += time.perf_counter() - started
        _save(cohort, checkpointing, len(train), (epoch + 1, 0), seconds)
    _share(cohort)
    return Trained(tuple(_outcome(learner) for learner in cohort.learners), earlier, seconds, dict(cohort.dropped))


def _due(cohort: Cohort, checkpointing: Checkpointing | None, since_s: float, *, checked: bool) -> bool:
    """Return whether to write a checkpoint; of several processes the first one's clock counts, where all meet."""
    due = checkpointing is not None and since_s > checkpointing.every_s
    return due if cohort.group.count == 1 else checked and cohort.group.broadcast(lambda: due)


def _check_processes(cohort: Cohort, train: Split) -> None:
    settings = cohort.config.deciding
    settings |= {"arms": [repr(learner.arm) for learner in cohort.learners], "training images": len(train)}
    settings["sum of their labels"] = int(train.labels.sum())
    cohort.group.check_same(settings)


def _begin(cohort: Cohort, checkpointing: Checkpointing | None, images: int) -> tuple[int, int, float]:
    """Begin where an earlier run stopped, in all processes with the state of the first one."""
    epoch, step, seconds, sums = cohort.group.broadcast(lambda: _restore(cohort, checkpointing, images))
    _share(cohort)
    for learner, own in zip(cohort.learners, sums[cohort.group.rank] if sums else (), strict=False):
        learner.sums = {name: torch.tensor(value, device=cohort.device) for name, value in own.items()}
    return epoch, step, seconds


def _share(cohort: Cohort) -> None:
    """Take over the state of the first process, which alone has read it, and measured."""
    if cohort.group.count == 1:
        return

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = cohort.state()
        return {name: tensor.cpu() for name, tensor in tensors.items()}, values

    tensors, values = cohort.group.broadcast(state)
    if not cohort.group.leads:
        cohort.restore(tensors, values)


def _check_finite(cohort: Cohort, where: str, diverging: str, checkpointing: Checkpointing | None) -> None:
    found: dict[str, str] = {}
    for seen in cohort.group.gathered(cohort.diverged(where)):
        found = seen | found
    if found and diverging == "raise":
        cohort.group.broadcast(lambda: _tell(*next(iter(found.items())), cohort.config.precision, checkpointing))
    for name, why in found.items():
        cohort.drop(name, why)


def _tell(name: str, why: str, precision: str, checkpointing: Checkpointing | None) -> None:
    kept = checkpointing is not None and checkpointing.path.is_file()
    wider = "" if precision == "fp32" else " or use --precision fp32,"
    raise DivergenceError(
        f"Arm {name}: {why}. Lower --lr or the weight of a term,{wider} with another --out"
        + (f"; the last good checkpoint is kept in {checkpointing.path}." if checkpointing and kept else ".")
    )


def _check_labels(cohort: Cohort, train: Split) -> None:
    for learner in cohort.learners:
        needing = next((term.name for term in learner.arm.terms if term.needs_labels), None)
        if needing and not train.classes:
            raise DataError(f"Arm {learner.arm.name}: term {needing} needs labeled images (train/CLASS/IMAGE.jpg).")
        embeds = all(term.kind.embeds or not term.needs_labels for term in learner.arm.terms)
        if len(train.classes) > learner.network.classes and not embeds:
            outputs = learner.network.classes
            raise DataError(f"The data has {len(train.classes)} classes and arm {learner.arm.name} {outputs} outputs.")


def _close_epoch(
    cohort: Cohort,
    epoch: int,
    steps: int,
    held_out: Split | None,
    log: Callable[[dict[str, Any]], None] | None,
    *,
    drop: bool,
) -> None:
    cohort.average_sums()
    rate = cohort.config.rate(epoch - 1 + (steps - 1) / steps)
    for learner in list(cohort.learners):
        try:
            score = cohort.group.broadcast(partial(_held_out_top1, cohort, learner, held_out))
        except DivergenceError as error:  # weights that are finite, and too large for their own logits
            if not drop:
                raise
            cohort.drop(learner.arm.name, f"{error} That was after epoch {epoch}.")
            continue
        record = _record(learner, epoch, steps, rate, score)
        if log is not None and cohort.group.leads:
            log({**record, "arm": learner.arm.name})


def _held_out_top1(cohort: Cohort, learner: Learner, held_out: Split | None) -> float | None:
    if held_out is None:
        return None
    found = evaluate(learner.network, held_out, device=cohort.device, precision=cohort.config.precision)
    learner.tapped.forget()
    return found.top1


def _record(learner: Learner, epoch: int, steps: int, rate: float, score: float | None) -> dict[str, Any]:
    record: dict[str, Any] = {"epoch": epoch, "rate": rate}
    record |= {name: float(value) / steps for name, value in learner.sums.items()}
    if learner.arm.balance == "gradients":
        record["scales"] = dict(learner.scales)
    learner.clear_sums()
    if score is not None:
        record["held_out_top1"] = score
    if score is None or score >= max((past["held_out_top1"] for past in learner.history), default=0.0):
        learner.best = {name: tensor.detach().clone() for name, tensor in learner.network.module.state_dict().items()}
        learner.best_epoch = epoch
    learner.history.append(record)
    return record


def _save(
    cohort: Cohort, checkpointing: Checkpointing | None, images: int, at: tuple[int, int], seconds: float
) -> None:
    if checkpointing is None:
        return
    alone = cohort.group.count == 1
    sums = [] if alone else cohort.group.gathered([learner.sums_as_numbers() for learner in cohort.learners])
    if not cohort.group.leads:
        return
    tensors, values = cohort.state()
    values |= {} if alone else {"sums": sums}  # of every process
    values |= {"epoch": at[0], "step": at[1], "seconds": seconds}
    values["config"] = _settings(cohort, images)
    write_tensors(checkpointing.path, tensors, values, private=checkpointing.private)


def _settings(cohort: Cohort, images: int) -> dict[str, Any]:
    return {**asdict(cohort.config), "images": images, "processes": cohort.group.count}


def _restore(
    cohort: Cohort, checkpointing: Checkpointing | None, images: int
) -> tuple[int, int, float, list[list[dict[str, float]]]]:
    if checkpointing is None or not checkpointing.resume or not checkpointing.path.is_file():
        return 0, 0, 0.0, []
    tensors, values = read_tensors(checkpointing.path)
    if not isinstance(values.get("config"), dict):
        raise RunError(f"{checkpointing.path} is no checkpoint of a cohort. Choose another --out.")
    made, wanted = (
        {"processes": 1, "optimizer": "sgd", **values["config"]},
        json.loads(json.dumps(_settings(cohort, images))),
    )
    other = [name for name in wanted if name not in OF_MACHINE and made.get(name) != wanted[name]]
    if other:
        was, now = (", ".join(f"{name} {of.get(name)}" for name in other) for of in (made, wanted))
        raise RunError(f"{checkpointing.path} was made with {was}, not with {now}. Use the old settings or start anew.")
    cohort.restore(tensors, values)
    sums = values.get("sums", []) if cohort.group.count > 1 else []
    return int(values["epoch"]), int(values["step"]), float(values["seconds"]), sums


def _outcome(learner: Learner) -> Outcome:
    last, best = (learner.arm.build(learner.network.classes) for _ in "lb")
    last.module.load_state_dict(learner.network.module.state_dict())
    best.module.load_state_dict(learner.best)
    return Outcome(learner.arm, last, best, learner.best_epoch, tuple(learner.history))
