#!/usr/bin/env bash
# From an empty clone to a trained model that finds and tells: installs crem_jax, trains it on the
# pictures it ships with, evaluates it, and makes a library of all of them that is searched and
# asked. Everything lands under runs/quickstart/.
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
install_crem core "--editable .[library]"

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

# One pass keeps every picture's embedding and its memory: found by words, by a picture, by both,
# and asked without being looked at again.
library="$run/library"
crem index "$run" emoji:split=all --library "$library"
crem index "$run" scenes:split=heldout --library "$library"
crem find "$run" "tiger" --in "$library" --ask "What is this?" --out "$run/find_words.png"
crem find "$run" --image "$run/pictures/tiger.png" --in "$library" --out "$run/find_picture.png"
crem find "$run" "face" --image "$run/pictures/tiger.png" --in "$library" --out "$run/find_both.png"
crem tell "$run" "What is this?" --in "$library" --id emoji/1f405

echo
echo "Done. See $run/ for the figures, the pictures and summary.json. A page to search, ask and"
echo "describe on, at http://127.0.0.1:8000/ once it is started:"
echo "    $VENV/bin/pip install --editable '.[serve,ui]'"
echo "    $VENV/bin/crem serve --model $run --library $library"
