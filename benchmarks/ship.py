"""Make the face model of the package from a finished run of 'keyhole faces distill'.

    python benchmarks/ship.py RUN/student.safetensors src/keyhole/faces/keyhole-face.safetensors --data "portraits ..."
        --start face-reidentification-retail-0095.xml --share 0.7

Each weight becomes so much of the trained one and the rest of the one that it began with: what training on few pictures
of one kind makes worse on others comes back, and most of what it won stays (Wortsman et al., 2022, WiSE-FT,
https://arxiv.org/abs/2109.01903, equation 1). Written in half precision, where that loses no more than rounding;
description and recipe stay, and what it was trained on is said in words.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from keyhole.faces.models import load_face_model, save_face_model
from keyhole.faces.openvino_ir import read_ir
from keyhole.faces.runtimes import TorchNetwork
from keyhole.files import read_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="what it was trained on")
    parser.add_argument("--start", type=Path, required=True, help="the IR whose weights it began with")
    parser.add_argument("--share", type=float, required=True, help="of the trained weights, 0 to 1")
    given = parser.parse_args()
    model, told = load_face_model(given.student, device="cpu"), read_tensors(given.student)[1]
    assert isinstance(model.network, TorchNetwork)
    module, start = model.network.module, read_ir(given.start).state_dict()
    trained = module.state_dict()
    assert trained.keys() == start.keys()
    module.load_state_dict({name: start[name].lerp(trained[name], given.share) for name in start})
    about = {**told["about"], "arm": Path(told["about"]["arm"]).name, "share of trained weights": given.share}
    terms = replace(model.licenses, data=model.licenses.data.replace("see the recipe", given.data))
    save_face_model(given.out, module, told["network"] or "", model.preparation, licenses=terms, about=about, half=True)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
