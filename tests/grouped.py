"""The cases of tests/distillation/test_group.py, run by torchrun in two processes; each tells what it saw.

The students have no batch norm, where two processes are to equal one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from keyhole.data.splits import MemorySplit, Share
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.group import ALONE, Group, join_group
from keyhole.distillation.kinds import HintPair
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.training import Checkpointing, Trained, fit
from keyhole.errors import KeyholeError, SettingError
from keyhole.files import write_tensors
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

T = TypeVar("T")
BATCH = 4
SPEC = InputSpec((8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def plain(classes: int) -> nn.Module:
    """A student without batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, classes),
    )  # fmt: skip


def dropping(classes: int) -> nn.Module:
    """A student with dropout."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, classes))


class Either(nn.Module):
    """A loss with two layers, of which the images decide which one is used."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(outputs, 1), nn.Linear(outputs, 1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        used = self.one if int(labels.sum()) % 2 else self.other
        return used(logits).pow(2).mean()


class Queue(nn.Module):
    """A loss that keeps something."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(3))

    def forward(self, logits: Tensor) -> Tensor:
        return (logits - self.last).pow(2).mean()


def network(name: str) -> Network:
    torch.manual_seed(1)
    return build(name, classes=3, input=SPEC)


def split() -> MemorySplit:
    """48 images of 8 x 8 pixels whose class is the brightest channel."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 120, (48, 8, 8, 3))
    labels = np.arange(48) % 3
    pixels[np.arange(48), :, :, labels] += 100
    images = torch.from_numpy(pixels.astype(np.uint8))
    return MemorySplit(images, torch.from_numpy(labels), torch.arange(48) * 2 + 1, tuple("abc"), pad_px=2)


def config(batch_size: int) -> TrainConfig:
    return TrainConfig(
        epochs=2, batch_size=batch_size, lr=0.02, momentum=0.9, precision="fp32", device="cpu", compile="off"
    )


def arm(terms: str, student: str = "grouped:plain") -> Arm:
    parsed = parse_terms(terms)
    ends = ("1", "3") if student == "grouped:plain" else ("layer1.0", "layer3.0")
    pairs = tuple(HintPair(f"layer{i}.0", end) for i, end in zip((1, 3), ends, strict=True))
    return Arm(terms, student, SPEC, parsed, pairs if any(term.needs_hints for term in parsed) else ())


def cohort(arms: list[Arm], group: Group, batch_size: int, *, taught: bool = True) -> Cohort:
    teacher = network("resnet8") if taught else None
    return Cohort(arms, config(batch_size), classes=3, teacher=teacher, group=group)


def _one(group: Group, batch_size: int) -> Cohort:
    return cohort([arm("ce")], group, batch_size, taught=False)


def _several(group: Group, batch_size: int) -> Cohort:
    torch.set_num_threads(2)  # side by side
    made = cohort([arm("ce,kd,at=10"), arm("ce,vid"), arm("kd")], group, batch_size)
    assert made._workers is not None
    torch.set_num_threads(1)
    return made


def _balanced(group: Group, batch_size: int) -> Cohort:
    return cohort([replace(arm("ce,kd,vid"), balance="gradients")], group, batch_size)


CASES: dict[str, Callable[[Group, int], Cohort]] = {"one": _one, "several": _several, "balanced": _balanced}


def started(made: Cohort, number: int) -> dict[str, Tensor]:
    """Return the weights with which a learner of a cohort began."""
    again = cohort([made.learners[number].arm], ALONE, BATCH)
    return again.learners[0].network.module.state_dict()


def digest(trained: Trained) -> str:
    """Return a checksum of all that came out, history and all."""
    told = hashlib.sha256()
    for outcome in trained.outcomes:
        for made in (outcome.last, outcome.best):
            for name, tensor in made.module.state_dict().items():
                told.update(name.encode() + tensor.numpy().tobytes())
        told.update(f"{outcome.best_epoch} {outcome.history}".encode())
    return told.hexdigest()


class Killed(BaseException):
    pass


def killed_after(steps: int) -> Callable[..., Any]:
    left = [steps]

    def progress(items: Iterable[T], *, label: str, total: int, done: int = 0) -> Iterator[T]:
        for item in items:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            yield item

    return progress


def trained(group: Group, folder: Path) -> dict[str, str]:
    ends = {}
    held_out = split().subset(range(9))
    for case, make in CASES.items():
        made = fit(make(group, BATCH), split(), held_out)
        ends[case] = digest(made)
        if group.leads:
            tensors = {
                f"{i}.{name}": tensor
                for i, outcome in enumerate(made.outcomes)
                for name, tensor in outcome.last.module.state_dict().items()
            }
            told = {"history": [outcome.history for outcome in made.outcomes]}
            write_tensors(folder / f"{case}.safetensors", tensors, told)
    for case, student in (("norm", "resnet8"), ("dropout", "grouped:dropping")):
        ends[case] = digest(fit(cohort([arm("ce", student)], group, BATCH, taught=False), split(), held_out))
    return ends


def seen(group: Group) -> list[list[list[int]]]:
    share = Share(group.rank, group.count)
    return [
        [batch.indices.tolist() for batch in split().training_batches(BATCH, seed=0, epoch=epoch, share=share)]
        for epoch in (0, 1)
    ]


def statistics(group: Group) -> list[float]:
    made = cohort([arm("ce", "resnet8")], group, BATCH, taught=False)
    made.train_mode()
    share = Share(group.rank, group.count)
    for lesson in made.lessons(split().training_batches(BATCH, seed=0, epoch=0, share=share)):
        made.step(lesson, 0.01)
    module = made.learners[0].network.module
    weights = [parameter.detach().sum().item() for parameter in module.parameters()]
    assert group.gathered(weights) == [weights] * group.count
    mean: list[float] = module.state_dict()["bn1.running_mean"].tolist()
    return mean


def resumed(group: Group, folder: Path) -> dict[str, Any]:
    def made() -> Cohort:
        return cohort([arm("ce,kd,at=10"), arm("ce,vid", "resnet8")], group, BATCH)

    held_out = split().subset(range(9))
    records: list[int] = []
    keep = Checkpointing(folder / "checkpoint.safetensors", every_s=0, resume=True)
    whole = digest(fit(made(), split(), held_out))
    with contextlib.suppress(Killed):
        fit(made(), split(), held_out, checkpointing=keep, progress=killed_after(3))
    torch.manual_seed(99)
    again = fit(made(), split(), held_out, checkpointing=keep, log=lambda record: records.append(record["epoch"]))
    return {"whole": whole, "resumed": digest(again), "records": sorted(set(records)), "earlier": again.earlier_s}


def owned(group: Group) -> list[list[float]]:
    made = cohort([arm("ce,grouped:Either")], group, BATCH, taught=False)
    fit(made, split())
    learner = made.learners[0]
    return group.gathered([weight.detach().sum().item() for weight in learner.weights])


def _only_first() -> None:
    raise SettingError("Only the first process knows.")


def errors(group: Group, folder: Path) -> dict[str, str]:
    other = 0 if group.leads else 1

    def large() -> None:
        fit(cohort([arm("ce")], group, 25, taught=False), split())

    def crd() -> None:
        Cohort(
            [replace(arm("ce", "resnet8"), terms=parse_terms("ce,crd"))], config(BATCH), classes=3,
            teacher=network("resnet8"), train=split(), group=group,
        )  # fmt: skip

    def checkpoint() -> None:
        kept = Checkpointing(folder / "alone.safetensors", resume=True)
        if group.leads:
            fit(cohort([arm("ce")], ALONE, BATCH, taught=False), split(), checkpointing=kept)
        fit(cohort([arm("ce")], group, BATCH, taught=False), split(), checkpointing=kept)

    cases: dict[str, Callable[[], Any]] = {
        "queue": lambda: cohort([arm("ce,grouped:Queue")], group, BATCH, taught=False),
        "settings": lambda: fit(cohort([arm("ce")], group, BATCH + other, taught=False), split()),
        "images": lambda: fit(cohort([arm("ce")], group, BATCH, taught=False), split().subset(range(48 - other))),
        "large": large,
        "crd": crd,
        "checkpoint": checkpoint,
        "first": lambda: group.broadcast(_only_first),
        "wild": lambda: fit(Cohort([arm("ce")], replace(config(BATCH), lr=1e30), classes=3, group=group), split()),
    }
    told = {}
    for name, case in cases.items():
        try:
            case()
        except KeyholeError as error:
            told[name] = str(error)
    return told


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join_group("cpu") as group:
        value = {
            "told": group.broadcast(lambda: ("made by", group.rank)),
            "ends": trained(group, folder),
            "seen": seen(group),
            "statistics": statistics(group),
            "owned": owned(group),
            "errors": errors(group, folder),
            **resumed(group, folder),
        }
        (folder / f"{group.rank}.json").write_text(json.dumps(value))


if __name__ == "__main__":
    main()
