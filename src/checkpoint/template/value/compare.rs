//! Equality, order and membership.

use std::cmp::Ordering;
use std::rc::Rc;

use super::super::error::{Result, TemplateError};
use super::iterate::iterate;
use super::repr::text;
use super::{Budget, Value, View as Side};

/// `a == b`
pub fn equal(a: &Value, b: &Value) -> bool {
    use Value::*;
    match (a, b) {
        (Undefined(_), Undefined(_)) | (None, None) => true,
        (Str(a) | Markup(a), Str(b) | Markup(b)) => a == b,
        (Bool(_) | Int(_) | Float(_), Bool(_) | Int(_) | Float(_)) => {
            numbers(a, b) == Some(Ordering::Equal)
        }
        (List(a), List(b)) | (Tuple(a), Tuple(b)) => {
            let pairs = || a.items.iter().zip(&b.items);
            a.items.len() == b.items.len() && pairs().all(|(a, b)| equal(a, b))
        }
        (Dict(a), Dict(b)) => {
            a.entries.len() == b.entries.len()
                && a.entries
                    .iter()
                    .all(|(k, v)| b.get(k).is_some_and(|other| equal(v, other)))
        }
        (View(Side::Keys, a), View(Side::Keys, b)) => {
            a.entries.len() == b.entries.len() && a.entries.iter().all(|(k, _)| b.get(k).is_some())
        }
        (View(Side::Items, a), View(Side::Items, b)) => equal(&Dict(a.clone()), &Dict(b.clone())),
        (Range(a), Range(b)) => {
            let len = a.len();
            len == b.len() && (len == 0 || a.start == b.start) && (len < 2 || a.step == b.step)
        }
        (Namespace(a), Namespace(b)) => Rc::ptr_eq(a, b),
        (Iter(a), Iter(b)) => Rc::ptr_eq(a, b),
        (Object(a), Object(b)) => Rc::ptr_eq(a, b),
        _ => false,
    }
}

/// Compares numbers exactly; `None` with a NaN.
fn numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Float(x), Value::Float(y)) => x.partial_cmp(y),
        (Value::Float(x), _) => float_int(*x, b.as_int()?),
        (_, Value::Float(y)) => float_int(*y, a.as_int()?).map(Ordering::reverse),
        _ => Some(a.as_int()?.cmp(&b.as_int()?)),
    }
}

fn float_int(x: f64, n: i128) -> Option<Ordering> {
    const END: f64 = 170141183460469231731687303715884105728.0;
    if x.is_nan() {
        return None;
    }
    if x >= END {
        return Some(Ordering::Greater);
    }
    if x < -END {
        return Some(Ordering::Less);
    }
    let whole = x.trunc();
    let order = (whole as i128).cmp(&n);
    Some(order.then_with(|| x.partial_cmp(&whole).unwrap_or(Ordering::Equal)))
}

/// The order of two values for `<` and its kin; `Ok(None)` where none of them holds (NaN).
pub fn order(a: &Value, b: &Value, sign: &str) -> Result<Option<Ordering>> {
    use Value::*;
    match (a, b) {
        (Bool(_) | Int(_) | Float(_), Bool(_) | Int(_) | Float(_)) => Ok(numbers(a, b)),
        (Str(a) | Markup(a), Str(b) | Markup(b)) => Ok(Some(a.cmp(b))),
        (List(a), List(b)) | (Tuple(a), Tuple(b)) => {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b) {
                    return order(a, b, sign);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        (Undefined(missing), _) | (_, Undefined(missing)) => {
            Err(TemplateError::new(missing.to_string()))
        }
        (View(Side::Keys | Side::Items, _), View(Side::Keys | Side::Items, _)) => {
            Err(TemplateError::unsupported("the comparison of dict views"))
        }
        _ => Err(TemplateError::new(format!(
            "'{sign}' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        ))),
    }
}

/// `item in container`
pub fn contains(container: &Value, item: &Value, budget: &Budget) -> Result<bool> {
    use Value::*;
    match container {
        Str(s) | Markup(s) => match item.as_str() {
            Some(part) => {
                budget.steps(s.len() / 64)?;
                Ok(s.contains(part))
            }
            _ => Err(TemplateError::new(format!(
                "'in <string>' requires string as left operand, not {}",
                item.type_name()
            ))),
        },
        Dict(d) | View(Side::Keys, d) => {
            hashable(item)?;
            budget.steps(d.entries.len() / 16)?;
            Ok(d.get(item).is_some())
        }
        Range(r) => match item.as_int() {
            Some(n) => {
                let step = r.step;
                let inside = match step > 0 {
                    true => n >= r.start && n < r.stop,
                    false => n <= r.start && n > r.stop,
                };
                Ok(inside && (n - r.start) % step == 0)
            }
            _ => Ok((0..r.len()).any(|i| equal(&Int(r.get(i)), item))),
        },
        List(s) | Tuple(s) => {
            budget.steps(s.items.len() / 8)?;
            Ok(s.items.iter().any(|v| equal(v, item)))
        }
        Iter(items) => {
            // A generator is consumed up to what was found.
            let mut items = items.borrow_mut();
            Ok(items.any(|v| equal(&v, item)))
        }
        View(..) | Undefined(_) => Ok(iterate(container, budget)?.iter().any(|v| equal(v, item))),
        other => Err(TemplateError::new(format!(
            "argument of type '{}' is not iterable",
            other.type_name()
        ))),
    }
}

/// Refuses what cannot be a key.
pub fn hashable(value: &Value) -> Result<()> {
    match value {
        Value::List(_) | Value::Dict(_) | Value::View(Side::Keys | Side::Items, _) => Err(
            TemplateError::new(format!("unhashable type: '{}'", value.type_name())),
        ),
        Value::Tuple(items) => items.items.iter().try_for_each(hashable),
        Value::Object(_) | Value::Iter(_) | Value::Namespace(_) => Err(TemplateError::unsupported(
            format!("a {} as a key", value.type_name()),
        )),
        _ => Ok(()),
    }
}

/// What sorting without regard to case compares: strings in lower case, other values as they are.
pub fn ignore_case(value: Value) -> Value {
    match &value {
        Value::Str(s) => Value::str(s.to_lowercase()),
        Value::Markup(_) => Value::str(text(&value).unwrap_or_default().to_lowercase()),
        _ => value,
    }
}
