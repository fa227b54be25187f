"""A turned head: nothing moves without a turn, points lie where a rotation puts them, and nothing folds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from keyhole.faces.images.alignment import TEMPLATE_112, similarity_transform
from keyhole.students.turning import FURTHEST, turned_places

LINE = torch.arange(112.0)
GRID = torch.stack(torch.meshgrid(LINE, LINE, indexing="xy"), dim=-1)[None]


def turned(yaw: float, pitch: float = 0.0, places: torch.Tensor = GRID) -> torch.Tensor:
    return turned_places(places, torch.tensor([yaw]), torch.tensor([pitch]))


def test_nothing_moves_without_a_turn() -> None:
    torch.testing.assert_close(turned(0.0), GRID, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("yaw", "pitch"), [(20.0, 0.0), (-25.0, 0.0), (0.0, 15.0), (12.0, -9.0)])
def test_a_point_lies_where_a_rotation_of_the_shape_in_space_puts_it(yaw: float, pitch: float) -> None:
    """The other way round, by scipy's rotation of points in space: from the frontal crop to the turned one."""

    def seen(points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0] - 56, points[:, 1] - 70
        depth = 46 * np.maximum(0, 1 - (x / 56) ** 2 - (y / 75) ** 2) + 11 * np.exp(-((x / 8) ** 2 + (y / 12) ** 2) / 2)
        in_space = np.stack([x, y, depth], axis=1)
        turn = Rotation.from_euler("y", yaw, degrees=True)
        tip = Rotation.from_euler("x", -pitch, degrees=True)
        return (tip * turn).apply(in_space)[:, :2] + (56, 70)

    random = np.random.default_rng(0)
    frontal = random.uniform((25, 35), (87, 105), size=(200, 2))
    matrix = similarity_transform(seen(TEMPLATE_112), TEMPLATE_112)
    crop = seen(frontal) @ matrix[:, :2].T + matrix[:, 2]
    found = turned(yaw, pitch, torch.from_numpy(crop)[None, None])[0, 0].numpy()
    assert np.abs(found - frontal).max() < 0.1
    assert np.abs(crop - frontal).max() > 3


def test_a_turn_to_the_other_side_is_the_mirrored_one() -> None:
    right, left = turned(15.0), turned(-15.0)
    mirrored = torch.stack([112 - right[..., 0], right[..., 1]], dim=-1).flip(2)  # the template is not quite symmetric
    assert (mirrored - left).abs().mean() < 1.5


def test_a_face_does_not_fold_at_the_furthest_turn() -> None:
    for yaw, pitch in ((FURTHEST, 0.0), (-FURTHEST, 15.0), (90.0, -90.0)):
        places = turned(yaw, pitch)[0, 20:100, 15:97]
        assert (places[:, 1:, 0] > places[:, :-1, 0]).all()
        assert (places[1:, :, 1] > places[:-1, :, 1]).all()
    assert torch.equal(turned(90.0), turned(FURTHEST))
