"""``keyhole hints``: which layers of a teacher should teach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o

if TYPE_CHECKING:
    from pathlib import Path

    from keyhole.hints.choice import Hints


@dataclass(frozen=True)
class RuleOptions:
    """How layers are compared and chosen."""

    metric: Annotated[
        str,
        typer.Option(
            help="r2_cca, linear_cka, debiased_cka, rbf_cka, procrustes, svcca, pwcca; several by commas decide by "
            "consensus."
        ),
    ] = "r2_cca"
    clustering: Annotated[
        str,
        typer.Option(
            help="kmeans, segments, agglomerative; quality (by labels); controls: stage-ends, uniform, random, "
            "reverse, all, last-only."
        ),
    ] = "kmeans"
    count: Annotated[str, typer.Option(help="Number of hints, or auto (highest silhouette).")] = "3"
    center: Annotated[
        str, typer.Option(help="Center of a kmeans cluster: medoid, or index (nearest the mean index).")
    ] = "medoid"
    hint: Annotated[
        str, typer.Option(help="Which layer of a cluster teaches: center, last, or informative (about the classes).")
    ] = "center"
    layers: Annotated[
        str | None, typer.Option(help="Candidate layers by glob, such as 'layer*.2'; found by themselves without.")
    ] = None
    samples: Annotated[int, typer.Option(help="Training images to look at.")] = 10_000


@o.command
def hints(
    teacher: o.Teacher,
    out: o.Out,
    images: o.DataOptions,
    network: o.NetworkOptions,
    choose: RuleOptions,
    grid: Annotated[int, typer.Option(min=1, help="Average features over a grid x grid raster.")] = 1,
    stability: Annotated[int, typer.Option(min=0, help="Half-samples for the stability; 0 leaves it out.")] = 100,
    bare: Annotated[bool, typer.Option(help="Also time the forward pass alone, as the floor.")] = True,
    memory: Annotated[
        int, typer.Option(min=1, help="MiB of features kept in memory; more goes to a temporary file.")
    ] = 1024,
    device: o.Device = "auto",
    batch_size: Annotated[int, typer.Option(min=4, help="Images at a time.")] = 250,
    precision: Annotated[str, typer.Option(help="bf16, fp32, or auto: the faster one here.")] = "auto",
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Choose the layers of a teacher that a student should learn from.

    Example: keyhole hints --teacher resnet56 --weights FILE --data cifar100 --root DIR --out OUT

    Writes hints.json, similarity.npz and report.html to --out.
    """
    arguments = o.recipe(locals(), of_machine=("memory",))
    from keyhole.files import write_arrays, write_json, write_text
    from keyhole.hints.choice import ChoiceConfig, choose_hints
    from keyhole.hints.moments import ObserveConfig
    from keyhole.hints.selection import Rule
    from keyhole.plans import parse_count
    from keyhole.reports.hints_page import hints_page
    from keyhole.runs import open_run
    from keyhole.runtime import choose_device

    rule = Rule(choose.clustering, parse_count(choose.count), choose.center, choose.hint, seed)
    config = ChoiceConfig(
        samples=choose.samples,
        metrics=tuple(name.strip() for name in choose.metric.split(",")),
        layers=choose.layers,
        draws=stability,
        bare=bare,
        seed=seed,
    )
    look = ObserveConfig(grid=grid, batch_size=batch_size, memory_mib=memory, precision=arguments["precision"])
    with open_run(out, "hints", arguments, resume=True) as run:
        opened, data = o.open_both(teacher, network, images, seed=seed)
        o.check_teacher(opened, data, device=device)
        found = choose_hints(
            opened,
            data.train,
            rule,
            config=config,
            look=look,
            device=choose_device(device),
            data=data.name,
            progress=o.progress_bar(),
        )
        _warn_of_few(found)
        write_arrays(run.path / "similarity.npz", found.similarities)
        write_text(run.path / "report.html", hints_page(found))
        write_json(run.path / "hints.json", found.to_json())
    o.emit(found.to_json(), _summary(found.to_json(), run.path), as_json=json)


def _warn_of_few(found: Hints) -> None:
    widest, count = max(layer.channels for layer in found.layers), len(found.sample_indices)
    if count < 4 * widest:
        o.note(
            f"Warning: {count:,} images for layers of up to {widest} channels: with so few, all look alike. Give more "
            "--samples."
        )


def _summary(value: dict[str, Any], out: Path) -> str:
    lines = [f"{value['teacher']}: learn from {', '.join(value['hints'])}"]
    for name in value["hints"]:
        sure = value["stability"].get(name)
        if sure is not None:
            lines.append(f"  {name}: chosen in {100 * sure:.0f} % of the half-samples")
    seconds = value["seconds"]
    bare = seconds["bare_forward"]
    ratio = f", {seconds['total'] / bare:.2f} bare forward passes" if bare else ""
    lines.append(f"{seconds['total']:.1f} s over {value['samples']} images{ratio}; report: {out / 'report.html'}")
    return "\n".join(lines)
