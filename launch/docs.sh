#!/usr/bin/env bash
# Builds the documentation's site into site/ and stops at the first broken link or other warning.
# Arguments go to mkdocs: bash launch/docs.sh serve   shows it at http://127.0.0.1:8000/ as you write.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_crem docs "--editable .[docs]"

export NO_MKDOCS_2_WARNING=1 # of the theme, about a successor of mkdocs
if [[ $# -eq 0 ]]; then
    set -- build --strict
fi
python -m mkdocs "$@"
