//! What can be wrong with a snapshot on disk or on the hub.

mod adapter;

use std::path::PathBuf;

pub use adapter::AdapterError;

/// An error of this room. Every variant names the file, field or tensor at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory that should hold a snapshot lacks a file.
    #[error("{dir}: no {file}\nhint: {hint}")]
    MissingFile {
        /// The snapshot directory.
        dir: PathBuf,
        /// The file or files looked for.
        file: String,
        /// What to do about it.
        hint: String,
    },
    /// A file is not the JSON it should be.
    #[error("{path}: line {line}, column {column}: {message}")]
    Json {
        /// The file.
        path: PathBuf,
        /// One-based line.
        line: usize,
        /// Column as serde_json counts it.
        column: usize,
        /// What the parser said.
        message: String,
    },
    /// A configuration field is absent.
    #[error("{path}: `{field}` is missing, expected {expected}")]
    MissingField {
        /// The file.
        path: PathBuf,
        /// Dotted name of the field.
        field: String,
        /// What kind of value belongs there.
        expected: String,
    },
    /// A configuration field has a value that makes no sense.
    #[error("{path}: `{field}`: expected {expected}, got {got}")]
    InvalidField {
        /// The file.
        path: PathBuf,
        /// Dotted name of the field.
        field: String,
        /// What is allowed.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A configuration field asks for arithmetic that is not implemented.
    #[error("{path}: `{field}` = {got} is not supported, supported: {supported}")]
    UnsupportedField {
        /// The file.
        path: PathBuf,
        /// Dotted name of the field.
        field: String,
        /// What is there.
        got: String,
        /// What is supported.
        supported: String,
    },
    /// A safetensors file is damaged: truncated, or its header does not describe its bytes.
    #[error("{path}: {what}: expected {expected}, got {got}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// The property that is wrong.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A tensor's header entry is wrong.
    #[error("{path}: tensor {tensor}: {what}: expected {expected}, got {got}")]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The property that is wrong.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A folder that is known to be something else than a snapshot.
    #[error("{dir}: {what}\nhint: {hint}")]
    NotASnapshot {
        /// The folder.
        dir: PathBuf,
        /// What it is.
        what: String,
        /// What to give instead.
        hint: String,
    },
    /// A file that is evidently something else than its name says.
    #[error("{path}: {what}\nhint: {hint}")]
    NotTheFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A tensor that the model needs is in no file.
    #[error("{dir}: tensor {tensor} is missing, expected shape {expected:?}{notes}{}", hint_line(.hint))]
    MissingTensor {
        /// The snapshot directory.
        dir: PathBuf,
        /// Name without prefix.
        tensor: String,
        /// The shape that the config implies.
        expected: Vec<usize>,
        /// What is there instead, each after a semicolon; empty when nothing is known.
        notes: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A tensor that is no part of the model, and of no tower beside it.
    #[error(
        "{path}: tensor {tensor}{} not part of the model that config.json describes, expected the names of its text decoder, \
         {prefix}*, lm_head.weight and known towers\nhint: {hint}", and_more(*.more)
    )]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The full name of the first such tensor.
        tensor: String,
        /// How many more there are.
        more: usize,
        /// The text decoder's prefix.
        prefix: &'static str,
        /// What it may mean.
        hint: String,
    },
    /// A tensor has another shape than the config implies.
    #[error("{path}: tensor {tensor}: expected shape {expected:?}, got {got:?}")]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The shape that the config implies.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor is stored in a number format that is not read.
    #[error("{path}: tensor {tensor}: dtype {got} is not supported, supported: BF16, F16, F32{}", hint_line(.hint))]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The dtype in the header.
        got: String,
        /// What to do about it, where the dtype tells.
        hint: Option<String>,
    },
    /// The parts of a weight that is stored as integers do not make one, or not the one that config.json describes.
    #[error(
        "{path}: tensor {tensor}: expected {expected}, got {got}\nhint: {}",
        CODES_HINT
    )]
    BadCodes {
        /// The file.
        path: PathBuf,
        /// Full name of the part at fault.
        tensor: String,
        /// What should be there.
        expected: String,
        /// What is.
        got: String,
    },
    /// The step of integers in a file is negative.
    #[error(
        "tensor {tensor}: the step of element {index} is {value}, expected one that is not negative"
    )]
    NegativeStep {
        /// Name of the weight without prefix.
        tensor: String,
        /// Index of the element, or of the first with that step, in row-major order.
        index: usize,
        /// The step.
        value: f32,
    },
    /// The same tensor is in two files, or twice in one.
    #[error("tensor {tensor} is in {first} and again in {second}")]
    DuplicateTensor {
        /// The tensor's full name, or its name without prefix when two prefixes collide.
        tensor: String,
        /// Where it was seen first.
        first: PathBuf,
        /// Where it was seen again.
        second: PathBuf,
    },
    /// The index names a file that does not hold the tensor.
    #[error("{index}: tensor {tensor} should be in {shard}, which does not hold it")]
    IndexMismatch {
        /// The index file.
        index: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The shard named.
        shard: String,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor}: element {index} is {value}, expected a finite number")]
    NotFinite {
        /// Name without prefix.
        tensor: String,
        /// Element index in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A finite weight is beyond fp16's largest value, 65504.
    #[error("tensor {tensor}: element {index} is {value}, beyond the range of fp16 (65504)")]
    Fp16Range {
        /// Name without prefix.
        tensor: String,
        /// Element index in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Elements beyond the end of a tensor were asked for, or the buffer has another length.
    #[error(
        "tensor {tensor}: cannot read elements {start}..{end} of {len} into a buffer of {buffer}"
    )]
    Range {
        /// Name without prefix.
        tensor: String,
        /// First element asked for.
        start: usize,
        /// One past the last element asked for.
        end: usize,
        /// Elements in the tensor.
        len: usize,
        /// Elements in the buffer.
        buffer: usize,
    },
    /// The model argument is neither a directory nor a hub id.
    #[error("{model}: neither a directory nor a hub id, expected a path or org/name[@revision]")]
    BadModelId {
        /// What was given.
        model: String,
    },
    /// The hub refused or failed.
    #[error("{model}: {message}\nhint: {hint}")]
    Hub {
        /// The hub id.
        model: String,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The tokenizer cannot be loaded or refused its input.
    #[error("{path}: {message}")]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What the tokenizers library said.
        message: String,
    },
    /// The chat template cannot be compiled or rendered.
    #[error("{path}: chat template: {message}")]
    Template {
        /// The file that holds the template.
        path: PathBuf,
        /// What the template engine said, with its line.
        message: String,
    },
    /// An adapter cannot be read or merged.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// What to do about parts that do not fit.
const CODES_HINT: &str = "config.json may belong to another checkpoint, or the file was edited: fetch both again, or take \
     google/gemma-4-...-it-qat-q4_0-unquantized";

/// Result of this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn and_more(more: usize) -> String {
    match more {
        0 => " is".into(),
        more => format!(" and {more} more are"),
    }
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref()
        .map_or(String::new(), |hint| format!("\nhint: {hint}"))
}
