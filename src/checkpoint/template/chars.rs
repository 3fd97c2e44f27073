//! What Python says of characters, where Rust says otherwise.

use std::sync::LazyLock;

use regex::Regex;

/// Whitespace as `str.isspace` and `\s` have it.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Whether `repr` writes a character as it is.
pub fn is_printable(c: char) -> bool {
    static OTHER: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[\p{C}\p{Zl}\p{Zp}\p{Zs}]$").ok());
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut bytes = [0; 4];
    OTHER
        .as_ref()
        .is_some_and(|r| !r.is_match(c.encode_utf8(&mut bytes)))
}

/// Decimal digits of any script (`str.isdecimal`).
pub fn is_decimal(c: char) -> bool {
    static DECIMAL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{Nd}$").ok());
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    let mut bytes = [0; 4];
    DECIMAL
        .as_ref()
        .is_some_and(|r| r.is_match(c.encode_utf8(&mut bytes)))
}

/// Letters in title case: neither large nor small.
pub fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}' | '\u{1f88}'..='\u{1f8f}'
        | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// Characters with case: those that make up a word for `str.title`.
pub fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// Adds a character in title case.
pub fn push_title(out: &mut String, c: char) {
    let single = match c as u32 {
        0x1c4..=0x1c6 => Some(0x1c5),
        0x1c7..=0x1c9 => Some(0x1c8),
        0x1ca..=0x1cc => Some(0x1cb),
        0x1f1..=0x1f3 => Some(0x1f2),
        // Greek with iota below, Georgian: the title case is another character than the upper case.
        n @ (0x1f80..=0x1f87 | 0x1f90..=0x1f97 | 0x1fa0..=0x1fa7) => Some(n + 8),
        0x1fb3 => Some(0x1fbc),
        0x1fc3 => Some(0x1fcc),
        0x1ff3 => Some(0x1ffc),
        n @ (0x1f88..=0x1f8f | 0x1f98..=0x1f9f | 0x1fa8..=0x1faf) => Some(n),
        n @ (0x1fbc | 0x1fcc | 0x1ffc | 0x10d0..=0x10fa | 0x10fd..=0x10ff) => Some(n),
        _ => None,
    };
    if let Some(c) = single.and_then(char::from_u32) {
        return out.push(c);
    }
    // Ligatures and sharp s: the first letter large, the others small.
    let ligature = matches!(c, 'ß' | '\u{fb00}'..='\u{fb06}' | '\u{fb13}'..='\u{fb17}' | '\u{587}');
    // Greek with an accent and iota below: only the iota stays small.
    let iota = matches!(
        c,
        '\u{1fb2}'
            | '\u{1fb4}'
            | '\u{1fb7}'
            | '\u{1fc2}'
            | '\u{1fc4}'
            | '\u{1fc7}'
            | '\u{1ff2}'
            | '\u{1ff4}'
            | '\u{1ff7}'
    );
    for (n, upper) in c.to_uppercase().enumerate() {
        if n > 0 && iota && upper == '\u{399}' {
            out.push('\u{345}');
            continue;
        }
        match n > 0 && ligature {
            true => out.extend(upper.to_lowercase()),
            false => out.push(upper),
        }
    }
}
