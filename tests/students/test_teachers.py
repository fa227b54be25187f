"""Teachers take RGB whatever their files take, and an ONNX file gives the rows of its network in any batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from face_toys import SIDE, toy_rows, toy_weights, write_onnx, write_toml
from keyhole.errors import SettingError
from keyhole.faces.models.preparation import Preparation, arcface_template
from keyhole.students.onnx_teacher import OnnxTeacher
from keyhole.students.teachers import input_of, load_teacher

MEAN, STD = (91.0, 103.0, 131.0), (50.0, 60.0, 70.0)


def images(count: int) -> torch.Tensor:
    return torch.rand((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))


def test_mean_and_deviation_are_told_for_rgb() -> None:
    for color, step in (("rgb", 1), ("bgr", -1)):
        found = input_of(Preparation(SIDE, color, MEAN, STD, arcface_template(SIDE)))
        assert found.size_px == (SIDE, SIDE)
        assert found.mean == pytest.approx([value / 255 for value in MEAN[::step]])
        assert found.std == pytest.approx([value / 255 for value in STD[::step]])


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_teacher_takes_rgb_whatever_its_file_takes(tmp_path: Path, color: str) -> None:
    write_onnx(tmp_path / "toy.onnx")
    described = f"size_px = {SIDE}\nmean = {list(MEAN)}\nstd = {list(STD)}\ntemplate = 'arcface'\ncolor = '{color}'\n"
    teacher = load_teacher(write_toml(tmp_path / "toy.toml", "file = 'toy.onnx'\n", base=described))
    pixels = images(3).numpy() * 255
    ordered = pixels[:, ::-1] if color == "bgr" else pixels
    prepared = (ordered - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(teacher.network(images(3)).numpy(), toy_rows(prepared, toy_weights()), atol=1e-4)


@pytest.mark.parametrize("batch", [2, 5, "n"])
def test_five_images_are_answered_in_batches_of_any_size(tmp_path: Path, batch: int | str) -> None:
    teacher = OnnxTeacher(write_onnx(tmp_path / "toy.onnx", batch=batch, stiff=batch == 2))
    found = teacher(images(5)).numpy()
    np.testing.assert_allclose(found, toy_rows(images(5).numpy(), toy_weights()), atol=1e-4)


def test_one_of_several_outputs_is_named(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "two.onnx", second_output=True)
    for output in (None, "pooled"):
        with pytest.raises(SettingError, match=r"two\.onnx has the outputs e, minus; say which is the embedding"):
            OnnxTeacher(path, output=output)
    first, second = (OnnxTeacher(path, output=output)(images(2)) for output in ("e", "minus"))
    assert torch.equal(first, -second)


def test_color_stands_first(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="takes images with the color last; export it with the color first"):
        OnnxTeacher(write_onnx(tmp_path / "last.onnx", channels_last=True))
