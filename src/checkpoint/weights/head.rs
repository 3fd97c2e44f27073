//! Whether a head repeats the embedding table.

use crate::checkpoint::error::Result;
use crate::checkpoint::tensor::TensorView;

/// Elements compared at a time.
const BLOCK: usize = 1 << 16;

/// Whether two tensors of one length have the same values, in whatever number formats. Reads up to the first difference.
///
/// # Errors
/// A NaN or an infinity where the bytes differ.
pub(super) fn same_values(a: &TensorView<'_>, b: &TensorView<'_>) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    let same_form = a.form() == b.form();
    if same_form && a.grid().is_some() && a.file_bytes() == b.file_bytes() {
        return Ok(true);
    }
    let same_form = same_form && a.grid().is_none();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for start in (0..a.len()).step_by(BLOCK) {
        let range = start..a.len().min(start + BLOCK);
        a.prefetch(range.end..range.end + BLOCK);
        b.prefetch(range.end..range.end + BLOCK);
        let size = a.dtype().size();
        let bytes = range.start * size..range.end * size;
        if same_form && a.file_bytes()[0][bytes.clone()] == b.file_bytes()[0][bytes] {
            continue;
        }
        left.resize(range.len(), 0.0);
        right.resize(range.len(), 0.0);
        a.read_f32(range.clone(), &mut left)?;
        b.read_f32(range, &mut right)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::stored::Grid;

    fn same(a: (Grid, &[u8], &[f32]), b: (Grid, &[u8], &[f32])) -> Result<bool> {
        let bytes =
            |steps: &[f32]| -> Vec<u8> { steps.iter().flat_map(|s| s.to_le_bytes()).collect() };
        let (of_a, of_b) = (bytes(a.2), bytes(b.2));
        let a = TensorView::of_codes("a", &[2, 4], a.0, a.1, &of_a);
        let b = TensorView::of_codes("b", &[2, 4], b.0, b.1, &of_b);
        same_values(&a, &b)
    }

    #[test]
    fn integers_are_compared_as_values_where_their_bytes_differ() {
        let four = Grid { nbits: 4, block: 4 };
        let (codes, steps) = ([0x98, 0xba, 0x10, 0x7f], [0.5, 2.0]);
        let whole = (four, &codes[..], &steps[..]);
        assert!(same(whole, whole).unwrap());
        // The same in bytes of their own, with two steps a row: 0 to 3, then -8, -7, 7, -1.
        let eight = Grid { nbits: 8, block: 2 };
        let bytes = [0x80, 0x81, 0x82, 0x83, 0x78, 0x79, 0x87, 0x7f];
        assert!(same(whole, (eight, &bytes, &[0.5, 0.5, 2.0, 2.0])).unwrap());
        assert!(!same(whole, (eight, &bytes, &[0.5, 0.5, 2.0, 1.0])).unwrap());
        let one_more = bytes.map(|code| code + 1);
        assert!(!same(whole, (eight, &one_more, &[0.5, 0.5, 2.0, 2.0])).unwrap());
        assert!(same(whole, (eight, &bytes, &[0.5, -0.5, 2.0, 2.0])).is_err());
    }
}
