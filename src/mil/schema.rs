//! The ops: names, arguments, attribute defaults. Shared by the builder, the reader and the runtime.
//!
//! Facts are those of the iOS 18 opset as coremltools 9.0 has it; `write_state` is known only to the
//! file format. Type rules that need more than one argument are in [`super::infer`].

use std::fmt;

use super::types::DType::{self, *};

/// What may be bound to an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Any value.
    Tensor,
    /// A `const` or the output of a constexpr op.
    Weight,
    /// A `const` whose elements are known when the program is read.
    Attribute,
    /// A state.
    State,
}

/// What an argument is when it is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultValue {
    /// It must be given.
    Required,
    /// Absent: no bias, no mask, no gain, no offset.
    Absent,
    Bool(bool),
    Int(i32),
    Float(f32),
    Str(&'static str),
    /// This number for each spatial dimension (`conv` strides, dilations).
    PerSpatial(i32),
    /// This number twice for each spatial dimension (`conv` pad).
    PerSpatialPair(i32),
    /// Every axis of `x` (`layer_norm`, reductions), or every axis of size 1 (`squeeze`).
    AllAxes,
    /// This number for each dimension of `x` (`slice_by_index` stride).
    PerDim(i32),
    /// False for each dimension of `x` (slice masks).
    NoMask,
}

/// One argument of an op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArgSpec {
    /// Argument name in the file.
    pub name: &'static str,
    /// What may be bound.
    pub role: Role,
    /// Element types allowed.
    pub dtypes: &'static [DType],
    /// Arguments of one op with the same letter have the same element type; `' '` is no group.
    pub group: char,
    /// Value when absent.
    pub default: DefaultValue,
    /// Whether several values are bound (`concat`).
    pub variadic: bool,
}

impl ArgSpec {
    /// Whether the argument must be given.
    pub fn required(&self) -> bool {
        self.default == DefaultValue::Required
    }

    const fn new(name: &'static str, role: Role, dtypes: &'static [DType], group: char) -> Self {
        ArgSpec {
            name,
            role,
            dtypes,
            group,
            default: DefaultValue::Required,
            variadic: false,
        }
    }

    const fn or(mut self, default: DefaultValue) -> Self {
        self.default = default;
        self
    }

    const fn many(mut self) -> Self {
        self.variadic = true;
        self
    }
}

const FLOAT: &[DType] = &[Fp16, Fp32];
const NUMBER: &[DType] = &[Fp16, Fp32, Int32];
const NUMBER_BOOL: &[DType] = &[Fp16, Fp32, Int32, Bool];
const WIDE: &[DType] = &[Fp16, Fp32, Int8, Int16, Int32, UInt8, UInt16];
const WIDE_BOOL: &[DType] = &[Fp16, Fp32, Int8, Int16, Int32, UInt8, UInt16, Bool];
const SIGNED: &[DType] = &[Int8, Int16, Int32];
const INDEX: &[DType] = &[Int8, Int16, Int32, UInt8, UInt16];
const BYTE: &[DType] = &[Int8, UInt8];
const INT32: &[DType] = &[Int32];
const BOOL: &[DType] = &[Bool];
const STRING: &[DType] = &[String];
const PALETTE_INDEX: &[DType] = &[UInt1, UInt2, UInt3, UInt4, UInt6, UInt8];
const LUT: &[DType] = &[Fp16, Fp32, Int8, UInt8];
const SPARSE: &[DType] = &[Int4, UInt4, Int8, UInt8, Fp16, Fp32];
const MASK: &[DType] = &[UInt1];
const QUANTIZED: &[DType] = &[Int4, UInt4, Int8, UInt8, Fp16, Fp32];

const fn tensor(name: &'static str, dtypes: &'static [DType], group: char) -> ArgSpec {
    ArgSpec::new(name, Role::Tensor, dtypes, group)
}

const fn weight(name: &'static str, dtypes: &'static [DType], group: char) -> ArgSpec {
    ArgSpec::new(name, Role::Weight, dtypes, group)
}

const fn attr(name: &'static str, dtypes: &'static [DType], default: DefaultValue) -> ArgSpec {
    ArgSpec::new(name, Role::Attribute, dtypes, ' ').or(default)
}

const fn state(name: &'static str) -> ArgSpec {
    ArgSpec::new(name, Role::State, FLOAT, 'T')
}

const X_FLOAT: ArgSpec = tensor("x", FLOAT, 'T');
const X_WIDE: ArgSpec = tensor("x", WIDE_BOOL, 'T');
const UNARY: &[ArgSpec] = &[X_FLOAT];
const BINARY: &[ArgSpec] = &[tensor("x", NUMBER, 'T'), tensor("y", NUMBER, 'T')];
const REDUCE: &[ArgSpec] = &[
    tensor("x", NUMBER, 'T'),
    attr("axes", INT32, DefaultValue::AllAxes),
    attr("keep_dims", BOOL, DefaultValue::Bool(false)),
];
const BEGIN: ArgSpec = tensor("begin", SIGNED, 'U');
const END: ArgSpec = tensor("end", SIGNED, 'U');
const STRIDE: ArgSpec =
    ArgSpec::new("stride", Role::Attribute, SIGNED, 'U').or(DefaultValue::PerDim(1));
const BEGIN_MASK: ArgSpec = attr("begin_mask", BOOL, DefaultValue::NoMask);
const END_MASK: ArgSpec = attr("end_mask", BOOL, DefaultValue::NoMask);
const SQUEEZE_MASK: ArgSpec = attr("squeeze_mask", BOOL, DefaultValue::NoMask);

macro_rules! ops {
    ($($variant:ident $name:literal [$args:expr] $doc:literal;)*) => {
        /// Every op of the schema.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpType {
            $(#[doc = $doc] $variant,)*
        }

        impl OpType {
            /// Every op, in a fixed order.
            pub const ALL: &'static [OpType] = &[$(OpType::$variant,)*];

            /// Name in the file.
            pub fn name(self) -> &'static str {
                match self { $(OpType::$variant => $name,)* }
            }

            /// Arguments in schema order.
            pub fn args(self) -> &'static [ArgSpec] {
                match self { $(OpType::$variant => { const ARGS: &[ArgSpec] = $args; ARGS })* }
            }

            /// The op with this name in the file.
            pub fn from_name(name: &str) -> Option<OpType> {
                match name { $($name => Some(OpType::$variant),)* _ => None }
            }
        }
    };
}

ops! {
    Const "const" [&[]] "A constant; its value is an attribute of the op.";
    ConstexprLutToDense "constexpr_lut_to_dense" [&[
        weight("indices", PALETTE_INDEX, ' '),
        weight("lut", LUT, ' '),
        attr("vector_axis", INT32, DefaultValue::Absent),
    ]] "Palettized weight. `lut` is `[g0..gK-1, 2^n, vec]`.";
    ConstexprLutToSparse "constexpr_lut_to_sparse" [&[
        weight("indices_mask", MASK, ' '),
        weight("indices_nonzero_data", PALETTE_INDEX, ' '),
        weight("lut", LUT, ' '),
        attr("vector_axis", INT32, DefaultValue::Absent),
    ]] "Palettized elements of a sparse weight: its mask, and the elements where the mask is 1.";
    ConstexprSparseToDense "constexpr_sparse_to_dense" [&[
        weight("nonzero_data", SPARSE, ' '),
        weight("mask", MASK, ' '),
    ]] "The elements of a sparse weight where the mask is 1, zero elsewhere.";
    ConstexprBlockwiseShiftScale "constexpr_blockwise_shift_scale" [&[
        weight("data", QUANTIZED, ' '),
        weight("scale", FLOAT, ' '),
        weight("offset", QUANTIZED, ' ').or(DefaultValue::Absent),
    ]] "`scale * (data - offset)`, scale and offset per block.";
    Conv "conv" [&[
        tensor("x", FLOAT, 'T'),
        tensor("weight", FLOAT, 'U'),
        tensor("bias", FLOAT, 'U').or(DefaultValue::Absent),
        attr("strides", INT32, DefaultValue::PerSpatial(1)),
        attr("pad_type", STRING, DefaultValue::Str("valid")),
        attr("pad", INT32, DefaultValue::PerSpatialPair(0)),
        attr("dilations", INT32, DefaultValue::PerSpatial(1)),
        attr("groups", INT32, DefaultValue::Int(1)),
    ]] "Convolution, `x [n, c_in, ...]`, `weight [c_out, c_in / groups, ...]`.";
    Linear "linear" [&[
        tensor("x", NUMBER, 'T'),
        weight("weight", NUMBER, 'U'),
        weight("bias", NUMBER, 'U').or(DefaultValue::Absent),
    ]] "`x [.., in]` times `weight [out, in]` transposed.";
    Matmul "matmul" [&[
        tensor("x", NUMBER, 'T'),
        tensor("y", NUMBER, 'T'),
        attr("transpose_x", BOOL, DefaultValue::Bool(false)),
        attr("transpose_y", BOOL, DefaultValue::Bool(false)),
    ]] "Batched matrix product with broadcast batch dimensions.";
    LayerNorm "layer_norm" [&[
        X_FLOAT,
        attr("axes", INT32, DefaultValue::AllAxes),
        weight("gamma", FLOAT, 'U').or(DefaultValue::Absent),
        weight("beta", FLOAT, 'U').or(DefaultValue::Absent),
        attr("epsilon", FLOAT, DefaultValue::Float(1e-5)),
    ]] "Mean and variance normalization over `axes`.";
    ReduceMean "reduce_mean" [REDUCE] "Mean over axes.";
    ReduceSum "reduce_sum" [REDUCE] "Sum over axes.";
    ReduceMax "reduce_max" [REDUCE] "Maximum over axes.";
    ReduceSumSquare "reduce_sum_square" [REDUCE] "Sum of squares over axes.";
    ReduceArgmax "reduce_argmax" [&[
        tensor("x", NUMBER, 'T'),
        attr("axis", INT32, DefaultValue::Int(-1)),
        attr("keep_dims", BOOL, DefaultValue::Bool(false)),
        attr("output_dtype", STRING, DefaultValue::Str("int32")),
    ]] "Index of the first maximum along an axis.";
    Add "add" [BINARY] "Sum, broadcast.";
    Sub "sub" [BINARY] "Difference, broadcast.";
    Mul "mul" [BINARY] "Product, broadcast.";
    RealDiv "real_div" [BINARY] "Quotient, broadcast.";
    Maximum "maximum" [BINARY] "Larger, broadcast.";
    Minimum "minimum" [BINARY] "Smaller, broadcast.";
    Pow "pow" [BINARY] "Power, broadcast.";
    Exp "exp" [UNARY] "e to the x.";
    Tanh "tanh" [UNARY] "Hyperbolic tangent.";
    Sigmoid "sigmoid" [UNARY] "Logistic function.";
    Silu "silu" [UNARY] "`x * sigmoid(x)`.";
    Sqrt "sqrt" [UNARY] "Square root.";
    Cos "cos" [UNARY] "Cosine.";
    Sin "sin" [UNARY] "Sine.";
    Round "round" [UNARY] "Nearest integer, a half to the even one.";
    Clip "clip" [&[
        X_FLOAT,
        ArgSpec::new("alpha", Role::Attribute, FLOAT, 'T'),
        ArgSpec::new("beta", Role::Attribute, FLOAT, 'T'),
    ]] "`min(max(x, alpha), beta)`.";
    Rsqrt "rsqrt" [&[
        X_FLOAT,
        attr("epsilon", FLOAT, DefaultValue::Float(1e-12)),
    ]] "`1 / sqrt(x + epsilon)`.";
    Gelu "gelu" [&[
        X_FLOAT,
        attr("mode", STRING, DefaultValue::Str("EXACT")),
    ]] "GELU: EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION.";
    Softmax "softmax" [&[
        X_FLOAT,
        attr("axis", INT32, DefaultValue::Int(-1)),
    ]] "Softmax along an axis.";
    ScaledDotProductAttention "scaled_dot_product_attention" [&[
        tensor("query", FLOAT, 'T'),
        tensor("key", FLOAT, 'T'),
        tensor("value", FLOAT, 'T'),
        tensor("attn_mask", &[Bool, Fp16, Fp32], ' ').or(DefaultValue::Absent),
    ]] "Attention with the fixed scale `1 / sqrt(E)`.";
    Concat "concat" [&[
        tensor("values", WIDE_BOOL, 'T').many(),
        attr("axis", INT32, DefaultValue::Required),
        attr("interleave", BOOL, DefaultValue::Bool(false)),
    ]] "Concatenation along an axis.";
    Split "split" [&[
        tensor("x", NUMBER_BOOL, 'T'),
        attr("num_splits", INT32, DefaultValue::Absent),
        attr("split_sizes", INT32, DefaultValue::Absent),
        attr("axis", INT32, DefaultValue::Required),
    ]] "Pieces along an axis; one of `num_splits` and `split_sizes` is needed.";
    SliceByIndex "slice_by_index" [&[
        X_WIDE, BEGIN, END, STRIDE, BEGIN_MASK, END_MASK, SQUEEZE_MASK,
    ]] "`x[begin:end:stride]` per dimension.";
    SliceBySize "slice_by_size" [&[
        X_WIDE, BEGIN, tensor("size", SIGNED, 'U'),
    ]] "`size` elements from `begin` per dimension; -1 is the rest.";
    SliceUpdate "slice_update" [&[
        X_WIDE, tensor("update", WIDE_BOOL, 'T'), BEGIN, END, STRIDE, BEGIN_MASK, END_MASK,
        SQUEEZE_MASK,
    ]] "`x` with the slice replaced by `update`.";
    Reshape "reshape" [&[
        X_WIDE, tensor("shape", SIGNED, ' '),
    ]] "Same elements, other shape; one -1, 0 copies a dimension.";
    Transpose "transpose" [&[
        X_WIDE, attr("perm", INT32, DefaultValue::Required),
    ]] "Permutation of dimensions.";
    ExpandDims "expand_dims" [&[
        X_WIDE, attr("axes", INT32, DefaultValue::Required),
    ]] "Dimensions of size 1 inserted.";
    Squeeze "squeeze" [&[
        X_WIDE, attr("axes", INT32, DefaultValue::AllAxes),
    ]] "Dimensions of size 1 removed.";
    Tile "tile" [&[
        tensor("x", NUMBER_BOOL, 'T'), tensor("reps", INT32, ' '),
    ]] "Repetition per dimension.";
    Gather "gather" [&[
        tensor("x", WIDE, 'T'),
        tensor("indices", INDEX, ' '),
        attr("axis", INT32, DefaultValue::Int(0)),
        attr("batch_dims", INT32, DefaultValue::Int(0)),
        attr("validate_indices", BOOL, DefaultValue::Bool(false)),
    ]] "Slices of `x` along `axis`; negative indices are out of bounds.";
    GatherAlongAxis "gather_along_axis" [&[
        tensor("x", WIDE, 'T'),
        tensor("indices", INDEX, ' '),
        attr("axis", INT32, DefaultValue::Int(0)),
        attr("validate_indices", BOOL, DefaultValue::Bool(false)),
    ]] "Elements of `x` along `axis`, one per index.";
    Cast "cast" [&[
        X_WIDE, attr("dtype", STRING, DefaultValue::Required),
    ]] "Conversion of the element type.";
    Pad "pad" [&[
        X_FLOAT,
        tensor("pad", INT32, ' '),
        attr("mode", STRING, DefaultValue::Str("constant")),
        ArgSpec::new("constant_val", Role::Attribute, FLOAT, 'T').or(DefaultValue::Float(0.0)),
    ]] "Padding of the last dimensions: constant, reflect or replicate.";
    Select "select" [&[
        tensor("cond", BOOL, ' '),
        tensor("a", NUMBER_BOOL, 'T'),
        tensor("b", NUMBER_BOOL, 'T'),
    ]] "`a` where `cond`, `b` elsewhere.";
    Topk "topk" [&[
        tensor("x", WIDE, 'T'),
        attr("k", SIGNED, DefaultValue::Int(1)),
        attr("axis", INT32, DefaultValue::Int(-1)),
        attr("ascending", BOOL, DefaultValue::Bool(false)),
        attr("sort", BOOL, DefaultValue::Bool(true)),
        attr("return_indices", BOOL, DefaultValue::Bool(true)),
        attr("output_indices_dtype", STRING, DefaultValue::Str("int32")),
    ]] "The `k` largest along an axis, and their indices.";
    Identity "identity" [&[X_WIDE]] "The same value under another name.";
    ReadState "read_state" [&[state("input")]] "The tensor in a state.";
    WriteState "write_state" [&[
        state("input"), tensor("data", FLOAT, 'T'),
    ]] "Replaces the tensor in a state; no result.";
    Quantize "quantize" [&[
        tensor("input", FLOAT, 'T'),
        weight("zero_point", BYTE, ' ').or(DefaultValue::Absent),
        weight("scale", FLOAT, 'T'),
        attr("axis", INT32, DefaultValue::Absent),
        attr("output_dtype", STRING, DefaultValue::Required),
    ]] "`clip(round(input / scale) + zero_point)`.";
    Dequantize "dequantize" [&[
        tensor("input", BYTE, 'T'),
        weight("zero_point", BYTE, 'T').or(DefaultValue::Absent),
        weight("scale", FLOAT, ' '),
        attr("axis", INT32, DefaultValue::Absent),
    ]] "`scale * (input - zero_point)`.";
}

impl OpType {
    /// The argument with this name.
    pub fn arg(self, name: &str) -> Option<&'static ArgSpec> {
        self.args().iter().find(|spec| spec.name == name)
    }

    /// The default of an argument; none if the op has no such argument.
    pub fn default_of(self, arg: &str) -> Option<DefaultValue> {
        self.arg(arg).map(|spec| spec.default)
    }

    /// Whether this is a `constexpr_*` op.
    pub fn is_constexpr(self) -> bool {
        matches!(
            self,
            OpType::ConstexprLutToDense
                | OpType::ConstexprLutToSparse
                | OpType::ConstexprSparseToDense
                | OpType::ConstexprBlockwiseShiftScale
        )
    }
}

impl fmt::Display for OpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_args_are_unique() {
        for &op in OpType::ALL {
            assert_eq!(OpType::from_name(op.name()), Some(op));
            for (i, arg) in op.args().iter().enumerate() {
                assert!(op.args()[..i].iter().all(|other| other.name != arg.name));
            }
        }
        assert_eq!(OpType::from_name("scatter"), None);
    }
}
