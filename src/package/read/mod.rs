//! Reads a package and checks it.

mod description;
mod function;
mod parse;
mod value;
mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

use super::error::{Error, Result};
use super::manifest::Manifest;
use super::proto::spec as pb;
use super::spec::ModelDescription;
use crate::mil::{Input, OpType, SPEC_VERSION, TensorType};

pub use value::{Binding, ReadValue};
use weights::WeightFiles;

/// The largest model.mlmodel that is read, in bytes: the format of protobuf messages allows no more.
const MAX_MODEL_BYTES: u64 = i32::MAX as u64;

/// A package that was read from disk and passed every check.
#[derive(Debug)]
pub struct Package {
    dir: PathBuf,
    functions: BTreeMap<String, ReadFunction>,
    default_function: String,
    description: ModelDescription,
    weights: WeightFiles,
    weights_dir: PathBuf,
    model_bytes: u64,
}

/// A function of a package.
#[derive(Debug, Clone)]
pub struct ReadFunction {
    /// Inputs and states in the order of declaration.
    pub inputs: Vec<Input>,
    /// Ops in execution order.
    pub ops: Vec<ReadOp>,
    /// Names of output values, in order.
    pub outputs: Vec<String>,
}

impl ReadFunction {
    /// The type of an output or any other value.
    pub fn type_of(&self, value: &str) -> Option<&TensorType> {
        let results = self.ops.iter().flat_map(|op| &op.outputs);
        let inputs = self.inputs.iter().map(|input| (&input.name, &input.ty));
        let mut all = inputs.chain(results.map(|(name, ty)| (name, ty)));
        all.find(|(name, _)| *name == value).map(|(_, ty)| ty)
    }
}

/// An op of a package.
#[derive(Debug, Clone)]
pub struct ReadOp {
    /// What it does.
    pub op_type: OpType,
    /// Its name.
    pub name: String,
    /// The arguments that are given, in schema order.
    pub inputs: Vec<(&'static str, Vec<Binding>)>,
    /// Names and types of the results, as inferred and as declared.
    pub outputs: Vec<(String, TensorType)>,
    /// The value of a `const`.
    pub value: Option<ReadValue>,
}

impl ReadOp {
    /// The first binding of an argument.
    pub fn input(&self, arg: &str) -> Option<&Binding> {
        let found = self.inputs.iter().find(|(name, _)| *name == arg);
        found.and_then(|(_, bindings)| bindings.first())
    }
}

impl Package {
    /// Opens the package in `dir` and checks all of it. Nothing is written, weights are mapped and
    /// not read.
    ///
    /// # Errors
    /// What is at fault, with function, op and value, or file and offset.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let model_path = dir.join("Data").join(manifest.model_path());
        let bytes = read_model(&model_path)?;
        let fault = |message: String| Error::Model {
            path: model_path.clone(),
            message,
        };
        let model = pb::Model::decode(bytes.as_slice())
            .map_err(|e| fault(format!("not a Core ML model: {e}")))?;
        let program = check_model(&model).map_err(fault)?;

        let expected = manifest.model_path().parent().map(|p| p.join("weights"));
        let weights_dir = dir.join("Data").join(expected.clone().unwrap_or_default());
        let weights = match manifest.weights_path() {
            Some(path) if Some(&path) == expected.as_ref() => WeightFiles::open(&weights_dir)?,
            Some(path) => {
                return Err(fault(format!(
                    "the weights are at `{}`, not beside the model",
                    path.display()
                )));
            }
            None => WeightFiles::default(),
        };
        let mut functions = BTreeMap::new();
        for (name, function) in &program.functions {
            let read = function::read(name, function, &weights)?;
            functions.insert(name.clone(), read);
        }
        let empty = pb::ModelDescription::default();
        let description = model.description.as_ref().unwrap_or(&empty);
        let default_function =
            description::check(description, &functions).map_err(|e| e.at(&model_path))?;
        Ok(Package {
            dir: dir.to_owned(),
            functions,
            default_function,
            description: description::metadata(description),
            weights,
            weights_dir,
            model_bytes: bytes.len() as u64,
        })
    }

    /// The directory of the package.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Functions by name.
    pub fn functions(&self) -> &BTreeMap<String, ReadFunction> {
        &self.functions
    }

    /// The function that is loaded when none is named: `main` unless the package says otherwise.
    pub fn default_function(&self) -> &str {
        &self.default_function
    }

    /// Metadata of the model.
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Bytes of model.mlmodel.
    pub fn model_bytes(&self) -> u64 {
        self.model_bytes
    }

    /// Where the weight files are.
    pub(super) fn weights_dir(&self) -> &Path {
        &self.weights_dir
    }

    /// Names of the weight files, their bytes and their number of blobs.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, u64, usize)> {
        self.weights.files()
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_files().map(|(_, bytes, _)| bytes).sum()
    }
}

fn read_model(path: &Path) -> Result<Vec<u8>> {
    let len = fs::metadata(path)
        .map_err(Error::io("cannot read", path))?
        .len();
    if len > MAX_MODEL_BYTES {
        return Err(Error::Model {
            path: path.to_owned(),
            message: format!("{len} bytes; at most {MAX_MODEL_BYTES} are possible"),
        });
    }
    fs::read(path).map_err(Error::io("cannot read", path))
}

/// Checks the top level of the model and the program.
fn check_model(model: &pb::Model) -> std::result::Result<&pb::mil_spec::Program, String> {
    if model.specification_version != SPEC_VERSION {
        return Err(format!(
            "specificationVersion {}, expected {SPEC_VERSION}",
            model.specification_version
        ));
    }
    if model.is_updatable {
        return Err("isUpdatable is set; an ML program cannot be updated".to_owned());
    }
    let Some(pb::model::Type::MlProgram(program)) = &model.r#type else {
        return Err("the model is not an ML program".to_owned());
    };
    if program.version != 1 {
        return Err(format!("program version {}, expected 1", program.version));
    }
    if let Some(name) = program.attributes.keys().find(|name| *name != "buildInfo") {
        return Err(format!("unknown program attribute `{name}`"));
    }
    if program.functions.is_empty() {
        return Err("the program has no function".to_owned());
    }
    Ok(program)
}
