//! Compressed weights.

use crate::mil::{DType, OpType, TensorType};
use crate::runtime::interpreter::args::OpArgs;
use crate::runtime::values::error::Result;
use crate::runtime::values::tensor::{Data, Precision};
use crate::runtime::weights::coding::SharedBytes;
use crate::runtime::weights::constant::Constant;
use crate::runtime::weights::packed::{Blocks, PackedWeight};
use crate::runtime::weights::palette::Palette;
use crate::runtime::weights::sparse;
use half::f16;
use std::sync::Arc;

/// Compiles a constexpr op to its results; a weight stays packed.
pub(crate) fn constexpr(args: &OpArgs<'_>) -> Result<Vec<Constant>> {
    match args.op_type {
        OpType::ConstexprLutToDense => Ok(vec![lut_to_dense(args)?]),
        OpType::ConstexprLutToSparse => lut_to_sparse(args),
        OpType::ConstexprSparseToDense => Ok(vec![sparse_to_dense(args)?]),
        OpType::ConstexprBlockwiseShiftScale => Ok(vec![blockwise_shift_scale(args)?]),
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
    let palette = palette(args, "indices", &indices.shape)?;
    let Some(weight) = PackedWeight::palette(palette, args.bytes("indices")?) else {
        let expected = format!("a shape that fits indices of {indices}");
        return Err(args.bad("lut", expected, lut.ty().to_string()));
    };
    let ty = TensorType::new(lut.ty().dtype, weight.shape());
    Ok(Constant::packed(ty, weight))
}

/// The palette of an op whose indices are the argument `arg`, over an index tensor of `shape`.
fn palette(args: &OpArgs<'_>, arg: &str, shape: &[usize]) -> Result<Palette> {
    let indices = args.required(arg)?.ty();
    let lut = args.required("lut")?;
    let bits = match indices.dtype {
        DType::UInt8 => 8,
        dtype if dtype.is_sub_byte() && dtype != DType::Int4 => dtype.bits(),
        dtype => {
            return Err(args.bad(arg, "an unsigned type of at most 8 bits", dtype.name()));
        }
    };
    let vector_axis = match args.int_or_none("vector_axis")? {
        Some(axis) => args.axis("vector_axis", axis, shape.len())?,
        None if lut.ty().shape.last() == Some(&1) => 0,
        None => return Err(args.bad("vector_axis", "an axis, for vectors", "none")),
    };
    Ok(Palette {
        bits,
        index_shape: shape.to_vec(),
        lut_shape: lut.ty().shape.clone(),
        lut: floats(lut),
        vector_axis,
    })
}

/// The expanded mask, and the elements where it is 1.
fn lut_to_sparse(args: &OpArgs<'_>) -> Result<Vec<Constant>> {
    let mask = args.required("indices_mask")?;
    let indices = args.required("indices_nonzero_data")?.ty();
    let lut = args.required("lut")?.ty();
    let palette = palette(args, "indices_nonzero_data", &mask.ty().shape)?;
    let data = args.bytes("indices_nonzero_data")?;
    let elements = indices.elements().unwrap_or(0);
    let mut values = Vec::new();
    let encode = |value| encode(lut.dtype, value, &mut values);
    let looked_up = sparse::look_up(&palette, (*data).as_ref(), elements, mask.bytes(), encode);
    let Some(looked_up) = looked_up else {
        let expected = format!("a mask with {elements} ones, and a LUT that fits its shape");
        return Err(args.bad("indices_mask", expected, format!("{} and {lut}", mask.ty())));
    };
    let stored: [(TensorType, SharedBytes); 2] = [
        (
            TensorType::new(mask.ty().dtype, &looked_up.shape),
            looked_up.mask,
        ),
        (
            TensorType::new(lut.dtype, &[elements * palette.vector()]),
            Arc::new(values),
        ),
    ];
    let constants = stored
        .into_iter()
        .map(|(ty, bytes)| Constant::raw(ty, bytes));
    let constants: Option<Vec<Constant>> = constants.collect();
    constants.ok_or_else(|| args.unsupported(format!("a LUT of type {lut}")))
}

/// Appends a value of a LUT, which is exact in its type, as it is stored.
fn encode(dtype: DType, value: f32, out: &mut Vec<u8>) {
    match dtype {
        DType::Fp16 => out.extend(f16::from_f32(value).to_le_bytes()),
        DType::Fp32 => out.extend(value.to_le_bytes()),
        _ => out.push(value as i32 as u8),
    }
}

fn sparse_to_dense(args: &OpArgs<'_>) -> Result<Constant> {
    let (data, mask) = (args.required("nonzero_data")?, args.required("mask")?);
    let Some(coding) = data.coding() else {
        return Err(args.unsupported(format!("data of type {}", data.ty())));
    };
    let elements = data.ty().elements().unwrap_or(0);
    let shape = &mask.ty().shape;
    let weight = PackedWeight::sparse(shape, coding, (data.bytes(), elements), mask.bytes());
    let Some(weight) = weight else {
        let expected = format!("a mask with {elements} ones");
        return Err(args.bad("mask", expected, mask.ty().to_string()));
    };
    Ok(Constant::packed(
        TensorType::new(data.ty().dtype, shape),
        weight,
    ))
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
