"""A training step in bf16 on a processor that PyTorch has no kernels of bf16 for, against fp32 and its own bf16.

    python benchmarks/bf16.py [--model NAME] [--rounds 7] [--out FILE.json]

The three take turns in one process: fp32, bf16 as PyTorch computes it under torch.autocast, bf16 as training here does.
Also how far the gradients of the three are from each other, as shares of their length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from keyhole.bf16 import fast_products, has_kernels
from keyhole.models.network import random_images
from keyhole.models.zoo import build
from keyhole.runtime import autocast, describe, keep_freed_memory

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if has_kernels():
        raise SystemExit("PyTorch has kernels of bf16 for this processor; there is nothing to compare.")
    keep_freed_memory()
    torch.manual_seed(0)
    network = build(options.model, classes=100)
    module = network.module.to(memory_format=torch.channels_last).train()
    images = random_images(network, options.batch).to(memory_format=torch.channels_last)
    labels = torch.randint(100, (options.batch,))

    def gradient(forward: AbstractContextManager[Any], backward: AbstractContextManager[Any]) -> Tensor:
        module.zero_grad(set_to_none=True)
        with forward:
            loss = functional.cross_entropy(module(images).float(), labels)
        with backward:
            loss.backward()
        return torch.cat([weight.grad.flatten() for weight in module.parameters()])

    contexts = {
        "fp32": lambda: (nullcontext(), nullcontext()),
        "bf16_of_pytorch": lambda: (torch.autocast("cpu", torch.bfloat16), nullcontext()),
        "bf16_here": lambda: (autocast(CPU, "bf16"), fast_products(CPU)),
    }
    gradients = {name: gradient(*context()) for name, context in contexts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    for _ in range(options.rounds):
        for name, context in contexts.items():
            started = time.perf_counter()
            gradient(*context())
            seconds[name].append(time.perf_counter() - started)
    full, theirs, ours = (gradients[name] for name in contexts)
    result = {
        "what": f"{options.model}, one training step, batch {options.batch}",
        "here_over_fp32": ratio(seconds["bf16_here"], seconds["fp32"]),
        "pytorch_over_here": ratio(seconds["bf16_of_pytorch"], seconds["bf16_here"]),
        "pytorch_over_fp32": ratio(seconds["bf16_of_pytorch"], seconds["fp32"]),
        "gradient_here_from_pytorch": apart(ours, theirs),
        "gradient_pytorch_from_fp32": apart(theirs, full),
        "gradient_here_from_fp32": apart(ours, full),
        "environment": describe(),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def ratio(some: list[float], others: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(some, others, strict=True)), 2)


def apart(one: Tensor, other: Tensor) -> float:
    return round(float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other)), 4)


if __name__ == "__main__":
    main()
