//! What a file really is that lies where weights, a config or a tokenizer should be.
//!
//! Downloads leave other things under the right name: a pointer of Git LFS where the large file was not fetched, a page of a
//! web site, an archive. What a parser says of those ("header length") does not help.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::{Error, Result};

/// Bytes looked at. A pointer of Git LFS is shorter.
const LOOKED_AT: usize = 1024;
/// Longest text that is quoted.
const QUOTED: usize = 60;

/// Refuses a file that is evidently not what its name says: empty, a pointer of Git LFS, a web page, a file of another kind.
/// Reads its first bytes. A file that cannot be read passes: whoever reads it says why.
///
/// # Errors
/// [`Error::NotTheFile`] with what the file is and what to do.
pub fn check_file(path: &Path) -> Result<()> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|f| f.take(LOOKED_AT as u64).read_to_end(&mut head));
    let is_weights = path.extension().is_some_and(|e| e == "safetensors");
    let found = match read {
        Ok(_) => explain(&head, is_weights),
        Err(_) => None,
    };
    match found {
        None => Ok(()),
        Some((what, hint)) => Err(Error::NotTheFile {
            path: path.to_path_buf(),
            what,
            hint: hint.into(),
        }),
    }
}

/// The reason of a failed read: that of [`check_file`] where there is one, `error` otherwise.
pub(super) fn or_explained(path: &Path, error: Error) -> Error {
    check_file(path).err().unwrap_or(error)
}

/// What these first bytes are, and what to do.
fn explain(head: &[u8], is_weights: bool) -> Option<(String, &'static str)> {
    const AGAIN: &str =
        "fetch the file again; `hf download` or a hub id in place of the folder does";
    const SAFETENSORS: &str =
        "only safetensors weights are read: save the model with `save_pretrained` of transformers";
    let text = String::from_utf8_lossy(head);
    let start = text.trim_start_matches('\u{feff}').trim_start();
    let lower = start.get(..64.min(start.len())).unwrap_or(start);
    let lower = lower.to_ascii_lowercase();
    if head.is_empty() {
        return Some(("the file is empty".into(), AGAIN));
    }
    if let Some(rest) = start.strip_prefix("version https://git-lfs.github.com/spec/") {
        let field = |name: &str| {
            let line = rest.lines().find_map(|l| l.trim().strip_prefix(name));
            line.map(|value| value.trim().chars().take(80).collect::<String>())
        };
        let of = match (field("size "), field("oid ")) {
            (Some(size), Some(oid)) => format!(" to a file of {size} bytes, {oid}"),
            _ => String::new(),
        };
        return Some((
            format!("a pointer of Git LFS{of}, not the file itself"),
            "fetch the file with `git lfs pull` in the repository, or with `hf download`",
        ));
    }
    if start.starts_with("# xet version") {
        let what = "a pointer of the hub's Xet storage, not the file itself";
        return Some((what.into(), AGAIN));
    }
    if ["<!doctype", "<html", "<head", "<?xml"]
        .iter()
        .any(|tag| lower.starts_with(tag))
    {
        let what = "a web page or the answer of a web server, not the file itself";
        return Some((what.into(), AGAIN));
    }
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Some(("text in UTF-16".into(), "save it as UTF-8"));
    }
    let kinds: [(&[u8], &str, &'static str); 9] = [
        (
            b"GGUF",
            "a GGUF file",
            "take the checkpoint that the GGUF file was made of: config.json and safetensors, for Google's -qat-q4_0-gguf \
             google/gemma-4-...-it-qat-q4_0-unquantized",
        ),
        (
            b"PK\x03\x04",
            "a zip archive, as PyTorch's .bin and numpy's .npz are",
            SAFETENSORS,
        ),
        (b"\x89HDF\r\n", "an HDF5 file, as Keras writes", SAFETENSORS),
        (
            b"\x80\x02",
            "a pickle, as old PyTorch files are",
            SAFETENSORS,
        ),
        (
            b"\x80\x03",
            "a pickle, as old PyTorch files are",
            SAFETENSORS,
        ),
        (
            b"\x80\x04",
            "a pickle, as old PyTorch files are",
            SAFETENSORS,
        ),
        (b"\x1f\x8b\x08", "compressed with gzip", "unpack it first"),
        (
            b"\x28\xb5\x2f\xfd",
            "compressed with zstd",
            "unpack it first",
        ),
        (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    ];
    if let Some((_, what, hint)) = kinds.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Some(((*what).into(), hint));
    }
    // The hub's answers to a wrong address or a missing token are a line of text.
    let printable = |c: char| !c.is_control() || c.is_whitespace();
    if is_weights && head.len() < LOOKED_AT && text.chars().all(|c| printable(c) && c != '\u{fffd}')
    {
        let line: String = start
            .lines()
            .next()
            .unwrap_or("")
            .chars()
            .take(QUOTED)
            .collect();
        return Some((format!("a text file that begins with {line:?}"), AGAIN));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(head: &[u8]) -> Option<String> {
        explain(head, true).map(|(what, _)| what)
    }

    #[test]
    fn what_lies_in_place_of_weights() {
        let pointer =
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 10246621918\n";
        for (head, part) in [
            (pointer.as_bytes(), "10246621918 bytes, sha256:4d4d"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
            (b"", "empty"),
            (b"\n\n<!DOCTYPE html><html>", "web page"),
            (b"\xef\xbb\xbf<HTML lang=en>", "web page"),
            (b"<?xml version=\"1.0\"?><Error>", "web server"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04\0\0", "zip"),
            (b"\x80\x02}q\0", "pickle"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"Entry not found", "begins with \"Entry not found\""),
            (b"{\"error\": \"gated\"}", "begins with"),
        ] {
            let what = of(head).unwrap_or_default();
            assert!(what.contains(part), "{part}: {what:?}");
        }
        assert_eq!(of(b"\x08\0\0\0\0\0\0\0{}      "), None);
        // A JSON file or a template begins as it likes.
        assert_eq!(explain(b"{\"model_type\": ", false), None);
        assert_eq!(explain(b"{{- bos_token -}}", false), None);
        assert_eq!(explain("é".repeat(40).as_bytes(), false), None);
    }
}
