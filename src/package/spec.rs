//! From a program and the places of its weights to the protobuf model.

use std::collections::{BTreeMap, BTreeSet};

use super::WEIGHTS_PREFIX;
use super::error::{Error, Result};
use super::places::{ConstPlace, PartPlace};
use super::proto::spec as pb;
use super::proto::spec::mil_spec as mil_pb;
use super::storage::{Part, PartSpec, Storage};
use crate::mil::{
    ConstValue, DType, DeferredConst, Function, Immediate, ImmediateData, Input, OPSET, Op, OpType,
    Program, SPEC_VERSION, TensorType,
};

use mil_pb::argument::{Binding, binding};
use mil_pb::{dimension, tensor_value, value, value_type};

/// Metadata of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelDescription {
    /// One line.
    pub short_description: String,
    /// Who made it.
    pub author: String,
    /// License of the model.
    pub license: String,
    /// Version of the model.
    pub version: String,
    /// Any other text by key.
    pub user_defined: BTreeMap<String, String>,
}

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
    let mut names = Names::of(f);
    let mut operations = Vec::with_capacity(f.ops.len());
    for op in &f.ops {
        operation(op, places, &mut names, &mut operations)?;
    }
    let block = mil_pb::Block {
        inputs: vec![],
        outputs: f.outputs.clone(),
        operations,
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

/// The names of a function's values and ops.
struct Names(BTreeSet<String>);

impl Names {
    fn of(f: &Function) -> Self {
        let inputs = f.inputs.iter().map(|input| input.name.clone());
        let values = f.ops.iter().flat_map(|op| &op.outputs);
        let values = values.map(|(name, _)| name.clone());
        let ops = f.ops.iter().map(|op| op.name.clone());
        Names(inputs.chain(values).chain(ops).collect())
    }

    /// A name that is not taken: `stem`, or `stem` with underscores behind it.
    fn fresh(&mut self, mut stem: String) -> String {
        while !self.0.insert(stem.clone()) {
            stem.push('_');
        }
        stem
    }
}

/// Adds an op of the program: one op of the file, or two where a weight needs them.
fn operation(
    op: &Op,
    places: &BTreeMap<String, ConstPlace>,
    names: &mut Names,
    out: &mut Vec<mil_pb::Operation>,
) -> Result<()> {
    let made = match &op.value {
        None => {
            let inputs = op.inputs.iter().map(|(arg, names)| {
                let bindings = names
                    .iter()
                    .map(|name| binding::Binding::Name(name.clone()));
                ((*arg).to_owned(), argument(bindings))
            });
            raw_operation(op, op.op_type, inputs.collect(), None)
        }
        Some(ConstValue::Immediate(v)) => {
            let val = Some(immediate(v));
            raw_operation(op, OpType::Const, BTreeMap::new(), val)
        }
        Some(ConstValue::Deferred(c)) => {
            let place = places.get(&c.id).ok_or_else(|| Error::BlobOrder {
                weight: c.id.clone(),
                message: "is used and has no place",
            })?;
            deferred(op, c, place, names, out)?
        }
    };
    out.push(made);
    Ok(())
}

/// A weight as `const` or constexpr op; an op that this one takes something from is added before.
fn deferred(
    op: &Op,
    c: &DeferredConst,
    place: &ConstPlace,
    names: &mut Names,
    out: &mut Vec<mil_pb::Operation>,
) -> Result<mil_pb::Operation> {
    let find = |part: Part| place.parts.iter().find(|(spec, _)| spec.part == part);
    let value_of = |part: Part| -> Result<Option<mil_pb::Value>> {
        find(part)
            .map(|(spec, at)| part_value(spec, at))
            .transpose()
    };
    let given = |part: Part| Ok::<_, Error>(value_of(part)?.map(binding::Binding::Value));
    let axis = |axis: &Option<usize>| {
        let axis = axis.map(|axis| immediate(&Immediate::int32(axis as i32)));
        axis.map(binding::Binding::Value)
    };
    let mut name = |suffix: &str| names.fresh(format!("{}_{suffix}", op.name));
    let (op_type, args) = match &place.storage {
        Storage::Dense => {
            let val = value_of(Part::Data)?;
            return Ok(raw_operation(op, OpType::Const, BTreeMap::new(), val));
        }
        Storage::Palette { vector_axis, .. } => {
            let args = vec![
                ("indices", given(Part::Data)?),
                ("lut", given(Part::Lut)?),
                ("vector_axis", axis(vector_axis)),
            ];
            (OpType::ConstexprLutToDense, args)
        }
        Storage::PaletteSparse {
            lut_shape,
            vector_axis,
            nonzero,
            ..
        } => {
            let elements = nonzero * lut_shape.last().copied().unwrap_or(1);
            let (mask, data) = (name("mask"), name("nonzero"));
            let last = vec![
                ("nonzero_data", Some(binding::Binding::Name(data.clone()))),
                ("mask", Some(binding::Binding::Name(mask.clone()))),
            ];
            let args = vec![
                ("indices_mask", given(Part::Mask)?),
                ("indices_nonzero_data", given(Part::Data)?),
                ("lut", given(Part::Lut)?),
                ("vector_axis", axis(vector_axis)),
            ];
            let outputs = vec![
                (mask, TensorType::new(DType::UInt1, &c.shape)),
                (data, TensorType::new(c.dtype, &[elements])),
            ];
            out.push(before(
                OpType::ConstexprLutToSparse,
                name("sparse"),
                args,
                outputs,
            ));
            (OpType::ConstexprSparseToDense, last)
        }
        Storage::PaletteInt8 { lut_shape, .. } => {
            let lut = name("lut");
            let last = vec![
                ("indices", given(Part::Data)?),
                ("lut", Some(binding::Binding::Name(lut.clone()))),
            ];
            let args = vec![("data", given(Part::Lut)?), ("scale", given(Part::Scale)?)];
            let outputs = vec![(lut.clone(), TensorType::new(c.dtype, lut_shape))];
            out.push(before(
                OpType::ConstexprBlockwiseShiftScale,
                lut,
                args,
                outputs,
            ));
            (OpType::ConstexprLutToDense, last)
        }
        Storage::Blockwise { .. } => {
            let args = vec![
                ("data", given(Part::Data)?),
                ("scale", given(Part::Scale)?),
                ("offset", given(Part::Offset)?),
            ];
            (OpType::ConstexprBlockwiseShiftScale, args)
        }
    };
    debug_assert_eq!(op.outputs.first().map(|(_, ty)| ty), Some(&c.ty()));
    Ok(raw_operation(op, op_type, bound(args), None))
}

/// Arguments by name; none for one that is absent.
type Given = Vec<(&'static str, Option<binding::Binding>)>;

/// An op that only the file has.
fn before(
    op_type: OpType,
    name: String,
    args: Given,
    outputs: Vec<(String, TensorType)>,
) -> mil_pb::Operation {
    let op = Op {
        op_type,
        name,
        inputs: vec![],
        outputs,
        value: None,
    };
    raw_operation(&op, op_type, bound(args), None)
}

/// The arguments that are there.
fn bound(args: Given) -> BTreeMap<String, mil_pb::Argument> {
    let args = args.into_iter();
    args.filter_map(|(arg, value)| Some((arg.to_owned(), argument([value?]))))
        .collect()
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
