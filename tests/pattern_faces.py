"""People who are patterns, and a network that reads them: what a whole evaluation must reach on them is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

SIDE = 112
CELLS = 14


class _Reader(nn.Module):
    """Mean gray of 14 x 14 cells, less the mean of all: two photos of one pattern give nearly the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = functional.avg_pool2d(x.mean(dim=1, keepdim=True), SIDE // CELLS).flatten(1)
        return cells - cells.mean(dim=1, keepdim=True) + 1e-3


class _Blind(nn.Module):
    """The same embedding for everybody."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), 4)


def _described(module: nn.Module) -> nn.Module:
    module.description = {  # type: ignore[assignment]
        "size_px": SIDE,
        "template": "arcface",
        "licenses": {"data": "drawn"},
    }
    return module


def reader() -> nn.Module:
    return _described(_Reader())


def blind() -> nn.Module:
    return _described(_Blind())


def pattern(person: int, photo: int = 0, *, noise: float = 6.0) -> np.ndarray:
    """A photo of a person, 112 x 112 x 3: coarse blocks that are theirs, and fine noise that is the photo's."""
    cells = np.random.default_rng([person, 1]).integers(0, 256, (CELLS, CELLS))
    gray = np.kron(cells, np.ones((SIDE // CELLS, SIDE // CELLS)))
    gray = gray + np.random.default_rng([person, photo, 2]).normal(0, noise, gray.shape)
    return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def write(path: Path, person: int, photo: int = 0, **settings: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(person, photo, **settings)).save(path)
    return path


def album(folder: Path, *, people: int, photos: int) -> Path:
    """A folder PERSON/PHOTO.png of people p0, p1 and so on."""
    for person in range(people):
        for photo in range(photos):
            write(folder / f"p{person}" / f"{photo}.png", person, photo)
    return folder


def write_manifest(root: Path, *, enrolled: int, strangers: int = 0, photos: int = 1) -> Path:
    """A folder protocol of aligned crops: some people enrolled, each with a probe, and some who are not."""
    lines = ["role,path,identity,camera,aligned"]
    for person in range(enrolled):
        for photo in range(photos):
            write(root / "g" / f"{person}_{photo}.png", person, photo)
            lines.append(f"gallery,g/{person}_{photo}.png,p{person:03},,yes")
    for person in range(enrolled + strangers):
        write(root / "p" / f"{person}.png", person, 50)
        lines.append(f"probe,p/{person}.png,p{person:03},cam{person % 2},yes")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root
