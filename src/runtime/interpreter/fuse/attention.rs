//! `softmax(q kᵀ + mask) v` as one step, over the keys that the mask shows.
//!
//! A key is left out where its weight is exactly 0 anyway: its mask is so low that `exp` underflows for every row, whatever
//! the key. With `|q · k| <= |q| |k|` this follows from the norms of the queries and the largest norm of a key, which caches
//! know; masks of -inf only need them finite. Where it does not follow, all keys are taken.

use super::attend::{BLOCK, Block, Running};
use super::graph::Graph;
use super::{Base, Note, Part};
use crate::mil::OpType;
use crate::runtime::interpreter::plan::{Action, Plan, Step};
use crate::runtime::kernels::lanes::LANES;
use crate::runtime::kernels::wide::widest;
use crate::runtime::values::held::norm;
use rayon::prelude::*;

/// Attention found in a plan.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    /// `(1, heads, rows, d)`.
    q: usize,
    /// `(1, 1, 1 or rows, length)`.
    mask: usize,
    /// Joined along the keys: `(1, heads, .., d)` and `(1, heads, .., dv)`.
    keys: Vec<Part>,
    values: Vec<Part>,
    dims: Dims,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dims {
    heads: usize,
    rows: usize,
    d: usize,
    dv: usize,
    length: usize,
    mask_rows: usize,
}

#[derive(Clone, Debug)]
enum Form {
    /// All keys at once.
    Standard,
    /// Slices that end at these keys, with a running maximum that begins here.
    Flash { ends: Vec<usize>, lowest: f32 },
}

/// A part of K or V where it lies: elements, strides, and the largest norm of a row where it is known.
pub(crate) struct Located<'a> {
    pub data: &'a [f32],
    pub strides: Vec<usize>,
    pub largest: Option<f32>,
}

/// Where the operands of a step are.
pub(crate) trait Operands {
    /// The elements of a value that is dense.
    fn dense(&self, value: usize) -> Option<&[f32]>;
    /// A part of a value or cache.
    fn part(&self, part: &Part) -> Option<Located<'_>>;
}

/// A mask below this hides a key: what is added elsewhere are zeros and sums of at most a few.
const HIDES: f32 = -10_000.0;

widest! {
    /// Adds the keys that a row of a mask shows to `shown`. What hides the others has its maximum in the lanes of `lowest`.
    /// What is not a number hides nothing.
    fn scan(mask: &[f32], shown: &mut [bool], lowest: &mut [f32; LANES]) {
        for (mask, shown) in mask.chunks(LANES).zip(shown.chunks_mut(LANES)) {
            for ((&m, shown), lowest) in mask.iter().zip(shown).zip(lowest.iter_mut()) {
                let hides = m < HIDES;
                *shown |= !hides;
                *lowest = if hides && m > *lowest { m } else { *lowest };
            }
        }
    }
}

/// `exp` of less is 0, with room for the rounding of a score.
const UNDERFLOW: f32 = -106.0;

/// An inner product in f32 is at most the product of the norms times this.
const ROUNDING: f32 = 1.001;

impl Attention {
    /// The values that are read, caches apart.
    pub fn reads(&self) -> Vec<usize> {
        let parts = self.keys.iter().chain(&self.values);
        let values = parts.filter_map(|part| match part.base {
            Base::Value(value) => Some(value),
            Base::Cache(_) => None,
        });
        [self.q, self.mask].into_iter().chain(values).collect()
    }

    /// Those of [`Self::reads`] that must be dense.
    pub fn dense(&self) -> [usize; 2] {
        [self.q, self.mask]
    }

    /// The result `(1, heads, rows, dv)`; none if an operand is not there.
    pub fn run(&self, operands: &(impl Operands + Sync), out: &mut [f32]) -> Option<()> {
        let Dims {
            heads, rows, d, dv, ..
        } = self.dims;
        let (q, mask) = (operands.dense(self.q)?, operands.dense(self.mask)?);
        let keys = Rows::new(operands, &self.keys)?;
        let values = Rows::new(operands, &self.values)?;
        let bound = keys.largest(self, d);
        let finite = values.largest(self, dv).is_finite();
        let blocks = rows.div_ceil(BLOCK);
        let one = |index: usize, out: &mut [f32], parallel: bool| {
            let (head, first) = (index / blocks, index % blocks * BLOCK);
            let count = BLOCK.min(rows - first);
            let start = (head * rows + first) * d;
            let work = Work {
                attention: self,
                keys: &keys,
                values: &values,
                mask,
                head,
                first,
                bound: if finite { bound } else { f32::INFINITY },
                parallel,
            };
            out.copy_from_slice(&work.block(&q[start..start + count * d])[..count * dv]);
        };
        let mut parts = Vec::with_capacity(heads * blocks);
        for head in out.chunks_exact_mut((rows * dv).max(1)) {
            parts.extend(head.chunks_mut((BLOCK * dv).max(1)));
        }
        let threads = rayon::current_num_threads();
        if parts.len() < 2 * threads || threads < 2 {
            let parts = parts.into_iter().enumerate();
            parts.for_each(|(index, out)| one(index, out, true));
        } else {
            let parts = parts.into_par_iter().enumerate();
            parts.for_each(|(index, out)| one(index, out, false));
        }
        Some(())
    }
}

/// Rows of K or V, joined of parts.
struct Rows<'a> {
    parts: Vec<(Located<'a>, usize)>,
}

impl<'a> Rows<'a> {
    fn new(operands: &'a impl Operands, parts: &[Part]) -> Option<Self> {
        let located = parts.iter().map(|part| {
            let rows = *part.region.size.get(2)?;
            Some((operands.part(part)?, rows))
        });
        Some(Self {
            parts: located.collect::<Option<_>>()?,
        })
    }

    /// A bound of the norms of all rows, infinite if a value is not finite.
    fn largest(&self, attention: &Attention, width: usize) -> f32 {
        let of = |(part, rows): &(Located<'_>, usize)| {
            part.largest.unwrap_or_else(|| {
                let heads = 0..attention.dims.heads;
                let norms = heads.flat_map(|head| (0..*rows).map(move |row| (head, row)));
                norms
                    .map(|(head, row)| norm(part.row(head, row, width)))
                    .fold(0.0, f32::max)
            })
        };
        self.parts.iter().map(of).fold(0.0, f32::max)
    }

    /// The rows of a head at `at`, ascending.
    fn at(&self, head: usize, at: &[usize], width: usize) -> Vec<&[f32]> {
        let mut out = Vec::with_capacity(at.len());
        let mut at = at.iter().peekable();
        let mut before = 0;
        for (part, rows) in &self.parts {
            while let Some(&row) = at.next_if(|&&row| row < before + rows) {
                out.push(part.row(head, row - before, width));
            }
            before += rows;
        }
        out
    }
}

impl Located<'_> {
    fn row(&self, head: usize, row: usize, width: usize) -> &[f32] {
        let start = head * self.strides[1] + row * self.strides[2];
        &self.data[start..start + width]
    }
}

/// One block of queries.
struct Work<'a> {
    attention: &'a Attention,
    keys: &'a Rows<'a>,
    values: &'a Rows<'a>,
    mask: &'a [f32],
    head: usize,
    first: usize,
    /// No key has a larger norm.
    bound: f32,
    parallel: bool,
}

impl Work<'_> {
    /// The rows of the result, `[BLOCK, dv]`, for the queries `q`.
    fn block(&self, q: &[f32]) -> Vec<f32> {
        let Dims { d, length, .. } = self.attention.dims;
        let count = q.len() / d.max(1);
        let mut padded = vec![0.0; BLOCK * d];
        padded[..q.len()].copy_from_slice(q);
        // One row of a mask is all of them.
        let masks = match self.attention.dims.mask_rows {
            1 => 1,
            _ => count,
        };
        let mut shown = vec![false; length];
        let lowest: Vec<f32> = (0..masks)
            .map(|row| {
                let mut lowest = [f32::NEG_INFINITY; LANES];
                scan(self.mask_row(row), &mut shown, &mut lowest);
                lowest.into_iter().fold(f32::NEG_INFINITY, f32::max)
            })
            .collect();
        let seen: Vec<usize> = (0..length).filter(|&key| shown[key]).collect();
        let all = || (0..length).collect::<Vec<_>>();
        if seen.is_empty() || seen.len() == length {
            return self.over(&padded, count, &all(), None).unwrap_or_default();
        }
        // No hidden key has a larger score; not a number where norms are infinite and masks -inf.
        let mut hidden = [f32::NEG_INFINITY; BLOCK];
        for (row, hidden) in hidden.iter_mut().enumerate().take(count) {
            let largest = norm(&q[row * d..(row + 1) * d]) * self.bound * ROUNDING;
            *hidden = largest + lowest[row.min(masks - 1)];
        }
        self.over(&padded, count, &seen, Some(&hidden))
            .or_else(|| self.over(&padded, count, &all(), None))
            .unwrap_or_default()
    }

    /// The mask of a row of the block.
    fn mask_row(&self, row: usize) -> &[f32] {
        let row = match self.attention.dims.mask_rows {
            1 => 0,
            _ => self.first + row,
        };
        &self.mask[row * self.attention.dims.length..][..self.attention.dims.length]
    }

    /// The result over the keys `at`. None if one of the others, whose scores are at most `hidden`, might have a weight.
    fn over(
        &self,
        q: &[f32],
        count: usize,
        at: &[usize],
        hidden: Option<&[f32; BLOCK]>,
    ) -> Option<Vec<f32>> {
        let Dims { d, dv, .. } = self.attention.dims;
        let keys = self.keys.at(self.head, at, d);
        let values = self.values.at(self.head, at, dv);
        let mut mask = vec![[0.0; BLOCK]; at.len()];
        for row in 0..count {
            let from = self.mask_row(row);
            for (lanes, &key) in mask.iter_mut().zip(at) {
                lanes[row] = from[key];
            }
        }
        let part = |from: usize, to: usize| Block {
            q,
            keys: &keys[from..to],
            values: &values[from..to],
            mask: &mask[from..to],
            parallel: self.parallel,
        };
        let vanish = |max: &[f32; BLOCK]| {
            let fits =
                |hidden: &[f32; BLOCK]| (0..count).all(|row| hidden[row] - max[row] < UNDERFLOW);
            hidden.is_none_or(fits)
        };
        match &self.attention.form {
            Form::Standard => {
                let block = part(0, at.len());
                let (scores, max) = block.scores();
                vanish(&max).then(|| block.finish(scores, &max))
            }
            Form::Flash { ends, lowest } => {
                let mut running = Running::new(dv, *lowest);
                let mut from = 0;
                for &end in ends {
                    let to = at.partition_point(|&key| key < end);
                    if to > from {
                        let block = part(from, to);
                        let (scores, max) = block.scores();
                        running.add(&block, scores, &max);
                    }
                    // In the slice itself, with the maximum after it.
                    vanish(&running.max).then_some(())?;
                    from = to;
                }
                Some(running.finish())
            }
        }
    }
}

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
                let whole = super::Region::all(graph.shape(part.scores.mask));
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
