//! Factors that can move from one tensor of a layer into another without a change of what the layer computes.

use super::plan::{LayerPlan, ModelPlan};

/// Input channels of some projections that can be multiplied by any factors, when the channels of `source`, which feeds
/// them and nothing else, are divided by the same.
///
/// A norm's weight feeds the projections behind the norm. `up_proj` feeds `down_proj` through a product, in which a factor of
/// its output passes unchanged. Where nothing but such a product, a norm without weight or the residual stream feeds a
/// projection (`o_proj`, the per-layer projections) there is no fold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The tensor that is divided: a norm's weight `[n]`, or the rows of a projection `[n, in]`.
    pub source: String,
    /// The projections `[out, n]` whose columns are multiplied; `[e, out, n]` for stacked experts.
    pub consumers: Vec<String>,
}

impl ModelPlan {
    /// The folds of a layer. Those whose source is a projection come first: they change its rows.
    pub fn folds(&self, layer: &LayerPlan) -> Vec<Fold> {
        let name = |suffix: &str| format!("{}{suffix}", layer.prefix());
        let fold = |source: &str, consumers: &[&str]| Fold {
            source: name(source),
            consumers: consumers.iter().map(|c| name(c)).collect(),
        };
        let mut attention = vec!["self_attn.q_proj.weight"];
        if layer.owns_kv() {
            attention.push("self_attn.k_proj.weight");
            if !layer.k_eq_v {
                attention.push("self_attn.v_proj.weight");
            }
        }
        let mut folds = vec![
            fold("mlp.up_proj.weight", &["mlp.down_proj.weight"]),
            fold("input_layernorm.weight", &attention),
            fold(
                "pre_feedforward_layernorm.weight",
                &["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            ),
        ];
        if self.moe.is_some() {
            folds.push(fold(
                "pre_feedforward_layernorm_2.weight",
                &["experts.gate_up_proj"],
            ));
        }
        folds
    }

    /// The norm that a projection's output goes through before anything else, with a weight for each of its channels.
    pub fn norm_behind(&self, layer: &LayerPlan, tensor: &str) -> Option<String> {
        let prefix = layer.prefix();
        let norm = match tensor.strip_prefix(&prefix)? {
            "self_attn.o_proj.weight" => "post_attention_layernorm.weight",
            "mlp.down_proj.weight" if self.moe.is_some() => "post_feedforward_layernorm_1.weight",
            "mlp.down_proj.weight" => "post_feedforward_layernorm.weight",
            "per_layer_projection.weight" => "post_per_layer_input_norm.weight",
            _ => return None,
        };
        Some(format!("{prefix}{norm}"))
    }
}
