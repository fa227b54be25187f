"""``keyhole faces distill``: a student for few pixels, taught by a model that sees the sharp face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import normalize

import typer

from keyhole.cli import face_options as f
from keyhole.cli import options as o
from keyhole.errors import DataError, SettingError

if TYPE_CHECKING:
    from keyhole.distillation.arm import Arm
    from keyhole.distillation.config import TrainConfig
    from keyhole.distillation.training import Outcome
    from keyhole.faces.images.distributions import Distribution
    from keyhole.runs import RunFolder
    from keyhole.students.apart import Apart
    from keyhole.students.distilling import FaceArm, StudentPlan
    from keyhole.students.teachers import FaceTeacher
    from keyhole.students.views import FaceViews

_CAMERA = (  # bicubic more often than others, as most software has it
    "log-uniform:6-32;methods=pil-bicubic+pil-bicubic+pil-bicubic+pil-bilinear+pil-lanczos+pil-box+cv2-area+cv2-linear,"
    "blur=0.2-1@0.3,noise=1-4@0.2,jpeg=30-95@0.3,share=0.85"
)


_RATES = {"sgd": 0.5, "adamw": 0.0003}


@dataclass(frozen=True)
class StudentOptions:
    """A student, its loss and its hints: what a cohort gives an ``[[arm]]`` of its own."""

    student: Annotated[
        str,
        typer.Option(
            help="compact-24-xs, -24-s, -48-s, -112-s, -48-m or -112-m, or a file to begin with (.xml, .safetensors)."
        ),
    ] = "compact-112-s"
    terms: Annotated[
        str,
        typer.Option(
            help="embedding, relations, seed, margin (needs labels); of hints hint, askd, at, vid, sp, semckd; or "
            "package.module:function, a loss of yours."
        ),
    ] = "embedding,seed"
    hints: Annotated[
        str | None,
        typer.Option(help="auto (cluster centers), surviving (centers that survive), a selector, a file, or layers."),
    ] = None
    count: Annotated[int, typer.Option(min=1, help="Hints.")] = 3
    match: Annotated[
        str,
        typer.Option(help="How hints go to student layers: order, size, or name (a student of its teacher's network)."),
    ] = "order"
    metric: Annotated[str, typer.Option(help="By which layers are compared.")] = "r2_cca"
    balance: Annotated[str, typer.Option(help="weights, or gradients.")] = "weights"
    samples: Annotated[int, typer.Option(min=2, help="Faces that are looked at to choose hints.")] = 2000
    wise_ft: Annotated[
        float,
        typer.Option(help="Share of the trained weights in what is written; the rest are those of the student's file."),
    ] = 1.0


@dataclass(frozen=True)
class FacesOptions:
    """The faces that teach, and what the students see of them."""

    faces: Annotated[
        list[Path],
        typer.Option(
            metavar="<path>",
            help="Folder or zip PERSON/*.jpg of aligned 112 x 112 crops, or a folder of one each; again for more.",
        ),
    ]
    degrade: Annotated[str, typer.Option(help="What students see: a distribution of sizes and a camera.")] = _CAMERA
    people: Annotated[Path | None, typer.Option(help="File with the people to train on, one name a line.")] = None
    apart: Annotated[
        Path | None,
        typer.Option(help="Faces of a test: nobody of them is trained on, known by name or by the teacher."),
    ] = None
    apart_folds: Annotated[
        str | None, typer.Option(help="Only the people in these folds of its pairs.txt, such as 7,8,9,10.")
    ] = None
    apart_score: Annotated[
        float, typer.Option(help="From this cosine of the teacher's embeddings on, two faces are one person's.")
    ] = 0.5
    per_person: Annotated[int | None, typer.Option(min=1, help="Pictures of a person at most.")] = None
    least_per_person: Annotated[int, typer.Option(min=1, help="People of fewer pictures are left out.")] = 1
    draw: Annotated[int | None, typer.Option(min=1, help="So many of these faces, drawn at random.")] = None
    blends: Annotated[
        int, typer.Option(min=0, help="So many faces more, each made of two, turned, in another light and shape.")
    ] = 0

    def set_apart(self) -> Apart | None:
        """Return the faces of a test, where there are some."""
        found = apart_of(self.apart, self.apart_folds)
        return None if found is None else replace(found, score=self.apart_score)

    def blending(self) -> dict[str, Any]:
        """Return how blends are made, for a recipe; nothing where there are none."""
        from keyhole.students.blends import Blending

        return {"blending": asdict(Blending())} if self.blends else {}


@dataclass(frozen=True)
class FaceTrainOptions(o.TrainOptions):
    """How to train on faces."""

    epochs: Annotated[int, typer.Option(min=1, help="Passes over the faces.")] = 12
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default 0.5 with sgd, 0.0003 with adamw.")] = None  # type: ignore[assignment]
    schedule: Annotated[str, typer.Option(help="step (x0.1 at the milestones) or cosine.")] = "cosine"
    warmup_epochs: Annotated[float, typer.Option(help="Epochs over which the rate rises first.")] = 0.5
    augment: Annotated[bool, typer.Option(help="Mirror half of the faces.")] = True

    def settled(self) -> FaceTrainOptions:
        """Return them with the learning rate of the optimizer where none was given.

        Cosines of embeddings have gradients far smaller than a cross entropy over classes; what batch norm follows
        takes ten times its usual rate.
        """
        return self if self.lr is not None else replace(self, lr=_RATES.get(self.optimizer, 0.0))


@o.command
def distill(
    teacher: Annotated[
        str, typer.Option(help="A face model whose layers can be tapped: OpenVINO IR, ONNX or PyTorch.")
    ],
    given: FacesOptions,
    out: o.Out,
    student: StudentOptions,
    training: FaceTrainOptions,
    cohort: Annotated[Path | None, typer.Option(help="TOML file with one [[arm]] a student.")] = None,
    resume: o.Resume = False,
    json: o.Json = False,
) -> None:
    """Teach a small network to see faces of few pixels.

    No labels are needed but for the term margin.

    Example: keyhole faces distill --teacher M.xml --faces faces.zip --student compact-48-s --epochs 12 --out RUN

    The teacher sees each face sharp, the student as the camera delivers it. Writes student.safetensors, which --model
    of the other commands takes, result.json, log.jsonl and report.html to RUN; of a cohort one folder a student. With
    --wise-ft below 1 the trained weights as they are lie in trained.safetensors.
    """
    from keyhole.plans import settled_before
    from keyhole.runs import open_run
    from keyhole.students.distilling import StudentPlan

    training = training.settled()
    config = training.config()
    if cohort is None:
        o.check_hint_options(student, ("hints", "match"))
    plans = _plans(cohort, StudentPlan(**vars(student), seed=config.seed))
    recipe = o.recipe(
        {"out": out, "teacher": teacher, "cohort": cohort, **vars(given), "faces": list(map(str, given.faces)),
         **settled_before(vars(student), StudentPlan), **vars(training), **given.blending()}
    )  # fmt: skip
    recipe["files"] |= o.fingerprints_of(plans)
    config = replace(config, precision=recipe["precision"])
    with open_run(out, "faces distill", recipe, resume=resume) as run:
        value = _teach(run, teacher, given, plans, config)
    lines = [f"{arm['name']}: {arm['parameters']:,} parameters, {arm['file']}" for arm in value["arms"]]
    o.emit(value, "\n".join([*lines, f"Report: {out / 'report.html'}"]), as_json=json)


def _teach(
    run: RunFolder, teacher: str, given: FacesOptions, plans: Sequence[StudentPlan], config: TrainConfig
) -> dict[str, Any]:
    """Train the students of a run and write all that it leaves; returns what result.json tells."""
    from keyhole.distillation.training import Checkpointing
    from keyhole.faces.images.distributions import parse_distribution
    from keyhole.models.network import fingerprint
    from keyhole.students.blends import with_blends
    from keyhole.students.distilling import distill as learn
    from keyhole.students.teachers import load_teacher

    camera, opened = parse_distribution(given.degrade), load_teacher(teacher)
    run.check("teacher-sha256", f"{opened.sha256} {fingerprint(opened.network)}", "teacher")
    read, apart = _read(given, plans, opened, camera, device=config.device, seed=config.seed)
    run.check("faces-sha256", read.fingerprint(), "set of faces")
    arms = _planned(plans, opened, read, config, run)
    shown = {"faces": len(read), "blends": given.blends, "people": len(read.classes)}
    if given.blends:  # hints were chosen without them
        read = with_blends(read, given.blends, seed=config.seed)

    def log(record: dict[str, Any]) -> None:
        run.append(record)
        o.note(f"{record['arm']}: epoch {record['epoch']}/{config.epochs}, loss {record['loss']:.4f}")

    keep = Checkpointing(run.checkpoint, resume=run.resumed, private=True)
    trained = learn(arms, opened, read, config, checkpointing=keep, progress=o.progress_bar(), log=log)
    about = {
        "teacher": opened.sha256, "degrade": given.degrade, **shown, **given.blending(),
        **({"apart": apart} if apart else {}),
        **config.deciding,
    }  # fmt: skip
    mixed = {arm.name: plan.wise_ft for arm, plan in zip(arms, plans, strict=True)}
    outcomes = trained.outcomes
    kept = [
        _keep(outcome, run.path if len(outcomes) == 1 else run.path / str(number), opened, about, mixed)
        for number, outcome in enumerate(outcomes)
    ]
    value = {"teacher": teacher, **shown, "apart": apart, "seconds": round(trained.seconds, 1), "arms": kept}
    _finish(run, value)
    return value


def _planned(
    plans: Sequence[StudentPlan], teacher: FaceTeacher, faces: FaceViews, config: TrainConfig, run: RunFolder
) -> list[FaceArm]:
    """Return the arms of a cohort; hints that the run began with are kept."""
    from keyhole.students.distilling import has_batch_norm, plan_arm

    arms = [
        plan_arm(
            plan, teacher, faces, device=config.device, precision=config.precision,
            keep=partial(run.settle, f"hints-{number}"), progress=o.progress_bar(), note=o.note,
        )
        for number, plan in enumerate(plans)
    ]  # fmt: skip
    for name in sorted({arm.student for arm in arms}) if config.optimizer == "sgd" else ():
        if not has_batch_norm(name):
            o.note(f"Warning: {name} has no batch norm, so sgd may not train it. Give --optimizer adamw.")
    return arms


def _finish(run: RunFolder, value: dict[str, Any]) -> None:
    """Write the report and the result of a run that came to its end."""
    from keyhole.files import write_json, write_text
    from keyhole.reports.students_page import students_page

    write_text(run.path / "report.html", students_page(value))
    write_json(run.path / "result.json", value)
    run.checkpoint.unlink(missing_ok=True)


def _read(
    given: FacesOptions,
    plans: Sequence[StudentPlan],
    teacher: FaceTeacher,
    camera: Distribution,
    *,
    device: str,
    seed: int,
) -> tuple[FaceViews, dict[str, Any] | None]:
    """Return the faces as the teacher and the students of a cohort see them, and who was left out for a test."""
    from keyhole.runtime import choose_device
    from keyhole.students.apart import leave_out, people_apart
    from keyhole.students.distilling import student_network
    from keyhole.students.views import Who, drawn, read_faces

    seen = [student_network(plan.student)[1] for plan in plans]
    if len({(how.size_px, how.template, how.margin) for how in seen}) > 1:
        raise SettingError("Students of one cohort see one form of crops; the sizes or templates of these differ.")
    apart = given.set_apart()
    people = people_apart(apart) if apart else None
    read = read_faces(
        given.faces,
        shown=teacher.preparation,
        seen=seen[0],
        camera=camera,
        who=Who(
            keep=read_people(given.people),
            leave=people.apart if people else frozenset(),
            least=given.least_per_person,
            most=given.per_person,
        ),
        progress=o.progress_bar(),
    )
    set_apart = None
    if apart and people:
        read, found = leave_out(read, apart, people, teacher, device=choose_device(device), progress=o.progress_bar())
        set_apart = {
            "people": len(people.apart), "left_out_by_face": len(found.people), "score": apart.score,
            "highest_score": found.highest, "near": found.near,
        }  # fmt: skip
        closest = "" if found.highest is None else f", the closest who stayed has {found.highest:.2f}"
        closest += f", {found.near} lie less than 0.1 below {apart.score:g}" if found.near else ""
        o.note(f"{len(people.apart)} people are apart; {len(found.people)} more by their faces{closest}")
    if given.draw is not None:
        read = drawn(read, given.draw, seed=seed)
    o.note(f"{len(read)} faces of {len(read.classes)} people")
    return read, set_apart


def _keep(
    outcome: Outcome, folder: Path, teacher: FaceTeacher, about: dict[str, Any], mixed: Mapping[str, float]
) -> dict[str, Any]:
    """Write a student, and return what result.json tells of it; one that was mixed keeps what was trained beside it."""
    from keyhole.students.distilling import FaceArm, save_student

    arm, path = outcome.arm, folder / "student.safetensors"
    hints = {pair.teacher: pair.student for pair in arm.hints}
    survival = dict(arm.survival) if isinstance(arm, FaceArm) else {}
    description = {"arm": Path(arm.name).name, "terms": _terms(arm), "hints": hints, **about}  # not where a file lies
    wise_ft = mixed[arm.name]
    save_student(path, outcome, teacher=teacher, about=description, wise_ft=wise_ft)
    if wise_ft < 1:
        save_student(folder / "trained.safetensors", outcome, teacher=teacher, about=description)
    return {
        "name": arm.name, "student": arm.student, "parameters": outcome.last.parameters, "hints": hints,
        "file": str(path), "wise_ft": wise_ft, **({"survival": survival} if survival else {}),
        "history": list(outcome.history),
    }  # fmt: skip


def _terms(arm: Arm) -> str:
    return ",".join(f"{term.name}={term.weight:g}" for term in arm.terms)


def apart_of(root: Path | None, folds: str | None) -> Apart | None:
    """Return the faces of a test by the options --apart and --apart-folds."""
    from keyhole.students.apart import Apart

    if root is None:
        if folds is not None:
            raise SettingError("--apart-folds are of the faces of --apart; name those as well.")
        return None
    return Apart(root, f.integers("--apart-folds", folds))


def read_people(path: Path | None) -> frozenset[str] | None:
    """Return the names of a file, one a line; None where no file is given."""
    if path is None:
        return None
    from keyhole.files import read_text

    try:
        lines = normalize("NFC", read_text(path, "one name a line")).splitlines()  # as names of albums are
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text ({error}). Expected one name a line.") from error
    return frozenset(line.strip() for line in lines if line.strip())


def _plans(cohort: Path | None, base: StudentPlan) -> tuple[StudentPlan, ...]:
    """Return the plans of a cohort; hints that stand for all of its arms are for those whose terms need some."""
    from keyhole.distillation.notation import parse_terms
    from keyhole.plans import read_cohort

    if cohort is None:
        return (base,)
    plans = read_cohort(cohort, replace(base, hints=None))
    needs = [any(term.needs_hints for term in parse_terms(plan.terms)) for plan in plans]
    return tuple(
        replace(plan, hints=base.hints) if need and plan.hints is None else plan
        for plan, need in zip(plans, needs, strict=True)
    )
