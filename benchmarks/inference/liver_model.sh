#!/bin/sh
# A small liver network trained on one CT for a few CPU minutes: OUT/run/checkpoints/last.ckpt.
#
#   benchmarks/inference/liver_model.sh CT.nii.gz LABELS.nii.gz OUT
#
# LABELS holds the liver as 1. The network sees 3 mm voxels; flarecps' own commands do everything. The plan's intensity
# window is widened to all of CT's values: nnU-Net v2 clips before it resamples and flarecps after it, so a window that
# clips is a difference between the two on every edge, and the comparison is to show the others.
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
if [ ! -f "$out/plan.json" ]; then
    flarecps plan "$data" --spacing "[3, 3, 3]" --patch "[32, 64, 64]" --workers 1 --out "$out/plan.json"
    for entry in low_hu:-1024 high_hu:3071 mean_hu:0 sd_hu:200; do
        sed -i "s/\"${entry%:*}\": [-0-9.e]*/\"${entry%:*}\": ${entry#*:}.0/" "$out/plan.json"
    done
fi
flarecps preprocess "$data" "$out/plan.json" --workers 1 --out "$out/store"
flarecps fit --config "$here/liver_model.yaml" --data.store "$out/store" --trainer.default_root_dir "$out/run"
