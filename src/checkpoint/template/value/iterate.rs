//! Items and lengths.

use super::super::error::{Result, TemplateError};
use super::{Budget, Value};

/// The items of anything that can be iterated over. A generator is used up.
pub fn iterate(value: &Value, budget: &Budget) -> Result<Vec<Value>> {
    let items = match value {
        Value::Undefined(_) => Vec::new(),
        Value::Str(s) | Value::Markup(s) => {
            budget.bytes(s.len() * size_of::<Value>())?;
            let mut bytes = [0; 4];
            s.chars()
                .map(|c| Value::str(c.encode_utf8(&mut bytes)))
                .collect()
        }
        Value::List(s) | Value::Tuple(s) => {
            budget.bytes(s.items.len() * size_of::<Value>())?;
            s.items.clone()
        }
        Value::Dict(d) => d.entries.iter().map(|(k, _)| k.clone()).collect(),
        Value::View(view, d) => view.of(d)?,
        Value::Range(r) => {
            budget.bytes(r.len().saturating_mul(size_of::<Value>()))?;
            (0..r.len()).map(|i| Value::Int(r.get(i))).collect()
        }
        Value::Iter(items) => std::mem::take(&mut *items.borrow_mut()).collect(),
        other => {
            return Err(TemplateError::new(format!(
                "'{}' object is not iterable",
                other.type_name()
            )));
        }
    };
    budget.bytes(items.len() * size_of::<Value>())?;
    Ok(items)
}

/// `len(value)`
pub fn length(value: &Value) -> Result<usize> {
    match value {
        Value::Undefined(_) => Ok(0),
        Value::Str(s) | Value::Markup(s) => Ok(s.chars().count()),
        Value::List(s) | Value::Tuple(s) => Ok(s.items.len()),
        Value::Dict(d) | Value::View(_, d) => Ok(d.entries.len()),
        Value::Range(r) => Ok(r.len()),
        Value::Object(o) if o.len().is_some() => Ok(o.len().unwrap_or_default()),
        other => Err(TemplateError::new(format!(
            "object of type '{}' has no len()",
            other.type_name()
        ))),
    }
}
