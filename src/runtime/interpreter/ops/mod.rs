//! The ops: each derives its result types from its operands and becomes a kernel.
//!
//! Semantics are those of the iOS 18 opset as coremltools 9.0 documents it and its value inference computes it.

mod arith;
mod constexpr;
mod index;
mod linear;
mod norm;
mod shape;
mod slice;

use crate::mil::OpType;
use crate::runtime::interpreter::args::{Compiled, OpArgs};
use crate::runtime::values::error::{Error, Result};

pub(crate) use constexpr::constexpr;
pub(crate) use slice::{region, slice_update_bounds};

/// Compiles any op but constants, constexprs and states.
pub(crate) fn compile(args: OpArgs<'_>) -> Result<Compiled> {
    use OpType::*;
    match args.op_type {
        Add | Sub | Mul | RealDiv | Maximum | Minimum | Pow => arith::binary(args),
        Exp | Tanh | Sigmoid | Silu | Sqrt | Cos | Sin | Round | Clip | Rsqrt | Gelu => {
            arith::unary(args)
        }
        Select => arith::select(args),
        Cast => arith::cast(args),
        Quantize => arith::quantize(args),
        Dequantize => arith::dequantize(args),
        Conv => linear::conv(args),
        Linear => linear::linear(args),
        Matmul => linear::matmul(args),
        ScaledDotProductAttention => linear::attention(args),
        LayerNorm => norm::layer_norm(args),
        Softmax => norm::softmax(args),
        ReduceMean | ReduceSum | ReduceMax | ReduceSumSquare => norm::reduce(args),
        ReduceArgmax => index::argmax(args),
        Topk => index::topk(args),
        Gather => index::gather(args),
        GatherAlongAxis => index::gather_along_axis(args),
        Identity => shape::identity(args),
        Reshape => shape::reshape(args),
        Transpose => shape::transpose(args),
        ExpandDims => shape::expand_dims(args),
        Squeeze => shape::squeeze(args),
        Tile => shape::tile(args),
        Concat => shape::concat(args),
        Split => shape::split(args),
        Pad => shape::pad(args),
        SliceByIndex => slice::by_index(args),
        SliceBySize => slice::by_size(args),
        SliceUpdate => slice::update(args),
        Const
        | ConstexprLutToDense
        | ConstexprLutToSparse
        | ConstexprSparseToDense
        | ConstexprBlockwiseShiftScale
        | ReadState
        | WriteState => Err(Error::UnsupportedOp {
            op: args.op.to_owned(),
            op_type: args.op_type.to_string(),
        }),
    }
}

/// Whether an op only moves elements, so that rounded operands give rounded results.
pub(crate) fn moves_only(op_type: OpType) -> bool {
    use OpType::*;
    matches!(
        op_type,
        Identity
            | Reshape
            | Transpose
            | ExpandDims
            | Squeeze
            | Tile
            | Concat
            | Split
            | SliceByIndex
            | SliceBySize
            | SliceUpdate
            | Gather
            | GatherAlongAxis
            | Select
            | ReadState
    )
}
