//! Expressions, in the order in which Jinja's own parser binds them.

use std::sync::Arc;

use super::super::error::Result;
use super::ast::{Args, Binary, Compare, Const, Expr, ExprKind, StmtKind, Target};
use super::lexer::Kind;
use super::parser::Parser;

/// Levels that an expression may have. Templates of the field stay below 40.
const MAX_DEPTH: u32 = 400;

fn deepest<'a>(parts: impl IntoIterator<Item = &'a Expr>) -> u32 {
    parts.into_iter().map(|e| e.depth).max().unwrap_or(0)
}

impl Args {
    fn depth(&self) -> u32 {
        let keywords = self.keywords.iter().map(|(_, e)| e);
        let rest = self.star.iter().chain(&self.star_star);
        deepest(self.positional.iter().chain(keywords).chain(rest))
    }
}

impl Parser {
    fn node(&self, line: u32, kind: ExprKind) -> Result<Expr> {
        let below = match &kind {
            ExprKind::Const(_) | ExprKind::Name(_) => 0,
            ExprKind::Tuple(items) | ExprKind::List(items) | ExprKind::Concat(items) => {
                deepest(items)
            }
            ExprKind::Dict(pairs) => deepest(pairs.iter().flat_map(|(k, v)| [k, v])),
            ExprKind::Attr(a, _) | ExprKind::Neg(a) | ExprKind::Pos(a) | ExprKind::Not(a) => {
                a.depth
            }
            ExprKind::Item(a, b)
            | ExprKind::And(a, b)
            | ExprKind::Or(a, b)
            | ExprKind::Binary(_, a, b) => a.depth.max(b.depth),
            ExprKind::Slice(parts) => deepest(parts.iter().flatten().map(AsRef::as_ref)),
            ExprKind::Call(a, args) | ExprKind::Test(a, _, args) => a.depth.max(args.depth()),
            ExprKind::Filter(a, _, args) => args.depth().max(a.as_ref().map_or(0, |a| a.depth)),
            ExprKind::Compare(a, rest) => a.depth.max(deepest(rest.iter().map(|(_, e)| e))),
            ExprKind::Cond { test, then, other } => {
                let other = other.as_ref().map_or(0, |e| e.depth);
                test.depth.max(then.depth).max(other)
            }
        };
        match below < MAX_DEPTH {
            true => Ok(Expr {
                line,
                kind,
                depth: below + 1,
            }),
            false => self.fail("the expression is nested too deeply"),
        }
    }

    /// A whole expression, conditional ones included.
    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::condition)
    }

    /// Expressions printed one after the other.
    pub(super) fn print_of(&self, line: u32, items: Vec<Expr>) -> Result<StmtKind> {
        self.node(line, ExprKind::Concat(items))
            .map(StmtKind::Print)
    }

    fn condition(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut then = self.or()?;
        while self.skip_name("if") {
            let test = Box::new(self.or()?);
            let other = match self.skip_name("else") {
                true => Some(Box::new(self.expression()?)),
                false => None,
            };
            let kind = ExprKind::Cond {
                test,
                then: Box::new(then),
                other,
            };
            then = self.node(line, kind)?;
        }
        Ok(then)
    }

    /// An expression without a condition at its end.
    pub(super) fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            left = self.node(line, ExprKind::Or(Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            left = self.node(line, ExprKind::And(Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        match self.skip_name("not") {
            true => {
                let inner = self.nested(Self::not)?;
                self.node(line, ExprKind::Not(Box::new(inner)))
            }
            false => self.compare(),
        }
    }

    fn compare(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.kind() {
                Kind::Op("==") => Compare::Eq,
                Kind::Op("!=") => Compare::Ne,
                Kind::Op("<") => Compare::Lt,
                Kind::Op("<=") => Compare::Le,
                Kind::Op(">") => Compare::Gt,
                Kind::Op(">=") => Compare::Ge,
                Kind::Name(n) if **n == *"in" => Compare::In,
                Kind::Name(n) if **n == *"not" && self.next_is_name("in") => {
                    self.advance();
                    Compare::NotIn
                }
                _ => break,
            };
            self.advance();
            rest.push((op, self.sum()?));
        }
        match rest.is_empty() {
            true => Ok(first),
            false => self.node(line, ExprKind::Compare(Box::new(first), rest)),
        }
    }

    fn sum(&mut self) -> Result<Expr> {
        let ops = [("+", Binary::Add), ("-", Binary::Sub)];
        self.left_to_right(&ops, Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op("~") {
            items.push(self.product()?);
        }
        self.node(line, ExprKind::Concat(items))
    }

    fn product(&mut self) -> Result<Expr> {
        let ops = [
            ("*", Binary::Mul),
            ("/", Binary::Div),
            ("//", Binary::FloorDiv),
            ("%", Binary::Mod),
        ];
        self.left_to_right(&ops, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        self.left_to_right(&[("**", Binary::Pow)], |p| p.unary(true))
    }

    fn left_to_right(
        &mut self,
        ops: &[(&'static str, Binary)],
        operand: impl Fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Some((sign, op)) = ops.iter().find(|(sign, _)| self.is_op(sign)) {
            self.skip_op(sign);
            let right = operand(self)?;
            left = self.node(line, ExprKind::Binary(*op, Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Result<Expr> {
        let line = self.line();
        let inner = if self.skip_op("-") {
            let inner = self.nested(|p| p.unary(false))?;
            self.node(line, ExprKind::Neg(Box::new(inner)))?
        } else if self.skip_op("+") {
            let inner = self.nested(|p| p.unary(false))?;
            self.node(line, ExprKind::Pos(Box::new(inner)))?
        } else {
            self.primary()?
        };
        let node = self.postfix(inner)?;
        match filters {
            true => self.filters_and_tests(node),
            false => Ok(node),
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.kind().clone() {
            Kind::Name(name) => {
                self.advance();
                match &*name {
                    "true" | "True" => ExprKind::Const(Const::Bool(true)),
                    "false" | "False" => ExprKind::Const(Const::Bool(false)),
                    "none" | "None" => ExprKind::Const(Const::None),
                    _ => ExprKind::Name(name),
                }
            }
            Kind::Str(mut text) => {
                self.advance();
                while let Kind::Str(more) = self.kind() {
                    text.push_str(more);
                    self.advance();
                }
                ExprKind::Const(Const::Str(text.into()))
            }
            Kind::Int(n) => {
                self.advance();
                ExprKind::Const(Const::Int(n))
            }
            Kind::Float(x) => {
                self.advance();
                ExprKind::Const(Const::Float(x))
            }
            Kind::Op("(") => {
                self.advance();
                let inner = self.tuple(Self::expression, true, None)?;
                self.expect_op(")")?;
                return Ok(inner);
            }
            Kind::Op("[") => {
                self.advance();
                ExprKind::List(self.items("]", Self::expression)?)
            }
            Kind::Op("{") => {
                self.advance();
                ExprKind::Dict(self.items("}", |p| {
                    let key = p.expression()?;
                    p.expect_op(":")?;
                    Ok((key, p.expression()?))
                })?)
            }
            _ => return self.fail(format!("unexpected {}", self.found())),
        };
        self.node(line, kind)
    }

    /// Items up to a closing bracket, a comma at the end allowed.
    fn items<T>(
        &mut self,
        close: &'static str,
        item: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_op(close) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect_op(close)?;
        Ok(items)
    }

    /// One expression, or several with commas as a tuple. `end` is a further name that ends it.
    pub(super) fn tuple(
        &mut self,
        item: impl Fn(&mut Self) -> Result<Expr>,
        parentheses: bool,
        end: Option<&str>,
    ) -> Result<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            let ends = matches!(
                self.kind(),
                Kind::VariableEnd | Kind::BlockEnd | Kind::Op(")")
            );
            if ends || end.is_some_and(|name| self.is_name(name)) {
                break;
            }
            items.push(item(self)?);
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(single) if !is_tuple => Ok(single),
            None if !parentheses => {
                self.fail(format!("expected an expression, got {}", self.found()))
            }
            last => {
                items.extend(last);
                self.node(line, ExprKind::Tuple(items))
            }
        }
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            node = match self.kind() {
                Kind::Op("." | "[") => self.subscript(node)?,
                Kind::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    fn filters_and_tests(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            node = match self.kind() {
                Kind::Op("|") => self.filter(Some(node))?,
                Kind::Name(n) if **n == *"is" => self.test(node)?,
                Kind::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        if self.skip_op(".") {
            let kind = match self.kind().clone() {
                Kind::Name(name) => ExprKind::Attr(Box::new(node), name),
                Kind::Int(n) => {
                    let index = self.node(line, ExprKind::Const(Const::Int(n)))?;
                    ExprKind::Item(Box::new(node), Box::new(index))
                }
                _ => return self.fail(format!("expected name or number, got {}", self.found())),
            };
            self.advance();
            return self.node(line, kind);
        }
        self.expect_op("[")?;
        let mut args = Vec::new();
        while !self.is_op("]") {
            if !args.is_empty() {
                self.expect_op(",")?;
            }
            args.push(self.subscribed()?);
        }
        self.expect_op("]")?;
        let arg = match args.len() {
            1 => args.remove(0),
            _ => self.node(line, ExprKind::Tuple(args))?,
        };
        self.node(line, ExprKind::Item(Box::new(node), Box::new(arg)))
    }

    fn subscribed(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut parts = [None, None, None];
        if !self.skip_op(":") {
            let first = self.expression()?;
            if !self.skip_op(":") {
                return Ok(first);
            }
            parts[0] = Some(Box::new(first));
        }
        let ends = |p: &Self| p.is_op("]") || p.is_op(",");
        if !self.is_op(":") && !ends(self) {
            parts[1] = Some(Box::new(self.expression()?));
        }
        if self.skip_op(":") && !ends(self) {
            parts[2] = Some(Box::new(self.expression()?));
        }
        self.node(line, ExprKind::Slice(parts))
    }

    fn call(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        let args = Box::new(self.args()?);
        self.node(line, ExprKind::Call(Box::new(node), args))
    }

    fn args(&mut self) -> Result<Args> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            let before_stars = args.star.is_none() && args.star_star.is_none();
            let allowed = if self.skip_op("*") {
                args.star = Some(self.expression()?);
                before_stars
            } else if self.is_op("**") {
                self.skip_op("**");
                let allowed = args.star_star.is_none();
                args.star_star = Some(self.expression()?);
                allowed
            } else if let (Kind::Name(name), true) = (self.kind().clone(), self.next_is_op("=")) {
                self.advance();
                self.advance();
                args.keywords.push((name, self.expression()?));
                args.star_star.is_none()
            } else {
                args.positional.push(self.expression()?);
                before_stars && args.keywords.is_empty()
            };
            if !allowed {
                return self.fail("invalid syntax for function call expression");
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn optional_args(&mut self) -> Result<Box<Args>> {
        match self.is_op("(") {
            true => Ok(Box::new(self.args()?)),
            false => Ok(Box::default()),
        }
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }

    fn filter(&mut self, node: Option<Expr>) -> Result<Expr> {
        self.expect_op("|")?;
        self.filter_name(node)
    }

    fn filter_name(&mut self, node: Option<Expr>) -> Result<Expr> {
        let line = self.line();
        let name = self.dotted_name()?;
        let args = self.optional_args()?;
        self.node(line, ExprKind::Filter(node.map(Box::new), name, args))
    }

    /// Filters at the head of a block, without what they are applied to. `inline`: the first has no `|` before it.
    pub(super) fn filter_chain(&mut self, inline: bool) -> Result<Option<Expr>> {
        let mut node = match inline {
            true => Some(self.filter_name(None)?),
            false => None,
        };
        while self.is_op("|") {
            node = Some(self.filter(node)?);
        }
        Ok(node)
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        self.advance();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let bare = match self.kind() {
            Kind::Name(n) => !matches!(&**n, "else" | "or" | "and"),
            Kind::Str(_) | Kind::Int(_) | Kind::Float(_) | Kind::Op("[" | "{") => true,
            _ => false,
        };
        let args = match bare {
            true if self.is_name("is") => {
                return self.fail("you cannot chain multiple tests with is");
            }
            true => {
                let arg = self.primary()?;
                let positional = vec![self.postfix(arg)?];
                Box::new(Args {
                    positional,
                    ..Args::default()
                })
            }
            false => self.optional_args()?,
        };
        let node = self.node(line, ExprKind::Test(Box::new(node), name, args))?;
        match negated {
            true => self.node(line, ExprKind::Not(Box::new(node))),
            false => Ok(node),
        }
    }

    /// What an assignment or a loop writes to: names, nested tuples of them, with `namespaces` also `ns.name`.
    pub(super) fn target(&mut self, namespaces: bool, end: Option<&str>) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect_op(",")?;
            }
            let ends = matches!(
                self.kind(),
                Kind::VariableEnd | Kind::BlockEnd | Kind::Op(")" | "=")
            );
            if (ends && is_tuple) || end.is_some_and(|name| self.is_name(name)) {
                break;
            }
            targets.push(self.single_target(namespaces)?);
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(single) if !is_tuple => Ok(single),
            None => self.fail(format!("expected a name, got {}", self.found())),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn single_target(&mut self, namespaces: bool) -> Result<Target> {
        if self.skip_op("(") {
            let inner = self.nested(|p| p.target(namespaces, None))?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let name = self.expect_name()?;
        if namespaces && self.skip_op(".") {
            return Ok(Target::Namespace(name, self.expect_name()?));
        }
        match &*name {
            "true" | "false" | "none" | "True" | "False" | "None" => {
                self.fail(format!("can't assign to {name}"))
            }
            _ => Ok(Target::Name(name)),
        }
    }
}
