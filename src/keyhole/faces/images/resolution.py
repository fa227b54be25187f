"""How many pixels of face a picture really shows.

A crop of 112 x 112 says nothing by its size: it may have been enlarged from 12 pixels, or be out of focus. What it
shows can be read off its spectrum, which ends, or changes its slope, where the small picture ended. A small network
reads the two spectra of a crop, along its rows and down its columns. It was fitted to crops of the Face Research Lab
London Set (DeBruine & Jones 2017, CC BY 4.0) under known degradations by ``benchmarks/effective_resolution.py``, which
also measures it on people that it was not fitted to; the coefficients are in ``resolution.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from keyhole.errors import SettingError, ShapeError
from keyhole.faces.images.resampling import check_crops

CROP_PX = 112
SMALLEST_PX = 4.0  # no smaller size was fitted
DOUBT = 1.25  # an estimate is believed against the observed size only when it is lower by more than this factor
BLUR_SIGMA_PX = 0.48  # a Gaussian blur this wide, in pixels, passes 32 % at the Nyquist frequency, as does one pixel
_CHUNK = 64
_GRAY = (0.299, 0.587, 0.114)
_ROUNDING = 0.02  # of the power per frequency that rounding to whole gray levels leaves, so that logarithms stay put
_LOW = 6  # bands that say how strong the picture is: its contrast divides out


@dataclass(frozen=True)
class Reader:
    """The fitted network: standardized logarithms of band powers in, the logarithm of ``face_px`` out."""

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]
    weights: tuple[Float[Tensor, "o i"], ...]
    biases: tuple[Float[Tensor, " o"], ...]

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """Return the logarithm of the size in pixels."""
        values = (features - self.mean) / self.scale
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.nn.functional.linear(values if layer == 0 else values.tanh(), weight, bias)
        return values.squeeze(1)


def effective_face_px(
    crops: UInt8[Tensor, "n s s 3"], *, observed_px: Float[Tensor, " n"] | Sequence[float] | None = None
) -> Float[Tensor, " n"]:
    """Return how many pixels of face each crop really shows, from 1 up.

    Without ``observed_px`` the answer is read off the spectrum and lies between 4 and 112: a crop of 112 pixels cannot
    show more. With it, the answer is the observed size, corrected downwards where the spectrum's is lower by more than
    a quarter, which is beyond the estimate's own error; it is never above the observed size.

    A Gaussian blur of sigma pixels counts as ``face_px / sqrt(1 + (sigma / 0.48)^2)``. Noise that was added after an
    enlargement, and patterns finer than the face such as a veil, read as detail. A crop of one color shows 1 pixel.

    Args:
        crops: Aligned faces on the 112 template.
        observed_px: ``face_px`` of each probe as its eyes say: the side of the crop in the photo's own pixels.

    Raises:
        ShapeError: The crops are not 112 x 112 RGB of type uint8, or there are not as many observed sizes.
        SettingError: An observed size is not above 0.

    Example:
        >>> from keyhole.faces.images.degradation import Degradation, degrade
        >>> noise = torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8)
        >>> small = degrade(noise, Degradation(12))
        >>> bool(effective_face_px(small) < 40)
        True
    """
    if check_crops(crops) != CROP_PX:
        raise ShapeError(
            f"Effective resolution is read off crops of {CROP_PX} x {CROP_PX} px, got {tuple(crops.shape)}; align."
        )
    parts = [_estimate(crops[start : start + _CHUNK]) for start in range(0, len(crops), _CHUNK)]
    estimate = torch.cat(parts) if parts else torch.empty(0)
    if observed_px is None:
        return estimate
    observed = torch.as_tensor(observed_px, dtype=torch.float32).to(estimate.device)
    if observed.shape != estimate.shape:
        raise ShapeError(
            f"{len(crops)} crops came with observed sizes of shape {tuple(observed.shape)}, expected one for each."
        )
    if not bool((observed > 0).all()):
        raise SettingError(f"An observed size is {float(observed.min())} px, expected above 0.")
    shown = torch.minimum(observed, torch.tensor(float(CROP_PX)))
    return torch.where(estimate * DOUBT < shown, estimate, observed)


def band_powers(crops: UInt8[Tensor, "n s s 3"]) -> Float[Tensor, "n f"]:
    """Return logarithms of the power of each crop in bands of frequency, along rows and down columns.

    The contrast divides out: each spectrum is relative to its lowest bands. Cosine transforms stand for the Fourier
    transform, as they see no jump from one border to the other. Frequency k is k half waves over the crop, so a picture
    enlarged from r pixels ends at k = r.

    Args:
        crops: Square RGB pictures.
    """
    side = check_crops(crops)
    cosines, bands = _transform(side)
    gray = crops.float() @ torch.tensor(_GRAY)
    gray = gray - gray.mean(dim=(1, 2), keepdim=True)
    rows = (gray @ cosines.T).square().mean(dim=1)
    columns = (cosines @ gray).square().mean(dim=2)
    powers = torch.log10(torch.stack([rows, columns], dim=1) @ bands + _ROUNDING)
    return (powers - powers[..., :_LOW].mean(dim=(1, 2), keepdim=True)).flatten(1)


def band_edges(side_px: int) -> list[int]:
    """Return where the bands begin, and the end of the last: one frequency wide at first, then growing by a twelfth."""
    edges = [1]
    while edges[-1] < side_px:
        edges.append(min(side_px, max(edges[-1] + 1, round(edges[-1] * 13 / 12))))
    return edges


@cache
def _transform(side: int) -> tuple[Tensor, Tensor]:
    """Return the matrix of the orthonormal cosine transform, and the one that averages its frequencies in bands."""
    frequency, place = torch.arange(side)[:, None], torch.arange(side)
    cosines = torch.cos(torch.pi / side * frequency * (place + 0.5)) * (2 / side) ** 0.5
    edges = band_edges(side)
    bands = torch.zeros(side, len(edges) - 1)
    for band, (first, last) in enumerate(pairwise(edges)):
        bands[first:last, band] = 1 / (last - first)
    return cosines, bands


def _estimate(crops: Tensor) -> Tensor:
    sizes = fitted_reader()(band_powers(crops.cpu())).exp().clamp(SMALLEST_PX, CROP_PX)
    flat = crops.cpu().flatten(1, 2)
    return torch.where((flat == flat[:, :1]).flatten(1).all(dim=1), torch.ones(()), sizes)


@cache
def fitted_reader() -> Reader:
    """Return the network that comes with the package."""
    return reader_of(json.loads(resources.files("keyhole.faces.images").joinpath("resolution.json").read_text("utf-8")))


def reader_of(stored: dict[str, Any]) -> Reader:
    """Return the network whose coefficients a JSON file holds."""

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    layers = stored["layers"]
    return Reader(
        tensor(stored["mean"]),
        tensor(stored["scale"]),
        tuple(tensor(layer["weight"]) for layer in layers),
        tuple(tensor(layer["bias"]) for layer in layers),
    )
