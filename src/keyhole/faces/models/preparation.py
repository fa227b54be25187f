"""What a face model takes: the size, colors, scaling and extent of its crops, and the licenses that it comes under."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from keyhole.errors import SettingError, ShapeError

Template = tuple[tuple[float, float], ...]

# left eye in the image, right eye, nose, left corner of the mouth, right corner; pixel centers are integers
ARCFACE_112: Template = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


@dataclass(frozen=True)
class Preparation:
    """How a crop becomes the input of a face model.

    A model is shown either an aligned crop (``template``) or a detector's box (``margin``). With both, the aligned crop
    is wider than its template by the margin.

    Args:
        size_px: Side of the square input, 16 to 1024.
        color: ``rgb`` or ``bgr``, the order in which the model takes the channels.
        mean: What is subtracted from each channel, in gray levels 0 to 255, in the order of ``color``.
        std: What each channel is then divided by, in gray levels; above 0.
        template: Where five landmarks lie in the input, in pixels of ``size_px``; ``None`` without alignment.
        margin: By how much of its side the box is extended, -0.5 to 3; 0.3 is a crop 1.3 times as wide as the box.

    Raises:
        SettingError: A value is out of its range, or there is neither a template nor a margin.

    Example:
        >>> Preparation(224, "bgr", (91.4953, 103.8827, 131.0912), margin=0.3).color
        'bgr'
    """

    size_px: int
    color: str = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    template: Template | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.size_px <= 1024:
            raise SettingError(f"size_px is {self.size_px}; expected 16 to 1024.")
        if self.color not in ("rgb", "bgr"):
            raise SettingError(f"color is {self.color!r}; expected rgb or bgr.")
        if len(self.mean) != 3 or not all(math.isfinite(value) and abs(value) <= 255 for value in self.mean):
            raise SettingError(f"mean is {self.mean}; expected three gray levels within 255 of 0.")
        if len(self.std) != 3 or not all(math.isfinite(value) and value > 0 for value in self.std):
            raise SettingError(f"std is {self.std}; expected three gray levels above 0.")
        if self.template is None and self.margin is None:
            raise SettingError("A model needs a template (five points) or a margin (of the box); give one of them.")
        if self.template is not None:
            _check_template(self.template, self.size_px)
        if self.margin is not None and not -0.5 <= self.margin <= 3:
            raise SettingError(f"margin is {self.margin}; expected -0.5 to 3, the share of the box that is added.")


def _check_template(template: Template, size_px: int) -> None:
    if len(template) != 5 or any(len(point) != 2 for point in template):
        raise SettingError(f"template has {len(template)} points; expected five pairs x, y.")
    if not all(math.isfinite(value) and -size_px <= value <= 2 * size_px for point in template for value in point):
        raise SettingError(f"template has a point far outside of {size_px} px; it is given in pixels of the input.")
    if len(set(template)) < 2:
        raise SettingError("All five points of the template are one; expected five places in a face.")


def arcface_template(size_px: int) -> Template:
    """Return the five-point template of ArcFace for an input of this size.

    Its published coordinates are of 112 px. Other sizes show the same extent: pixel corners are scaled, not centers.

    Reference:
        Deng et al. (2019), ArcFace, https://arxiv.org/abs/1801.07698

    Example:
        >>> arcface_template(112) == ARCFACE_112
        True
        >>> arcface_template(224)[0]
        (77.0892, 103.8926)
    """
    scale = size_px / 112
    return tuple((round((x + 0.5) * scale - 0.5, 6), round((y + 0.5) * scale - 0.5, 6)) for x, y in ARCFACE_112)


def prepare(crops: UInt8[Tensor, "n s s 3"], preparation: Preparation) -> Float[Tensor, "n 3 s s"]:
    """Return the input of a face model: crops in its colors, shifted and scaled.

    Args:
        crops: RGB crops of the model's own extent and size.
        preparation: What the model takes.

    Raises:
        ShapeError: The crops are not bytes, or not n x size x size x 3.

    Example:
        >>> gray = torch.full((1, 112, 112, 3), 255, dtype=torch.uint8)
        >>> how = Preparation(112, mean=(127.5,) * 3, std=(127.5,) * 3, template=ARCFACE_112)
        >>> prepare(gray, how).max().item()
        1.0
    """
    side = preparation.size_px
    if crops.dtype != torch.uint8 or crops.ndim != 4 or tuple(crops.shape[1:]) != (side, side, 3):
        raise ShapeError(
            f"Crops are {crops.dtype} {tuple(crops.shape)}; expected torch.uint8 (n, {side}, {side}, 3). "
            "Crop to the model's own template and size."
        )
    ordered = crops.flip(-1) if preparation.color == "bgr" else crops
    images = ordered.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if any(preparation.mean):
        images -= torch.tensor(preparation.mean, device=images.device).view(3, 1, 1)
    if preparation.std != (1.0, 1.0, 1.0):
        images /= torch.tensor(preparation.std, device=images.device).view(3, 1, 1)
    return images


@dataclass(frozen=True)
class Licenses:
    """The terms of a model's code, of its weights and of its training data; free text, as the source says.

    Weights under a permissive license may still be trained on data that was for research only.
    """

    code: str = "not stated"
    weights: str = "not stated"
    data: str = "not stated"
