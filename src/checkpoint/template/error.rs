//! Why a template cannot be compiled or rendered.

/// An error and the line where it arose.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateError {
    /// One-based line; 0 until it is known.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

impl TemplateError {
    /// An error at a line.
    pub fn at(line: u32, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }

    /// An error whose line is filled in further up.
    pub fn new(message: impl Into<String>) -> Self {
        Self::at(0, message)
    }

    /// The error of a construct that Python has and this engine has not.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(format!("{what} is not supported"))
    }

    /// Puts a line to an error that has none yet.
    pub fn or_line(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.message),
            line => write!(f, "{} (line {line})", self.message),
        }
    }
}

impl std::error::Error for TemplateError {}

/// Result of this room.
pub type Result<T, E = TemplateError> = std::result::Result<T, E>;
