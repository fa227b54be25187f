"""A run folder: what it refuses, what it keeps, and what a killed process may leave in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from keyhole.errors import DataError, DivergenceError, RunError, SettingError
from keyhole.runs import RunFolder, open_run

ARGUMENTS = {"teacher": "resnet56", "epochs": 3, "mean": None}


def begin(out: Path, *, resume: bool = False, command: str = "train", **changes: object) -> RunFolder:
    with open_run(out, command, ARGUMENTS | changes, resume=resume) as run:
        return run


def refused(out: Path, *, resume: bool = False, command: str = "train", **changes: object) -> str:
    with pytest.raises(RunError) as caught:
        begin(out, resume=resume, command=command, **changes)
    message = str(caught.value)
    assert str(out) in message
    assert "\n" not in message
    return message


def test_a_fresh_run_writes_its_recipe(tmp_path: Path) -> None:
    run = begin(tmp_path / "a" / "b")
    assert not run.resumed
    recipe = json.loads((run.path / "recipe.json").read_text())
    assert recipe["command"] == "train"
    assert recipe["arguments"] == ARGUMENTS
    assert recipe["environment"]["torch"]
    assert [path.name for path in run.path.iterdir()] == ["recipe.json"]
    assert run.records() == []


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert not begin(tmp_path, resume=True).resumed


def test_an_unfinished_run_goes_on_only_when_asked_to(tmp_path: Path) -> None:
    recipe = begin(tmp_path).path / "recipe.json"
    before = recipe.read_text()
    assert "Add --resume to go on" in refused(tmp_path)
    assert begin(tmp_path, resume=True).resumed
    assert recipe.read_text() == before


def test_a_choice_is_made_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    run = begin(tmp_path)
    assert run.settle("pairs", lambda: "a -> b") == "a -> b"
    assert begin(tmp_path, resume=True).settle("pairs", lambda: "never") == "a -> b"
    assert (tmp_path / "pairs.txt").read_text() == "a -> b"


def test_a_finished_run_is_never_touched(tmp_path: Path) -> None:
    (begin(tmp_path).path / "result.json").write_text("{}")
    for resume in (False, True):
        message = refused(tmp_path, resume=resume)
        assert "finished" in message
        assert "unfinished" not in message


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 4}, "epochs is 3 there and 4 now"),
        ({"mean": "0.5"}, 'mean is not given there and "0.5" now'),
        ({"extra": 1}, "extra is not given there and 1 now"),
    ],
)
def test_other_arguments_are_another_run(tmp_path: Path, resume: bool, changes: dict[str, object], told: str) -> None:
    begin(tmp_path)
    assert told in refused(tmp_path, resume=resume, **changes)


def test_another_command_is_another_run(tmp_path: Path) -> None:
    begin(tmp_path)
    assert "a run of 'keyhole train'" in refused(tmp_path, resume=True, command="distill")


def test_arguments_are_compared_as_json_holds_them(tmp_path: Path) -> None:
    begin(tmp_path, size=(8, 8))
    assert begin(tmp_path, resume=True, size=[8, 8]).resumed


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(tmp_path / "file")
    assert "Cannot write" in refused(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("")
    assert "holds no run (holiday.jpg)" in refused(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("content", ["[]", "3", '{"command": "train"}', '{"arguments": []}'])
def test_a_recipe_of_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.json").write_text(content)
    assert "no recipe of Keyhole" in refused(tmp_path, resume=True)


def test_a_recipe_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"comm')
    with pytest.raises(DataError, match="is not JSON"):
        begin(tmp_path)


def test_a_run_that_fails_before_it_kept_anything_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(SettingError), open_run(tmp_path / "run", "train", ARGUMENTS):
        raise SettingError("No such thing.")
    assert not begin(tmp_path / "run", epochs=4).resumed


@pytest.mark.parametrize("error", [SettingError("No such thing."), MemoryError(), RuntimeError("out of memory")])
def test_choices_of_a_run_that_fails_at_once_do_not_hold_the_folder(tmp_path: Path, error: Exception) -> None:
    def fail() -> None:
        with open_run(tmp_path / "run", "train", ARGUMENTS) as run:
            run.settle("hints-0123", lambda: "a")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert not (tmp_path / "run").exists()
    assert not begin(tmp_path / "run", epochs=4).resumed


def test_of_a_run_that_fails_at_once_only_folders_that_it_made_go(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "mine", tmp_path / "mine" / "of today" / "run"):
        with pytest.raises(SettingError), open_run(out, "train", ARGUMENTS):
            raise SettingError("No such thing.")
        assert not list((tmp_path / "mine").iterdir())
    (tmp_path / "mine" / "note.txt").write_text("kept")
    with pytest.raises(RunError, match="is not empty"):
        begin(tmp_path / "mine")
    assert (tmp_path / "mine" / "note.txt").read_text() == "kept"


def test_a_recipe_that_was_not_yet_whole_does_not_hold_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".recipe.json.abc.part").write_text('{"comm')
    assert not begin(tmp_path).resumed
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads((begin(tmp_path).path / "recipe.json").read_text())
    for name in ("b", "b", "c"):
        monkeypatch.setattr("keyhole.runs.describe", lambda name=name: {"processor": name})
        begin(tmp_path, resume=True)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["environment"] == first["environment"]
    assert recipe["later_environments"] == [{"processor": "b"}, {"processor": "c"}]


def test_a_run_that_fails_later_stays(tmp_path: Path) -> None:
    def diverge() -> None:
        with open_run(tmp_path, "train", ARGUMENTS) as run:
            run.append({"arm": "a", "epoch": 1})
            raise DivergenceError("The loss is nan.")

    with pytest.raises(DivergenceError):
        diverge()
    assert begin(tmp_path, resume=True).records() == [{"arm": "a", "epoch": 1}]


def test_a_resumed_run_that_fails_stays(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(SettingError), open_run(tmp_path, "train", ARGUMENTS, resume=True):
        raise SettingError("No such thing.")
    assert begin(tmp_path, resume=True).resumed


def test_an_interrupt_leaves_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "train", ARGUMENTS):
        raise KeyboardInterrupt
    assert begin(tmp_path, resume=True).resumed


def test_of_an_epoch_that_was_done_again_the_last_record_counts(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for arm, epoch, loss in [("a", 1, 5.0), ("b", 1, 6.0), ("a", 2, 4.0), ("a", 2, 3.5), ("b", 2, 4.5)]:
        run.append({"arm": arm, "epoch": epoch, "loss": loss})
    assert [(r["arm"], r["epoch"], r["loss"]) for r in run.records()] == [
        ("a", 1, 5.0),
        ("b", 1, 6.0),
        ("a", 2, 3.5),
        ("b", 2, 4.5),
    ]
    assert len(run.log.read_text().splitlines()) == 5


def test_half_a_line_of_a_killed_process_harms_no_other_line(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.append({"arm": "a", "epoch": 1})
    run.append({"arm": "a", "epoch": 2})
    run.log.write_bytes(run.log.read_bytes()[:-10])
    again = begin(tmp_path, resume=True)
    assert again.records() == [{"arm": "a", "epoch": 1}]
    again.append({"arm": "a", "epoch": 2})
    assert again.records() == [{"arm": "a", "epoch": 1}, {"arm": "a", "epoch": 2}]


def test_files_that_a_killed_process_did_not_finish_go_when_the_run_goes_on(tmp_path: Path) -> None:
    begin(tmp_path)
    kept = {"checkpoint.safetensors", ".mine", "notes.part"}
    for name in (".checkpoint.safetensors.a1b2.part", ".tmpAb3dEf", *kept):
        (tmp_path / name).write_text("")
    assert "Add --resume" in refused(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    begin(tmp_path, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", *kept}


def test_two_processes_are_not_at_work_in_one_folder(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from keyhole.runs import open_run\n"
    script += "with open_run(Path(sys.argv[1]), 'train', {}, resume=True): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        assert "Another process is at work in" in refused(tmp_path / "run", resume=True)
        first.kill()
    with open_run(tmp_path / "run", "train", {}, resume=True) as run:  # the system released it
        assert run.resumed
    assert [path.name for path in run.path.iterdir()] == ["recipe.json"]


def test_a_lock_whose_file_goes_meanwhile_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".keyhole-lock"
    monkeypatch.setattr("keyhole.runs.fcntl.flock", lambda *_: lock.unlink())
    assert "Another process is at work" in refused(tmp_path)


def test_a_run_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    begin(tmp_path)
    with open_run(tmp_path, "train", ARGUMENTS, resume=True) as run:
        run.check("teacher-sha256", "12", "teacher")
        run.check("teacher-sha256", "12", "teacher")
        with pytest.raises(RunError, match="was begun with another teacher"):
            run.check("teacher-sha256", "13", "teacher")


def test_a_run_of_an_earlier_version_that_told_of_fewer_files_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, files={"a.pt": "12"})
    assert begin(tmp_path, resume=True, files={"a.pt": "12", "b.pt": "13"}).resumed
    assert "files.a.pt" in refused(tmp_path, resume=True, files={"a.pt": "14", "b.pt": "13"})


def test_what_stands_under_machine_may_differ(tmp_path: Path) -> None:
    begin(tmp_path / "run", machine={"device": "cuda"})
    assert begin(tmp_path / "run", resume=True, machine={"device": "cpu"}).resumed
    assert "holds another run" in refused(tmp_path / "run", resume=True, epochs=4)


def test_lines_of_a_log_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.append({"arm": "a", "epoch": 1, "loss": 2.0})
    with run.log.open("ab") as file:
        file.write(b'\xff\xfe\n{"x": 1}\n{"arm": [], "epoch": 1}\n[]\n')
    run.append({"arm": "a", "epoch": 2, "loss": 1.0})
    assert [record["epoch"] for record in run.records()] == [1, 2]


def test_a_run_goes_on_with_as_many_processes_as_it_began_with(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", "train", {"processes": 2}):
        pass
    with (
        pytest.raises(RunError, match="holds another run: processes is 2 there and 1 now"),
        open_run(tmp_path / "run", "train", {}, resume=True),
    ):
        pass
