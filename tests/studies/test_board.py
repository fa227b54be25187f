from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from keyhole.errors import DataError, RunError
from keyhole.studies.board import Board

IDS = ["a", "b", "c", "d"]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "study")


def stale(board: Board, cell: str, owner: str, age_s: float) -> None:
    """Leave a lease as an owner on another machine would that was last alive so long ago."""
    path = board.leases / f"{cell}.lease"
    path.write_text(owner)
    before = time.time() - age_s
    os.utime(path, (before, before))


def test_a_finished_cell_is_on_disk(board: Board) -> None:
    assert board.result("a") is None
    board.finish("a", {"recipe": {"lr": 1}, "top1": 3})
    assert Board(board.path).result("a") == {"recipe": {"lr": 1}, "top1": 3}
    assert [path.name for path in board.cells.iterdir()] == ["a.json"]


def test_a_folder_that_another_command_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    for of in ("study", "search"):
        with pytest.raises(RunError, match=f"holds a run, and this is a {of}. Choose another --out"):
            Board(tmp_path / "run", of=of)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]  # and nothing is left in it
    Board(tmp_path / "study").finish("a", {"recipe": {}})
    with pytest.raises(RunError, match="holds a study, and this is a search"):
        Board(tmp_path / "study", of="search")
    Board(tmp_path / "search", of="search").agree("search", {})
    with pytest.raises(RunError, match="holds a search, and this is a study"):
        Board(tmp_path / "search")
    Board(tmp_path / "search", of="search").finish("rung-1-1", {"recipe": {}})
    assert Board(tmp_path / "search", of="search").is_done("rung-1-1")
    assert Board(tmp_path / "study").is_done("a")


def test_cells_are_held_by_one_at_a_time(board: Board) -> None:
    other = Board(board.path)
    with board.hold(IDS, 2) as mine:
        assert mine == ["a", "b"]
        assert other.is_held("a")
        assert not other.is_held("c")
        with other.hold(IDS, 3) as theirs:
            assert theirs == ["c", "d"]
            with Board(board.path).hold(IDS, 4) as nobodys:
                assert nobodys == []
    assert list(board.leases.iterdir()) == []
    with other.hold(IDS, 9) as all_of_them:
        assert all_of_them == IDS


def test_all_or_none(board: Board) -> None:
    other = Board(board.path)
    with board.hold(["b"], 1), other.hold(IDS, 4, least=4) as none:
        assert none == []
        with Board(board.path).hold(["a", "c"], 2, least=2) as rest:  # nothing was kept
            assert rest == ["a", "c"]


def test_what_is_settled_once_stays_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    board = Board(tmp_path, dead_after_s=0.5)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda k: board.settle("precision", lambda: f"choice {k}"), range(16)))
    assert len(found) == 1
    assert board.settle("precision", lambda: "another") == found.pop()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["precision.txt"]
    (tmp_path / "rules.lock").touch()  # of a process that was killed right then
    with pytest.raises(RunError, match=r"rules\.lock was left by a process that was killed"):
        board.settle("rules", lambda: "x")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["precision.txt", "rules.lock"]


def test_a_full_disk_is_no_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    board = Board(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.link", full)
        with pytest.raises(RunError, match=r"No space left on device\. Free space or choose another --out"):
            board.settle("precision", lambda: "fp32")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert board.settle("precision", lambda: "bf16") == "bf16"


def test_a_disk_without_hard_links_that_fills_up_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def full(path: Path, text: str) -> None:
        if path.suffix == ".txt":
            raise RunError(f"Cannot write {path}: No space left on device.")
        path.write_text(text)

    board = Board(tmp_path)
    monkeypatch.setattr("os.link", refused)
    with monkeypatch.context() as patch:
        patch.setattr("keyhole.studies.board.write_text", full)
        with pytest.raises(RunError, match="No space left on device"):
            board.settle("precision", lambda: "fp32")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert board.settle("precision", lambda: "bf16") == "bf16"


def test_a_lock_that_its_owner_let_go_of_is_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, slept = tmp_path / "precision.lock", []

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def waited(_seconds: float) -> None:
        slept.append(lock.exists())
        lock.unlink(missing_ok=True)  # its disk was full

    monkeypatch.setattr("os.link", refused)
    monkeypatch.setattr("keyhole.studies.board.time.sleep", waited)
    board = Board(tmp_path, dead_after_s=0.5)
    lock.touch()
    assert board.settle("precision", lambda: "fp32") == "fp32"
    assert slept == [True]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["precision.txt"]


def test_a_look_leaves_no_trace(tmp_path: Path) -> None:
    board = Board(tmp_path / "study", make=False)
    assert board.result("a") is None
    assert not board.is_done("a")
    assert board.peek("precision", lambda: "fp32") == "fp32"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file; --out must be a folder"):
        Board(tmp_path / "file", make=False)


def test_what_is_settled_once_stays(board: Board) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda k: Board(board.path).settle("precision", lambda: f"choice {k}"), range(16)))
    assert len(found) == 1
    assert board.settle("precision", lambda: "another") == found.pop()


def test_a_folder_belongs_to_what_was_begun_in_it(board: Board) -> None:
    board.agree("search", {"train": {"lr": 0.1}, "sizes": (1, 2)})
    board.agree("search", {"sizes": [1, 2], "train": {"lr": 0.1}})
    with pytest.raises(RunError, match=r"holds another search: train\.lr is 0\.1 there and 0\.2 now"):
        board.agree("search", {"train": {"lr": 0.2}, "sizes": [1, 2]})


def test_an_owner_that_stalled_learns_that_it_lost_a_cell(tmp_path: Path) -> None:
    board = Board(tmp_path, beat_s=0.02)
    with board.hold(["a", "b"], 2) as mine:
        (board.leases / "a.lease").write_text("another 1 0123")
        deadline = time.time() + 20
        while "a" in mine and time.time() < deadline:
            time.sleep(0.02)
        assert mine == ["b"]
    assert (board.leases / "a.lease").read_text() == "another 1 0123"


def test_finished_cells_are_not_held(board: Board) -> None:
    board.finish("b", {"recipe": {}})
    with board.hold(IDS, 2) as mine:
        assert mine == ["a", "c"]


def test_leases_are_released_when_something_goes_wrong(board: Board) -> None:
    def fail() -> None:
        with board.hold(IDS, 2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not board.is_held("a")


@pytest.mark.parametrize(("age_s", "taken"), [(5, False), (80, False), (100, True), (10_000, True)])
def test_the_lease_of_an_owner_that_fell_silent_runs_out(board: Board, age_s: float, taken: bool) -> None:
    stale(board, "a", "another-machine 1 0123", age_s)
    assert board.is_held("a") is not taken
    with board.hold(["a"], 1) as mine:
        assert (mine == ["a"]) is taken
    assert (board.leases / "a.lease").exists() is not taken  # another's lease is not released


def test_the_lease_of_a_process_that_died_here_runs_out_at_once(board: Board) -> None:
    script = "import sys; from pathlib import Path; from keyhole.studies.board import Board; import os, signal\n"
    script += "b = Board(Path(sys.argv[1])); h = b.hold(['a'], 1); h.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", script, str(board.path)], timeout=60)
    assert done.returncode == -9
    assert (board.leases / "a.lease").exists()
    assert not board.is_held("a")
    with board.hold(["a"], 1) as mine:
        assert mine == ["a"]


def test_a_living_owner_keeps_its_leases_alive(tmp_path: Path) -> None:
    board = Board(tmp_path, beat_s=0.02)
    with board.hold(["a"], 1):
        lease = board.leases / "a.lease"
        os.utime(lease, (0, 0))
        deadline = time.time() + 20
        while lease.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert Board(tmp_path).is_held("a")


def test_a_process_of_this_machine_is_alive_as_long_as_it_runs(board: Board) -> None:
    """A machine that slept, or a clock that was set, makes a lease look old."""
    with board.hold(["a"], 1):
        os.utime(board.leases / "a.lease", (0, 0))
        assert Board(board.path).is_held("a")
        machine, process, own = board.owner.split()
        stale(board, "b", f"{machine} {process} 1-{own.partition('-')[2]}", 5)  # another process of that number, before
        assert not board.is_held("b")


def test_a_dead_process_that_nobody_reaped_holds_nothing(board: Board) -> None:
    child = subprocess.Popen([sys.executable, "-c", "print(open('/proc/self/stat').read())"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as told:
        started = told.read().decode().rpartition(")")[2].split()[19]
    deadline = time.time() + 20
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" and time.time() < deadline:
        time.sleep(0.02)
    machine = board.owner.split()[0]
    stale(board, "a", f"{machine} {child.pid} {started}-0123", 1)
    assert not board.is_held("a")
    child.wait()


def test_a_lease_that_is_gone_is_not_ours(tmp_path: Path) -> None:
    board = Board(tmp_path, beat_s=0.02)
    with board.hold(["a", "b"], 2) as mine:
        assert board.owns("a")
        (board.leases / "a.lease").unlink()  # another took it over, came to the end, and released it
        assert not board.owns("a")
        deadline = time.time() + 20
        while "a" in mine and time.time() < deadline:
            time.sleep(0.02)
        assert mine == ["b"]


def test_of_many_that_want_a_dead_owners_cell_one_gets_it(board: Board) -> None:
    for _ in range(20):
        stale(board, "a", "another-machine 1 0123", 1000)
        with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
            boards = [Board(board.path) for _ in range(8)]
            holds = [each.hold(["a"], 1) for each in boards]
            found = list(pool.map(lambda hold: stack.enter_context(hold), holds))
            assert sorted(found, key=len) == [[]] * 7 + [["a"]]


def test_what_a_takeover_left_that_was_killed_is_swept(board: Board) -> None:
    stale(board, "a", "another-machine 1 0123", 1000)
    guard = board.leases / "a.takeover"
    guard.touch()
    with board.hold(["a"], 1) as mine:
        assert mine == []
    assert guard.exists()  # whoever made it may be at it right now
    os.utime(guard, (0, 0))
    with board.hold(["a"], 1) as mine:
        assert mine == []
    assert not guard.exists()
    with board.hold(["a"], 1) as mine:
        assert mine == ["a"]
    assert list(board.leases.iterdir()) == []


def test_a_full_disk_leaves_no_lease_of_nobody(board: Board) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # files can be made, and hold nothing
        with pytest.raises(RunError) as caught, board.hold(IDS, 2):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Free space or choose another --out" in str(caught.value)
    assert list(board.leases.iterdir()) == []
    with Board(board.path).hold(IDS, 2) as theirs:
        assert theirs == ["a", "b"]


def test_a_folder_in_which_nothing_can_be_taken_over_is_told_at_once(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale(board, "a", "another-machine 1 0123", 1000)
    opened = os.open

    def full(path: Path, flags: int, *rest: int) -> int:
        if str(path).endswith(".takeover"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *rest)

    monkeypatch.setattr("os.open", full)
    with pytest.raises(RunError, match="No space left on device"), board.hold(["a"], 1):
        pass


def test_a_cell_that_was_finished_right_before_its_lease_is_not_held(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Board._take

    def late(self: Board, cell: str) -> bool:
        if cell == "a":
            Board(board.path).finish("a", {"recipe": {}})
        return take(self, cell)

    monkeypatch.setattr(Board, "_take", late)
    with board.hold(["a", "b"], 1) as mine:
        assert mine == ["b"]
        assert not board.is_held("a")


def test_a_changed_recipe_names_the_cell_and_the_setting(board: Board) -> None:
    board.finish("a", {"recipe": {"train": {"lr": 0.1, "epochs": 2}, "holdout": 5}})
    board.check_recipes({"a": ("kd, seed 0", {"train": {"lr": 0.1, "epochs": 2}, "holdout": 5}), "b": ("x", {})})
    with pytest.raises(RunError) as caught:
        board.check_recipes({"a": ("kd, seed 0", {"train": {"lr": 0.2, "epochs": 2}, "holdout": 5})})
    assert "holds cell 'kd, seed 0' of another recipe: train.lr is 0.1 there and 0.2 now" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"recipe": 3}'])
def test_a_file_that_is_no_result_is_one_line(board: Board, text: str) -> None:
    (board.cells / "a.json").write_text(text)
    with pytest.raises(RunError, match="is no result of a cell"):
        board.result("a")


def test_a_damaged_result_is_to_be_removed_not_written(board: Board) -> None:
    (board.cells / "a.json").write_text('{"recipe"')
    with pytest.raises(DataError, match=r"a\.json is not JSON \(.*\)\. Remove it to run the cell again\.$"):
        board.result("a")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose another --out"):
        Board(tmp_path / "file" / "study")


def test_a_recipe_that_told_less_is_still_that_recipe(tmp_path: Path) -> None:
    """Cells of a folder that were finished before recipes told its files."""
    board = Board(tmp_path)
    old = {"data": "folder", "holdout": 5}
    board.finish("a", {"recipe": old})
    now = {**old, "data_sha256": {"train": "12"}}
    board.check_recipes({"a": ("a", now)})
    board.agree("search", old)
    board.agree("search", now)
    board.finish("b", {"recipe": now})
    with pytest.raises(RunError, match=r"another recipe: data_sha256\.train is"):
        board.check_recipes({"b": ("b", {**now, "data_sha256": {"train": "13"}})})
