"""Losses of the user's own: functions, or modules with weights, whose parameters' names say what they need."""

from __future__ import annotations

import inspect
import random
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from keyhole.distillation.kinds import Kind, Setting, View
from keyhole.errors import SettingError, reason_of
from keyhole.libraries import named

# what a loss may ask for: of one step, of one hint or of all, and, where it is a class, of what it is made for
_OF_LOGITS = ("logits", "teacher_logits")
_OF_EMBEDDINGS = ("embedding", "teacher_embedding")
_OF_A_HINT = ("feature", "teacher_feature")
_OF_ALL_HINTS = ("features", "teacher_features")
_OF_THE_STUDENT = ("logits", "embedding", "feature", "features")
_INPUTS = (*_OF_LOGITS, *_OF_EMBEDDINGS, *_OF_A_HINT, *_OF_ALL_HINTS, "labels", "indices", "step")
_OF_CHANNELS = ("student_channels", "teacher_channels")
_MADE_FOR = (*_OF_CHANNELS, "outputs", "classes", "images", "batch_size", "seed")


_Settings = Mapping[str, type]  # parameters with a number by default, and of which kind


@dataclass(frozen=True)
class _Asked:
    """What a loss of the user's asks for.

    Attributes:
        inputs: Of a step, by the names above.
        made_for: Of what it is made for, where it is a class.
        settings: Of each step.
        settings_made: Of what it is made with, where it is a class.
        temperature: Its default; None where it has none.
    """

    inputs: tuple[str, ...]
    made_for: tuple[str, ...]
    settings: _Settings
    settings_made: _Settings
    temperature: float | None

    @property
    def by_hint(self) -> bool:
        """Whether it is called once for each hint."""
        return any(name in _OF_A_HINT for name in self.inputs)

    @property
    def of_all_hints(self) -> bool:
        """Whether it is called once with the features of all hints."""
        return any(name in _OF_ALL_HINTS for name in self.inputs)

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of all settings, but for the temperature."""
        return tuple(name for name in {**self.settings_made, **self.settings} if name != "temperature")


def own_kind(name: str) -> Kind:
    """Return the kind of a term that is a loss of the user's.

    A function is called once a step, or once for each hint where it asks for ``feature``; it returns a scalar. It is
    given what its parameters are called:

    - ``logits``, ``teacher_logits``: (n, classes); in a training of embeddings ``embedding``, ``teacher_embedding``:
      (n, d).
    - ``feature``, ``teacher_feature``: of one hint, such as (n, channels, h, w); or ``features``,
      ``teacher_features``: lists of those of all hints. All these are in fp32.
    - ``labels``, ``indices``: (n), int64; ``indices`` are the positions of the images in their data set.
    - ``step``: how many steps were taken before, a whole number.

    Other parameters with a number by default are settings, as in ``package.module:function(gamma=2)``; ``temperature``
    among them is the term's. Random numbers that it draws depend on the seed and the step, and on nothing else that is
    trained.

    A class is a module of PyTorch whose ``forward`` is such a function. It may have weights, and is made once, or once
    for each hint, from what the parameters of its ``__init__`` are called: ``student_channels``, ``teacher_channels``
    (of its hint; lists where ``forward`` takes all), ``outputs`` of the student, ``classes``, ``images`` (one more than
    the highest of ``indices``), ``batch_size``, ``seed``, and settings.

    Args:
        name: ``package.module:function`` or ``package.module:Class``; its module is imported, which runs it.

    Raises:
        UnknownNameError: The module cannot be imported, or has no such function.
        SettingError: It is nothing that can be called, or asks for something that a loss is not given.
    """
    made = named(name)
    if isinstance(made, nn.Module) or (isinstance(made, type) and not issubclass(made, nn.Module)):
        raise SettingError(
            f"Term {name} is {_described(made)}; expected a function, or a class that is a torch.nn.Module."
        )
    asked = _asked(name, made)
    hints = asked.by_hint or asked.of_all_hints
    return Kind(
        1.0,
        lambda temperature, setting: OwnLoss(name, made, asked, temperature, setting),
        "by its author",
        temperature=asked.temperature,
        teacher=hints or any(each.startswith("teacher_") for each in asked.inputs),
        hints=hints,
        labels="labels" in asked.inputs,
        embeds=any(each in _OF_EMBEDDINGS for each in asked.inputs),
        knobs=asked.knobs,
        memory="indices" in asked.inputs,
        weighs=not asked.of_all_hints,
        own=True,
    )


def _described(made: Any) -> str:
    return "a module that is made already" if isinstance(made, nn.Module) else f"the class {made.__name__}"


def _asked(name: str, made: Any) -> _Asked:
    """Return what a function or a class asks for, or say what it cannot have."""
    first = _parameters(name, made)  # of a function, or of what makes a module
    is_class = isinstance(made, type)
    step = _parameters(name, made.forward, skip=1) if is_class else first
    sides = [(first, _MADE_FOR), (step, _INPUTS)] if is_class else [(step, _INPUTS)]
    for parameters, fitting in sides:
        for each, default in parameters.items():
            if default is inspect.Parameter.empty and each not in fitting:
                raise SettingError(
                    f"Term {name} asks for {each}, which a loss is not given; it may ask for {', '.join(fitting)}. "
                    "Name its parameters so, or give that one a number by default, which makes it a setting."
                )
    inputs = tuple(each for each in step if each in _INPUTS)
    if not any(each in _OF_THE_STUDENT for each in inputs):
        raise SettingError(f"Term {name} asks for nothing of the student; expected {', '.join(_OF_THE_STUDENT)}.")
    for one, other in ((_OF_LOGITS, _OF_EMBEDDINGS), (_OF_A_HINT, _OF_ALL_HINTS)):
        both = [next((each for each in inputs if each in side), None) for side in (one, other)]
        if None not in both:
            raise SettingError(f"Term {name} asks for {both[0]} and for {both[1]}; expected one of the two.")
    hints = any(each in (*_OF_A_HINT, *_OF_ALL_HINTS) for each in inputs)
    made_for = tuple(each for each in first if each in _MADE_FOR) if is_class else ()
    if not hints and (channels := next((each for each in made_for if each in _OF_CHANNELS), None)):
        raise SettingError(f"Term {name} is made for {channels}, and its forward asks for no feature; add one.")
    settings, settings_made = _settings(step), _settings(first) if is_class else {}
    temperature = next((side["temperature"] for side in (step, first) if "temperature" in side), None)
    temperature = temperature if type(temperature) in (int, float) else None
    return _Asked(inputs, made_for, settings, settings_made, temperature)


def _settings(parameters: Mapping[str, Any]) -> _Settings:
    numbers = {each: type(value) for each, value in parameters.items() if type(value) in (int, float, bool)}
    numbers |= {"temperature": float} if "temperature" in numbers else {}
    return {each: kind for each, kind in numbers.items() if each not in (*_INPUTS, *_MADE_FOR)}


def _parameters(name: str, function: Callable[..., Any], *, skip: int = 0) -> dict[str, Any]:
    """Return the parameters of a function that take one value each, with their defaults."""
    try:
        found = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError) as error:
        raise SettingError(f"Term {name}: its parameters cannot be read. Wrap it in a function of yours.") from error
    if hidden := next((each for each in found if each.kind is each.POSITIONAL_ONLY), None):
        raise SettingError(f"Term {name}: {hidden.name} cannot be given by name. Wrap it in a function of yours.")
    return {each.name: each.default for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


class OwnLoss(nn.Module):
    """What calls a loss of the user's with what it asks for, and checks what it gives."""

    def __init__(
        self, name: str, made: Callable[..., Any], asked: _Asked, temperature: float | None, setting: Setting
    ) -> None:
        super().__init__()
        self.name, self.asked, self.pairs = name, asked, tuple(setting.pairs)
        self.file = getattr(inspect.getmodule(made), "__file__", None)
        # of this term, in this process
        self.seed = zlib.crc32(f"{name} {setting.seed} {setting.rank}".encode())
        knobs = dict(setting.knobs)
        if asked.temperature is not None:
            knobs["temperature"] = asked.temperature if temperature is None else temperature
        self.knobs = self._of_kinds(asked.settings, knobs)
        calls = len(self.pairs) if asked.by_hint else 1
        if isinstance(made, type):
            told = {"outputs": setting.outputs, "classes": setting.classes, "images": setting.images,
                    "batch_size": setting.batch_size, "seed": setting.seed}  # fmt: skip
            settings = self._of_kinds(asked.settings_made, knobs)
            parts = [self._build(made, {**told, **_channels(asked, setting, k)}, settings) for k in range(calls)]
            self.parts: Sequence[Callable[..., Any]] = cast("Sequence[Callable[..., Any]]", nn.ModuleList(parts))
        else:
            self.parts = [made] * calls
        self._kept = frozenset(self.state_dict())
        self.learns = False

    def _of_kinds(self, settings: _Settings, knobs: Mapping[str, float]) -> dict[str, Any]:
        """Return settings as the numbers that their defaults are."""
        found = {}
        for each, kind in settings.items():
            if each not in knobs:
                continue
            if kind is not float and knobs[each] != int(knobs[each]):
                raise SettingError(
                    f"{each} of term {self.name} is {knobs[each]:g}; expected a whole number, as its default is one."
                )
            found[each] = kind(knobs[each])
        return found

    def _build(self, made: Callable[..., Any], told: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
        try:
            found: nn.Module = made(**{each: told[each] for each in self.asked.made_for}, **settings)
            lazy = any(nn.parameter.is_lazy(each) for each in (*found.parameters(), *found.buffers()))
            plain = not lazy and all(isinstance(each, Tensor) for each in found.state_dict().values())
        except (Exception, SystemExit) as error:
            raise SettingError(f"Term {self.name} cannot be made: {self._told(error)}.") from error
        if not plain:
            what = "weights whose size is not known yet" if lazy else "a state that is no tensor"
            raise SettingError(f"Term {self.name} has {what}; expected parameters and buffers of a known size.")
        return found

    @property
    def remembers(self) -> bool:
        """Whether it keeps something from step to step that processes do not share, as batch norms do."""
        norms = [each for each in self.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        shared = {id(buffer) for norm in norms for buffer in norm.buffers()}
        return any(id(buffer) not in shared for buffer in self.buffers())

    def forward(self, view: View) -> Tensor:
        """Return what the loss gives, or say what is wrong with it."""
        with _own_random_numbers(view.logits.device, self.seed, view.step):
            found = self._computed(view)
        if late := next((each for each in self.state_dict() if each not in self._kept), None):
            raise SettingError(
                f"Term {self.name} keeps {late} since its first step, which a run that goes on could not read. Give it "
                "its size in __init__."
            )
        self.learns = self.learns or found.requires_grad
        return found

    def _computed(self, view: View) -> Tensor:
        given = self._given(view)
        if not self.asked.by_hint:
            return self._called(self.parts[0], given)
        found = []
        for part, pair in zip(self.parts, self.pairs, strict=True):
            of_hint = {
                "feature": view.features[pair.student].float(),
                "teacher_feature": view.teacher_features[pair.teacher].float(),
            }
            asked = {each: tensor for each, tensor in of_hint.items() if each in self.asked.inputs}
            found.append(pair.weight / len(self.pairs) * self._called(part, {**given, **asked}))
        return torch.stack(found).sum()

    def _given(self, view: View) -> dict[str, Any]:
        """Return what the loss asks for of a step, but for what differs from hint to hint."""
        answer = None if view.teacher_logits is None else view.teacher_logits.float()
        logits = view.logits.float()
        there = {
            "logits": logits, "embedding": logits, "teacher_logits": answer, "teacher_embedding": answer,
            "labels": view.labels, "indices": view.indices, "step": view.step,
        }  # fmt: skip
        given: dict[str, Any] = {each: there[each] for each in self.asked.inputs if each in there}
        if self.asked.of_all_hints:
            lists = {
                "features": [view.features[pair.student].float() for pair in self.pairs],
                "teacher_features": [view.teacher_features[pair.teacher].float() for pair in self.pairs],
            }
            given |= {each: tensors for each, tensors in lists.items() if each in self.asked.inputs}
        return given

    def _called(self, part: Callable[..., Any], given: Mapping[str, Any]) -> Tensor:
        values = [one for value in given.values() for one in (value if isinstance(value, list) else [value])]
        tensors = [value for value in values if isinstance(value, Tensor) and not value.is_inference()]
        before = [tensor._version for tensor in tensors]
        try:
            found = part(**given, **self.knobs)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise SettingError(f"Term {self.name} failed: {self._told(error)}.") from error
        if not isinstance(found, Tensor) or found.dim() > 0 or not found.is_floating_point():
            shown = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise SettingError(f"Term {self.name} gave {shown}; expected one number in a tensor, such as a mean.")
        if [tensor._version for tensor in tensors] != before:
            raise SettingError(
                f"Term {self.name} changes what it is given in place, which other terms and students see as well. "
                "Work on a copy there."
            )
        return found

    def _told(self, error: BaseException) -> str:
        """Return what went wrong, and in which line of the user's file."""
        lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == self.file]
        where = f" (line {lines[-1]} of {self.file})" if lines else ""
        return f"{type(error).__name__}: {reason_of(error)}{where}"


def _channels(asked: _Asked, setting: Setting, k: int) -> dict[str, Any]:
    """Return the channels of the hint with a number, or of all hints."""
    own, wanted = [one for one, _ in setting.channels], [other for _, other in setting.channels]
    if asked.by_hint:
        return {"student_channels": own[k], "teacher_channels": wanted[k]}
    return {"student_channels": own, "teacher_channels": wanted}


_DRAWING = threading.Lock()  # students step side by side, and the generator is one for all


@contextmanager
def _own_random_numbers(device: torch.device, seed: int, step: int) -> Iterator[None]:
    """Let what is drawn within depend on seed and step alone, and leave the generators as they were."""
    with _DRAWING, torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        before = random.getstate(), np.random.get_state()
        torch.manual_seed(hash((seed, step)) % 2**63)
        random.seed(hash((seed, step)))
        np.random.seed(hash((seed, step)) % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
