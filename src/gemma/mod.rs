//! What Gemma 4 is: layer plan, KV roles, head geometry, rotary embedding, and the f32 reference forward.
//!
//! [`ModelPlan`] turns a [`TextConfig`](crate::checkpoint::TextConfig) into what every layer is and which tensors it needs.
//! [`rope`] makes the rotary tables. [mod@reference] runs the decoder in f32 through candle, and is the reference for
//! checkpoints without transformers output.

mod error;
mod experts;
mod folds;
mod layer;
mod math;
pub mod names;
mod observe;
mod plan;
pub mod reference;
pub mod rope;
mod weights;

pub use crate::checkpoint::LayerKind;
pub use error::{Error, Result};
pub use folds::Fold;
pub use observe::Observer;
pub use plan::{HeadGeom, KvRole, LayerPlan, ModelPlan, Moe, MoeCost, Producers};
pub use rope::RopeSpec;
