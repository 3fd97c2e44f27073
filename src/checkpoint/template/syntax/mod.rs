//! The grammar of Jinja 3.1 as transformers sets it up: `trim_blocks`, `lstrip_blocks`, `break` and `continue`, and the
//! `generation` tag.

mod ast;
mod escape;
mod expressions;
mod lexer;
mod parser;

pub use ast::*;
pub use parser::parse;
