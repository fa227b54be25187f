"""What a model takes: checked against loops over pixels, and refused where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from keyhole.errors import SettingError, ShapeError
from keyhole.faces.models.preparation import ARCFACE_112, Preparation, arcface_template, prepare


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_prepare_equals_a_loop_over_pixels(color: str) -> None:
    how = Preparation(16, color, (91.5, 103.9, 131.1), (58.0, 1.0, 2.5), margin=0.3)
    crops = torch.randint(0, 256, (2, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = prepare(crops, how)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    for n, y, x, channel in np.ndindex(2, 16, 16, 3):
        source = channel if color == "rgb" else 2 - channel
        wanted = (int(crops[n, y, x, source]) - how.mean[channel]) / how.std[channel]
        assert found[n, channel, y, x].item() == pytest.approx(wanted, abs=1e-4)


def test_prepare_does_not_change_the_crops() -> None:
    crops = torch.full((1, 16, 16, 3), 9, dtype=torch.uint8)
    prepare(crops, Preparation(16, mean=(1.0, 2.0, 3.0), margin=0.0))
    assert (crops == 9).all()


@pytest.mark.parametrize(
    "crops",
    [
        torch.zeros(1, 16, 16, 3),
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 15, 16, 3, dtype=torch.uint8),
        torch.zeros(16, 16, 3, dtype=torch.uint8),
    ],
)
def test_other_crops_are_refused(crops: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"expected torch\.uint8 \(n, 16, 16, 3\)"):
        prepare(crops, Preparation(16, margin=0.0))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size_px": 8}, "size_px is 8; expected 16 to 1024"),
        ({"color": "gray"}, "color is 'gray'; expected rgb or bgr"),
        ({"mean": (0.0, 0.0, 300.0)}, "expected three gray levels within 255 of 0"),
        ({"mean": (0.0, float("nan"), 0.0)}, "expected three gray levels within 255 of 0"),
        ({"std": (1.0, 0.0, 1.0)}, "expected three gray levels above 0"),
        ({"margin": None}, "needs a template"),
        ({"margin": 3.5}, "margin is 3.5; expected -0.5 to 3"),
        ({"template": ARCFACE_112[:4]}, "template has 4 points; expected five"),
        ({"template": ((1.0, 1.0),) * 5}, "All five points"),
        ({"template": ((9000.0, 1.0), *ARCFACE_112[1:])}, "far outside"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        Preparation(**{"size_px": 112, "margin": 0.1, **changes})


def test_a_template_of_another_size_shows_the_same_extent() -> None:
    # the left edge of the crop, half a pixel left of its first center, is as far from the eye in both
    for size in (64, 112, 128, 160):
        (x, y), *_ = arcface_template(size)
        assert (x + 0.5) / size == pytest.approx((ARCFACE_112[0][0] + 0.5) / 112)
        assert (y + 0.5) / size == pytest.approx((ARCFACE_112[0][1] + 0.5) / 112)
