//! Which inputs there are to measure.

use crate::gemma::{LayerPlan, ModelPlan, names};

/// Linear layers of a decoder layer, each with the first one that has the same input. In the order of the computation.
const LINEARS: [(&str, &str); 12] = [
    ("self_attn.q_proj.weight", "self_attn.q_proj.weight"),
    ("self_attn.k_proj.weight", "self_attn.q_proj.weight"),
    ("self_attn.v_proj.weight", "self_attn.q_proj.weight"),
    ("self_attn.o_proj.weight", "self_attn.o_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.gate_proj.weight"),
    ("mlp.up_proj.weight", "mlp.gate_proj.weight"),
    ("mlp.down_proj.weight", "mlp.down_proj.weight"),
    ("router.proj.weight", "router.proj.weight"),
    ("experts.gate_up_proj", "experts.gate_up_proj"),
    ("experts.down_proj", "experts.down_proj"),
    ("per_layer_input_gate.weight", "per_layer_input_gate.weight"),
    ("per_layer_projection.weight", "per_layer_projection.weight"),
];

/// A distinct input of linear layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    /// The first of `tensors`.
    pub name: String,
    /// The linear layers that have this input.
    pub tensors: Vec<String>,
    /// Length of the input vectors.
    pub width: usize,
    /// Rows that one token makes.
    pub rows_per_token: usize,
}

/// Sites in the order in which a layer-wise pass completes them: before the layers, each layer's, the head's.
pub(super) fn stages(plan: &ModelPlan) -> Vec<Vec<Site>> {
    let alone = |name: &str| Site {
        name: name.into(),
        tensors: vec![name.into()],
        width: plan.hidden,
        rows_per_token: 1,
    };
    let mut stages = Vec::with_capacity(plan.layers.len() + 2);
    stages.push(match plan.ple_dim {
        0 => Vec::new(),
        _ => vec![alone(names::PER_LAYER_PROJECTION)],
    });
    stages.extend(plan.layers.iter().map(|layer| of_layer(plan, layer)));
    stages.push(vec![alone(plan.head)]);
    stages
}

fn of_layer(plan: &ModelPlan, layer: &LayerPlan) -> Vec<Site> {
    let prefix = layer.prefix();
    let there = plan.layer_tensors(layer);
    let mut sites: Vec<Site> = Vec::new();
    for (suffix, first) in LINEARS {
        let name = format!("{prefix}{suffix}");
        let Some((_, shape)) = there.iter().find(|(tensor, _)| *tensor == name) else {
            continue;
        };
        let first = format!("{prefix}{first}");
        match sites.iter_mut().find(|site| site.name == first) {
            Some(site) => site.tensors.push(name),
            None => sites.push(Site {
                name: first,
                tensors: vec![name],
                width: shape.last().copied().unwrap_or_default(),
                rows_per_token: match (suffix.starts_with("experts."), plan.moe) {
                    (true, Some(moe)) => moe.top_k,
                    _ => 1,
                },
            }),
        }
    }
    sites
}
