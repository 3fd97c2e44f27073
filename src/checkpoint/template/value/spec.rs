//! Numbers and texts under a width, a precision and a sign: what `%` and `format` share.

use super::super::error::{Result, TemplateError};
use super::floats::exponent_of;
use super::{Budget, Value, text, to_i128};

/// Where padding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
    Center,
    /// Between the sign and the digits.
    AfterSign,
}

/// Digits of a number and the sign or prefix before them.
pub struct Digits {
    pub prefix: String,
    pub digits: String,
}

impl Digits {
    /// Pads to a width.
    pub fn pad(&self, fill: char, align: Align, width: usize, budget: &Budget) -> Result<String> {
        let whole = format!("{}{}", self.prefix, self.digits);
        if align != Align::AfterSign {
            return pad(&whole, fill, align, width, budget);
        }
        let missing = width.saturating_sub(whole.chars().count());
        budget.bytes(missing * 4)?;
        let padding = fill.to_string().repeat(missing);
        Ok(format!("{}{padding}{}", self.prefix, self.digits))
    }
}

/// Pads a text to a width in characters.
pub fn pad(text: &str, fill: char, align: Align, width: usize, budget: &Budget) -> Result<String> {
    let missing = width.saturating_sub(text.chars().count());
    budget.bytes(missing.saturating_mul(4))?;
    let (before, after) = match align {
        Align::Left => (0, missing),
        Align::Right | Align::AfterSign => (missing, 0),
        Align::Center => (missing / 2, missing - missing / 2),
    };
    let fill = fill.to_string();
    Ok(format!(
        "{}{text}{}",
        fill.repeat(before),
        fill.repeat(after)
    ))
}

/// A float in one of the notations `e`, `f`, `g` (or upper case). `alternate` keeps the point and zeros.
pub fn float_digits(x: f64, notation: char, precision: usize, alternate: bool) -> String {
    let upper = notation.is_ascii_uppercase();
    let out = if x.is_nan() {
        "nan".to_string()
    } else if x.is_infinite() {
        "inf".to_string()
    } else {
        match notation.to_ascii_lowercase() {
            'e' => scientific(x.abs(), precision, alternate),
            'f' => {
                let text = format!("{:.precision$}", x.abs());
                if alternate && precision == 0 {
                    text + "."
                } else {
                    text
                }
            }
            _ => general(x.abs(), precision.max(1), alternate),
        }
    };
    if upper { out.to_uppercase() } else { out }
}

fn scientific(x: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let point = if alternate && precision == 0 { "." } else { "" };
    format!(
        "{digits}{point}{}",
        exponent_of(exponent.parse().unwrap_or_default(), 'e')
    )
}

fn general(x: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{x:.*e}", precision - 1);
    let exponent: i32 = text
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or_default();
    let shorten = |digits: &str| match digits.contains('.') && !alternate {
        true => digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_string(),
        false => digits.to_string(),
    };
    if exponent < -4 || exponent >= precision as i32 {
        let digits = text.split_once('e').map_or("", |(d, _)| d);
        let point = if alternate && !digits.contains('.') {
            "."
        } else {
            ""
        };
        return format!("{}{point}{}", shorten(digits), exponent_of(exponent, 'e'));
    }
    let decimals = (precision as i32 - 1 - exponent).max(0) as usize;
    let fixed = format!("{x:.decimals$}");
    let point = if alternate && decimals == 0 { "." } else { "" };
    shorten(&fixed) + point
}

/// The sign of a number as a format asks for it.
pub fn sign_of(negative: bool, sign: Option<char>) -> String {
    match (negative, sign) {
        (true, _) => "-".into(),
        (false, Some(c @ ('+' | ' '))) => c.to_string(),
        _ => String::new(),
    }
}

/// Digits of an integer in a radix, with prefix when `alternate`.
pub fn int_digits(n: i128, kind: char, alternate: bool) -> (&'static str, String) {
    let n = n.unsigned_abs();
    match kind {
        'b' => (if alternate { "0b" } else { "" }, format!("{n:b}")),
        'o' => (if alternate { "0o" } else { "" }, format!("{n:o}")),
        'x' => (if alternate { "0x" } else { "" }, format!("{n:x}")),
        'X' => (if alternate { "0X" } else { "" }, format!("{n:X}")),
        _ => ("", n.to_string()),
    }
}

/// A format specification: `[[fill]align][sign][z][#][0][width][grouping][.precision][type]`.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    no_negative_zero: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self> {
        let mut spec = Self::default();
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        let is_align = |c: Option<&char>| matches!(c, Some('<' | '>' | '=' | '^'));
        if is_align(chars.get(1)) {
            spec.fill = Some(chars[0]);
            spec.align = Some(chars[1]);
            at = 2;
        } else if is_align(chars.first()) {
            spec.align = Some(chars[0]);
            at = 1;
        }
        let take = |at: &mut usize, allowed: &str| {
            let found = chars.get(*at).copied().filter(|c| allowed.contains(*c));
            *at += usize::from(found.is_some());
            found
        };
        let number = |at: &mut usize| -> Result<Option<usize>> {
            let start = *at;
            while chars.get(*at).is_some_and(char::is_ascii_digit) {
                *at += 1;
            }
            let digits: String = chars[start..*at].iter().collect();
            match digits.is_empty() {
                true => Ok(None),
                false => digits
                    .parse()
                    .map(Some)
                    .map_err(|_| TemplateError::new("too many decimal digits in format string")),
            }
        };
        spec.sign = take(&mut at, "+- ");
        spec.no_negative_zero = take(&mut at, "z").is_some();
        spec.alternate = take(&mut at, "#").is_some();
        spec.zero = take(&mut at, "0").is_some();
        spec.width = number(&mut at)?.unwrap_or(0);
        spec.grouping = take(&mut at, ",_");
        if take(&mut at, ".").is_some() {
            spec.precision = number(&mut at)?;
            if spec.precision.is_none() {
                return Err(TemplateError::new("format specifier missing precision"));
            }
        }
        spec.kind = chars.get(at).copied();
        at += usize::from(spec.kind.is_some());
        match at == chars.len() {
            true => Ok(spec),
            false => Err(TemplateError::new(format!(
                "invalid format specifier '{text}'"
            ))),
        }
    }

    fn padded(&self, digits: &Digits, budget: &Budget) -> Result<String> {
        let zero = self.zero && self.align.is_none();
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let align = match self.align {
            Some('<') => Align::Left,
            Some('^') => Align::Center,
            Some('=') => Align::AfterSign,
            _ if zero => Align::AfterSign,
            _ => Align::Right,
        };
        if self.grouping.is_some() && fill == '0' && align == Align::AfterSign {
            return Err(TemplateError::unsupported(
                "a thousands separator with zero padding",
            ));
        }
        digits.pad(fill, align, self.width, budget)
    }

    fn grouped(&self, digits: String, by: usize) -> String {
        let Some(separator) = self.grouping else {
            return digits;
        };
        let end = digits
            .find(|c: char| !c.is_ascii_hexdigit() || (by == 3 && !c.is_ascii_digit()))
            .unwrap_or(digits.len());
        let (whole, rest) = digits.split_at(end);
        let mut out = String::new();
        for (n, c) in whole.chars().enumerate() {
            if n > 0 && (whole.len() - n) % by == 0 {
                out.push(separator);
            }
            out.push(c);
        }
        out + rest
    }
}

fn unknown_code(kind: char, value: &Value) -> TemplateError {
    TemplateError::new(format!(
        "unknown format code '{kind}' for object of type '{}'",
        value.type_name()
    ))
}

/// `format(value, spec)`
pub fn format_value(value: &Value, spec: &str, budget: &Budget) -> Result<String> {
    if spec.is_empty() {
        return text(value);
    }
    let spec = Spec::parse(spec)?;
    if spec.width > (1 << 28) || spec.precision.is_some_and(|p| p > 10_000) {
        return Err(TemplateError::unsupported("so large a width or precision"));
    }
    match value {
        Value::Str(s) => format_text(value, s, &spec, budget),
        Value::Bool(_) | Value::Int(_) => {
            let n = value.as_int().unwrap_or_default();
            match spec.kind {
                Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
                    format_float(n as f64, kind, &spec, budget)
                }
                // A bool without a code is a text, but one that is aligned as a number.
                kind => format_int(value, n, kind.unwrap_or('d'), &spec, budget),
            }
        }
        Value::Float(x) => match spec.kind {
            Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
                format_float(*x, kind, &spec, budget)
            }
            None => format_float(*x, ' ', &spec, budget),
            Some(kind) => Err(unknown_code(kind, value)),
        },
        other => Err(TemplateError::new(format!(
            "unsupported format string passed to {}.__format__",
            other.type_name()
        ))),
    }
}

fn format_text(value: &Value, s: &str, spec: &Spec, budget: &Budget) -> Result<String> {
    if let Some(kind) = spec.kind.filter(|k| *k != 's') {
        return Err(unknown_code(kind, value));
    }
    if spec.sign.is_some() || spec.alternate || spec.grouping.is_some() || spec.align == Some('=') {
        return Err(TemplateError::new(
            "sign, '#', ',' and '=' are not allowed in a string format specifier",
        ));
    }
    let cut: String = match spec.precision {
        Some(most) => s.chars().take(most).collect(),
        None => s.to_string(),
    };
    let align = match spec.align {
        Some('>') => Align::Right,
        Some('^') => Align::Center,
        _ => Align::Left,
    };
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    pad(&cut, fill, align, spec.width, budget)
}

fn format_int(value: &Value, n: i128, kind: char, spec: &Spec, budget: &Budget) -> Result<String> {
    if spec.precision.is_some() {
        return Err(TemplateError::new(
            "precision not allowed in integer format specifier",
        ));
    }
    if kind == 'c' {
        let c = u32::try_from(n).ok().and_then(char::from_u32);
        let c = c.ok_or_else(|| TemplateError::new("%c arg not in range(0x110000)"))?;
        let digits = Digits {
            prefix: String::new(),
            digits: c.to_string(),
        };
        return spec.padded(&digits, budget);
    }
    let by = match kind {
        'd' | 'n' => 3,
        'b' | 'o' | 'x' | 'X' if spec.grouping == Some(',') => {
            return Err(TemplateError::new(format!(
                "cannot specify ',' with '{kind}'"
            )));
        }
        'b' | 'o' | 'x' | 'X' => 4,
        _ => return Err(unknown_code(kind, value)),
    };
    let (prefix, digits) = int_digits(n, kind, spec.alternate);
    let digits = Digits {
        prefix: sign_of(n < 0, spec.sign) + prefix,
        digits: spec.grouped(digits, by),
    };
    spec.padded(&digits, budget)
}

fn format_float(x: f64, kind: char, spec: &Spec, budget: &Budget) -> Result<String> {
    let precision = spec.precision.unwrap_or(6);
    let digits = match kind {
        '%' => float_digits(x * 100.0, 'f', precision, spec.alternate) + "%",
        ' ' if spec.precision.is_none() && !spec.alternate => super::float_repr(x.abs()),
        // No code: as `g`, but with a digit behind the point at least.
        ' ' => {
            return Err(TemplateError::unsupported(
                "a precision without a format code",
            ));
        }
        _ => float_digits(x, kind, precision, spec.alternate),
    };
    let zero = !digits.bytes().any(|b| (b'1'..=b'9').contains(&b)) && x.is_finite();
    let negative = x.is_sign_negative() && !x.is_nan() && !(zero && spec.no_negative_zero);
    let digits = Digits {
        prefix: sign_of(negative, spec.sign),
        digits: spec.grouped(digits, 3),
    };
    spec.padded(&digits, budget)
}

/// The integer that `%d` writes for a value.
pub fn truncated(value: &Value) -> Option<Result<i128>> {
    match value {
        Value::Float(x) => Some(to_i128(*x)),
        other => other.as_int().map(Ok),
    }
}
