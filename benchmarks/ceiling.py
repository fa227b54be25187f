"""What stands between a student and its goal on few pixels? Two measures that narrow it down.

    python benchmarks/ceiling.py --teacher M.xml --student student.safetensors --seen FACES.zip [--seen-folds 1,2,3]
        --unseen lfw112.zip --unseen-folds 7 [--apart lfw112.zip --apart-folds 7,8,9,10] [--probe-px 112,16,12,8]
        [--out FILE.json]

*Fidelity*: how near the student's embedding of the small face is to its teacher's of the sharp one (mean cosine, with
its interval over people), on faces that it was trained on and on others. Perfect fidelity is the teacher's accuracy on
sharp faces. What is missing on the faces that it was trained on would not come by more faces: it is the pixels, the
network, too few steps, another camera in training than Pillow's bicubic here, other terms of the loss, or first
weights mixed back in. What is missing on other faces alone is how well it generalizes; where seen and unseen faces are
of two kinds (portraits, press photos) the kind as well, so take both from one source.

*Neighbors*: for how many faces with another picture of the same person that picture is nearer, pixel by pixel, than
every stranger's of as many people, at each size. It says what is lost to something that compares pixels, not to a
network; the control of 2 px shows how much of it a drawing by chance keeps.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyhole.cli.face_options import integers
from keyhole.errors import SettingError
from keyhole.faces.embedding import in_form
from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.images.distributions import parse_distribution
from keyhole.faces.images.resampling import resample
from keyhole.faces.metrics.intervals import Interval, Statistic, difference, interval, mean_statistic
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.protocols.lfw import people_in
from keyhole.files import write_json
from keyhole.progress import bar
from keyhole.students.apart import Apart, leave_out, people_apart
from keyhole.students.teachers import load_teacher
from keyhole.students.views import FaceViews, Who, drawn, read_faces

SHARP_PX = 112
CONTROL_PX = 2
BATCH = 32


def main() -> None:
    given = parsed()
    sizes = integers("--probe-px", given.probe_px) or ()
    if not sizes or not all(1 <= px <= SHARP_PX for px in sizes):
        raise SettingError(f"--probe-px is {given.probe_px!r}; expected sizes from 1 to {SHARP_PX}.")
    teacher, student = (load_face_model(name, device="cpu") for name in (given.teacher, given.student))
    if student.preparation.template is None or student.embedding_size != teacher.embedding_size:
        raise SettingError(f"{student.name} takes no aligned crops, or its embeddings are not of the teacher's size.")
    apart = Apart(given.apart, integers("--apart-folds", given.apart_folds)) if given.apart else None
    found: dict[str, Any] = {"teacher": teacher.name, "student": student.name, "seed": given.seed, "faces": {}}
    print("| faces | px | student | teacher itself | student minus teacher | nearest is the same person, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, root, folds in (("seen", given.seen, given.seen_folds), ("unseen", given.unseen, given.unseen_folds)):
        faces = faces_of(root, integers(f"--{name}-folds", folds), teacher)
        if name == "seen" and apart is not None:
            faces, _ = leave_out(
                faces, apart, people_apart(apart), load_teacher(given.teacher), device=torch.device("cpu"), progress=bar
            )
        faces = drawn(faces, min(given.faces, len(faces)), seed=given.seed)
        people = faces.labels.numpy()
        about = f"{name}, {len(faces)} faces of {len(np.unique(people))} people"
        found["faces"][name] = {"count": len(faces), "people": len(np.unique(people)), "by_px": {}}
        sharp = embedded(teacher, faces.crops, SHARP_PX)
        for px in sizes:
            one, other = (fidelity(embedded(each, faces.crops, px), sharp, people) for each in (student, teacher))
            row = {
                "student": interval(one, bounds=(-1.0, 1.0)),
                "teacher": interval(other, bounds=(-1.0, 1.0)),
                "difference": difference(one, other, bounds=(-2.0, 2.0)),
            }
            near = nearest_is_same(faces, px)
            values = {key: asdict(value) for key, value in row.items()}
            found["faces"][name]["by_px"][str(px)] = values | {"nearest_is_same": near}
            print(f"| {about} | {px} | {' | '.join(map(text, row.values()))} | {percent(near)} |", flush=True)
        found["faces"][name]["control_nearest_is_same"] = control = nearest_is_same(faces, CONTROL_PX)
        print(f"| {about} | {CONTROL_PX} | | | | {percent(control)} |", flush=True)
    if given.out:
        write_json(given.out, found)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="keyhole-face", help="keyhole-face, or a file")
    parser.add_argument("--seen", type=Path, required=True, help="faces that the student was trained on")
    parser.add_argument("--seen-folds", help="of these only the people of some folds of the pairs.txt beside them")
    parser.add_argument("--apart", type=Path, help="faces of a test that were kept out of training, as in training")
    parser.add_argument("--apart-folds")
    parser.add_argument("--unseen", type=Path, required=True, help="faces that it was not trained on")
    parser.add_argument("--unseen-folds")
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--faces", type=int, default=800, help="so many of each at most, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def faces_of(root: Path, folds: tuple[int, ...] | None, teacher: FaceModel) -> FaceViews:
    """Return the faces of an album, or of the people of its folds."""
    who = Who() if folds is None else Who(keep=people_in(root, folds))
    how = teacher.preparation
    return read_faces(root, shown=how, seen=how, camera=parse_distribution("fixed:112"), who=who, progress=bar)


def embedded(model: FaceModel, crops: Tensor, px: int, how: Degradation | None = None) -> Tensor:
    """Return unit embeddings of crops at a size, as a camera delivers them; by default Pillow's bicubic both ways."""
    parts = []
    for start in range(0, len(crops), BATCH):
        part = crops[start : start + BATCH]
        small = replace(how or Degradation(px), face_px=px)
        seen = part if px == SHARP_PX else degrade(part, small, seed=range(start, start + len(part)))
        parts.append(model.embed(in_form(model, seen, canonical=True)))
    return torch.cat(parts)


def fidelity(small: Tensor, sharp: Tensor, people: np.ndarray) -> Statistic:
    return mean_statistic((small * sharp).sum(1).double().numpy(), people)


def nearest_is_same(faces: FaceViews, px: int) -> float | None:
    """Return for what share of the faces with a second picture of the person it is nearer than anybody else's."""
    small = resample(faces.crops, px, "pil-bicubic") if px < SHARP_PX else faces.crops
    flat = small.reshape(len(small), -1).double()
    apart = torch.cdist(flat, flat)
    same = faces.labels[:, None] == faces.labels[None]
    own = apart.masked_fill(~same | torch.eye(len(small), dtype=torch.bool), torch.inf).min(1).values
    others = apart.masked_fill(same, torch.inf).min(1).values
    counts = torch.isfinite(own)
    return float((own < others)[counts].double().mean()) if counts.any() else None


def text(value: Interval) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"


if __name__ == "__main__":
    main()
