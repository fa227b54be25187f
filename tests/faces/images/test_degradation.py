from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from keyhole.errors import SettingError, ShapeError, UnknownNameError
from keyhole.faces.images.degradation import Degradation, degrade, image_seeds, parse_degradation, shrink
from keyhole.faces.images.resampling import METHODS, resample, run_each


@pytest.fixture
def crops() -> Tensor:
    """Smooth pictures with some detail."""
    place = torch.arange(112) / 112
    waves = torch.stack([torch.sin(9 * k * place)[:, None] * torch.cos(7 * k * place) for k in range(1, 22)])
    levels = 127 + 100 * waves.view(7, 3, 112, 112).movedim(1, 3)
    return levels.round().to(torch.uint8)


MIXED = [
    Degradation(12),
    Degradation(12, noise_sigma=3.0),
    Degradation(24, down="cv2-area", up="cv2-cubic", codec="jpeg", quality=70),
    Degradation(12, noise_sigma=3.0),
    Degradation(16, codec="webp", quality=60),
    Degradation(40, down="torch-bicubic-antialias", blur_sigma_px=0.7),
    Degradation(200, noise_sigma=1.0),
]


def by_hand(crop: Tensor, how: Degradation, noise: np.ndarray | None = None) -> np.ndarray:
    """Blur, shrink, noise, codec, enlarge, one after the other with Pillow."""
    small = resample(crop[None], min(how.face_px, 112), how.down)[0].numpy()
    if noise is not None:
        small = np.clip(np.rint(small + how.noise_sigma * noise), 0, 255).astype(np.uint8)
    if how.codec:
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, how.codec, quality=how.quality)
        small = np.asarray(Image.open(buffer).convert("RGB"))
    return resample(torch.from_numpy(small.copy())[None], 112, how.enlarger)[0].numpy()


def test_equals_the_steps_one_after_the_other(crops: Tensor) -> None:
    for index in (0, 2, 4):
        np.testing.assert_array_equal(degrade(crops[:1], MIXED[index])[0].numpy(), by_hand(crops[0], MIXED[index]))


def test_equals_pillow(crops: Tensor) -> None:
    ours = degrade(crops, Degradation(13)).numpy().astype(int)
    theirs = [
        np.asarray(Image.fromarray(crop).resize((13, 13), Image.BICUBIC).resize((112, 112), Image.BICUBIC))
        for crop in crops.numpy()
    ]
    assert np.abs(ours - np.stack(theirs)).max() <= 1


def test_noise_is_added_to_the_small_picture_with_the_asked_spread(crops: Tensor) -> None:
    clear, noisy = (shrink(crops, Degradation(32, noise_sigma=sigma), seed=5).double() for sigma in (0.0, 4.0))
    difference = noisy - clear
    assert abs(float(difference.std()) - 4) < 0.15
    assert abs(float(difference.mean())) < 0.15
    each = difference.flatten(1)
    assert float(torch.corrcoef(each).fill_diagonal_(0).abs().max()) < 0.1  # no image shares its noise with another


def test_the_result_depends_on_image_degradation_and_seed_alone(crops: Tensor) -> None:
    together = degrade(crops, MIXED, seed=3)
    seeds = image_seeds(3, len(crops))
    assert torch.equal(degrade(crops, MIXED, seed=seeds), together)
    for index in range(len(crops)):
        alone = degrade(crops[index : index + 1], MIXED[index], seed=seeds[index : index + 1])
        assert torch.equal(alone[0], together[index])
    assert not torch.equal(degrade(crops, MIXED, seed=4), together)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    again = degrade(crops[order], [MIXED[i] for i in order], seed=[seeds[i] for i in order])
    assert torch.equal(again, together[order])


def test_many_images_of_one_kind_come_in_their_order(crops: Tensor) -> None:
    many = crops.repeat(3, 1, 1, 1)
    out = degrade(many, Degradation(20))
    assert torch.equal(out, degrade(crops, Degradation(20)).repeat(3, 1, 1, 1))


def test_shrink_gives_what_the_camera_delivers(crops: Tensor) -> None:
    small = shrink(crops, MIXED, seed=3)
    assert [len(picture) for picture in small] == [12, 12, 24, 12, 16, 40, 112]
    enlarged = [resample(picture[None], 112, how.enlarger)[0] for picture, how in zip(small, MIXED, strict=True)]
    assert torch.equal(torch.stack(enlarged), degrade(crops, MIXED, seed=3))
    assert shrink(crops, Degradation(9)).shape == (7, 9, 9, 3)
    assert shrink(crops[:0], Degradation(9)).shape == (0, 9, 9, 3)
    assert degrade(crops[:0], Degradation(9)).shape == (0, 112, 112, 3)


def test_blur_is_a_gaussian_in_pixels_of_the_small_picture() -> None:
    dot = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    dot[0, 53:60, 53:60] = 255
    blurred = degrade(dot, Degradation(112, blur_sigma_px=4.0))[0, :, :, 0].double()
    place = torch.arange(112).double() - 56
    share = blurred.sum(1) / blurred.sum()
    assert float((share * place).sum()) == pytest.approx(0, abs=0.05)
    assert float((share * place**2).sum()) == pytest.approx(4.0**2 + (7**2 - 1) / 12, rel=0.05)
    smaller = degrade(dot, Degradation(56, down="cv2-area", up="cv2-linear", blur_sigma_px=2.0))[0, :, :, 0].double()
    spread = float((smaller.sum(1) / smaller.sum() * place**2).sum())
    assert spread == pytest.approx(4.0**2 + 4 + 2, rel=0.15)  # cells and triangles of two pixels on top


def test_more_pixels_than_the_crop_has_leave_it_alone(crops: Tensor) -> None:
    for size in (112, 113, 4096):
        assert torch.equal(degrade(crops, Degradation(size)), crops)


def test_the_crops_are_not_written_to(crops: Tensor) -> None:
    before = crops.clone()
    degrade(crops, [replace(how, noise_sigma=2.0) for how in MIXED])
    assert torch.equal(crops, before)


@pytest.mark.parametrize("how", MIXED)
def test_text_there_and_back(how: Degradation) -> None:
    assert parse_degradation(str(how)) == how


def test_text_leaves_out_what_is_as_by_default() -> None:
    assert str(Degradation(12)) == "face_px=12,down=pil-bicubic"
    assert parse_degradation(" face_px = 12 , jpeg = 70 ") == Degradation(12, codec="jpeg", quality=70)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("jpeg=70", SettingError, "'jpeg=70' names no face_px, expected one; such as face_px=12."),
        ("face_px=12,face_px=8", SettingError, "sets face_px twice; give it once."),
        ("face_px=12,jpeg=70,webp=80", SettingError, "sets codec twice; give it once."),
        ("face_px", SettingError, "'face_px' in 'face_px' is no setting, expected name=value"),
        ("face_px=twelve", SettingError, "'face_px=twelve' is not set to a number"),
        ("face_px=12,blur=nan", SettingError, "'blur=nan' is not set to a finite number"),
        ("face_px=12,blurr=1", UnknownNameError, "Unknown setting 'blurr'; nearest known: blur"),
        ("face_px=12,down=pil-cubic", UnknownNameError, "Unknown resampler 'pil-cubic'"),
        ("face_px=0", SettingError, "face_px is 0, expected a whole number from 1 to 4096."),
        ("face_px=12,noise=-1", SettingError, "noise_sigma is -1.0, expected 0 to 255; 0 leaves it out."),
        ("face_px=12,jpeg=0", SettingError, "quality is 0, expected 1 to 100."),
    ],
)
def test_texts_that_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_degradation(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_descriptions_that_are_refused() -> None:
    with pytest.raises(SettingError, match="codec is 'jpeg' and quality None, expected both or neither"):
        Degradation(12, codec="jpeg")
    with pytest.raises(UnknownNameError, match="Unknown codec 'png'"):
        Degradation(12, codec="png", quality=3)
    with pytest.raises(SettingError, match=r"face_px is 12\.5, expected a whole number"):
        Degradation(12.5)  # type: ignore[arg-type]


def test_batches_that_are_refused(crops: Tensor) -> None:
    with pytest.raises(ShapeError, match="7 crops came with 2 degradations and 7 seeds"):
        degrade(crops, MIXED[:2])
    with pytest.raises(ShapeError, match="7 crops came with 7 degradations and 3 seeds"):
        degrade(crops, MIXED, seed=[1, 2, 3])
    with pytest.raises(SettingError, match="seed is -1, expected 0 or more"):
        degrade(crops, MIXED, seed=-1)
    with pytest.raises(ShapeError, match="Crops are a uint8 tensor"):
        degrade(crops.float(), MIXED)


ONCE = [name for name, method in METHODS.items() if not method.rounds_between]


def test_all_sizes_in_one_go_equal_one_after_the_other(crops: Tensor) -> None:
    generator = np.random.default_rng(0)
    many = crops.repeat(6, 1, 1, 1)
    many[:9] = (many[:9] > 127) * 255  # overshoots, clips and ties
    hows = [
        Degradation(
            int(generator.integers(1, 112)),
            down=str(generator.choice(ONCE)),
            up=str(generator.choice(ONCE)),
            blur_sigma_px=float(generator.choice([0.0, 0.7])),
        )
        for _ in many
    ]
    together = degrade(many, hows)
    for index, how in enumerate(hows):
        small = shrink(many[index : index + 1], how)
        assert torch.equal(together[index], resample(small, 112, how.enlarger)[0]), how


def test_threads_do_not_share_memory(crops: Tensor) -> None:
    hows = [Degradation(size, down=down) for size in (9, 30) for down in ("pil-bicubic", "cv2-area")]
    expected = [degrade(crops, how) for how in hows]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(
                torch.equal(*pair)
                for pair in zip(pool.map(lambda how: degrade(crops, how), hows), expected, strict=True)
            )


def test_what_is_returned_is_not_written_to_later(crops: Tensor) -> None:
    first, small = degrade(crops, Degradation(12)), shrink(crops, Degradation(12))
    kept = first.clone(), small.clone()
    degrade(crops.flip(0), Degradation(12))
    shrink(crops.flip(0), Degradation(12))
    assert torch.equal(first, kept[0])
    assert torch.equal(small, kept[1])


def test_more_threads_change_nothing_and_are_given_back(crops: Tensor) -> None:
    many = crops.repeat(4, 1, 1, 1)
    hows = [*MIXED, *(Degradation(9 + index, down="cv2-area") for index in range(21))]
    alone = degrade(many, hows, seed=1)
    torch.set_num_threads(2)
    assert torch.equal(degrade(many, hows, seed=1), alone)
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        run_each(lambda task: 1 // task, [1, 0], device=many.device)
    assert torch.get_num_threads() == 2
