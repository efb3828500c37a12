#!/bin/sh
# FLARE's contract: every /workspace/inputs/X_0000.nii.gz becomes /workspace/outputs/X.nii.gz, without a network.
#
#   docker container run --gpus "device=0" -m 28G --rm --network none \
#     -v "$PWD/inputs:/workspace/inputs" -v "$PWD/outputs:/workspace/outputs" TEAM:latest /bin/bash -c "sh predict.sh"
#
# Outside a container, or to try something else:
#   FLARECPS_INPUTS, FLARECPS_OUTPUTS   the two folders
#   FLARECPS_MODEL                      folder of checkpoints (several, folds for instance, are averaged); a
#                                       postprocessing.json in it is applied
#   FLARECPS_OPTIONS                    words for 'flarecps segment' instead of --budget flare22
#   FLARECPS_PYTHON                     the Python that has flarecps
# The exit code is 0 when every scan was segmented, 1 when some could not be (the others are done), 2 for a mistake.
set -eu
inputs=${FLARECPS_INPUTS:-/workspace/inputs}
outputs=${FLARECPS_OUTPUTS:-/workspace/outputs}
model=${FLARECPS_MODEL:-/workspace/model}
options=${FLARECPS_OPTIONS---budget flare22}
python=${FLARECPS_PYTHON:-python}

set --
for checkpoint in "$model"/*.ckpt; do
    [ ! -f "$checkpoint" ] || set -- "$@" "$checkpoint"
done
if [ $# -eq 0 ]; then
    echo "predict.sh: no checkpoint (*.ckpt) in $model; copy one there before the image is built" >&2
    exit 2
fi
set -- "$@" "$inputs" "$outputs"
[ ! -f "$model/postprocessing.json" ] || set -- "$@" --postprocess "$model/postprocessing.json"

# Nothing here looks for a network; libraries that might are told not to.
export WANDB_MODE=disabled HF_HUB_OFFLINE=1 MPLCONFIGDIR="${TMPDIR:-/tmp}" PYTHONDONTWRITEBYTECODE=1

described=$outputs/dataset.json
had=$([ ! -e "$described" ] || echo yes)
status=0
# shellcheck disable=SC2086  # options are several words
"$python" -m flarecps segment "$@" $options || status=$?
[ -n "$had" ] || rm -f "$described" # the organisers expect label maps and nothing else
exit "$status"
