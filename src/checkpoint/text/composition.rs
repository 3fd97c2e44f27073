//! How a decoder composes a text of tokens: what of it a later token may still change.

use serde_json::Value;

use super::components::flatten;

/// What a decoder needs to see before a text is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Composition {
    /// Tokens one by one; only the first one differs.
    Tokens,
    /// Runs of byte tokens as a whole: one that is not UTF-8 becomes a U+FFFD for each of its bytes.
    ByteRuns,
    /// All bytes as one text: a character may be spread over tokens.
    Bytes,
    /// Everything.
    Whole,
}

impl Composition {
    /// What the decoder of a `tokenizer.json` needs.
    pub fn of(decoder: &Value) -> Self {
        let Some(parts) = flatten(decoder, "decoders") else {
            return Self::Whole;
        };
        let mut needs = Self::Tokens;
        // Whether all tokens are one text already.
        let mut fused = false;
        for part in parts {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
            match kind {
                "Fuse" => fused = true,
                // Off the beginning is fine: the window keeps it. Nothing is stripped off the end.
                "Strip" => {}
                "ByteLevel" if !fused && needs == Self::Tokens => {
                    needs = Self::Bytes;
                    fused = true;
                }
                "ByteFallback" if !fused && needs == Self::Tokens => needs = Self::ByteRuns,
                "Replace" if !fused && keeps_byte_tokens(part.pointer("/pattern/String")) => {}
                "Metaspace" if !fused && keeps_byte_tokens(part.get("replacement")) => {}
                "WordPiece" if !fused && needs == Self::Tokens => {}
                _ => return Self::Whole,
            }
        }
        needs
    }
}

/// Whether replacing a text leaves tokens like `<0x0A>` alone.
fn keeps_byte_tokens(text: Option<&Value>) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '<' || c == '>';
    text.and_then(Value::as_str)
        .is_some_and(|t| !t.is_empty() && !t.contains(is_part))
}
