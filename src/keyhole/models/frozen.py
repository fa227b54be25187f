"""A teacher made ready to be watched: frozen, batch norm folded into the convolutions before it, in one precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keyhole.bf16 import fast_products
from keyhole.gradients import DepthwiseConv2d
from keyhole.models.layers import Reduce, Tapped, tap
from keyhole.models.network import Network, random_images
from keyhole.runtime import PRECISIONS, autocast, choose_precision, ready_compiler


def freeze(
    network: Network,
    names: Sequence[str] = (),
    *,
    device: torch.device | None = None,
    precision: str = "fp32",
    compile: bool = False,
    reduce: Reduce | None = None,
) -> nn.Module:
    """Return a frozen copy of a network that gives its logits and the features of named layers.

    The copy takes prepared images and returns ``(logits, {name: feature})``, each feature as a map (n, c, h, w). Batch
    norm is folded into the convolution before it wherever that leaves output and features as they were (checked on
    random images). A network that makes fp32 tensors of its own on the way, and so cannot run in bf16 throughout, runs
    under autocast.

    Args:
        network: The network; it is not changed.
        names: Dotted paths of the layers to capture.
        device: Where it shall run.
        precision: ``bf16`` or ``fp32``, the precision of weights and features; or ``auto``, the faster one there.
        compile: Use ``torch.compile``.
        reduce: What to keep of a feature (see :func:`keyhole.models.layers.tap`).

    Raises:
        UnknownNameError: There is no such layer.
        SettingError: Another precision.

    Example:
        >>> from keyhole.models.zoo import build
        >>> teacher = freeze(build("resnet8", classes=10), ["layer1.0"])
        >>> logits, features = teacher(torch.zeros(2, 3, 32, 32))
        >>> logits.shape, features["layer1.0"].shape
        (torch.Size([2, 10]), torch.Size([2, 16, 32, 32]))
    """
    device = device or torch.device("cpu")
    precision = choose_precision(precision, device)
    module = fold_batch_norm(network, keep=names).to(device).eval().requires_grad_(False)
    module, run = _in_precision(module, network, precision, device)
    module = module.to(memory_format=torch.channels_last)
    tapped: nn.Module = Tapped(module, names, reduce=reduce, image=network.input.size_px)
    if compile:
        ready_compiler()
        tapped.compile(dynamic=False)
    return tapped if run is None else _Run(tapped, run)


def _in_precision(
    module: nn.Module, network: Network, precision: str, device: torch.device
) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Any] | None]:
    """Return a module in a precision, and how it is run there."""
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return module.to(dtype), None
    cast = copy.deepcopy(module).to(dtype)
    images = random_images(replace(network, module=cast), 2).to(dtype)
    run = None if isinstance(fast_products(device), nullcontext) else _in_fast_products
    try:
        with torch.no_grad():
            cast(images) if run is None else run(cast, images)
    except RuntimeError:  # of two types that meet; one of another kind shows in full precision as well
        return module, _in_autocast
    return cast, run


class _Run(nn.Module):
    """A module that is run in a way of its own, also where it is compiled."""

    def __init__(self, module: nn.Module, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.module, self._run = module, run

    def forward(self, images: Tensor) -> Any:
        return self._run(self.module, images)


def _in_fast_products(module: nn.Module, images: Tensor) -> Any:
    with fast_products(images.device):
        return module(images)


def _in_autocast(module: nn.Module, images: Tensor) -> Any:
    with autocast(images.device, "bf16"):
        return module(images.float())


def fold_batch_norm(network: Network, *, keep: Sequence[str] = ()) -> nn.Module:
    """Return a copy of a network's module, on the CPU, with batch norm folded into the convolutions before it.

    A pair is folded when a batch norm is given the very tensor that a convolution returned. The copy is kept only when
    its output and the kept layers equal the original's to rounding; a network that uses the convolution's output
    elsewhere stays as it is.

    Args:
        network: The network; it is not changed.
        keep: Layers whose output shall not change.

    Example:
        >>> from keyhole.models.zoo import build
        >>> folded = fold_batch_norm(build("resnet8", classes=10))
        >>> any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        False
    """
    # on the CPU, in full precision: a GPU's shortened products would look like a change
    folded = copy.deepcopy(network.module).cpu().eval()
    images = random_images(replace(network, module=folded), 2)
    with torch.no_grad():
        expected = _outputs(folded, keep, images)
        modules = dict(folded.named_modules())
        for conv_name, norm_name in _pairs(folded, images):
            if conv_name not in keep and norm_name not in keep:
                _fold(modules[conv_name], modules[norm_name])
                parent, _, child = norm_name.rpartition(".")
                setattr(modules[parent], child, nn.Identity().eval())
        close = all(map(_close, _outputs(folded, keep, images), expected))
    return folded if close else copy.deepcopy(network.module).cpu().eval()


def _outputs(module: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    with tap(module, names) as features:
        output = module(images)
    return [output, *features.values()]


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())


def _pairs(module: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def after(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = (name, output)

        return hook

    def before(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if inputs and id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, sub in module.named_modules():
        if type(sub) in (nn.Conv2d, DepthwiseConv2d):
            handles.append(sub.register_forward_hook(after(name)))
        elif type(sub) is nn.BatchNorm2d and sub.track_running_stats:
            handles.append(sub.register_forward_pre_hook(before(name)))
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == 1 and calls[pair[1]] == 1]


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d), "_pairs saw to it"
    assert isinstance(norm, nn.BatchNorm2d), "_pairs saw to it"
    assert norm.running_mean is not None, "_pairs saw to it"
    assert norm.running_var is not None, "_pairs saw to it"
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    conv.bias = nn.Parameter(bias)
