"""Images per second of distillation, against the plain way and against the floor, in one run.

    python benchmarks/distillation.py --root DIR [--teacher resnet110] [--student resnet20] [--out FILE.json]

Ours: one cohort step in the faster precision, channels last, images in memory, folded and compiled teacher. The plain
way is what a user would write: fp32, NCHW, eager, a DataLoader with per-image transforms of torchvision. Both: KD and
three FitNet hints, batch 64, the same optimizer and augmentation. The two take turns, so that a machine that drifts
slows both.

Ceiling: the images per second at which the counted multiply-accumulates of teacher and student, forward and backward,
would run at the speed of a large matrix product in the faster precision; nothing that does this work can be faster.

The second table: eight students under one teacher against their own floor, one teacher pass and
eight students alone on images that are ready, one after the other, each with all cores.

On a GPU (--device cuda) also whole epochs of one student and of eight, in seconds, what 240 of them take, and the peak
of GPU memory; there --compile on is the default, which records a step as a CUDA graph, elsewhere auto.

An epoch is 50,000 training images and the evaluation of each student on 5,000 of them, as many as a run holds out. 240
epochs are the first one, with all that is made only once (networks, compiling, recording), and 239 times the median of
the others. Reading the images and the teacher from disk is not in it, nor are checkpoints and the final test.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from keyhole.data.sources import open_data
from keyhole.distillation.adapters import HintAdapter
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.matching import match_hints
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.replay import WARM_UP
from keyhole.distillation.teaching import Teaching
from keyhole.distillation.training import fit
from keyhole.models.layers import layers
from keyhole.models.network import count_macs
from keyhole.models.zoo import CIFAR100_INPUT, build
from keyhole.runtime import PRECISIONS, choose_device, describe, keep_freed_memory, synchronize

BATCH = 64
HELD_OUT = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--teacher", default="resnet110")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()  # as training does; the plain way gains by it as well
    device = choose_device(options.device)
    options.compile = options.compile or ("on" if device.type == "cuda" else "auto")
    data = open_data("cifar100", options.root).train

    hints = ours(options, data, device, students=1)
    other = plain(options, data, device)
    pairs = [(rate(hints, options, device), rate(other, options, device)) for _ in range(options.rounds)]
    ceiling = ceiling_images_per_s(options, device)
    many, floor = cohort_and_floor(options, data, device)
    few = options.steps // 3 + 1
    turns = [(seconds(many, few, device), floor(few)) for _ in range(options.rounds)]
    result = {
        "what": f"{options.teacher} -> {options.student}, KD and 3 hints, batch {BATCH}",
        "ours_images_per_s": median(a for a, _ in pairs),
        "plain_images_per_s": median(b for _, b in pairs),
        "precision": hints.cohort.config.precision,
        "compile": options.compile,
        "recorded_as_cuda_graph": hints.cohort.replays,
        "ours_over_plain": median(a / b for a, b in pairs),
        "ceiling_images_per_s": ceiling,
        "ceiling_over_plain": round(max(ceiling.values()) / median(b for _, b in pairs), 3),
        "cohort_of": options.students,
        "cohort_over_floor": median(a / b["total"] for a, b in turns),
        "floor_share_teacher": median(b["teacher"] / b["total"] for _, b in turns),
        "cohort_student_images_per_s": median(few * BATCH * options.students / a for a, _ in turns),
        "targets": {"ours_over_plain": 2.5, "cohort_over_floor": 1.1},
        "environment": describe(),
    }
    keep(options, result)
    if device.type == "cuda":
        for count, target_min in ((1, 6), (options.students, 15)):
            name = "alone" if count == 1 else f"cohort_of_{count}"
            forget_compiled()
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            epoch_s = whole_epochs(options, data, device, students=count, epochs=4)
            result[f"seconds_by_whole_epoch_{name}"] = epoch_s
            result[f"minutes_of_240_epochs_extrapolated_{name}"] = round(
                (epoch_s[0] + 239 * median(epoch_s[1:])) / 60, 2
            )
            result[f"peak_gpu_mib_{name}"] = round((torch.cuda.max_memory_allocated(device) - before) / 2**20)
            result["targets"][f"minutes_of_240_epochs_extrapolated_{name}"] = target_min
            keep(options, result)  # a call that is ended leaves what it has
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))
    keep(options, result)


def keep(options, result) -> None:
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def forget_compiled() -> None:
    """Let what comes next compile anew, as in a process of its own, and free what was measured before."""
    torch.compiler.reset()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
    gc.collect()
    torch.cuda.empty_cache()


def arms_of(options, *, students: int) -> list[Arm]:
    candidates = layers(build(options.teacher, classes=100))
    step = len(candidates) // 3
    names = [candidates[k].name for k in (step // 2, step + step // 2, 2 * step + step // 2)]
    pairs = match_hints(names, candidates, layers(build(options.student, classes=100)))
    terms = parse_terms("ce,kd,hint")
    return [Arm(f"arm {k}", options.student, CIFAR100_INPUT, terms, pairs) for k in range(students)]


def cohort_of(options, data, device, *, students: int, epochs: int = 240) -> Cohort:
    """Return a cohort with the settings of a long run."""
    config = TrainConfig(epochs=epochs, device=device.type, compile=options.compile, precision=options.precision)
    teacher = build(options.teacher, classes=100)
    return Cohort(arms_of(options, students=students), config, classes=100, teacher=teacher, train=data)


def ours(options, data, device, *, students: int) -> Callable[[], None]:
    """Return a function that does one step of a cohort."""
    cohort = cohort_of(options, data, device, students=students)
    cohort.train_mode()
    lessons = cohort.lessons(endless(data.to(device)))

    def go() -> None:
        cohort.step(next(lessons), 0.01)

    go.cohort, go.lessons = cohort, lessons
    return go


def endless(data):
    epoch = 0
    while True:
        yield from data.training_batches(BATCH, seed=0, epoch=epoch)
        epoch += 1


class PerImage(Dataset):
    """What torchvision's CIFAR100 data set does for one image."""

    def __init__(self, data) -> None:
        from torchvision import transforms

        self.pixels, self.labels = data.pixels.numpy(), data.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR100_INPUT.mean, CIFAR100_INPUT.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain(options, data, device) -> Callable[[], None]:
    """Return a function that does one step of the loop that a user would write."""
    teacher = build(options.teacher, classes=100).module.eval().to(device)
    student = build(options.student, classes=100).module.train().to(device)
    stages = ("layer1", "layer2", "layer3")
    kept: dict[tuple[str, str], torch.Tensor] = {}
    for which, net in (("teacher", teacher), ("student", student)):
        for stage in stages:
            net.get_submodule(stage).register_forward_hook(
                lambda _m, _i, output, key=(which, stage): kept.__setitem__(key, output)
            )
    adapters = nn.ModuleList(HintAdapter(c, c) for c in (16, 32, 64)).to(device)
    parameters = [*student.parameters(), *adapters.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        PerImage(data), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True, pin_memory=False
    )

    def forever():
        while True:
            yield from loader

    batches = forever()

    def go() -> None:
        images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        with torch.no_grad():
            taught = teacher(images)
        logits = student(images)
        loss = functional.cross_entropy(logits, labels)
        soft = functional.kl_div(
            functional.log_softmax(logits / 4, 1), functional.softmax(taught / 4, 1), reduction="batchmean"
        )
        loss = loss + 16 * soft
        for adapter, stage in zip(adapters, stages, strict=True):
            loss = loss + 100 / len(stages) * functional.mse_loss(
                adapter(kept["student", stage]), kept["teacher", stage]
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # such loops keep a running mean

    return go


def ceiling_images_per_s(options, device) -> dict[str, float]:
    """Return, by precision, the images per second at which all multiply-accumulates run like a matrix product."""
    macs = count_macs(build(options.teacher, classes=100)) + 3 * count_macs(build(options.student, classes=100))
    found = {}
    for name, dtype in PRECISIONS.items():
        a, b = (torch.ones(2048, 2048, dtype=dtype, device=device) for _ in range(2))
        best = min(seconds(lambda a=a, b=b: a @ b, 1, device) for _ in range(10))
        found[name] = round(2048**3 / best / macs, 1)
    return found


def cohort_and_floor(options, data, device):
    """Return a step of the whole cohort, and a function that times its parts alone on images that are ready,
    one after the other, each with all cores."""
    many = ours(options, data, device, students=options.students)
    cohort = many.cohort
    lesson = next(many.lessons)

    learner = cohort.learners[0]
    names = sorted(pair.teacher for pair in learner.arm.hints)
    teacher = Teaching(
        build(options.teacher, classes=100),
        names,
        device=device,
        precision=cohort.config.precision,
        compile=options.compile != "off",
        replays=cohort.replays,
    )
    view = lesson.views[CIFAR100_INPUT]
    alone = cohort_of(options, data, device, students=1) if cohort.replays else None
    if alone is not None:
        alone.train_mode()

    def one() -> None:
        if alone is not None:  # recorded, as the cohort is
            alone.step(lesson, 0.01)
        else:
            cohort._learn(learner, lesson, 0.01)

    def floor(steps: int) -> dict[str, float]:
        teacher_s = seconds(lambda: teacher.ask(view)(), steps, device)
        one_s = seconds(one, steps, device)
        return {"teacher": teacher_s, "total": teacher_s + options.students * one_s}

    return many, floor


def whole_epochs(options, data, device, *, students: int, epochs: int) -> list[float]:
    """Return the seconds of whole epochs, evaluation included; the first one holds what is made only once."""
    ends = [time.perf_counter()]
    cohort = cohort_of(options, data, device, students=students, epochs=epochs)
    last = f"arm {students - 1}"
    held_out = data.subset(range(HELD_OUT))  # trained on as well: what is measured is time
    fit(cohort, data, held_out, log=lambda record: ends.append(time.perf_counter()) if record["arm"] == last else None)
    return [round(b - a, 3) for a, b in pairwise(ends)]


def seconds(go: Callable[[], object], steps: int, device) -> float:
    for _ in range(1 if device.type == "cpu" else WARM_UP + 2):  # compiles, and records
        go()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        go()
    synchronize(device)
    return time.perf_counter() - started


def rate(go: Callable[[], None], options, device) -> float:
    return options.steps * BATCH / seconds(go, options.steps, device)


def median(values) -> float:
    return round(float(torch.tensor(list(values), dtype=torch.float64).quantile(0.5)), 3)


if __name__ == "__main__":
    main()
