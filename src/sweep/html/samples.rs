//! What the bundles write after the prompt, beside what the f32 model writes.

use std::fmt::Write as _;

use super::super::result::{Sample, Sweep};
use super::colour;
use super::text::escape;

pub(super) fn section(sweep: &Sweep) -> String {
    let Some(base) = &sweep.sample else {
        return String::new();
    };
    let mut out = String::from(
        "<section class=\"card\">\n<h2>What they write</h2>\n<p class=\"note\">Greedy, from the same prompt. Marked: the first \
         word that is not the f32 model's.</p>\n<div class=\"samples\">\n",
    );
    let prompt = escape(&sweep.prompt);
    let _ = writeln!(
        out,
        "<div class=\"sample\"><h3>f32 model</h3>\n<p><em>{prompt}</em>{}</p></div>",
        escape(&base.text)
    );
    for (i, recipe) in sweep.recipes.iter().enumerate() {
        let Some(sample) = &recipe.sample else {
            continue;
        };
        let (same, word, tail) = split(&base.text, &sample.text);
        let _ = write!(
            out,
            "<div class=\"sample\"><h3 class=\"k{}\"><span class=\"swatch\"></span>{} <span class=\"small\">{}</span></h3>\n\
             <p><em>{prompt}</em>{}",
            colour(i),
            escape(&recipe.name),
            verdict(base, sample),
            escape(same)
        );
        if !word.is_empty() {
            let _ = write!(out, "<mark>{}</mark>", escape(word));
        }
        if !tail.is_empty() {
            let _ = write!(out, "<span class=\"tail\">{}</span>", escape(tail));
        }
        out.push_str("</p></div>\n");
    }
    out.push_str("</div>\n</section>\n");
    out
}

fn verdict(base: &Sample, sample: &Sample) -> String {
    if base.ids == sample.ids {
        return "<span class=\"good\">the same</span>".into();
    }
    let pairs = base.ids.iter().zip(&sample.ids);
    let equal = pairs.take_while(|(a, b)| a == b).count();
    format!("leaves after {equal} of {} tokens", base.ids.len())
}

/// What `text` has in common with `base` at its beginning, in whole words; the first word that differs; the rest.
fn split<'a>(base: &str, text: &'a str) -> (&'a str, &'a str, &'a str) {
    if base == text {
        return (text, "", "");
    }
    let pairs = base.chars().zip(text.chars());
    let equal: usize = pairs
        .take_while(|(a, b)| a == b)
        .map(|(_, c)| c.len_utf8())
        .sum();
    let begun = |c: char| !c.is_whitespace();
    // Back to the beginning of the word that the difference is in.
    let start = match text[..equal].trim_end_matches(begun).len() {
        start if text[equal..].starts_with(begun) => start,
        _ => equal,
    };
    let (same, rest) = text.split_at(start);
    let word = rest.trim_start();
    let lead = rest.len() - word.len();
    let end = lead + word.find(char::is_whitespace).unwrap_or(word.len());
    (same, &rest[..end], &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_that_differs_is_cut_out() {
        for (text, parts) in [
            ("a dog ran", ("a dog ran", "", "")),
            ("a door ran", ("a ", "door", " ran")),
            ("a dog", ("a dog", "", "")),
            ("a dog ran off", ("a dog ran", " off", "")),
            ("two", ("", "two", "")),
            ("a dög ran", ("a ", "dög", " ran")),
        ] {
            assert_eq!(split("a dog ran", text), parts, "{text}");
        }
    }
}
