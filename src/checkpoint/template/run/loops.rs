//! Loops and what they tell of themselves.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::super::error::{Result, TemplateError};
use super::super::syntax::For;
use super::super::value::{Value, equal, iterate};
use super::arguments::Call;
use super::objects::Loop;
use super::scope::Scope;
use super::{Flow, Run};

impl Run {
    /// Renders a loop. Breaks and continues of its body end here; those of its `else` are the caller's.
    pub fn for_loop(
        &self,
        def: &Arc<For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth0: usize,
        out: &mut String,
    ) -> Result<Flow> {
        let items = iterate(items, &self.budget)?;
        let state = Rc::new(Loop {
            def: def.clone(),
            scope: scope.clone(),
            depth0,
            rest: RefCell::new(items.into_iter()),
            index: Cell::new(0),
            before: RefCell::default(),
            current: RefCell::default(),
            after: RefCell::default(),
            changed: RefCell::default(),
        });
        let mut completed = false;
        loop {
            let looked_at = state.after.borrow_mut().take();
            let item = match looked_at {
                Some(item) => Some(item),
                None => self.next_item(&state)?,
            };
            let Some(item) = item else { break };
            self.budget.steps(1)?;
            state.index.set(state.index.get() + 1);
            let previous = state.current.borrow_mut().replace(item.clone());
            *state.before.borrow_mut() = previous;
            let inner = Scope::within(scope);
            inner.set("loop", Value::Object(state.clone()));
            self.assign(&def.target, item, &inner)?;
            match self.body(&def.body, &inner, out)? {
                Flow::Next => completed = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        // `else` is for loops of which no turn reached its end.
        match completed {
            false => self.body(&def.otherwise, scope, out),
            true => Ok(Flow::Next),
        }
    }

    /// The next item for which the loop's condition holds.
    fn next_item(&self, state: &Loop) -> Result<Option<Value>> {
        loop {
            let next = state.rest.borrow_mut().next();
            let (Some(item), Some(test)) = (&next, &state.def.test) else {
                return Ok(next);
            };
            self.budget.steps(1)?;
            let inner = Scope::within(&state.scope);
            self.assign(&state.def.target, item.clone(), &inner)?;
            if self.eval(test, &inner)?.truth() {
                return Ok(next);
            }
        }
    }

    fn look_ahead(&self, state: &Loop) -> Result<Option<Value>> {
        let looked_at = state.after.borrow().clone();
        if looked_at.is_some() {
            return Ok(looked_at);
        }
        let next = self.next_item(state)?;
        *state.after.borrow_mut() = next.clone();
        Ok(next)
    }

    fn loop_length(&self, state: &Loop) -> Result<usize> {
        let ahead = usize::from(state.after.borrow().is_some());
        if state.def.test.is_some() {
            // Asks the condition for all that is left.
            let mut left = Vec::new();
            while let Some(item) = self.next_item(state)? {
                left.push(item);
            }
            let count = left.len();
            *state.rest.borrow_mut() = left.into_iter();
            return Ok(state.index.get() + ahead + count);
        }
        Ok(state.index.get() + ahead + state.rest.borrow().len())
    }

    /// An attribute of `loop`.
    pub fn loop_attribute(&self, state: &Loop, name: &str) -> Result<Option<Value>> {
        let index = state.index.get();
        Ok(Some(match name {
            "index" => Value::count(index),
            "index0" => Value::count(index - 1),
            "first" => Value::Bool(index == 1),
            "last" => Value::Bool(self.look_ahead(state)?.is_none()),
            "length" => Value::count(self.loop_length(state)?),
            "revindex" => Value::count(self.loop_length(state)? + 1 - index),
            "revindex0" => Value::count(self.loop_length(state)? - index),
            "depth" => Value::count(state.depth0 + 1),
            "depth0" => Value::count(state.depth0),
            "previtem" => match &*state.before.borrow() {
                Some(item) if index > 1 => item.clone(),
                _ => Value::undefined("there is no previous item"),
            },
            "nextitem" => self
                .look_ahead(state)?
                .unwrap_or_else(|| Value::undefined("there is no next item")),
            _ => return Ok(None),
        }))
    }

    /// A method of `loop`.
    pub fn loop_method(&self, state: &Loop, name: &str, call: &Call) -> Result<Value> {
        match name {
            "cycle" => match call.positional.len() {
                0 => Err(TemplateError::new("no items for cycling given")),
                n => Ok(call.positional[(state.index.get() - 1) % n].clone()),
            },
            _ => {
                let mut last = state.changed.borrow_mut();
                let same = last.as_ref().is_some_and(|last| {
                    last.len() == call.positional.len()
                        && last.iter().zip(&call.positional).all(|(a, b)| equal(a, b))
                });
                *last = Some(call.positional.clone());
                Ok(Value::Bool(!same))
            }
        }
    }

    /// `loop(items)`: the loop's text for items further down.
    pub fn descend(&self, state: &Loop, call: &Call) -> Result<Value> {
        if !state.def.recursive {
            return Err(TemplateError::new(
                "the loop must have the 'recursive' marker to be called recursively",
            ));
        }
        let [items] = call.bind("loop", ["iterable"], 1)?;
        let mut out = String::new();
        let items = items.unwrap_or(Value::None);
        self.for_loop(&state.def, &items, &state.scope, state.depth0 + 1, &mut out)?;
        Ok(Value::str(out))
    }
}
