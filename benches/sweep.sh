#!/usr/bin/env bash
# sweep.sh DIR: every scheme on nano, calibrated on calibration.txt, compared on eval.txt. DIR/page/sweep.html is the page.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
model=fixtures/nano
run=target/release/gemma-coreml
mkdir -p "$out"
$run calibrate $model --text $model/calibration.txt --full -o "$out/text.safetensors" --force > /dev/null
$run calibrate $model --noise 5 -o "$out/noise.safetensors" --force > /dev/null
for bits in 2.5 3.25; do
    $run allocate $model -r w3-calibrated --calibration "$out/text.safetensors" --text $model/calibration.txt \
        --bpw $bits --measurements "$out/measured.json" -o "$out/mixed-$bits.toml" --name "mixed-$bits" --force
done
# Ten contexts of the recall set, four questions each: the recipes with int8 activations are run op by op.
head -n 10 $model/recall.jsonl > "$out/recall.jsonl"
$run sweep $model --text $model/eval.txt --max-tokens 4000 --context 1024 --recall "$out/recall.jsonl" -o "$out/page" \
    --calibration "$out/text.safetensors" --calibration "w8a8-naive=$out/noise.safetensors" --recipes \
    swa4-fp16 rows-fp16 rows-int4 w8-palette w8-linear w8a8 w8a8-naive w6 w4 w4-linear w4-calibrated w4a8 lut8 \
    w3 w3-importance w3-scale w3-compensate w3-calibrated mixed-3 "$out/mixed-3.25.toml" v2 sparse50 v4 \
    w2 w2-calibrated "$out/mixed-2.5.toml"
