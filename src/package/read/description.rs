//! The description of the model against the program: names, order, types, states, functions.

use std::collections::BTreeMap;
use std::path::Path;

use super::ReadFunction;
use crate::mil::{DType, TensorType};
use crate::package::error::{Error, Result};
use crate::package::proto::spec as pb;
use crate::package::spec::ModelDescription;

/// A fault that still lacks the path of the model.
pub(super) enum Fault {
    /// Of the model as a whole.
    Model(String),
    /// Of one feature.
    Feature(Error),
}

impl Fault {
    pub fn at(self, path: &Path) -> Error {
        match self {
            Fault::Model(message) => Error::Model {
                path: path.to_owned(),
                message,
            },
            Fault::Feature(error) => error,
        }
    }
}

/// Checks the description and answers the name of the default function.
pub(super) fn check(
    description: &pb::ModelDescription,
    functions: &BTreeMap<String, ReadFunction>,
) -> std::result::Result<String, Fault> {
    if description.functions.is_empty() {
        let (Some(main), 1) = (functions.get("main"), functions.len()) else {
            let names: Vec<_> = functions.keys().collect();
            return Err(Fault::Model(format!(
                "functions {names:?}, and the description has no functions"
            )));
        };
        if !description.default_function_name.is_empty() {
            let message = "defaultFunctionName without functions".to_owned();
            return Err(Fault::Model(message));
        }
        let lists = [&description.input, &description.output, &description.state];
        check_function("main", main, lists).map_err(Fault::Feature)?;
        return Ok("main".to_owned());
    }
    let top = [&description.input, &description.output, &description.state];
    if top.iter().any(|list| !list.is_empty()) {
        let message = "features beside functions in the description".to_owned();
        return Err(Fault::Model(message));
    }
    let mut seen = Vec::new();
    for described in &description.functions {
        let name = described.name.as_str();
        let function = functions.get(name).filter(|_| !seen.contains(&name));
        let Some(function) = function else {
            return Err(Fault::Model(format!(
                "function `{name}` is described twice, or not in the program"
            )));
        };
        seen.push(name);
        let lists = [&described.input, &described.output, &described.state];
        check_function(name, function, lists).map_err(Fault::Feature)?;
    }
    if let Some(name) = functions.keys().find(|name| !seen.contains(&name.as_str())) {
        return Err(Fault::Model(format!("function `{name}` is not described")));
    }
    let default = &description.default_function_name;
    if !functions.contains_key(default) {
        return Err(Fault::Model(format!(
            "defaultFunctionName `{default}` is not a function"
        )));
    }
    Ok(default.clone())
}

fn check_function(
    name: &str,
    function: &ReadFunction,
    [inputs, outputs, states]: [&Vec<pb::FeatureDescription>; 3],
) -> Result<()> {
    let declared = |is_state: bool| {
        let inputs = function
            .inputs
            .iter()
            .filter(move |i| i.is_state == is_state);
        inputs.map(|i| (i.name.as_str(), &i.ty)).collect::<Vec<_>>()
    };
    let results = function.outputs.iter();
    let results = results.filter_map(|output| Some((output.as_str(), function.type_of(output)?)));
    check_list(name, "input", &declared(false), inputs)?;
    check_list(name, "state", &declared(true), states)?;
    check_list(name, "output", &results.collect::<Vec<_>>(), outputs)
}

fn check_list(
    function: &str,
    what: &'static str,
    program: &[(&str, &TensorType)],
    described: &[pb::FeatureDescription],
) -> Result<()> {
    let fault = |name: &str, expected: String, got: String| Error::Description {
        function: function.to_owned(),
        what,
        name: name.to_owned(),
        expected,
        got,
    };
    for i in 0..program.len().max(described.len()) {
        match (program.get(i), described.get(i)) {
            (Some((name, ty)), Some(feature)) if *name == feature.name => {
                let got =
                    feature_type(what, feature).map_err(|got| fault(name, ty.to_string(), got))?;
                if got != **ty {
                    return Err(fault(name, ty.to_string(), got.to_string()));
                }
            }
            (Some((name, _)), Some(feature)) => {
                let got = format!("`{}` in its place", feature.name);
                return Err(fault(name, format!("`{name}`"), got));
            }
            (Some((name, ty)), None) => {
                return Err(fault(name, ty.to_string(), "no entry".to_owned()));
            }
            (None, Some(feature)) => {
                let got = "an entry that the program does not have".to_owned();
                return Err(fault(&feature.name, "no entry".to_owned(), got));
            }
            (None, None) => {}
        }
    }
    Ok(())
}

/// The type a feature is described with, or what it is instead.
fn feature_type(
    what: &str,
    feature: &pb::FeatureDescription,
) -> std::result::Result<TensorType, String> {
    use pb::array_feature_type::ArrayDataType;
    let feature_type = feature.r#type.as_ref().ok_or("no type")?;
    if feature_type.is_optional {
        return Err("an optional feature".to_owned());
    }
    let array = match (&feature_type.r#type, what) {
        (Some(pb::feature_type::Type::MultiArrayType(array)), "input" | "output") => array,
        (Some(pb::feature_type::Type::StateType(state)), "state") => match &state.r#type {
            Some(pb::state_feature_type::Type::ArrayType(array)) => array,
            None => return Err("a state without an array".to_owned()),
        },
        (Some(_), _) => return Err("another kind of feature".to_owned()),
        (None, _) => return Err("no multi-array".to_owned()),
    };
    let dtype = match ArrayDataType::try_from(array.data_type) {
        Ok(ArrayDataType::Float16) => DType::Fp16,
        Ok(ArrayDataType::Float32) => DType::Fp32,
        Ok(ArrayDataType::Int32) => DType::Int32,
        _ => return Err(format!("array type {}", array.data_type)),
    };
    let shape = array.shape.iter().map(|&dim| usize::try_from(dim));
    Ok(TensorType {
        dtype,
        shape: shape
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| format!("shape {:?}", array.shape))?,
    })
}

/// The metadata.
pub(super) fn metadata(description: &pb::ModelDescription) -> ModelDescription {
    let metadata = description.metadata.clone().unwrap_or_default();
    ModelDescription {
        short_description: metadata.short_description,
        author: metadata.author,
        license: metadata.license,
        version: metadata.version_string,
        user_defined: metadata.user_defined,
    }
}
