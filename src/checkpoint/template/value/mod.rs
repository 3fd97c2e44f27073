//! Values as Python has them: what they are, when two are equal, and which comes first.
//!
//! A template cannot change a list or a dict, so both are shared and never copied. Only a namespace can be written to.

mod budget;
mod compare;
mod floats;
mod from_json;
mod iterate;
mod json;
mod operators;
mod printf;
mod repr;
mod spec;
mod str_format;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::error::{Result, TemplateError};

pub use budget::Budget;
pub use compare::{contains, equal, hashable, ignore_case, order};
pub use floats::{float_repr, round_float, to_i128};
pub use from_json::from_json;
pub use iterate::{iterate, length};
pub use json::{Style, dumps};
pub use operators::{binary, negative, positive};
pub use printf::percent;
pub use repr::{repr, text};
pub use spec::format_value;
pub use str_format::str_format;

/// Containers in containers, at most.
const MAX_DEPTH: u32 = 200;
/// Values in a container and all containers below it, at most, each 16 bytes of a text counted as one. What is shared counts each
/// time, as it does when it is printed or compared.
const MAX_WEIGHT: u64 = 4 << 20;

/// How large a container is with everything below it.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    depth: u32,
    weight: u64,
}

impl Size {
    /// The size of a container of parts.
    fn around(parts: impl Iterator<Item = Self>) -> Result<Self> {
        let mut size = Self {
            depth: 0,
            weight: 1,
        };
        for part in parts {
            size.depth = size.depth.max(part.depth);
            size.weight = size.weight.saturating_add(part.weight);
        }
        size.depth += 1;
        if size.depth > MAX_DEPTH {
            return Err(TemplateError::new("lists or dicts are nested too deeply"));
        }
        if size.weight > MAX_WEIGHT {
            return Err(TemplateError::new("a list or dict is too large"));
        }
        Ok(size)
    }
}

/// A value of a template.
#[derive(Clone)]
pub enum Value {
    /// Nothing by that name; the text says what is missing.
    Undefined(Rc<str>),
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// An integer. Python's have no end; beyond 128 bits is an error here.
    Int(i128),
    /// A float.
    Float(f64),
    /// A string.
    Str(Rc<str>),
    /// A string that `escape` or `safe` made. It can be printed and joined with `~`.
    Markup(Rc<str>),
    /// A list.
    List(Rc<Seq>),
    /// A tuple.
    Tuple(Rc<Seq>),
    /// A dict.
    Dict(Rc<Dict>),
    /// `dict.keys()`, `dict.values()`, `dict.items()`.
    View(View, Rc<Dict>),
    /// `range(...)`
    Range(Range),
    /// A generator: gives its items once.
    Iter(Rc<RefCell<std::vec::IntoIter<Value>>>),
    /// `namespace(...)`
    Namespace(Rc<Namespace>),
    /// Functions, macros, loops and what else only the engine makes.
    Object(Rc<dyn Object>),
}

/// What the engine makes beside data.
pub trait Object: Any {
    /// Name of its type, for messages.
    fn type_name(&self) -> &'static str;
    /// What it prints, where that is the same in every run.
    fn text(&self) -> Option<String> {
        None
    }
    /// Its length, where it has one.
    fn len(&self) -> Option<usize> {
        None
    }
    /// For downcasts.
    fn as_any(&self) -> &dyn Any;
}

/// Items of a list or tuple.
pub struct Seq {
    /// The items.
    pub items: Vec<Value>,
    /// Names of the items of a named tuple.
    pub names: &'static [&'static str],
    size: Size,
}

/// A dict in order of insertion.
pub struct Dict {
    /// Keys and values.
    pub entries: Vec<(Value, Value)>,
    size: Size,
}

/// Which side of a dict a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// `keys()`
    Keys,
    /// `values()`
    Values,
    /// `items()`
    Items,
}

/// A range of integers.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// First number.
    pub start: i128,
    /// The end, not reached.
    pub stop: i128,
    /// From one to the next; not 0.
    pub step: i128,
}

impl Range {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        let span = match self.step > 0 {
            true => self.stop.saturating_sub(self.start),
            false => self.start.saturating_sub(self.stop),
        };
        match span > 0 {
            true => {
                usize::try_from((span - 1) / self.step.saturating_abs() + 1).unwrap_or(usize::MAX)
            }
            false => 0,
        }
    }

    /// The number at an index.
    pub fn get(&self, index: usize) -> i128 {
        self.start
            .saturating_add(self.step.saturating_mul(index as i128))
    }
}

/// Attributes that can be set.
pub struct Namespace {
    /// Names and values in order of insertion.
    pub attrs: RefCell<Vec<(Rc<str>, Value)>>,
    depth: Cell<u32>,
}

impl Namespace {
    /// A namespace with attributes.
    pub fn new(attrs: Vec<(Rc<str>, Value)>) -> Result<Self> {
        let made = Self {
            attrs: RefCell::default(),
            depth: Cell::new(1),
        };
        for (name, value) in attrs {
            made.set(&name, value)?;
        }
        Ok(made)
    }

    /// The attribute of a name.
    pub fn get(&self, name: &str) -> Option<Value> {
        let attrs = self.attrs.borrow();
        let found = attrs.iter().find(|(n, _)| **n == *name)?;
        Some(found.1.clone())
    }

    /// Sets an attribute. Names that begin with `_` are refused, as transformers does.
    pub fn set(&self, name: &str, value: Value) -> Result<()> {
        if name.starts_with('_') {
            return Err(TemplateError::new(format!(
                "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"
            )));
        }
        let size = Size::around(std::iter::once(value.size()))?;
        self.depth.set(self.depth.get().max(size.depth));
        let mut attrs = self.attrs.borrow_mut();
        match attrs.iter_mut().find(|(n, _)| **n == *name) {
            Some(found) => found.1 = value,
            None => attrs.push((name.into(), value)),
        }
        Ok(())
    }
}

impl Seq {
    fn new(items: Vec<Value>, names: &'static [&'static str]) -> Result<Rc<Self>> {
        let size = Size::around(items.iter().map(Value::size))?;
        Ok(Rc::new(Self { items, names, size }))
    }
}

impl Dict {
    /// A dict of entries; a later one replaces an earlier one with an equal key, in its place.
    pub fn new(pairs: Vec<(Value, Value)>, budget: &Budget) -> Result<Self> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            hashable(&key)?;
            budget.steps(1 + entries.len() / 16)?;
            match entries.iter_mut().find(|(k, _)| equal(k, &key)) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        let size = Size::around(entries.iter().flat_map(|(k, v)| [k.size(), v.size()]))?;
        Ok(Self { entries, size })
    }

    /// The value of a key.
    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.entries
            .iter()
            .find(|(k, _)| equal(k, key))
            .map(|(_, v)| v)
    }

    /// The value of a key that is a string.
    pub fn get_str(&self, key: &str) -> Option<&Value> {
        let is_key = |k: &Value| matches!(k, Value::Str(s) | Value::Markup(s) if **s == *key);
        self.entries.iter().find(|(k, _)| is_key(k)).map(|(_, v)| v)
    }
}

impl View {
    /// What the view shows.
    pub fn of(self, dict: &Dict) -> Result<Vec<Value>> {
        let entries = dict.entries.iter();
        match self {
            Self::Keys => Ok(entries.map(|(k, _)| k.clone()).collect()),
            Self::Values => Ok(entries.map(|(_, v)| v.clone()).collect()),
            Self::Items => entries
                .map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()]))
                .collect(),
        }
    }
}

impl Value {
    /// A string.
    pub fn str(text: impl AsRef<str>) -> Self {
        Self::Str(text.as_ref().into())
    }

    /// An integer that counts something.
    pub fn count(n: usize) -> Self {
        Self::Int(n as i128)
    }

    /// A list.
    pub fn list(items: Vec<Value>) -> Result<Self> {
        Seq::new(items, &[]).map(Self::List)
    }

    /// A tuple.
    pub fn tuple(items: Vec<Value>) -> Result<Self> {
        Seq::new(items, &[]).map(Self::Tuple)
    }

    /// A tuple whose items have names.
    pub fn named_tuple(names: &'static [&'static str], items: Vec<Value>) -> Result<Self> {
        Seq::new(items, names).map(Self::Tuple)
    }

    /// A dict.
    pub fn dict(pairs: Vec<(Value, Value)>, budget: &Budget) -> Result<Self> {
        Dict::new(pairs, budget).map(|d| Self::Dict(Rc::new(d)))
    }

    /// A generator.
    pub fn iter(items: Vec<Value>) -> Self {
        Self::Iter(Rc::new(RefCell::new(items.into_iter())))
    }

    /// An object of the engine.
    pub fn object(object: impl Object) -> Self {
        Self::Object(Rc::new(object))
    }

    /// Undefined, with what is missing.
    pub fn undefined(missing: impl AsRef<str>) -> Self {
        Self::Undefined(missing.as_ref().into())
    }

    /// The name of its type in Python.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Iter(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Object(object) => object.type_name(),
        }
    }

    /// Whether a condition takes it for true.
    pub fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(x) => *x != 0.0,
            Self::Str(s) | Self::Markup(s) => !s.is_empty(),
            Self::List(s) | Self::Tuple(s) => !s.items.is_empty(),
            Self::Dict(d) | Self::View(_, d) => !d.entries.is_empty(),
            Self::Range(r) => r.len() > 0,
            Self::Iter(_) | Self::Namespace(_) => true,
            Self::Object(object) => object.len() != Some(0),
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) | Self::Markup(s) => Some(s),
            _ => None,
        }
    }

    /// The integer that it is; a bool is one.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(b) => Some(i128::from(*b)),
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The number that it is, as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            other => other.as_int().map(|n| n as f64),
        }
    }

    /// Whether it is undefined.
    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    fn size(&self) -> Size {
        let single = |weight: usize| Size {
            depth: 0,
            weight: weight as u64,
        };
        match self {
            Self::Str(s) | Self::Markup(s) => single(1 + s.len() / 16),
            Self::List(s) | Self::Tuple(s) => s.size,
            Self::Dict(d) | Self::View(_, d) => d.size,
            Self::Namespace(ns) => Size {
                depth: ns.depth.get(),
                weight: 1,
            },
            Self::Iter(items) => {
                let items = items.borrow();
                let below = items.as_slice().iter().map(|v| v.size().depth).max();
                Size {
                    depth: below.unwrap_or(0).saturating_add(1),
                    weight: 1,
                }
            }
            _ => single(1),
        }
    }
}
