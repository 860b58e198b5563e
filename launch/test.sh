#!/usr/bin/env bash
# Installs crem_jax with its development extras and runs the default tests (slow and gpu left out).
# Arguments go to pytest: bash launch/test.sh -k image   or   bash launch/test.sh -m slow
# CREM_PYTHON chooses the interpreter of a new environment: CREM_PYTHON=python3.13 CREM_VENV=.venv-3.13
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# torch comes first and alone, so that pip may take a local CPU build of this very version.
install_crem dev "torch==2.13.0" "--editable .[dev,docs,hf,st,mteb,library,milvus,serve,ui]"

JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" python -m pytest tests \
    --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
