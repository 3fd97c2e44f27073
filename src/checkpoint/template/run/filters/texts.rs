//! Filters of texts.

use std::sync::LazyLock;

use regex::Regex;

use super::super::super::chars::is_space;
use super::super::super::error::{Result, TemplateError};
use super::super::super::value::{Value, iterate, percent, text};
use super::super::Run;
use super::super::arguments::{Call, integer, integer_or, string};
use super::super::strings::{changed, lines, replace, strip};

impl Run {
    pub(super) fn text_filter(&self, name: &str, value: &Value, call: &Call) -> Result<Value> {
        match (name, value) {
            ("string", Value::Markup(_)) => return Ok(value.clone()),
            ("escape" | "e", Value::Markup(_)) => return Ok(value.clone()),
            ("string" | "escape" | "e" | "forceescape" | "safe" | "replace" | "join", _) => {}
            (_, Value::Markup(_)) => {
                return Err(TemplateError::unsupported(format!(
                    "'{name}' on an escaped or safe string"
                )));
            }
            _ => {}
        }
        match name {
            "string" => {
                call.none(name)?;
                text(value).map(Value::str)
            }
            "escape" | "e" | "forceescape" => {
                call.none(name)?;
                Ok(Value::Markup(escape(&text(value)?).into()))
            }
            "safe" => {
                call.none(name)?;
                Ok(Value::Markup(text(value)?.into()))
            }
            "upper" | "lower" | "capitalize" => {
                call.none(name)?;
                Ok(Value::str(changed(&text(value)?, name).unwrap_or_default()))
            }
            "title" => {
                call.none(name)?;
                Ok(Value::str(title(&text(value)?)))
            }
            "trim" => {
                let [chars] = call.bind(name, ["chars"], 0)?;
                strip(&text(value)?, "strip", chars.as_ref()).map(Value::str)
            }
            "replace" => {
                let [old, new, count] = call.bind(name, ["old", "new", "count"], 2)?;
                let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
                let count = match count {
                    None | Some(Value::None) => -1,
                    Some(count) => integer(&count, name)?,
                };
                replace(
                    &text(value)?,
                    &text(&old)?,
                    &text(&new)?,
                    count,
                    &self.budget,
                )
                .map(Value::str)
            }
            "join" => self.join(value, call),
            "center" => {
                let [width] = call.bind(name, ["width"], 0)?;
                let width = width.unwrap_or(Value::Int(80));
                let call = Call {
                    positional: vec![width],
                    ..Call::default()
                };
                self.str_method(&text(value)?, "center", &call)
            }
            "indent" => self.indent(value, call),
            "format" => self.format_filter(value, call),
            "wordcount" => {
                static WORD: LazyLock<Option<Regex>> =
                    LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").ok());
                call.none(name)?;
                let whole = text(value)?;
                let count = WORD.as_ref().map_or(0, |r| r.find_iter(&whole).count());
                Ok(Value::count(count))
            }
            "truncate" => truncate(value, call),
            "xmlattr" => xml_attributes(value, call),
            "urlencode" => self.url_encode(value, call),
            _ => Err(TemplateError::unsupported(format!("the filter '{name}'"))),
        }
    }

    fn join(&self, value: &Value, call: &Call) -> Result<Value> {
        let [separator, attribute] = call.bind("join", ["d", "attribute"], 0)?;
        let separator = text(&separator.unwrap_or_else(|| Value::str("")))?;
        let mut out = String::new();
        for (n, item) in iterate(value, &self.budget)?.into_iter().enumerate() {
            let item = match &attribute {
                None | Some(Value::None) => item,
                Some(path) => self.dotted(&item, path, None)?,
            };
            let piece = text(&item)?;
            let before = if n > 0 { separator.as_str() } else { "" };
            self.budget.bytes(piece.len() + before.len())?;
            out.push_str(before);
            out.push_str(&piece);
        }
        Ok(Value::str(out))
    }

    fn indent(&self, value: &Value, call: &Call) -> Result<Value> {
        let [width, first, blank] = call.bind("indent", ["width", "first", "blank"], 0)?;
        let is_true = |v: &Option<Value>| v.as_ref().is_some_and(Value::truth);
        let whole = string(value, "indent")?.to_string() + "\n";
        let indent = match width {
            Some(Value::Str(text)) => text.to_string(),
            other => {
                let width = integer_or(&other, 4, "indent")?.clamp(0, 1 << 30) as usize;
                self.budget.bytes(width)?;
                " ".repeat(width)
            }
        };
        let lines = lines(&whole, false);
        self.budget.bytes(
            whole
                .len()
                .saturating_add(lines.len().saturating_mul(indent.len())),
        )?;
        let mut out = String::new();
        for (n, line) in lines.iter().enumerate() {
            let indented = match n {
                0 => is_true(&first),
                _ => is_true(&blank) || !line.is_empty(),
            };
            if n > 0 {
                out.push('\n');
            }
            if indented {
                out.push_str(&indent);
            }
            out.push_str(line);
        }
        Ok(Value::str(out))
    }

    fn format_filter(&self, value: &Value, call: &Call) -> Result<Value> {
        let values = match (call.positional.is_empty(), call.keywords.is_empty()) {
            (false, false) => {
                return Err(TemplateError::new(
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            (true, false) => {
                let pairs = call.keywords.iter();
                let pairs = pairs.map(|(n, v)| (Value::str(n), v.clone()));
                Value::dict(pairs.collect(), &self.budget)?
            }
            _ => Value::tuple(call.positional.clone())?,
        };
        percent(&text(value)?, &values, &self.budget).map(Value::str)
    }

    fn url_encode(&self, value: &Value, call: &Call) -> Result<Value> {
        call.none("urlencode")?;
        let pairs = match value {
            Value::Dict(dict) => dict.entries.clone(),
            Value::List(_) | Value::Tuple(_) | Value::View(..) | Value::Iter(_) => {
                let mut pairs = Vec::new();
                for pair in iterate(value, &self.budget)? {
                    let mut pair = iterate(&pair, &self.budget)?;
                    match (pair.pop(), pair.pop(), pair.is_empty()) {
                        (Some(v), Some(k), true) => pairs.push((k, v)),
                        _ => return Err(TemplateError::new("urlencode needs pairs")),
                    }
                }
                pairs
            }
            other => return Ok(Value::str(quote(&text(other)?, false))),
        };
        let mut parts = Vec::new();
        for (k, v) in &pairs {
            parts.push(format!(
                "{}={}",
                quote(&text(k)?, true),
                quote(&text(v)?, true)
            ));
        }
        Ok(Value::str(parts.join("&")))
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Jinja's own `title`: a word begins behind a space, a hyphen or an opening bracket.
fn title(text: &str) -> String {
    let is_start = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let separator = is_start(first);
        let end = rest
            .find(|c| is_start(c) != separator)
            .unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        let (head, tail) = piece.split_at(first.len_utf8());
        out.push_str(&head.to_uppercase());
        out.push_str(&tail.to_lowercase());
        rest = after;
    }
    out
}

fn truncate(value: &Value, call: &Call) -> Result<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill, end, leeway] = call.bind("truncate", names, 0)?;
    let s = string(value, "truncate")?;
    let length = integer_or(&length, 255, "truncate")?;
    let leeway = integer_or(&leeway.filter(|l| !matches!(l, Value::None)), 5, "truncate")?;
    let end = end.unwrap_or_else(|| Value::str("..."));
    let end = string(&end, "truncate")?;
    let end_len = end.chars().count() as i128;
    if length < end_len || leeway < 0 {
        return Err(TemplateError::new(format!(
            "expected length >= {end_len} and leeway >= 0, got {length} and {leeway}"
        )));
    }
    if s.chars().count() as i128 <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let cut: String = s.chars().take((length - end_len) as usize).collect();
    let kept = match kill.is_some_and(|k| k.truth()) {
        true => cut.as_str(),
        false => cut
            .rsplit_once(' ')
            .map_or(cut.as_str(), |(before, _)| before),
    };
    Ok(Value::str(format!("{kept}{end}")))
}

fn xml_attributes(value: &Value, call: &Call) -> Result<Value> {
    let [space] = call.bind("xmlattr", ["autospace"], 0)?;
    let Value::Dict(dict) = value else {
        return Err(TemplateError::new("xmlattr needs a dict"));
    };
    let mut parts = Vec::new();
    for (key, value) in &dict.entries {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = string(key, "xmlattr")?;
        if key.contains(|c: char| " \t\n\r\u{b}\u{c}/>=".contains(c)) {
            return Err(TemplateError::new(format!(
                "invalid character in attribute name: {key:?}"
            )));
        }
        let value = match value {
            Value::Markup(escaped) => escaped.to_string(),
            other => escape(&text(other)?),
        };
        parts.push(format!("{}=\"{value}\"", escape(key)));
    }
    let joined = parts.join(" ");
    let spaced = space.is_none_or(|s| s.truth()) && !joined.is_empty();
    Ok(Value::str(if spaced {
        format!(" {joined}")
    } else {
        joined
    }))
}

fn quote(text: &str, query: bool) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(b as char);
            }
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
