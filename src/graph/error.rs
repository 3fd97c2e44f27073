//! What can go wrong while a graph is built.

use crate::gemma::LayerKind;
use crate::mil;

/// A model that a layout or a function cannot express.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The MIL builder refused an op: shapes that do not fit each other.
    #[error(transparent)]
    Mil(#[from] mil::Error),
    /// A layout has more chunks than the model can fill.
    #[error("layout {layout} has {chunks} chunks: expected at least {expected} {what}, got {got}")]
    TooFewLayers {
        /// Name of the layout.
        layout: String,
        /// Its number of chunks.
        chunks: usize,
        /// What is counted.
        what: &'static str,
        /// How many are needed.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// The layer whose K/V others share lies in a chunk that does not hand K/V on.
    #[error(
        "layout {layout}: the last own-KV {} layer is {producer}, in {chunk}; expected in {expected}, which hands \
         its K/V to the sharing layers", .kind.hf_name()
    )]
    ProducerElsewhere {
        /// Name of the layout.
        layout: String,
        /// Kind of the layer.
        kind: LayerKind,
        /// Its index.
        producer: usize,
        /// Where it lies.
        chunk: String,
        /// Where it would have to lie.
        expected: String,
    },
    /// Forms of a recipe that do not go together.
    #[error("{forms}: {why}")]
    Combination {
        /// The forms.
        forms: String,
        /// What is wrong.
        why: String,
    },
    /// A form that a model cannot have.
    #[error("{form} does not fit this model: {why}")]
    NotForModel {
        /// The form.
        form: String,
        /// What the model lacks.
        why: String,
    },
    /// A layer shares the K/V of one that its chunk cannot see.
    #[error("layer {layer} shares the K/V of layer {from}, which is not available in its chunk")]
    SharedKvMissing {
        /// The sharing layer.
        layer: usize,
        /// The layer it reads.
        from: usize,
    },
    /// A context the model was not made for.
    #[error("context {context}: expected 1 to {max_positions} tokens (max_position_embeddings)")]
    Context {
        /// What was asked for.
        context: usize,
        /// What the model has positions for.
        max_positions: usize,
    },
    /// The emitter asked for a weight that the chunk does not list: a plan that contradicts itself.
    #[error("{chunk}: no weight `{tensor}` in this chunk")]
    NoWeight {
        /// The chunk.
        chunk: String,
        /// HF tensor name without prefix.
        tensor: String,
    },
    /// A tensor of the plan that is neither a vector, a matrix nor a stack of matrices.
    #[error("{tensor}: expected a vector, a matrix or a stack of matrices, got shape {shape:?}")]
    WeightRank {
        /// HF tensor name without prefix.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A dimension that MIL cannot write.
    #[error("a dimension of {size}: expected at most {}", i32::MAX)]
    TooLarge {
        /// The dimension.
        size: usize,
    },
    /// Experts for more than one token: each token chooses its own, and the graph has no form for that yet.
    #[error(
        "layer {layer}: expected a stream of one token, since each token chooses its own experts; got shape {shape:?}\n\
         hint: models with experts have one-token functions only"
    )]
    ExpertTokens {
        /// The layer.
        layer: usize,
        /// Shape of the stream.
        shape: Vec<usize>,
    },
    /// Query heads that do not divide among the KV heads.
    #[error("layer {layer}: {query_heads} query heads do not divide among {kv_heads} KV heads")]
    HeadGroups {
        /// The layer.
        layer: usize,
        /// Query heads.
        query_heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
