"""A run folder: it says what is run, keeps what a killed run needs, and never mixes two runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyhole.errors import RunError
from keyhole.files import append_line, read_json, write_json
from keyhole.runtime import describe


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
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return list({(record.get("arm"), record.get("epoch")): record for record in found}.values())


def open_run(out: Path, command: str, arguments: Mapping[str, Any], *, resume: bool = False) -> RunFolder:
    """Open the folder of a run and write its recipe: command, arguments, versions, source state, hardware.

    Args:
        out: The folder; made when missing.
        command: What is run.
        arguments: All that decides the result, as JSON values.
        resume: Go on with a run that is there already.

    Raises:
        RunError: The folder cannot be written, holds another run, holds this one and ``resume`` is off, or holds
            files that are no run.
    """
    recipe_file = out / "recipe.json"
    told = json.loads(json.dumps({"command": command, "arguments": dict(arguments)}))
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must be a folder. Choose another --out.")
    if recipe_file.is_file():
        old = read_json(recipe_file)
        if old.get("command") != command:
            raise RunError(f"{out} holds a run of 'keyhole {old.get('command')}'. Choose another --out.")
        if old.get("arguments") != told["arguments"]:
            raise RunError(
                f"{out} holds another run: {_difference(old['arguments'], told['arguments'])}. Choose another --out."
            )
        if (out / "result.json").is_file():
            raise RunError(
                f"{out} holds this run, finished; its result is {out / 'result.json'}. Choose another --out."
            )
        if not resume:
            raise RunError(f"{out} holds this run, unfinished. Add --resume to go on, or choose another --out.")
        return RunFolder(out, resumed=True)
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out} is not empty and holds no run ({next(out.iterdir()).name}). Choose another --out.")
    write_json(recipe_file, {**told, "environment": describe()})
    return RunFolder(out, resumed=False)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    key = next(key for key in (*old, *new) if old.get(key) != new.get(key))
    return f"{key} is {old.get(key)!r} there and {new.get(key)!r} now"
