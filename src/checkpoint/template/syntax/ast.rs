//! What a template says, as a tree.

use std::sync::Arc;

/// A literal.
#[derive(Debug, Clone, PartialEq)]
pub enum Const {
    /// `none`
    None,
    /// `true`, `false`
    Bool(bool),
    /// An integer.
    Int(i128),
    /// A number with a point or an exponent.
    Float(f64),
    /// A string with its escapes resolved.
    Str(Arc<str>),
}

/// An expression and where it stands.
#[derive(Debug)]
pub struct Expr {
    /// One-based line.
    pub line: u32,
    /// What it is.
    pub kind: ExprKind,
    /// Levels below it and its own.
    pub depth: u32,
}

/// Kinds of expressions.
#[derive(Debug)]
pub enum ExprKind {
    /// A literal.
    Const(Const),
    /// A variable.
    Name(Arc<str>),
    /// `(a, b)`
    Tuple(Vec<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `{a: b}`
    Dict(Vec<(Expr, Expr)>),
    /// `a.b`
    Attr(Box<Expr>, Arc<str>),
    /// `a[b]`
    Item(Box<Expr>, Box<Expr>),
    /// `b:c:d` inside brackets.
    Slice([Option<Box<Expr>>; 3]),
    /// `a(...)`
    Call(Box<Expr>, Box<Args>),
    /// `a|name(...)`; no `a` at the head of a filter block.
    Filter(Option<Box<Expr>>, Arc<str>, Box<Args>),
    /// `a is name(...)`
    Test(Box<Expr>, Arc<str>, Box<Args>),
    /// `-a`
    Neg(Box<Expr>),
    /// `+a`
    Pos(Box<Expr>),
    /// `not a`
    Not(Box<Expr>),
    /// `a and b`
    And(Box<Expr>, Box<Expr>),
    /// `a or b`
    Or(Box<Expr>, Box<Expr>),
    /// Arithmetic.
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>),
    /// `a < b <= c`
    Compare(Box<Expr>, Vec<(Compare, Expr)>),
    /// `then if test else other`
    Cond {
        /// The condition.
        test: Box<Expr>,
        /// The value where it holds.
        then: Box<Expr>,
        /// The value where it does not; undefined without one.
        other: Option<Box<Expr>>,
    },
}

/// Operators of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `//`
    FloorDiv,
    /// `%`
    Mod,
    /// `**`
    Pow,
}

impl Binary {
    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::FloorDiv => "//",
            Self::Mod => "%",
            Self::Pow => "**",
        }
    }
}

/// Comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `in`
    In,
    /// `not in`
    NotIn,
}

/// Arguments of a call, filter or test.
#[derive(Debug, Default)]
pub struct Args {
    /// `a, b`
    pub positional: Vec<Expr>,
    /// `a=b`
    pub keywords: Vec<(Arc<str>, Expr)>,
    /// `*a`
    pub star: Option<Expr>,
    /// `**a`
    pub star_star: Option<Expr>,
}

/// What is assigned to.
#[derive(Debug)]
pub enum Target {
    /// A variable.
    Name(Arc<str>),
    /// Several, unpacked.
    Tuple(Vec<Target>),
    /// An attribute of a namespace.
    Namespace(Arc<str>, Arc<str>),
}

/// A macro, or the body of a call block.
#[derive(Debug)]
pub struct MacroDef {
    /// Its name; `caller` for a call block.
    pub name: Arc<str>,
    /// Names of the parameters.
    pub params: Vec<Arc<str>>,
    /// Defaults of the last parameters.
    pub defaults: Vec<Expr>,
    /// What it renders.
    pub body: Vec<Stmt>,
    /// Which of `varargs`, `kwargs` and `caller` the body names.
    pub uses: Uses,
}

/// Implicit parameters that a macro's body names.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uses {
    /// `varargs`
    pub varargs: bool,
    /// `kwargs`
    pub kwargs: bool,
    /// `caller`
    pub caller: bool,
}

/// A statement and where it stands.
#[derive(Debug)]
pub struct Stmt {
    /// One-based line.
    pub line: u32,
    /// What it is.
    pub kind: StmtKind,
}

/// Kinds of statements.
#[derive(Debug)]
pub enum StmtKind {
    /// Text outside of tags.
    Text(String),
    /// `{{ a }}`
    Print(Expr),
    /// `{% for %}`
    For(Arc<For>),
    /// `{% if %}` with every `elif`, and what stands under `else`.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    /// `{% set a = b %}`
    Set(Target, Expr),
    /// `{% set a %}...{% endset %}`, with the filters that its head names.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    /// `{% macro %}`
    Macro(Arc<MacroDef>),
    /// `{% call %}`: a call, and the body that it gets as `caller`.
    CallBlock(Expr, Arc<MacroDef>),
    /// `{% filter %}`
    FilterBlock(Expr, Vec<Stmt>),
    /// `{% with %}`
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    /// `{% generation %}`: the model's own words.
    Generation(Vec<Stmt>),
    /// `{% block %}`
    Block(Vec<Stmt>),
    /// `{% autoescape %}`
    Autoescape(Expr, Vec<Stmt>),
    /// A tag that needs another template.
    Loader(Arc<str>),
    /// `{% break %}`
    Break,
    /// `{% continue %}`
    Continue,
}

/// A loop.
#[derive(Debug)]
pub struct For {
    /// What takes an item.
    pub target: Target,
    /// What is iterated over.
    pub iter: Expr,
    /// Which items are taken.
    pub test: Option<Expr>,
    /// Whether `loop(...)` descends.
    pub recursive: bool,
    /// Rendered for each item.
    pub body: Vec<Stmt>,
    /// Rendered when there is none.
    pub otherwise: Vec<Stmt>,
}
