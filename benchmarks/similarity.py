"""What choosing hints costs, in bare forward passes of the same network, images, precision and process.

    python benchmarks/similarity.py --root DIR [--model resnet56] [--weights FILE] [--images 10000] [--out FILE.json]

Floor: the forward pass alone, images prepared and in memory, no hooks, after a warm-up. Total: tapped pass, all five
metrics, selection by all three clusterings. Stability of the chosen metric is counted by itself. Peak memory: of a
process that does the bare pass only, and of one that does everything.

A machine whose speed drifts within a minute gives a bare and a tapped pass of 10,000 images other speeds. So the two
passes are also made in turns, piece by piece, and the median ratio of these is what the total counts for the pass;
what the rounds say by themselves stands beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from keyhole.data.sources import open_data
from keyhole.data.splits import Split
from keyhole.hints.choice import ChoiceConfig, bare_forward_seconds, choose_hints
from keyhole.hints.clustering import CLUSTERINGS
from keyhole.hints.moments import ObserveConfig, at_a_time, watched
from keyhole.hints.selection import Rule, select
from keyhole.models.frozen import freeze
from keyhole.models.layers import layers
from keyhole.models.network import Network
from keyhole.models.zoo import build, load
from keyhole.runtime import PRECISIONS, choose_device, choose_precision, describe, synchronize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=("bare", "all"))
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options)))
        return
    bare, everything = (one_process(part) for part in ("bare", "all"))
    result = {
        "what": "similarity under five metrics and selection, in bare forward passes",
        "model": options.model,
        "weights": options.weights.name if options.weights else "its own" if is_file(options.model) else "random",
        "images": options.images,
        "precision": everything["precision"],
        "rounds": everything["rounds"],
        "total_over_bare_by_round": [round(r["total"] / r["bare_forward"], 3) for r in everything["rounds"]],
        "turns": everything["turns"],
        "total_over_bare": round(
            everything["turns"]["tapped_over_bare"]
            + median((r["metrics"] + r["selection"]) / r["bare_forward"] for r in everything["rounds"]),
            3,
        ),
        "stability_over_bare": median(r["stability"] / r["bare_forward"] for r in everything["rounds"]),
        "peak_mib_bare": bare["peak_mib"],
        "peak_mib_all": everything["peak_mib"],
        "targets": {"total_over_bare": 1.3, "stability_over_bare": 1.0, "peak_mib_above_bare": 1024},
        "environment": describe(),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def one_process(part: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict:
    device = choose_device(options.device)
    data = open_data("cifar100", options.root)
    opened = load(options.model) if is_file(options.model) else None
    network = opened or build(options.model, classes=100, weights=options.weights)
    look = ObserveConfig(precision=choose_precision(options.precision, device))
    if options.part == "bare":
        bare_forward_seconds(network, data.train.subset(range(options.images)), look, device)
        return {"peak_mib": peak_mib()}
    rounds = []
    candidates = layers(network)
    for _ in range(options.rounds):
        found = choose_hints(
            network, data.train, Rule(), config=ChoiceConfig(samples=options.images), look=look, device=device
        )
        started = time.perf_counter()
        for name in CLUSTERINGS:
            for matrix in found.similarities.values():
                select(candidates, matrix, Rule(name))
        seconds = dict(found.seconds)
        seconds["selection"] += time.perf_counter() - started
        seconds["total"] = seconds["tapped_forward"] + seconds["metrics"] + seconds["selection"]
        rounds.append({key: round(value, 3) for key, value in seconds.items()})
    images, names = data.train.subset(range(options.images)), [layer.name for layer in candidates]
    turns = in_turns(network, images, names, look, device)
    return {"rounds": rounds, "turns": turns, "peak_mib": peak_mib(), "precision": look.precision}


def is_file(model: str) -> bool:
    return model.endswith(".safetensors")


def in_turns(network: Network, images: Split, names: list[str], look: ObserveConfig, device: torch.device) -> dict:
    """Return the seconds of bare and of tapped passes that take turns, and their ratio."""
    bare, tapped = freeze(network, device=device, precision=look.precision), watched(network, names, look, device)
    seconds = []
    for batch in images.to(device).batches(look.batch_size):
        for piece in at_a_time(network.input.prepare(batch.images).to(PRECISIONS[look.precision])):
            seconds.append([timed(network, piece, device) for network in (bare, tapped)])
    turns = seconds[8:]  # after a warm-up
    return {
        "bare_forward": round(sum(turn[0] for turn in turns), 3),
        "tapped_forward": round(sum(turn[1] for turn in turns), 3),
        "tapped_over_bare": median(tapped / bare for bare, tapped in turns),
    }


@torch.no_grad()
def timed(network: torch.nn.Module, images: torch.Tensor, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    network(images)
    synchronize(device)
    return time.perf_counter() - started


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def median(values) -> float:
    return round(float(torch.tensor(list(values), dtype=torch.float64).quantile(0.5)), 3)


if __name__ == "__main__":
    main()
