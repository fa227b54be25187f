"""Exact search of a gallery by inner product, streamed in blocks, so that memory does not grow with the gallery."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from keyhole.errors import SettingError, ShapeError

_PROBES, _ROWS, _GROUP = 512, 16_384, 64  # a block of scores stays within 32 MiB


@dataclass(frozen=True)
class Candidates:
    """The best gallery rows of each probe, best first.

    Attributes:
        scores: Inner products, falling; of equal ones that are found, the earlier row comes first.
        rows: Positions in the gallery.
    """

    scores: Float[np.ndarray, "p k"]
    rows: Int[np.ndarray, "p k"]


def search(probes: Float[np.ndarray, "p d"], gallery: Float[np.ndarray, "g d"], *, count: int = 1) -> Candidates:
    """Return the ``count`` gallery rows that are most alike to each probe: all rows are compared, none is skipped.

    Scores of a block are first reduced to the maximum of each group of 64 rows; the best ``count`` rows lie in the best
    ``count`` groups, so only those are sorted. Memory: the inputs, and some 40 MiB.

    Args:
        probes: Unit embeddings, or any vectors.
        gallery: The same of the gallery.
        count: How many; all where the gallery has fewer.

    Raises:
        ShapeError: The widths differ, or the gallery is empty.
        SettingError: ``count`` is below 1.

    Example:
        >>> found = search(np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32)[::-1].copy(), count=2)
        >>> found.rows.tolist(), found.scores.tolist()
        ([[2, 0]], [[1.0, 0.0]])
    """
    if count < 1:
        raise SettingError(f"{count} candidates were asked for; expected at least 1.")
    if probes.ndim != 2 or gallery.ndim != 2 or probes.shape[1] != gallery.shape[1] or not len(gallery):
        raise ShapeError(
            f"Probes of shape {probes.shape} cannot be searched in a gallery of shape {gallery.shape}; expected (p, d) "
            "and (g, d) with at least one row."
        )
    count = min(count, len(gallery))
    every = torch.from_numpy(np.ascontiguousarray(gallery, np.float32))
    scores, rows = np.empty((len(probes), count), np.float32), np.empty((len(probes), count), np.int64)
    # one block of scores is written over and over: fresh memory takes as long as the products
    block = torch.empty(min(_PROBES, len(probes)) * min(_ROWS, len(gallery)))
    for start in range(0, len(probes), _PROBES):
        part = torch.from_numpy(np.ascontiguousarray(probes[start : start + _PROBES], np.float32))
        best, where = _search_block(part, every, count, block)
        scores[start : start + len(part)], rows[start : start + len(part)] = best.numpy(), where.numpy()
    return Candidates(scores, rows)


def _search_block(
    probes: torch.Tensor, gallery: torch.Tensor, count: int, block: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    best = probes.new_empty((len(probes), 0))
    where = torch.empty((len(probes), 0), dtype=torch.int64)
    for start in range(0, len(gallery), _ROWS):
        some = gallery[start : start + _ROWS]
        out = block[: len(probes) * len(some)].view(len(probes), len(some))
        scores, rows = _best_of(torch.mm(probes, some.T, out=out), count)
        best, where = torch.cat((best, scores), 1), torch.cat((where, rows + start), 1)
        best, where = _sorted(best, where, count)
    return best, where


def _best_of(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best columns of each row and their positions, in no order."""
    width = scores.shape[1]
    groups = width // _GROUP
    if groups <= 2 * count:
        found = scores.topk(min(count, width), dim=1)
        return found.values, found.indices
    head = scores[:, : groups * _GROUP]
    whole = head.reshape(len(scores), groups, _GROUP)
    chosen = whole.amax(dim=2).topk(count, dim=1).indices
    rows = chosen + torch.arange(len(scores))[:, None] * groups
    picked = whole.reshape(-1, _GROUP).index_select(0, rows.flatten()).view(len(scores), -1)
    rest = scores[:, groups * _GROUP :]
    found = torch.cat((picked, rest), 1).topk(count, dim=1)
    inside = found.indices.clamp(max=picked.shape[1] - 1)
    columns = chosen.gather(1, inside // _GROUP) * _GROUP + inside % _GROUP
    beyond = found.indices - picked.shape[1]
    return found.values, torch.where(beyond >= 0, groups * _GROUP + beyond, columns)


def _sorted(scores: torch.Tensor, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = rows.argsort(dim=1)
    scores, rows = scores.gather(1, order), rows.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return scores.gather(1, order), rows.gather(1, order)
