"""``keyhole train`` and ``keyhole distill``: one loop for teachers, baselines and students."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o
from keyhole.errors import DataError, SettingError, unknown_name

if TYPE_CHECKING:
    from keyhole.data.sources import Data
    from keyhole.distillation.cohort import Arm, TrainConfig
    from keyhole.distillation.experiment import Result
    from keyhole.distillation.terms import HintPair
    from keyhole.models.layers import Layer
    from keyhole.models.network import InputSpec, Network
    from keyhole.runs import RunFolder


@dataclass(frozen=True)
class ArmOptions:
    """A student, its loss and its hints: what a cohort gives an ``[[arm]]`` of its own."""

    student: Annotated[
        str, typer.Option(help="The student, named like the teacher; arms of a cohort may name others.")
    ] = "resnet20"
    student_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels that the student sees; the teacher's by default.")
    ] = None
    terms: Annotated[
        str,
        typer.Option(
            help="ce, kd, dkd, dist, ls, wttm, hint, at, vid, sp, crd; a weight may follow, as in ce,kd,hint=50."
        ),
    ] = "ce,kd,hint"
    temperature: Annotated[
        float | None, typer.Option(help="Of terms of softened logits; each one's published one by default.")
    ] = None
    hints: Annotated[
        str | None,
        typer.Option(help="auto, a hints.json, layers by commas, or a selector such as stage-ends or random."),
    ] = None
    match: Annotated[str, typer.Option(help="Hints to student layers: order or size.")] = "order"
    metric: Annotated[str, typer.Option(help="For --hints auto: as in keyhole hints.")] = "r2_cca"
    count: Annotated[str, typer.Option(help="For --hints auto and selectors: a number, or auto.")] = "3"
    samples: Annotated[int, typer.Option(help="For --hints auto: training images to look at.")] = 10_000
    layers: Annotated[str | None, typer.Option(help="Candidate layers by glob, such as 'layer*.2'.")] = None


@o.command
def train(
    model: o.Model,
    out: o.Out,
    images: o.DataOptions,
    training: o.TrainOptions,
    expects: o.InputOptions,
    holdout: Annotated[int, typer.Option(min=0, help="Training images held out to choose the best epoch on.")] = 0,
    resume: o.Resume = False,
    json: o.Json = False,
) -> None:
    """Train a network on labels alone: a teacher, or a baseline.

    Example: keyhole train --model resnet110 --data cifar100 --root DIR --epochs 240 --out RUN

    Writes student.safetensors (last epoch), result.json, log.jsonl and report.html to --out.
    """
    arguments = o.recipe(locals())
    from keyhole.data.sources import open_data
    from keyhole.distillation.cohort import Arm
    from keyhole.distillation.terms import parse_terms
    from keyhole.runs import open_run

    config = training.config()
    with open_run(out, "train", arguments, resume=resume) as run:
        spec = _needed(o.input_spec(model, images.data, expects), model)
        opened = open_data(images.data, images.root, input=spec, workers=images.workers, progress=o.progress_bar())
        arm = Arm(model, model, spec, parse_terms("ce"))
        _run(run, [arm], opened, config, holdout=holdout, as_json=json)


@o.command
def distill(
    teacher: o.Teacher,
    out: o.Out,
    arm: ArmOptions,
    images: o.DataOptions,
    network: o.NetworkOptions,
    training: o.TrainOptions,
    cohort: Annotated[Path | None, typer.Option(help="A TOML file of several arms under one teacher pass.")] = None,
    holdout: Annotated[int, typer.Option(min=0, help="Training images held out to choose the best epoch on.")] = 5000,
    resume: o.Resume = False,
    json: o.Json = False,
) -> None:
    """Train a small network with the hints of a big one.

    Example: keyhole distill --teacher resnet56 --weights FILE --student resnet20 --data cifar100 --root DIR
    --hints OUT/hints.json --terms ce,kd,hint --epochs 30 --out RUN

    Writes student.safetensors (last epoch), student-best.safetensors, result.json, log.jsonl and report.html to --out.
    """
    arguments = o.recipe(locals())
    from keyhole.runs import open_run

    own = {"name": arm.student, "seed": training.seed, **vars(arm)}
    entries = [own]
    if cohort is not None:
        arguments["cohort"] = _read_toml(cohort)
        entries = [own | _known(entry) for entry in arguments["cohort"]["arm"]]
    config = training.config()
    with open_run(out, "distill", arguments, resume=resume) as run:
        opened, data = o.open_both(teacher, network, images)
        o.check_teacher(opened, data, device=training.device)
        maker = _ArmMaker(opened, data, config, holdout)
        arms = [maker.make(entry) for entry in entries]
        _run(run, arms, data, config, teacher=opened, holdout=holdout, as_json=json)


def _needed(spec: InputSpec | None, name: str) -> InputSpec:
    if spec is None:
        raise SettingError(f"{name} needs its input: give --input-size, --mean and --std.")
    return spec


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. --cohort takes a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}.") from error
    if set(value) != {"arm"} or not isinstance(value["arm"], list) or not value["arm"]:
        raise SettingError(
            f"{path} holds {', '.join(value) or 'nothing'}; expected one [[arm]] table for each student."
        )
    return value


_ARM_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "a text"),
    "student": ((str,), "a text"),
    "terms": ((str,), "a text such as 'ce,kd,hint'"),
    "hints": ((str, list), "a text or a list of layers"),
    "match": ((str,), "a text"),
    "metric": ((str,), "a text"),
    "count": ((int, str), "a whole number or 'auto'"),
    "samples": ((int,), "a whole number"),
    "layers": ((str,), "a text"),
    "student_size": ((int,), "a whole number"),
    "temperature": ((int, float), "a number"),
    "seed": ((int,), "a whole number"),
}


def _known(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise SettingError(f"An arm is {entry!r}; expected an [[arm]] table.")
    if "name" not in entry:
        raise SettingError("An [[arm]] has no name; give each one a name of its own.")
    for key, value in entry.items():
        if key not in _ARM_KEYS:
            raise unknown_name("key of an [[arm]]", key, _ARM_KEYS)
        kinds, expected = _ARM_KEYS[key]
        wrong = isinstance(value, list) and not all(isinstance(item, str) for item in value)
        if wrong or isinstance(value, bool) or not isinstance(value, kinds):
            raise SettingError(f"{key} of arm {entry['name']!r} is {value!r}; expected {expected}.")
    return entry


class _ArmMaker:
    """Turn entries of a cohort into arms; similarities are measured once for all of them."""

    def __init__(self, teacher: Network, data: Data, config: TrainConfig, held_out: int) -> None:
        from keyhole.data.splits import hold_out

        self.teacher, self.data, self.config = teacher, data, config
        self.train = hold_out(data.train, held_out)[0]
        self.chosen: dict[str, tuple[str, ...]] = {}

    def make(self, entry: Mapping[str, Any]) -> Arm:
        from dataclasses import replace

        from keyhole.distillation.cohort import Arm
        from keyhole.distillation.matching import match_hints
        from keyhole.distillation.terms import parse_terms
        from keyhole.models.layers import layers
        from keyhole.models.zoo import build

        terms = parse_terms(entry["terms"], temperature=entry["temperature"])
        spec = self.teacher.input
        if (size := entry["student_size"]) is not None:
            spec = replace(spec, size_px=(size, size))
        pairs: tuple[HintPair, ...] = ()
        if any(term.needs_hints for term in terms):
            student = build(entry["student"], classes=self.data.classes, input=spec)
            wanted, candidates = self._hints(entry)
            pairs = match_hints(wanted, candidates, layers(student), how=entry["match"])
            note = ", ".join(f"{pair.teacher} -> {pair.student}" for pair in pairs)
            o.note(f"{entry['name']}: {note}")
        return Arm(entry["name"], entry["student"], spec, terms, pairs)

    def _hints(self, entry: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Layer]]:
        """Return the hints of an arm, and the layers of the teacher that they were chosen from."""
        from keyhole.cli.hints import selection_rule
        from keyhole.hints.selection import CONTROLS, SELECTORS, select
        from keyhole.models.layers import layers

        given = entry["hints"]
        if given is None:
            raise SettingError(f"Arm {entry['name']} has hint terms and no hints; give --hints auto or a hints.json.")
        if isinstance(given, str) and given.endswith(".json"):
            return self._from_file(Path(given))
        candidates = layers(self.teacher, entry["layers"])
        if isinstance(given, list):
            return given, candidates
        if given in CONTROLS and given != "reverse":
            rule = selection_rule(given, str(entry["count"]), "medoid", "center", entry["seed"])
            return [candidates[i].name for i in select(candidates, None, rule).hints], candidates
        if given == "auto" or given in SELECTORS:
            return self._choose(entry, "kmeans" if given == "auto" else given), candidates
        return [part.strip() for part in given.split(",")], candidates

    def _choose(self, entry: Mapping[str, Any], clustering: str) -> tuple[str, ...]:
        from keyhole.cli.hints import selection_rule
        from keyhole.hints.choice import ChoiceConfig, choose_hints
        from keyhole.hints.moments import ObserveConfig
        from keyhole.runtime import choose_device

        key = repr([clustering, *(entry[name] for name in ("metric", "count", "samples", "layers", "seed"))])
        if key not in self.chosen:
            self.chosen[key] = choose_hints(
                self.teacher,
                self.train,
                selection_rule(clustering, str(entry["count"]), "medoid", "center", entry["seed"]),
                config=ChoiceConfig(
                    samples=entry["samples"],
                    metrics=tuple(entry["metric"].split(",")),
                    layers=entry["layers"],
                    draws=0,
                    bare=False,
                    seed=entry["seed"],
                ),
                look=ObserveConfig(precision=self.config.precision),
                device=choose_device(self.config.device),
                progress=o.progress_bar(),
            ).hints
        return self.chosen[key]

    def _from_file(self, path: Path) -> tuple[Sequence[str], Sequence[Layer]]:
        from keyhole.files import read_json
        from keyhole.models.layers import layers

        value = read_json(path)
        try:
            hints, names = list(value["hints"]), [layer["name"] for layer in value.get("layers", ())]
            pattern = ",".join([*hints, *names]) if names else None
        except (AttributeError, LookupError, TypeError) as error:
            raise DataError(f"{path} is no hints.json of 'keyhole hints': it has no list of hints.") from error
        if value.get("teacher") != self.teacher.name:
            o.note(f"Warning: {path} was made for {value.get('teacher')}, the teacher is {self.teacher.name}.")
            pattern = None
        return hints, layers(self.teacher, pattern)


def _run(
    run: RunFolder,
    arms: Sequence[Arm],
    data: Data,
    config: TrainConfig,
    *,
    teacher: Network | None = None,
    holdout: int,
    as_json: bool,
) -> None:
    from keyhole.distillation.experiment import run_cohort
    from keyhole.files import write_json, write_text
    from keyhole.reports.pages import training_page

    def log(record: dict[str, Any]) -> None:
        run.append(record)
        held = record.get("held_out_top1")
        told = "" if held is None else f", held out {100 * held:.2f} %"
        o.note(f"{record['arm']}: epoch {record['epoch']}/{config.epochs}, loss {record['loss']:.4f}{told}")

    result = run_cohort(
        arms,
        data,
        config,
        teacher=teacher,
        held_out=holdout,
        checkpoint=run.checkpoint,
        resume=run.resumed,
        log=log,
        progress=o.progress_bar(),
    )
    _keep_students(result, run)
    value = result.to_json()
    write_text(run.path / "report.html", training_page(value, run.records()))
    write_json(run.path / "result.json", value)
    run.checkpoint.unlink(missing_ok=True)
    o.emit(value, _table(value), as_json=as_json)


def _keep_students(result: Result, run: RunFolder) -> None:
    from keyhole.models.zoo import save

    for number, score in enumerate(result.scores):
        arm = score.outcome.arm
        folder = run.path if len(result.scores) == 1 else run.path / f"{number}-{_file_name(arm.name)}"
        about = {"arm": arm.name, "data": result.data, "epochs": result.config.epochs, "seed": result.config.seed}
        save(score.outcome.last, folder / "student.safetensors", about={**about, "epoch": result.config.epochs})
        save(
            score.outcome.best, folder / "student-best.safetensors", about={**about, "epoch": score.outcome.best_epoch}
        )


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-") or "arm"


def _table(value: Mapping[str, Any]) -> str:
    rows = [("", "last", "best", "parameters", "x smaller")]
    if value["teacher"]:
        teacher = value["teacher"]
        rows.append((f"teacher {teacher['name']}", f"{teacher['top1']:.2f}", "", f"{teacher['parameters']:,}", ""))
    for arm in value["arms"]:
        smaller = f"{arm['compression']['parameters']:.1f}" if arm["compression"] else ""
        rows.append(
            (arm["name"], f"{arm['top1']['last']:.2f}", f"{arm['top1']['best']:.2f}", f"{arm['parameters']:,}", smaller)
        )
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = [f"{row[0]:<{widths[0]}}  " + "  ".join(f"{row[k]:>{widths[k]}}" for k in range(1, 5)) for row in rows]
    return "\n".join(["Top-1 in percent on the test images, last epoch and best on held-out images", *lines])
