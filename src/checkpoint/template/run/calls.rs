//! Calls: functions of the environment, macros, methods.

use std::cell::Cell;
use std::rc::Rc;
use std::time::SystemTime;

use super::super::error::{Result, TemplateError};
use super::super::syntax::{Expr, ExprKind};
use super::super::value::{Range, Value, iterate, text};
use super::Run;
use super::arguments::{Call, integer, string};
use super::clock;
use super::objects::{Cycler, Function, Joiner, Loop, Macro, Method};
use super::scope::Scope;

/// The longest range that the sandbox makes.
const MAX_RANGE: usize = 100_000;

impl Run {
    /// Evaluates a call, with the body of a call block as `caller`.
    pub fn call_with(
        &self,
        expr: &Expr,
        caller: Option<Value>,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let ExprKind::Call(callee, args) = &expr.kind else {
            return Err(TemplateError::at(expr.line, "expected a call"));
        };
        let callee = self.eval(callee, scope)?;
        let mut call = self.arguments(args, scope)?;
        if let Some(caller) = caller {
            call.keywords.push(("caller".into(), caller));
        }
        self.call(&callee, call).map_err(|e| e.or_line(expr.line))
    }

    /// Calls a value.
    pub fn call(&self, callee: &Value, call: Call) -> Result<Value> {
        let object = match callee {
            Value::Object(object) => object.as_any(),
            Value::Undefined(missing) => return Err(TemplateError::new(missing.to_string())),
            other => {
                return Err(TemplateError::new(format!(
                    "'{}' object is not callable",
                    other.type_name()
                )));
            }
        };
        if let Some(function) = object.downcast_ref::<Function>() {
            return self.function(function.0, call);
        }
        if let Some(method) = object.downcast_ref::<Method>() {
            let value = self.method(&method.receiver, &method.name, &call)?;
            if let Value::Str(s) = &value {
                self.budget.bytes(s.len())?;
            }
            return Ok(value);
        }
        if let Some(called) = object.downcast_ref::<Macro>() {
            return self.call_macro(called, call);
        }
        if let Some(state) = object.downcast_ref::<Loop>() {
            return self.descend(state, &call);
        }
        if let Some(joiner) = object.downcast_ref::<Joiner>() {
            call.none("joiner")?;
            return Ok(match joiner.used.replace(true) {
                true => joiner.separator.clone(),
                false => Value::str(""),
            });
        }
        Err(TemplateError::new(format!(
            "'{}' object is not callable",
            callee.type_name()
        )))
    }

    fn function(&self, name: &'static str, call: Call) -> Result<Value> {
        match name {
            "range" => range(&call),
            "dict" => self.make_dict(&call),
            "fromkeys" => {
                let [keys, value] = call.bind("fromkeys", ["", ""], 1)?;
                let value = value.unwrap_or(Value::None);
                let keys = iterate(&keys.unwrap_or(Value::None), &self.budget)?;
                let pairs = keys.into_iter().map(|k| (k, value.clone())).collect();
                Value::dict(pairs, &self.budget)
            }
            "namespace" => {
                let Value::Dict(dict) = self.make_dict(&call)? else {
                    return Err(TemplateError::new("namespace() needs a dict"));
                };
                let attrs = dict.entries.iter().map(|(k, v)| match k.as_str() {
                    Some(name) => Ok((name.into(), v.clone())),
                    None => Err(TemplateError::unsupported(
                        "a namespace attribute whose name is no string",
                    )),
                });
                self.make_namespace(attrs.collect::<Result<_>>()?)
            }
            "cycler" => match call.positional.is_empty() || !call.keywords.is_empty() {
                true => Err(TemplateError::new("cycler() needs items to cycle through")),
                false => Ok(Value::object(Cycler {
                    items: call.positional,
                    at: Cell::new(0),
                })),
            },
            "joiner" => {
                let [separator] = call.bind("joiner", ["sep"], 0)?;
                Ok(Value::object(Joiner {
                    separator: separator.unwrap_or_else(|| Value::str(", ")),
                    used: Cell::new(false),
                }))
            }
            "raise_exception" => {
                let [message] = call.bind(name, ["message"], 1)?;
                Err(TemplateError::new(text(&message.unwrap_or(Value::None))?))
            }
            "strftime_now" => {
                let [format] = call.bind(name, ["format"], 1)?;
                let format = format.unwrap_or(Value::None);
                clock::strftime(SystemTime::now(), string(&format, name)?)
                    .map(Value::str)
                    .map_err(TemplateError::new)
            }
            other => Err(TemplateError::unsupported(format!("{other}()"))),
        }
    }

    fn make_dict(&self, call: &Call) -> Result<Value> {
        let mut pairs = Vec::new();
        match call.positional.as_slice() {
            [] => {}
            [Value::Dict(dict)] => pairs.clone_from(&dict.entries),
            [other] => {
                for pair in iterate(other, &self.budget)? {
                    let mut pair = iterate(&pair, &self.budget)?;
                    match (pair.pop(), pair.pop(), pair.is_empty()) {
                        (Some(value), Some(key), true) => pairs.push((key, value)),
                        _ => {
                            return Err(TemplateError::new(
                                "dict() needs a dict or a sequence of pairs",
                            ));
                        }
                    }
                }
            }
            more => {
                return Err(TemplateError::new(format!(
                    "dict expected at most 1 argument, got {}",
                    more.len()
                )));
            }
        }
        let named = call.keywords.iter();
        pairs.extend(named.map(|(name, value)| (Value::str(name), value.clone())));
        Value::dict(pairs, &self.budget)
    }

    fn call_macro(&self, called: &Macro, mut call: Call) -> Result<Value> {
        let def = &called.def;
        let fail = |what: String| Err(TemplateError::new(format!("macro '{}' {what}", def.name)));
        let scope = Scope::within(&called.scope);
        let count = def.params.len();
        let extra = call.positional.split_off(count.min(call.positional.len()));
        let given = call.positional.len();
        let mut positional = std::mem::take(&mut call.positional).into_iter();
        let mut missing = Vec::new();
        let mut own_caller = false;
        for (n, param) in def.params.iter().enumerate() {
            own_caller |= **param == *"caller";
            let value = match n < given {
                true => positional.next(),
                false => call.take_keyword(param),
            };
            match value {
                Some(value) => scope.set(param, value),
                None => missing.push(n),
            }
        }
        if def.uses.caller && !own_caller {
            let caller = call.take_keyword("caller");
            scope.set(
                "caller",
                caller.unwrap_or_else(|| Value::undefined("No caller defined")),
            );
        }
        if def.uses.kwargs {
            let pairs = call.keywords.drain(..).map(|(n, v)| (Value::str(n), v));
            scope.set("kwargs", Value::dict(pairs.collect(), &self.budget)?);
        } else if let Some((name, _)) = call.keywords.first() {
            return match &**name {
                "caller" => fail("was invoked with a call block, but does not use 'caller'".into()),
                name => fail(format!("takes no keyword argument '{name}'")),
            };
        }
        if def.uses.varargs {
            scope.set("varargs", Value::tuple(extra)?);
        } else if !extra.is_empty() {
            return fail(format!("takes not more than {count} argument(s)"));
        }
        // Defaults see the parameters before them.
        for n in missing {
            let without = count - def.defaults.len();
            let value = match n.checked_sub(without) {
                Some(at) => self.eval(&def.defaults[at], &scope)?,
                None => Value::undefined(format!("parameter '{}' was not provided", def.params[n])),
            };
            scope.set(&def.params[n], value);
        }
        let mut out = String::new();
        self.body(&def.body, &scope, &mut out)?;
        Ok(Value::str(out))
    }
}

fn range(call: &Call) -> Result<Value> {
    let [first, second, step] = call.bind("range", ["", "", ""], 1)?;
    let first = integer(&first.unwrap_or(Value::None), "range")?;
    let (start, stop) = match second {
        None => (0, first),
        Some(stop) => (first, integer(&stop, "range")?),
    };
    let step = match step {
        None => 1,
        Some(step) => integer(&step, "range")?,
    };
    if step == 0 {
        return Err(TemplateError::new("range() arg 3 must not be zero"));
    }
    let range = Range { start, stop, step };
    match range.len() <= MAX_RANGE {
        true => Ok(Value::Range(range)),
        false => Err(TemplateError::new(format!(
            "range too big: the sandbox blocks ranges larger than {MAX_RANGE}"
        ))),
    }
}
