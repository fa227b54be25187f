from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyhole.distillation.config import TrainConfig
from keyhole.distillation.notation import parse_terms
from keyhole.errors import SettingError
from keyhole.plans import ArmPlan
from keyhole.studies.followup import followup, fresh_study, study_toml
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


@pytest.mark.parametrize("terms", ["ce,dkd(beta=2),hint", "dist(beta=2,gamma=0.5),at", "ce=1.23456789,hint"])
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
    hinted = fresh_study(given, PLAN, {"chosen": "s/hints.json"})
    (tmp_path / "deep" / "fresh.toml").write_text(study_toml(hinted))
    assert str(tmp_path / "s/hints.json") in {arm.hints for arm in read_study(tmp_path / "deep" / "fresh.toml").arms}
    begun = fresh_study(given, replace(PLAN, student="begun.safetensors"), CHOICES)
    (tmp_path / "deep" / "fresh.toml").write_text(study_toml(begun))
    assert {arm.student for arm in read_study(tmp_path / "deep" / "fresh.toml").arms} == {
        str(tmp_path / "begun.safetensors")
    }


ARMS = tuple(ArmPlan(name, terms="ce,kd,hint", hints=name) for name in ("auto", "all", "random", "uniform"))
HELD: dict[str, list[float | None]] = {  # differences to auto: +1.9 and +2.1, +0.1 and -0.2, +1.0 and +1.4
    "auto": [60.0, 63.0], "all": [61.9, 65.1], "random": [60.1, 62.8], "uniform": [61.0, 64.4],
}  # fmt: skip


def choosing(tmp_path: Path) -> Study:
    return replace(study(tmp_path), arms=ARMS, seeds=(10, 11), baseline="auto", students_per_pass=9)


def chosen_by(whole: Study, held: dict[str, list[float | None]] = HELD, **settings: Any) -> Study:
    results: list[dict[str, Any]] = []
    for cell in whole.cells:
        top1 = held[cell.plan.name][cell.seed - 10]
        value: dict[str, Any] = {"arm": cell.plan.name, "seed": cell.seed, "diverged": None if top1 else "loss is nan"}
        if top1:  # test images say the opposite
            value |= {"top1": {"last": 100 - top1, "best": 100 - top1}, "parameters": 1, "macs": 1}
            value |= {"held_out_top1": {"last": top1}, "history": [{"loss": top1}]}
        results.append(value)
    return followup(whole, results, **settings)


def test_what_held_out_images_choose_is_judged_on_fresh_seeds(tmp_path: Path) -> None:
    whole = replace(choosing(tmp_path), comparisons=(Comparison("x", ("all",), ("random",)),))
    fresh = chosen_by(whole, seeds=range(20, 26))
    assert [arm.name for arm in fresh.arms] == ["auto", "all", "uniform"]  # the highest first
    assert (fresh.seeds, fresh.baseline, fresh.comparisons) == ((20, 21, 22, 23, 24, 25), "auto", ())
    assert replace(fresh, arms=ARMS, seeds=whole.seeds, comparisons=whole.comparisons) == whole
    assert chosen_by(whole).seeds == (12, 13, 14, 15, 16, 17)
    assert [arm.name for arm in chosen_by(whole, most=1).arms] == ["auto", "all"]
    assert chosen_by(replace(whole, baseline=None), most=1).baseline == "auto"


def test_an_arm_must_lead_by_more_than_the_spread_of_all_differences(tmp_path: Path) -> None:
    wide = {**HELD, "random": [58.0, 65.2]}  # -2.0 and +2.2: its spread is 2.97, that of all three 1.72
    assert [arm.name for arm in chosen_by(choosing(tmp_path), wide).arms] == ["auto", "all"]
    once = {**HELD, "all": [None, 66.0]}
    assert [arm.name for arm in chosen_by(choosing(tmp_path), once).arms] == ["auto", "uniform"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_one_student_under_several_names_one_goes_on(tmp_path: Path, order: int) -> None:
    twins = {"auto too": "auto", "all too": "all", "random too": "random", "auto again": "auto"}
    arms = (*ARMS, *(replace(arm, name=twin) for twin, name in twins.items() for arm in ARMS if arm.name == name))
    held = HELD | {twin: HELD[name] for twin, name in twins.items()}
    narrow = held | {arm: [60.1, 62.8] for arm in ("uniform",)}  # twins of auto have no spread, and make none
    for each, expected in ((held, ["auto", "all", "uniform"]), (narrow, ["auto", "all"])):
        found = chosen_by(replace(choosing(tmp_path), arms=arms[::order]), each, most=2)
        assert [arm.name.removesuffix(" too") for arm in found.arms] == expected


def test_what_cannot_be_chosen(tmp_path: Path) -> None:
    whole = choosing(tmp_path)
    with pytest.raises(SettingError, match="Seed 11 had a part in the choice"):
        chosen_by(whole, seeds=range(11, 14))
    with pytest.raises(SettingError, match="one seed, which has no spread"):
        chosen_by(replace(whole, seeds=(10,)))
    with pytest.raises(SettingError, match="8 cells of the study are open"):
        followup(whole, [None] * len(whole.cells))
    with pytest.raises(SettingError, match="No arm is above 'all' on the held-out images by more than the spread"):
        chosen_by(replace(whole, baseline="all"))
    with pytest.raises(SettingError, match="baseline 'auto' has no held-out accuracy of every seed"):
        chosen_by(whole, {**HELD, "auto": [60.0, None]})
