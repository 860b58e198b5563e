#!/usr/bin/env bash
# Trains with several processes on this machine, as a pod does: for trying out a multi-host run, or
# for a machine with one process a device.
#
#   bash launch/local_multiprocess.sh [OPTIONS] N CREM-TRAIN-ARGUMENTS…
#   bash launch/local_multiprocess.sh --devices 4 2 --config=configs/emoji.py:smoke --workdir=runs/two
#
# OPTIONS
#   --devices D   pretend D CPU devices in every process (and use no accelerator)
#   --logs DIR    one log a process (default: runs/logs/local-TIME); that of process 0 is shown
#   --port PORT   where process 0 listens (default: a free one)
#   --dry-run     print the commands and run nothing
#
# If a process fails, the others are ended and the end of its log is shown. SIGTERM and Ctrl-C reach
# all of them: the run saves and ends with exit code 75; the same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

devices="" logs="" port=""
while [[ $# -gt 0 ]]; do
    case "$1" in
        --devices | --logs | --port) need_value "$@" && printf -v "${1#--}" '%s' "$2" && shift 2 ;;
        --dry-run) DRY_RUN=1 && shift ;;
        -h | --help) show_usage ;;
        -*) refuse "unknown option $1 before the number of processes" ;;
        *) break ;;
    esac
done
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || refuse "expected the number of processes, got '${1:-}'"
count="$1" && shift
[[ -z "$devices" || "$devices" =~ ^[1-9][0-9]*$ ]] || refuse "--devices '$devices' is no number"
logs="${logs:-runs/logs/local-$(date +%Y%m%d-%H%M%S)}"
if [[ -z "$port" ]]; then
    port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
fi
if [[ -n "$devices" ]]; then
    export JAX_PLATFORMS=cpu
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi

if [[ -n "${DRY_RUN:-}" ]]; then
    for ((i = 0; i < count; i++)); do
        run crem train "$@" "--distributed=127.0.0.1:$port,$count,$i"
    done
    exit
fi

mkdir -p "$logs"
pids=()
# shellcheck disable=SC2317,SC2329 # the traps call it
end_all() {
    local pid
    for pid in "${pids[@]}"; do kill -"$1" "$pid" 2>/dev/null || true; done
}
# Jobs in the background ignore Ctrl-C, and Python then does too: SIGTERM says the same.
trap 'end_all TERM' INT TERM
trap 'end_all KILL' EXIT
for ((i = 0; i < count; i++)); do
    crem train "$@" "--distributed=127.0.0.1:$port,$count,$i" >"$logs/process-$i.log" 2>&1 &
    pids+=($!)
done
tail -n +1 -F "$logs/process-0.log" --pid="${pids[0]}" 2>/dev/null &

# Polls: bash older than 5.1 cannot tell which of several processes has ended.
alive=("${!pids[@]}") code=0
while [[ ${#alive[@]} -gt 0 ]]; do
    sleep 0.2 || true # Ctrl-C ends it
    still=()
    for i in "${alive[@]}"; do
        if kill -0 "${pids[i]}" 2>/dev/null; then
            still+=("$i")
            continue
        fi
        status=0
        wait "${pids[i]}" || status=$?
        if [[ $status -eq 0 || $status -eq $SAVED ]]; then
            [[ $status -eq 0 ]] || code=$SAVED
            continue
        fi
        show_failure "process $i of $count" "$status" "$logs/process-$i.log"
        exit "$status"
    done
    alive=(${still[@]+"${still[@]}"})
done
[[ $code -eq 0 ]] || echo "The run has saved and ended; the same command goes on." >&2
exit "$code"
