"""Degraded crops per second, against Pillow in a loop, in one run.

    python benchmarks/degradation.py [--batch 128] [--rounds 7] [--threads 1] [--out FILE.json]

A training batch of crops of 112 x 112 is shrunk and enlarged again, without a codec. The loop is what a data loader
would do: each image to Pillow, resized twice with bicubic, and back into an array. Ours is measured with Pillow's own
bicubic (equal pictures) and with the same kernel rounded once (``torch-bicubic-antialias``), at one size and at sizes
spread over octaves from 8 to 64 px. The two take turns, and a ratio is that of one turn, so that a machine that drifts
or is busy slows both; the median and the range of the turns' ratios are given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.images.distributions import FixedSizes, LogUniform
from keyhole.runtime import describe

CASES = {
    "12 px": FixedSizes((12,)),
    "32 px": FixedSizes((32,)),
    "64 px": FixedSizes((64,)),
    "8 to 64 px, mixed": LogUniform(8, 64),
}
METHODS = ("pil-bicubic", "torch-bicubic-antialias")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    crops = photos(options.batch)
    rows = []
    for case, distribution in CASES.items():
        drawn = distribution.draw(options.batch, seed=0)
        for method in METHODS:
            hows = [Degradation(how.face_px, down=method) for how in drawn]
            turns = [turn(crops, hows) for _ in range(options.rounds + 1)][1:]
            rows.append({"sizes": case, "resampler": method, **summary(turns, options.batch), **gap(crops, hows)})
            print(rows[-1], flush=True)
    result = {
        "command": "python benchmarks/degradation.py",
        "batch": options.batch,
        "threads": options.threads,
        "machine": describe(),
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1, default=str) + "\n")


def photos(count: int) -> torch.Tensor:
    """Return pictures with the spectrum of photographs: sums of octaves of noise."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, 112, 112)
    for side in (4, 8, 16, 32, 64, 112):
        noise = torch.randn(count, 3, side, side, generator=generator)
        total += torch.nn.functional.interpolate(noise, size=112, mode="bicubic") * 90 / side**0.5
    return (total + 120).round().clamp(0, 255).to(torch.uint8).movedim(1, 3).contiguous()


def loop(crops: np.ndarray, sizes: list[int]) -> np.ndarray:
    out = np.empty_like(crops)
    for index, size in enumerate(sizes):
        small = Image.fromarray(crops[index]).resize((size, size), Image.Resampling.BICUBIC)
        out[index] = np.asarray(small.resize((112, 112), Image.Resampling.BICUBIC))
    return out


_Taken = tuple[float, float]  # seconds of the clock, and of the processor


def taken(action: Callable[[], object]) -> _Taken:
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def turn(crops: torch.Tensor, hows: list[Degradation]) -> tuple[_Taken, _Taken]:
    sizes = [how.face_px for how in hows]
    return taken(lambda: loop(crops.numpy(), sizes)), taken(lambda: degrade(crops, hows))


def summary(turns: list[tuple[_Taken, _Taken]], batch: int) -> dict[str, Any]:
    loops, ours = np.array([plain for plain, _ in turns]), np.array([own for _, own in turns])
    ratios = loops / ours
    return {
        "ratio": round(float(np.median(ratios[:, 0])), 2),
        "ratio_range": [round(float(ratios[:, 0].min()), 2), round(float(ratios[:, 0].max()), 2)],
        "ratio_of_processor_time": round(float(np.median(ratios[:, 1])), 2),
        "ratio_of_the_best_turns": round(float(loops[:, 0].min() / ours[:, 0].min()), 2),
        "pillow_crops_per_s": round(batch / float(loops[:, 0].min())),
        "keyhole_crops_per_s": round(batch / float(ours[:, 0].min())),
    }


def gap(crops: torch.Tensor, hows: list[Degradation]) -> dict[str, Any]:
    """Return how far the pictures are from Pillow's, in gray levels."""
    theirs = loop(crops.numpy(), [how.face_px for how in hows]).astype(int)
    difference = np.abs(degrade(crops, hows).numpy() - theirs)
    return {"largest_difference": int(difference.max()), "mean_difference": round(float(difference.mean()), 4)}


if __name__ == "__main__":
    main()
