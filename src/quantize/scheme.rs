//! The names of the number formats, as recipes write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// Palette widths for which Core ML has an index type (iOS18 `constexpr_lut_to_dense`).
pub const PALETTE_BITS: [u8; 6] = [1, 2, 3, 4, 6, 8];

/// Which weights share a look-up table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grouping {
    /// One table for the whole tensor.
    Tensor,
    /// One table for this many consecutive output channels (axis 0).
    Channels(usize),
}

/// Lengths of the vectors that a palette may have.
pub const VECTOR_SIZES: [usize; 2] = [2, 4];

/// What the entries and indices of a palette are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PaletteForm {
    /// One fp16 value per entry, one index per weight.
    #[default]
    Scalar,
    /// Written `-v2`, `-v4`: an entry is that many weights of consecutive output channels at the same
    /// input, and so is what an index stands for (coremltools: `cluster_dim`).
    Vector(usize),
    /// Written `-sparse50`: that percentage of the weights that share a table, rounded down and the smallest
    /// first, are zero, 1 to 99; the others have an index.
    Sparse(u8),
    /// Written `-lut8`: entries are int8, with one fp16 scale for all tables of the tensor.
    Lut8,
}

/// How the weights of one tensor are stored. Written `fp16`, `palette4-g32`, `palette4-tensor`,
/// `palette6-g32-v2`, `int8-channel`, `int4-block32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scheme {
    /// Dense fp16.
    Fp16,
    /// Indices of `nbits` into an fp16 look-up table of `2^nbits` entries per group.
    Palette {
        /// 1, 2, 3, 4, 6 or 8.
        nbits: u8,
        /// Who shares a table.
        group: Grouping,
        /// What entries and indices are.
        form: PaletteForm,
    },
    /// Integers times fp16 steps. Written `int4-channel`, `int8-block32`, with `-full` where the range is the whole.
    Linear {
        /// 4 or 8.
        nbits: u8,
        /// Consecutive inputs of an output channel that share a step; all of them where `None`.
        block: Option<usize>,
        /// Which integers there are.
        range: IntRange,
    },
}

/// Widths of the integers of [`Scheme::Linear`].
pub const LINEAR_BITS: [u8; 2] = [4, 8];

/// Which integers a linear scheme uses, and where they come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IntRange {
    /// `-7 ..= 7` or `-127 ..= 127`, always computed, as coremltools' `linear_symmetric` does.
    #[default]
    Symmetric,
    /// Written `-full`: `-8 ..= 7` or `-128 ..= 127`. Integers and steps that a checkpoint gives, or that its values lie on, are
    /// kept; others are computed.
    Full,
}

impl Scheme {
    /// Groups along axis 0 of a weight with `channels` output channels (1 for one table per
    /// tensor; `channels` where each channel stands alone). Errors when they do not divide.
    pub fn channel_groups(&self, channels: usize) -> Result<usize> {
        match *self {
            Scheme::Fp16 => Ok(1),
            Scheme::Palette { group, form, .. } => {
                let (groups, length) = match group {
                    Grouping::Tensor => (1, channels),
                    Grouping::Channels(length) => {
                        (divide("output channels", channels, length)?, length)
                    }
                };
                if let PaletteForm::Vector(size) = form {
                    divide("channels of a group", length, size)?;
                }
                Ok(groups)
            }
            Scheme::Linear { .. } => Ok(channels),
        }
    }

    /// Blocks along the input axis of `inputs` elements; 1 unless the scheme has blocks.
    /// Errors when they do not divide.
    pub fn input_blocks(&self, inputs: usize) -> Result<usize> {
        match *self {
            Scheme::Linear {
                block: Some(block), ..
            } => divide("input channels", inputs, block),
            _ => Ok(1),
        }
    }

    /// Whether integers of `nbits` with a step for every `block` of `inputs` inputs are stored as they are, if nothing but the
    /// steps is scaled.
    pub fn keeps(&self, nbits: u8, block: usize, inputs: usize) -> bool {
        match *self {
            Scheme::Linear {
                nbits: own,
                block: shared,
                range: IntRange::Full,
            } => nbits <= own && block.is_multiple_of(shared.unwrap_or(inputs)),
            Scheme::Palette {
                nbits: own,
                group: Grouping::Channels(1),
                form: PaletteForm::Scalar,
            } => nbits <= own && block == inputs,
            _ => false,
        }
    }
}

fn divide(what: &'static str, len: usize, group: usize) -> Result<usize> {
    if group == 0 || len == 0 || !len.is_multiple_of(group) {
        return Err(Error::NotDivisible { what, len, group });
    }
    Ok(len / group)
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::Fp16 => f.write_str("fp16"),
            Scheme::Palette { nbits, group, form } => {
                match group {
                    Grouping::Tensor => write!(f, "palette{nbits}-tensor")?,
                    Grouping::Channels(n) => write!(f, "palette{nbits}-g{n}")?,
                }
                match form {
                    PaletteForm::Scalar => Ok(()),
                    PaletteForm::Vector(size) => write!(f, "-v{size}"),
                    PaletteForm::Sparse(percent) => write!(f, "-sparse{percent}"),
                    PaletteForm::Lut8 => f.write_str("-lut8"),
                }
            }
            Scheme::Linear {
                nbits,
                block,
                range,
            } => {
                match block {
                    None => write!(f, "int{nbits}-channel")?,
                    Some(n) => write!(f, "int{nbits}-block{n}")?,
                }
                match range {
                    IntRange::Symmetric => Ok(()),
                    IntRange::Full => f.write_str("-full"),
                }
            }
        }
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason| Error::Scheme {
            text: text.to_owned(),
            reason,
        };
        if text == "fp16" {
            return Ok(Scheme::Fp16);
        }
        if let Some((bits, rest)) = text.strip_prefix("int").and_then(|t| t.split_once('-')) {
            return linear(bits, rest).map_err(wrong);
        }
        let rest = text
            .strip_prefix("palette")
            .ok_or_else(|| wrong("no such format"))?;
        let (bits, group) = rest
            .split_once('-')
            .ok_or_else(|| wrong("the grouping is missing"))?;
        let nbits = positive(bits)
            .and_then(|n| u8::try_from(n).ok())
            .filter(|n| PALETTE_BITS.contains(n))
            .ok_or_else(|| wrong("no index type has that many bits"))?;
        let (group, form) = match group.split_once('-') {
            None => (group, PaletteForm::Scalar),
            Some((group, form)) => (group, palette_form(form).map_err(wrong)?),
        };
        let group = match group.strip_prefix('g') {
            _ if group == "tensor" => Grouping::Tensor,
            Some(size) => Grouping::Channels(
                positive(size).ok_or_else(|| wrong("the group size is not a positive number"))?,
            ),
            None => return Err(wrong("the grouping is neither g<channels> nor tensor")),
        };
        Ok(Scheme::Palette { nbits, group, form })
    }
}

/// A linear scheme: what stands between `int` and the first dash, and behind it.
fn linear(bits: &str, rest: &str) -> std::result::Result<Scheme, &'static str> {
    let nbits = positive(bits).and_then(|n| u8::try_from(n).ok());
    let nbits = nbits.filter(|n| LINEAR_BITS.contains(n));
    let nbits = nbits.ok_or("integers have 4 or 8 bits")?;
    let (shared, range) = match rest.split_once('-') {
        None => (rest, IntRange::Symmetric),
        Some((shared, "full")) => (shared, IntRange::Full),
        Some(_) => return Err("the range is -full, or not written"),
    };
    let block = match shared.strip_prefix("block") {
        _ if shared == "channel" => None,
        Some(size) => Some(positive(size).ok_or("the block size is not a positive number")?),
        None => return Err("who shares a step is neither channel nor block<inputs>"),
    };
    Ok(Scheme::Linear {
        nbits,
        block,
        range,
    })
}

/// The form that stands behind the grouping; at most one.
fn palette_form(text: &str) -> std::result::Result<PaletteForm, &'static str> {
    if text == "lut8" {
        return Ok(PaletteForm::Lut8);
    }
    if let Some(percent) = text.strip_prefix("sparse") {
        let percent = positive(percent).and_then(|n| u8::try_from(n).ok());
        return match percent.filter(|n| *n < 100) {
            Some(percent) => Ok(PaletteForm::Sparse(percent)),
            None => Err("sparse is 1 to 99 percent"),
        };
    }
    if let Some(size) = text.strip_prefix('v') {
        let size = positive(size).filter(|size| VECTOR_SIZES.contains(size));
        return match size {
            Some(size) => Ok(PaletteForm::Vector(size)),
            None => Err("vectors have 2 or 4 weights"),
        };
    }
    Err("a palette has one of the forms -v2, -v4, -sparse<percent>, -lut8, or none")
}

/// A plain decimal above zero: no sign, no leading zero, so that printing gives the text back.
pub(super) fn positive(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

impl TryFrom<String> for Scheme {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Scheme> for String {
    fn from(scheme: Scheme) -> Self {
        scheme.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_parse() {
        for text in [
            "fp16",
            "palette1-g1",
            "palette2-g8",
            "palette3-tensor",
            "palette4-g32",
            "palette6-tensor",
            "palette8-g16",
            "palette6-g32-v2",
            "palette8-tensor-v4",
            "palette4-g32-sparse1",
            "palette2-tensor-sparse99",
            "palette4-g32-lut8",
            "int8-channel",
            "int4-block32",
            "int4-channel",
            "int8-block64",
            "int4-channel-full",
            "int4-block32-full",
            "int8-channel-full",
            "int8-block32-full",
        ] {
            assert_eq!(text.parse::<Scheme>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_names_say_what_is_wrong() {
        for (text, hint) in [
            ("palette5-g32", "bits"),
            ("palette4", "grouping is missing"),
            ("palette4-g0", "group size"),
            ("palette4-g032", "group size"),
            ("palette4-g-1", "form"),
            ("palette4-rows", "neither"),
            ("palette4-g32-v3", "vectors"),
            ("palette4-g32-v02", "vectors"),
            ("palette4-g32-v", "vectors"),
            ("palette4-g32-v2-v2", "vectors"),
            ("palette4-tensor-w2", "form"),
            ("palette4-tensor-sparse", "percent"),
            ("palette4-tensor-sparse0", "percent"),
            ("palette4-tensor-sparse100", "percent"),
            ("palette4-tensor-sparse050", "percent"),
            ("palette4-tensor-lut4", "form"),
            ("palette4-g32-lut8-v2", "form"),
            ("palette4-g", "group size"),
            ("palette+4-g32", "bits"),
            ("int4-block", "block size"),
            ("int4-block0", "block size"),
            ("int4-block032", "block size"),
            ("int4-block-full", "block size"),
            ("int4-channel32", "neither"),
            ("int4-tensor", "neither"),
            ("int2-channel", "4 or 8"),
            ("int04-channel", "4 or 8"),
            ("int-channel", "4 or 8"),
            ("int4-channel-half", "range"),
            ("int4-block32-full-full", "range"),
            ("int4-", "neither"),
            ("int8", "no such format"),
            ("", "no such format"),
        ] {
            let message = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(message.contains(hint), "{text}: {message}");
            assert!(message.contains("palette{1,2,3,4,6,8}-g"), "{message}");
        }
    }

    #[test]
    fn a_grid_is_kept_by_wide_integers_with_steps_as_dense() {
        let keeps = |text: &str, nbits, block| {
            let scheme: Scheme = text.parse().unwrap();
            scheme.keeps(nbits, block, 96)
        };
        for (text, nbits, block) in [
            ("int4-block32-full", 4, 32),
            ("int4-block32-full", 2, 96),
            ("int4-block16-full", 4, 48),
            ("int8-block32-full", 4, 32),
            ("int8-channel-full", 8, 96),
            ("int4-channel-full", 2, 96),
            ("palette4-g1", 4, 96),
            ("palette6-g1", 2, 96),
        ] {
            assert!(keeps(text, nbits, block), "{text} {nbits} {block}");
        }
        for (text, nbits, block) in [
            ("int4-block32-full", 8, 32),
            ("int4-block32-full", 4, 48),
            ("int4-block32-full", 4, 16),
            ("int8-channel-full", 4, 32),
            ("int4-block32", 4, 32),
            ("int8-channel", 4, 96),
            ("palette4-g1", 4, 32),
            ("palette4-g1", 8, 96),
            ("palette4-g2", 4, 96),
            ("palette4-tensor", 4, 96),
            ("palette4-g1-lut8", 4, 96),
            ("fp16", 4, 32),
        ] {
            assert!(!keeps(text, nbits, block), "{text} {nbits} {block}");
        }
    }

    #[test]
    fn groups_must_divide() {
        let scheme: Scheme = "palette4-g32".parse().unwrap();
        assert_eq!(scheme.channel_groups(96), Ok(3));
        assert_eq!(
            scheme.channel_groups(48),
            Err(Error::NotDivisible {
                what: "output channels",
                len: 48,
                group: 32
            })
        );
        let scheme: Scheme = "palette4-g6-v4".parse().unwrap();
        let error = scheme.channel_groups(12).unwrap_err().to_string();
        assert_eq!(
            error,
            "6 channels of a group do not divide into groups of 4"
        );
        let scheme: Scheme = "palette4-tensor-v4".parse().unwrap();
        assert_eq!(scheme.channel_groups(12), Ok(1));
        assert!(scheme.channel_groups(14).is_err());
        let scheme: Scheme = "int4-block32".parse().unwrap();
        assert_eq!(scheme.input_blocks(64), Ok(2));
        assert!(scheme.input_blocks(33).is_err());
        assert_eq!(
            "palette8-tensor"
                .parse::<Scheme>()
                .unwrap()
                .channel_groups(7),
            Ok(1)
        );
    }
}
