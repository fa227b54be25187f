"""What stands between a student and its goal on few pixels: the pixels, what it was shown, or its teacher.

    python benchmarks/ceiling.py --teacher M.xml --student student.safetensors --seen FACES.zip [--seen-folds 1,2,3]
        --unseen lfw112.zip --unseen-folds 7 [--probe-px 112,16,12,8] [--out FILE.json]

Two questions. *Fidelity*: how near a student's embedding of the small face is to its teacher's of the sharp one, on
faces that it was trained on and on others. What is missing on the faces that it was trained on is a matter of pixels
and of the network, what is missing only on others one of how few faces it was shown. *Twins*: how near the small
pictures of two different people come to each other. Pictures that lie further apart than the rounding to whole gray
levels can still be told apart, so a student that fails on them is not stopped by the pixels alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyhole.cli.face_options import integers
from keyhole.faces.embedding import in_form
from keyhole.faces.images.degradation import Degradation, degrade, image_seeds
from keyhole.faces.images.distributions import parse_distribution
from keyhole.faces.images.resampling import resample
from keyhole.faces.models.face_model import FaceModel, load_face_model
from keyhole.faces.protocols.lfw import people_in
from keyhole.files import write_json
from keyhole.progress import bar
from keyhole.students.views import FaceViews, Who, read_faces

SHARP_PX = 112
BATCH = 32
ROUNDING = (2 / 12) ** 0.5  # root mean square difference of two pictures that differ by their rounding alone


def main() -> None:
    given = parsed()
    teacher, student = (load_face_model(name, device="cpu") for name in (given.teacher, given.student))
    sizes = [int(size) for size in given.probe_px.split(",")]
    found: dict[str, Any] = {"teacher": teacher.name, "student": student.name, "faces": {}}
    print("| faces | size, px | student to the teacher's sharp | teacher's small to its sharp | ", end="")
    print("nearest picture of somebody else, gray levels: median, least | nearer than rounding, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, root, folds in (
        ("seen", given.seen, given.seen_folds),
        ("unseen", given.unseen, given.unseen_folds),
    ):
        faces = drawn(root, folds, teacher, given.faces, given.seed)
        sharp = embedded(teacher, faces.crops, SHARP_PX)
        rows = found["faces"][name] = {"count": len(faces), "people": len(set(faces.labels.tolist())), "by_px": {}}
        for px in sizes:
            small = {each: embedded(model, faces.crops, px) for each, model in (("s", student), ("t", teacher))}
            rows["by_px"][str(px)] = row = {
                "student": cosines(small["s"], sharp),
                "teacher": cosines(small["t"], sharp),
                **twins(faces, px),
            }
            print(f"| {name} | {px} | {row['student']['mean']:.3f} | {row['teacher']['mean']:.3f} | ", end="")
            print(f"{row['twin_median']:.2f}, {row['twin_least']:.2f} | {row['twin_share']:.1f} |", flush=True)
    if given.out:
        write_json(given.out, found)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="keyhole-face", help="keyhole-face, or a file")
    parser.add_argument("--seen", type=Path, required=True, help="faces that the student was trained on")
    parser.add_argument("--seen-folds", help="of these only the people of some folds of the pairs.txt beside them")
    parser.add_argument("--unseen", type=Path, required=True, help="faces that it was not trained on")
    parser.add_argument("--unseen-folds")
    parser.add_argument("--probe-px", default="112,16,12,8")
    parser.add_argument("--faces", type=int, default=800, help="so many of each, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def drawn(root: Path, folds: str | None, teacher: FaceModel, count: int, seed: int) -> FaceViews:
    """Return some of the faces of an album, or of the people of its folds."""
    chosen = integers("--folds", folds)
    who = Who() if chosen is None else Who(keep=people_in(root, chosen))
    how = teacher.preparation
    faces = read_faces(root, shown=how, seen=how, camera=parse_distribution("fixed:112"), who=who, progress=bar)
    order = np.random.default_rng(seed).permutation(len(faces))[:count]
    return faces.subset(torch.from_numpy(np.sort(order)))


def embedded(model: FaceModel, crops: Tensor, px: int) -> Tensor:
    """Return unit embeddings of crops at a size, shrunk and enlarged by Pillow's bicubic."""
    parts = []
    for part in crops.split(BATCH):
        seen = part if px >= SHARP_PX else degrade(part, Degradation(px), seed=image_seeds(0, len(part)))
        parts.append(model.embed(in_form(model, seen, canonical=True)))
    return torch.cat(parts)


def cosines(small: Tensor, sharp: Tensor) -> dict[str, float]:
    values = (small * sharp).sum(1).double()
    low, median, high = (float(each) for each in torch.quantile(values, torch.tensor([0.1, 0.5, 0.9]).double()))
    return {"mean": float(values.mean()), "p10": low, "median": median, "p90": high}


def twins(faces: FaceViews, px: int) -> dict[str, float]:
    """Return how far the small picture of each face is from the nearest one of somebody else, in gray levels."""
    small = resample(faces.crops, px, "pil-bicubic") if px < SHARP_PX else faces.crops
    flat = small.reshape(len(small), -1).double()
    apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    apart[faces.labels[:, None] == faces.labels[None]] = torch.inf
    nearest = apart.min(1).values
    return {
        "twin_median": float(nearest.median()),
        "twin_least": float(nearest.min()),
        "twin_share": 100 * float((nearest <= ROUNDING).double().mean()),
    }


if __name__ == "__main__":
    main()
