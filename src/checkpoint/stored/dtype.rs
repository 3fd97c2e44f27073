//! Number formats of stored weights, and elements of them as f32.

use half::{bf16, f16};

/// Number formats that weights are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredDType {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl StoredDType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    /// The format of a safetensors name, `None` for one that weights are not read from.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "BF16" => Some(Self::Bf16),
            "F16" => Some(Self::F16),
            "F32" => Some(Self::F32),
            _ => None,
        }
    }

    /// Little-endian elements as f32, exactly. What is longer than the other is left out.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Bf16 => convert(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            Self::F16 => convert(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Self::F32 => convert(bytes, out, f32::from_le_bytes),
        }
    }

    /// Little-endian elements from `start` on as f32; those beyond the end are 0.
    pub(in crate::checkpoint) fn read(self, bytes: &[u8], start: usize, out: &mut [f32]) {
        let size = self.size();
        let begin = start.saturating_mul(size).min(bytes.len());
        let end = begin.saturating_add(out.len() * size).min(bytes.len());
        let bytes = &bytes[begin..end];
        let (there, beyond) = out.split_at_mut(bytes.len() / size);
        self.decode(bytes, there);
        beyond.fill(0.0);
    }
}

/// Converts little-endian elements of `N` bytes.
pub(in crate::checkpoint) fn convert<const N: usize, T>(
    bytes: &[u8],
    out: &mut [T],
    one: impl Fn([u8; N]) -> T,
) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (slot, element) in out.iter_mut().zip(elements) {
        *slot = one(*element);
    }
}
