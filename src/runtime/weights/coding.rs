//! How the elements of a stored value are read.

use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::Arc;

/// The bytes of a stored value, owned or in a mapped file.
pub(crate) type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// How the bits of one stored element are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Unsigned, 1 to 8 bits.
    Unsigned(u32),
    /// Two's complement, 1 to 8 bits.
    Signed(u32),
    /// fp16.
    F16,
    /// fp32.
    F32,
}

impl Coding {
    /// Bits of an element.
    pub fn bits(self) -> usize {
        match self {
            Coding::Unsigned(bits) | Coding::Signed(bits) => bits as usize,
            Coding::F16 => 16,
            Coding::F32 => 32,
        }
    }

    /// Bytes of `elements` elements; `None` beyond `usize`.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        Some(elements.checked_mul(self.bits())?.div_ceil(8))
    }

    /// Reads `out.len()` elements from element `first` on.
    pub fn read(self, bytes: &[u8], first: usize, out: &mut [f32]) {
        match self {
            Coding::Unsigned(bits) => {
                each_code(bytes, bits, first, out, f32::from);
            }
            Coding::Signed(bits) => {
                let shift = 8 - bits;
                each_code(bytes, bits, first, out, |code| {
                    f32::from(((code << shift) as i8) >> shift)
                });
            }
            Coding::F16 => read_f16(&bytes[first * 2..(first + out.len()) * 2], out),
            Coding::F32 => {
                let (values, _) = bytes[first * 4..].as_chunks::<4>();
                for (o, &v) in out.iter_mut().zip(values) {
                    *o = f32::from_le_bytes(v);
                }
            }
        }
    }
}

/// Maps the `bits`-wide codes from element `first` on; the stream is little-endian, lowest bits first.
pub(super) fn each_code<T>(
    bytes: &[u8],
    bits: u32,
    first: usize,
    out: &mut [T],
    f: impl Fn(u8) -> T,
) {
    let mask = ((1u32 << bits) - 1) as u16;
    let mut bit = first * bits as usize;
    for o in out {
        let byte = bit / 8;
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |&b| u16::from(b));
        *o = f((((high << 8) | low) >> (bit % 8) & mask) as u8);
        bit += bits as usize;
    }
}

fn read_f16(bytes: &[u8], out: &mut [f32]) {
    if let Ok(values) = bytemuck::try_cast_slice::<u8, f16>(bytes) {
        return values.convert_to_f32_slice(out);
    }
    for (o, &v) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = f16::from_le_bytes(v).to_f32();
    }
}
