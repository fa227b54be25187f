"""From plans to arms: quality, weights of hints, and matching by similarity."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import oracles
from keyhole import arms as module
from keyhole.arms import ArmMaker
from keyhole.data.splits import MemorySplit
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.kinds import HintPair
from keyhole.distillation.warmup import WarmUpError, warm_up
from keyhole.errors import DataError, DivergenceError, SettingError, UnknownNameError
from keyhole.hints.choice import ChoiceConfig, choose_hints
from keyhole.hints.moments import ObserveConfig
from keyhole.hints.selection import Rule
from keyhole.models.layers import layers, tap
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build, save
from keyhole.plans import ArmPlan, files_of, parse_count, read_arm, read_cohort, settled_before

CONFIG = TrainConfig(epochs=1, batch_size=8, precision="fp32", device="cpu", compile="off", seed=0)
LOOK = ObserveConfig(precision="fp32")
PLAN = ArmPlan(student="resnet14", terms="ce,at", hints="kmeans", count=3, metric="linear_cka", match_steps=3)


@pytest.fixture
def maker(toy_teacher: Network, toy_split: MemorySplit) -> ArmMaker:
    return ArmMaker(toy_teacher, toy_split, CONFIG)


def hints(maker: ArmMaker, plan: ArmPlan) -> list[str]:
    return [pair.teacher for pair in maker.make(plan).hints]


def test_hints_by_quality_are_those_of_the_command(maker: ArmMaker) -> None:
    plan = replace(PLAN, hints="quality", count=2)
    expected = choose_hints(
        maker.teacher, maker.train, Rule("quality", count=2), config=ChoiceConfig(draws=0), look=LOOK
    )
    assert hints(maker, plan) == list(expected.hints)


def test_images_are_looked_at_again_only_for_what_is_missing(maker: ArmMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def noted(*args: object, **kwargs: object) -> object:
        looks.append(args)
        return choose_hints(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "choose_hints", noted)
    plans = [
        PLAN,
        replace(PLAN, hints="quality"),
        replace(PLAN, hint="informative"),
        replace(PLAN, hints="quality"),
        replace(PLAN, hints="uniform", hint_weights="mass"),
        replace(PLAN, hint="informative", metric="procrustes"),
    ]
    for plan, expected in zip(plans, (1, 2, 3, 3, 3, 3), strict=True):
        maker.make(plan)
        assert len(looks) == expected


def test_quality_needs_labels(maker: ArmMaker) -> None:
    maker.train = replace(maker.train, classes=())
    with pytest.raises(DataError, match="needs labeled images"):
        maker.make(replace(PLAN, terms="kd,at", hints="quality"))


def test_equal_weights_leave_the_pairs_as_they_were(maker: ArmMaker) -> None:
    pairs = maker.make(PLAN).hints
    assert pairs == tuple(HintPair(pair.teacher, pair.student) for pair in pairs)
    assert maker.make(replace(PLAN, hint_weights="equal")) == maker.make(PLAN)


@pytest.mark.parametrize("given", ["kmeans", "stage-ends", "layer1.0,layer3.0,layer3.1", ("layer3.1", "layer1.0")])
def test_hints_are_weighed_by_their_clusters_and_by_what_others_tell(
    maker: ArmMaker, given: str | tuple[str, ...]
) -> None:
    plan = replace(PLAN, hints=given)
    names = [layer.name for layer in layers(maker.teacher)]
    config = ChoiceConfig(metrics=("linear_cka",), draws=0, bare=False)
    measured = choose_hints(maker.teacher, maker.train, Rule(count=3), config=config, look=LOOK)
    alike = measured.similarities["linear_cka"]
    places = [names.index(name) for name in hints(maker, plan)]
    expected = oracles.mass(places, alike)
    if given == "kmeans":
        sizes = [len(members) for members in measured.choices["linear_cka"].clusters]
        expected = [3 * size / 6 for size in sizes]
    found = maker.make(replace(plan, hint_weights="mass")).hints
    assert [pair.weight for pair in found] == pytest.approx(expected, abs=1e-6)
    found = maker.make(replace(plan, hint_weights="redundancy")).hints
    assert [pair.weight for pair in found] == pytest.approx(oracles.rarity(places, alike), abs=1e-6)
    assert [pair.teacher for pair in found] == [names[i] for i in places]


def test_hints_of_a_file_are_weighed_by_its_clusters(maker: ArmMaker, tmp_path: Path) -> None:
    path = tmp_path / "hints.json"
    value = {
        "teacher": "resnet14",
        "hints": ["layer1.0", "layer3.0"],
        "layers": [{"name": layer.name} for layer in layers(maker.teacher)],
        "clusters": [["layer1.0", "layer1.1"], ["layer2.0", "layer2.1", "layer3.0", "layer3.1"]],
    }
    path.write_text(json.dumps(value))
    plan = replace(PLAN, hints=str(path), hint_weights="mass")
    assert [pair.weight for pair in maker.make(plan).hints] == [0.666667, 1.333333]
    both = [["layer1.0", "layer3.0"], ["layer1.1", "layer2.0", "layer2.1", "layer3.1"]]  # no hint in the second
    path.write_text(json.dumps(value | {"clusters": both}))
    found = [pair.weight for pair in maker.make(plan).hints]
    path.write_text(json.dumps({key: own for key, own in value.items() if key != "clusters"}))
    assert found == [pair.weight for pair in maker.make(plan).hints]
    for clusters in ([["layer1.0", 3]], [3], "ab", 3):
        path.write_text(json.dumps(value | {"clusters": clusters}))
        if clusters == "ab":
            maker.make(plan)  # names of no layer are no clusters
            continue
        with pytest.raises(DataError, match=r"is no hints\.json"):
            maker.make(plan)


@pytest.mark.parametrize("hints", ["uniform", "kmeans", "layer1.0"])
def test_a_metric_that_does_not_exist_is_a_mistake_wherever_it_stands(maker: ArmMaker, hints: str) -> None:
    with pytest.raises(UnknownNameError, match="Unknown metric 'linear_ka'; nearest known: linear_cka"):
        maker.make(replace(PLAN, hints=hints, metric="linear_cka, linear_ka"))


def test_terms_that_all_weigh_nothing_are_a_mistake(maker: ArmMaker) -> None:
    with pytest.raises(SettingError, match="Terms 'ce=0,at=0' all weigh 0, so that nothing would be learnt"):
        maker.make(replace(PLAN, terms="ce=0,at=0"))


def test_a_way_to_weigh_that_does_not_exist(maker: ArmMaker) -> None:
    with pytest.raises(UnknownNameError, match="Unknown way to weigh hints 'masses'; nearest known: mass"):
        maker.make(replace(PLAN, terms="ce,kd", hint_weights="masses"))


def test_matching_by_similarity_is_the_best_for_the_warmed_up_student(maker: ArmMaker) -> None:
    plan = replace(PLAN, hints=("layer1.1", "layer2.0", "layer3.1"), match="similarity", seed=2)
    pairs = maker.make(plan).hints
    student = warm_up(
        "resnet14", maker.teacher.input, maker.train, config=replace(CONFIG, seed=2), steps=3, teacher=maker.teacher
    )
    names = [layer.name for layer in layers(maker.teacher)]
    pooled = []
    images = maker.train.subset(range(48)).pixels.permute(0, 3, 1, 2) / 255  # type: ignore[attr-defined]
    for network in (maker.teacher, student):
        network.module.eval()
        with torch.no_grad(), tap(network.module, names) as features:
            network(images)
        pooled.append([features[name].mean((2, 3)).double().numpy() for name in names])
    costs = np.array([[1 - oracles.linear_cka(x, y) for y in pooled[1]] for x in pooled[0]])
    found = sum(costs[names.index(pair.teacher), names.index(pair.student)] for pair in pairs)
    rows = [names.index(name) for name in plan.hints or ()]
    assert found == pytest.approx(oracles.best_monotone_cost(costs[rows]), abs=1e-3)


def test_pairs_are_the_same_whatever_was_made_before_and_whoever_asks(
    toy_teacher: Network, toy_split: MemorySplit
) -> None:
    plan = replace(PLAN, match="similarity")
    first = ArmMaker(toy_teacher, toy_split, CONFIG).make(plan)
    torch.rand(7)
    busy = ArmMaker(toy_teacher, toy_split, CONFIG)
    busy.make(replace(plan, name="other", student="resnet8", seed=1))
    assert busy.make(plan) == first


def test_what_was_measured_is_kept_and_not_measured_again(
    toy_teacher: Network, toy_split: MemorySplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, str] = {}

    def keep(name: str, make: Callable[[], str]) -> str:
        return kept.setdefault(name, kept.get(name) or make())

    plan = replace(PLAN, match="similarity")
    first = ArmMaker(toy_teacher, toy_split, CONFIG, keep=keep)
    pairs = [first.make(each).hints for each in (plan, replace(plan, hints="uniform"), replace(plan, terms="ce,hint"))]
    (name,) = [name for name in kept if name.startswith("likeness-")]  # one student, one warm-up
    assert name.startswith("likeness-")
    assert np.array(json.loads(kept[name])).shape == (6, 6)
    for other in (replace(plan, match_steps=2), replace(plan, seed=1), replace(plan, student="resnet8")):
        first.make(other)
    assert sum(name.startswith("likeness-") for name in kept) == 4

    def never(*_args: object, **_kwargs: object) -> Network:
        raise AssertionError

    monkeypatch.setattr(module, "warm_up", never)
    again = ArmMaker(toy_teacher, toy_split, CONFIG, keep=keep)
    assert [again.make(each).hints for each in (plan, replace(plan, hints="uniform"))] == pairs[:2]
    with pytest.raises(AssertionError):
        ArmMaker(toy_teacher, toy_split, replace(CONFIG, lr=0.1), keep=keep).make(plan)


def test_a_warm_up_that_diverged_is_told_to_all_and_not_run_again(
    toy_teacher: Network, toy_split: MemorySplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, str] = {}

    def keep(name: str, make: Callable[[], str]) -> str:
        return kept.setdefault(name, kept.get(name) or make())

    wild, plan = replace(CONFIG, lr=1e30), replace(PLAN, match="similarity")
    with pytest.raises(WarmUpError, match="The warm-up of resnet14: ") as first:
        ArmMaker(toy_teacher, toy_split, wild, keep=keep).make(plan)
    monkeypatch.setattr(module, "warm_up", None)
    for each in (plan, replace(plan, hints="uniform", name="other")):
        with pytest.raises(WarmUpError) as again:
            ArmMaker(toy_teacher, toy_split, wild, keep=keep).make(each)
        assert str(again.value) == str(first.value)


def test_whose_features_are_broken_decides_whether_an_arm_or_all_of_them_cannot_begin(
    maker: ArmMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **more: object) -> Network:
        student = warm_up(*given, **more)  # type: ignore[arg-type]
        next(student.module.parameters()).data.fill_(torch.inf)
        return student

    plan = replace(PLAN, hints="uniform", match="similarity")
    with monkeypatch.context() as patch:
        patch.setattr(module, "warm_up", broken)
        with pytest.raises(WarmUpError, match=r"resnet14 after its warm-up: Layer .* gave NaN or infinity"):
            maker.make(plan)
    teacher = copy.deepcopy(maker.teacher)
    next(teacher.module.parameters()).data.fill_(torch.inf)
    with pytest.raises(DivergenceError, match="gave NaN or infinity") as caught:
        ArmMaker(teacher, maker.train, CONFIG).make(plan)
    assert not isinstance(caught.value, WarmUpError)


def test_hints_that_were_chosen_once_are_not_chosen_anew(
    toy_teacher: Network, toy_split: MemorySplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, str] = {}
    settings = [
        replace(PLAN, hints="auto", hint_weights="redundancy"),
        replace(PLAN, hints="agglomerative", metric="linear_cka", hint="last", hint_weights="mass"),
        replace(PLAN, hints="quality"),
    ]

    def keep(name: str, make: Callable[[], str]) -> str:
        return kept.setdefault(name, kept.get(name) or make())

    first = ArmMaker(toy_teacher, toy_split, CONFIG, keep=keep)
    pairs = [first.make(plan).hints for plan in settings]
    first.make(replace(settings[0], name="other terms", terms="kd,at"))
    assert len([name for name in kept if name.startswith("hints-")]) == 3

    def never(*_args: object, **_kwargs: object) -> Network:
        raise AssertionError

    monkeypatch.setattr(module, "choose_hints", never)
    again = ArmMaker(toy_teacher, toy_split, replace(CONFIG, precision="bf16"), keep=keep)
    assert [again.make(plan).hints for plan in settings] == pairs
    with pytest.raises(AssertionError):
        again.make(replace(settings[0], samples=30))
    with pytest.raises(AssertionError):
        ArmMaker(toy_teacher, toy_split, CONFIG).make(settings[0])


def test_terms_of_embeddings_are_refused_for_classes(maker: ArmMaker) -> None:
    with pytest.raises(SettingError, match="Term seed takes outputs for embeddings, and these are logits"):
        maker.make(replace(PLAN, terms="ce,seed"))


def test_pairs_of_other_sizes_are_told_with_what_is_done_about_it(toy_teacher: Network, toy_split: MemorySplit) -> None:
    told: list[str] = []
    maker = ArmMaker(toy_teacher, toy_split, CONFIG, note=told.append)
    maker.make(replace(PLAN, name="ends", hints="stage-ends"))
    worn = " (hint: 1x1 convolution and batch norm on the student's layers)"
    assert told == ["ends: layer1.1 -> layer1.1, layer2.1 -> layer2.1, layer3.1 -> layer3.1"]  # at needs no adapter
    maker.make(replace(PLAN, name="early", hints=("layer1.0", "layer1.1", "layer2.0")))
    assert told[-1].startswith("early: layer1.0 -> layer1.1, layer1.1 -> layer2.1 (8x8 and 4x4, averaged to 4x4), ")
    maker.make(replace(PLAN, name="ends", hints="stage-ends", terms="ce,kd,hint"))
    assert told[-1] == told[0] + worn


def test_a_student_of_another_size_is_matched_by_similarity(maker: ArmMaker) -> None:
    pairs = maker.make(replace(PLAN, match="similarity", student_size=4, match_steps=0)).hints
    assert len({pair.student for pair in pairs}) == 3


def test_two_files_of_one_name_are_two_students(maker: ArmMaker, tmp_path: Path) -> None:
    kept: list[str] = []

    def keep(name: str, make: Callable[[], str]) -> str:
        kept.append(name)
        return make()

    maker.keep = keep
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        path = tmp_path / str(seed) / "student.safetensors"
        torch.manual_seed(seed)
        save(build("resnet14", classes=3, input=maker.teacher.input), path)
        maker.make(replace(PLAN, name=str(seed), student=str(path), match="similarity", match_steps=0))
    assert len({name for name in kept if name.startswith("likeness")}) == 2


def test_weights_of_hints_that_no_term_takes_are_refused(maker: ArmMaker) -> None:
    plan = replace(PLAN, terms="ce,semckd", hint_weights="mass")
    with pytest.raises(SettingError, match="hint_weights mass serves none of the terms ce,semckd"):
        maker.make(plan)
    assert maker.make(replace(plan, terms="ce,semckd,at")).hints
    assert maker.make(replace(plan, hint_weights="equal")).hints


def test_a_warm_up_of_less_than_no_steps(maker: ArmMaker) -> None:
    with pytest.raises(SettingError, match="has -1 steps"):
        maker.make(replace(PLAN, match="similarity", match_steps=-1))


def test_a_student_without_labels_is_matched_by_similarity(
    toy_teacher: Network, toy_split: MemorySplit, toy_input: InputSpec
) -> None:
    unlabeled = replace(toy_split, classes=(), labels=torch.full((48,), -1))
    made = ArmMaker(toy_teacher, unlabeled, CONFIG).make(replace(PLAN, terms="kd,at", match="similarity"))
    assert len(made.hints) == 3


def test_keys_that_came_later_are_told_only_where_they_matter() -> None:
    told = settled_before(asdict(ArmPlan()))
    assert {"match", "balance", "hints"} <= told.keys()
    assert not {"hint_weights", "match_steps"} & told.keys()
    changed = settled_before(asdict(ArmPlan(hint_weights="mass", match_steps=9)))
    assert (changed["hint_weights"], changed["match_steps"]) == ("mass", 9)
    assert settled_before({"lr": 1, "hint_weights": "equal"}) == {"lr": 1}


def test_the_keys_of_an_arm() -> None:
    table = {"name": "x", "match": "similarity", "match_steps": 50, "hint_weights": "redundancy", "hints": "quality"}
    plan = read_arm(table, ArmPlan())
    assert {key: getattr(plan, key) for key in table} == table
    with pytest.raises(SettingError, match="match_steps of arm 'x' is 'many'; expected a whole number"):
        read_arm({"name": "x", "match_steps": "many"}, ArmPlan())
    with pytest.raises(SettingError, match="hint_weights of arm 'x' is 3; expected a text"):
        read_arm({"name": "x", "hint_weights": 3}, ArmPlan())
    with pytest.raises(SettingError, match="seed of arm 'x' is -1; expected a whole number of at least 0"):
        read_arm({"name": "x", "seed": -1}, ArmPlan())
    with pytest.raises(SettingError, match="has no name"):
        read_arm({"seed": 1}, ArmPlan())
    with pytest.raises(SettingError, match="expected a whole number, or auto"):
        parse_count("1" * 5000)


def test_files_of_a_cohort_lie_as_its_file_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "arms.toml"
    path.write_text('[[arm]]\nname = "a"\nhints = "found/hints.json"\n[[arm]]\nname = "b"\nstudent = "s.safetensors"\n')
    base = ArmPlan(hints="here/hints.json")  # of the command, which sees it from where it is called
    first, second = read_cohort(path, base)
    assert (first.hints, first.student) == (str(tmp_path / "found" / "hints.json"), base.student)
    assert (second.hints, second.student) == (base.hints, str(tmp_path / "s.safetensors"))
    assert set(files_of([first, second])) == {first.hints, first.student, second.hints, second.student}
