//! `format % values`.

use super::super::error::{Result, TemplateError};
use super::repr::ascii;
use super::spec::{Align, Digits, float_digits, int_digits, pad, sign_of, truncated};
use super::{Budget, Dict, Value, repr, text};

/// What is filled in: a dict by name, a tuple one after the other, anything else once.
struct Arguments<'a> {
    items: &'a [Value],
    at: usize,
    dict: Option<&'a Dict>,
}

impl<'a> Arguments<'a> {
    fn next(&mut self) -> Result<&'a Value> {
        let item = self.items.get(self.at);
        self.at += 1;
        item.ok_or_else(|| TemplateError::new("not enough arguments for format string"))
    }

    fn number(&mut self) -> Result<i128> {
        let value = self.next()?;
        let number = value.as_int();
        number.ok_or_else(|| TemplateError::new("* wants int"))
    }
}

#[derive(Default)]
struct Flags {
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// Widths and precisions beyond this are refused.
const WIDEST: i128 = 1 << 28;

fn checked(n: i128) -> Result<usize> {
    usize::try_from(n)
        .ok()
        .filter(|_| n <= WIDEST)
        .ok_or_else(|| TemplateError::unsupported("so large a width or precision"))
}

/// `format % values`
pub fn percent(format: &str, values: &Value, budget: &Budget) -> Result<String> {
    let single = [values.clone()];
    let mut args = Arguments {
        items: match values {
            Value::Tuple(seq) => &seq.items,
            _ => &single,
        },
        at: 0,
        dict: match values {
            Value::Dict(d) => Some(d),
            _ => None,
        },
    };
    let mut named = false;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut key = None;
        if chars.next_if_eq(&'(').is_some() {
            key = Some(key_of(&mut chars)?);
        }
        let mut flags = Flags::default();
        while let Some(flag) = chars.next_if(|c| "-+ 0#".contains(*c)) {
            match flag {
                '-' => flags.left = true,
                '+' => flags.plus = true,
                ' ' => flags.space = true,
                '0' => flags.zero = true,
                _ => flags.alternate = true,
            }
        }
        if chars.next_if_eq(&'*').is_some() {
            let width = args.number()?;
            flags.left |= width < 0;
            flags.width = checked(width.saturating_abs())?;
        } else {
            flags.width = number(&mut chars)?;
        }
        if chars.next_if_eq(&'.').is_some() {
            let star = chars.next_if_eq(&'*').is_some();
            flags.precision = Some(match star {
                true => checked(args.number()?.max(0))?,
                false => number(&mut chars)?,
            });
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(kind) = chars.next() else {
            return Err(TemplateError::new("incomplete format"));
        };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match key {
            Some(key) => {
                named = true;
                let dict = args
                    .dict
                    .ok_or_else(|| TemplateError::new("format requires a mapping"))?;
                let found = dict.get_str(&key);
                found.ok_or_else(|| TemplateError::new(format!("no key '{key}'")))?
            }
            None => args.next()?,
        };
        let piece = convert(kind, value, &flags, budget)?;
        budget.bytes(piece.len())?;
        out.push_str(&piece);
    }
    let left_over = args.at < args.items.len() && !named;
    // A mapping or list that nothing takes is no error.
    match left_over && !matches!(values, Value::Dict(_) | Value::List(_) | Value::Range(_)) {
        true => Err(TemplateError::new(
            "not all arguments converted during string formatting",
        )),
        false => Ok(out),
    }
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// A key up to its closing parenthesis, inner ones balanced.
fn key_of(chars: &mut Chars<'_>) -> Result<String> {
    let mut key = String::new();
    let mut open = 1;
    for c in chars.by_ref() {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Ok(key);
        }
        key.push(c);
    }
    Err(TemplateError::new("incomplete format key"))
}

fn number(chars: &mut Chars<'_>) -> Result<usize> {
    let mut n: i128 = 0;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        n = n.saturating_mul(10).saturating_add(i128::from(digit));
        chars.next();
    }
    checked(n)
}

fn convert(kind: char, value: &Value, flags: &Flags, budget: &Budget) -> Result<String> {
    let as_text = |whole: String| {
        let cut: String = match flags.precision {
            Some(most) => whole.chars().take(most).collect(),
            None => whole,
        };
        let align = if flags.left {
            Align::Left
        } else {
            Align::Right
        };
        pad(&cut, ' ', align, flags.width, budget)
    };
    let sign = match (flags.plus, flags.space) {
        (true, _) => Some('+'),
        (_, true) => Some(' '),
        _ => None,
    };
    let digits = match kind {
        's' => return as_text(text(value)?),
        'r' => return as_text(repr(value)?),
        'a' => return as_text(ascii(value)?),
        'c' => {
            let c = match (value, value.as_int()) {
                (Value::Str(s), _) if s.chars().count() == 1 => s.to_string(),
                (_, Some(n)) => u32::try_from(n)
                    .ok()
                    .and_then(char::from_u32)
                    .map(String::from)
                    .ok_or_else(|| TemplateError::new("%c arg not in range(0x110000)"))?,
                _ => return Err(TemplateError::new("%c requires int or char")),
            };
            let align = if flags.left {
                Align::Left
            } else {
                Align::Right
            };
            return pad(&c, ' ', align, flags.width, budget);
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => integer(kind, value, flags, sign)?,
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let x = value.as_float().ok_or_else(|| {
                TemplateError::new(format!("must be real number, not {}", value.type_name()))
            })?;
            let precision = flags.precision.unwrap_or(6);
            if precision > 10_000 {
                return Err(TemplateError::unsupported("so large a precision"));
            }
            Digits {
                prefix: sign_of(x.is_sign_negative() && !x.is_nan(), sign),
                digits: float_digits(x, kind, precision, flags.alternate),
            }
        }
        other => {
            return Err(TemplateError::new(format!(
                "unsupported format character '{other}'"
            )));
        }
    };
    match (flags.left, flags.zero) {
        (true, _) => digits.pad(' ', Align::Left, flags.width, budget),
        (_, true) => digits.pad('0', Align::AfterSign, flags.width, budget),
        _ => digits.pad(' ', Align::Right, flags.width, budget),
    }
}

fn integer(kind: char, value: &Value, flags: &Flags, sign: Option<char>) -> Result<Digits> {
    let decimal = matches!(kind, 'd' | 'i' | 'u');
    let number = match (value, decimal) {
        (Value::Float(_), false) => None,
        _ => truncated(value),
    };
    let n = number.unwrap_or_else(|| {
        let wanted = match decimal {
            true => "a real number is required",
            false => "an integer is required",
        };
        Err(TemplateError::new(format!(
            "%{kind} format: {wanted}, not {}",
            value.type_name()
        )))
    })?;
    let (prefix, mut digits) = int_digits(n, kind, flags.alternate);
    let missing = flags.precision.unwrap_or(0).saturating_sub(digits.len());
    if missing > 10_000 {
        return Err(TemplateError::unsupported("so large a precision"));
    }
    digits.insert_str(0, &"0".repeat(missing));
    Ok(Digits {
        prefix: sign_of(n < 0, sign) + prefix,
        digits,
    })
}
