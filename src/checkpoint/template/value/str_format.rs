//! `'...'.format(...)`.

use super::super::error::{Result, TemplateError};
use super::repr::ascii;
use super::{Budget, Value, format_value, repr, text};

/// How an attribute or item of a value is looked up: the engine's own rules.
pub type Lookup<'a> = dyn Fn(&Value, &Value, bool) -> Result<Value> + 'a;

struct Formatter<'a> {
    positional: &'a [Value],
    keywords: &'a [(&'a str, Value)],
    /// Next automatic number, or that fields are numbered by hand.
    auto: Option<usize>,
    manual: bool,
    lookup: &'a Lookup<'a>,
    budget: &'a Budget,
}

/// Fills in a format string. `lookup(value, key, is_attribute)` finds `{a.b}` and `{a[b]}`.
pub fn str_format(
    format: &str,
    positional: &[Value],
    keywords: &[(&str, Value)],
    lookup: &Lookup<'_>,
    budget: &Budget,
) -> Result<String> {
    let mut formatter = Formatter {
        positional,
        keywords,
        auto: None,
        manual: false,
        lookup,
        budget,
    };
    formatter.fill(format, 2)
}

impl Formatter<'_> {
    fn fill(&mut self, format: &str, levels: u32) -> Result<String> {
        let fail = |message: &str| Err(TemplateError::new(message));
        if levels == 0 {
            return fail("max string recursion exceeded");
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return fail("single '}' encountered in format string");
            }
            let Some(end) = field_end(rest) else {
                return fail("expected '}' before end of string");
            };
            let piece = self.field(&rest[..end], levels)?;
            self.budget.bytes(piece.len())?;
            out.push_str(&piece);
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn field(&mut self, field: &str, levels: u32) -> Result<String> {
        let split = field_name_end(field);
        let (name, rest) = field.split_at(split);
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => {
                let mut chars = rest.chars();
                let conversion = chars.next();
                match (conversion, chars.next()) {
                    (Some(c), None) => (Some(c), ""),
                    (Some(c), Some(':')) => (Some(c), chars.as_str()),
                    _ => {
                        return Err(TemplateError::new(
                            "expected ':' after conversion specifier",
                        ));
                    }
                }
            }
            None => (None, rest.strip_prefix(':').unwrap_or(rest)),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::str(text(&value)?),
            Some('r') => Value::str(repr(&value)?),
            Some('a') => Value::str(ascii(&value)?),
            Some(c) => {
                return Err(TemplateError::new(format!(
                    "unknown conversion specifier '{c}'"
                )));
            }
        };
        let spec = match spec.contains(['{', '}']) {
            true => self.fill(spec, levels - 1)?,
            false => spec.to_string(),
        };
        format_value(&value, &spec, self.budget)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = self.first(first)?;
        while !rest.is_empty() {
            let (key, is_attr, after) = match rest.strip_prefix('.') {
                Some(attr) => {
                    let end = attr.find(['.', '[']).unwrap_or(attr.len());
                    (&attr[..end], true, &attr[end..])
                }
                None => {
                    let inside = rest.strip_prefix('[').unwrap_or(rest);
                    let end = inside
                        .find(']')
                        .ok_or_else(|| TemplateError::new("missing ']' in format string"))?;
                    (&inside[..end], false, &inside[end + 1..])
                }
            };
            if key.is_empty() {
                return Err(TemplateError::new("empty attribute in format string"));
            }
            if !after.is_empty() && !after.starts_with(['.', '[']) {
                return Err(TemplateError::new(
                    "only '.' or '[' may follow ']' in format field specifier",
                ));
            }
            let key = match key.parse::<i128>() {
                Ok(n) if !is_attr && key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(n),
                _ => Value::str(key),
            };
            value = (self.lookup)(&value, &key, is_attr)?;
            rest = after;
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Result<Value> {
        let by_hand = name.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty();
        if !name.is_empty() && !by_hand {
            let found = self.keywords.iter().find(|(n, _)| *n == name);
            return found
                .map(|(_, v)| v.clone())
                .ok_or_else(|| TemplateError::new(format!("no key '{name}'")));
        }
        if self.manual != by_hand && (self.manual || self.auto.is_some()) {
            return Err(TemplateError::new(
                "cannot switch between manual field specification and automatic field numbering",
            ));
        }
        let index = match by_hand {
            true => {
                self.manual = true;
                name.parse().unwrap_or(usize::MAX)
            }
            false => {
                let next = self.auto.unwrap_or(0);
                self.auto = Some(next + 1);
                next
            }
        };
        let found = self.positional.get(index).cloned();
        found.ok_or_else(|| {
            TemplateError::new(format!(
                "replacement index {index} out of range for positional args tuple"
            ))
        })
    }
}

/// Where a field ends, fields within its specification passed over.
fn field_end(text: &str) -> Option<usize> {
    let mut open = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// Where a field's name ends: at `!` or `:` outside of brackets.
fn field_name_end(field: &str) -> usize {
    let mut inside = false;
    for (at, c) in field.char_indices() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            '!' | ':' if !inside => return at,
            _ => {}
        }
    }
    field.len()
}
