#!/usr/bin/env bash
# Trains on GPUs under SLURM, one process a GPU.
#
#   bash launch/slurm_gpu.sh [OPTIONS] -- CREM-TRAIN-ARGUMENTS…
#   bash launch/slurm_gpu.sh --nodes 4 --gpus 8 --time 24:00:00 -- \
#       --config=configs/qwen2_vl_2b.py --workdir=/shared/runs/crem-2b
#   bash launch/slurm_gpu.sh stop JOB        # the run saves and ends
#
# OPTIONS
#   --nodes N  --gpus GPUS-A-NODE  --cpus CPUS-A-GPU (default 8)  --time LIMIT
#   --partition P  --account A  --name NAME   as sbatch takes them
#   --logs DIR   default: runs/logs; JOB.log there is of all processes, each line with its number
#   --follow     wait for the job and show its log
#   --dry-run    print the commands and run nothing
#
# Three minutes before its time limit, and on preemption, the run saves and is queued again. A
# process that fails ends the others. --workdir must be on a disk that all nodes share.
set -euo pipefail

if [[ "${1:-}" == __job ]]; then # inside the job, where SLURM runs a copy of this file
    shift
    source launch/common.sh
    # shellcheck disable=SC1091
    source "${CREM_VENV:-.venv}/bin/activate"
    code=0
    run srun --kill-on-bad-exit=1 --label crem train "$@" || code=$?
    # 143: SIGTERM came before the first step, when there was nothing to save.
    if [[ ($code -eq $SAVED || $code -eq 143) && ! -e "runs/logs/$SLURM_JOB_ID.stop" ]]; then
        run scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ "${1:-}" == stop ]]; then
    [[ "${2:-}" =~ ^[0-9]+$ ]] || refuse "expected the number of a job, got '${2:-}'"
    mkdir -p runs/logs && touch "runs/logs/$2.stop" # or the job would queue itself again
    run scancel --signal=TERM "$2"
    exit
fi

# shellcheck disable=SC2034 # read by name below
nodes=1 gpus=8 cpus=8 time="" partition="" account="" name=crem logs=runs/logs follow=""
while [[ $# -gt 0 ]]; do
    case "$1" in
        --nodes | --gpus | --cpus | --time | --partition | --account | --name | --logs)
            need_value "$@" && printf -v "${1#--}" '%s' "$2" && shift 2
            ;;
        --follow) follow=yes && shift ;;
        --dry-run) DRY_RUN=1 && shift ;;
        -h | --help) show_usage ;;
        --) shift && break ;;
        *) refuse "unknown option $1; arguments of crem train come after --" ;;
    esac
done
[[ $# -gt 0 ]] || refuse "expected arguments of crem train after --"
[[ -n "${DRY_RUN:-}" ]] || mkdir -p "$logs"
options=(--parsable --job-name "$name" --nodes "$nodes" --ntasks-per-node "$gpus"
    --gpus-per-node "$gpus" --cpus-per-task "$cpus" --output "$logs/%j.log" --open-mode append
    --requeue --signal TERM@180 --chdir "$PWD")
for key in time partition account; do
    [[ -z "${!key}" ]] || options+=("--$key" "${!key}")
done
if [[ -n "${DRY_RUN:-}" ]]; then
    run sbatch "${options[@]}" launch/slurm_gpu.sh __job "$@"
    exit
fi
show sbatch "${options[@]}" launch/slurm_gpu.sh __job "$@"
job="$(sbatch "${options[@]}" launch/slurm_gpu.sh __job "$@")"
job="${job%%;*}"
echo "job $job: its log is $logs/$job.log; stop it with: bash launch/slurm_gpu.sh stop $job"
[[ -n "$follow" ]] || exit 0

tail -n +1 -F "$logs/$job.log" 2>/dev/null &
follower=$!
trap 'kill "$follower" 2>/dev/null || true' EXIT
while true; do
    sleep "${CREM_POLL_SECONDS:-20}"
    state="$(sacct --jobs "$job" --allocations --noheader --parsable2 --format State | tail -n 1)"
    case "$state" in
        COMPLETED) exit 0 ;;
        PENDING | RUNNING | REQUEUED | COMPLETING | CONFIGURING | RESIZING | SUSPENDED | "") ;;
        *)
            show_failure "job $job ($state)" 1 "$logs/$job.log"
            exit 1
            ;;
    esac
done
