#!/usr/bin/env bash
# The reference setting on the schedule of the published comparisons, from nothing to the reports: the teacher, then
# students of two sizes. Run it again after a stop, with the same words: it goes on where it was. One call at a time.
#
#     reference-240.sh ROOT OUT
#
# ROOT holds the data, OUT gets OUT/teacher, OUT/resnet20 and OUT/resnet32. LIMIT_S=540 ends a call after so many seconds,
# with exit code 3 while something is left to do.
# For a try: EPOCHS=1 SEEDS='[0]' DATA=digits TEACHER=resnet8 STUDENTS=resnet8 COMPILE=off.
set -euo pipefail

root=${1:?name the folder of the data}
out=${2:?name the folder for the results}
here=$(cd "$(dirname "$0")" && pwd)
epochs=${EPOCHS:-240} seeds=${SEEDS:-[0, 1, 2]} data=${DATA:-cifar100} teacher=${TEACHER:-resnet110}
# on a GPU a step is recorded once and replayed; elsewhere only what pays is compiled
compile=${COMPILE:-$(python -c 'import torch; print("on" if torch.cuda.is_available() else "auto")')}
deadline=$((SECONDS + ${LIMIT_S:-31536000}))

stop() {
    echo "The time of this call is over. Run it again to go on." >&2
    exit 3
}

run() { # a keyhole command, ended in time; what it has done until then is safe
    local left=$((deadline - SECONDS)) code=0
    [ "$left" -gt 0 ] || stop
    timeout --signal=INT --kill-after=20 "$left" keyhole "$@" || code=$?
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then stop; fi
    [ "$code" -eq 0 ] || exit "$code"
}

mkdir -p "$out"
if [ ! -f "$out/teacher/result.json" ]; then
    run train --model "$teacher" --data "$data" --root "$root" --epochs "$epochs" --compile "$compile" \
        --out "$out/teacher" --resume
fi
for student in ${STUDENTS:-resnet20 resnet32}; do
    sed -e "s/^student = .*/student = \"$student\"/" -e "s/^epochs = .*/epochs = $epochs/" \
        -e "s/^seeds = .*/seeds = $seeds/" -e "s/^data = .*/data = \"$data\"/" \
        -e "s/^teacher = .*/teacher = \"$teacher\"/" -e "s/^compile = .*/compile = \"$compile\"/" "$here/reference-240.toml" >"$out/$student.toml"
    rm -f "$out/$student"/leases/* # this script alone works there; what it left when it was stopped holds nothing
    run study "$out/$student.toml" --weights "$out/teacher/student.safetensors" --root "$root" --out "$out/$student"
    grep -q '"open_cells": 0' "$out/$student/result.json" || {
        echo "Cells of $student are left. Run it again to go on." >&2
        exit 3
    }
done
