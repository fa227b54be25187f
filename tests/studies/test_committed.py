"""The studies that stand under docs/results can be read, and the script that runs the longest of them goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from keyhole.distillation.terms import parse_terms
from keyhole.models.layers import layers
from keyhole.models.zoo import build
from keyhole.plans import ArmPlan, read_cohort
from keyhole.studies.landscape import groups_of
from keyhole.studies.plan import expand, read_study, with_combinations

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "results" / "studies"


def names(glob: str | None) -> list[str]:
    return [layer.name for layer in layers(build("resnet20", classes=100), glob)]


@pytest.mark.parametrize(
    ("name", "cells", "passes"),
    [("brute-force", 174, 4), ("reference", 39, 1), ("reference-240", 27, 1), ("variants", 132, 1)],
)
def test_a_committed_study_can_be_read(name: str, cells: int, passes: int) -> None:
    whole = with_combinations(read_study(STUDIES / f"{name}.toml"), names)
    assert len({cell.id for cell in whole.cells}) == len(whole.cells) == cells
    assert -(-len(whole.arms) // whole.students_per_pass) == passes  # of the teacher, for each seed
    assert whole.config.precision == "bf16"  # not what a busy machine finds faster


@pytest.mark.parametrize("name", ["brute-force", "reference", "reference-240", "variants"])
def test_arms_with_and_without_hints_weigh_the_other_terms_alike(name: str) -> None:
    plans = read_study(STUDIES / f"{name}.toml").arms
    told = {
        tuple(sorted((term.name, term.weight) for term in parse_terms(plan.terms) if not term.needs_hints))
        for plan in plans
        if plan.balance == "weights"
    }
    assert told == {(("ce", 1.0), ("kd", 1.0))}


def test_the_committed_cohort_weighs_the_other_terms_alike() -> None:
    plans = read_cohort(STUDIES.parent / "cifar100-resnet56-resnet20.toml", ArmPlan())
    kept = [{term.name: term.weight for term in parse_terms(plan.terms) if not term.needs_hints} for plan in plans]
    assert kept == [{"ce": 1.0}, *[{"ce": 1.0, "kd": 1.0}] * 4]


def test_the_brute_force_study_holds_all_combinations_and_their_rivals() -> None:
    (group,) = groups_of(with_combinations(read_study(STUDIES / "brute-force.toml"), names))
    assert len(group.arms) == 84
    assert group.rivals == ("hints all", "hints last-only")


def test_the_variants_differ_from_their_baseline_in_one_thing() -> None:
    value = tomllib.loads((STUDIES / "variants.toml").read_text(encoding="utf-8"))
    known = {each.name for each in fields(ArmPlan)}
    first = value["arm"][0]
    assert first["name"] == value["baseline"]
    arms = []
    for table in value["arm"]:
        told = {key for key in (*table, *first) if table.get(key) != first.get(key)} - {"name"}
        assert len(told) <= 2, table["name"]  # a balance comes with a weight
        if set(table) <= known:
            arms += [plan.name for plan in expand(table)]
    assert len(set(arms)) == len(arms)
    other = read_study(STUDIES / "brute-force.toml")
    assert not set(value["seeds"]) & set(other.seeds)


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
    assert (value["open_cells"], value["setting"]["students"], len(value["rows"])) == (0, ["resnet8"], 9)
    before = (tmp_path / "out" / "teacher" / "result.json").stat().st_mtime_ns
    assert run() == 0  # nothing is left to do
    assert (tmp_path / "out" / "teacher" / "result.json").stat().st_mtime_ns == before
