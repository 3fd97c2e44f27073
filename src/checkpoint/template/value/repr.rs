//! `str()` and `repr()`.

use super::super::chars::is_printable;
use super::super::error::{Result, TemplateError};
use super::{Seq, Value, View, float_repr};

/// `str(value)`: what `{{ value }}` prints.
pub fn text(value: &Value) -> Result<String> {
    match value {
        Value::Undefined(_) => Ok(String::new()),
        Value::Str(s) | Value::Markup(s) => Ok(s.to_string()),
        other => repr(other),
    }
}

/// `repr(value)`: what stands in a printed list.
pub fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(&mut out, value)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value) -> Result<()> {
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Float(x) => out.push_str(&float_repr(*x)),
        Value::Str(s) => quote(out, s),
        Value::Markup(s) => {
            out.push_str("Markup(");
            quote(out, s);
            out.push(')');
        }
        Value::List(seq) => list(out, seq)?,
        Value::Tuple(seq) => {
            out.push('(');
            items(out, &seq.items)?;
            out.push_str(if seq.items.len() == 1 { ",)" } else { ")" });
        }
        Value::Dict(d) => {
            out.push('{');
            for (n, (key, value)) in d.entries.iter().enumerate() {
                if n > 0 {
                    out.push_str(", ");
                }
                write(out, key)?;
                out.push_str(": ");
                write(out, value)?;
            }
            out.push('}');
        }
        Value::View(view, d) => {
            out.push_str(match view {
                View::Keys => "dict_keys([",
                View::Values => "dict_values([",
                View::Items => "dict_items([",
            });
            items(out, &view.of(d)?)?;
            out.push_str("])");
        }
        Value::Range(r) => {
            out.push_str(&format!("range({}, {}", r.start, r.stop));
            if r.step != 1 {
                out.push_str(&format!(", {}", r.step));
            }
            out.push(')');
        }
        Value::Object(object) => match object.text() {
            Some(text) => out.push_str(&text),
            None => return Err(address(value)),
        },
        Value::Iter(_) | Value::Namespace(_) => return Err(address(value)),
    }
    Ok(())
}

/// Python prints an address in memory for these, which no two runs share.
fn address(value: &Value) -> TemplateError {
    let hint = match value {
        Value::Iter(_) => "; pass it through |list or |join",
        _ => "",
    };
    TemplateError::unsupported(format!("printing a {}", value.type_name())).with(hint)
}

impl TemplateError {
    fn with(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }
}

fn list(out: &mut String, seq: &Seq) -> Result<()> {
    out.push('[');
    items(out, &seq.items)?;
    out.push(']');
    Ok(())
}

fn items(out: &mut String, values: &[Value]) -> Result<()> {
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write(out, value)?;
    }
    Ok(())
}

/// A string in quotes: single ones, double ones where that saves escapes.
fn quote(out: &mut String, text: &str) {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => match c as u32 {
                n if n < 0x100 => out.push_str(&format!("\\x{n:02x}")),
                n if n < 0x10000 => out.push_str(&format!("\\u{n:04x}")),
                n => out.push_str(&format!("\\U{n:08x}")),
            },
        }
    }
    out.push(quote);
}

/// `ascii(value)`: `repr` with other characters than ASCII escaped.
pub fn ascii(value: &Value) -> Result<String> {
    let mut out = String::new();
    for c in repr(value)?.chars() {
        match c as u32 {
            n if n < 0x80 => out.push(c),
            n if n < 0x100 => out.push_str(&format!("\\x{n:02x}")),
            n if n < 0x10000 => out.push_str(&format!("\\u{n:04x}")),
            n => out.push_str(&format!("\\U{n:08x}")),
        }
    }
    Ok(out)
}
