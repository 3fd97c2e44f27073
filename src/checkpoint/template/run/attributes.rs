//! `a.b`, `a[b]`, `a[b:c:d]`.

use std::rc::Rc;

use super::super::error::{Result, TemplateError};
use super::super::value::{Range, Value, View, repr};
use super::Run;
use super::objects::{Cycler, Function, Loop, Macro, Method};
use super::strings::STR_METHODS;

const DICT_METHODS: [&str; 6] = ["get", "items", "keys", "values", "copy", "fromkeys"];
const LIST_METHODS: [&str; 3] = ["count", "index", "copy"];
const TUPLE_METHODS: [&str; 2] = ["count", "index"];
const INT_METHODS: [&str; 7] = [
    "bit_length",
    "bit_count",
    "conjugate",
    "as_integer_ratio",
    "to_bytes",
    "from_bytes",
    "is_integer",
];
const FLOAT_METHODS: [&str; 5] = [
    "is_integer",
    "conjugate",
    "as_integer_ratio",
    "hex",
    "fromhex",
];
/// Methods that change their list or dict: the sandbox hides them.
const LIST_UNSAFE: [&str; 8] = [
    "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove",
];
const DICT_UNSAFE: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

impl Run {
    /// `of.name`: an attribute, an item of that name without one.
    pub fn attribute(&self, of: &Value, name: &str) -> Result<Value> {
        match self.own_attribute(of, name)? {
            Some(value) => Ok(value),
            None => match of {
                Value::Dict(dict) => {
                    self.budget.steps(dict.entries.len() / 16)?;
                    let found = dict.get_str(name).cloned();
                    Ok(found.unwrap_or_else(|| missing(of, name)))
                }
                _ => Ok(missing(of, name)),
            },
        }
    }

    /// `of[key]`: an item, an attribute of that name without one.
    pub fn item(&self, of: &Value, key: &Value) -> Result<Value> {
        if let Value::Undefined(missing) = of {
            return Err(TemplateError::new(missing.to_string()));
        }
        let found = match of {
            Value::Dict(dict) => {
                self.budget.steps(dict.entries.len() / 16)?;
                dict.get(key).cloned()
            }
            Value::List(seq) | Value::Tuple(seq) => {
                at(key, seq.items.len()).map(|n| seq.items[n].clone())
            }
            Value::Str(s) => match key.as_int() {
                Some(_) => {
                    self.budget.steps(s.len() / 64)?;
                    let n = at(key, s.chars().count());
                    n.and_then(|n| s.chars().nth(n))
                        .map(|c| Value::str(c.to_string()))
                }
                None => None,
            },
            Value::Range(range) => at(key, range.len()).map(|n| Value::Int(range.get(n))),
            Value::Markup(_) => {
                return Err(TemplateError::unsupported(
                    "an item of an escaped or safe string",
                ));
            }
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        if let Some(name) = key.as_str()
            && let Some(value) = self.own_attribute(of, name)?
        {
            return Ok(value);
        }
        Ok(match key.as_str() {
            Some(name) => missing(of, name),
            None => {
                let key = repr(key).unwrap_or_else(|_| "that key".into());
                Value::undefined(format!("{} has no element {key}", described(of)))
            }
        })
    }

    /// An attribute that Python's object has, methods included.
    pub fn own_attribute(&self, of: &Value, name: &str) -> Result<Option<Value>> {
        if let Value::Undefined(missing) = of {
            return Err(TemplateError::new(missing.to_string()));
        }
        if name.starts_with('_') && name != "_" {
            return Ok(self.private(of, name));
        }
        let method = |names: &[&str]| names.contains(&name).then(|| bound(of, name));
        Ok(match of {
            Value::Str(_) => method(&STR_METHODS),
            Value::Markup(_) => {
                return Err(TemplateError::unsupported(format!(
                    "'.{name}' of an escaped or safe string"
                )));
            }
            Value::Dict(_) if DICT_UNSAFE.contains(&name) => Some(unsafe_attribute(of, name)),
            Value::Dict(_) => method(&DICT_METHODS),
            Value::List(_) if LIST_UNSAFE.contains(&name) => Some(unsafe_attribute(of, name)),
            Value::List(_) => method(&LIST_METHODS),
            Value::Tuple(seq) => match seq.names.iter().position(|n| *n == name) {
                Some(at) => Some(seq.items[at].clone()),
                None => method(&TUPLE_METHODS),
            },
            Value::Bool(_) | Value::Int(_) => match name {
                "real" | "numerator" => of.as_int().map(Value::Int),
                "imag" => Some(Value::Int(0)),
                "denominator" => Some(Value::Int(1)),
                _ => method(&INT_METHODS),
            },
            Value::Float(x) => match name {
                "real" => Some(Value::Float(*x)),
                "imag" => Some(Value::Float(0.0)),
                _ => method(&FLOAT_METHODS),
            },
            Value::Range(range) => range_attribute(range, name).or_else(|| method(&TUPLE_METHODS)),
            Value::View(view, dict) => match name {
                "mapping" => Some(Value::Dict(dict.clone())),
                "isdisjoint" if *view != View::Values => Some(bound(of, name)),
                _ => None,
            },
            Value::Namespace(ns) => ns.get(name),
            Value::Iter(_) => match name {
                "send" | "throw" | "close" => Some(bound(of, name)),
                _ => None,
            },
            Value::Object(_) => self.object_attribute(of, name)?,
            Value::None | Value::Undefined(_) => None,
        })
    }

    /// Names with an underscore are hidden where Python has them; every object has the same ones with two.
    fn private(&self, of: &Value, name: &str) -> Option<Value> {
        const EVERYWHERE: [&str; 12] = [
            "__class__",
            "__doc__",
            "__init__",
            "__dir__",
            "__eq__",
            "__ne__",
            "__hash__",
            "__repr__",
            "__str__",
            "__format__",
            "__reduce__",
            "__subclasshook__",
        ];
        EVERYWHERE
            .contains(&name)
            .then(|| unsafe_attribute(of, name))
    }

    fn object_attribute(&self, of: &Value, name: &str) -> Result<Option<Value>> {
        let Value::Object(object) = of else {
            return Ok(None);
        };
        let object = object.as_any();
        if let Some(state) = object.downcast_ref::<Loop>() {
            if matches!(name, "cycle" | "changed") {
                return Ok(Some(bound(of, name)));
            }
            return self.loop_attribute(state, name);
        }
        if let Some(made) = object.downcast_ref::<Macro>() {
            return Ok(match name {
                "name" => Some(Value::str(&made.def.name)),
                "arguments" => {
                    let names = made.def.params.iter().map(Value::str);
                    Some(Value::tuple(names.collect())?)
                }
                "catch_kwargs" => Some(Value::Bool(made.def.uses.kwargs)),
                "catch_varargs" => Some(Value::Bool(made.def.uses.varargs)),
                "caller" => Some(Value::Bool(made.def.uses.caller)),
                _ => None,
            });
        }
        if let Some(cycler) = object.downcast_ref::<Cycler>() {
            return Ok(match name {
                "current" => Some(cycler.items[cycler.at.get()].clone()),
                "next" | "reset" => Some(bound(of, name)),
                _ => None,
            });
        }
        if let Some(Function("dict")) = object.downcast_ref::<Function>() {
            return Ok((name == "fromkeys").then(|| Value::object(Function("fromkeys"))));
        }
        Ok(None)
    }

    /// `of[a:b:c]`
    pub fn slice(&self, of: &Value, bounds: &[Option<Value>; 3]) -> Result<Value> {
        let len = match of {
            Value::Undefined(missing) => return Err(TemplateError::new(missing.to_string())),
            Value::Str(s) => s.chars().count(),
            Value::List(seq) | Value::Tuple(seq) => seq.items.len(),
            Value::Range(range) => range.len(),
            Value::Markup(_) => {
                return Err(TemplateError::unsupported(
                    "a slice of an escaped or safe string",
                ));
            }
            other => {
                return Err(TemplateError::new(format!(
                    "'{}' object cannot be sliced",
                    other.type_name()
                )));
            }
        };
        let indices = indices(bounds, len)?;
        self.budget.bytes(indices.len() * 8)?;
        let picked = (0..indices.len()).map(|n| indices.get(n) as usize);
        match of {
            Value::Str(s) => {
                let chars: Vec<char> = s.chars().collect();
                Ok(Value::str(picked.map(|n| chars[n]).collect::<String>()))
            }
            Value::List(seq) => Value::list(picked.map(|n| seq.items[n].clone()).collect()),
            Value::Tuple(seq) => Value::tuple(picked.map(|n| seq.items[n].clone()).collect()),
            Value::Range(range) => Ok(Value::Range(Range {
                start: range.start + indices.start * range.step,
                stop: range.start + indices.stop * range.step,
                step: range.step.saturating_mul(indices.step),
            })),
            _ => Ok(Value::None),
        }
    }
}

fn bound(of: &Value, name: &str) -> Value {
    Value::object(Method {
        receiver: of.clone(),
        name: Rc::from(name),
    })
}

fn range_attribute(range: &Range, name: &str) -> Option<Value> {
    match name {
        "start" => Some(Value::Int(range.start)),
        "stop" => Some(Value::Int(range.stop)),
        "step" => Some(Value::Int(range.step)),
        _ => None,
    }
}

fn described(of: &Value) -> String {
    match of {
        Value::None => "None".into(),
        other => format!("'{} object'", other.type_name()),
    }
}

fn missing(of: &Value, name: &str) -> Value {
    Value::undefined(format!("{} has no attribute '{name}'", described(of)))
}

fn unsafe_attribute(of: &Value, name: &str) -> Value {
    Value::undefined(format!(
        "access to attribute '{name}' of '{}' object is unsafe",
        of.type_name()
    ))
}

/// The place of an index, counted from the end when negative.
fn at(key: &Value, len: usize) -> Option<usize> {
    let n = key.as_int()?;
    let n = if n < 0 { n + len as i128 } else { n };
    usize::try_from(n).ok().filter(|n| *n < len)
}

/// The indices that a slice picks.
fn indices(bounds: &[Option<Value>; 3], len: usize) -> Result<Range> {
    let bound = |value: &Option<Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.as_int() {
            Some(n) => Ok(Some(n)),
            None => Err(TemplateError::new(
                "slice indices must be integers or None or have an __index__ method",
            )),
        },
    };
    let step = bound(&bounds[2])?.unwrap_or(1);
    if step == 0 {
        return Err(TemplateError::new("slice step cannot be zero"));
    }
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |value: Option<i128>, default: i128| match value {
        None => default,
        Some(n) if n < 0 => (n.saturating_add(len)).clamp(low, high),
        Some(n) => n.clamp(low, high),
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    Ok(Range {
        start: place(bound(&bounds[0])?, first),
        stop: place(bound(&bounds[1])?, last),
        step,
    })
}
