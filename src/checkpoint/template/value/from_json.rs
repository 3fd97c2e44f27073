//! JSON of messages and tools as values.

use super::super::error::Result;
use super::{Budget, Value};

/// A JSON value as Python's `json` reads it.
pub fn from_json(json: &serde_json::Value, budget: &Budget) -> Result<Value> {
    use serde_json::Value as Json;
    budget.level(|| match json {
        Json::Null => Ok(Value::None),
        Json::Bool(b) => Ok(Value::Bool(*b)),
        Json::Number(n) => Ok(match (n.as_i128(), n.as_f64()) {
            (Some(n), _) => Value::Int(n),
            (None, x) => Value::Float(x.unwrap_or(f64::NAN)),
        }),
        Json::String(s) => {
            budget.bytes(s.len())?;
            Ok(Value::str(s))
        }
        Json::Array(list) => {
            let items = list.iter().map(|v| from_json(v, budget));
            Value::list(items.collect::<Result<_>>()?)
        }
        Json::Object(map) => {
            let pairs = map
                .iter()
                .map(|(k, v)| Ok((Value::str(k), from_json(v, budget)?)));
            Value::dict(pairs.collect::<Result<_>>()?, budget)
        }
    })
}
