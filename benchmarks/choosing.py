"""Which of several short trainings is better, before a long one is made: all pictures of a fold that is for choosing.

    python benchmarks/choosing.py STUDENT... --teacher M.xml --faces lfw112.zip --folds 7 [--probe-px 112,16,12,8]
        [--per-person 4] [--draws 200] [--out FILE.json]

The 600 pairs of a fold hardly tell 90 from 92 %. Here every picture of its people counts, up to ``--per-person`` of
each. *Cosine*: of the student's embedding of the small face to its teacher's of the sharp one, mean over pictures,
with its interval over people. *EER* and *TAR* at 1 % FAR: every sharp picture against every other small one, the same
student for both; and how far the TAR lies above that of the first STUDENT, with its interval over draws of people
which both see (files of 'keyhole export' are students as well, by their .toml).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ceiling import SHARP_PX, embedded, faces_of, fidelity, text
from torch import Tensor

from keyhole.cli.face_options import integers
from keyhole.errors import SettingError
from keyhole.faces.images.degradation import Degradation
from keyhole.faces.metrics.intervals import Resampling, interval, redrawn
from keyhole.faces.metrics.verification import equal_error_rate, tar_statistic
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.files import write_json
from keyhole.students.views import FaceViews

FAR = 0.01
PER_PERSON = 4


def main() -> None:
    given = parsed()
    sizes, folds = (
        integers(f"--{name}", value) for name, value in (("probe-px", given.probe_px), ("folds", given.folds))
    )
    teacher = load_face_model(given.teacher, device="cpu")
    faces = at_most(faces_of(given.faces, folds, teacher), given.per_person)
    people = faces.labels.numpy()
    answer = embedded(teacher, faces.crops, SHARP_PX)
    of_each = torch.bincount(faces.labels)
    genuine = int((of_each * (of_each - 1)).sum())
    about = {"faces": len(faces), "people": len(of_each), "genuine": genuine, "far": FAR}
    print(", ".join(f"{value} {key}" for key, value in about.items()))
    print("| student | px | cosine | EER, % | TAR, % | minus the first |\n| --- | --- | --- | --- | --- | --- |")
    found: list[dict[str, Any]] = []
    first: dict[int, tuple[float, np.ndarray]] = {}
    whose, drawing = pairs_of(faces), Resampling(given.draws)
    for file in given.students:
        student = load_face_model(file, device="cpu")
        name = called(file)
        if student.embedding_size != teacher.embedding_size:
            raise SettingError(f"{name} gives {student.embedding_size} numbers, the teacher {teacher.embedding_size}.")
        for px, small, (scores, same) in compared(student, faces, sizes or ()):
            cosine = interval(fidelity(small, answer, people), bounds=(-1.0, 1.0))
            eer, statistic = equal_error_rate(scores, same), tar_statistic(scores, same, FAR, subjects=whose)
            if statistic is None:
                raise SettingError(f"{len(faces)} faces are too few for a FAR of {FAR:g}; name more --folds.")
            tar, drawn = statistic.value(), redrawn(statistic, resampling=drawing)
            gap = None
            if px in first:
                low, high = np.quantile(drawn - first[px][1], [0.025, 0.975]).tolist()
                gap = {"value": tar - first[px][0], "low": low, "high": high}
            else:
                first[px] = (tar, drawn)
            figures = {"cosine": asdict(cosine), "eer": eer, "tar": tar, "tar_minus_first": gap}
            found.append({"student": name, "px": px, **figures})
            above = (
                "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{k: 100 * v for k, v in gap.items()}) if gap else ""
            )
            print(f"| {name} | {px} | {text(cosine)} | {percent(eer)} | {percent(tar)} | {above} |", flush=True)
    if given.out:
        write_json(given.out, {**about, "teacher": teacher.name, "students": found})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="keyhole-face, or files")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--folds", required=True)
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--per-person", type=int, default=PER_PERSON)
    parser.add_argument("--draws", type=int, default=200, help="of people, for the differences")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def called(file: str) -> str:
    """Return what a table calls a model: a student by its run, one of a cohort by its number there as well."""
    path = Path(file)
    if path.name != "student.safetensors":
        return path.stem
    run = path.parent
    return f"{run.parent.name}/{run.name}" if run.name.isdecimal() and run.parent.name else run.name


def compared(
    student: FaceModel, faces: FaceViews, sizes: Iterable[int], how: Degradation | None = None
) -> Iterator[tuple[int, Tensor, tuple[np.ndarray, np.ndarray]]]:
    """Yield for each size the embeddings of small pictures, and the scores of sharp ones against all others of them."""
    others = ~torch.eye(len(faces), dtype=torch.bool)
    same = (faces.labels[:, None] == faces.labels[None])[others].numpy()
    sharp = embedded(student, faces.crops, SHARP_PX)
    for px in sizes:
        small = embedded(student, faces.crops, px, how)
        yield px, small, ((sharp @ small.T)[others].double().numpy(), same)


def pairs_of(faces: FaceViews) -> np.ndarray:
    """Return whose the two pictures of each score are, in the order of :func:`compared`."""
    count = len(faces)
    others = ~np.eye(count, dtype=bool)
    of = faces.labels.numpy()
    return np.stack(
        [np.broadcast_to(of[:, None], (count, count))[others], np.broadcast_to(of, (count, count))[others]], 1
    )


def at_most(faces: FaceViews, count: int) -> FaceViews:
    """Return the first pictures of each person, at most so many."""
    taken: dict[int, int] = {}
    rows = []
    for row, person in enumerate(faces.labels.tolist()):
        taken[person] = taken.get(person, 0) + 1
        if taken[person] <= count:
            rows.append(row)
    return replace(faces.subset(rows), indices=torch.arange(len(rows)))


def percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"


if __name__ == "__main__":
    main()
