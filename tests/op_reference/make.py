"""Writes cases.json and cases.safetensors: one-op programs with the results they must give.

Expected results are those of coremltools' own value inference (9.0, opset iOS 18), or of numpy for what it does not
compute: conv, silu, const, states. Inputs are fp16 values, so that the same case serves fp32 and fp16 programs.

    python tests/op_reference/make.py        (needs coremltools==9.0, numpy<2.5)
"""

import itertools
import json
import logging
import pathlib
import struct

import numpy as np

logging.disable(logging.WARNING)

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (  # noqa: E402
    constexpr_blockwise_shift_scale,
    constexpr_lut_to_dense,
    constexpr_lut_to_sparse,
    constexpr_sparse_to_dense,
)

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(20260101)

CASES = []
TENSORS = {}

# Element types that safetensors has no name for, stored one element per byte.
BYTES = {"uint1", "uint2", "uint3", "uint4", "uint6", "int4"}


def f(*shape, scale=1.0):
    """Random fp16 values as float32."""
    return (rng.standard_normal(shape) * scale).astype(np.float16).astype(np.float32)


def half(value):
    """A float array or scalar rounded to fp16; anything else as it is."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.float32:
        return value.astype(np.float16).astype(np.float32)
    return value


def i32(*values):
    return np.array(values, np.int32)


def narrow(array):
    """float64 and int64, as numpy computes them, to what tensors hold."""
    array = np.asarray(array)
    to = {"float64": np.float32, "int64": np.int32}.get(array.dtype.name)
    return array.astype(to) if to else array


def store(array):
    key = f"t{len(TENSORS)}"
    TENSORS[key] = array
    return key


def encode(value, dtype=None):
    """An argument: {"tensor": key, "dtype": name} or {"attr": value}."""
    if isinstance(value, np.ndarray) or isinstance(value, np.generic):
        value = narrow(value)
        names = {"float32": "fp32", "float16": "fp16"}
        name = dtype or names.get(value.dtype.name, value.dtype.name)
        return {"tensor": store(value), "dtype": name}
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return {"tensors": [store(v) for v in value], "dtype": "fp32" if value[0].dtype == np.float32 else value[0].dtype.name}
    return {"attr": value}


def add(op, source, args, outputs, name="", only=None, dtypes={}):
    """`only`: "fp32" for cases whose numbers mean something in fp32 only."""
    floats = [v for v in args.values() if isinstance(v, np.ndarray) and v.dtype == np.float32]
    assert only or all(np.array_equal(v, half(v)) for v in floats), name
    case = {
        "name": f"{op}{'_' if name else ''}{name}",
        "op": op,
        "source": source,
        "args": {k: encode(v, dtypes.get(k)) for k, v in args.items()},
        "outputs": [encode(np.asarray(o)) for o in outputs],
    }
    if only:
        case["only"] = only
    CASES.append(case)


def infer(op, args):
    """The values that coremltools infers for an op of constants."""
    found = []

    @mb.program(input_specs=[], opset_version=ct.target.iOS18)
    def program():
        result = getattr(mb, op)(**args)
        results = result if isinstance(result, (list, tuple)) else [result]
        for r in results:
            if hasattr(r.op, "materialized_val_inference") and r.val is None:
                found.append(np.asarray(r.op.materialized_val_inference()))
            else:
                assert r.val is not None, op
                found.append(np.asarray(r.val))
            assert tuple(found[-1].shape) == tuple(r.shape), (op, found[-1].shape, r.shape)
        return results[0]

    return found


def case(op, name="", only=None, **args):
    if not only:
        args = {k: half(v) for k, v in args.items()}
    outputs = infer(op, args)
    add(op, "coremltools", args, outputs, name, only)


# ---- elementwise ----------------------------------------------------------------------------------------------------
for op in ["add", "sub", "mul", "maximum", "minimum", "real_div"]:
    case(op, "same", x=f(2, 3, 4), y=f(2, 3, 4) + 3)
    case(op, "suffix", x=f(2, 3, 4), y=f(4) + 3)
    case(op, "both_ways", x=f(2, 1, 4), y=f(3, 1) + 3)
    case(op, "scalar", x=f(2, 3), y=np.float32(1.5))
    case(op, "scalar_first", x=np.float32(1.5), y=f(5) + 3)
    if op != "real_div":
        case(op, "int32", x=i32(1, -2, 300000), y=i32(7, 7, -9))
case("pow", "same", x=np.abs(f(2, 3)) + 0.5, y=f(2, 3))
case("pow", "square", x=f(2, 3), y=np.float32(2.0))
case("add", "masked", x=f(2, 4), y=np.array([0, -np.inf, 0, -np.inf], np.float32))

for op in ["exp", "tanh", "sigmoid", "sqrt", "cos", "sin"]:
    x = f(3, 5, scale=2.0)
    case(op, x=np.abs(x) if op == "sqrt" else x)
case("exp", "masked", x=np.array([-np.inf, 0.0, 1.0], np.float32))
x = f(4, 5, scale=3.0)
add("silu", "numpy", {"x": x}, [x / (1 + np.exp(-x))])
case("rsqrt", x=np.abs(f(3, 4)) + 0.25)
case("rsqrt", "default_is_added", only="fp32", x=np.array([0.0, 1e-12, 3e-12], np.float32))
case("rsqrt", "epsilon", x=np.abs(f(3, 4)), epsilon=np.float32(0.125))
for mode in [None, "EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"]:
    args = {} if mode is None else {"mode": mode}
    case("gelu", (mode or "default").lower(), x=f(4, 9, scale=2.5), **args)

cond = rng.random((2, 3)) > 0.5
case("select", "same", cond=cond, a=f(2, 3), b=f(2, 3))
case("select", "broadcast", cond=cond, a=f(2, 3), b=f(3))
case("select", "int32", cond=np.array([True, False]), a=i32(1, 2), b=i32(3, 4))

for target in ["fp32", "int32", "bool", "int8", "uint8", "int16", "uint16"]:
    case("cast", f"fp32_to_{target}", x=np.array([0.0, 1.0, 2.75, 100.5, 0.25], np.float32), dtype=target)
    case("cast", f"int32_to_{target}", x=i32(0, 1, 2, 77, 100), dtype=target)
case("cast", "negative_is_cut_toward_zero", x=np.array([-1.75, -0.5, 1.75], np.float32), dtype="int32")
case("cast", "int32_wraps_in_int8", x=i32(200, -200, 256), dtype="int8")
case("cast", "bool_to_fp32", x=np.array([True, False]), dtype="fp32")
case("cast", "bool_to_int32", x=np.array([True, False]), dtype="int32")
case("cast", "int8_to_fp32", x=np.array([-128, 127], np.int8), dtype="fp32")

# ---- quantization of activations ------------------------------------------------------------------------------------
x = f(2, 3, 4, scale=40.0)
for dtype, zero in [("int8", np.int8(-3)), ("uint8", np.uint8(120))]:
    case("quantize", f"{dtype}_scalar", input=x, scale=np.float32(0.25), output_dtype=dtype)
    case("quantize", f"{dtype}_zero_point", input=x, scale=np.float32(0.25), zero_point=zero, output_dtype=dtype)
    case("quantize", f"{dtype}_axis", input=x, scale=np.array([0.25, 0.5, 1.0], np.float32), axis=np.int32(1),
         zero_point=np.array([zero, 0, 1], zero.dtype), output_dtype=dtype)
case("quantize", "ties_to_even", input=np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), scale=np.float32(1.0),
     output_dtype="int8")
q = rng.integers(-128, 128, (2, 3, 4)).astype(np.int8)
case("dequantize", "scalar", input=q, scale=np.float32(0.25))
case("dequantize", "zero_point", input=q, scale=np.float32(0.25), zero_point=np.int8(-5))
case("dequantize", "axis", input=q, scale=np.array([0.25, 0.5, 1.0, 2.0], np.float32), axis=np.int32(2),
     zero_point=np.array([1, 2, 3, -4], np.int8))
case("dequantize", "uint8", input=q.view(np.uint8), scale=np.float32(0.5), zero_point=np.uint8(128))
case("dequantize", "negative_axis", input=q, scale=np.array([0.25, 0.5, 1.0], np.float32), axis=np.int32(-2))

halves = np.array([0.5, 1.5, 2.5, 126.5, 127.5, 128.5, 0.0, 1e-6, 0.4998, 1023.5, 2049, 60000, 65504, np.inf], np.float32)
halves = np.concatenate([halves, -halves])
case("round", x=halves)
case("round", "between", x=np.array([[[0.25, 0.75]], [[-100.44, 3.25]]], np.float32))
case("clip", x=halves, alpha=np.float32(-128), beta=np.float32(127))
case("clip", "narrow", x=halves.reshape(4, 7), alpha=np.float32(-0.25), beta=np.float32(1.5))
case("clip", "positive", x=halves, alpha=np.float32(0), beta=np.float32(6))


# ---- products -------------------------------------------------------------------------------------------------------
def conv(x, weight, bias=None, strides=None, pad=None, dilations=None, groups=1):
    """The sum over taps, one output position after another."""
    dims = x.ndim - 2
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    pad = pad or [0] * (2 * dims)
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0)] + [(pad[2 * i], pad[2 * i + 1]) for i in range(dims)])
    kernel = weight.shape[2:]
    size = [(x.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(dims)]
    out = np.zeros([x.shape[0], weight.shape[0]] + size)
    ins, outs = weight.shape[1], weight.shape[0] // groups
    for at in itertools.product(*map(range, size)):
        for tap in itertools.product(*map(range, kernel)):
            place = tuple(a * s + t * d for a, s, t, d in zip(at, strides, tap, dilations))
            for g in range(groups):
                seen = x[(slice(None), slice(g * ins, (g + 1) * ins)) + place]
                w = weight[(slice(g * outs, (g + 1) * outs), slice(None)) + tap].astype(np.float64)
                out[(slice(None), slice(g * outs, (g + 1) * outs)) + at] += seen @ w.T
    if bias is not None:
        out += bias.reshape([1, -1] + [1] * dims)
    return out


def conv_case(name, x, weight, bias=None, pad_type=None, **attrs):
    args = {"x": x, "weight": weight}
    if bias is not None:
        args["bias"] = bias
    if pad_type:
        args["pad_type"] = pad_type
    for k, v in attrs.items():
        args[k] = np.int32(v) if k == "groups" else i32(*v)
    add("conv", "numpy", args, [conv(x, weight, bias, **attrs)], name)


conv_case("pointwise", f(1, 24, 1, 1), f(8, 24, 1, 1))
conv_case("pointwise_bias", f(1, 33, 1, 1), f(8, 33, 1, 1), f(8))
conv_case("pointwise_positions", f(2, 6, 1, 5), f(4, 6, 1, 1), f(4))
conv_case("pointwise_plane", f(1, 6, 3, 2), f(4, 6, 1, 1))
conv_case("plain_2d", f(1, 3, 5, 6), f(4, 3, 3, 2), f(4))
conv_case("valid", f(1, 3, 5, 6), f(4, 3, 3, 2), pad_type="valid")
conv_case("strides", f(2, 2, 6, 7), f(3, 2, 2, 3), strides=[2, 3])
conv_case("custom_pad", f(1, 2, 4, 5), f(3, 2, 3, 3), pad_type="custom", pad=[1, 2, 0, 1], strides=[1, 2])
conv_case("dilations", f(1, 2, 7, 6), f(2, 2, 3, 2), dilations=[2, 3])
conv_case("groups", f(1, 6, 4, 3), f(4, 3, 2, 2), f(4), groups=2)
conv_case("depthwise_1d", f(1, 5, 9), f(5, 1, 3), f(5), groups=5, pad_type="custom", pad=[2, 0])
conv_case("plain_1d", f(2, 4, 8), f(3, 4, 3), f(3))
conv_case("grouped_pointwise", f(1, 6, 1, 4), f(4, 3, 1, 1), groups=2)
conv_case("plain_3d", f(1, 2, 3, 3, 3), f(2, 2, 2, 2, 2))

case("linear", "vector", x=f(20), weight=f(6, 20))
case("linear", "bias", x=f(1, 17), weight=f(6, 17), bias=f(6))
case("linear", "rows", x=f(2, 3, 18), weight=f(5, 18), bias=f(5))

case("matmul", "plain", x=f(3, 4), y=f(4, 5))
case("matmul", "transpose_x", x=f(4, 3), y=f(4, 5), transpose_x=True)
case("matmul", "transpose_y", x=f(3, 19), y=f(5, 19), transpose_y=True)
case("matmul", "transpose_both", x=f(2, 4, 3), y=f(2, 5, 4), transpose_x=True, transpose_y=True)
case("matmul", "batch_broadcast", x=f(2, 1, 3, 4), y=f(5, 4, 2))
case("matmul", "batch_of_y_only", x=f(3, 4), y=f(2, 4, 2))
case("matmul", "attention", x=f(1, 4, 1, 16), y=f(1, 1, 9, 16), transpose_y=True)

q, k, v = f(1, 2, 3, 8), f(1, 2, 5, 8), f(1, 2, 5, 6)
case("scaled_dot_product_attention", "plain", query=q, key=k, value=v)
case("scaled_dot_product_attention", "bool_mask", query=q, key=k, value=v,
     attn_mask=np.array([[True, False, True, True, False]] * 3))
case("scaled_dot_product_attention", "float_mask", query=q, key=k, value=v, attn_mask=f(1, 1, 3, 5))

# ---- norms and reductions -------------------------------------------------------------------------------------------
x = f(2, 3, 4)
for op in ["reduce_mean", "reduce_sum", "reduce_max", "reduce_sum_square"]:
    case(op, "all", x=x)
    case(op, "last", x=x, axes=i32(-1))
    case(op, "keep_dims", x=x, axes=i32(1), keep_dims=True)
    case(op, "outer", x=x, axes=i32(0, 2))
    case(op, "all_keep_dims", x=x, keep_dims=True)
case("reduce_max", "masked", x=np.array([[-np.inf, -1.0], [-np.inf, -np.inf]], np.float32), axes=i32(1))
case("reduce_argmax", "default", x=f(2, 7))
case("reduce_argmax", "ties_go_to_the_lowest", x=np.array([[1, 3, 3, 2], [5, 5, 5, 5]], np.float32))
case("reduce_argmax", "axis", x=f(3, 4, 2), axis=np.int32(1))
case("reduce_argmax", "keep_dims", x=f(3, 4), axis=np.int32(0), keep_dims=True)
case("reduce_argmax", "uint16", x=f(3, 4), axis=np.int32(-2), output_dtype="uint16")

case("softmax", "default", x=f(2, 3, 5))
case("softmax", "axis", x=f(2, 3, 5), axis=np.int32(1))
case("softmax", "masked", x=np.where(rng.random((2, 8)) > 0.4, f(2, 8), -np.inf).astype(np.float32))

case("layer_norm", "last", x=f(2, 3, 8), axes=i32(-1))
# coremltools' own inference cannot take the default axes; the type rules say: all of them.
case("layer_norm", "every_axis", x=f(2, 6), axes=i32(0, 1))
case("layer_norm", "epsilon_counts", only="fp32", x=f(2, 8, scale=0.004), axes=i32(1))
case("layer_norm", "epsilon", x=f(2, 8), axes=i32(1), epsilon=np.float32(0.125))
case("layer_norm", "gamma_beta", x=f(2, 3, 4), axes=i32(1, 2), gamma=f(3, 4), beta=f(3, 4))
case("layer_norm", "gamma", x=f(2, 6), axes=i32(-1), gamma=f(6))
case("layer_norm", "channels", x=f(1, 6, 1, 3), axes=i32(1), epsilon=np.float32(2.0**-20))
x = f(3, 5)
mean, var = x.astype(np.float64).mean(), x.astype(np.float64).var()
add("layer_norm", "numpy", {"x": x}, [(x - mean) / np.sqrt(var + 1e-5)], "default_axes")

case("topk", "default", x=f(2, 6))
case("topk", "k", x=f(2, 6), k=np.int32(3))
case("topk", "axis", x=f(5, 3), k=np.int32(2), axis=np.int32(0))
case("topk", "ascending", x=f(2, 6), k=np.int32(4), ascending=True)
case("topk", "uint16", x=f(2, 6), k=np.int32(2), output_indices_dtype="uint16")
case("topk", "values_only", x=f(2, 6), k=np.int32(2), return_indices=False)

# ---- moving ---------------------------------------------------------------------------------------------------------
x = f(2, 3, 4)
case("identity", x=x)
for name, shape in [("plain", [4, 6]), ("minus_one", [-1, 2]), ("zero_copies", [0, 4, 3]), ("vector", [24])]:
    case("reshape", name, x=x, shape=i32(*shape))
case("reshape", "int32", x=i32(1, 2, 3, 4), shape=i32(2, 2))
case("transpose", "reverse", x=x, perm=i32(2, 1, 0))
case("transpose", "negative", x=x, perm=i32(0, -1, 1))
case("transpose", "ones_move_freely", x=f(1, 4, 1, 3), perm=i32(0, 2, 3, 1))
case("transpose", "only_ones", x=f(1, 4, 1, 1), perm=i32(0, 2, 3, 1))
case("expand_dims", "front", x=x, axes=i32(0))
case("expand_dims", "several", x=f(3, 4), axes=i32(0, 2, -1))
case("squeeze", "default", x=f(1, 3, 1, 2))
case("squeeze", "axes", x=f(1, 3, 1, 2), axes=i32(0))
case("squeeze", "negative", x=f(1, 3, 1), axes=i32(-1))
case("tile", "plain", x=f(2, 3), reps=i32(2, 1))
case("tile", "both", x=f(1, 2, 3), reps=i32(3, 2, 2))
case("tile", "int32", x=i32(4, 5), reps=i32(3))


def concat_case(name, values, axis, interleave=None):
    args = {"values": values, "axis": np.int32(axis)}
    if interleave is None or not interleave:
        if interleave is not None:
            args["interleave"] = interleave
        add("concat", "coremltools", args, infer("concat", {**args, "values": tuple(values)}), name)
    else:
        args["interleave"] = interleave
        # coremltools' inference ignores `interleave`; its documentation says: out[i::n] = values[i].
        n = len(values)
        shape = list(values[0].shape)
        shape[axis] *= n
        out = np.zeros(shape, np.float32)
        for i, value in enumerate(values):
            at = [slice(None)] * len(shape)
            at[axis] = slice(i, None, n)
            out[tuple(at)] = value
        add("concat", "numpy", args, [out], name)


concat_case("first", [f(2, 3), f(1, 3)], 0)
concat_case("last", [f(2, 3), f(2, 1), f(2, 2)], -1)
concat_case("channels", [f(1, 3, 1, 2), f(1, 3, 1, 2)], 1)
concat_case("int32", [i32(1, 2), i32(3)], 0)
concat_case("interleave", [f(3, 2), f(3, 2)], 0, True)
concat_case("interleave_three_columns", [f(2, 2), f(2, 2), f(2, 2)], 1, True)

case("split", "even", x=f(2, 6), num_splits=np.int32(3), axis=np.int32(1))
case("split", "sizes", x=f(6, 2), split_sizes=i32(1, 3, 2), axis=np.int32(0))
case("split", "both", x=f(2, 4), num_splits=np.int32(2), split_sizes=i32(1, 3), axis=np.int32(-1))

x = f(4, 5, 6)
i3 = lambda *v: i32(*v)  # noqa: E731
case("slice_by_index", "plain", x=x, begin=i3(1, 0, 2), end=i3(3, 4, 6))
case("slice_by_index", "negative", x=x, begin=i3(-3, -5, 0), end=i3(-1, 5, -2))
case("slice_by_index", "stride", x=x, begin=i3(0, 1, 0), end=i3(4, 5, 6), stride=i3(2, 3, 1))
case("slice_by_index", "reversed", x=x, begin=i3(3, 4, 5), end=i3(0, 1, 2), stride=i3(-1, -2, -1))
case("slice_by_index", "reversed_masks", x=x, begin=i3(0, 0, 0), end=i3(0, 0, 6), stride=i3(-1, -2, 1),
     begin_mask=np.array([True, True, False]), end_mask=np.array([True, True, False]))
case("slice_by_index", "begin_mask", x=x, begin=i3(2, 2, 2), end=i3(3, 3, 3), begin_mask=np.array([True, False, True]))
case("slice_by_index", "end_mask", x=x, begin=i3(2, 2, 2), end=i3(3, 3, 3), end_mask=np.array([False, True, True]))
case("slice_by_index", "squeeze_mask", x=x, begin=i3(2, 0, -1), end=i3(3, 5, 0),
     squeeze_mask=np.array([True, False, True]))
case("slice_by_index", "int32", x=i32(5, 6, 7), begin=i32(1), end=i32(3))
case("slice_by_size", "plain", x=x, begin=i3(1, 0, 2), size=i3(2, 5, 3))
case("slice_by_size", "rest", x=x, begin=i3(1, 0, 2), size=i3(-1, 2, -1))
case("slice_by_size", "negative_begin", x=x, begin=i3(-2, 0, -3), size=i3(1, 5, 2))
case("slice_update", "plain", x=x, update=f(2, 4, 4), begin=i3(1, 0, 2), end=i3(3, 4, 6))
case("slice_update", "stride", x=x, update=f(2, 2, 6), begin=i3(0, 1, 0), end=i3(4, 5, 6), stride=i3(2, 3, 1))
case("slice_update", "masks", x=x, update=f(3, 1, 3), begin=i3(2, 2, 2), end=i3(3, 3, 3),
     begin_mask=np.array([True, False, True]), end_mask=np.array([False, False, False]))
case("slice_update", "end_mask", x=x, update=f(2, 3, 1), begin=i3(2, 2, 2), end=i3(3, 3, 3),
     end_mask=np.array([True, True, False]))
case("slice_update", "squeeze_mask", x=x, update=f(5, 6), begin=i3(1, 0, 0), end=i3(0, 5, 6),
     squeeze_mask=np.array([True, False, False]))

case("pad", "default", x=f(2, 3), pad=i32(1, 2))
case("pad", "constant", x=f(2, 3), pad=i32(1, 0, 0, 2), mode="constant", constant_val=np.float32(1.5))
case("pad", "reflect", x=f(4, 5), pad=i32(2, 1, 3, 0), mode="reflect")
case("pad", "replicate", x=f(3, 4), pad=i32(2, 1, 1, 2), mode="replicate")

table = f(6, 4)
case("gather", "rows", x=table, indices=i32(5, 0, 3))
case("gather", "matrix_of_indices", x=table, indices=np.array([[1, 2], [5, 5]], np.int32))
case("gather", "axis", x=f(2, 5, 3), indices=i32(4, 0), axis=np.int32(1))
case("gather", "negative_axis", x=f(2, 5, 3), indices=i32(2, 2, 0), axis=np.int32(-1))
case("gather", "scalar_index", x=table, indices=np.int32(2))
case("gather", "batch_dims", x=f(2, 4, 3), indices=np.array([[3, 0], [1, 1]], np.int32), axis=np.int32(1),
     batch_dims=np.int32(1))
case("gather", "validated", x=table, indices=i32(1), validate_indices=True)
case("gather", "int32", x=i32(7, 8, 9), indices=i32(2, 0))
case("gather_along_axis", "default", x=f(4, 3), indices=np.array([[0, 3, 1], [2, 2, 2]], np.int32))
case("gather_along_axis", "axis", x=f(2, 5), indices=np.array([[4, 0, 4], [1, 2, 3]], np.int32), axis=np.int32(1))
case("gather_along_axis", "middle", x=f(2, 3, 2), indices=rng.integers(0, 3, (2, 4, 2)).astype(np.int32),
     axis=np.int32(-2), validate_indices=True)

# ---- constants and compressed weights -------------------------------------------------------------------------------
for dtype in ["fp16", "fp32", "int8", "int16", "int32", "uint8", "uint16", "bool"]:
    for shape in [(3,), (4, 5)]:
        kind = {"fp16": np.float16, "fp32": np.float32, "bool": np.bool_}.get(dtype) or np.dtype(dtype)
        value = (rng.standard_normal(shape) * 20).astype(np.int32).astype(kind) if dtype != "bool" else rng.random(shape) > 0.5
        if dtype.startswith("u"):
            value = np.abs((rng.standard_normal(shape) * 20).astype(np.int32)).astype(kind)
        add("const", "numpy", {"val": value}, [value], f"{dtype}_{'x'.join(map(str, shape))}")

for bits in [1, 2, 3, 4, 6, 8]:
    for name, shape, groups, vector, axis in [
        ("tensor", (8, 6), (1, 1), 1, None),
        ("groups", (8, 6), (4, 1), 1, None),
        ("conv_groups", (8, 6, 1, 1), (2, 1, 1, 1), 1, None),
        ("two_axes", (4, 6), (2, 3), 1, None),
        ("vector_rows", (4, 6), (2, 1), 2, 0),
        ("vector_columns", (4, 3), (1, 1), 2, 1),
    ]:
        if bits in (2, 3, 6) and name in ("two_axes", "conv_groups"):
            continue
        indices = rng.integers(0, 2**bits, shape).astype(np.uint8)
        lut = f(*groups, 2**bits, vector)
        args = {"indices": indices, "lut": lut}
        if axis is not None:
            args["vector_axis"] = np.int32(axis)
        dense = constexpr_lut_to_dense.decompress(indices, lut, axis)
        add("constexpr_lut_to_dense", "coremltools", args, [dense], f"{bits}bit_{name}",
            dtypes={"indices": f"uint{bits}"})

for dtype, low, high in [("int8", -128, 128), ("uint8", 0, 256), ("int4", -8, 8), ("uint4", 0, 16)]:
    for name, scale_shape in [("channel", (6, 1)), ("block", (6, 4)), ("tensor", (1, 1)), ("both", (3, 2))]:
        for offset in [False, True]:
            data = rng.integers(low, high, (6, 8)).astype(np.uint8 if dtype[0] == "u" else np.int8)
            scale = (np.abs(f(*scale_shape)) * 0.1 + 0.01).astype(np.float16).astype(np.float32)
            args = {"data": data, "scale": scale}
            dtypes = {"data": dtype}
            if offset:
                args["offset"] = rng.integers(low, high, scale_shape).astype(data.dtype)
                dtypes["offset"] = dtype
            dense = constexpr_blockwise_shift_scale.decompress(data, scale, args.get("offset"))
            add("constexpr_blockwise_shift_scale", "coremltools", args, [dense],
                f"{dtype}_{name}{'_offset' if offset else ''}", dtypes=dtypes)

# Sparse weights: a mask and elements only make a dense weight together, so both ops have the arguments of the first and
# the result of the second.
for bits, name, shape, groups, vector, axis in [
    (4, "tensor", (8, 6), (1, 1), 1, None),
    (2, "groups", (8, 7), (4, 1), 1, None),
    (3, "conv_groups", (8, 6, 1, 1), (2, 1, 1, 1), 1, None),
    (1, "two_axes", (4, 6), (2, 3), 1, None),
    (6, "vector_rows", (4, 6), (2, 1), 2, 0),
    (8, "vector_columns", (4, 5), (2, 1), 2, 1),
]:
    for op in ["constexpr_lut_to_sparse", "constexpr_sparse_to_dense"]:
        mask = (rng.random(shape) < (0.4 if op == "constexpr_lut_to_sparse" else 0.8)).astype(np.uint8)
        data = rng.integers(0, 2**bits, int(mask.sum())).astype(np.uint8)
        lut = f(*groups, 2**bits, vector)
        args = {"indices_mask": mask, "indices_nonzero_data": data, "lut": lut}
        if axis is not None:
            args["vector_axis"] = np.int32(axis)
        kept, values = constexpr_lut_to_sparse.decompress(mask, data, lut, axis)
        dense = constexpr_sparse_to_dense.decompress(values, kept)
        add(op, "coremltools", args, [dense], f"{bits}bit_{name}",
            dtypes={"indices_mask": "uint1", "indices_nonzero_data": f"uint{bits}"})

# int8 tables: the op that scales them, and the look-up in the result.
for bits, shape, groups in [(4, (8, 6), (4, 1)), (3, (8, 6, 1, 1), (2, 1, 1, 1))]:
    indices = rng.integers(0, 2**bits, shape).astype(np.uint8)
    codes = rng.integers(-127, 128, (*groups, 2**bits, 1)).astype(np.int8)
    # Products that fp16 holds: in f32 the runtime does not round them.
    scale = np.full((1,) * codes.ndim, 3 / 256, np.float16)
    lut = constexpr_blockwise_shift_scale.decompress(codes, scale, None)
    assert lut.dtype == np.float16
    dense = constexpr_lut_to_dense.decompress(indices, lut, None).astype(np.float32)
    args = {"indices": indices, "lut": codes, "scale": scale.astype(np.float32)}
    add("constexpr_lut_to_dense", "coremltools", args, [dense], f"{bits}bit_int8_lut", dtypes={"indices": f"uint{bits}"})

# ---- states: the sum of what was fed, after each of three runs ------------------------------------------------------
steps = [f(2, 3) for _ in range(3)]
for op in ["read_state", "write_state"]:
    add(op, "numpy", {"data": steps}, list(np.cumsum(steps, axis=0)), "sums")


def write_safetensors(path):
    names = {"float32": "F32", "float16": "F16", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
             "uint16": "U16", "bool": "BOOL"}
    header, data = {}, b""
    for key, array in TENSORS.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[key] = {"dtype": names[array.dtype.name], "shape": list(array.shape),
                       "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


write_safetensors(HERE / "cases.safetensors")
lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
(HERE / "cases.json").write_text(f"[\n{lines}\n]\n")
print(len(CASES), "cases,", len(TENSORS), "tensors")
