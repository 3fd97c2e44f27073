//! Types and values from their protobuf form.

use super::value::ReadValue;
use super::weights::WeightFiles;
use crate::mil::{DType, Immediate, ImmediateData, TensorType};
use crate::package::proto::spec::mil_spec as pb;

/// A fault in words; the caller knows where.
type Read<T> = std::result::Result<T, String>;

/// The tensor type in a value type.
pub(super) fn tensor_type(ty: Option<&pb::ValueType>) -> Read<TensorType> {
    let Some(pb::value_type::Type::TensorType(tensor)) = ty.and_then(|ty| ty.r#type.as_ref())
    else {
        return Err("the type is not a tensor".to_owned());
    };
    let dtype = DType::from_proto_number(tensor.data_type)
        .ok_or_else(|| format!("element type {} is not supported", tensor.data_type))?;
    if usize::try_from(tensor.rank) != Ok(tensor.dimensions.len()) {
        return Err(format!(
            "rank {} with {} dimensions",
            tensor.rank,
            tensor.dimensions.len()
        ));
    }
    let shape = tensor.dimensions.iter().map(|dim| match &dim.dimension {
        Some(pb::dimension::Dimension::Constant(c)) if c.size > 0 => {
            usize::try_from(c.size).map_err(|_| format!("dimension {} is too large", c.size))
        }
        Some(pb::dimension::Dimension::Constant(_)) => Err("a dimension is 0".to_owned()),
        _ => Err("flexible dimensions are not supported".to_owned()),
    });
    let ty = TensorType {
        dtype,
        shape: shape.collect::<Read<_>>()?,
    };
    if ty.elements().is_none_or(|n| n > isize::MAX as usize / 8) {
        return Err(format!("{ty} is too large"));
    }
    Ok(ty)
}

/// The tensor type of an input and whether it is a state.
pub(super) fn input_type(ty: Option<&pb::ValueType>) -> Read<(TensorType, bool)> {
    match ty.and_then(|ty| ty.r#type.as_ref()) {
        Some(pb::value_type::Type::StateType(state)) => {
            Ok((tensor_type(state.wrapped_type.as_deref())?, true))
        }
        _ => Ok((tensor_type(ty)?, false)),
    }
}

/// A constant, its reference checked.
pub(super) fn value(value: &pb::Value, weights: &WeightFiles) -> Read<ReadValue> {
    if !value.doc_string.is_empty() {
        return Err("a value has a docString".to_owned());
    }
    let ty = tensor_type(value.r#type.as_ref())?;
    match &value.value {
        Some(pb::value::Value::BlobFileValue(blob)) => {
            weights.find(&blob.file_name, blob.offset, ty)
        }
        Some(pb::value::Value::ImmediateValue(immediate)) => match &immediate.value {
            Some(pb::value::immediate_value::Value::Tensor(tensor)) => {
                Ok(ReadValue::Immediate(immediate_tensor(ty, tensor)?))
            }
            _ => Err("an immediate value is not a tensor".to_owned()),
        },
        None => Err("a value is empty".to_owned()),
    }
}

fn immediate_tensor(ty: TensorType, tensor: &pb::TensorValue) -> Read<Immediate> {
    use pb::tensor_value::Value as T;
    let wrong = || format!("the elements of a {ty} are stored as another type");
    let narrow = |values: &[i32]| -> Read<ImmediateData> {
        let range = |_| format!("an element is out of range of {}", ty.dtype);
        Ok(match ty.dtype {
            DType::Int32 => ImmediateData::Int32(values.to_vec()),
            DType::Int16 => {
                let values = values.iter().map(|&x| i16::try_from(x));
                ImmediateData::Int16(values.collect::<Result<_, _>>().map_err(range)?)
            }
            DType::UInt16 => {
                let values = values.iter().map(|&x| u16::try_from(x));
                ImmediateData::UInt16(values.collect::<Result<_, _>>().map_err(range)?)
            }
            _ => return Err(wrong()),
        })
    };
    let data = match tensor.value.as_ref().ok_or("a tensor value is empty")? {
        T::Floats(v) if ty.dtype == DType::Fp32 => ImmediateData::Fp32(v.values.clone()),
        T::Ints(v) => narrow(&v.values)?,
        T::Bools(v) if ty.dtype == DType::Bool => ImmediateData::Bool(v.values.clone()),
        T::Strings(v) if ty.dtype == DType::String => match v.values.as_slice() {
            [value] => ImmediateData::String(value.clone()),
            values => return Err(format!("{} strings, expected one", values.len())),
        },
        T::Bytes(v)
            if !matches!(
                ty.dtype,
                DType::Fp32 | DType::Int16 | DType::UInt16 | DType::Int32
            ) =>
        {
            return Immediate::from_bytes(&ty, &v.values).map_err(|e| e.to_string());
        }
        _ => return Err(wrong()),
    };
    Immediate::new(&ty.shape, data).map_err(|e| e.to_string())
}
