//! Finds attention, `softmax(q kᵀ + mask) v`, in its standard form and in Flash's slices.

use super::graph::Graph;
use crate::mil::OpType;
use crate::runtime::interpreter::note::Note;
use crate::runtime::interpreter::plan::{Action, Plan, Step};
use crate::runtime::interpreter::steps::attention::{Attention, Dims, Form};
use crate::runtime::interpreter::steps::part::{Part, Region};

/// Replaces the last step of each attention.
pub(super) fn apply(plan: &mut Plan) {
    let graph = Graph::new(plan);
    let steps = plan.steps.iter().enumerate();
    let found: Vec<(usize, Attention)> = steps
        .filter_map(|(at, step)| {
            Some((at, standard(&graph, step).or_else(|| flash(&graph, step))?))
        })
        .collect();
    for (at, attention) in found {
        let old = &plan.steps[at];
        let (reads, outputs) = (attention.reads(), old.outputs.clone());
        plan.steps[at] = Step::new(old, Action::Attention(attention), reads, outputs);
    }
}

/// What scores are made of.
struct Scores {
    q: usize,
    keys: usize,
    mask: usize,
}

impl Scores {
    /// `q kᵀ + mask`.
    fn of(graph: &Graph<'_>, value: usize) -> Option<Self> {
        let (_, [product, mask]) = graph.binary(value, OpType::Add)?;
        let (at, [q, keys]) = graph.binary(product, OpType::Matmul)?;
        let plain = matches!(graph.plan.steps[at].note, Note::Matmul(false, true));
        plain.then_some(Self { q, keys, mask })
    }
}

/// The operand of a reduction of the last axis.
fn reduced(graph: &Graph<'_>, value: usize, op: OpType) -> Option<usize> {
    let (_, step) = graph.made(value, op)?;
    matches!(step.note, Note::ReduceLast).then_some(step.inputs[0])
}

fn product(step: &Step) -> Option<[usize; 2]> {
    match (&step.note, &step.inputs[..]) {
        (Note::Matmul(false, false), &[weights, values]) => Some([weights, values]),
        _ => None,
    }
}

/// The operand of an exp.
fn exponent(graph: &Graph<'_>, value: usize) -> Option<usize> {
    Some(graph.made(value, OpType::Exp)?.1.inputs[0])
}

fn standard(graph: &Graph<'_>, step: &Step) -> Option<Attention> {
    let [weights, values] = product(step)?;
    let (_, [exp, sum]) = graph.binary(weights, OpType::RealDiv)?;
    let (_, [scores, max]) = graph.binary(exponent(graph, exp)?, OpType::Sub)?;
    let same = reduced(graph, max, OpType::ReduceMax)? == scores
        && reduced(graph, sum, OpType::ReduceSum)? == exp;
    let found = Scores::of(graph, scores).filter(|_| same)?;
    let keys = graph.joined(found.keys, 2);
    let values = graph.joined(values, 2);
    attention(graph, step, &found, (keys, values), Form::Standard)
}

/// One slice of Flash.
struct Slice {
    scores: Scores,
    values: usize,
    max: usize,
    /// Maximum, sum and result before it.
    before: Option<[usize; 3]>,
    /// The running maximum before it.
    start: usize,
}

/// The slice that ends with `sum` and `out`.
fn slice(graph: &Graph<'_>, sum: usize, out: usize) -> Option<Slice> {
    let later = graph.binary(out, OpType::Add);
    let (own_sum, own_out, old) = match later {
        None => (sum, out, None),
        Some((_, [dropped, own_out])) => {
            let (_, [dropped_sum, own_sum]) = graph.binary(sum, OpType::Add)?;
            let (_, [old_out, factor]) = graph.binary(dropped, OpType::Mul)?;
            let (_, [old_sum, same]) = graph.binary(dropped_sum, OpType::Mul)?;
            let (_, [old_max, max]) = graph.binary(exponent(graph, factor)?, OpType::Sub)?;
            (factor == same).then_some(())?;
            (own_sum, own_out, Some((max, [old_max, old_sum, old_out])))
        }
    };
    let [exp, values] = product(graph.made(own_out, OpType::Matmul)?.1)?;
    let (_, [scores, max]) = graph.binary(exponent(graph, exp)?, OpType::Sub)?;
    let (_, [own_max, start]) = graph.binary(max, OpType::Maximum)?;
    let same = reduced(graph, own_sum, OpType::ReduceSum)? == exp
        && reduced(graph, own_max, OpType::ReduceMax)? == scores
        && old.is_none_or(|(of, [old_max, ..])| of == max && old_max == start);
    let scores = Scores::of(graph, scores).filter(|_| same)?;
    Some(Slice {
        scores,
        values,
        max,
        before: old.map(|(_, before)| before),
        start,
    })
}

fn flash(graph: &Graph<'_>, step: &Step) -> Option<Attention> {
    if step.op_type != OpType::RealDiv {
        return None;
    }
    let &[out, sum] = &step.inputs[..] else {
        return None;
    };
    let mut slices = vec![slice(graph, sum, out)?];
    while let Some([max, sum, out]) = slices.last()?.before {
        let before = slice(graph, sum, out).filter(|s| s.max == max)?;
        slices.push(before);
    }
    slices.reverse();
    let lowest = graph.scalar(slices[0].start)?;
    let (mut keys, mut values, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut mask = None;
    for part in &slices {
        let from = ends.last().copied().unwrap_or(0);
        let (of, region) = match graph.slice(part.scores.mask) {
            Some((of, region)) => (of, region.clone()),
            None => {
                let whole = Region::all(graph.shape(part.scores.mask));
                (part.scores.mask, whole)
            }
        };
        let &[_, _, rows, length] = &region.size[..] else {
            return None;
        };
        let fits = region.begin == [0, 0, 0, from] && region.size[..2] == [1, 1];
        let whole = graph.shape(of).get(2) == Some(&rows);
        let same = *mask.get_or_insert(of) == of && part.scores.q == slices[0].scores.q;
        (fits && whole && same).then_some(())?;
        ends.push(from + length);
        keys.extend(graph.joined(part.scores.keys, 2));
        values.extend(graph.joined(part.values, 2));
    }
    let found = Scores {
        q: slices[0].scores.q,
        keys: slices[0].scores.keys,
        mask: mask?,
    };
    let form = Form::Flash { ends, lowest };
    attention(graph, step, &found, (keys, values), form)
}

/// Checks the shapes.
fn attention(
    graph: &Graph<'_>,
    step: &Step,
    scores: &Scores,
    (keys, values): (Vec<Part>, Vec<Part>),
    form: Form,
) -> Option<Attention> {
    let &[1, heads, rows, d] = graph.shape(scores.q) else {
        return None;
    };
    let &[1, 1, mask_rows, length] = graph.shape(scores.mask) else {
        return None;
    };
    let &[1, out_heads, out_rows, dv] = graph.shape(*step.outputs.first()?) else {
        return None;
    };
    let fits = |parts: &[Part], width: usize| {
        let each = parts.iter().all(|part| {
            let size = &part.region.size;
            matches!(size[..], [1, h, _, w] if h == heads && w == width)
        });
        let total: usize = parts.iter().filter_map(|p| p.region.size.get(2)).sum();
        each && total == length
    };
    let plain = (out_heads, out_rows) == (heads, rows)
        && (mask_rows == 1 || mask_rows == rows)
        && length > 0
        && d > 0
        && fits(&keys, d)
        && fits(&values, dv);
    plain.then_some(Attention {
        q: scores.q,
        mask: scores.mask,
        keys,
        values,
        dims: Dims {
            heads,
            rows,
            d,
            dv,
            length,
            mask_rows,
        },
        form,
    })
}
