"""A case of test_group.py, run by torchrun in two processes: a student beside its copy in DistributedDataParallel."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import grouped
from keyhole.data.splits import Share
from keyhole.distillation.config import make_optimizer
from keyhole.distillation.group import Group, join_group

RATE = 0.02


def check(group: Group, student: str) -> None:
    ours = grouped.cohort([grouped.arm("ce", student)], group, grouped.BATCH, taught=False)
    (learner,) = ours.learners
    start = copy.deepcopy(learner.network.module)
    other = DistributedDataParallel(copy.deepcopy(start))
    optimizer = make_optimizer(list(other.parameters()), ours.config)
    for part in optimizer.param_groups:
        part["lr"] = RATE
    ours.train_mode()
    other.train()
    batches = grouped.split().training_batches(grouped.BATCH, seed=0, epoch=0, share=Share(group.rank, group.count))
    for lesson in ours.lessons(batches):
        optimizer.zero_grad()
        functional.cross_entropy(other(lesson.views[learner.arm.input]), lesson.batch.labels).backward()
        optimizer.step()
        ours.step(lesson, RATE)
    pairs = zip(learner.network.module.parameters(), other.module.parameters(), start.parameters(), strict=True)
    for one, two, before in pairs:
        moved = float((two - before).abs().max())
        assert moved > 1e-3
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3 * moved)


def main() -> None:
    torch.set_num_threads(1)
    with join_group("cpu") as group:
        assert group.count == 2
        check(group, "grouped:plain")
        check(group, "resnet8")  # with batch norm, each process over its own images


if __name__ == "__main__":
    main()
