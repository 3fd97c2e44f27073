#!/usr/bin/env bash
# A conversion and decoding at full size, measured; one table in Markdown on stdout, what goes on on stderr.
#
#   BENCH_DIR         where checkpoints and bundles go (default target/bench-full); E2B needs 30 GB with the copies of the
#                     measurement, the growth rows up to 82 GB (31B is cut to its first 30 layers below that)
#   BENCH_CHECKPOINT  a checkpoint directory to use instead of a made-up E2B
#   BENCH_STEPS       some of: convert cold plan kill decode peer growth (default: all)
#   BENCH_GROWTH      members of the growth rows (default: e4b 12b 31b)
#   BENCH_SHRINK      divides the sizes of the made-up checkpoints, for a quick look
#   BENCH_RUNS        conversions of the cached input (default 3)
#   GEMMA_COREML_TORCH_PYTHON  a Python with torch and transformers; by default .venv-torch is made from
#                     fixtures/requirements.txt, several GB (torch on PyPI brings its CUDA libraries)
set -euo pipefail
cd "$(dirname "$0")/.."
${CARGO:-cargo} build --release --bin gemma-coreml --example synth
steps=" ${BENCH_STEPS:-peer} "
if [[ $steps == *" peer "* && -z "${GEMMA_COREML_TORCH_PYTHON:-}" ]]; then
    venv=.venv-torch
    # Copied last, so that an interrupted run is not taken for a finished one.
    if ! cmp -s fixtures/requirements.txt $venv/requirements.txt; then
        python3 -m venv $venv
        $venv/bin/python -m pip install --quiet -r fixtures/requirements.txt
        cp fixtures/requirements.txt $venv/requirements.txt
    fi
fi
exec python3 benches/full.py
