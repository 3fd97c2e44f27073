//! Decodes ids one at a time, to the same text as all at once.
//!
//! What an id adds to a text depends on its neighbours: on the first token where a decoder strips a space, on the whole run of byte
//! tokens that it stands in, on the rest of a character. So a window of ids is decoded, and what is new in it handed out. The window
//! begins before what was handed out already, and moves on only at a place where the text before it no longer matters.

use super::super::error::{Error, Result};
use super::composition::Composition;
use super::tokenizer::Tokenizer;

/// What `ByteLevel` writes for bytes that are not UTF-8, whole or not.
const REPLACEMENT: char = '\u{FFFD}';

impl Tokenizer {
    /// A decoder that takes one id at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }
}

/// Decodes ids one at a time and hands out text that no later id changes.
///
/// What is handed out, joined, is what [`Tokenizer::decode`] gives for all ids, whatever they are. Text is held back while it may
/// still change: a character until it is whole, a run of byte tokens until it ends or is certainly broken.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids of the window; special ones and those that are no token have no text and are not in it.
    window: Vec<u32>,
    /// Ids at its beginning that only keep the rest company.
    settled: usize,
    /// Bytes of the window's text that were handed out.
    printed: usize,
    /// Bytes of the byte tokens at its end.
    run: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            window: Vec::new(),
            settled: 0,
            printed: 0,
            run: Vec::new(),
        }
    }

    /// Takes an id; returns the text that is certain with it, empty for a special token or an incomplete character.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let token = self.tokenizer.token(id);
        let Some(token) = token.filter(|t| !self.tokenizer.is_skipped(t)) else {
            return Ok(String::new());
        };
        self.window.push(id);
        match self.tokenizer.composition() {
            Composition::Whole => return Ok(String::new()),
            Composition::ByteRuns => match byte_of(&token) {
                Some(byte) => {
                    self.run.push(byte);
                    let broken =
                        std::str::from_utf8(&self.run).is_err_and(|e| e.error_len().is_some());
                    if !broken {
                        return Ok(String::new());
                    }
                }
                None => self.run.clear(),
            },
            Composition::Tokens | Composition::Bytes => {}
        }
        let text = self.tokenizer.decode(&self.window)?;
        let incomplete =
            self.tokenizer.composition() == Composition::Bytes && text.ends_with(REPLACEMENT);
        let end = match incomplete {
            true => text.len() - REPLACEMENT.len_utf8(),
            false => text.len(),
        };
        let new = self.hand_out(&text, end)?;
        if !incomplete && self.run.is_empty() {
            self.move_on()?;
        }
        Ok(new)
    }

    /// What is left at the end, incomplete bytes as U+FFFD.
    pub fn finish(mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window)?;
        self.hand_out(&text, text.len())
    }

    fn hand_out(&mut self, text: &str, end: usize) -> Result<String> {
        let end = end.max(self.printed);
        let new = text
            .get(self.printed..end)
            .ok_or_else(|| Error::Tokenizer {
                path: self.tokenizer.path().to_path_buf(),
                message: "the decoder takes text back that an earlier token gave".into(),
            })?;
        self.printed = end;
        Ok(new.to_string())
    }

    /// Lets the window begin where its settled part ended, if what follows has text of its own: then nothing that a decoder strips
    /// off the beginning reaches the ids to come.
    fn move_on(&mut self) -> Result<()> {
        let rest = &self.window[self.settled..];
        let text = self.tokenizer.decode(rest)?;
        if !text.is_empty() {
            self.window.drain(..self.settled);
            self.settled = self.window.len();
            self.printed = text.len();
        }
        Ok(())
    }
}

/// The byte of a token like `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    match digits.len() {
        2 => u8::from_str_radix(digits, 16).ok(),
        _ => None,
    }
}
