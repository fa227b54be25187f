"""What face models cost and reach, side by side: bytes, operations, milliseconds, accuracy by size of the probe.

    python benchmarks/students.py MODEL... --root lfw112.zip [--folds 7 --threshold-folds 1,2,3,4,5,6]
        [--probe-px 112,16,12,8] [--threads 2] [--rounds 7] [--draws 2000] [--out FILE.json]

MODEL is anything that --model of 'keyhole faces' takes: the first one is what the others are compared with, such as
the teacher as ONNX. All are timed in turns in one run, so that a busy machine slows all of them: a batch of 32 faces,
and one face alone. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from choosing import called

from keyhole.cli.face_options import integers
from keyhole.faces.comparison import Pipeline, Setting
from keyhole.faces.evaluation import evaluate
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.models.runtimes import TorchNetwork
from keyhole.faces.protocols.named import read_protocol
from keyhole.models.network import Network, count_macs
from keyhole.runtime import describe
from keyhole.students.teachers import file_of, input_of

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--folds", default="7", help="folds 8 to 10 are for released models")
    parser.add_argument("--threshold-folds", default="1,2,3,4,5,6")
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    models = [load_face_model(name, device="cpu", threads=given.threads) for name in given.models]
    folds = {
        "folds": integers("--folds", given.folds),
        "threshold_folds": integers("--threshold-folds", given.threshold_folds),
    }
    protocol = read_protocol("lfw", given.root, **folds)
    sizes = tuple(float(size) for size in given.probe_px.split(","))
    rows = [
        {"model": name, **size_of(name, model), "accuracy": accuracies(model, protocol, sizes, given.draws)}
        for name, model in zip(given.models, models, strict=True)
    ]
    for row, timing in zip(rows, timed(models, given.rounds), strict=True):
        row |= timing
    value = {
        "folds": given.folds, "threshold_folds": given.threshold_folds, "threads": given.threads, "batch": BATCH,
        "models": rows, "environment": describe(),
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(value, indent=1) + "\n")
    print(table(rows, sizes))


def size_of(name: str, model: FaceModel) -> dict[str, int | None]:
    path = file_of(name)
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    found: dict[str, int | None] = {"bytes": sum(each.stat().st_size for each in files if each.is_file()) or None}
    if not isinstance(model.network, TorchNetwork):
        return found | {"parameters": None, "macs": None}
    module = model.network.module
    network = Network(model.name, module, input_of(model.preparation), model.embedding_size)
    return found | {"parameters": sum(p.numel() for p in module.parameters()), "macs": count_macs(network)}


def accuracies(model: FaceModel, protocol, sizes, draws) -> dict[str, list[float]]:
    found = evaluate(Pipeline(model, setting=Setting(probe_px=sizes, draws=draws)), protocol)
    figures = {}
    for row in found.rows:
        figure = row.figures["accuracy"]
        figures[f"{row.face_px:g}"] = [100 * figure.value, 100 * figure.low, 100 * figure.high]
    return figures


def timed(models: list[FaceModel], rounds: int) -> list[dict[str, float]]:
    """Return milliseconds of one face and of each of a batch, medians, and the ratio to the first model by round.

    Before each turn there is a rest: threads of another runtime wait in a loop for a while after its last call.
    """
    crops = [
        torch.randint(0, 256, (BATCH, m.preparation.size_px, m.preparation.size_px, 3)).to(torch.uint8) for m in models
    ]
    times: list[dict[str, list[float]]] = [{"one": [], "many": []} for _ in models]
    for key, count, calls in (("many", BATCH, 3), ("one", 1, 20)):
        for _ in range(rounds):
            for model, faces, timing in zip(models, crops, times, strict=True):
                time.sleep(0.2)
                model.embed(faces[:count])
                taken = []
                for _ in range(calls):
                    started = time.perf_counter()
                    model.embed(faces[:count])
                    taken.append(1000 * (time.perf_counter() - started) / count)
                timing[key].append(statistics.median(taken))
    first = times[0]
    return [
        {
            **{f"ms_{key}": round(statistics.median(values), 3) for key, values in timing.items()},
            **{
                f"times_as_fast_{key}": round(
                    statistics.median(a / b for a, b in zip(first[key], timing[key], strict=True)), 3
                )
                for key in timing
            },
        }
        for timing in times
    ]


def table(rows, sizes) -> str:
    heads = [
        "model",
        "MB",
        "parameters",
        "MMAC",
        "ms, one face",
        "ms, of 32",
        "times as fast",
        *(f"{s:g} px" for s in sizes),
    ]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for row in rows:
        figures = [
            f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in (row["accuracy"][f"{s:g}"] for s in sizes)
        ]
        cells = [
            called(row["model"]),
            "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}",
            "" if row["parameters"] is None else f"{row['parameters']:,}",
            "" if row["macs"] is None else f"{row['macs'] / 1e6:.1f}",
            f"{row['ms_one']:.2f}", f"{row['ms_many']:.2f}", f"{row['times_as_fast_many']:.2f}", *figures,
        ]  # fmt: skip
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
