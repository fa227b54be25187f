"""A run folder: it says what is run, keeps what a killed run needs, and never mixes two runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhole.errors import KeyholeError, RunError
from keyhole.files import append_line, read_json, write_json
from keyhole.runtime import describe

_RECIPE = "recipe.json"


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

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record to the log."""
        append_line(self.log, json.dumps(dict(record)))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the log; of an epoch that a resumed run did again, the last ones."""
        if not self.log.is_file():
            return []
        lines = self.log.read_text(encoding="utf-8").splitlines()
        found = [record for line in lines if (record := _record(line)) is not None]
        return list({(record.get("arm"), record.get("epoch")): record for record in found}.values())


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # the process was killed while it wrote this line; the epoch was done again
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def open_run(out: Path, command: str, arguments: Mapping[str, Any], *, resume: bool = False) -> Iterator[RunFolder]:
    """Open the folder of a run and write its recipe: command, arguments, versions, source state, hardware.

    Where the run fails before it kept anything, the recipe is taken back, so that the folder is free for the next try.

    Args:
        out: The folder; made when missing.
        command: What is run.
        arguments: All that decides the result, as JSON values.
        resume: Go on with a run that is there already.

    Raises:
        RunError: The folder cannot be written, holds another run, holds this one and ``resume`` is off, or holds
            files that are no run.
    """
    run = _opened(out, command, arguments, resume=resume)
    try:
        yield run
    except KeyholeError:
        if not run.resumed and [path.name for path in out.iterdir()] == [_RECIPE]:
            (out / _RECIPE).unlink()
        raise


def _opened(out: Path, command: str, arguments: Mapping[str, Any], *, resume: bool) -> RunFolder:
    told = json.loads(json.dumps({"command": command, "arguments": dict(arguments)}))
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder. Choose another --out.")
    if (out / _RECIPE).is_file():
        _check_same(out, told)
        if (out / "result.json").is_file():
            raise RunError(
                f"{out} holds this run, finished; its result is {out / 'result.json'}. Choose another --out."
            )
        if not resume:
            raise RunError(f"{out} holds this run, unfinished. Add --resume to go on, or choose another --out.")
        run = RunFolder(out, resumed=True)
        _sweep(run)
        return run
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out} is not empty and holds no run ({next(out.iterdir()).name}). Choose another --out.")
    write_json(out / _RECIPE, {**told, "environment": describe()})
    return RunFolder(out, resumed=False)


def _sweep(run: RunFolder) -> None:
    """Remove what a process left that was killed while it wrote: half a line, and files that were not yet whole."""
    if run.log.is_file() and not run.log.read_bytes().endswith(b"\n"):
        append_line(run.log, "")
    for pattern in (".*.part", ".tmp??????"):  # of keyhole.files and of safetensors
        for path in run.path.glob(pattern):
            path.unlink(missing_ok=True)


def _check_same(out: Path, told: Mapping[str, Any]) -> None:
    old = read_json(out / _RECIPE)
    if not isinstance(old, dict) or not isinstance(old.get("arguments"), dict):
        raise RunError(f"{out / _RECIPE} is no recipe of Keyhole. Choose another --out.")
    if old.get("command") != told["command"]:
        raise RunError(f"{out} holds a run of 'keyhole {old.get('command')}'. Choose another --out.")
    if old["arguments"] != told["arguments"]:
        raise RunError(
            f"{out} holds another run: {_difference(old['arguments'], told['arguments'])}. Choose another --out."
        )


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    key = next(key for key in (*old, *new) if old.get(key) != new.get(key))
    return f"{key} is {old.get(key)!r} there and {new.get(key)!r} now"
