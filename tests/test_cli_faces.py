"""``keyhole faces`` on people who are patterns: what each command writes, prints, and how it fails."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pattern_faces
from keyhole.faces.images.photos import noted_face_px
from keyhole.faces.models.compact import compact, form_of
from keyhole.faces.models.face_model import save_face_model
from keyhole.faces.models.preparation import Licenses
from keyhole.files import read_tensors
from test_cli import Ran, keyhole

MODEL = ("--model", "pattern_faces:reader", "--threads", 1, "--device", "cpu")


def faces(*arguments: object) -> Ran:
    return keyhole("faces", *arguments)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pattern_faces.write_manifest(tmp_path_factory.mktemp("closed"), enrolled=12)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("others")
    lines = ["role,path,identity,aligned"]
    for person in range(300, 420):
        pattern_faces.write(root / f"q{person}.png", person)
        lines.append(f"{'gallery' if person % 2 else 'probe'},q{person}.png,q{person},yes")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    for person in range(5):
        pattern_faces.write(root / "enrolled" / f"p{person}" / "0.png", person, 0)
        pattern_faces.write(root / "again" / f"p{person}" / "1.png", person, 1)
    for person in range(100, 140):
        pattern_faces.write(root / "strangers" / f"s{person}.png", person)
    return root


def test_an_evaluation_writes_a_result_and_a_report(closed: Path, tmp_path: Path) -> None:
    command = ("evaluate", *MODEL, "--root", closed, "--probe-px", "112,4", "--match", "none,resolution")
    found = faces(*command, "--draws", 100, "--examples", "--out", tmp_path / "run", "--json")
    assert found.json["rows"][0]["figures"]["rank-1"]["value"] == 100.0
    assert "12 people enrolled" in found.err
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found.json
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Rank-1 by the size of the probe" in page
    assert page.count("data:image/png;base64,") == 8
    setting = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert (setting["probe px"], setting["match"]) == ("112, 4", "none, resolution")
    assert not any(written in value for value in setting.values() for written in ("None", "True", "False", "[", "{"))
    assert "http" not in page.replace("http://www.w3.org", "")
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["arguments"]["probe_px"] == "112,4"
    assert "holds this run, finished" in faces(*command, "--draws", 100, "--examples", "--out", tmp_path / "run").err


def test_matching_is_learnt_from_a_plain_folder_as_from_a_protocol(others: Path, people: Path, tmp_path: Path) -> None:
    for picture in others.glob("*.png"):
        (tmp_path / "plain" / picture.stem).mkdir(parents=True)
        shutil.copy(picture, tmp_path / "plain" / picture.stem)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert faces("fit", *MODEL, "--root", others, "--out", first).code == 0
    found = faces("fit", *MODEL, "--root", tmp_path / "plain", "--out", second, "--json")
    assert (found.json["faces"], found.json["people"]) == (120, 120)
    assert "120 of 120 photos of" in found.err  # taken as aligned crops
    tensors = [read_tensors(path)[0] for path in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=0.02, atol=0.02)
    enrolled = faces("embed", people / "enrolled", *MODEL, "--matcher", second, "--out", tmp_path / "g.safetensors")
    assert enrolled.code == 0
    refused = faces("embed", tmp_path / "plain", *MODEL, "--matcher", second, "--out", tmp_path / "h.safetensors")
    assert refused.code == 1  # nobody is tested on whom it was learnt on
    (tmp_path / "plain" / "q300" / "2020").mkdir()
    shutil.copy(others / "q301.png", tmp_path / "plain" / "q300" / "2020")
    for more, told in (
        ((), "in which q300 or 2020 may be the person"),
        (("--views", "mean"), "holds no folder gallery"),
    ):
        bad = faces("fit", *MODEL, "--root", tmp_path / "plain", *more, "--out", tmp_path / "c.safetensors")
        assert (bad.code, bad.out) == (1, "")
        assert told in bad.err.splitlines()[-1]


def test_from_a_fit_to_an_answer(others: Path, people: Path, tmp_path: Path) -> None:
    matcher, gallery, levels = (tmp_path / name for name in ("m.safetensors", "g.safetensors", "t.json"))
    fitted = faces("fit", *MODEL, "--root", others, "--out", matcher, "--json").json
    assert (fitted["faces"], fitted["people"]) == (120, 120)
    enrolled = faces("embed", people / "enrolled", *MODEL, "--matcher", matcher, "--out", gallery, "--json").json
    assert (enrolled["people"], enrolled["photos"], enrolled["without_face"]) == (5, 5, [])
    for path in (matcher, gallery):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    way = (*MODEL, "--gallery", gallery, "--matcher", matcher)
    made = faces(
        "calibrate", *way, "--strangers", people / "strangers", "--mated", people / "again", "--fpir", 0.1,
        "--probe-px", "6,24", "--out", levels, "--json",
    ).json  # fmt: skip
    assert [level["face_px"] for level in made["levels"]] == [6, 24]
    answers = faces("identify", *way, "--probe", people / "again", "--thresholds", levels, "--json").json["probes"]
    assert [answer["verdict"] for answer in answers] == ["candidate"] * 5
    assert [answer["hits"][0]["person"] for answer in answers] == [f"p{k}" for k in range(5)]
    shown = faces("identify", *way, "--probe", people / "again" / "p3" / "1.png", "--thresholds", levels)
    assert shown.out.startswith("1.png: p3 ")
    other_way = ("identify", *MODEL, "--gallery", gallery, "--probe", people / "again", "--thresholds", levels)
    assert "calibrated with another matcher" in faces(*other_way).err


def test_two_photos_are_compared(people: Path) -> None:
    pair = (people / "enrolled" / "p1" / "0.png", people / "again" / "p1" / "1.png")
    assert faces("compare", *pair, *MODEL, "--json").json["score"] > 0.95
    assert faces("compare", *pair, *MODEL).out.startswith(("score 0.9", "score 1.0"))


def test_watch_lists_have_reports(people: Path, tmp_path: Path) -> None:
    gallery, levels, page = tmp_path / "g.safetensors", tmp_path / "t.json", tmp_path / "who.html"
    assert faces("embed", people / "enrolled", *MODEL, "--out", gallery).code == 0
    way = (*MODEL, "--gallery", gallery)
    made = ("--strangers", people / "strangers", "--mated", people / "again", "--fpir", 0.1, "--probe-px", "24")
    shown = faces("calibrate", *way, *made, "--out", levels)
    assert f"Report: {tmp_path / 't.html'}" in shown.out
    text = (tmp_path / "t.html").read_text()
    assert "Thresholds by the size of the probe" in text
    assert "the enrolled" in text
    (people / "again" / "p0" / "<b>.png").write_bytes((people / "again" / "p0" / "1.png").read_bytes())
    asked = ("identify", *way, "--probe", people / "again", "--thresholds", levels, "--report", page)
    assert len(faces(*asked, "--json").json["probes"]) == 6
    assert [one["probe"] for one in faces(*asked, "--frames", "--json").json["probes"]] == [f"p{k}" for k in range(5)]
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    faces(*asked)
    (people / "again" / "p0" / "<b>.png").unlink()
    assert "p0/&lt;b&gt;.png" in page.read_text()
    assert "6 probes: 6 candidate." in page.read_text()
    pair = (people / "enrolled" / "p1" / "0.png", people / "again" / "p1" / "1.png")
    assert faces("compare", *pair, *MODEL, "--report", page).code == 0
    assert page.read_text().count("data:image/png;base64,") == 2
    assert "expected a file that ends in .html" in faces(*asked[:-1], tmp_path / "who.txt").err


def test_a_clip_is_followed_from_frames_to_names(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "faces"
    clip = min((data / "video").glob("*.gif"), key=lambda path: path.stat().st_size)
    yunet = data / "models" / "yunet_n_640_640.onnx"
    command = ("frames", clip, "--detector", yunet, "--crops", "--examples", "--out", tmp_path / "run")
    found = faces(*command, "--json").json
    assert found == json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["with_a_face"] <= found["frames"]
    page = tmp_path / "run" / "report.html"
    assert "Pixels of face over the frames" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    folders = sorted(path.name for path in (tmp_path / "run" / "tracks").iterdir())
    assert len(folders) == len(found["tracks"])
    assert "holds this run, finished" in faces(*command).err
    crop = next((tmp_path / "run" / "tracks").rglob("*.png"))
    assert noted_face_px(crop.read_bytes()) is not None
    assert "No folder or archive nowhere.gif" in faces("frames", "nowhere.gif", *command[2:-1], tmp_path / "no").err


def test_people_of_a_test_are_kept_out_of_training(tmp_path: Path) -> None:
    for person in range(8):
        for photo in (1, 2):
            pattern_faces.write(tmp_path / "lfw" / f"p{person}" / f"p{person}_{photo:04d}.png", person, photo)
    pairs = ["2 1", "p0 1 2", "p0 1 p1 1", "p2 1 2", "p2 1 p3 1"]
    (tmp_path / "lfw" / "pairs.txt").write_text("\n".join(pairs) + "\n")
    for name, person in (("known", 2), ("other", 40)):
        pattern_faces.write(tmp_path / "more" / f"{name}.png", person, 7)
    command = (
        "distill", "--teacher", "pattern_faces:reader", "--faces", tmp_path / "lfw", "--faces", tmp_path / "more",
        "--student", "compact-24-s", "--terms", "margin", "--epochs", 1, "--batch-size", 7, "--device", "cpu",
    )  # fmt: skip
    apart = ("--apart", tmp_path / "lfw", "--apart-folds", "2")
    found = faces(*command, *apart, "--out", tmp_path / "run", "--json")
    told = found.json["apart"]
    assert (found.json["faces"], found.json["people"]) == (13, 7)
    assert (told["people"], told["left_out_by_face"], told["score"]) == (2, 1, 0.5)
    assert -1 <= told["highest_score"] < 0.5
    assert "2 people are apart; 1 more by their faces, the closest who stayed has " in found.err
    bad = faces(*command, "--apart-folds", "2", "--out", tmp_path / "bad")
    assert bad.code == 1
    assert "name those as well" in bad.err


def test_a_student_is_taught_kept_and_used(closed: Path, tmp_path: Path) -> None:
    """From a teacher of our own form to a student that evaluates like any model; a killed run would go on."""
    torch.manual_seed(0)
    teacher, how = tmp_path / "teacher.safetensors", form_of("compact-48-s").preparation
    save_face_model(teacher, compact("compact-48-s").eval(), "compact-48-s", how, licenses=Licenses())
    arms = tmp_path / "arms.toml"
    arms.write_text(
        '[[arm]]\nname = "alone"\n[[arm]]\nname = "hints"\nterms = "embedding,hint=0.1"\nhints = "surviving"\n'
    )
    pattern_faces.album(tmp_path / "faces", people=12, photos=2)
    (tmp_path / "people.txt").write_text("\n".join(f"p{k}" for k in range(10)) + "\nq\n")
    pattern_faces.write(tmp_path / "more" / "q.png", 20, 0)
    command = (
        "distill", "--teacher", teacher, "--faces", tmp_path / "faces", "--people", tmp_path / "people.txt",
        "--faces", tmp_path / "more", "--hints", "stage-ends", "--blends", 7,
        "--student", "compact-24-s", "--cohort", arms, "--epochs", 2, "--batch-size", 10, "--samples", 20,
        "--degrade", "fixed:8,16", "--precision", "fp32", "--device", "cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    found = faces(*command, "--json")
    assert [found.json[key] for key in ("faces", "blends", "people")] == [21, 7, 11]
    assert 0 < found.json["seconds"] < 600
    assert "21 faces of 11 people and 7 blends of two, in " in (tmp_path / "run" / "report.html").read_text()
    assert [arm["name"] for arm in found.json["arms"]] == ["alone", "hints"]
    assert len(found.json["arms"][1]["hints"]) == 3
    assert "survive: " in found.err
    survival = found.json["arms"][1]["survival"]
    assert set(found.json["arms"][1]["hints"]) <= set(survival)
    assert all(0 <= value <= 1 for value in survival.values())
    assert "survival" not in found.json["arms"][0]
    about = read_tensors(tmp_path / "run" / "1" / "student.safetensors")[1]["about"]
    assert about["blending"]["turn"] == 12
    assert "Students for few pixels" in (tmp_path / "run" / "report.html").read_text()
    model = tmp_path / "run" / "1" / "student.safetensors"
    used = faces("evaluate", "--model", model, "--root", closed, "--draws", 100, "--out", tmp_path / "e", "--json")
    assert 0 <= used.json["rows"][0]["figures"]["rank-1"]["value"] <= 100
    assert "holds this run, finished" in faces(*command).err
    arms.write_text("[[arm]]\nnames = 'x'\n")
    assert "Unknown key of an [[arm]]" in faces(*command[:-1], tmp_path / "other").err
    wrong = (*command[:-2], "--people", tmp_path / "no.txt", "--out", tmp_path / "third")
    assert faces(*wrong).code == 1


def lr_of(run: Path) -> float:
    recipe = json.loads((run / "recipe.json").read_text())
    return float(recipe["arguments"]["lr"])


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adamw", 0.0003)])
def test_the_rate_of_a_student_is_that_of_its_optimizer_unless_it_is_given(
    tmp_path: Path, optimizer: str, rate: float
) -> None:
    pattern_faces.album(tmp_path / "faces", people=4, photos=2)
    command = (
        "distill", "--teacher", "pattern_faces:reader", "--faces", tmp_path / "faces", "--student", "compact-24-xs",
        "--terms", "embedding", "--epochs", 1, "--batch-size", 4, "--device", "cpu", "--optimizer", optimizer,
    )  # fmt: skip
    assert faces(*command, "--out", tmp_path / "run").code == 0
    assert lr_of(tmp_path / "run") == rate
    assert "holds this run, finished" in faces(*command, "--out", tmp_path / "run", "--resume", "--lr", rate).err
    assert faces(*command, "--out", tmp_path / "given", "--lr", 0.01).code == 0
    assert lr_of(tmp_path / "given") == 0.01


def test_gradient_descent_for_a_student_without_batch_norm_is_told_to_be_unwise(tmp_path: Path) -> None:
    shipped = resources.files("keyhole.faces.models") / "keyhole-face.safetensors"
    pattern_faces.album(tmp_path / "faces", people=4, photos=2)
    command = (
        "distill", "--teacher", shipped, "--faces", tmp_path / "faces", "--student", shipped,
        "--terms", "relations", "--epochs", 1, "--batch-size", 4, "--device", "cpu",
    )  # fmt: skip
    assert "has no batch norm" in faces(*command, "--lr", 0.0, "--out", tmp_path / "a").err
    assert "has no batch norm" not in faces(*command, "--optimizer", "adamw", "--out", tmp_path / "b").err


def test_a_student_of_its_teachers_network_learns_from_each_hint_at_the_same_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, how = tmp_path / "first.safetensors", form_of("compact-24-s").preparation
    save_face_model(first, compact("compact-24-s").eval(), "compact-24-s", how, licenses=Licenses())
    pattern_faces.album(tmp_path / "faces", people=4, photos=2)
    command = (
        "distill", "--teacher", first, "--faces", tmp_path / "faces", "--student", first, "--terms", "embedding,hint",
        "--hints", "uniform", "--count", 2, "--epochs", 1, "--batch-size", 4, "--device", "cpu", "--json",
    )  # fmt: skip
    hints = faces(*command, "--match", "name", "--out", tmp_path / "name").json["arms"][0]["hints"]
    assert len(hints) == 2
    assert all(hint == layer for hint, layer in hints.items())
    in_order = faces(*command, "--out", tmp_path / "order").json["arms"][0]["hints"]
    assert in_order.keys() == hints.keys()
    recipes = [json.loads((tmp_path / run / "recipe.json").read_text())["arguments"] for run in ("name", "order")]
    assert [recipe.get("match") for recipe in recipes] == ["name", None]
    for match, told in (
        ("similarity", "expected order, size or name"),
        ("nam", "Unknown match 'nam'; nearest known: name"),
    ):
        assert told in faces(*command, "--match", match, "--out", tmp_path / "bad").err


def test_a_student_of_faces_learns_from_a_loss_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_of_faces.py").write_text(
        "from torch.nn.functional import cosine_similarity\n"
        "def near(embedding, teacher_embedding):\n"
        "    return (1 - cosine_similarity(embedding, teacher_embedding)).mean()\n"
        "def classes(logits, labels):\n"
        "    return logits.mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pattern_faces.album(tmp_path / "faces", people=4, photos=2)
    command = (
        "distill", "--teacher", "pattern_faces:reader", "--faces", tmp_path / "faces", "--student", "compact-24-xs",
        "--epochs", 2, "--batch-size", 4, "--device", "cpu", "--precision", "fp32", "--json",
    )  # fmt: skip
    own, known = (
        faces(*command, "--terms", terms, "--out", tmp_path / str(k)).json["arms"][0]["history"]
        for k, terms in enumerate(("lab_of_faces:near", "embedding"))
    )
    assert [each["loss"] for each in own] == pytest.approx([each["loss"] for each in known], rel=1e-5)
    bad = faces(*command, "--terms", "lab_of_faces:classes", "--out", tmp_path / "bad")
    assert bad.code == 1
    assert "Term lab_of_faces:classes takes outputs for logits of classes" in bad.err


def test_a_student_keeps_a_share_of_the_weights_it_began_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, how = tmp_path / "first.safetensors", form_of("compact-24-s").preparation
    save_face_model(first, compact("compact-24-s").eval(), "compact-24-s", how, licenses=Licenses())
    pattern_faces.album(tmp_path / "faces", people=4, photos=2)
    arms = tmp_path / "arms.toml"
    arms.write_text('[[arm]]\nname = "a"\nwise_ft = 0.25\n[[arm]]\nname = "b"\n')
    command = (
        "distill", "--teacher", "pattern_faces:reader", "--faces", tmp_path / "faces", "--student", first,
        "--terms", "margin", "--epochs", 1, "--batch-size", 4, "--lr", 0.1, "--device", "cpu",
    )  # fmt: skip
    found = faces(*command, "--cohort", arms, "--out", tmp_path / "run", "--json")
    assert [arm["wise_ft"] for arm in found.json["arms"]] == [0.25, 1.0]
    assert "25 %" in (tmp_path / "run" / "report.html").read_text()
    start, trained, kept = (
        read_tensors(path)[0]
        for path in (
            first,
            tmp_path / "run" / "0" / "trained.safetensors",
            tmp_path / "run" / "0" / "student.safetensors",
        )
    )
    weights = [name for name, tensor in start.items() if tensor.is_floating_point()]
    assert max(float((trained[name] - start[name]).abs().max()) for name in weights) > 0.01
    for name in weights:
        torch.testing.assert_close(kept[name], 0.75 * start[name] + 0.25 * trained[name])
    assert not (tmp_path / "run" / "1" / "trained.safetensors").exists()
    for options, told in (
        (("--student", "compact-24-s", "--wise-ft", 0.5), "compact-24-s begins with random weights"),
        (("--wise-ft", 1.5), "wise_ft is 1.5; expected 0"),
        (("--match", "size"), "--match serves none of the terms margin; add"),
    ):
        bad = faces(*command, *options, "--out", tmp_path / "bad")
        assert bad.code == 1
        assert told in bad.err.splitlines()[-1]
    arms.write_text('[[arm]]\nname = "a"\nwise_ft = "much"\n')
    told = faces(*command, "--cohort", arms, "--out", tmp_path / "bad").err
    assert "wise_ft of arm 'a' is 'much'; expected a number" in told
    arms.write_text('[[arm]]\nname = "a"\nseed = -1\n')
    told = faces(*command, "--cohort", arms, "--out", tmp_path / "bad").err
    assert "seed of arm 'a' is -1; expected a whole number of at least 0" in told
    arms.write_text('[[arm]]\nname = "a"\nhints = "uniform"\n')  # said for this arm, not for those that need some
    told = faces(*command, "--cohort", arms, "--hints", "uniform", "--out", tmp_path / "bad").err
    assert "Hints serve none of the terms margin" in told
    assert not (tmp_path / "bad").exists()
    (tmp_path / "cohorts").mkdir()
    below = (
        tmp_path / "cohorts" / "arms.toml"
    )  # files of a cohort lie as its file sees them, and count by what they hold
    below.write_text('[[arm]]\nname = "a"\nstudent = "../first.safetensors"\n')
    assert faces(*command, "--cohort", below, "--out", tmp_path / "placed").code == 0
    told = json.loads((tmp_path / "placed" / "recipe.json").read_text())["arguments"]["files"]
    assert told[str(tmp_path / "cohorts" / "../first.safetensors")] == hashlib.sha256(first.read_bytes()).hexdigest()
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert "wise_ft" not in recipe["arguments"]  # as it was before there was such an option
    (tmp_path / "placed" / "result.json").unlink()  # as if it had been killed
    (tmp_path / "faces" / "p0" / "0.png").rename(tmp_path / "faces" / "p1" / "moved.png")
    told = faces(*command, "--cohort", below, "--out", tmp_path / "placed", "--resume").err
    assert "was begun with another set of faces" in told.splitlines()[-1]


def test_models_are_listed_with_their_terms() -> None:
    assert "face-reidentification-retail-0095" in faces("models", "--json").json["models"]
    shown = faces("models").out
    assert "training data: not disclosed by Intel" in shown


def test_a_probe_without_a_face_is_counted_out_loud(shared: Path, tmp_path: Path) -> None:
    yunet = shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx"
    for name in ("gallery/a.png", "gallery/b.png", "probes/a.png", "probes/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 90 + 10 * len(name), np.uint8)).save(tmp_path / name)
    found = faces("evaluate", *MODEL, "--detector", yunet, "--root", tmp_path, "--draws", 100, "--out", tmp_path / "o")
    assert found.code == 1
    assert "No face was found in any picture of the gallery" in found.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--probe-px", "8;12"), "--probe-px is '8;12'; expected pixels by commas"),
        (("--probe-px", "0"), "expected whole numbers from 1 to 1000 px"),
        (("--match", "fited"), "Unknown way of matching 'fited'; nearest known: fitted"),
        (("--match", "fitted"), "Matching 'fitted' needs --matcher FILE"),
        (("--degrade", "jpeg=101"), "quality is 101, expected 1 to 100"),
        (("--degrade", "face_px=12"), "give sizes by --probe-px"),
        (("--protocol", "lwf"), "Unknown protocol 'lwf'; nearest known: lfw"),
        (("--folds", "1,2"), "Protocol folder has no --folds; it takes --views, --manifest"),
        (("--model", "no.onnx"), "no.onnx"),
        (("--root", "nowhere"), "nowhere"),
        (("--margin", "0.3"), "an aligned crop that ends at the face"),
        (("--fpir", "2"), "expected a rate above 0 and below 1"),
        (("--detector", "nowhere.onnx"), "Cannot read nowhere.onnx"),
        (("--device", "tpu"), "Device 'tpu' is not available"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(options: tuple[str, ...], told: str, closed: Path, tmp_path: Path) -> None:
    found = faces("evaluate", *MODEL, "--root", closed, "--out", tmp_path / "run", "--draws", 100, *options)
    assert found.code == 1
    assert told in found.err.splitlines()[-1]
    assert "Traceback" not in found.err


@pytest.mark.parametrize("command", ["fit", "embed"])
def test_files_to_write_are_checked_before_the_work(command: str, closed: Path, tmp_path: Path) -> None:
    given = (closed,) if command == "embed" else ("--root", closed)
    found = faces(command, *given, *MODEL, "--out", tmp_path / "m.json")
    assert found.code == 1
    assert "expected a file that ends in .safetensors" in found.err


@pytest.mark.parametrize(
    "command",
    ["evaluate", "factors", "fit", "embed", "calibrate", "identify", "compare", "frames", "distill", "models"],
)
def test_help_of_each_command_has_an_example(command: str) -> None:
    assert f"Example: keyhole faces {command}" in faces(command, "--help").out


def test_reports_with_faces_are_their_owners_alone(closed: Path, tmp_path: Path) -> None:
    for name, options, mode in (("with", ("--examples",), 0o600), ("without", (), 0o600)):
        command = ("evaluate", *MODEL, "--root", closed, "--draws", 100, *options, "--out", tmp_path / name)
        assert faces(*command).code == 0
        assert stat.S_IMODE((tmp_path / name / "report.html").stat().st_mode) == mode


def test_a_probe_without_a_face_is_an_answer(shared: Path, people: Path, tmp_path: Path) -> None:
    yunet = shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx"
    gallery, levels = tmp_path / "g.safetensors", tmp_path / "t.json"
    assert faces("embed", people / "enrolled", *MODEL, "--out", gallery).code == 0
    way = (*MODEL, "--gallery", gallery)
    made = ("--strangers", people / "strangers", "--fpir", 0.1, "--probe-px", "24", "--out", levels)
    assert faces("calibrate", *way, *made).code == 0
    Image.fromarray(np.full((80, 90, 3), 200, np.uint8)).save(tmp_path / "wall.png")
    asked = ("identify", *way, "--probe", tmp_path / "wall.png", "--thresholds", levels, "--detector", yunet)
    (only,) = faces(*asked, "--json").json["probes"]
    assert (only["probe"], only["verdict"], only["hits"], only["face_px"]) == ("wall.png", "no face", [], None)
    assert faces(*asked).out == "wall.png: no face\n"


def test_a_study_of_factors_goes_on_and_keeps_to_its_folder(closed: Path, people: Path, tmp_path: Path) -> None:
    command = ("factors", *MODEL, "--root", closed, "--probe-px", "112,4", "--draws", 100, "--out", tmp_path / "f")
    found = faces(*command, "--json").json
    assert {effect["factor"] for effect in found["effects"]} == {"matching"}
    assert "Every combination" in (tmp_path / "f" / "report.html").read_text()
    assert "holds this run, finished" in faces(*command).err
    (tmp_path / "f" / "result.json").unlink()
    assert faces(*command, "--json").json == found  # from the parts that were kept
    assert "is not empty and holds no run" in faces(*command[:-1], people).err
    wrong = faces(*command[:-1], tmp_path / "g", "--margins", "zz")
    assert "expected numbers from 0 to 1, or aligned" in wrong.err


@pytest.mark.parametrize("command", ["embed", "identify", "compare"])
def test_what_would_be_ignored_is_no_option(command: str) -> None:
    found = faces(command, "--degrade", "jpeg=5")
    assert found.code == 1
    assert "No such option: --degrade" in found.err
