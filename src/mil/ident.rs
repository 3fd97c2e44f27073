//! Identifier rules of MIL.

use super::error::{Error, Result};

/// Words that cannot name a value: the keywords of MIL text.
pub const RESERVED: &[&str] = &[
    "any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string",
    "bf16", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "state",
];

/// Checks `[A-Za-z_][A-Za-z0-9_]*` and the reserved words.
///
/// # Errors
/// [`Error::Identifier`] with the reason.
pub fn check(what: &'static str, name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.as_bytes()[0].is_ascii_digit() {
        "it starts with a digit"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        "only letters, digits and `_` are allowed"
    } else if RESERVED.contains(&name) {
        "it is a reserved word"
    } else {
        return Ok(());
    };
    Err(Error::Identifier {
        what,
        name: name.to_owned(),
        reason,
    })
}

/// An identifier made from any text: other characters become `_`, a leading digit and a reserved
/// word are prefixed with `_`.
pub fn sanitize(text: &str) -> String {
    let mut out: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if check("value", &out).is_err() {
        out.insert(0, '_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        for good in ["a", "_1", "layer_7_out", "Int32"] {
            assert!(check("value", good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "a-b", "a.b", "a@b", "fp16", "state", "ä"] {
            assert!(check("value", bad).is_err(), "{bad}");
            assert!(check("value", &sanitize(bad)).is_ok(), "{bad}");
        }
        assert_eq!(sanitize("layers.0.mlp"), "layers_0_mlp");
    }
}
