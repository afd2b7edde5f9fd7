#!/usr/bin/env bash
# A prep file through all its stages on Slurm: clean (array) → decide and tokenizer → shards (array) → merge.
#
#   launch_scripts/prep_array.sh PREP.yaml TASKS [sbatch options …]
#   launch_scripts/prep_array.sh prep.yaml 64 --partition=cpu --account=me --time=4:00:00 --cpus-per-task=8
#
# `codemix submit prep` does the same, with a site file, and submits again only what has failed; this needs nothing but sbatch.
# Each stage waits for the one before it to succeed. A task that fails may be submitted again with the same command: what is
# finished is not made again, so only what is missing costs time. Options behind TASKS go to every job.
# PYTHON (default: python) is the interpreter of the environment that codemix is installed in; LOGS (default: prep-logs) receives
# the logs. With DRY_RUN=1 the commands are printed and nothing is submitted.
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PREP.yaml TASKS [sbatch options …]" >&2
    exit 2
fi
prep=$1 tasks=$2
shift 2
if [ ! -f "$prep" ]; then
    echo "$0: $prep: no such file; give the prep file" >&2
    exit 2
fi
script=$(dirname "$(readlink -f "$0")")/prep_array.sbatch
logs=${LOGS:-prep-logs}
name=prep-$(basename "${prep%.*}")
mkdir -p "$logs"

# $1: stage; $2: id of the job to wait for, or nothing; more: sbatch options. Prints the job's id.
submit() {
    local stage=$1 after=$2
    shift 2
    # a failed dependency would stay pending for ever otherwise
    local waits=()
    [ -z "$after" ] || waits=(--dependency="afterok:$after" --kill-on-invalid-dep=yes)
    local command=(sbatch --parsable --job-name="$name-$stage" --open-mode=append "${waits[@]}" "$@" "$script" "$prep" "$stage")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "${command[@]}" >&2
        echo >&2
        echo "$stage"
        return
    fi
    local job
    job=$("${command[@]}")
    echo "$stage: job ${job%%;*}" >&2
    echo "${job%%;*}"
}

array=(--array="0-$((tasks - 1))" --output="$logs/%x-%A-%a.log")
once=(--output="$logs/%x-%j.log")
export PREP_TASKS=$tasks
cleaned=$(submit clean "" "${array[@]}" "$@")
decided=$(submit decide "$cleaned" "${once[@]}" "$@")
tokenizer=$(submit tokenizer "$decided" "${once[@]}" "$@")
sharded=$(submit shards "$tokenizer" "${array[@]}" "$@")
merged=$(submit merge "$sharded" "${once[@]}" "$@")
echo "$merged"
