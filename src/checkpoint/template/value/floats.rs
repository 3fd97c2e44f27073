//! Floats as Python writes and rounds them.

use super::super::error::{Result, TemplateError};

/// `repr` of a float: the fewest digits that read back, plain for exponents from -4 to 15.
pub fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if x == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return match plain.contains('.') {
            true => plain,
            false => plain + ".0",
        };
    }
    format!("{digits}{}", exponent_of(exponent, 'e'))
}

/// An exponent with its sign and two digits at least.
pub fn exponent_of(exponent: i32, letter: char) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{letter}{sign}{:02}", exponent.abs())
}

/// `int(x)`
pub fn to_i128(x: f64) -> Result<i128> {
    if x.is_nan() {
        return Err(TemplateError::new("cannot convert float NaN to integer"));
    }
    if x.is_infinite() {
        return Err(TemplateError::new(
            "cannot convert float infinity to integer",
        ));
    }
    match x.abs() < 1.7e38 {
        true => Ok(x as i128),
        false => Err(TemplateError::unsupported("an integer beyond 128 bits")),
    }
}

/// `round(x, digits)`: to the nearest, ties of the exact value to the even digit.
pub fn round_float(x: f64, digits: i128) -> Result<f64> {
    if !x.is_finite() || digits > 400 {
        return Ok(x);
    }
    if digits >= 0 {
        let text = format!("{x:.*}", digits as usize);
        return text
            .parse()
            .map_err(|_| TemplateError::new(format!("{text} is not a number")));
    }
    if digits < -36 {
        return match x.abs() < 1e36 {
            true => Ok(0.0_f64.copysign(x)),
            false => Err(TemplateError::unsupported("rounding at so large a digit")),
        };
    }
    let unit = 10_i128.pow(digits.unsigned_abs() as u32);
    let whole = to_i128(x.abs())?;
    let (down, rest) = (whole - whole % unit, whole % unit);
    let fraction = x.abs().fract() > 0.0;
    let half = unit / 2;
    let up = rest > half || (rest == half && (fraction || (down / unit) % 2 == 1));
    let rounded = if up { down + unit } else { down };
    Ok((rounded as f64).copysign(x))
}
