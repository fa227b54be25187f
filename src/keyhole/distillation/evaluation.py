"""Accuracy of a network on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from keyhole.data.splits import Split
from keyhole.errors import DataError, DivergenceError
from keyhole.models.network import Network, evaluating
from keyhole.progress import Progress, silent
from keyhole.runtime import autocast, without_tf32


@dataclass(frozen=True)
class Accuracy:
    """How often a network is right.

    Attributes:
        top1: Share of images whose class has the highest logit, 0 to 1.
        top5: Share of images whose class is among the five highest (all of them where there are fewer classes).
        images: Number of images.
    """

    top1: float
    top5: float
    images: int


@torch.no_grad()
def evaluate(
    network: Network,
    split: Split,
    *,
    device: torch.device | None = None,
    precision: str = "fp32",
    batch_size: int = 250,
    progress: Progress = silent,
) -> Accuracy:
    """Return how often a network is right on a labeled split.

    Args:
        network: The network; it is moved to the device for the time, and its mode is left as it was; its
            weights lie channels last afterwards.
        split: Images with labels.
        device: Where to run.
        precision: ``fp32``, ``bf16`` autocast, or ``auto``: the faster one here.
        batch_size: Images at a time.
        progress: Wraps the batches.

    Raises:
        DataError: The split has no labels or no images, or labels beyond the network's classes.
        DivergenceError: A logit is NaN or infinite.
    """
    if not split.classes or not len(split):
        lack = "the images have no labels" if len(split) else "there are no images"
        raise DataError(f"Cannot evaluate: {lack}. Give a labeled folder (test/CLASS/IMAGE.jpg).")
    if len(split.classes) > network.classes:
        raise DataError(f"The data has {len(split.classes)} classes and {network.name} {network.classes} outputs.")
    device = device or torch.device("cpu")
    home = next((p.device for p in network.module.parameters()), device)
    module = network.module.to(device)
    last = torch.channels_last
    if not all(each.is_contiguous(memory_format=last) for each in module.parameters() if each.ndim == 4):
        module = module.to(memory_format=last)  # only then: it may move weights that a recorded step writes to
    first = torch.zeros((), dtype=torch.int64, device=device)
    among = torch.zeros((), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    total = -(-len(split) // batch_size)
    try:
        with evaluating(module):
            for batch in progress(split.to(device).batches(batch_size), label=f"evaluate {network.name}", total=total):
                with without_tf32(device), autocast(device, precision):
                    logits = network(batch.images).float()
                finite &= torch.isfinite(logits).all()
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
                hits = ranked == batch.labels[:, None]
                first += hits[:, 0].sum()
                among += hits.sum()
    finally:
        module.to(home)
    if not bool(finite):  # read once, as a GPU would wait for it
        raise DivergenceError(f"{network.name} gave NaN or infinite logits; its weights are broken.")
    return Accuracy(float(first) / len(split), float(among) / len(split), len(split))
