"""Draw the picture of what a student for few pixels reaches, from the results that are kept.

    python benchmarks/pictures.py --out docs/pictures

The other pictures there are figures of reports: 'keyhole hints' and 'keyhole study', then 'keyhole figures'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keyhole.files import read_json, write_text
from keyhole.reports import face_figures, markup
from keyhole.reports.drawings import drawings

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LINES = (
    ("keyhole-face", "students/keyhole-face-1-lfw.json"),
    ("its teacher, face-reidentification-retail-0095", "faces/lfw-matched.json"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    measured = [(name, accuracies(RESULTS / file)) for name, file in LINES]
    both = set.intersection(*(set(values) for _, values in measured))  # a line across what one lacks would be a guess
    lines = [(name, {px: values[px] for px in both}) for name, values in measured]
    told = "Accuracy in percent on LFW, folds 8 to 10, over the size of the probe, with 95 % intervals"
    drawn = markup.figure(face_figures.by_size(lines, "LFW, folds 8 to 10: accuracy, %", told))
    legend = markup.legend([name for name, _ in lines])
    (picture,) = drawings(markup.page(told, "", markup.section("By size", legend, drawn)))
    write_text(out / "few-pixels.svg", picture.svg)


def accuracies(file: Path) -> dict[float, face_figures.Band]:
    rows = [row for row in read_json(file)["rows"] if row["match"] == "none"]
    parts = {row["face_px"]: row["figures"]["accuracy"] for row in rows}
    return {px: face_figures.Band(part["value"], part["low"], part["high"]) for px, part in parts.items()}


if __name__ == "__main__":
    main()
