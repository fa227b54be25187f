#!/usr/bin/env bash
# Both stages of variants.toml: what its held-out images choose is judged on fresh seeds. Run it again after a stop, with
# the same words: it goes on where it was.
#
#     variants.sh ROOT WEIGHTS OUT
#
# ROOT holds the data, WEIGHTS are those of the teacher; OUT gets OUT/choosing, OUT/judging.toml and OUT/judging. Where no
# arm goes on, it says so and ends there.
set -euo pipefail

root=${1:?name the folder of the data}
weights=${2:?name the file of the weights of the teacher}
out=${3:?name the folder for the results}
here=$(cd "$(dirname "$0")" && pwd)

keyhole study "$here/variants.toml" --weights "$weights" --root "$root" --out "$out/choosing"
python - "$here/variants.toml" "$out" <<'END'
import sys
from pathlib import Path

from keyhole import Board, KeyholeError, read_study
from keyhole.studies.followup import followup, study_toml

out = Path(sys.argv[2])
study, board = read_study(Path(sys.argv[1])), Board(out / "choosing")
try:
    fresh = followup(study, [board.result(cell.id) for cell in study.cells], seeds=range(20, 26))
except KeyholeError as error:
    sys.exit(str(error))
(out / "judging.toml").write_text(study_toml(fresh), encoding="utf-8")
END
keyhole study "$out/judging.toml" --weights "$weights" --root "$root" --out "$out/judging"
