//! Jinja templates as transformers renders them.
//!
//! What a chat template prints becomes the prompt, so it has to be the text of jinja2 under Python to the character: what a list, a
//! dict or a float prints, what `%` does to a string, which scope a `set` writes to. This room is that language: its grammar
//! ([`syntax`]), Python's values ([`value`]), and the rendering with the filters, tests, methods and functions of transformers'
//! environment ([`run`]). What it does not have is an error that names it. A template cannot read files, change what it is given,
//! or take more steps, bytes and levels than [`value::Budget`] has.

mod chars;
mod error;
mod run;
mod syntax;
mod value;

use serde_json::Value;

pub use error::{Result, TemplateError};

/// Bytes that a template may have. Those of the field have up to 20 kB.
const MAX_SOURCE: usize = 1 << 20;
/// Stack of the thread that parses and renders. [`value::Budget`] and the parser bound how deep it goes.
const STACK: usize = 128 << 20;

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    body: Vec<syntax::Stmt>,
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::new(format!(
                "the template has {} bytes, expected at most {MAX_SOURCE}",
                source.len()
            )));
        }
        on_own_stack(|| syntax::parse(source)).map(|body| Self { body })
    }

    /// Renders it with variables, a later one winning over an earlier one of its name.
    pub fn render(&self, variables: &[(&str, Value)]) -> Result<String> {
        on_own_stack(|| {
            let latest = variables.iter().rev().map(|(name, value)| (*name, value));
            run::render(&self.body, latest)
        })
    }
}

fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|e| TemplateError::new(format!("no thread to render in: {e}")))?;
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
