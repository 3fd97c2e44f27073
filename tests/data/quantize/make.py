"""Writes coremltools.safetensors: what coremltools 9.0 makes of a few small matrices.

Run with a Python that has coremltools 9.0, numpy, scikit-learn and safetensors:
    python tests/data/quantize/make.py

Tensors (fp16 unless said otherwise; one group per matrix where the matrix is palettized):
    bf16, full          32x320, Gaussian, values of a bf16 checkpoint and with full fp16 mantissas. The group has
                        10,240 elements, above the 10,000 from which coremltools' palettes are exact.
    NAME.lut{n}         its table at n bits; NAME.mse (f64, [6]) the error at 1, 2, 3, 4, 6 and 8 bits, before ties move
    NAME.indices4       its indices at 4 bits (uint8), for one of them
    small               16x64, two groups of 8 channels; small.mse (f64, [6]): here coremltools runs scikit-learn, inexact
    NAME.vector_mse     f64, [4]: the error of full and bf16 with vectors, for VECTORS (bits of an index, cluster_dim) in turn
    NAME.joint_mse      f64, [2]: 4 bits with an int8 table, and with the smaller half of the weights pruned first
    edge                rows that are zero, subnormal, constant, outliers, exact halves
    NAME.int8, NAME.int8_scale    int8 per channel (int8, fp16), for full and edge
    NAME.int4, NAME.int4_scale    int4 per block of 32 (int8, one per byte; fp16)
    NAME.int4_channel, NAME.int8_block, and their _scale    int4 per channel, int8 per block of 32
"""

import logging
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

logging.disable(logging.WARNING)
from coremltools.optimize.coreml._quantization_passes import (  # noqa: E402
    linear_quantize_weights,
    palettize_weights,
    prune_weights,
)

BITS = (1, 2, 3, 4, 6, 8)
VECTORS = ((4, 2), (6, 2), (4, 4), (8, 4))


def palettes(weights, channels):
    """Tables, indices and mean squared error per bit width."""
    luts, indices, errors = {}, {}, []
    groups = len(weights) // channels
    for nbits in BITS:
        params = palettize_weights.grouped_channelwise_compress(weights, "KMEANS", nbits, 0, channels)
        lut = params.lut.reshape(groups, -1)
        index = np.asarray(params.indices).astype(np.uint8).reshape(groups, -1)
        stored = np.take_along_axis(lut.astype(np.float64), index.astype(np.int64), axis=1)
        errors.append(np.mean((weights.reshape(groups, -1).astype(np.float64) - stored) ** 2))
        luts[nbits], indices[nbits] = lut, index
    return luts, indices, np.array(errors)


def vector_errors(weights):
    """Mean squared errors of palettes of vectors, one group."""
    errors = []
    for nbits, dim in VECTORS:
        params = palettize_weights.grouped_channelwise_compress(
            weights, "KMEANS", nbits, 0, len(weights), cluster_dim=dim
        )
        lut = params.lut.reshape(-1, dim).astype(np.float64)
        index = np.asarray(params.indices).astype(np.uint8)
        stored = np.moveaxis(lut[index], -1, 1).reshape(weights.shape)
        errors.append(np.mean((weights.astype(np.float64) - stored) ** 2))
    return np.array(errors)


def joint_errors(weights):
    """Mean squared errors at 4 bits, one group: of an int8 table, and of the palette of what pruning leaves."""
    params = palettize_weights.grouped_channelwise_compress(weights, "KMEANS", 4, 0, len(weights))
    scaled = linear_quantize_weights.blockwise_compress_by_dtype(
        params.lut, "int8", "LINEAR_SYMMETRIC", [0] * params.lut.ndim
    )
    lut = linear_quantize_weights.decompress(scaled).reshape(-1).astype(np.float64)
    stored = lut[np.asarray(params.indices).astype(np.uint8)]
    exact = weights.astype(np.float64)
    int8_lut = np.mean((exact - stored) ** 2)
    sparse = prune_weights.compress_by_magnitude(weights, 0.5)
    nonzero = sparse.nonzero_data.reshape(1, -1)
    params = palettize_weights.grouped_channelwise_compress(nonzero, "KMEANS", 4, 0, 1)
    values = params.lut.reshape(-1).astype(np.float64)[np.asarray(params.indices).astype(np.uint8)]
    lost = np.sum(exact**2) - np.sum(nonzero.astype(np.float64) ** 2)
    return np.array([int8_lut, (lost + np.sum((nonzero - values) ** 2)) / weights.size])


def integers(weights, dtype, blocks):
    params = linear_quantize_weights.blockwise_compress_by_dtype(weights, dtype, "LINEAR_SYMMETRIC", blocks)
    return np.asarray(params.data).astype(np.int8), params.scale


def edge(rng):
    rows = (rng.standard_normal((12, 64)) * 0.02).astype(np.float16)
    rows[0] = 0
    rows[1] = rng.integers(-40, 41, 64) * np.float16(2**-24)  # subnormal weights, subnormal scale
    rows[2] = 0.25
    rows[3, 5] = 60000 / 2  # one outlier
    rows[4] = np.arange(64) / 2 - 16  # quotients that are exact halves
    rows[4, 0] = 127
    rows[5, :32] = 0  # one block of zeros
    rows[6] = -rows[6].__abs__()
    rows[7] = 2.0**-14  # smallest normal
    rows[8, 1:] = 0
    rows[9] = rng.integers(-3, 4, 64) * np.float16(2**-24)  # the scale underflows
    return rows


def main():
    rng = np.random.default_rng(7)
    full = (rng.standard_normal((32, 320)) * 0.02).astype(np.float32)
    bits = rng.standard_normal((32, 320)).astype(np.float32).view(np.uint32)
    bf16 = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32) * np.float32(2**-6)
    tensors = {"full": full.astype(np.float16), "bf16": bf16.astype(np.float16), "edge": edge(rng)}
    tensors["small"] = (rng.standard_normal((16, 64)) * 0.02).astype(np.float16)
    for name, channels in (("full", 32), ("bf16", 32), ("small", 8)):
        luts, indices, tensors[f"{name}.mse"] = palettes(tensors[name], channels)
        if name != "small":
            tensors.update({f"{name}.lut{n}": lut for n, lut in luts.items()})
        if name == "bf16":
            tensors["bf16.indices4"] = indices[4]
    for name in ("full", "bf16"):
        tensors[f"{name}.vector_mse"] = vector_errors(tensors[name])
        tensors[f"{name}.joint_mse"] = joint_errors(tensors[name])
    for name in ("full", "edge"):
        weights = tensors[name]
        tensors[f"{name}.int8"], tensors[f"{name}.int8_scale"] = integers(weights, "int8", [1, 0])
        tensors[f"{name}.int4"], tensors[f"{name}.int4_scale"] = integers(weights, "int4", [1, 32])
        tensors[f"{name}.int4_channel"], tensors[f"{name}.int4_channel_scale"] = integers(weights, "int4", [1, 0])
        tensors[f"{name}.int8_block"], tensors[f"{name}.int8_block_scale"] = integers(weights, "int8", [1, 32])
    tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    save_file(tensors, Path(__file__).with_name("coremltools.safetensors"))
    for name, t in sorted(tensors.items()):
        print(name, t.dtype, t.shape)


if __name__ == "__main__":
    main()
