//! Renders a parsed template as jinja2's sandbox of transformers does.

mod arguments;
mod attributes;
mod calls;
mod checks;
mod clock;
mod expressions;
mod filters;
mod loops;
mod methods;
mod objects;
mod scope;
mod strings;

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::error::{Result, TemplateError};
use super::syntax::{Expr, ExprKind, Stmt, StmtKind, Target};
use super::value::{Budget, Namespace, Value, from_json, iterate, text};
use objects::Macro;
use scope::Scope;

/// How a list of statements ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// One rendering.
struct Run {
    budget: Budget,
    /// The scope of the template's own variables.
    root: Rc<Scope>,
    /// Scopes that a macro sees, and namespaces: what may hold itself.
    scopes: RefCell<Vec<Weak<Scope>>>,
    namespaces: RefCell<Vec<Weak<Namespace>>>,
}

/// Renders statements with variables.
pub fn render<'a>(
    body: &[Stmt],
    variables: impl Iterator<Item = (&'a str, &'a serde_json::Value)>,
) -> Result<String> {
    let budget = Budget::default();
    let vars = variables
        .map(|(name, value)| Ok((name.into(), from_json(value, &budget)?)))
        .collect::<Result<_>>()?;
    let context = Scope::outermost(vars);
    let root = Scope::within(&context);
    let run = Run {
        budget,
        root: root.clone(),
        scopes: RefCell::default(),
        namespaces: RefCell::default(),
    };
    let mut out = String::new();
    let done = run.body(body, &root, &mut out);
    run.forget();
    done.map(|_| out)
}

impl Run {
    /// Breaks circles of references.
    fn forget(&self) {
        self.root.clear();
        for scope in self.scopes.borrow().iter().filter_map(Weak::upgrade) {
            scope.clear();
        }
        for namespace in self.namespaces.borrow().iter().filter_map(Weak::upgrade) {
            let attrs = std::mem::take(&mut *namespace.attrs.borrow_mut());
            drop(attrs);
        }
    }

    fn body(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        for stmt in body {
            let flow = self
                .budget
                .level(|| self.statement(stmt, scope, out))
                .map_err(|e| e.or_line(stmt.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn print(&self, text: &str, out: &mut String) -> Result<()> {
        self.budget.bytes(text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn statement(&self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        self.budget.steps(1)?;
        match &stmt.kind {
            StmtKind::Text(data) => self.print(data, out)?,
            StmtKind::Print(expr) => {
                let value = self.eval(expr, scope)?;
                match &value {
                    Value::Str(s) | Value::Markup(s) => self.print(s, out)?,
                    other => self.print(&text(other)?, out)?,
                }
            }
            StmtKind::For(def) => {
                let items = self.eval(&def.iter, scope)?;
                return self.for_loop(def, &items, scope, 0, out);
            }
            StmtKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.truth() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            StmtKind::Set(target, expr) => {
                let value = self.eval(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filters, body) => {
                let inner = Scope::within(scope);
                let mut captured = String::new();
                let flow = self.body(body, &inner, &mut captured)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = match filters {
                    Some(filters) => self.filtered(filters, Value::str(captured), &inner)?,
                    None => Value::str(captured),
                };
                self.assign(target, value, scope)?;
            }
            StmtKind::Macro(def) => {
                let made = self.make_macro(def, scope);
                scope.set(&def.name, made);
            }
            StmtKind::CallBlock(call, def) => {
                let caller = self.make_macro(def, scope);
                let value = self.call_with(call, Some(caller), scope)?;
                self.print(&text(&value)?, out)?;
            }
            StmtKind::FilterBlock(filters, body) => {
                let inner = Scope::within(scope);
                let mut captured = String::new();
                let flow = self.body(body, &inner, &mut captured)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(filters, Value::str(captured), &inner)?;
                self.print(&text(&value)?, out)?;
            }
            StmtKind::With(values, body) => {
                let inner = Scope::within(scope);
                for (target, expr) in values {
                    let value = self.eval(expr, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner, out);
            }
            StmtKind::Generation(body) => {
                // The body is a call block's: it has implicit parameters of its own.
                let inner = Scope::within(scope);
                inner.set("caller", Value::undefined("No caller defined"));
                inner.set("varargs", Value::tuple(Vec::new())?);
                inner.set("kwargs", Value::dict(Vec::new(), &self.budget)?);
                self.body(body, &inner, out)?;
            }
            StmtKind::Block(body) => {
                self.body(body, &Scope::within(&self.root), out)?;
            }
            StmtKind::Autoescape(on, body) => {
                if self.eval(on, scope)?.truth() {
                    return Err(TemplateError::unsupported("autoescape"));
                }
                return self.body(body, &Scope::within(scope), out);
            }
            StmtKind::Loader(tag) => {
                return Err(TemplateError::new(format!(
                    "'{tag}': there is no loader for other templates"
                )));
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn make_macro(
        &self,
        def: &std::sync::Arc<super::syntax::MacroDef>,
        scope: &Rc<Scope>,
    ) -> Value {
        self.scopes.borrow_mut().push(Rc::downgrade(scope));
        Value::object(Macro {
            def: def.clone(),
            scope: scope.clone(),
        })
    }

    fn make_namespace(&self, attrs: Vec<(Rc<str>, Value)>) -> Result<Value> {
        let made = Rc::new(Namespace::new(attrs)?);
        self.namespaces.borrow_mut().push(Rc::downgrade(&made));
        Ok(Value::Namespace(made))
    }

    /// Applies a chain of filters that lacks its first operand.
    fn filtered(&self, chain: &Expr, value: Value, scope: &Rc<Scope>) -> Result<Value> {
        let ExprKind::Filter(inner, name, args) = &chain.kind else {
            return Err(TemplateError::at(chain.line, "expected a filter"));
        };
        let value = match inner {
            Some(inner) => self.filtered(inner, value, scope)?,
            None => value,
        };
        let call = self.arguments(args, scope)?;
        self.filter(name, value, call)
            .map_err(|e| e.or_line(chain.line))
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Namespace(name, attr) => match scope.get(name) {
                Some(Value::Namespace(ns)) => ns.set(attr, value)?,
                _ => {
                    return Err(TemplateError::new(format!(
                        "cannot assign attribute on non-namespace object '{name}'"
                    )));
                }
            },
            Target::Tuple(targets) => {
                if let Value::Undefined(missing) = &value
                    && !targets.is_empty()
                    && missing.is_empty()
                {
                    return Err(TemplateError::new("cannot unpack an undefined value"));
                }
                let items = iterate(&value, &self.budget)?;
                let (expected, got) = (targets.len(), items.len());
                if got != expected {
                    let what = match got < expected {
                        true => {
                            format!("not enough values to unpack (expected {expected}, got {got})")
                        }
                        false => format!("too many values to unpack (expected {expected})"),
                    };
                    return Err(TemplateError::new(what));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }
}
