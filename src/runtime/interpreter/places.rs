//! Where the values of a run are: on their own, in larger buffers, in caches.

use super::plan::{Action, Plan, Source, Step};
use super::steps::part::{Base, Located, Operands, Part};
use super::value::Value;
use crate::runtime::kernels::strided::strides;
use crate::runtime::kernels::strided::{View, copy};
use crate::runtime::values::error::{Error, Result};
use crate::runtime::values::held::Strided;
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::Tensor;

/// What happens to an input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accepted {
    /// It becomes a cache of this index.
    Cache(usize),
    /// It may lie in a larger buffer.
    AsItLies,
    /// It is put together.
    Dense,
}

/// What happens to the inputs of a plan.
pub(super) fn accepted(plan: &Plan) -> Vec<Accepted> {
    let accepted = |value: usize| {
        let mut caches = plan.caches.iter();
        if let Some(cache) = caches.position(|c| c.source == Source::Input(value)) {
            return Accepted::Cache(cache);
        }
        let handed_out = plan.outputs.contains(&value) || plan.kept.contains(&value);
        let fits = |step: &Step| match &step.action {
            Action::Copy(_) => true,
            Action::Attention(attention) => !attention.dense().contains(&value),
            _ => !step.inputs.contains(&value),
        };
        match !handed_out && plan.steps.iter().all(fits) {
            true => Accepted::AsItLies,
            false => Accepted::Dense,
        }
    };
    let inputs = plan.inputs.iter();
    inputs.map(|(value, _)| accepted(*value)).collect()
}

/// Where the values of a run are.
pub(super) struct Places<'a> {
    pub slots: &'a [Option<Tensor>],
    pub held: &'a [(usize, Strided)],
    pub caches: &'a [Option<Strided>],
}

impl Operands for Places<'_> {
    fn dense(&self, value: usize) -> Option<&[f32]> {
        self.slots[value].as_ref()?.as_f32().ok()
    }

    fn part(&self, part: &Part) -> Option<Located<'_>> {
        let offset = |strides: &[usize]| {
            let begin = part.region.begin.iter().zip(strides);
            begin.map(|(b, s)| b * s).sum::<usize>()
        };
        let strided = match part.base {
            Base::Cache(cache) => self.caches[cache].as_ref(),
            Base::Value(value) => {
                let mut held = self.held.iter();
                held.find(|(of, _)| *of == value).map(|(_, s)| s)
            }
        };
        if let Some(strided) = strided {
            let (data, strides) = strided.elements();
            return Some(Located {
                data: &data[offset(strides)..],
                strides: strides.to_vec(),
                largest: Some(strided.largest),
            });
        }
        let Base::Value(value) = part.base else {
            return None;
        };
        let tensor = self.slots[value].as_ref()?;
        let strides = strides(tensor.shape());
        Some(Located {
            data: &tensor.as_f32().ok()?[offset(&strides)..],
            strides,
            largest: None,
        })
    }
}

/// The result of a step that reads what lies in larger buffers; none for any other.
pub(super) fn in_place(
    step: &Step,
    values: &[Value],
    places: &Places<'_>,
    pool: &mut Pool,
) -> Result<Option<Tensor>> {
    if !matches!(step.action, Action::Copy(_) | Action::Attention(_)) {
        return Ok(None);
    }
    let value = &values[step.outputs[0]];
    let undefined = || Error::UndefinedValue {
        op: step.op.clone(),
        value: value.name.clone(),
    };
    let shape = &value.ty.shape;
    let mut out = pool.floats(shape.iter().product());
    match &step.action {
        Action::Attention(attention) => {
            attention.run(places, &mut out).ok_or_else(undefined)?;
        }
        Action::Copy(part) => {
            let from = places.part(part).ok_or_else(undefined)?;
            let view = View {
                offset: 0,
                strides: from.strides.iter().map(|&s| s as isize).collect(),
            };
            copy(shape, from.data, &view, &mut out, &View::dense(shape));
        }
        _ => {}
    }
    Tensor::f32(shape, out).map(Some)
}
