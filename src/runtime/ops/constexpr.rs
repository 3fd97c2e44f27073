//! Compressed weights.

use crate::mil::{DType, OpType, TensorType};
use crate::runtime::args::OpArgs;
use crate::runtime::error::Result;
use crate::runtime::packed::{Blocks, PackedWeight, Palette};
use crate::runtime::tensor::{Data, Precision};
use crate::runtime::value::Constant;

/// Compiles a constexpr op to a weight that stays packed.
pub(crate) fn constexpr(args: &OpArgs<'_>) -> Result<Constant> {
    match args.op_type {
        OpType::ConstexprLutToDense => lut_to_dense(args),
        OpType::ConstexprBlockwiseShiftScale => blockwise_shift_scale(args),
        _ => Err(args.unsupported("this constexpr")),
    }
}

/// The values of a constant as f32; int8 and uint8 ones exactly.
fn floats(constant: &Constant) -> Vec<f32> {
    match constant.dense().data() {
        Data::F32(v) => v.to_vec(),
        Data::I32(v) => v.iter().map(|&v| v as f32).collect(),
        Data::Bool(v) => v.iter().map(|&v| f32::from(v)).collect(),
    }
}

fn lut_to_dense(args: &OpArgs<'_>) -> Result<Constant> {
    let indices = args.required("indices")?.ty();
    let lut = args.required("lut")?;
    let bits = match indices.dtype {
        DType::UInt8 => 8,
        dtype if dtype.is_sub_byte() && dtype != DType::Int4 => dtype.bits(),
        dtype => {
            return Err(args.bad(
                "indices",
                "an unsigned type of at most 8 bits",
                dtype.name(),
            ));
        }
    };
    let vector_axis = match args.int_or_none("vector_axis")? {
        Some(axis) => args.axis("vector_axis", axis, indices.rank())?,
        None if lut.ty().shape.last() == Some(&1) => 0,
        None => return Err(args.bad("vector_axis", "an axis, for vectors", "none")),
    };
    let palette = Palette {
        bits,
        index_shape: indices.shape.clone(),
        lut_shape: lut.ty().shape.clone(),
        lut: floats(lut),
        vector_axis,
    };
    let Some(weight) = PackedWeight::palette(palette, args.bytes("indices")?) else {
        let expected = format!("a shape that fits indices of {indices}");
        return Err(args.bad("lut", expected, lut.ty().to_string()));
    };
    let ty = TensorType::new(lut.ty().dtype, weight.shape());
    Ok(Constant::packed(ty, weight))
}

fn blockwise_shift_scale(args: &OpArgs<'_>) -> Result<Constant> {
    let data = args.required("data")?;
    let scale = args.required("scale")?;
    let offset = args.constant("offset")?;
    let Some(coding) = data.coding() else {
        return Err(args.unsupported(format!("data of type {}", data.ty())));
    };
    if let Some(offset) = offset
        && offset.ty().shape != scale.ty().shape
    {
        let expected = format!("the shape of scale, {}", scale.ty());
        return Err(args.bad("offset", expected, offset.ty().to_string()));
    }
    let ty = TensorType::new(scale.ty().dtype, &data.ty().shape);
    let blocks = Blocks {
        coding,
        scale_shape: scale.ty().shape.clone(),
        scale: floats(scale),
        offset: offset.map(floats),
        rounded: args.precision == Precision::F16 && ty.dtype == DType::Fp16,
    };
    let Some(weight) = PackedWeight::blocks(&data.ty().shape, blocks, args.bytes("data")?) else {
        let expected = format!("a shape that divides {}", data.ty());
        return Err(args.bad("scale", expected, scale.ty().to_string()));
    };
    Ok(Constant::packed(ty, weight))
}
