//! RMS norms and RoPE as one step each.

use super::graph::Graph;
use crate::mil::OpType;
use crate::runtime::interpreter::args::Kernel;
use crate::runtime::interpreter::note::Note;
use crate::runtime::interpreter::plan::{Action, Plan, Step};
use crate::runtime::interpreter::steps::part::Region;
use crate::runtime::kernels::wide::rms;
use crate::runtime::values::axes::AxesLast;
use crate::runtime::values::tensor::Tensor;

/// Replaces the last step of each form.
pub(super) fn apply(plan: &mut Plan) {
    let graph = Graph::new(plan);
    let mut found: Vec<(usize, Vec<usize>, Kernel)> = Vec::new();
    for (at, step) in plan.steps.iter().enumerate() {
        if let Some((inputs, kernel)) = gained(&graph, step)
            .or_else(|| bare(&graph, step))
            .or_else(|| rope(&graph, step))
        {
            found.push((at, inputs, kernel));
        }
    }
    for (at, inputs, kernel) in found {
        let old = &plan.steps[at];
        let outputs = old.outputs.clone();
        plan.steps[at] = Step::new(old, Action::Compute(kernel), inputs, outputs);
    }
}

/// `x / sqrt(mean(x^2) + eps)` along an axis, written as the first half of the layer norm of `[x, -x]`.
struct Rms {
    x: usize,
    axis: usize,
    epsilon: f32,
}

impl Rms {
    fn of(graph: &Graph<'_>, value: usize) -> Option<Self> {
        let (normed, part) = graph.slice(value)?;
        let (_, norm) = graph.made(normed, OpType::LayerNorm)?;
        let Note::Norm(axis, epsilon) = norm.note else {
            return None;
        };
        let (_, concat) = graph.made(norm.inputs[0], OpType::Concat)?;
        let (Note::Concat(along), &[x, minus]) = (&concat.note, &concat.inputs[..]) else {
            return None;
        };
        let whole = *part == Region::all(graph.shape(x));
        let fits = *along == axis && whole && negated(graph, minus) == Some(x);
        fits.then_some(Self { x, axis, epsilon })
    }

    fn kernel(self, graph: &Graph<'_>, gain: bool) -> Kernel {
        let shape = graph.shape(self.x).to_vec();
        let chosen: Vec<bool> = (0..shape.len()).map(|i| i == self.axis).collect();
        let axes = AxesLast::new(&shape, &chosen);
        let epsilon = f64::from(self.epsilon);
        Box::new(move |inputs, pool| {
            let x = axes.gather(inputs[0].as_f32()?, pool);
            let mut out = pool.floats(x.len());
            let rows = out.chunks_exact_mut(axes.inner.max(1));
            for (out, x) in rows.zip(x.chunks_exact(axes.inner.max(1))) {
                rms(x, epsilon, out);
                if gain {
                    let gains = inputs[1].as_f32()?;
                    out.iter_mut().zip(gains).for_each(|(o, g)| *o *= g);
                }
            }
            if let std::borrow::Cow::Owned(x) = x {
                pool.recycle_floats(x);
            }
            Ok(vec![Tensor::f32(&shape, axes.scatter(out))?])
        })
    }
}

/// The value that `value` is -1 times.
fn negated(graph: &Graph<'_>, value: usize) -> Option<usize> {
    let (_, [x, factor]) = graph.binary(value, OpType::Mul)?;
    (graph.scalar(factor) == Some(-1.0)).then_some(x)
}

fn bare(graph: &Graph<'_>, step: &Step) -> Option<(Vec<usize>, Kernel)> {
    let rms = Rms::of(graph, *step.outputs.first()?)?;
    Some((vec![rms.x], rms.kernel(graph, false)))
}

/// A norm times a gain of its axis.
fn gained(graph: &Graph<'_>, step: &Step) -> Option<(Vec<usize>, Kernel)> {
    let (OpType::Mul, &[normed, gain]) = (step.op_type, &step.inputs[..]) else {
        return None;
    };
    let rms = Rms::of(graph, normed)?;
    let (shape, gains) = (graph.shape(rms.x), graph.shape(gain));
    let missing = shape.len().checked_sub(gains.len())?;
    let along = |(i, &n): (usize, &usize)| match i + missing == rms.axis {
        true => n == shape[rms.axis],
        false => n == 1,
    };
    let fits = gains.iter().enumerate().all(along) && gains.iter().product::<usize>() > 1;
    fits.then(|| (vec![rms.x, gain], rms.kernel(graph, true)))
}

/// `x * cos + [-b, a] * sin` for the halves `[a, b]` of the last axis of `(1, heads, rows, d)`.
fn rope(graph: &Graph<'_>, step: &Step) -> Option<(Vec<usize>, Kernel)> {
    let (OpType::Add, &[straight, turned]) = (step.op_type, &step.inputs[..]) else {
        return None;
    };
    let (_, [x, cos]) = graph.binary(straight, OpType::Mul)?;
    let (_, [rotated, sin]) = graph.binary(turned, OpType::Mul)?;
    let (_, concat) = graph.made(rotated, OpType::Concat)?;
    let (Note::Concat(3), &[minus, first]) = (&concat.note, &concat.inputs[..]) else {
        return None;
    };
    let &[1, heads, rows, d] = graph.shape(x) else {
        return None;
    };
    let half = |value: usize, begin: usize| {
        let expected = Region {
            begin: vec![0, 0, 0, begin],
            size: vec![1, heads, rows, d / 2],
        };
        graph.slice(value) == Some((x, &expected))
    };
    let halves = d % 2 == 0 && half(first, 0) && half(negated(graph, minus)?, d / 2);
    let row = [1, 1, rows, d];
    let fits = halves && graph.shape(cos) == row && graph.shape(sin) == row && d > 0;
    fits.then(|| {
        let shape = vec![1, heads, rows, d];
        let kernel: Kernel = Box::new(move |inputs, pool| {
            let (x, cos, sin) = (
                inputs[0].as_f32()?,
                inputs[1].as_f32()?,
                inputs[2].as_f32()?,
            );
            let mut out = pool.floats(x.len());
            for (i, (out, x)) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
                let at = i % rows * d;
                let (cos, sin) = (&cos[at..at + d], &sin[at..at + d]);
                let (a, b) = x.split_at(d / 2);
                for i in 0..d / 2 {
                    out[i] = a[i] * cos[i] + -b[i] * sin[i];
                    out[i + d / 2] = b[i] * cos[i + d / 2] + a[i] * sin[i + d / 2];
                }
            }
            Ok(vec![Tensor::f32(&shape, out)?])
        });
        (vec![x, cos, sin], kernel)
    })
}
