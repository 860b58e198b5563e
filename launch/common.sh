# shellcheck shell=bash
# Sourced by the scripts that start runs elsewhere: dry runs, quoting, errors.

# shellcheck disable=SC2034 # used where this is sourced
SAVED=75 # exit code of a run that has saved on SIGTERM; the same command goes on

# Prints a command as it could be pasted into a shell, and runs it unless this is a dry run.
run() {
    show "$@"
    [[ -n "${DRY_RUN:-}" ]] || "$@"
}

show() {
    local words
    printf -v words ' %q' "$@"
    echo "+$words" >&2
}

# One string that a remote shell reads as exactly these words.
quoted() {
    local words
    printf -v words '%q ' "$@"
    echo "${words% }"
}

refuse() {
    echo "${0##*/}: $1 (see bash $0 --help)" >&2
    exit 2
}

need_value() {
    [[ $# -ge 2 && -n "$2" ]] || refuse "$1 needs a value"
}

need_bring() {
    need_value "$@"
    [[ "$2" =~ ^gs://[^/]+(/.*)?=[^=]+$ ]] || refuse "$1 '$2' is not gs://BUCKET/FOLDER=DIR"
}

# The comment at the top of the script is its manual.
show_usage() {
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
    exit 0
}

show_failure() { # what, exit code, log
    echo "error: $1 ended with exit code $2; the end of $3:" >&2
    tail -n 40 "$3" >&2 || true
}
