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
        keep_bytes: Memory for answers to images that come again; where all of them do not fit, none is kept.
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
        keep_bytes: int = 0,
    ) -> None:
        self._dtype = PRECISIONS[precision]
        self._macs = count_macs(network)
        self._workers = workers
        # a copy for each worker, as one keeps its features while it runs
        self._free: SimpleQueue[nn.Module] = SimpleQueue()
        for _ in range(places if workers else 1):
            self._free.put(freeze(network, names, device=device, precision=precision, compile=compile))
        self._replay = Replay(self._answer, device) if replays else None
        # a compiled network is made for one number of images, and what is missing is another number each time
        self._kept = Kept(0 if compile or replays else keep_bytes)

    def ask(self, images: Tensor, views: Tensor | None = None) -> Callable[[], Answer]:
        """Return a function that gives the answer to prepared images (n, c, h, w), waiting for it if need be.

        Args:
            images: The images.
            views: Number of each, where the same one comes again: it is looked at once.
        """
        if views is None or not self._kept.keeps:
            return self._asked(images)
        numbers = views.cpu()
        missing = self._kept.missing(numbers)
        if not bool(missing.any()):
            return lambda: self._kept.take(numbers)
        pending = self._asked(images[missing.to(images.device)])

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
    """Answers by the number of their image, as long as they fit into some memory.

    Args:
        most_bytes: That memory; it grows as far as numbers reach.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._there = torch.zeros(0, dtype=torch.bool)
        self._parts: dict[str, Tensor] = {}

    @property
    def keeps(self) -> bool:
        """Whether answers are kept."""
        return self._most_bytes > 0

    def missing(self, numbers: Tensor) -> Tensor:
        """Return which of the images have no answer yet."""
        self._reach(int(numbers.max()) + 1)
        return ~self._there[numbers]

    def joined(self, numbers: Tensor, missing: Tensor, answer: Answer) -> Answer:
        """Return the answers to some images, of which those that were missing come now, and are kept."""
        old = self.take(numbers[~missing]) if not bool(missing.all()) else None
        if not self.put(numbers[missing], answer):
            self._parts.clear()
        if old is None:
            return answer
        parts, kept = {"": answer[0], **answer[1]}, {"": old[0], **old[1]}
        whole = {}
        for name, part in parts.items():
            here = missing.to(part.device)
            whole[name] = part.new_empty((len(numbers), *part.shape[1:]))
            whole[name][here], whole[name][~here] = part, kept[name]
        return whole.pop(""), whole

    def put(self, numbers: Tensor, answer: Answer) -> bool:
        """Keep answers; return whether they are kept, which ends for good where memory does not suffice."""
        parts = {"": answer[0], **answer[1]}
        each = sum(part[0].numel() * part.element_size() for part in parts.values())
        if not self.keeps or each * len(self._there) > self._most_bytes:
            self._most_bytes = 0
            return False
        for name, part in parts.items():
            held = self._parts.get(name)
            if held is None or len(held) < len(self._there):
                grown = part.new_empty((len(self._there), *part.shape[1:]))
                if held is not None:
                    grown[: len(held)] = held
                self._parts[name] = held = grown
            held[numbers.to(held.device)] = part
        self._there[numbers] = True
        return True

    def take(self, numbers: Tensor) -> Answer:
        """Return the answers to some images, all of which are kept."""
        found = {name: held[numbers.to(held.device)] for name, held in self._parts.items()}
        return found.pop(""), found

    def _reach(self, count: int) -> None:
        if count > len(self._there):
            self._there = torch.cat([self._there, torch.zeros(count - len(self._there), dtype=torch.bool)])


def _together(pieces: Sequence[Answer]) -> Answer:
    if len(pieces) == 1:
        return pieces[0]
    logits = torch.cat([piece for piece, _ in pieces])
    return logits, {name: torch.cat([features[name] for _, features in pieces]) for name in pieces[0][1]}
