//! Where the slots of a cache are, and how a row gets into one.

use crate::graph::emitter::Emitter;
use crate::graph::error::Result;
use crate::mil::{DType, SliceParams, Var};

/// How a new row gets into a slot.
pub(super) enum Rule {
    /// The oldest row goes, the new one is last.
    Shift,
    /// `old * keep + row * update`, with the one-hot `update` `(1, 1, length, 1)` and `keep = 1 - update`.
    Scatter { keep: Var, update: Var },
    /// In place, at a computed index: `at` and `after` (`at + 1`), int32 `(1,)`.
    Place { at: Var, after: Var },
}

/// The slots of a store, one per own-KV layer, `(1, heads, length, width)` each.
pub(super) enum Slots {
    /// Two tensors `(slots, heads, length, width)`, passed in and out under these names.
    Explicit {
        keys_in: Var,
        values_in: Var,
        names: [String; 2],
        keys: Vec<Var>,
        values: Vec<Var>,
    },
    /// One state `(2 * slots, heads, length, width)`.
    State {
        state: Var,
        /// What is in it now.
        tensor: Var,
        /// Whether K and V of a slot follow each other (2i, 2i + 1), or all K come first (i, slots + i).
        interleaved: bool,
        /// Slots so far, K and V alternating; kept to write the state as a whole.
        written: Vec<Var>,
    },
}

impl Slots {
    /// Declares the tensors that are passed in.
    pub fn explicit(
        e: &mut Emitter<'_>,
        [keys, values]: [&str; 2],
        shape: &[usize],
    ) -> Result<Self> {
        let names = [keys, values].map(|name| format!("{name}_out"));
        Ok(Self::Explicit {
            keys_in: e.fb.input(&format!("{keys}_in"), DType::Fp16, shape)?,
            values_in: e.fb.input(&format!("{values}_in"), DType::Fp16, shape)?,
            names,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Declares a state and reads it.
    pub fn state(
        e: &mut Emitter<'_>,
        name: &str,
        shape: &[usize],
        interleaved: bool,
    ) -> Result<Self> {
        let state = e.fb.state(name, shape)?;
        let tensor = e.fb.read_state(&state)?;
        Ok(Self::State {
            state,
            tensor,
            interleaved,
            written: Vec::new(),
        })
    }

    /// Puts a key and a value `(1, heads, 1, width)` into slot `slot` and gives the slot's keys and values.
    pub fn advance(
        &mut self,
        e: &mut Emitter<'_>,
        rule: &Rule,
        slot: usize,
        k: &Var,
        v: &Var,
    ) -> Result<(Var, Var)> {
        match self {
            Self::Explicit {
                keys_in,
                values_in,
                keys,
                values,
                ..
            } => {
                let k_old = slot_of(e, keys_in, slot)?;
                let v_old = slot_of(e, values_in, slot)?;
                keys.push(updated(e, rule, &k_old, k)?);
                values.push(updated(e, rule, &v_old, v)?);
                Ok((keys[slot].clone(), values[slot].clone()))
            }
            Self::State {
                state,
                tensor,
                interleaved,
                written,
            } => {
                let slots = tensor.shape()[0] / 2;
                let at = match interleaved {
                    true => [2 * slot, 2 * slot + 1],
                    false => [slot, slots + slot],
                };
                for (index, row) in at.into_iter().zip([k, v]) {
                    if let Rule::Place { at, after } = rule {
                        *tensor = placed(e, tensor, row, index, at, after)?;
                        e.fb.write_state(state, tensor)?;
                        *tensor = e.fb.read_state(state)?;
                    } else {
                        let old = slot_of(e, tensor, index)?;
                        written.push(updated(e, rule, &old, row)?);
                    }
                }
                match written.as_slice() {
                    [.., keys, values] => Ok((keys.clone(), values.clone())),
                    _ => Ok((slot_of(e, tensor, at[0])?, slot_of(e, tensor, at[1])?)),
                }
            }
        }
    }

    /// The first slot as it came in: for a kind without layers.
    pub fn untouched(&self, e: &mut Emitter<'_>) -> Result<(Var, Var)> {
        match self {
            Self::Explicit {
                keys_in, values_in, ..
            } => Ok((slot_of(e, keys_in, 0)?, slot_of(e, values_in, 0)?)),
            Self::State { tensor, .. } => Ok((slot_of(e, tensor, 0)?, slot_of(e, tensor, 1)?)),
        }
    }

    /// Declares the updated tensors as outputs, or writes the state as a whole where its rule did not write it in place.
    pub fn finish(&mut self, e: &mut Emitter<'_>) -> Result<()> {
        match self {
            Self::Explicit {
                keys_in,
                values_in,
                names,
                keys,
                values,
            } => {
                for (name, input, slots) in
                    [(&names[0], keys_in, keys), (&names[1], values_in, values)]
                {
                    let all = match slots.as_slice() {
                        [] => input.clone(),
                        [one] => one.clone(),
                        several => e.fb.concat(several, 0)?,
                    };
                    e.fb.output(name, &all)?;
                }
            }
            Self::State {
                state,
                written,
                interleaved,
                ..
            } if !written.is_empty() => {
                let every = |first: usize| written.iter().skip(first).step_by(2).cloned();
                let slots: Vec<Var> = match interleaved {
                    true => written.clone(),
                    false => every(0).chain(every(1)).collect(),
                };
                let all = e.fb.concat(&slots, 0)?;
                e.fb.write_state(state, &all)?;
            }
            Self::State { .. } => {}
        }
        Ok(())
    }
}

/// Slot `index` of a tensor of slots.
fn slot_of(e: &mut Emitter<'_>, slots: &Var, index: usize) -> Result<Var> {
    let mut size = slots.shape().to_vec();
    size[0] = 1;
    e.slice(slots, &[index, 0, 0, 0], &size)
}

/// A slot with a row by a rule that makes a new tensor.
fn updated(e: &mut Emitter<'_>, rule: &Rule, old: &Var, row: &Var) -> Result<Var> {
    match rule {
        Rule::Shift => shift(e, old, row),
        Rule::Scatter { keep, update } => {
            let kept = e.fb.mul(old, keep)?;
            let written = e.fb.mul(row, update)?;
            Ok(e.fb.add(&kept, &written)?)
        }
        Rule::Place { at, after } => placed(e, old, row, 0, at, after),
    }
}

/// Slots with `row` at position `at` of slot `index`.
fn placed(
    e: &mut Emitter<'_>,
    slots: &Var,
    row: &Var,
    index: usize,
    at: &Var,
    after: &Var,
) -> Result<Var> {
    // `(1, heads, 1, width)`
    let (heads, width) = (row.shape()[1], row.shape()[3]);
    let from = [e.int32s(&[index, 0])?, at.clone(), e.int32s(&[0])?];
    let to = [
        e.int32s(&[index + 1, heads])?,
        after.clone(),
        e.int32s(&[width])?,
    ];
    let (begin, end) = (e.fb.concat(&from, 0)?, e.fb.concat(&to, 0)?);
    Ok(e.fb.slice_update(slots, row, &begin, &end, &SliceParams::default())?)
}

/// Drops the oldest rows of a slot `(.., length, width)` and appends new ones.
pub(super) fn shift(e: &mut Emitter<'_>, old: &Var, rows: &Var) -> Result<Var> {
    let (length, new) = (old.shape()[2], rows.shape()[2]);
    if new >= length {
        return e.last(rows, 2, length);
    }
    let rest = e.last(old, 2, length - new)?;
    Ok(e.fb.concat(&[rest, rows.clone()], 2)?)
}
