"""A study of factors on people who are patterns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import pattern_faces
from keyhole.errors import RunError, SettingError
from keyhole.faces.comparison import Pipeline, Setting
from keyhole.faces.evaluation import evaluate
from keyhole.faces.factors import Condition, study_factors
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.protocols import folder
from keyhole.faces.protocols.samples import IdentificationSet

SETTING = Setting(probe_px=(112.0, 3.0), match=("none", "resolution"), draws=100)


@pytest.fixture(scope="module")
def models() -> list[FaceModel]:
    return [load_face_model(f"pattern_faces:{name}", threads=1) for name in ("blind", "reader")]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> IdentificationSet:
    return folder.read(pattern_faces.write_manifest(tmp_path_factory.mktemp("closed"), enrolled=12))


def test_each_factor_is_measured_from_the_first_condition(models: list[FaceModel], closed: IdentificationSet) -> None:
    found = study_factors(models, closed, SETTING)
    assert len(found.figures) == 2 * 2 * 2
    base = Condition(models[0].name, None, 112.0, "none")
    effects = {(effect.factor, effect.after): effect for effect in found.effects}
    model = effects["model", Condition(models[1].name, None, 112.0, "none")]
    assert model.before == base
    assert model.gain.value == 1.0  # nobody is first for the blind, everybody for the reader
    assert effects["matching", Condition(models[0].name, None, 112.0, "resolution")].gain.value == 0.0
    for condition, figure in found.figures:
        alone = next(m for m in models if m.name == condition.model)
        rows = evaluate(Pipeline(alone, setting=SETTING), closed).rows
        same = next(row for row in rows if (row.face_px, row.mode) == (condition.face_px, condition.mode))
        assert figure.value == same.figures["rank-1"].value
    assert "no factor of training data by itself" in found.notes[0]
    assert json.loads(json.dumps(found.to_json()))["main"] == "rank-1"
    assert "model       +100.00" in found.text() or "model      +100.00" in found.text()


def test_a_stopped_study_goes_on_and_another_one_is_refused(
    models: list[FaceModel], closed: IdentificationSet, tmp_path: Path
) -> None:
    whole = study_factors(models, closed, SETTING, folder=tmp_path)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 2
    parts[0].unlink()
    kept = parts[1].stat().st_mtime_ns
    assert study_factors(models, closed, SETTING, folder=tmp_path) == whole
    assert parts[1].stat().st_mtime_ns == kept
    other = Setting(probe_px=(112.0,), match=("none",), draws=100)
    with pytest.raises(RunError, match="is of another model, protocol or setting"):
        study_factors(models, closed, other, folder=tmp_path)


def test_wrong_settings_are_told(models: list[FaceModel], closed: IdentificationSet) -> None:
    with pytest.raises(SettingError, match="measures from 'none'"):
        study_factors(models, closed, Setting(match=("resolution",)))
    with pytest.raises(SettingError, match="leave --pool out"):
        study_factors(models, closed, Setting(pool=("equal",)))
    with pytest.raises(SettingError, match="each name once"):
        study_factors([models[0], models[0]], closed, SETTING)
    with pytest.raises(SettingError, match="at least one model"):
        study_factors(models, closed, SETTING, margins=())


def test_a_name_of_a_model_leads_nowhere_else(
    models: list[FaceModel], closed: IdentificationSet, tmp_path: Path
) -> None:
    odd = replace(models[0], name="../../outside/x")
    study_factors([odd], closed, SETTING, folder=tmp_path / "a" / "parts")
    (part,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert part.parent == tmp_path / "a" / "parts"


def test_a_part_that_an_earlier_version_kept_is_found(
    models: list[FaceModel], closed: IdentificationSet, tmp_path: Path
) -> None:
    plain = replace(models[0], name="blind")
    whole = study_factors([plain], closed, SETTING, folder=tmp_path)
    (part,) = tmp_path.iterdir()
    part.rename(tmp_path / "blind_None.json")
    assert study_factors([plain], closed, SETTING, folder=tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["blind_None.json"]
