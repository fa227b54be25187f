"""How to train: the schedule and the optimizer of every arm of a cohort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from keyhole.errors import SettingError, unknown_name
from keyhole.runtime import check_precision

SCHEDULES = ("step", "cosine")
OPTIMIZERS = ("sgd", "adamw")
OF_MACHINE = ("compile", "device")  # settings that may differ between processes, and when a run goes on
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "several numbers"}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are those of the published CIFAR-100 comparisons.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate at the start (after the warm-up).
        momentum: Of stochastic gradient descent; with ``adamw`` the decay of the mean gradient.
        nesterov: Use Nesterov's form.
        weight_decay: L2 penalty on all weights; with ``adamw`` decoupled from the gradient.
        schedule: ``step`` multiplies by 0.1 at the milestones; ``cosine`` falls to 0 in every step.
        milestones: Fractions of the epochs.
        warmup_epochs: The rate rises linearly over so many epochs first.
        augment: Pad, crop and flip.
        seed: Fixes initialization, order and augmentation.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: the faster one here.
        compile: ``auto`` compiles in long runs what pays: the frozen teacher, and on a GPU the students as well; ``on``
            compiles all of them always, and on a GPU also records their step as a CUDA graph; or ``off``. Students
            whose terms are balanced by gradients, and those of several GPUs, are never compiled.
        device: ``auto``, ``cpu``, ``cuda``.
        optimizer: ``sgd``, or ``adamw`` (https://arxiv.org/abs/1711.05101), which networks without batch norm need,
            such as those of an OpenVINO IR.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    warmup_epochs: float = 0.0
    augment: bool = True
    seed: int = 0
    precision: str = "auto"
    compile: str = "auto"
    device: str = "auto"
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        """Check kinds and ranges, naming the setting."""
        for name, value in vars(self).items():
            default = type(self).__dataclass_fields__[name].default
            kind = int if name == "epochs" else type(default)
            if not isinstance(value, (int, float) if kind is float else kind) or (
                isinstance(value, bool) and kind is not bool
            ):
                raise SettingError(f"{name} is {value!r}; expected {_KINDS[kind]}.")
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        zero = ("lr", "momentum", "weight_decay", "warmup_epochs", "seed")
        for name, low in (("epochs", 1), ("batch_size", 1), *((name, 0) for name in zero)):
            value = getattr(self, name)
            if not low <= value < (2**63 if isinstance(value, int) else math.inf):  # nor NaN
                raise SettingError(f"{name} is {value}; expected a number >= {low} and below 2^63.")
        if not all(isinstance(part, (int, float)) and 0 <= part <= 1 for part in self.milestones):
            raise SettingError(f"milestones are {self.milestones}; expected fractions of the epochs, 0 to 1.")
        if self.warmup_epochs > self.epochs:
            raise SettingError(f"warmup_epochs is {self.warmup_epochs:g}; expected at most the {self.epochs} epochs.")
        self._check_optimizer()
        check_precision(self.precision)
        if self.compile not in ("auto", "on", "off"):
            raise SettingError(f"compile is {self.compile!r}; expected auto, on or off.")

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.nesterov and (not self.momentum or self.optimizer != "sgd"):
            raise SettingError("nesterov needs sgd with a momentum above 0; leave it out, or change those.")
        if not self.momentum < 1:
            raise SettingError(f"momentum is {self.momentum}; expected a number below 1.")

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what is learnt, by name: without those of the machine, which may differ in a run.

        Example:
            >>> "lr" in TrainConfig(1).deciding, "device" in TrainConfig(1).deciding
            (True, False)
        """
        return {name: value for name, value in asdict(self).items() if name not in OF_MACHINE}

    def rate(self, epoch: float) -> float:
        """Return the learning rate after so many epochs (a fraction counts).

        Example:
            >>> config = TrainConfig(epochs=240)
            >>> [round(config.rate(epoch), 7) for epoch in (0, 149, 150, 180, 210)]
            [0.05, 0.05, 0.005, 0.0005, 5e-05]
        """
        if epoch < self.warmup_epochs:
            return self.lr * (epoch + 1e-3) / (self.warmup_epochs + 1e-3)
        if self.schedule == "cosine":
            done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
            return 0.5 * self.lr * (1 + math.cos(math.pi * min(done, 1.0)))
        passed = sum(int(epoch) >= round(fraction * self.epochs) for fraction in self.milestones)
        return float(self.lr * 0.1**passed)


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: TrainConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a config, over all parameters alike.

    Args:
        parameters: What it changes.
        config: Its kind and its settings.
        fused: All parameters in one kernel, and nothing of a step on the host: for a GPU.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=fused or None,
            capturable=fused,
        )
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )
