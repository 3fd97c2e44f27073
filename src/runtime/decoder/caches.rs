//! Rows of K and V into the caches of decode, `(slots, heads, length, width)`.

use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::held::{Held, Strided};
use crate::runtime::values::tensor::Tensor;

/// The dims of a tensor of four.
fn dims(shape: &[usize]) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(shape).map_err(|_| Error::TensorLength {
        shape: shape.to_vec(),
        expected: 4,
        got: shape.len(),
    })
}

/// Runs `change` on a cache.
fn change(cache: &mut Held, change: impl FnOnce(&mut Strided)) -> Result<()> {
    let taken = std::mem::replace(cache, Held::Dense(Tensor::empty()));
    let mut taken = taken.into_cache()?;
    change(&mut taken);
    *cache = Held::Strided(taken);
    Ok(())
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
    cache: &mut Held,
    slot: usize,
    rows: &Tensor,
    count: usize,
    last: bool,
) -> Result<()> {
    let (c, r) = (dims(cache.shape())?, dims(rows.shape())?);
    check(c, 1, r, count)?;
    let [slots, _, length, _] = c;
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
    change(cache, |cache| {
        for head in 0..r[1] {
            for (i, row) in (from..count).enumerate() {
                let source = (head * r[2] + row) * r[3];
                let values = &values[source..source + r[3]];
                cache.write((slot, head, to + i), 0, values);
            }
        }
    })
}

/// Takes over the first `count` of new rows `(slots, heads, n, d)`: at position `at`, or behind the newest, the oldest
/// dropped.
pub(super) fn append(
    cache: &mut Held,
    rows: &Tensor,
    count: usize,
    at: Option<usize>,
) -> Result<()> {
    let (c, r) = (dims(cache.shape())?, dims(rows.shape())?);
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
    change(cache, |cache| {
        if at.is_none() {
            cache.make_room(taken);
        }
        let start = at.unwrap_or(length);
        let mut row = vec![0.0; width];
        for (slot, head) in (0..slots).flat_map(|s| (0..heads).map(move |h| (s, h))) {
            for i in 0..taken {
                row.fill(0.0);
                if head < r[1] {
                    let source = ((slot * r[1] + head) * r[2] + skipped + i) * r[3];
                    row[..r[3]].copy_from_slice(&values[source..source + r[3]]);
                }
                cache.write((slot, head, start + i), 0, &row);
            }
        }
        if at.is_none() {
            cache.advance(taken);
        }
    })
}
