"""Faces that look elsewhere: what an aligned crop shows after the head has turned, by one shape for all heads."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keyhole.faces.images.alignment import TEMPLATE_112, similarity_transform

FURTHEST = 25.0  # degrees to a side; beyond, the far cheek hides what lies behind it
_HIGHEST = 15.0  # degrees up and down
_CENTER = (56.0, 70.0)
_WIDE, _HIGH, _DEEP = 56.0, 75.0, 46.0  # pixels of a crop: half axes of the head, and how far the face lies before it
_NOSE, _NOSE_WIDE, _NOSE_HIGH = 11.0, 8.0, 12.0
_ROUNDS = 16


def turned_places(
    places: Float[Tensor, "n h w 2"], yaw: Float[Tensor, " n"], pitch: Float[Tensor, " n"]
) -> Float[Tensor, "n h w 2"]:
    """Return which point of an aligned, frontal crop is seen at each point of the aligned crop of the turned head.

    The head is a paraboloid with a nose, the same for everybody; after it has turned, its five landmarks are aligned
    to the template again, as any crop's are.

    Args:
        places: Points of the crop to make, x and y in pixels of the 112-template.
        yaw: Degrees to the side, positive to the right of the picture; at most :data:`FURTHEST` to either side, what
            lies beyond is held there.
        pitch: Degrees downwards, at most 15 to either side.

    Returns:
        Points of the frontal crop, x and y in pixels.

    Example:
        >>> straight = torch.tensor([[[[30.0, 40.0]]]])
        >>> turned_places(straight, torch.zeros(1), torch.zeros(1)).round(decimals=3).flatten().tolist()
        [30.0, 40.0]

    Reference:
        Masi et al., Do we really need to collect millions of faces for effective face recognition?, 2016,
        https://arxiv.org/abs/1603.07057, section 3.1: new poses of a face by one generic shape.
    """
    side, down = _radians(yaw, FURTHEST), _radians(pitch, _HIGHEST)
    landmarks = torch.tensor(TEMPLATE_112, dtype=torch.float64)
    seen = _rotated(landmarks[None].expand(len(side), -1, -1), side[:, None], down[:, None])
    back = torch.from_numpy(np.stack([_inverse(similarity_transform(one, TEMPLATE_112)) for one in seen.numpy()]))
    plane = torch.einsum("nij,nhwj->nhwi", back[:, :, :2], places.double()) + back[:, None, None, :, 2]
    return _before_the_turn(plane, side[:, None, None], down[:, None, None]).to(places.dtype)


def _radians(degrees: Tensor, most: float) -> Float[Tensor, " n"]:
    return torch.deg2rad(degrees.double().clamp(-most, most))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]


def _depth(x: Tensor, y: Tensor) -> Tensor:
    """Return how far before the axis of the head a point of the face lies, from the middle of the face."""
    head = _DEEP * (1 - (x / _WIDE) ** 2 - (y / _HIGH) ** 2).clamp_min(0)
    return head + _NOSE * torch.exp(-((x / _NOSE_WIDE) ** 2) / 2 - (y / _NOSE_HIGH) ** 2 / 2)


def _rotated(points: Float[Tensor, "... 2"], side: Tensor, down: Tensor) -> Float[Tensor, "... 2"]:
    """Return where points of the frontal face are seen after the turn."""
    x, y = points[..., 0] - _CENTER[0], points[..., 1] - _CENTER[1]
    z = _depth(x, y)
    across, near = x * side.cos() + z * side.sin(), z * side.cos() - x * side.sin()
    along = y * down.cos() + near * down.sin()
    return torch.stack([across + _CENTER[0], along + _CENTER[1]], dim=-1)


def _before_the_turn(points: Float[Tensor, "... 2"], side: Tensor, down: Tensor) -> Float[Tensor, "... 2"]:
    """Return the points that :func:`_rotated` takes to these: a contraction, as the shape is nowhere steeper."""
    u, v = points[..., 0] - _CENTER[0], points[..., 1] - _CENTER[1]
    x, y = u, v
    for _ in range(_ROUNDS):
        z = _depth(x, y)
        near = z * side.cos() - x * side.sin()
        x, y = (u - z * side.sin()) / side.cos(), (v - near * down.sin()) / down.cos()
    return torch.stack([x + _CENTER[0], y + _CENTER[1]], dim=-1)
