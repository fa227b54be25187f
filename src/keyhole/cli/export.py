"""``keyhole export``: a network as a file for another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o
from keyhole.errors import SettingError

if TYPE_CHECKING:
    import torch

    from keyhole.exporting import Prepared
    from keyhole.faces.images.distributions import Distribution
    from keyhole.students.views import FaceViews


@dataclass(frozen=True)
class ShownOptions:
    """What an export is checked and calibrated on; of a face model, which faces."""

    faces: Annotated[
        Path | None, typer.Option(help="For a face model: folder or zip of aligned 112 x 112 crops to check it on.")
    ] = None
    people: Annotated[Path | None, typer.Option(help="File with the people of --faces to take, one a line.")] = None
    apart: Annotated[
        Path | None,
        typer.Option(help="Faces of a test, as in 'keyhole faces distill': by name nobody of them is taken."),
    ] = None
    apart_folds: Annotated[
        str | None, typer.Option(help="Only the people in these folds of its pairs.txt, such as 7,8,9,10.")
    ] = None
    degrade: Annotated[
        str | None,
        typer.Option(help="Camera of half of the faces, as in 'keyhole faces distill'; all sharp by default."),
    ] = None
    samples: Annotated[int, typer.Option(min=1, help="Images to check and calibrate on.")] = 256

    def check_for_classes(self) -> None:
        """Refuse what chooses among faces where there are none."""
        if (self.people, self.apart, self.apart_folds) != (None, None, None):
            raise SettingError("--people and --apart choose among --faces; name those as well.")


@o.command
def export(
    model: Annotated[
        str, typer.Option(help="A network as in 'keyhole evaluate', or a face model as in 'keyhole faces'.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .xml for OpenVINO.")],
    images: o.DataOptions,
    network: o.NetworkOptions,
    shown: ShownOptions,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8 (calibrated on the training images).")] = "fp32",
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Write a network as ONNX or OpenVINO IR, and check the file.

    It is run there, and must give what the network gives here.

    Example: keyhole export --model student.safetensors --data cifar100 --root DIR --precision int8 --out student.onnx

    The file takes RGB (or gray) values from 0 to 255; 'keyhole evaluate' measures it. For a face model (--faces) a
    description is written beside it, OUT.toml (such as face.onnx.toml), which --model of 'keyhole faces' takes.
    """
    from keyhole.exporting import export as write
    from keyhole.faces.models.face_model import is_face_model

    _check_target(model, out)
    if shown.faces is None and (model == o.FACE_MODEL or is_face_model(Path(model))):
        raise SettingError(f"{model} is a face model; name aligned crops to check it on: --faces.")
    description: str | None = None
    if shown.faces is None:
        shown.check_for_classes()
        prepared, pixels = _of_classes(model, images, network, shown.samples, seed)
    else:
        prepared, pixels, description = _of_faces(model, shown.faces, shown, seed)
    beside = out.with_name(f"{out.name}.toml")
    found = write(prepared, out, pixels, precision=precision)
    if description is None:
        beside.unlink(missing_ok=True)  # of an earlier face model there, which would make this one look like it
    value = {
        "file": str(out), "precision": precision, "bytes": found.size_bytes, "worst": found.worst,
        "cosine": found.cosine, "least_cosine": found.least_cosine, "images": found.checked,
    }  # fmt: skip
    if description is not None:
        from keyhole.files import write_text

        write_text(beside, f"file = {_quoted(out.name)}\n{description}")
        value["description"] = str(beside)
    o.emit(
        value,
        f"{out}: {found.size_bytes / 2**20:.2f} MiB, mean cosine {found.cosine:.4f} to the network on {found.checked} "
        f"images (least {found.least_cosine:.4f}), largest difference {100 * found.worst:.2g} % of the largest output",
        as_json=json,
    )


def _check_target(model: str, out: Path) -> None:
    """Raise where a file that would be written is one that the model consists of, such as that of a description."""
    from keyhole.students.teachers import file_of

    path = Path(model)
    read = {path, file_of(model) if path.suffix == ".toml" else path}
    read |= {file.with_suffix(".bin") for file in read if file.suffix == ".xml"}
    written = {out, out.with_name(f"{out.name}.toml"), *([out.with_suffix(".bin")] if out.suffix == ".xml" else [])}
    if same := {file.resolve() for file in read} & {file.resolve() for file in written}:
        raise SettingError(f"--out would write over {min(same)}, of the model itself. Choose another file.")


def _of_classes(
    model: str, images: o.DataOptions, network: o.NetworkOptions, samples: int, seed: int
) -> tuple[Prepared, torch.Tensor]:
    import numpy as np
    import torch
    from torch.nn import functional

    from keyhole.exporting import Prepared

    opened, data = o.open_both(model, network, images)
    if o.is_untrained(model, network):
        raise SettingError(
            f"{model} has random weights; expected a trained network. Give --weights FILE, or name a file."
        )
    positions = np.random.default_rng([seed, 7]).permutation(len(data.train))[:samples]
    some = data.train.subset(torch.from_numpy(positions.copy()))
    pixels = torch.cat([batch.images for batch in some.batches(64)]) * 255
    if tuple(pixels.shape[-2:]) != opened.input.size_px:
        pixels = functional.interpolate(pixels, opened.input.size_px, mode="bilinear", antialias=True)
    mean, std = ([255 * value for value in values] for values in (opened.input.mean, opened.input.std))
    return Prepared(opened.module, mean=mean, std=std, reverse=False), pixels


def _of_faces(model: str, faces: Path, shown: ShownOptions, seed: int) -> tuple[Prepared, torch.Tensor, str]:
    import torch

    from keyhole.cli.students import apart_of, read_people
    from keyhole.exporting import Prepared
    from keyhole.faces.images.distributions import FixedSizes, parse_distribution
    from keyhole.students.apart import people_apart
    from keyhole.students.onnx_teacher import OnnxTeacher
    from keyhole.students.teachers import load_teacher
    from keyhole.students.views import Who, in_form, read_faces

    teacher = load_teacher(model)
    if isinstance(getattr(teacher.network.module, "network", None), OnnxTeacher):
        raise SettingError(f"{model} is ONNX already. Export its PyTorch form or its OpenVINO IR.")
    how = teacher.preparation
    camera = FixedSizes((112,)) if shown.degrade is None else parse_distribution(shown.degrade)
    apart = apart_of(shown.apart, shown.apart_folds)
    gone = people_apart(apart).apart if apart else frozenset()
    who = Who(keep=read_people(shown.people), leave=gone)
    views = read_faces(faces, shown=how, seen=how, camera=camera, who=who, progress=o.progress_bar())
    crops = _some(views, camera, shown, seed)
    pixels = torch.cat([in_form(part, how) for part in torch.split(crops, 64)]) * 255
    inner: Any = teacher.network.module
    prepared = Prepared(inner.network, mean=how.mean, std=how.std, reverse=how.color == "bgr")
    template = [list(point) for point in how.template or ()]
    terms = teacher.licenses
    lines = [
        f"size_px = {how.size_px}", f"template = {template}",
        *([] if how.margin is None else [f"margin = {how.margin}"]), "", "[licenses]",
        *(f"{key} = {_quoted(getattr(terms, key))}" for key in ("code", "weights", "data")),
    ]  # fmt: skip
    return prepared, pixels, "\n".join(lines) + "\n"


def _some(views: FaceViews, camera: Distribution, shown: ShownOptions, seed: int) -> torch.Tensor:
    """Return faces of the seed, every second one as the camera delivers it."""
    import numpy as np
    import torch

    from keyhole.faces.images.degradation import degrade, image_seeds

    chosen = np.random.default_rng([seed, 7]).permutation(len(views))[: shown.samples]
    crops = views.crops[torch.from_numpy(chosen.copy())]
    if shown.degrade is not None:
        small = crops[1::2]
        drawn, seeds = camera.draw(len(small), seed), image_seeds(seed, len(small))
        crops[1::2] = degrade(small, drawn, seed=seeds)
    return crops


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
