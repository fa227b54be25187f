"""The face model of the package needs no file and no download, says what it is, and sees faces of few pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import pattern_faces
from keyhole.cli import app
from keyhole.faces.images.albums import open_album
from keyhole.faces.images.alignment import retemplate
from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.images.photos import decode_photo
from keyhole.faces.models.face_model import SHIPPED, FaceModel, load_face_model, shipped, shipped_notice
from keyhole.faces.models.registry import notice
from keyhole.faces.protocols import lfw
from keyhole.files import read_tensors


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model(SHIPPED, device="cpu")


def test_it_is_small_and_says_what_it_is(model: FaceModel) -> None:
    assert shipped().stat().st_size < 5e6
    assert model.name == SHIPPED
    assert model.embedding_size == 256
    assert model.licenses.code == "Apache-2.0"
    assert "Congress" in model.licenses.data
    assert "not disclosed" in model.licenses.data  # what its teacher was trained on
    about = read_tensors(shipped())[1]["about"]
    assert about["apart"]["people"] > 0
    assert "/" not in about["arm"]
    card = shipped().with_suffix(".md").read_text(encoding="utf-8")
    assert model.sha256 is not None
    assert model.sha256[:16] in card


def test_the_notice_names_whose_weights_it_began_with() -> None:
    root = Path(__file__).parents[3]
    assert "face-reidentification-retail-0095" in (root / "NOTICE").read_text(encoding="utf-8")


def test_it_is_listed_with_its_terms_before_the_known_ones() -> None:
    listed = CliRunner().invoke(app, ["faces", "models"])
    assert listed.exit_code == 0
    assert listed.output.startswith(shipped_notice())
    assert notice("yunet-2023mar") in listed.output
    for line in ("comes with the package", "  code: Apache-2.0", "  weights: trained here", "  training data: "):
        assert line in shipped_notice()


@pytest.mark.parametrize("command", ["evaluate", "factors", "fit", "embed", "calibrate", "identify", "compare"])
def test_it_is_what_commands_take_by_default(command: str) -> None:
    shown = CliRunner().invoke(app, ["faces", command, "--help"], env={"COLUMNS": "200"}).output
    assert f"[default: {SHIPPED}]" in " ".join(shown.split())


def test_it_has_no_address_as_there_is_nothing_to_download() -> None:
    found = CliRunner().invoke(app, ["faces", "models", "--download", SHIPPED])
    assert found.exit_code == 1
    assert "comes with the package" in str(found.exception)


def test_a_face_is_more_like_its_mirror_image_than_like_others(model: FaceModel, tmp_path: Path) -> None:
    crops = []
    for person in range(4):
        pattern_faces.write(tmp_path / f"{person}.png", person, 0)
        crops.append(decode_photo((tmp_path / f"{person}.png").read_bytes(), name=str(person)))
    faces = torch.from_numpy(np.stack(crops))
    template = np.asarray(model.preparation.template, float)
    one, other = (model.embed(retemplate(x, template, model.preparation.size_px)) for x in (faces, faces.flip(2)))
    torch.testing.assert_close(one.norm(dim=1), torch.ones(4))
    scores = one @ other.T
    assert (scores.argmax(dim=1) == torch.arange(4)).all()


@pytest.mark.slow
def test_at_twelve_pixels_it_tells_people_apart_better_than_its_teacher(model: FaceModel, shared: Path) -> None:
    faces = shared / "data" / "faces"
    root = faces / "lfw" / "lfw112.zip"
    pairs = lfw.read(root, folds=(7,))  # on which recipes are chosen; 8 to 10 are not looked at in passing
    some = pairs.pairs[::2]
    with open_album(root) as album:
        crops = {k: decode_photo(album.read(pairs.samples[k].path), name=str(k)) for k in np.unique(some).tolist()}
    first, second = (torch.from_numpy(np.stack([crops[k] for k in column])) for column in some.T.tolist())
    teacher = load_face_model(faces / "models" / "face-reidentification-retail-0095.fp16.xml", device="cpu")
    areas = []
    for each in (model, teacher):
        template = np.asarray(each.preparation.template, float)
        views = (retemplate(x, template, each.preparation.size_px) for x in (first, degrade(second, Degradation(12))))
        sharp, small = (each.embed(view) for view in views)
        areas.append(roc_auc_score(pairs.same[::2], (sharp * small).sum(dim=1)))
    assert areas[0] > areas[1] + 0.015
