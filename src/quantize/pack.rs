//! Sub-byte packing of the weight file: one little-endian bit stream, element `i` at bit
//! `i * nbits`, least significant bit first, no alignment of rows or groups. Elements of 3 and 6
//! bits cross bytes; the last byte is filled with zeros.

use super::error::{Error, Result};
use super::scheme::PALETTE_BITS;

/// Elements that are packed at once; 8 elements of `n` bits are `n` whole bytes.
const LANES: usize = 8;

/// Bytes that `n` elements of `nbits` take.
pub fn packed_len(n: usize, nbits: u8) -> usize {
    let (whole, rest) = (n / LANES, n % LANES);
    whole * usize::from(nbits) + (rest * usize::from(nbits)).div_ceil(8)
}

/// Packs a stream of values that comes in pieces of any length. Only the last byte of the whole
/// stream is padded.
#[derive(Debug, Clone)]
pub struct BitPacker {
    nbits: u8,
    pending: [u8; LANES],
    pending_len: usize,
}

impl BitPacker {
    /// An empty stream of `nbits` (1, 2, 3, 4, 6 or 8) a value.
    pub fn new(nbits: u8) -> Result<Self> {
        if !PALETTE_BITS.contains(&nbits) {
            return Err(Error::Bits { nbits });
        }
        Ok(BitPacker {
            nbits,
            pending: [0; LANES],
            pending_len: 0,
        })
    }

    /// Appends the bytes that `values` complete to `out`; up to seven values wait for the next
    /// call. A value that does not fit is an error and nothing is appended.
    pub fn push(&mut self, values: &[u8], out: &mut Vec<u8>) -> Result<()> {
        check_range(values, self.nbits)?;
        let mut rest = values;
        if self.pending_len > 0 {
            let take = rest.len().min(LANES - self.pending_len);
            let (head, tail) = rest.split_at(take);
            self.pending[self.pending_len..self.pending_len + take].copy_from_slice(head);
            self.pending_len += take;
            rest = tail;
            if self.pending_len < LANES {
                return Ok(());
            }
            let bytes = squeeze(self.pending, self.nbits).to_le_bytes();
            out.extend_from_slice(&bytes[..usize::from(self.nbits)]);
        }
        let (whole, tail) = rest.as_chunks::<LANES>();
        pack_whole(whole, self.nbits, out);
        self.pending[..tail.len()].copy_from_slice(tail);
        self.pending_len = tail.len();
        Ok(())
    }

    /// Appends what waits, the last byte padded with zero bits, and starts a new stream.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.pending[self.pending_len..].fill(0);
        let bytes = squeeze(self.pending, self.nbits).to_le_bytes();
        out.extend_from_slice(&bytes[..packed_len(self.pending_len, self.nbits)]);
        self.pending_len = 0;
    }
}

/// Packs `values` as one stream, appended to `out`.
pub fn pack(values: &[u8], nbits: u8, out: &mut Vec<u8>) -> Result<()> {
    let mut packer = BitPacker::new(nbits)?;
    out.reserve(packed_len(values.len(), nbits));
    packer.push(values, out)?;
    packer.finish(out);
    Ok(())
}

/// Packs two's complement values of `nbits` (2, 4 or 8) as one stream, appended to `out`.
pub fn pack_signed(values: &[i8], nbits: u8, out: &mut Vec<u8>) -> Result<()> {
    let limit = match nbits {
        2 | 4 | 8 => 1i16 << (nbits - 1),
        _ => return Err(Error::Bits { nbits }),
    };
    let fits = |v: &i8| (-limit..limit).contains(&i16::from(*v));
    if let Some(index) = values.iter().position(|v| !fits(v)) {
        let value = values[index] as u8;
        return Err(Error::PackRange {
            index,
            value,
            nbits,
        });
    }
    out.reserve(packed_len(values.len(), nbits));
    match nbits {
        2 => join::<4>(values, out),
        4 => join::<2>(values, out),
        _ => join::<1>(values, out),
    }
    Ok(())
}

/// Appends bytes of `N` values each.
fn join<const N: usize>(values: &[i8], out: &mut Vec<u8>) {
    let (bits, mask) = (8 / N, 0xff >> (8 - 8 / N));
    let byte = |values: &[i8]| {
        let places = values.iter().enumerate();
        places.fold(0, |byte, (i, v)| byte | (*v as u8 & mask) << (i * bits))
    };
    let (whole, rest) = values.as_chunks::<N>();
    out.extend(whole.iter().map(|values| byte(values)));
    if !rest.is_empty() {
        out.push(byte(rest));
    }
}

/// Reads `out.len()` values back. `bytes` has exactly their packed length.
pub fn unpack(bytes: &[u8], nbits: u8, out: &mut [u8]) -> Result<()> {
    if !PALETTE_BITS.contains(&nbits) {
        return Err(Error::Bits { nbits });
    }
    let expected = packed_len(out.len(), nbits);
    if bytes.len() != expected {
        return Err(Error::Length {
            what: "packed bytes",
            expected,
            got: bytes.len(),
        });
    }
    let width = usize::from(nbits);
    for (packed, values) in bytes.chunks(width).zip(out.chunks_mut(LANES)) {
        let mut word = [0u8; LANES];
        word[..packed.len()].copy_from_slice(packed);
        let word = u64::from_le_bytes(word);
        let mask = 0xff >> (8 - nbits);
        for (i, value) in values.iter_mut().enumerate() {
            *value = (word >> (i * width)) as u8 & mask;
        }
    }
    Ok(())
}

fn check_range(values: &[u8], nbits: u8) -> Result<()> {
    let all = values.iter().fold(0, |bits, v| bits | v);
    if nbits < 8 && all >> nbits != 0 {
        let index = values.iter().position(|v| v >> nbits != 0).unwrap_or(0);
        let value = values[index];
        return Err(Error::PackRange {
            index,
            value,
            nbits,
        });
    }
    Ok(())
}

fn pack_whole(whole: &[[u8; LANES]], nbits: u8, out: &mut Vec<u8>) {
    match nbits {
        1 => append::<1>(whole, out),
        2 => append::<2>(whole, out),
        3 => append::<3>(whole, out),
        4 => append::<4>(whole, out),
        6 => append::<6>(whole, out),
        _ => out.extend_from_slice(whole.as_flattened()),
    }
}

fn append<const N: usize>(whole: &[[u8; LANES]], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + whole.len() * N, 0);
    let (packed, _) = out[start..].as_chunks_mut::<N>();
    for (bytes, values) in packed.iter_mut().zip(whole) {
        let word = squeeze(*values, N as u8).to_le_bytes();
        bytes.copy_from_slice(&word[..N]);
    }
}

/// Eight bytes to eight fields of `nbits`: neighbours are joined in three steps, 1 to 2, 2 to 4
/// and 4 to 8 elements.
#[inline(always)]
fn squeeze(values: [u8; LANES], nbits: u8) -> u64 {
    let n = u32::from(nbits);
    let x = u64::from_le_bytes(values);
    let low = 0x00ff_00ff_00ff_00ff;
    let x = (x & low) | ((x >> 8) & low) << n;
    let low = 0x0000_ffff_0000_ffff;
    let x = (x & low) | ((x >> 16) & low) << (2 * n);
    let low = 0x0000_0000_ffff_ffff;
    (x & low) | (x >> 32) << (4 * n)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(values: &[u8], nbits: u8) -> Vec<u8> {
        let mut out = Vec::new();
        pack(values, nbits, &mut out).unwrap();
        out
    }

    /// Bytes that coremltools' own storage writer produced (format notes, weight file section).
    #[test]
    fn golden_bytes() {
        assert_eq!(packed(&[1, 0, 1, 1, 0, 0, 0, 1, 1], 1), [0x8d, 0x01]);
        assert_eq!(packed(&[0, 1, 2, 3, 1], 2), [0xe4, 0x01]);
        assert_eq!(
            packed(&[1, 2, 3, 4, 5, 6, 7, 0, 1], 3),
            [0xd1, 0x58, 0x1f, 0x01]
        );
        assert_eq!(packed(&[1, 2, 3, 15, 5], 4), [0x21, 0xf3, 0x05]);
        assert_eq!(packed(&[1, 2, 3, 63, 5], 6), [0x81, 0x30, 0xfc, 0x05]);
        let mut out = Vec::new();
        pack_signed(&[-8, -1, 7, 1, -2], 4, &mut out).unwrap();
        assert_eq!(out, [0xf8, 0x17, 0x0e]);
        out.clear();
        pack_signed(&[-2, -1, 1, 0, -2], 2, &mut out).unwrap();
        assert_eq!(out, [0b00_01_11_10, 0b10]);
        out.clear();
        pack_signed(&[-128, 127, -1], 8, &mut out).unwrap();
        assert_eq!(out, [0x80, 0x7f, 0xff]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut out = vec![7];
        let error = pack(&[3, 4], 2, &mut out).unwrap_err();
        let expected = Error::PackRange {
            index: 1,
            value: 4,
            nbits: 2,
        };
        assert_eq!(error, expected);
        assert_eq!(out, [7]);
        assert!(pack_signed(&[8], 4, &mut out).is_err());
        assert!(pack_signed(&[-9], 4, &mut out).is_err());
        assert!(pack_signed(&[-3], 2, &mut out).is_err());
        assert!(pack_signed(&[2], 2, &mut out).is_err());
        assert!(pack_signed(&[0], 3, &mut out).is_err());
        assert_eq!(out, [7]);
        assert_eq!(BitPacker::new(5).unwrap_err(), Error::Bits { nbits: 5 });
        assert!(unpack(&[0, 0], 4, &mut [0; 5]).is_err());
        assert!(unpack(&[0, 0], 7, &mut [0; 2]).is_err());
    }

    proptest! {
        /// Any width, any length, cut anywhere: the same bytes as bit by bit, and back again.
        #[test]
        fn pieces_make_one_stream(
            raw in prop::collection::vec(any::<u8>(), 0..200),
            width in 0usize..6,
            cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let nbits = PALETTE_BITS[width];
            let values: Vec<u8> = raw.iter().map(|v| v >> (8 - nbits)).collect();
            let mut expected = vec![0u8; packed_len(values.len(), nbits)];
            for (i, v) in values.iter().enumerate() {
                for b in 0..usize::from(nbits) {
                    let at = i * usize::from(nbits) + b;
                    expected[at / 8] |= (v >> b & 1) << (at % 8);
                }
            }
            let mut packer = BitPacker::new(nbits).unwrap();
            let (mut got, mut rest) = (Vec::new(), values.as_slice());
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                packer.push(piece, &mut got).unwrap();
                rest = tail;
            }
            packer.push(rest, &mut got).unwrap();
            packer.finish(&mut got);
            prop_assert_eq!(&got, &expected);
            let mut back = vec![0; values.len()];
            unpack(&got, nbits, &mut back).unwrap();
            prop_assert_eq!(back, values);
        }
    }
}
