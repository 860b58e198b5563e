#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a whole pod slice: creates it or takes the one of that name, copies
# this checkout to every worker, installs it, starts the run on all of them and follows it.
#
#   bash launch/tpu_pod.sh train NAME --zone ZONE --type TYPE [OPTIONS] -- CREM-TRAIN-ARGUMENTS…
#   bash launch/tpu_pod.sh train crem --zone us-east5-b --type v6e-256 --spot --queued \
#       --bring gs://my-bucket/models=models --bring gs://my-bucket/data=data -- \
#       --config=configs/qwen2_vl_2b.py --workdir=gs://my-bucket/crem-2b
#
# VERBS
#   train    create, copy, install, start, logs: all of it
#   create   the TPU, unless there is one of that name
#   copy     this checkout to every worker        install  crem_jax there
#   start    the run on every worker              logs     follow it until it ends
#   stop     SIGTERM: the run saves and ends      resume   `train` again with the last arguments
#   status   of the TPU and of the run            fetch    the run's directory from its bucket
#   delete   the TPU (the bucket stays)
#
# OPTIONS
#   --zone ZONE --project PROJECT   default: as gcloud is configured
#   --type TYPE      v5litepod-16, v5p-128, v6e-256, …
#   --runtime IMAGE  default: the one for the type
#   --spot           cheaper, and may be taken away; --queued asks for it by a queued resource
#   --bring gs://BUCKET/FOLDER=DIR  every worker copies the folder to DIR, which the config names (in
#                    the checkout, unless it starts with /), before its run starts; may be repeated
#   --retries N      after a preemption, create and start again up to N times (default 0)
#   --out DIR        for fetch (default: runs/NAME)
#   --dry-run        print the commands and run nothing
#
# --workdir must be gs://BUCKET/RUN, which every worker can write. Exit codes: 0 trained, 75 stopped
# and saved, anything else failed; then the log of the worker that failed was shown and the others
# were stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

WORKER="bash crem_jax/launch/tpu_worker.sh"
POLL="${CREM_POLL_SECONDS:-30}"

main() {
    [[ "${1:-}" != -h && "${1:-}" != --help ]] || show_usage
    local verbs=" train create copy install start logs stop resume status fetch delete "
    [[ -n "${1:-}" && "$verbs" == *" $1 "* ]] || refuse "expected a verb, got '${1:-}'"
    verb="$1" name="${2:-}"
    [[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
        refuse "expected the name of a TPU (letters, digits, dashes), got '$name'"
    shift 2
    zone="" project="" type="" runtime="" spot="" queued="" retries=0 out="runs/$name"
    brought=() arguments=()
    while [[ $# -gt 0 ]]; do
        case "$1" in
            --zone | --project | --type | --runtime | --retries | --out)
                need_value "$@" && printf -v "${1#--}" '%s' "$2" && shift 2
                ;;
            --bring) need_bring "$@" && brought+=("$1" "$2") && shift 2 ;;
            --spot | --queued) printf -v "${1#--}" yes && shift ;;
            --dry-run) DRY_RUN=1 && shift ;;
            -h | --help) show_usage ;;
            --) shift && arguments=(${brought[@]+"${brought[@]}"} "$@") && break ;;
            *) refuse "unknown option $1; arguments of crem train come after --" ;;
        esac
    done
    where=()
    [[ -z "$zone" ]] || where+=(--zone "$zone")
    [[ -z "$project" ]] || where+=(--project "$project")
    remembered="runs/launch/$name.arguments"
    case "$verb" in
        train | start) remember ;;
        resume) recall ;;
        fetch) recall ;;
    esac
    case "$verb" in
        train | resume) train ;;
        *) "$verb" ;;
    esac
}

# What `start` was given (--bring, and the arguments of the run), for `resume` and `fetch`.
remember() {
    local argument found=""
    for argument in ${arguments[@]+"${arguments[@]}"}; do
        [[ "$argument" != --workdir=gs://?*/?* ]] || found=yes
    done
    [[ -n "$found" ]] || refuse "a run on a TPU needs --workdir=gs://BUCKET/RUN after --"
    [[ -z "${DRY_RUN:-}" ]] || return 0
    mkdir -p "${remembered%/*}"
    printf '%s\0' "${arguments[@]}" >"$remembered"
}

recall() {
    [[ ${#arguments[@]} -eq 0 && ${#brought[@]} -eq 0 ]] ||
        refuse "$verb takes the arguments of the last start, not new ones"
    [[ -f "$remembered" ]] || refuse "nothing was started on $name from this checkout"
    while IFS= read -r -d '' argument; do arguments+=("$argument"); done <"$remembered"
}

train() {
    local code attempt
    for ((attempt = 0; ; attempt++)); do
        create
        copy
        install
        start
        code=0
        logs || code=$?
        [[ $code -ne 0 && $attempt -lt $retries && "$(state)" != READY ]] || return "$code"
        echo "$name was preempted; attempt $((attempt + 2)) of $((retries + 1))" >&2
    done
}

# The state of the TPU VM; nothing if there is none.
state() {
    local command=(gcloud compute tpus tpu-vm describe "$name" ${where[@]+"${where[@]}"})
    command+=("--format=value(state)")
    if [[ -n "${DRY_RUN:-}" ]]; then
        show "${command[@]}"
    else
        "${command[@]}" 2>/dev/null || true
    fi
}

create() {
    local now
    now="$(state)"
    case "$now" in
        READY) echo "$name is there already" >&2 && return ;;
        "") ;;
        CREATING | STARTING | RESTARTING | REPAIRING) wait_ready && return ;;
        STOPPED) run gcloud compute tpus tpu-vm start "$name" ${where[@]+"${where[@]}"} && return ;;
        *) echo "$name is $now: it is deleted and created again" >&2 && delete ;;
    esac
    [[ -n "$type" ]] || refuse "$name does not exist; say its --type, such as v6e-16"
    local options=(--accelerator-type "$type")
    [[ -z "$spot" ]] || options+=(--spot)
    if [[ -z "$queued" ]]; then
        run gcloud compute tpus tpu-vm create "$name" ${where[@]+"${where[@]}"} \
            --version "${runtime:-$(default_runtime)}" "${options[@]}"
        return
    fi
    now="$(queued_state)"
    case "$now" in
        "") ;;
        ACTIVE) # `state` says nothing if it cannot be asked either: what may be running stays
            echo "error: the queued resource $name is ACTIVE, but its TPU cannot be seen; try" \
                "again, or delete it first" >&2
            exit 1
            ;;
        SUSPENDED | SUSPENDING | FAILED)
            echo "the queued resource $name is $now without its TPU: it is made anew" >&2
            delete
            ;;
        *) wait_granted && return ;;
    esac
    run gcloud compute tpus queued-resources create "$name" ${where[@]+"${where[@]}"} \
        --node-id "$name" --runtime-version "${runtime:-$(default_runtime)}" "${options[@]}"
    wait_granted
}

default_runtime() {
    case "$type" in
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        *) echo tpu-ubuntu2204-base ;;
    esac
}

# The state of the queued resource; nothing if there is none.
queued_state() {
    local command=(gcloud compute tpus queued-resources describe "$name" ${where[@]+"${where[@]}"})
    command+=("--format=value(state.state)")
    if [[ -n "${DRY_RUN:-}" ]]; then
        show "${command[@]}"
    else
        "${command[@]}" 2>/dev/null || true
    fi
}

wait_granted() {
    local now
    if [[ -n "${DRY_RUN:-}" ]]; then
        queued_state
        return
    fi
    while true; do
        now="$(queued_state)"
        case "$now" in
            ACTIVE) return ;;
            "" | FAILED | SUSPENDED | SUSPENDING | DELETING)
                echo "error: the queued resource $name is ${now:-gone}" >&2
                exit 1
                ;;
        esac
        echo "queued resource $name: $now" >&2
        sleep "$POLL"
    done
}

wait_ready() {
    while [[ "$(state)" != READY ]]; do sleep "$POLL"; done
}

copy() {
    local folder bundle
    folder="$(mktemp -d)" && bundle="$folder/crem_jax.tar.gz"
    # What git tracks, as it is here: uncommitted changes travel too. COMMIT says what it is.
    git describe --always --abbrev=40 --dirty=+ "--exclude=*" >"$folder/COMMIT"
    git ls-files -z | tar --null --files-from=- --ignore-failed-read -czf "$bundle" \
        -C "$folder" COMMIT
    run gcloud compute tpus tpu-vm scp "$bundle" "$name:crem_jax.tar.gz" \
        ${where[@]+"${where[@]}"} --worker=all
    rm -r "$folder"
    on_all "mkdir -p crem_jax && tar -xzf crem_jax.tar.gz -C crem_jax"
}

install() { on_all "$WORKER install"; }

start() { on_all "$WORKER start $(quoted "${arguments[@]}")"; }

# Follows all workers: the first shows its log, another one speaks when it fails.
logs() {
    local line code=0 failed="" saved="" pipe
    if [[ -n "${DRY_RUN:-}" ]]; then
        on_all "$WORKER follow"
        return
    fi
    pipe="$(mktemp -u)" && mkfifo "$pipe"
    on_all "$WORKER follow" >"$pipe" 2>&1 &
    local follower=$!
    while IFS= read -r line; do
        echo "$line"
        [[ "$line" != *"crem worker saved:"* ]] || saved=yes
        if [[ "$line" == *"crem worker failed:"* && -z "$failed" ]]; then
            failed=yes
            echo "a worker has failed; the others are stopped" >&2
            on_all "$WORKER stop now" >/dev/null 2>&1 || true
        fi
    done <"$pipe"
    rm -f "$pipe"
    wait "$follower" || code=$?
    [[ -z "$failed" || $code -ne 0 ]] || code=1
    [[ -z "$saved" || $code -ne 0 ]] || code=$SAVED
    return "$code"
}

stop() { on_all "$WORKER stop"; }

status() {
    run gcloud compute tpus tpu-vm describe "$name" ${where[@]+"${where[@]}"} "--format=value(state)"
    on_all "$WORKER status"
}

fetch() {
    local argument bucket=""
    for argument in "${arguments[@]}"; do
        [[ "$argument" != --workdir=* ]] || bucket="${argument#--workdir=}"
    done
    [[ -n "${DRY_RUN:-}" ]] || mkdir -p "$out"
    run gcloud storage rsync --recursive "$bucket" "$out"
}

delete() {
    if [[ -n "$queued" ]]; then
        # One that is being suspended cannot be deleted yet.
        while [[ "$(queued_state)" == SUSPENDING ]]; do sleep "$POLL"; done
        run gcloud compute tpus queued-resources delete "$name" ${where[@]+"${where[@]}"} \
            --force --quiet
    else
        run gcloud compute tpus tpu-vm delete "$name" ${where[@]+"${where[@]}"} --quiet
    fi
}

on_all() {
    run gcloud compute tpus tpu-vm ssh "$name" ${where[@]+"${where[@]}"} --worker=all \
        "--command=$1"
}

main "$@"
