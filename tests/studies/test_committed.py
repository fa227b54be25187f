"""The studies that stand under docs/results can be read, and the script that runs the longest of them goes on."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from keyhole.distillation.notation import parse_terms
from keyhole.models.layers import layers
from keyhole.models.zoo import build
from keyhole.plans import ArmPlan, read_cohort
from keyhole.studies.board import Board
from keyhole.studies.conclusion import mixture
from keyhole.studies.landscape import groups_of
from keyhole.studies.plan import Study, expand, read_study, with_combinations
from keyhole.studies.verdict import judge

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "results" / "studies"


def names(glob: str | None) -> list[str]:
    return [layer.name for layer in layers(build("resnet20", classes=100), glob)]


@pytest.mark.parametrize(
    ("name", "cells", "passes"),
    [
        ("brute-force", 174, 4),
        ("brute-force-fresh", 66, 1),
        ("reference", 39, 1),
        ("reference-240", 24, 2),
        ("variants", 54, 1),
    ],
)
def test_a_committed_study_can_be_read(name: str, cells: int, passes: int) -> None:
    whole = with_combinations(read_study(STUDIES / f"{name}.toml"), names)
    assert len({cell.id for cell in whole.cells}) == len(whole.cells) == cells
    assert -(-len(whole.arms) // whole.students_per_pass) == passes  # of the teacher, for each seed
    assert whole.config.precision == "bf16"  # not what a busy machine finds faster


@pytest.mark.parametrize("name", ["brute-force", "brute-force-fresh", "reference", "reference-240", "variants"])
def test_arms_with_and_without_hints_weigh_the_other_terms_alike(name: str) -> None:
    plans = read_study(STUDIES / f"{name}.toml").arms
    told = {
        tuple(sorted((term.name, term.weight) for term in parse_terms(plan.terms) if not term.needs_hints))
        for plan in plans
        if plan.balance == "weights"
    }
    rivals = {(("ce", 1.0), ("crd", 0.8), ("wttm", 4.0))} if name == "reference-240" else set()
    assert told == {(("ce", 1.0), ("kd", 1.0))} | rivals


def test_the_longest_study_has_a_cohort_of_arms_that_can_be_recorded_and_one_of_those_that_cannot() -> None:
    study = read_study(STUDIES / "reference-240.toml")
    drawing = [any(term.name == "crd" for term in parse_terms(plan.terms)) for plan in study.arms]
    assert drawing == [False] * study.students_per_pass + [True] * 3


def test_the_reference_study_was_made_by_another_version_for_each_seed() -> None:
    cells = [json.loads(path.read_text()) for path in sorted((STUDIES / "reference" / "cells").glob("*.json"))]
    (mixed,) = mixture(cells)
    assert (mixed["what"], sorted(mixed["cells"].values()), mixed["seeds"]) == ("source", [13, 13, 13], [])


@pytest.mark.parametrize("name", ["brute-force", "brute-force-fresh", "reference"])
def test_what_a_finished_study_tells_is_what_its_cells_hold(name: str) -> None:
    study = with_combinations(read_study(STUDIES / f"{name}.toml"), names)
    board = Board(STUDIES / name, make=False)
    results = [board.result(cell.id) for cell in study.cells]
    found = judge(results, [plan.name for plan in study.arms], baseline=study.baseline, comparisons=study.comparisons)
    told = json.loads((STUDIES / name / "result.json").read_text())
    assert found.open_cells == told["open_cells"] == 0
    rows = json.loads(json.dumps(found.to_json()["rows"]))
    assert rows == told["rows"]
    keys = ("mean", "low", "high", "p") if told["landscapes"] else ("mean", "low", "high", "p", "corrected")
    for kind in ("gaps", "comparisons"):  # beside a landscape, gaps are corrected apart from its own
        own = {each["arm"]: {key: pytest.approx(each[key]) for key in keys} for each in found.to_json()[kind]}
        assert own == {each["arm"]: {key: each[key] for key in keys} for each in told[kind]}
    if not told["landscapes"]:
        assert found.sentence == told["sentence"]
    page = html.unescape((STUDIES / name / "report.html").read_text()).replace("\xa0", " ")
    assert told["sentence"].split(". ")[0] in page


def test_the_committed_cohort_weighs_the_other_terms_alike() -> None:
    plans = read_cohort(STUDIES.parent / "cifar100-resnet56-resnet20.toml", ArmPlan())
    kept = [{term.name: term.weight for term in parse_terms(plan.terms) if not term.needs_hints} for plan in plans]
    assert kept == [{"ce": 1.0}, *[{"ce": 1.0, "kd": 1.0}] * 4]


def test_the_brute_force_study_holds_all_combinations_and_their_rivals() -> None:
    (group,) = groups_of(with_combinations(read_study(STUDIES / "brute-force.toml"), names))
    assert len(group.arms) == 84
    assert group.rivals == {"hints all": "all", "hints last-only": "last-only"}


def test_the_variants_differ_from_their_baseline_in_one_thing() -> None:
    value = tomllib.loads((STUDIES / "variants.toml").read_text(encoding="utf-8"))
    known = {each.name for each in fields(ArmPlan)}
    first = value["arm"][0]
    assert first["name"] == value["baseline"]
    arms = []
    for table in value["arm"]:
        told = {key for key in (*table, *first) if table.get(key) != first.get(key)} - {"name"}
        assert len(told) <= 2, table["name"]  # a balance comes with a weight, all layers with a learnt association
        if set(table) <= known:
            arms += [plan.name for plan in expand(table)]
    assert len(set(arms)) == len(arms)
    rivals = {
        "all",
        "last-only",
        "quality",
        "random",
        "stage-ends",
        "uniform",
        "reverse",
        "semckd, auto",
        "semckd, all",
    }
    assert rivals <= set(arms)


def made_up(study: Study, leads: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return results in which arms lead the others on held-out images by so much."""
    return [
        {
            "arm": cell.plan.name, "seed": cell.seed, "recipe": {}, "diverged": None, "parameters": 1, "macs": 1,
            "top1": {"last": 50.0, "best": 50.0},
            "held_out_top1": {"last": 60 + (k % 3) * (0.3, -0.3)[cell.seed - 10] + leads.get(cell.plan.name, 0)},
        }
        for k, cell in enumerate(study.cells)
    ]  # fmt: skip


@pytest.mark.parametrize(("leads", "chosen"), [({"semckd, all": 3.0, "quality": 2.0}, 2), ({}, 0)])
def test_the_script_of_the_variants_judges_on_fresh_seeds_what_held_out_images_choose(
    tmp_path: Path, leads: dict[str, float], chosen: int
) -> None:
    study, board = read_study(STUDIES / "variants.toml"), Board(tmp_path / "out" / "choosing")
    for cell, value in zip(study.cells, made_up(study, leads), strict=True):
        board.finish(cell.id, value)
    (tmp_path / "bin").mkdir()
    for name, line in (("keyhole", f'echo "$@" >>{tmp_path}/asked'), ("python", f'exec {sys.executable} "$@"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    words = [str(STUDIES / "variants.sh"), "data", "weights.pth", str(tmp_path / "out")]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=100)
    asked = (tmp_path / "asked").read_text().splitlines()
    if not chosen:
        assert (ran.returncode, len(asked)) == (1, 1)
        assert ran.stderr.startswith("No arm is above 'centers' on the held-out images")
        return
    assert (ran.returncode, ran.stderr) == (0, "")
    fresh = read_study(tmp_path / "out" / "judging.toml")
    assert [arm.name for arm in fresh.arms] == ["centers", *leads]
    assert (fresh.seeds, fresh.baseline) == ((20, 21, 22, 23, 24, 25), "centers")
    assert not set(fresh.seeds) & {*study.seeds, *read_study(STUDIES / "brute-force.toml").seeds}
    assert asked[1].startswith(f"study {tmp_path}/out/judging.toml --weights weights.pth --root data --out")


@pytest.mark.slow
def test_the_long_script_goes_on_after_a_stop_and_says_when_it_is_done(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "keyhole"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from keyhole.cli import main; main()' \"$@\"\n")
    command.chmod(0o755)
    small = {
        "EPOCHS": "1",
        "SEEDS": "[0]",
        "DATA": "digits",
        "TEACHER": "resnet8",
        "STUDENTS": "resnet8",
        "COMPILE": "off",
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **small, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}

    def run(**more: str) -> int:
        words = [str(STUDIES / "reference-240.sh"), str(tmp_path), str(tmp_path / "out")]
        return subprocess.run(words, env={**environment, **more}, capture_output=True, timeout=600).returncode

    assert run(LIMIT_S="1") == 3
    assert run() == 0
    value = json.loads((tmp_path / "out" / "resnet8" / "result.json").read_text())
    assert (value["open_cells"], value["setting"]["students"], len(value["rows"])) == (0, ["resnet8"], 8)
    assert value["setting"]["mixed"] == []
    before = (tmp_path / "out" / "teacher" / "result.json").stat().st_mtime_ns
    one = next((tmp_path / "out" / "resnet8" / "cells").iterdir())
    one.unlink()
    (tmp_path / "out" / "resnet8" / "leases" / f"{one.stem}.lease").write_text("another machine, killed a moment ago")
    assert run() == 0  # what is left is taken up
    assert one.is_file()
    assert run() == 0  # nothing is left to do
    assert (tmp_path / "out" / "teacher" / "result.json").stat().st_mtime_ns == before
