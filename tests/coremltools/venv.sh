#!/bin/sh
# Makes .venv-coremltools in the repository root with the pinned requirements,
# unless it is there and was made from the same list.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv="$root/.venv-coremltools"
wanted="$here/requirements.txt"
made="$venv/requirements.txt"

if [ -x "$venv/bin/python" ] && cmp -s "$wanted" "$made"; then
    exit 0
fi
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "venv.sh: no $python on PATH; install Python 3.9 or newer, or set PYTHON" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        echo "venv.sh: $python -m venv failed (on Debian: apt install python3-venv)" >&2
        exit 1
    }
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
# Last, so that an interrupted run is not taken for a finished one.
cp "$wanted" "$made"
