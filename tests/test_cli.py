"""The command line on the bundled digits: what it writes, what it prints, and how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image, ImageDraw

from keyhole.cli import app, main
from keyhole.cli.options import DataOptions, NetworkOptions, input_spec, open_both
from keyhole.hints.similarity import ALWAYS
from keyhole.models.layers import layers
from keyhole.models.network import InputSpec
from keyhole.models.zoo import build, load, save
from keyhole.studies.board import Board

COMMANDS = ("hints", "search", "train", "distill", "study", "evaluate", "figures", "layers", "demo")
DIGITS = ("--data", "digits")
QUICK = (*DIGITS, "--precision", "fp32", "--device", "cpu")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        lines = self.out.splitlines()
        assert len(lines) == 1
        value: dict[str, Any] = json.loads(lines[0])
        return value


def keyhole(*arguments: object) -> Ran:
    """Run the command line in this process, as the installed script does."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["keyhole", *map(str, arguments)]),
        mock.patch.object(sys, "path", list(sys.path)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    return Ran(int(left.value.code or 0), out.getvalue(), err.getvalue())


def process(*arguments: object) -> subprocess.Popen[str]:
    # a shell that starts something in the background lets it ignore interrupts, and so do its children
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from keyhole.cli import main; main()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(runs: Path) -> Ran:
    """A small teacher, trained for three epochs into runs/teacher."""
    with one_thread():
        return keyhole("train", "--model", "resnet14", *QUICK, "--epochs", 3, "--json", "--out", runs / "teacher")


@pytest.fixture(scope="module")
def teacher(runs: Path, trained: Ran) -> Path:
    assert trained.code == 0, trained.err
    return runs / "teacher" / "student.safetensors"


@pytest.fixture(scope="module")
def looked(runs: Path, teacher: Path) -> Ran:
    """The hint points of that teacher, in runs/hints."""
    options = ("--count", 2, "--samples", 300, "--stability", 5, "--precision", "fp32", "--json")
    with one_thread():
        return keyhole("hints", "--teacher", teacher, *DIGITS, *options, "--out", runs / "hints")


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_with_options_that_exist(command: str) -> None:
    found = keyhole(command, "--help")
    assert found.code == 0
    text = " ".join(found.out.split())
    example = text.partition(f"Example: keyhole {command} ")[2].partition(" Writes ")[0].partition(" Options: ")[0]
    group = typer.main.get_command(app)
    known = {option for parameter in group.commands[command].params for option in parameter.opts}  # type: ignore[attr-defined]
    used = [word for word in example.split() if word.startswith("--")]
    assert used or command == "demo"
    assert set(used) <= known


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert keyhole("--version").out == f"{version('keyhole')}\n"


@pytest.mark.parametrize("command", [(), ("faces",)])
def test_what_a_list_of_commands_says_of_each_is_not_cut_off(command: tuple[str, ...]) -> None:
    told = keyhole(*command, "--help").out
    assert "Commands:" in told
    assert "..." not in told.split("Commands:")[1]


def test_help_answers_without_importing_anything_heavy() -> None:
    code = f"""
import sys
from keyhole.cli import main
for command in ([], *([name] for name in {COMMANDS})):
    sys.argv = ["keyhole", *command, "--help"]
    try:
        main()
    except SystemExit as left:
        assert not left.code
heavy = {{"torch", "numpy", "sklearn", "matplotlib", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(command in found.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "5000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_wait_briefly_unless_the_user_has_said_how(given: dict[str, str], spins: str) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "keyhole", "layers", "--model", "resnet8"]
    environment = {**own, **given, "OMP_DISPLAY_ENV": "verbose"}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("PyTorch's threads are not those of GNU OpenMP here")
    assert f"GOMP_SPINCOUNT = '{spins}'" in told


# --- layers, train, evaluate -----------------------------------------------------------------------------------------


def test_layers() -> None:
    value = keyhole("layers", "--model", "resnet20", "--json").json
    assert value["model"] == "resnet20"
    assert [layer["name"] for layer in value["layers"]] == [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)]
    assert value["layers"][3] == {
        "name": "layer2.0",
        "kind": "BasicBlock",
        "channels": 32,
        "size": [16, 16],
        "parameters": layers(build("resnet20", classes=100))[3].parameters,
    }
    text = keyhole("layers", "--model", "resnet20").out.splitlines()
    assert len(text) == 9
    assert [line.split()[0] for line in text if line.endswith("end of stage")] == ["layer1.2", "layer2.2", "layer3.2"]


def test_layers_by_glob() -> None:
    value = keyhole("layers", "--model", "resnet8", "--pattern", "layer3.*.conv1,fc", "--json").json
    assert [layer["name"] for layer in value["layers"]] == ["layer3.0.conv1", "fc"]


def test_a_network_of_ones_own_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def small(classes):\n"
        "    parts = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, classes)\n"
        "    return nn.Sequential(*parts)\n"
    )
    monkeypatch.chdir(tmp_path)
    value = keyhole(
        "layers", "--model", "nets_of_mine:small", "--input-size", 8, "--mean", 0.5, "--std", 0.25, "--json"
    ).json
    assert [(layer["channels"], layer["size"]) for layer in value["layers"]] == [(4, [6, 6]), (6, [4, 4])]
    value = keyhole(
        "train", "--model", "nets_of_mine:small", *QUICK, "--epochs", 1, "--json", "--out", tmp_path / "run"
    ).json
    student = tmp_path / "run" / "student.safetensors"
    again = keyhole("evaluate", "--model", "nets_of_mine:small", "--weights", student, *DIGITS, "--json").json
    assert again["top1"] == value["top1"]["last"]
    assert_one_line(keyhole("evaluate", "--model", student, *DIGITS), "a file may not choose the code that runs")


def test_train_writes_all_that_it_says(runs: Path, trained: Ran) -> None:
    value = trained.json
    written = {"recipe.json", "result.json", "log.jsonl", "report.html", "student.safetensors"}
    assert names_in(runs / "teacher") == {*written, "student-best.safetensors"}
    assert json.loads((runs / "teacher" / "result.json").read_text()) == value
    assert value["top1"]["last"] > 40
    assert value["images"] == {"train": 1297, "held_out": 0, "test": 500}
    records = [json.loads(line) for line in (runs / "teacher" / "log.jsonl").read_text().splitlines()]
    assert [(record["arm"], record["epoch"]) for record in records] == [("resnet14", epoch) for epoch in (1, 2, 3)]
    recipe = json.loads((runs / "teacher" / "recipe.json").read_text())
    assert recipe["command"] == "train"
    assert recipe["arguments"]["epochs"] == 3
    assert not {"out", "json", "resume", "device"} & set(recipe["arguments"])
    assert "<html" in (runs / "teacher" / "report.html").read_text()


def test_the_last_and_the_best_network_are_kept_apart(tmp_path: Path) -> None:
    rough = ("--epochs", 6, "--holdout", 900, "--lr", 0.2, "--milestones", 1, "--json")
    for seed in range(9):  # until a seed whose last epoch is not its best
        out = tmp_path / str(seed)
        value = keyhole("train", "--model", "resnet8", *QUICK, *rough, "--seed", seed, "--out", out).json
        if value["best_epoch"] < 6 and value["top1"]["last"] != value["top1"]["best"]:
            break
    else:
        pytest.fail("no seed whose last epoch is not its best")
    for name, which in (("student", "last"), ("student-best", "best")):
        found = keyhole("evaluate", "--model", out / f"{name}.safetensors", *DIGITS, "--json").json
        assert (found["top1"], found["top5"]) == (value["top1"][which], value["top5"][which])


def test_evaluate_tells_what_the_result_says(trained: Ran, teacher: Path) -> None:
    value = keyhole("evaluate", "--model", teacher, *DIGITS, "--json").json
    result = trained.json
    assert value == {
        "model": "resnet14",
        "data": "digits",
        "images": 500,
        "top1": result["top1"]["last"],
        "top5": result["top5"]["last"],
    }
    text = keyhole("evaluate", "--model", "resnet14", "--weights", teacher, *DIGITS).out
    assert text == f"resnet14: top-1 {value['top1']:.2f} %, top-5 {value['top5']:.2f} %\n"


def test_evaluate_keeps_its_result_with_a_recipe(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("evaluate", "--model", teacher, *DIGITS, "--out", out)
    value = keyhole(*command, "--json").json
    assert names_in(out) == {"recipe.json", "result.json"}
    assert json.loads((out / "result.json").read_text()) == value
    recipe = json.loads((out / "recipe.json").read_text())
    assert (recipe["command"], recipe["arguments"]["precision"]) == ("evaluate", "fp32")
    assert [*recipe["arguments"]["files"]] == [str(teacher)]
    assert_one_line(keyhole(*command), "holds this run, finished")
    assert_one_line(keyhole(*command, "--precision", "bf16"), "holds another run")


def test_a_file_in_half_precision_is_a_teacher_by_name(teacher: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    save(load(teacher), half, half=True, about={"code": "os:system", "epochs": 3})
    full, found = (keyhole("evaluate", "--model", file, *DIGITS, "--json").json for file in (teacher, half))
    assert found == full | {"top1": pytest.approx(full["top1"], abs=1), "top5": pytest.approx(full["top5"], abs=1)}
    options = ("--count", 2, "--samples", 100, "--stability", 0, "--json")
    hints = keyhole("hints", "--teacher", half, *DIGITS, *options, "--out", tmp_path / "hints").json
    assert (hints["teacher"], hints["count"]) == ("resnet14", 2)
    value = distill(half, tmp_path / "run", "--hints", tmp_path / "hints" / "hints.json").json
    assert value["teacher"]["top1"] == found["top1"]
    assert_one_line(
        keyhole("evaluate", "--model", half, "--weights", teacher, *DIGITS),
        "brings its own weights; leave --weights out",
    )


# --- hints -----------------------------------------------------------------------------------------------------------


def test_hints_writes_all_that_it_says(runs: Path, looked: Ran) -> None:
    value = looked.json
    assert names_in(runs / "hints") == {"recipe.json", "hints.json", "similarity.npz", "report.html"}
    assert json.loads((runs / "hints" / "hints.json").read_text()) == value
    assert len(value["hints"]) == value["count"] == 2
    assert (value["teacher"], value["data"], value["samples"]) == ("resnet14", "digits", 300)
    with np.load(runs / "hints" / "similarity.npz") as arrays:
        assert set(arrays) == set(ALWAYS)
        for name in ALWAYS:
            assert arrays[name].shape == (6, 6)
            np.testing.assert_allclose(arrays[name], arrays[name].T)
            if name != "r2_cca":  # a dead channel counts
                np.testing.assert_allclose(np.diag(arrays[name]), 1, atol=1e-6)
    page = (runs / "hints" / "report.html").read_text()
    assert all(name in page for name in value["hints"])


def test_hints_for_people(teacher: Path, tmp_path: Path) -> None:
    options = ("--samples", 100, "--stability", 5, "--count", "auto", "--metric", "linear_cka,procrustes")
    found = keyhole("hints", "--teacher", teacher, *DIGITS, *options, "--out", tmp_path)
    assert found.code == 0, found.err
    few = "Warning: 100 images for layers of up to 64 channels: with so few, all look alike. Give more --samples.\n"
    assert found.err == few
    enough = (*options[:1], 256, *options[2:])
    assert keyhole("hints", "--teacher", teacher, *DIGITS, *enough, "--out", tmp_path / "enough").err == ""
    first, *sure, last = found.out.splitlines()
    value = json.loads((tmp_path / "hints.json").read_text())
    assert first == f"resnet14: learn from {', '.join(value['hints'])}"
    assert [line.split(":")[0].strip() for line in sure] == value["hints"]
    assert "over 100 images" in last
    assert value["metric"] == "consensus"
    with np.load(tmp_path / "similarity.npz") as arrays:
        assert set(arrays) == {*ALWAYS, "consensus"}


def test_hints_by_quality(teacher: Path, tmp_path: Path) -> None:
    options = ("--clustering", "quality", "--samples", 200, "--count", 2, "--json")
    found = keyhole("hints", "--teacher", teacher, *DIGITS, *options, "--out", tmp_path)
    assert found.code == 0, found.err
    value = found.json
    assert value["clustering"] == "quality"
    assert list(value["quality"]) == [layer["name"] for layer in value["layers"]]
    totals = [parts["quality"] for parts in value["quality"].values()]
    best = max(range(5), key=lambda i: totals[i] + totals[i + 1])
    assert value["hints"] == list(value["quality"])[best : best + 2]
    assert value["stability"] == {}
    page = (tmp_path / "report.html").read_text()
    assert "the choice by quality takes the consecutive layers with the highest quality by labels" in page
    assert "without labels" not in page


def test_hints_may_be_chosen_again_into_the_same_folder(teacher: Path, tmp_path: Path) -> None:
    options = ("--teacher", teacher, *DIGITS, "--samples", 50, "--count", 2, "--stability", 0, "--out", tmp_path)
    assert keyhole("hints", *options).code == 0
    assert keyhole("hints", *options).code == 0
    assert "samples is 50 there and 60 now" in keyhole("hints", *options, "--samples", 60).err


def test_an_untrained_teacher_is_told(tmp_path: Path) -> None:
    options = ("--samples", 50, "--count", 2, "--stability", 0, "--json")
    found = keyhole("hints", "--teacher", "resnet8", *DIGITS, *options, "--out", tmp_path)
    assert found.err.startswith("Warning: resnet8 is right on ")
    assert found.json["teacher"] == "resnet8"


def test_figures_takes_the_drawings_of_a_report(runs: Path, looked: Ran, tmp_path: Path) -> None:
    assert looked.code == 0, looked.err
    value = keyhole("figures", runs / "hints" / "report.html", "--out", tmp_path / "figures", "--json").json
    assert {each["file"] for each in value["figures"]} == names_in(tmp_path / "figures")
    assert value["figures"][0]["shows"].startswith("Similarity of the layers of")
    told = keyhole("figures", runs / "hints" / "hints.json", "--out", tmp_path / "figures")
    assert (told.code, told.out) == (1, "")
    assert told.err.splitlines() == [
        f"Error: {runs / 'hints' / 'hints.json'} holds no drawing of Keyhole; expected a report with figures, as of "
        "'keyhole hints' or 'keyhole study'. Name another report."
    ]


# --- distill ---------------------------------------------------------------------------------------------------------


def distill(teacher: Path, out: Path, *options: object) -> Ran:
    common = (*QUICK, "--student", "resnet8", "--epochs", 1, "--holdout", 97, "--json")
    return keyhole("distill", "--teacher", teacher, *common, *options, "--out", out)


def test_distill_with_chosen_hints(runs: Path, teacher: Path, looked: Ran, tmp_path: Path) -> None:
    found = distill(teacher, tmp_path / "run", "--hints", runs / "hints" / "hints.json", "--student-size", 4)
    value = found.json
    assert [pair["teacher"] for pair in value["hints"]] == looked.json["hints"]
    assert value["images"] == {"train": 1200, "held_out": 97, "test": 500}
    written = {"recipe.json", "result.json", "log.jsonl", "report.html", "student.safetensors"}
    assert names_in(tmp_path / "run") == {*written, "student-best.safetensors", "teacher-sha256.txt"}
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == value
    assert value["teacher"]["top1"] == keyhole("evaluate", "--model", teacher, *DIGITS, "--json").json["top1"]
    (arm,), whole = value["arms"], load(teacher)
    student = load(tmp_path / "run" / "student.safetensors")
    assert arm["compression"]["parameters"] == pytest.approx(whole.parameters / student.parameters, abs=1e-3)
    assert arm["compression"]["macs"] > 1
    assert student.input.size_px == (4, 4)
    assert student.parameters == value["parameters"]
    again = keyhole("evaluate", "--model", tmp_path / "run" / "student.safetensors", *DIGITS, "--json").json
    assert (again["top1"], again["top5"]) == (value["top1"]["last"], value["top5"]["last"])
    best = keyhole("evaluate", "--model", tmp_path / "run" / "student-best.safetensors", *DIGITS, "--json").json
    assert best["top1"] == value["top1"]["best"]
    pairs = ", ".join(f"{pair['teacher']} -> {pair['student']}" for pair in value["hints"])
    told = found.err.splitlines()[0]
    assert "(8x8 and 4x4, averaged to 4x4)" in told  # the student sees smaller images
    assert re.sub(r" \([^)]*\)", "", told) == f"resnet8: {pairs}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--hints", "auto", "--samples", 200), None),
        (("--hints", "segments", "--metric", "linear_cka,debiased_cka", "--samples", 200), None),
        (("--hints", "reverse", "--samples", 200), None),
        (("--hints", "stage-ends"), ["layer1.1", "layer2.1", "layer3.1"]),
        (("--hints", "stage-ends", "--layers", "layer?.0"), ["layer1.0", "layer2.0", "layer3.0"]),
        (("--hints", "random", "--count", "2"), None),
        (("--hints", "layer1.1, layer3.0", "--match", "size"), ["layer1.1", "layer3.0"]),
        (("--hints", "quality", "--samples", 200, "--hint-weights", "redundancy"), None),
        (("--hints", "layer1.1,layer3.0", "--match", "similarity", "--match-steps", 3), ["layer1.1", "layer3.0"]),
        (("--hints", "layer2.0.conv1", "--layers", "*.conv1"), ["layer2.0.conv1"]),
        (("--hints", "auto", "--samples", 200, "--layers", "*.conv1", "--count", 2), None),
    ],
)
def test_distill_with_hints_of_every_kind(
    teacher: Path, tmp_path: Path, options: tuple[object, ...], expected: list[str] | None
) -> None:
    value = distill(teacher, tmp_path / "run", *options).json
    hints = [pair["teacher"] for pair in value["hints"]]
    assert hints == (expected or hints)
    known = {name for name, _ in load(teacher).module.named_modules()}
    assert set(hints) <= known
    assert len(hints) == len(set(hints)) > 0
    assert len({pair["student"] for pair in value["hints"]}) == len(hints)


def test_automatic_hints_are_those_of_the_hints_command(teacher: Path, tmp_path: Path) -> None:
    """With nothing held out, both look at the same images."""
    look = ("--samples", 300, "--count", 2, "--seed", 3)
    more = ("--precision", "fp32", "--stability", 0, "--json")
    chosen = keyhole("hints", "--teacher", teacher, *DIGITS, *look, *more, "--out", tmp_path / "hints").json
    value = distill(teacher, tmp_path / "run", "--hints", "auto", *look, "--holdout", 0).json
    assert [pair["teacher"] for pair in value["hints"]] == chosen["hints"]


def test_hints_among_other_layers_go_from_command_to_command(teacher: Path, tmp_path: Path) -> None:
    options = ("--layers", "*.conv2", "--samples", 100, "--count", 2, "--stability", 0, "--json")
    chosen = keyhole("hints", "--teacher", teacher, *DIGITS, *options, "--out", tmp_path / "hints").json
    value = distill(teacher, tmp_path / "run", "--hints", tmp_path / "hints" / "hints.json").json
    assert [pair["teacher"] for pair in value["hints"]] == chosen["hints"]
    assert all(name.endswith("conv2") for name in chosen["hints"])


def test_a_cohort_of_a_toml_file(runs: Path, teacher: Path, looked: Ran, tmp_path: Path) -> None:
    (tmp_path / "arms.toml").write_text(
        f"""
        [[arm]]
        name = "plain"
        terms = "ce"

        [[arm]]
        name = "kd only"
        terms = "ce,kd"
        temperature = 2

        [[arm]]
        name = "chosen"
        hints = "{(runs / "hints" / "hints.json").as_posix()}"
        student_size = 4

        [[arm]]
        name = "listed"
        student = "resnet14"
        hints = ["layer2.0"]
        terms = "ce,at"
        """
    )
    found = distill(teacher, tmp_path / "run", "--cohort", tmp_path / "arms.toml", "--hints", "random")
    value = found.json
    assert [arm["name"] for arm in value["arms"]] == ["plain", "kd only", "chosen", "listed"]
    assert [arm["student"] for arm in value["arms"]] == ["resnet8", "resnet8", "resnet8", "resnet14"]
    plain, kd, chosen, listed = value["arms"]
    assert (plain["hints"], kd["hints"]) == ([], [])
    assert kd["terms"][1] == {"name": "kd", "weight": 0.9, "temperature": 2.0, "knobs": []}
    assert [pair["teacher"] for pair in chosen["hints"]] == looked.json["hints"]
    assert [pair["teacher"] for pair in listed["hints"]] == ["layer2.0"]
    folders = ("0-plain", "1-kd-only", "2-chosen", "3-listed")
    students = {f"{folder}/{name}.safetensors" for folder in folders for name in ("student", "student-best")}
    assert names_in(tmp_path / "run") == {
        "recipe.json",
        "result.json",
        "log.jsonl",
        "report.html",
        "teacher-sha256.txt",
        *students,
    }
    for folder, arm in zip(folders, value["arms"], strict=True):
        again = keyhole("evaluate", "--model", tmp_path / "run" / folder / "student.safetensors", *DIGITS, "--json")
        assert again.json["top1"] == arm["top1"]["last"]
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["arguments"]["cohort"][2]["student_size"] == 4


def test_the_table_for_people(teacher: Path, tmp_path: Path) -> None:
    found = keyhole(
        "distill", "--teacher", teacher, *QUICK, "--student", "resnet8", "--terms", "ce,kd", "--epochs", 1,
        "--holdout", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    title, head, first, second, *files = found.out.splitlines()
    assert title == "Top-1 in percent on the test images, last epoch (best is last: no images held out)"
    assert files == [
        f"Student: {tmp_path / 'run' / 'student.safetensors'}",
        f"Report: {tmp_path / 'run' / 'report.html'}",
    ]
    assert head.split() == ["last", "best", "parameters", "x", "smaller"]
    value = json.loads((tmp_path / "run" / "result.json").read_text())
    assert first.split() == ["teacher", "resnet14", f"{value['teacher']['top1']:.2f}", "174,970"]
    assert second.split()[:2] == ["resnet8", f"{value['top1']['last']:.2f}"]


def test_a_killed_run_goes_on_to_the_very_same_student(runs: Path, teacher: Path, tmp_path: Path) -> None:
    options = ("--student", "resnet8", "--hints", "stage-ends", "--epochs", 12, "--holdout", 97, *QUICK)
    command = ("distill", "--teacher", teacher, *options)
    killed = process(*command, "--out", tmp_path / "killed")
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "student.safetensors").exists()
    assert "Add --resume" in keyhole(*command, "--out", tmp_path / "killed").err
    resumed = keyhole(*command, "--resume", "--json", "--out", tmp_path / "killed").json
    straight = keyhole(*command, "--json", "--out", tmp_path / "straight").json
    for name in ("student.safetensors", "student-best.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert len(log.read_text().splitlines()) <= 12 + 1  # it went on, and at most the epoch under way was done again
    timeless = [{key: value for key, value in run.items() if key != "seconds"} for run in (resumed, straight)]
    assert timeless[0] == timeless[1]
    assert names_in(tmp_path / "killed") == names_in(tmp_path / "straight")
    finished = keyhole(*command, "--resume", "--out", tmp_path / "killed")
    assert finished.code == 1
    assert "finished; its result is" in finished.err


LAB = """
from torch import nn


def logits(logits, teacher_logits, power=2.0):
    return (logits - teacher_logits).abs().pow(power).mean()


def pooled(feature, teacher_feature):
    return (feature.mean((2, 3)) - teacher_feature.mean((2, 3))).pow(2).mean()


def small(*, classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of losses and networks of the user's, in the folder that the user works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "lab", raising=False)
    (tmp_path / "lab.py").write_text(LAB)
    return tmp_path / "lab.py"


def edit(lab: Path, old: str, new: str) -> None:
    assert old in LAB
    lab.write_text(LAB.replace(old, new))
    sys.modules.pop("lab", None)


def test_distill_with_losses_of_ones_own(teacher: Path, lab: Path, tmp_path: Path) -> None:
    terms = "ce,lab:logits(power=1.5)=0.5,lab:pooled"
    value = distill(teacher, tmp_path / "run", "--terms", terms, "--count", 2).json
    assert len(value["hints"]) == 2  # chosen, as one of them needs hints
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    whole = record["ce"] + 0.5 * record["lab:logits"] + record["lab:pooled"]
    assert record["loss"] == pytest.approx(whole, rel=1e-4)
    assert "lab:pooled" in (tmp_path / "run" / "report.html").read_text()
    files = json.loads((tmp_path / "run" / "recipe.json").read_text())["arguments"]["files"]
    assert {"lab:logits", "lab:pooled"} <= files.keys()
    assert_one_line(distill(teacher, tmp_path / "new", "--terms", "ce,lab:small"), "lab:small asks for classes")
    assert not (tmp_path / "new").exists()


def test_an_unfinished_run_is_not_resumed_with_other_code(teacher: Path, lab: Path, tmp_path: Path) -> None:
    options = ("--student", "lab:small", "--terms", "ce,lab:logits", "--epochs", 2, "--holdout", 97, *QUICK)
    command = ("distill", "--teacher", teacher, *options, "--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    found = keyhole(*command)
    assert found.code == 0, found.err
    (tmp_path / "run" / "result.json").unlink()  # as if it had not come to its end
    for old, new, told in (("power=2.0", "power=1.0", "files.lab:logits"), ("1, 4, 3", "1, 4, 5", "files.lab:small")):
        edit(lab, old, new)
        assert_one_line(keyhole(*command, "--resume"), "holds another run", told)
    edit(lab, "def pooled(feature", "def other(feature")
    assert keyhole(*command, "--resume").code == 0


def test_a_study_of_losses_of_ones_own(teacher: Path, lab: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f"""
        teacher = "{teacher}"
        data = "digits"
        holdout = 97
        [train]
        epochs = 1
        precision = "fp32"
        [[arm]]
        student = "resnet8"
        terms = ["ce=1,kd=1", "ce=1,lab:logits=0.5"]
    """)
    command = ("study", tmp_path / "study.toml", "--out", tmp_path / "out")
    first = keyhole(*command, "--json").json
    edit(lab, "def small", "# what is not used may change\ndef small")
    assert keyhole(*command, "--json").json == first | {"finished_now": 0}
    edit(lab, "power=2.0", "power=1.0")
    assert_one_line(keyhole(*command), "of another recipe: code_sha256.lab:logits is")


# --- what goes wrong -------------------------------------------------------------------------------------------------


def assert_one_line(found: Ran, *told: str) -> None:
    assert found.code == 1
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert found.err.startswith("Error: ")
    assert found.err.endswith((".\n", ")\n"))
    for text in told:
        assert text in found.err


ARMS = {
    "unknown key": ('[[arm]]\nname = "a"\ntemprature = 3', "Unknown key of an [[arm]] 'temprature'; nearest"),
    "no name": ('[[arm]]\nterms = "ce"', "An [[arm]] has no name"),
    "twice": ('[[arm]]\nname = "a"\nterms = "ce"\n[[arm]]\nname = "a"\nterms = "ce"', "Two arms are called 'a'"),
    "not an arm": ("arm = [1, 2]", "An arm is 1"),
    "not a list": ('arm = "a"', "expected one [[arm]] table"),
    "another table": ("[student]\nname = 'a'", "holds student; expected one [[arm]] table"),
    "nothing": ("", "holds nothing"),
    "no arms": ("arm = []", "expected one [[arm]] table"),
    "no toml": ("[[arm]\nname", "is not TOML"),
    "terms of a wrong type": ('[[arm]]\nname = "a"\nterms = ["ce"]', "terms of arm 'a' is ['ce']; expected a text"),
    "name of a wrong type": ("[[arm]]\nname = 7", "name of arm 7 is 7; expected a text"),
    "hints of a wrong type": ('[[arm]]\nname = "a"\nhints = [1]', "hints of arm 'a' is [1]; expected a text or a list"),
    "no hints": ('[[arm]]\nname = "a"\nhints = []', "hint"),
    "temperature of a wrong type": ('[[arm]]\nname = "a"\ntemperature = "hot"', "expected a number"),
    "a truth value": ('[[arm]]\nname = "a"\nsamples = true', "expected a whole number"),
    "negative seed": ('[[arm]]\nname = "a"\nhints = "random"\nseed = -1', "seed of arm 'a' is -1"),
    "a date": ('[[arm]]\nname = "a"\ncount = 1999-12-31', "expected a whole number or 'auto'"),
    "too small a student": ('[[arm]]\nname = "a"\nterms = "ce"\nstudent_size = 0', "student_size of arm 'a' is 0"),
}


@pytest.mark.parametrize("case", ARMS)
def test_a_wrong_toml_file_is_one_line(teacher: Path, tmp_path: Path, case: str) -> None:
    text, told = ARMS[case]
    (tmp_path / "arms.toml").write_text(text)
    found = distill(teacher, tmp_path / "run", "--cohort", tmp_path / "arms.toml", "--terms", "ce,hint")
    assert_one_line(found, told)


HINT_FILES = {
    "corrupt": ('{"hints": ["lay', "is not JSON"),
    "a list": ("[1]", "no hints.json"),
    "other things": ('{"teacher": "resnet14"}', "no list of hints"),
    "a number": ('{"teacher": "resnet14", "hints": 5}', "no list of hints"),
    "numbers": ('{"teacher": "resnet14", "hints": [1, 2], "layers": [{"name": "layer1.0"}]}', "no list of hints"),
    "broken layers": ('{"teacher": "resnet14", "hints": ["layer1.0"], "layers": [1]}', "no list of hints"),
    "unknown layer": ('{"teacher": "resnet14", "hints": ["layer9.0"]}', "Unknown hint layer 'layer9.0'; nearest known"),
    "nothing": ('{"teacher": "resnet14", "hints": []}', "0 hints"),
}


@pytest.mark.parametrize("case", HINT_FILES)
def test_a_wrong_hints_file_is_one_line(teacher: Path, tmp_path: Path, case: str) -> None:
    text, told = HINT_FILES[case]
    (tmp_path / "hints.json").write_text(text)
    assert_one_line(distill(teacher, tmp_path / "run", "--hints", tmp_path / "hints.json"), told)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_hints_of_another_teacher_are_told(runs: Path, teacher: Path, looked: Ran, tmp_path: Path) -> None:
    value = looked.json | {"teacher": "resnet999"}
    (tmp_path / "hints.json").write_text(json.dumps(value))
    found = distill(teacher, tmp_path / "run", "--hints", tmp_path / "hints.json")
    assert found.code == 0
    assert "was made for resnet999, the teacher is resnet14" in found.err.splitlines()[0]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("hints --teacher resnet20 --weights {teacher} --data digits --out {new}", "belongs to another model"),
        ("hints --teacher resnet14 --weights {garbage} --data digits --out {new}", "is truncated or no weight file"),
        ("hints --teacher resnet14 --weights {new}/no.pth --data digits --out {new}", "No weight file at"),
        ("hints --teacher {garbage}.safetensors --data digits --out {new}", "Cannot read"),
        ("hints --teacher resnet21 --data digits --out {new}", "Unknown model 'resnet21'; nearest known: resnet"),
        ("hints --teacher nothing.here:net --data digits --input-size 8 --out {new}", "Cannot import 'nothing.here'"),
        ("{hints} --metric linear_kca --out {new}", "Unknown metric 'linear_kca'"),
        ("{hints} --metric r2_cca,r2_cca --out {new}", "must name each metric once"),
        ("{hints} --clustering kmedoids --out {new}", "Unknown clustering 'kmedoids'"),
        ("{hints} --layers layer9* --out {new}", "Unknown layer pattern 'layer9*'"),
        ("{hints} --count 7 --out {new}", "Cannot choose 7 hints from 6 layers"),
        ("{hints} --count 0 --out {new}", "Cannot choose 0 hints"),
        ("{hints} --count some --out {new}", "count is 'some'"),
        ("{hints} --samples 1 --out {new}", "samples is 1"),
        ("{hints} --samples 3 --metric rbf_cka --count 2 --out {new}", "raise --samples"),
        ("{hints} --samples 1 --out {new}", "expected at least 2"),
        ("{train} --std inf --epochs 1 --out {new}", "finite"),
        ("{train} --lr nan --out {new}", "--lr is nan; expected a finite number"),
        ("{train} --milestones nan --out {new}", "milestones are (nan,); expected fractions"),
        ("{train} --milestones inf --out {new}", "expected fractions of the epochs"),
        ("{train} --seed 18446744073709551616 --out {new}", "below 2^63"),
        ("{distill} --temperature nan --hints uniform --out {new}", "--temperature is nan"),
        ("{distill} --terms ce,kd --hints nowhere.json --out {new}", "--hints serves none of the terms ce,kd; add"),
        ("{distill} --terms ce,kd --match size --out {new}", "--match serves none of the terms ce,kd; add"),
        ("{distill} --terms ce,kd --hint-weights mass --out {new}", "or leave --hint-weights out"),
        ("evaluate --model {teacher} --data digits --weights {garbage}", "brings its own weights; leave --weights out"),
        ("layers --model {teacher} --classes 3", "leave --classes out"),
        ("train --model resnet8 --data digits --device meta --out {new}", "is not available here"),
        ("demo --epochs 1 --seeds 1 --out {other}", "holds a run of 'keyhole train'"),
        ("{hints} --precision fp16 --out {new}", "precision is 'fp16'"),
        ("{hints} --device tpu --out {new}", "Device 'tpu'"),
        ("hints --teacher {teacher} --data digit --out {new}", "Unknown data set 'digit'; nearest known: digits"),
        ("hints --teacher {teacher} --data cifar100 --out {new}", "needs --root"),
        ("hints --teacher {teacher} --data cifar100 --root {new} --out {new}", "cifar-100-python"),
        ("hints --teacher resnet14 --data digits --mean 1,two --out {new}", "--mean is '1,two'"),
        ("hints --teacher resnet14 --data digits --mean 0.5 --std 0 --out {new}", "must be positive"),
        ("{hints} --out {other}", "holds a run of 'keyhole train'"),
        ("{hints} --out {garbage}", "is a file"),
        ("{hints} --out {garbage}/below", "Cannot write"),
        ("train --model resnet9 --data digits --out {new}", "Unknown model 'resnet9'"),
        ("{train} --epochs 4 --out {other}", "epochs is 3 there and 4 now"),
        ("{train} --epochs 3 --out {other}", "finished; its result is"),
        ("train --model resnet8 --data digits --batch-size 5000 --out {new}", "Batch size 5000"),
        ("train --model resnet8 --data digits --holdout 1297 --out {new}", "Cannot hold out 1297"),
        ("train --model resnet8 --data digits --schedule linear --out {new}", "Unknown schedule 'linear'"),
        ("train --model resnet8 --data digits --milestones half --out {new}", "--milestones is 'half'"),
        ("train --model resnet8 --data digits --lr -1 --out {new}", "lr is -1.0"),
        ("train --model resnet8 --data digits --out {garbage}/below", "Cannot write"),
        ("{distill} --out {new} --student resnet7", "Unknown model 'resnet7'"),
        ("{distill} --out {new} --terms ce,kdd", "Unknown term 'kdd'"),
        ("{distill} --out {new} --terms ce,ce", "must name each term once"),
        ("{distill} --out {new} --terms ce,kd=x", "Weight 'x' of term kd"),
        ("{distill} --out {new} --count 9", "Cannot choose 9 hints"),  # by --hints auto, as its terms need some
        ("{distill} --out {new} --hints layer1", "Unknown selector or hint layer 'layer1'"),
        ("{distill} --out {new} --hints stageends", "'stageends'; nearest known: stage-ends"),
        ("{distill} --out {new} --hints auto --count 9", "Cannot choose 9 hints"),
        ("{distill} --out {new} --hints stage-ends --count 4", "4 stage ends"),
        ("{distill} --out {new} --hints stage-ends --match x", "Unknown match"),
        ("{distill} --out {new} --hints {new}/h.json", "Cannot read"),
        ("distill --teacher {teacher} --data digits --out {new} --cohort {new}/arms.toml", "Cannot read"),
        ("distill --teacher {teacher} --data digits --out {new}", "Cannot hold out 5000 of 1297"),
        ("{distill} --out {other}", "holds a run of 'keyhole train'"),
        ("{distill} --out {garbage}/below", "Cannot write"),
        ("evaluate --model {garbage}.safetensors --data digits", "Cannot read"),
        ("evaluate --model resnet14 --weights {garbage} --data digits", "is truncated or no weight file"),
        ("evaluate --model resnet14 --data folder", "needs --root"),
        ("evaluate --model resnet14 --classes 5 --data digits", "10 classes and resnet14 5 outputs"),
        ("evaluate --model resnet14 --data digits --precision half", "half"),
        ("layers --model resnet", "Unknown model 'resnet'"),
        ("layers --model timm:vit_teeny", "Unknown timm model 'vit_teeny'"),
        ("layers --model resnet20 --pattern conv9", "Unknown layer pattern 'conv9'; nearest known: conv1"),
    ],
)
def test_what_goes_wrong_is_one_line(runs: Path, teacher: Path, tmp_path: Path, command: str, told: str) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no weights at all")
    places: dict[str, object] = {"teacher": teacher, "garbage": garbage, "new": tmp_path / "new"}
    places |= {
        "other": runs / "teacher",
        "train": "train --model resnet14 --data digits --precision fp32",
        "hints": f"hints --teacher {teacher} --data digits",
        "distill": f"distill --teacher {teacher} --data digits --holdout 9",
    }
    before = names_in(runs / "teacher")
    assert_one_line(keyhole(*command.format(**places).split()), told)
    assert names_in(tmp_path) == {"garbage"}  # nothing half done is left, so the next try may use the same folder
    assert names_in(runs / "teacher") == before


@pytest.mark.parametrize(
    "command",
    [
        "nonsense",
        "hints --teacher resnet8",
        "train --model resnet8 --out {new} --epochs 0",
        "train --model resnet8 --out {new} --epochs many",
        "train --model resnet8 --out {new} --learning-rate 1",
        "layers",
        "hints --teacher resnet8 --out {new} --batch-size 3",
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, command: str) -> None:
    found = keyhole(*command.format(new=tmp_path / "new").split())
    assert found.code == 1
    assert re.fullmatch(r"Error: .+[.?] See .*keyhole.* --help\.\n", found.err)
    assert not (tmp_path / "new").exists()


def test_a_fixed_command_may_use_the_folder_of_a_failed_one(teacher: Path, tmp_path: Path) -> None:
    command = ("hints", "--teacher", teacher, *DIGITS, "--samples", 50, "--stability", 0, "--out", tmp_path / "run")
    assert keyhole(*command, "--count", 99).code == 1
    assert keyhole(*command, "--count", 2).code == 0


@pytest.mark.parametrize(
    ("command", "code"), [("layers --model resnet8", 0), ("layers --model resnet9", 1), ("layers", 1)]
)
def test_exit_codes_of_the_process(command: str, code: int) -> None:
    running = process(*command.split())
    out, err = running.communicate()
    assert running.returncode == code
    assert bool(out) == (code == 0)
    assert "Traceback" not in err
    assert code != 1 or (err.startswith("Error: ") and err.count("\n") == 1)


def test_hints_that_changed_on_disk_are_another_run(teacher: Path, tmp_path: Path) -> None:
    hints = tmp_path / "hints.json"
    command = ("distill", "--teacher", teacher, *QUICK, "--student", "resnet8", "--hints", hints, "--holdout", 200,
               "--epochs", 50, "--out", tmp_path / "run")  # fmt: skip
    hints.write_text(json.dumps({"teacher": "resnet14", "hints": ["layer1.0", "layer3.0"]}))
    kill_after_a_checkpoint(command, tmp_path / "run")
    hints.write_text(json.dumps({"teacher": "resnet14", "hints": ["layer1.1", "layer3.1"]}))
    assert_one_line(keyhole(*command, "--resume"), "holds another run: files.")


def kill_after_a_checkpoint(command: Sequence[object], out: Path, how: int = signal.SIGKILL) -> tuple[int, str]:
    """Return the exit code and standard error of a run that was killed after it wrote its first checkpoint."""
    running, until = process(*command), time.monotonic() + 120
    while not (out / "checkpoint.safetensors").exists() and running.poll() is None:
        if time.monotonic() > until:
            running.kill()
            pytest.fail(f"no checkpoint in {out} after two minutes")
        time.sleep(0.01)
    running.send_signal(how)
    _, err = running.communicate(timeout=60)
    assert (out / "checkpoint.safetensors").exists(), err
    return running.returncode, err


@pytest.mark.parametrize(
    "written",
    ['{"teacher": "resnet14", "hints": "layer1.0"}', '{"hints": [1, 2]}', '{"hints": [["a"]], "layers": []}', "[]",
     '{"hints": ["layer1.0"], "layers": [3]}', "[" * 100_000],
)  # fmt: skip
def test_a_file_that_is_no_hints_json(teacher: Path, tmp_path: Path, written: str) -> None:
    (tmp_path / "hints.json").write_text(written)
    found = keyhole(
        "distill", "--teacher", teacher, *QUICK, "--student", "resnet8", "--hints", tmp_path / "hints.json",
        "--holdout", 200, "--epochs", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert_one_line(found, "hints.json is no")


def test_a_teacher_without_weights_is_the_same_each_time(tmp_path: Path) -> None:
    def similarity(seed: int, out: str) -> np.ndarray:
        options = ("--samples", 100, "--stability", 0, "--seed", seed, "--out", tmp_path / out)
        assert keyhole("hints", "--teacher", "resnet14", *QUICK, *options).code == 0
        with np.load(tmp_path / out / "similarity.npz") as arrays:
            return np.asarray(arrays["r2_cca"])

    first = similarity(1, "a")
    torch.rand(3)
    assert np.array_equal(first, similarity(1, "b"))
    assert not np.array_equal(first, similarity(2, "c"))


def test_a_batch_of_one_image_with_hints_of_one_pixel(teacher: Path, tmp_path: Path) -> None:
    found = keyhole(
        "distill", "--teacher", teacher, *QUICK, "--student", "resnet8", "--hints", "uniform", "--student-size", 4,
        "--batch-size", 1, "--holdout", 1200, "--epochs", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert found.code == 1
    assert "Error: Arm resnet8: batch norm needs more than one value a channel" in found.err
    assert "Traceback" not in found.err


def test_a_checkpoint_of_something_else(teacher: Path, tmp_path: Path) -> None:
    command = ("train", "--model", "resnet8", *QUICK, "--epochs", 50, "--out", tmp_path / "run")
    kill_after_a_checkpoint(command, tmp_path / "run")
    shutil.copy(teacher, tmp_path / "run" / "checkpoint.safetensors")
    assert_one_line(keyhole(*command, "--resume"), "is no checkpoint of a cohort")


def test_an_arm_with_a_very_long_name_comes_to_an_end(teacher: Path, tmp_path: Path) -> None:
    names = ("x" * 300, "\u5b57" * 120)
    text = "".join(f'[[arm]]\nname = "{name}"\nterms = "ce,kd"\nstudent = "resnet8"\n' for name in names)
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    options = ("--cohort", tmp_path / "c.toml", "--holdout", 200, "--epochs", 1, "--out", tmp_path / "run")
    value = keyhole("distill", "--teacher", teacher, *QUICK, *options, "--json").json
    assert [arm["name"] for arm in value["arms"]] == list(names)


def test_an_arm_that_diverges_costs_the_others_nothing(teacher: Path, tmp_path: Path) -> None:
    arms = ("wild", "ce=1e38"), ("calm", "ce,kd")
    (tmp_path / "c.toml").write_text("".join(f'[[arm]]\nname = "{name}"\nterms = "{terms}"\n' for name, terms in arms))
    found = distill(teacher, tmp_path / "run", "--cohort", tmp_path / "c.toml", "--precision", "fp32")
    assert found.code == 0
    assert [arm["name"] for arm in found.json["arms"]] == ["calm"]
    assert list(found.json["diverged"]) == ["wild"]
    assert "Warning: arm wild diverged and was left out of the rest: " in found.err
    assert sorted(path.parent.name for path in (tmp_path / "run").glob("*/student.safetensors")) == ["1-calm"]
    assert "Diverged, and left out: wild." in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "c.toml").write_text("".join(f'[[arm]]\nname = "{name}"\nterms = "ce=1e38"\n' for name in "ab"))
    lost = distill(teacher, tmp_path / "lost", "--cohort", tmp_path / "c.toml", "--precision", "fp32")
    assert (lost.code, lost.out) == (1, "")
    assert lost.err.splitlines()[-1].startswith("Error: All 2 arms diverged, a among them: ")
    assert not (tmp_path / "lost").exists()  # free for the next try


def test_a_full_standard_output_is_one_line(teacher: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-c", "from keyhole.cli import main; main()", "layers", "--model", str(teacher)]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("hints", "Error: Missing option '--teacher'. See keyhole hints --help.\n"),
        ("faces calibrate --fpir x", "See keyhole faces calibrate --help.\n"),
        ("teach", "Error: No such command 'teach'. Did you mean 'search'? See keyhole --help.\n"),
        ("study a.toml --out b --nope", "See keyhole study --help.\n"),
    ],
)
def test_a_call_that_is_no_call_is_one_line(words: str, told: str) -> None:
    done = subprocess.run([sys.executable, "-m", "keyhole", *words.split()], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.replace("python -m keyhole", "keyhole").endswith(told)
    assert done.stderr.count("\n") == 1


def test_a_question_that_nobody_answers_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyhole", "faces", "models", "--download", "yunet-n-640"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, "KEYHOLE_MODELS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: Stopped at a question.")
    assert "Traceback" not in done.stderr


def test_a_call_without_a_command_shows_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-m", "keyhole"], capture_output=True, text=True)
    assert "distill" in done.stderr
    assert done.returncode == 1


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    command = ("train", "--model", "resnet8", *QUICK, "--epochs", 50, "--out", tmp_path / "run")
    code, err = kill_after_a_checkpoint(command, tmp_path / "run", signal.SIGINT)
    assert code == 130
    assert "goes on with --resume" in err
    assert "Traceback" not in err


def test_a_network_that_prints_does_not_mix_with_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_nets.py").write_text(
        "from torch import nn\n"
        "print('imported')\n"
        "class Loud(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        print('forward')\n"
        "        return super().forward(x)\n"
        "def small(classes):\n"
        "    return Loud(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = keyhole("train", "--model", "loud_nets:small", *QUICK, "--epochs", 1, "--json", "--out", tmp_path / "run")
    assert 0 < found.json["top1"]["last"] < 100
    assert "forward" in found.err


def test_a_file_called_like_a_module_hides_nothing(tmp_path: Path) -> None:
    for name in ("random", "PIL", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hidden')")
    command = [sys.executable, "-P", "-c", "from keyhole.cli import main; main()", "layers", "--model", "resnet8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", ["--out", "--weights", "--root"])
def test_a_path_that_is_too_long_is_one_line(tmp_path: Path, option: str) -> None:
    given = {"--out": tmp_path / "run", "--weights": None, "--root": tmp_path, option: tmp_path / ("x" * 300)}
    options = [part for key, value in given.items() if value is not None for part in (key, value)]
    found = keyhole("hints", "--teacher", "resnet8", "--data", "cifar10", "--precision", "fp32", *options)
    assert found.code == 1
    assert found.err.startswith("Error: ")
    assert "Traceback" not in found.err
    assert found.err.count("\n") == 1


STUDY = """
teacher = "teacher.safetensors"
data = "digits"
seeds = [0, 1]
holdout = 200
baseline = "kd"
[train]
epochs = 1
precision = "fp32"
[[arm]]
name = "kd"
student = "resnet8"
terms = "ce,kd"
[[arm]]
student = "resnet8"
terms = "ce,kd,at"
hints = ["uniform", "last-only"]
count = 2
"""


@pytest.fixture
def study(teacher: Path, tmp_path: Path) -> Path:
    shutil.copy(teacher, tmp_path / "teacher.safetensors")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def test_a_file_of_several_studies_has_a_folder_and_a_report_for_each(study: Path, tmp_path: Path) -> None:
    study.write_text(STUDY.replace("epochs = 1", "epochs = [1, 2]").replace("seeds = [0, 1]", "seeds = [0]"))
    command = ("study", study, "--out", tmp_path / "out", "--device", "cpu", "--json")
    seen = keyhole(*command, "--dry-run").json
    assert {name: each["cells"] for name, each in seen["studies"].items()} == {"epochs 1": 3, "epochs 2": 3}
    value = keyhole(*command).json
    assert [each["setting"]["epochs"] for each in value["studies"].values()] == [1, 2]
    page = (tmp_path / "out" / "report.html").read_text()
    for name, each in value["studies"].items():
        assert each["open_cells"] == 0
        assert f'href="{name.replace(" ", "-")}/report.html"' in page
        assert (tmp_path / "out" / name.replace(" ", "-") / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == value
    shutil.rmtree(tmp_path / "out" / "epochs-2")  # as where the second one has not begun
    found = keyhole(*command, "--report")
    assert list(found.json["studies"]) == ["epochs 1"]
    assert "epochs 2 was not begun, and is left out" in found.err
    shutil.rmtree(tmp_path / "out")
    assert "There is no folder of a study in" in keyhole(*command, "--report").err


def test_a_study_from_its_file_to_its_verdict(study: Path, tmp_path: Path) -> None:
    command = ("study", study, "--out", tmp_path / "out", "--device", "cpu", "--json")
    seen = keyhole(*command, "--dry-run").json
    assert (seen["cells"], seen["done"], seen["passes"]) == (6, 0, 2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    nothing = keyhole(*command, "--report").json
    assert (nothing["open_cells"], nothing["sentence"]) == (6, "Nothing has come to the end yet.")
    assert "give one of them" in keyhole(*command, "--dry-run", "--report").err
    value = keyhole(*command).json
    assert (value["cells"], value["open_cells"], value["finished_now"]) == (6, 0, 6)
    assert [row["arm"] for row in value["rows"]] == ["kd", "uniform", "last-only"]
    assert value["setting"]["teacher"] == "resnet14"
    assert {gap["against"] for gap in value["gaps"]} == {"kd"}
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    assert kept == value
    assert value["sentence"] in keyhole(*command[:-1]).out  # finished: the verdict again
    assert keyhole(*command, "--report").json == {**value, "finished_now": 0}
    assert len((tmp_path / "out" / "result.csv").read_text().splitlines()) == 7
    assert "resnet14 teaches resnet8" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("epochs = 1", "epochs = 2", "another recipe: train.epochs is 1 there and 2 now"),
        ('baseline = "kd"', 'baseline = "kdd"', "Unknown baseline 'kdd'"),
        ("seeds", "seed", "Unknown key of a study 'seed'"),
        ('terms = "ce,kd"', 'terms = "ce,kd"\nname = 3', "is not TOML"),
        ('hints = ["uniform"', 'hints = ["uniform", "uniform"', "Two cells are called 'uniform'"),
        ("teacher.safetensors", "nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line(study: Path, tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "out" / "cells").mkdir(parents=True)
    command = ("study", study, "--out", tmp_path / "out", "--device", "cpu")
    if "recipe" in told:
        assert keyhole(*command).code == 0
    study.write_text(STUDY.replace(old, new, 1))
    found = keyhole(*command)
    assert found.code == 1
    assert told in found.err.splitlines()[-1]
    assert "Traceback" not in found.err


LANDSCAPE = """
teacher = "teacher.safetensors"
data = "digits"
seeds = [0, 1]
holdout = 200
baseline = "kd"
[train]
epochs = 1
batch_size = 256
precision = "fp32"
[[arm]]
name = "kd"
student = "resnet8"
terms = "ce,kd"
[[arm]]
name = "hints"
student = "resnet8"
terms = "ce,kd,at"
hints = "combinations"
count = 2
layers = "layer?.1"
samples = 100
[[arm]]
name = "all"
student = "resnet8"
terms = "ce,kd,at"
hints = "all"
layers = "layer?.1"
"""


def test_a_study_of_all_combinations_tells_the_landscape(teacher: Path, tmp_path: Path) -> None:
    shutil.copy(teacher, tmp_path / "teacher.safetensors")
    (tmp_path / "study.toml").write_text(LANDSCAPE)
    command = ("study", tmp_path / "study.toml", "--out", tmp_path / "out", "--device", "cpu", "--json")
    value = keyhole(*command).json
    (landscape,) = value["landscapes"]
    assert (landscape["name"], len(landscape["combinations"]), landscape["seeds"]) == ("hints", 3, [0, 1])
    assert value["sentence"].startswith("Which layers are taken ")
    named = {name for standing in landscape["standings"] for name in standing["names"]}
    assert {"kmeans r2_cca", "uniform", "stage-ends", "all"} <= named
    page = (tmp_path / "out" / "report.html").read_text()
    assert "All combinations of layers: hints" in page
    assert "Where choices stand" in page
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.t*")}
    assert keyhole(*command, "--report").json == {**value, "finished_now": 0}
    (look,) = (tmp_path / "out").glob("look-*.txt")
    seen = look.read_text()
    look.unlink()
    del files[look]
    told = keyhole(*command, "--report").json  # nobody has looked at the teacher, and a report does not
    assert told["landscapes"][0]["look_s"] is None
    assert told["landscapes"][0]["combinations"] == landscape["combinations"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.t*")} == files
    look.write_text(seen)
    nowhere = keyhole(*command[:3], tmp_path / "nowhere", *command[4:], "--report")
    assert (nowhere.code, (tmp_path / "nowhere").exists()) == (1, False)
    assert "There is no folder" in nowhere.err
    fresh = keyhole("study", tmp_path / "out" / "fresh.toml", "--out", tmp_path / "out2", "--dry-run", "--json").json
    assert fresh["cells"] % 6 == 0
    assert fresh["done"] == 0
    assert keyhole(*command).json["landscapes"] == value["landscapes"]
    (tmp_path / "study.toml").write_text(LANDSCAPE.replace('baseline = "kd"\n', ""))  # the first arm is the usual one
    usual = keyhole(*command, "--report").json["landscapes"][0]["over_baseline"]
    assert usual == landscape["over_baseline"]
    assert usual["against"] == "kd"


def searching(teacher: Path, out: Path, *more: object) -> tuple[object, ...]:
    quick = ("--epochs", 2, "--batch-size", 256, "--holdout", 200, "--layers", "layer?.1", "--count", 2)
    loss = ("--student", "resnet8", "--terms", "ce,at")
    return ("search", "--teacher", teacher, *QUICK, *quick, *loss, "--out", out, *more)


def test_a_search_writes_all_that_it_says(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    value = keyhole(*searching(teacher, out, "--keep", 2, "--json")).json
    assert value == json.loads((out / "search.json").read_text())
    assert (value["combinations"], len(value["tried"]), value["count"]) == (3, 3, 2)
    assert value["cost"]["student_epochs"] == 3 + 1
    assert value["cost"]["passes"] == 2
    page = (out / "report.html").read_text()
    assert "resnet14 teaches resnet8: a search" in page
    assert f"{value['tried'][0]['held_out_top1'][-1]:.2f}" in page
    told = keyhole(*searching(teacher, out, "--keep", 2)).out  # finished: the same again
    assert f"resnet14: learn from {', '.join(value['hints'])}" in told
    assert "4 student epochs (2 students to the end), 2 teacher passes" in told
    taken = keyhole(
        "distill", "--teacher", teacher, *QUICK, "--student", "resnet8", "--terms", "ce,at", "--hints",
        out / "search.json", "--epochs", 1, "--holdout", 200, "--out", tmp_path / "student", "--json",
    ).json  # fmt: skip
    assert [pair["teacher"] for pair in taken["hints"]] == value["hints"]
    fresh = keyhole("study", out / "fresh.toml", "--out", tmp_path / "fresh", "--dry-run", "--json").json
    assert fresh["cells"] == 6 * 6  # no hints, searched, and four rules
    keyhole(*searching(teacher, tmp_path / "seeded", "--method", "random", "--cells", 1, "--seed", 3))
    recipe = json.loads(Board(tmp_path / "seeded", of="search").settle("search", lambda: "{}"))
    assert [recipe[part]["seed"] for part in ("arm", "search", "train")] == [3, 3, 3]


def test_a_search_writes_a_study_that_runs_or_none(teacher: Path, tmp_path: Path) -> None:
    """With more hints than stages there are no stage ends; a study cannot tell another normalization."""
    more = ("--layers", "layer*", "--count", 4, "--method", "random", "--cells", 1, "--epochs", 1)
    found = keyhole(*searching(teacher, tmp_path / "a", *more))
    assert f"keyhole study {tmp_path / 'a' / 'fresh.toml'}" in found.out
    arms = tomllib.loads((tmp_path / "a" / "fresh.toml").read_text())["arm"]
    assert [arm["name"] for arm in arms] == ["no hints", "searched", "cluster centers", "uniform", "random"]
    named = searching(Path("resnet14"), tmp_path / "b", *more, "--mean", 0.5, "--std", 0.25)
    found = keyhole(*named)
    assert found.code == 0, found.err
    assert "No fresh.toml is written: a study file cannot tell --mean" in found.err
    assert "keyhole study" not in found.out
    assert not (tmp_path / "b" / "fresh.toml").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--method", "best"), "Unknown method of search 'best'"),
        (("--method", "random"), "A random search has no budget; give --cells or --passes"),
        (("--method", "all", "--cells", 1), "The budget is too small: 6 student epochs and 2 teacher passes"),
        (("--count", 4), "A search combines a number of layers from 1 to 3; got 4"),
        (("--terms", "ce,kd"), "Terms ce,kd have no use for hints"),
        (("--layers", "layer9*"), "layer9*"),
    ],
)
def test_what_is_wrong_with_a_search_is_one_line(
    teacher: Path, tmp_path: Path, more: tuple[object, ...], told: str
) -> None:
    found = keyhole(*searching(teacher, tmp_path / "out", *more))
    assert found.code == 1
    assert told in found.err.splitlines()[-1]
    assert "Traceback" not in found.err


def test_the_demonstration_writes_all_that_it_says(tmp_path: Path) -> None:
    value = keyhole("demo", "--out", tmp_path / "demo", "--seeds", 2, "--epochs", 1, "--device", "cpu", "--json").json
    assert [len(arm["top1"]) for arm in value["arms"]] == [2] * 4
    written = names_in(tmp_path / "demo")
    assert {"recipe.json", "result.json", "report.html", "teacher.safetensors", "plain.safetensors"} <= set(written)
    assert load(tmp_path / "demo" / "kd-and-chosen-hints.safetensors").classes == 10
    assert "Choose another --out" in keyhole("demo", "--out", tmp_path / "demo").err


# --- ImageNet's form -------------------------------------------------------------------------------------------------


def draw_images(root: Path) -> None:
    """Write 240 drawn images of four classes, disks and boxes in two colors, of many sizes, in ImageNet's form."""
    random = np.random.default_rng(0)
    for part, count in (("train", 48), ("val", 12)):
        for shape in ("disk", "box"):
            for color in ("red", "blue"):
                folder = root / part / f"{color} {shape}"
                folder.mkdir(parents=True)
                for number in range(count):
                    width, height = (int(side) for side in random.integers(70, 120, 2))
                    image = Image.new("RGB", (width, height), tuple(int(v) for v in random.integers(60, 200, 3)))
                    left, top, size = (int(v) for v in random.integers((5, 5, 30), (25, 25, 45)))
                    pen = ImageDraw.Draw(image)
                    draw = pen.ellipse if shape == "disk" else pen.rectangle
                    draw((left, top, left + size, top + size), fill=color)
                    image.save(folder / f"{number}.jpg")


@pytest.mark.slow
def test_a_folder_in_the_form_of_imagenet_from_hints_to_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    draw_images(tmp_path / "images")
    torch.manual_seed(0)
    small = InputSpec((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    weights = tmp_path / "teacher.safetensors"
    save(build("timm:resnet34", classes=4, input=small), weights, half=True)
    where = ("--data", "folder", "--root", tmp_path / "images", "--device", "cpu", "--precision", "fp32")
    teacher = ("--teacher", "timm:resnet34", "--input-size", 64, "--weights", weights)
    options = ("--samples", 150, "--stability", 4, "--batch-size", 50, "--json")
    hints = keyhole("hints", *teacher, *where, *options, "--out", tmp_path / "hints").json
    blocks = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), start=1) for block in range(count)]
    assert [layer["name"] for layer in hints["layers"]] == blocks
    assert (hints["data"], hints["samples"], len(hints["hints"])) == ("folder", 150, 3)
    assert hints["layers"][-1]["channels"] == 512
    chosen = ("--hints", tmp_path / "hints" / "hints.json", "--terms", "ce,kd,hint", "--student", "timm:resnet18")
    training = ("--epochs", 1, "--batch-size", 32, "--holdout", 32, "--lr", 0.01, "--json")
    value = keyhole("distill", *teacher, *where, *chosen, *training, "--out", tmp_path / "run").json
    assert value["images"] == {"train": 160, "held_out": 32, "test": 48}
    assert [pair["teacher"] for pair in value["hints"]] == hints["hints"]
    assert value["parameters"] == build("timm:resnet18", classes=4).parameters
    assert value["teacher"]["parameters"] == build("timm:resnet34", classes=4).parameters
    student = tmp_path / "run" / "student.safetensors"
    assert load(student).input == small
    found = keyhole("evaluate", "--model", student, *where, "--json").json
    assert (found["model"], found["images"]) == ("timm:resnet18", 48)
    assert (found["top1"], found["top5"]) == (value["top1"]["last"], 100.0)


def test_a_network_named_beside_its_weights_sees_what_the_file_says(tmp_path: Path) -> None:
    spec = InputSpec((4, 4), (0.25,), (0.5,))
    torch.manual_seed(3)
    save(build("resnet8", classes=10, input=spec), tmp_path / "small.safetensors")
    whole = keyhole("evaluate", "--model", tmp_path / "small.safetensors", *QUICK, "--json").json
    named = keyhole(
        "evaluate", "--model", "resnet8", "--weights", tmp_path / "small.safetensors", *QUICK, "--json"
    ).json
    assert named["top1"] == whole["top1"]
    opened, _ = open_both("resnet8", NetworkOptions(weights=tmp_path / "small.safetensors"), DataOptions(data="digits"))
    assert opened.input == spec
    given = NetworkOptions(input_size=6, weights=tmp_path / "small.safetensors")
    opened, _ = open_both("resnet8", given, DataOptions(data="digits"))
    assert opened.input == InputSpec((6, 6), spec.mean, spec.std)


def test_a_timm_network_keeps_what_is_not_given_of_its_own_input() -> None:
    pytest.importorskip("timm")
    own = build("timm:resnet18", classes=1).input
    found = input_spec("timm:resnet18", "cifar100", NetworkOptions(input_size=32, mean="0.5,0.5,0.5"))
    assert found == InputSpec((32, 32), (0.5, 0.5, 0.5), own.std)


def test_images_have_one_color_or_three(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    given = ("--input-size", 8, "--mean", ".5,.5", "--std", ".5,.5")
    ran = keyhole(
        "hints", "--teacher", "resnet8", "--data", "folder", "--root", tmp_path, *given, "--out", tmp_path / "o"
    )
    assert ran.code == 1
    assert "Images have 1 or 3 colors, and --mean and --std give 2" in ran.err
