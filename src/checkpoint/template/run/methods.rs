//! Methods of dicts, lists, numbers and the engine's own objects.

use super::super::error::{Result, TemplateError};
use super::super::value::{Value, View, contains, equal, hashable, iterate};
use super::Run;
use super::arguments::{Call, integer_or};
use super::objects::{Cycler, Loop};

impl Run {
    /// Calls a method.
    pub fn method(&self, of: &Value, name: &str, call: &Call) -> Result<Value> {
        match of {
            Value::Str(s) => self.str_method(s, name, call),
            Value::Dict(dict) => match name {
                "get" => {
                    let [key, default] = call.bind("get", ["", ""], 1)?;
                    let key = key.unwrap_or(Value::None);
                    hashable(&key)?;
                    self.budget.steps(dict.entries.len() / 16)?;
                    let found = dict.get(&key).cloned();
                    Ok(found.or(default).unwrap_or(Value::None))
                }
                "fromkeys" => Err(TemplateError::unsupported("'.fromkeys' of a dict")),
                _ => {
                    call.none(name)?;
                    Ok(match name {
                        "items" => Value::View(View::Items, dict.clone()),
                        "keys" => Value::View(View::Keys, dict.clone()),
                        "values" => Value::View(View::Values, dict.clone()),
                        // What cannot be changed need not be copied.
                        _ => of.clone(),
                    })
                }
            },
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => self.seq_method(of, name, call),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => number_method(of, name, call),
            Value::View(..) if name == "isdisjoint" => {
                let [other] = call.bind(name, [""], 1)?;
                for item in iterate(&other.unwrap_or(Value::None), &self.budget)? {
                    if contains(of, &item, &self.budget)? {
                        return Ok(Value::Bool(false));
                    }
                }
                Ok(Value::Bool(true))
            }
            Value::Object(object) => {
                let any = object.as_any();
                if let Some(state) = any.downcast_ref::<Loop>() {
                    return self.loop_method(state, name, call);
                }
                if let Some(cycler) = any.downcast_ref::<Cycler>() {
                    call.none(name)?;
                    let current = cycler.at.get();
                    return Ok(match name {
                        "next" => {
                            cycler.at.set((current + 1) % cycler.items.len());
                            cycler.items[current].clone()
                        }
                        _ => {
                            cycler.at.set(0);
                            Value::None
                        }
                    });
                }
                Err(unsupported(of, name))
            }
            _ => Err(unsupported(of, name)),
        }
    }

    fn seq_method(&self, of: &Value, name: &str, call: &Call) -> Result<Value> {
        match name {
            "copy" => {
                call.none(name)?;
                Ok(of.clone())
            }
            "count" => {
                let [wanted] = call.bind(name, [""], 1)?;
                let wanted = wanted.unwrap_or(Value::None);
                let items = iterate(of, &self.budget)?;
                Ok(Value::count(
                    items.iter().filter(|v| equal(v, &wanted)).count(),
                ))
            }
            _ => {
                let [wanted, start, stop] = call.bind(name, ["", "", ""], 1)?;
                let wanted = wanted.unwrap_or(Value::None);
                let items = iterate(of, &self.budget)?;
                let place = |n: i128| {
                    let n = if n < 0 {
                        n.saturating_add(items.len() as i128)
                    } else {
                        n
                    };
                    n.clamp(0, items.len() as i128) as usize
                };
                let start = place(integer_or(&start, 0, name)?);
                let stop = place(integer_or(&stop, i128::MAX, name)?);
                let found = (start..stop).find(|n| equal(&items[*n], &wanted));
                found.map(Value::count).ok_or_else(|| {
                    TemplateError::new(format!("the value is not in the {}", of.type_name()))
                })
            }
        }
    }
}

fn unsupported(of: &Value, name: &str) -> TemplateError {
    TemplateError::unsupported(format!("'.{name}' of a {}", of.type_name()))
}

fn number_method(of: &Value, name: &str, call: &Call) -> Result<Value> {
    match (name, of, of.as_int()) {
        ("is_integer", Value::Float(x), _) => {
            call.none(name)?;
            Ok(Value::Bool(x.is_finite() && x.fract() == 0.0))
        }
        // Python has it from 3.12 on.
        ("is_integer", _, _) => Err(unsupported(of, name)),
        ("bit_length", _, Some(n)) => {
            call.none(name)?;
            Ok(Value::Int(i128::from(
                128 - n.unsigned_abs().leading_zeros(),
            )))
        }
        ("bit_count", _, Some(n)) => {
            call.none(name)?;
            Ok(Value::Int(i128::from(n.unsigned_abs().count_ones())))
        }
        ("conjugate", Value::Float(_), _) => Ok(of.clone()),
        ("conjugate", _, Some(n)) => Ok(Value::Int(n)),
        _ => Err(unsupported(of, name)),
    }
}
