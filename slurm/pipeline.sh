#!/bin/bash
# The whole pipeline as jobs that wait for each other: plan → preprocess (array) → fit → segment (array) → score.
#
#   slurm/pipeline.sh [--dry-run] [--preprocess-shards N] [--segment-shards N] [--fit-jobs N] DATASET WORK CONFIG.yaml [arguments of 'fit']
#
# WORK gets plan.json, store/, run/, segmentations/ and scores/. The score is left out where DATASET has no labelsTs/.
# A WORK/plan.json that is there already, made by hand or changed, is used as it is; PLAN_WORDS are for 'flarecps plan'.
# Options for sbatch, by job: PLAN_OPTIONS, PREPROCESS_OPTIONS, FIT_OPTIONS, SEGMENT_OPTIONS, SCORE_OPTIONS, as in
#   FIT_OPTIONS="--nodes=2 --time=12:00:00 --partition=gpu" slurm/pipeline.sh ...
# --fit-jobs: the training is a chain of so many jobs (chain.sh), for sites where nothing may be requeued.
# Prints "name job-id" for every job. If one fails, those that wait for it are cancelled; call this again then: what is
# done is found done.
set -euo pipefail

usage() {
    sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

dry_run='' preprocess_shards=16 segment_shards=8 fit_jobs=1
while [[ ${1:-} == --* ]]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --preprocess-shards) preprocess_shards=${2:?how many} && shift ;;
        --segment-shards) segment_shards=${2:?how many} && shift ;;
        --fit-jobs) fit_jobs=${2:?how many} && shift ;;
        *) usage ;;
    esac
    shift
done
(($# >= 3)) || usage
dataset=$1 work=$2 config=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

after='' # what the next job waits for
# submit NAME OPTIONS WORDS...: one job, which becomes `after`
submit() {
    local name=$1 options
    read -r -a options <<<"$2"
    shift 2
    local command=(sbatch --parsable --job-name="flarecps-$name" --kill-on-invalid-dep=yes)
    [[ -z $after ]] || command+=(--dependency="$after")
    command+=("${options[@]}" "$@")
    if [[ -n $dry_run ]]; then
        printf '%q ' "${command[@]}"
        echo
        after="afterok:<$name>"
    else
        local job
        job=$("${command[@]}")
        job=${job%%;*} # "id;cluster" where there are several clusters
        after=afterok:$job
        echo "$name $job"
    fi
}

[[ -n $dry_run ]] || mkdir -p "$work"
if [[ ! -e $work/plan.json ]]; then
    read -r -a plan_words <<<"${PLAN_WORDS:-}"
    submit plan "${PLAN_OPTIONS:-}" "$here/command.sbatch" plan "$dataset" --out "$work/plan.json" \
        --fingerprints "$work/fingerprints" "${plan_words[@]}"
fi
submit preprocess "--array=1-$preprocess_shards ${PREPROCESS_OPTIONS:-}" "$here/preprocess.sbatch" \
    "$dataset" "$work/plan.json" "$work/store"
training=("$here/fit.sbatch" --config "$config" --data.store "$work/store" --trainer.default_root_dir "$work/run" "$@")
if ((fit_jobs > 1)); then
    read -r -a options <<<"${FIT_OPTIONS:-}"
    chain=(--after "$after" "$fit_jobs" --job-name=flarecps-fit "${options[@]}" "${training[@]}")
    if [[ -n $dry_run ]]; then
        "$here/chain.sh" --dry-run "${chain[@]}"
        after="afterok:<fit>"
    else
        jobs=$("$here/chain.sh" "${chain[@]}")
        after=afterok:${jobs//$'\n'/?afterok:} # whichever trains to the end
        sed 's/^/fit /' <<<"$jobs"
    fi
else
    submit fit "${FIT_OPTIONS:-}" "${training[@]}"
fi
submit segment "--array=1-$segment_shards ${SEGMENT_OPTIONS:-}" "$here/segment.sbatch" \
    "$work/run/checkpoints/last.ckpt" "$dataset/imagesTs" "$work/segmentations"
if [[ -d $dataset/labelsTs ]]; then
    submit score "${SCORE_OPTIONS:-}" "$here/command.sbatch" score "$work/segmentations" "$dataset/labelsTs" \
        --out "$work/scores"
fi
