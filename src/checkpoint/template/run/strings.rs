//! Methods of strings.

use std::sync::LazyLock;

use regex::Regex;

use super::super::chars::{is_cased, is_decimal, is_printable, is_space, is_title, push_title};
use super::super::error::{Result, TemplateError};
use super::super::value::{Budget, Value, iterate, str_format};
use super::Run;
use super::arguments::{Call, integer, integer_or, size, string};

/// Every method that Python's strings have.
pub const STR_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

impl Run {
    /// Calls a method of a string.
    pub fn str_method(&self, s: &str, name: &str, call: &Call) -> Result<Value> {
        self.budget.steps(s.len() / 16)?;
        match name {
            "format" => {
                let keywords: Vec<(&str, Value)> = call
                    .keywords
                    .iter()
                    .map(|(n, v)| (&**n, v.clone()))
                    .collect();
                self.format(s, &call.positional, &keywords)
            }
            "format_map" => {
                let [map] = call.bind(name, [""], 1)?;
                let Some(Value::Dict(dict)) = map else {
                    return Err(TemplateError::new("format_map() needs a dict"));
                };
                let entries = dict.entries.iter();
                let keywords: Vec<(&str, Value)> = entries
                    .filter_map(|(k, v)| Some((k.as_str()?, v.clone())))
                    .collect();
                self.format(s, &[], &keywords)
            }
            "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
                self.split_method(s, name, call)
            }
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = call.bind(name, [""], 0)?;
                strip(s, name, chars.as_ref()).map(Value::str)
            }
            "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
                search(s, name, call)
            }
            "removeprefix" | "removesuffix" => {
                let [part] = call.bind(name, [""], 1)?;
                let part = part.unwrap_or(Value::None);
                let part = string(&part, name)?;
                let rest = match name {
                    "removeprefix" => s.strip_prefix(part),
                    _ => s.strip_suffix(part),
                };
                Ok(Value::str(rest.unwrap_or(s)))
            }
            "replace" => {
                let [old, new, count] = call.bind(name, ["", "", ""], 2)?;
                let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
                let count = integer_or(&count, -1, name)?;
                replace(
                    s,
                    string(&old, name)?,
                    string(&new, name)?,
                    count,
                    &self.budget,
                )
                .map(Value::str)
            }
            "join" => {
                let [items] = call.bind(name, [""], 1)?;
                let items = iterate(&items.unwrap_or(Value::None), &self.budget)?;
                let mut out = String::new();
                for (n, item) in items.iter().enumerate() {
                    let Value::Str(piece) = item else {
                        return Err(TemplateError::new(format!(
                            "sequence item {n}: expected str instance, {} found",
                            item.type_name()
                        )));
                    };
                    let separator = if n > 0 { s } else { "" };
                    self.budget.bytes(piece.len() + separator.len())?;
                    out.push_str(separator);
                    out.push_str(piece);
                }
                Ok(Value::str(out))
            }
            "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => {
                self.width_method(s, name, call)
            }
            "encode" | "maketrans" | "translate" => {
                Err(TemplateError::unsupported(format!("'.{name}' of a str")))
            }
            "casefold" => {
                call.none(name)?;
                casefold(s).map(Value::str)
            }
            _ => {
                call.none(name)?;
                match changed(s, name) {
                    Some(text) => Ok(Value::str(text)),
                    None => is_method(s, name).map(Value::Bool),
                }
            }
        }
    }

    fn format(&self, s: &str, positional: &[Value], keywords: &[(&str, Value)]) -> Result<Value> {
        let lookup = |of: &Value, key: &Value, is_attr: bool| match (is_attr, key.as_str()) {
            (true, Some(name)) => self.attribute(of, name),
            _ => self.item(of, key),
        };
        str_format(s, positional, keywords, &lookup, &self.budget).map(Value::str)
    }

    fn split_method(&self, s: &str, name: &str, call: &Call) -> Result<Value> {
        let pieces: Vec<&str> = match name {
            "splitlines" => {
                let [keep] = call.bind(name, ["keepends"], 0)?;
                lines(s, keep.is_some_and(|k| k.truth()))
            }
            "partition" | "rpartition" => {
                let [separator] = call.bind(name, [""], 1)?;
                let separator = separator.unwrap_or(Value::None);
                let separator = separator_of(&separator, name)?;
                let found = match name {
                    "partition" => s.split_once(separator),
                    _ => s.rsplit_once(separator),
                };
                let parts = match (found, name) {
                    (Some((before, after)), _) => [before, separator, after],
                    (None, "partition") => [s, "", ""],
                    (None, _) => ["", "", s],
                };
                return Value::tuple(parts.map(Value::str).to_vec());
            }
            _ => {
                let [separator, most] = call.bind(name, ["sep", "maxsplit"], 0)?;
                let most = integer_or(&most, -1, name)?;
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                match separator {
                    None | Some(Value::None) => split_space(s, most, name == "rsplit"),
                    Some(separator) => {
                        let separator = separator_of(&separator, name)?;
                        let most = most.saturating_add(1);
                        match name {
                            "split" => s.splitn(most, separator).collect(),
                            _ => {
                                let mut parts: Vec<_> = s.rsplitn(most, separator).collect();
                                parts.reverse();
                                parts
                            }
                        }
                    }
                }
            }
        };
        self.budget
            .bytes(s.len() + pieces.len() * size_of::<Value>())?;
        Value::list(pieces.into_iter().map(Value::str).collect())
    }

    fn width_method(&self, s: &str, name: &str, call: &Call) -> Result<Value> {
        if name == "expandtabs" {
            let [width] = call.bind(name, ["tabsize"], 0)?;
            let width = size(&width.unwrap_or(Value::Int(8)), name)?;
            return expand_tabs(s, width, &self.budget).map(Value::str);
        }
        if name == "zfill" {
            let [width] = call.bind(name, [""], 1)?;
            let width = size(&width.unwrap_or(Value::None), name)?;
            let missing = width.saturating_sub(s.chars().count());
            self.budget.bytes(missing)?;
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            return Ok(Value::str(format!("{sign}{}{digits}", "0".repeat(missing))));
        }
        let [width, fill] = call.bind(name, ["", ""], 1)?;
        let width = size(&width.unwrap_or(Value::None), name)?;
        let fill = fill.unwrap_or_else(|| Value::str(" "));
        let fill = string(&fill, name)?;
        let mut chars = fill.chars();
        let (Some(fill), None) = (chars.next(), chars.next()) else {
            return Err(TemplateError::new(
                "the fill character must be exactly one character long",
            ));
        };
        let missing = width.saturating_sub(s.chars().count());
        self.budget.bytes(missing.saturating_mul(4))?;
        let before = match name {
            "ljust" => 0,
            "rjust" => missing,
            _ => missing / 2 + (missing & width & 1),
        };
        let fill = fill.to_string();
        let (before, after) = (fill.repeat(before), fill.repeat(missing - before));
        Ok(Value::str(format!("{before}{s}{after}")))
    }
}

fn separator_of<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    match string(value, name)? {
        "" => Err(TemplateError::new("empty separator")),
        separator => Ok(separator),
    }
}

/// Splits at runs of whitespace.
fn split_space(s: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = if from_right {
        s.trim_end_matches(is_space)
    } else {
        s.trim_start_matches(is_space)
    };
    while !rest.is_empty() {
        if pieces.len() == most {
            pieces.push(if from_right {
                rest.trim_end_matches(is_space)
            } else {
                rest
            });
            break;
        }
        let found = if from_right {
            rest.rfind(is_space)
        } else {
            rest.find(is_space)
        };
        let Some(at) = found else {
            pieces.push(rest);
            break;
        };
        let width = rest[at..].chars().next().map_or(1, char::len_utf8);
        if from_right {
            pieces.push(&rest[at + width..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            pieces.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if from_right {
        pieces.reverse();
    }
    pieces
}

/// Lines at every line break that Python knows.
pub fn lines(s: &str, keep: bool) -> Vec<&str> {
    let is_break = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut out = Vec::new();
    let mut rest = s;
    while let Some(at) = rest.find(is_break) {
        let end = match rest[at..].starts_with("\r\n") {
            true => at + 2,
            false => at + rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        out.push(if keep { &rest[..end] } else { &rest[..at] });
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// `strip`, `lstrip` or `rstrip`.
pub fn strip<'a>(s: &'a str, name: &str, chars: Option<&Value>) -> Result<&'a str> {
    let set: Option<Vec<char>> = match chars {
        None | Some(Value::None) => None,
        Some(value) => Some(string(value, name)?.chars().collect()),
    };
    let strips = |c: char| match &set {
        None => is_space(c),
        Some(set) => set.contains(&c),
    };
    Ok(match name {
        "lstrip" => s.trim_start_matches(strips),
        "rstrip" => s.trim_end_matches(strips),
        _ => s.trim_matches(strips),
    })
}

/// The part of a string between two places in characters, and how many characters lie before it. `None` where the start lies
/// behind the end.
fn window<'a>(
    s: &'a str,
    start: &Option<Value>,
    stop: &Option<Value>,
    name: &str,
) -> Result<Option<(&'a str, usize)>> {
    let len = s.chars().count();
    let place = |value: &Option<Value>, default: usize| match value {
        None | Some(Value::None) => Ok(default as i128),
        Some(value) => {
            let n = integer(value, name)?;
            Ok(if n < 0 {
                n.saturating_add(len as i128).max(0)
            } else {
                n
            })
        }
    };
    let (start, stop) = (place(start, 0)?, place(stop, len)?.min(len as i128));
    if start > stop {
        return Ok(None);
    }
    let byte = |n: i128| {
        s.char_indices()
            .nth(n as usize)
            .map_or(s.len(), |(at, _)| at)
    };
    Ok(Some((&s[byte(start)..byte(stop)], start as usize)))
}

fn search(s: &str, name: &str, call: &Call) -> Result<Value> {
    let [wanted, start, stop] = call.bind(name, ["", "", ""], 1)?;
    let wanted = wanted.unwrap_or(Value::None);
    let window = window(s, &start, &stop, name)?;
    if matches!(name, "startswith" | "endswith") {
        let wanted = match &wanted {
            Value::Tuple(several) => several.items.iter().map(|v| string(v, name)).collect(),
            one => vec![string(one, name)?]
                .into_iter()
                .map(Ok)
                .collect::<Result<Vec<_>>>(),
        }?;
        return Ok(Value::Bool(window.is_some_and(|(part, _)| {
            wanted.iter().any(|w| match name {
                "startswith" => part.starts_with(w),
                _ => part.ends_with(w),
            })
        })));
    }
    let wanted = string(&wanted, name)?;
    if name == "count" {
        let count = window.map_or(0, |(part, _)| match wanted.is_empty() {
            true => part.chars().count() + 1,
            false => part.matches(wanted).count(),
        });
        return Ok(Value::count(count));
    }
    let found = window.and_then(|(part, before)| {
        let at = match name.starts_with('r') {
            true => part.rfind(wanted)?,
            false => part.find(wanted)?,
        };
        Some(before + part[..at].chars().count())
    });
    match (found, name.ends_with("index")) {
        (Some(at), _) => Ok(Value::count(at)),
        (None, false) => Ok(Value::Int(-1)),
        (None, true) => Err(TemplateError::new("substring not found")),
    }
}

/// Replaces up to `count` times; negative means all.
pub fn replace(s: &str, old: &str, new: &str, count: i128, budget: &Budget) -> Result<String> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let times = match old.is_empty() {
        true => s.chars().count() + 1,
        false => s.matches(old).count(),
    };
    budget.bytes(
        s.len()
            .saturating_add(times.min(most).saturating_mul(new.len())),
    )?;
    Ok(s.replacen(old, new, most))
}

fn expand_tabs(s: &str, width: usize, budget: &Budget) -> Result<String> {
    let mut out = String::new();
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' => {
                let missing = if width == 0 {
                    0
                } else {
                    width - column % width
                };
                budget.bytes(missing)?;
                out.extend(std::iter::repeat_n(' ', missing));
                column += missing;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(out)
}

/// What a method without arguments makes of a string; `None` for the other methods.
pub fn changed(s: &str, name: &str) -> Option<String> {
    Some(match name {
        "upper" => s.to_uppercase(),
        "lower" => s.to_lowercase(),
        "capitalize" => capitalize(s),
        "title" => title(s),
        "swapcase" => swap_case(s),
        _ => return None,
    })
}

/// Lower case, with the folding of the sharp s and the letters that have two lower cases. Other letters with a folding of their own
/// are refused.
fn casefold(s: &str) -> Result<String> {
    let mut out = String::new();
    for c in s.chars() {
        match c {
            'ß' | 'ẞ' => out.push_str("ss"),
            'ς' => out.push('σ'),
            'µ' => out.push('μ'),
            'ſ' => out.push('s'),
            c => {
                let upper: String = c.to_uppercase().collect();
                let cherokee = matches!(c, '\u{13a0}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}');
                if cherokee || !upper.to_lowercase().chars().eq(c.to_lowercase()) {
                    return Err(TemplateError::unsupported(format!("'.casefold' of {c:?}")));
                }
                out.extend(c.to_lowercase());
            }
        }
    }
    Ok(out)
}

/// The rest of a string in lower case, as a part of the whole: a final sigma is one only at the end of a word.
fn capitalize(s: &str) -> String {
    let mut out = String::new();
    if let Some(first) = s.chars().next() {
        push_title(&mut out, first);
        let lower = s.to_lowercase();
        let skipped: usize = first.to_lowercase().map(char::len_utf8).sum();
        out.push_str(lower.get(skipped..).unwrap_or_default());
    }
    out
}

fn title(s: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in s.chars() {
        if is_cased(c) {
            word.push(c);
            continue;
        }
        out.push_str(&capitalize(&word));
        word.clear();
        out.push(c);
    }
    out + &capitalize(&word)
}

fn swap_case(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars() {
        match c.is_uppercase() {
            true => out.extend(c.to_lowercase()),
            false if c.is_lowercase() => out.extend(c.to_uppercase()),
            false => out.push(c),
        }
    }
    out
}

/// The regular expressions of letters, and of letters and digits.
fn all_match(s: &str, pattern: &'static LazyLock<Option<Regex>>) -> bool {
    pattern.as_ref().is_some_and(|r| r.is_match(s))
}

/// `str.islower` and its kin.
pub fn is_method(s: &str, name: &str) -> Result<bool> {
    static ALPHA: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{L}+\z").ok());
    static ALNUM: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}]+\z").ok());
    static NAME: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[\p{XID_Start}_]\p{XID_Continue}*\z").ok());
    let some = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    Ok(match name {
        "isspace" => some(is_space),
        "isascii" => s.is_ascii(),
        "isprintable" => s.chars().all(is_printable),
        "isdecimal" => some(is_decimal),
        "isdigit" | "isnumeric" if s.is_ascii() || some(is_decimal) => some(is_decimal),
        "isdigit" | "isnumeric" => {
            return Err(TemplateError::unsupported(format!(
                "'.{name}' of other digits than decimal ones"
            )));
        }
        "isalpha" => all_match(s, &ALPHA),
        "isalnum" => all_match(s, &ALNUM),
        "isidentifier" => all_match(s, &NAME),
        "islower" => {
            let large = |c: char| c.is_uppercase() || is_title(c);
            s.chars().any(|c| c.is_lowercase()) && !s.chars().any(large)
        }
        "isupper" => {
            let small = |c: char| c.is_lowercase() || is_title(c);
            s.chars().any(|c| c.is_uppercase()) && !s.chars().any(small)
        }
        "istitle" => is_title_text(s),
        other => return Err(TemplateError::unsupported(format!("'.{other}' of a str"))),
    })
}

fn is_title_text(s: &str) -> bool {
    let (mut inside, mut seen) = (false, false);
    for c in s.chars() {
        let (upper, lower) = (c.is_uppercase() || is_title(c), c.is_lowercase());
        if (upper && inside) || (lower && !inside) {
            return false;
        }
        seen |= upper || lower;
        inside = upper || lower;
    }
    seen
}
