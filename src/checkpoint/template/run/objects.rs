//! Values that only the engine makes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::super::syntax::{For, MacroDef};
use super::super::value::{Object, Value};
use super::scope::Scope;

/// A function of the environment.
pub struct Function(pub &'static str);

impl Object for Function {
    fn type_name(&self) -> &'static str {
        "function"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A method of a value.
pub struct Method {
    /// Whose method it is.
    pub receiver: Value,
    /// Its name.
    pub name: Rc<str>,
}

impl Object for Method {
    fn type_name(&self) -> &'static str {
        "builtin_function_or_method"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A macro and the scope that it sees.
pub struct Macro {
    /// What it is.
    pub def: Arc<MacroDef>,
    /// Where it was defined.
    pub scope: Rc<Scope>,
}

impl Object for Macro {
    fn type_name(&self) -> &'static str {
        "Macro"
    }
    fn text(&self) -> Option<String> {
        Some(format!("<Macro '{}'>", self.def.name))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `cycler(...)`
pub struct Cycler {
    /// What it cycles through.
    pub items: Vec<Value>,
    /// Which one is current.
    pub at: Cell<usize>,
}

impl Object for Cycler {
    fn type_name(&self) -> &'static str {
        "Cycler"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `joiner(...)`: empty the first time, the separator from then on.
pub struct Joiner {
    /// The separator.
    pub separator: Value,
    /// Whether it was called.
    pub used: Cell<bool>,
}

impl Object for Joiner {
    fn type_name(&self) -> &'static str {
        "Joiner"
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `loop` within a loop.
pub struct Loop {
    /// The loop's text, and the scope around it.
    pub def: Arc<For>,
    /// The scope around the loop.
    pub scope: Rc<Scope>,
    /// Loops of the same text around this one.
    pub depth0: usize,
    /// Items not taken yet; the loop's condition is asked when they are.
    pub rest: RefCell<std::vec::IntoIter<Value>>,
    /// Turns begun.
    pub index: Cell<usize>,
    /// The item before the current one, the current one, and the next where it was looked at.
    pub before: RefCell<Option<Value>>,
    /// The current item.
    pub current: RefCell<Option<Value>>,
    /// The next item, where it was looked at.
    pub after: RefCell<Option<Value>>,
    /// What `changed` was given last.
    pub changed: RefCell<Option<Vec<Value>>>,
}

impl Object for Loop {
    fn type_name(&self) -> &'static str {
        "LoopContext"
    }
    fn len(&self) -> Option<usize> {
        // Without a condition every item counts.
        let rest = self.rest.borrow().len() + usize::from(self.after.borrow().is_some());
        self.def.test.is_none().then_some(self.index.get() + rest)
    }
    fn text(&self) -> Option<String> {
        Some(format!(
            "<LoopContext {}/{}>",
            self.index.get(),
            self.len()?
        ))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
