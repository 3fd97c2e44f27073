//! Constants of a package, as they are read.

use std::borrow::Cow;
use std::sync::Arc;

use memmap2::Mmap;

use crate::mil::{Immediate, TensorType};

/// Integer blobs of at most this many elements are read at once: they may be attributes.
const MAX_ATTRIBUTE_ELEMENTS: usize = 4096;

/// What is bound to an argument.
#[derive(Debug, Clone)]
pub enum Binding {
    /// The value of this name.
    Name(String),
    /// A value in place (arguments of constexpr ops).
    Value(ReadValue),
}

/// A constant of a package.
#[derive(Debug, Clone)]
pub enum ReadValue {
    /// Its elements are in the model.
    Immediate(Immediate),
    /// Its elements are in a weight file.
    Blob {
        /// Element type and shape.
        ty: TensorType,
        /// Name of the weight file.
        name: Arc<str>,
        /// The whole weight file.
        file: Arc<Mmap>,
        /// Where the data begins.
        offset: usize,
        /// Bytes of data, as [`TensorType::bytes`].
        len: usize,
    },
}

impl ReadValue {
    /// Element type and shape.
    pub fn ty(&self) -> TensorType {
        match self {
            ReadValue::Immediate(value) => value.ty(),
            ReadValue::Blob { ty, .. } => ty.clone(),
        }
    }

    /// The packed little-endian elements; borrowed from the file for a blob.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            ReadValue::Immediate(value) => Cow::Owned(value.to_bytes()),
            ReadValue::Blob {
                file, offset, len, ..
            } => Cow::Borrowed(&file[*offset..*offset + *len]),
        }
    }

    /// The value with its elements in memory, if it is in the model or a small integer tensor.
    pub(super) fn attribute(&self) -> Option<Immediate> {
        match self {
            ReadValue::Immediate(value) => Some(value.clone()),
            ReadValue::Blob { ty, .. } => {
                let small = ty.elements().is_some_and(|n| n <= MAX_ATTRIBUTE_ELEMENTS);
                let integer = !ty.dtype.is_float() && !ty.dtype.is_sub_byte();
                (small && integer)
                    .then(|| Immediate::from_bytes(ty, &self.bytes()).ok())
                    .flatten()
            }
        }
    }
}
