"""Students of several seeds on LFW: what each arm reaches at each size, and its paired differences to the first one.

    python benchmarks/arms.py RUN... --root lfw112.zip [--compare "ARM:OTHER"]... [--folds 7]
        [--threshold-folds 1,2,3,4,5,6] [--pictures] [--probe-px 112,16,12,8] [--degrade blur=0.7]
        [--beside FILE.json] [--out FILE.json]

Each RUN is a folder of 'keyhole faces distill' whose name ends in its seed, such as ablation-0: a cohort, whose arms
are compared, or one student, whose arm is called by the rest of the name; or the FILE.json of an earlier call, which
stands for the runs that it measured. Differences are taken seed by seed; intervals
are Student's, probabilities corrected by Holm's procedure, as in 'keyhole study': they tell what other seeds would do.
With --pictures they are judged by TAR at 1 % FAR over all pictures of the folds (see choosing.py), which tells more
than the accuracy of 600 pairs; a second interval, by bootstrap over people, then tells what other people would do to
the mean over these seeds. FILE.json keeps the hints of each arm, and how its teacher's layers survive. What a run
trained, before the weights that it began with were mixed back in (--wise-ft), is an arm of its own. With --beside,
every figure is the change from that of the same arm and seed in an earlier call's file, whose camera was another one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ceiling import faces_of
from choosing import FAR, PER_PERSON, at_most, compared, pairs_of

from keyhole.cli.face_options import integers
from keyhole.errors import SettingError
from keyhole.faces.comparison import Pipeline, Setting
from keyhole.faces.evaluation import evaluate
from keyhole.faces.images.degradation import Degradation, parse_degradation
from keyhole.faces.metrics.intervals import Resampling, redrawn
from keyhole.faces.metrics.verification import tar_statistic
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.protocols.named import read_protocol
from keyhole.files import write_json
from keyhole.progress import bar
from keyhole.studies.plan import Comparison
from keyhole.studies.verdict import Gap, judge

Cell = dict[str, Any]
Figures = Callable[[FaceModel], list[tuple[float, list[float]]]]  # by size: a figure, and that of each draw of people


def main() -> None:
    given = parsed()
    sizes = tuple(float(size) for size in given.probe_px.split(","))
    figures = tars(given, sizes) if given.pictures else accuracies(given, sizes)
    cells: dict[float, list[Cell]] = {size: [] for size in sizes}
    for run in given.runs:
        found = read_cells(run, given) if run.suffix == ".json" else cells_of(run, figures, sizes)
        for size in sizes:
            cells[size] += found[size]
    if given.beside:
        before = read_cells(given.beside, given, but="degrade")
        cells = {size: changed(cells[size], before.get(size, [])) for size in sizes}
    names = list({cell["arm"]: None for cell in cells[sizes[0]]})
    asked = [Comparison(f"{one} - {other}", (one,), (other,)) for one, other in given.compare]
    verdicts = {size: judge(cells[size], names, comparisons=asked) for size in sizes}
    if given.out:
        by_px = {f"{size:g}": verdict.to_json() for size, verdict in verdicts.items()}
        kept = {f"{size:g}": cells[size] for size in sizes}
        about = {key: json_value(vars(given)[key]) for key in _SETTINGS}
        about |= {"beside": given.beside.name} if given.beside else {}
        write_json(given.out, {**about, "by_px": by_px, "cells": kept})
    for size, verdict in verdicts.items():
        print(f"\n{size:g} px: {verdict.sentence}\n")
        print(f"| arm | {'TAR' if given.pictures else 'accuracy'}, % | minus the first, points | by other people |")
        print("| --- | --- | --- | --- |")
        gaps = {gap.arm: gap for gap in verdict.gaps}
        for row in verdict.rows:
            spread = f" (sd {statistics.stdev(row.last):.2f})" if len(row.last) > 1 else ""
            others = ends_text(other_people(cells[size], row.arm, names[0])) if row.arm in gaps else ""
            print(
                f"| {row.arm} | {statistics.fmean(row.last):.2f}{spread} | {gap_text(gaps.get(row.arm))} | {others} |"
            )
        sides = {each.name: pair for each, pair in zip(asked, given.compare, strict=True)}
        for gap in verdict.comparisons:
            print(f"| {gap.arm} | | {gap_text(gap)} | {ends_text(other_people(cells[size], *sides[gap.arm]))} |")


def changed(cells: list[Cell], before: list[Cell]) -> list[Cell]:
    """Return cells whose figures are the change from those of the same arm and seed, draw of people by draw."""
    known = {(cell["arm"], cell["seed"]): cell for cell in before}
    found = []
    for cell in cells:
        other = known.get((cell["arm"], cell["seed"]))
        if other is None:
            raise SettingError(
                f"--beside has no {cell['arm']!r} of seed {cell['seed']} at each size; measure it there."
            )
        value = cell["top1"]["last"] - other["top1"]["last"]
        draws = [round(one - two, 3) for one, two in zip(cell["draws"], other["draws"], strict=True)]
        found.append({**cell, "top1": {"last": value, "best": value}, "draws": draws})
    return found


def accuracies(given: argparse.Namespace, sizes: tuple[float, ...]) -> Figures:
    """Return what gives a model's accuracy on the pairs of the folds, in %, at each size."""
    folds, by = integers("--folds", given.folds), integers("--threshold-folds", given.threshold_folds)
    protocol = read_protocol("lfw", given.root, folds=folds, threshold_folds=by)

    def figures(model: FaceModel) -> list[tuple[float, list[float]]]:
        setting = Setting(probe_px=sizes, draws=100, how=given.degrade or Setting().how)
        found = evaluate(Pipeline(model, setting=setting), protocol, progress=bar)
        by_px = {row.face_px: row.figures["accuracy"].value for row in found.rows}
        return [(100 * by_px[size], []) for size in sizes]

    return figures


def tars(given: argparse.Namespace, sizes: tuple[float, ...]) -> Figures:
    """Return what gives a model's TAR over all pictures of the folds, in %, at each size."""
    folds = integers("--folds", given.folds)

    def figures(model: FaceModel) -> list[tuple[float, list[float]]]:
        faces = at_most(faces_of(given.root, folds, model), PER_PERSON)
        people = pairs_of(faces)
        found = []
        for _, _, (scores, same) in compared(model, faces, map(int, sizes), given.degrade):
            statistic = tar_statistic(scores, same, FAR, subjects=people)
            assert statistic is not None, "a fold has pairs enough"
            drawn = redrawn(statistic, resampling=Resampling(given.draws))
            found.append((100 * statistic.value(), [round(100 * float(rate), 3) for rate in drawn]))
        return found

    return figures


def cells_of(run: Path, figures: Figures, sizes: tuple[float, ...]) -> dict[float, list[Cell]]:
    """Return what each student of a run reaches, by the size of the probe."""
    name, seed = named(run)
    arms = json.loads((run / "result.json").read_text())["arms"]
    cells: dict[float, list[Cell]] = {size: [] for size in sizes}
    for number, arm in enumerate(arms):
        called, folder = (arm["name"], run / str(number)) if len(arms) > 1 else (name, run)
        common = {"parameters": arm["parameters"], "macs": None, "diverged": None}
        common |= {key: arm[key] for key in ("hints", "survival") if arm.get(key)}
        for file, more in (("student", ""), ("trained", ", as trained")):
            if more and not (folder / f"{file}.safetensors").exists():
                continue
            found = figures(load_face_model(folder / f"{file}.safetensors", device="cpu"))
            for size, (value, draws) in zip(sizes, found, strict=True):
                top1 = {"last": value, "best": value}
                cells[size].append({"arm": called + more, "seed": seed, "top1": top1, **common, "draws": draws})
    return cells


def read_cells(path: Path, given: argparse.Namespace, *, but: str = "") -> dict[float, list[Cell]]:
    """Return what an earlier call measured, with the same settings ``but`` one."""
    value = json.loads(path.read_text())
    if not isinstance(value, dict) or "cells" not in value:
        raise SettingError(
            f"{path} holds no cells; expected what an earlier call wrote with --out. Name its run instead."
        )
    if "beside" in value:
        raise SettingError(f"{path} holds changes from {value['beside']}; name a file written without --beside.")
    for key in _SETTINGS:
        asked = json_value(vars(given)[key])
        if key != but and value.get(key) != asked:
            raise SettingError(f"{path} has {key} {value.get(key)!r}, this call {asked!r}. Give the same.")
    return {float(size): cells for size, cells in value["cells"].items()}


_SETTINGS = ("folds", "threshold_folds", "pictures", "degrade")


def json_value(setting: Any) -> Any:
    return str(setting) if isinstance(setting, Degradation) else setting


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--compare", action="append", default=[], metavar="ARM:OTHER", type=two)
    parser.add_argument("--folds", default="7", help="folds 8 to 10 are for released models")
    parser.add_argument("--threshold-folds", default="1,2,3,4,5,6")
    parser.add_argument("--draws", type=int, default=200, help="of people, with --pictures")
    parser.add_argument("--pictures", action="store_true", help="TAR over all pictures, without a threshold")
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--degrade", type=camera, help="the camera, but for its size; Pillow's bicubic without")
    parser.add_argument("--beside", type=Path, metavar="FILE.json", help="tell the change from an earlier call")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def camera(text: str) -> Degradation:
    return parse_degradation(f"face_px=12,{text}")


def two(text: str) -> tuple[str, str]:
    one, colon, other = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is no ARM:OTHER")
    return one.strip(), other.strip()


def named(run: Path) -> tuple[str, int]:
    """Return name and seed of a run by its folder."""
    found = re.fullmatch(r"(.+)-(\d+)", run.resolve().name)
    return (found[1], int(found[2])) if found else (run.resolve().name, 0)


def other_people(cells: list[Cell], one: str, other: str) -> tuple[float, float] | None:
    """Return the ends of the mean difference of two arms over draws of people, on the seeds that both have.

    None where they share none, or where an earlier call kept no draws of one, or others.
    """
    first, second = ({cell["seed"]: cell.get("draws") for cell in cells if cell["arm"] == arm} for arm in (one, other))
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    if not pairs or not all(map(all, pairs)) or len({len(draws) for pair in pairs for draws in pair}) > 1:
        return None
    gaps = np.mean([np.subtract(*pair) for pair in pairs], axis=0)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


def ends_text(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"


def gap_text(gap: Gap | None) -> str:
    if gap is None:
        return ""
    ends = "" if gap.low is None else f" [{gap.low:+.2f}, {gap.high:+.2f}], p {gap.corrected:.3f}"
    return f"{gap.mean:+.2f}{ends}"


if __name__ == "__main__":
    main()
