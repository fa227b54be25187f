from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from keyhole.distillation.config import TrainConfig
from keyhole.distillation.terms import parse_terms
from keyhole.plans import ArmPlan
from keyhole.studies.followup import fresh_study, study_toml
from keyhole.studies.plan import Comparison, Study, read_study

PLAN = ArmPlan(terms="ce,kd=2,hint=50", student="resnet8", count=2, layers="layer*", match="size")
CHOICES: dict[str, str | tuple[str, ...]] = {"searched": ("layer1.0", "layer3.0"), "stage ends": "stage-ends"}


def study(tmp_path: Path) -> Study:
    config = TrainConfig(epochs=3, lr=1e-5, milestones=(0.5, 0.9), nesterov=True, seed=4)
    return Study("resnet20", tmp_path / "w.pth", "cifar100", tmp_path, config, (0, 7), 100, 4, ())


def test_what_comes_next_is_compared_on_seeds_that_chose_nothing(tmp_path: Path) -> None:
    fresh = fresh_study(study(tmp_path), PLAN, CHOICES)
    assert fresh.seeds == (8, 9, 10, 11, 12, 13)
    assert [arm.name for arm in fresh.arms] == ["no hints", "searched", "stage ends"]
    assert (fresh.arms[0].terms, fresh.arms[0].hints) == ("ce=1,kd=2", None)
    assert all(replace(arm, name="", hints=None) == PLAN for arm in fresh.arms[1:])
    assert fresh.baseline == "no hints"
    only = fresh_study(study(tmp_path), replace(PLAN, terms="hint"), CHOICES, seeds=2)
    assert [arm.name for arm in only.arms] == ["searched", "stage ends"]
    assert (only.baseline, only.seeds) == ("searched", (8, 9))


@pytest.mark.parametrize("terms", ["ce,kd,hint", "kd,at=3,ce", "ce,kd,dkd,hint=0.1", "ce,hint,crd"])
@pytest.mark.parametrize("balance", ["weights", "gradients"])
def test_the_baseline_weighs_its_terms_as_the_others_do(tmp_path: Path, terms: str, balance: str) -> None:
    plan = replace(PLAN, terms=terms, balance=balance)
    bare, *others = fresh_study(study(tmp_path), plan, CHOICES).arms

    def weights(arm: ArmPlan) -> dict[str, float]:
        found = parse_terms(arm.terms, equal=arm.balance == "gradients")
        return {term.name: term.weight for term in found if not term.needs_hints}

    assert all(weights(other) == weights(bare) for other in others)


@pytest.mark.parametrize("terms", ["ce,dkd(beta=2),hint", "dist(gamma=0.5),at", "ce=1.23456789,hint"])
def test_the_baseline_has_the_terms_of_the_others_with_their_settings(tmp_path: Path, terms: str) -> None:
    bare, *others = fresh_study(study(tmp_path), replace(PLAN, terms=terms), CHOICES).arms
    for other in others:
        wanted = [term for term in parse_terms(other.terms) if not term.needs_hints]
        assert wanted == list(parse_terms(bare.terms))


def test_the_baseline_sees_and_softens_as_the_others_do(tmp_path: Path) -> None:
    plan = replace(PLAN, student_size=24, temperature=3.5)
    bare, *others = fresh_study(study(tmp_path), plan, CHOICES).arms
    for other in others:
        assert (bare.student, bare.student_size, bare.temperature, bare.balance) == (
            other.student, other.student_size, other.temperature, other.balance
        )  # fmt: skip
    assert (bare.student, bare.student_size, bare.temperature) == ("resnet8", 24, 3.5)


def test_all_arms_of_a_seed_learn_from_one_pass(tmp_path: Path) -> None:
    choices = {f"choice {k}": (f"layer{k}.0",) for k in range(6)}
    assert fresh_study(study(tmp_path), PLAN, choices).students_per_pass == 7  # and the one without hints
    assert fresh_study(study(tmp_path), PLAN, CHOICES).students_per_pass == 4  # as it was


@pytest.mark.parametrize("name", ["searched", 'a "quoted" {name} with \\ and ü', "line\nbreak"])
def test_a_study_written_is_the_study_read(tmp_path: Path, name: str) -> None:
    asked = (Comparison("what is *asked*", (name,), ("stage ends", "no hints")),)
    choices: dict[str, str | tuple[str, ...]] = {name: ("layer1.0", "layer3.0"), "stage ends": "stage-ends"}
    fresh = fresh_study(study(tmp_path), PLAN, choices, comparisons=asked)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "fresh.toml").write_text(study_toml(fresh), encoding="utf-8")
    read = read_study(tmp_path / "deep" / "fresh.toml")
    wanted = [replace(arm, hints=",".join(arm.hints)) if isinstance(arm.hints, tuple) else arm for arm in fresh.arms]
    assert list(read.arms) == wanted
    assert replace(read, arms=(), config=replace(read.config, seed=4)) == replace(fresh, arms=())


def test_a_teacher_that_is_a_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = replace(study(tmp_path), teacher="t.safetensors", weights=None, root=None)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "fresh.toml").write_text(study_toml(fresh_study(given, PLAN, CHOICES)))
    assert read_study(tmp_path / "deep" / "fresh.toml").teacher == str(tmp_path / "t.safetensors")
