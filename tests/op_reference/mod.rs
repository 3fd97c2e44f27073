//! The reference cases of `make.py`, and the one-op programs made of them.

#![allow(dead_code)] // each test uses its part

use gemma_coreml::mil::schema::Role;
use gemma_coreml::mil::{
    DType, DefaultValue, DeferredConst, Function, FunctionBuilder, Immediate, ImmediateData,
    OpType, Program, Var,
};
use gemma_coreml::package::{
    BoxError, ConstSource, ModelDescription, Package, PackageSpec, Part, PartSink, Storage,
    WEIGHT_FILE_LIMIT, write_package,
};
use gemma_coreml::runtime::{Data, Tensor};
use half::f16;
use std::collections::BTreeMap;
use std::path::Path;

/// Elements of a reference tensor.
#[derive(Clone, Debug)]
pub struct Stored {
    /// `fp32`, `int32`, `uint4`, ...; floats are fp16 values held as fp32.
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub floats: Vec<f32>,
    pub ints: Vec<i32>,
}

/// An argument of a case.
#[derive(Clone, Debug)]
pub enum Arg {
    Tensors(Vec<Stored>),
    Bool(bool),
    Text(String),
}

/// One op with its arguments and the results it must give.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub op: OpType,
    pub args: Vec<(&'static str, Arg)>,
    pub outputs: Vec<Stored>,
    /// Whether the numbers mean something in fp32 only.
    pub only_fp32: bool,
}

/// Every case of `cases.json`.
pub fn load() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/op_reference");
    let bytes = std::fs::read(dir.join("cases.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let text = std::fs::read_to_string(dir.join("cases.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    cases.iter().map(|case| read_case(case, &tensors)).collect()
}

fn read_case(case: &serde_json::Value, tensors: &safetensors::SafeTensors<'_>) -> Case {
    let op_name = case["op"].as_str().unwrap();
    let op = OpType::from_name(op_name).unwrap_or_else(|| panic!("op {op_name}"));
    let args = case["args"].as_object().unwrap().iter();
    let args = args.map(|(name, value)| {
        let spec = op.args().iter().find(|spec| spec.name == name);
        let name = match spec {
            Some(spec) => spec.name,
            // Arguments of the op that makes the LUT, or of the one before `constexpr_sparse_to_dense`.
            None => [
                "indices_mask",
                "indices_nonzero_data",
                "lut",
                "vector_axis",
                "scale",
            ]
            .into_iter()
            .find(|known| known == name)
            .unwrap_or("val"),
        };
        let arg = match value.get("attr") {
            Some(serde_json::Value::Bool(flag)) => Arg::Bool(*flag),
            Some(text) => Arg::Text(text.as_str().unwrap().to_owned()),
            None => Arg::Tensors(read_tensors(value, tensors)),
        };
        (name, arg)
    });
    let outputs = case["outputs"].as_array().unwrap().iter();
    Case {
        name: case["name"].as_str().unwrap().to_owned(),
        op,
        args: args.collect(),
        outputs: outputs.flat_map(|o| read_tensors(o, tensors)).collect(),
        only_fp32: case.get("only").is_some(),
    }
}

fn read_tensors(value: &serde_json::Value, tensors: &safetensors::SafeTensors<'_>) -> Vec<Stored> {
    let dtype: DType = value["dtype"].as_str().unwrap().parse().unwrap();
    let keys: Vec<&str> = match value.get("tensor") {
        Some(key) => vec![key.as_str().unwrap()],
        None => {
            let keys = value["tensors"].as_array().unwrap().iter();
            keys.map(|key| key.as_str().unwrap()).collect()
        }
    };
    let read = |key: &str| {
        let view = tensors.tensor(key).unwrap();
        let data = view.data();
        let mut out = Stored {
            dtype,
            shape: view.shape().to_vec(),
            floats: Vec::new(),
            ints: Vec::new(),
        };
        use safetensors::Dtype::*;
        match view.dtype() {
            F32 => {
                out.floats = data
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&b| f32::from_le_bytes(b))
                    .collect()
            }
            F16 => {
                let values = data.as_chunks::<2>().0.iter();
                out.floats = values.map(|&b| f16::from_le_bytes(b).to_f32()).collect();
            }
            I32 => {
                out.ints = data
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&b| i32::from_le_bytes(b))
                    .collect()
            }
            I16 => {
                let values = data.as_chunks::<2>().0.iter();
                out.ints = values.map(|&b| i32::from(i16::from_le_bytes(b))).collect();
            }
            U16 => {
                let values = data.as_chunks::<2>().0.iter();
                out.ints = values.map(|&b| i32::from(u16::from_le_bytes(b))).collect();
            }
            I8 => out.ints = data.iter().map(|&b| i32::from(b as i8)).collect(),
            U8 | BOOL => out.ints = data.iter().map(|&b| i32::from(b)).collect(),
            other => panic!("{other:?}"),
        }
        out
    };
    keys.into_iter().map(read).collect()
}

impl Stored {
    /// As a tensor of the runtime.
    pub fn tensor(&self) -> Tensor {
        match self.dtype.is_float() {
            true => Tensor::f32(&self.shape, self.floats.clone()).unwrap(),
            false => Tensor::i32(&self.shape, self.ints.clone()).unwrap(),
        }
    }

    /// As a constant, floats in `float`.
    pub fn immediate(&self, float: DType) -> Immediate {
        let ints = &self.ints;
        let data = match self.dtype {
            DType::Fp16 | DType::Fp32 if float == DType::Fp16 => {
                ImmediateData::Fp16(self.floats.iter().map(|&v| f16::from_f32(v)).collect())
            }
            DType::Fp16 | DType::Fp32 => ImmediateData::Fp32(self.floats.clone()),
            DType::Bool => ImmediateData::Bool(ints.iter().map(|&v| v != 0).collect()),
            DType::Int8 => ImmediateData::Int8(ints.iter().map(|&v| v as i8).collect()),
            DType::UInt8 => ImmediateData::UInt8(ints.iter().map(|&v| v as u8).collect()),
            DType::Int16 => ImmediateData::Int16(ints.iter().map(|&v| v as i16).collect()),
            DType::UInt16 => ImmediateData::UInt16(ints.iter().map(|&v| v as u16).collect()),
            DType::Int32 => ImmediateData::Int32(ints.clone()),
            other => panic!("{other} is no immediate here"),
        };
        Immediate::new(&self.shape, data).unwrap()
    }

    /// Packed as in weight.bin, floats as fp16.
    pub fn packed(&self) -> Vec<u8> {
        if self.dtype.is_float() {
            let values = self.floats.iter();
            return values
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect();
        }
        let bits = self.dtype.bits() as usize;
        let mut out = vec![0u8; (self.ints.len() * bits).div_ceil(8)];
        for (i, &value) in self.ints.iter().enumerate() {
            for bit in 0..bits {
                let at = i * bits + bit;
                out[at / 8] |= ((value >> bit & 1) as u8) << (at % 8);
            }
        }
        out
    }
}

/// How the program of a case is made.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Type of its floats.
    pub float: DType,
    /// Whether operands are inputs of the function, where the format allows it, or constants.
    pub inputs: bool,
    /// Whether absent attributes are given with their default values.
    pub spell_defaults: bool,
}

/// A weight: how it is stored, and the bytes of each part.
pub type StoredWeight = (Storage, Vec<(Part, Vec<u8>)>);

/// Weights by id.
#[derive(Default)]
pub struct Weights(pub BTreeMap<String, StoredWeight>);

impl ConstSource for Weights {
    fn storage(&self, c: &DeferredConst) -> Result<Storage, BoxError> {
        Ok(self.0[&c.id].0.clone())
    }

    fn stream(&mut self, c: &DeferredConst, sink: &mut dyn PartSink) -> Result<(), BoxError> {
        for (part, bytes) in &self.0[&c.id].1 {
            sink.write(*part, bytes)?;
        }
        Ok(())
    }
}

/// A program with what it is fed.
pub struct OneOp {
    pub builder: FunctionBuilder,
    pub weights: Weights,
    pub feeds: BTreeMap<String, Tensor>,
}

/// Operands that may be inputs of a function; the others are weights, or decide shapes.
const OPERANDS: [&str; 14] = [
    "x",
    "y",
    "a",
    "b",
    "input",
    "data",
    "update",
    "indices",
    "query",
    "key",
    "value",
    "attn_mask",
    "values",
    "cond",
];

impl OneOp {
    pub fn new() -> Self {
        Self {
            builder: FunctionBuilder::new("main"),
            weights: Weights::default(),
            feeds: BTreeMap::new(),
        }
    }

    /// A weight that is stored in weight.bin.
    pub fn weight(
        &mut self,
        id: &str,
        dtype: DType,
        shape: &[usize],
        storage: Storage,
        parts: Vec<(Part, Vec<u8>)>,
    ) -> Var {
        self.weights.0.insert(id.to_owned(), (storage, parts));
        self.builder
            .weight(DeferredConst::new(id, dtype, shape))
            .unwrap()
    }

    fn operand(&mut self, name: &str, value: &Stored, variant: Variant) -> Var {
        let dtype = match value.dtype.is_float() {
            true => variant.float,
            false => value.dtype,
        };
        let feature = matches!(dtype, DType::Fp16 | DType::Fp32 | DType::Int32);
        if variant.inputs && feature && !value.shape.is_empty() {
            self.feeds.insert(name.to_owned(), value.tensor());
            return self.builder.input(name, dtype, &value.shape).unwrap();
        }
        self.builder
            .immediate(value.immediate(variant.float))
            .unwrap()
    }

    /// The variable of an argument of a case.
    fn argument(
        &mut self,
        case: &Case,
        name: &'static str,
        arg: &Arg,
        variant: Variant,
    ) -> Vec<Var> {
        let values = match arg {
            Arg::Bool(flag) => {
                return vec![self.builder.immediate(Immediate::bool(*flag)).unwrap()];
            }
            Arg::Text(text) => {
                return vec![self.builder.immediate(Immediate::string(text)).unwrap()];
            }
            Arg::Tensors(values) => values,
        };
        // `begin` and `end` may be computed where the shape of the result does not depend on them.
        let computed = match case.op {
            OpType::SliceUpdate => matches!(name, "begin" | "end"),
            OpType::SliceBySize => name == "begin" && !case.name.ends_with("rest"),
            _ => false,
        };
        let role = case.op.arg(name).map(|spec| spec.role);
        let is_weight = role == Some(Role::Weight) || matches!(name, "weight" | "bias");
        if is_weight && values[0].dtype.is_float() && variant.float == DType::Fp16 {
            let parts = vec![(Part::Data, values[0].packed())];
            return vec![self.weight(name, DType::Fp16, &values[0].shape, Storage::Dense, parts)];
        }
        let place = Variant {
            inputs: variant.inputs && (computed || OPERANDS.contains(&name)) && !is_weight,
            ..variant
        };
        let name_of = |i: usize| match values.len() {
            1 => name.to_owned(),
            _ => format!("{name}_{i}"),
        };
        let indexed = values.iter().enumerate();
        indexed
            .map(|(i, value)| self.operand(&name_of(i), value, place))
            .collect()
    }

    /// The op of a case. Returns its results, or what the builder says against it.
    pub fn op(&mut self, case: &Case, variant: Variant) -> Result<Vec<Var>, String> {
        if case.op == OpType::Const {
            let Arg::Tensors(values) = &case.args[0].1 else {
                panic!("a const without a value");
            };
            let float = values[0].dtype;
            return Ok(vec![
                self.builder.immediate(values[0].immediate(float)).unwrap(),
            ]);
        }
        if case.op.is_constexpr() {
            return Ok(vec![self.constexpr(case)]);
        }
        let mut vars: Vec<(&'static str, Vec<Var>)> = Vec::new();
        for (name, arg) in &case.args {
            let bound = self.argument(case, name, arg, variant);
            vars.push((name, bound));
        }
        if variant.spell_defaults {
            let rank_of = |arg: &str| {
                let found = vars.iter().find(|(name, _)| *name == arg);
                found.map(|(_, vars)| vars[0].shape().to_vec())
            };
            let x = rank_of("x").unwrap_or_default();
            for spec in case.op.args() {
                let given = vars.iter().any(|(name, _)| *name == spec.name);
                if let (false, Some(value)) =
                    (given, default_value(case, spec.name, spec.default, &x))
                {
                    vars.push((spec.name, vec![self.builder.immediate(value).unwrap()]));
                }
            }
        }
        let vars: Vec<(&'static str, &[Var])> = vars
            .iter()
            .map(|(name, vars)| (*name, vars.as_slice()))
            .collect();
        self.builder.op(case.op, &vars).map_err(|e| e.to_string())
    }

    fn constexpr(&mut self, case: &Case) -> Var {
        let get = |name: &str| {
            let found = case.args.iter().find(|(n, _)| *n == name);
            found.map(|(_, arg)| match arg {
                Arg::Tensors(values) => values[0].clone(),
                _ => panic!("{name}"),
            })
        };
        let shape = case.outputs[0].shape.clone();
        let vector_axis = get("vector_axis").map(|axis| axis.ints[0] as usize);
        if let Some(mask) = get("indices_mask") {
            let (data, lut) = (get("indices_nonzero_data").unwrap(), get("lut").unwrap());
            let storage = Storage::PaletteSparse {
                nbits: data.dtype.bits() as u8,
                lut_shape: lut.shape.clone(),
                vector_axis,
                nonzero: data.ints.len(),
            };
            let parts = vec![
                (Part::Data, data.packed()),
                (Part::Mask, mask.packed()),
                (Part::Lut, lut.packed()),
            ];
            return self.weight("w", DType::Fp16, &shape, storage, parts);
        }
        if let (Some(indices), Some(scale)) = (get("indices"), get("scale")) {
            let lut = get("lut").unwrap();
            let storage = Storage::PaletteInt8 {
                nbits: indices.dtype.bits() as u8,
                lut_shape: lut.shape.clone(),
            };
            let parts = vec![
                (Part::Data, indices.packed()),
                (Part::Lut, lut.packed()),
                (Part::Scale, scale.packed()),
            ];
            return self.weight("w", DType::Fp16, &shape, storage, parts);
        }
        if case.op == OpType::ConstexprLutToDense {
            let (indices, lut) = (get("indices").unwrap(), get("lut").unwrap());
            let storage = Storage::Palette {
                nbits: indices.dtype.bits() as u8,
                lut_shape: lut.shape.clone(),
                vector_axis,
            };
            let parts = vec![(Part::Data, indices.packed()), (Part::Lut, lut.packed())];
            return self.weight("w", DType::Fp16, &shape, storage, parts);
        }
        let (data, scale, offset) = (get("data").unwrap(), get("scale").unwrap(), get("offset"));
        let storage = Storage::Blockwise {
            data: data.dtype,
            scale_shape: scale.shape.clone(),
            offset: offset.is_some(),
        };
        let mut parts = vec![(Part::Data, data.packed()), (Part::Scale, scale.packed())];
        parts.extend(offset.map(|offset| (Part::Offset, offset.packed())));
        self.weight("w", DType::Fp16, &shape, storage, parts)
    }

    /// Makes a value an output: of a type and rank that features may have.
    pub fn output(&mut self, name: &str, var: &Var) {
        let mut var = var.clone();
        if !matches!(var.dtype(), DType::Fp16 | DType::Fp32 | DType::Int32) {
            var = self.builder.cast(&var, DType::Int32).unwrap();
        }
        if var.rank() == 0 {
            var = self.builder.reshape(&var, &[1]).unwrap();
        }
        self.builder.output(name, &var).unwrap();
    }

    /// Writes the program into `dir` and reads it back.
    pub fn write(self, dir: &Path) -> Package {
        write(dir, self.builder.finish().unwrap(), self.weights)
    }
}

/// Writes a program of one function and reads it back.
pub fn write(dir: &Path, function: Function, mut weights: Weights) -> Package {
    let program = Program::single(function);
    let order: Vec<String> = program.weights().iter().map(|c| c.id.clone()).collect();
    let spec = PackageSpec {
        program: &program,
        description: ModelDescription::default(),
        blob_order: &order,
        file_limit: WEIGHT_FILE_LIMIT,
    };
    write_package(dir, &spec, &mut weights).unwrap();
    Package::open(dir).unwrap()
}

/// The default of an attribute as the constant that spells it out; none where that would say something else.
fn default_value(case: &Case, arg: &str, default: DefaultValue, x: &[usize]) -> Option<Immediate> {
    let spatial = x.len().saturating_sub(2);
    let given = |name: &str| case.args.iter().any(|(n, _)| *n == name);
    match default {
        // Only meaningful beside another attribute.
        DefaultValue::Str(_) if arg == "output_indices_dtype" && given("return_indices") => None,
        DefaultValue::PerSpatialPair(_) | DefaultValue::Required | DefaultValue::Absent => None,
        DefaultValue::Bool(value) => Some(Immediate::bool(value)),
        DefaultValue::Int(value) => Some(Immediate::int32(value)),
        DefaultValue::Float(value) => Some(Immediate::fp32(value)),
        DefaultValue::Str(value) => Some(Immediate::string(value)),
        DefaultValue::PerSpatial(value) => Some(Immediate::int32s(&vec![value; spatial])),
        DefaultValue::PerDim(value) => Some(Immediate::int32s(&vec![value; x.len()])),
        DefaultValue::NoMask => Some(Immediate::bools(&vec![false; x.len()])),
        DefaultValue::AllAxes => {
            let squeezing = case.op == OpType::Squeeze;
            let axes = (0..x.len()).filter(|&i| !squeezing || x[i] == 1);
            Some(Immediate::int32s(
                &axes.map(|i| i as i32).collect::<Vec<_>>(),
            ))
        }
    }
}

/// The numbers of a tensor of any kind.
pub fn numbers(tensor: &Tensor) -> Vec<f32> {
    match tensor.data() {
        Data::F32(v) => v.to_vec(),
        Data::I32(v) => v.iter().map(|&v| v as f32).collect(),
        Data::Bool(v) => v.iter().map(|&v| f32::from(v)).collect(),
    }
}
