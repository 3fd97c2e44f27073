//! A text as sequences of tokens.

use super::error::{Error, Result};
use crate::checkpoint::{ChatTemplate, Checkpoint, Message, Tokenizer};

/// What a text consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// One running text.
    #[default]
    Whole,
    /// A text of its own on every line that is not empty.
    Lines,
    /// A user's turn on every line that is not empty, put into the chat template up to where the model's answer begins.
    Chat,
}

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextOptions {
    /// What the text consists of.
    pub framing: Framing,
    /// Most tokens of a sequence.
    pub length: usize,
    /// Most tokens of all sequences.
    pub max_tokens: usize,
}

/// Token ids of a text, cut into sequences that each begin with the tokenizer's first token, where it has one. Lines and
/// turns are never in one sequence with others.
///
/// # Errors
/// No tokenizer, no chat template where one is needed, nothing in the text, a length that leaves no room for text.
pub fn sequences(
    checkpoint: &Checkpoint,
    text: &str,
    options: &TextOptions,
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::open(checkpoint.dir())?;
    let first = tokenizer.encode("", true)?;
    let (least, most) = (first.len() + 1, checkpoint.config().max_position_embeddings);
    if !(least..=most).contains(&options.length) {
        return Err(Error::Length {
            least,
            most,
            got: options.length,
        });
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let samples: Vec<Vec<u32>> = match options.framing {
        Framing::Whole => vec![tokenizer.encode(text, false)?],
        Framing::Lines => lines
            .map(|line| tokenizer.encode(line, false))
            .collect::<Result<_, _>>()?,
        Framing::Chat => {
            let template =
                ChatTemplate::open(checkpoint.dir())?.ok_or_else(|| Error::NoTemplate {
                    dir: checkpoint.dir().to_path_buf(),
                })?;
            let framed = |line| template.render(&[Message::new("user", line)], true);
            lines
                .map(|line| tokenizer.encode(&framed(line)?, false))
                .collect::<Result<_, _>>()?
        }
    };
    let cut = cut(&samples, &first, options);
    match cut.is_empty() {
        true => Err(Error::NoText),
        false => Ok(cut),
    }
}

/// Pieces of the samples with `first` before each, as many as `max_tokens` allows.
fn cut(samples: &[Vec<u32>], first: &[u32], options: &TextOptions) -> Vec<Vec<u32>> {
    let mut sequences = Vec::new();
    let mut left = options.max_tokens;
    for sample in samples {
        let body = sample.strip_prefix(first).unwrap_or(sample);
        for piece in body.chunks(options.length - first.len()) {
            let Some(room) = left.checked_sub(first.len()).filter(|room| *room > 0) else {
                return sequences;
            };
            let piece = &piece[..piece.len().min(room)];
            left -= first.len() + piece.len();
            sequences.push([first, piece].concat());
        }
    }
    sequences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_cut_and_counted() {
        let options = |length, max_tokens| TextOptions {
            framing: Framing::Lines,
            length,
            max_tokens,
        };
        let samples = [vec![2, 10, 11, 12, 13], vec![20]];
        let all = cut(&samples, &[2], &options(3, 100));
        assert_eq!(all, [vec![2, 10, 11], vec![2, 12, 13], vec![2, 20]]);
        assert_eq!(
            cut(&samples, &[2], &options(3, 5)),
            [vec![2, 10, 11], vec![2, 12]]
        );
        assert_eq!(cut(&samples, &[2], &options(3, 4)), [vec![2, 10, 11]]);
        assert_eq!(cut(&samples[1..], &[], &options(1, 9)), [vec![20]]);
        assert!(cut(&samples, &[2], &options(3, 1)).is_empty());
    }
}
