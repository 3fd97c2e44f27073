#!/bin/sh
# Palettizer against coremltools 9.0, same matrices, same run. Arguments go to the Python side (--help).
set -eu
cd "$(dirname "$0")/.."
python="${GEMMA_COREML_PYTHON:-.venv-coremltools/bin/python}"
if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: no $python; set GEMMA_COREML_PYTHON to a Python that has coremltools 9.0" >&2
    exit 2
fi
exec "$python" benches/palettize_vs_coremltools.py "$@"
