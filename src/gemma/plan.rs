//! Every layer of a model: its kind, its heads, whose K and V it reads, its MLP width, and the tensors it needs.

use crate::checkpoint::{Checkpoint, LayerKind, TextConfig};

use super::error::{Error, Result};
use super::names;
use super::rope::RopeSpec;

/// Head geometry of one layer kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadGeom {
    /// Dims of a head.
    pub head_dim: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Rotary embedding of the kind.
    pub rope: RopeSpec,
}

/// Whose K and V a layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvRole {
    /// Its own; `slot` counts the owners of the same kind below it.
    Own {
        /// Index among the owners of the layer's kind.
        slot: usize,
    },
    /// Those of layer `source`, the last owner of its kind.
    Shared {
        /// Index of the owning layer.
        source: usize,
    },
}

/// The last owner of each kind, from which KV-shared layers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producers {
    /// Last sliding owner, if there is a sliding owner.
    pub sliding: Option<usize>,
    /// Last full owner, if there is a full owner.
    pub full: Option<usize>,
}

/// One decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPlan {
    /// Position in the model.
    pub index: usize,
    /// Sliding or full attention.
    pub kind: LayerKind,
    /// Dims of a head.
    pub head_dim: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Own or shared K and V.
    pub kv: KvRole,
    /// Width of the MLP, doubled where the layer is double-wide.
    pub intermediate: usize,
    /// No `v_proj`: the value is the normed raw output of `k_proj`.
    pub k_eq_v: bool,
}

impl LayerPlan {
    /// True when the layer has its own K and V.
    pub fn owns_kv(&self) -> bool {
        matches!(self.kv, KvRole::Own { .. })
    }

    /// Prefix of the layer's tensors: `layers.N.`.
    pub fn prefix(&self) -> String {
        format!("layers.{}.", self.index)
    }
}

/// The experts that every layer has beside its MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moe {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token is given to.
    pub top_k: usize,
    /// Width of one expert.
    pub intermediate: usize,
}

impl Moe {
    /// Suffixes and shapes of a layer's tensors beside those of a dense layer, in the order of the computation. The first
    /// `intermediate` rows of an expert's `gate_up_proj` are its gate. No `.weight` on four of them.
    fn tensors(&self, hidden: usize) -> [(&'static str, Vec<usize>); 8] {
        let (e, i, h) = (self.experts, self.intermediate, hidden);
        [
            ("post_feedforward_layernorm_1.weight", vec![h]),
            ("router.scale", vec![h]),
            ("router.proj.weight", vec![e, h]),
            ("router.per_expert_scale", vec![e]),
            ("pre_feedforward_layernorm_2.weight", vec![h]),
            ("experts.gate_up_proj", vec![e, 2 * i, h]),
            ("experts.down_proj", vec![e, h, i]),
            ("post_feedforward_layernorm_2.weight", vec![h]),
        ]
    }
}

/// How many weights experts make up, over all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeCost {
    /// Of every expert.
    pub all: u64,
    /// Of the experts that one token is given to.
    pub chosen: u64,
    /// Of the whole decoder: every tensor but row tables, the head included.
    pub model: u64,
}

/// A whole decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// Width of the stream.
    pub hidden: usize,
    /// Tokens, rows of the embedding table and of the head.
    pub vocab: usize,
    /// Name of the tensor that the head multiplies with: the embedding's, or its own.
    pub head: &'static str,
    /// Query heads, on every layer.
    pub q_heads: usize,
    /// Every layer in order.
    pub layers: Vec<LayerPlan>,
    /// Experts, where every layer has them beside its MLP.
    pub moe: Option<Moe>,
    /// Positions visible to a sliding layer, self included.
    pub window: usize,
    /// Width of a layer's per-layer embedding; 0 means there are none.
    pub ple_dim: usize,
    /// Rows of the per-layer embedding table; 0 when there is none.
    pub ple_vocab: usize,
    /// Epsilon of every RMS norm.
    pub eps: f64,
    /// `c` of `tanh(logits / c) * c`.
    pub softcap: Option<f64>,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// First layer that owns no K and V; the number of layers when every layer owns them.
    pub first_shared: usize,
    /// The last owners, when some layers share.
    pub producers: Option<Producers>,
    /// Heads of sliding layers.
    pub sliding: HeadGeom,
    /// Heads of full layers.
    pub full: HeadGeom,
    /// Factor on embedding rows, sqrt(hidden). A float32 run uses the exact root; a bf16 run rounds it to bf16.
    pub embed_scale: f64,
    /// Factor on per-layer rows, sqrt(ple_dim).
    pub ple_embed_scale: f64,
    /// Factor on the output of `per_layer_model_projection`, hidden^-0.5.
    pub ple_projection_scale: f64,
    /// Factor on the sum of projection and row, 2^-0.5.
    pub ple_combine_scale: f64,
    /// Token whose per-layer row stands in at image and audio positions.
    pub pad_token_id: u32,
}

impl ModelPlan {
    /// The plan of a configuration. The configuration is already checked; this only derives.
    pub fn new(config: &TextConfig) -> Result<Self> {
        let first_shared = config.first_shared();
        let last_owner = |kind| {
            config.layer_types[..first_shared]
                .iter()
                .rposition(|k| *k == kind)
        };
        let producers = Producers {
            sliding: last_owner(LayerKind::Sliding),
            full: last_owner(LayerKind::Full),
        };
        let layers = layer_plans(config, &producers)?;
        let geom = |kind| {
            let heads = config.heads(kind);
            HeadGeom {
                head_dim: heads.head_dim,
                kv_heads: heads.kv_heads,
                rope: RopeSpec::new(heads),
            }
        };
        Ok(Self {
            hidden: config.hidden_size,
            vocab: config.vocab_size,
            head: match config.tie_word_embeddings {
                true => names::EMBED,
                false => names::OWN_HEAD,
            },
            q_heads: config.num_attention_heads,
            layers,
            moe: config.moe.map(|moe| Moe {
                experts: moe.num_experts,
                top_k: moe.top_k_experts,
                intermediate: moe.moe_intermediate_size,
            }),
            window: config.sliding_window,
            ple_dim: config.hidden_size_per_layer_input,
            ple_vocab: config.vocab_size_per_layer_input,
            eps: config.rms_norm_eps,
            softcap: config.final_logit_softcapping,
            max_positions: config.max_position_embeddings,
            first_shared,
            producers: (first_shared < config.num_hidden_layers).then_some(producers),
            sliding: geom(LayerKind::Sliding),
            full: geom(LayerKind::Full),
            embed_scale: (config.hidden_size as f64).sqrt(),
            ple_embed_scale: (config.hidden_size_per_layer_input as f64).sqrt(),
            ple_projection_scale: (config.hidden_size as f64).powf(-0.5),
            ple_combine_scale: std::f64::consts::FRAC_1_SQRT_2,
            pad_token_id: config.pad_token_id,
        })
    }

    /// Heads of the given kind.
    pub fn geom(&self, kind: LayerKind) -> &HeadGeom {
        match kind {
            LayerKind::Sliding => &self.sliding,
            LayerKind::Full => &self.full,
        }
    }

    /// How many layers of a kind own K and V: the number of slots of that kind.
    pub fn owners(&self, kind: LayerKind) -> usize {
        self.layers
            .iter()
            .filter(|l| l.kind == kind && l.owns_kv())
            .count()
    }

    /// Names and shapes of the tensors outside the layers that come before them: embedding and per-layer tables.
    pub fn input_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = vec![(names::EMBED.to_string(), vec![self.vocab, self.hidden])];
        if self.ple_dim > 0 {
            let width = self.layers.len() * self.ple_dim;
            list.extend([
                (
                    names::PER_LAYER_EMBED.to_string(),
                    vec![self.ple_vocab, width],
                ),
                (
                    names::PER_LAYER_PROJECTION.to_string(),
                    vec![width, self.hidden],
                ),
                (names::PER_LAYER_NORM.to_string(), vec![self.ple_dim]),
            ]);
        }
        list
    }

    /// Names and shapes of a layer's tensors, in the order of the computation.
    pub fn layer_tensors(&self, layer: &LayerPlan) -> Vec<(String, Vec<usize>)> {
        let (h, d, i) = (self.hidden, layer.head_dim, layer.intermediate);
        let q = self.q_heads * d;
        let kv = layer.kv_heads * d;
        let mut list: Vec<(&str, Vec<usize>)> = vec![
            ("input_layernorm.weight", vec![h]),
            ("self_attn.q_proj.weight", vec![q, h]),
            ("self_attn.q_norm.weight", vec![d]),
        ];
        if layer.owns_kv() {
            list.push(("self_attn.k_proj.weight", vec![kv, h]));
            list.push(("self_attn.k_norm.weight", vec![d]));
            if !layer.k_eq_v {
                list.push(("self_attn.v_proj.weight", vec![kv, h]));
            }
        }
        list.extend([
            ("self_attn.o_proj.weight", vec![h, q]),
            ("post_attention_layernorm.weight", vec![h]),
            ("pre_feedforward_layernorm.weight", vec![h]),
            ("mlp.gate_proj.weight", vec![i, h]),
            ("mlp.up_proj.weight", vec![i, h]),
            ("mlp.down_proj.weight", vec![h, i]),
        ]);
        if let Some(moe) = self.moe {
            list.extend(moe.tensors(h));
        }
        list.push(("post_feedforward_layernorm.weight", vec![h]));
        if self.ple_dim > 0 {
            list.extend([
                ("per_layer_input_gate.weight", vec![self.ple_dim, h]),
                ("per_layer_projection.weight", vec![h, self.ple_dim]),
                ("post_per_layer_input_norm.weight", vec![h]),
            ]);
        }
        list.push(("layer_scalar", vec![1]));
        let prefix = layer.prefix();
        list.into_iter()
            .map(|(name, shape)| (format!("{prefix}{name}"), shape))
            .collect()
    }

    /// What the experts weigh; `None` for a model without.
    pub fn moe_cost(&self) -> Option<MoeCost> {
        let moe = self.moe?;
        let size = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
        // Gate, up and down.
        let expert = 3 * size(&[self.layers.len(), self.hidden, moe.intermediate]);
        let multiplied = self.multiplied_tensors();
        Some(MoeCost {
            all: moe.experts as u64 * expert,
            chosen: moe.top_k as u64 * expert,
            model: multiplied.iter().map(|(_, shape)| size(shape)).sum(),
        })
    }

    /// Every tensor that the arithmetic needs, without prefix, with its shape: tables, layers in order, final norm, and the
    /// head where it is not `embed_tokens.weight` again.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = self.input_tensors();
        for layer in &self.layers {
            list.extend(self.layer_tensors(layer));
        }
        list.push((names::FINAL_NORM.to_string(), vec![self.hidden]));
        if self.head != names::EMBED {
            list.push((self.head.to_string(), vec![self.vocab, self.hidden]));
        }
        list
    }

    /// [`tensors`](Self::tensors) without the tables that are only looked up, a row for each token: what a pass multiplies
    /// with. The embedding is among them where it is the head.
    pub fn multiplied_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = self.tensors();
        list.retain(|(name, _)| {
            name != names::PER_LAYER_EMBED && (name != names::EMBED || self.head == names::EMBED)
        });
        list
    }

    /// Checks that a checkpoint has every tensor with the right shape and no text tensor that the plan leaves unexplained.
    /// Reads no weights.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        Ok(checkpoint.check(&self.tensors())?)
    }
}

/// What each layer is. Owners of a kind are numbered in layer order.
fn layer_plans(config: &TextConfig, producers: &Producers) -> Result<Vec<LayerPlan>> {
    let first_shared = config.first_shared();
    let mut slots = (0usize, 0usize);
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for (index, &kind) in config.layer_types.iter().enumerate() {
        let (slot, source) = match kind {
            LayerKind::Sliding => (&mut slots.0, producers.sliding),
            LayerKind::Full => (&mut slots.1, producers.full),
        };
        let kv = if index < first_shared {
            *slot += 1;
            KvRole::Own { slot: *slot - 1 }
        } else {
            let source = source.ok_or(Error::NoProducer {
                layer: index,
                kind: kind.hf_name(),
            })?;
            KvRole::Shared { source }
        };
        let double = config.use_double_wide_mlp && index >= first_shared;
        let heads = config.heads(kind);
        layers.push(LayerPlan {
            index,
            kind,
            head_dim: heads.head_dim,
            kv_heads: heads.kv_heads,
            kv,
            intermediate: config.intermediate_size * if double { 2 } else { 1 },
            k_eq_v: config.attention_k_eq_v && kind == LayerKind::Full,
        });
    }
    Ok(layers)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
