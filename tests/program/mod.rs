//! Runs the program for the tests of its command line.

#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

#[path = "../common/fixtures.rs"]
mod fixtures;
pub use fixtures::fixture;

/// Exit codes that the help of the program lists.
pub const USAGE: i32 = 2;
pub const INVALID: i32 = 3;
pub const GATE: i32 = 4;
pub const RESOURCES: i32 = 5;
pub const INTERRUPTED: i32 = 130;

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma-coreml"));
    command.stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs, expects success, gives stdout. stderr must have no escape codes: it is no terminal.
pub fn good(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}\n{}",
        output.status,
        stderr(&output)
    );
    for text in [stdout(&output), stderr(&output)] {
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{args:?}");
    }
    stdout(&output)
}

pub fn json(args: &[&str]) -> Value {
    let text = good(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// Runs, expects this exit code and nothing on stdout, gives stderr.
pub fn bad(args: &[&str], code: i32) -> String {
    let output = run(args);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{args:?}: {}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "", "{args:?}");
    stderr(&output)
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A bundle of nano that several tests read.
pub fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(concat!(env!("CARGO_CRATE_NAME"), "-bundle"));
        let nano = fixture("nano");
        let args = [
            "convert",
            path(&nano),
            "-o",
            path(&out),
            "--context",
            "192",
            "--force",
            "-q",
        ];
        let output = run(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
        let table = stdout(&output);
        assert!(table.starts_with("recipe swa4-int4: "), "{table}");
        assert!(
            table.contains("palette4-g32") && table.contains("norm or scalar"),
            "{table}"
        );
        assert!(table.contains("provenance.json"), "{table}");
        out
    })
}

/// Copies a bundle or a checkpoint, to damage the copy.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), &target).unwrap()),
        }
    }
}

/// Runs, expects this exit code, gives stderr with its `hint:` line checked. Tables may be on stdout already.
pub fn hinted(args: &[&str], code: i32) -> String {
    let output = run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(
        text.contains("error: ") && text.contains("\nhint: "),
        "{args:?}: {text}"
    );
    text
}
