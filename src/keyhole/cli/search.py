"""``keyhole search``: which combination of layers a student does best with, by training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import options as o

if TYPE_CHECKING:
    from keyhole.distillation.config import TrainConfig
    from keyhole.plans import ArmPlan
    from keyhole.studies.budget import SearchConfig
    from keyhole.studies.plan import Study
    from keyhole.studies.search import Found


@dataclass(frozen=True)
class TriedOptions:
    """The student, its loss, and what is combined."""

    student: Annotated[str, typer.Option(help="The student, named like the teacher.")] = "resnet20"
    student_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels that the student sees; the teacher's by default.")
    ] = None
    terms: Annotated[str, typer.Option(help="Of the loss, as in keyhole distill.")] = "ce,kd,hint"
    temperature: Annotated[float | None, typer.Option(help="Of terms of softened logits.")] = None
    balance: Annotated[str, typer.Option(help="weights or gradients, as in keyhole distill.")] = "weights"
    match: Annotated[str, typer.Option(help="Hints to student layers: order, size, name or similarity.")] = "order"
    count: Annotated[int, typer.Option(min=1, help="Layers in a combination.")] = 3
    layers: Annotated[str | None, typer.Option(help="Candidate layers by glob, such as 'layer*.2'.")] = None

    def plan(self, seed: int) -> ArmPlan:
        """Return them in the form of the library."""
        from keyhole.plans import ArmPlan

        return ArmPlan(**vars(self), seed=seed)


@dataclass(frozen=True)
class BudgetOptions:
    """How to search, and what it may cost."""

    method: Annotated[
        str, typer.Option(help="halving (many begin, the best go on), random, or all combinations to the end.")
    ] = "halving"
    cells: Annotated[
        int | None, typer.Option(min=1, help="At most the epochs of so many students trained to the end.")
    ] = None
    passes: Annotated[
        int | None, typer.Option(min=1, help="At most so many teacher passes over the training images.")
    ] = None
    keep: Annotated[int, typer.Option(min=2, help="Of halving: one of so many goes on.")] = 3
    least_epochs: Annotated[int, typer.Option(min=1, help="Of halving: none is left out earlier.")] = 1
    students_per_pass: Annotated[int, typer.Option(min=1, help="Students that share a teacher pass.")] = 28
    holdout: Annotated[int, typer.Option(min=1, help="Training images held out, which choose.")] = 5000

    def config(self, seed: int) -> SearchConfig:
        """Return them in the form of the library."""
        from keyhole.studies.budget import SearchConfig

        return SearchConfig(**vars(self), seed=seed)


@dataclass(frozen=True)
class ShortTrainOptions(o.TrainOptions):
    """How to train, on a short schedule."""

    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10


@o.command
def search(
    teacher: o.Teacher,
    out: o.Out,
    tried: TriedOptions,
    budget: BudgetOptions,
    images: o.DataOptions,
    network: o.NetworkOptions,
    training: ShortTrainOptions,
    json: o.Json = False,
) -> None:
    """Find the layers that a student does best with, by trying many.

    Example: keyhole search --teacher resnet20 --weights FILE --student resnet8 --data cifar100 --root DIR
    --method halving --out OUT

    Held-out training images choose; test images are not looked at. The same command goes on after a stop. Writes
    search.json (for --hints of keyhole distill), fresh.toml (a study that judges it on other seeds) and report.html.
    """
    from keyhole.files import write_json, write_text
    from keyhole.reports.search_page import search_page
    from keyhole.studies.followup import study_toml
    from keyhole.studies.search import search_hints

    plan, train, config = tried.plan(training.seed), training.config(), budget.config(training.seed)
    opened, data = o.open_both(teacher, network, images, seed=training.seed)
    o.check_teacher(opened, data, device=training.device)
    found = search_hints(
        opened, data, plan, train=train, folder=out, search=config, progress=o.progress_bar(), note=o.note
    )
    value = found.to_json()
    write_json(out / "search.json", value)
    fresh = None
    if told := [f"--{key.replace('_', '-')}" for key, given in vars(network).items() if given and key != "weights"]:
        o.note(
            f"No fresh.toml is written: a study file cannot tell {told[0]}. Save the network with it, and search that."
        )
    else:
        fresh = out / "fresh.toml"
        write_text(fresh, study_toml(_next(teacher, network, images, found, (plan, train))))
    write_text(out / "report.html", search_page(found))
    o.emit(value, _summary(found, out, fresh), as_json=json)


def _next(
    teacher: str, network: o.NetworkOptions, images: o.DataOptions, found: Found, made: tuple[ArmPlan, TrainConfig]
) -> Study:
    """Return the study that compares what was found with rules, on seeds that had no part in it.

    Stage ends are left out where there are fewer than hints.
    """
    from keyhole.models.layers import stage_ends
    from keyhole.studies.followup import fresh_study
    from keyhole.studies.plan import Study

    plan, train = made
    searched = Study(
        teacher=teacher,
        weights=network.weights,
        data=images.data,
        root=images.root,
        config=train,
        seeds=(train.seed,),
        holdout=found.config.holdout,
        students_per_pass=found.config.students_per_pass,
        arms=(),
    )
    rules = {"cluster centers": "auto", "stage ends": "stage-ends", "uniform": "uniform", "random": "random"}
    if len(found.hints) > len(stage_ends(found.layers)):
        del rules["stage ends"]
    return fresh_study(searched, plan, {"searched": found.hints, **rules})


def _summary(found: Found, out: Path, fresh: Path | None) -> str:
    cost = found.to_json()["cost"]
    return "\n".join(
        [
            f"{found.teacher}: learn from {', '.join(found.hints)}",
            f"Best of {len(found.tried)} tried of {found.combinations} combinations, "
            f"{100 * found.tried[0].last:.2f} % on held-out images after {len(found.tried[0].held_out)} epochs.",
            f"Cost: {cost['student_epochs']} student epochs ({cost['cells']:g} students to the end), "
            f"{cost['passes']} teacher passes, {cost['seconds']:.0f} s.",
            "That score chose it, and so flatters it; judge it on other seeds"
            + (f": keyhole study {fresh} --out {out / 'fresh'}" if fresh else "."),
            f"Report: {out / 'report.html'}",
        ]
    )
