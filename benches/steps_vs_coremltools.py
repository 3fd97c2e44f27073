"""Steps of a conversion, ours (benches/steps.rs, divan) and coremltools 9.0's: same inputs, same run, one thread each.

Prints one table in Markdown: median wall times as weights (or bytes) per second, and their ratio. Where coremltools
does not do a step, its column is empty. What is compared with what:

palettize                  tables and one index per byte | its per-group k-means (grouped_channelwise_compress)
pack, unpack               pack_elements_into_bits, restore_elements_from_packed_bits
decompress_palette4        from packed bytes to f32 | restore, then value inference of constexpr_lut_to_dense (fp16)
table_rows_int8            one scale per row | quantize_weight, symmetric, one scale per row
fp16                       f32 to fp16, checked for overflow | numpy's astype, which it uses
write_blob_disk, _memory   a whole package, hashed, fsynced | _BlobStorageWriter, then fsync of the file
"""

import argparse
import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

logging.disable(logging.WARNING)
from coremltools.converters.mil.mil import types  # noqa: E402
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense  # noqa: E402
from coremltools.libmilstoragepython import _BlobStorageWriter  # noqa: E402
from coremltools.optimize import _utils as optimize_utils  # noqa: E402
from coremltools.optimize.coreml._quantization_passes import palettize_weights  # noqa: E402

# As in steps.rs.
ROWS, COLS, GROUP = 1024, 1536, 32
BLOB_COPIES = 20
MEMORY_DISK = Path("/dev/shm")

SCALE = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def build():
    """Path of the bench binary, built by cargo."""
    command = ["cargo", "build", "--release", "--bench", "steps", "--message-format=json-render-diagnostics"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = (json.loads(line) for line in lines)
    built = [a["executable"] for a in artifacts if a.get("target", {}).get("name") == "steps" and a.get("executable")]
    return Path(built[-1])


def ours(binary, pattern):
    """Median rate and its unit by step, from divan's tree: a line with times, then one with rates below it."""
    env = dict(os.environ, RAYON_NUM_THREADS="1")
    command = [binary, "--bench", *([pattern] if pattern else [])]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    rates, parent, name = {}, "", ""
    for line in text.splitlines()[1:]:
        head = re.match(r"^([│ ]*)[├╰]─ (\S+)(.*)$", line)
        cells = (head.group(3) if head else line.lstrip("│ ")).split("│")
        if head and not re.search(r"\d (ns|µs|ms|s)\b", head.group(3)):
            parent = head.group(2)
        elif head:
            name = head.group(2) if head.group(1) == "" else f"{parent} {head.group(2)}"
        elif len(cells) > 2 and name:
            number, unit = cells[2].split()
            scale, unit = re.match(r"([KMGT]?)(item|B)/s", unit).groups()
            rates[name] = float(number) * SCALE[scale], unit
            name = ""
    return rates


def median_time(work, runs):
    """Median seconds of `work`."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_blob(directory, values):
    """One blob by coremltools' native writer, brought to the disk."""
    path = directory / "coremltools-blob.bin"
    path.unlink(missing_ok=True)
    writer = _BlobStorageWriter(str(path))
    writer.write_fp16_data(values)
    del writer
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def theirs(inputs, runs, names):
    """Weights (or bytes) per second of coremltools by step, for the steps in `names`."""
    weights = np.fromfile(inputs / "weights.f16", "<f2").reshape(ROWS, COLS)
    floats = weights.astype(np.float32)
    indices = np.fromfile(inputs / "indices4.u8", np.uint8).reshape(ROWS, COLS)
    lut = np.fromfile(inputs / "tables4.f16", "<f2").reshape(ROWS // GROUP, 1, 16, 1)
    blob = np.tile(weights.reshape(-1), BLOB_COPIES).view(np.uint16)
    restore, pack = optimize_utils.restore_elements_from_packed_bits, optimize_utils.pack_elements_into_bits

    def decompress(packed):
        restored = restore(packed, 4, weights.size).reshape(ROWS, COLS)
        return constexpr_lut_to_dense.decompress(restored, lut, None)

    # Its k-means is slow: one run over the first groups.
    few = weights[: 2 * GROUP]
    work = {
        "fp16": (lambda: floats.astype(np.float16), weights.size),
        "table_rows_int8": (
            lambda: optimize_utils.quantize_weight(floats, (1,), 8, True, "LINEAR_SYMMETRIC", types.nptype_from_builtin(types.int8)),
            weights.size,
        ),
        "write_blob_disk": (lambda: write_blob(inputs, blob), blob.nbytes),
        "write_blob_memory": (lambda: write_blob(MEMORY_DISK, blob), blob.nbytes),
    }
    for nbits in (2, 3, 4, 6, 8):
        own = indices if nbits == 4 else (np.arange(weights.size) * 7 % 2**nbits).astype(np.uint8)
        packed = pack(own.reshape(-1), nbits)
        work[f"pack {nbits}"] = (lambda own=own, nbits=nbits: pack(own, nbits), weights.size)
        work[f"unpack {nbits}"] = (lambda packed=packed, nbits=nbits: restore(packed, nbits, weights.size), weights.size)
        work[f"palettize {nbits}"] = (
            lambda nbits=nbits: palettize_weights.grouped_channelwise_compress(few, "KMEANS", nbits, 0, GROUP),
            few.size,
        )
        if nbits == 4:
            work["decompress_palette4"] = (lambda packed=packed: decompress(packed), weights.size)
    slow = ("palettize", "decompress")
    rates = {n: amount / median_time(run, 1 if n.startswith(slow) else runs) for n, (run, amount) in work.items() if n in names}
    for directory in (inputs, MEMORY_DISK):
        (directory / "coremltools-blob.bin").unlink(missing_ok=True)
    return rates


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("filter", nargs="?", help="only the steps whose names contain this")
    parser.add_argument("--runs", type=int, default=9, help="runs of coremltools' steps, but for the slow ones")
    parser.add_argument("--binary", type=Path, help="the built steps bench; built with cargo when not given")
    return parser.parse_args()


def number(rate):
    scale = next(s for s in ("G", "M", "K", "") if rate >= SCALE[s] or s == "")
    return f"{rate / SCALE[scale]:.3g} {scale}".strip()


def main():
    args = arguments()
    binary = args.binary or build()
    own = ours(binary, args.filter)
    inputs = binary.parent.parent.parent / "tmp" / "steps"
    other = theirs(inputs, args.runs, own)
    print("| step | ours, per s | coremltools, per s | ratio |\n|---|---:|---:|---:|")
    for name, (rate, unit) in own.items():
        what = {"item": "weights", "B": "bytes"}[unit]
        peer, ratio = (f"{number(other[name])}", f"{rate / other[name]:.1f}") if name in other else ("", "")
        print(f"| {name} | {number(rate)} {what} | {peer} | {ratio} |")
    shutil.rmtree(inputs, ignore_errors=True)


if __name__ == "__main__":
    main()
