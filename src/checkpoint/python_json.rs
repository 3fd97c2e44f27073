//! JSON as Python's `json.dumps` writes it, for chat templates.

use std::sync::Arc;

use serde_json::Value;

/// Arguments of `json.dumps`.
#[derive(Debug, Clone, Default)]
pub(super) struct Style {
    pub ensure_ascii: bool,
    pub indent: Option<usize>,
    /// Item and key separators; Python's default is `", "` (`","` with an indent) and `": "`.
    pub separators: Option<Arc<[String]>>,
    pub sort_keys: bool,
}

/// Writes a value.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, String> {
    let (item, key) = match style.separators.as_deref() {
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(other) => {
            return Err(format!(
                "separators: expected two strings, got {}",
                other.len()
            ));
        }
    };
    let mut writer = Writer {
        style,
        item,
        key,
        out: String::new(),
    };
    writer.value(value, 0);
    Ok(writer.out)
}

struct Writer<'a> {
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => self.number(n),
            Value::String(s) => self.string(s),
            Value::Array(list) => {
                let items: Vec<_> = list.iter().map(|v| (None, v)).collect();
                self.container('[', ']', &items, depth);
            }
            Value::Object(map) => {
                let mut items: Vec<_> = map.iter().map(|(k, v)| (Some(k.as_str()), v)).collect();
                if self.style.sort_keys {
                    items.sort_by_key(|(k, _)| *k);
                }
                self.container('{', '}', &items, depth);
            }
        }
    }

    fn container(
        &mut self,
        open: char,
        close: char,
        items: &[(Option<&str>, &Value)],
        depth: usize,
    ) {
        self.out.push(open);
        for (n, (key, value)) in items.iter().enumerate() {
            if n > 0 {
                self.out.push_str(self.item);
            }
            self.new_line(depth + 1);
            if let Some(key) = key {
                self.string(key);
                self.out.push_str(self.key);
            }
            self.value(value, depth + 1);
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn number(&mut self, number: &serde_json::Number) {
        if !number.is_f64() {
            self.out.push_str(&number.to_string());
            return;
        }
        // Python's repr: plain digits for exponents from -4 to 15, otherwise two-digit exponents with a sign.
        let value = number.as_f64().unwrap_or_default();
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        if value == 0.0 || (-4..16).contains(&exponent) {
            let plain = format!("{value}");
            self.out.push_str(&plain);
            if !plain.contains('.') {
                self.out.push_str(".0");
            }
        } else {
            let sign = if exponent < 0 { '-' } else { '+' };
            self.out
                .push_str(&format!("{digits}e{sign}{:02}", exponent.abs()));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // Expected texts are printed by Python 3.11's json.dumps.
    #[test]
    fn writes_what_python_writes() {
        let value = json!({"b": [1, 2.0, 1e-5, 1.5e300, 0.1], "a": {"x": null, "é\"\n": true}, "e": [], "o": {}});
        let default = dumps(&value, &Style::default()).expect("json");
        assert_eq!(
            default,
            "{\"b\": [1, 2.0, 1e-05, 1.5e+300, 0.1], \"a\": {\"x\": null, \"é\\\"\\n\": true}, \"e\": [], \"o\": {}}"
        );
        let style = Style {
            ensure_ascii: true,
            indent: Some(2),
            sort_keys: true,
            ..Style::default()
        };
        let value = json!({"b": [1], "a": "é🙂\u{7f}", "e": []});
        assert_eq!(
            dumps(&value, &style).expect("json"),
            "{\n  \"a\": \"\\u00e9\\ud83d\\ude42\\u007f\",\n  \"b\": [\n    1\n  ],\n  \"e\": []\n}"
        );
    }

    #[test]
    fn separators_are_two() {
        let style = Style {
            separators: Some(Arc::from(vec![",".to_string(), ":".to_string()])),
            ..Style::default()
        };
        assert_eq!(
            dumps(&json!({"a": [1, 2]}), &style).expect("json"),
            "{\"a\":[1,2]}"
        );
        let style = Style {
            separators: Some(Arc::from(vec![",".to_string()])),
            ..Style::default()
        };
        assert!(dumps(&json!([]), &style).is_err());
    }
}
