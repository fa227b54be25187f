"""A description in TOML is read strictly: every key, kind and range."""

from __future__ import annotations

from pathlib import Path

import pytest

from face_toys import write_toml
from keyhole.errors import DataError, SettingError, UnknownNameError
from keyhole.faces.models.description import read_description
from keyhole.faces.models.preparation import ARCFACE_112, Licenses, Preparation
from keyhole.faces.models.registry import KNOWN_MODELS

WHOLE = """
name = "mine"
file = "weights/mine.onnx"
size_px = 112
color = "bgr"
mean = [104, 117.5, 123]
std = 128
template = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
margin = 0.1
embedding_size = 512
output = "e"
sha256 = "%s"

[licenses]
weights = "CC BY-NC 4.0"
"""


def test_every_key_is_read(tmp_path: Path) -> None:
    found = read_description(write_toml(tmp_path / "m.toml", WHOLE % ("Ab" * 32), base=""))
    assert found.name == "mine"
    assert found.file == tmp_path / "weights" / "mine.onnx"
    assert found.preparation == Preparation(
        112, "bgr", (104.0, 117.5, 123.0), (128.0, 128.0, 128.0), template=ARCFACE_112, margin=0.1
    )
    assert (found.embedding_size, found.output, found.sha256) == (512, "e", "ab" * 32)
    assert found.licenses == Licenses("not stated", "CC BY-NC 4.0", "not stated")
    assert (found.module, found.network) == (None, None)


def test_what_a_known_network_takes_need_not_be_said_but_can(tmp_path: Path) -> None:
    path = write_toml(tmp_path / "mine.toml", 'file = "w.pth"\nnetwork = "vggface2-resnet50"\n', base="")
    found = read_description(path)
    assert found.name == "mine"
    assert found.preparation == KNOWN_MODELS["vggface2-resnet50"].preparation
    wider = read_description(write_toml(path, path.read_text() + "margin = 1.0\n", base="")).preparation
    assert (wider.margin, wider.template, wider.size_px, wider.color) == (1.0, None, 224, "bgr")


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("sizepx = 112", UnknownNameError, r"Unknown key of m\.toml 'sizepx'; nearest known: size_px"),
        ("size_px = 112", SettingError, "needs either file or module; it has neither"),
        ("file = 'a'\nmodule = 'b:c'", SettingError, "needs either file or module; it has both"),
        ("file = 'a'", SettingError, "lacks size_px"),
        ("file = 3", SettingError, "file is 3; expected text"),
        ("file = ''", SettingError, "file is ''; expected text"),
        ("file = 'a'\nsize_px = 112.0", SettingError, "size_px is 112.0; expected a whole number"),
        ("file = 'a'\nsize_px = true", SettingError, "size_px is True; expected a whole number"),
        ("file = 'a'\nsize_px = 112", SettingError, r"m\.toml: A model needs a template"),
        ("file = 'a'\nsize_px = 5\nmargin = 0", SettingError, r"m\.toml: size_px is 5; expected 16 to 1024"),
        ("file = 'a'\nsize_px = 112\nmargin = '0'", SettingError, "margin is '0'; expected a number"),
        ("file = 'a'\nsize_px = 112\nmargin = true", SettingError, "margin is True; expected a number"),
        ("file = 'a'\nsize_px = 112\ntemplate = 'arc'", SettingError, "template is 'arc'; expected"),
        ("file = 'a'\nsize_px = 112\ntemplate = [[1, 2, 3]]", SettingError, 'expected "arcface" or five points'),
        ("file = 'a'\nsize_px = 112\ntemplate = [[1, 2]]", SettingError, "template has 1 points; expected five"),
        ("file = 'a'\nsize_px = 112\nmargin = 0\nmean = [1, 2]", SettingError, "expected one number or three"),
        ("file = 'a'\nsize_px = 112\nmargin = 0\nmean = [1, 2, '3']", SettingError, "expected one number or three"),
        ("file = 'a'\nsize_px = 112\nmargin = 0\nstd = 0", SettingError, "three gray levels above 0"),
        ("file = 'a'\nsize_px = 112\nmargin = 0\ncolor = 'RGB'", SettingError, "color is 'RGB'; expected rgb or bgr"),
        ("file = 'a'\nsize_px = 112\nmargin = 0\nembedding_size = 1", SettingError, "expected at least 2"),
        ("file = 'a'\nsha256 = 'abc'", SettingError, "sha256 is 'abc'; expected 64 hexadecimal digits"),
        ("file = 'a'\nnetwork = 'vggface2-resnet5'", UnknownNameError, "nearest known: vggface2-resnet50"),
        ("file = 'a'\nnetwork = 'opencv-sface'", UnknownNameError, "Unknown network 'opencv-sface'"),
        ("file = 'a'\nlicenses = 'MIT'", SettingError, "licenses is 'MIT'; expected a table with code, weights, data"),
        ("file = 'a'\n[licenses]\nweight = 'MIT'", UnknownNameError, "nearest known: weights"),
        ("file = ", DataError, "is not TOML"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, error: type[Exception], reason: str) -> None:
    path = write_toml(tmp_path / "m.toml", text, base="")
    with pytest.raises(error, match=reason) as caught:
        read_description(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected a TOML file"):
        read_description(tmp_path / "none.toml")
