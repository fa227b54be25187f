"""``keyhole evaluate``, ``keyhole layers``, ``keyhole figures`` and ``keyhole demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import options as o

if TYPE_CHECKING:
    from keyhole.data.sources import Data
    from keyhole.models.network import Network


@o.command
def evaluate(
    model: o.Model,
    images: o.DataOptions,
    network: o.NetworkOptions,
    device: o.Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 250,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "fp32",
    out: Annotated[Path | None, typer.Option(help="Folder to keep the result in, with its recipe.")] = None,
    json: o.Json = False,
) -> None:
    """Measure a network on the test images.

    Top-1 and top-5, in percent.

    Example: keyhole evaluate --model resnet56 --weights FILE --data cifar100 --root DIR --json

    A file of 'keyhole export' (.onnx, .xml) is measured in its own runtime. With --out result.json is written there.
    """
    arguments = o.recipe(locals())
    from contextlib import nullcontext

    from keyhole.distillation.evaluation import evaluate as measure
    from keyhole.distillation.experiment import percent
    from keyhole.files import write_json
    from keyhole.runs import open_run
    from keyhole.runtime import choose_device

    with nullcontext() if out is None else open_run(out, "evaluate", arguments, resume=True) as run:
        exported = Path(model).suffix in (".onnx", ".xml")
        opened, data = (_exported if exported else o.open_both)(model, network, images)
        found = measure(
            opened,
            data.labeled_test(),
            device=choose_device(device),
            precision=arguments["precision"],
            batch_size=batch_size,
            progress=o.progress_bar(),
        )
        if not exported and o.is_untrained(model, network):
            o.note(f"Warning: {model} has random weights; give --weights FILE, or name a .safetensors file.")
        value = {
            "model": opened.name,
            "data": data.name,
            "images": found.images,
            "top1": percent(found.top1),
            "top5": percent(found.top5),
        }
        if run:
            write_json(run.path / "result.json", value)
    o.emit(value, f"{opened.name}: top-1 {value['top1']:.2f} %, top-5 {value['top5']:.2f} %", as_json=json)


def _exported(model: str, network: o.NetworkOptions, images: o.DataOptions) -> tuple[Network, Data]:
    """Return a classifier as the runtime of its file runs it, and data that fit."""
    from keyhole.data.sources import open_data
    from keyhole.exporting import load_exported

    o.refuse_beside_file(model, network)
    found = load_exported(Path(model))
    return found, open_data(
        images.data, images.root, input=found.input, workers=images.workers, progress=o.progress_bar()
    )


@o.command
def layers(
    model: o.Model,
    network: o.NetworkOptions,
    pattern: Annotated[
        str | None, typer.Option(help="List the layers that match this glob instead, such as '*.conv2'.")
    ] = None,
    json: o.Json = False,
) -> None:
    """List the layers of a network that could teach.

    They stand in the order of depth.

    Example: keyhole layers --model resnet56
    """
    from dataclasses import asdict

    from keyhole.models.layers import layers as find
    from keyhole.models.layers import stage_ends
    from keyhole.models.zoo import build, load

    o.refuse_beside_file(model, network)
    if model.endswith(".safetensors"):
        opened = load(model)
    else:
        spec = o.input_spec(model, "folder", network)
        outputs = network.classes or (1000 if model.startswith("timm:") else 100)
        opened = build(model, classes=outputs, input=spec, weights=network.weights)
    found = find(opened, pattern)
    ends = {layer.name for layer in stage_ends(found)}
    width = max(len(layer.name) for layer in found)
    lines = [
        f"{layer.name:<{width}}  {layer.kind:<16} {layer.channels:>5} x {layer.size[0]} x {layer.size[1]}"
        + ("  end of stage" if layer.name in ends else "")
        for layer in found
    ]
    o.emit(
        {"model": opened.name, "layers": [{**asdict(layer), "size": list(layer.size)} for layer in found]},
        "\n".join(lines),
        as_json=json,
    )


@o.command
def figures(
    report: Annotated[Path, typer.Argument(help="A report with figures, such as a report.html.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures.")],
    json: o.Json = False,
) -> None:
    """Take the figures out of a report as SVG files.

    They fit a paper, slides or a README.

    Example: keyhole figures OUT/report.html --out FIGURES

    Each is light, on white, and has the legend above it in it. Other files in the folder stay.
    """
    from keyhole.files import write_text
    from keyhole.reports.drawings import read_drawings

    found = read_drawings(report)
    for drawing in found:
        write_text(out / f"{drawing.name}.svg", drawing.svg)
    value = [{"file": f"{drawing.name}.svg", "shows": drawing.alt, "caption": drawing.caption} for drawing in found]
    o.emit({"figures": value}, "\n".join(f"{each['file']}  {each['shows']}" for each in value), as_json=json)


@o.command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-out"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of teacher and students.")] = 30,
    device: o.Device = "auto",
    json: o.Json = False,
) -> None:
    """Show all of it on small scans, in a few minutes.

    The 1,797 scans come with scikit-learn; nothing is downloaded.

    Example: keyhole demo --out demo-out
    """
    from keyhole.demo import run_demo
    from keyhole.runs import open_run

    with open_run(out, "demo", {"seeds": seeds, "epochs": epochs, "machine": {"device": device}}, resume=True) as run:
        value = run_demo(run.path, seeds=seeds, epochs=epochs, device=device, progress=o.progress_bar(), note=o.note)
    o.emit(value.summary, value.text, as_json=json)
