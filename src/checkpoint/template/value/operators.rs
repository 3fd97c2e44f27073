//! Arithmetic on anything that has it.

use super::super::error::{Result, TemplateError};
use super::super::syntax::Binary;
use super::{Budget, Value, iterate, percent};

/// `a op b`
pub fn binary(op: Binary, a: &Value, b: &Value, budget: &Budget) -> Result<Value> {
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        return integers(op, x, y);
    }
    if let (Some(x), Some(y)) = (a.as_float(), b.as_float()) {
        return floats(op, x, y).map(Value::Float);
    }
    match (op, a, b) {
        (_, Value::Markup(_), _) | (_, _, Value::Markup(_)) => Err(TemplateError::unsupported(
            format!("'{}' on an escaped or safe string", op.sign()),
        )),
        (Binary::Mod, Value::Str(format), _) => percent(format, b, budget).map(Value::str),
        (_, Value::Undefined(missing), _) | (_, _, Value::Undefined(missing)) => {
            Err(TemplateError::new(missing.to_string()))
        }
        (Binary::Add, Value::Str(x), Value::Str(y)) => {
            budget.bytes(x.len() + y.len())?;
            Ok(Value::str(format!("{x}{y}")))
        }
        (Binary::Add, Value::List(x), Value::List(y)) => {
            budget.bytes((x.items.len() + y.items.len()) * size_of::<Value>())?;
            Value::list([&x.items[..], &y.items].concat())
        }
        (Binary::Add, Value::Tuple(x), Value::Tuple(y)) => {
            budget.bytes((x.items.len() + y.items.len()) * size_of::<Value>())?;
            Value::tuple([&x.items[..], &y.items].concat())
        }
        (Binary::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), n)
            if n.as_int().is_some() =>
        {
            repeat(a, n.as_int().unwrap_or_default(), budget)
        }
        (Binary::Mul, n, Value::Str(_) | Value::List(_) | Value::Tuple(_))
            if n.as_int().is_some() =>
        {
            repeat(b, n.as_int().unwrap_or_default(), budget)
        }
        (Binary::Sub, Value::View(..), Value::View(..)) => {
            Err(TemplateError::unsupported("'-' on dict views"))
        }
        _ => Err(unsupported_operands(op, a, b)),
    }
}

fn unsupported_operands(op: Binary, a: &Value, b: &Value) -> TemplateError {
    let (left, right) = (a.type_name(), b.type_name());
    TemplateError::new(match (op, a) {
        (Binary::Add, Value::Str(_)) => {
            format!("can only concatenate str (not \"{right}\") to str")
        }
        _ => format!(
            "unsupported operand type(s) for {}: '{left}' and '{right}'",
            op.sign()
        ),
    })
}

fn repeat(value: &Value, times: i128, budget: &Budget) -> Result<Value> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Str(s) => {
            budget.bytes(s.len().saturating_mul(times))?;
            Ok(Value::str(s.repeat(if s.is_empty() { 0 } else { times })))
        }
        _ => {
            let items = iterate(value, budget)?;
            budget.bytes((items.len() * size_of::<Value>()).saturating_mul(times))?;
            let times = if items.is_empty() { 0 } else { times };
            let items = std::iter::repeat_n(items, times).flatten().collect();
            match value {
                Value::List(_) => Value::list(items),
                _ => Value::tuple(items),
            }
        }
    }
}

fn integers(op: Binary, a: i128, b: i128) -> Result<Value> {
    let result = match op {
        Binary::Add => a.checked_add(b),
        Binary::Sub => a.checked_sub(b),
        Binary::Mul => a.checked_mul(b),
        Binary::Div | Binary::FloorDiv | Binary::Mod if b == 0 => {
            return Err(TemplateError::new("integer division or modulo by zero"));
        }
        Binary::Div => return divide(a, b).map(Value::Float),
        Binary::FloorDiv => floor_div(a, b),
        Binary::Mod => floor_div(a, b).and_then(|q| a.checked_sub(q.checked_mul(b)?)),
        Binary::Pow if b < 0 => return floats(op, a as f64, b as f64).map(Value::Float),
        Binary::Pow => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(b)) => a.checked_pow(b),
            (_, Err(_)) => None,
        },
    };
    result
        .map(Value::Int)
        .ok_or_else(|| TemplateError::unsupported("an integer beyond 128 bits"))
}

fn floor_div(a: i128, b: i128) -> Option<i128> {
    let quotient = a.checked_div(b)?;
    let inexact = a.checked_rem(b)? != 0;
    match inexact && (a < 0) != (b < 0) {
        true => quotient.checked_sub(1),
        false => Some(quotient),
    }
}

/// True division, rounded once.
fn divide(a: i128, b: i128) -> Result<f64> {
    const EXACT: u128 = 1 << 53;
    if a.unsigned_abs() <= EXACT && b.unsigned_abs() <= EXACT {
        return Ok(a as f64 / b as f64);
    }
    if a % b == 0 {
        return Ok((a / b) as f64);
    }
    Err(TemplateError::unsupported(
        "the division of integers beyond 2**53",
    ))
}

fn floats(op: Binary, a: f64, b: f64) -> Result<f64> {
    let zero = || Err(TemplateError::new("float division by zero"));
    match op {
        Binary::Add => Ok(a + b),
        Binary::Sub => Ok(a - b),
        Binary::Mul => Ok(a * b),
        Binary::Div | Binary::FloorDiv | Binary::Mod if b == 0.0 => zero(),
        Binary::Div => Ok(a / b),
        Binary::Mod => Ok(floor_mod(a, b).1),
        Binary::FloorDiv => Ok(floor_mod(a, b).0),
        Binary::Pow if a == 0.0 && b < 0.0 => Err(TemplateError::new(
            "0.0 cannot be raised to a negative power",
        )),
        Binary::Pow if a < 0.0 && b.is_finite() && b.fract() != 0.0 => {
            Err(TemplateError::unsupported("a complex number"))
        }
        Binary::Pow => {
            let power = a.powf(b);
            match power.is_infinite() && a.is_finite() && b.is_finite() {
                true => Err(TemplateError::new("numerical result out of range")),
                false => Ok(power),
            }
        }
    }
}

/// Quotient and remainder as Python's `divmod`: the remainder has the divisor's sign.
fn floor_mod(a: f64, b: f64) -> (f64, f64) {
    let mut remainder = a % b;
    let mut quotient = (a - remainder) / b;
    if remainder == 0.0 {
        remainder = 0.0_f64.copysign(b);
    } else if (b < 0.0) != (remainder < 0.0) {
        remainder += b;
        quotient -= 1.0;
    }
    let floor = match quotient == 0.0 {
        true => 0.0_f64.copysign(a / b),
        false => {
            let floor = quotient.floor();
            if quotient - floor > 0.5 {
                floor + 1.0
            } else {
                floor
            }
        }
    };
    (floor, remainder)
}

/// `-a`
pub fn negative(a: &Value) -> Result<Value> {
    match (a, a.as_int()) {
        (Value::Float(x), _) => Ok(Value::Float(-x)),
        (_, Some(n)) => n
            .checked_neg()
            .map(Value::Int)
            .ok_or_else(|| TemplateError::unsupported("an integer beyond 128 bits")),
        _ => Err(bad_sign(a, '-')),
    }
}

/// `+a`
pub fn positive(a: &Value) -> Result<Value> {
    match (a, a.as_int()) {
        (Value::Float(x), _) => Ok(Value::Float(*x)),
        (_, Some(n)) => Ok(Value::Int(n)),
        _ => Err(bad_sign(a, '+')),
    }
}

fn bad_sign(a: &Value, sign: char) -> TemplateError {
    TemplateError::new(match a {
        Value::Undefined(missing) => missing.to_string(),
        _ => format!("bad operand type for unary {sign}: '{}'", a.type_name()),
    })
}
