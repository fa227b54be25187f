#!/usr/bin/env bash
# The tables of students.md from the runs of runs.sh, all on fold 7 of LFW (folds 8 to 10 are for released models). Run it
# again after a stop: what is finished is left alone; a table whose runs are not there yet is left out.
#
#     measure.sh FACES RUNS OUT
#
# FACES and RUNS are those of runs.sh; the repository's folder is the working folder. What was measured of a run and lies
# beside this script (RUN.json, RUN-pictures.json) stands for the run where that is not in RUNS. Each table is made twice: of
# the accuracy on the pairs of the fold, and of TAR over all its pictures. What is decided is decided by the TAR at 12 px;
# each table is corrected for its own comparisons at one size, and what it says of other sizes describes and proves nothing.
set -euo pipefail

faces=${1:?name the folder of faces and models}
runs=${2:?name the folder of the runs}
out=${3:?name the folder for the tables}
lfw=(--root "$faces/lfw112.zip" --folds 7 --threshold-folds 1,2,3,4,5,6)
teacher=$faces/face-reidentification-retail-0095.xml
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"

arms() { # NAME "RUN..." OPTIONS...
    local suffix
    for suffix in "" -pictures; do
        table "$1$suffix" "$suffix" "$2" ${suffix:+--pictures} "${@:3}"
    done
}

table() { # NAME SUFFIX "RUN..." OPTIONS...
    local name=$1 found=() run
    [ ! -f "$out/$name.json" ] || return 0
    for run in $3; do
        if [ -f "$runs/$run/result.json" ]; then
            found+=("$runs/$run")
        elif [ -f "$here/$run$2.json" ] && [[ " ${*:4} " != *" --degrade "* ]]; then
            found+=("$here/$run$2.json")
        else
            echo "$name: $run is not there yet" >&2
            return 0
        fi
    done
    python benchmarks/arms.py "${found[@]}" --root "$faces/lfw112.zip" --out "$out/$name.json" "${@:4}" ||
        failed+="$name "
}

students_of() { # RUN... - their files, where all of them are there
    local run
    students=()
    for run in "$@"; do
        [ -f "$runs/$run/student.safetensors" ] || return 1
        students+=("$runs/$run/student.safetensors")
    done
}
failed=""

# which layers should teach across resolutions?
arms ablation "ablation-0 ablation-1 ablation-2" --compare "cluster centers:stage ends" \
    --compare "cluster centers:random" --compare "centers that survive:cluster centers" \
    --compare "centers that survive:stage ends"
# how each layer of the teacher survives stands in the cells of ablation.json
# appearance variety, resolutions, labels, what ships, architectures; `, as trained` is a run without the weights that it
# began with mixed back in
arms people "few-people-0 few-people-1 many-people-0 many-people-1"
arms sizes "narrow-0 narrow-1 wide-0 wide-1"
arms labels "compact-112-s-0 compact-112-s-1 labels-0 labels-1"
arms ship "public-domain-0 public-domain-1 research-only-0 research-only-1 small-0 small-1" \
    --compare "research-only:public-domain" --compare "research-only, as trained:public-domain, as trained"
# the same beside their teacher, which comes first: who gains how much over it, by the TAR at 12 px, decides what ships
if [ ! -f "$out/gain.json" ] && students_of public-domain-0 public-domain-1 research-only-0 research-only-1; then
    fine=("${students[@]}")
    if students_of small-0 small-1; then fine+=("${students[@]}"); fi
    python benchmarks/choosing.py "$teacher" keyhole-face "${fine[@]}" --teacher "$teacher" --faces "$faces/lfw112.zip" \
        --folds 7 --out "$out/gain.json" || failed+="gain "
fi
all=""
for student in compact-112-s compact-24-xs compact-24-s compact-48-s compact-48-m compact-112-m; do
    all+="$student-0 $student-1 "
done
arms architectures "$all"

# what the model of the package costs, beside its teacher; integers are calibrated on the portraits, whom LFW does not know by
# name: some may be of people of fold 7 whom training leaves out by their faces, in other pictures
model=src/keyhole/faces/models/keyhole-face.safetensors
digits=$(sha256sum <"$model" | cut -c1-8)
forms=$out/forms-$digits
mkdir -p "$forms"
export_() { # MODEL FILE PRECISION
    [ -f "$2.toml" ] || keyhole export --model "$1" --faces "$faces/congress_faces.zip" \
        --degrade "log-uniform:6-32;blur=0.2-1@0.3,noise=1-4@0.2,jpeg=30-95@0.3" --precision "$3" --out "$2" ||
        failed+="${2##*/} "
}
export_ "$teacher" "$forms/teacher-fp32.onnx" fp32
for form in onnx xml; do
    for precision in fp32 fp16 int8; do
        export_ keyhole-face "$forms/keyhole-face-$precision.$form" "$precision"
    done
done
[ -f "$forms.json" ] || python benchmarks/students.py "$forms/teacher-fp32.onnx.toml" keyhole-face \
    "$forms"/keyhole-face-*.onnx.toml "$forms"/keyhole-face-*.xml.toml "${lfw[@]}" --out "$forms.json" || failed+="forms "
[ -f "$forms-pictures.json" ] || python benchmarks/choosing.py keyhole-face "$forms"/keyhole-face-*.onnx.toml \
    "$forms"/keyhole-face-*.xml.toml --teacher "$teacher" --faces "$faces/lfw112.zip" --folds 7 --out "$forms-pictures.json" ||
    failed+="forms-pictures "
zeros=()
for run in $all; do [[ $run != *-0 ]] || zeros+=("$run"); done
if [ ! -f "$out/costs-$digits.json" ] && students_of "${zeros[@]}"; then
    python benchmarks/students.py "$forms/teacher-fp32.onnx.toml" keyhole-face "${students[@]}" "${lfw[@]}" \
        --out "$out/costs-$digits.json" || failed+="costs "
fi

# kinds of pictures that one student never saw and the other did: how far it falls behind, and how much of that is of the
# kind: the change from the kind that both saw
usual=down=pil-bicubic
for kind in $usual down=pil-bilinear down=pil-lanczos down=cv2-area,up=pil-bicubic blur=0.7 jpeg=60; do
    arms "kinds-$kind" "compact-112-s-0 compact-112-s-1 unseen-kinds-0 unseen-kinds-1" --probe-px 16,12,8 --degrade "$kind"
    for suffix in "" -pictures; do
        made=$out/kinds-$kind$suffix.json beside=$out/kinds-$usual$suffix.json change=$out/kinds-$kind$suffix-change.json
        if [ "$kind" != $usual ] && [ -f "$made" ] && [ -f "$beside" ] && [ ! -f "$change" ]; then
            python benchmarks/arms.py "$made" --beside "$beside" --root "$faces/lfw112.zip" ${suffix:+--pictures} \
                --probe-px 16,12,8 --degrade "$kind" --out "$change" || failed+="kinds-$kind$suffix-change "
        fi
    done
done

# what is missing on the faces that a student was trained on, and on others of the same source
for run in research-only-0 small-0; do
    [ -f "$runs/$run/student.safetensors" ] || continue
    [ -f "$out/ceiling-$run.json" ] || python benchmarks/ceiling.py --teacher "$teacher" --student "$runs/$run/student.safetensors" \
        --seen "$faces/lfw112.zip" --seen-folds 1,2,3,4,5,6 --unseen "$faces/lfw112.zip" --unseen-folds 7 --out "$out/ceiling-$run.json" ||
        failed+="ceiling-$run "
done
[ -z "$failed" ] || {
    echo "Failed: $failed" >&2
    exit 1
}
