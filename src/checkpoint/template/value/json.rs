//! `json.dumps`.

use super::super::error::{Result, TemplateError};
use super::{Budget, Dict, Value, float_repr, order};

/// Arguments of `json.dumps`.
#[derive(Debug, Clone, Default)]
pub struct Style {
    /// Escape everything that is not ASCII.
    pub ensure_ascii: bool,
    /// What a level is indented by; each item has a line of its own then.
    pub indent: Option<String>,
    /// Item and key separators; Python's default is `", "` (`","` with an indent) and `": "`.
    pub separators: Option<(String, String)>,
    /// Keys in order.
    pub sort_keys: bool,
}

/// Writes a value.
pub fn dumps(value: &Value, style: &Style, budget: &Budget) -> Result<String> {
    let (item, key) = match &style.separators {
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some((item, key)) => (item.as_str(), key.as_str()),
    };
    let mut writer = Writer {
        style,
        item,
        key,
        out: String::new(),
        budget,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    out: String,
    budget: &'a Budget,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => self.out.push_str(&n.to_string()),
            Value::Float(x) => self.out.push_str(&float(*x)),
            Value::Str(s) | Value::Markup(s) => self.string(s),
            Value::List(seq) | Value::Tuple(seq) => self.list(&seq.items, depth)?,
            Value::Dict(d) => self.dict(d, depth)?,
            Value::Undefined(_)
            | Value::View(..)
            | Value::Range(_)
            | Value::Iter(_)
            | Value::Namespace(_)
            | Value::Object(_) => {
                return Err(TemplateError::new(format!(
                    "Object of type {} is not JSON serializable",
                    value.type_name()
                )));
            }
        }
        Ok(())
    }

    fn list(&mut self, items: &[Value], depth: usize) -> Result<()> {
        self.out.push('[');
        for (n, value) in items.iter().enumerate() {
            self.begin_item(n, depth)?;
            self.value(value, depth + 1)?;
        }
        self.end(']', items.is_empty(), depth)
    }

    fn dict(&mut self, dict: &Dict, depth: usize) -> Result<()> {
        let mut entries: Vec<_> = dict.entries.iter().collect();
        if self.style.sort_keys {
            let mut failed = Ok(());
            entries.sort_by(|(a, _), (b, _)| match order(a, b, "<") {
                Ok(found) => found.unwrap_or(std::cmp::Ordering::Equal),
                Err(e) => {
                    failed = Err(e);
                    std::cmp::Ordering::Equal
                }
            });
            failed?;
        }
        self.out.push('{');
        for (n, (key, value)) in entries.iter().enumerate() {
            self.begin_item(n, depth)?;
            let name = match key {
                Value::Str(s) | Value::Markup(s) => s.to_string(),
                Value::Bool(b) => b.to_string(),
                Value::None => "null".into(),
                Value::Int(n) => n.to_string(),
                Value::Float(x) => float(*x),
                other => {
                    return Err(TemplateError::new(format!(
                        "keys must be str, int, float, bool or None, not {}",
                        other.type_name()
                    )));
                }
            };
            self.string(&name);
            self.out.push_str(self.key);
            self.value(value, depth + 1)?;
        }
        self.end('}', entries.is_empty(), depth)
    }

    fn begin_item(&mut self, n: usize, depth: usize) -> Result<()> {
        if n > 0 {
            self.out.push_str(self.item);
        }
        self.new_line(depth + 1)
    }

    fn end(&mut self, close: char, empty: bool, depth: usize) -> Result<()> {
        if !empty {
            self.new_line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<()> {
        if let Some(indent) = &self.style.indent {
            self.budget.bytes(indent.len().saturating_mul(depth) + 1)?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.style.ensure_ascii && (c as u32) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    match x.is_infinite() {
        true if x > 0.0 => "Infinity".into(),
        true => "-Infinity".into(),
        false => float_repr(x),
    }
}
