#!/usr/bin/env bash
# The figures of a released model: LFW folds 8 to 10, each by the threshold of the two others, and London in a crowd.
# Once for each released model; put the date into the table of students.md. What is finished is left alone.
#
#     release.sh FACES MODEL OUT
#
# FACES holds lfw112.zip (pairs.txt beside it), london_faces.zip and congress_faces.zip; MODEL is keyhole-face, or a file.
# The results lie in OUT/DIGITS, the first of the model's SHA-256.
set -euo pipefail

faces=${1:?name the folder of the faces}
model=${2:?name the model}
out=${3:?name the folder for the results}
sizes=(--probe-px 112,16,12,8)
benchmarks=$(cd "$(dirname "$0")/../../../benchmarks" && pwd)
digits=$(python -c 'import sys; from keyhole.faces.models.face_model import load_face_model as load
print(load(sys.argv[1], device="cpu").sha256[:8])' "$model")

# all that can fail for another reason comes before the folds are opened
[ -f "$out/trees/crowd/manifest.csv" ] ||
    python "$benchmarks/london.py" --london "$faces/london_faces.zip" --congress "$faces/congress_faces.zip" --out "$out/trees"
out=$out/$digits
[ -f "$out/lfw/result.json" ] ||
    keyhole faces evaluate --model "$model" --protocol lfw --root "$faces/lfw112.zip" --folds 8,9,10 "${sizes[@]}" --out "$out/lfw"
[ -f "$out/london/result.json" ] ||
    keyhole faces evaluate --model "$model" --root "$out/../trees/crowd" "${sizes[@]}" --out "$out/london"
