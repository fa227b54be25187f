"""The script of all training runs of students under docs/results goes on after a stop, and asks for what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import pattern_faces
from keyhole.faces.images.distributions import parse_distribution

RUNS = Path(__file__).resolve().parents[2] / "docs" / "results" / "students" / "runs.sh"


def test_cameras_of_the_runs_can_be_read() -> None:
    told = re.findall(r'--degrade "([^"]+)"', RUNS.read_text(encoding="utf-8"))
    assert len(told) == 4
    assert all(parse_distribution(text).draw(3, seed=0) for text in told)


def test_arms_of_the_ablation_differ_in_their_hints_alone() -> None:
    arms = tomllib.loads((RUNS.parent / "ablation.toml").read_text(encoding="utf-8"))["arm"]
    assert [arm.get("hints") for arm in arms] == [None, "stage-ends", "random", "auto", "surviving"]
    assert len({arm["student"] for arm in arms}) == 1
    assert len({arm["terms"] for arm in arms[1:]}) == 1


def test_an_unknown_run_is_told_before_any_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [str(RUNS), str(tmp_path), str(out), "simplest", "simplst"]
    made = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (made.returncode, made.stdout, out.exists()) == (1, "", False)
    assert made.stderr.startswith("There is no run simplst; there are: ablation-0 ablation-1 ")


@pytest.mark.slow
def test_runs_are_made_once(shared: Path, tmp_path: Path) -> None:
    given, models = tmp_path / "faces", shared / "data" / "faces" / "models"
    lines = ["10 1"]
    for person in range(40):
        for photo in (1, 2):
            pattern_faces.write(given / "drawn" / f"p{person}" / f"p{person}_{photo:04d}.png", person, photo)
    for fold in range(10):
        lines += [f"p{2 * fold} 1 2", f"p{2 * fold} 1 p{2 * fold + 1} 1"]
    (given / "pairs.txt").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(given / "lfw112.zip", "w") as archive:
        for path in sorted((given / "drawn").rglob("*.png")):
            archive.write(path, path.relative_to(given / "drawn"))
    for ending in ("xml", "bin"):
        name = "face-reidentification-retail-0095"
        (given / f"{name}.{ending}").symlink_to(models / f"{name}.fp16.{ending}")
    command = tmp_path / "bin" / "keyhole"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from keyhole.cli import main; main()' \"$@\"\n")
    command.chmod(0o755)
    environment = {
        **os.environ, "EPOCHS": "1", "OMP_NUM_THREADS": "1",
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    out = tmp_path / "out" / "try-1"  # what a try leaves is not taken for a run
    words = [str(RUNS), str(given), str(tmp_path / "out"), "simplest", "narrow-1"]
    made = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    assert made.stderr.count("64 faces of 32 people") == 2
    results = [out / name / "result.json" for name in ("simplest", "narrow-1")]
    assert {path.parent for path in results} == set(out.iterdir())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["try-1"]
    before = [path.stat().st_mtime_ns for path in results]
    assert subprocess.run(words, env=environment, capture_output=True, timeout=600).returncode == 0
    assert [path.stat().st_mtime_ns for path in results] == before
