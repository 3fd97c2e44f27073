#!/bin/sh
# Against coremltools 9.0, same inputs, same run. `run.sh steps`: every step that both have; `run.sh palettize`: error and speed of
# the palettizer over more matrices. Further arguments go to the Python side (--help).
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
    steps | palettize) script=benches/$1_vs_coremltools.py ;;
    *) echo "usage: run.sh steps|palettize [ARGUMENTS]" >&2; exit 2 ;;
esac
shift
python="${GEMMA_COREML_PYTHON:-.venv-coremltools/bin/python}"
if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: no $python; set GEMMA_COREML_PYTHON to a Python that has coremltools 9.0" >&2
    exit 2
fi
exec "$python" "$script" "$@"
