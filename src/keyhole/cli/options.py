"""Options that several commands share, and what turns them into networks and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.errors import SettingError

if TYPE_CHECKING:
    from keyhole.data.sources import Data
    from keyhole.models.network import InputSpec, Network

_NAMES = "resnet20, timm:NAME, package.module:function, or a .safetensors file of Keyhole"

DataName = Annotated[str, typer.Option("--data", help="cifar100, cifar10, digits or folder.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data: holds cifar-100-python/, or train/CLASS/.")]
Teacher = Annotated[str, typer.Option(help=f"The teacher: {_NAMES}.")]
Model = Annotated[str, typer.Option(help=f"The network: {_NAMES}.")]
Weights = Annotated[Path | None, typer.Option(help="Its weights: .safetensors, or a state dict of torch.save.")]
Classes = Annotated[int | None, typer.Option(help="Number of outputs, where the data does not tell.")]
InputSize = Annotated[int | None, typer.Option(help="Side in pixels of the images that the network takes.")]
Mean = Annotated[str | None, typer.Option(help="Mean by color channel on the scale 0 to 1, such as 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation by color channel, such as 0.25,0.25,0.25.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read an image folder.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")]
LayerGlob = Annotated[str | None, typer.Option("--layers", help="Candidate layers by glob, such as 'layer*.2'.")]


def recipe(options: Mapping[str, Any], *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a command that decide its result, as JSON values; the precision is the one taken here."""
    from keyhole.runtime import choose_device, choose_precision

    never = ("out", "json", "resume", "device", "workers", *leave_out)
    kept = {key: str(value) if isinstance(value, Path) else value for key, value in options.items() if key not in never}
    return kept | {"precision": choose_precision(options["precision"], choose_device(options["device"]))}


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result, for programs or for people."""
    typer.echo(json.dumps(value) if as_json else text)


def note(text: str) -> None:
    """Tell a person something on standard error."""
    typer.echo(text, err=True)


def input_spec(name: str, data: str, size_px: int | None, mean: str | None, std: str | None) -> InputSpec | None:
    """Return what a network expects of its images: as given, else that of the data; None lets the network decide."""
    from keyhole.data.sources import default_input
    from keyhole.models.network import InputSpec
    from keyhole.models.zoo import CIFAR100_INPUT, build

    if name.startswith("timm:") and not (size_px and mean):
        own = build(name, classes=1).input
    else:
        own = default_input(data) or CIFAR100_INPUT
        if ":" in name and not name.startswith("timm:") and data == "folder" and not size_px:
            return None
    if not (size_px or mean or std):
        return own
    return InputSpec(
        (size_px, size_px) if size_px else own.size_px,
        _numbers("--mean", mean) if mean else own.mean,
        _numbers("--std", std) if std else own.std,
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(
            f"{option} is {text!r}; expected numbers separated by commas, one a color channel."
        ) from error


def open_both(
    name: str,
    weights: Path | None,
    data: str,
    root: Path | None,
    *,
    spec: tuple[int | None, str | None, str | None],
    classes: int | None = None,
    workers: int = 0,
) -> tuple[Network, Data]:
    """Return a network and data that fit together."""
    from keyhole.data.sources import open_data
    from keyhole.models.zoo import build, load
    from keyhole.progress import bar

    if name.endswith(".safetensors"):
        network = load(name)
        return network, open_data(data, root, input=network.input, workers=workers, progress=bar)
    wanted = input_spec(name, data, *spec)
    opened = open_data(data, root, input=wanted, workers=workers, progress=bar)
    outputs = classes or opened.classes or (1000 if name.startswith("timm:") else 100)
    return build(name, classes=outputs, input=wanted, weights=weights), opened


def check_teacher(network: Network, data: Data, *, device: str) -> None:
    """Warn a person when a teacher is hardly better than chance on up to 1,000 images with labels."""
    import torch

    from keyhole.distillation.evaluation import evaluate
    from keyhole.runtime import choose_device

    split = data.test if data.test is not None and data.test.classes else data.train
    if not split.classes:
        return
    some = split.subset(torch.linspace(0, len(split) - 1, min(1000, len(split))).long())
    found = evaluate(network, some, device=choose_device(device))
    chance = 1 / data.classes
    if found.top1 < 3 * chance and found.top1 < 0.5 + chance / 2:
        note(
            f"Warning: {network.name} is right on {100 * found.top1:.1f} % of {found.images} images, chance is "
            f"{100 * chance:.1f} %. Check --weights, --mean and --std; hints of an untrained teacher mean nothing."
        )


def progress_bar() -> Any:
    """Return the progress bar for people, or none where standard error is no terminal."""
    from keyhole.progress import bar, silent

    return bar if sys.stderr.isatty() else silent
