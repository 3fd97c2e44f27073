"""A copy of a checkpoint whose projections and head went through coremltools 9.0's palettizer and back, as fp16.

    coremltools_checkpoint.py fixtures/nano OUT 4

Converted with `swa4-fp16` and run with `--exact-tables fixtures/nano`, it shows what coremltools' palettes of that many bits
over groups of 32 output channels cost. Tensors that coremltools skips (norms, at most 2048 elements, channels that do not
divide into groups) are kept. One weight file, bf16 or f16.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
from coremltools.optimize.coreml._quantization_passes import palettize_weights

GROUP = 32
THRESHOLD = 2048


def read(path):
    """Tensors of a safetensors file as float32, by name."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + n for n in entry["data_offsets"])
        raw = np.frombuffer(data[start:end], "<u2")
        if entry["dtype"] == "BF16":
            values = (raw.astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F16":
            values = raw.view("<f2").astype(np.float32)
        else:
            sys.exit(f"{name}: {entry['dtype']} is neither BF16 nor F16")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write(path, tensors):
    header, at = {}, 0
    for name, values in tensors.items():
        size = values.size * 2
        header[name] = {"dtype": "F16", "shape": list(values.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.astype("<f2").tobytes())


def palettized(values, nbits):
    params = palettize_weights.grouped_channelwise_compress(values.astype(np.float16), "KMEANS", nbits, 0, GROUP)
    groups = values.shape[0] // GROUP
    lut = np.asarray(params.lut).reshape(groups, -1)
    indices = np.asarray(params.indices).astype(np.int64).reshape(groups, -1)
    return np.take_along_axis(lut, indices, axis=1).reshape(values.shape)


def main():
    model, out, nbits = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    shutil.copytree(model, out)
    tensors = read(model / "model.safetensors")
    for name, values in tensors.items():
        table = name.endswith("embed_tokens_per_layer.weight")
        fits = values.ndim == 2 and values.size > THRESHOLD and values.shape[0] % GROUP == 0
        if fits and not table:
            tensors[name] = palettized(values, nbits)
    write(out / "model.safetensors", tensors)


main()
