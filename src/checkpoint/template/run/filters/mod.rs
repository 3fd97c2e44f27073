//! Filters: what stands behind `|`.

mod lists;
mod numbers;
mod picks;
mod texts;

use super::super::error::{Result, TemplateError};
use super::super::value::{Style, Value, dumps, length};
use super::Run;
use super::arguments::{Call, integer, string};

/// Names of jinja2's filters, those that are not supported included.
const FILTERS: [&str; 55] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "markunsafe",
];

/// Whether a filter of that name exists.
pub fn is_filter(name: &str) -> bool {
    FILTERS.contains(&name) && name != "markunsafe"
}

impl Run {
    /// Applies a filter.
    pub fn filter(&self, name: &str, value: Value, call: Call) -> Result<Value> {
        self.budget.steps(1)?;
        let result = match name {
            "default" | "d" => {
                let [other, boolean] = call.bind(name, ["default_value", "boolean"], 0)?;
                let falsy = boolean.is_some_and(|b| b.truth()) && !value.truth();
                match value.is_undefined() || falsy {
                    true => Ok(other.unwrap_or_else(|| Value::str(""))),
                    false => Ok(value),
                }
            }
            "length" | "count" => {
                call.none(name)?;
                length(&value).map(Value::count)
            }
            "tojson" => self.tojson(&value, &call),
            "attr" => {
                let [attr] = call.bind(name, ["name"], 1)?;
                let attr = attr.unwrap_or(Value::None);
                let attr = string(&attr, name)?;
                let found = self.own_attribute(&value, attr)?;
                Ok(found
                    .unwrap_or_else(|| Value::undefined(format!("there is no attribute '{attr}'"))))
            }
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
                self.pick_filter(name, &value, call)
            }
            "abs" | "int" | "float" | "round" | "sum" | "filesizeformat" => {
                self.number_filter(name, &value, &call)
            }
            "batch" | "slice" | "first" | "last" | "list" | "items" | "dictsort" | "sort"
            | "unique" | "min" | "max" | "groupby" | "reverse" => {
                self.list_filter(name, &value, &call)
            }
            name if is_filter(name) => self.text_filter(name, &value, &call),
            _ => Err(TemplateError::new(format!("no filter named '{name}'"))),
        }?;
        match &result {
            Value::Str(s) | Value::Markup(s) => self.budget.bytes(s.len())?,
            Value::List(seq) => self.budget.bytes(seq.items.len() * size_of::<Value>())?,
            _ => {}
        }
        Ok(result)
    }

    /// `tojson` with the keyword arguments that transformers gives it.
    fn tojson(&self, value: &Value, call: &Call) -> Result<Value> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort_keys] = call.bind("tojson", names, 0)?;
        let is_true = |v: Option<Value>| v.is_some_and(|v| v.truth());
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(text)) => Some(text.to_string()),
            Some(other) => {
                let width = integer(&other, "tojson")?.max(0);
                match width <= 1000 {
                    true => Some(" ".repeat(width as usize)),
                    false => return Err(TemplateError::unsupported("an indent beyond 1000")),
                }
            }
        };
        let separators = match &separators {
            None | Some(Value::None) => None,
            Some(Value::List(pair) | Value::Tuple(pair)) if pair.items.len() == 2 => {
                let [item, key] = [&pair.items[0], &pair.items[1]];
                let item = string(item, "tojson")?.to_string();
                Some((item, string(key, "tojson")?.to_string()))
            }
            Some(_) => {
                return Err(TemplateError::new("separators: expected two strings"));
            }
        };
        let style = Style {
            ensure_ascii: is_true(ascii),
            indent,
            separators,
            sort_keys: is_true(sort_keys),
        };
        dumps(value, &style, &self.budget).map(Value::str)
    }
}
