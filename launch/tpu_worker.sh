#!/usr/bin/env bash
# What tpu_pod.sh has every worker of a TPU pod do, in the copy of the code there:
#   tpu_worker.sh install | start [--bring gs://BUCKET/FOLDER=DIR]… CREM-TRAIN-ARGUMENTS… | follow
#   tpu_worker.sh stop [now] | status
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

log=run.log pidfile=run.pid codefile=run.code
export PATH="$HOME/.local/bin:$PATH"

is_running() { [[ -f "$pidfile" ]] && kill -0 "$(<"$pidfile")" 2>/dev/null; }

install() {
    # The images bring an older Python than crem_jax needs.
    if ! command -v python3.11 python3.12 python3.13 >/dev/null; then
        python3 -m pip install --quiet --user uv
        uv python install 3.12
    fi
    source launch/venv.sh
    install_crem tpu "--editable .[tpu,gcs]"
}

start() {
    if is_running; then
        echo "error: a run is going on here already; stop it first" >&2
        exit 1
    fi
    rm -f "$codefile"
    # shellcheck disable=SC1091
    source "${CREM_VENV:-.venv}/bin/activate"
    # Its own session, so that it outlives the connection that started it.
    setsid bash launch/tpu_worker.sh attend "$@" >"$log" 2>&1 </dev/null &
    echo $! >"$pidfile"
}

# Brings what the run needs, runs crem train to its end and keeps the exit code.
attend() {
    local child code told=""
    while [[ "${1:-}" == --bring ]]; do
        bring "$2" || { echo $? >"$codefile" && return; }
        shift 2
    done
    crem train "$@" &
    child=$!
    trap 'told=yes; kill -TERM "$child"' TERM
    while true; do
        code=0
        wait "$child" || code=$?
        [[ -n "$told" ]] || break # else it was the signal that ended the waiting
        told=""
    done
    echo "$code" >"$codefile"
}

bring() { # gs://BUCKET/FOLDER=DIR
    mkdir -p "${1##*=}" && gcloud storage rsync --recursive "${1%=*}" "${1##*=}"
}

follow() {
    local number code
    number="${TPU_WORKER_ID:-$(number_of_worker)}"
    if [[ "$number" == 0 ]]; then
        tail -n +1 -F --pid="$(<"$pidfile")" "$log"
    else
        while is_running; do sleep 1; done
    fi
    code="$(cat "$codefile" 2>/dev/null || echo 137)"
    # gcloud does not hand exit codes on, so these lines say it.
    case "$code" in
        0) ;;
        "$SAVED") echo "crem worker saved: worker $number ($(hostname))" ;;
        *)
            echo "crem worker failed: worker $number ($(hostname)) ended with exit code $code; its log:"
            tail -n 40 "$log"
            return 1
            ;;
    esac
}

number_of_worker() {
    curl --silent --fail --header "Metadata-Flavor: Google" \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number ||
        echo 0
}

stop() { # [now]
    is_running || return 0
    if [[ "${1:-}" == now ]]; then
        kill -KILL -- "-$(<"$pidfile")"
        return
    fi
    kill -TERM "$(<"$pidfile")"
    while is_running; do sleep 1; done
}

status() {
    if is_running; then
        echo "running: $(tail -n 1 "$log")"
    elif [[ -f "$codefile" ]]; then
        echo "ended with exit code $(<"$codefile")"
    else
        echo "not started"
    fi
}

"$@"
