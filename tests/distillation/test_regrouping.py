from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from keyhole.data.splits import MemorySplit
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.kinds import HintPair
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.regrouping import regroup
from keyhole.distillation.training import Checkpointing, Outcome, fit
from keyhole.errors import RunError
from keyhole.models.network import InputSpec, Network

CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.05, precision="fp32", device="cpu", compile="off", seed=3)
HINTS = (HintPair("layer1.1", "layer1.0"), HintPair("layer3.1", "layer3.0"))
LOSSES = ("ce,kd", "ce,hint", "ce,vid", "ce,crd", "ce,at")


def arm(terms: str, spec: InputSpec, balance: str = "weights") -> Arm:
    parsed = parse_terms(terms)
    return Arm(terms, "resnet8", spec, parsed, HINTS if any(term.needs_hints for term in parsed) else (), balance)


def run(
    arms: list[Arm], split: MemorySplit, teacher: Network, path: Path, *, until: int = 3, config: TrainConfig = CONFIG
) -> dict[str, Outcome]:
    cohort = Cohort(arms, config, classes=3, teacher=teacher, train=split)
    kept = Checkpointing(path, resume=True)
    trained = fit(cohort, split, split.subset(range(9)), until=until, checkpointing=kept)
    return {outcome.arm.name: outcome for outcome in trained.outcomes}


@pytest.fixture
def arms(toy_input: InputSpec) -> list[Arm]:
    return [arm(terms, toy_input, "gradients" if terms == "ce,at" else "weights") for terms in LOSSES]


def test_members_of_several_cohorts_go_on_together_bit_for_bit(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, arms: list[Arm]
) -> None:
    parts = [tmp_path / f"{k}.safetensors" for k in range(2)]
    run(arms[:3], toy_split, toy_teacher, parts[0], until=1)
    run(arms[3:], toy_split, toy_teacher, parts[1], until=1)
    staying = [arms[4], arms[1], arms[3], arms[2]]  # in another order, and one is left behind
    target = tmp_path / "together.safetensors"
    regroup(parts, [each.name for each in staying], target)
    found = run(staying, toy_split, toy_teacher, target)
    for each in staying:
        alone = run([each], toy_split, toy_teacher, tmp_path / f"{each.name}.safetensors")[each.name]
        assert found[each.name].history == alone.history
        ours, theirs = (outcome.last.module.state_dict() for outcome in (found[each.name], alone))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_regrouped_is_one_line(
    tmp_path: Path, toy_split: MemorySplit, toy_teacher: Network, arms: list[Arm]
) -> None:
    one, two, other = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "other"))
    run(arms[:1], toy_split, toy_teacher, one, until=1)
    run(arms[1:2], toy_split, toy_teacher, two, until=2)
    run(arms[2:3], toy_split, toy_teacher, other, until=1, config=replace(CONFIG, lr=0.1))
    target = tmp_path / "target.safetensors"
    for sources, names, words in (
        ([one], ["ce,kd", "nobody"], "There is no state of nobody in"),
        ([one, two], ["ce,kd", "ce,hint"], "is not at the end of the same epoch as the others"),
        ([one, other], ["ce,kd", "ce,vid"], "is not at the end of the same epoch as the others"),
    ):
        with pytest.raises(RunError, match=words) as caught:
            regroup(sources, names, target)
        assert len(str(caught.value).splitlines()) == 1
        assert not target.exists()
