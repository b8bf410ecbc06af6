#!/usr/bin/env bash
# run_all.sh PART|NAME... [--out FOLDER] [--wheels ZIP] [--smoke]: measure this checkout on a GPU machine.
#
# PART is 1 or 2, each at most 240 seconds, or the name of one step of them: `run_all.sh --list` prints them all.
# The machine needs Python with torch for its GPU. What else is missing can come in a zip of tests/gpu/pack_wheels.py.
set -euo pipefail
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/session.py" "$@"
