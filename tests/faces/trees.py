"""Pictures that carry who they show, trees of them in the forms of the benchmarks, and embedders that read them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from keyhole.faces.images.albums import open_album
from keyhole.faces.protocols.samples import IdentificationSet, PairSet, Sample

Embedder = Callable[[int, str], np.ndarray]
SIZE = 640
EYE = np.eye(SIZE, dtype=np.float32)


@cache
def picture(person: int, size: tuple[int, int] = (16, 16), ending: str = "JPEG") -> bytes:
    """A picture whose upper and lower half tell a number below 625 by their gray."""
    gray = np.full((size[1], size[0]), 10 * (person % 25), np.uint8)
    gray[size[1] // 2 :] = 10 * (person // 25)
    data = io.BytesIO()
    Image.fromarray(gray).convert("RGB").save(data, ending, quality=95)
    return data.getvalue()


@cache
def person_of(data: bytes) -> int:
    gray = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)
    half = len(gray) // 2
    return round(gray[: half - 1].mean() / 10) + 25 * round(gray[half + 1 :].mean() / 10)


def put(root: Path, name: str, data: bytes | str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def zipped(folder: Path, archive: Path, above: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, above + path.relative_to(folder).as_posix())
    return archive


def scface_tree(root: Path, subjects: Sequence[int], cameras: Sequence[int] = range(1, 8)) -> Path:
    for s in subjects:
        for folder in ("mugshot_frontal_original_all", "mugshot_frontal_cropped_all"):
            put(root, f"{folder}/{s:03d}_frontal.jpg", picture(s))
        for d in (1, 2, 3):
            for c in cameras:
                put(root, f"surveillance_cameras_distance_{d}/cam_{c}/{s:03d}_cam{c}_{d}.jpg", picture(s))
    return root


def icbrw_tree(root: Path, subjects: Sequence[int], *, size: tuple[int, int] = (60, 80), corners: bool = False) -> Path:
    """Boxes of 20 x 30 pixels at (25, 40), in which the picture of a person stands."""
    box = "25 40 45 70" if corners else "25 40 20 30"
    for folder, lines, kinds in (
        ("icbrw_GalleryImages", "annotations_GalleryImages.txt", ("f", "l", "r")),
        ("icbrw_ProbeImages", "annotations_ProbeImages.txt", ("01", "02", "03", "04", "05")),
    ):
        files = [(s, f"{s:03d}_{name}.jpg") for s in subjects for name in kinds]
        for s, file in files:
            put(root, f"{folder}/{file}", picture(s, size))
        put(root, lines, "".join(f"{file} {box}\n" for _, file in files))
    return root


def lfw_tree(root: Path, *, folds: int = 10, each: int = 300, size: tuple[int, int] = (16, 16)) -> Path:
    """People of five pictures each, ten pairs of one person from every one of them; folds share no person."""
    people = each // 10
    lines = [f"{folds}\t{each}"]
    for fold in range(folds):
        own = [fold * people + i for i in range(people)]
        for p in own:
            for i in range(1, 6):
                put(root, f"P_{p:03d}/P_{p:03d}_{i:04d}.jpg", picture(p, size))
        lines += [f"P_{p:03d}\t{i}\t{j}" for p in own for i in range(1, 6) for j in range(i + 1, 6)]
        pictures = [(p, i) for p in own for i in range(1, 6)]
        others = [(*a, *b) for k, a in enumerate(pictures) for b in pictures[k:] if a[0] != b[0]]
        others = [others[k] for k in np.linspace(0, len(others) - 1, each).astype(int)]
        lines += [f"P_{p:03d}\t{i}\tP_{q:03d}\t{j}" for p, i, q, j in others]
    put(root, "pairs.txt", "\n".join(lines) + "\n")
    return root


def perfect(person: int, path: str) -> np.ndarray:
    return EYE[person]


def blind(person: int, path: str) -> np.ndarray:
    return EYE[0]


def always_wrong(person: int, path: str) -> np.ndarray:
    """Right in the gallery, and in a probe the next person."""
    return EYE[person if is_gallery(path) else person + 1]


def half_right(person: int, path: str) -> np.ndarray:
    """Right for even people; a probe of an odd one is like nobody."""
    return EYE[person if person % 2 == 0 or is_gallery(path) else SIZE - 1]


def is_gallery(path: str) -> bool:
    return "mugshot" in path or "Gallery" in path or "gallery" in path


def embedded(root: Path, samples: Sequence[Sample], embedder: Embedder) -> np.ndarray:
    with open_album(root) as album:
        return np.stack([embedder(person_of(album.read(sample.path)), sample.path) for sample in samples])


def score_matrix(protocol: IdentificationSet, embedder: Embedder) -> np.ndarray:
    gallery, probes = (embedded(protocol.root, part, embedder) for part in (protocol.gallery, protocol.probes))
    return probes @ gallery.T


def pair_scores(protocol: PairSet, embedder: Embedder) -> np.ndarray:
    features = embedded(protocol.root, protocol.samples, embedder)
    return np.einsum("nd,nd->n", features[protocol.pairs[:, 0]], features[protocol.pairs[:, 1]])


def names(samples: Sequence[Sample]) -> list[str]:
    return [sample.identity for sample in samples]
