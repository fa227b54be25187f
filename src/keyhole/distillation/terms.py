"""What a student's loss is made of: named terms with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from keyhole.distillation.kinds import TERMS, Kind, Setting
from keyhole.distillation.own_terms import own_kind
from keyhole.errors import SettingError, unknown_name


def kind_of(name: str) -> Kind:
    """Return the kind of a term: one of :data:`TERMS`, or a loss of the user's, ``package.module:function``.

    Raises:
        UnknownNameError: There is no such term, or no such function.
        SettingError: The function asks for something that a loss is not given.
    """
    if ":" in name:
        return own_kind(name)
    if name not in TERMS:
        raise unknown_name("term", name, TERMS, see="A loss of yours is package.module:function.")
    return TERMS[name]


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
        name: One of :data:`TERMS`, or a loss of the user's (see :func:`keyhole.distillation.own_terms.own_kind`).
        weight: What it is multiplied with.
        temperature: Of a term of softened logits; None takes the published one.
        knobs: Other settings of the term by name, and their values, such as ``("beta", 2.0)`` of ``dkd``; those that
            are not named stay as the source has them.
    """

    name: str
    weight: float
    temperature: float | None = None
    knobs: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """Check name and ranges."""
        kind = self.kind
        names = [knob for knob, _ in self.knobs]
        if twice := next((knob for knob in names if names.count(knob) > 1), None):
            raise SettingError(f"{twice} of term {self.name} is given twice; expected each setting once.")
        for knob, value in self.knobs:
            if knob == "temperature" and kind.temperature is not None:
                raise SettingError(
                    f"temperature of term {self.name} stands in brackets; it is no setting of one term. Give "
                    "--temperature, or temperature in an [[arm]]."
                )
            if knob not in kind.knobs:
                raise unknown_name(f"setting of term {self.name}", knob, kind.knobs)
            if not (-math.inf if kind.own else 0) <= value < math.inf or value == -math.inf:
                expected = "a finite number" if kind.own else "a number >= 0"
                raise SettingError(f"{knob} of term {self.name} is {value}; expected {expected}.")
        temperature = 1.0 if self.temperature is None else self.temperature
        if not 0 <= self.weight < float("inf") or not 0 < temperature < float("inf"):
            raise SettingError(f"Term {self.name} has weight {self.weight} and temperature {self.temperature}; "
                               "expected a weight >= 0 and a temperature > 0.")  # fmt: skip

    @property
    def kind(self) -> Kind:
        """What the term computes, and what it needs."""
        return kind_of(self.name)

    @property
    def key(self) -> str:
        """The name as a module of PyTorch may have it."""
        return self.name.replace(".", "/")

    @property
    def needs_hints(self) -> bool:
        """Whether the term compares features of hint layers."""
        return self.kind.hints

    @property
    def needs_teacher(self) -> bool:
        """Whether the term needs a teacher at all."""
        return self.kind.teacher

    @property
    def needs_labels(self) -> bool:
        """Whether the term needs the classes of the training images."""
        return self.kind.labels


def build_term(term: Term, setting: Setting) -> nn.Module:
    """Return the module that computes a term from a :class:`View`; its weights are trained with the student."""
    temperature = term.kind.temperature if term.temperature is None else term.temperature
    return term.kind.make(temperature, replace(setting, knobs=dict(term.knobs)))


def check_terms(terms: Sequence[Term], *, teacher: bool, hints: bool) -> None:
    """Check that the terms have what they need.

    Raises:
        SettingError: A term needs a teacher or hints that are not there, or hints serve no term.
    """
    for term in terms:
        if term.needs_teacher and not teacher:
            raise SettingError(f"Term {term.name} needs a teacher; give --teacher or leave the term out.")
        if term.needs_hints and not hints:
            raise SettingError(f"Term {term.name} needs hints; give --hints auto or a hints.json, or leave it out.")
    if hints and not any(term.needs_hints for term in terms):
        named = ",".join(term.name for term in terms)
        needing = ", ".join(name for name, kind in TERMS.items() if kind.hints)
        raise SettingError(f"Hints serve none of the terms {named}; add one of {needing}, or leave the hints out.")
