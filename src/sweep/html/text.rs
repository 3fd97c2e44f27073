//! Text of the page: escaping, numbers.

/// Text that may stand in elements and in quoted attributes. What XML does not allow becomes U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A count with thin spaces between thousands.
pub(super) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// Bytes in megabytes, or in gigabytes.
pub(super) fn megabytes(bytes: u64) -> String {
    let mega = bytes as f64 / 1e6;
    match mega {
        m if m >= 1000.0 => format!("{:.2} GB", m / 1000.0),
        m if m >= 100.0 => format!("{m:.0} MB"),
        m if m >= 10.0 => format!("{m:.1} MB"),
        m => format!("{m:.2} MB"),
    }
}

/// Nats: three digits, small ones as a power of ten.
pub(super) fn kl(value: f64) -> String {
    if value.is_nan() {
        return "–".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let exponent = value.abs().log10().floor();
    if exponent >= -3.0 {
        return format!("{value:.*}", (2.0 - exponent).max(0.0) as usize);
    }
    let mut mantissa = value / 10f64.powf(exponent);
    let mut exponent = exponent as i32;
    if mantissa >= 9.995 {
        (mantissa, exponent) = (1.0, exponent + 1);
    }
    format!("{mantissa:.2}×{}", power(exponent))
}

/// `10⁻³`.
pub(super) fn power(exponent: i32) -> String {
    let digits = exponent.to_string();
    let raised = digits.chars().map(|c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '4' => '⁴',
        '5' => '⁵',
        '6' => '⁶',
        '7' => '⁷',
        '8' => '⁸',
        '9' => '⁹',
        _ => '⁰',
    });
    std::iter::once("10".to_string())
        .chain(raised.map(String::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_markup() {
        assert_eq!(
            escape("<a href=\"x\">&'\u{1}"),
            "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
        assert_eq!(megabytes(5_751_872), "5.75 MB");
        assert_eq!(megabytes(2_345_678_901), "2.35 GB");
        for (value, text) in [
            (0.0, "0"),
            (1.3e-5, "1.30×10⁻⁵"),
            (0.007109, "0.00711"),
            (0.1133, "0.113"),
            (2.338, "2.34"),
            (13.7, "13.7"),
            (9.999e-8, "1.00×10⁻⁷"),
        ] {
            assert_eq!(kl(value), text);
        }
    }
}
