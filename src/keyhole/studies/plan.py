"""What a study file asks for: every combination of its settings is a cell, one student trained under one seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

from keyhole.distillation.config import TrainConfig
from keyhole.distillation.notation import parse_terms, write_term
from keyhole.errors import DataError, KeyholeError, SettingError, unknown_name
from keyhole.files import read_toml, sha256
from keyhole.plans import ArmPlan, beside, parse_count, read_arm, settled_before

_OWN = ".safetensors"
_FILES = (_OWN, ".pt", ".pth", ".bin", ".json")
EVERY = "combinations"  # as hints: all combinations of candidate layers

KEYS = (
    "teacher", "weights", "data", "root", "seeds", "holdout", "students_per_pass", "baseline", "train", "arm",
    "comparison",
)  # fmt: skip
_NOT_OF_TRAINING = ("seed", "device")  # the grid's, and the machine's


@dataclass(frozen=True)
class Cell:
    """One student of a study: an arm under one training seed.

    Attributes:
        name: Unique in the study; the arm's name and the seed.
        plan: What is asked of the student.
        seed: Of initialization, order and augmentation; cells of one seed see the same batches.
    """

    name: str
    plan: ArmPlan
    seed: int

    @property
    def id(self) -> str:
        """A file name of its own: readable, and unique by a part of a hash."""
        readable = "".join(letter if letter.isalnum() else "-" for letter in self.name)[:60].strip("-")
        return f"{readable}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Comparison:
    """A comparison that a study was made for, beside that of each arm with the baseline.

    Attributes:
        name: What is asked, such as ``centers against guesses``.
        arms: Names of arms, or patterns of names with ``*``; of several the mean of each seed counts.
        against: What they are compared with, likewise.
    """

    name: str
    arms: tuple[str, ...]
    against: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study file, read and checked.

    Attributes:
        teacher: Name of the teacher, or the path of a ``.safetensors`` file of Keyhole.
        weights: Its weight file, where the name does not bring one.
        data: Name of the data set.
        root: Where its files are.
        config: How all cells are trained; the seed is the cell's.
        seeds: The training seeds.
        holdout: Training images held out for choosing.
        students_per_pass: At most so many students learn from one teacher pass.
        arms: The arms; each is one cell a seed.
        baseline: The arm that the others are compared with; the first one when missing.
        comparisons: Further comparisons.
    """

    teacher: str
    weights: Path | None
    data: str
    root: Path | None
    config: TrainConfig
    seeds: tuple[int, ...]
    holdout: int
    students_per_pass: int
    arms: tuple[ArmPlan, ...]
    baseline: str | None = None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, seed by seed."""
        return tuple(Cell(f"{plan.name}, seed {seed}", plan, seed) for seed in self.seeds for plan in self.arms)

    def described(self, teacher: str, results: Sequence[Mapping[str, Any] | None] = ()) -> dict[str, Any]:
        """Return what a report says of the setting, as JSON values.

        Args:
            teacher: Name of the teacher's network, whatever file it came from.
            results: Of cells; the teacher's accuracy, the precision and the pairs of layers are in them.
        """
        finished = [result for result in results if result is not None]
        pairs = {result["arm"]: result["hints"] for result in finished if "hints" in result}
        precisions = sorted({str(result["precision"]) for result in finished if "precision" in result})
        train = {
            name: value for name, value in self.config.deciding.items() if name not in ("seed", "epochs", "batch_size")
        } | ({"precision": " and ".join(precisions)} if precisions else {})
        names = [plan.name for plan in self.arms]
        known = [result["teacher_top1"] for result in finished if "teacher_top1" in result]
        return {
            "teacher": teacher,
            "teacher_top1": known[0] if known else None,
            "data": self.data,
            "students": list(dict.fromkeys(plan.student for plan in self.arms)),
            "epochs": self.config.epochs,
            "batch_size": self.config.batch_size,
            "holdout": self.holdout,
            "seeds": list(self.seeds),
            "train": json.loads(json.dumps(train)),
            "arms": [_told(plan, pairs.get(plan.name)) for plan in self.arms],
            "comparisons": [
                {"name": each.name, **dict(zip(("arms", "against"), sides_of(each, names), strict=True))}
                for each in self.comparisons
            ],
        }

    def recipe(self, cell: Cell) -> dict[str, Any]:
        """Return all that decides the result of a cell, as JSON values; not where files are, or who shares its pass.

        Files stand with their content's SHA-256; the teacher's weights are added when a study is run, from the teacher
        itself. The precision is as the file says;
        :func:`keyhole.studies.recipes.settled` replaces ``auto`` by what the first process of the study took.
        """
        settings = settled_before(replace(self.config, seed=cell.seed).deciding)
        plan = settled_before(asdict(cell.plan))
        for key in ("student", "hints"):
            plan[key] = _content(plan[key])
        recipe = {
            "teacher": _content(self.teacher),
            "data": self.data,
            "holdout": self.holdout,
            "arm": plan,
            "train": settings,
        }
        value: dict[str, Any] = json.loads(json.dumps(recipe))
        return value


def _told(plan: ArmPlan, pairs: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """Return what a report says of an arm: its loss with all weights, and which layers teach which, once known."""
    try:
        terms = parse_terms(plan.terms, temperature=plan.temperature, equal=plan.balance == "gradients")
        loss = ",".join(map(write_term, terms))
    except KeyholeError:  # code of the user's that is not here, where only a report is written
        loss = plan.terms
    asked = {name: getattr(plan, name) for name in ("student", "student_size", "temperature", "balance")}
    return {"name": plan.name, **asked, "loss": loss, "hints": plan.hints, "pairs": pairs}


def _content(name: Any) -> Any:
    """Return the SHA-256 of a file that is named, and any other value as it is."""
    if not isinstance(name, str) or not name.endswith(_FILES):
        return name
    path = Path(name)
    try:
        status = path.stat()
    except OSError as error:
        message = f"Cannot read {path}: {error.strerror}. The study names that file."
        raise DataError(message) from error
    return _hashed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _hashed(path: Path, _changed_ns: int, _size: int) -> str:
    return sha256(path)


def read_studies(path: Path) -> dict[str, Study]:
    """Return the studies of a TOML file by name: more than one where it lists teachers, or values of ``[train]``.

    A list of ``teacher`` (with as many ``weights``, where they are given) stands for one study for each, and so does a
    list of a setting of ``[train]``, for all combinations; cells are compared within a study. A single one has no name.

    Args:
        path: The file; everything else is as in :func:`read_study`.

    Raises:
        KeyholeError: As for :func:`read_study`.
    """
    found: dict[str, Study] = {}
    for name, value in _grid(read_toml(path)):
        if name in found:
            raise SettingError(f"{path} holds two studies called {name!r}; let their teachers or settings differ.")
        found[name] = _study(path, value)
    return found


def _grid(value: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file once for each teacher and each combination of settings of ``[train]``, with their names."""
    teachers, weights = value.get("teacher"), value.get("weights")
    pairs: list[dict[str, Any]] = [{}]
    if isinstance(teachers, list):
        given = weights if isinstance(weights, list) else [weights] * len(teachers)
        if not teachers or len(given) != len(teachers):
            raise SettingError(f"teacher lists {len(teachers)} and weights {len(given)}; expected as many of both.")
        found = [{"teacher": teacher, "weights": file} for teacher, file in zip(teachers, given, strict=True)]
        pairs = [{key: item for key, item in pair.items() if item is not None} for pair in found]
    given_train = value.get("train")
    train: dict[str, Any] = given_train if isinstance(given_train, dict) else {}
    many = {key: item for key, item in train.items() if _varies(key, item)}
    for pair in pairs:
        for one in product(*many.values()):
            chosen = dict(zip(many, one, strict=True))
            parts = list(map(str, pair.values())) if len(pairs) > 1 else []
            parts += [f"{key} {item}" for key, item in chosen.items() if len(many[key]) > 1]
            yield " ".join(parts), {**value, **pair, **({"train": {**train, **chosen}} if many else {})}


def _varies(key: str, item: Any) -> bool:
    listed = isinstance(item, list) and bool(item)
    return listed and (key != "milestones" or all(isinstance(each, list) for each in item))


def read_study(path: Path) -> Study:
    """Return the study of a TOML file.

    Paths in it are taken from the folder of the file. A key of an ``[[arm]]`` whose value is a list stands for one arm
    for each of its values, and several such keys for all combinations; ``hints = "combinations"`` is left as it is
    until the layers of the teacher are known (see :func:`with_combinations`).

    Raises:
        DataError: The file cannot be read, or is no TOML.
        SettingError: A value is of another kind, there is no arm, two cells have one name, or the file holds several
            studies.
        UnknownNameError: No such key; the nearest are listed.
    """
    found = read_studies(path)
    if len(found) > 1:
        raise SettingError(f"{path} holds {len(found)} studies ({', '.join(found)}); read_studies gives all of them.")
    return next(iter(found.values()))


def _study(path: Path, value: Mapping[str, Any]) -> Study:
    for key in value:
        if key not in KEYS:
            raise unknown_name("key of a study", key, KEYS)
    teacher = _of_kind(value, "teacher", str, "a text")
    weights = _of_kind(value, "weights", str, "a path", None)
    root = _of_kind(value, "root", str, "a path", None)
    seeds = _of_kind(value, "seeds", list, "a list of whole numbers", [0])
    tables = _of_kind(value, "arm", list, "at least one [[arm]] table", [])
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise SettingError(f"seeds is {seeds!r}; expected different whole numbers of at least 0.")
    if not tables:
        raise SettingError(f"{path} has no [[arm]] table; expected at least one.")
    return Study(
        teacher=str(path.parent / teacher) if teacher.endswith(_OWN) else teacher,
        weights=path.parent / weights if weights else None,
        data=_of_kind(value, "data", str, "a text", "cifar100"),
        root=path.parent / root if root else None,
        config=_config(_of_kind(value, "train", dict, "a [train] table", {})),
        seeds=tuple(seeds),
        holdout=_at_least(value, "holdout", 5000, 0),
        students_per_pass=_at_least(value, "students_per_pass", 8, 1),
        arms=_unique(beside(path, plan) for table in tables for plan in expand(table)),
        baseline=_of_kind(value, "baseline", str, "the name of an arm", None),
        comparisons=_comparisons(_of_kind(value, "comparison", list, "[[comparison]] tables", [])),
    )


def _comparisons(tables: Sequence[Any]) -> tuple[Comparison, ...]:
    found: dict[str, Comparison] = {}
    known = [each.name for each in fields(Comparison)]
    for table in tables:
        if not isinstance(table, dict):
            raise SettingError(f"A comparison is {table!r}; expected a [[comparison]] table.")
        for key in table:
            if key not in known:
                raise unknown_name("key of a [[comparison]]", key, known)
        arms, against = (_names(table, key) for key in ("arms", "against"))
        name = table.get("name", f"{' and '.join(arms)} against {' and '.join(against)}")
        if not isinstance(name, str) or name in found:
            raise SettingError(f"A comparison is called {name!r}; expected a text, and of two another one each.")
        found[name] = Comparison(name, arms, against)
    return tuple(found.values())


def _names(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    given = table.get(key)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise SettingError(f"{key} of a [[comparison]] is {given!r}; expected names of arms.")
    return tuple(names)


_REQUIRED = object()


def _of_kind(value: Mapping[str, Any], key: str, kind: type, expected: str, default: Any = _REQUIRED) -> Any:
    found = value.get(key, default)
    if found is _REQUIRED:
        raise SettingError(f"The study has no {key}; expected {expected}.")
    if found is not default and (not isinstance(found, kind) or isinstance(found, bool)):
        raise SettingError(f"{key} of the study is {found!r}; expected {expected}.")
    return found


def _at_least(value: Mapping[str, Any], key: str, default: int, least: int) -> int:
    found: int = _of_kind(value, key, int, "a whole number", default)
    if found < least:
        raise SettingError(f"{key} of the study is {found}; expected at least {least}.")
    return found


def _config(table: Mapping[str, Any]) -> TrainConfig:
    known = [each.name for each in fields(TrainConfig) if each.name not in _NOT_OF_TRAINING]
    for key in table:
        if key not in known:
            raise unknown_name("key of [train]", key, known)
    if "epochs" not in table:
        raise SettingError("[train] of the study has no epochs; expected a whole number.")
    given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in table.items()}
    try:
        return TrainConfig(**given)
    except TypeError as error:
        raise SettingError(f"[train] of the study has a value of another kind: {error}.") from error


def expand(table: Any) -> Iterator[ArmPlan]:
    """Yield the arms of one ``[[arm]]`` table: one for each combination of the values of its lists.

    Without a name an arm is called by the values that vary, or by its terms and hints where none do; a name of several
    arms must hold the keys that tell them apart in braces.

    Raises:
        SettingError: A list is empty or a value of another kind, or a name does not tell the arms apart.
        UnknownNameError: No such key.

    Example:
        >>> [plan.name for plan in expand({"terms": ["ce,kd", "ce,dkd"], "student": "resnet8"})]
        ['ce,kd', 'ce,dkd']
    """
    if not isinstance(table, dict):
        raise SettingError(f"An arm is {table!r}; expected an [[arm]] table.")
    if not isinstance(table.get("name", ""), str):
        raise SettingError(f"name of an [[arm]] is {table['name']!r}; expected a text, such as '{{hints}}'.")
    many: dict[str, list[Any]] = {key: values for key, values in table.items() if isinstance(values, list)}
    for key, values in many.items():
        if not values:
            raise SettingError(f"{key} of an [[arm]] is an empty list; expected at least one value.")
    named = table.get("name")
    for one in product(*many.values()):
        chosen: dict[str, Any] = {**table, **dict(zip(many, one, strict=True))}
        if named is None:
            telling = [key for key in many if len(many[key]) > 1] or [key for key in ("terms", "hints") if key in table]
            chosen["name"] = " ".join(str(chosen[key]) for key in telling) or str(chosen.get("student", "arm"))
        else:
            chosen["name"] = _filled(named, {key: chosen[key] for key in chosen if key != "name"})
            if not chosen["name"].strip():
                raise SettingError(f"name {named!r} of an [[arm]] comes to nothing; expected a text, or leave it out.")
        plan = read_arm(chosen, ArmPlan())
        parse_count(str(plan.count))
        yield plan


def _filled(name: str, keys: Mapping[str, Any]) -> str:
    """Return a name with the values of keys in braces; doubled braces stand for themselves."""

    def part(found: re.Match[str]) -> str:
        """Return what stands for a brace, a doubled one, or a key in braces."""
        text = found[0]
        if text in ("{{", "}}"):
            return text[0]
        if text[1:-1] not in keys:
            raise SettingError(
                f"name {name!r} of an [[arm]] names {text!r}, which is none of its keys {', '.join(keys)} in braces."
            )
        return str(keys[text[1:-1]])

    return re.sub(r"\{\{|\}\}|\{[^{}]*\}|[{}]", part, name)


def _unique(plans: Iterator[ArmPlan]) -> tuple[ArmPlan, ...]:
    found: dict[str, ArmPlan] = {}
    for plan in plans:
        if plan.name in found:
            raise SettingError(
                f"Two cells are called {plan.name!r}; give the arms names of their own, such as name = '{{hints}}'."
            )
        found[plan.name] = plan
    return tuple(found.values())


def with_combinations(study: Study, candidates: Callable[[str | None], Sequence[str]]) -> Study:
    """Return the study with each arm of ``hints = "combinations"`` replaced by one arm a combination of layers.

    Args:
        study: As read.
        candidates: Gives the names of the teacher's layers in the order of depth, for an arm's ``layers`` glob.

    Raises:
        SettingError: The count of such an arm is no number from 1 to the number of layers.
        UnknownNameError: The baseline, or what a comparison names, is none of the arms.
    """

    def arms() -> Iterator[ArmPlan]:
        """Yield the arms as they are, and for one of combinations all of them."""
        for plan in study.arms:
            if plan.hints != EVERY:
                yield plan
                continue
            count, found = parse_count(str(plan.count)), candidates(plan.layers)
            if count is None or not 1 <= count <= len(found):
                raise SettingError(
                    f"Arm {plan.name!r} wants combinations of {plan.count} layers; the teacher has {len(found)}."
                )
            for names in combinations(found, count):
                yield replace(plan, name=f"{plan.name} {'+'.join(names)}", hints=names)

    found = _unique(arms())
    names = [plan.name for plan in found]
    if study.baseline is not None and study.baseline not in names:
        raise unknown_name("baseline", study.baseline, names)
    for comparison in study.comparisons:
        sides_of(comparison, names)
    return replace(study, arms=found)


def sides_of(comparison: Comparison, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arms of either side of a comparison.

    Raises:
        UnknownNameError: A name or pattern is none of the arms.

    Example:
        >>> sides_of(Comparison("hints", ("* ends", "random"), ("kd",)), ["kd", "stage ends", "random"])
        (['stage ends', 'random'], ['kd'])
    """
    for pattern in (*comparison.arms, *comparison.against):
        if not matching((pattern,), names):
            raise unknown_name(f"arm of the comparison {comparison.name!r}", pattern, names)
    return matching(comparison.arms, names), matching(comparison.against, names)


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that are meant: one that stands there, or those that fit a pattern, each once, in their order.

    Only ``*`` makes a pattern; brackets and question marks stand for themselves, as in ``ce,dkd(beta=2)``.

    Example:
        >>> matching(["kd", "* ends"], ["kd", "hint random", "hint stage ends"])
        ['kd', 'hint stage ends']
    """
    meant = set()
    for one in patterns:
        fits = re.compile(".*".join(map(re.escape, one.split("*"))), re.DOTALL)
        meant |= {one} if one in names else {name for name in names if fits.fullmatch(name)}
    return [name for name in names if name in meant]


def by_student(cells: Iterable[Cell], twins: Mapping[str, str]) -> list[list[Cell]]:
    """Return cells in groups: those of one seed whose arms learn the very same.

    Args:
        cells: The cells.
        twins: Each arm that learns the same as an earlier one, with the name of that.

    Example:
        >>> cells = [Cell(name, ArmPlan(name), 0) for name in ("a", "b", "c")]
        >>> [[cell.name for cell in group] for group in by_student(cells, {"c": "a"})]
        [['a', 'c'], ['b']]
    """
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((twins.get(cell.plan.name, cell.plan.name), cell.seed), []).append(cell)
    return list(found.values())
