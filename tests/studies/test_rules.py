from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from keyhole.arms import ArmMaker
from keyhole.data.splits import MemorySplit
from keyhole.distillation.config import TrainConfig
from keyhole.errors import SettingError
from keyhole.hints.clustering import CLUSTERINGS
from keyhole.hints.similarity import ALWAYS, METRICS
from keyhole.models.network import Network
from keyhole.plans import ArmPlan
from keyhole.studies.board import Board
from keyhole.studies.rules import LookSeconds, choices_of_rules, is_center, metrics_of, settled_rules

PLAN = ArmPlan(name="x", student="resnet8", terms="ce,hint", count=3)


@pytest.fixture
def found(toy_teacher: Network, toy_split: MemorySplit) -> dict[str, tuple[str, ...]]:
    return choices_of_rules(toy_teacher, toy_split, PLAN, device="cpu")


def test_every_rule_of_every_metric_is_there(found: dict[str, tuple[str, ...]]) -> None:
    centers = {f"{clustering} {metric}" for clustering in CLUSTERINGS for metric in (*METRICS, "consensus")}
    assert centers <= set(found)
    assert {f"{name}, {hint}" for name in centers for hint in ("last", "informative")} <= set(found)
    assert {"stage-ends", "uniform", "random, seed 0", "random, seed 1", "random, seed 2"} <= set(found)
    assert all(len(set(layers)) == 3 for layers in found.values())
    assert all(list(layers) == sorted(layers) for layers in found.values())  # in the order of depth, as here is by name


@pytest.mark.parametrize(
    ("rule", "plan"),
    [
        ("kmeans r2_cca", {"hints": "auto"}),
        ("segments linear_cka", {"hints": "segments", "metric": "linear_cka"}),
        ("agglomerative procrustes, last", {"hints": "agglomerative", "metric": "procrustes", "hint": "last"}),
        ("kmeans r2_cca, informative", {"hints": "auto", "hint": "informative"}),
        ("kmeans consensus", {"hints": "auto", "metric": ",".join(ALWAYS)}),
        ("random, seed 2", {"hints": "random", "seed": 2}),
        ("uniform", {"hints": "uniform"}),
        ("quality", {"hints": "quality"}),
    ],
)
def test_a_rule_takes_what_an_arm_that_names_it_takes(
    toy_teacher: Network, toy_split: MemorySplit, found: dict[str, tuple[str, ...]], rule: str, plan: dict[str, object]
) -> None:
    config = TrainConfig(epochs=1, device="cpu")
    arm = ArmMaker(toy_teacher, toy_split, config).make(replace(PLAN, **plan))  # type: ignore[arg-type]
    assert found[rule] == tuple(pair.teacher for pair in arm.hints)


def test_what_a_rule_cannot_do_is_left_out(toy_teacher: Network, toy_split: MemorySplit) -> None:
    four = choices_of_rules(toy_teacher, toy_split, replace(PLAN, count=4), device="cpu")
    assert "stage-ends" not in four  # there are three stages
    bare = replace(toy_split, classes=())
    unlabeled = choices_of_rules(toy_teacher, bare, PLAN, device="cpu")
    assert not any("informative" in name or name == "quality" for name in unlabeled)
    with pytest.raises(SettingError, match="Arm 'x' has the count auto"):
        choices_of_rules(toy_teacher, toy_split, replace(PLAN, count="auto"), device="cpu")


def test_a_folder_is_looked_at_once(
    toy_teacher: Network,
    toy_split: MemorySplit,
    found: dict[str, tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board(tmp_path)
    plain = (0.0, 3.0, *(at for last in (1, 2, 3, 4, 5, 6) for at in (0.0, float(last))))
    clock = iter((100.0, 102.5, *plain, 0.0, 6.0, 10.0, 10.5, 20.0, 21.0))
    monkeypatch.setattr("keyhole.studies.rules.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    rules, seconds = settled_rules(board, toy_teacher, toy_split, PLAN, device="cpu")
    assert rules == found
    assert seconds is not None
    assert seconds.whole == 2.5
    # passes of 3 and 6 seconds, the second with the sums of the Gaussian kernels; then each metric in its turn
    assert seconds.centers == {
        "r2_cca": 4, "linear_cka": 5, "debiased_cka": 6, "procrustes": 7, "svcca": 8, "pwcca": 9, "rbf_cka": 6.5,
        "consensus": 7,
    }  # fmt: skip
    (kept,) = tmp_path.glob("look-*.txt")
    kept.write_text('{"seconds": 7, "layers": {"uniform": ["layer1.0"]}}')
    rules = {"uniform": ("layer1.0",)}
    settled = LookSeconds(7.0, seconds.centers)
    assert settled_rules(board, toy_teacher, toy_split, PLAN, device="cpu") == (rules, settled)
    (times,) = tmp_path.glob("times-*.txt")
    times.unlink()  # as in a folder of before, of which a report tells what is there
    told = settled_rules(board, toy_teacher, toy_split, PLAN, device="cpu", keep=board.peek)
    assert told == (rules, LookSeconds(7.0, {}))
    assert not times.exists()
    monkeypatch.undo()
    timed = settled_rules(board, toy_teacher, toy_split, PLAN, device="cpu")[1]
    assert timed is not None
    assert set(timed.centers) == set(seconds.centers)
    assert len(settled_rules(board, toy_teacher, toy_split, replace(PLAN, count=2), device="cpu")[0]["uniform"]) == 2


def test_rules_that_take_centers_are_known_by_their_name(found: dict[str, tuple[str, ...]]) -> None:
    centers = [name for name in found if is_center(name)]
    assert sorted(centers) == sorted(
        f"{clustering} {metric}" for clustering in CLUSTERINGS for metric in (*METRICS, "consensus")
    )
    kmeans = [name.removeprefix("kmeans ") for name in centers if name.startswith("kmeans ")]
    assert metrics_of(list(found)) == tuple(kmeans)
