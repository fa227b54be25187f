"""Students of several seeds on LFW: what each arm reaches at each size, and its paired differences to the first one.

    python benchmarks/arms.py RUN... --root lfw112.zip [--folds 7 --threshold-folds 1,2,3,4,5,6]
        [--probe-px 112,16,12,8] [--out FILE.json]

Each RUN is a folder of 'keyhole faces distill', of one cohort under one seed; all of them hold the same arms.
Differences are taken seed by seed; intervals are Student's, probabilities corrected by Holm's procedure, as in 'keyhole
study'.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from keyhole.cli.face_options import integers
from keyhole.faces.comparison import Pipeline, Setting
from keyhole.faces.evaluation import evaluate
from keyhole.faces.models import load_face_model
from keyhole.faces.protocols.named import read_protocol
from keyhole.files import write_json
from keyhole.progress import bar
from keyhole.studies.verdict import judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--folds")
    parser.add_argument("--threshold-folds")
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folds = {
        "folds": integers("--folds", given.folds),
        "threshold_folds": integers("--threshold-folds", given.threshold_folds),
    }
    protocol = read_protocol("lfw", given.root, **folds)
    sizes = tuple(float(size) for size in given.probe_px.split(","))
    cells: dict[float, list[dict[str, Any]]] = {size: [] for size in sizes}
    names: list[str] = []
    for seed, run in enumerate(given.runs):
        arms = json.loads((run / "result.json").read_text())["arms"]
        for number, arm in enumerate(arms):
            folder = run if len(arms) == 1 else run / str(number)
            names += [] if arm["name"] in names else [arm["name"]]
            model = load_face_model(folder / "student.safetensors", device="cpu")
            found = evaluate(Pipeline(model, setting=Setting(probe_px=sizes, draws=100)), protocol, progress=bar)
            for row in found.rows:
                top1 = 100 * row.figures["accuracy"].value
                common = {"parameters": arm["parameters"], "macs": None, "diverged": None}
                cells[row.face_px].append(
                    {"arm": arm["name"], "seed": seed, "top1": {"last": top1, "best": top1}, **common}
                )
    verdicts = {size: judge(cells[size], names) for size in sizes}
    if given.out:
        told = {f"{size:g}": verdict.to_json() for size, verdict in verdicts.items()}
        write_json(given.out, {"folds": given.folds, "threshold_folds": given.threshold_folds, "by_px": told})
    for size, verdict in verdicts.items():
        print(f"\n{size:g} px: {verdict.sentence}\n")
        print("| arm | accuracy, % | minus the first, points |\n| --- | --- | --- |")
        gaps = {gap.arm: gap for gap in verdict.gaps}
        for row in verdict.rows:
            spread = f" (sd {statistics.stdev(row.last):.2f})" if len(row.last) > 1 else ""
            gap = gaps.get(row.arm)
            told = "" if gap is None else f"{gap.mean:+.2f}"
            if gap is not None and gap.low is not None:
                told += (
                    f" [{gap.low:+.2f}, {gap.high:+.2f}], p {gap.corrected:.3f}" if gap.corrected is not None else ""
                )
            print(f"| {row.arm} | {statistics.fmean(row.last):.2f}{spread} | {told} |")


if __name__ == "__main__":
    main()
