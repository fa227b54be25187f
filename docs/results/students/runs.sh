#!/usr/bin/env bash
# The training runs behind the results on students, in order; measure.sh makes the tables of them. Run it again after a
# stop: finished runs are left alone, an unfinished one goes on.
#
#     runs.sh FACES OUT [RUN...]
#
# FACES holds lfw112.zip (aligned crops, pairs.txt beside it), congress_faces.zip and face-reidentification-retail-0095.xml
# with its .bin. Named RUNs alone are made, all of them without names. Nobody of LFW's folds 7 to 10 is trained on: by
# name in LFW, by the teacher's score elsewhere. A run that fails is told at the end, after the others. For a try:
# EPOCHS=1, whose runs lie in OUT/try-1. All runs of one table in one precision: bf16,
# or that of PRECISION.
set -euo pipefail

faces=${1:?name the folder of faces and models}
out=${2:?name the folder for the results}
wanted=("${@:3}")
[ -z "${EPOCHS:-}" ] || out=$out/try-$EPOCHS
here=$(cd "$(dirname "$0")" && pwd)
teacher=$faces/face-reidentification-retail-0095.xml
lfw=(--faces "$faces/lfw112.zip" --apart "$faces/lfw112.zip" --apart-folds "7,8,9,10")
congress=(--faces "$faces/congress_faces.zip" --apart "$faces/lfw112.zip" --apart-folds "7,8,9,10")
gentle=(--optimizer adamw --lr 0.0003) # for networks without batch norm
ship=(--student "$teacher" --wise-ft 0.7 "${gentle[@]}")

run() { # NAME EPOCHS OPTIONS...
    local name=$1 epochs=${EPOCHS:-$2}
    known+="$name "
    [ "$go" = yes ] || return 0
    if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
    if [ -f "$out/$name/result.json" ]; then return; fi
    time keyhole faces distill --teacher "$teacher" --precision "${PRECISION:-bf16}" --epochs "$epochs" --resume --out "$out/$name" \
        "${@:3}" || failed+="$name "
}

all() {
    # which layers should teach across resolutions?
    for seed in 0 1 2; do
        run "ablation-$seed" 12 "${lfw[@]}" --cohort "$here/ablation.toml" --seed "$seed"
    done
    # appearance variety: equal numbers of images (few, so many epochs; those with ten pictures and more are much
    # photographed people, which is part of what is compared), and equal people
    for seed in 0 1; do
        run "many-people-$seed" 100 "${lfw[@]}" --per-person 1 --draw 900 --seed "$seed"
        run "few-people-$seed" 100 "${lfw[@]}" --least-per-person 10 --per-person 20 --draw 900 --seed "$seed"
        run "narrow-$seed" 12 "${lfw[@]}" --degrade "fixed:12;share=0.85" --seed "$seed"
        run "wide-$seed" 12 "${lfw[@]}" --degrade "log-uniform:6-64;share=0.85" --seed "$seed"
    done
    # ones that never saw lanczos, area, blur or JPEG
    for seed in 0 1; do
        run "unseen-kinds-$seed" 24 "${lfw[@]}" --seed "$seed" \
            --degrade "log-uniform:6-32;methods=pil-bicubic+pil-bilinear,share=0.85"
    done
    # with labels as well; compact-112-s is the same without
    for seed in 0 1; do
        run "labels-$seed" 24 "${lfw[@]}" --terms embedding,seed,margin=0.02 --seed "$seed"
    done
    # architectures
    for seed in 0 1; do
        for student in compact-24-xs compact-24-s compact-48-s compact-112-s compact-48-m compact-112-m; do
            run "$student-$seed" 24 "${lfw[@]}" --student "$student" --seed "$seed"
        done
    done
    # to ship: (a) public domain alone, enlarged by blends; (b) with LFW as well, which has labels (one portrait a person
    # has none to learn from); as many images and steps
    for seed in 0 1; do
        run "public-domain-$seed" 14 "${congress[@]}" --blends 30000 "${ship[@]}" --seed "$seed"
        run "research-only-$seed" 14 "${lfw[@]}" --faces "$faces/congress_faces.zip" --blends 22000 "${ship[@]}" \
            --terms embedding,seed,margin=0.02 --seed "$seed"
    done
    # how much of that gain a student of at most 0.28 million parameters keeps, which begins with random weights
    for seed in 0 1; do
        run "small-$seed" 100 "${lfw[@]}" --faces "$faces/congress_faces.zip" --blends 22000 --student compact-48-s --seed "$seed"
    done
    # the simplest try: the teacher itself, fine-tuned on what it says of the sharp face (fold7-simplest.json)
    run simplest 8 "${lfw[@]}" --student "$teacher" --terms embedding "${gentle[@]}" --degrade "log-uniform:6-112"
}

known=" " failed="" go=no
all
for name in "${wanted[@]}"; do
    if [[ "$known" != *" $name "* ]]; then
        echo "There is no run $name; there are:$known" >&2
        exit 1
    fi
done
mkdir -p "$out"
go=yes
all
[ -z "$failed" ] || {
    echo "Failed: $failed" >&2
    exit 1
}
