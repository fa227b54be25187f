"""The scripts behind the results on students go on after a stop and a failure, and ask for what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import pattern_faces
from keyhole.cli import app
from keyhole.faces.images.distributions import parse_distribution

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "docs" / "results" / "students" / "runs.sh"
# Tells what it was called with, leaves what a call leaves, and fails where it is asked to.
RECORDER = """#!/bin/sh
here=$(dirname "$0")
printf '%s\\n' "$(basename "$0")" "$@" >"$here/calls/$(ls "$here/calls" | wc -l)"
[ "$1" != -c ] || echo 0123abcd
case "$*" in *"${FAIL:-nothing}"*) exit 1 ;; esac
is=$1
while [ $# -gt 0 ]; do
    if [ "$1" = --out ]; then
        mkdir -p "$(dirname "$2")"
        case $is in
            faces) mkdir -p "$2" && touch "$2/result.json" "$2/student.safetensors" ;;
            export) touch "$2.toml" ;;
            *) touch "$2" ;;
        esac
    fi
    shift
done
"""


@dataclass
class Recorder:
    """Stands for the commands of a script; a real run of one of them takes hours."""

    bin: Path

    def run(self, script: str, *words: object, fail: str = "nothing") -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [str(RUNS.with_name(script)), *map(str, words)],
            env={**os.environ, "PATH": path, "FAIL": fail}, capture_output=True, text=True, cwd=ROOT, timeout=120,
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        files = sorted((self.bin / "calls").iterdir(), key=lambda path: int(path.name))
        return [file.read_text(encoding="utf-8").splitlines() for file in files]

    def forget(self) -> None:
        for file in (self.bin / "calls").iterdir():
            file.unlink()


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    folder = tmp_path / "bin"
    (folder / "calls").mkdir(parents=True)
    for name in ("keyhole", "python"):
        (folder / name).write_text(RECORDER)
        (folder / name).chmod(0o755)
    return Recorder(folder)


def out_of(call: list[str]) -> Path:
    return Path(call[call.index("--out") + 1])


def check_options(call: list[str]) -> None:
    """Check that a call gives only options that there are."""
    if call[0] == "keyhole":
        command: Any = get_command(app)
        words = call[1:]
        while words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command.make_context(command.name, words).params["out"] is not None
        return
    text = (ROOT / call[1]).read_text(encoding="utf-8")
    known = set(re.findall(r'add_argument\("(--[a-z-]+)"', text))
    asked = {word for word in call[2:] if word.startswith("--")}
    assert asked <= known, (call[1], asked - known)


def test_all_runs_are_asked_for_with_options_that_there_are_and_made_once(tmp_path: Path, recorder: Recorder) -> None:
    words = (tmp_path / "faces", tmp_path / "out")
    made = recorder.run("runs.sh", *words)
    assert made.returncode == 0, made.stderr
    calls = recorder.calls()
    assert len({out_of(call).name for call in calls}) == len(calls) > 30
    for call in calls:
        check_options(call)
        assert call[(at := call.index("--precision")) : at + 2] == ["--precision", "bf16"]
        if any(word.endswith("lfw112.zip") for word in call):
            assert call[call.index("--apart-folds") + 1] == "7,8,9,10"
    recorder.forget()
    assert recorder.run("runs.sh", *words).returncode == 0
    assert recorder.calls() == []


def test_a_run_that_fails_does_not_keep_the_others_from_being_made(tmp_path: Path, recorder: Recorder) -> None:
    made = recorder.run("runs.sh", tmp_path, tmp_path / "out", fail="narrow-0")
    assert made.returncode == 1
    assert made.stderr.splitlines()[-1] == "Failed: narrow-0 "
    assert out_of(recorder.calls()[-1]).name == "simplest"


def test_tables_are_made_of_all_runs_with_options_that_there_are(tmp_path: Path, recorder: Recorder) -> None:
    assert recorder.run("runs.sh", tmp_path, tmp_path / "runs").returncode == 0
    recorder.forget()
    words = (tmp_path, tmp_path / "runs", tmp_path / "tables")
    made = recorder.run("measure.sh", *words, fail="kinds-blur=0.7.json --")
    assert made.returncode == 1
    assert made.stderr.splitlines() == ["Failed: kinds-blur=0.7 "]
    calls = recorder.calls()
    for call in calls:
        check_options(call)
        opened = [value for word, value in pairwise(call) if word.endswith("folds")]
        assert not {"8", "9", "10"} & set(",".join(opened).split(","))
    recorder.forget()
    assert recorder.run("measure.sh", *words).returncode == 0
    assert [out_of(call).name for call in recorder.calls()] == ["kinds-blur=0.7.json", "kinds-blur=0.7-change.json"]
    gain = next(call for call in calls if out_of(call).name == "gain.json")
    assert gain[2].endswith("face-reidentification-retail-0095.xml")
    assert sum(word.endswith("student.safetensors") for word in gain) == 6
    forms = {out_of(call).parent.name for call in calls if call[:2] == ["keyhole", "export"]}
    assert len(forms) == 1
    assert re.fullmatch("forms-[0-9a-f]{8}", forms.pop())


def test_a_table_waits_for_its_runs(tmp_path: Path, recorder: Recorder) -> None:
    assert recorder.run("runs.sh", tmp_path, tmp_path / "runs", "narrow-0", "narrow-1", "wide-0").returncode == 0
    recorder.forget()
    made = recorder.run("measure.sh", tmp_path, tmp_path / "runs", tmp_path / "tables")
    assert made.returncode == 0, made.stderr
    assert "sizes: wide-1 is not there yet" in made.stderr.splitlines()
    made_of = {out_of(call).name for call in recorder.calls() if "arms.py" in call[1]}
    assert made_of >= {"ablation.json", "ablation-pictures.json"}, "of what is committed"
    assert not made_of & {"sizes.json", "ship.json", "ship-pictures.json"}


def test_the_figures_of_a_release_lie_under_its_digits_and_folds_are_opened_last(
    tmp_path: Path, recorder: Recorder
) -> None:
    made = recorder.run("release.sh", tmp_path, "keyhole-face", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    digits, trees, lfw, london = recorder.calls()
    assert digits[1] == "-c"
    assert trees[1].endswith("benchmarks/london.py")
    assert (out_of(lfw), lfw[lfw.index("--folds") + 1]) == (tmp_path / "out" / "0123abcd" / "lfw", "8,9,10")
    assert out_of(london) == tmp_path / "out" / "0123abcd" / "london"
    for call in (lfw, london):
        check_options(call)


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
