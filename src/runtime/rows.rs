//! Rows of K and V into the caches of decode, `(slots, heads, length, width)`.

use super::error::{Error, Result};
use super::tensor::{Data, Tensor};
use std::sync::Arc;

/// The dims of a tensor of four.
fn dims(tensor: &Tensor) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(tensor.shape()).map_err(|_| Error::TensorLength {
        shape: tensor.shape().to_vec(),
        expected: 4,
        got: tensor.shape().len(),
    })
}

/// Runs `change` on the elements of a float tensor.
fn change(tensor: &mut Tensor, change: impl FnOnce(&mut [f32])) -> Result<()> {
    let shape = tensor.shape().to_vec();
    match std::mem::replace(tensor, Tensor::empty()).into_data() {
        Data::F32(mut values) => {
            change(Arc::make_mut(&mut values).as_mut_slice());
            *tensor = Tensor::new(&shape, Data::F32(values))?;
            Ok(())
        }
        other => Err(Error::TensorKind {
            expected: super::tensor::Kind::Float,
            got: other.kind(),
        }),
    }
}

/// Checks that `rows` `[slots, heads, n, d]` fit a cache, of `slots` slots.
fn check(cache: [usize; 4], slots: usize, rows: [usize; 4], count: usize) -> Result<()> {
    let fits = rows[0] == slots && rows[1] <= cache[1] && rows[3] <= cache[3] && count <= rows[2];
    match fits {
        true => Ok(()),
        false => Err(Error::Disagreement {
            what: "rows for a cache",
            left_name: "the cache".to_owned(),
            left: format!("{cache:?}"),
            right_name: "the rows".to_owned(),
            right: format!("{count} of {rows:?}"),
        }),
    }
}

/// Puts the first `count` rows of `rows` `(1, heads, n, d)` into slot `slot` of an empty cache: from position 0 on, or, where
/// the newest row is `last` of a window, the newest of them at the end.
pub(super) fn fill(
    cache: &mut Tensor,
    slot: usize,
    rows: &Tensor,
    count: usize,
    last: bool,
) -> Result<()> {
    let (c, r) = (dims(cache)?, dims(rows)?);
    check(c, 1, r, count)?;
    let [slots, heads, length, width] = c;
    let from = if last {
        count.saturating_sub(length)
    } else {
        0
    };
    let to = if last {
        length.saturating_sub(count)
    } else {
        0
    };
    if slot >= slots || count - from > length {
        check(c, 0, r, count)?;
    }
    let values = rows.as_f32()?;
    change(cache, |out| {
        for head in 0..r[1] {
            for (i, row) in (from..count).enumerate() {
                let source = (head * r[2] + row) * r[3];
                let target = ((slot * heads + head) * length + to + i) * width;
                out[target..target + r[3]].copy_from_slice(&values[source..source + r[3]]);
            }
        }
    })
}

/// Takes over the first `count` of new rows `(slots, heads, n, d)`: at position `at`, or behind the newest, the oldest
/// dropped.
pub(super) fn append(
    cache: &mut Tensor,
    rows: &Tensor,
    count: usize,
    at: Option<usize>,
) -> Result<()> {
    let (c, r) = (dims(cache)?, dims(rows)?);
    let [slots, heads, length, width] = c;
    check(c, slots, r, count)?;
    if at.is_some_and(|at| at + count > length) {
        check(c, 0, r, count)?;
    }
    let values = rows.as_f32()?;
    let skipped = if at.is_none() {
        count.saturating_sub(length)
    } else {
        0
    };
    let taken = count - skipped;
    change(cache, |out| {
        for (block, slot) in out.chunks_exact_mut((length * width).max(1)).enumerate() {
            let (index, head) = (block / heads, block % heads);
            if at.is_none() {
                slot.copy_within(taken * width.., 0);
            }
            let start = at.unwrap_or(length - taken);
            for i in 0..taken {
                let row = &mut slot[(start + i) * width..(start + i + 1) * width];
                row.fill(0.0);
                if head < r[1] {
                    let source = ((index * r[1] + head) * r[2] + skipped + i) * r[3];
                    row[..r[3]].copy_from_slice(&values[source..source + r[3]]);
                }
            }
        }
    })
}
