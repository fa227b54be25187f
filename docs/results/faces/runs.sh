#!/usr/bin/env bash
# The tables of faces.md for one model, but for tracks, effective resolution, clips and costs. Run it again after a stop:
# what is finished is left alone.
#
#     runs.sh FACES MODEL OUT
#
# FACES holds lfw112.zip (aligned crops, pairs.txt beside it), london_faces.zip, congress_faces.zip and
# yunet_n_640_640.onnx; MODEL is what --model takes. The matcher is fitted on LFW folds 1 to 3 and tested on others.
set -euo pipefail

faces=${1:?name the folder of faces}
model=${2:?name the model}
out=${3:?name the folder for the results}
here=$(cd "$(dirname "$0")" && pwd)
sizes="112,32,24,16,12,8"
matches="none,resolution,resolution-estimated,fitted,fitted-estimated"
lfw=(--protocol lfw --root "$faces/lfw112.zip")
matcher=(--matcher "$out/matcher.safetensors")
photos=(--detector "$faces/yunet_n_640_640.onnx")

keep() { # FILE COMMAND OPTIONS...
    if [ ! -f "$out/$1" ]; then keyhole faces "$2" --model "$model" "${@:3}"; fi
}

evaluate() { # NAME OPTIONS...
    keep "$1/result.json" evaluate --probe-px "$sizes" --out "$out/$1" "${@:2}"
}

mkdir -p "$out"
if [ ! -f "$out/trees/open/manifest.csv" ]; then
    python "$here/../../../benchmarks/london.py" --london "$faces/london_faces.zip" --congress "$faces/congress_faces.zip" \
        --out "$out/trees"
fi
evaluate lfw-plain "${lfw[@]}"
evaluate lfw-both "${lfw[@]}" --shrink both
keep matcher.safetensors fit "${lfw[@]}" --folds "1,2,3" --out "$out/matcher.safetensors"
evaluate lfw-matched "${lfw[@]}" --folds "8,9,10" --match "$matches" "${matcher[@]}"
evaluate london-matched --root "$out/trees/closed" --match "$matches" "${matcher[@]}"
evaluate london-open --root "$out/trees/open" --match "none,resolution,fitted" "${matcher[@]}"
keep london-factors/result.json factors --root "$out/trees/portraits" "${photos[@]}" --probe-px "112,16,12" \
    --margins "aligned,0,0.15,0.3,0.6,1" --match "none,resolution" --out "$out/london-factors"
keep gallery.safetensors embed "$out/trees/portraits/gallery" "${photos[@]}" "${matcher[@]}" --out "$out/gallery.safetensors"
keep london-thresholds.json calibrate "${photos[@]}" "${matcher[@]}" --gallery "$out/gallery.safetensors" \
    --strangers "$faces/congress_faces.zip" --mated "$out/trees/portraits/probes" --out "$out/london-thresholds.json"
if [ ! -f "$out/alarms/false-alarms.json" ]; then
    python "$here/../../../benchmarks/false_alarms.py" draw --trees "$out/trees" --congress "$faces/congress_faces.zip" \
        --out "$out/alarms"
    watch=("${photos[@]}" "${matcher[@]}" --gallery "$out/gallery.safetensors")
    keep alarms/thresholds.json calibrate "${watch[@]}" --strangers "$out/alarms/calibrate.zip" \
        --mated "$out/trees/portraits/probes" --out "$out/alarms/thresholds.json"
    for px in 24 16 12 10 8; do
        for who in strangers enrolled; do
            keyhole faces identify --model "$model" "${watch[@]}" --thresholds "$out/alarms/thresholds.json" \
                --probe "$out/alarms/$px/$who" --json >"$out/alarms/$px-$who.json"
        done
    done
    python "$here/../../../benchmarks/false_alarms.py" count "$out/alarms"
fi
