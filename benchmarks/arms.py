"""Students of several seeds on LFW: what each arm reaches at each size, and its paired differences to the first one.

    python benchmarks/arms.py RUN... --root lfw112.zip [--compare "ARM:OTHER"]... [--folds 7]
        [--threshold-folds 1,2,3,4,5,6] [--probe-px 112,16,12,8] [--out FILE.json]

Each RUN is a folder of 'keyhole faces distill' whose name ends in its seed, such as ablation-0: a cohort, whose arms
are compared, or one student, whose arm is called by the rest of the name. Differences are taken seed by seed; intervals
are Student's, probabilities corrected by Holm's procedure, as in 'keyhole study'.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from keyhole.cli.face_options import integers
from keyhole.faces.comparison import Pipeline, Setting
from keyhole.faces.evaluation import evaluate
from keyhole.faces.models.face_model import load_face_model
from keyhole.faces.protocols.named import read_protocol
from keyhole.files import write_json
from keyhole.progress import bar
from keyhole.studies.plan import Comparison
from keyhole.studies.verdict import Gap, judge


def main() -> None:
    given = parsed()
    folds = {
        "folds": integers("--folds", given.folds),
        "threshold_folds": integers("--threshold-folds", given.threshold_folds),
    }
    protocol = read_protocol("lfw", given.root, **folds)
    sizes = tuple(float(size) for size in given.probe_px.split(","))
    cells: dict[float, list[dict[str, Any]]] = {size: [] for size in sizes}
    names: list[str] = []
    for run in given.runs:
        name, seed = named(run)
        arms = json.loads((run / "result.json").read_text())["arms"]
        for number, arm in enumerate(arms):
            called = arm["name"] if len(arms) > 1 else name
            folder = run / str(number) if len(arms) > 1 else run
            names += [] if called in names else [called]
            model = load_face_model(folder / "student.safetensors", device="cpu")
            found = evaluate(Pipeline(model, setting=Setting(probe_px=sizes, draws=100)), protocol, progress=bar)
            for row in found.rows:
                top1 = 100 * row.figures["accuracy"].value
                common = {"parameters": arm["parameters"], "macs": None, "diverged": None}
                cells[row.face_px].append({"arm": called, "seed": seed, "top1": {"last": top1, "best": top1}, **common})
    asked = [Comparison(f"{one} - {other}", (one,), (other,)) for one, other in given.compare]
    verdicts = {size: judge(cells[size], names, comparisons=asked) for size in sizes}
    if given.out:
        told = {f"{size:g}": verdict.to_json() for size, verdict in verdicts.items()}
        write_json(given.out, {"folds": given.folds, "threshold_folds": given.threshold_folds, "by_px": told})
    for size, verdict in verdicts.items():
        print(f"\n{size:g} px: {verdict.sentence}\n")
        print("| arm | accuracy, % | minus the first, points |\n| --- | --- | --- |")
        gaps = {gap.arm: gap for gap in verdict.gaps}
        for row in verdict.rows:
            spread = f" (sd {statistics.stdev(row.last):.2f})" if len(row.last) > 1 else ""
            print(f"| {row.arm} | {statistics.fmean(row.last):.2f}{spread} | {told_gap(gaps.get(row.arm))} |")
        for gap in verdict.comparisons:
            print(f"| {gap.arm} | | {told_gap(gap)} |")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--compare", action="append", default=[], metavar="ARM:OTHER", type=two)
    parser.add_argument("--folds", default="7", help="folds 8 to 10 are for released models")
    parser.add_argument("--threshold-folds", default="1,2,3,4,5,6")
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def two(text: str) -> tuple[str, str]:
    one, colon, other = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is no ARM:OTHER")
    return one.strip(), other.strip()


def named(run: Path) -> tuple[str, int]:
    """Return name and seed of a run by its folder."""
    found = re.fullmatch(r"(.+)-(\d+)", run.resolve().name)
    return (found[1], int(found[2])) if found else (run.resolve().name, 0)


def told_gap(gap: Gap | None) -> str:
    if gap is None:
        return ""
    ends = "" if gap.low is None else f" [{gap.low:+.2f}, {gap.high:+.2f}], p {gap.corrected:.3f}"
    return f"{gap.mean:+.2f}{ends}"


if __name__ == "__main__":
    main()
