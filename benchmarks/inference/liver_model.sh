#!/bin/sh
# A small liver network trained on one CT for a few CPU minutes: OUT/run/checkpoints/last.ckpt.
#
#   benchmarks/inference/liver_model.sh CT.nii.gz LABELS.nii.gz OUT
#
# LABELS holds the liver as 1. The network sees 3 mm voxels; flarecps' own commands do everything.
set -eu
ct=$(realpath "$1")
labels=$(realpath "$2")
out=$3
here=$(cd "$(dirname "$0")" && pwd)
data=$out/dataset
mkdir -p "$data/imagesTr" "$data/labelsTr"
ln -sf "$ct" "$data/imagesTr/scan_0000.nii.gz"
ln -sf "$labels" "$data/labelsTr/scan.nii.gz"
cat > "$data/dataset.json" <<JSON
{"name": "liver", "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 1, "file_ending": ".nii.gz"}
JSON
[ -f "$out/plan.json" ] || flarecps plan "$data" --spacing "[3, 3, 3]" --patch "[32, 64, 64]" --intensity foreground \
    --workers 1 --out "$out/plan.json"
flarecps preprocess "$data" "$out/plan.json" --workers 1 --out "$out/store"
flarecps fit --config "$here/liver_model.yaml" --data.store "$out/store" --trainer.default_root_dir "$out/run"
