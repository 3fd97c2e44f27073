//! The MIL language: types, programs, a typed builder with shape inference, op schema, text printer.
//!
//! A [`Program`] is a set of functions; a [`Function`] is a list of inputs and states, a list of
//! [`Op`]s in single static assignment order, and the names of its outputs. Weights are
//! [`DeferredConst`]s: named and sized, with bytes that only the package writer asks for. Everything
//! else that is constant is an [`Immediate`]. The opset is fixed: [`OPSET`], [`SPEC_VERSION`].
//!
//! [`schema`] holds the op names, argument names and attribute defaults; [`infer`] the type rules,
//! used by the builder when it writes and by `package` when it reads.

pub mod builder;
pub mod error;
pub mod ident;
pub mod infer;
pub mod program;
pub mod schema;
pub mod types;
pub mod value;

pub use builder::{ConvParams, FunctionBuilder, GeluMode, SliceParams, TopkParams, Var};
pub use error::{Error, Result};
pub use program::{ConstValue, Function, Input, Op, Program};
pub use schema::{ArgSpec, DefaultValue, OpType};
pub use types::{DType, TensorType};
pub use value::{DeferredConst, Immediate, ImmediateData};

/// The opset that every function is written for (iOS 18, macOS 15).
pub const OPSET: &str = "CoreML8";

/// The Core ML specification version that belongs to [`OPSET`].
pub const SPEC_VERSION: i32 = 9;

/// The largest rank of a value that is not a constant (Core ML refuses more).
pub const MAX_RANK: usize = 5;
