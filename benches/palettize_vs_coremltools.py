"""Palettizer against coremltools 9.0: same raw fp16 matrices, same run, one thread each.

Prints a table: error of both (computed here, in numpy, from the bytes each side made), their relative
difference, and weights per CPU second. Ours is timed from the matrix in memory to look-up tables and
packed indices; theirs is its own per-group k-means, which packs nothing. Times are the best of --runs,
CPU time of the process on both sides, the two sides taking turns.

Exit status 1 when our error is above theirs by more than 1e-6 relative, on any line.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

logging.disable(logging.WARNING)
from coremltools.optimize.coreml._quantization_passes import palettize_weights  # noqa: E402

MSE_TOLERANCE = 1e-6  # how far above coremltools' error ours may be, relative
SPEED_TARGET = 20.0  # weights per CPU second over coremltools', at 4 and at 8 bits
COLS = 1536
GROUP = 32
SIGMA = 0.02
SEED = 20


def numbers(text):
    return [int(n) for n in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1536x1536, bf16-born, and fp16 at 4 bits: about 1 minute")
    parser.add_argument("--rows", type=numbers, default=[1536, 6144, 12288])
    parser.add_argument("--bits", type=numbers, default=[2, 3, 4, 6, 8])
    parser.add_argument("--born", default="bf16,fp16", help="bf16 (values of a bf16 checkpoint), fp16 (full mantissas)")
    parser.add_argument("--runs", type=int, default=1, help="best of this many, both sides alike")
    parser.add_argument("--binary", help="the built palettize bench; built with cargo when not given")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args()


def build():
    """Path of the bench binary, built by cargo."""
    command = ["cargo", "build", "--release", "--bench", "palettize", "--message-format=json-render-diagnostics"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = (json.loads(line) for line in lines)
    built = [a["executable"] for a in artifacts if a.get("target", {}).get("name") == "palettize" and a.get("executable")]
    return built[-1]


def matrix(rows, born):
    """Gaussian weights as a bf16 checkpoint, or one with all fp16 mantissas, gives them."""
    values = np.random.default_rng(SEED).standard_normal((rows, COLS), dtype=np.float32) * np.float32(SIGMA)
    if born == "bf16":
        bits = values.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        values = bits.astype(np.uint32).view(np.float32)
    return values.astype(np.float16)


def mse(weights, tables, indices):
    """Mean squared error of tables [groups, 2^n] and indices [groups, elements], summed in f64."""
    total = 0.0
    for group, table, index in zip(weights.reshape(len(tables), -1), tables, indices):
        total += float(np.sum((group.astype(np.float64) - table.astype(np.float64)[index]) ** 2))
    return total / weights.size


def ours(binary, file, weights, nbits, out):
    """One timed run of our palettizer; the error is computed from the bytes it wrote."""
    shape = [str(n) for n in weights.shape]
    command = [binary, str(file), *shape, str(GROUP), str(nbits), "1", str(out)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    data = out.read_bytes()
    groups = weights.shape[0] // GROUP
    size = groups * 2**nbits
    tables = np.frombuffer(data, "<f2", size).reshape(groups, -1)
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=2 * size), bitorder="little")
    bits = bits[: weights.size * nbits].reshape(weights.size, nbits)
    indices = np.packbits(bits, axis=1, bitorder="little").reshape(groups, -1)
    return report["cpu_s"], mse(weights, tables, indices)


def theirs(weights, nbits):
    """One timed run of coremltools' own function for granularity per_grouped_channel."""
    start = time.process_time()
    params = palettize_weights.grouped_channelwise_compress(weights, "KMEANS", nbits, 0, GROUP)
    took = time.process_time() - start
    groups = weights.shape[0] // GROUP
    indices = np.asarray(params.indices).astype(np.uint8).reshape(groups, -1)
    return took, mse(weights, params.lut.reshape(groups, -1), indices)


def compare(binary, file, weights, nbits, runs, out):
    """Best of `runs` on both sides, taking turns."""
    pairs = [(ours(binary, file, weights, nbits, out), theirs(weights, nbits)) for _ in range(runs)]
    (our_s, our_mse), (their_s, their_mse) = (min(side) for side in zip(*pairs))
    return {
        "bits": nbits,
        "mse": our_mse,
        "coremltools_mse": their_mse,
        "relative": (our_mse - their_mse) / their_mse if our_mse != their_mse else 0.0,
        "weights_per_s": weights.size / our_s,
        "coremltools_weights_per_s": weights.size / their_s,
        "ratio": their_s / our_s,
    }


def main():
    args = arguments()
    binary = args.binary or build()
    cases = [(born, rows, args.bits) for born in args.born.split(",") for rows in args.rows]
    if args.quick:
        cases = [("bf16", 1536, args.bits), ("fp16", 1536, [4])]
    print(f"group {GROUP}x{COLS}, best of {args.runs}, CPU time, one thread")
    print("born  matrix      bits  MSE          coremltools  relative    Mweights/s  coremltools   ratio")
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for born, rows, bits in cases:
            weights = matrix(rows, born)
            file = Path(scratch, "matrix.bin")
            weights.tofile(file)
            for nbits in bits:
                row = compare(binary, file, weights, nbits, args.runs, Path(scratch, "out.bin"))
                row.update(born=born, rows=rows, cols=COLS)
                results.append(row)
                print(
                    f"{born}  {rows:>5}x{COLS}  {nbits:>4}  {row['mse']:.5e}  {row['coremltools_mse']:.5e}  "
                    f"{row['relative']:+.1e}  {row['weights_per_s'] / 1e6:>10.1f}  "
                    f"{row['coremltools_weights_per_s'] / 1e6:>11.3f}  {row['ratio']:>6.1f}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    worse = [r for r in results if r["relative"] > MSE_TOLERANCE]
    slow = [r for r in results if r["bits"] in (4, 8) and r["ratio"] < SPEED_TARGET]
    print(f"{len(worse)} of {len(results)} lines above coremltools' error by more than {MSE_TOLERANCE:g}")
    print(f"{len(slow)} lines at 4 or 8 bits below {SPEED_TARGET:g} times its speed")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
