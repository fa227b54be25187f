"""A run folder: it says what is run, keeps what a killed run needs, and never mixes two runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhole.distillation.group import ALONE, Group
from keyhole.errors import RunError
from keyhole.files import append_line, read_json, sweep, write_json, write_text
from keyhole.runtime import describe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_RECIPE, _LOCK, _MACHINE = "recipe.json", ".keyhole-lock", "machine"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder.
        resumed: Whether an earlier process began the run.
    """

    path: Path
    resumed: bool

    @property
    def checkpoint(self) -> Path:
        """Where the state of an unfinished run is kept."""
        return self.path / "checkpoint.safetensors"

    @property
    def log(self) -> Path:
        """One JSON record a line, one line an arm and epoch."""
        return self.path / "log.jsonl"

    def settle(self, name: str, choose: Callable[[], str]) -> str:
        """Return what was chosen under a name when the run began; a resumed run chooses nothing anew.

        Args:
            name: Of the choice; its file is called so.
            choose: Makes it where it was not made yet.
        """
        path = self.path / f"{name}.txt"
        if not path.is_file():
            write_text(path, choose())
        return path.read_text(encoding="utf-8")

    def check(self, name: str, value: str, what: str) -> None:
        """Check that something is what it was when the run began.

        Args:
            name: Of its file, with a hyphen.
            value: What stands for it, such as a checksum.
            what: How the error calls it.

        Raises:
            RunError: It is another one.
        """
        if self.settle(name, lambda: value) != value:
            raise RunError(f"{self.path} was begun with another {what}. Give that one again, or choose another --out.")

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record to the log."""
        append_line(self.log, json.dumps(dict(record)))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the log; of an epoch that a resumed run did again, the last ones."""
        if not self.log.is_file():
            return []
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [record for line in lines if (record := _record(line)) is not None]
        return list({(record.get("arm"), record.get("epoch")): record for record in found}.values())


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # the process was killed while it wrote this line; the epoch was done again
        return None
    if not isinstance(value, dict) or not isinstance(value.get("arm"), str) or not isinstance(value.get("epoch"), int):
        return None
    return value


@contextmanager
def open_run(
    out: Path, command: str, arguments: Mapping[str, Any], *, resume: bool = False, group: Group = ALONE
) -> Iterator[RunFolder]:
    """Open the folder of a run and write its recipe: command, arguments, versions, source state, hardware.

    Where the run fails before it kept anything but choices, the recipe is taken back, so that the folder is free for
    the next try; one that was made for it goes as well. A run that goes on elsewhere adds where that is.

    Args:
        out: The folder; made when missing.
        command: What is run.
        arguments: All that decides the result, as JSON values; what stands under ``machine`` is kept with it but may
            differ when the run is resumed.
        resume: Go on with a run that is there already.
        group: The processes that run it together; the first one opens the folder, and alone may write to it.

    Raises:
        RunError: The folder cannot be written, holds another run, holds this one and ``resume`` is off, holds
            files that are no run, or another process is at work in it.
    """
    if group.count > 1:
        arguments = {**arguments, "processes": group.count}
    with ExitStack() as stack:
        yield group.broadcast(lambda: stack.enter_context(_held(out, command, arguments, resume=resume)))


@contextmanager
def _held(out: Path, command: str, arguments: Mapping[str, Any], *, resume: bool) -> Iterator[RunFolder]:
    with _locked(out):
        run = _opened(out, command, arguments, resume=resume)
        try:
            yield run
        except Exception:  # memory that ran out among them: the next try has other settings
            chosen = {path.name for path in out.glob("*-*.txt")}
            if not run.resumed and {path.name for path in out.iterdir()} == {_RECIPE, _LOCK, *chosen}:
                for name in (*chosen, _RECIPE):
                    (out / name).unlink()
            raise


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go of it when this one ends, however it ends."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder. Choose another --out.")
    lock, missing = out / _LOCK, [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise RunError(f"Cannot write to {out}: {error.strerror}. Choose another --out.") from error
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    raise BlockingIOError  # its owner ended in between, and another made the file anew
        except (BlockingIOError, FileNotFoundError) as error:
            raise RunError(f"Another process is at work in {out}. Wait for it, or choose another --out.") from error
        except OSError:  # a disk without locks
            pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # a folder that holds something stays, and so do those around it
                for folder in missing:
                    folder.rmdir()


def _opened(out: Path, command: str, arguments: Mapping[str, Any], *, resume: bool) -> RunFolder:
    recipe = json.loads(json.dumps({"command": command, "arguments": dict(arguments)}))
    if (out / _RECIPE).is_file():
        _check_same(out, recipe)
        if (out / "result.json").is_file():
            raise RunError(
                f"{out} holds this run, finished; its result is {out / 'result.json'}. Choose another --out."
            )
        if not resume:
            raise RunError(f"{out} holds this run, unfinished. Add --resume to go on, or choose another --out.")
        run = RunFolder(out, resumed=True)
        _sweep(run)
        _add_environment(out / _RECIPE)
        return run
    for half in out.glob(f".{_RECIPE}.*.part"):  # of a process that was killed while it wrote the recipe
        half.unlink(missing_ok=True)
    if others := sorted(path.name for path in out.iterdir() if path.name != _LOCK):
        raise RunError(f"{out} is not empty and holds no run ({others[0]}). Choose another --out.")
    write_json(out / _RECIPE, {**recipe, "environment": describe()})
    return RunFolder(out, resumed=False)


def _add_environment(recipe: Path) -> None:
    """Put down where the run goes on, where that is not where it was; what was there stays, the latest comes last."""
    value, now = read_json(recipe), describe()
    seen = [value.get("environment"), *value.get("later_environments", [])]
    if seen[-1] != now:
        write_json(recipe, {**value, "later_environments": [*seen[1:], now]})


def _sweep(run: RunFolder) -> None:
    """Remove what a process left that was killed while it wrote: half a line, and files that were not yet whole."""
    if run.log.is_file() and not run.log.read_bytes().endswith(b"\n"):
        append_line(run.log, "")
    sweep(run.path)


def _check_same(out: Path, recipe: Mapping[str, Any]) -> None:
    old = read_json(out / _RECIPE)
    if not isinstance(old, dict) or not isinstance(old.get("arguments"), dict):
        raise RunError(f"{out / _RECIPE} is no recipe of Keyhole. Choose another --out.")
    if old.get("command") != recipe["command"]:
        raise RunError(f"{out} holds a run of 'keyhole {old.get('command')}'. Choose another --out.")
    before, now = (
        {"processes": 1} | {k: v for k, v in each["arguments"].items() if k != _MACHINE} for each in (old, recipe)
    )
    if isinstance(before.get("files"), dict) and isinstance(now.get("files"), dict):
        # an earlier version did not tell of all files; that another one is named shows in the option that names it
        now = {**now, "files": {name: digest for name, digest in now["files"].items() if name in before["files"]}}
    if before != now:
        raise RunError(f"{out} holds another run: {difference(before, now)}. Choose another --out.")


def difference(old: Mapping[str, Any], new: Mapping[str, Any], *, inside: str = "") -> str:
    """Return the first setting that differs between two recipes, in words.

    Args:
        old: The recipe that is there.
        new: The recipe as it is now.
        inside: What stands before the names.

    Example:
        >>> difference({"train": {"lr": 0.1}}, {"train": {"lr": 0.2}})
        'train.lr is 0.1 there and 0.2 now'
    """
    key = next((key for key in (*old, *new) if old.get(key) != new.get(key)), None)
    if key is None:
        return "one of the two tells a setting that the other does not"
    a, b = old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
        return difference(a, b, inside=f"{inside}{key}.")
    shown = ("not given" if value is None else json.dumps(value, ensure_ascii=False) for value in (a, b))
    return "{} is {} there and {} now".format(f"{inside}{key}", *shown)
