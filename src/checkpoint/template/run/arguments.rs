//! Arguments of a call and how they meet parameters.

use std::sync::Arc;

use super::super::error::{Result, TemplateError};
use super::super::value::Value;

/// Arguments of a call, filter or test, evaluated.
#[derive(Clone, Default)]
pub struct Call {
    /// By position.
    pub positional: Vec<Value>,
    /// By name.
    pub keywords: Vec<(Arc<str>, Value)>,
}

impl Call {
    /// Puts the arguments to parameters, the first `required` of which must be there. A parameter named `""` takes no keyword.
    pub fn bind<const N: usize>(
        &self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        let fail = |what: String| Err(TemplateError::new(format!("{function}() {what}")));
        if self.positional.len() > N {
            return fail(format!(
                "takes at most {N} arguments ({} given)",
                self.positional.len()
            ));
        }
        let mut bound = std::array::from_fn(|i| self.positional.get(i).cloned());
        for (name, value) in &self.keywords {
            match names.iter().position(|n| **n == **name && !n.is_empty()) {
                None => return fail(format!("got an unexpected keyword argument '{name}'")),
                Some(at) if bound[at].is_some() => {
                    return fail(format!("got multiple values for argument '{name}'"));
                }
                Some(at) => bound[at] = Some(value.clone()),
            }
        }
        match bound.iter().take(required).position(Option::is_none) {
            Some(at) => fail(format!("missing required argument {}", at + 1)),
            None => Ok(bound),
        }
    }

    /// Refuses arguments where there are none to give.
    pub fn none(&self, function: &str) -> Result<()> {
        self.bind::<0>(function, [], 0).map(|_| ())
    }

    /// Takes a keyword argument out.
    pub fn take_keyword(&mut self, name: &str) -> Option<Value> {
        let at = self.keywords.iter().position(|(n, _)| **n == *name)?;
        Some(self.keywords.remove(at).1)
    }
}

/// The string that an argument must be.
pub fn string<'a>(value: &'a Value, function: &str) -> Result<&'a str> {
    match value {
        Value::Str(s) => Ok(s),
        Value::Undefined(missing) => Err(TemplateError::new(missing.to_string())),
        Value::Markup(_) => Err(TemplateError::unsupported(format!(
            "{function}() with an escaped or safe string"
        ))),
        other => Err(TemplateError::new(format!(
            "{function}() argument must be str, not {}",
            other.type_name()
        ))),
    }
}

/// The integer that an argument must be.
pub fn integer(value: &Value, function: &str) -> Result<i128> {
    match (value, value.as_int()) {
        (_, Some(n)) => Ok(n),
        (Value::Undefined(missing), _) => Err(TemplateError::new(missing.to_string())),
        (other, _) => Err(TemplateError::new(format!(
            "{function}(): '{}' object cannot be interpreted as an integer",
            other.type_name()
        ))),
    }
}

/// An integer argument with a default; `None` counts as absent.
pub fn integer_or(value: &Option<Value>, default: i128, function: &str) -> Result<i128> {
    match value {
        None => Ok(default),
        Some(value) => integer(value, function),
    }
}

/// A size that an argument asks for: negative counts as 0.
pub fn size(value: &Value, function: &str) -> Result<usize> {
    let n = integer(value, function)?.max(0);
    usize::try_from(n).map_err(|_| TemplateError::new(format!("{function}(): {n} is too large")))
}
