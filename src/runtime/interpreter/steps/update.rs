//! Rows that are put into a cache where it lies.

use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::held::Strided;
use crate::runtime::values::tensor::Tensor;

/// The update of one slot.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub cache: usize,
    pub slot: usize,
    pub rule: Rule,
}

/// How a row gets into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Behind the others. Operand: the row.
    Shift,
    /// Where `update` is 1. Operands: row, `update`.
    Scatter,
    /// At a computed place. Operands: row, `begin`, `end`.
    Place,
}

impl Update {
    /// Changes the cache.
    pub fn run(&self, op: &str, cache: &mut Strided, inputs: &[&Tensor]) -> Result<()> {
        let [_, heads, rows, width] = cache.dims();
        let row = inputs[0].as_f32()?;
        match self.rule {
            Rule::Shift => {
                for (head, row) in row.chunks_exact(width.max(1)).enumerate() {
                    cache.write((self.slot, head, rows), 0, row);
                }
            }
            Rule::Scatter => scatter(cache, (self.slot, heads), row, inputs[1].as_f32()?),
            Rule::Place => {
                let begin = place(op, cache, inputs)?;
                for (head, row) in row.chunks_exact(inputs[0].shape()[3].max(1)).enumerate() {
                    cache.write((begin[0], begin[1] + head, begin[2]), begin[3], row);
                }
            }
        }
        Ok(())
    }
}

/// `old * (1 - update) + row * update`: rows are left alone where that is what they were.
fn scatter(cache: &mut Strided, (slot, heads): (usize, usize), rows: &[f32], update: &[f32]) {
    let width = rows.len() / heads.max(1);
    let one_hot = update.iter().all(|&u| u == 0.0 || u == 1.0);
    let finite = cache.largest.is_finite() && rows.iter().all(|v| v.is_finite());
    let mut whole = Vec::with_capacity(width);
    for (head, row) in rows.chunks_exact(width.max(1)).enumerate() {
        if !(one_hot && finite) {
            cache.change((slot, head), |at, old| {
                for (o, &new) in old.iter_mut().zip(row) {
                    *o = *o * (1.0 - update[at]) + new * update[at];
                }
            });
            continue;
        }
        whole.clear();
        // What is left of the old value is a zero.
        whole.extend(row.iter().map(|v| v + 0.0));
        for at in (0..update.len()).filter(|&at| update[at] == 1.0) {
            cache.write((slot, head, at), 0, &whole);
        }
    }
}

/// Where a slice of computed bounds begins.
fn place(op: &str, cache: &Strided, inputs: &[&Tensor]) -> Result<[usize; 4]> {
    let (row, begin, end) = (inputs[0], inputs[1].as_i32()?, inputs[2].as_i32()?);
    let front = |v: i32, n: usize| i64::from(v) + if v < 0 { n as i64 } else { 0 };
    let mut at = [0; 4];
    let mut got = Vec::with_capacity(4);
    for (i, (&n, &size)) in cache.shape.iter().zip(row.shape()).enumerate() {
        let bounds = [begin, end].map(|b| b.get(i).map_or(0, |&v| front(v, n)));
        let [first, last] = bounds.map(|b| b.clamp(0, n as i64));
        got.push((last - first).max(0) as usize);
        at[i] = first as usize;
        if got[i] != size {
            return Err(Error::RunShape {
                op: op.to_owned(),
                expected: row.shape().to_vec(),
                got,
            });
        }
    }
    Ok(at)
}
