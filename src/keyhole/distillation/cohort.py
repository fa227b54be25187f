"""A cohort: students that see the same batches, under one teacher or none.

Where there is a teacher, it runs once per batch, and all students learn from that one pass; each has its own weights,
adapters and optimizer.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from keyhole.data.splits import Batch, Split
from keyhole.distillation.balance import BALANCE_EVERY, BALANCES, gradient_scales
from keyhole.distillation.teaching import TEACHER_PARTS, Answer, Teaching
from keyhole.distillation.terms import TERMS, HintPair, Setting, Term, View, build_term, check_terms
from keyhole.errors import SettingError, WeightsError, unknown_name
from keyhole.models.layers import Tapped, layers
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build, fill
from keyhole.runtime import autocast, check_precision, choose_device, choose_precision

SCHEDULES = ("step", "cosine")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "several numbers"}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are those of the published CIFAR-100 comparisons.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate at the start (after the warm-up).
        momentum: Of stochastic gradient descent.
        nesterov: Use Nesterov's form.
        weight_decay: L2 penalty on all weights.
        schedule: ``step`` multiplies by 0.1 at the milestones; ``cosine`` falls to 0 in every step.
        milestones: Fractions of the epochs.
        warmup_epochs: The rate rises linearly over so many epochs first.
        augment: Pad, crop and flip.
        seed: Fixes initialization, order and augmentation.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: the faster one here.
        compile: ``auto`` compiles the frozen teacher where it pays: long runs with a compiler; or ``on``, ``off``.
        device: ``auto``, ``cpu``, ``cuda``.
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
        if not all(0 <= fraction <= 1 for fraction in self.milestones):
            raise SettingError(f"milestones are {self.milestones}; expected fractions of the epochs, 0 to 1.")
        if self.nesterov and not self.momentum:
            raise SettingError("nesterov needs a momentum above 0; got 0.")
        check_precision(self.precision)
        if self.compile not in ("auto", "on", "off"):
            raise SettingError(f"compile is {self.compile!r}; expected auto, on or off.")

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


@dataclass(frozen=True)
class Arm:
    """One member of a cohort: what is trained, and on what.

    Attributes:
        name: How it is called in tables.
        student: Name of the network (see :func:`keyhole.models.zoo.build`).
        input: Size and normalization that the student expects; it gets the teacher's view, resized.
        terms: The terms of its loss.
        hints: Which of its layers learn from which layers of the teacher.
        balance: ``weights`` takes the terms as they are; ``gradients`` first scales each so that its gradient in the
            student's weights is as large as that of the first term, so that weights tell how hard each one pulls.
    """

    name: str
    student: str
    input: InputSpec
    terms: tuple[Term, ...]
    hints: tuple[HintPair, ...] = ()
    balance: str = "weights"

    def __post_init__(self) -> None:
        """Check the name of the balance."""
        if self.balance not in BALANCES:
            raise unknown_name("balance", self.balance, BALANCES)


@dataclass
class Learner:
    """A student in training: its network, what computes its terms, its optimizer, and the epoch's sums so far."""

    arm: Arm
    network: Network
    tapped: Tapped
    terms: nn.ModuleDict
    optimizer: torch.optim.SGD
    sums: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    steps: int = 0
    scales: dict[str, float] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Return what is trained, by part."""
        return {"student": self.network.module, "term": self.terms}


@dataclass(frozen=True)
class Lesson:
    """A batch as each network sees it, and the teacher's answer.

    Attributes:
        batch: The batch.
        views: Its images, prepared, by what a network expects.
        taught: The teacher's logits and features; None without a teacher.
    """

    batch: Batch
    views: Mapping[InputSpec, Tensor]
    taught: Answer | None


class Cohort:
    """Learners that see the same batches, under one teacher or none.

    Args:
        arms: The members; each name once.
        config: How to train.
        classes: Number of classes.
        teacher: The teacher; it is copied and frozen.
        train: The training images, for terms that keep something of each of them, and for ``compile="auto"``.

    Raises:
        SettingError: A term lacks its teacher or its hints, or two arms have one name.
        UnknownNameError: A hint names a layer that does not exist.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        config: TrainConfig,
        *,
        classes: int,
        teacher: Network | None = None,
        train: Split | None = None,
    ) -> None:
        names = [arm.name for arm in arms]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SettingError(f"Two arms are called {twice!r}; give each a name of its own.")
        self.device = choose_device(config.device)
        self.config = config = replace(config, precision=choose_precision(config.precision, self.device))
        self.teacher_input = teacher.input if teacher else None
        for arm in arms:
            check_terms(arm.terms, teacher=teacher is not None, hints=bool(arm.hints))
        self._train = train
        lasting = teacher is not None and any(TERMS[term.name].last for arm in arms for term in arm.terms)
        self._last = layers(teacher)[-1].name if teacher is not None and lasting else None
        taps = sorted({pair.teacher for arm in arms for pair in arm.hints} | ({self._last} if self._last else set()))
        channels = channels_of(teacher, taps) if teacher is not None else {}
        self.learners = [self._enlist(arm, classes, channels) for arm in arms]
        asked = teacher is not None and any(term.needs_teacher for arm in arms for term in arm.terms)
        self._draws = any(_draws_random_numbers(learner.network) for learner in self.learners)
        # with a teacher, one arm by itself computes as it would beside others, so that a cell is a cell
        threads = torch.get_num_threads()
        self._places = min(threads, len(arms) + (TEACHER_PARTS if asked else 0) + (teacher is not None and not asked))
        self._workers = self._hire(self._places, max(1, threads // max(self._places, 1)))
        self._teaching: Teaching | None = None
        images = config.epochs * len(train) if train is not None else 0
        if teacher is not None and asked:
            self._teaching = Teaching(
                teacher,
                taps,
                device=self.device,
                precision=config.precision,
                compile=config.compile == "on" or (config.compile == "auto" and images >= 200_000),
                workers=self._workers,
                places=self._places,
            )
        self.dropped: dict[str, str] = {}
        self._coming: Iterator[Batch] = iter(())
        self._ahead: deque[Callable[[], Lesson]] = deque()
        torch.manual_seed(config.seed)

    def _hire(self, places: int, threads: int) -> ThreadPoolExecutor | None:
        """Return workers that share the cores, where there is work for several.

        Networks this small leave a second core of one operation half idle, and a second network keeps it busy. What
        draws random numbers as it runs (dropout) shares one generator, so it has to take turns. Threads that the
        process starts afterwards compute on as many threads as a worker, which is how PyTorch counts them.
        """
        if self.device.type != "cpu" or self._draws or places < 2:
            return None
        return ThreadPoolExecutor(places, "keyhole", initializer=torch.set_num_threads, initargs=(threads,))

    def _enlist(self, arm: Arm, classes: int, teacher_channels: Mapping[str, int]) -> Learner:
        torch.manual_seed(self.config.seed)
        network = build(arm.student, classes=classes, input=arm.input)
        end: tuple[HintPair, ...] = ()
        if self._last is not None and any(TERMS[term.name].last for term in arm.terms):
            end = (HintPair(self._last, layers(network)[-1].name),)
        pairs = (*arm.hints, *end)
        names = list(dict.fromkeys(pair.student for pair in pairs))
        own = channels_of(network, names)
        channels = {pair: (own[pair.student], teacher_channels[pair.teacher]) for pair in pairs}
        terms = nn.ModuleDict(
            {term.name: build_term(term, self._setting(arm, term, end, channels)) for term in arm.terms}
        )
        for module in (network.module, terms):
            module.to(self.device).to(memory_format=torch.channels_last)
        parameters = [*network.module.parameters(), *terms.parameters()]
        if not parameters:
            raise SettingError(f"{arm.student} has no parameters to train. Take another student.")
        optimizer = torch.optim.SGD(
            parameters,
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.nesterov,
            weight_decay=self.config.weight_decay,
        )
        return Learner(arm, network, Tapped(network.module, names), terms, optimizer)

    def _setting(
        self, arm: Arm, term: Term, end: tuple[HintPair, ...], channels: Mapping[HintPair, tuple[int, int]]
    ) -> Setting:
        kind = TERMS[term.name]
        pairs = end if kind.last else arm.hints if kind.hints else ()
        labels = None
        if kind.last:
            if self._train is None or not self._train.classes:
                raise SettingError(f"Arm {arm.name}: term {term.name} needs the labels of the training images.")
            indices = self._train.indices.cpu()
            labels = torch.full((int(indices.max()) + 1,), -1)
            labels[indices] = self._train.labels.cpu()
        return Setting(pairs, [channels[pair] for pair in pairs], labels, self.config.seed, self.config.batch_size)

    def lessons(self, batches: Iterable[Batch]) -> Iterator[Lesson]:
        """Yield each batch with the teacher's answer; with workers, the next answers are made while learners step."""
        self._coming = iter(batches)
        self._ahead.clear()
        self._look_ahead()
        while self._ahead:
            yield self._ahead.popleft()()
            self._look_ahead()

    def _look_ahead(self) -> None:
        # the second batch ahead fills the time that a worker waits for the other's last part of the first
        while len(self._ahead) < (2 if self._workers else 1):
            batch = next(self._coming, None)
            if batch is None:
                return
            self._ahead.append(self._lesson(batch))

    def _lesson(self, batch: Batch) -> Callable[[], Lesson]:
        views: dict[InputSpec, Tensor] = {}
        for spec in (self.teacher_input, *(learner.arm.input for learner in self.learners)):
            if spec is not None and spec not in views:
                views[spec] = spec.prepare(batch.images)
        if self._teaching is None or self.teacher_input is None:
            return lambda: Lesson(batch, views, None)
        answer = self._teaching.ask(views[self.teacher_input])
        return lambda: Lesson(batch, views, answer())

    def step(self, lesson: Lesson, rate: float) -> None:
        """Let every learner take one step on a batch, side by side where there are cores for it."""
        if self._workers is not None:
            steps = [self._workers.submit(self._learn, learner, lesson, rate) for learner in self.learners]
            self._look_ahead()  # behind the learners in the queue: it fills the cores that they leave idle
            for done in steps:
                done.result()
            return
        if not self._draws:
            for learner in self.learners:
                self._learn(learner, lesson, rate)
            return
        dropout_seed = int(torch.randint(2**62, ()))  # of each learner, whoever else is in the cohort
        state = torch.get_rng_state()
        for learner in self.learners:
            torch.manual_seed(dropout_seed)
            self._learn(learner, lesson, rate)
        torch.set_rng_state(state)

    def _learn(self, learner: Learner, lesson: Lesson, rate: float) -> None:
        with autocast(self.device, self.config.precision), _told_batch_norm(learner.arm):
            logits, features = learner.tapped(lesson.views[learner.arm.input])
            answer, hints = lesson.taught or (None, {})
            view = View(logits, features, answer, hints, lesson.batch.labels, lesson.batch.indices)
            values = {name: compute(view) for name, compute in learner.terms.items()}
        if learner.arm.balance == "gradients" and learner.steps % BALANCE_EVERY == 0:
            learner.scales = gradient_scales(learner.network.module, learner.terms, values, learner.scales)
        learner.steps += 1
        total = sum(
            (term.weight * learner.scales.get(term.name, 1.0) * values[term.name] for term in learner.arm.terms),
            start=logits.new_zeros(()),
        )
        total.backward()
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        for name, value in (*values.items(), ("loss", total)):
            learner.sums[name] = learner.sums.get(name, 0) + value.detach()

    def train_mode(self) -> None:
        """Put all learners into training mode."""
        for learner in self.learners:
            learner.network.module.train()
            learner.terms.train()

    def diverged(self, where: str) -> dict[str, str]:
        """Return, by arm, which loss is NaN or infinite, or which weight, which is so one step before the loss.

        Args:
            where: Told with it, such as ``in epoch 3``.
        """
        found = {}
        for learner in self.learners:
            tensors = [module.state_dict() for module in learner.modules().values()]
            weights = ((name, t.abs().sum()) for part in tensors for name, t in part.items() if t.is_floating_point())
            for name, value in (*learner.sums.items(), *weights):
                if not math.isfinite(float(value)):
                    found[learner.arm.name] = f"{name} is {float(value)} {where}"
                    break
        return found

    def drop(self, name: str, why: str) -> None:
        """Go on without an arm; the others learn as if it had never been there."""
        self.learners = [learner for learner in self.learners if learner.arm.name != name]
        self.dropped[name] = why

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a later process needs to go on bit by bit: tensors and JSON values."""
        tensors = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng_cuda"] = torch.cuda.get_rng_state()
        for i, learner in enumerate(self.learners):
            for part, module in learner.modules().items():
                tensors |= {f"{i}.{part}.{name}": tensor for name, tensor in module.state_dict().items()}
            for k, parameter in enumerate(learner.optimizer.param_groups[0]["params"]):
                if (buffer := learner.optimizer.state[parameter].get("momentum_buffer")) is not None:
                    tensors[f"{i}.momentum.{k}"] = buffer
            tensors |= {f"{i}.best.{name}": tensor for name, tensor in learner.best.items()}
            tensors |= {f"{i}.sum.{name}": tensor for name, tensor in learner.sums.items()}
        kept = ("history", "best_epoch", "steps", "scales")
        values = [{name: getattr(learner, name) for name in kept} for learner in self.learners]
        names = [learner.arm.name for learner in self.learners]
        losses = [_told_loss(learner.arm) for learner in self.learners]
        return tensors, {"arms": names, "losses": losses, "learners": values, "dropped": self.dropped}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over a state that :meth:`state` gave.

        Raises:
            WeightsError: It is the state of another cohort.
        """
        for name, why in values.get("dropped", {}).items():
            self.drop(name, why)
        names = [learner.arm.name for learner in self.learners]
        if values.get("arms") != names:
            raise WeightsError(f"The checkpoint holds the arms {values.get('arms')}, expected {names}.")
        for learner, old in zip(self.learners, values.get("losses", ()), strict=False):
            if old != (new := _told_loss(learner.arm)):
                raise WeightsError(
                    f"The checkpoint's arm {learner.arm.name} learned by {old}, not by {new}. Start anew."
                )
        torch.set_rng_state(tensors["rng"])
        if "rng_cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng_cuda"])
        for i, learner in enumerate(self.learners):
            for part, module in learner.modules().items():
                fill(module, _under(tensors, f"{i}.{part}."), source=f"The checkpoint of arm {names[i]}")
            momenta = _under(tensors, f"{i}.momentum.")
            for k, parameter in enumerate(learner.optimizer.param_groups[0]["params"]):
                if str(k) in momenta:
                    buffer = torch.empty_like(parameter).copy_(momenta[str(k)])
                    learner.optimizer.state[parameter]["momentum_buffer"] = buffer
            learner.best = _under(tensors, f"{i}.best.")
            learner.sums = {name: value.to(self.device) for name, value in _under(tensors, f"{i}.sum.").items()}
            learner.history = list(values["learners"][i]["history"])
            learner.best_epoch = int(values["learners"][i]["best_epoch"])
            learner.steps = int(values["learners"][i].get("steps", 0))
            learner.scales = dict(values["learners"][i].get("scales", {}))


def _draws_random_numbers(network: Network) -> bool:
    """Return whether a forward pass in training mode draws random numbers, as dropout does."""
    module = copy.deepcopy(network.module).train()
    device = next(module.parameters()).device
    before = torch.get_rng_state()
    with torch.no_grad():
        module(torch.zeros(2, network.input.channels, *network.input.size_px, device=device))
    drew = device.type != "cpu" or not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return drew


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def _told_batch_norm(arm: Arm) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SettingError(
            f"Arm {arm.name}: batch norm needs more than one value a channel, and a batch of one image has one "
            "in a feature of one pixel. Raise --batch-size."
        ) from error


def _told_loss(arm: Arm) -> str:
    """Return terms and hints in one line; two arms with the same line learn the same."""
    terms = " + ".join(f"{term.weight:g} {term.name} {term.temperature or ''}".rstrip() for term in arm.terms)
    balanced_by = f"; balance by {arm.balance}" if arm.balance != "weights" else ""
    weights = ["" if pair.weight == 1 else f" times {pair.weight:g}" for pair in arm.hints]
    pairs = (f"; {pair.teacher} -> {pair.student}{told}" for pair, told in zip(arm.hints, weights, strict=True))
    return terms + "".join(pairs) + balanced_by


def channels_of(network: Network, names: Sequence[str]) -> dict[str, int]:
    """Return the channels of named layers."""
    if not names:
        return {}
    found = {layer.name: layer.channels for layer in layers(network, ",".join(names))}
    for name in names:
        if name not in found:
            raise unknown_name("layer", name, found, see="'keyhole layers' lists the candidates.")
    return found
