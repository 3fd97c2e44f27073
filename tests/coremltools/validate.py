"""Checks .mlpackage directories with coremltools, and what coremltools does not check.

    validate.py PACKAGE...                      one JSON line per package; exit 1 if one fails
    validate.py --dump-weights DIR PACKAGE...   also DIR/NAME.safetensors: every constant of 10 and
                                                more elements, decompressed, as FUNCTION/VALUE

Each package is copied first: opening one with coremltools rewrites its manifest.
"""

import argparse
import json
import logging
import re
import shutil
import struct
import sys
import tempfile
import traceback
from pathlib import Path

logging.disable(logging.CRITICAL)

import numpy as np  # noqa: E402
from coremltools import proto  # noqa: E402
from coremltools.converters.mil.frontend.milproto.helper import proto_to_types  # noqa: E402
from coremltools.converters.mil.frontend.milproto.load import load as milproto_load  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402
from coremltools.libmodelpackage import ModelPackage  # noqa: E402
from coremltools.models.utils import load_spec  # noqa: E402

SPEC_VERSION = 9
OPSET = "CoreML8"
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
RESERVED = set(
    "any bool program func tensor list dict tuple true false string bf16 fp16 fp32 fp64 int8 int16 "
    "int32 int64 uint8 uint16 uint32 uint64 state".split()
)
# MIL element type -> (type number in weight.bin, bits)
BLOB_TYPES = {
    "FLOAT16": (1, 16), "FLOAT32": (2, 32), "UINT8": (3, 8), "INT8": (4, 8), "INT16": (6, 16),
    "UINT16": (7, 16), "INT4": (8, 4), "UINT1": (9, 1), "UINT2": (10, 2), "UINT4": (11, 4),
    "UINT3": (12, 3), "UINT6": (13, 6), "INT32": (14, 32), "UINT32": (15, 32),
}
FEATURE_TYPES = {"FLOAT16": 65552, "FLOAT32": 65568, "INT32": 131104}
# Weights up to this many elements are also decompressed by coremltools' own (slow) code.
CROSS_CHECK_ELEMENTS = 1 << 20


class Invalid(Exception):
    """A fault of a package."""


def require(condition, message):
    if not condition:
        raise Invalid(message)


def mil_type(value_type):
    """(element type name, shape) of a tensor ValueType."""
    require(value_type.WhichOneof("type") == "tensorType", "not a tensor type")
    tensor = value_type.tensorType
    require(tensor.rank == len(tensor.dimensions), "rank and dimensions differ")
    shape = []
    for dim in tensor.dimensions:
        require(dim.WhichOneof("dimension") == "constant", "flexible dimension")
        require(dim.constant.size > 0, "empty dimension")
        shape.append(dim.constant.size)
    return proto.MIL_pb2.DataType.Name(tensor.dataType), tuple(shape)


def check_name(what, name):
    require(IDENTIFIER.match(name) and name not in RESERVED, f"bad {what} name {name!r}")


def check_feature(where, feature, expected, state):
    require(not feature.type.isOptional, f"{where}: optional")
    if state:
        require(feature.type.WhichOneof("Type") == "stateType", f"{where}: not a state")
        array = feature.type.stateType.arrayType
    else:
        require(feature.type.WhichOneof("Type") == "multiArrayType", f"{where}: not an array")
        array = feature.type.multiArrayType
    dtype, shape = expected
    require(dtype in FEATURE_TYPES, f"{where}: {dtype} is no feature type")
    require(not state or dtype == "FLOAT16", f"{where}: a state of {dtype}")
    require(array.dataType == FEATURE_TYPES[dtype], f"{where}: element type, expected {dtype}")
    require(tuple(array.shape) == shape, f"{where}: shape {list(array.shape)}, expected {shape}")


def check_features(where, described, program, state=False):
    names, expected = [f.name for f in described], [name for name, _ in program]
    require(names == expected, f"{where}: described {names}, the program has {expected}")
    for feature, (name, ty) in zip(described, program):
        check_feature(f"{where} {name}", feature, ty, state)


def check_value(value, ty, blobs, where):
    """A constant against its declared type, and its blob against weight.bin."""
    require(mil_type(value.type) == ty, f"{where}: holds {mil_type(value.type)}, declared {ty}")
    if value.WhichOneof("value") != "blobFileValue":
        return
    prefix, _, name = value.blobFileValue.fileName.rpartition("/")
    require(prefix == "@model_path/weights", f"{where}: file {value.blobFileValue.fileName}")
    header = blobs.get(name, {}).get(value.blobFileValue.offset)
    require(header, f"{where}: no blob at {value.blobFileValue.offset} of {name}")
    number, bits = BLOB_TYPES[ty[0]]
    total = int(np.prod(ty[1], dtype=np.int64)) * bits
    expected = (number, -(-total // 8), -total % 8)
    require(header == expected, f"{where}: blob (type, bytes, padding) {header}, not {expected}")


def read_blobs(path):
    """{metadata offset: (type, bytes, padding bits)} of a weight file, its layout checked."""
    data = np.memmap(path, np.uint8, "r")
    where = path.name
    require(len(data) >= 64, f"{where}: no header")
    count, version = struct.unpack("<II", data[:8].tobytes())
    require(version == 2, f"{where}: version {version}")
    require(not data[8:64].any(), f"{where}: reserved bytes")
    blobs, end = {}, 64
    for i in range(count):
        at = -(-end // 64) * 64
        require(at + 64 <= len(data), f"{where}: count {count}, blob {i} is missing")
        require(not data[end:at].any(), f"{where}: bytes before blob {i}")
        sentinel, number, size, offset, padding = struct.unpack(
            "<IIQQQ", data[at:at + 32].tobytes()
        )
        require(sentinel == 0xDEADBEEF, f"{where}: sentinel of blob {i}")
        require(offset == at + 64, f"{where}: data offset of blob {i}")
        require(not data[at + 32:at + 64].any(), f"{where}: reserved bytes of blob {i}")
        end = offset + size
        require(end <= len(data), f"{where}: blob {i} passes the end")
        blobs[at] = (number, size, padding)
    require(end == len(data), f"{where}: {len(data) - end} bytes after the last blob")
    return blobs


def check_function(name, function, prog, blobs):
    """Names, opset, constants; returns the types of inputs, states and outputs."""
    check_name("function", name)
    require(function.opset == OPSET, f"{name}: opset {function.opset}")
    require(list(function.block_specializations) == [OPSET], f"{name}: bodies")
    block = function.block_specializations[OPSET]
    values, inputs, states = {}, [], []
    for feature in function.inputs:
        check_name("input", feature.name)
        require(feature.name not in values, f"{name}: {feature.name} twice")
        if feature.type.WhichOneof("type") == "stateType":
            values[feature.name] = mil_type(feature.type.stateType.wrappedType)
            states.append((feature.name, values[feature.name]))
        else:
            values[feature.name] = mil_type(feature.type)
            inputs.append((feature.name, values[feature.name]))
    loaded = {v.name: v for op in prog.functions[name].operations for v in op.outputs}
    for op in block.operations:
        require("name" in op.attributes, f"{name}: {op.type} without name")
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    require(binding.name in values, f"{name}: {binding.name} before definition")
                else:
                    require(op.type.startswith("constexpr_"), f"{name}: inline value on {op.type}")
                    ty = mil_type(binding.value.type)
                    check_value(binding.value, ty, blobs, f"{name}: {op.type}")
        for output in op.outputs:
            check_name("value", output.name)
            require(output.name not in values, f"{name}: {output.name} twice")
            ty = values[output.name] = mil_type(output.type)
            if op.type == "const":
                check_value(op.attributes["val"], ty, blobs, f"{name}: {output.name}")
            elif op.type.startswith("constexpr_"):
                check_loaded(f"{name}: {output.name}", loaded[output.name], output.type)
    missing = [output for output in block.outputs if output not in values]
    require(not missing, f"{name}: outputs {missing} are not defined")
    return inputs, states, [(output, values[output]) for output in block.outputs]


def check_loaded(where, var, declared):
    """The type that coremltools infers against the one in the file."""
    declared = proto_to_types(declared)
    same = var.dtype == declared.get_primitive() and tuple(var.shape) == declared.get_shape()
    require(same, f"{where}: declared {types.builtin_to_string(declared.get_primitive())} "
                  f"{declared.get_shape()}, inferred {var.dtype} {var.shape}")


def check_description(spec, features):
    description = spec.description
    if list(features) == ["main"] and not description.functions:
        described = {"main": description}
        require(not description.defaultFunctionName, "defaultFunctionName without functions")
    else:
        described = {f.name: f for f in description.functions}
        require(len(described) == len(description.functions), "a function is described twice")
        require(set(described) == set(features), f"functions described: {sorted(described)}")
        require(description.defaultFunctionName in features, "defaultFunctionName")
        top = [*description.input, *description.output, *description.state]
        require(not top, "features beside functions")
    for name, (inputs, states, outputs) in features.items():
        check_features(f"{name}: input", described[name].input, inputs)
        check_features(f"{name}: state", described[name].state, states, state=True)
        check_features(f"{name}: output", described[name].output, outputs)


def check_manifest(package):
    manifest = json.loads((package / "Manifest.json").read_text())
    require(manifest["fileFormatVersion"] == "1.0.0", "fileFormatVersion")
    items = manifest["itemInfoEntries"]
    require(manifest["rootModelIdentifier"] in items, "rootModelIdentifier")
    names = {(item["author"], item["name"]): item["path"] for item in items.values()}
    for name in ("model.mlmodel", "weights"):
        path = names.get(("com.apple.CoreML", name))
        require(path == f"com.apple.CoreML/{name}", f"manifest: {name} is at {path}")


def validate(package):
    """Every check of one package (a copy). Returns the spec and the PyMIL program."""
    check_manifest(package)
    require(ModelPackage(str(package)).getRootModel() is not None, "no root model")
    spec = load_spec(str(package))
    require(spec.specificationVersion == SPEC_VERSION, f"version {spec.specificationVersion}")
    require(not spec.isUpdatable, "isUpdatable")
    weights = package / "Data/com.apple.CoreML/weights"
    prog = milproto_load(spec, spec.specificationVersion, str(weights))
    prog.validate()
    prog._check_early_error_out_for_invalid_program()
    blobs = {path.name: read_blobs(path) for path in sorted(weights.glob("*.bin"))}
    functions = spec.mlProgram.functions
    features = {
        name: check_function(name, functions[name], prog, blobs) for name in sorted(functions)
    }
    check_description(spec, features)
    return spec, prog


def lut_to_dense(indices, lut, axis):
    """Looks up whole groups at a time (coremltools repeats the LUT per element)."""
    groups, vector = lut.shape[:-2], lut.shape[-1]
    shape = list(indices.shape)
    if vector > 1:
        shape[axis] *= vector
    out = np.empty(shape, lut.dtype)
    sizes = [dim // group for dim, group in zip(indices.shape, groups)]
    for group in np.ndindex(*groups):
        at = tuple(slice(g * s, (g + 1) * s) for g, s in zip(group, sizes))
        found = lut[group][indices[at]]  # [..., vector]
        if vector == 1:
            out[at] = found[..., 0]
            continue
        axis %= indices.ndim
        to = list(at)
        to[axis] = slice(at[axis].start * vector, at[axis].stop * vector)
        found = np.moveaxis(found, -1, axis + 1)
        out[tuple(to)] = found.reshape(out[tuple(to)].shape)
    return out


def materialize(op):
    """The dense value of a const or constexpr op of a PyMIL program."""
    if op.op_type == "const":
        return op.outputs[0].val
    if op.op_type == "constexpr_lut_to_dense":
        axis = None if op.vector_axis is None else int(op.vector_axis.val)
        lut = op.lut.val if op.lut.val is not None else materialize(op.lut.op)
        dense = lut_to_dense(op.indices.val, lut, axis)
        if dense.size <= CROSS_CHECK_ELEMENTS:
            theirs = type(op).decompress(op.indices.val, lut, axis)
            same = np.array_equal(dense, theirs, equal_nan=True)
            require(same, f"{op.name}: two decompressions differ")
        return dense
    return op.materialized_val_inference()


def weights_of(prog):
    """(name, dense fp16 or fp32 array) of every weight."""
    for name, function in sorted(prog.functions.items()):
        for op in function.operations:
            if op.op_type != "const" and not op.op_type.startswith("constexpr_"):
                continue
            used = op.op_type != "const" or any(
                not child.op_type.startswith("constexpr_") for child in op.outputs[0].child_ops
            )
            shape = op.outputs[0].shape
            big = shape and int(np.prod(shape)) >= 10
            if used and big and op.outputs[0].dtype in (types.fp16, types.fp32):
                yield f"{name}/{op.outputs[0].name}", op


def dump(prog, path):
    """Writes a safetensors file, one weight in memory at a time."""
    header, offset, ops = {}, 0, []
    for name, op in weights_of(prog):
        var = op.outputs[0]
        size = types.nptype_from_builtin(var.dtype)().itemsize
        end = offset + int(np.prod(var.shape)) * size
        header[name] = {
            "dtype": f"F{8 * size}",
            "shape": [int(dim) for dim in var.shape],
            "data_offsets": [offset, end],
        }
        offset = end
        ops.append(op)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for op in ops:
            file.write(np.ascontiguousarray(materialize(op)).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dump-weights", type=Path, metavar="DIR")
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    args = parser.parse_args()
    failed = False
    for package in args.packages:
        result = {"package": str(package), "ok": True}
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / package.name
            try:
                shutil.copytree(package, copy)
                spec, prog = validate(copy)
                result["ops"] = sum(len(f.operations) for f in prog.functions.values())
                if args.dump_weights:
                    args.dump_weights.mkdir(parents=True, exist_ok=True)
                    dump(prog, args.dump_weights / f"{package.stem}.safetensors")
            except Invalid as error:
                result.update(ok=False, error=str(error))
            except Exception as error:  # whatever coremltools raises is a fault of the package
                trace = traceback.format_exc(limit=-3)
                result.update(ok=False, error=f"{type(error).__name__}: {error}\n{trace}")
        failed |= not result["ok"]
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
