"""A network with what it needs to be used: its input size, its normalization, its number of classes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import SettingError, ShapeError

_MOST_PX = 16384  # a side; beyond it a typing error is likelier than an image


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of its images, after they were scaled to [0, 1].

    Attributes:
        size_px: Height and width.
        mean: One value a channel, subtracted.
        std: One value a channel, divided by.
    """

    size_px: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the values belong together."""
        if len(self.mean) != len(self.std) or not self.mean:
            raise SettingError(
                f"Mean has {len(self.mean)} values and std {len(self.std)}; expected one each per color channel."
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise SettingError(f"Mean {self.mean} and std {self.std} must be finite numbers.")
        if min(self.std) <= 0 or not 1 <= min(self.size_px) <= max(self.size_px) <= _MOST_PX:
            raise SettingError(
                f"Input size {self.size_px} (1 to {_MOST_PX} pixels) and std {self.std} must be positive."
            )

    @property
    def channels(self) -> int:
        """Number of color channels."""
        return len(self.mean)

    def prepare(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Return images in [0, 1] resized to the input size (area when shrinking) and normalized.

        Raises:
            ShapeError: The images have another number of channels.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ShapeError(
                f"Images have the shape {tuple(images.shape)}; expected (n, {self.channels}, height, width) in [0, 1]. "
                "Give --mean and --std one value for each color channel of the images."
            )
        if tuple(images.shape[-2:]) != self.size_px:
            shrinks = images.shape[-2] >= self.size_px[0] and images.shape[-1] >= self.size_px[1]
            mode = "area" if shrinks else "bilinear"
            images = functional.interpolate(images, self.size_px, mode=mode)
        mean, std = (_by_channel(values, images.device, images.dtype) for values in (self.mean, self.std))
        return (images - mean) / std


@lru_cache(maxsize=64)
def _by_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)  # kept: a copy to a GPU waits for it


@dataclass(frozen=True)
class Network:
    """A PyTorch module, untouched, and what it needs beside its weights.

    Attributes:
        name: The name by which it can be built again, such as ``resnet20`` or ``timm:resnet50``.
        module: The module; logits of shape (n, classes) come out.
        input: What it expects of its images.
        classes: Number of classes.
    """

    name: str
    module: nn.Module
    input: InputSpec
    classes: int

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits for images in [0, 1] of any size; gradients and mode are as the caller set them."""
        logits: Tensor = self.module(self.input.prepare(images))
        return logits

    @property
    def parameters(self) -> int:
        """Number of trainable and frozen parameters; running statistics are not counted."""
        return sum(p.numel() for p in self.module.parameters())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each of its parts is in the mode in which it was."""
    modes = [(sub, sub.training) for sub in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for sub, training in modes:
            sub.training = training


def fingerprint(network: Network) -> str:
    """Return the SHA-256 of a network's weights and buffers: their names, kinds and values, in order.

    Example:
        >>> from keyhole.models.zoo import build
        >>> network = build("resnet8", classes=10)
        >>> fingerprint(network) == fingerprint(network)
        True
    """
    digest = hashlib.sha256()
    for name, tensor in network.module.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def random_images(network: Network, count: int) -> Float[Tensor, "n c h w"]:
    """Return images of noise as the network's module takes them; they are the same in each call."""
    size = (count, network.input.channels, *network.input.size_px)
    images = torch.rand(size, generator=torch.Generator().manual_seed(0))
    weights = next(network.module.parameters(), images)
    return images.to(weights.device, weights.dtype)


def count_macs(network: Network) -> int:
    """Return the multiply-accumulates of one image in convolutions and matrix products, those of attention among them.

    Example:
        >>> from keyhole.models.zoo import build
        >>> count_macs(build("resnet20", classes=100))
        40818944
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    plain = sdpa_kernel(SDPBackend.MATH)  # in steps that are counted; the fused ones of a CPU count as nothing
    with torch.no_grad(), evaluating(network.module), plain, counter:
        network.module(random_images(network, 1))
    return int(counter.get_total_flops()) // 2
