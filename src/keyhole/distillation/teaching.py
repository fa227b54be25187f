"""The teacher of a cohort: frozen, and asked in parts where workers can answer side by side and ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from keyhole.distillation.replay import Replay
from keyhole.models.frozen import freeze
from keyhole.models.network import Network, count_macs
from keyhole.runtime import PRECISIONS

Answer = tuple[Tensor, dict[str, Tensor]]

TEACHER_PARTS = 4  # so that no worker waits long for another's last part
_PART_MACS = 1e9  # some milliseconds of a core; a smaller part costs more than it fills


class Teaching:
    """A frozen teacher that answers batches with its logits and the features of its hint layers.

    Args:
        network: The teacher; it is copied.
        names: Its hint layers.
        device: Where it runs.
        precision: ``bf16`` or ``fp32``.
        compile: Use ``torch.compile``.
        replays: Record the forward pass once, and replay it.
        workers: Answer on these, in parts; without them an answer is made when it is taken.
        places: How many workers there are.
    """

    def __init__(
        self,
        network: Network,
        names: Sequence[str],
        *,
        device: torch.device,
        precision: str,
        compile: bool = False,
        replays: bool = False,
        workers: Executor | None = None,
        places: int = 1,
    ) -> None:
        self._dtype = PRECISIONS[precision]
        self._macs = count_macs(network)
        self._workers = workers
        # a copy for each worker, as one keeps its features while it runs
        self._free: SimpleQueue[nn.Module] = SimpleQueue()
        for _ in range(places if workers else 1):
            self._free.put(freeze(network, names, device=device, precision=precision, compile=compile))
        self._replay = Replay(self._answer, device) if replays else None

    def ask(self, images: Tensor) -> Callable[[], Answer]:
        """Return a function that gives the answer to prepared images (n, c, h, w), waiting for it if need be."""
        images = images.to(self._dtype)
        if self._replay is not None:
            return lambda: self._kept(images)
        if self._workers is None:
            return lambda: self._answer(images)
        parts = max(1, min(TEACHER_PARTS, int(self._macs * len(images) / _PART_MACS)))
        pieces = [self._workers.submit(self._answer, piece) for piece in images.chunk(parts)]
        return lambda: _together([piece.result() for piece in pieces])

    def _kept(self, images: Tensor) -> Answer:
        assert self._replay is not None, "ask saw to it"
        logits, features = self._replay(images)
        return logits.clone(), {name: feature.clone() for name, feature in features.items()}

    @torch.no_grad()
    def _answer(self, images: Tensor) -> Answer:
        module = self._free.get()
        try:
            answer: Answer = module(images)
        finally:
            self._free.put(module)
        return answer


def _together(pieces: Sequence[Answer]) -> Answer:
    if len(pieces) == 1:
        return pieces[0]
    logits = torch.cat([piece for piece, _ in pieces])
    return logits, {name: torch.cat([features[name] for _, features in pieces]) for name in pieces[0][1]}
