"""Small face networks of our own, for sharp crops and for those of few pixels that need no enlarging.

Inverted residual blocks as in MobileFaceNet, with ReLU, which integer arithmetic keeps, and a global depthwise
convolution before the embedding. The input may be as small as the faces: a network of 24 x 24 pixels has no stride in
its stem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from keyhole.errors import WeightsError, unknown_name
from keyhole.faces.models.preparation import Preparation, arcface_template
from keyhole.gradients import DepthwiseConv2d

EMBEDDING = 256
_LAST = "head.6.running_mean"  # one value a number of the embedding


@dataclass(frozen=True)
class Form:
    """One of the networks.

    Attributes:
        size_px: Side of its input.
        halvings: How often the side is halved before the first block: 0 for small inputs.
        stages: Channels and blocks of each stage; each but the first begins with a stride of 2.
        expansion: How many times wider a block is inside.
    """

    size_px: int
    halvings: int
    stages: tuple[tuple[int, int], ...]
    expansion: int = 2

    @property
    def preparation(self) -> Preparation:
        """What its crops are: the template of ArcFace at its own size, colors within 1 of 0."""
        gray = (127.5, 127.5, 127.5)
        return Preparation(self.size_px, mean=gray, std=gray, template=arcface_template(self.size_px))


_TINY, _SMALL, _MIDDLE = ((24, 1), (40, 2), (64, 2)), ((32, 2), (64, 3), (96, 3)), ((48, 2), (96, 4), (160, 4))
COMPACT: dict[str, Form] = {
    "compact-24-xs": Form(24, 0, _TINY),
    "compact-24-s": Form(24, 0, _SMALL),
    "compact-48-s": Form(48, 1, _SMALL),
    "compact-112-s": Form(112, 2, _SMALL),
    "compact-48-m": Form(48, 1, _MIDDLE),
    "compact-112-m": Form(112, 2, _MIDDLE),
}


class _Block(nn.Module):
    """Widen, look around in each channel, narrow; and the input itself where the shape stays."""

    def __init__(self, inputs: int, channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.body = nn.Sequential(
            *_layer(inputs, inner, kernel=1),
            *_layer(inner, inner, kernel=3, stride=stride, groups=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.keeps = stride == 1 and inputs == channels

    def forward(self, feature: Tensor) -> Tensor:
        found: Tensor = self.body(feature)
        return found + feature if self.keeps else found


class CompactFace(nn.Module):
    """A network of :data:`COMPACT`; its stages are ``stage1``, ``stage2`` and so on, for hints."""

    def __init__(self, form: Form, size: int = EMBEDDING) -> None:
        super().__init__()
        width, side = form.stages[0][0], form.size_px
        stem: list[nn.Module] = []
        for k, stride in enumerate([2] * form.halvings or [1]):
            stem += _layer(width if k else 3, width, 3, stride=stride)
            side = -(-side // stride)
        self.stem = nn.Sequential(*stem)
        for number, (channels, blocks) in enumerate(form.stages, 1):
            stride = 1 if number == 1 else 2
            parts = [
                _Block(channels if k else width, channels, stride=1 if k else stride, expansion=form.expansion)
                for k in range(blocks)
            ]
            self.add_module(f"stage{number}", nn.Sequential(*parts))
            width, side = channels, -(-side // stride)
        wide = 2 * width
        self.head = nn.Sequential(
            *_layer(width, wide, 1),
            nn.Conv2d(wide, wide, side, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Conv2d(wide, size, 1, bias=False),
            nn.BatchNorm2d(size),
        )
        self.stages = len(form.stages)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings (n, d) of any length for prepared images (n, 3, s, s)."""
        feature = self.stem(images)
        for number in range(1, self.stages + 1):
            feature = self._modules[f"stage{number}"](feature)  # type: ignore[misc]
        found: Tensor = self.head(feature)
        return found.flatten(1)


def compact(name: str, size: int = EMBEDDING) -> CompactFace:
    """Return a network with random weights, drawn from the global state.

    Args:
        name: One of :data:`COMPACT`.
        size: Numbers in an embedding.

    Raises:
        UnknownNameError: There is none of that name.

    Example:
        >>> import torch
        >>> network = compact("compact-24-s").eval()
        >>> network(torch.zeros(2, 3, 24, 24)).shape
        torch.Size([2, 256])
    """
    return CompactFace(form_of(name), size)


def form_of(name: str) -> Form:
    """Return the form of a network.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in COMPACT:
        raise unknown_name("compact network", name, COMPACT)
    return COMPACT[name]


def load_compact(weights: Mapping[str, Tensor], *, name: str) -> CompactFace:
    """Return a network with these weights; how many numbers it embeds in is theirs.

    Raises:
        WeightsError: They are of another network. Those of compact-24-s and compact-48-s have the same shapes, and are
            told apart by the file's description alone.
    """
    last = weights.get(_LAST)
    module = compact(name, EMBEDDING if last is None else len(last))
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"The weights are not those of {name}: {reason}. Name another network.") from error
    return module.eval()


def _layer(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    kind = DepthwiseConv2d if groups > 1 else nn.Conv2d
    convolution = kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
