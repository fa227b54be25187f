"""A student in training: its network, what computes its terms, its optimizer, and its state on disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from keyhole.bf16 import fast_products
from keyhole.distillation.arm import Arm, Lesson
from keyhole.distillation.balance import BALANCE_EVERY, gradient_scales
from keyhole.distillation.contrast import Contrast
from keyhole.distillation.group import Group
from keyhole.distillation.kinds import View
from keyhole.distillation.own_terms import OwnLoss
from keyhole.errors import KeyholeError, SettingError, reason_of
from keyhole.models.layers import Tapped
from keyhole.models.network import Network
from keyhole.models.zoo import fill
from keyhole.runtime import autocast

# what an optimizer keeps of each weight, and how it is called in a checkpoint
_MOMENTA = {"momentum_buffer": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "step": "steps_of"}
_KEPT = ("history", "best_epoch", "steps", "scales")


@dataclass
class Learner:
    """A student in training, and the epoch's sums so far."""

    arm: Arm
    network: Network
    tapped: Tapped
    terms: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    steps: int = 0
    scales: dict[str, float] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Return what is trained, by part."""
        return {"student": self.network.module, "term": self.terms}

    def numbers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what must stay finite: all that is trained, but for what losses of the user's keep beside weights."""
        yield from self.network.module.state_dict().items()
        for key, part in self.terms.items():
            tensors = part.named_parameters() if isinstance(part, OwnLoss) else part.state_dict().items()
            yield from ((f"{key}.{name}", tensor) for name, tensor in tensors)

    @property
    def owned(self) -> tuple[str, ...]:
        """Names of the terms that are losses of the user's."""
        return tuple(part.name for part in self.terms.values() if isinstance(part, OwnLoss))

    @property
    def weights(self) -> list[nn.Parameter]:
        """All that the optimizer changes."""
        parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        return parameters

    @property
    def repeats(self) -> bool:
        """Whether every step runs the very same operations, so that one may be recorded and replayed."""
        if self.owned:  # which may do something else in every step
            return False
        return self.arm.balance == "weights" and not any(isinstance(part, Contrast) for part in self.terms.modules())

    def look(self, lesson: Lesson, precision: str, group: Group) -> None:
        """Compute the gradient of the loss on a batch, and add the terms to the sums."""
        self.optimizer.zero_grad(set_to_none=True)
        images = lesson.views[self.arm.input]
        with autocast(images.device, precision), _explained_batch_norm(self.arm):
            logits, features = self.tapped(images)
            answer, hints = lesson.taught or (None, {})
            view = View(logits, features, answer, hints, lesson.batch.labels, lesson.batch.indices, self.steps)
            values = {term.name: self.terms[term.key](view) for term in self.arm.terms}
        products = fast_products(images.device) if precision == "bf16" else nullcontext()
        with products, _explained_gradient(self.owned):
            if self.arm.balance == "gradients" and self.steps % BALANCE_EVERY == 0:
                self.scales = gradient_scales(
                    self.network.module, self.terms, values, self.scales, average=group.average
                )
            total = sum(
                (term.weight * self.scales.get(term.name, 1.0) * values[term.name] for term in self.arm.terms),
                start=logits.new_zeros(()),
            )
            if total.requires_grad:  # a loss of the user's may be a constant at first
                total.backward()
        for name, value in (*values.items(), ("loss", total)):
            if name in self.sums:
                self.sums[name] += value.detach()
            else:
                self.sums[name] = value.detach().clone()

    def update(self, rate: float | Tensor, group: Group) -> None:
        """Take the step that the gradient asks for; the gradient is that of all processes."""
        if group.count > 1 and self.owned:
            self._meet(group)
        group.average([weight.grad for weight in self.weights if weight.grad is not None])
        for part in self.optimizer.param_groups:
            part["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _meet(self, group: Group) -> None:
        """Let a weight have a gradient where it has one in any process: losses of the user's may use some at times."""
        there = torch.tensor([float(weight.grad is not None) for weight in self.weights], device=self.weights[0].device)
        group.average([there])
        for weight, share in zip(self.weights, there.tolist(), strict=True):
            if share > 0 and weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    def sums_as_numbers(self) -> dict[str, float]:
        """Return the sums as numbers."""
        return {name: float(value) for name, value in self.sums.items()}

    def clear_sums(self) -> None:
        """Begin the sums of an epoch anew, in place, as a recorded step writes to them."""
        for value in self.sums.values():
            value.zero_()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a later process needs to go on: tensors and JSON values."""
        tensors: dict[str, Tensor] = {}
        for part, module in self.modules().items():
            tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        for k, weight in enumerate(self.weights):
            for key, value in self.optimizer.state[weight].items():
                if isinstance(value, Tensor):
                    tensors[f"{_MOMENTA.get(key, key)}.{k}"] = value
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"sum.{name}": tensor for name, tensor in self.sums.items()}
        return tensors, {name: getattr(self, name) for name in _KEPT}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over a state that :meth:`state` gave.

        Raises:
            WeightsError: It is the state of another network.
        """
        source = f"The checkpoint of arm {self.arm.name}"
        fill(self.network.module, under(tensors, "student."), source=source)
        for key, module in self.terms.items():
            fill(module, under(tensors, f"term.{key}."), source=source, finite=not isinstance(module, OwnLoss))
        for key, name in _MOMENTA.items():
            kept = under(tensors, f"{name}.")
            for k, weight in enumerate(self.weights):
                if str(k) in kept:
                    value = kept[str(k)]
                    like = weight if value.shape == weight.shape else value.to(weight.device)
                    self.optimizer.state[weight][key] = torch.empty_like(like).copy_(value)
        device = self.weights[0].device
        self.best = under(tensors, "best.")
        sums = under(tensors, "sum.")  # by name there, and in the order of the terms here, as the log has them
        names = (*(term.name for term in self.arm.terms), "loss")
        self.sums = {name: sums[name].to(device) for name in names if name in sums}
        self.history = list(values["history"])
        self.best_epoch = int(values["best_epoch"])
        self.steps = int(values.get("steps", 0))
        self.scales = dict(values.get("scales", {}))


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def draws_random_numbers(network: Network) -> bool:
    """Return whether a forward pass in training mode draws random numbers, as dropout does."""
    module = copy.deepcopy(network.module).cpu().train()
    before = torch.get_rng_state()
    with torch.no_grad():
        module(torch.zeros(2, network.input.channels, *network.input.size_px))
    drew = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return drew


@contextmanager
def _explained_gradient(owned: Sequence[str]) -> Iterator[None]:
    """Tell an error in the gradient as one of the user's losses, where there are some."""
    try:
        yield
    except (KeyholeError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if not owned:
            raise
        raise SettingError(
            f"The gradient of {' or '.join(owned)} failed: {type(error).__name__}: {reason_of(error)}. Keep no tensor "
            "of an earlier step without detach, and change none in place that a gradient needs."
        ) from error


@contextmanager
def _explained_batch_norm(arm: Arm) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SettingError(
            f"Arm {arm.name}: batch norm needs more than one value a channel, and a batch of one image has one "
            "in a feature of one pixel. Raise --batch-size."
        ) from error
