"""Do thresholds hold for strangers who had no part in them? Small pictures on disk, and what 'identify' says of them.

    python benchmarks/false_alarms.py draw --trees TREES --congress congress_faces.zip --out OUT
    keyhole faces calibrate ... --strangers OUT/calibrate.zip --mated TREES/portraits/probes --out OUT/thresholds.json
    keyhole faces identify ... --thresholds OUT/thresholds.json --probe OUT/PX/WHO --json > OUT/PX-WHO.json
    python benchmarks/false_alarms.py count OUT

TREES are those of benchmarks/london.py. Every second Congress portrait goes to OUT/calibrate.zip; the others
(WHO = strangers) and the smiling portraits of the London set (WHO = enrolled) are made small by Pillow's bicubic, PX
pixels of face, and enlarged again. ``count`` writes OUT/false-alarms.json.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from keyhole.faces.images.albums import open_album
from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.images.photos import decode_photo
from keyhole.files import write_json

SIZES = (24, 16, 12, 10, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--trees", type=Path, required=True)
    drawing.add_argument("--congress", type=Path, required=True)
    drawing.add_argument("--out", type=Path, required=True)
    counting = commands.add_parser("count")
    counting.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "draw":
        draw(given.trees, given.congress, given.out)
    else:
        count(given.out)


def draw(trees: Path, congress: Path, out: Path) -> None:
    with open_album(congress) as album:
        names = sorted(album.pictures())
        out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(out / "calibrate.zip", "w") as archive:
            for name in names[::2]:
                archive.writestr(name, album.read(name))
        strangers = {Path(name).stem: album.read(name) for name in names[1::2]}
    enrolled = {path.stem: path.read_bytes() for path in sorted((trees / "closed").glob("*_smiling.jpg"))}
    for who, photos in (("strangers", strangers), ("enrolled", enrolled)):
        for stem, encoded in photos.items():
            crop = torch.from_numpy(decode_photo(encoded, name=stem).copy())[None]
            for px in SIZES:
                path = out / str(px) / who / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(degrade(crop, Degradation(px))[0].numpy()).save(path)
    print(
        f"{len(names[::2])} strangers to calibrate with; {len(strangers)} others and {len(enrolled)} enrolled in {out}"
    )


def count(out: Path) -> None:
    rows = []
    for px in SIZES:
        row: dict[str, float | int] = {"face_px": px}
        for who in ("strangers", "enrolled"):
            probes = json.loads((out / f"{px}-{who}.json").read_text())["probes"]
            verdicts = Counter(probe["verdict"] for probe in probes)
            named = [probe for probe in probes if probe["verdict"] == "candidate"]
            right = sum(probe["hits"][0]["person"] == probe["probe"].split("_")[0] for probe in named)
            row |= {who: len(probes), f"{who} too little to tell": verdicts["too little to tell"]}
            row |= {"false alarms": len(named)} if who == "strangers" else {"right": right, "wrong": len(named) - right}
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_json(out / "false-alarms.json", {"rows": rows})


if __name__ == "__main__":
    main()
