//! Thoughts and answers in what a model says.
//!
//! Gemma 4 thinks between `<|channel>` and `<channel|>`; the channel's name, `thought`, is its first line. Everything else is the
//! answer, and only the answer belongs into the history of a chat. The marks are found by their ids, before the text is decoded.

use super::super::error::Result;
use super::stream::StreamDecoder;
use super::tokenizer::Tokenizer;

/// The mark that opens a channel.
const OPEN: &str = "<|channel>";
/// The mark that closes it.
const CLOSE: &str = "<channel|>";
/// The name of the channel for thoughts.
const THOUGHT: &str = "thought";

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// What the model thinks.
    Thought(String),
    /// What it answers.
    Answer(String),
}

/// A whole reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// What the model answers.
    pub answer: String,
    /// What it thinks, channel by channel, without the channels' names. An empty channel is left out.
    pub thoughts: Vec<String>,
}

/// Takes the ids of a reply one at a time and tells thoughts from the answer.
///
/// A mark within a channel that is open, or one that closes none, means nothing. A channel that is cut off is a thought up to its end.
/// With a tokenizer that has no such marks everything is answer.
#[derive(Debug)]
pub struct ReplyDecoder<'a> {
    tokenizer: &'a Tokenizer,
    marks: Option<(u32, u32)>,
    stream: StreamDecoder<'a>,
    /// The start of a thought while it may be the channel's name, `None` in an answer and behind the name.
    name: Option<String>,
    thinking: bool,
    reply: Reply,
}

impl<'a> ReplyDecoder<'a> {
    /// A decoder for the reply to a prompt. A channel that the prompt leaves open goes on in the reply.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let marks = tokenizer.id(OPEN).zip(tokenizer.id(CLOSE));
        let last = marks.and_then(|(open, close)| {
            let at = prompt.iter().rposition(|id| *id == open || *id == close)?;
            // One in an earlier turn is followed by the marks of turns.
            let goes_on = !prompt[at + 1..].iter().any(|id| tokenizer.is_special(*id));
            (prompt[at] == open && goes_on).then_some(at)
        });
        let mut decoder = Self {
            tokenizer,
            marks,
            stream: tokenizer.stream(),
            name: None,
            thinking: last.is_some(),
            reply: Reply::default(),
        };
        if let Some(at) = last {
            decoder.reply.thoughts.push(String::new());
            // The name may be in the prompt, whole or in part.
            let said = tokenizer.decode(&prompt[at + 1..]).unwrap_or_default();
            decoder.name = match named(&said) {
                Name::Unsure => Some(said),
                Name::Ends(_) => None,
            };
        }
        decoder
    }

    /// Takes an id; returns the pieces that are certain with it.
    pub fn push(&mut self, id: u32) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        match self.marks {
            Some((open, _)) if id == open => {
                if !self.thinking {
                    self.flush(&mut pieces)?;
                    self.thinking = true;
                    self.name = Some(String::new());
                    self.reply.thoughts.push(String::new());
                }
            }
            Some((_, close)) if id == close => {
                if self.thinking {
                    self.flush(&mut pieces)?;
                    self.thinking = false;
                }
            }
            _ => {
                let text = self.stream.push(id)?;
                self.take(text, &mut pieces);
            }
        }
        Ok(pieces)
    }

    /// The last pieces and the whole reply.
    pub fn finish(mut self) -> Result<(Vec<Piece>, Reply)> {
        let mut pieces = Vec::new();
        self.flush(&mut pieces)?;
        self.reply.thoughts.retain(|t| !t.trim().is_empty());
        Ok((pieces, self.reply))
    }

    /// Ends the text at hand: what comes next stands behind a mark.
    fn flush(&mut self, pieces: &mut Vec<Piece>) -> Result<()> {
        let stream = std::mem::replace(&mut self.stream, self.tokenizer.stream());
        let rest = stream.finish()?;
        self.take(rest, pieces);
        // A name that nothing follows, or one that is cut off, is no thought.
        if let Some(start) = self.name.take()
            && !THOUGHT.starts_with(start.trim_end_matches('\n'))
        {
            self.put(start, pieces);
        }
        Ok(())
    }

    fn take(&mut self, text: String, pieces: &mut Vec<Piece>) {
        match self.name.take() {
            None => self.put(text, pieces),
            Some(start) => {
                let start = start + &text;
                match named(&start) {
                    Name::Unsure => self.name = Some(start),
                    Name::Ends(at) => self.put(start[at..].to_string(), pieces),
                }
            }
        }
    }

    fn put(&mut self, text: String, pieces: &mut Vec<Piece>) {
        if text.is_empty() {
            return;
        }
        if !self.thinking {
            self.reply.answer.push_str(&text);
            pieces.push(Piece::Answer(text));
            return;
        }
        if let Some(thought) = self.reply.thoughts.last_mut() {
            thought.push_str(&text);
        }
        pieces.push(Piece::Thought(text));
    }
}

/// Whether the start of a channel is its name.
enum Name {
    /// It may become the name.
    Unsure,
    /// The thought begins here, behind the name if there is one.
    Ends(usize),
}

fn named(start: &str) -> Name {
    match start.strip_prefix(THOUGHT) {
        Some(rest) if rest.starts_with('\n') => Name::Ends(THOUGHT.len() + 1),
        Some("") => Name::Unsure,
        Some(_) => Name::Ends(0),
        None if THOUGHT.starts_with(start) => Name::Unsure,
        None => Name::Ends(0),
    }
}
