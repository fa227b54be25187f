"""A student for few pixels: its plan, its hints, its training, and the file that it becomes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.kinds import TERMS, HintPair
from keyhole.distillation.matching import match_hints
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.teaching import Keep
from keyhole.distillation.terms import Term
from keyhole.distillation.training import Checkpointing, Outcome, Trained, fit
from keyhole.errors import DataError, SettingError, unknown_name
from keyhole.faces.models.compact import COMPACT, EMBEDDING, compact, form_of
from keyhole.faces.models.description import read_description
from keyhole.faces.models.face_model import SHIPPED, architecture_of, load_face_model, save_face_model
from keyhole.faces.models.openvino_ir import IrModule, read_ir
from keyhole.faces.models.preparation import Licenses, Preparation
from keyhole.faces.models.registry import KNOWN_MODELS
from keyhole.faces.models.runtimes import TorchNetwork
from keyhole.files import read_json
from keyhole.hints.choice import ChoiceConfig, choose_hints
from keyhole.hints.moments import ObserveConfig
from keyhole.hints.selection import SELECTORS, Rule
from keyhole.models.layers import Layer, layers
from keyhole.models.network import Network
from keyhole.plans import key
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device
from keyhole.students.survival import layer_survival, surviving_hints
from keyhole.students.teachers import FaceTeacher, Upright, file_of, input_of
from keyhole.students.views import FaceViews

SURVIVING = "surviving"
_FILES = (".xml", ".toml", ".safetensors", ".onnx")
_SHARE = 1 / 3  # of the machine's memory, for what the teacher said of each face, sharp and mirrored
Note = Callable[[str], None]


@dataclass(frozen=True)
class StudentPlan:
    """What is asked of one student, in names.

    Attributes:
        name: How it is called in tables.
        student: A network of :data:`keyhole.faces.models.compact.COMPACT`, or a file whose weights it begins with: an
            OpenVINO IR, or a ``.safetensors`` file such as an earlier student.
        terms: Of its loss, such as ``embedding,hint=0.5``.
        hints: ``auto`` (cluster centers), ``surviving`` (centers that survive), another selector, a ``hints.json``, or
            layers by commas; None where no term needs any.
        count: Of hints.
        match: How hints go to student layers: ``order``, ``size``, or ``name`` for a student that is its teacher's own
            network (see :func:`keyhole.distillation.matching.match_hints`).
        metric: By which layers are compared.
        balance: ``weights`` or ``gradients``.
        samples: Faces that are looked at to choose hints.
        seed: Of samples and random choices.
        wise_ft: Of the trained weights in the student that is written, 0 to 1; the rest are those it began with (see
            :func:`interpolated`). Below 1 for a student that begins with a file alone.
    """

    name: str = key("", (str,), "a text")
    student: str = key("compact-112-s", (str,), "a text")
    terms: str = key("embedding", (str,), "a text such as 'embedding,relations'")
    hints: str | None = key(None, (str,), "a text")
    count: int = key(3, (int,), "a whole number", least=1)
    match: str = key("order", (str,), "a text", later=True)
    metric: str = key("r2_cca", (str,), "a text")
    balance: str = key("weights", (str,), "a text")
    samples: int = key(2000, (int,), "a whole number", least=2)
    seed: int = key(0, (int,), "a whole number", least=0)
    wise_ft: float = key(1.0, (int, float), "a number", later=True)


@dataclass(frozen=True)
class FaceArm(Arm):
    """A member of a cohort that embeds faces; its student is one of :class:`StudentPlan`'s names.

    Attributes:
        survival: How alike each layer of the teacher finds sharp and small faces, by name (see
            :func:`keyhole.students.survival.layer_survival`), where hints were chosen by that.
    """

    survival: tuple[tuple[str, float], ...] = ()

    def build(self, classes: int) -> Network:
        """Return the student as it is before any step, with so many numbers in an embedding."""
        return student_network(self.student, classes)[0]


def student_network(name: str, size: int = EMBEDDING) -> tuple[Network, Preparation]:
    """Return a student before any step, and what it takes.

    Args:
        name: Of :data:`keyhole.faces.models.compact.COMPACT`; or a file whose weights it begins with: an OpenVINO IR,
            perhaps described in a ``.toml`` file, or a ``.safetensors`` file, such as an earlier student.
        size: Numbers in an embedding; a file has its own.

    Raises:
        UnknownNameError: There is no such network.
        WeightsError: The file cannot be read.
        SettingError: The file holds no network of PyTorch.
    """
    if name.endswith(_FILES) or name in (SHIPPED, *KNOWN_MODELS):
        model, path = load_face_model(name, device="cpu"), file_of(name)
        how = model.preparation
        if path.suffix == ".xml":
            inner: torch.nn.Module = read_ir(path)
        elif isinstance(model.network, TorchNetwork) and (
            isinstance(model.network.module, IrModule) or _architecture(name) is not None
        ):
            inner = copy.deepcopy(model.network.module).requires_grad_(True)
        else:
            raise SettingError(f"{name} cannot be trained; name its OpenVINO IR (.xml) or its PyTorch form.")
        module: torch.nn.Module = Upright(inner, reverse=how.color == "bgr")
    elif name in COMPACT:
        how, module = form_of(name).preparation, compact(name, size)
    else:
        raise unknown_name("student", name, COMPACT, see="A file (.xml, .safetensors, .toml) works as well.")
    with torch.no_grad():
        made = module.eval()(torch.zeros(1, 3, how.size_px, how.size_px)).shape[1]
    return Network(name, module, input_of(how), made), how


def _architecture(name: str) -> str | None:
    """Return which network of PyTorch a file or known model holds; None where it has no name here."""
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name].network
    if name.endswith(".toml"):
        described = read_description(Path(name))
        return described.network or (architecture_of(described.file) if described.file else None)
    return architecture_of(file_of(name))


def plan_arm(
    plan: StudentPlan,
    teacher: FaceTeacher,
    faces: FaceViews,
    *,
    device: str = "auto",
    precision: str = "auto",
    keep: Callable[[Callable[[], str]], str] = lambda choose: choose(),
    progress: Progress = silent,
    note: Note = lambda _text: None,
) -> FaceArm:
    """Return the arm of a plan: the student, its terms, and which of its layers learn from which of the teacher's.

    Args:
        plan: What is asked.
        teacher: The teacher.
        faces: The training faces; hints are chosen over them, without labels.
        device: Where to look at them.
        precision: In which.
        keep: Returns what was chosen when the run began, else what a function chooses now: a run that goes on must not
            choose anew what rounding could choose otherwise.
        progress: Wraps the long loops.
        note: Is told what was matched with what.

    Raises:
        KeyholeError: A name does not exist, or settings do not fit together.
    """
    terms = parse_terms(plan.terms, equal=plan.balance == "gradients")
    _check(plan, terms)
    network, _ = student_network(plan.student, teacher.network.classes)
    if network.classes != teacher.network.classes and any(term.needs_teacher for term in terms):
        raise SettingError(
            f"{plan.student} gives {network.classes} numbers and the teacher {teacher.network.classes}; expected as "
            "many. Take one of the compact students, which give as many as their teacher."
        )
    pairs: tuple[HintPair, ...] = ()
    survival: tuple[tuple[str, float], ...] = ()
    if any(term.needs_hints for term in terms):
        candidates = layers(teacher.network, teacher.layers)

        def choose() -> str:
            look = _Look(choose_device(device), ObserveConfig(precision=precision), progress, note)
            hints, found = _hints(plan, teacher, faces, look)
            matched = match_hints(_of(hints, candidates), candidates, layers(network), how=plan.match)
            matching = {"pairs": [[pair.teacher, pair.student] for pair in matched], "survival": list(found.items())}
            return json.dumps(matching)

        pairs, survival = _kept_matching(keep(choose))
        note(f"{plan.name or plan.student}: " + ", ".join(f"{pair.teacher} -> {pair.student}" for pair in pairs))
    name = plan.name or plan.student
    return FaceArm(name, plan.student, network.input, terms, pairs, plan.balance, survival=survival)


def _check(plan: StudentPlan, terms: Sequence[Term]) -> None:
    """Check that settings fit together, before a student is built or a layer looked at."""
    if odd := [term.name for term in terms if not (term.kind.embeds or term.kind.hints)]:
        fitting = ", ".join(name for name, kind in TERMS.items() if kind.embeds or kind.hints)
        raise SettingError(
            f"Term {odd[0]} takes outputs for logits of classes, and a student's are an embedding; take {fitting}."
        )
    if not 0 <= plan.wise_ft <= 1:
        raise SettingError(
            f"wise_ft is {plan.wise_ft:g}; expected 0 (the weights it began with) to 1 (the trained ones)."
        )
    if plan.wise_ft < 1 and plan.student in COMPACT:
        raise SettingError(
            f"wise_ft is {plan.wise_ft:g}, and {plan.student} begins with random weights, which are worth nothing "
            "beside the trained ones. Name a file as the student, or leave wise_ft out."
        )
    if plan.match == "similarity":
        raise SettingError("match is 'similarity', which students of faces have not; expected order, size or name.")
    hinted = any(term.needs_hints for term in terms)
    if hinted and plan.hints is None:
        raise SettingError("A term needs hints; give --hints auto, surviving, a hints.json or layers.")
    if not hinted and plan.hints is not None:
        raise SettingError(f"Hints serve none of the terms {plan.terms}; add hint, askd or at, or leave the hints out.")


def _kept_matching(text: str) -> tuple[tuple[HintPair, ...], tuple[tuple[str, float], ...]]:
    """Return pairs of layers, and how each of the teacher's survives, as they were chosen when the run began."""
    value = json.loads(text)
    # a list of pairs alone is what earlier versions kept
    pairs, survival = (value["pairs"], value["survival"]) if isinstance(value, dict) else (value, ())
    return tuple(HintPair(*pair) for pair in pairs), tuple((str(name), float(share)) for name, share in survival)


def _of(hints: Sequence[str], candidates: Sequence[Layer]) -> list[str]:
    """Return hints as the teacher's layers are called here, where its network lies within another module."""
    known = {layer.name for layer in candidates}
    return [name if name in known or f"network.{name}" not in known else f"network.{name}" for name in hints]


@dataclass(frozen=True)
class _Look:
    """How the teacher is looked at."""

    device: torch.device
    how: ObserveConfig
    progress: Progress
    note: Note


def _hints(
    plan: StudentPlan, teacher: FaceTeacher, faces: FaceViews, look: _Look
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the hints of a plan, and how each layer survives, where that was asked for."""
    assert plan.hints is not None, "plan_arm saw to it"
    if plan.hints.endswith(".json"):
        value = read_json(Path(plan.hints))
        found = value.get("hints") if isinstance(value, dict) else None
        if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
            raise DataError(f"{plan.hints} names no hints; expected a hints.json of 'keyhole hints'.")
        return tuple(found), {}
    clustering = "kmeans" if plan.hints in ("auto", SURVIVING) else plan.hints
    if clustering not in SELECTORS:
        return tuple(name.strip() for name in plan.hints.split(",")), {}
    chosen = choose_hints(
        teacher.network,
        faces,
        Rule(clustering, plan.count, seed=plan.seed),
        config=ChoiceConfig(
            samples=plan.samples, metrics=(plan.metric,), layers=teacher.layers, draws=0, bare=False, seed=plan.seed
        ),
        look=look.how,
        device=look.device,
        progress=look.progress,
    )
    if plan.hints != SURVIVING:
        return chosen.hints, {}
    survival = layer_survival(
        teacher.network,
        faces,
        [layer.name for layer in chosen.layers],
        samples=plan.samples,
        seed=plan.seed,
        look=look.how,
        device=look.device,
        progress=look.progress,
    )
    look.note("survive: " + ", ".join(f"{name} {value:.2f}" for name, value in survival.items()))
    return surviving_hints(chosen, survival), survival


def has_batch_norm(student: str) -> bool:
    """Return whether a student normalizes by batches, so that plain gradient descent trains it.

    Args:
        student: Its name (see :func:`student_network`).

    Raises:
        UnknownNameError: There is no such network.
        WeightsError: The file cannot be read.

    Example:
        >>> has_batch_norm("compact-24-s")
        True
    """
    network, _ = student_network(student)
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.module.modules())


def distill(
    arms: Sequence[FaceArm],
    teacher: FaceTeacher,
    faces: FaceViews,
    config: TrainConfig,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Train students under one teacher: it sees the sharp faces, they see what the camera makes of them.

    What the teacher says of a face is kept, so that each is looked at once (and once mirrored), as far as memory goes.
    A run that goes on looks again, in other batches, so it ends as an uninterrupted one does to rounding only.

    Args:
        arms: The students.
        teacher: The teacher.
        faces: The training faces.
        config: How to train.
        checkpointing: Where the state is kept, from which a killed run goes on.
        progress: Wraps the steps.
        log: Called with one record an arm and epoch.

    Raises:
        DivergenceError: A loss became NaN or infinite.
        RunError: The checkpoint was made with other settings.
    """
    needs = any(term.needs_teacher for arm in arms for term in arm.terms)
    cohort = Cohort(
        arms,
        config,
        classes=teacher.network.classes,
        teacher=teacher.network if needs else None,
        train=faces,
        keep=Keep(faces.views, _room_bytes(choose_device(config.device))),
    )
    return fit(cohort, faces, checkpointing=checkpointing, progress=progress, log=log)


def _room_bytes(device: torch.device) -> int:
    """Return what may be kept where the teacher's answers lie: on a GPU, or in the memory of this machine."""
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        whole = 12 * 2**30
    with suppress(OSError, ValueError):  # a container may have less than its host
        whole = min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return int(_SHARE * whole)


def interpolated(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], wise_ft: float) -> dict[str, Tensor]:
    """Return weights between those that a network began with and those that it was trained to.

    What fine-tuning on few pictures of one kind makes worse on others comes back, and most of what it won stays.

    Args:
        start: The state that training began with.
        trained: The state that it led to.
        wise_ft: Of the trained weights, 0 to 1; the rest are those of the start. Statistics of batch norm are
            interpolated as well; what is counted (an integer) is the trained one's.

    Raises:
        SettingError: They are not states of one network, or ``wise_ft`` is not 0 to 1.

    Example:
        >>> found = interpolated({"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}, 0.75)
        >>> found["w"].tolist()
        [0.75]

    Reference:
        Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), 2022, https://arxiv.org/abs/2109.01903,
        equation 1.
    """
    if not 0 <= wise_ft <= 1:
        raise SettingError(f"wise_ft is {wise_ft:g}; expected 0 to 1.")
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in trained.items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in start.items()} != shapes:
        raise SettingError("The two states are of different networks; expected weights before and after one training.")
    return {
        name: start[name].lerp(tensor, wise_ft) if tensor.is_floating_point() else tensor
        for name, tensor in trained.items()
    }


def save_student(
    path: Path, outcome: Outcome, *, teacher: FaceTeacher, about: dict[str, Any], wise_ft: float = 1.0
) -> None:
    """Write a student with all that must be known to use it; ``--model`` of ``keyhole faces`` takes the file.

    Args:
        path: A ``.safetensors`` file.
        outcome: What became of the student's arm.
        teacher: The teacher.
        about: More JSON values to keep with it.
        wise_ft: As in :class:`StudentPlan`.

    Raises:
        RunError: The file cannot be written; an older one is untouched.
    """
    begun_as, how = student_network(outcome.arm.student, outcome.last.classes)
    module = outcome.last.module
    if wise_ft < 1:
        module = copy.deepcopy(module)
        module.load_state_dict(interpolated(begun_as.module.state_dict(), module.state_dict(), wise_ft))
        about = {**about, "wise_ft": wise_ft}
    if isinstance(module, Upright):
        module = module.network
    name, begun = outcome.arm.student, {"weights": "", "data": ""}
    if name not in COMPACT:
        first = load_face_model(name, device="cpu")
        begun = {part: f"; of the weights it began with: {getattr(first.licenses, part)}" for part in begun}
        about = {**about, "began_with": first.sha256}
        name = _architecture(name) or name
    terms = Licenses(
        code="Apache-2.0",
        weights=f"trained here; of the teacher: {teacher.licenses.weights}{begun['weights']}",
        data=f"see the recipe; of the teacher: {teacher.licenses.data}{begun['data']}",
    )
    save_face_model(path, module, name, how, licenses=terms, about=about)
