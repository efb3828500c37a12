#!/bin/bash
# One training as a chain of jobs, where nothing may be requeued (or jobs that end make room for others sooner):
#
#   slurm/chain.sh [--dry-run] [--after DEPENDENCY] N [options of sbatch] slurm/fit.sbatch [arguments of 'flarecps fit']
#
# A job that comes to its time limit saves and ends; the next one goes on there. When one has trained to the end, those
# that are left are cancelled. DEPENDENCY, such as afterok:123, is what the whole chain waits for.
# Prints the jobs' numbers, a line each. To stop the training, scancel all of them: one alone is followed by the next.
set -euo pipefail

usage() {
    sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

dry_run='' after=''
while [[ ${1:-} == --* ]]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --after) after=${2:?what to wait for} && shift ;;
        *) usage ;;
    esac
    shift
done
(($# >= 2)) && [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
links=$1
shift

before='' # the chain's jobs so far
for ((link = 1; link <= links; link++)); do
    # Only if all before have ended without being done; kill: when one has, this one is not needed.
    depends=$after${before:+${after:+,}afternotok$before}
    command=(sbatch --parsable --no-requeue ${depends:+--dependency="$depends" --kill-on-invalid-dep=yes} "$@")
    if [[ -n $dry_run ]]; then
        printf '%q ' "${command[@]}"
        echo
        before+=":<$link>"
    else
        job=$("${command[@]}")
        job=${job%%;*} # "id;cluster" where there are several clusters
        echo "$job"
        before+=:$job
    fi
done
