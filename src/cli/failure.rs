//! Errors as the user sees them: message, causes, hint, exit code.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::ErrorKind;

/// Exit codes, as the help of the program lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// All went well.
    Ok = 0,
    /// Something nobody foresaw: a write failed, a bug.
    Unexpected = 1,
    /// Flags that make no sense.
    Usage = 2,
    /// The input is not valid.
    Invalid = 3,
    /// A parity or evaluation gate failed.
    Gate = 4,
    /// Not enough memory or disk.
    Resources = 5,
}

/// Why a verb stopped.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// First line.
    pub message: String,
    /// The chain below it, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// Result of a verb.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure with a message of our own.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// Takes over an error and its causes. A full disk or exhausted memory anywhere in the chain decides the code.
    pub fn from_error(code: Code, error: &(dyn StdError + 'static)) -> Self {
        let whole = error.to_string();
        let (message, hint) = split_hint(&whole);
        let mut failure = Failure::new(code, message);
        failure.hint = hint;
        let mut last = whole;
        let mut current = Some(error);
        let mut kind = None;
        while let Some(e) = current {
            if let Some(io) = e.downcast_ref::<std::io::Error>()
                && is_exhausted(io.kind())
            {
                failure.code = Code::Resources;
            }
            if let Some(io) = e.downcast_ref::<std::io::Error>() {
                kind = Some(io.kind());
            }
            let text = e.to_string();
            // Wrappers often repeat the text of what they wrap.
            if !last.contains(&text) {
                let (cause, hint) = split_hint(&text);
                failure.causes.push(cause.to_string());
                failure.hint = failure.hint.or(hint);
                last = text;
            }
            current = e.source();
        }
        match kind.and_then(path_hint) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Sets the code.
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Sets what to do, in the words of the command line where the library's do not fit.
    pub fn replace_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to do, unless there is a hint already.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The text for stderr, a newline at its end.
    pub fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        for cause in &self.causes {
            let _ = writeln!(text, "  caused by: {cause}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
        text
    }
}

/// The library's errors carry what to do as a last line `hint: ...`.
fn split_hint(text: &str) -> (&str, Option<String>) {
    match text.split_once("\nhint: ") {
        Some((message, hint)) => (message, Some(hint.to_string())),
        None => (text, None),
    }
}

/// What to do about a path that the system refuses.
fn path_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::PermissionDenied => Some("check the permissions of the path"),
        ErrorKind::ReadOnlyFilesystem => Some("choose a path on a disk that can be written"),
        ErrorKind::NotADirectory => Some("a part of the path is a file: choose another path"),
        _ => None,
    }
}

fn is_exhausted(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::StorageFull
            | ErrorKind::OutOfMemory
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
    )
}

/// Turns a library error into a failure with a code.
pub trait OrFail<T> {
    /// The user's input is at fault (exit 3).
    fn or_invalid(self) -> Result<T>;
    /// Nobody's input is at fault (exit 1).
    fn or_unexpected(self) -> Result<T>;
}

impl<T, E: StdError + 'static> OrFail<T> for std::result::Result<T, E> {
    fn or_invalid(self) -> Result<T> {
        self.map_err(|e| Failure::from_error(Code::Invalid, &e))
    }

    fn or_unexpected(self) -> Result<T> {
        self.map_err(|e| Failure::from_error(Code::Unexpected, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("weights.bin: cannot write")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Transparent(#[from] Outer);

    #[test]
    fn causes_are_listed_once() {
        let error = Transparent(Outer(std::io::Error::other("the wire broke")));
        let failure = Failure::from_error(Code::Invalid, &error).hint("mend it");
        assert_eq!(
            failure.render(),
            "error: weights.bin: cannot write\n  caused by: the wire broke\nhint: mend it\n"
        );
        assert_eq!(failure.code, Code::Invalid);
    }

    #[test]
    fn a_full_disk_exits_5_wherever_it_is_in_the_chain() {
        let error = Outer(std::io::Error::from(ErrorKind::StorageFull));
        let failure = Failure::from_error(Code::Invalid, &error);
        assert_eq!(failure.code, Code::Resources);
    }

    #[test]
    fn a_refused_path_has_a_hint() {
        let error = Outer(std::io::Error::from(ErrorKind::ReadOnlyFilesystem));
        let failure = Failure::from_error(Code::Unexpected, &error);
        assert!(
            failure.render().contains("\nhint: "),
            "{}",
            failure.render()
        );
    }

    #[derive(Debug, thiserror::Error)]
    #[error("config.json: not there\nhint: give a snapshot directory")]
    struct Hinted;

    #[test]
    fn a_hint_of_the_library_becomes_the_hint_line() {
        let failure = Failure::from_error(Code::Invalid, &Hinted).hint("another");
        assert_eq!(
            failure.render(),
            "error: config.json: not there\nhint: give a snapshot directory\n"
        );
    }
}
