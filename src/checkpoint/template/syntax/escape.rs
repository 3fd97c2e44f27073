//! Escapes in string literals: Python's `unicode-escape`.

/// Resolves the escapes of a literal's inside. The error says which one is malformed.
pub fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(kind) = chars.next() else {
            return Err("\\ at end of string".into());
        };
        let simple = match kind {
            '\n' => continue,
            '\\' | '\'' | '"' => Some(kind),
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\u{b}'),
            _ => None,
        };
        if let Some(c) = simple {
            out.push(c);
            continue;
        }
        let (radix, least, most) = match kind {
            'x' => (16, 2, 2),
            'u' => (16, 4, 4),
            'U' => (16, 8, 8),
            '0'..='7' => (8, 0, 2),
            'N' => return Err("\\N{...} is not supported".into()),
            other => {
                // An unknown escape stays. Python puts other characters than ASCII into escapes of their own first.
                out.push('\\');
                match other as u32 {
                    n if n < 0x80 => out.push(other),
                    n if n < 0x100 => out.push_str(&format!("x{n:02x}")),
                    n if n < 0x10000 => out.push_str(&format!("u{n:04x}")),
                    n => out.push_str(&format!("U{n:08x}")),
                }
                continue;
            }
        };
        let mut digits = String::new();
        if radix == 8 {
            digits.push(kind);
        }
        let least = least.max(digits.len());
        let most = most + digits.len();
        while digits.len() < most && chars.peek().is_some_and(|c| c.is_digit(radix)) {
            digits.extend(chars.next());
        }
        if digits.len() < least {
            return Err(format!("truncated \\{kind} escape"));
        }
        let code = u32::from_str_radix(&digits, radix).map_err(|e| e.to_string())?;
        let c =
            char::from_u32(code).ok_or_else(|| format!("\\{kind}{digits} is not a character"))?;
        out.push(c);
    }
    Ok(out)
}
