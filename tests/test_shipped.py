"""The networks that are kept in the repository load by themselves, and are as good as their model card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import keyhole
from keyhole.data.sources import open_data
from keyhole.distillation.evaluation import evaluate
from keyhole.models.zoo import read_about

MODELS = Path(__file__).parent.parent / "models"
FILE = MODELS / "resnet110-cifar100.safetensors"


def test_the_teacher_is_small_and_tells_how_it_was_made() -> None:
    assert FILE.stat().st_size < 4 * 2**20
    network = keyhole.load(FILE)
    assert (network.name, network.classes, network.parameters) == ("resnet110", 100, 1_736_564)
    about = read_about(FILE)
    assert about["arguments"]["model"] == "resnet110"
    assert "/" not in about["arguments"].get("root", "")


@pytest.mark.slow
def test_the_teacher_is_as_good_as_its_card_says(cifar100_root: Path) -> None:
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    told = re.search(r"top-1 (\d+\.\d+) %", card)
    assert told is not None
    test = open_data("cifar100", cifar100_root).test
    assert test is not None
    some = test.subset(range(0, len(test), 5))  # 2,000 images: one standard error is about a point
    found = evaluate(keyhole.load(FILE), some, device=torch.device("cpu"), precision="fp32")
    assert 100 * found.top1 == pytest.approx(float(told[1]), abs=3)
