"""Networks by name: built in, ``timm:NAME``, ``package.module:function``, or a file of Keyhole; and their weights."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from keyhole.errors import KeyholeError, SettingError, UnknownNameError, WeightsError, reason_of, unknown_name
from keyhole.files import halved_state, read_tensors, write_tensors
from keyhole.libraries import call_named, optional
from keyhole.models.network import InputSpec, Network, evaluating, random_images
from keyhole.models.resnet import CIFAR_RESNETS, CifarResNet

# The normalization of the published CIFAR-100 weights: mean and standard deviation of the training images.
CIFAR100_INPUT = InputSpec((32, 32), (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))


def build(
    name: str,
    *,
    classes: int,
    input: InputSpec | None = None,
    weights: Path | str | None = None,
) -> Network:
    """Return the network of a name, on the CPU, in evaluation mode.

    Args:
        name: A built-in name (``resnet20``), ``timm:NAME``, ``package.module:function`` (the function is called with
            ``classes`` and returns a module), or a ``.safetensors`` file of Keyhole, which brings its weights along.
        classes: Number of outputs.
        input: Size and normalization. Built-in networks take that of CIFAR-100 when it is missing, timm
            networks their own; a function has none, so it must be given.
        weights: A ``.safetensors`` file, or a state dict saved by ``torch.save``, which is read without
            executing anything. Without it the weights are random.

    Raises:
        UnknownNameError: No such network; the nearest names are listed.
        SettingError: ``input`` is missing where it must be given, or the function returns no module.
        WeightsError: The file cannot be read, or belongs to another architecture or number of classes.

    Example:
        >>> build("resnet110", classes=100).parameters
        1736564
    """
    if name.endswith(".safetensors"):
        network = load(name)
        if network.classes != classes:
            raise WeightsError(f"{name} has {network.classes} outputs, expected {classes}. Take another file.")
        network = replace(network, input=input or network.input)
    elif name.startswith("timm:"):
        network = _build_timm(name, classes, input)
    elif ":" in name:
        network = _build_function(name, classes, input or stored_input(weights))
    elif name in CIFAR_RESNETS:
        spec = input or CIFAR100_INPUT
        depth, channels = CIFAR_RESNETS[name]
        module = CifarResNet(depth, classes, channels=channels, inputs=spec.channels)
        network = Network(name, module, spec, classes)
    else:
        raise _no_network(name)
    if weights is not None:
        load_weights(network.module, Path(weights))
    network.module.eval()
    return network


def _no_network(name: str) -> KeyholeError:
    """Return the error for what is no network: a file that is something else, or a name that does not exist."""
    path = Path(name)
    if path.is_dir():
        return SettingError(
            f"{name} is a folder; expected a network. Name the file in it, such as student.safetensors."
        )
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return SettingError(f"{name} is a file of weights; expected a network. Name that, and this file by --weights.")
    if path.suffix in (".onnx", ".xml"):
        return SettingError(
            f"{name} is for another runtime; expected a network of PyTorch. 'keyhole evaluate' measures such files."
        )
    if path.is_file():
        return SettingError(
            f"{name} holds no network; expected a .safetensors file of Keyhole, a name such as resnet56, timm:NAME or "
            "package.module:function. Name one of these."
        )
    return unknown_name("model", name, CIFAR_RESNETS, see="timm:NAME and package.module:function work as well.")


def stored_input(weights: Path | str | None) -> InputSpec | None:
    """Return the size and normalization that a weight file of :func:`save` tells of; None for other files."""
    if weights is None or not str(weights).endswith(".safetensors") or not Path(weights).is_file():
        return None
    try:
        return _described(read_tensors(Path(weights))[1])[2]
    except (LookupError, TypeError, ValueError):
        return None


def save(network: Network, path: Path | str, *, about: Mapping[str, Any] | None = None, half: bool = False) -> None:
    """Write a network so that :func:`load` gives it back: weights, architecture, input, classes.

    Args:
        network: Any network of this package.
        path: Where to write, usually ``student.safetensors``.
        about: More JSON values to keep with it, such as the recipe; :func:`read_about` returns them.
        half: Write fp16, half the size, where that loses no more than rounding (see
            :func:`keyhole.files.halved_state`); :func:`load` returns fp32 all the same.

    Raises:
        RunError: The file cannot be written; an older one is untouched.
        SettingError: ``about`` holds something that JSON cannot.
    """
    described = {"name": network.name, "classes": network.classes, "input": asdict(network.input)}
    tensors = halved_state(network.module) if half else network.module.state_dict()
    try:
        kept = json.loads(json.dumps(dict(about or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SettingError(f"about cannot be kept in {path}: {reason_of(error)}. Give values that JSON has.") from error
    write_tensors(Path(path), tensors, {"network": described, "about": kept})


def read_about(path: Path | str) -> dict[str, Any]:
    """Return what :func:`save` was told to keep with a network; empty where it was told nothing.

    Raises:
        WeightsError: The file is missing, broken, or was not written by Keyhole.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "teacher.safetensors"
        ...     save(build("resnet8", classes=10), file, half=True, about={"epochs": 240})
        ...     read_about(file)
        {'epochs': 240}
    """
    metadata = read_tensors(Path(path))[1]
    about = metadata.get("about") if isinstance(metadata, dict) else None
    if not isinstance(about, dict):
        raise WeightsError(f"{path} was not written by keyhole.save; it tells nothing about its network.")
    return about


def load(path: Path | str) -> Network:
    """Return a network that :func:`save` wrote, ready to use: on the CPU, in evaluation mode.

    A file never decides what code runs: one that was made by a function of the user's (``package.module:function``) is
    refused, and is read by naming that function, ``build("package.module:function", ..., weights=path)``.

    Raises:
        WeightsError: The file is missing, broken, was not written by Keyhole, or names a function.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save(build("resnet8", classes=10), Path(folder) / "student.safetensors")
        ...     student = load(Path(folder) / "student.safetensors")
        >>> student(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    tensors, metadata = read_tensors(Path(path))
    try:
        name, classes, spec = _described(metadata)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        message = f"{path} does not say which network it holds; build it by name with these weights instead."
        raise WeightsError(message) from error
    if name not in CIFAR_RESNETS and not name.startswith("timm:"):
        raise WeightsError(
            f"{path} was made by {name!r}, and a file may not choose the code that runs. "
            f"If you trust that function, name it as the model and this file as its weights."
        )
    if classes > max((tensor.shape[0] for tensor in tensors.values() if tensor.dim()), default=0):
        raise WeightsError(f"{path} speaks of {classes} classes, and none of its weights has so many. Make it anew.")
    network = build(name, classes=classes, input=spec)
    fill(network.module, tensors, source=str(path))
    return network


def _described(metadata: Mapping[str, Any]) -> tuple[str, int, InputSpec]:
    """Return name, classes and input from metadata that :func:`save` wrote; anything odd is a TypeError or the like."""
    name, classes, raw = (metadata["network"][key] for key in ("name", "classes", "input"))
    size, mean, std = raw["size_px"], raw["mean"], raw["std"]
    whole = [classes, *size]
    if not isinstance(name, str) or any(type(value) is not int or value < 1 for value in whole) or len(size) != 2:
        raise TypeError
    if any(type(value) not in (int, float) for value in (*mean, *std)):
        raise TypeError
    return name, classes, InputSpec((size[0], size[1]), tuple(map(float, mean)), tuple(map(float, std)))


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a weight file.

    Args:
        module: The module to fill.
        path: A ``.safetensors`` file, or one of ``torch.save`` holding a state dict, perhaps under ``state_dict``,
            ``model`` or ``net``. Only tensors are read; a pickle that wants to run code is refused.

    Raises:
        WeightsError: The file cannot be read, or belongs to another architecture; then the first tensor that
            does not fit is named.
    """
    if not path.is_file():
        raise WeightsError(f"No weight file at {path}. Give --weights the path of an existing file.")
    tensors = read_tensors(path)[0] if path.suffix == ".safetensors" else _read_torch(path)
    fill(module, tensors, source=str(path))


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, finite: bool = True) -> None:
    """Copy tensors into a module, or change nothing and say what does not fit.

    Args:
        module: The module.
        tensors: By name.
        source: Where they are from, for the error.
        finite: Whether NaN and infinity are refused.

    Raises:
        WeightsError: A tensor is missing, unknown, of another shape, or not finite.
    """
    own = module.state_dict()
    prefix = "module."
    if not own.keys() & tensors.keys() and all(name.startswith(prefix) for name in tensors):  # saved from DataParallel
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for name, tensor in own.items():
        if name not in tensors:
            if name.endswith("num_batches_tracked"):
                continue
            raise WeightsError(f"{source} has no tensor {name} {tuple(tensor.shape)}; it belongs to another model.")
        found = tensors[name]
        if found.shape != tensor.shape:
            raise WeightsError(
                f"{source} belongs to another model: {name} has the shape {tuple(found.shape)}, "
                f"expected {tuple(tensor.shape)}."
            )
        if found.is_complex() != tensor.is_complex() or found.is_floating_point() != tensor.is_floating_point():
            raise WeightsError(f"{source}: {name} is {found.dtype}, expected {tensor.dtype}. Take another weight file.")
        if finite and found.is_floating_point() and not bool(torch.isfinite(found.float()).all()):
            raise WeightsError(f"{source}: {name} holds NaN or infinity. Take another weight file.")
    if extra := next((name for name in tensors if name not in own), None):
        raise WeightsError(
            f"{source} belongs to another model: it holds {extra} {tuple(tensors[extra].shape)}, which the model lacks."
        )
    module.load_state_dict({name: tensors.get(name, tensor) for name, tensor in own.items()})


def _read_torch(path: Path) -> dict[str, Tensor]:
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty. Copy or download it again.")
    try:
        with warnings.catch_warnings():  # about pickles of other kinds, which then fail
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # it names a function or class to be called
            raise WeightsError(
                f"{path} holds more than tensors, and reading it could run code, so it was not read. "
                "Save the state dict alone, best as safetensors."
            ) from error
        raise WeightsError(f"{path} is truncated or no weight file of torch.save. Copy it again.") from error
    except Exception as error:  # bytes of any kind, taken for a pickle, raise nearly anything
        raise WeightsError(f"{path} is truncated or no weight file: {reason_of(error)}. Copy it again.") from error
    for key in ("state_dict", "model", "net"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise WeightsError(f"{path} holds no state dict (name to tensor). Save model.state_dict().")
    for name, tensor in value.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WeightsError(f"{path}: {name} is sparse, quantized or empty; expected plain tensors. Save such ones.")
    return dict(value)


def _build_timm(name: str, classes: int, spec: InputSpec | None) -> Network:
    timm = optional("timm", user=name, packages="timm torchvision")
    short = name.removeprefix("timm:")
    if not timm.is_model(short.split(".")[0]):
        raise unknown_name("timm model", short, timm.list_models(), see="timm.list_models() gives all of them.")
    options: dict[str, Any] = {"num_classes": classes}
    if spec is not None and spec.channels != 3:
        options["in_chans"] = spec.channels
    try:
        try:  # transformers are built for one size; convnets do not take it
            sized: dict[str, Any] = {} if spec is None else {"img_size": spec.size_px}
            module = timm.create_model(short, pretrained=False, **options, **sized)
        except TypeError:
            module = timm.create_model(short, pretrained=False, **options)
    except (RuntimeError, AssertionError, ValueError) as error:
        if re.search(r"\btag\b", str(error)):  # the part after the dot, which this model does not have
            raise UnknownNameError(f"Cannot build {name!r}: {reason_of(error)}. See timm.list_models().") from error
        raise SettingError(f"{name} cannot be built: {reason_of(error)}. Give another --input-size.") from error
    if spec is None:
        config = cast("dict[str, Any]", module.pretrained_cfg)
        size = config["input_size"]
        spec = InputSpec((size[1], size[2]), tuple(config["mean"]), tuple(config["std"]))
    network = Network(name, module, spec, classes)
    _try(network)
    return network


def _build_function(name: str, classes: int, spec: InputSpec | None) -> Network:
    made = call_named(name, classes=classes)
    if not isinstance(made, nn.Module):
        raise SettingError(f"{name} returned a {type(made).__name__}; expected a torch.nn.Module.")
    if spec is None:
        raise SettingError(f"{name} needs its input: give --input-size, --mean and --std.")
    network = Network(name, made, spec, classes)
    _try(network)
    return network


def _try(network: Network) -> None:
    """Check on two images of noise that a user's module gives logits."""
    try:
        with torch.no_grad(), evaluating(network.module):
            logits = network.module(random_images(network, 2))
    except (Exception, SystemExit) as error:
        size = " x ".join(map(str, network.input.size_px))
        raise SettingError(
            f"{network.name} fails on images of {network.input.channels} x {size}: {reason_of(error)}. "
            "Check --input-size, --mean and --std."
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, network.classes):
        raise SettingError(
            f"{network.name} gave {found} for two images; expected logits of the shape (2, {network.classes})."
        )
