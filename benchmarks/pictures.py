"""Draw the picture of what a student for few pixels reaches, from the results that are kept.

    python benchmarks/pictures.py --out docs/pictures

The other pictures there come from the reports of 'keyhole hints' and 'keyhole study', by 'keyhole figures'.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from keyhole.files import read_json, write_text
from keyhole.reports import face_figures, markup
from keyhole.reports.drawings import drawings

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LINES = (
    ("keyhole-face", "students/keyhole-face-1-lfw.json"),
    ("its teacher, face-reidentification-retail-0095", "faces/lfw-matched.json"),
)
NOT_MEASURED = face_figures.Band(math.nan, math.nan, math.nan)  # a line ends before it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = [read_json(RESULTS / file) for _, file in LINES]
    if len({(each["protocol"], each["summary"]) for each in found}) > 1:
        raise SystemExit("The results are not of the same pairs.")
    measured = {name: accuracies(each) for (name, _), each in zip(LINES, found, strict=True)}
    sizes = {px for values in measured.values() for px in values}
    lines = [(name, {px: values.get(px, NOT_MEASURED) for px in sizes}) for name, values in measured.items()]
    alt = "Accuracy in percent on LFW, folds 8 to 10, over the size of the probe, with 95 % intervals"
    drawn = markup.figure(face_figures.by_size(lines, "LFW, folds 8 to 10: accuracy, %", alt))
    legend = markup.legend([name for name, _ in lines])
    (picture,) = drawings(markup.page(alt, "", markup.section("By size", legend, drawn)))
    write_text(out / "few-pixels.svg", picture.svg)


def accuracies(found: dict[str, Any]) -> dict[float, face_figures.Band]:
    """Return what was reached without matching."""
    parts = {row["face_px"]: row["figures"]["accuracy"] for row in found["rows"] if row["match"] == "none"}
    return {px: face_figures.Band(part["value"], part["low"], part["high"]) for px, part in parts.items()}


if __name__ == "__main__":
    main()
