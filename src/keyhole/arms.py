"""From names to arms: what a cohort file or the options of a command ask for, made ready to be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from keyhole.data.splits import Split
from keyhole.distillation.cohort import Arm, TrainConfig
from keyhole.distillation.matching import match_hints
from keyhole.distillation.terms import HintPair, parse_terms
from keyhole.errors import DataError, SettingError, unknown_name
from keyhole.files import read_json, read_toml
from keyhole.hints.choice import ChoiceConfig, Hints, choose_hints
from keyhole.hints.moments import ObserveConfig
from keyhole.hints.selection import CONTROLS, SELECTORS, Rule, check_rule, select
from keyhole.hints.similarity import consensus
from keyhole.models.layers import Layer, layers
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device


def _key(default: Any, kinds: tuple[type, ...], expected: str) -> Any:
    return field(default=default, metadata={"kinds": kinds, "expected": expected})


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
        match: How hints go to student layers: ``order`` or ``size``.
        metric: For ``auto`` and clusterings; several by commas decide by consensus.
        count: For ``auto`` and selectors: a number, or ``auto``.
        center: Of kmeans clusters: ``medoid`` or ``index``.
        hint: Which layer of a cluster teaches: ``center``, ``last`` or ``informative``.
        samples: For ``auto`` and clusterings: training images to look at.
        layers: Candidates by glob; found by themselves when missing.
        seed: Of samples and random choices.
    """

    name: str = _key("", (str,), "a text")
    student: str = _key("resnet20", (str,), "a text")
    student_size: int | None = _key(None, (int,), "a whole number")
    terms: str = _key("ce,kd,hint", (str,), "a text such as 'ce,kd,hint'")
    temperature: float | None = _key(None, (int, float), "a number")
    hints: str | tuple[str, ...] | None = _key(None, (str, list, tuple), "a text or a list of layers")
    balance: str = _key("weights", (str,), "a text")
    match: str = _key("order", (str,), "a text")
    metric: str = _key("r2_cca", (str,), "a text")
    count: int | str = _key(3, (int, str), "a whole number or 'auto'")
    center: str = _key("medoid", (str,), "a text")
    hint: str = _key("center", (str,), "a text")
    samples: int = _key(10_000, (int,), "a whole number")
    layers: str | None = _key(None, (str,), "a text")
    seed: int = _key(0, (int,), "a whole number")

    def rule(self, clustering: str) -> Rule:
        """Return the rule by which a clustering or control chooses.

        Raises:
            SettingError: The count is no number, or the clustering does not exist.
        """
        return Rule(clustering, parse_count(str(self.count)), self.center, self.hint, self.seed)


def parse_count(text: str) -> int | None:
    """Return a count of hints; None for ``auto``.

    Raises:
        SettingError: It is neither a whole number nor ``auto``.
    """
    if text != "auto" and not text.isdecimal():
        raise SettingError(f"--count is {text!r}; expected a whole number, or auto.")
    return None if text == "auto" else int(text)


def read_cohort(path: Path, base: ArmPlan | None = None) -> tuple[ArmPlan, ...]:
    """Return the plans of a TOML file of ``[[arm]]`` tables.

    Args:
        path: The file.
        base: What a table does not say.

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
    return tuple(read_arm(entry, base) for entry in value["arm"])


def read_arm(table: Any, base: ArmPlan | None = None) -> ArmPlan:
    """Return the plan of one ``[[arm]]`` table.

    Raises:
        SettingError: A key has a value of another kind, or there is no name.
        UnknownNameError: No such key; the nearest are listed.

    Example:
        >>> read_arm({"name": "kd", "terms": "ce,kd"}).student
        'resnet20'
    """
    if not isinstance(table, dict):
        raise SettingError(f"An arm is {table!r}; expected an [[arm]] table.")
    if "name" not in table:
        raise SettingError("An [[arm]] has no name; give each one a name of its own.")
    known = {each.name: each.metadata for each in fields(ArmPlan)}
    for key, value in table.items():
        if key not in known:
            raise unknown_name("key of an [[arm]]", key, known)
        wrong = isinstance(value, list) and not all(isinstance(item, str) for item in value)
        if wrong or isinstance(value, bool) or not isinstance(value, known[key]["kinds"]):
            raise SettingError(f"{key} of arm {table['name']!r} is {value!r}; expected {known[key]['expected']}.")
        if isinstance(value, (int, float)) and not abs(value) < 2**31:  # nor NaN
            raise SettingError(f"{key} of arm {table['name']!r} is {value!r}; expected a number below 2^31.")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return replace(base or ArmPlan(), **given)


class ArmMaker:
    """Turns plans into arms under one teacher; similarities are measured once for the same images and layers.

    Args:
        teacher: The teacher, with its trained weights.
        train: The images trained on; hints are chosen over them.
        config: How arms will be trained; similarities are measured on its device, in its precision.
        progress: Wraps the long loops.
        note: Is told what was matched with what, and what looks wrong.
    """

    def __init__(
        self,
        teacher: Network,
        train: Split,
        config: TrainConfig,
        *,
        progress: Progress = silent,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.teacher, self.train, self.config = teacher, train, config
        self.progress, self.note = progress, note
        self._measured: dict[tuple[int, str | None, int], Hints] = {}
        self._students: dict[tuple[str, InputSpec], list[Layer]] = {}
        self._candidates: dict[str | None, list[Layer]] = {}

    def make(self, plan: ArmPlan) -> Arm:
        """Return the arm of a plan.

        Raises:
            KeyholeError: A name does not exist, or settings do not fit together.
        """
        terms = parse_terms(plan.terms, temperature=plan.temperature, equal=plan.balance == "gradients")
        spec = self.teacher.input
        if plan.student_size is not None:
            spec = replace(spec, size_px=(plan.student_size, plan.student_size))
        name = plan.name or plan.student
        pairs: tuple[HintPair, ...] = ()
        if (plan.student, spec) not in self._students:
            student = build(plan.student, classes=len(self.train.classes) or self.teacher.classes, input=spec)
            self._students[plan.student, spec] = layers(student)
        if any(term.needs_hints for term in terms):
            wanted, candidates = self._hints(plan)
            pairs = match_hints(wanted, candidates, self._students[plan.student, spec], how=plan.match)
            self.note(f"{name}: {', '.join(f'{pair.teacher} -> {pair.student}' for pair in pairs)}")
        return Arm(name, plan.student, spec, terms, pairs, plan.balance)

    def _hints(self, plan: ArmPlan) -> tuple[Sequence[str], Sequence[Layer]]:
        """Return the hints of a plan, and the layers of the teacher that they were chosen from."""
        given = plan.hints
        if given is None:
            raise SettingError(
                f"Arm {plan.name or plan.student} has hint terms and no hints; give --hints auto or a hints.json."
            )
        if isinstance(given, str) and given.endswith(".json"):
            return self._from_file(Path(given))
        if plan.layers not in self._candidates:
            self._candidates[plan.layers] = layers(self.teacher, plan.layers)
        candidates = self._candidates[plan.layers]
        if not isinstance(given, str):
            return given, candidates
        if given in CONTROLS and given != "reverse":
            return [candidates[i].name for i in select(candidates, None, plan.rule(given)).hints], candidates
        if given == "auto" or given in SELECTORS:
            return self._choose(plan, "kmeans" if given == "auto" else given, candidates), candidates
        return [part.strip() for part in given.split(",")], candidates

    def _choose(self, plan: ArmPlan, clustering: str, candidates: Sequence[Layer]) -> list[str]:
        rule, metrics = plan.rule(clustering), tuple(name.strip() for name in plan.metric.split(","))
        config = ChoiceConfig(plan.samples, metrics, plan.layers, draws=0, bare=False, seed=plan.seed)
        check_rule(candidates, rule)
        key, informed = (plan.samples, plan.layers, plan.seed), plan.hint == "informative"
        old = self._measured.get(key)
        if old is None or not set(metrics) <= old.similarities.keys() or (informed and not old.information):
            self._measured[key] = choose_hints(
                self.teacher,
                self.train,
                rule,
                config=config,
                look=ObserveConfig(precision=self.config.precision),
                device=choose_device(self.config.device),
                progress=self.progress,
            )
        matrices = [self._measured[key].similarities[name] for name in metrics]
        matrix = matrices[0] if len(matrices) == 1 else consensus(matrices)
        known = np.array([self._measured[key].information[layer.name] for layer in candidates]) if informed else None
        return [candidates[i].name for i in select(candidates, matrix, rule, information=known).hints]

    def _from_file(self, path: Path) -> tuple[Sequence[str], Sequence[Layer]]:
        value = read_json(path)
        try:
            hints, names = value["hints"], [layer["name"] for layer in value.get("layers", ())]
            if not isinstance(hints, list) or not all(isinstance(name, str) for name in (*hints, *names)):
                raise TypeError
        except (AttributeError, LookupError, TypeError) as error:
            raise DataError(f"{path} is no hints.json of 'keyhole hints': it has no list of hints.") from error
        pattern = ",".join([*hints, *names]) if names else None
        if isinstance(value, Mapping) and value.get("teacher") != self.teacher.name:
            self.note(f"Warning: {path} was made for {value.get('teacher')}, the teacher is {self.teacher.name}.")
            pattern = None
        return hints, layers(self.teacher, pattern)
