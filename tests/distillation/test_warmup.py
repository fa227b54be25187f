"""A student's first steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyhole.data.splits import MemorySplit
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.warmup import warm_up
from keyhole.errors import DivergenceError, SettingError
from keyhole.models.network import InputSpec, Network, fingerprint
from keyhole.models.zoo import build

CONFIG = TrainConfig(epochs=9, batch_size=8, lr=0.05, precision="fp32", device="cpu", compile="off", seed=3)


def warmed(steps: int, train: MemorySplit, teacher: Network, config: TrainConfig = CONFIG) -> Network:
    return warm_up("resnet8", teacher.input, train, config=config, steps=steps, teacher=teacher)


@pytest.mark.parametrize("decay", [5e-4, 0.1])
def test_the_steps_are_those_of_plain_training(toy_split: MemorySplit, toy_teacher: Network, decay: float) -> None:
    found = warmed(8, toy_split, toy_teacher, replace(CONFIG, weight_decay=decay))  # an epoch has six
    torch.manual_seed(3)
    network = build("resnet8", classes=3, input=toy_teacher.input)
    network.module.train()
    optimizer = torch.optim.SGD(network.module.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
    batches = [*toy_split.training_batches(8, seed=3, epoch=0), *toy_split.training_batches(8, seed=3, epoch=1)][:8]
    for batch in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
        optimizer.step()
    expected = network.module.state_dict()
    for name, tensor in found.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


def test_a_warm_up_depends_on_its_seed_alone(toy_split: MemorySplit, toy_teacher: Network) -> None:
    prints = []
    for seed in (0, 0, 1):
        torch.manual_seed(torch.seed() % 1000)
        prints.append(fingerprint(warmed(3, toy_split, toy_teacher, replace(CONFIG, seed=seed))))
    assert prints[0] == prints[1] != prints[2]


def test_no_steps_leave_the_student_as_it_was_drawn(toy_split: MemorySplit, toy_teacher: Network) -> None:
    torch.manual_seed(3)
    drawn = build("resnet8", classes=3, input=toy_teacher.input)
    assert fingerprint(warmed(0, toy_split, toy_teacher)) == fingerprint(drawn)


def test_without_labels_the_teacher_is_learned_from(
    toy_split: MemorySplit, toy_teacher: Network, toy_input: InputSpec
) -> None:
    unlabeled = replace(toy_split, classes=(), labels=torch.full((48,), -1))
    found = warmed(2, unlabeled, toy_teacher)
    assert found.classes == 3
    assert fingerprint(found) != fingerprint(warmed(2, toy_split, toy_teacher))


def test_the_rate_rises_as_it_does_in_training_and_does_not_fall(
    toy_split: MemorySplit, toy_teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyhole.distillation import warmup

    rates: list[float] = []

    class Noting(warmup.Cohort):
        def step(self, lesson: object, rate: float) -> None:
            rates.append(rate)

    monkeypatch.setattr(warmup, "Cohort", Noting)
    config = replace(CONFIG, epochs=1, schedule="cosine", warmup_epochs=0.5)
    warmed(9, toy_split, toy_teacher, config)
    assert rates[0] < rates[1] < rates[2] < rates[3] == 0.05
    assert set(rates[3:]) == {0.05}


def test_what_cannot_be_warmed_up(toy_split: MemorySplit, toy_teacher: Network) -> None:
    with pytest.raises(SettingError, match="has -1 steps"):
        warmed(-1, toy_split, toy_teacher)
    with pytest.raises(SettingError, match="Batch size 99"):
        warmed(1, toy_split, toy_teacher, replace(CONFIG, batch_size=99))
    with pytest.raises(DivergenceError, match=r"The warm-up of resnet8: .* Lower --lr, or match otherwise"):
        warmed(4, toy_split, toy_teacher, replace(CONFIG, lr=1e30))
