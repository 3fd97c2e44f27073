//! From a program and the places of its weights to the protobuf model.

use std::collections::BTreeMap;

use super::WEIGHTS_PREFIX;
use super::error::{Error, Result};
use super::proto::spec as pb;
use super::proto::spec::mil_spec as mil_pb;
use super::storage::{Part, PartSpec, Storage};
use super::write::{ConstPlace, ModelDescription, PartPlace};
use crate::mil::{
    ConstValue, DType, DeferredConst, Function, Immediate, ImmediateData, Input, OPSET, Op, OpType,
    Program, SPEC_VERSION, TensorType,
};

use mil_pb::argument::{Binding, binding};
use mil_pb::{dimension, tensor_value, value, value_type};

/// The model of a program whose weights are at `places`.
pub(super) fn model(
    program: &Program,
    description: &ModelDescription,
    places: &BTreeMap<String, ConstPlace>,
) -> Result<pb::Model> {
    let functions = program.functions.iter();
    let functions = functions
        .map(|(name, f)| Ok((name.clone(), function(f, places)?)))
        .collect::<Result<_>>()?;
    Ok(pb::Model {
        specification_version: SPEC_VERSION,
        description: Some(model_description(program, description)?),
        is_updatable: false,
        r#type: Some(pb::model::Type::MlProgram(mil_pb::Program {
            version: 1,
            functions,
            attributes: BTreeMap::new(),
        })),
    })
}

/// Whether a program is written without `functions` in its description.
pub(super) fn is_single(program: &Program) -> bool {
    program.functions.len() == 1 && program.functions.contains_key("main")
}

fn model_description(
    program: &Program,
    description: &ModelDescription,
) -> Result<pb::ModelDescription> {
    let metadata = pb::Metadata {
        short_description: description.short_description.clone(),
        version_string: description.version.clone(),
        author: description.author.clone(),
        license: description.license.clone(),
        user_defined: description.user_defined.clone(),
    };
    let mut out = pb::ModelDescription {
        metadata: (metadata != pb::Metadata::default()).then_some(metadata),
        ..Default::default()
    };
    let mut functions = Vec::new();
    for (name, function) in &program.functions {
        functions.push(pb::FunctionDescription {
            name: name.clone(),
            input: features(function, false),
            output: output_features(name, function)?,
            state: features(function, true),
        });
    }
    if is_single(program) {
        if let Some(main) = functions.pop() {
            (out.input, out.output, out.state) = (main.input, main.output, main.state);
        }
    } else {
        out.functions = functions;
        out.default_function_name = program.default_function.clone();
    }
    Ok(out)
}

fn features(function: &Function, states: bool) -> Vec<pb::FeatureDescription> {
    let inputs = function.inputs.iter().filter(|i| i.is_state == states);
    inputs.map(|i| feature(&i.name, &i.ty, states)).collect()
}

fn output_features(name: &str, function: &Function) -> Result<Vec<pb::FeatureDescription>> {
    let outputs = function.outputs.iter().map(|output| {
        let results = function.ops.iter().flat_map(|op| &op.outputs);
        let mut results = results.filter(|(value, _)| value == output);
        let (_, ty) = results.next().ok_or_else(|| Error::Program {
            function: name.to_owned(),
            op: String::new(),
            value: output.clone(),
            message: "the output is the result of no op".to_owned(),
        })?;
        Ok(feature(output, ty, false))
    });
    outputs.collect()
}

fn feature(name: &str, ty: &TensorType, state: bool) -> pb::FeatureDescription {
    use pb::array_feature_type::ArrayDataType;
    let data_type = match ty.dtype {
        DType::Fp16 => ArrayDataType::Float16,
        DType::Fp32 => ArrayDataType::Float32,
        DType::Int32 => ArrayDataType::Int32,
        _ => ArrayDataType::InvalidArrayDataType,
    };
    let array = pb::ArrayFeatureType {
        shape: ty.shape.iter().map(|&dim| dim as i64).collect(),
        data_type: data_type.into(),
    };
    let feature_type = if state {
        pb::feature_type::Type::StateType(pb::StateFeatureType {
            r#type: Some(pb::state_feature_type::Type::ArrayType(array)),
        })
    } else {
        pb::feature_type::Type::MultiArrayType(array)
    };
    pb::FeatureDescription {
        name: name.to_owned(),
        short_description: String::new(),
        r#type: Some(pb::FeatureType {
            is_optional: false,
            r#type: Some(feature_type),
        }),
    }
}

fn function(f: &Function, places: &BTreeMap<String, ConstPlace>) -> Result<mil_pb::Function> {
    let operations = f.ops.iter().map(|op| operation(op, places));
    let block = mil_pb::Block {
        inputs: vec![],
        outputs: f.outputs.clone(),
        operations: operations.collect::<Result<_>>()?,
        attributes: BTreeMap::new(),
    };
    Ok(mil_pb::Function {
        inputs: f.inputs.iter().map(input).collect(),
        opset: OPSET.to_owned(),
        block_specializations: BTreeMap::from([(OPSET.to_owned(), block)]),
        attributes: BTreeMap::new(),
    })
}

fn input(input: &Input) -> mil_pb::NamedValueType {
    let ty = tensor_type(&input.ty);
    let ty = if input.is_state {
        mil_pb::ValueType {
            r#type: Some(value_type::Type::StateType(Box::new(mil_pb::StateType {
                wrapped_type: Some(Box::new(ty)),
            }))),
        }
    } else {
        ty
    };
    mil_pb::NamedValueType {
        name: input.name.clone(),
        r#type: Some(ty),
    }
}

fn tensor_type(ty: &TensorType) -> mil_pb::ValueType {
    let dimensions = ty.shape.iter().map(|&size| mil_pb::Dimension {
        dimension: Some(dimension::Dimension::Constant(
            dimension::ConstantDimension { size: size as u64 },
        )),
    });
    mil_pb::ValueType {
        r#type: Some(value_type::Type::TensorType(mil_pb::TensorType {
            data_type: ty.dtype.proto_number(),
            rank: ty.rank() as i64,
            dimensions: dimensions.collect(),
        })),
    }
}

fn operation(op: &Op, places: &BTreeMap<String, ConstPlace>) -> Result<mil_pb::Operation> {
    match &op.value {
        None => {
            let inputs = op.inputs.iter().map(|(arg, names)| {
                let bindings = names
                    .iter()
                    .map(|name| binding::Binding::Name(name.clone()));
                ((*arg).to_owned(), argument(bindings))
            });
            Ok(raw_operation(op, op.op_type, inputs.collect(), None))
        }
        Some(ConstValue::Immediate(v)) => {
            let val = Some(immediate(v));
            Ok(raw_operation(op, OpType::Const, BTreeMap::new(), val))
        }
        Some(ConstValue::Deferred(c)) => {
            let place = places.get(&c.id).ok_or_else(|| Error::BlobOrder {
                weight: c.id.clone(),
                message: "is used and has no place",
            })?;
            deferred(op, c, place)
        }
    }
}

/// A weight as `const` or constexpr op.
fn deferred(op: &Op, c: &DeferredConst, place: &ConstPlace) -> Result<mil_pb::Operation> {
    let value_of = |part: Part| -> Result<Option<mil_pb::Value>> {
        let found = place.parts.iter().find(|(spec, _)| spec.part == part);
        found.map(|(spec, at)| part_value(spec, at)).transpose()
    };
    let (op_type, args) = match &place.storage {
        Storage::Dense => {
            let val = value_of(Part::Data)?;
            return Ok(raw_operation(op, OpType::Const, BTreeMap::new(), val));
        }
        Storage::Palette { vector_axis, .. } => {
            let axis = vector_axis.map(|axis| immediate(&Immediate::int32(axis as i32)));
            let args = vec![
                ("indices", value_of(Part::Data)?),
                ("lut", value_of(Part::Lut)?),
                ("vector_axis", axis),
            ];
            (OpType::ConstexprLutToDense, args)
        }
        Storage::Blockwise { .. } => {
            let args = vec![
                ("data", value_of(Part::Data)?),
                ("scale", value_of(Part::Scale)?),
                ("offset", value_of(Part::Offset)?),
            ];
            (OpType::ConstexprBlockwiseShiftScale, args)
        }
    };
    debug_assert_eq!(op.outputs.first().map(|(_, ty)| ty), Some(&c.ty()));
    let inputs = args.into_iter().filter_map(|(arg, value)| {
        let bound = binding::Binding::Value(value?);
        Some((arg.to_owned(), argument([bound])))
    });
    Ok(raw_operation(op, op_type, inputs.collect(), None))
}

fn argument(bindings: impl IntoIterator<Item = binding::Binding>) -> mil_pb::Argument {
    let bindings = bindings.into_iter().map(|b| Binding { binding: Some(b) });
    mil_pb::Argument {
        arguments: bindings.collect(),
    }
}

fn raw_operation(
    op: &Op,
    op_type: OpType,
    inputs: BTreeMap<String, mil_pb::Argument>,
    val: Option<mil_pb::Value>,
) -> mil_pb::Operation {
    let name = immediate(&Immediate::string(&op.name));
    let mut attributes = BTreeMap::from([("name".to_owned(), name)]);
    attributes.extend(val.map(|val| ("val".to_owned(), val)));
    let outputs = op.outputs.iter().map(|(name, ty)| mil_pb::NamedValueType {
        name: name.clone(),
        r#type: Some(tensor_type(ty)),
    });
    mil_pb::Operation {
        r#type: op_type.name().to_owned(),
        inputs,
        outputs: outputs.collect(),
        blocks: vec![],
        attributes,
    }
}

fn part_value(spec: &PartSpec, place: &PartPlace) -> Result<mil_pb::Value> {
    Ok(match place {
        PartPlace::Immediate(bytes) => immediate(&Immediate::from_bytes(&spec.ty(), bytes)?),
        PartPlace::Blob(blob) => mil_pb::Value {
            doc_string: String::new(),
            r#type: Some(tensor_type(&spec.ty())),
            value: Some(value::Value::BlobFileValue(value::BlobFileValue {
                file_name: format!("{WEIGHTS_PREFIX}{}", blob.file),
                offset: blob.offset,
            })),
        },
    })
}

fn immediate(v: &Immediate) -> mil_pb::Value {
    use tensor_value::Value as T;
    let ints = |values: Vec<i32>| T::Ints(tensor_value::RepeatedInts { values });
    let tensor = match &v.data {
        ImmediateData::Bool(values) => T::Bools(tensor_value::RepeatedBools {
            values: values.clone(),
        }),
        ImmediateData::String(value) => T::Strings(tensor_value::RepeatedStrings {
            values: vec![value.clone()],
        }),
        ImmediateData::Fp32(values) => T::Floats(tensor_value::RepeatedFloats {
            values: values.clone(),
        }),
        ImmediateData::Int32(values) => ints(values.clone()),
        ImmediateData::Int16(values) => ints(values.iter().map(|&x| x.into()).collect()),
        ImmediateData::UInt16(values) => ints(values.iter().map(|&x| x.into()).collect()),
        _ => T::Bytes(tensor_value::RepeatedBytes {
            values: v.to_bytes(),
        }),
    };
    mil_pb::Value {
        doc_string: String::new(),
        r#type: Some(tensor_type(&v.ty())),
        value: Some(value::Value::ImmediateValue(value::ImmediateValue {
            value: Some(value::immediate_value::Value::Tensor(mil_pb::TensorValue {
                value: Some(tensor),
            })),
        })),
    }
}
