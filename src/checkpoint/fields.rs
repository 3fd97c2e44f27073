//! Typed access to the fields of a JSON object, with errors that name the file and the dotted field.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{Error, Result};
use super::pointer::or_explained;

/// Reads and parses a JSON file. Errors carry the line and column.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        source,
    })?;
    parse_json(path, &bytes).map_err(|e| or_explained(path, e))
}

/// Parses the bytes of a JSON file. A byte order mark is passed over; `NaN` and `Infinity`, which Python writes for such
/// numbers, become strings of that text, so that a field that is read is refused and one that is not does no harm. Errors
/// carry the line and column.
pub(super) fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let parsed = serde_json::from_slice(bytes);
    let parsed = parsed.or_else(|e| match quoted_literals(bytes) {
        Some(quoted) => serde_json::from_slice(&quoted).map_err(|_| e),
        None => Err(e),
    });
    parsed.map_err(|e| Error::Json {
        path: path.to_path_buf(),
        line: e.line(),
        column: e.column(),
        message: e.to_string(),
    })
}

/// The text with every `NaN`, `Infinity` and `-Infinity` outside strings as a string; `None` where there is none.
fn quoted_literals(bytes: &[u8]) -> Option<Vec<u8>> {
    const LITERALS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut out = Vec::with_capacity(bytes.len() + 16);
    let (mut at, mut in_string, mut found) = (0, false, false);
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let literal = LITERALS.iter().find(|l| !in_string && rest.starts_with(l));
        let taken = match (byte, literal) {
            (_, Some(literal)) => {
                found = true;
                out.push(b'"');
                out.extend_from_slice(literal);
                out.push(b'"');
                at += literal.len();
                continue;
            }
            (b'\\', None) if in_string => 2.min(rest.len()),
            (b'"', None) => {
                in_string = !in_string;
                1
            }
            _ => 1,
        };
        out.extend_from_slice(&rest[..taken]);
        at += taken;
    }
    found.then_some(out)
}

/// One JSON object of a file. A field that is `null` counts as absent.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Dotted name of this object with a final dot, empty at the top.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object at the top of a file.
    pub fn top(path: &'a Path, value: &'a Value) -> Result<Self> {
        Self::at(path, String::new(), value)
    }

    /// The object in a field, `None` when absent or `null`.
    pub fn object(&self, name: &str) -> Result<Option<Self>> {
        let prefix = format!("{}{name}.", self.prefix);
        self.get(name)
            .map(|v| Self::at(self.path, prefix, v))
            .transpose()
    }

    fn at(path: &'a Path, prefix: String, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path, prefix, map }),
            other => Err(Error::InvalidField {
                path: path.to_path_buf(),
                field: prefix.trim_end_matches('.').to_string(),
                expected: "a JSON object".into(),
                got: shorten(other),
            }),
        }
    }

    /// The value of a field, `None` when absent or `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// The names and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// The error "expected, got" for a field of this object.
    pub fn invalid(&self, name: &str, expected: impl Into<String>, got: impl ToString) -> Error {
        Error::InvalidField {
            path: self.path.to_path_buf(),
            field: format!("{}{name}", self.prefix),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    /// The error for a value that is valid but not implemented.
    pub fn unsupported(&self, name: &str, supported: &str) -> Error {
        Error::UnsupportedField {
            path: self.path.to_path_buf(),
            field: format!("{}{name}", self.prefix),
            got: self.map.get(name).map_or("(absent)".into(), shorten),
            supported: supported.into(),
        }
    }

    /// The error for a field that must be there.
    pub fn missing(&self, name: &str, expected: &str) -> Error {
        Error::MissingField {
            path: self.path.to_path_buf(),
            field: format!("{}{name}", self.prefix),
            expected: expected.into(),
        }
    }

    /// A count of at least 1 and at most `max`, or `None` when absent.
    pub fn count_opt(&self, name: &str, max: usize) -> Result<Option<usize>> {
        match self.size_opt(name, max)? {
            Some(0) => Err(self.invalid(name, format!("an integer from 1 to {max}"), 0)),
            other => Ok(other),
        }
    }

    /// A count of at least 1 and at most `max`.
    pub fn count(&self, name: &str, max: usize) -> Result<usize> {
        self.count_opt(name, max)?
            .ok_or_else(|| self.missing(name, &format!("an integer from 1 to {max}")))
    }

    /// An integer from 0 to `max`, or `None` when absent.
    pub fn size_opt(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .filter(|v| *v <= max)
            .map(Some)
            .ok_or_else(|| {
                self.invalid(name, format!("an integer from 0 to {max}"), shorten(value))
            })
    }

    /// A finite number above 0, or `None` when absent.
    pub fn positive_opt(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_f64()
            .filter(|v| v.is_finite() && *v > 0.0)
            .map(Some)
            .ok_or_else(|| self.invalid(name, "a number above 0", shorten(value)))
    }

    /// A boolean, `default` when absent.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.invalid(name, "true or false", shorten(other))),
        }
    }

    /// A string, or `None` when absent.
    pub fn string_opt(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.invalid(name, "a string", shorten(other))),
        }
    }

    /// A list of strings, or `None` when absent.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let list = value.as_array().map(|list| list.iter());
        let strings = list.and_then(|list| list.map(|v| v.as_str().map(str::to_string)).collect());
        let bad = || self.invalid(name, "a list of strings", shorten(value));
        strings.map(Some).ok_or_else(bad)
    }

    /// A token id or a list of them; empty when absent.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let bad = |v: &Value| self.invalid(name, "a token id or a list of token ids", shorten(v));
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|v| id(v).ok_or_else(|| bad(v))).collect(),
            Some(v) => Ok(vec![id(v).ok_or_else(|| bad(v))?]),
        }
    }
}

/// A JSON value as text of bounded length, for error messages.
pub(super) fn shorten(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_for_numbers_that_json_lacks() {
        let text =
            "\u{feff}{\"a\": NaN, \"b\": [Infinity, -Infinity, 1], \"c\": \"NaN \\\" Infinity\"}";
        let value = parse_json(Path::new("x"), text.as_bytes()).unwrap();
        let expected = serde_json::json!({"a": "NaN", "b": ["Infinity", "-Infinity", 1], "c": "NaN \" Infinity"});
        assert_eq!(value, expected);
        let top = Fields::top(Path::new("x"), &value).unwrap();
        let error = top.positive_opt("a").unwrap_err().to_string();
        assert!(error.contains("`a`") && error.contains("NaN"), "{error}");
        for broken in ["{\"a\": NaNs}", "{\"a\": Nan}", "NaN \"", "\"\\"] {
            let error = parse_json(Path::new("x"), broken.as_bytes());
            assert!(
                matches!(error, Err(Error::Json { line: 1, .. })),
                "{broken}"
            );
        }
    }
}
