//! The forms that a recipe combines: layout, attention, cache, functions, and what a chunk is built for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use half::f16;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::Error;

/// What the packages of a model are built for, beside the model.
#[derive(Debug, Clone)]
pub struct GraphOptions {
    /// Context length in tokens: rows of the caches that keep every position.
    pub context: usize,
    /// How the layers are split into packages.
    pub layout: Layout,
    /// How a query attends to its keys.
    pub attention: AttentionForm,
    /// How keys and values are kept between steps.
    pub cache: CacheForm,
    /// The functions of the bundle; the first is decode.
    pub functions: Vec<FunctionKind>,
    /// Where prefill functions go.
    pub prefill: PrefillPackages,
    /// KV heads of the caches are padded with zeros to a multiple of this.
    pub pad_kv_heads: Option<usize>,
    /// Follow the published bundles where they differ from Gemma 4: prefill without a window, verify within the window.
    pub compat: bool,
    /// By tensor name: how input and output of that linear layer are rounded. Those of layers that are not named are not.
    pub activations: BTreeMap<String, LinearActivations>,
}

/// How the activations around a linear layer are rounded.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LinearActivations {
    /// Before the layer.
    pub input: Option<Rounding>,
    /// Behind it.
    pub output: Option<Rounding>,
}

/// How a value is rounded to int8 counts of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rounding {
    /// `quantize` and `dequantize` with this scale.
    Int8(f16),
    /// A factor, `round`, `clip` to -128..127, another factor. A factor of 1 is not written: another tensor has it.
    Counts {
        /// From values to counts.
        before: f16,
        /// From counts to values.
        after: f16,
    },
}

impl GraphOptions {
    /// One-token decode with the plain forms.
    pub fn decode(context: usize) -> Self {
        Self {
            context,
            layout: Layout::Swa4,
            attention: AttentionForm::Standard,
            cache: CacheForm::Shift,
            functions: vec![FunctionKind::Decode],
            prefill: PrefillPackages::Separate,
            pad_kv_heads: None,
            compat: false,
            activations: BTreeMap::new(),
        }
    }

    /// Whether the layers of both kinds share one state of rings.
    pub(super) fn one_state(&self) -> bool {
        (self.layout, self.cache) == (Layout::Swa1, CacheForm::State)
    }

    /// Checks that the forms go together, whatever the model.
    ///
    /// # Errors
    /// [`Error::Combination`].
    pub fn check(&self) -> Result<(), Error> {
        let (layout, cache) = (self.layout, self.cache);
        let fault = |why: &str| {
            Err(Error::Combination {
                forms: format!("layout {layout}, cache {cache}"),
                why: why.to_owned(),
            })
        };
        if layout.takes_ids() != (cache == CacheForm::StateFull) {
            return fault(
                "the layouts that take token ids (lite2, monolithic) have the cache `state-full`, no other has it",
            );
        }
        if cache == CacheForm::State
            && !matches!(layout, Layout::Swa4 | Layout::Swa3 | Layout::Swa1)
        {
            return fault("rings in state are the published form of swa4, swa3 and swa1");
        }
        if self.functions.first() != Some(&FunctionKind::Decode) {
            return fault("the first function must be `decode`");
        }
        if self.functions.len() > 1 && cache != CacheForm::Shift {
            return fault("prefill and verify fill and read caches of the form `shift`");
        }
        if self.functions.len() > 1 && self.pad_kv_heads.is_some() {
            return fault("prefill and verify do not have padded KV heads");
        }
        let verifies = self.functions.iter();
        if verifies
            .filter(|f| matches!(f, FunctionKind::Verify(_)))
            .count()
            > 1
        {
            return fault("a package has one verify function: its name, verify_qK, has no number");
        }
        if self.pad_kv_heads == Some(0) {
            return fault("pad_kv_heads is 0, expected at least 1");
        }
        Ok(())
    }
}

/// How a model is split into packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Four chunks.
    Swa4,
    /// Three: the second and third of four merged (Topology II).
    Swa3,
    /// Three: the first and second of four merged.
    #[serde(rename = "swa3-topology1")]
    Swa3Topology1,
    /// Two: the layers with their own K/V, and those that share.
    Swa2,
    /// One.
    Swa1,
    /// Two as [`Layout::Swa2`], token ids in: embedding and RoPE inside.
    Lite2,
    /// One, token ids in.
    Monolithic,
}

impl Layout {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swa4 => "swa4",
            Self::Swa3 => "swa3",
            Self::Swa3Topology1 => "swa3-topology1",
            Self::Swa2 => "swa2",
            Self::Swa1 => "swa1",
            Self::Lite2 => "lite2",
            Self::Monolithic => "monolithic",
        }
    }

    /// Whether embedding and RoPE are computed in the graph.
    pub fn takes_ids(self) -> bool {
        matches!(self, Self::Lite2 | Self::Monolithic)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a query attends to its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionForm {
    /// `standard`: all keys at once, softmax in its parts.
    Standard,
    /// `flash-C`: full layers take C keys at a time, with a running maximum and sum.
    Flash(usize),
}

/// How keys and values are kept between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheForm {
    /// `shift`: passed in and out; sliding caches drop the oldest row and append, full caches scatter through `update_mask`.
    Shift,
    /// `window-FW`: as `shift`, but full layers keep FW positions and drop the oldest as well.
    Window(usize),
    /// `full`: passed in and out in one tensor, context-sized for every layer.
    Full,
    /// `state`: MLState; sliding caches are rings, rows are written in place.
    State,
    /// `state-mask`: MLState; the updates of `shift`, each state written as a whole.
    StateMask,
    /// `state-full`: MLState, one state, context-sized for every layer.
    StateFull,
}

impl CacheForm {
    /// Whether sliding layers keep the whole context too: one `causal_mask`, and the window made in the graph.
    pub fn keeps_context(self) -> bool {
        matches!(self, Self::Full | Self::StateFull)
    }
}

/// A function of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionKind {
    /// `decode`: one token in, the next one out.
    Decode,
    /// `prefill-N`: N tokens from position 0, their keys and values out.
    Prefill(usize),
    /// `verify-K`: K tokens at any position, the next one after each out, and their keys and values.
    Verify(usize),
}

impl FunctionKind {
    /// Tokens of a call.
    pub fn tokens(self) -> usize {
        match self {
            Self::Decode => 1,
            Self::Prefill(n) | Self::Verify(n) => n,
        }
    }

    /// Its name in a package with several functions.
    pub fn function_name(self) -> String {
        match self {
            Self::Decode => "decode_q1".to_owned(),
            Self::Prefill(n) => format!("prefill_b{n}"),
            Self::Verify(_) => "verify_qK".to_owned(),
        }
    }
}

/// Where prefill functions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefillPackages {
    /// Packages of their own, `prefill_chunk1` to `prefill_chunk4`, whatever the layout of decode.
    #[default]
    Separate,
    /// Into the packages of decode.
    Combined,
}

/// `stem` or `stem-N`.
fn split_number(text: &str) -> (&str, Option<usize>) {
    let cut = text.rsplit_once('-');
    match cut.and_then(|(stem, n)| Some((stem, n.parse().ok()?))) {
        Some((stem, n)) => (stem, Some(n)),
        None => (text, None),
    }
}

fn unknown<T>(what: &str, text: &str, expected: &str) -> Result<T, String> {
    Err(format!(
        "unknown {what} `{text}`, expected one of {expected}"
    ))
}

impl FromStr for AttentionForm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match split_number(text) {
            ("standard", None) => Ok(Self::Standard),
            ("flash", Some(1..)) => Ok(Self::Flash(split_number(text).1.unwrap_or(1))),
            _ => unknown(
                "attention",
                text,
                "standard, flash-C (C keys at a time, at least 1)",
            ),
        }
    }
}

impl fmt::Display for AttentionForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("standard"),
            Self::Flash(keys) => write!(f, "flash-{keys}"),
        }
    }
}

impl FromStr for CacheForm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match (text, split_number(text)) {
            ("shift", _) => Self::Shift,
            (_, ("window", Some(n @ 1..))) => Self::Window(n),
            ("full", _) => Self::Full,
            ("state", _) => Self::State,
            ("state-mask", _) => Self::StateMask,
            ("state-full", _) => Self::StateFull,
            _ => {
                return unknown(
                    "cache",
                    text,
                    "shift, window-FW (at least 1 position), full, state, state-mask, state-full",
                );
            }
        })
    }
}

impl fmt::Display for CacheForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shift => f.write_str("shift"),
            Self::Window(positions) => write!(f, "window-{positions}"),
            Self::Full => f.write_str("full"),
            Self::State => f.write_str("state"),
            Self::StateMask => f.write_str("state-mask"),
            Self::StateFull => f.write_str("state-full"),
        }
    }
}

impl FromStr for FunctionKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match split_number(text) {
            ("decode", None) => Ok(Self::Decode),
            ("prefill", Some(n @ 2..)) => Ok(Self::Prefill(n)),
            ("verify", Some(n @ 2..)) => Ok(Self::Verify(n)),
            _ => unknown(
                "function",
                text,
                "decode, prefill-N, verify-K (at least 2 tokens)",
            ),
        }
    }
}

impl fmt::Display for FunctionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode => f.write_str("decode"),
            Self::Prefill(n) => write!(f, "prefill-{n}"),
            Self::Verify(k) => write!(f, "verify-{k}"),
        }
    }
}

macro_rules! as_text {
    ($($form:ty),*) => {$(
        impl Serialize for $form {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $form {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

as_text!(AttentionForm, CacheForm, FunctionKind);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_there_and_back() {
        for text in ["standard", "flash-7"] {
            assert_eq!(text.parse::<AttentionForm>().unwrap().to_string(), text);
        }
        for text in [
            "shift",
            "window-9",
            "full",
            "state",
            "state-mask",
            "state-full",
        ] {
            assert_eq!(text.parse::<CacheForm>().unwrap().to_string(), text);
        }
        for text in ["decode", "prefill-64", "verify-3"] {
            assert_eq!(text.parse::<FunctionKind>().unwrap().to_string(), text);
        }
        assert!("flash-0".parse::<AttentionForm>().is_err());
        assert!("window".parse::<CacheForm>().is_err());
        for text in ["prefill", "prefill-1", "decode-2", "verify-x"] {
            assert!(text.parse::<FunctionKind>().is_err(), "{text}");
        }
    }
}
