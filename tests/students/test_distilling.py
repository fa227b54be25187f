"""Weights between those that a student began with and those that it was trained to."""

from __future__ import annotations

import pytest
import torch

from keyhole.errors import SettingError
from keyhole.faces.models.compact import compact
from keyhole.students.distilling import interpolated


def test_interpolated_weights_lie_on_the_line_between_the_two() -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = compact("compact-24-s").train()
        for _ in range(seed + 1):
            module(torch.rand(4, 3, 24, 24))
        states.append(module.state_dict())
    start, trained = states
    found = interpolated(start, trained, 0.7)
    assert found.keys() == trained.keys()
    moved = 0
    for name, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.3 * start[name] + 0.7 * trained[name])
            moved += int(not torch.equal(tensor, trained[name]))
        else:
            assert int(tensor) == 2, "batches counted are those of the trained one"
    assert moved > 10
    for share, whole in ((0.0, start), (1.0, trained)):
        ends = interpolated(start, trained, share)
        assert all(torch.equal(ends[name], whole[name]) for name in ends if ends[name].is_floating_point())
    compact("compact-24-s").load_state_dict(found)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    state = {"w": torch.zeros(1)}
    with pytest.raises(SettingError, match="expected 0 to 1"):
        interpolated(state, state, share)


def test_states_of_two_networks_are_refused() -> None:
    with pytest.raises(SettingError, match="of different networks"):
        interpolated({"w": torch.zeros(1)}, {"w": torch.zeros(2)}, 0.5)
    with pytest.raises(SettingError, match="of different networks"):
        interpolated({"w": torch.zeros(1)}, {"v": torch.zeros(1)}, 0.5)
