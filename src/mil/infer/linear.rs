//! Products, normalization, reductions, element-wise ops and constexpr ops.

use super::{Call, Inferred, ValueKind, axes, axis, broadcast, one_of};
use crate::mil::types::{DType, TensorType};

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Call<'_> {
    pub(super) fn binary(&self) -> Inferred<TensorType> {
        let (x, y) = (self.ty("x")?, self.ty("y")?);
        Ok(TensorType::new(x.dtype, &broadcast(&x.shape, &y.shape)?))
    }

    pub(super) fn rsqrt(&self) -> Inferred<TensorType> {
        self.scalar("epsilon", |v| v.as_float())?;
        Ok(self.ty("x")?.clone())
    }

    pub(super) fn clip(&self) -> Inferred<TensorType> {
        let [alpha, beta] = [
            self.scalar("alpha", |v| v.as_float())?,
            self.scalar("beta", |v| v.as_float())?,
        ];
        if let (Some(alpha), Some(beta)) = (alpha, beta)
            && alpha.partial_cmp(&beta) != Some(std::cmp::Ordering::Less)
        {
            return Err(format!("alpha {alpha} must be smaller than beta {beta}"));
        }
        Ok(self.ty("x")?.clone())
    }

    pub(super) fn gelu(&self) -> Inferred<TensorType> {
        let modes = ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"];
        one_of("mode", self.str("mode", "EXACT")?, &modes)?;
        Ok(self.ty("x")?.clone())
    }

    pub(super) fn softmax(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        axis("axis", self.int("axis", -1)?, x.rank())?;
        Ok(x.clone())
    }

    pub(super) fn select(&self) -> Inferred<TensorType> {
        let (a, b) = (self.ty("a")?, self.ty("b")?);
        let shape = broadcast(&a.shape, &b.shape)?;
        if broadcast(&shape, self.shape("cond")?)? != shape {
            return Err("`cond` is larger than `a` and `b`".to_owned());
        }
        Ok(TensorType::new(a.dtype, &shape))
    }

    pub(super) fn conv(&self) -> Inferred<TensorType> {
        let (x, weight) = (self.ty("x")?, self.ty("weight")?);
        if !(3..=5).contains(&x.rank()) || weight.rank() != x.rank() {
            return Err(format!(
                "`x` {x} and `weight` {weight} need one rank, 3 to 5"
            ));
        }
        let groups = self.int("groups", 1)?;
        let (c_in, c_out) = (count(x.shape[1]), count(weight.shape[0]));
        if groups < 1 || c_in % groups != 0 || c_out % groups != 0 {
            return Err(format!(
                "{groups} groups do not divide {c_in} and {c_out} channels"
            ));
        }
        if count(weight.shape[1]) != c_in / groups {
            return Err(format!(
                "`weight` {weight} needs {} input channels for `x` {x}",
                c_in / groups
            ));
        }
        if let Some(bias) = self.opt("bias")
            && bias.ty.shape != [weight.shape[0]]
        {
            return Err(format!("`bias` is {}, expected [{c_out}]", bias.ty));
        }
        let mut shape = vec![x.shape[0], weight.shape[0]];
        shape.extend(self.conv_spatial(&x.shape[2..], &weight.shape[2..])?);
        Ok(TensorType::new(x.dtype, &shape))
    }

    fn conv_spatial(&self, input: &[usize], kernel: &[usize]) -> Inferred<Vec<usize>> {
        let n = input.len();
        let vector = |arg: &str, len: usize, default: i64, min: i64| {
            let values = self.ints(arg)?.unwrap_or_else(|| vec![default; len]);
            if values.len() != len || values.iter().any(|v| !(min..=1 << 31).contains(v)) {
                return Err(format!(
                    "`{arg}` {values:?}: expected {len} numbers from {min}"
                ));
            }
            Ok(values)
        };
        let strides = vector("strides", n, 1, 1)?;
        let dilations = vector("dilations", n, 1, 1)?;
        let pad = vector("pad", 2 * n, 0, 0)?;
        let modes = ["valid", "custom", "same", "same_lower"];
        let pad_type = one_of("pad_type", self.str("pad_type", "valid")?, &modes)?;
        let weight_is_const = self.opt("weight").map(|w| w.kind) == Some(ValueKind::Const);
        if !weight_is_const && dilations.iter().any(|&d| d > 1) {
            return Err("a computed weight cannot be dilated".to_owned());
        }
        (0..n)
            .map(|i| {
                let size = count(input[i]);
                let reach = (count(kernel[i]) - 1)
                    .checked_mul(dilations[i])
                    .ok_or("the kernel is too large")?;
                let out = match pad_type {
                    "same" | "same_lower" => (size + strides[i] - 1) / strides[i],
                    _ => {
                        let padded = match pad_type {
                            "custom" => size + pad[2 * i] + pad[2 * i + 1],
                            _ => size,
                        };
                        (padded - reach - 1).div_euclid(strides[i]) + 1
                    }
                };
                usize::try_from(out)
                    .ok()
                    .filter(|&out| out > 0)
                    .ok_or_else(|| format!("spatial dimension {i} has no output"))
            })
            .collect()
    }

    pub(super) fn linear(&self) -> Inferred<TensorType> {
        let (x, weight) = (self.ty("x")?, self.ty("weight")?);
        if weight.rank() != 2 || x.shape.last() != weight.shape.last() {
            return Err(format!("`x` {x} does not fit `weight` {weight} [out, in]"));
        }
        if let Some(bias) = self.opt("bias")
            && bias.ty.shape != [weight.shape[0]]
        {
            return Err(format!("`bias` is {}, `weight` {weight}", bias.ty));
        }
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = weight.shape[0];
        }
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn matmul(&self) -> Inferred<TensorType> {
        let (x, y) = (self.ty("x")?, self.ty("y")?);
        if x.rank() < 2 || y.rank() < 2 {
            return Err(format!("`x` {x} and `y` {y} need a rank of at least 2"));
        }
        let side = |shape: &[usize], transpose: bool| {
            let (batch, matrix) = shape.split_at(shape.len() - 2);
            let (rows, columns) = (matrix[0], matrix[1]);
            let matrix = if transpose {
                (columns, rows)
            } else {
                (rows, columns)
            };
            (batch.to_vec(), matrix)
        };
        let (x_batch, (m, k)) = side(&x.shape, self.bool("transpose_x", false)?);
        let (y_batch, (k2, n)) = side(&y.shape, self.bool("transpose_y", false)?);
        if k != k2 {
            return Err(format!(
                "`x` {x} and `y` {y}: inner sizes {k} and {k2} differ"
            ));
        }
        let mut shape = broadcast(&x_batch, &y_batch)?;
        shape.extend([m, n]);
        Ok(TensorType::new(x.dtype, &shape))
    }

    pub(super) fn layer_norm(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let all = || (0..count(x.rank())).collect();
        let axes = axes(&self.ints("axes")?.unwrap_or_else(all), x.rank())?;
        let expected: Vec<usize> = axes.iter().map(|&i| x.shape[i]).collect();
        for arg in ["gamma", "beta"] {
            if let Some(bound) = self.opt(arg)
                && bound.ty.shape != expected
            {
                return Err(format!("`{arg}` is {}, expected {expected:?}", bound.ty));
            }
        }
        self.scalar("epsilon", |v| v.as_float())?;
        Ok(x.clone())
    }

    pub(super) fn reduce(&self) -> Inferred<TensorType> {
        let x = self.ty("x")?;
        let all = || (0..count(x.rank())).collect();
        let axes = axes(&self.ints("axes")?.unwrap_or_else(all), x.rank())?;
        self.reduced(x.dtype, &axes)
    }

    fn reduced(&self, dtype: DType, axes: &[usize]) -> Inferred<TensorType> {
        let keep = self.bool("keep_dims", false)?;
        let shape = self.shape("x")?.iter().enumerate();
        let shape: Vec<usize> = shape
            .filter_map(|(i, &dim)| match axes.contains(&i) {
                true => keep.then_some(1),
                false => Some(dim),
            })
            .collect();
        Ok(TensorType::new(dtype, &shape))
    }

    pub(super) fn reduce_argmax(&self) -> Inferred<TensorType> {
        let axis = axis("axis", self.int("axis", -1)?, self.ty("x")?.rank())?;
        let dtype = match self.str("output_dtype", "int32")? {
            "int32" => DType::Int32,
            "uint16" => DType::UInt16,
            other => return Err(format!("output_dtype `{other}`; expected int32 or uint16")),
        };
        self.reduced(dtype, &[axis])
    }

    pub(super) fn attention(&self) -> Inferred<TensorType> {
        let (q, k, v) = (
            self.shape("query")?,
            self.shape("key")?,
            self.shape("value")?,
        );
        let rank = q.len();
        if rank < 3 || k.len() != rank || v.len() != rank {
            return Err("query, key and value need one rank of at least 3".to_owned());
        }
        let batch = rank - 2;
        if q[..batch] != k[..batch] || q[..batch] != v[..batch] {
            return Err("query, key and value need equal batch dimensions".to_owned());
        }
        if q[rank - 1] != k[rank - 1] || k[rank - 2] != v[rank - 2] {
            return Err(format!("query {q:?}, key {k:?}, value {v:?} do not fit"));
        }
        let mut scores = q[..rank - 1].to_vec();
        scores.push(k[rank - 2]);
        if let Some(mask) = self.opt("attn_mask") {
            let last = mask.ty.shape.last();
            if last != Some(&k[rank - 2]) || broadcast(&scores, &mask.ty.shape)? != scores {
                return Err(format!("attn_mask {} does not fit {scores:?}", mask.ty));
            }
        }
        let mut shape = q[..rank - 1].to_vec();
        shape.push(v[rank - 1]);
        Ok(TensorType::new(self.ty("query")?.dtype, &shape))
    }

    fn scale_shape(&self) -> Inferred<()> {
        let (input, scale) = (self.ty("input")?, self.ty("scale")?);
        let axis_value = self.scalar("axis", |v| v.as_int())?;
        let expected = match (scale.rank(), axis_value) {
            (0, None) => vec![],
            (0, Some(_)) => return Err("a scalar scale takes no axis".to_owned()),
            (1, Some(value)) => vec![input.shape[axis("axis", value, input.rank())?]],
            (1, None) => return Err("a vector scale needs an axis".to_owned()),
            _ => return Err(format!("scale {scale} is neither scalar nor vector")),
        };
        for arg in ["scale", "zero_point"] {
            if let Some(bound) = self.opt(arg)
                && bound.ty.shape != expected
            {
                return Err(format!("`{arg}` is {}, expected {expected:?}", bound.ty));
            }
        }
        Ok(())
    }

    pub(super) fn quantize(&self) -> Inferred<TensorType> {
        self.scale_shape()?;
        let dtype = match self.str("output_dtype", "")? {
            "int8" => DType::Int8,
            "uint8" => DType::UInt8,
            other => return Err(format!("output_dtype `{other}`; expected int8 or uint8")),
        };
        if let Some(zero) = self.opt("zero_point")
            && zero.ty.dtype != dtype
        {
            return Err(format!("zero_point is {}, output {dtype}", zero.ty));
        }
        Ok(TensorType::new(dtype, self.shape("input")?))
    }

    pub(super) fn dequantize(&self) -> Inferred<TensorType> {
        self.scale_shape()?;
        let dtype = self.ty("scale")?.dtype;
        Ok(TensorType::new(dtype, self.shape("input")?))
    }

    pub(super) fn lut_to_dense(&self) -> Inferred<TensorType> {
        let indices = self.ty("indices")?;
        let shape = self.looked_up(&indices.shape, indices)?;
        Ok(TensorType::new(self.ty("lut")?.dtype, &shape))
    }

    /// The mask and the nonzero elements.
    pub(super) fn lut_to_sparse(&self) -> Inferred<Vec<TensorType>> {
        let (mask, data) = (self.ty("indices_mask")?, self.ty("indices_nonzero_data")?);
        let &[count] = data.shape.as_slice() else {
            return Err(format!("`indices_nonzero_data` {data} must be a vector"));
        };
        let shape = self.looked_up(&mask.shape, data)?;
        let lut = self.ty("lut")?;
        let vector = lut.shape.last().copied().unwrap_or(1);
        let elements = count.checked_mul(vector).ok_or("the result is too large")?;
        Ok(vec![
            TensorType::new(mask.dtype, &shape),
            TensorType::new(lut.dtype, &[elements]),
        ])
    }

    pub(super) fn sparse_to_dense(&self) -> Inferred<TensorType> {
        let (data, mask) = (self.ty("nonzero_data")?, self.ty("mask")?);
        if data.rank() != 1 {
            return Err(format!("`nonzero_data` {data} must be a vector"));
        }
        if mask.elements().is_none_or(|n| n < data.shape[0]) {
            return Err(format!(
                "`nonzero_data` {data} has more elements than `mask` {mask}"
            ));
        }
        Ok(TensorType::new(data.dtype, &mask.shape))
    }

    /// The shape of what indices of `shape` and the type of `indices` are looked up as.
    fn looked_up(&self, index_shape: &[usize], indices: &TensorType) -> Inferred<Vec<usize>> {
        let lut = self.ty("lut")?;
        let rank = index_shape.len();
        if rank == 0 || lut.rank() != rank + 2 {
            return Err(format!(
                "`lut` {lut} needs two dimensions more than `indices` {indices}"
            ));
        }
        for (i, (&dim, &groups)) in index_shape.iter().zip(&lut.shape).enumerate() {
            if groups == 0 || dim % groups != 0 {
                return Err(format!(
                    "{groups} groups do not divide dimension {i} of {indices}"
                ));
            }
        }
        if lut.shape[rank] != 1 << indices.dtype.bits() {
            return Err(format!(
                "{} entries do not belong to {indices}",
                lut.shape[rank]
            ));
        }
        let vector = lut.shape[rank + 1];
        let mut shape = index_shape.to_vec();
        match self.scalar("vector_axis", |v| v.as_int())? {
            Some(value) => {
                let dim = &mut shape[axis("vector_axis", value, rank)?];
                *dim = dim.checked_mul(vector).ok_or("the result is too large")?;
            }
            None if vector == 1 => {}
            None => return Err(format!("vectors of {vector} need a `vector_axis`")),
        }
        Ok(shape)
    }

    pub(super) fn blockwise_shift_scale(&self) -> Inferred<TensorType> {
        let (data, scale) = (self.ty("data")?, self.ty("scale")?);
        if data.rank() == 0 || scale.rank() != data.rank() {
            return Err(format!("`scale` {scale} needs the rank of `data` {data}"));
        }
        for (i, (&dim, &blocks)) in data.shape.iter().zip(&scale.shape).enumerate() {
            if blocks == 0 || dim % blocks != 0 {
                return Err(format!(
                    "{blocks} blocks do not divide dimension {i} of {data}"
                ));
            }
        }
        if let Some(offset) = self.opt("offset") {
            let dtype = offset.ty.dtype;
            if offset.ty.shape != scale.shape || !(dtype == data.dtype || dtype.is_float()) {
                return Err(format!(
                    "`offset` {} does not fit `scale` {scale}",
                    offset.ty
                ));
            }
        }
        Ok(TensorType::new(scale.dtype, &data.shape))
    }
}
