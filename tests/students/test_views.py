"""Faces of two views, the layers that survive, and students that are trained, kept and used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import oracles
import pattern_faces
from keyhole.data.splits import Share
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.training import Checkpointing, Outcome, fit
from keyhole.errors import DataError, SettingError, UnknownNameError
from keyhole.faces.images.degradation import Degradation, degrade, image_seeds
from keyhole.faces.images.distributions import Distribution, parse_distribution
from keyhole.faces.models.compact import compact, form_of
from keyhole.faces.models.face_model import load_face_model, save_face_model
from keyhole.faces.models.preparation import Licenses
from keyhole.hints.choice import Choice, Hints
from keyhole.hints.selection import Rule
from keyhole.models.layers import Layer, tap
from keyhole.models.network import Network
from keyhole.students.distilling import StudentPlan, distill, plan_arm, save_student
from keyhole.students.survival import layer_survival, surviving_hints
from keyhole.students.teachers import FaceTeacher, input_of, load_teacher
from keyhole.students.views import FaceViews, Who, _mixed, drawn, in_form, read_faces

CAMERA = parse_distribution("fixed:8,12,24")
NOISY = parse_distribution("fixed:12;noise=8")
SMALL = form_of("compact-24-s").preparation
CONFIG = TrainConfig(epochs=2, batch_size=8, lr=0.02, precision="fp32", device="cpu", compile="off")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pattern_faces.album(tmp_path_factory.mktemp("faces"), people=10, photos=2)


@pytest.fixture(scope="module")
def faces(root: Path) -> FaceViews:
    return read_faces(root, shown=form_of("compact-112-s").preparation, seen=SMALL, camera=CAMERA)


def test_people_are_folders(faces: FaceViews, root: Path) -> None:
    assert len(faces) == 20
    assert faces.classes == tuple(f"p{k}" for k in range(10))
    assert faces.labels.tolist() == [k // 2 for k in range(20)]
    some = read_faces(root, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(keep=frozenset(["p3", "p1"])))
    assert some.classes == ("p1", "p3")
    with pytest.raises(DataError, match="holds no picture of 1 of the people asked for: nobody"):
        read_faces(root, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(keep=frozenset(["nobody"])))


def test_faces_of_several_folders_are_one_set(root: Path, tmp_path: Path) -> None:
    for name in ("p3", "q1"):
        pattern_faces.write(tmp_path / "more" / f"{name}.png", 30, 0)
    found = read_faces(
        [root, tmp_path / "more"], shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(keep=frozenset(["p1", "p3", "q1"]))
    )
    assert found.classes == ("p1", "p3", "q1")
    assert found.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert found.indices.tolist() == list(range(6))
    assert not torch.equal(found.crops[3], found.crops[4])
    with pytest.raises(DataError, match="no picture of 1 of the people asked for: nobody"):
        read_faces(
            [root, tmp_path / "more"], shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(keep=frozenset(["p1", "nobody"]))
        )


def test_so_many_pictures_of_a_person_at_most(root: Path) -> None:
    found = read_faces(root, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(most=1))
    whole = read_faces(root, shown=SMALL, seen=SMALL, camera=CAMERA)
    assert found.labels.tolist() == list(range(10))
    assert torch.equal(found.crops, whole.crops[::2])


def test_people_of_too_few_pictures_are_left_out(root: Path, tmp_path: Path) -> None:
    pattern_faces.write(tmp_path / "more" / "q.png", 30, 0)
    roots = [root, tmp_path / "more"]
    found = read_faces(roots, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(least=2, most=1))
    assert found.classes == tuple(f"p{k}" for k in range(10))
    with pytest.raises(DataError, match="holds no picture that is to be taken"):
        read_faces(roots, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(least=3))
    few = Who(keep=frozenset(["p1", "q"]), least=2)  # somebody asked for who has too few is no mistake
    assert read_faces(roots, shown=SMALL, seen=SMALL, camera=CAMERA, who=few).classes == ("p1",)


def test_some_faces_drawn_are_a_set_of_their_own(faces: FaceViews) -> None:
    some = drawn(faces, 7, seed=1)
    assert len(some) == 7
    rows = [next(i for i in range(20) if torch.equal(faces.crops[i], crop)) for crop in some.crops]
    assert rows == sorted(rows)
    assert [some.classes[k] for k in some.labels] == [faces.classes[faces.labels[i]] for i in rows]
    assert set(some.labels.tolist()) == set(range(len(some.classes)))
    assert some.indices.tolist() == list(range(7))
    assert torch.equal(drawn(faces, 7, seed=1).crops, some.crops)
    assert not torch.equal(drawn(faces, 7, seed=2).crops, some.crops)
    assert torch.equal(drawn(faces, 20, seed=2).crops, faces.crops)
    for count in (0, 21):
        with pytest.raises(SettingError, match=f"{count} of 20 faces were asked for"):
            drawn(faces, count, seed=1)


def test_pictures_that_lie_together_show_someone_else_each(tmp_path: Path) -> None:
    for person in range(3):
        pattern_faces.write(tmp_path / "aligned" / f"a{person}.png", person, 0)
    found = read_faces(tmp_path, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(keep=frozenset(["a0", "a2"])))
    assert found.classes == ("a0", "a2")
    with pytest.raises(DataError, match="holds no picture of 1 of the people asked for: aligned"):
        read_faces(tmp_path, shown=SMALL, seen=SMALL, camera=CAMERA, who=Who(keep=frozenset(["aligned"])))


def test_teachers_see_sharp_faces_and_students_small_ones(faces: FaceViews) -> None:
    batch = next(faces.training_batches(8, seed=3, epoch=1))
    assert batch.shown is not None
    assert batch.views is not None
    assert batch.images.shape == (8, 3, 24, 24)
    assert batch.shown(torch.arange(8) == 3).shape == (1, 3, 112, 112)
    assert int(batch.views.max()) < faces.views == 40
    mirrored = batch.views % 2
    assert torch.equal(batch.views // 2, batch.indices)
    assert 0 < int(mirrored.sum()) < 8
    sharp = faces.crops[batch.indices]
    sharp = torch.where(mirrored[:, None, None, None] == 1, sharp.flip(2), sharp)
    assert torch.equal(batch.shown(torch.ones(8, dtype=torch.bool)), in_form(sharp, faces.shown))
    small = [
        [degrade(crop[None], how, seed=0) for how in CAMERA.draw(60, 0)[:60]] for crop in sharp
    ]  # every size that there is: one of them must be what was seen
    for seen, tried in zip(batch.images, small, strict=True):
        assert any(torch.equal(in_form(each, SMALL)[0], seen) for each in tried)


def test_an_epoch_goes_on_where_it_stopped_and_others_differ(faces: FaceViews) -> None:
    whole = list(faces.training_batches(6, seed=0, epoch=0))
    rest = list(faces.training_batches(6, seed=0, epoch=0, start=2))
    assert len(whole) == 3
    assert torch.equal(whole[2].images, rest[0].images)
    assert torch.equal(whole[2].indices, rest[0].indices)
    other = next(faces.training_batches(6, seed=0, epoch=1))
    assert not torch.equal(other.images, whole[0].images)
    plain = next(faces.training_batches(6, seed=0, epoch=0, augment=False))
    assert plain.views is not None
    assert int((plain.views % 2).sum()) == 0


def by_index(faces: FaceViews, *, augment: bool, seed: int = 0, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What students see in an epoch, and which are mirrored, in the order of the faces."""
    (batch,) = faces.training_batches(len(faces), seed=seed, epoch=epoch, augment=augment)
    assert batch.views is not None
    order = batch.indices.argsort()
    return batch.images[order], batch.views[order] % 2


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_the_camera_and_mirroring_change_with_epoch_and_seed(faces: FaceViews, other: dict[str, int]) -> None:
    assert torch.equal(by_index(faces, augment=False)[0], by_index(faces, augment=False)[0])
    assert not torch.equal(by_index(faces, augment=False)[0], by_index(faces, augment=False, **other)[0])
    assert not torch.equal(by_index(faces, augment=True)[1], by_index(faces, augment=True, **other)[1])


def test_each_face_has_noise_of_its_own(faces: FaceViews) -> None:
    (batch,) = replace(faces, camera=NOISY).training_batches(20, seed=3, epoch=1)
    assert batch.views is not None
    hows, seeds = NOISY.draw(20, _mixed(3, 1)), image_seeds(_mixed(3, 1), 20)
    for row, view, seen in zip(batch.indices.tolist(), batch.views.tolist(), batch.images, strict=True):
        crop = faces.crops[row].flip(1) if view % 2 else faces.crops[row]
        assert torch.equal(seen, in_form(degrade(crop[None], hows[row], seed=[seeds[row]]), SMALL)[0])


def test_shares_of_processes_make_up_the_whole_batch(faces: FaceViews) -> None:
    noisy = replace(faces, camera=NOISY)
    whole = list(noisy.training_batches(10, seed=3, epoch=1))
    shares = [list(noisy.training_batches(5, seed=3, epoch=1, share=Share(number, 2))) for number in range(2)]
    assert len(whole) == 2
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in ("images", "labels", "indices", "views"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize("camera", [CAMERA, NOISY])
def test_a_test_sees_sharp_faces_or_small_ones(faces: FaceViews, camera: Distribution) -> None:
    sharp = torch.cat([batch.images for batch in faces.batches(7)])
    assert torch.equal(sharp, in_form(faces.crops, faces.shown))
    small = torch.cat([batch.images for batch in replace(faces, small_seed=5, camera=camera).batches(7)])
    expected = degrade(faces.crops, camera.draw(20, 5), seed=image_seeds(5, 20))
    assert torch.equal(small, in_form(expected, faces.shown))


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "p").mkdir()
    Image.new("RGB", (100, 112)).save(tmp_path / "p" / "a.png")
    with pytest.raises(DataError, match=r"is 100 x 112; expected aligned crops of 112 x 112"):
        read_faces(tmp_path, shown=SMALL, seen=SMALL, camera=CAMERA)


def test_layers_of_a_published_network_survive_less_as_faces_shrink(shared: Path, faces: FaceViews) -> None:
    path = shared / "data" / "faces" / "models" / "face-reidentification-retail-0095.fp16.xml"
    teacher = load_teacher(path)
    model = load_face_model(path, threads=1)
    views = replace(faces, shown=teacher.preparation)
    crops = (in_form(views.crops, teacher.preparation) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    with torch.no_grad():
        found = torch.nn.functional.normalize(teacher.network(in_form(views.crops, teacher.preparation)))
    torch.testing.assert_close(found, model.embed(crops), rtol=0, atol=2e-3)
    names = teacher.layers.split(",")[::4] if teacher.layers else []
    assert len(names) == 3
    less, more = (
        layer_survival(teacher.network, replace(views, camera=parse_distribution(text)), names)
        for text in ("fixed:6", "fixed:32")
    )
    assert all(0 <= less[name] < more[name] <= 1 for name in names)


def test_survival_is_how_alike_pooled_features_are(faces: FaceViews, toy_teacher: Network) -> None:
    names = ["layer1.0", "layer3.1"]
    one_size = replace(faces, camera=parse_distribution("fixed:6"))  # the same for all, in whatever order
    found = layer_survival(toy_teacher, one_size, names, samples=500, seed=2)
    pooled = []
    for crops in (faces.crops, degrade(faces.crops, Degradation(6))):
        with torch.no_grad(), tap(toy_teacher.module.eval(), names) as features:
            toy_teacher(in_form(crops, faces.shown))
        pooled.append([features[name].double().mean(dim=(2, 3)).numpy() for name in names])
    expected = [oracles.linear_cka(sharp, small) for sharp, small in zip(*pooled, strict=True)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-4)
    assert max(expected) < 0.99
    some = [layer_survival(toy_teacher, one_size, names, samples=12, seed=seed) for seed in (2, 3)]
    assert abs(some[0]["layer3.1"] - found["layer3.1"]) > 1e-3
    assert abs(some[0]["layer3.1"] - some[1]["layer3.1"]) > 1e-3


class _Looking(torch.nn.Module):
    """Keeps all that it and its copies are shown."""

    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 16, 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images.detach().clone())
        return self.first(images).mean(dim=(2, 3))


@pytest.fixture
def looking(faces: FaceViews) -> FaceTeacher:
    _Looking.seen.clear()
    network = Network("looking", _Looking().eval(), input_of(faces.shown), 8)
    return FaceTeacher(network, faces.shown, Licenses(), None, None)


def seen_sharp(faces: FaceViews) -> list[int]:
    """Which of the faces it was shown as they are, one after the other; a mirrored one counts 20 more."""
    crops = torch.cat([faces.crops, faces.crops.flip(2)])
    prepared = input_of(faces.shown).prepare(in_form(crops, faces.shown))
    known = {image.contiguous().numpy().tobytes(): row for row, image in enumerate(prepared)}
    seen = [image.contiguous().numpy().tobytes() for images in _Looking.seen for image in images]
    return [known[image] for image in seen if image in known]


def test_survival_looks_at_some_faces_sharp_and_as_the_camera_gives_them(
    faces: FaceViews, looking: FaceTeacher
) -> None:
    noisy = replace(faces, camera=parse_distribution("fixed:8,12,24;noise=8"))
    chosen = []
    for seed in (0, 1):
        _Looking.seen.clear()
        layer_survival(looking.network, noisy, ["first"], samples=12, seed=seed)
        rows = seen_sharp(faces)
        assert len(rows) == len(set(rows)) == 12
        small = degrade(faces.crops[rows], noisy.camera.draw(12, seed), seed=image_seeds(seed, 12))
        expected = looking.network.input.prepare(in_form(small, faces.shown))
        assert torch.equal(torch.cat(_Looking.seen)[-12:], expected)
        chosen.append(sorted(rows))
    assert chosen[0] != chosen[1]


def test_a_teacher_is_asked_once_about_each_face_and_each_mirrored_one(faces: FaceViews, looking: FaceTeacher) -> None:
    arm = plan_arm(StudentPlan(student="compact-24-s"), looking, faces, device="cpu")
    distill([arm], looking, faces, replace(CONFIG, epochs=4))
    epochs = [list(faces.training_batches(8, seed=CONFIG.seed, epoch=epoch)) for epoch in range(4)]
    views = torch.cat([batch.views for batches in epochs for batch in batches])
    assert len(views) == 64
    assert sorted(seen_sharp(faces)) == (views // 2 + 20 * (views % 2)).unique().tolist()


def test_the_product_of_central_and_surviving_decides() -> None:
    layers = tuple(Layer(name, "block", 4, (8, 8), 9) for name in "abcdef")
    matrix = np.ones((6, 6))
    matrix[1, :] = matrix[:, 1] = 0.4
    matrix[1, 1] = 1.0
    assert matrix[:2].mean(axis=1) == pytest.approx([0.9, 0.5])
    found = Hints(
        "t",
        "x",
        (),
        "r2_cca",
        Rule(),
        layers,
        {"r2_cca": Choice(("a",), (tuple("abcdef"),), {})},
        {"r2_cca": matrix},
        {},
    )
    survival = dict.fromkeys("cdef", 0.1)
    assert surviving_hints(found, survival | {"a": 0.4, "b": 0.75}) == (
        "b",
    )  # 0.36 and 0.375; their sums are 1.3, 1.25
    assert surviving_hints(found, survival | {"a": 0.4, "b": 0.7}) == ("a",)


def test_centers_that_fall_apart_are_passed_over() -> None:
    layers = tuple(Layer(name, "block", 4, (8, 8), 9) for name in "abcd")
    matrix = np.array([[1, 0.9, 0.5, 0], [0.9, 1, 0.8, 0], [0.5, 0.8, 1, 0], [0, 0, 0, 1.0]])
    choice = Choice(("b", "d"), (("a", "b", "c"), ("d",)), {})
    found = Hints("t", "x", (), "r2_cca", Rule(), layers, {"r2_cca": choice}, {"r2_cca": matrix}, {})
    assert surviving_hints(found, dict.fromkeys("abcd", 0.7)) == ("b", "d")  # the most central one
    assert surviving_hints(found, {"a": 0.5, "b": 0.2, "c": 0.9, "d": 0.1}) == ("c", "d")
    mixed = Choice(("a", "b"), (("a", "d"), ("b", "c")), {})  # clusters that lie in one another
    crossed = replace(found, choices={"r2_cca": mixed})
    assert surviving_hints(crossed, {"a": 0.1, "b": 0.1, "c": 0.9, "d": 0.9}) == ("c", "d")
    none = replace(found, rule=Rule("uniform"), choices={"r2_cca": Choice(("b",), (), {})})
    with pytest.raises(SettingError, match="uniform, which makes no clusters"):
        surviving_hints(none, {})


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    network = compact("compact-48-s").eval()
    save_face_model(path, network, "compact-48-s", form_of("compact-48-s").preparation, licenses=Licenses())
    return path


def test_students_learn_and_are_used_like_any_model(teacher_file: Path, root: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    teacher = load_teacher(teacher_file)
    faces = read_faces(root, shown=teacher.preparation, seen=SMALL, camera=CAMERA)
    told: list[str] = []
    plans = (
        StudentPlan("alone", "compact-24-s", "embedding,relations"),
        StudentPlan("centers", "compact-24-s", "embedding,hint=0.1,askd=0.1", hints="surviving", samples=20),
        StudentPlan("people", "compact-24-s", "embedding,margin=0.1"),
    )
    arms = [plan_arm(plan, teacher, faces, device="cpu", note=told.append) for plan in plans]
    assert len(arms[1].hints) == 3
    assert [text.split(":")[0] for text in told] == ["survive", "centers"]
    records: list[dict[str, float]] = []
    keep = Checkpointing(tmp_path / "state.safetensors")
    long = replace(CONFIG, epochs=10, lr=0.1)
    outcomes = distill(arms, teacher, faces, long, checkpointing=keep, log=records.append).outcomes
    for outcome in outcomes:
        losses = [record["embedding"] for record in outcome.history]
        assert sum(losses[-3:]) / 3 < losses[0]  # of 20 faces, which jumps from epoch to epoch
    save_student(tmp_path / "student.safetensors", outcomes[0], teacher=teacher, about={"epochs": 10})
    model = load_face_model(tmp_path / "student.safetensors", threads=1, device="cpu")
    crops = (in_form(faces.crops, SMALL) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(outcomes[0].last(in_form(faces.crops, SMALL)))
    torch.testing.assert_close(model.embed(crops), expected, rtol=0, atol=1e-3)
    assert json.dumps(model.licenses.data)


def test_a_student_tells_the_terms_of_what_it_learned_from(
    teacher_file: Path, faces: FaceViews, tmp_path: Path
) -> None:
    first, path = tmp_path / "first.safetensors", tmp_path / "student.safetensors"
    save_face_model(
        first, compact("compact-24-s").eval(), "compact-24-s", SMALL, licenses=Licenses(weights="MIT", data="mine")
    )
    teacher = replace(load_teacher(teacher_file), licenses=Licenses("GPL", "research only", "faces of nobody"))
    of_first = ("; of the weights it began with: MIT", "; of the weights it began with: mine")
    for student, begun in (("compact-24-s", ("", "")), (str(first), of_first)):
        arm = plan_arm(StudentPlan(student=student), teacher, faces, device="cpu")
        network = arm.build(256)
        save_student(path, Outcome(arm, network, network, 1, ()), teacher=teacher, about={})
        told = load_face_model(path, threads=1, device="cpu").licenses
        assert told == Licenses(
            code="Apache-2.0",
            weights=f"trained here; of the teacher: research only{begun[0]}",
            data=f"see the recipe; of the teacher: faces of nobody{begun[1]}",
        )


def test_a_student_may_begin_with_an_earlier_one(teacher_file: Path, root: Path, tmp_path: Path) -> None:
    teacher = load_teacher(teacher_file)
    faces = read_faces(root, shown=teacher.preparation, seen=teacher.preparation, camera=CAMERA)
    arm = plan_arm(StudentPlan(student=str(teacher_file), terms="embedding"), teacher, faces, device="cpu")
    still = replace(CONFIG, epochs=1, lr=0.0, weight_decay=0.0)
    (outcome,) = distill([arm], teacher, faces, still).outcomes
    images = in_form(faces.crops, teacher.preparation)
    weights = dict(outcome.last.module.named_parameters())
    began = dict(teacher.network.module.named_parameters())
    assert weights
    assert all(torch.equal(weights[name], began[name]) for name in weights)
    save_student(tmp_path / "next.safetensors", outcome, teacher=teacher, about={})
    assert load_face_model(tmp_path / "next.safetensors").embedding_size == 256
    (learned,) = distill([arm], teacher, faces, replace(CONFIG, epochs=2, lr=0.05)).outcomes
    with torch.no_grad():
        assert not torch.equal(learned.last(images), outcome.last(images))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_may_begin_as_its_teacher(shared: Path, root: Path, tmp_path: Path, precision: str) -> None:
    path = shared / "data" / "faces" / "models" / "face-reidentification-retail-0095.fp16.xml"
    teacher = load_teacher(path)
    faces = read_faces(root, shown=teacher.preparation, seen=teacher.preparation, camera=CAMERA)
    arm = plan_arm(StudentPlan(student=str(path), terms="embedding"), teacher, faces, device="cpu")
    config = replace(CONFIG, epochs=3, lr=5e-4, optimizer="adamw", precision=precision, compile="auto")
    (outcome,) = distill([arm], teacher, faces, config).outcomes
    losses = [record["embedding"] for record in outcome.history]
    assert losses[-1] < losses[0]
    save_student(tmp_path / "next.safetensors", outcome, teacher=teacher, about={})
    again = plan_arm(StudentPlan(student=str(tmp_path / "next.safetensors"), terms="embedding"), teacher, faces)
    (more,) = distill([again], teacher, faces, replace(config, epochs=1)).outcomes
    assert more.history[0]["embedding"] < losses[0]


def test_a_run_with_kept_answers_goes_on_and_ends_as_one_without(
    teacher_file: Path, root: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    teacher = load_teacher(teacher_file)
    faces = read_faces(root, shown=teacher.preparation, seen=SMALL, camera=CAMERA)
    plan = StudentPlan(student="compact-24-s", terms="embedding,seed,hint=0.1", hints="stage-ends")
    arm = plan_arm(plan, teacher, faces, device="cpu")
    whole = distill([arm], teacher, faces, replace(CONFIG, epochs=3)).outcomes[0]
    keep = Checkpointing(tmp_path / "state.safetensors", resume=True)

    def killed(items: Iterable[Any], *, label: str, total: int, done: int = 0) -> Iterator[Any]:
        for step, item in enumerate(items):
            if label.startswith("epoch 2") and step == 1:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        distill([arm], teacher, faces, replace(CONFIG, epochs=3), checkpointing=keep, progress=killed)
    gone_on = distill([arm], teacher, faces, replace(CONFIG, epochs=3), checkpointing=keep).outcomes[0]
    live = fit(
        Cohort([arm], replace(CONFIG, epochs=3), classes=256, teacher=teacher.network, train=faces), faces
    ).outcomes[0]
    for name, tensor in whole.last.module.state_dict().items():
        for other in (gone_on, live):
            torch.testing.assert_close(other.last.module.state_dict()[name], tensor, rtol=1e-3, atol=1e-3)


def test_an_onnx_file_teaches_as_its_ir_does(shared: Path, faces: FaceViews) -> None:
    folder = shared / "data" / "faces" / "models"
    by_onnx, by_ir = (load_teacher(next(folder.glob(f"face-reid*{end}"))) for end in (".onnx", ".xml"))
    images = in_form(faces.crops[:3], by_ir.preparation)
    assert by_onnx.layers is not None
    assert by_ir.layers is not None
    ours, theirs = by_onnx.layers.split(","), by_ir.layers.split(",")
    assert len(ours) == len(theirs) == 12
    with torch.no_grad(), tap(by_onnx.network.module, ours) as a, tap(by_ir.network.module, theirs) as b:
        rows, expected = by_onnx.network(images), by_ir.network(images)
    torch.testing.assert_close(rows, expected, rtol=0, atol=5e-3 * float(expected.abs().max()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[one], b[other], rtol=0, atol=5e-3 * float(b[other].abs().max()))
    views = replace(faces, shown=by_onnx.preparation)
    arm = plan_arm(
        StudentPlan(student="compact-24-s", terms="embedding,hint=0.1", hints="stage-ends"),
        by_onnx,
        views,
        device="cpu",
    )
    (outcome,) = distill([arm], by_onnx, views, replace(CONFIG, epochs=1, batch_size=10)).outcomes
    assert np.isfinite(outcome.history[0]["hint"])


def test_hints_of_a_file_are_named_as_the_teacher_itself_names_them(
    teacher_file: Path, faces: FaceViews, tmp_path: Path
) -> None:
    teacher = load_teacher(teacher_file)
    found = []
    for names in (["stage1.1", "stage3.0"], ["network.stage1.1", "network.stage3.0"]):
        (tmp_path / "hints.json").write_text(json.dumps({"hints": names}))
        plan = StudentPlan(student="compact-24-s", terms="embedding,hint", hints=str(tmp_path / "hints.json"))
        found.append([pair.teacher for pair in plan_arm(plan, teacher, faces, device="cpu").hints])
    assert found == [["network.stage1.1", "network.stage3.0"]] * 2
    earlier = json.dumps([["network.stage1.1", "stage2"], ["network.stage3.0", "stage3"]])  # as runs once kept it
    gone_on = plan_arm(plan, teacher, faces, device="cpu", keep=lambda _choose: earlier)
    assert [pair.student for pair in gone_on.hints] == ["stage2", "stage3"]


def test_what_is_wrong_is_told(teacher_file: Path, faces: FaceViews, tmp_path: Path) -> None:
    teacher = load_teacher(teacher_file)
    with pytest.raises(UnknownNameError, match="Unknown student 'compact-24'"):
        plan_arm(StudentPlan(student="compact-24"), teacher, faces)
    with pytest.raises(SettingError, match="A term needs hints"):
        plan_arm(StudentPlan(student="compact-24-s", terms="embedding,hint"), teacher, faces)
    with pytest.raises(SettingError, match="Hints serve none of the terms embedding,relations"):
        plan_arm(StudentPlan(student="compact-24-s", terms="embedding,relations", hints="auto"), teacher, faces)
    for term in ("ce", "kd", "crd"):
        with pytest.raises(SettingError, match=f"Term {term} takes outputs for logits of classes"):
            plan_arm(StudentPlan(student="compact-24-s", terms=term), teacher, faces)
    (tmp_path / "hints.json").write_text('{"hint": []}')
    plan = StudentPlan(student="compact-24-s", terms="embedding,hint", hints=str(tmp_path / "hints.json"))
    with pytest.raises(DataError, match=r"hints\.json names no hints"):
        plan_arm(plan, teacher, faces)
