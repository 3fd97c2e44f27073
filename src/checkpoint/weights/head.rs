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
