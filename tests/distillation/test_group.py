"""Two processes that train together, as torchrun starts them, against one process with batches twice as large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import grouped
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.group import ALONE, Group, join_group
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.training import fit
from keyhole.errors import SettingError
from keyhole.files import read_tensors
from keyhole.models.zoo import load

HERE = Path(__file__).resolve().parents[1]


def torchrun(*command: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return subprocess.run([*start, *map(str, command)], capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found in all of the cases of grouped.py."""
    folder = tmp_path_factory.mktemp("together")
    ran = torchrun(HERE / "grouped.py", folder)
    assert ran.returncode == 0, ran.stderr
    assert len(list(folder.glob("*.json"))) == 2  # one of each process
    return folder


def found(folder: Path, rank: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    return value


@pytest.mark.parametrize("case", ["one", "several", "balanced"])
def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(together: Path, case: str) -> None:
    cohort = grouped.CASES[case](ALONE, 2 * grouped.BATCH)
    alone = fit(cohort, grouped.split(), grouped.split().subset(range(9)))
    tensors, values = read_tensors(together / f"{case}.safetensors")
    assert len(alone.outcomes) == len(values["history"])
    for i, outcome in enumerate(alone.outcomes):
        start = grouped.started(cohort, i)
        for name, tensor in outcome.last.module.state_dict().items():
            moved = float((tensor - start[name]).abs().max())
            assert moved > 1e-3
            torch.testing.assert_close(tensors[f"{i}.{name}"], tensor, rtol=1e-4, atol=1e-3 * moved)
        for one, other in zip(outcome.history, values["history"][i], strict=True):
            assert other.pop("scales", {}) == pytest.approx(one.pop("scales", {}), rel=1e-4)
            assert other == pytest.approx(one, rel=1e-4)


def test_all_processes_end_with_the_very_same_result(together: Path) -> None:
    one, other = found(together, 0), found(together, 1)
    assert one["ends"] == other["ends"]
    assert set(one["ends"]) == {"one", "several", "balanced", "norm", "dropout"}


def test_weights_that_are_used_at_times_stay_alike_in_all_processes(together: Path) -> None:
    one, other = found(together, 0)["owned"]
    assert one == other


def test_every_image_of_a_step_is_seen_by_one_process(together: Path) -> None:
    one, other = (found(together, rank)["seen"] for rank in (0, 1))
    for epoch in (0, 1):
        batches = grouped.split().training_batches(2 * grouped.BATCH, seed=0, epoch=epoch)
        whole = [batch.indices.tolist() for batch in batches]
        assert [a + b for a, b in zip(one[epoch], other[epoch], strict=True)] == whole
        assert len({index for step in whole for index in step}) == len(whole) * 2 * grouped.BATCH
    assert one[0] != one[1]


def test_a_student_learns_what_it_learns_in_distributed_data_parallel() -> None:
    ran = torchrun(HERE / "distillation" / "beside_ddp.py")
    assert ran.returncode == 0, ran.stderr


def test_statistics_of_batch_norm_stay_with_their_process_on_processors(together: Path) -> None:
    one, other = (found(together, rank)["statistics"] for rank in (0, 1))
    assert one != other


def test_a_run_of_two_processes_goes_on_where_it_was_killed(together: Path) -> None:
    for rank in (0, 1):
        assert found(together, rank)["resumed"] == found(together, rank)["whole"]
        assert found(together, rank)["earlier"] > 0
    assert found(together, 0)["records"] == [1, 2]
    assert found(together, 1)["records"] == []


def test_what_the_first_process_makes_is_told_to_all(together: Path) -> None:
    assert [found(together, rank)["told"] for rank in (0, 1)] == [["made by", 0]] * 2


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("settings", "Process 1 has batch_size 5, process 0 has 4. Start all of them with the same command"),
        ("images", "Process 1 has training images 47, process 0 has 48."),
        ("large", "Batch size 25 in each of 2 processes is above the 48 training images; lower it."),
        ("crd", "term crd keeps a memory of images, which one process must fill."),
        ("queue", "term grouped:Queue keeps something from step to step, which one process must fill."),
        ("checkpoint", "was made with processes 1, not with processes 2. Use the old settings or start anew."),
        ("first", "Only the first process knows."),
        ("wild", "Arm ce: "),
    ],
)
def test_uneven_settings_are_one_line_in_every_process(together: Path, case: str, told: str) -> None:
    for rank in (0, 1):
        message = found(together, rank)["errors"][case]
        assert told in message
        assert len(message.splitlines()) == 1


# The command line


TRAIN = ("--data", "digits", "--precision", "fp32", "--device", "cpu", "--epochs", 1, "--holdout", 97, "--json")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("cli")
    arms = "".join(f'[[arm]]\nname = "{terms}"\nterms = "{terms}"\nstudent = "resnet8"\n' for terms in ("ce", "ce,kd"))
    (folder / "cohort.toml").write_text(arms)
    options = ("--teacher", "resnet14", "--cohort", folder / "cohort.toml", "--batch-size", 32, *TRAIN)
    return folder / "run", torchrun("-m", "keyhole", "distill", *options, "--out", folder / "run")


def test_a_cohort_distilled_by_two_processes(distilled: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, ran = distilled
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()  # printed once
    value = json.loads(line)
    assert value["processes"] == 2
    assert [arm["name"] for arm in value["arms"]] == ["ce", "ce,kd"]
    assert json.loads((out / "result.json").read_text()) == value
    names = {"recipe.json", "result.json", "log.jsonl", "report.html", "teacher-sha256.txt", "0-ce", "1-ce-kd"}
    assert {path.name for path in out.iterdir()} == names
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "recipe.json").read_text())["arguments"]["processes"] == 2
    assert load(out / "0-ce" / "student.safetensors").classes == 10
    assert ran.stderr.count("held out") == 2


def test_a_setting_that_does_not_fit_is_told_once(tmp_path: Path) -> None:
    command = ("-m", "keyhole", "train", "--model", "resnet8", *TRAIN, "--batch-size", 601, "--out", tmp_path / "run")
    ran = torchrun(*command)
    assert ran.returncode == 1
    told = [line for line in ran.stderr.splitlines() if "above the 1200 training images" in line]
    assert len(told) == 1
    assert told[0].endswith("Error: Batch size 601 in each of 2 processes is above the 1200 training images; lower it.")
    assert 'Traceback (most recent call last):\n  File "' + str(HERE) not in ran.stderr
    assert not (tmp_path / "run" / "recipe.json").exists()


# Without torchrun


def test_a_process_of_its_own_is_alone() -> None:
    with join_group("cpu") as group:
        assert group == Group()
        assert group.broadcast(lambda: 3) == 3
        assert group.gathered(3) == [3]
        tensor = torch.ones(2)
        group.average([tensor])
        assert torch.equal(tensor, torch.ones(2))
        group.check_same({"a": 1})


def test_one_gpu_cannot_serve_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="--device cuda:0 names one GPU for several processes"), join_group("cuda:0"):
        pass


def test_a_single_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with join_group("cpu") as group:
        assert group == ALONE


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from keyhole.distillation import group

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(group, "choose_device", lambda _name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingError, match="2 processes on a machine with 1 GPUs; start at most 1, or --device cpu"):
        group._place("cuda")


@pytest.mark.parametrize(("device", "shared"), [("cuda", True), ("cpu", False)])
def test_batch_norm_is_shared_on_gpus_alone(device: str, shared: bool) -> None:
    network = grouped.network("resnet8")
    names = set(network.module.state_dict())
    module = Group(0, 2, torch.device(device)).share_statistics(network.module)
    kinds = {type(part) for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm if shared else nn.BatchNorm2d}
    assert set(module.state_dict()) == names
    assert Group(0, 1, torch.device("cuda")).share_statistics(nn.BatchNorm2d(3)).__class__ is nn.BatchNorm2d


def test_a_term_with_a_memory_and_one_process_go_together() -> None:
    arm = replace(grouped.arm("ce", "resnet8"), terms=parse_terms("ce,crd"))
    Cohort([arm], grouped.config(4), classes=3, teacher=grouped.network("resnet8"), train=grouped.split(), group=ALONE)
