//! Products: conv, linear, matmul, attention.

use crate::mil::TensorType;
use crate::runtime::interpreter::args::{Compiled, OpArgs, Operand, Weight};
use crate::runtime::interpreter::ops::norm::softmax_row;
use crate::runtime::kernels::broadcast::{broadcast_shape, broadcast_strides};
use crate::runtime::kernels::dot::{add_scaled, dot, for_rows};
use crate::runtime::kernels::strided::transpose;
use crate::runtime::values::error::Result;
use crate::runtime::values::pool::Pool;
use crate::runtime::values::tensor::Tensor;
use crate::runtime::weights::packed::PackedWeight;
use crate::runtime::weights::rows::Rows;
use std::borrow::Cow;
use std::sync::Arc;

/// A weight bound to a kernel.
enum Bound {
    Packed(Arc<PackedWeight>),
    Input(usize, usize),
}

impl Bound {
    /// `cols`: product of all dims but the first.
    fn new(weight: Weight, cols: usize) -> Self {
        match weight {
            Weight::Packed(weight) => Bound::Packed(weight),
            Weight::Operand(operand) => Bound::Input(operand.at, cols),
        }
    }

    fn rows<'a>(&'a self, inputs: &[&'a Tensor]) -> Result<Rows<'a>> {
        Ok(match self {
            Bound::Packed(weight) => Rows::Packed(weight),
            Bound::Input(at, cols) => Rows::Dense {
                values: inputs[*at].as_f32()?,
                cols: *cols,
            },
        })
    }
}

/// A bias of `len` values, if given.
fn bias(args: &mut OpArgs<'_>, len: usize) -> Result<Option<usize>> {
    match args.operand_or_none("bias")? {
        None => Ok(None),
        Some(bias) if bias.ty.shape == [len] && bias.ty.dtype.is_float() => Ok(Some(bias.at)),
        Some(bias) => Err(args.bad("bias", format!("{len} floats"), bias.ty.to_string())),
    }
}

fn bias_values<'a>(at: Option<usize>, inputs: &[&'a Tensor]) -> Result<Option<&'a [f32]>> {
    at.map(|at| inputs[at].as_f32()).transpose()
}

/// `x [.., in]` with `weight [out, in]`.
pub(super) fn linear(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let weight_ty = args.ty("weight")?.clone();
    let (&[outs, ins], Some(&last)) = (&weight_ty.shape[..], x.ty.shape.last()) else {
        return Err(args.bad("weight", "[out, in] and x [.., in]", weight_ty.to_string()));
    };
    if last != ins {
        return Err(args.bad("weight", format!("[out, {last}]"), weight_ty.to_string()));
    }
    let weight = Bound::new(args.weight("weight")?, ins);
    let bias = bias(&mut args, outs)?;
    let mut shape = x.ty.shape.clone();
    let rank = shape.len();
    shape[rank - 1] = outs;
    let vectors: usize = shape[..rank - 1].iter().product();
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        let mut out = pool.floats(outs * vectors);
        let rows = weight.rows(inputs)?;
        let x = inputs[x.at].as_f32()?;
        rows.multiply(0, x, vectors, bias_values(bias, inputs)?, &mut out);
        if vectors > 1 {
            let mut turned = pool.floats(out.len());
            transpose(&out, outs, vectors, &mut turned);
            pool.recycle_floats(std::mem::replace(&mut out, turned));
        }
        Tensor::f32(&shape, out)
    })
}

/// One spatial dim of a convolution.
#[derive(Clone, Copy)]
struct Spatial {
    input: usize,
    kernel: usize,
    output: usize,
    stride: usize,
    dilation: usize,
    before: usize,
}

/// The sizes of a convolution.
struct Geometry {
    batch: usize,
    groups: usize,
    in_channels: usize,
    out_channels: usize,
    spatial: Vec<Spatial>,
}

impl Geometry {
    fn new(args: &OpArgs<'_>, x: &TensorType, weight: &TensorType) -> Result<Self> {
        let rank = x.rank();
        if !(3..=5).contains(&rank) || weight.rank() != rank {
            let got = format!("x {x}, weight {weight}");
            return Err(args.bad("weight", "x of rank 3 to 5 and a weight of its rank", got));
        }
        let dims = rank - 2;
        let groups = usize::try_from(args.int("groups")?).unwrap_or(0);
        let (c, o) = (x.shape[1], weight.shape[0]);
        let divides = groups > 0 && c % groups == 0 && o % groups == 0;
        if !divides || c / groups != weight.shape[1] {
            let got = format!("{groups} for x {x}, weight {weight}");
            return Err(args.bad("groups", "a divisor of the channels that fits", got));
        }
        let strides = per_dim(args, "strides", dims, 1)?;
        let dilations = per_dim(args, "dilations", dims, 1)?;
        let pads = match args.text("pad_type")? {
            "valid" => vec![0; 2 * dims],
            "custom" => per_dim(args, "pad", 2 * dims, 0)?,
            other => return Err(args.unsupported(format!("pad_type `{other}`"))),
        };
        let spatial = (0..dims).map(|i| {
            let (input, kernel) = (x.shape[2 + i], weight.shape[2 + i]);
            let padded = input + pads[2 * i] + pads[2 * i + 1];
            let reach = kernel.saturating_sub(1) * dilations[i] + 1;
            if kernel == 0 || padded < reach {
                let expected = format!("a kernel that fits in {padded}");
                return Err(args.bad("weight", expected, weight.to_string()));
            }
            Ok(Spatial {
                input,
                kernel,
                output: (padded - reach) / strides[i] + 1,
                stride: strides[i],
                dilation: dilations[i],
                before: pads[2 * i],
            })
        });
        Ok(Self {
            batch: x.shape[0],
            groups,
            in_channels: c / groups,
            out_channels: o / groups,
            spatial: spatial.collect::<Result<_>>()?,
        })
    }

    fn output_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.batch, self.groups * self.out_channels];
        shape.extend(self.spatial.iter().map(|s| s.output));
        shape
    }

    fn positions(&self) -> usize {
        self.spatial.iter().map(|s| s.output).product()
    }

    fn input_positions(&self) -> usize {
        self.spatial.iter().map(|s| s.input).product()
    }

    /// Whether every output sees exactly the input at its own place.
    fn is_pointwise(&self) -> bool {
        self.spatial
            .iter()
            .all(|s| s.kernel == 1 && s.stride == 1 && s.output == s.input)
    }

    /// What each output position sees of the channels `x` of one group: `[positions, channels * kernel]`, in the order
    /// of a weight row.
    fn columns<'a>(&self, x: &'a [f32], pool: &mut Pool) -> Cow<'a, [f32]> {
        let positions = self.positions();
        if self.is_pointwise() {
            if positions == 1 {
                return Cow::Borrowed(x);
            }
            let mut out = pool.floats(x.len());
            transpose(x, self.in_channels, positions, &mut out);
            return Cow::Owned(out);
        }
        let taps: usize = self.spatial.iter().map(|s| s.kernel).product();
        let mut out = pool.floats(positions * self.in_channels * taps);
        let width = self.in_channels * taps;
        for (position, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            for (channel, out) in out.chunks_exact_mut(taps).enumerate() {
                for (tap, o) in out.iter_mut().enumerate() {
                    let at = self.source(position, tap);
                    *o = at.map_or(0.0, |at| x[channel * self.input_positions() + at]);
                }
            }
        }
        Cow::Owned(out)
    }

    /// The input position that a tap of the kernel sees from an output position; `None` in the padding.
    fn source(&self, mut position: usize, mut tap: usize) -> Option<usize> {
        let mut at = 0;
        let mut size = 1;
        for s in self.spatial.iter().rev() {
            let padded = position % s.output * s.stride + tap % s.kernel * s.dilation;
            position /= s.output;
            tap /= s.kernel;
            let place = padded.checked_sub(s.before).filter(|&p| p < s.input)?;
            at += place * size;
            size *= s.input;
        }
        Some(at)
    }
}

/// Non-negative integers of an attribute (at least `least`), one per dim; `least` each if it is absent.
fn per_dim(args: &OpArgs<'_>, arg: &str, count: usize, least: usize) -> Result<Vec<usize>> {
    let Some(values) = args.ints(arg)? else {
        return Ok(vec![least; count]);
    };
    let sizes: Vec<usize> = values
        .iter()
        .filter_map(|&v| {
            usize::try_from(v)
                .ok()
                .filter(|&v| v >= least && v <= 1 << 20)
        })
        .collect();
    match sizes.len() == count && values.len() == count {
        true => Ok(sizes),
        false => {
            let expected = format!("{count} numbers from {least} on");
            Err(args.bad(arg, expected, format!("{values:?}")))
        }
    }
}

/// `x [n, c_in, ...]` with `weight [c_out, c_in / groups, ...]`.
pub(super) fn conv(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let weight_ty = args.ty("weight")?.clone();
    let geometry = Geometry::new(&args, &x.ty, &weight_ty)?;
    let cols = weight_ty.shape[1..].iter().product();
    let weight = Bound::new(args.weight("weight")?, cols);
    let bias = bias(&mut args, weight_ty.shape[0])?;
    let shape = geometry.output_shape();
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        let mut out = pool.floats(shape.iter().product());
        let rows = weight.rows(inputs)?;
        let bias = bias_values(bias, inputs)?;
        let x = inputs[x.at].as_f32()?;
        let (ins, outs) = (geometry.in_channels, geometry.out_channels);
        let positions = geometry.positions();
        let blocks = out.chunks_exact_mut((outs * positions).max(1));
        let inputs = x.chunks_exact((ins * geometry.input_positions()).max(1));
        for (i, (out, x)) in blocks.zip(inputs).enumerate() {
            let columns = geometry.columns(x, pool);
            let first = i % geometry.groups * outs;
            rows.multiply(first, &columns, positions, bias, out);
            if let Cow::Owned(columns) = columns {
                pool.recycle_floats(columns);
            }
        }
        Tensor::f32(&shape, out)
    })
}

/// Matrices `[rows, cols]` at the end of a tensor, possibly stored transposed, with broadcast batch dims before them.
struct Matrices {
    at: usize,
    rows: usize,
    cols: usize,
    transposed: bool,
    /// Element offset of the matrix of each result matrix.
    offsets: Vec<usize>,
}

impl Matrices {
    fn new(operand: &Operand, shape: &[usize], transposed: bool, batch: &[usize]) -> Self {
        let (dims, matrix) = shape.split_at(shape.len() - 2);
        let (rows, cols) = match transposed {
            true => (matrix[1], matrix[0]),
            false => (matrix[0], matrix[1]),
        };
        let strides = broadcast_strides(dims, batch);
        let size = rows * cols;
        let count: usize = batch.iter().product();
        let offset = |mut flat: usize| {
            let mut at = 0;
            for (&n, &stride) in batch.iter().zip(&strides).rev() {
                at += flat % n * stride as usize;
                flat /= n;
            }
            at * size
        };
        Self {
            at: operand.at,
            rows,
            cols,
            transposed,
            offsets: (0..count).map(offset).collect(),
        }
    }

    /// Matrix `i` as stored.
    fn matrix<'a>(&self, x: &'a [f32], i: usize) -> &'a [f32] {
        &x[self.offsets[i]..self.offsets[i] + self.rows * self.cols]
    }
}

/// `matmul`: batch dims broadcast.
pub(super) fn matmul(mut args: OpArgs<'_>) -> Result<Compiled> {
    let x = args.float_operand("x")?;
    let y = args.float_operand("y")?;
    let (transpose_x, transpose_y) = (args.bool("transpose_x")?, args.bool("transpose_y")?);
    let got = format!("{} and {}", x.ty, y.ty);
    if x.ty.rank() < 2 || y.ty.rank() < 2 {
        return Err(args.bad("y", "two matrices", got));
    }
    let batch = broadcast_shape(
        &x.ty.shape[..x.ty.rank() - 2],
        &y.ty.shape[..y.ty.rank() - 2],
    );
    let Some(batch) = batch else {
        return Err(args.bad("y", "batch dims that broadcast", got));
    };
    let left = Matrices::new(&x, &x.ty.shape, transpose_x, &batch);
    let right = Matrices::new(&y, &y.ty.shape, transpose_y, &batch);
    if left.cols != right.rows {
        return Err(args.bad("y", format!("{} rows", left.cols), got));
    }
    let mut shape = batch;
    shape.extend([left.rows, right.cols]);
    args.one(TensorType::new(x.ty.dtype, &shape), move |inputs, pool| {
        let mut out = pool.floats(shape.iter().product());
        let x = inputs[left.at].as_f32()?;
        let y = inputs[right.at].as_f32()?;
        let work = out.len().saturating_mul(left.cols);
        for_rows(&mut out, right.cols, 1, work, |first, out| {
            let mut column = Vec::new();
            for (i, out) in out.chunks_exact_mut(right.cols).enumerate() {
                let (matrix, row) = ((first + i) / left.rows, (first + i) % left.rows);
                let values = left.matrix(x, matrix);
                let values = if left.transposed {
                    column.clear();
                    column.extend((0..left.cols).map(|k| values[k * left.rows + row]));
                    &column[..]
                } else {
                    &values[row * left.cols..(row + 1) * left.cols]
                };
                vector_matrix(values, right.matrix(y, matrix), right.transposed, out);
            }
        });
        Tensor::f32(&shape, out)
    })
}

/// A row times a matrix; the matrix is stored by columns if `transposed`.
fn vector_matrix(row: &[f32], matrix: &[f32], transposed: bool, out: &mut [f32]) {
    if row.is_empty() {
        out.fill(0.0);
    } else if transposed {
        for (o, column) in out.iter_mut().zip(matrix.chunks_exact(row.len())) {
            *o = dot(row, column);
        }
    } else {
        out.fill(0.0);
        for (&factor, line) in row.iter().zip(matrix.chunks_exact(out.len())) {
            add_scaled(out, factor, line);
        }
    }
}

/// `softmax(q kᵀ / sqrt(e) + mask) v`; batch dims are equal, the mask (bool: false hides, or added floats) broadcasts.
pub(super) fn attention(mut args: OpArgs<'_>) -> Result<Compiled> {
    let q = args.float_operand("query")?;
    let k = args.float_operand("key")?;
    let v = args.float_operand("value")?;
    let mask = args.operand_or_none("attn_mask")?;
    let rank = q.ty.rank();
    let fits = rank >= 3 && k.ty.rank() == rank && v.ty.rank() == rank && {
        let (q, k, v) = (&q.ty.shape, &k.ty.shape, &v.ty.shape);
        q[..rank - 2] == k[..rank - 2]
            && q[..rank - 2] == v[..rank - 2]
            && q[rank - 1] == k[rank - 1]
            && k[rank - 2] == v[rank - 2]
    };
    if !fits {
        let got = format!("{}, {}, {}", q.ty, k.ty, v.ty);
        return Err(args.bad("query", "[b.., l, e], [b.., s, e], [b.., s, ev]", got));
    }
    let (l, e) = (q.ty.shape[rank - 2], q.ty.shape[rank - 1]);
    let (s, ev) = (v.ty.shape[rank - 2], v.ty.shape[rank - 1]);
    let mut scores = q.ty.shape.clone();
    scores[rank - 1] = s;
    if let Some(mask) = &mask
        && broadcast_shape(&mask.ty.shape, &scores).as_ref() != Some(&scores)
    {
        let expected = format!("what broadcasts to {scores:?}");
        return Err(args.bad("attn_mask", expected, mask.ty.to_string()));
    }
    let mut shape = q.ty.shape.clone();
    shape[rank - 1] = ev;
    let mask = mask.map(|m| (m.at, broadcast_strides(&m.ty.shape, &scores)));
    args.one(TensorType::new(q.ty.dtype, &shape), move |inputs, pool| {
        let (q, k, v) = (
            inputs[0].as_f32()?,
            inputs[1].as_f32()?,
            inputs[2].as_f32()?,
        );
        let mask = match &mask {
            Some((at, strides)) => Some(expanded_mask(inputs[*at], strides, &scores)?),
            None => None,
        };
        let mut out = pool.floats(shape.iter().product());
        let scale = 1.0 / (e as f32).sqrt();
        let mut row = vec![0.0; s];
        let mut weights = vec![0.0; s];
        for (i, (out, q)) in out
            .chunks_exact_mut(ev.max(1))
            .zip(q.chunks_exact(e.max(1)))
            .enumerate()
        {
            let batch = i / l;
            let keys = k[batch * s * e..(batch + 1) * s * e].chunks_exact(e.max(1));
            for (o, key) in row.iter_mut().zip(keys) {
                *o = dot(q, key) * scale;
            }
            if let Some(mask) = &mask {
                let mask = &mask[i * s..(i + 1) * s];
                row.iter_mut().zip(mask).for_each(|(o, m)| *o += m);
            }
            softmax_row(&row, &mut weights);
            vector_matrix(
                &weights,
                &v[batch * s * ev..(batch + 1) * s * ev],
                false,
                out,
            );
        }
        Tensor::f32(&shape, out)
    })
}

/// The mask as numbers to add, expanded to the shape of the scores.
fn expanded_mask(mask: &Tensor, strides: &[isize], scores: &[usize]) -> Result<Vec<f32>> {
    use crate::runtime::kernels::strided::{View, copy};
    let values: Vec<f32> = match mask.as_bool() {
        Ok(seen) => {
            let hidden = |&seen: &bool| if seen { 0.0 } else { f32::NEG_INFINITY };
            seen.iter().map(hidden).collect()
        }
        Err(_) => mask.as_f32()?.to_vec(),
    };
    let mut out = vec![0.0; scores.iter().product()];
    let view = View {
        offset: 0,
        strides: strides.to_vec(),
    };
    copy(scores, &values, &view, &mut out, &View::dense(scores));
    Ok(out)
}
