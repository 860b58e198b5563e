# shellcheck shell=bash disable=SC2164 # those that source this set -e
# Sourced by quickstart.sh and test.sh: goes to the repository root and activates a virtual
# environment there (.venv, or $CREM_VENV), making it if need be with $CREM_PYTHON or the first
# Python on the path that is new enough. Then call
#   install_crem GROUP "PIP ARGUMENTS"...
# which runs one `pip install` for each string, unless GROUP is already installed from this
# checkout and neither setup.py nor pyproject.toml has changed since.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${CREM_VENV:-$PWD/.venv}"

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [[ ! -x "$VENV/bin/pip" ]]; then
    base=""
    candidates=(python3.11 python3.12 python3.13 python3 python)
    [[ -z "${CREM_PYTHON:-}" ]] || candidates=("$CREM_PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then
            base="$candidate"
            break
        fi
    done
    if [[ -z "$base" ]]; then
        named="${CREM_PYTHON:-python3}"
        echo "error: crem_jax needs Python 3.11 or newer; '$named' is" \
            "$("$named" --version 2>&1 || echo missing). Install one, or point CREM_VENV at a" \
            "virtual environment that has one." >&2
        exit 1
    fi
    echo "Making a virtual environment in $VENV with $("$base" --version)"
    if ! "$base" -m venv "$VENV"; then
        echo "error: '$base -m venv' failed; on Debian or Ubuntu install the package" \
            "$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')." >&2
        exit 1
    fi
elif [[ -n "${CREM_PYTHON:-}" && "$("$VENV/bin/python" --version)" != \
    "$("$CREM_PYTHON" --version 2>&1)" ]]; then
    echo "error: $VENV has $("$VENV/bin/python" --version), CREM_PYTHON is" \
        "$("$CREM_PYTHON" --version 2>&1). Point CREM_VENV at another place, or remove it." >&2
    exit 1
elif ! is_new_enough "$VENV/bin/python"; then
    echo "error: crem_jax needs Python 3.11 or newer; $VENV has" \
        "$("$VENV/bin/python" --version 2>&1). Remove it, or set CREM_VENV to another place." >&2
    exit 1
fi
# shellcheck disable=SC1091
source "$VENV/bin/activate"

install_crem() {
    local group="$1" stamp="$VENV/crem_jax.stamp" key arguments words
    shift
    key="$( (pwd; cat setup.py pyproject.toml) | python -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
    if [[ -f "$stamp" ]] && grep -qx "$key" "$stamp"; then
        if grep -qx "$group" "$stamp"; then
            return
        fi
    else
        rm -f "$stamp"
    fi
    echo "Installing crem_jax ($group) into $VENV; the first time takes a few minutes"
    for arguments in "$@"; do
        read -ra words <<<"$arguments"
        python -m pip install --quiet "${words[@]}"
    done
    [[ -f "$stamp" ]] || echo "$key" >"$stamp"
    echo "$group" >>"$stamp"
}
