"""Faces that nobody has: two aligned faces run into each other, under another light, turned, a little out of shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from keyhole.errors import SettingError
from keyhole.students.turning import turned_places
from keyhole.students.views import SIDE_PX, FaceViews

_BLEND = 23  # a stream of random numbers of its own
_KNOTS = 4  # of a side: what varies over a face does so smoothly
_AT_A_TIME = 256
_UNIT = 2 / (SIDE_PX - 1)  # one pixel, as grid_sample counts


@dataclass(frozen=True)
class Blending:
    """How far a blend may lie from the plain mean of its two faces; each at least 0, and 0 leaves that out.

    Attributes:
        uneven: How much the shares of the two vary over the face, as deviation of their log odds: with 2, the eyes may
            be nearly all of one and the mouth nearly all of the other.
        light: Deviation of the logarithm of brightness over the face; that of the whole face and of its colors follows.
        shape: Pixels by which parts of the face move; the whole one leans, grows and moves as well.
        turn: Degrees by which the head turns to a side; up and down it is half of that.
        tone: Deviation of the logarithms of contrast and saturation; the brightness of each color follows by a third.
    """

    uneven: float = 2.0
    light: float = 0.2
    shape: float = 1.5
    turn: float = 12.0
    tone: float = 0.2


def with_blends(faces: FaceViews, count: int, *, seed: int, how: Blending | None = None) -> FaceViews:
    """Return the faces, and so many more that nobody has: blends of two, which lie on each other as all are aligned.

    Each takes about 30 to 70 % of one face over the whole and the rest of another one, either perhaps mirrored. Nobody
    is known to be shown, so blends teach by what the teacher says of them alone.

    Args:
        faces: At least two.
        count: Of blends.
        seed: Which two, how much of each, and all that varies.
        how: How far a blend may lie from the plain mean; None for the usual.

    Raises:
        SettingError: There are fewer than two faces, ``count`` is negative, or a deviation is.

    Reference:
        Blends of aligned pairs stand in for people who are not there as in mixup (Zhang et al., 2018,
        https://arxiv.org/abs/1710.09412, equation 1), without its labels; shares that vary over the image as in
        CutMix (Yun et al., 2019, https://arxiv.org/abs/1905.04899), with smooth borders. Heads turn as in
        :func:`keyhole.students.turning.turned_places`.
    """
    how = how or Blending()
    if len(faces) < 2 or count < 0:
        raise SettingError(f"{count} blends of {len(faces)} faces were asked for; expected 0 or more of at least 2.")
    if min(vars(how).values()) < 0:
        raise SettingError(f"{how} has a negative deviation; expected 0 or more.")
    random = np.random.default_rng([seed, _BLEND])
    first = random.integers(len(faces), size=count)
    second = (first + random.integers(1, len(faces), size=count)) % len(faces)
    mirrored = random.integers(0, 2, size=(2, count)) == 1
    odds = random.uniform(0.3, 0.7, size=count)
    varied = _Varied(*(random.standard_normal(size=(count, *shape)).astype(np.float32) for shape in _SHAPES))
    made = torch.empty(count, *faces.crops.shape[1:], dtype=torch.uint8)
    for start in range(0, count, _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        pair = [
            _upright(faces, rows[part], flips[part]) for rows, flips in ((first, mirrored[0]), (second, mirrored[1]))
        ]
        share = torch.from_numpy(np.log(odds[part] / (1 - odds[part])).astype(np.float32))
        made[part] = _blended(pair[0], pair[1], share, varied.part(part), how)
    last = int(faces.indices.max()) + 1
    return replace(
        faces,
        crops=torch.cat([faces.crops, made]),
        labels=torch.cat([faces.labels, torch.full((count,), -1)]),
        indices=torch.cat([faces.indices, torch.arange(last, last + count)]),
    )


_SHAPES = ((1, _KNOTS, _KNOTS), (1, _KNOTS, _KNOTS), (4,), (2, _KNOTS, _KNOTS), (4,), (2,), (5,))


@dataclass(frozen=True)
class _Varied:
    """What is drawn for each blend, from the normal distribution.

    Attributes:
        uneven: Over the face, of the shares.
        light: Over the face, of the brightness.
        tint: Of the whole face and of its three colors.
        shape: Over the face, to the right and down.
        stance: Lean, growth, and moves to the right and down, of the whole face.
        turn: Of the head to the side and down.
        tone: Of contrast, saturation and the three colors.
    """

    uneven: np.ndarray
    light: np.ndarray
    tint: np.ndarray
    shape: np.ndarray
    stance: np.ndarray
    turn: np.ndarray
    tone: np.ndarray

    def part(self, where: slice) -> _Varied:
        return _Varied(**{name: drawn[where] for name, drawn in vars(self).items()})


def _upright(faces: FaceViews, rows: np.ndarray, mirrored: np.ndarray) -> Float[Tensor, "n 3 112 112"]:
    crops = faces.crops[torch.from_numpy(rows)].permute(0, 3, 1, 2).float()
    return torch.where(torch.from_numpy(mirrored)[:, None, None, None], crops.flip(3), crops)


def _blended(one: Tensor, other: Tensor, odds: Float[Tensor, " n"], varied: _Varied, how: Blending) -> Tensor:
    share = torch.sigmoid(odds[:, None, None, None] + how.uneven * _over_the_face(varied.uneven))
    face = one * share + other * (1 - share)
    if how.light:
        tint = torch.from_numpy(varied.tint)
        level = 0.75 * tint[:, :1] + 0.2 * tint[:, 1:]  # the colors of one lamp differ less than lamps do
        face = face * torch.exp(how.light * (_over_the_face(varied.light) + level[:, :, None, None]))
    if how.tone:
        face = _toned(face, how.tone * torch.from_numpy(varied.tone))
    if how.shape or how.turn:
        places = _places(varied, how.shape)
        if how.turn:
            side, down = how.turn * torch.from_numpy(varied.turn).T
            places = turned_places((places + 1) / _UNIT, side, down / 2) * _UNIT - 1
        face = functional.grid_sample(face, places, mode="bilinear", padding_mode="border", align_corners=True)
    return face.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _toned(face: Tensor, tone: Float[Tensor, "n 5"]) -> Tensor:
    """Change contrast about the mean of a face, saturation about its grays, and the brightness of each color."""
    contrast, saturation = (torch.exp(tone[:, k])[:, None, None, None] for k in (0, 1))
    gray = face.mean(dim=1, keepdim=True)
    face = gray + saturation * (face - gray)
    mean = face.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + contrast * (face - mean)) * torch.exp(tone[:, 2:] / 3)[:, :, None, None]


def _places(varied: _Varied, px: float) -> Float[Tensor, "n 112 112 2"]:
    """Return from where each pixel is taken, in -1 to 1 as ``grid_sample`` counts."""
    turn, growth, *moves = torch.from_numpy(varied.stance).T
    angle, scale = 0.035 * px * turn, 1 + 0.025 * px * growth
    line = torch.linspace(-1, 1, SIDE_PX)
    down, right = torch.meshgrid(line, line, indexing="ij")
    cosine, sine = (scale * torch.cos(angle))[:, None, None], (scale * torch.sin(angle))[:, None, None]
    turned = torch.stack([cosine * right - sine * down, sine * right + cosine * down], dim=-1)
    moved = torch.stack(moves, dim=1)[:, None, None, :] + _over_the_face(varied.shape).permute(0, 2, 3, 1)
    return turned + _UNIT * px * moved


def _over_the_face(knots: np.ndarray) -> Float[Tensor, "n c 112 112"]:
    return functional.interpolate(torch.from_numpy(knots), size=SIDE_PX, mode="bicubic", align_corners=True)
