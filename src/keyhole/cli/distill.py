"""``keyhole train`` and ``keyhole distill``: one loop for teachers, baselines and students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o
from keyhole.errors import DivergenceError, SettingError

if TYPE_CHECKING:
    from keyhole.data.sources import Data
    from keyhole.distillation.arm import Arm
    from keyhole.distillation.config import TrainConfig
    from keyhole.distillation.experiment import Result
    from keyhole.distillation.group import Group
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
            help="ce, kd, dkd, dist, ls, wttm, hint, at, askd, vid, sp, semckd, crd; weights as in ce,kd,hint=50, "
            "settings as in dkd(beta=2). A loss of yours is package.module:function."
        ),
    ] = "ce,kd,hint"
    temperature: Annotated[
        float | None, typer.Option(help="Of terms of softened logits; each one's published one by default.")
    ] = None
    hints: Annotated[
        str | None,
        typer.Option(
            help="auto (where a term needs hints), a hints.json, layers by commas, or a selector such as stage-ends."
        ),
    ] = None
    balance: Annotated[
        str, typer.Option(help="weights, or gradients: each term is scaled to pull as hard as the first one.")
    ] = "weights"
    match: Annotated[
        str,
        typer.Option(help="Hints to student layers: order, size, name, or similarity after a warm-up of the student."),
    ] = "order"
    match_steps: Annotated[int, typer.Option(min=0, help="Steps of that warm-up.")] = 200
    hint_weights: Annotated[
        str,
        typer.Option(
            help="What each hint counts: equal, or by mass (of its cluster), or redundancy (less counts more)."
        ),
    ] = "equal"
    metric: Annotated[str, typer.Option(help="For --hints auto: as in keyhole hints.")] = "r2_cca"
    count: Annotated[str, typer.Option(help="For --hints auto and selectors: a number, or auto.")] = "3"
    center: Annotated[str, typer.Option(help="For kmeans: medoid or index.")] = "medoid"
    hint: Annotated[str, typer.Option(help="Which layer of a cluster teaches: center, last or informative.")] = "center"
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

    Writes student.safetensors (last epoch), student-best.safetensors, result.json, log.jsonl and report.html to --out.
    """
    arguments = o.recipe(locals())
    from keyhole.data.sources import open_data
    from keyhole.distillation.arm import Arm
    from keyhole.distillation.group import join_group
    from keyhole.distillation.notation import parse_terms
    from keyhole.plans import settled_before
    from keyhole.runs import open_run

    arguments = settled_before(arguments)
    config = replace(training.config(), precision=arguments["precision"])
    with join_group(training.device) as group, open_run(out, "train", arguments, resume=resume, group=group) as run:
        spec = _needed(o.input_spec(model, images.data, expects), model)
        opened = open_data(images.data, images.root, input=spec, workers=images.workers, progress=o.progress_bar())
        group.check_same(opened.fingerprint())
        group.broadcast(lambda: _check_images(run, opened))
        arm = Arm(model, model, spec, parse_terms("ce"))
        _run(run, [arm], opened, config, holdout=holdout, group=group, as_json=json)


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

    Writes student.safetensors (last epoch), student-best.safetensors, result.json, log.jsonl and report.html to --out;
    of a cohort the students lie in a folder each.
    """
    arguments = o.recipe(locals())
    from keyhole.arms import ArmMaker
    from keyhole.data.splits import hold_out
    from keyhole.distillation.group import join_group
    from keyhole.distillation.notation import parse_terms
    from keyhole.models.network import fingerprint
    from keyhole.plans import ArmPlan, read_cohort, settled_before
    from keyhole.runs import open_run

    arguments = settled_before(arguments)
    own = ArmPlan(seed=training.seed, **vars(arm))
    plans = [own]
    if cohort is not None:
        plans = list(read_cohort(cohort, own))
        arguments["cohort"] = [settled_before(asdict(plan)) for plan in plans]
        arguments["files"] |= o.fingerprints_of(plans)
    else:
        o.check_hint_options(arm, ("hints", "match", "hint_weights"))
        if arm.hints is None and any(term.needs_hints for term in parse_terms(arm.terms)):
            plans, arguments["hints"] = [replace(own, hints="auto")], "auto"
    config = replace(training.config(), precision=arguments["precision"])
    with join_group(training.device) as group, open_run(out, "distill", arguments, resume=resume, group=group) as run:
        opened, data = o.open_both(teacher, network, images, seed=training.seed)

        def chosen() -> list[Arm]:
            run.check("teacher-sha256", fingerprint(opened), "teacher")
            _check_images(run, data)
            o.check_teacher(opened, data, device=training.device)
            kept = hold_out(data.train, holdout)[0]
            maker = ArmMaker(opened, kept, config, keep=run.settle, progress=o.progress_bar(), note=o.note)
            return [maker.make(plan) for plan in plans]

        group.check_same({"teacher": fingerprint(opened), **data.fingerprint()})
        arms = group.broadcast(chosen)
        _run(run, arms, data, config, teacher=opened, holdout=holdout, group=group, as_json=json)


def _check_images(run: RunFolder, data: Data) -> None:
    """Check that the images of a folder are those that the run began with."""
    for part, digest in data.fingerprint().items():
        run.check(f"{part}-sha256", digest, f"set of {part} images")


def _needed(spec: InputSpec | None, name: str) -> InputSpec:
    if spec is None:
        raise SettingError(f"{name} needs its input: give --input-size, --mean and --std.")
    return spec


def _run(
    run: RunFolder,
    arms: Sequence[Arm],
    data: Data,
    config: TrainConfig,
    *,
    teacher: Network | None = None,
    holdout: int,
    group: Group,
    as_json: bool,
) -> None:
    from keyhole.distillation.experiment import run_cohort
    from keyhole.files import write_json, write_text
    from keyhole.reports.training_page import training_page

    def log(record: dict[str, Any]) -> None:
        run.append(record)
        held = record.get("held_out_top1")
        also = "" if held is None else f", held out {100 * held:.2f} %"
        o.note(f"{record['arm']}: epoch {record['epoch']}/{config.epochs}, loss {record['loss']:.4f}{also}")

    result = run_cohort(
        arms,
        data,
        config,
        teacher=teacher,
        held_out=holdout,
        checkpoint=run.checkpoint,
        resume=run.resumed,
        diverging="raise" if len(arms) == 1 else "drop",
        group=group,
        log=log,
        progress=o.progress_bar(),
    )
    if not group.leads:
        return
    if not result.scores:
        run.checkpoint.unlink(missing_ok=True)  # nobody is left in it
        name, why = next(iter(result.diverged.items()))
        raise DivergenceError(
            f"All {len(arms)} arms diverged, {name} among them: {why}. Lower --lr or the weights of terms."
        )
    for name, why in result.diverged.items():
        o.note(f"Warning: arm {name} diverged and was left out of the rest: {why}.")
    _keep_students(result, run, [arm.name for arm in arms])
    value = result.to_json()
    write_text(run.path / "report.html", training_page(value, run.records()))
    write_json(run.path / "result.json", value)
    run.checkpoint.unlink(missing_ok=True)
    kept = (
        f"Student: {run.path / 'student.safetensors'}" if len(arms) == 1 else f"Students: in {run.path}, a folder each"
    )
    o.emit(value, f"{_table(value)}\n{kept}\nReport: {run.path / 'report.html'}", as_json=as_json)


def _keep_students(result: Result, run: RunFolder, names: Sequence[str]) -> None:
    from keyhole.models.zoo import save

    for score in result.scores:
        arm = score.outcome.arm
        folder = run.path if len(names) == 1 else run.path / f"{names.index(arm.name)}-{_file_name(arm.name)}"
        about = {"arm": arm.name, "data": result.data, "epochs": result.config.epochs, "seed": result.config.seed}
        save(score.outcome.last, folder / "student.safetensors", about={**about, "epoch": result.config.epochs})
        save(
            score.outcome.best, folder / "student-best.safetensors", about={**about, "epoch": score.outcome.best_epoch}
        )


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)[:50].strip("-") or "arm"


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
    rows += [(name, "diverged", "", "", "") for name in value["diverged"]]
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = [f"{row[0]:<{widths[0]}}  " + "  ".join(f"{row[k]:>{widths[k]}}" for k in range(1, 5)) for row in rows]
    chosen = "and best on held-out images" if value["images"]["held_out"] else "(best is last: no images held out)"
    return "\n".join([f"Top-1 in percent on the test images, last epoch {chosen}", *lines])
