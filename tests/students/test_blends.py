"""Blends are made of two faces and of nothing else; what varies over a face does so smoothly, and as far as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pattern_faces
from keyhole.errors import SettingError
from keyhole.faces.images.distributions import parse_distribution
from keyhole.faces.models.compact import form_of
from keyhole.students.blends import Blending, with_blends
from keyhole.students.turning import turned_places
from keyhole.students.views import FaceViews, read_faces

FORM = form_of("compact-112-s").preparation
NONE = dict(uneven=0.0, light=0.0, shape=0.0, turn=0.0, tone=0.0)
PLAIN = Blending(**NONE)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceViews:
    folder = pattern_faces.album(tmp_path_factory.mktemp("faces"), people=10, photos=2)
    return read_faces(folder, shown=FORM, seen=FORM, camera=parse_distribution("fixed:12"))


def gray(value: int) -> torch.Tensor:
    return torch.full((112, 112, 3), value, dtype=torch.uint8)


def of(faces: FaceViews, *crops: torch.Tensor) -> FaceViews:
    found = faces.subset(range(len(crops)))
    return FaceViews(**{**vars(found), "crops": torch.stack(crops)})


def test_they_are_added_and_show_nobody(faces: FaceViews) -> None:
    more = with_blends(faces, 300, seed=4)
    assert len(more) == 320
    assert torch.equal(more.crops[:20], faces.crops)
    assert more.labels[20:].unique().tolist() == [-1]
    assert more.indices.tolist() == list(range(320))
    assert more.views == 640
    assert torch.equal(with_blends(faces, 300, seed=4).crops, more.crops)
    assert not torch.equal(with_blends(faces, 300, seed=5).crops, more.crops)
    assert len(more.crops[20:].flatten(1).unique(dim=0)) == 300
    assert with_blends(faces, 0, seed=4).crops.equal(faces.crops)


def test_plain_ones_are_means_of_two_faces(faces: FaceViews) -> None:
    upright = faces.crops.float()
    crops = torch.cat([upright, upright.flip(2)])
    for blend in with_blends(faces, 20, seed=4, how=PLAIN).crops[20:].float():
        best = 1e9
        for i in range(40):
            for j in range(i):
                difference = crops[j] - crops[i]
                share = float(((blend - crops[i]) * difference).sum() / difference.square().sum().clamp_min(1e-9))
                if 0.29 < share < 0.71:
                    best = min(best, float((crops[i] + share * difference - blend).abs().mean()))
        assert best < 0.6  # gray levels: rounding, and nothing else


def test_shares_vary_over_the_face_between_the_two(faces: FaceViews) -> None:
    two = of(faces, gray(50), gray(200))
    even = with_blends(two, 100, seed=1, how=PLAIN).crops[2:]
    assert even.flatten(1).float().std(dim=1).max() == 0
    assert even.min() >= 50 + 0.29 * 150
    assert even.max() <= 200 - 0.29 * 150
    uneven = with_blends(two, 100, seed=1, how=Blending(**NONE | {"uneven": 2.0})).crops[2:].float()
    assert uneven.min() >= 50
    assert uneven.max() <= 200
    assert uneven.flatten(1).std(dim=1).median() > 15
    assert (uneven[:, 1:] - uneven[:, :-1]).abs().max() <= 20  # of 150: smooth, no border


def test_a_face_gives_30_to_70_percent_of_the_whole(faces: FaceViews) -> None:
    blends = with_blends(of(faces, gray(50), gray(200)), 150, seed=1, how=PLAIN).crops[2:]
    shares = (blends[:, 0, 0, 0].float() - 50) / 150
    assert 0.295 < shares.min() < 0.33
    assert 0.67 < shares.max() < 0.705
    assert float(shares.std()) == pytest.approx(0.4 / 12**0.5, abs=0.015)


def test_each_of_the_two_is_mirrored_every_other_time(faces: FaceViews) -> None:
    sided = torch.cat([gray(60)[:, :56], gray(180)[:, 56:]], dim=1)
    halves = with_blends(of(faces, sided, sided), 200, seed=5, how=PLAIN).crops[2:].float().split(56, dim=2)
    rise = halves[1].mean(dim=(1, 2, 3)) - halves[0].mean(dim=(1, 2, 3))
    counts = [int(some.sum()) for some in (rise > 119, rise < -119, rise.abs() < 50)]  # neither, both, one of them
    assert counts == [pytest.approx(50, abs=20), pytest.approx(50, abs=20), pytest.approx(100, abs=25)]
    assert sum(counts) == 200


def test_light_changes_brightness_and_barely_the_color(faces: FaceViews) -> None:
    lit = (
        with_blends(of(faces, gray(90), gray(90)), 400, seed=2, how=Blending(**NONE | {"light": 0.2})).crops[2:].float()
    )
    logs = (lit.mean(dim=(1, 2)) / 90).log()
    assert logs.mean().abs() < 0.03
    assert 0.1 < logs.mean(dim=1).std() < 0.25
    assert (logs - logs.mean(dim=1, keepdim=True)).std() < 0.06


@pytest.mark.parametrize("px", [0.75, 1.5])
def test_shape_moves_parts_by_some_pixels(faces: FaceViews, px: float) -> None:
    ramp = torch.arange(112).add(70).to(torch.uint8)
    across = ramp[None, :, None].expand(112, 112, 3)
    blends = with_blends(of(faces, across, across), 200, seed=3, how=Blending(**NONE | {"shape": px}))
    middle = blends.crops[2:, 40:72, 40:72, 0].float()
    straight = across[40:72, 40:72, 0].float()
    slope = middle[:, :, -1].mean(dim=1) - middle[:, :, 0].mean(dim=1)
    forward = middle[slope > 20]  # mirrored ramps run the other way
    assert len(forward) > 20
    moved = (forward - straight).flatten(1)
    assert px < moved.square().mean().sqrt() < 3 * px


def test_tone_changes_contrast_and_color(faces: FaceViews) -> None:
    half = torch.cat([gray(80)[:56], gray(160)[:56]])
    half[..., 2] -= 40
    toned = with_blends(of(faces, half, half), 400, seed=2, how=Blending(**NONE | {"tone": 0.2})).crops[2:].float()
    dark, bright = toned[:, :50].mean(dim=(1, 2)), toned[:, 62:].mean(dim=(1, 2))
    contrast = ((bright - dark).mean(dim=1) / 80).log()
    assert 0.15 < contrast.std() < 0.25
    color = (dark.mean(dim=1) + bright.mean(dim=1))[:, None] / (dark + bright)
    assert 0.03 < color.log().std(dim=0).min() < color.log().std(dim=0).max() < 0.12


def test_tone_changes_saturation_by_itself(faces: FaceViews) -> None:
    reddish = torch.tensor([30, -15, -15])
    halves = torch.cat([gray(90)[:56] + reddish, gray(130)[56:] + reddish]).to(torch.uint8)
    toned = with_blends(of(faces, halves, halves), 150, seed=2, how=Blending(**NONE | {"tone": 0.2})).crops[2:]
    toned = toned[(toned.flatten(1) < 255).all(dim=1) & (toned.flatten(1) > 0).all(dim=1)].double()
    assert len(toned) > 145
    dark, bright = toned[:, 0, 0], toned[:, 111, 0]
    middle = (dark + bright) / 2 / (bright - dark)  # of each color, whatever its brightness and the contrast
    saturation = ((middle[:, 0] - middle[:, 1]) * 40 / 45).log()
    assert 0.16 < saturation.std() < 0.24
    assert saturation.mean().abs() < 0.05


def test_a_head_turns_to_both_sides(faces: FaceViews) -> None:
    ramp = torch.arange(112).add(70).to(torch.uint8)
    across = ramp[None, :, None].expand(112, 112, 3)
    turned = (
        with_blends(of(faces, across, across), 200, seed=3, how=Blending(**NONE | {"turn": 12.0})).crops[2:].float()
    )
    nose, cheeks = turned[:, 68:74, 54:59, 0].mean(dim=(1, 2)), turned[:, 68:74, [30, 82], 0].mean(dim=(1, 2))
    ahead = (nose - cheeks)[turned[:, 70, 100, 0] > turned[:, 70, 12, 0]]  # mirrored ramps run the other way
    assert len(ahead) > 20
    assert ahead.min() < -1
    assert ahead.max() > 1
    assert 1 < ahead.std() < 8


def test_a_head_turns_up_and_down_by_half_as_much(faces: FaceViews) -> None:
    line = torch.arange(112)
    ramp = (line * 2 + 16).to(torch.uint8)[:, None, None].expand(112, 112, 3)
    blends = with_blends(of(faces, ramp, ramp), 50, seed=3, how=Blending(**NONE | {"turn": 12.0})).crops[2:]

    def bend(rows: torch.Tensor) -> torch.Tensor:
        return rows[:, 68:74, 54:59].mean(dim=(1, 2)) - rows[:, 68:74, [30, 82]].mean(dim=(1, 2))

    degrees = torch.linspace(-15, 15, 11)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).float().expand(11, -1, -1, -1)
    bends = bend(turned_places(places, torch.zeros(11), degrees)[..., 1])
    order = bends.argsort()
    found = np.interp(bend((blends[..., 0].float() - 16) / 2), bends[order], degrees[order])
    assert 4.5 < found.std() < 7.5
    assert abs(found.mean()) < 3


def test_a_single_face_or_a_negative_number_is_refused(faces: FaceViews) -> None:
    with pytest.raises(SettingError, match="3 blends of 1 faces"):
        with_blends(faces.subset([0]), 3, seed=0)
    with pytest.raises(SettingError, match="-1 blends of 20 faces"):
        with_blends(faces, -1, seed=0)
    with pytest.raises(SettingError, match="negative deviation"):
        with_blends(faces, 1, seed=0, how=Blending(turn=-1))
