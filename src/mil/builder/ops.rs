//! The typed ops of the builder. Each appends one op and returns its result; attributes are
//! written out even where they equal the default.

use half::f16;

use super::{FunctionBuilder, Var};
use crate::mil::error::Result;
use crate::mil::schema::OpType;
use crate::mil::types::DType;
use crate::mil::value::{Immediate, ImmediateData};

/// Attributes of `conv`; the default is stride 1, no padding, no dilation, one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvParams {
    /// One per spatial dimension; empty for all 1.
    pub strides: Vec<i32>,
    /// `valid`, `same`, `same_lower`, or `custom` with [`ConvParams::pad`].
    pub pad_type: &'static str,
    /// Before and after, per spatial dimension; empty for all 0.
    pub pad: Vec<i32>,
    /// One per spatial dimension; empty for all 1.
    pub dilations: Vec<i32>,
    /// Channel groups.
    pub groups: i32,
}

impl Default for ConvParams {
    fn default() -> Self {
        ConvParams {
            strides: Vec::new(),
            pad_type: "valid",
            pad: Vec::new(),
            dilations: Vec::new(),
            groups: 1,
        }
    }
}

/// How `gelu` is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluMode {
    /// With the error function.
    Exact,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    Tanh,
    /// `x sigmoid(1.702 x)`.
    Sigmoid,
}

impl GeluMode {
    /// The attribute's value in the file.
    pub fn name(self) -> &'static str {
        match self {
            GeluMode::Exact => "EXACT",
            GeluMode::Tanh => "TANH_APPROXIMATION",
            GeluMode::Sigmoid => "SIGMOID_APPROXIMATION",
        }
    }
}

/// Optional attributes of `slice_by_index` and `slice_update`, one element per dimension of `x`;
/// an empty vector leaves the attribute out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceParams {
    /// Steps; 1 when empty.
    pub stride: Vec<i32>,
    /// Where true, `begin` is ignored and the slice starts at the border.
    pub begin_mask: Vec<bool>,
    /// Where true, `end` is ignored and the slice ends at the border.
    pub end_mask: Vec<bool>,
    /// Where true, the dimension is indexed by `begin` and removed.
    pub squeeze_mask: Vec<bool>,
}

/// Attributes of `topk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopkParams {
    /// Axis to search along.
    pub axis: i32,
    /// Smallest instead of largest.
    pub ascending: bool,
    /// Whether the results are sorted.
    pub sort: bool,
}

impl Default for TopkParams {
    fn default() -> Self {
        TopkParams {
            axis: -1,
            ascending: false,
            sort: true,
        }
    }
}

macro_rules! unary {
    ($($name:ident $op:ident $doc:literal;)*) => {
        $(#[doc = $doc]
        pub fn $name(&mut self, x: &Var) -> Result<Var> {
            self.one(OpType::$op, &[("x", std::slice::from_ref(x))])
        })*
    };
}

macro_rules! binary {
    ($($name:ident $op:ident $doc:literal;)*) => {
        $(#[doc = $doc]
        pub fn $name(&mut self, x: &Var, y: &Var) -> Result<Var> {
            self.one(
                OpType::$op,
                &[("x", std::slice::from_ref(x)), ("y", std::slice::from_ref(y))],
            )
        })*
    };
}

macro_rules! reduce {
    ($($name:ident $op:ident $doc:literal;)*) => {
        $(#[doc = $doc]
        pub fn $name(&mut self, x: &Var, axes: &[i32], keep_dims: bool) -> Result<Var> {
            let args = [
                ("x", x.clone()),
                ("axes", self.int32s(axes)?),
                ("keep_dims", self.immediate(Immediate::bool(keep_dims))?),
            ];
            self.named(OpType::$op, &args)
        })*
    };
}

/// Typed ops. Errors are those of [`crate::mil::infer::infer`].
impl FunctionBuilder {
    /// One result.
    fn one(&mut self, op: OpType, args: &[(&'static str, &[Var])]) -> Result<Var> {
        let mut outputs = self.op(op, args)?;
        // Every op this is called for has exactly one result by its type rule.
        Ok(outputs.swap_remove(0))
    }

    fn named(&mut self, op: OpType, args: &[(&'static str, Var)]) -> Result<Var> {
        let args: Vec<_> = args
            .iter()
            .map(|(arg, var)| (*arg, std::slice::from_ref(var)))
            .collect();
        self.one(op, &args)
    }

    fn int32(&mut self, value: i32) -> Result<Var> {
        self.immediate(Immediate::int32(value))
    }

    fn int32s(&mut self, values: &[i32]) -> Result<Var> {
        self.immediate(Immediate::int32s(values))
    }

    /// Convolution of `x [n, c_in, ...]` with `weight [c_out, c_in / groups, ...]`.
    pub fn conv(
        &mut self,
        x: &Var,
        weight: &Var,
        bias: Option<&Var>,
        params: &ConvParams,
    ) -> Result<Var> {
        let spatial = x.rank().saturating_sub(2);
        let or = |values: &[i32], len: usize, default: i32| match values {
            [] => vec![default; len],
            values => values.to_vec(),
        };
        let mut args = vec![
            ("x", x.clone()),
            ("weight", weight.clone()),
            ("strides", self.int32s(&or(&params.strides, spatial, 1))?),
            (
                "pad_type",
                self.immediate(Immediate::string(params.pad_type))?,
            ),
            ("pad", self.int32s(&or(&params.pad, 2 * spatial, 0))?),
            (
                "dilations",
                self.int32s(&or(&params.dilations, spatial, 1))?,
            ),
            ("groups", self.int32(params.groups)?),
        ];
        args.extend(bias.map(|bias| ("bias", bias.clone())));
        self.named(OpType::Conv, &args)
    }

    /// `x [.., in]` times `weight [out, in]` transposed, plus bias.
    pub fn linear(&mut self, x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
        let mut args = vec![("x", x.clone()), ("weight", weight.clone())];
        args.extend(bias.map(|bias| ("bias", bias.clone())));
        self.named(OpType::Linear, &args)
    }

    /// Batched matrix product.
    pub fn matmul(&mut self, x: &Var, y: &Var, tx: bool, ty: bool) -> Result<Var> {
        let args = [
            ("x", x.clone()),
            ("y", y.clone()),
            ("transpose_x", self.immediate(Immediate::bool(tx))?),
            ("transpose_y", self.immediate(Immediate::bool(ty))?),
        ];
        self.named(OpType::Matmul, &args)
    }

    /// Layer normalization over `axes`; epsilon is stored in the element type of `x`.
    pub fn layer_norm(
        &mut self,
        x: &Var,
        axes: &[i32],
        gamma: Option<&Var>,
        beta: Option<&Var>,
        epsilon: f32,
    ) -> Result<Var> {
        let epsilon = self.float_like(gamma.or(beta).unwrap_or(x), epsilon)?;
        let mut args = vec![
            ("x", x.clone()),
            ("axes", self.int32s(axes)?),
            ("epsilon", epsilon),
        ];
        args.extend(gamma.map(|gamma| ("gamma", gamma.clone())));
        args.extend(beta.map(|beta| ("beta", beta.clone())));
        self.named(OpType::LayerNorm, &args)
    }

    /// A float scalar in the element type of `like`.
    fn float_like(&mut self, like: &Var, value: f32) -> Result<Var> {
        self.immediate(match like.dtype() {
            DType::Fp32 => Immediate::fp32(value),
            _ => Immediate::fp16(f16::from_f32(value)),
        })
    }

    binary! {
        add Add "`x + y`, broadcast.";
        sub Sub "`x - y`, broadcast.";
        mul Mul "`x * y`, broadcast.";
        real_div RealDiv "`x / y`, broadcast.";
        maximum Maximum "The larger of `x` and `y`, broadcast.";
        minimum Minimum "The smaller of `x` and `y`, broadcast.";
        pow Pow "`x` to the power `y`, broadcast.";
    }

    unary! {
        exp Exp "e to the x.";
        tanh Tanh "Hyperbolic tangent.";
        sigmoid Sigmoid "Logistic function.";
        silu Silu "`x * sigmoid(x)`.";
        sqrt Sqrt "Square root.";
        cos Cos "Cosine.";
        sin Sin "Sine.";
        round Round "The nearest integer, a half to the even one.";
        identity Identity "The same value as a new one.";
    }

    reduce! {
        reduce_mean ReduceMean "Mean over axes.";
        reduce_sum ReduceSum "Sum over axes.";
        reduce_max ReduceMax "Maximum over axes.";
        reduce_sum_square ReduceSumSquare "Sum of squares over axes.";
    }

    /// Index of the first maximum along `axis`, int32.
    pub fn reduce_argmax(&mut self, x: &Var, axis: i32, keep_dims: bool) -> Result<Var> {
        let args = [
            ("x", x.clone()),
            ("axis", self.int32(axis)?),
            ("keep_dims", self.immediate(Immediate::bool(keep_dims))?),
        ];
        self.named(OpType::ReduceArgmax, &args)
    }

    /// `1 / sqrt(x + epsilon)`; epsilon is stored in the element type of `x`, so an fp16 epsilon
    /// below 6e-8 is 0.
    pub fn rsqrt(&mut self, x: &Var, epsilon: f32) -> Result<Var> {
        let epsilon = self.float_like(x, epsilon)?;
        self.named(OpType::Rsqrt, &[("x", x.clone()), ("epsilon", epsilon)])
    }

    /// `x` held to `alpha ..= beta`, both in the element type of `x`.
    pub fn clip(&mut self, x: &Var, alpha: f32, beta: f32) -> Result<Var> {
        let args = [
            ("x", x.clone()),
            ("alpha", self.float_like(x, alpha)?),
            ("beta", self.float_like(x, beta)?),
        ];
        self.named(OpType::Clip, &args)
    }

    /// GELU.
    pub fn gelu(&mut self, x: &Var, mode: GeluMode) -> Result<Var> {
        let mode = self.immediate(Immediate::string(mode.name()))?;
        self.named(OpType::Gelu, &[("x", x.clone()), ("mode", mode)])
    }

    /// Softmax along `axis`.
    pub fn softmax(&mut self, x: &Var, axis: i32) -> Result<Var> {
        let axis = self.int32(axis)?;
        self.named(OpType::Softmax, &[("x", x.clone()), ("axis", axis)])
    }

    /// Attention with scale `1 / sqrt(E)`; the mask is bool, or a float that is added.
    pub fn scaled_dot_product_attention(
        &mut self,
        query: &Var,
        key: &Var,
        value: &Var,
        mask: Option<&Var>,
    ) -> Result<Var> {
        let mut args = vec![
            ("query", query.clone()),
            ("key", key.clone()),
            ("value", value.clone()),
        ];
        args.extend(mask.map(|mask| ("attn_mask", mask.clone())));
        self.named(OpType::ScaledDotProductAttention, &args)
    }

    /// Concatenation along `axis`.
    pub fn concat(&mut self, values: &[Var], axis: i32) -> Result<Var> {
        let axis = self.int32(axis)?;
        let interleave = self.immediate(Immediate::bool(false))?;
        self.one(
            OpType::Concat,
            &[
                ("values", values),
                ("axis", std::slice::from_ref(&axis)),
                ("interleave", std::slice::from_ref(&interleave)),
            ],
        )
    }

    /// Pieces of the given sizes along `axis`.
    pub fn split(&mut self, x: &Var, sizes: &[i32], axis: i32) -> Result<Vec<Var>> {
        let sizes = self.int32s(sizes)?;
        let axis = self.int32(axis)?;
        self.op(
            OpType::Split,
            &[
                ("x", std::slice::from_ref(x)),
                ("split_sizes", std::slice::from_ref(&sizes)),
                ("axis", std::slice::from_ref(&axis)),
            ],
        )
    }

    fn slice_args(&mut self, params: &SliceParams) -> Result<Vec<(&'static str, Var)>> {
        let mut args = Vec::new();
        if !params.stride.is_empty() {
            args.push(("stride", self.int32s(&params.stride)?));
        }
        let masks = [
            ("begin_mask", &params.begin_mask),
            ("end_mask", &params.end_mask),
            ("squeeze_mask", &params.squeeze_mask),
        ];
        for (arg, mask) in masks {
            if !mask.is_empty() {
                args.push((arg, self.immediate(Immediate::bools(mask))?));
            }
        }
        Ok(args)
    }

    /// `x[begin:end:stride]` per dimension, with constant bounds.
    pub fn slice_by_index(
        &mut self,
        x: &Var,
        begin: &[i32],
        end: &[i32],
        params: &SliceParams,
    ) -> Result<Var> {
        let mut args = vec![
            ("x", x.clone()),
            ("begin", self.int32s(begin)?),
            ("end", self.int32s(end)?),
        ];
        args.extend(self.slice_args(params)?);
        self.named(OpType::SliceByIndex, &args)
    }

    /// `size` elements from `begin`, which may be computed; a size of -1 needs a constant `begin`.
    pub fn slice_by_size(&mut self, x: &Var, begin: &Var, size: &[i32]) -> Result<Var> {
        let size = self.int32s(size)?;
        let args = [("x", x.clone()), ("begin", begin.clone()), ("size", size)];
        self.named(OpType::SliceBySize, &args)
    }

    /// `x` with `update` in the place of the slice; `begin` and `end` may be computed.
    pub fn slice_update(
        &mut self,
        x: &Var,
        update: &Var,
        begin: &Var,
        end: &Var,
        params: &SliceParams,
    ) -> Result<Var> {
        let mut args = vec![
            ("x", x.clone()),
            ("update", update.clone()),
            ("begin", begin.clone()),
            ("end", end.clone()),
        ];
        args.extend(self.slice_args(params)?);
        self.named(OpType::SliceUpdate, &args)
    }

    /// Same elements in another shape; one -1, and 0 copies a dimension.
    pub fn reshape(&mut self, x: &Var, shape: &[i32]) -> Result<Var> {
        let shape = self.int32s(shape)?;
        self.named(OpType::Reshape, &[("x", x.clone()), ("shape", shape)])
    }

    /// Dimension `i` of the result is dimension `perm[i]` of `x`.
    pub fn transpose(&mut self, x: &Var, perm: &[i32]) -> Result<Var> {
        let perm = self.int32s(perm)?;
        self.named(OpType::Transpose, &[("x", x.clone()), ("perm", perm)])
    }

    /// Dimensions of size 1 at these places of the result.
    pub fn expand_dims(&mut self, x: &Var, axes: &[i32]) -> Result<Var> {
        let axes = self.int32s(axes)?;
        self.named(OpType::ExpandDims, &[("x", x.clone()), ("axes", axes)])
    }

    /// Removes these dimensions of size 1.
    pub fn squeeze(&mut self, x: &Var, axes: &[i32]) -> Result<Var> {
        let axes = self.int32s(axes)?;
        self.named(OpType::Squeeze, &[("x", x.clone()), ("axes", axes)])
    }

    /// Repeats each dimension.
    pub fn tile(&mut self, x: &Var, reps: &[i32]) -> Result<Var> {
        let reps = self.int32s(reps)?;
        self.named(OpType::Tile, &[("x", x.clone()), ("reps", reps)])
    }

    /// Slices of `x` along `axis`; the first `batch_dims` dimensions are shared with `indices`.
    pub fn gather(&mut self, x: &Var, indices: &Var, axis: i32, batch_dims: i32) -> Result<Var> {
        let args = [
            ("x", x.clone()),
            ("indices", indices.clone()),
            ("axis", self.int32(axis)?),
            ("batch_dims", self.int32(batch_dims)?),
            ("validate_indices", self.immediate(Immediate::bool(false))?),
        ];
        self.named(OpType::Gather, &args)
    }

    /// Elements of `x` along `axis`, one per index.
    pub fn gather_along_axis(&mut self, x: &Var, indices: &Var, axis: i32) -> Result<Var> {
        let args = [
            ("x", x.clone()),
            ("indices", indices.clone()),
            ("axis", self.int32(axis)?),
            ("validate_indices", self.immediate(Immediate::bool(false))?),
        ];
        self.named(OpType::GatherAlongAxis, &args)
    }

    /// Conversion of the element type.
    pub fn cast(&mut self, x: &Var, dtype: DType) -> Result<Var> {
        let dtype = self.immediate(Immediate::string(dtype.name()))?;
        self.named(OpType::Cast, &[("x", x.clone()), ("dtype", dtype)])
    }

    /// Constant padding of the last dimensions: before and after for each.
    pub fn pad(&mut self, x: &Var, pad: &[i32], value: f32) -> Result<Var> {
        let args = [
            ("x", x.clone()),
            ("pad", self.int32s(pad)?),
            ("mode", self.immediate(Immediate::string("constant"))?),
            ("constant_val", self.float_like(x, value)?),
        ];
        self.named(OpType::Pad, &args)
    }

    /// `a` where `cond`, `b` elsewhere.
    pub fn select(&mut self, cond: &Var, a: &Var, b: &Var) -> Result<Var> {
        let args = [("cond", cond.clone()), ("a", a.clone()), ("b", b.clone())];
        self.named(OpType::Select, &args)
    }

    /// The `k` largest along an axis: values and int32 indices.
    pub fn topk(&mut self, x: &Var, k: i32, params: TopkParams) -> Result<(Var, Var)> {
        let args = [
            ("x", x.clone()),
            ("k", self.int32(k)?),
            ("axis", self.int32(params.axis)?),
            (
                "ascending",
                self.immediate(Immediate::bool(params.ascending))?,
            ),
            ("sort", self.immediate(Immediate::bool(params.sort))?),
            ("return_indices", self.immediate(Immediate::bool(true))?),
        ];
        let args: Vec<_> = args
            .iter()
            .map(|(arg, var)| (*arg, std::slice::from_ref(var)))
            .collect();
        let mut outputs = self.op(OpType::Topk, &args)?;
        // With return_indices there are exactly two results by the type rule.
        let indices = outputs.swap_remove(1);
        Ok((outputs.swap_remove(0), indices))
    }

    /// The tensor in a state.
    pub fn read_state(&mut self, state: &Var) -> Result<Var> {
        self.named(OpType::ReadState, &[("input", state.clone())])
    }

    /// Replaces the tensor in a state.
    pub fn write_state(&mut self, state: &Var, data: &Var) -> Result<()> {
        let args: [(&'static str, &[Var]); 2] = [
            ("input", std::slice::from_ref(state)),
            ("data", std::slice::from_ref(data)),
        ];
        self.op(OpType::WriteState, &args).map(drop)
    }

    /// `clip(round(input / scale) + zero_point)` with one scale for the whole tensor.
    pub fn quantize(&mut self, input: &Var, scale: f32, dtype: DType) -> Result<Var> {
        let args = [
            ("input", input.clone()),
            ("scale", self.float_like(input, scale)?),
            (
                "output_dtype",
                self.immediate(Immediate::string(dtype.name()))?,
            ),
        ];
        self.named(OpType::Quantize, &args)
    }

    /// `scale * input` in fp16, with one scale for the whole tensor.
    pub fn dequantize(&mut self, input: &Var, scale: f32) -> Result<Var> {
        let data = ImmediateData::Fp16(vec![f16::from_f32(scale)]);
        let scale = self.immediate(Immediate::scalar(data)?)?;
        self.named(
            OpType::Dequantize,
            &[("input", input.clone()), ("scale", scale)],
        )
    }
}
