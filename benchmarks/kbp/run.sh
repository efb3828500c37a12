#!/bin/sh
# CPS and its supervised control on OpenKBP head-and-neck CT: 10 labelled of 142 scans, 25 test scans, both trained for
# equally many optimiser steps; the last checkpoint is scored, nothing is chosen on test scans.
#
#   benchmarks/kbp/run.sh DATASET OUT
#
# DATASET is the folder in nnU-Net v2's layout with splits.json; OUT receives plan, store, runs, scores and report.
# A stage whose result exists is left out, so an interrupted run goes on where it stopped.
set -eu
data=$1
out=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"

[ -f "$out/plan.json" ] || flarecps plan "$data" --split 10_labelled --out "$out/plan.json"
flarecps preprocess "$data" "$out/plan.json" --out "$out/store"

for run in kbp_3d kbp_3d_supervised; do
    folder=$out/runs/$run
    if [ ! -d "$folder/segmentations" ]; then
        resume=
        [ ! -f "$folder/checkpoints/last.ckpt" ] || resume="--ckpt_path last"
        # shellcheck disable=SC2086  # two words or none
        flarecps fit --config "$here/configs/$run.yaml" --data.store "$out/store" --trainer.default_root_dir "$folder" $resume
    fi
    flarecps segment "$folder/checkpoints/last.ckpt" "$data/imagesTs" "$folder/segmentations"
    flarecps score "$folder/segmentations" "$data/labelsTs" --protocol strict --out "$folder/scores"
done
flarecps report "$out/runs/kbp_3d" "$out/runs/kbp_3d_supervised" --names "CPS,supervised control" \
    --images "$data/imagesTs" --references "$data/labelsTs" --out "$out/report.html"
