"""Lay out the Face Research Lab London Set as a watch list, with Congress portraits as people who are not enrolled.

    python benchmarks/london.py --london london_faces.zip --congress congress_faces.zip --out TREES
    keyhole faces evaluate --model M --root TREES/closed --probe-px 112,16,12,8 --out OUT

``TREES/closed`` holds aligned crops, neutral ones enrolled and smiling ones searched for; ``TREES/open`` the same and
the Congress portraits, each searched for as somebody who is not enrolled; in ``TREES/crowd`` they are enrolled with the
others. ``TREES/portraits`` holds the pictures that the crops were cut from, as gallery/PERSON/*.jpg and
probes/PERSON/*.jpg.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path, PurePosixPath

from keyhole.faces.images.albums import open_album

ROLES = {"neutral": "gallery", "smiling": "probe"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--london", type=Path, required=True, help="aligned112 and portrait512, ID_neutral.jpg and so on"
    )
    parser.add_argument("--congress", type=Path, required=True, help="aligned crops, one of each person")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    with open_album(options.london) as album:
        for name in album.pictures():
            path = PurePosixPath(name)
            person, _, expression = path.stem.partition("_")
            if path.parent.name == "aligned112":
                for tree in ("closed", "open", "crowd"):
                    write(options.out / tree / path.name, album.read(name))
                rows.append((ROLES[expression], path.name, person, "yes"))
            elif path.parent.name == "portrait512":
                folder = "gallery" if ROLES[expression] == "gallery" else "probes"
                write(options.out / "portraits" / folder / person / path.name, album.read(name))
    others = []
    with open_album(options.congress) as album:
        for name in album.pictures():
            path = PurePosixPath(name)
            for tree in ("open", "crowd"):
                write(options.out / tree / "congress" / path.name, album.read(name))
            others.append((f"congress/{path.name}", f"congress-{path.stem}", "yes"))
    write_manifest(options.out / "closed", rows)
    write_manifest(options.out / "open", [*rows, *(("probe", *other) for other in others)])
    write_manifest(options.out / "crowd", [*rows, *(("gallery", *other) for other in others)])
    print(f"{len(rows)} crops of the London set and {len(others)} of Congress in {options.out}")


def write(path: Path, encoded: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)


def write_manifest(tree: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with (tree / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["role", "path", "identity", "aligned"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
