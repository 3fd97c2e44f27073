//! What can go wrong in the runtime. Every variant names the op, value, chunk or feature it is about.

use super::kind::Kind;

/// An error of any source, as [`crate::runtime::TokenRows`] implementations return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The package could not be opened or is inconsistent.
    #[error(transparent)]
    Package(#[from] crate::package::Error),
    /// The package has no such function.
    #[error("the package has no function `{name}`; it has: {available}")]
    UnknownFunction { name: String, available: String },
    /// An op the runtime does not execute.
    #[error("op `{op}` of type {op_type}: the runtime does not support this op type")]
    UnsupportedOp { op: String, op_type: String },
    /// An op, with an attribute or operand the runtime does not execute.
    #[error("op `{op}` ({op_type}): unsupported: {what}")]
    Unsupported {
        op: String,
        op_type: String,
        what: String,
    },
    /// An op whose operands or attributes do not fit together.
    #[error("op `{op}` ({op_type}), argument `{arg}`: expected {expected}, got {got}")]
    BadArgument {
        op: String,
        op_type: String,
        arg: String,
        expected: String,
        got: String,
    },
    /// The file declares another type for a value than the runtime derives.
    #[error(
        "op `{op}` ({op_type}) gives {derived} for value `{value}`, the file declares {declared}"
    )]
    DeclaredType {
        op: String,
        op_type: String,
        value: String,
        derived: String,
        declared: String,
    },
    /// An op reads a value that nothing before it defines.
    #[error("op `{op}` reads `{value}`, which nothing before it defines")]
    UndefinedValue { op: String, value: String },
    /// A value was asked to be kept that the function does not compute.
    #[error("no value named `{0}` to keep")]
    UnknownValue(String),
    /// A feature is missing from the inputs of a run.
    #[error("input `{0}` is missing")]
    MissingInput(String),
    /// A feature was given that the function does not declare.
    #[error("no input named `{name}`; the function has: {available}")]
    UnknownInput { name: String, available: String },
    /// A feature has another shape or kind than declared.
    #[error("input `{name}`: expected {expected}, got {got}")]
    InputType {
        name: String,
        expected: String,
        got: String,
    },
    /// Shape and number of elements of a tensor disagree.
    #[error("a tensor of shape {shape:?} needs {expected} elements, got {got}")]
    TensorLength {
        shape: Vec<usize>,
        expected: usize,
        got: usize,
    },
    /// A state or cache for which there is no memory.
    #[error("no memory for a state or cache of {ty}")]
    TooLarge { ty: String },
    /// A tensor holds another kind of element than asked for.
    #[error("expected a tensor of {expected} elements, got {got}")]
    TensorKind { expected: Kind, got: Kind },
    /// An index read at run time is out of range.
    #[error("op `{op}`: index {index} is out of range 0..{len}")]
    IndexRange { op: String, index: i64, len: usize },
    /// A result whose shape depends on computed values has another shape than declared.
    #[error("op `{op}`: expected a result of shape {expected:?}, got {got:?}")]
    RunShape {
        op: String,
        expected: Vec<usize>,
        got: Vec<usize>,
    },
    /// Two chunks, or a chunk and the configuration, disagree.
    #[error("{what}: {left_name} has {left}, {right_name} has {right}")]
    Disagreement {
        what: &'static str,
        left_name: String,
        left: String,
        right_name: String,
        right: String,
    },
    /// A chunk's feature that the decode loop cannot fill or read.
    #[error("chunk `{chunk}`: {what}")]
    Chain { chunk: String, what: String },
    /// A step of the decode loop failed inside a chunk.
    #[error("chunk `{chunk}` at position {position}")]
    InChunk {
        chunk: String,
        position: usize,
        #[source]
        source: Box<Error>,
    },
    /// A function that the bundle does not have.
    #[error("the bundle has no {what} function")]
    NoFunction { what: &'static str },
    /// Prefill begins a context, with at least one token.
    #[error(
        "prefill of {tokens} tokens at position {position}: expected at least one, at position 0"
    )]
    Prefill { position: usize, tokens: usize },
    /// Verify takes as many tokens as its function is wide, and commit at most as many as were verified.
    #[error("{got} tokens: verify takes {expected}, and commit at most as many as were verified")]
    VerifyWidth { expected: usize, got: usize },
    /// All positions of the context are used; the last slot is never overwritten.
    #[error("the context of {context} tokens is full")]
    ContextFull { context: usize },
    /// An earlier step failed half way, and the caches with it.
    #[error("an earlier step failed; reset the decoder first")]
    NeedsReset,
    /// Nothing to feed.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// An embedding or per-layer row could not be read.
    #[error("token row {token}")]
    TokenRow {
        token: u32,
        #[source]
        source: BoxError,
    },
    /// A sampling parameter outside its range.
    #[error("sampling: {name} must be {expected}, got {got}")]
    Sampling {
        name: &'static str,
        expected: &'static str,
        got: f64,
    },
    /// Logits that no distribution can be made of.
    #[error("sampling: logit {index} is {value}")]
    Logit { index: usize, value: f32 },
    /// Logits of no element.
    #[error("sampling: no logits")]
    NoLogits,
    /// The thread pool could not be started.
    #[error("could not start {threads} threads")]
    Threads {
        threads: usize,
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}
