//! Names, without prefix, of the tensors outside the layers.

/// Token embedding `[vocab, hidden]`; the head too, where the two are tied.
pub const EMBED: &str = "embed_tokens.weight";
/// The head `[vocab, hidden]`, where it is not the embedding.
pub const OWN_HEAD: &str = "lm_head.weight";
/// Per-layer embedding `[ple_vocab, layers * ple_dim]`.
pub const PER_LAYER_EMBED: &str = "embed_tokens_per_layer.weight";
/// Projection of the embedding to per-layer inputs, `[layers * ple_dim, hidden]`.
pub const PER_LAYER_PROJECTION: &str = "per_layer_model_projection.weight";
/// Gain of the norm of that projection, `[ple_dim]`, shared by all layers.
pub const PER_LAYER_NORM: &str = "per_layer_projection_norm.weight";
/// Gain of the final norm, `[hidden]`.
pub const FINAL_NORM: &str = "norm.weight";
