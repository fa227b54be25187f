"""``keyhole study``: a grid of students under equal conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o
from keyhole.errors import SettingError

if TYPE_CHECKING:
    from keyhole.data.sources import Data
    from keyhole.models.network import Network
    from keyhole.studies.plan import Study

    _Opened = tuple[Study, Network, Data]


@o.command
def study(
    file: Annotated[Path, typer.Argument(help="The study, a TOML file.")],
    out: o.Out,
    root: Annotated[Path | None, typer.Option(help="Folder of the data, in place of the file's.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's weights, in place of the file's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell cells, teacher passes and estimated hours.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Only write the report over what is finished, also while others are at work."),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Stay until others have finished what they hold; go on with what one leaves."),
    ] = False,
    device: o.Device = "auto",
    json: o.Json = False,
) -> None:
    """Train a grid of students under one teacher, and compare them.

    Terms, hints, sizes and seeds may vary.

    Example: keyhole study study.toml --root DIR --out OUT --dry-run

    Every finished cell is safe in OUT/cells; the same command goes on after a stop, and several processes may share
    one OUT; with --wait each stays until all is done. Writes report.html, result.json and result.csv over what is
    finished; where all combinations of layers are tried, also fresh.toml, a study of what they point at on seeds that
    had no part in it. A list of teachers, or of values of [train], makes a study of its own for each, in a folder of
    its own.
    """
    from keyhole.studies.plan import read_studies

    read = {
        name: replace(
            each, root=root or each.root, weights=weights or each.weights, config=replace(each.config, device=device)
        )
        for name, each in read_studies(file).items()
    }
    if dry_run and report:
        raise SettingError("--dry-run tells what is open and --report what is finished; give one of them.")
    if wait and (dry_run or report):
        raise SettingError("--wait is for a call that trains; leave it out beside --dry-run and --report.")
    if len(read) > 1:
        folders = _folders(read, file, out, begun=report)
        if dry_run:
            found = {name: _look(read[name], folder) for name, folder in folders.items()}
        else:
            found = _run_several(read, folders, out, train=not report, wait=wait)
        value = {"studies": {name: value for name, (value, _) in found.items()}}
        text = "\n".join(f"{name}: {sentence}" for name, (_, sentence) in found.items())
    else:
        (only,) = read.values()
        value, text = _look(only, out) if dry_run else _run(only, out, train=not report, wait=wait)
    o.emit(value, text if dry_run else f"{text}\nReport: {out / 'report.html'}", as_json=json)


def _folders(read: Mapping[str, Study], file: Path, out: Path, *, begun: bool) -> dict[str, Path]:
    """Return the folder of each of several studies; with ``begun`` of those that have one."""
    folders = {name: out / _folder(name) for name in read}
    if len({*folders.values()}) < len(folders):
        raise SettingError(f"{file} holds studies whose folders would have one name; let their teachers differ more.")
    if not begun:
        return folders
    there = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not there:
        raise SettingError(
            f"There is no folder of a study in {out} to report on; name the --out of one that was begun."
        )
    for name in folders.keys() - there.keys():
        o.note(f"{name} was not begun, and is left out.")
    return there


def _run_several(
    read: Mapping[str, Study], folders: Mapping[str, Path], out: Path, *, train: bool, wait: bool
) -> dict[str, tuple[dict[str, Any], str]]:
    from keyhole.files import write_json, write_text
    from keyhole.reports.study_page import studies_page

    earlier = dict.fromkeys(folders, 0)
    if wait:  # what is open in any of them comes before waiting for one
        earlier = {name: _train(_opened(read[name]), folder, wait=False) for name, folder in folders.items()}
    found = {
        name: _run(read[name], folder, train=train, wait=wait, earlier=earlier[name])
        for name, folder in folders.items()
    }
    write_json(out / "result.json", {"studies": {name: value for name, (value, _) in found.items()}})
    write_text(
        out / "report.html", studies_page({name: (folders[name].name, text) for name, (_, text) in found.items()})
    )
    return found


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)


def _opened(read: Study) -> _Opened:
    from keyhole.models.layers import layers
    from keyhole.studies.plan import with_combinations

    teacher, data = o.open_both(
        read.teacher, o.NetworkOptions(weights=read.weights), o.DataOptions(data=read.data, root=read.root)
    )
    return with_combinations(read, lambda glob: [layer.name for layer in layers(teacher, glob)]), teacher, data


def _look(read: Study, out: Path) -> tuple[dict[str, Any], str]:
    from keyhole.reports.markup import duration
    from keyhole.studies.board import Board
    from keyhole.studies.outlook import look_ahead

    whole, teacher, data = _opened(read)
    seen = look_ahead(whole, teacher, data, Board(out, make=False))
    time = "" if seen.hours is None else f", about {duration(3600 * seen.hours)} here"
    return dict(vars(seen)), f"{seen.cells} cells, {seen.done} done, {seen.passes} teacher passes to go{time}"


def _train(opened: _Opened, out: Path, *, wait: bool) -> int:
    from keyhole.studies.board import Board
    from keyhole.studies.work import run_study

    whole, teacher, data = opened
    o.check_teacher(teacher, data, device=whole.config.device)
    return run_study(whole, teacher, data, Board(out), wait=wait, progress=o.progress_bar(), note=o.note)


def _run(read: Study, out: Path, *, train: bool, wait: bool, earlier: int = 0) -> tuple[dict[str, Any], str]:
    """Train what is open, where that is wanted, and write what was found; ``earlier`` cells were finished before."""
    from keyhole.files import write_json, write_text
    from keyhole.reports.study_page import study_page
    from keyhole.studies.board import Board
    from keyhole.studies.conclusion import conclude
    from keyhole.studies.followup import study_toml

    whole, teacher, data = opened = _opened(read)
    if not train and not out.is_dir():
        raise SettingError(f"There is no folder {out} to report on; name the --out of a study that was begun.")
    finished = earlier + (_train(opened, out, wait=wait) if train else 0)
    board = Board(out)
    found = conclude(whole, teacher, data, board, decide=train, progress=o.progress_bar())
    value = {
        **found.verdict.to_json(), "cells": len(whole.cells), "finished_now": finished, "setting": found.setting,
    }  # fmt: skip
    write_json(out / "result.json", value)
    write_text(out / "result.csv", found.verdict.to_csv())
    write_text(out / "report.html", study_page(found.verdict, found.setting))
    for number, fresh in found.fresh.items():
        write_text(out / f"fresh{'' if number == 1 else f'-{number}'}.toml", study_toml(fresh))
    return value, found.verdict.sentence
