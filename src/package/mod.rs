//! Core ML `.mlpackage`: manifest, model spec and weight blobs; writer and reader.
//!
//! ```text
//! X.mlpackage/
//!   Manifest.json
//!   Data/com.apple.CoreML/model.mlmodel          protobuf, CoreML.Specification.Model
//!   Data/com.apple.CoreML/weights/weight.bin     blobs
//!   Data/com.apple.CoreML/weights/weight_1.bin   more of them, where one file would be too large; weight_2.bin, ...
//! ```
//!
//! A weight file is little-endian and 64-byte aligned, with zeros between blobs and nothing after the
//! last. It begins with 64 bytes: u32 count, u32 version (2), zeros. Each blob is 64 bytes of
//! metadata followed at once by its data:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u32 | 0xDEADBEEF |
//! | 4 | u32 | element type ([`crate::mil::DType::blob_number`]) |
//! | 8 | u64 | bytes of data |
//! | 16 | u64 | offset of the data in the file |
//! | 24 | u64 | unused bits in the last byte (sub-byte types) |
//! | 32 | 32 bytes | zero |
//!
//! A constant in the model names the file and the offset of the *metadata*. Sub-byte elements are
//! one little-endian bit stream over the whole tensor: element `i` at bit `i * bits`.
//!
//! No file reaches [`PackageSpec::file_limit`]: a weight that would take the file there begins the next one, with all of its
//! parts. A blob whose bytes are there already is shared, in whichever file it lies.
//!
//! [`write_package`] streams weights from a [`ConstSource`] and writes into the directory it is
//! given, nothing else; making that atomic is for the caller. [`rewrite_package`] writes another program
//! over the weights of a package that is there. [`Package::open`] checks everything
//! that coremltools' loader checks and what it does not: the description against the program,
//! types of constants, the opset, names, the layout of weight files down to reserved bytes.

mod blob;
pub mod error;
mod forecast;
mod manifest;
mod places;
mod print;
mod proto;
mod read;
mod rewrite;
mod spec;
mod steady;
mod storage;
#[cfg(test)]
mod tests;
mod write;

pub use blob::{BlobHeader, HEADER_BYTES, align, end_of_blob, weight_file_name};
pub use error::{BoxError, Error, Result};
pub use forecast::{KnownData, PackageForecast, Shard, Shards, StorageOf, forecast_package};
pub use places::{BlobPlace, ConstPlace, PartPlace};
pub use read::{Binding, Package, ReadFunction, ReadOp, ReadValue};
pub(crate) use rewrite::link_or_copy;
pub use rewrite::rewrite_package;
pub use spec::ModelDescription;
pub use steady::SteadyFile;
pub use storage::{Part, PartSpec, Storage};
pub use write::{ConstSource, PackageReport, PackageSpec, PartSink, write_package};

/// Where the model is, below the package directory.
pub const MODEL_PATH: &str = "Data/com.apple.CoreML/model.mlmodel";

/// Where the weights are, below the package directory.
pub const WEIGHTS_DIR: &str = "Data/com.apple.CoreML/weights";

/// The file that blobs are written to first.
pub const WEIGHT_FILE: &str = "weight.bin";

/// Every weight file has fewer bytes than this: with a blob file of 2 GiB no op of a model is placed on the Neural Engine, with
/// the same blobs in several smaller files all are (device measurements published with gemma-coreml-chat).
pub const WEIGHT_FILE_LIMIT: u64 = 1 << 31;

/// A weight file with more bytes than this may fall back to the GPU on some devices: reports put the limit between 1.0 and
/// 1.4 GB, and ANEMLL splits models at 950 MB (docs/calc_chunk_split.md of its repository).
pub const LARGE_WEIGHT_FILE: u64 = 950_000_000;

/// What `@model_path/weights/` begins a blob reference with.
const WEIGHTS_PREFIX: &str = "@model_path/weights/";

/// Constants with fewer elements are kept in the model, as coremltools does.
pub const MIN_BLOB_ELEMENTS: usize = 10;
