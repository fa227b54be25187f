"""Make the face model of the package from a finished run of 'keyhole faces distill'.

    python benchmarks/ship.py RUN/student.safetensors src/keyhole/faces/models/keyhole-face.safetensors \
        --data "portraits ..."

Written in half precision, where that loses no more than rounding; description and recipe stay, and what it was trained
on is said in words.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from keyhole.faces.models.face_model import load_face_model, save_face_model
from keyhole.faces.models.runtimes import TorchNetwork
from keyhole.files import read_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="what it was trained on")
    given = parser.parse_args()
    model, stored = load_face_model(given.student, device="cpu"), read_tensors(given.student)[1]
    assert isinstance(model.network, TorchNetwork)
    about = {**stored["about"], "arm": Path(stored["about"]["arm"]).name}
    terms = replace(model.licenses, data=model.licenses.data.replace("see the recipe", given.data))
    save_face_model(
        given.out, model.network.module, stored["network"] or "", model.preparation,
        licenses=terms, about=about, half=True,
    )  # fmt: skip
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
