//! Filters of numbers.

use super::super::super::chars::is_space;
use super::super::super::error::{Result, TemplateError};
use super::super::super::syntax::Binary;
use super::super::super::value::{Value, binary, iterate, round_float, to_i128};
use super::super::Run;
use super::super::arguments::{Call, integer, integer_or};

impl Run {
    pub(super) fn number_filter(&self, name: &str, value: &Value, call: &Call) -> Result<Value> {
        match name {
            "abs" => {
                call.none(name)?;
                match (value, value.as_int()) {
                    (Value::Float(x), _) => Ok(Value::Float(x.abs())),
                    (_, Some(n)) => Ok(Value::Int(n.saturating_abs())),
                    _ => Err(bad_type(name, value)),
                }
            }
            "int" => to_int(value, call),
            "float" => {
                let [default] = call.bind(name, ["default"], 0)?;
                let found = match value {
                    Value::Undefined(missing) => {
                        return Err(TemplateError::new(missing.to_string()));
                    }
                    Value::Str(s) | Value::Markup(s) => parse_float(s),
                    other => other.as_float(),
                };
                let default = default.unwrap_or(Value::Float(0.0));
                Ok(found.map_or(default, Value::Float))
            }
            "round" => round(value, call),
            "sum" => {
                let [attribute, start] = call.bind(name, ["attribute", "start"], 0)?;
                let path = attribute.unwrap_or(Value::None);
                let mut total = start.unwrap_or(Value::Int(0));
                if total.as_str().is_some() {
                    return Err(TemplateError::new("sum() can't sum strings"));
                }
                for item in iterate(value, &self.budget)? {
                    self.budget.steps(1)?;
                    let item = self.dotted(&item, &path, None)?;
                    total = binary(Binary::Add, &total, &item, &self.budget)?;
                }
                Ok(total)
            }
            _ => file_size(value, call),
        }
    }
}

fn bad_type(name: &str, value: &Value) -> TemplateError {
    TemplateError::new(match value {
        Value::Undefined(missing) => missing.to_string(),
        other => format!("bad operand type for {name}(): '{}'", other.type_name()),
    })
}

fn to_int(value: &Value, call: &Call) -> Result<Value> {
    let [default, base] = call.bind("int", ["default", "base"], 0)?;
    let base = integer_or(&base, 10, "int")?;
    let default = default.unwrap_or(Value::Int(0));
    let number = match value {
        Value::Undefined(missing) => return Err(TemplateError::new(missing.to_string())),
        Value::Str(s) | Value::Markup(s) => {
            if let Some(n) = parse_int(s, base)? {
                return Ok(Value::Int(n));
            }
            match parse_float(s) {
                Some(x) if x.is_finite() => x,
                _ => return Ok(default),
            }
        }
        Value::Float(x) if x.is_nan() => return Ok(default),
        Value::Float(x) => *x,
        other => return Ok(other.as_int().map_or(default, Value::Int)),
    };
    to_i128(number).map(Value::Int)
}

/// `int(text, base)`; `None` where it is none.
fn parse_int(text: &str, base: i128) -> Result<Option<i128>> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = |radix: i128| match radix {
        2 => ["0b", "0B"],
        8 => ["0o", "0O"],
        _ => ["0x", "0X"],
    };
    let has = |radix: i128| prefix(radix).iter().any(|p| digits.starts_with(p));
    let radix = match base {
        0 => [2, 8, 16].into_iter().find(|r| has(*r)).unwrap_or(10),
        2..=36 => base,
        _ => return Ok(None),
    };
    let prefixed = matches!(radix, 2 | 8 | 16) && has(radix);
    let body = if prefixed { &digits[2..] } else { digits };
    // `0x_1` is allowed, `_1` is not.
    let body = if prefixed {
        body.strip_prefix('_').unwrap_or(body)
    } else {
        body
    };
    let well_formed = !body.is_empty()
        && !body.starts_with('_')
        && !body.ends_with('_')
        && !body.contains("__")
        && body.chars().all(|c| c == '_' || c.is_digit(radix as u32));
    let padded = base == 0
        && !prefixed
        && body.starts_with('0')
        && body.bytes().any(|b| b != b'0' && b != b'_');
    if !well_formed || padded {
        return match body.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
            true => Err(TemplateError::unsupported(
                "a number in other digits than ASCII ones",
            )),
            false => Ok(None),
        };
    }
    let sign = if negative { "-" } else { "" };
    let plain = format!("{sign}{}", body.replace('_', ""));
    let parsed = i128::from_str_radix(&plain, radix as u32);
    let parsed = parsed.map_err(|_| TemplateError::unsupported("an integer beyond 128 bits"));
    parsed.map(Some)
}

/// `float(text)`; `None` where it is none.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let bytes = text.as_bytes();
    let joined = |at: usize| {
        let digit = |b: Option<&u8>| b.is_some_and(u8::is_ascii_digit);
        at > 0 && digit(bytes.get(at - 1)) && digit(bytes.get(at + 1))
    };
    if bytes
        .iter()
        .enumerate()
        .any(|(at, b)| *b == b'_' && !joined(at))
    {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn round(value: &Value, call: &Call) -> Result<Value> {
    let [precision, method] = call.bind("round", ["precision", "method"], 0)?;
    let precision = integer_or(&precision, 0, "round")?;
    let method = method.unwrap_or_else(|| Value::str("common"));
    let method = method.as_str().unwrap_or_default();
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(TemplateError::new("method must be common, ceil or floor"));
    }
    let Some(x) = value.as_float() else {
        return Err(bad_type("round", value));
    };
    if method == "common" {
        return match value.as_int() {
            None => round_float(x, precision).map(Value::Float),
            Some(n) if precision >= 0 => Ok(Value::Int(n)),
            Some(n) => round_int(n, precision).map(Value::Int),
        };
    }
    if precision.abs() > 300 {
        return Err(TemplateError::unsupported("rounding at so large a digit"));
    }
    let unit = match precision < 0 {
        true => 10_f64.powf(precision as f64),
        false => 10_f64.powi(precision as i32),
    };
    let scaled = x * unit;
    let whole = if method == "ceil" {
        scaled.ceil()
    } else {
        scaled.floor()
    };
    to_i128(whole)?;
    Ok(Value::Float((whole + 0.0) / unit))
}

fn round_int(n: i128, digits: i128) -> Result<i128> {
    let power = u32::try_from(-digits)
        .ok()
        .and_then(|d| 10_i128.checked_pow(d));
    let Some(unit) = power else {
        return Ok(0);
    };
    let down = n.div_euclid(unit);
    let rest = n.rem_euclid(unit);
    let up = rest * 2 > unit || (rest * 2 == unit && down % 2 != 0);
    (down + i128::from(up))
        .checked_mul(unit)
        .ok_or_else(|| TemplateError::unsupported("an integer beyond 128 bits"))
}

fn file_size(value: &Value, call: &Call) -> Result<Value> {
    let [binary] = call.bind("filesizeformat", ["binary"], 0)?;
    let binary = binary.is_some_and(|b| b.truth());
    let bytes = match value {
        Value::Str(s) => parse_float(s),
        other => other.as_float(),
    };
    let Some(bytes) = bytes else {
        return Err(bad_type("filesizeformat", value));
    };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::str("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::str(format!(
            "{} Bytes",
            integer(&Value::Int(to_i128(bytes)?), "int")?
        )));
    }
    let names = match binary {
        true => ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"],
        false => ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"],
    };
    let mut unit = base;
    for (n, name) in names.iter().enumerate() {
        unit *= base;
        if bytes < unit || n + 1 == names.len() {
            return Ok(Value::str(format!("{:.1} {name}", base * bytes / unit)));
        }
    }
    Ok(Value::None)
}
