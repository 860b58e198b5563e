#!/usr/bin/env bash
# From an empty clone to a trained model that finds and tells: installs crem_jax, trains it on the
# pictures it ships with, evaluates it, and uses it. Everything lands under runs/quickstart/.
# With --smoke a toy model is trained instead, in about a minute, under runs/quickstart-smoke/.
set -euo pipefail
export CREM_START="${CREM_START:-$(date +%s)}" # the summary's total_seconds count from here

config=configs/emoji.py
run=runs/quickstart
case "${1:-}" in
    "") ;;
    --smoke)
        config=configs/emoji.py:smoke
        run=runs/quickstart-smoke
        ;;
    *)
        echo "usage: bash launch/quickstart.sh [--smoke]" >&2
        exit 2
        ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_crem core "--editable ."

# Without an accelerator, say so: probing for a TPU is slow and noisy.
accelerators="$(compgen -G '/dev/nvidia[0-9]*' || compgen -G '/dev/accel[0-9]*' ||
    compgen -G '/dev/vfio/[0-9]*' || true)"
if [[ -z "$accelerators" ]]; then
    export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
fi

# The verbs share what one of them has compiled.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/.compiled}"

crem train --config="$config" --workdir="$run"
crem find "$run" "tiger" --in "$run/pictures" --out "$run/find_tiger.png"
crem tell "$run" "$run/pictures/tiger.png"
crem tell "$run" "$run/pictures/tiger.png" --compressed
crem eval "$run"

echo
echo "Done. See $run/ for the figures, the pictures and summary.json."
