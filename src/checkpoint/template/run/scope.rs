//! Variables and who sees them.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::value::Value;

/// Variables of a template, macro, loop turn or block, and the scope around it.
pub struct Scope {
    vars: RefCell<Vec<(Rc<str>, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    /// The outermost scope: what the caller hands in.
    pub fn outermost(vars: Vec<(Rc<str>, Value)>) -> Rc<Self> {
        Rc::new(Self {
            vars: RefCell::new(vars),
            parent: None,
        })
    }

    /// A scope within another.
    pub fn within(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self {
            vars: RefCell::default(),
            parent: Some(parent.clone()),
        })
    }

    /// The value of a name here or further out.
    pub fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            let vars = scope.vars.borrow();
            if let Some((_, value)) = vars.iter().find(|(n, _)| **n == *name) {
                return Some(value.clone());
            }
            drop(vars);
            scope = scope.parent.as_deref()?;
        }
    }

    /// Sets a name here.
    pub fn set(&self, name: &str, value: Value) {
        let mut vars = self.vars.borrow_mut();
        match vars.iter_mut().find(|(n, _)| **n == *name) {
            Some(found) => found.1 = value,
            None => vars.push((name.into(), value)),
        }
    }

    /// Forgets all variables, so that a macro and the scope that it sees do not keep each other.
    pub fn clear(&self) {
        let vars = std::mem::take(&mut *self.vars.borrow_mut());
        drop(vars);
    }
}
