//! Text to tokens: data, tags, and what is inside tags.

use std::sync::Arc;

use super::super::chars::is_space;
use super::super::error::{Result, TemplateError};
use super::escape::unescape;

/// A token and its one-based line.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub line: u32,
    pub kind: Kind,
}

/// Kinds of tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// Operators, longer ones first.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "[", "]", "(", ")", "{", "}", ">",
    "<", "=", ".", ":", "|", ",", "~",
];

/// Cuts a template into tokens.
pub fn tokens(source: &str) -> Result<Vec<Token>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer {
        rest: &source,
        line: 1,
        line_starting: true,
        out: Vec::new(),
    };
    while lexer.root()? {}
    lexer.push(Kind::End);
    Ok(lexer.out)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    /// Whether what was taken last ended with a newline.
    line_starting: bool,
    out: Vec<Token>,
}

/// What begins where text ends.
#[derive(Clone, Copy, PartialEq)]
enum Opening {
    Variable,
    Block,
    Comment,
}

impl<'a> Lexer<'a> {
    fn push(&mut self, kind: Kind) {
        self.out.push(Token {
            line: self.line,
            kind,
        });
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(TemplateError::at(self.line, message))
    }

    /// Takes bytes, counts their lines.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.matches('\n').count() as u32;
        if !taken.is_empty() {
            self.line_starting = taken.ends_with('\n');
        }
        self.rest = rest;
        taken
    }

    fn skip_space(&mut self) {
        let len = leading_space(self.rest);
        self.take(len);
    }

    /// Text up to a tag, and the tag. False at the end.
    fn root(&mut self) -> Result<bool> {
        let found = self.rest.match_indices('{').find_map(|(at, _)| {
            let opening = match self.rest.as_bytes().get(at + 1)? {
                b'{' => Opening::Variable,
                b'%' => Opening::Block,
                b'#' => Opening::Comment,
                _ => return None,
            };
            Some((at, opening))
        });
        let Some((at, opening)) = found else {
            let text = self.rest;
            if !text.is_empty() {
                self.push(Kind::Data(text.to_string()));
            }
            self.take(text.len());
            return Ok(false);
        };
        self.data(at, opening != Opening::Variable);
        match opening {
            Opening::Variable => self.tag(Kind::VariableBegin)?,
            Opening::Comment => self.comment()?,
            Opening::Block => match raw_begin(self.rest) {
                Some(len) => {
                    self.take(len);
                    self.raw()?;
                }
                None => self.tag(Kind::BlockBegin)?,
            },
        }
        Ok(true)
    }

    /// Text before a tag, whitespace removed as the tag's sign and `lstrip_blocks` say.
    fn data(&mut self, len: usize, lstrip: bool) {
        let text = &self.rest[..len];
        let sign = self.rest.as_bytes().get(len + 2).copied();
        let start = text.rfind('\n').map_or(0, |n| n + 1);
        let kept = if sign == Some(b'-') {
            text.trim_end_matches(is_space)
        } else if sign != Some(b'+')
            && lstrip
            && (start > 0 || self.line_starting)
            && text[start..].chars().all(is_space)
        {
            &text[..start]
        } else {
            text
        };
        if !kept.is_empty() {
            self.push(Kind::Data(kept.to_string()));
        }
        let starting = self.line_starting;
        self.take(len);
        // Only the tag itself changes what counts as the start of a line.
        if len == 0 {
            self.line_starting = starting;
        }
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest[2..].find("#}").map(|n| n + 2) else {
            return self.error("missing end of comment tag");
        };
        // `{#-#}`: the sign may belong to both ends.
        let sign = self.rest[..end].chars().next_back().filter(|_| end > 2);
        self.take(end + 2);
        self.after_end(sign, true);
        Ok(())
    }

    /// The whitespace behind a tag: all of it after `-`, one newline with `trim_blocks`, none after `+`.
    fn after_end(&mut self, sign: Option<char>, trim: bool) {
        match sign {
            Some('-') => self.skip_space(),
            Some('+') => {}
            _ if trim && self.rest.starts_with('\n') => {
                self.take(1);
            }
            _ => {}
        }
    }

    fn raw(&mut self) -> Result<()> {
        let found = self
            .rest
            .match_indices("{%")
            .find_map(|(at, _)| raw_end(&self.rest[at..]).map(|(len, sign)| (at, len, sign)));
        let Some((at, len, sign)) = found else {
            return self.error("missing end of raw directive");
        };
        self.data(at, true);
        self.take(len);
        self.after_end(sign, true);
        Ok(())
    }

    /// The inside of a tag, both ends included.
    fn tag(&mut self, begin: Kind) -> Result<()> {
        let block = begin == Kind::BlockBegin;
        self.push(begin);
        let signed = matches!(self.rest.as_bytes().get(2), Some(b'-' | b'+'));
        self.take(2 + usize::from(signed));
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            if open.is_empty() && self.tag_end(block) {
                return Ok(());
            }
            if self.rest.is_empty() {
                return Ok(());
            }
            let space = leading_space(self.rest);
            if space > 0 {
                self.take(space);
                continue;
            }
            self.token(&mut open)?;
        }
    }

    fn tag_end(&mut self, block: bool) -> bool {
        let (sign, rest) = match self.rest.chars().next() {
            Some(c @ '-') => (Some(c), &self.rest[1..]),
            Some(c @ '+') if block => (Some(c), &self.rest[1..]),
            _ => (None, self.rest),
        };
        let (mark, kind) = match block {
            true => ("%}", Kind::BlockEnd),
            false => ("}}", Kind::VariableEnd),
        };
        if !rest.starts_with(mark) {
            return false;
        }
        self.push(kind);
        self.take(2 + usize::from(sign.is_some()));
        self.after_end(sign, block);
        true
    }

    fn token(&mut self, open: &mut Vec<&'static str>) -> Result<()> {
        let c = self.rest.chars().next().unwrap_or_default();
        if c.is_ascii_digit() {
            return self.number();
        }
        if c.is_alphanumeric() || c == '_' {
            let len = self
                .rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(self.rest.len());
            if c.is_numeric() {
                return self.error("invalid character in identifier");
            }
            self.push(Kind::Name(self.rest[..len].into()));
            self.take(len);
            return Ok(());
        }
        if c == '\'' || c == '"' {
            return self.string(c);
        }
        let found = OPERATORS.iter().find(|op| self.rest.starts_with(**op));
        let Some(op) = found else {
            return self.error(format!("unexpected char {c:?}"));
        };
        match *op {
            "{" => open.push("}"),
            "(" => open.push(")"),
            "[" => open.push("]"),
            "}" | ")" | "]" => match open.pop() {
                None => return self.error(format!("unexpected '{op}'")),
                Some(expected) if expected != *op => {
                    return self.error(format!("unexpected '{op}', expected '{expected}'"));
                }
                _ => {}
            },
            _ => {}
        }
        self.push(Kind::Op(op));
        self.take(op.len());
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let mut escaped = false;
        let end = self.rest[1..].char_indices().find_map(|(at, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends.then_some(at)
        });
        let Some(end) = end else {
            return self.error(format!(
                "unexpected char {quote:?}: a string without its end"
            ));
        };
        match unescape(&self.rest[1..=end]) {
            Ok(text) => self.push(Kind::Str(text)),
            Err(message) => return self.error(message),
        }
        self.take(end + 2);
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        // `a.1.2` names two items, so what follows a point is no float.
        let after_point = matches!(
            self.out.last(),
            Some(Token {
                kind: Kind::Op("."),
                ..
            })
        );
        if let Some(len) = float_len(self.rest).filter(|_| !after_point) {
            let text = self.rest[..len].replace('_', "");
            let Ok(value) = text.parse() else {
                return self.error(format!("{text} is not a number"));
            };
            self.push(Kind::Float(value));
            self.take(len);
            return Ok(());
        }
        let (len, digits, radix) = integer(self.rest);
        let Ok(value) = i128::from_str_radix(&digits, radix) else {
            return self.error(format!(
                "{digits}: integers beyond 128 bits are not supported"
            ));
        };
        self.push(Kind::Int(value));
        self.take(len);
        Ok(())
    }
}

fn leading_space(text: &str) -> usize {
    text.find(|c| !is_space(c)).unwrap_or(text.len())
}

/// The rest of a text behind a `{%` with any sign and a word, with space around the word.
fn word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let text = text.strip_prefix("{%")?;
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let text = text.trim_start_matches(is_space).strip_prefix(word)?;
    Some(text.trim_start_matches(is_space))
}

/// Length of `{% raw %}`, with the whitespace behind it where that is stripped.
fn raw_begin(text: &str) -> Option<usize> {
    let rest = word(text, "raw")?;
    let rest = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => rest.strip_prefix("%}")?,
    };
    Some(text.len() - rest.len())
}

/// Length of `{% endraw %}` and the sign at its end.
fn raw_end(text: &str) -> Option<(usize, Option<char>)> {
    let rest = word(text, "endraw")?;
    let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    let rest = rest.strip_prefix("%}")?;
    Some((text.len() - rest.len(), sign))
}

/// Length of digits that may be separated by single underscores, at least one digit.
fn digits_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut len = 0;
    while len < bytes.len() {
        let digit = bytes[len].is_ascii_digit();
        let joins = bytes[len] == b'_'
            && len > 0
            && bytes[len - 1] != b'_'
            && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
        if !(digit || joins) {
            break;
        }
        len += 1;
    }
    (len > 0 && bytes[0].is_ascii_digit()).then_some(len)
}

/// Length of a number with a point or an exponent.
fn float_len(text: &str) -> Option<usize> {
    let whole = digits_len(text)?;
    let mut len = whole;
    if let Some(fraction) = text[len..].strip_prefix('.').and_then(digits_len) {
        len += 1 + fraction;
    }
    if let Some(exponent) = text[len..].strip_prefix(['e', 'E']) {
        let sign = usize::from(exponent.starts_with(['+', '-']));
        if let Some(digits) = digits_len(&exponent[sign..]) {
            len += 1 + sign + digits;
        }
    }
    (len > whole).then_some(len)
}

/// Length, digits and radix of an integer.
fn integer(text: &str) -> (usize, String, u32) {
    let radix = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => 16,
        [b'0', b'o' | b'O', ..] => 8,
        [b'0', b'b' | b'B', ..] => 2,
        _ => 10,
    };
    if radix != 10 {
        let bytes = text.as_bytes();
        let mut len = 2;
        let is_digit = |at: usize| bytes.get(at).is_some_and(|b| (*b as char).is_digit(radix));
        while is_digit(len) || (bytes.get(len) == Some(&b'_') && is_digit(len + 1)) {
            len += 1;
        }
        if len > 2 {
            return (len, text[2..len].replace('_', ""), radix);
        }
    }
    let len = digits_len(text).unwrap_or(1);
    // A number that begins with 0 is as many zeros as there are.
    let len = match text.starts_with('0') {
        true => text[..len].find(|c| c != '0' && c != '_').unwrap_or(len),
        false => len,
    };
    let len = text[..len].trim_end_matches('_').len();
    (len, text[..len].replace('_', ""), 10)
}
