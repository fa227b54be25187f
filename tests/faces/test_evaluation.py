"""Whole evaluations on people who are patterns, whose figures are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pattern_faces
from keyhole.errors import DataError, KeyholeError, SettingError
from keyhole.faces.comparison import Pipeline, Setting, compare, crops_of
from keyhole.faces.evaluation import evaluate, fit
from keyhole.faces.images.degradation import Degradation
from keyhole.faces.matching import Matcher
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.protocols import folder, lfw
from keyhole.faces.protocols.samples import IdentificationSet, PairSet, Sample
from keyhole.progress import silent

QUICK = Setting(draws=100)


def under(model: FaceModel, setting: Setting, matcher: Matcher | None = None) -> Pipeline:
    return Pipeline(model, None, matcher, setting)


@pytest.fixture(scope="module")
def reader() -> FaceModel:
    return load_face_model("pattern_faces:reader", threads=1)


@pytest.fixture(scope="module")
def blind() -> FaceModel:
    return load_face_model("pattern_faces:blind", threads=1)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> IdentificationSet:
    return folder.read(pattern_faces.write_manifest(tmp_path_factory.mktemp("closed"), enrolled=12))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> IdentificationSet:
    return folder.read(pattern_faces.write_manifest(tmp_path_factory.mktemp("mixed"), enrolled=10, strangers=40))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    root = tmp_path_factory.mktemp("pairs")
    samples, rows, same, folds = [], [], [], []
    for person in range(20):
        for photo in range(2):
            path = pattern_faces.write(root / f"{person}_{photo}.png", person, photo)
            samples.append(Sample(path.name, f"p{person}", aligned=True))
    for person in range(20):
        rows += [(2 * person, 2 * person + 1), (2 * person, (2 * person + 3) % 40)]
        same += [True, False]
        folds += [1 + person % 2] * 2
    return PairSet("drawn", root, tuple(samples), np.array(rows), np.array(same), np.array(folds))


def test_a_reader_finds_everybody(reader: FaceModel, closed: IdentificationSet) -> None:
    found = evaluate(under(reader, QUICK), closed)
    assert found.rows[0].figures["rank-1"].value == 1.0
    assert found.rows[0].figures["CMC area"].value == 1.0
    assert found.rows[0].cmc == (1.0,) * 12
    assert found.rows[0].figures["rank-1"].low < 1.0  # twelve people never make an interval a point


def test_the_blind_find_nobody_for_ties_never_help(blind: FaceModel, closed: IdentificationSet) -> None:
    found = evaluate(under(blind, QUICK), closed)
    assert found.rows[0].figures["rank-1"].value == 0.0
    assert found.rows[0].figures["CMC area"].value == pytest.approx(1 / 12)


def test_strangers_are_searches_without_a_mate(reader: FaceModel, mixed: IdentificationSet) -> None:
    found = evaluate(under(reader, replace(QUICK, fpir=0.1)), mixed)
    assert found.rows[0].figures["FNIR at FPIR 10 %"].value == 0.0
    assert found.rows[0].errors is not None
    assert "40 not" in found.summary
    assert "FNIR at FPIR 1 %" not in evaluate(under(reader, QUICK), mixed).rows[0].figures  # 40 searches cannot show it


def test_groups_are_told_apart(reader: FaceModel, closed: IdentificationSet) -> None:
    found = evaluate(under(reader, QUICK), closed)
    assert [(group.name, group.searches, group.missed) for group in found.groups] == [
        ("camera cam0", 6, 0), ("camera cam1", 6, 0),
    ]  # fmt: skip


def test_pairs_are_told_apart_and_not_by_the_blind(reader: FaceModel, blind: FaceModel, pairs: PairSet) -> None:
    found = evaluate(under(reader, QUICK), pairs)
    assert found.rows[0].figures["accuracy"].value == 1.0
    assert found.rows[0].figures["EER"].value == 0.0
    assert evaluate(under(blind, QUICK), pairs).rows[0].figures["accuracy"].value == 0.5


def test_without_pixels_a_reader_is_blind_and_alike_images_help(reader: FaceModel, closed: IdentificationSet) -> None:
    setting = replace(QUICK, probe_px=(112.0, 4.0), match=("none", "resolution"))
    found = evaluate(under(reader, setting), closed)
    told = {(row.face_px, row.mode): row for row in found.rows}
    assert told[112.0, "resolution"].gap is not None
    assert told[112.0, "resolution"].gap.value == 0.0
    assert told[4.0, "none"].gap is None
    assert told[4.0, "resolution"].figures["rank-1"].value >= told[4.0, "none"].figures["rank-1"].value
    gap = told[4.0, "resolution"].gap
    assert gap is not None
    difference = told[4.0, "resolution"].figures["rank-1"].value - told[4.0, "none"].figures["rank-1"].value
    assert gap.value == pytest.approx(difference)


def test_a_probe_without_a_face_is_a_miss(reader: FaceModel, closed: IdentificationSet) -> None:
    gallery, probes = crops_of(under(reader, QUICK), closed)
    assert gallery.found.all()
    # a sample whose face is not found has no crop; the search for it cannot succeed
    lost = replace(probes.subset(range(11)), found=np.array([True] * 11 + [False]))
    from keyhole.faces.evaluation import _searches

    found, _ = _searches(under(reader, QUICK), closed, (gallery, lost), silent)
    assert found.rows[0].figures["rank-1"].value == pytest.approx(11 / 12)
    assert found.missed == {"gallery": 0, "probes": 1}
    assert "1 probes" in found.summary


def test_small_galleries_are_no_sharper_than_their_probes(reader: FaceModel, closed: IdentificationSet) -> None:
    setting = replace(QUICK, shrink="both")
    gallery, probes = (under(reader, setting).watch(crops) for crops in crops_of(under(reader, setting), closed))
    both = compare(probes, gallery, 6.0, mode="none")
    np.testing.assert_allclose(both, probes.at(6.0) @ gallery.at(6.0).T, rtol=1e-6)


def test_mates_are_not_alike_by_their_noise(reader: FaceModel, tmp_path: Path) -> None:
    """Everybody has the same face: nobody can be told, whatever is added to it."""
    lines = ["role,path,identity,aligned"]
    for person in range(20):
        for role in ("gallery", "probe"):
            pattern_faces.write(tmp_path / f"{role}{person}.png", 1)
            lines.append(f"{role},{role}{person}.png,p{person},yes")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    setting = replace(QUICK, probe_px=(14.0,), match=("none", "resolution"), how=Degradation(112, noise_sigma=4.0))
    for row in evaluate(under(reader, setting), folder.read(tmp_path)).rows:
        assert row.figures["rank-1"].value < 0.4


def test_the_order_of_ways_does_not_matter(reader: FaceModel, closed: IdentificationSet) -> None:
    setting = replace(QUICK, probe_px=(5.0,), match=("resolution", "none"))
    there, back = (
        evaluate(under(reader, replace(setting, match=m)), closed)
        for m in (("resolution", "none"), ("none", "resolution"))
    )
    assert there.rows[0].gap == back.rows[1].gap
    assert there.rows[0].gap is not None


def test_what_would_fail_after_the_work_fails_before_it(reader: FaceModel, closed: IdentificationSet) -> None:
    with pytest.raises(SettingError, match="needs a matcher"):
        evaluate(under(reader, replace(QUICK, match=("fitted",))), closed)
    with pytest.raises(SettingError, match="Sizes are estimated on aligned 112 crops"):
        evaluate(under(reader, replace(QUICK, match=("resolution-estimated",), margin=0.2)), closed)


def test_nobody_to_find_is_told_before_the_work(reader: FaceModel, tmp_path: Path) -> None:
    pattern_faces.write_manifest(tmp_path, enrolled=2)
    lines = (tmp_path / "manifest.csv").read_text().replace("probe,p/0.png,p000", "probe,p/0.png,q0")
    (tmp_path / "manifest.csv").write_text(lines.replace("probe,p/1.png,p001", "probe,p/1.png,q1"))
    with pytest.raises(DataError, match="No probe is of anyone in the gallery"):
        evaluate(under(reader, QUICK), folder.read(tmp_path))


def test_a_camera_that_does_nothing_at_a_size_is_told(reader: FaceModel, closed: IdentificationSet) -> None:
    noisy = replace(QUICK, how=Degradation(112, noise_sigma=4.0))
    (told,) = (note for note in evaluate(under(reader, noisy), closed).notes if note.startswith("At 112 px"))
    assert "the probes are as they are: blur, noise and codec" in told
    assert not [n for n in evaluate(under(reader, replace(noisy, probe_px=(8.0,))), closed).notes if "as they are" in n]


def test_frames_of_a_track_are_one_search(reader: FaceModel, tmp_path: Path) -> None:
    """The first of three frames shows somebody else: alone it misleads, and the other two outvote it."""
    lines = ["role,path,identity,track,aligned"]
    for person in range(12):
        pattern_faces.write(tmp_path / f"g{person}.png", person)
        lines.append(f"gallery,g{person}.png,p{person},,yes")
        for frame in range(3):
            shown = person if frame else (person + 5) % 12
            pattern_faces.write(tmp_path / f"f{person}_{frame}.png", shown, 7)
            lines.append(f"probe,f{person}_{frame}.png,p{person},t,yes")
    lines.append("probe,f0_1.png,p0,,yes")  # of no track: a search of its own
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    read = folder.read(tmp_path)
    alone = evaluate(under(reader, QUICK), read).rows[0].figures["rank-1"]
    assert alone.value == pytest.approx(25 / 37)
    pooled = replace(QUICK, pool=("best", "equal", "quality"), match=("none", "resolution"))
    found = evaluate(under(reader, pooled), read)
    assert [row.mode for row in found.rows[:3]] == ["none best", "none equal", "none quality"]
    assert [row.gap is None for row in found.rows] == [True] + [False] * 5
    assert {row.against for row in found.rows} == {"none best"}
    assert "against none best +" in found.text()
    assert found.groups == ()  # what tells tracks apart is no group
    assert "13 tracks of the probes, 0 of them without a face" in found.summary
    best, equal, quality = (row.figures["rank-1"].value for row in found.rows[:3])
    assert best < 1  # of one person at least, the frame that shows most shows somebody else
    assert (equal, quality) == (1, 1)
    with pytest.raises(SettingError, match=r"No probe has 'clip'.*there is track else\."):
        evaluate(under(reader, replace(pooled, track="clip")), read)


def test_pairs_have_no_tracks(reader: FaceModel, pairs: PairSet) -> None:
    with pytest.raises(SettingError, match="this protocol compares pairs"):
        evaluate(under(reader, replace(QUICK, pool=("equal",))), pairs)


def test_a_track_is_lost_where_no_frame_shows_a_face(reader: FaceModel, tmp_path: Path) -> None:
    root = pattern_faces.write_manifest(tmp_path, enrolled=6)
    read = folder.read(root)
    track = {"track": "t"}
    probes = tuple(replace(sample, attributes=track) for sample in read.probes for _ in range(2))
    read = replace(read, probes=probes)
    gallery, crops = crops_of(under(reader, QUICK), read)
    there = np.array([True, False] * 5 + [False, False])  # the last person in neither frame
    lost = replace(crops.subset(np.flatnonzero(there)), found=there)
    from keyhole.faces.evaluation import _searches

    found, _ = _searches(under(reader, replace(QUICK, pool=("quality",))), read, (gallery, lost), silent)
    assert found.rows[0].figures["rank-1"].value == pytest.approx(5 / 6)
    assert "6 tracks of the probes, 1 of them without a face" in found.summary


def test_too_few_strangers_for_a_rate_are_told(reader: FaceModel, mixed: IdentificationSet) -> None:
    notes = evaluate(under(reader, QUICK), mixed).notes
    assert any(note.startswith("No FNIR is told: FPIR 1 % cannot be shown by 40 non-mated searches") for note in notes)


def test_a_fitted_matcher_helps_other_people_and_refuses_its_own(
    reader: FaceModel, closed: IdentificationSet, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    lines = ["role,path,identity,aligned"]
    for person in range(100, 220):
        pattern_faces.write(others / f"{person}.png", person)
        lines.append(f"{'gallery' if person % 2 else 'probe'},{person}.png,q{person},yes")
    (others / "manifest.csv").write_text("\n".join(lines) + "\n")
    matcher = fit(under(reader, QUICK), folder.read(others))
    assert matcher.about["faces"] == 120
    assert len(matcher.people) == 120
    setting = replace(QUICK, probe_px=(6.0, 112.0), match=("none", "fitted", "fitted-estimated"))
    found = evaluate(under(reader, setting, matcher), closed)
    told = {(row.face_px, row.mode): row.figures["rank-1"].value for row in found.rows}
    assert told[6.0, "fitted"] >= told[6.0, "none"]
    assert told[112.0, "fitted"] == told[112.0, "none"] == 1.0
    with pytest.raises(SettingError, match="fitted on 120 of the people"):
        evaluate(under(reader, setting, matcher), folder.read(others))


def test_json_is_percent_and_text_is_a_table(reader: FaceModel, closed: IdentificationSet) -> None:
    found = evaluate(
        under(reader, replace(QUICK, probe_px=(112.0, 8.0), match=("none", "resolution"))), closed, examples=True
    )
    value = json.loads(json.dumps(found.to_json()))
    assert value["rows"][0]["figures"]["rank-1"]["value"] == 100.0
    assert value["rows"][0]["gap"] is None
    assert value["rows"][1]["match"] == "resolution"
    assert value["model"]["fingerprint"] == reader.fingerprint
    assert found.text().count("\n") == 4
    assert found.sentence().startswith("Rank-1 of ")
    assert [example.caption for example in found.examples][:2] == ["probe 1 at 112 px", "probe 2 at 112 px"]
    assert all(example.png.startswith(b"\x89PNG") for example in found.examples)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"probe_px": ()}, "expected whole numbers from 1 to 1000 px, each once"),
        ({"probe_px": (8.0, 8.0)}, "'8,8'; expected whole numbers"),
        ({"probe_px": (float("nan"),)}, "expected whole numbers"),
        ({"shrink": "gallery"}, "shrink is 'gallery'; expected probe or both"),
        ({"draws": 99}, "draws is 99; expected 100 to 100,000"),
        ({"draws": 100_001}, "draws is 100001; expected 100 to 100,000"),
        ({"pool": ("best", "worst")}, "Unknown way of pooling 'worst'"),
        ({"probe_px": (8.5,)}, "expected whole numbers from 1 to 1000 px"),
        ({"shrink": "both", "match": ("fitted",)}, "with --shrink both there is none"),
        ({"fpir": 0.0}, "expected a rate above 0 and below 1"),
        ({"match": ("none", "none")}, "expected each once"),
    ],
)
def test_settings_out_of_range_are_told(change: dict[str, object], told: str) -> None:
    with pytest.raises(KeyholeError, match=told):
        replace(QUICK, **change)  # type: ignore[arg-type]


def test_photos_need_a_detector_and_crops_have_no_margin(reader: FaceModel, tmp_path: Path) -> None:
    for name in ("gallery/a.png", "probes/a.png"):
        pattern_faces.write(tmp_path / name, 1)
    with pytest.raises(DataError, match="a photo without landmarks, and there is no detector"):
        evaluate(under(reader, QUICK), folder.read(tmp_path))
    root = pattern_faces.write_manifest(tmp_path / "crops", enrolled=2)
    with pytest.raises(SettingError, match=r"ends at the face, and a margin of 0\.3 was asked for"):
        evaluate(under(reader, replace(QUICK, margin=0.3)), folder.read(root))


@pytest.mark.slow
def test_lfw_is_what_was_measured_on_the_same_crops(shared: Path) -> None:
    """Folds 8 to 10 at 112 px, as published for the model to half a point."""
    folder_ = shared / "data" / "faces"
    model = load_face_model(folder_ / "models" / "face-reidentification-retail-0095.fp16.xml")
    found = evaluate(under(model, QUICK), lfw.read(folder_ / "lfw" / "lfw112.zip", folds=(8, 9)))
    assert found.rows[0].figures["accuracy"].value == pytest.approx(0.995, abs=0.004)
