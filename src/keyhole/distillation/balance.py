"""Terms that pull equally hard: each is scaled by the size of its gradient, so that no weight needs tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from keyhole.distillation.contrast import Contrast

BALANCES = ("weights", "gradients")
BALANCE_EVERY = 50  # steps; it costs one more gradient for each term


def gradient_scales(
    student: nn.Module,
    terms: nn.ModuleDict,
    values: Mapping[str, Tensor],
    old: Mapping[str, float],
    *,
    average: Callable[[Sequence[Tensor]], None] = lambda _gradients: None,
) -> dict[str, float]:
    """Return what each term is to be multiplied with so that its gradient is as large as the first term's.

    The size of a gradient is its Euclidean norm over the student's weights; what terms have of their own is left out. A
    new scale is the geometric mean of the old one and of what this step asks for; a term without a gradient keeps its
    scale. Looking changes nothing: memories stay as they are.

    Args:
        student: The student.
        terms: What computes the terms.
        values: The terms in this step, with their graphs, which are kept; the first one sets the size.
        old: The scales so far; empty at first.
        average: Makes gradients, in place, those of all processes that train together.

    Reference:
        The idea of equal gradient norms is that of Chen et al. (2018), GradNorm, https://arxiv.org/abs/1711.02257;
        here scales are set, not learned, and training rates play no part.
    """
    weights = [p for p in student.parameters() if p.requires_grad]
    contrasts = [part for part in terms.modules() if isinstance(part, Contrast)]
    for part in contrasts:
        part.remembers = False
    norms = {}
    for name, value in values.items():
        grad = value.requires_grad  # a loss of the user's may be a constant at times
        found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True) if grad else ()
        there = [gradient for gradient in found if gradient is not None]
        average(there)
        squares = [gradient.float().square().sum() for gradient in there]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    for part in contrasts:
        part.remembers = True
    first = next(iter(norms.values()))
    return {name: _scale(first, norm, old.get(name)) for name, norm in norms.items()}


def _scale(first: float, norm: float, old: float | None) -> float:
    if not (norm > 0 and first > 0 and math.isfinite(first / norm)):
        return 1.0 if old is None else old
    return first / norm if old is None else math.sqrt(old * first / norm)
