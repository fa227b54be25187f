"""Options that several commands share, in groups, and what turns them into networks and data."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from keyhole.errors import SettingError

if TYPE_CHECKING:
    from keyhole.data.sources import Data
    from keyhole.distillation.config import TrainConfig
    from keyhole.models.network import InputSpec, Network

_results: ContextVar[Any] = ContextVar("where results are printed")

FACE_MODEL = "keyhole-face"  # of the package: keyhole.faces.models.face_model.SHIPPED, which takes a second to import
_NAMING_NETWORKS = ("teacher", "model", "student")  # options whose value may name a function of the user's
_NAMES = "resnet20, timm:NAME, package.module:function, or a .safetensors file of Keyhole"

Teacher = Annotated[str, typer.Option(help=f"The teacher: {_NAMES}.")]
Model = Annotated[str, typer.Option(help=f"The network: {_NAMES}.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")]


@dataclass(frozen=True)
class DataOptions:
    """Where images come from."""

    data: Annotated[str, typer.Option(help="cifar100, cifar10, digits or folder.")] = "cifar100"
    root: Annotated[Path | None, typer.Option(help="Folder of the data: holds cifar-100-python/, or train/CLASS/.")] = (
        None
    )
    workers: Annotated[int, typer.Option(min=0, help="Processes that read an image folder.")] = 0


@dataclass(frozen=True)
class InputOptions:
    """What a network expects of its images, where it does not say so itself."""

    input_size: Annotated[
        int | None, typer.Option(min=1, help="Side in pixels of the images that the network takes.")
    ] = None
    mean: Annotated[
        str | None, typer.Option(help="Mean by color channel on the scale 0 to 1, such as 0.5,0.5,0.5.")
    ] = None
    std: Annotated[str | None, typer.Option(help="Standard deviation by color channel, such as 0.25,0.25,0.25.")] = None


@dataclass(frozen=True)
class NetworkOptions(InputOptions):
    """A trained network."""

    weights: Annotated[Path | None, typer.Option(help="Its weights: .safetensors, or a state dict of torch.save.")] = (
        None
    )
    classes: Annotated[int | None, typer.Option(min=1, help="Number of outputs, where the data does not tell.")] = None


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the names are those of :class:`keyhole.distillation.config.TrainConfig`."""

    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 240
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.05
    optimizer: Annotated[str, typer.Option(help="sgd, or adamw for networks without batch norm.")] = "sgd"
    momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.9
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov's form of momentum.")] = False
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 5e-4
    schedule: Annotated[str, typer.Option(help="step (x0.1 at the milestones) or cosine.")] = "step"
    milestones: Annotated[str, typer.Option(help="Fractions of the epochs, for step.")] = "0.625,0.75,0.875"
    warmup_epochs: Annotated[float, typer.Option(help="Epochs over which the rate rises first.")] = 0.0
    augment: Annotated[
        bool,
        typer.Option(help="Pad, crop and flip; digits are not flipped, images of a folder cropped to 35 to 100 %."),
    ] = True
    compile: Annotated[
        str, typer.Option(help="torch.compile for teacher and students: auto (where it pays), on or off.")
    ] = "auto"
    precision: Annotated[str, typer.Option(help="bf16, fp32, or auto: the faster one here.")] = "auto"
    seed: Seed = 0
    device: Device = "auto"

    def config(self) -> TrainConfig:
        """Return them checked, in the form of the library."""
        from keyhole.distillation.config import TrainConfig

        try:
            milestones = tuple(float(part) for part in self.milestones.split(","))
        except ValueError as error:
            message = f"--milestones is {self.milestones!r}; expected fractions such as 0.5,0.75."
            raise SettingError(message) from error
        return TrainConfig(**{**vars(self), "milestones": milestones})


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose parameters that are groups (dataclasses) are taken apart: one option a field."""
    kinds = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            options += _of_group(groups[name])
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kinds[name]))

    def run(**given: Any) -> None:
        """Run the command with its options put together by group."""
        parts = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        _results.set(sys.stdout)
        with redirect_stdout(sys.stderr):  # a network that prints shall not mix with what a program reads
            function(**parts, **given)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {option.name: option.annotation for option in options}
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return run


def _of_group(group: Any) -> list[inspect.Parameter]:
    kinds = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=kinds[field.name],
        )
        for field in fields(group)
    ]


def recipe(options: Mapping[str, Any], *, of_machine: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a command as JSON values, for the recipe of its run.

    The precision is the one that is taken here. Files that options name, and functions of the user's, stand with their
    SHA-256, so that a run is not resumed with other ones; what may differ then (device, workers and ``of_machine``)
    stands apart under ``machine``.

    Raises:
        SettingError: A number is not finite.
        UnknownNameError: A function of the user's cannot be imported.
    """
    from keyhole.plans import code_of
    from keyhole.runtime import choose_device, choose_precision

    of_machine = ("device", "workers", *of_machine)
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= vars(value) if is_dataclass(value) else {key: value}
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"--{key.replace('_', '-')} is {value}; expected a finite number.")
    values = {key: str(value) if isinstance(value, Path) else value for key, value in flat.items()}
    kept = {key: value for key, value in values.items() if key not in ("out", "json", "resume", *of_machine)}
    wanted = flat["precision"]
    if wanted == "auto":  # a resumed run keeps what it took, whatever is faster today
        wanted = _precision_of(flat.get("out")) or wanted
    return kept | {
        "precision": choose_precision(wanted, choose_device(flat["device"])),
        "files": fingerprints(_texts(kept.values())) | code_of(map(kept.get, _NAMING_NETWORKS), [kept.get("terms")]),
        "machine": {key: values[key] for key in of_machine if key in values},
    }


def _texts(values: Iterable[Any]) -> list[str]:
    found = []
    for value in values:
        found += [value] if isinstance(value, str) else _texts(value) if isinstance(value, (list, tuple)) else []
    return found


def _precision_of(out: Path | None) -> str | None:
    """Return the precision that the run in a folder took; None where there is no run."""
    from keyhole.files import read_json

    if out is None or not (out / "recipe.json").is_file():
        return None
    value = read_json(out / "recipe.json")
    arguments = value.get("arguments") if isinstance(value, dict) else None
    found = arguments.get("precision") if isinstance(arguments, dict) else None
    return found if found in ("bf16", "fp32") else None


def fingerprints(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each weight file and ``hints.json`` among some texts that may name one.

    The face model of the package is another one in another version of it, so its file counts as well.
    """
    from keyhole.files import sha256

    names = list(names)
    found = {}
    if FACE_MODEL in names:
        from keyhole.faces.models.face_model import shipped

        found[FACE_MODEL] = sha256(shipped())

    ends = (".safetensors", ".pt", ".pth", ".json", ".bin", ".onnx", ".xml", ".toml", ".csv", ".txt", ".zip")
    named = [name for name in names if name.endswith(ends) and Path(name).is_file()]
    named += [str(Path(name).with_suffix(".bin")) for name in named if name.endswith(".xml")]  # the weights of an IR
    return found | {name: sha256(Path(name)) for name in dict.fromkeys(named) if Path(name).is_file()}


def fingerprints_of(plans: Iterable[Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that plans of students name, and of the code of each function of the user's."""
    from keyhole.plans import code_of, files_of

    plans = list(plans)
    return fingerprints(files_of(plans)) | code_of([plan.student for plan in plans], [plan.terms for plan in plans])


def emit(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result, for programs or for people."""
    typer.echo(json.dumps(value) if as_json else text, file=_results.get(sys.stdout))


def note(text: str) -> None:
    """Tell a person something on standard error."""
    typer.echo(text, err=True)


def input_spec(name: str, data: str, given: InputOptions, *, stored: InputSpec | None = None) -> InputSpec | None:
    """Return what a network expects of its images: as given, else as its weight file says, else that of the data.

    None lets the network decide.
    """
    from keyhole.data.sources import default_input
    from keyhole.models.network import InputSpec
    from keyhole.models.zoo import CIFAR100_INPUT, build, load

    size_px, mean, std = given.input_size, given.mean, given.std
    whole = bool(size_px and mean and std)
    if name.endswith(".safetensors"):
        own = load(name).input
    elif stored is not None:
        own = stored
    elif name.startswith("timm:") and not whole:
        own = build(name, classes=1).input
    else:
        own = default_input(data) or CIFAR100_INPUT
        if ":" in name and not name.startswith("timm:") and data == "folder" and not whole:
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


def refuse_beside_file(name: str, network: NetworkOptions) -> None:
    """Refuse options that a file which brings its own weights and input would ignore."""
    given = [key for key, value in vars(network).items() if value is not None]
    if name.endswith((".safetensors", ".onnx", ".xml")) and given:
        option = given[0].replace("_", "-")
        raise SettingError(f"{name} brings its own {given[0]}; leave --{option} out, or name the network instead.")


def open_both(name: str, network: NetworkOptions, images: DataOptions, *, seed: int = 0) -> tuple[Network, Data]:
    """Return a network and data that fit together; weights that are not given are drawn from the seed."""
    import torch

    from keyhole.data.sources import open_data
    from keyhole.models.zoo import build, load, stored_input

    def opened(spec: InputSpec | None) -> Data:
        return open_data(images.data, images.root, input=spec, workers=images.workers, progress=progress_bar())

    refuse_beside_file(name, network)
    torch.manual_seed(seed)
    if name.endswith(".safetensors"):
        loaded = load(name)
        return loaded, opened(loaded.input)
    wanted = input_spec(name, images.data, network, stored=stored_input(network.weights))
    data = opened(wanted)
    outputs = network.classes or data.classes or (1000 if name.startswith("timm:") else 100)
    return build(name, classes=outputs, input=wanted, weights=network.weights), data


def is_untrained(name: str, network: NetworkOptions) -> bool:
    """Return whether a network named so has random weights; a function of a module may bring its own."""
    own = name.endswith(".safetensors") or (":" in name and not name.startswith("timm:"))
    return network.weights is None and not own


def check_teacher(network: Network, data: Data, *, device: str) -> None:
    """Warn a person when a teacher is hardly better than chance on up to 1,000 training images with labels."""
    import torch

    from keyhole.distillation.evaluation import evaluate
    from keyhole.runtime import choose_device

    split = data.train  # test images are for the last table
    if not split.classes:
        return
    some = split.subset(torch.linspace(0, len(split) - 1, min(1000, len(split))).long())
    found = evaluate(network, some, device=choose_device(device))
    chance = 1 / data.classes
    if found.top1 < 3 * chance and found.top1 < 0.5 + chance / 2:
        note(
            f"Warning: {network.name} is right on {100 * found.top1:.1f} % of {found.images} images, chance is "
            f"{100 * chance:.1f} %. Check --weights, --mean and --std; hints of an untrained teacher mean "
            "nothing."
        )


def check_hint_options(given: Any, names: Sequence[str]) -> None:
    """Check that options which only terms of hints look at, by their names, were not given to terms without hints."""
    from keyhole.distillation.notation import parse_terms

    if any(term.needs_hints for term in parse_terms(given.terms)):
        return
    idle = next((name for name in names if getattr(given, name) != getattr(type(given), name)), None)
    if idle is not None:
        option = f"--{idle.replace('_', '-')}"
        raise SettingError(
            f"{option} serves none of the terms {given.terms}; add one of hints, such as hint, or leave {option} out."
        )


def progress_bar() -> Any:
    """Return the progress bar for people, or none where standard error is no terminal, or another process leads."""
    from keyhole.progress import bar, silent

    return bar if sys.stderr.isatty() and process_number() == 0 else silent


def process_number() -> int:
    """Return which of the processes that ``torchrun`` started this one is; 0 leads."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if "WORLD_SIZE" in os.environ and rank.isdecimal() else 0
