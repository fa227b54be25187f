"""Layers of any network, by dotted module path: find those worth a hint, and capture their outputs.

The network is never edited. Outputs are captured by forward hooks that are always removed, and residual blocks
are found by watching which module adds two activations during one forward pass.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from keyhole.errors import SettingError, ShapeError, unknown_name
from keyhole.models.network import Network, evaluating, random_images

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: Dotted module path.
        kind: Class of the module.
        channels: Channels of its output.
        size: Height and width of its output; (1, 1) for a vector.
        parameters: Parameters in it.
    """

    name: str
    kind: str
    channels: int
    size: tuple[int, int]
    parameters: int


@contextmanager
def tap(module: nn.Module, names: Sequence[str], *, reduce: Reduce | None = None) -> Iterator[dict[str, Tensor]]:
    """Capture the outputs of named layers in every forward pass inside the ``with`` block.

    The dictionary is filled anew by each forward pass; a layer that runs twice leaves its last output, and of a
    tuple the first tensor is taken. The hooks are gone afterwards, whatever happens inside. A module that was
    compiled before, or has a compiled part, runs eagerly inside the block, because hooks set later are not part of
    its compiled graph; to tap at compiled speed, compile :class:`Tapped`.

    Args:
        module: Any module.
        names: Dotted paths of its sub-modules.
        reduce: What to keep of an output, such as its average; called at once, so that the output can be freed.

    Raises:
        UnknownNameError: A path does not exist; the nearest ones are listed.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with tap(net, ["0", "1"]) as features:
        ...     _ = net(torch.ones(5, 4))
        >>> {name: tuple(feature.shape) for name, feature in features.items()}
        {'0': (5, 3), '1': (5, 3)}
    """
    inner = getattr(module, "_orig_mod", module)
    features: dict[str, Tensor] = {}
    with ExitStack() as stack:
        if any(hasattr(sub, "_orig_mod") or sub._compiled_call_impl is not None for sub in module.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name in names:
            handle = find_layer(inner, name).register_forward_hook(_keep(features, name, reduce))
            stack.callback(handle.remove)
        yield features


def _keep(
    features: dict[str, Tensor],
    name: str,
    reduce: Reduce | None,
    image: tuple[int, int] | None = None,
    *,
    color_last: bool = False,
) -> Any:
    """Return a hook that keeps the output of a layer; with ``image`` as a map."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        value = _first_tensor(output)
        if value is None:
            raise ShapeError(f"Layer {name} returned a {type(output).__name__}; expected a tensor. Tap another layer.")
        if image is not None:
            value = as_map(value, image, color_last=color_last)
        features[name] = value.clone() if reduce is None else reduce(value)  # a rectifier may overwrite it in place

    return hook


class Tapped(nn.Module):
    """A module that returns its output and the features of named layers; made to be compiled.

    Args:
        module: The module; it shares its weights with this one.
        names: Dotted paths of its sub-modules.
        reduce: What to keep of an output.
        image: Height and width of what it is given. Then features are maps (n, c, h, w), whatever form the module
            uses (see :func:`as_map`); without it they are as the layers give them.

    Example:
        >>> net = Tapped(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ["0"])
        >>> output, features = net(torch.ones(5, 4))
        >>> tuple(features["0"].shape)
        (5, 3)
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str],
        *,
        reduce: Reduce | None = None,
        image: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)
        self._features: dict[str, Tensor] = {}
        found = [find_layer(module, name) for name in self.names]  # all of them, before the first one is touched
        self._handles = [
            layer.register_forward_hook(_keep(self._features, name, reduce, image, color_last=_color_last(layer)))
            for name, layer in zip(self.names, found, strict=True)
        ]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the module's output and the features, named."""
        output: Tensor = self.module(x)
        for name in self.names:
            if name not in self._features:
                raise ShapeError(f"Layer {name} did not run in the forward pass. Tap another layer.")
        features = {name: self._features[name] for name in self.names}
        self._features.clear()
        return output, features

    def forget(self) -> None:
        """Drop features that the module left when it was called by itself; else compiled code would be made anew."""
        self._features.clear()

    def close(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """Return the sub-module at a dotted path.

    Raises:
        UnknownNameError: There is none; the nearest paths are listed.
    """
    found = dict(module.named_modules())
    if name not in found or name == "":
        raise unknown_name("layer", name, (path for path in found if path), see="'keyhole layers' lists some.")
    sub: nn.Module = found[name]
    return sub


def as_map(
    feature: Tensor, image: tuple[int, int] | None = None, *, color_last: bool = False
) -> Float[Tensor, "n c h w"]:
    """Return a feature as a map with channels first, whatever form its network uses.

    Tokens (n, t, c) are laid out in the form of the image after leaving out the class and register tokens in front (the
    fewest that leave that form, at most 8), else as a column of t. A vector (n, c) becomes a map of one pixel.

    Args:
        feature: The output of a layer.
        image: Height and width of what the network was given. Then (n, h, w, c), as in Swin, is told from (n, c, h, w)
            by which of both is the image at some stride, within a pixel. Without it a map has its channels first, and
            images are square.
        color_last: What a map is of which both could be so, or neither.

    Raises:
        ShapeError: The feature has fewer than 2 or more than 4 dimensions.

    Example:
        >>> as_map(torch.zeros(2, 197, 192)).shape  # a ViT with one class token
        torch.Size([2, 192, 14, 14])
        >>> as_map(torch.zeros(2, 64, 64, 32), image=(128, 64)).shape  # 64 channels of 64 x 32
        torch.Size([2, 64, 64, 32])
        >>> as_map(torch.zeros(2, 8, 4, 64), image=(128, 64)).shape
        torch.Size([2, 64, 8, 4])
    """
    if feature.ndim == 4:
        if image is not None:
            _, a, b, c = feature.shape
            first, last = _is_at_a_stride((b, c), image), _is_at_a_stride((a, b), image)
            if last if first != last else color_last:
                return feature.permute(0, 3, 1, 2)
        return feature
    if feature.ndim == 3:
        form = 1.0 if image is None else image[0] / image[1]
        n, t, c = feature.shape
        for prefix in range(min(9, t)):
            height, width = (round(((t - prefix) * side) ** 0.5) for side in (form, 1 / form))
            if height * width == t - prefix:
                return feature[:, prefix:].transpose(1, 2).reshape(n, c, height, width)
        return feature.transpose(1, 2).unsqueeze(-1)
    if feature.ndim == 2:
        return feature[:, :, None, None]
    raise ShapeError(f"A feature has the shape {tuple(feature.shape)}; expected (n, c), (n, t, c) or (n, c, h, w).")


def _is_at_a_stride(size: tuple[int, int], image: tuple[int, int]) -> bool:
    """Return whether one stride takes both sides of an image to those of a size, each within a pixel."""
    low = max(whole / (side + 1) for side, whole in zip(size, image, strict=True))
    high = min(whole / (side - 1) if side > 1 else math.inf for side, whole in zip(size, image, strict=True))
    return low < high


def _color_last(module: nn.Module) -> bool:
    """Return whether a layer most likely has its channels last: it works on the last dimension alone."""
    parts = list(module.modules())
    first = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return any(isinstance(part, (nn.Linear, nn.LayerNorm)) for part in parts) and not any(
        isinstance(part, first) for part in parts
    )


def layers(network: Network, pattern: str | None = None) -> list[Layer]:
    """Return the layers worth a hint, in the order in which they run.

    Without a pattern: the outputs of residual blocks where the network has at least two; else of its repeated
    blocks (the outermost class with weights that occurs three times or more); else of its weighted layers but the
    last. The network's own output is never among them.

    Args:
        network: Any network; its mode and weights stay as they are.
        pattern: Take instead the layers whose path matches this glob, such as ``layer?.0`` or ``*.conv2``, where ``*``
            takes in dots; several are separated by commas.

    Raises:
        UnknownNameError: No layer matches the pattern.
        SettingError: The network has no layer to choose from.

    Example:
        >>> from keyhole.models.zoo import build
        >>> [layer.name for layer in layers(build("resnet8", classes=10))]
        ['layer1.0', 'layer2.0', 'layer3.0']
    """
    run = _watch(network)
    if pattern is not None:
        globs = [part.strip() for part in pattern.split(",")]
        names = [name for name in run.outputs if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
        if not names:
            raise unknown_name(
                "layer pattern", pattern, run.outputs, see="'keyhole layers --pattern \"*\"' lists all of them."
            )
    else:
        names = _residual_blocks(network.module, run) or _repeated_blocks(network.module, run)
        names = names or _weighted_layers(network.module, run)
    if not names:
        raise SettingError(f"{network.name} has no layers to choose from; name some with a glob, such as '*'.")
    modules = dict(network.module.named_modules())
    image = network.input.size_px
    return [_describe(name, modules[name], run.outputs[name], image) for name in names]


def _describe(name: str, module: nn.Module, shape: tuple[int, ...], image: tuple[int, int]) -> Layer:
    mapped = as_map(torch.empty(shape, device="meta"), image, color_last=_color_last(module))
    size = (int(mapped.shape[2]), int(mapped.shape[3]))
    return Layer(name, type(module).__name__, int(mapped.shape[1]), size, sum(p.numel() for p in module.parameters()))


@dataclass(frozen=True)
class _Run:
    outputs: dict[str, tuple[int, ...]]  # in the order in which layers finish
    adders: set[str]  # modules that add two activations of their output's shape
    result: frozenset[str]  # modules whose output is the network's own


class _AdditionWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note the innermost module that runs whenever two tensors of one shape are added."""

    def __init__(self, stack: list[str], parameters: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack, self.parameters = stack, parameters
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor) and self.stack:
            operands = [value for value in args[:2] if isinstance(value, Tensor) and id(value) not in self.parameters]
            if len(operands) == 2 and operands[0].shape == operands[1].shape:
                self.found.append((self.stack[-1], tuple(output.shape)))
        return output


def _watch(network: Network) -> _Run:
    module = network.module
    outputs: dict[str, tuple[int, ...]] = {}
    last: dict[str, Tensor] = {}
    stack: list[str] = []

    def enter(name: str) -> Any:
        return lambda _module, _inputs: stack.append(name)

    def leave(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            stack.pop()
            value = _first_tensor(output)
            if value is not None and 2 <= value.ndim <= 4 and value.is_floating_point():
                outputs.pop(name, None)
                outputs[name], last[name] = tuple(value.shape), value

        return hook

    with ExitStack() as hooks:
        hooks.enter_context(evaluating(module))
        for name, sub in module.named_modules():
            if name:
                hooks.callback(sub.register_forward_pre_hook(enter(name)).remove)
                hooks.callback(sub.register_forward_hook(leave(name)).remove)
        watch = _AdditionWatch(stack, {id(p) for p in module.parameters()})
        with torch.no_grad(), watch:
            result = _first_tensor(module(random_images(network, 2)))
    adders = {name for name, shape in watch.found if outputs.get(name) == shape}
    return _Run(outputs, adders, frozenset(name for name, value in last.items() if value is result))


def _residual_blocks(module: nn.Module, run: _Run) -> list[str]:
    modules = dict(module.named_modules())
    kinds = {type(modules[name]) for name in run.adders}
    found = [name for name in run.outputs if type(modules[name]) in kinds and name not in run.result]
    outer = _outermost(found)
    return outer if len(outer) >= 2 else []


def _repeated_blocks(module: nn.Module, run: _Run) -> list[str]:
    modules = dict(module.named_modules())
    blocks = {
        name: type(modules[name])
        for name in run.outputs
        if any(modules[name].children()) and any(p.ndim > 1 for p in modules[name].parameters())
        if type(modules[name]) not in (nn.Sequential, nn.ModuleList) and name not in run.result
    }
    counts = Counter(blocks.values())
    return _outermost([name for name, kind in blocks.items() if counts[kind] >= 3])


def _weighted_layers(module: nn.Module, run: _Run) -> list[str]:
    modules = dict(module.named_modules())
    weighted = [name for name in run.outputs if any(p.ndim > 1 for p in modules[name].parameters(recurse=False))]
    return weighted[:-1]


def _outermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(other + ".") for other in names)]


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output:
        return _first_tensor(output[0])
    return None


def stage_ends(candidates: Sequence[Layer]) -> list[Layer]:
    """Return the last layer of each stage: a stage is a run of layers whose outputs have one size.

    Example:
        >>> from keyhole.models.zoo import build
        >>> [layer.name for layer in stage_ends(layers(build("resnet20", classes=10)))]
        ['layer1.2', 'layer2.2', 'layer3.2']
    """
    following = [*candidates[1:], None]
    return [layer for layer, after in zip(candidates, following, strict=False) if not after or after.size != layer.size]
