"""What is asked of one student, in names: the keys of an ``[[arm]]`` table, and how such tables are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from keyhole.errors import SettingError, unknown_name
from keyhole.files import read_toml
from keyhole.libraries import code_sha256

_FILES = (".safetensors", ".json", ".xml", ".onnx", ".toml")
_NAMING_FILES = ("student", "hints")  # keys whose value may be a path

_COMMA = re.compile(r",(?![^()]*\))")  # outside of brackets

P = TypeVar("P", bound=Any)  # a plan: a frozen dataclass whose fields are made by key


def key(
    default: Any, kinds: tuple[type, ...], expected: str, *, least: float | None = None, later: bool = False
) -> Any:
    """Return a field of a plan, with what a table may hold for it.

    Args:
        default: Where a table does not say.
        kinds: Types of its value.
        expected: What they are, for the error.
        least: Of a number.
        later: There was no such key from the beginning: recipes are silent about it while it has its default.
    """
    return field(default=default, metadata={"kinds": kinds, "expected": expected, "least": least, "later": later})


@dataclass(frozen=True)
class ArmPlan:
    """What is asked of one student, in names; the keys of an ``[[arm]]`` table.

    Attributes:
        name: How it is called in tables; the student's name when empty.
        student: Name of the network.
        student_size: Side in pixels that it sees; the teacher's when missing.
        terms: Of its loss, such as ``ce,kd,hint=50``.
        temperature: Of terms of softened logits; each one's published one when missing.
        hints: ``auto``, a selector, a ``hints.json``, or layers (a list, or by commas).
        balance: ``weights``, or ``gradients``: each term is scaled so that it pulls as hard as the first one.
        match: How hints go to student layers: ``order``, ``size``, ``name``, or ``similarity`` after a warm-up of the
            student.
        match_steps: Of that warm-up.
        hint_weights: What each hint counts: ``equal``, or by ``mass`` or ``redundancy``.
        metric: For ``auto`` and clusterings; several by commas decide by consensus.
        count: For ``auto`` and selectors: a number, or ``auto``.
        center: Of kmeans clusters: ``medoid`` or ``index``.
        hint: Which layer of a cluster teaches: ``center``, ``last`` or ``informative``.
        samples: For ``auto`` and clusterings: training images to look at.
        layers: Candidates by glob; found by themselves when missing.
        seed: Of samples and random choices.
    """

    name: str = key("", (str,), "a text")
    student: str = key("resnet20", (str,), "a text")
    student_size: int | None = key(None, (int,), "a whole number", least=1)
    terms: str = key("ce,kd,hint", (str,), "a text such as 'ce,kd,hint'")
    temperature: float | None = key(None, (int, float), "a number")
    hints: str | tuple[str, ...] | None = key(None, (str, list, tuple), "a text or a list of layers")
    balance: str = key("weights", (str,), "a text")
    match: str = key("order", (str,), "a text")
    match_steps: int = key(200, (int,), "a whole number", least=0, later=True)
    hint_weights: str = key("equal", (str,), "a text", later=True)
    metric: str = key("r2_cca", (str,), "a text")
    count: int | str = key(3, (int, str), "a whole number or 'auto'")
    center: str = key("medoid", (str,), "a text")
    hint: str = key("center", (str,), "a text")
    samples: int = key(10_000, (int,), "a whole number", least=1)
    layers: str | None = key(None, (str,), "a text")
    seed: int = key(0, (int,), "a whole number", least=0)


_USUAL: Any = ArmPlan()


def settled_before(settings: Mapping[str, Any], kind: type = ArmPlan) -> dict[str, Any]:
    """Return settings without the keys of an arm, or of its training, that were added later and have their default.

    So the recipe of a run that was begun before there was such a key is still that of the same run.

    Args:
        settings: By name.
        kind: Of the plan that they are of.

    Example:
        >>> settled_before({"match": "order", "hint_weights": "equal"})
        {'match': 'order'}
    """
    later = {each.name: each.default for each in fields(kind) if each.metadata.get("later")} | {"optimizer": "sgd"}
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}


def parse_count(text: str) -> int | None:
    """Return a count of hints; None for ``auto``.

    Raises:
        SettingError: It is neither a whole number nor ``auto``.

    Example:
        >>> parse_count("3"), parse_count("auto")
        (3, None)
    """
    if text != "auto" and not (text.isdecimal() and len(text) < 10):
        raise SettingError(f"count is {text!r}; expected a whole number, or auto.")
    return None if text == "auto" else int(text)


def read_cohort(path: Path, base: P = _USUAL) -> tuple[P, ...]:
    """Return the plans of a TOML file of ``[[arm]]`` tables; files that it names are taken from its folder.

    Args:
        path: The file.
        base: What a table does not say; its fields are the keys.

    Raises:
        DataError: The file cannot be read, or is no TOML.
        SettingError: It holds something else, a key has a value of another kind, or an arm has no name.
        UnknownNameError: No such key; the nearest are listed.
    """
    value = read_toml(path)
    if set(value) != {"arm"} or not isinstance(value["arm"], list) or not value["arm"]:
        raise SettingError(
            f"{path} holds {', '.join(value) or 'nothing'}; expected one [[arm]] table for each student."
        )
    return tuple(beside(path, read_arm(table, base), of=table) for table in value["arm"])


def read_arm(table: Any, base: P = _USUAL) -> P:
    """Return the plan of one ``[[arm]]`` table.

    Args:
        table: Its keys and values.
        base: What it does not say; its fields are the keys.

    Raises:
        SettingError: A key has a value of another kind or out of its range, or there is no name.
        UnknownNameError: No such key; the nearest are listed.

    Example:
        >>> read_arm({"name": "kd", "terms": "ce,kd"}, ArmPlan()).student
        'resnet20'
    """
    if not isinstance(table, dict):
        raise SettingError(f"An arm is {table!r}; expected an [[arm]] table.")
    known = {each.name: each.metadata for each in fields(base)}
    for name in table:
        if name not in known:
            raise unknown_name("key of an [[arm]]", name, known)
    if "name" not in table:
        raise SettingError("An [[arm]] has no name; give each one a name of its own.")
    for name, value in table.items():
        expected, least = known[name]["expected"], known[name]["least"]
        wrong = isinstance(value, list) and not all(isinstance(item, str) for item in value)
        if wrong or isinstance(value, bool) or not isinstance(value, known[name]["kinds"]):
            raise SettingError(f"{name} of arm {table['name']!r} is {value!r}; expected {expected}.")
        if isinstance(value, int | float):
            if not abs(value) < 2**31:  # nor NaN
                raise SettingError(f"{name} of arm {table['name']!r} is {value!r}; expected a number below 2^31.")
            if least is not None and value < least:
                raise SettingError(
                    f"{name} of arm {table['name']!r} is {value!r}; expected {expected} of at least {least:g}."
                )
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    plan: P = replace(base, **given)
    return plan


def beside(path: Path, plan: P, *, of: Iterable[str] = _NAMING_FILES) -> P:
    """Return a plan with the files that it names taken from the folder of another file.

    Args:
        path: The file that the plan stands in.
        plan: The plan.
        of: Keys that it has from there.

    Example:
        >>> beside(Path("studies/one.toml"), ArmPlan(student="small.safetensors", hints="auto")).student
        'studies/small.safetensors'
    """
    found = {name: getattr(plan, name) for name in _NAMING_FILES if name in of}
    changed = {
        name: str(path.parent / text) for name, text in found.items() if isinstance(text, str) and text.endswith(_FILES)
    }
    placed: P = replace(plan, **changed)
    return placed


def split_terms(text: str) -> list[str]:
    """Return the terms of a loss, each with its settings and its weight, as they are written.

    Example:
        >>> split_terms("ce,dkd(alpha=1,beta=2)=0.5, hint")
        ['ce', 'dkd(alpha=1,beta=2)=0.5', 'hint']
    """
    return [part.strip() for part in _COMMA.split(text) if part.strip()]


def code_of(networks: Iterable[str | None], terms: Iterable[str | None] = ()) -> dict[str, str]:
    """Return the SHA-256 of the code of each function of the user's, by ``package.module:function``.

    Args:
        networks: Names of networks; those of functions count, and None is passed over.
        terms: Terms of losses, likewise.

    Raises:
        UnknownNameError: A module cannot be imported, or has no such function.

    Example:
        >>> list(code_of(["resnet20", "timm:resnet18", None], ["ce,kd,json:dumps(indent=2)=0.5"]))
        ['json:dumps']
    """
    parts = [part for text in terms if text is not None for part in split_terms(text)]
    named = [re.split("[(=]", part)[0].strip() for part in parts]
    named += [
        name for name in networks if name is not None and not name.startswith("timm:") and not name.endswith(_FILES)
    ]
    return {name: code_sha256(name) for name in dict.fromkeys(named) if ":" in name}


def files_of(plans: Iterable[Any]) -> list[str]:
    """Return what plans name that may be a file, for the fingerprints of a recipe."""
    return [text for plan in plans for name in _NAMING_FILES if isinstance(text := getattr(plan, name), str)]
