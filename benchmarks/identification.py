"""Exact search of a large gallery against FAISS's exact index, and how much memory it takes.

    python benchmarks/identification.py [--probes 10000] [--gallery 100000] [--width 256] [--count 10] [--rounds 3]

Both get the same random unit vectors and give the same candidates; rounds alternate, so that a busy machine slows both
alike. Needs faiss-cpu beside Keyhole's own packages. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from keyhole.faces.watchlist.search import search
from keyhole.runtime import describe


def unit_rows(count: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("probes", 10_000), ("gallery", 100_000), ("width", 256), ("count", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    gallery, probes = unit_rows(given.gallery, given.width, 0), unit_rows(given.probes, given.width, 1)
    before = peak_mib()
    found = search(probes, gallery, count=given.count)
    ours_mib = peak_mib() - before
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(given.width)
    index.add(gallery)
    scores, rows = index.search(probes, given.count)
    times: dict[str, list[float]] = {"keyhole": [], "faiss": []}
    for _ in range(given.rounds):
        times["keyhole"].append(seconds(lambda: search(probes, gallery, count=given.count)))
        times["faiss"].append(seconds(lambda: index.search(probes, given.count)))
    ratios = [theirs / ours for ours, theirs in zip(times["keyhole"], times["faiss"], strict=True)]
    value = {
        "probes": given.probes,
        "gallery": given.gallery,
        "width": given.width,
        "count": given.count,
        "same_candidates": float((rows == found.rows).mean()),
        "largest_difference": float(np.abs(scores - found.scores).max()),
        "seconds": times,
        "speed_over_faiss": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "memory_above_inputs_mib": ours_mib,
        "peak_mib": before + ours_mib,
        "environment": describe(),
    }
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
