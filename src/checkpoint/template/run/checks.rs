//! Tests: what stands behind `is`.

use std::rc::Rc;

use super::super::error::{Result, TemplateError};
use super::super::syntax::{Binary, Compare};
use super::super::value::{Value, binary, equal, text};
use super::Run;
use super::arguments::Call;
use super::filters::is_filter;
use super::objects::{Function, Joiner, Loop, Macro, Method};
use super::strings::is_method;

/// Names of the tests.
const TESTS: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

impl Run {
    /// Applies a test.
    pub fn check(&self, name: &str, value: &Value, call: &Call) -> Result<bool> {
        if let Some(op) = comparison(name) {
            let [other] = call.bind(name, ["b"], 1)?;
            return self.holds(op, value, &other.unwrap_or(Value::None));
        }
        match name {
            "divisibleby" => {
                let [by] = call.bind(name, ["num"], 1)?;
                let by = by.unwrap_or(Value::None);
                self.remainder_is(value, &by, 0)
            }
            "sameas" => {
                let [other] = call.bind(name, ["other"], 1)?;
                same(value, &other.unwrap_or(Value::None))
            }
            _ => {
                call.none(name)?;
                self.plain_check(name, value)
            }
        }
    }

    fn remainder_is(&self, value: &Value, by: &Value, wanted: i128) -> Result<bool> {
        let rest = binary(Binary::Mod, value, by, &self.budget)?;
        Ok(equal(&rest, &Value::Int(wanted)))
    }

    fn plain_check(&self, name: &str, value: &Value) -> Result<bool> {
        let is_loop = || match value {
            Value::Object(object) => object.as_any().is::<Loop>(),
            _ => false,
        };
        Ok(match name {
            "odd" => self.remainder_is(value, &Value::Int(2), 1)?,
            "even" => self.remainder_is(value, &Value::Int(2), 0)?,
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "filter" | "test" => {
                let Some(wanted) = value.as_str() else {
                    return Ok(false);
                };
                match name {
                    "filter" => is_filter(wanted),
                    _ => TESTS.contains(&wanted),
                }
            }
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.as_float().is_some(),
            "string" => value.as_str().is_some(),
            "escaped" => matches!(value, Value::Markup(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "lower" => is_method(&text(value)?, "islower")?,
            "upper" => is_method(&text(value)?, "isupper")?,
            "sequence" => {
                value.as_str().is_some()
                    || matches!(
                        value,
                        Value::Undefined(_)
                            | Value::List(_)
                            | Value::Tuple(_)
                            | Value::Dict(_)
                            | Value::Range(_)
                    )
            }
            "iterable" => {
                let scalar = matches!(
                    value,
                    Value::None
                        | Value::Bool(_)
                        | Value::Int(_)
                        | Value::Float(_)
                        | Value::Namespace(_)
                        | Value::Object(_)
                );
                !scalar || is_loop()
            }
            "callable" => match value {
                // Undefined refuses a call, but it has the method for it.
                Value::Undefined(_) => true,
                Value::Object(object) => {
                    let any = object.as_any();
                    any.is::<Function>()
                        || any.is::<Method>()
                        || any.is::<Macro>()
                        || any.is::<Joiner>()
                        || any.is::<Loop>()
                }
                _ => false,
            },
            other => return Err(TemplateError::new(format!("no test named '{other}'"))),
        })
    }
}

fn comparison(name: &str) -> Option<Compare> {
    Some(match name {
        "==" | "eq" | "equalto" => Compare::Eq,
        "!=" | "ne" => Compare::Ne,
        ">" | "gt" | "greaterthan" => Compare::Gt,
        ">=" | "ge" => Compare::Ge,
        "<" | "lt" | "lessthan" => Compare::Lt,
        "<=" | "le" => Compare::Le,
        "in" => Compare::In,
        _ => return None,
    })
}

/// `a is b` of Python, where that is the same in every run.
fn same(a: &Value, b: &Value) -> Result<bool> {
    use Value::*;
    Ok(match (a, b) {
        (None, None) => true,
        (Bool(a), Bool(b)) => a == b,
        // Small integers are one object each.
        (Int(a), Int(b)) if a != b || (-5..=256).contains(a) => a == b,
        (Str(a), Str(b)) if a != b => false,
        (List(a), List(b)) => Rc::ptr_eq(a, b),
        (Dict(a), Dict(b)) => Rc::ptr_eq(a, b),
        (Tuple(a), Tuple(b)) if !equal(&Tuple(a.clone()), &Tuple(b.clone())) => false,
        (Namespace(a), Namespace(b)) => Rc::ptr_eq(a, b),
        (Object(a), Object(b)) => Rc::ptr_eq(a, b),
        (a, b) if a.type_name() != b.type_name() => false,
        (a, _) => {
            return Err(TemplateError::unsupported(format!(
                "'is sameas' of two equal values of type {}",
                a.type_name()
            )));
        }
    })
}
