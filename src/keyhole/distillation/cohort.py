"""A cohort: students that see the same batches, under one teacher or none.

Where there is a teacher, it runs once per batch, and all students learn from that one pass; each has its own weights,
adapters and optimizer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keyhole.data.splits import Batch, Split
from keyhole.distillation.arm import Arm, Lesson, check_arms, loss_text
from keyhole.distillation.config import TrainConfig, make_optimizer
from keyhole.distillation.group import ALONE, Group
from keyhole.distillation.kinds import HintPair, Setting
from keyhole.distillation.learner import Learner, draws_random_numbers, under
from keyhole.distillation.own_terms import OwnLoss
from keyhole.distillation.replay import Replay
from keyhole.distillation.teaching import TEACHER_PARTS, Keep, Teaching
from keyhole.distillation.terms import Term, build_term
from keyhole.errors import SettingError, WeightsError, unknown_name
from keyhole.models.layers import Tapped, layers
from keyhole.models.network import Network
from keyhole.runtime import choose_device, choose_precision, ready_compiler


class Cohort:
    """Learners that see the same batches, under one teacher or none.

    Args:
        arms: The members; each name once.
        config: How to train.
        classes: Number of classes.
        teacher: The teacher; it is copied and frozen.
        train: The training images, for terms that keep something of each of them, and for ``compile="auto"``.
        group: The processes that train this cohort together; each has all the learners and its share of every batch.
        keep: How much is kept of what the teacher says of images that come again (see :class:`Batch`).

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
        group: Group = ALONE,
        keep: Keep | None = None,
    ) -> None:
        check_arms(arms, teacher=teacher is not None, processes=group.count)
        self.group = group
        self.device = group.device or choose_device(config.device)
        if self.device.type == "cuda" and self.device.index is not None:
            # streams, records and random numbers are those of the current GPU
            torch.cuda.set_device(self.device)
        precision = group.broadcast(lambda: choose_precision(config.precision, self.device))
        self.config = config = replace(config, precision=precision)
        self.teacher_input = teacher.input if teacher else None
        self._train = train
        lasting = teacher is not None and any(term.kind.last for arm in arms for term in arm.terms)
        self._last = layers(teacher)[-1].name if teacher is not None and lasting else None
        taps = sorted({pair.teacher for arm in arms for pair in arm.hints} | ({self._last} if self._last else set()))
        channels = channels_of(teacher, taps) if teacher is not None else {}
        self._draws = False
        images = config.epochs * len(train) if train is not None else 0
        pays = config.compile == "on" or (config.compile == "auto" and images >= 200_000)
        self._compiles = pays and (config.compile == "on" or self.device.type == "cuda")
        # of several GPUs each batch norm waits for the others, within what would be compiled
        self._compiles &= group.count == 1 or self.device.type == "cpu"
        self.learners = [self._enlist(arm, classes, channels) for arm in arms]
        asked = teacher is not None and any(term.needs_teacher for arm in arms for term in arm.terms)
        # with a teacher, one arm by itself computes as it would beside others, so that a cell is a cell; but where the
        # teacher's answers are kept it soon has nothing to do beside the one student, which then takes all cores
        threads = torch.get_num_threads()
        self._places = min(threads, len(arms) + (TEACHER_PARTS if asked else 0) + (teacher is not None and not asked))
        self._places = 1 if keep is not None and len(arms) == 1 else self._places
        self._workers = self._hire(self._places, max(1, threads // max(self._places, 1)))
        self._teaching: Teaching | None = None
        self.replays = (
            self.device.type == "cuda" and config.compile == "on" and group.count == 1 and not self._draws
            and all(learner.repeats for learner in self.learners)
        )  # fmt: skip
        self._replay: Replay[None] | None = None
        if teacher is not None and asked:
            self._teaching = Teaching(
                teacher,
                taps,
                device=self.device,
                precision=config.precision,
                compile=pays and keep is None,
                replays=self.replays,
                workers=self._workers,
                places=self._places,
                keep=keep,
            )
        self.dropped: dict[str, str] = {}
        self._coming: Iterator[Batch] = iter(())
        self._ahead: deque[Callable[[], Lesson]] = deque()
        torch.manual_seed(config.seed)

    def _hire(self, places: int, threads: int) -> ThreadPoolExecutor | None:
        """Return workers that share the cores, where there is work for several.

        Networks this small leave a second core of one operation half idle, and a second network keeps it busy. What
        draws random numbers as it runs (dropout) shares one generator, so it has to take turns. Threads that the
        process starts afterwards compute on as many threads as a worker, which is how PyTorch counts them. Where
        several processes look at gradients to balance them, they do so in one order.
        """
        balanced = any(learner.arm.balance != "weights" for learner in self.learners)
        if self.device.type != "cpu" or self._draws or places < 2 or (self.group.count > 1 and balanced):
            return None
        return ThreadPoolExecutor(places, "keyhole", initializer=torch.set_num_threads, initargs=(threads,))

    def _enlist(self, arm: Arm, classes: int, teacher_channels: Mapping[str, int]) -> Learner:
        torch.manual_seed(self.config.seed)
        network = arm.build(classes)
        self._draws = self._draws or draws_random_numbers(network)
        end: tuple[HintPair, ...] = ()
        if self._last is not None and any(term.kind.last for term in arm.terms):
            end = (HintPair(self._last, layers(network)[-1].name),)
        pairs = (*arm.hints, *end)
        names = list(dict.fromkeys(pair.student for pair in pairs))
        own = channels_of(network, names)
        channels = {pair: (own[pair.student], teacher_channels[pair.teacher]) for pair in pairs}
        terms = nn.ModuleDict(
            {term.key: build_term(term, self._setting(arm, term, end, channels, network.classes)) for term in arm.terms}
        )
        for part in terms.values():
            if self.group.count > 1 and isinstance(part, OwnLoss) and part.remembers:
                raise SettingError(
                    f"Arm {arm.name}: term {part.name} keeps something from step to step, which one process must fill. "
                    "Leave the term out, or run without torchrun."
                )
        network = replace(network, module=self.group.share_statistics(network.module))
        terms = self.group.share_statistics(terms)
        network.module.to(self.device).to(memory_format=torch.channels_last)
        for part in terms.to(self.device).values():
            if not isinstance(part, OwnLoss):  # which may have weights of any form
                part.to(memory_format=torch.channels_last)
        parameters = [*network.module.parameters(), *terms.parameters()]
        if not parameters:
            raise SettingError(f"{arm.student} has no parameters to train. Take another student.")
        optimizer = make_optimizer(parameters, self.config, fused=self.device.type == "cuda")
        tapped = Tapped(network.module, names, image=network.input.size_px)
        # what balances asks for several gradients of one forward pass, for which compiled code does not keep its memory
        if self._compiles and arm.balance == "weights":
            ready_compiler()
            tapped.compile(dynamic=False)
        return Learner(arm, network, tapped, terms, optimizer)

    def _setting(
        self,
        arm: Arm,
        term: Term,
        end: tuple[HintPair, ...],
        channels: Mapping[HintPair, tuple[int, int]],
        outputs: int,
    ) -> Setting:
        kind = term.kind
        pairs = end if kind.last else arm.hints if kind.hints else ()
        labels = None
        if kind.last:
            if self._train is None or not self._train.classes:
                raise SettingError(f"Arm {arm.name}: term {term.name} needs the labels of the training images.")
            indices = self._train.indices.cpu()
            labels = torch.full((int(indices.max()) + 1,), -1)
            labels[indices] = self._train.labels.cpu()
        return Setting(
            pairs,
            [channels[pair] for pair in pairs],
            labels,
            self.config.seed,
            self.config.batch_size,
            outputs,
            classes=len(self._train.classes) if self._train is not None else 0,
            images=int(self._train.indices.max()) + 1 if self._train is not None else 0,
            rank=self.group.rank,
        )

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
        views = {spec: spec.prepare(batch.images) for spec in {learner.arm.input: None for learner in self.learners}}
        teaching, wanted, show = self._teaching, self.teacher_input, batch.shown
        if teaching is None or wanted is None:
            return lambda: Lesson(batch, views, None)
        if show is None:
            answer = teaching.ask(views[wanted] if wanted in views else wanted.prepare(batch.images), batch.views)
        else:
            every = torch.ones(len(batch.labels), dtype=torch.bool)
            answer = teaching.ask(lambda rows: wanted.prepare(show(every if rows is None else rows)), batch.views)
        return lambda: Lesson(batch, views, answer())

    def step(self, lesson: Lesson, rate: float) -> None:
        """Let every learner take one step on a batch, side by side where there are cores for it."""
        if self._workers is not None:
            self._side_by_side(self._workers, lesson, rate)
        elif self.replays:
            self._again(lesson, rate)
        elif self._draws:
            dropout_seed = int(torch.randint(2**62, ()))  # of each learner, whoever else is in the cohort
            state = torch.get_rng_state()
            for learner in self.learners:
                torch.manual_seed(dropout_seed + self.group.rank)
                self._learn(learner, lesson, rate)
            torch.set_rng_state(state)
        else:
            for learner in self.learners:
                self._learn(learner, lesson, rate)
        for learner in self.learners:
            learner.steps += 1

    def _side_by_side(self, workers: ThreadPoolExecutor, lesson: Lesson, rate: float) -> None:
        work = self._learn if self.group.count == 1 else self._look
        steps = [workers.submit(work, learner, lesson, rate) for learner in self.learners]
        self._look_ahead()  # behind the learners in the queue: it fills the cores that they leave idle
        for learner, done in zip(self.learners, steps, strict=True):
            done.result()
            if self.group.count > 1:  # processes meet in the order of the learners
                learner.update(rate, self.group)

    def _again(self, lesson: Lesson, rate: float) -> None:
        """Take the step as a replay of an earlier one, on the tensors of this one."""
        if self._replay is None:

            def work(rate: Tensor, *tensors: Tensor) -> None:
                for learner in self.learners:
                    self._learn(learner, lesson.of(tensors), rate)

            self._replay = Replay(work, self.device)
        self._replay(torch.full((), rate, device=self.device), *lesson.tensors())

    def _learn(self, learner: Learner, lesson: Lesson, rate: float | Tensor) -> None:
        self._look(learner, lesson, rate)
        learner.update(rate, self.group)

    def _look(self, learner: Learner, lesson: Lesson, _rate: float | Tensor) -> None:
        learner.look(lesson, self.config.precision, self.group)

    def train_mode(self) -> None:
        """Put all learners into training mode."""
        for learner in self.learners:
            learner.network.module.train()
            learner.terms.train()

    def diverged(self, where: str) -> dict[str, str]:
        """Return, by arm, which losses are NaN or infinite, or which weight, which is so one step before the loss.

        One term that is NaN makes the weights so, and they all terms in the next step: which was first cannot be told.

        Args:
            where: Told with it, such as ``in epoch 3``.
        """
        found = {}
        for learner in self.learners:
            weights = ((name, t.detach().abs().sum()) for name, t in learner.numbers() if t.is_floating_point())
            looked = [*learner.sums.items(), *weights]
            values = torch.stack([value.to(self.device, torch.float32) for _, value in looked]).tolist()  # read at once
            wrong = [(name, value) for (name, _), value in zip(looked, values, strict=True) if not math.isfinite(value)]
            terms = [(name, value) for name, value in wrong if name in learner.sums and name != "loss"]
            if (
                told := terms or wrong[:1]
            ):  # the sum of the terms, and what stands behind it, only where they are finite
                found[learner.arm.name] = f"{', '.join(f'{name} is {value}' for name, value in told)} {where}"
        return found

    def average_sums(self) -> None:
        """Make the sums of each learner those of all processes."""
        for learner in self.learners:
            self.group.average(list(learner.sums.values()))

    def drop(self, name: str, why: str) -> None:
        """Go on without an arm; the others learn as if it had never been there."""
        self.learners = [learner for learner in self.learners if learner.arm.name != name]
        self._replay = None
        self.dropped[name] = why

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a later process needs to go on bit by bit: tensors and JSON values."""
        tensors = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng_cuda"] = torch.cuda.get_rng_state()
        values = []
        for i, learner in enumerate(self.learners):
            own, kept = learner.state()
            tensors |= {f"{i}.{name}": tensor for name, tensor in own.items()}
            values.append(kept)
        names = [learner.arm.name for learner in self.learners]
        losses = [loss_text(learner.arm) for learner in self.learners]
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
            if old != (new := loss_text(learner.arm)):
                raise WeightsError(
                    f"The checkpoint's arm {learner.arm.name} learned by {old}, not by {new}. Start anew."
                )
        torch.set_rng_state(tensors["rng"])
        if "rng_cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng_cuda"])
        self._replay = None
        for i, learner in enumerate(self.learners):
            learner.restore(under(tensors, f"{i}."), values["learners"][i])


def channels_of(network: Network, names: Sequence[str]) -> dict[str, int]:
    """Return the channels of named layers."""
    if not names:
        return {}
    found = {layer.name: layer.channels for layer in layers(network, ",".join(names))}
    for name in names:
        if name not in found:
            raise unknown_name("layer", name, found, see="'keyhole layers' lists the candidates.")
    return found
