"""Draw a protocol of tracks from LFW: one sharp photo of each person enrolled, several small ones as frames of a track.

    python benchmarks/tracks.py --root lfw112.zip --folds 8,9,10 --out TREE
    keyhole faces evaluate --model M --root TREE --match none,fitted-estimated --matcher m.safetensors \
        --pool best,equal,quality --out OUT

LFW has no clips: the frames of a track are other photos of the person, each as few pixels as a camera might deliver
(log-uniform from 6 to 32, bicubic, JPEG 80), so that they differ more than frames of one clip would. A matcher that was
fitted on other folds knows none of these people. People with fewer photos than frames and one more are enrolled only.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from keyhole.faces.images.albums import open_album
from keyhole.faces.images.degradation import Degradation, degrade, image_seeds
from keyhole.faces.images.photos import decode_photo
from keyhole.faces.protocols import lfw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--folds", default="8,9,10")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--others", type=int, default=300, help="people who are enrolled only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pairs = lfw.read(options.root, folds=tuple(int(fold) for fold in options.folds.split(",")))
    people = {sample.identity for sample in pairs.samples}
    random = np.random.default_rng(options.seed)
    rows, others = [], 0
    with open_album(options.root) as album:
        for number, (name_of, names) in enumerate(sorted(photos_of(album.pictures(), people).items())):
            if len(names) <= options.frames and (others := others + 1) > options.others:
                continue
            person = name_of  # its own, so that a matcher refuses people that it was fitted on
            crops = [decode_photo(album.read(name), name=name) for name in names[: options.frames + 1]]
            rows.append(write(options.out / "enrolled" / f"{person}.png", crops[0], "gallery", person))
            if len(crops) <= options.frames:
                continue
            sizes = np.exp(random.uniform(np.log(6), np.log(32), options.frames)).round().astype(int)
            hows = [Degradation(int(px), codec="jpeg", quality=80) for px in sizes]
            seeds = image_seeds(options.seed + number, options.frames)
            small = degrade(torch.from_numpy(np.stack(crops[1:])), hows, seed=seeds).numpy()
            for frame, crop in enumerate(small):
                rows.append(write(options.out / "frames" / person / f"{frame}.png", crop, "probe", person))
    with (options.out / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["role", "path", "identity", "track", "aligned"])
        for role, path, person in rows:
            writer.writerow([role, path.relative_to(options.out), person, "1" if role == "probe" else "", "yes"])
    print(f"{options.out}: {sum(row[0] == 'gallery' for row in rows)} enrolled, {len(rows)} pictures")


def photos_of(names: tuple[str, ...], people: set[str]) -> dict[str, list[str]]:
    """Return the names of photos by person, in their order."""
    found: dict[str, list[str]] = {}
    for name in names:
        person = Path(name).parent.name
        if person in people:
            found.setdefault(person, []).append(name)
    return found


def write(path: Path, crop: np.ndarray, role: str, person: str) -> tuple[str, Path, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(crop).save(path)
    return role, path, person


if __name__ == "__main__":
    main()
