"""``keyhole study``: a grid of students under equal conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options as o


@o.command
def study(
    file: Annotated[Path, typer.Argument(help="The study, a TOML file.")],
    out: o.Out,
    root: Annotated[Path | None, typer.Option(help="Folder of the data, in place of the file's.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's weights, in place of the file's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell cells, teacher passes and estimated hours.")
    ] = False,
    device: o.Device = "auto",
    json: o.Json = False,
) -> None:
    """Train a grid of students under one teacher: terms, hints, sizes, seeds.

    Example: keyhole study study.toml --root DIR --out OUT --dry-run

    Every finished cell is safe in OUT/cells; the same command goes on after a stop, and several processes may share
    one OUT. Writes report.html, result.json and result.csv over what is finished.
    """
    from keyhole.files import write_json, write_text
    from keyhole.models.layers import layers
    from keyhole.reports.study_page import study_page
    from keyhole.studies.board import Board
    from keyhole.studies.plan import read_study, with_combinations
    from keyhole.studies.verdict import judge
    from keyhole.studies.work import look_ahead, run_study

    read = read_study(file)
    read = replace(
        read, root=root or read.root, weights=weights or read.weights, config=replace(read.config, device=device)
    )
    teacher, data = o.open_both(
        read.teacher, o.NetworkOptions(weights=read.weights), o.DataOptions(data=read.data, root=read.root)
    )
    whole = with_combinations(read, lambda glob: [layer.name for layer in layers(teacher, glob)])
    board = Board(out)
    if dry_run:
        seen = look_ahead(whole, teacher, data, board)
        hours = "" if seen.hours is None else f", about {seen.hours:.1f} hours here"
        text = f"{seen.cells} cells, {seen.done} done, {seen.passes} teacher passes to go{hours}"
        o.emit(vars(seen), text, as_json=json)
        return
    o.check_teacher(teacher, data, device=device)
    finished = run_study(whole, teacher, data, board, progress=o.progress_bar(), note=o.note)
    results = [board.result(cell.id) for cell in whole.cells]
    verdict = judge(results, [plan.name for plan in whole.arms], baseline=whole.baseline)
    setting = whole.told(teacher.name, results)
    value = {**verdict.to_json(), "cells": len(results), "finished_now": finished, "setting": setting}
    write_json(out / "result.json", value)
    write_text(out / "result.csv", verdict.to_csv())
    write_text(out / "report.html", study_page(verdict, setting))
    o.emit(value, f"{verdict.sentence}\nReport: {out / 'report.html'}", as_json=json)
