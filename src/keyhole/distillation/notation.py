"""The notation of a loss: ``ce,dkd(alpha=1,beta=2),hint=50`` as terms, and terms as that text again."""

from __future__ import annotations

import re

from keyhole.distillation.kinds import TERMS
from keyhole.distillation.terms import Term, kind_of
from keyhole.errors import SettingError
from keyhole.plans import split_terms

# weights that terms have together, and whether only where no other term stands beside them and none is weighed
_TOGETHER: tuple[tuple[set[str], dict[str, float], bool], ...] = (
    ({"ce", "kd"}, {"ce": 0.1, "kd": 0.9}, True),
    ({"ce", "ls"}, {"ce": 0.1, "ls": 9.0}, True),
    *(({"margin", name}, {"margin": 0.02}, False) for name in ("embedding", "relations", "seed")),
)

_TERM = re.compile(r"([^=()]+)(?:\((\w+=[^(),=]*(?:,\w+=[^(),=]*)*)\))?(?:=(.*))?")


def parse_terms(text: str, *, temperature: float | None = None, equal: bool = False) -> tuple[Term, ...]:
    """Return the terms of ``"ce,kd,hint"``, ``"ce=0.5,kd=0.5,hint=50"`` or ``"ce,dkd(alpha=1,beta=2)"``.

    A term without a weight has its default one. Without any weight, ``ce,kd`` alone takes the published 0.1 and 0.9,
    ``ce,ls`` alone the published 0.1 and 9. ``margin`` beside ``embedding``, ``relations`` or ``seed`` takes 0.02.

    Args:
        text: Names of :data:`TERMS`, or losses of the user's, ``package.module:function``, by commas; each perhaps with
            settings in brackets and a weight.
        temperature: Of all terms that have one; None leaves each its published one.
        equal: Terms without a weight weigh 1, as they should where gradients are balanced.

    Raises:
        UnknownNameError: No such term.
        SettingError: A term or a setting of it stands twice, a weight or a setting is no number, all weights are 0, or
            brackets hold no settings.

    Example:
        >>> [(term.name, term.weight) for term in parse_terms("ce,kd")]
        [('ce', 0.1), ('kd', 0.9)]
        >>> [(term.name, term.weight) for term in parse_terms("ce,kd,hint=50")]
        [('ce', 1.0), ('kd', 1.0), ('hint', 50.0)]
        >>> [(term.name, term.weight) for term in parse_terms("embedding,margin")]
        [('embedding', 1.0), ('margin', 0.02)]
        >>> parse_terms("ce,dkd(alpha=1,beta=2)")[1].knobs
        (('alpha', 1.0), ('beta', 2.0))
    """
    given = ["".join(map(str.strip, re.split("([=(),])", part))) for part in split_terms(text)]
    parts = [_parts(part) for part in given]
    names = [name.strip() for name, *_ in parts]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"Terms {text!r} must name each term once, such as ce,kd,hint.")
    if equal:
        defaults = dict.fromkeys(TERMS, 1.0)
    else:
        defaults = _default_weights(set(names), weighed=any(weight for *_, weight in parts))
    terms = []
    for name, (_, settings, weight) in zip(names, parts, strict=True):
        try:
            value = float(weight) if weight else defaults.get(name, 1.0)
        except ValueError as error:
            raise SettingError(f"Weight {weight!r} of term {name} is no number; write {name}=50.") from error
        knobs = tuple(_knob(name, setting) for setting in settings.split(",")) if settings else ()
        own = kind_of(name).temperature
        terms.append(Term(name, value, own if own is None or temperature is None else temperature, knobs))
    if not any(term.weight for term in terms):
        raise SettingError(f"Terms {text!r} all weigh 0, so that nothing would be learnt; expected one above 0.")
    return tuple(terms)


def _parts(term: str) -> tuple[str, str | None, str | None]:
    """Return name, settings and weight of ``dkd(beta=2)=0.5``."""
    if found := _TERM.fullmatch(term):
        name, settings, weight = found.groups()
        return name, settings, weight
    if "(" in term or ")" in term:
        raise SettingError(f"Term {term!r} has no settings in brackets; expected such as dkd(alpha=1,beta=2)=0.5.")
    return term, None, None


def _knob(term: str, setting: str) -> tuple[str, float]:
    """Return name and value of ``beta=2``."""
    knob, _, value = setting.partition("=")
    try:
        return knob, float(value)
    except ValueError as error:
        raise SettingError(f"{knob} of term {term} is {value!r}; expected a number.") from error


def _default_weights(names: set[str], *, weighed: bool) -> dict[str, float]:
    """Return the weight of each term without one, among terms of which some are weighed or none."""
    found = {name: kind.weight for name, kind in TERMS.items()}
    for together, weights, alone in _TOGETHER:
        fits = names == together and not weighed if alone else names >= together
        if fits:
            found |= weights
    return found


def write_term(term: Term) -> str:
    """Return a term as :func:`parse_terms` reads it, with its settings and its weight; without its temperature.

    Example:
        >>> write_term(Term("dkd", 0.5, knobs=(("beta", 2.0),)))
        'dkd(beta=2)=0.5'
    """
    settings = ",".join(f"{knob}={_exact(value)}" for knob, value in term.knobs)
    return f"{term.name}{f'({settings})' if settings else ''}={_exact(term.weight)}"


def _exact(value: float) -> str:
    """Return the shortest text that is read as the same number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
