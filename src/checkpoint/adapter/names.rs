//! Names of tensors in the files of PEFT and mlx-lm, and the tensors of the model that they change.

/// What a tensor of an adapter is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The factor on the side of the inputs.
    A,
    /// The factor on the side of the outputs.
    B,
    /// A of an embedding, `[r, rows]`.
    EmbeddingA,
    /// B of an embedding, `[columns, r]`.
    EmbeddingB,
    /// Lengths of rows or columns for DoRA.
    Magnitude,
    /// The base model's own tensor, saved with the factors of an embedding.
    Base,
    /// Rows of a table in the place of those of some tokens.
    TokenRows,
    /// A bias of B.
    BiasOfB,
}

/// A tensor's name, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// A part of what is done to a module. `adapter` is the name that PEFT gives adapters in memory.
    Part {
        module: &'a str,
        part: Part,
        adapter: Option<&'a str>,
    },
    /// A tensor in the place of the model's, without what wraps it.
    Whole(String),
    /// Of an adapter, but unknown.
    Unknown,
}

/// What stands before the module's path in PEFT's files.
const PEFT_PREFIX: &str = "base_model.model.";

/// Takes a name of PEFT's apart.
pub(super) fn peft(name: &str) -> Key<'_> {
    let path = name.strip_prefix(PEFT_PREFIX).unwrap_or(name);
    let Some((module, marker, tail)) = split_at_marker(path) else {
        return match path.split('.').any(|s| s.starts_with("lora_")) {
            true => Key::Unknown,
            false => Key::Whole(path.to_string()),
        };
    };
    let (part, adapter) = match (marker, tail.as_slice()) {
        ("lora_A", ["weight"]) => (Part::A, None),
        ("lora_A", [adapter, "weight"]) => (Part::A, Some(*adapter)),
        ("lora_B", ["weight"]) => (Part::B, None),
        ("lora_B", [adapter, "weight"]) => (Part::B, Some(*adapter)),
        ("lora_B", ["bias"] | [_, "bias"]) => (Part::BiasOfB, None),
        ("lora_embedding_A", []) => (Part::EmbeddingA, None),
        ("lora_embedding_A", [adapter]) => (Part::EmbeddingA, Some(*adapter)),
        ("lora_embedding_B", []) => (Part::EmbeddingB, None),
        ("lora_embedding_B", [adapter]) => (Part::EmbeddingB, Some(*adapter)),
        ("lora_magnitude_vector", [] | ["weight"]) => (Part::Magnitude, None),
        ("lora_magnitude_vector", [adapter] | [adapter, "weight"]) => {
            (Part::Magnitude, Some(*adapter))
        }
        ("base_layer", ["weight"]) => (Part::Base, None),
        ("token_adapter", ["trainable_tokens_delta"]) => (Part::TokenRows, None),
        ("token_adapter", ["trainable_tokens_delta", adapter]) => (Part::TokenRows, Some(*adapter)),
        ("modules_to_save", [_, rest @ ..]) if !rest.is_empty() => {
            return Key::Whole(format!("{module}.{}", rest.join(".")));
        }
        _ => return Key::Unknown,
    };
    Key::Part {
        module,
        part,
        adapter,
    }
}

/// The module before the last of PEFT's own names in a path, that name, and what follows.
fn split_at_marker(path: &str) -> Option<(&str, &str, Vec<&str>)> {
    const MARKERS: [&str; 8] = [
        "lora_A",
        "lora_B",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
        "base_layer",
        "token_adapter",
        "modules_to_save",
    ];
    let mut end = path.len();
    let mut tail = Vec::new();
    loop {
        let begin = path[..end].rfind('.').map_or(0, |dot| dot + 1);
        let segment = &path[begin..end];
        if MARKERS.contains(&segment) {
            tail.reverse();
            return Some((path[..begin].trim_end_matches('.'), segment, tail));
        }
        tail.push(segment);
        end = begin.checked_sub(1)?;
    }
}

/// Takes a name of mlx-lm's apart.
pub(super) fn mlx(name: &str) -> Key<'_> {
    let part = match name.rsplit_once('.') {
        Some((module, "lora_a")) => (module, Part::A),
        Some((module, "lora_b")) => (module, Part::B),
        Some((module, "m")) => (module, Part::Magnitude),
        _ => return Key::Whole(name.to_string()),
    };
    Key::Part {
        module: part.0,
        part: part.1,
        adapter: None,
    }
}

/// A path without what classes of the model and trainers put before the decoder's own names.
pub(super) fn inner(path: &str) -> &str {
    const WRAPPERS: [&str; 6] = [
        "base_model.",
        "model.",
        "language_model.",
        "module.",
        "_orig_mod.",
        "_fsdp_wrapped_module.",
    ];
    let mut rest = path;
    while let Some(shorter) = WRAPPERS.iter().find_map(|w| rest.strip_prefix(w)) {
        rest = shorter;
    }
    rest
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// In the decoder or its head, by the name there.
    Text(&'a str),
    /// K or V of a layer that reads those of another.
    SharedKv,
    /// A vision or audio tower, or what joins one to the decoder.
    Tower,
}

/// Where a path (of a module or of a tensor) leads in a model of `layers` layers, of which those from `first_shared` on own
/// no K and V.
pub(super) fn place(path: &str, layers: usize, first_shared: usize) -> Place<'_> {
    let inner = inner(path);
    let mut parts = inner.split('.');
    let first = parts.next().unwrap_or_default();
    if first.contains("vision") || first.contains("audio") || first == "multi_modal_projector" {
        return Place::Tower;
    }
    let layer = parts.next().and_then(|n| n.parse::<usize>().ok());
    let shared = layer.is_some_and(|n| (first_shared..layers).contains(&n));
    if first == "layers" && shared && parts.next() == Some("self_attn") {
        let kv = parts.next().unwrap_or_default();
        if ["k_proj", "v_proj", "k_norm"].contains(&kv) {
            return Place::SharedKv;
        }
    }
    Place::Text(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str) -> Option<(&str, Part, Option<&str>)> {
        match peft(name) {
            Key::Part {
                module,
                part,
                adapter,
            } => Some((module, part, adapter)),
            _ => None,
        }
    }

    #[test]
    fn names_of_peft_are_taken_apart() {
        let q = "model.language_model.layers.0.self_attn.q_proj";
        let cases = [
            ("lora_A.weight", Part::A, None),
            ("lora_B.default.weight", Part::B, Some("default")),
            ("lora_embedding_A", Part::EmbeddingA, None),
            (
                "lora_embedding_B.default",
                Part::EmbeddingB,
                Some("default"),
            ),
            ("lora_magnitude_vector", Part::Magnitude, None),
            ("lora_magnitude_vector.weight", Part::Magnitude, None),
            ("lora_magnitude_vector.x.weight", Part::Magnitude, Some("x")),
            ("base_layer.weight", Part::Base, None),
            (
                "token_adapter.trainable_tokens_delta",
                Part::TokenRows,
                None,
            ),
            ("lora_B.bias", Part::BiasOfB, None),
        ];
        for (end, expected, adapter) in cases {
            for prefix in ["base_model.model.", ""] {
                let name = format!("{prefix}{q}.{end}");
                assert_eq!(part(&name), Some((q, expected, adapter)), "{name}");
            }
        }
        let whole = |name| match peft(name) {
            Key::Whole(path) => Some(path),
            _ => None,
        };
        let norm = "model.norm.weight".to_string();
        assert_eq!(
            whole("base_model.model.model.norm.weight"),
            Some(norm.clone())
        );
        let raw = "base_model.model.model.norm.modules_to_save.default.weight";
        assert_eq!(whole(raw), Some(norm));
        for unknown in [
            "q_proj.lora_diag.default",
            "q_proj.lora_A",
            "q_proj.lora_A.a.b.weight",
        ] {
            assert_eq!(peft(unknown), Key::Unknown, "{unknown}");
        }
    }

    #[test]
    fn paths_lead_to_the_same_module_in_every_class_of_the_model() {
        let q = "layers.3.self_attn.q_proj";
        for prefix in [
            "",
            "model.",
            "language_model.",
            "model.language_model.",
            "language_model.model.",
            "base_model.model.model.language_model.",
            "_orig_mod.model.",
        ] {
            assert_eq!(
                place(&format!("{prefix}{q}"), 8, 6),
                Place::Text(q),
                "{prefix}"
            );
        }
        assert_eq!(
            place(
                "model.vision_tower.encoder.layers.7.self_attn.k_proj.linear",
                8,
                6
            ),
            Place::Tower
        );
        assert_eq!(
            place("model.embed_audio.embedding_projection", 8, 6),
            Place::Tower
        );
        assert_eq!(
            place("base_model.model.lm_head", 8, 6),
            Place::Text("lm_head")
        );
        assert_eq!(
            place("model.layers.6.self_attn.v_proj", 8, 6),
            Place::SharedKv
        );
        assert_eq!(
            place("model.layers.6.self_attn.k_norm.weight", 8, 6),
            Place::SharedKv
        );
        // No such layer: an unknown module, not one without effect.
        let beyond = "layers.8.self_attn.v_proj";
        assert_eq!(place(beyond, 8, 6), Place::Text(beyond));
    }
}
