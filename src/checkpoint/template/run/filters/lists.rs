//! Filters of lists and dicts.

use std::cmp::Ordering;

use super::super::super::error::{Result, TemplateError};
use super::super::super::value::{Value, View, equal, hashable, ignore_case, iterate, order};
use super::super::Run;
use super::super::arguments::{Call, integer};

impl Run {
    pub(super) fn list_filter(&self, name: &str, value: &Value, call: &Call) -> Result<Value> {
        match name {
            "first" => {
                call.none(name)?;
                let first = match value {
                    // Of a generator only one item is taken.
                    Value::Iter(items) => items.borrow_mut().next(),
                    other => iterate(other, &self.budget)?.into_iter().next(),
                };
                Ok(first.unwrap_or_else(|| empty("first")))
            }
            "last" => {
                call.none(name)?;
                self.reversible(value)?;
                let last = iterate(value, &self.budget)?.pop();
                Ok(last.unwrap_or_else(|| empty("last")))
            }
            "list" => {
                call.none(name)?;
                Value::list(iterate(value, &self.budget)?)
            }
            "reverse" => {
                call.none(name)?;
                if let Value::Str(s) = value {
                    return Ok(Value::str(s.chars().rev().collect::<String>()));
                }
                let mut items = iterate(value, &self.budget)?;
                items.reverse();
                match self.reversible(value) {
                    Ok(()) => Ok(Value::iter(items)),
                    Err(_) => Value::list(items),
                }
            }
            "items" => {
                call.none(name)?;
                match value {
                    Value::Undefined(_) => Ok(Value::iter(Vec::new())),
                    Value::Dict(dict) => View::Items.of(dict).map(Value::iter),
                    _ => Err(TemplateError::new("can only get item pairs from a mapping")),
                }
            }
            "dictsort" => self.dict_sort(value, call),
            "sort" => {
                let names = ["reverse", "case_sensitive", "attribute"];
                let [reverse, case, attribute] = call.bind(name, names, 0)?;
                let items = iterate(value, &self.budget)?;
                let case = is_true(&case);
                let keyed = items.into_iter().map(|item| {
                    let key = self.sort_keys(&item, attribute.as_ref(), case)?;
                    Ok((key, item))
                });
                let sorted = self.sorted(keyed.collect::<Result<_>>()?, is_true(&reverse))?;
                Value::list(sorted.into_iter().map(|(_, item)| item).collect())
            }
            "unique" => {
                let [case, attribute] = call.bind(name, ["case_sensitive", "attribute"], 0)?;
                let path = attribute.unwrap_or(Value::None);
                let mut seen: Vec<Value> = Vec::new();
                let mut kept = Vec::new();
                for item in iterate(value, &self.budget)? {
                    let key = self.sort_key(&item, &path, is_true(&case), None)?;
                    hashable(&key)?;
                    self.budget.steps(1 + seen.len() / 16)?;
                    if !seen.iter().any(|s| equal(s, &key)) {
                        seen.push(key);
                        kept.push(item);
                    }
                }
                Ok(Value::iter(kept))
            }
            "min" | "max" => {
                let [case, attribute] = call.bind(name, ["case_sensitive", "attribute"], 0)?;
                let path = attribute.unwrap_or(Value::None);
                let (sign, wanted) = match name {
                    "min" => ("<", Ordering::Less),
                    _ => (">", Ordering::Greater),
                };
                let mut best: Option<(Value, Value)> = None;
                for item in iterate(value, &self.budget)? {
                    let key = self.sort_key(&item, &path, is_true(&case), None)?;
                    let better = match &best {
                        Some((least, _)) => order(&key, least, sign)? == Some(wanted),
                        None => true,
                    };
                    if better {
                        best = Some((key, item));
                    }
                }
                let found = best.map(|(_, item)| item);
                Ok(found.unwrap_or_else(|| empty("aggregated")))
            }
            "groupby" => self.group_by(value, call),
            _ => self.cut(name, value, call),
        }
    }

    /// Refuses what Python's `reversed` does not take.
    fn reversible(&self, value: &Value) -> Result<()> {
        match value {
            Value::Iter(_) | Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => Err(
                TemplateError::new(format!("'{}' object is not reversible", value.type_name())),
            ),
            _ => Ok(()),
        }
    }

    fn dict_sort(&self, value: &Value, call: &Call) -> Result<Value> {
        let [case, by, reverse] = call.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let by = by.unwrap_or_else(|| Value::str("key"));
        let at = match by.as_str() {
            Some("key") => 0,
            Some("value") => 1,
            _ => {
                return Err(TemplateError::new(
                    "you can only sort by either \"key\" or \"value\"",
                ));
            }
        };
        let Value::Dict(dict) = value else {
            return Err(TemplateError::new(match value {
                Value::Undefined(missing) => missing.to_string(),
                other => format!("'{}' object has no attribute 'items'", other.type_name()),
            }));
        };
        let keyed = dict.entries.iter().map(|(k, v)| {
            let by = if at == 0 { k.clone() } else { v.clone() };
            let by = if is_true(&case) { by } else { ignore_case(by) };
            Ok((vec![by], Value::tuple(vec![k.clone(), v.clone()])?))
        });
        let sorted = self.sorted(keyed.collect::<Result<_>>()?, is_true(&reverse))?;
        Value::list(sorted.into_iter().map(|(_, item)| item).collect())
    }

    /// What `sort` compares items by: one key for each attribute of a list with commas.
    fn sort_keys(&self, item: &Value, attribute: Option<&Value>, case: bool) -> Result<Vec<Value>> {
        let paths = match attribute {
            Some(Value::Str(paths)) => paths.split(',').map(Value::str).collect(),
            Some(other) => vec![other.clone()],
            None => vec![Value::None],
        };
        let key = |path: &Value| self.sort_key(item, path, case, None);
        paths.iter().map(key).collect()
    }

    /// Sorts by keys; what is equal keeps its order.
    fn sorted(
        &self,
        mut keyed: Vec<(Vec<Value>, Value)>,
        reverse: bool,
    ) -> Result<Vec<(Vec<Value>, Value)>> {
        self.budget.steps(keyed.len() * 16)?;
        let mut failed = Ok(());
        keyed.sort_by(|(a, _), (b, _)| {
            let (a, b) = if reverse { (b, a) } else { (a, b) };
            let unequal = a.iter().zip(b).find(|(a, b)| !equal(a, b));
            match unequal.map(|(a, b)| order(a, b, "<")) {
                None => Ordering::Equal,
                Some(Ok(found)) => found.unwrap_or_else(|| {
                    failed = Err(TemplateError::unsupported("sorting NaN"));
                    Ordering::Equal
                }),
                Some(Err(e)) => {
                    failed = Err(e);
                    Ordering::Equal
                }
            }
        });
        failed.map(|()| keyed)
    }

    fn group_by(&self, value: &Value, call: &Call) -> Result<Value> {
        let names = ["attribute", "default", "case_sensitive"];
        let [attribute, default, case] = call.bind("groupby", names, 1)?;
        let path = attribute.unwrap_or(Value::None);
        let case = is_true(&case);
        let keyed = iterate(value, &self.budget)?.into_iter().map(|item| {
            let key = self.sort_key(&item, &path, case, default.as_ref())?;
            Ok((vec![key], item))
        });
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (mut key, item) in self.sorted(keyed.collect::<Result<_>>()?, false)? {
            let key = key.pop().unwrap_or(Value::None);
            match groups.last_mut().filter(|(last, _)| equal(last, &key)) {
                Some((_, items)) => items.push(item),
                None => groups.push((key, vec![item])),
            }
        }
        let groups = groups.into_iter().map(|(key, items)| {
            let key = match (case, items.first()) {
                (false, Some(first)) => self.dotted(first, &path, default.as_ref())?,
                _ => key,
            };
            Value::named_tuple(&["grouper", "list"], vec![key, Value::list(items)?])
        });
        Value::list(groups.collect::<Result<_>>()?)
    }

    /// `batch` and `slice`.
    fn cut(&self, name: &str, value: &Value, call: &Call) -> Result<Value> {
        let parameter = if name == "batch" {
            "linecount"
        } else {
            "slices"
        };
        let [count, fill] = call.bind(name, [parameter, "fill_with"], 1)?;
        let count = integer(&count.unwrap_or(Value::None), name)?;
        let fill = fill.filter(|f| !matches!(f, Value::None));
        let items = iterate(value, &self.budget)?;
        let mut parts = Vec::new();
        if name == "batch" {
            let mut part = Vec::new();
            for item in items {
                if part.len() as i128 == count {
                    parts.push(std::mem::take(&mut part));
                }
                part.push(item);
            }
            if !part.is_empty() {
                let missing = (count - part.len() as i128).max(0);
                if let Some(fill) = fill {
                    let missing = usize::try_from(missing).unwrap_or(usize::MAX);
                    self.budget
                        .bytes(missing.saturating_mul(size_of::<Value>()))?;
                    part.extend(std::iter::repeat_n(fill, missing));
                }
                parts.push(part);
            }
        } else {
            if count == 0 {
                return Err(TemplateError::new("integer division or modulo by zero"));
            }
            let count = usize::try_from(count).unwrap_or(0);
            self.budget
                .bytes(count.saturating_mul(size_of::<Value>()))?;
            let mut items = items.into_iter();
            let len = items.len();
            for n in 0..count {
                let larger = n < len % count;
                let size = len / count + usize::from(larger);
                let mut part: Vec<_> = items.by_ref().take(size).collect();
                part.extend(fill.clone().filter(|_| !larger));
                parts.push(part);
            }
        }
        let parts = parts.into_iter().map(Value::list);
        Ok(Value::iter(parts.collect::<Result<_>>()?))
    }
}

fn is_true(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(Value::truth)
}

fn empty(which: &str) -> Value {
    Value::undefined(format!("No {which} item, sequence was empty."))
}
