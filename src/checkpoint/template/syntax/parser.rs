//! Statements.

use std::sync::Arc;

use super::super::error::{Result, TemplateError};
use super::ast::{Expr, ExprKind, For, MacroDef, Stmt, StmtKind, Target, Uses};
use super::lexer::{Kind, Token, tokens};

/// Levels of tags and brackets within each other.
const MAX_NESTING: u32 = 150;

/// Parses a template.
pub fn parse(source: &str) -> Result<Vec<Stmt>> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        nesting: 0,
        loops: 0,
        uses: Uses::default(),
    };
    let (body, _) = parser.body(&[])?;
    Ok(body)
}

pub(super) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nesting: u32,
    /// Loops around what is parsed, within the innermost macro.
    loops: u32,
    /// Implicit parameters named so far in the innermost macro.
    uses: Uses,
}

impl Parser {
    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(TemplateError::at(self.line(), message))
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).map_or(0, |t| t.line)
    }

    pub(super) fn kind(&self) -> &Kind {
        self.tokens.get(self.at).map_or(&Kind::End, |t| &t.kind)
    }

    fn next_kind(&self) -> &Kind {
        self.tokens.get(self.at + 1).map_or(&Kind::End, |t| &t.kind)
    }

    pub(super) fn advance(&mut self) {
        if let Kind::Name(name) = self.kind() {
            match &**name {
                "varargs" => self.uses.varargs = true,
                "kwargs" => self.uses.kwargs = true,
                "caller" => self.uses.caller = true,
                _ => {}
            }
        }
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.kind(), Kind::Op(found) if *found == op)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), Kind::Name(found) if **found == *name)
    }

    pub(super) fn next_is_name(&self, name: &str) -> bool {
        matches!(self.next_kind(), Kind::Name(found) if **found == *name)
    }

    pub(super) fn next_is_op(&self, op: &str) -> bool {
        matches!(self.next_kind(), Kind::Op(found) if *found == op)
    }

    fn skip_if(&mut self, found: bool) -> bool {
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        self.skip_if(self.is_op(op))
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        self.skip_if(self.is_name(name))
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Result<()> {
        match self.skip_op(op) {
            true => Ok(()),
            false => self.fail(format!("expected '{op}', got {}", self.found())),
        }
    }

    fn expect_word(&mut self, name: &str) -> Result<()> {
        match self.skip_name(name) {
            true => Ok(()),
            false => self.fail(format!("expected '{name}', got {}", self.found())),
        }
    }

    pub(super) fn expect_name(&mut self) -> Result<Arc<str>> {
        let Kind::Name(name) = self.kind().clone() else {
            return self.fail(format!("expected a name, got {}", self.found()));
        };
        self.advance();
        Ok(name)
    }

    fn expect_kind(&mut self, kind: &Kind, what: &str) -> Result<()> {
        match self.skip_if(self.kind() == kind) {
            true => Ok(()),
            false => self.fail(format!("expected {what}, got {}", self.found())),
        }
    }

    fn end_tag(&mut self) -> Result<()> {
        self.expect_kind(&Kind::BlockEnd, "the end of the tag")
    }

    /// The token at hand, for messages.
    pub(super) fn found(&self) -> String {
        match self.kind() {
            Kind::Data(_) => "template data".into(),
            Kind::VariableBegin => "'{{'".into(),
            Kind::VariableEnd => "'}}'".into(),
            Kind::BlockBegin => "'{%'".into(),
            Kind::BlockEnd => "'%}'".into(),
            Kind::Name(name) => format!("'{name}'"),
            Kind::Str(text) => format!("the string {text:?}"),
            Kind::Int(n) => n.to_string(),
            Kind::Float(x) => x.to_string(),
            Kind::Op(op) => format!("'{op}'"),
            Kind::End => "the end of the template".into(),
        }
    }

    /// Parses one level further in.
    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting >= MAX_NESTING {
            return self.fail("tags or brackets are nested too deeply");
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// Statements up to one of the tags in `ends`, whose name is returned and taken. Without ends: up to the end of the text.
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, Arc<str>)> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.kind().clone() {
                Kind::Data(text) => {
                    self.advance();
                    let kind = StmtKind::Text(text);
                    body.push(Stmt { line, kind });
                }
                Kind::VariableBegin => {
                    self.advance();
                    let kind = StmtKind::Print(self.tuple(Self::expression, false, None)?);
                    self.expect_kind(&Kind::VariableEnd, "'}}'")?;
                    body.push(Stmt { line, kind });
                }
                Kind::BlockBegin => {
                    self.advance();
                    if let Kind::Name(name) = self.kind().clone()
                        && ends.contains(&&*name)
                    {
                        self.advance();
                        return Ok((body, name));
                    }
                    let kind = self.nested(|p| p.statement(ends))?;
                    self.end_tag()?;
                    body.push(Stmt { line, kind });
                }
                Kind::End if ends.is_empty() => return Ok((body, "".into())),
                Kind::End => {
                    return self.fail(format!(
                        "unexpected end of the template, expected {{% {} %}}",
                        ends.join(" %} or {% ")
                    ));
                }
                _ => return self.fail(format!("unexpected {}", self.found())),
            }
        }
    }

    /// The rest of a tag that opens a body, and the body up to one of `ends`.
    fn block(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, Arc<str>)> {
        self.skip_op(":");
        self.end_tag()?;
        self.body(ends)
    }

    fn statement(&mut self, ends: &[&str]) -> Result<StmtKind> {
        let name = match self.kind() {
            Kind::Name(name) => name.clone(),
            _ => return self.fail(format!("expected the name of a tag, got {}", self.found())),
        };
        let line = self.line();
        self.advance();
        match &*name {
            "for" => self.for_loop(),
            "if" => self.if_chain(),
            "set" => self.set(),
            "macro" => self.macro_def(),
            "call" => self.call_block(),
            "filter" => {
                let Some(filter) = self.filter_chain(true)? else {
                    return self.fail("expected a filter");
                };
                let (body, _) = self.block(&["endfilter"])?;
                Ok(StmtKind::FilterBlock(filter, body))
            }
            "with" => self.with(),
            "generation" => {
                let (body, _) = self.outside_loops(|p| p.block(&["endgeneration"]))?;
                Ok(StmtKind::Generation(body))
            }
            "print" => {
                let mut items = vec![self.expression()?];
                while self.skip_op(",") {
                    items.push(self.expression()?);
                }
                self.print_of(line, items)
            }
            "block" => self.named_block(),
            "autoescape" => {
                let on = self.expression()?;
                let (body, _) = self.block(&["endautoescape"])?;
                Ok(StmtKind::Autoescape(on, body))
            }
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.kind(), Kind::BlockEnd | Kind::End) {
                    self.advance();
                }
                Ok(StmtKind::Loader(name))
            }
            "break" | "continue" if self.loops == 0 => Err(TemplateError::at(
                line,
                format!("'{name}' outside of a loop"),
            )),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            _ => {
                let looking = match ends {
                    [] => String::new(),
                    ends => format!(", expected {{% {} %}}", ends.join(" %} or {% ")),
                };
                Err(TemplateError::at(
                    line,
                    format!("encountered unknown tag '{name}'{looking}"),
                ))
            }
        }
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let target = self.target(false, Some("in"))?;
        if names_loop(&target) {
            return self.fail("can't assign to special loop variable in for-loop");
        }
        self.expect_word("in")?;
        let iter = self.tuple(Self::or, false, Some("recursive"))?;
        let test = match self.skip_name("if") {
            true => Some(self.expression()?),
            false => None,
        };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let parsed = self.block(&["endfor", "else"]);
        self.loops -= 1;
        let (body, end) = parsed?;
        let otherwise = match &*end {
            "else" => self.block(&["endfor"])?.0,
            _ => Vec::new(),
        };
        Ok(StmtKind::For(Arc::new(For {
            target,
            iter,
            test,
            recursive,
            body,
            otherwise,
        })))
    }

    fn if_chain(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(Self::or, false, None)?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match &*end {
                "elif" => {}
                "else" => return Ok(StmtKind::If(branches, self.block(&["endif"])?.0)),
                _ => return Ok(StmtKind::If(branches, Vec::new())),
            }
        }
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(true, None)?;
        if self.skip_op("=") {
            let value = self.tuple(Self::expression, false, None)?;
            return Ok(StmtKind::Set(target, value));
        }
        let filters = self.filter_chain(false)?;
        let (body, _) = self.block(&["endset"])?;
        Ok(StmtKind::SetBlock(target, filters, body))
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while *self.kind() != Kind::BlockEnd {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false, None)?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        let (body, _) = self.block(&["endwith"])?;
        Ok(StmtKind::With(values, body))
    }

    fn named_block(&mut self) -> Result<StmtKind> {
        let name = self.expect_name()?;
        self.skip_name("scoped");
        self.skip_name("required");
        let (body, _) = self.outside_loops(|p| p.block(&["endblock"]))?;
        self.skip_name(&name);
        Ok(StmtKind::Block(body))
    }

    /// Parameters and defaults, `(` and `)` included.
    fn signature(&mut self) -> Result<(Vec<Arc<str>>, Vec<Expr>)> {
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            params.push(self.expect_name()?);
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
        }
        self.expect_op(")")?;
        Ok((params, defaults))
    }

    fn macro_def(&mut self) -> Result<StmtKind> {
        let name = self.expect_name()?;
        let (params, defaults) = self.signature()?;
        let def = self.definition(name, params, defaults, "endmacro")?;
        Ok(StmtKind::Macro(def))
    }

    fn call_block(&mut self) -> Result<StmtKind> {
        let (params, defaults) = match self.is_op("(") {
            true => self.signature()?,
            false => (Vec::new(), Vec::new()),
        };
        let call = self.expression()?;
        if !matches!(call.kind, ExprKind::Call(..)) {
            return self.fail("expected a call");
        }
        let def = self.definition("caller".into(), params, defaults, "endcall")?;
        Ok(StmtKind::CallBlock(call, def))
    }

    fn definition(
        &mut self,
        name: Arc<str>,
        params: Vec<Arc<str>>,
        defaults: Vec<Expr>,
        end: &str,
    ) -> Result<Arc<MacroDef>> {
        let outer = std::mem::take(&mut self.uses);
        let parsed = self.outside_loops(|p| p.block(&[end]));
        let uses = self.uses;
        self.uses = Uses {
            varargs: outer.varargs || uses.varargs,
            kwargs: outer.kwargs || uses.kwargs,
            caller: outer.caller || uses.caller,
        };
        let (body, _) = parsed?;
        Ok(Arc::new(MacroDef {
            name,
            params,
            defaults,
            body,
            uses,
        }))
    }

    /// Parses a body that is a function of its own, which `break` cannot leave.
    fn outside_loops<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let loops = std::mem::take(&mut self.loops);
        let parsed = parse(self);
        self.loops = loops;
        parsed
    }
}

fn names_loop(target: &Target) -> bool {
    match target {
        Target::Name(name) | Target::Namespace(name, _) => **name == *"loop",
        Target::Tuple(targets) => targets.iter().any(names_loop),
    }
}
