"""What a whole cohort costs and tells, from its first look to its last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from keyhole.data.sources import Data, default_input, open_data
from keyhole.distillation.arm import Arm
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.evaluation import Accuracy, evaluate
from keyhole.distillation.experiment import run_cohort
from keyhole.distillation.notation import parse_terms
from keyhole.errors import DivergenceError
from keyhole.models.zoo import build

CONFIG = TrainConfig(epochs=1, batch_size=20, precision="fp32", device="cpu", compile="off")
SPEC = default_input("digits")
KD = Arm("kd", "resnet8", SPEC, parse_terms("ce,kd"))


@pytest.fixture(scope="module")
def digits() -> Data:
    whole = open_data("digits")
    return replace(whole, train=whole.train.subset(range(60)), test=whole.labeled_test().subset(range(40)))


def test_a_teacher_that_cannot_be_measured_costs_no_training(digits: Data, tmp_path: Path) -> None:
    teacher = build("resnet8", classes=10, input=SPEC)
    with torch.no_grad():
        teacher.module.get_parameter("fc.bias").fill_(float("inf"))
    records: list[dict[str, Any]] = []
    with pytest.raises(DivergenceError, match="resnet8 gave NaN or infinite logits"):
        run_cohort(
            [KD], digits, CONFIG, teacher=teacher, checkpoint=tmp_path / "checkpoint.safetensors", log=records.append
        )
    assert records == []
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_whose_accuracy_is_known_is_not_measured_again(digits: Data) -> None:
    teacher = build("resnet14", classes=10, input=SPEC)
    labels: list[str] = []

    def progress(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        labels.append(label)
        yield from items

    first = run_cohort([KD], digits, CONFIG, teacher=teacher, progress=progress)
    assert labels.count("evaluate resnet14") == 1
    assert first.teacher_accuracy == evaluate(teacher, digits.labeled_test())
    labels.clear()
    known = Accuracy(0.5, 0.75, 40)
    second = run_cohort([KD], digits, CONFIG, teacher=teacher, teacher_accuracy=known, progress=progress)
    assert "evaluate resnet14" not in labels
    assert second.teacher_accuracy == known
    assert [score.last for score in second.scores] == [score.last for score in first.scores]
