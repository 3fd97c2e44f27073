//! Filters that apply a filter, a test or an attribute to each item.

use super::super::super::error::{Result, TemplateError};
use super::super::super::value::{Value, ignore_case, iterate};
use super::super::Run;
use super::super::arguments::{Call, string};

impl Run {
    /// `map`, `select`, `reject`, `selectattr`, `rejectattr`.
    pub(super) fn pick_filter(&self, name: &str, value: &Value, mut call: Call) -> Result<Value> {
        if !value.truth() {
            return Ok(Value::iter(Vec::new()));
        }
        let items = iterate(value, &self.budget)?;
        if name == "map" {
            return self.map(items, call).map(Value::iter);
        }
        let attribute = match name.ends_with("attr") {
            false => None,
            true if call.positional.is_empty() => {
                return Err(TemplateError::new("missing parameter for attribute name"));
            }
            true => Some(call.positional.remove(0)),
        };
        let test = match call.positional.is_empty() {
            true => None,
            false => Some(call.positional.remove(0)),
        };
        let wanted = name.starts_with("select");
        let mut picked = Vec::new();
        for item in items {
            self.budget.steps(1)?;
            let asked = match &attribute {
                Some(attribute) => self.dotted(&item, attribute, None)?,
                None => item.clone(),
            };
            let holds = match &test {
                Some(test) => self.check(string(test, name)?, &asked, &call)?,
                None => asked.truth(),
            };
            if holds == wanted {
                picked.push(item);
            }
        }
        Ok(Value::iter(picked))
    }

    fn map(&self, items: Vec<Value>, mut call: Call) -> Result<Vec<Value>> {
        if call.positional.is_empty() {
            let Some(attribute) = call.take_keyword("attribute") else {
                return Err(TemplateError::new("map requires a filter argument"));
            };
            let default = call.take_keyword("default");
            if let Some((name, _)) = call.keywords.first() {
                return Err(TemplateError::new(format!(
                    "unexpected keyword argument '{name}'"
                )));
            }
            let of = |item: &Value| self.dotted(item, &attribute, default.as_ref());
            return items.iter().map(of).collect();
        }
        let filter = call.positional.remove(0);
        let filter = string(&filter, "map")?;
        items
            .into_iter()
            .map(|item| {
                self.budget
                    .level(|| self.filter(filter, item, call.clone()))
            })
            .collect()
    }

    /// An attribute path like `a.b.0` of an item. `default` takes the place of what is undefined.
    pub(super) fn dotted(
        &self,
        item: &Value,
        path: &Value,
        default: Option<&Value>,
    ) -> Result<Value> {
        let parts: Vec<Value> = match path {
            Value::None => Vec::new(),
            Value::Str(path) => path
                .split('.')
                .map(|part| match part.parse::<i128>() {
                    Ok(n) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(n),
                    _ => Value::str(part),
                })
                .collect(),
            other => vec![other.clone()],
        };
        let mut value = item.clone();
        for part in &parts {
            value = self.item(&value, part)?;
            if let (Value::Undefined(_), Some(default)) = (&value, default)
                && !matches!(default, Value::None)
            {
                value = default.clone();
            }
        }
        Ok(value)
    }

    /// What items are compared by: an attribute, in lower case unless `case_sensitive`.
    pub(super) fn sort_key(
        &self,
        item: &Value,
        path: &Value,
        case_sensitive: bool,
        default: Option<&Value>,
    ) -> Result<Value> {
        let value = self.dotted(item, path, default)?;
        Ok(if case_sensitive {
            value
        } else {
            ignore_case(value)
        })
    }
}
