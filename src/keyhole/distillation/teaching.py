"""The teacher of a cohort: frozen, and asked in parts where workers can answer side by side and ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from keyhole.distillation.replay import Replay
from keyhole.models.frozen import freeze
from keyhole.models.network import Network, count_macs
from keyhole.runtime import PRECISIONS

Answer = tuple[Tensor, dict[str, Tensor]]
Show = Callable[[Tensor | None], Tensor]

TEACHER_PARTS = 4  # so that no worker waits long for another's last part
_PART_MACS = 1e9  # some milliseconds of a core; a smaller part costs more than it fills


@dataclass(frozen=True)
class Keep:
    """How much is kept of what a teacher says.

    Attributes:
        views: How many different images there are; the number of each is below that.
        most_bytes: Memory for the answers.
    """

    views: int
    most_bytes: int


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
        keep: Keep answers to images that come again; where all of them do not fit, none is kept.
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
        keep: Keep | None = None,
    ) -> None:
        self._dtype = PRECISIONS[precision]
        self._macs = count_macs(network)
        self._workers = workers
        # a module for each worker, as one keeps its features while it runs; the weights of its layers are there once
        self._free: SimpleQueue[nn.Module] = SimpleQueue()
        first = freeze(network, names, device=device, precision=precision, compile=compile)
        self._free.put(first)
        for _ in range(places - 1 if workers else 0):
            other = freeze(network, names, device=device, precision=precision, compile=compile)
            _share_weights(other, first)
            self._free.put(other)
        self._replay = Replay(self._answer, device) if replays else None
        # a compiled network is made for one number of images, and what is missing is another number each time
        self._kept = Kept(Keep(0, 0) if keep is None or compile or replays else keep)

    def ask(self, images: Tensor | Show, views: Tensor | None = None) -> Callable[[], Answer]:
        """Return a function that gives the answer to prepared images (n, c, h, w), waiting for it if need be.

        Args:
            images: The images, or a function that makes some of them (True in a mask) or all (None).
            views: Number of each, where the same one comes again: it is looked at once.
        """
        if views is None or not self._kept.keeps:
            return self._asked(images if isinstance(images, Tensor) else images(None))
        numbers = views.cpu()
        missing = self._kept.missing(numbers)
        if not bool(missing.any()):
            return lambda: self._kept.take(numbers)
        some = images[missing.to(images.device)] if isinstance(images, Tensor) else images(missing)
        pending = self._asked(some)

        def wait() -> Answer:
            return self._kept.joined(numbers, missing, pending())

        return wait

    def _asked(self, images: Tensor) -> Callable[[], Answer]:
        images = images.to(self._dtype)
        if self._replay is not None:
            return lambda: self._replayed(images)
        if self._workers is None:
            return lambda: self._answer(images)
        parts = max(1, min(TEACHER_PARTS, int(self._macs * len(images) / _PART_MACS)))
        pieces = [self._workers.submit(self._answer, piece) for piece in images.chunk(parts)]
        return lambda: _together([piece.result() for piece in pieces])

    def _replayed(self, images: Tensor) -> Answer:
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


class Kept:
    """Answers by the number of their image, where all of them fit.

    Args:
        keep: How many images there are, and the memory.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep, self._there = keep, torch.zeros(keep.views, dtype=torch.bool)
        self._parts: dict[str, Tensor] = {}
        self.keeps = keep.most_bytes > 0

    def missing(self, numbers: Tensor) -> Tensor:
        """Return which of the images have no answer yet."""
        return ~self._there[numbers]

    def joined(self, numbers: Tensor, missing: Tensor, answer: Answer) -> Answer:
        """Return the answers to some images, of which those that were missing come now, and are kept."""
        parts = {"": answer[0], **answer[1]}
        if not self._parts and not self._reserve(parts):
            return answer  # nothing was kept before, so all of them were missing
        new = numbers[missing]
        for name, part in parts.items():
            self._parts[name][new.to(part.device)] = part
        self._there[new] = True
        return answer if bool(missing.all()) else self.take(numbers)

    def take(self, numbers: Tensor) -> Answer:
        """Return the answers to some images, all of which are kept."""
        found = {name: held[numbers.to(held.device)] for name, held in self._parts.items()}
        return found.pop(""), found

    def _reserve(self, parts: dict[str, Tensor]) -> bool:
        each = sum(part[0].numel() * part.element_size() for part in parts.values())
        self.keeps = self.keeps and each * self._keep.views <= self._keep.most_bytes
        if self.keeps:
            self._parts = {name: part.new_empty((self._keep.views, *part.shape[1:])) for name, part in parts.items()}
        return self.keeps


def _share_weights(module: nn.Module, source: nn.Module) -> None:
    """Let a frozen module use the weights of another one like it."""
    for name, part in module.named_modules():
        own = source.get_submodule(name)
        for key in part._parameters:
            part._parameters[key] = own._parameters[key]
        for key in part._buffers:
            part._buffers[key] = own._buffers[key]


def _together(pieces: Sequence[Answer]) -> Answer:
    if len(pieces) == 1:
        return pieces[0]
    logits = torch.cat([piece for piece, _ in pieces])
    return logits, {name: torch.cat([features[name] for _, features in pieces]) for name in pieces[0][1]}
