//! Evaluates expressions.

use std::cmp::Ordering;
use std::rc::Rc;

use super::super::error::{Result, TemplateError};
use super::super::syntax::{Args, Compare, Const, Expr, ExprKind};
use super::super::value::{
    Value, binary, contains, equal, iterate, negative, order, positive, text,
};
use super::Run;
use super::arguments::Call;
use super::objects::Function;
use super::scope::Scope;

/// Functions of the environment.
const FUNCTIONS: [&str; 8] = [
    "range",
    "dict",
    "namespace",
    "cycler",
    "joiner",
    "lipsum",
    "raise_exception",
    "strftime_now",
];

impl Run {
    /// The value of an expression.
    pub fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.budget.steps(1)?;
        self.budget
            .level(|| self.eval_kind(expr, scope))
            .map_err(|e| e.or_line(expr.line))
    }

    fn eval_kind(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match &expr.kind {
            ExprKind::Const(value) => Ok(constant(value)),
            ExprKind::Name(name) => self.name(name, scope),
            ExprKind::Tuple(items) => Value::tuple(self.eval_all(items, scope)?),
            ExprKind::List(items) => Value::list(self.eval_all(items, scope)?),
            ExprKind::Dict(pairs) => {
                let pairs = pairs
                    .iter()
                    .map(|(k, v)| Ok((self.eval(k, scope)?, self.eval(v, scope)?)));
                Value::dict(pairs.collect::<Result<_>>()?, &self.budget)
            }
            ExprKind::Attr(of, name) => {
                let of = self.eval(of, scope)?;
                self.attribute(&of, name)
            }
            ExprKind::Item(of, key) => self.eval_item(of, key, scope),
            ExprKind::Slice(_) => Err(TemplateError::unsupported("a slice within a tuple")),
            ExprKind::Call(..) => self.call_with(expr, None, scope),
            ExprKind::Filter(of, name, args) => {
                let of = match of {
                    Some(of) => self.eval(of, scope)?,
                    None => return Err(TemplateError::new("expected something to filter")),
                };
                let call = self.arguments(args, scope)?;
                self.filter(name, of, call)
            }
            ExprKind::Test(of, name, args) => {
                let of = self.eval(of, scope)?;
                let call = self.arguments(args, scope)?;
                self.check(name, &of, &call).map(Value::Bool)
            }
            ExprKind::Neg(of) => negative(&self.eval(of, scope)?),
            ExprKind::Pos(of) => positive(&self.eval(of, scope)?),
            ExprKind::Not(of) => Ok(Value::Bool(!self.eval(of, scope)?.truth())),
            ExprKind::And(a, b) => match self.eval(a, scope)? {
                a if a.truth() => self.eval(b, scope),
                a => Ok(a),
            },
            ExprKind::Or(a, b) => match self.eval(a, scope)? {
                a if a.truth() => Ok(a),
                _ => self.eval(b, scope),
            },
            ExprKind::Binary(op, a, b) => {
                let (a, b) = (self.eval(a, scope)?, self.eval(b, scope)?);
                binary(*op, &a, &b, &self.budget)
            }
            ExprKind::Concat(items) => {
                let mut out = String::new();
                for item in items {
                    let piece = text(&self.eval(item, scope)?)?;
                    self.budget.bytes(piece.len())?;
                    out.push_str(&piece);
                }
                Ok(Value::str(out))
            }
            ExprKind::Compare(first, rest) => self.compare(first, rest, scope),
            ExprKind::Cond { test, then, other } => {
                match (self.eval(test, scope)?.truth(), other) {
                    (true, _) => self.eval(then, scope),
                    (false, Some(other)) => self.eval(other, scope),
                    (false, None) => Ok(Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )),
                }
            }
        }
    }

    fn eval_all(&self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        self.budget.bytes(items.len() * size_of::<Value>())?;
        items.iter().map(|e| self.eval(e, scope)).collect()
    }

    fn eval_item(&self, of: &Expr, key: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let of = self.eval(of, scope)?;
        let ExprKind::Slice(parts) = &key.kind else {
            let key = self.eval(key, scope)?;
            return self.item(&of, &key);
        };
        let mut bounds = [None, None, None];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            if let Some(part) = part {
                *bound = Some(self.eval(part, scope)?);
            }
        }
        self.slice(&of, &bounds)
    }

    fn name(&self, name: &str, scope: &Rc<Scope>) -> Result<Value> {
        if let Some(value) = scope.get(name) {
            return Ok(value);
        }
        if let Some(function) = FUNCTIONS.iter().find(|f| **f == name) {
            return Ok(Value::object(Function(function)));
        }
        match name {
            "self" | "super" => Err(TemplateError::unsupported(format!("'{name}'"))),
            _ => Ok(Value::undefined(format!("'{name}' is undefined"))),
        }
    }

    fn compare(&self, first: &Expr, rest: &[(Compare, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut left = self.eval(first, scope)?;
        for (op, right) in rest {
            let right = self.eval(right, scope)?;
            if !self.holds(*op, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// One comparison.
    pub fn holds(&self, op: Compare, a: &Value, b: &Value) -> Result<bool> {
        let ordered = |sign: &str, wanted: &[Ordering]| {
            order(a, b, sign).map(|o| o.is_some_and(|o| wanted.contains(&o)))
        };
        match op {
            Compare::Eq => Ok(equal(a, b)),
            Compare::Ne => Ok(!equal(a, b)),
            Compare::Lt => ordered("<", &[Ordering::Less]),
            Compare::Le => ordered("<=", &[Ordering::Less, Ordering::Equal]),
            Compare::Gt => ordered(">", &[Ordering::Greater]),
            Compare::Ge => ordered(">=", &[Ordering::Greater, Ordering::Equal]),
            Compare::In => contains(b, a, &self.budget),
            Compare::NotIn => contains(b, a, &self.budget).map(|found| !found),
        }
    }

    /// Evaluates arguments.
    pub fn arguments(&self, args: &Args, scope: &Rc<Scope>) -> Result<Call> {
        let mut call = Call {
            positional: self.eval_all(&args.positional, scope)?,
            keywords: Vec::new(),
        };
        if let Some(star) = &args.star {
            let items = self.eval(star, scope)?;
            call.positional.extend(iterate(&items, &self.budget)?);
        }
        for (name, value) in &args.keywords {
            if call.keywords.iter().any(|(n, _)| n == name) {
                return Err(TemplateError::new(format!(
                    "keyword argument repeated: {name}"
                )));
            }
            call.keywords.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(star_star) = &args.star_star {
            let Value::Dict(dict) = self.eval(star_star, scope)? else {
                return Err(TemplateError::new("argument after ** must be a mapping"));
            };
            for (key, value) in &dict.entries {
                let Some(name) = key.as_str() else {
                    return Err(TemplateError::new("keywords must be strings"));
                };
                if call.keywords.iter().any(|(n, _)| **n == *name) {
                    return Err(TemplateError::new(format!(
                        "got multiple values for keyword argument '{name}'"
                    )));
                }
                call.keywords.push((name.into(), value.clone()));
            }
        }
        Ok(call)
    }
}

fn constant(value: &Const) -> Value {
    match value {
        Const::None => Value::None,
        Const::Bool(b) => Value::Bool(*b),
        Const::Int(n) => Value::Int(*n),
        Const::Float(x) => Value::Float(*x),
        Const::Str(s) => Value::str(s),
    }
}
