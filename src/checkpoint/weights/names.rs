//! What a tensor is by its name.
//!
//! A multimodal model's text decoder is under `model.language_model.`, a text-only one's under `model.`; what
//! `AutoModel(...).save_pretrained` writes lacks the `model.`. transformers 5 finds a tensor with one `model.` more or less
//! than the model has; so it is here, whichever of the two kinds the config describes.

/// First parts of the names in the text decoder.
const TEXT: [&str; 7] = [
    "embed_tokens",
    "embed_tokens_per_layer",
    "layers",
    "norm",
    "per_layer_model_projection",
    "per_layer_projection_norm",
    "rotary_emb",
];
/// First parts of the names of the vision tower and its embedder; `vision_embedder` is gemma4_unified's on the hub.
const VISION: [&str; 3] = ["vision_tower", "embed_vision", "vision_embedder"];
/// First parts of the names of the audio tower and its embedder.
const AUDIO: [&str; 2] = ["audio_tower", "embed_audio"];
/// Constants that are computed from the config, not learned, of which old files have copies.
const SCALES: [&str; 2] = [
    "embed_tokens.embed_scale",
    "embed_tokens_per_layer.embed_scale",
];
/// The embedding table without prefix.
pub(super) const EMBED: &str = "embed_tokens.weight";
/// The head without prefix.
pub(super) const HEAD: &str = "lm_head.weight";

/// What a tensor is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Class<'a> {
    /// Of the text decoder, or under its prefix: the name without prefix.
    Text(&'a str),
    /// The language-model head.
    Head,
    Vision,
    Audio,
    /// K or V of a layer that reads those of another.
    SharedKv,
    /// A constant that is computed from the config.
    Buffer,
    /// Nothing that a Gemma 4 has.
    Unknown,
}

/// What a full tensor name is. `first_shared` is the first layer without K and V of its own.
pub(super) fn classify(full_name: &str, first_shared: usize) -> Class<'_> {
    let inner = full_name.strip_prefix("model.").unwrap_or(full_name);
    if inner == HEAD {
        return Class::Head;
    }
    let inner = inner.strip_prefix("model.").unwrap_or(inner);
    let first_of = |name: &'static [&'static str], of: &str| name.contains(&of);
    let part = |name: &str| name.split('.').next().unwrap_or(name).to_string();
    if first_of(&VISION, &part(inner)) {
        return Class::Vision;
    }
    if first_of(&AUDIO, &part(inner)) {
        return Class::Audio;
    }
    let name = inner.strip_prefix("language_model.").unwrap_or(inner);
    if !first_of(&TEXT, &part(name)) {
        return Class::Unknown;
    }
    if is_rotary(name) || SCALES.contains(&name) {
        return Class::Buffer;
    }
    let layer = name
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'));
    if let Some((
        number,
        "self_attn.k_proj.weight" | "self_attn.v_proj.weight" | "self_attn.k_norm.weight",
    )) = layer
        && number.parse::<usize>().is_ok_and(|n| n >= first_shared)
    {
        return Class::SharedKv;
    }
    Class::Text(name)
}

/// `rotary_emb.inv_freq`, `layers.0.self_attn.rotary_emb.inv_freq`, `rotary_emb.full_attention_inv_freq`, ...
fn is_rotary(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let last = parts.next().unwrap_or_default();
    let owner = parts.next().unwrap_or_default();
    owner.starts_with("rotary_emb") && (last == "inv_freq" || last.ends_with("_inv_freq"))
}

/// The prefix under which a model of this `model_type` has its text decoder.
pub(super) fn prefix(model_type: &str) -> &'static str {
    match model_type.ends_with("_text") {
        true => "model.",
        false => "model.language_model.",
    }
}

/// What writes names that are read by nothing else, by the part that it puts into them: what it is, and what to do.
const WRITERS: [(&str, &str); 7] = [
    (
        "_orig_mod.",
        "`_orig_mod.` comes from torch.compile: save the model that was compiled, not the compiled one",
    ),
    (
        "_fsdp_wrapped_module.",
        "`_fsdp_wrapped_module.` comes from FSDP: save the full state dict of the model inside",
    ),
    (
        "_checkpoint_wrapped_module.",
        "`_checkpoint_wrapped_module.` comes from activation checkpointing: save the model inside",
    ),
    (
        "base_model.model.",
        "`base_model.model.` comes from a PEFT wrapper: save what `merge_and_unload` returns",
    ),
    (
        "pretrained_model.",
        "`pretrained_model.` comes from a TRL wrapper: save the model inside",
    ),
    (
        "language_model.model.",
        "`language_model.model.` is how mlx names them: take the checkpoint that the mlx one was made of",
    ),
    (
        "module.",
        "`module.` comes from DataParallel or DDP: save the model inside",
    ),
];

/// Whether a name has a part that begins where a component does.
fn has_part(name: &str, part: &str) -> bool {
    name.starts_with(part) || name.contains(&format!(".{part}"))
}

/// Of these full names, the one that stands where the tensor `name` (without prefix) should be: the same behind another
/// prefix or in a wrapper, or another part of the same module.
pub(super) fn stand_in<'a>(
    mut names: impl Iterator<Item = &'a str> + Clone,
    name: &str,
) -> Option<&'a str> {
    let ending = format!(".{name}");
    let wrapped = |full: &&str| {
        let bare = WRITERS.iter().fold(format!(".{full}"), |bare, (part, _)| {
            bare.replace(&format!(".{part}"), ".")
        });
        bare.ends_with(&ending)
    };
    let module = name.strip_suffix("weight");
    let part_of = |full: &&str| module.is_some_and(|module| has_part(full, module));
    names.clone().find(wrapped).or_else(|| names.find(part_of))
}

/// Parts of the names of adapters' tensors: LoRA of PEFT and of mlx, DoRA, LoHa, LoKr, IA3, OFT, and what they wrap.
const ADAPTERS: [&str; 9] = [
    "lora_",
    "modules_to_save",
    "base_layer",
    "hada_",
    "lokr_",
    "ia3_",
    "oft_",
    "vera_lambda",
    "dora_",
];

/// What to do about tensors that nothing explains, the first of which is `name`.
pub(super) fn hint<'a>(names: impl Iterator<Item = &'a str> + Clone) -> &'static str {
    let adapter = |name: &str| ADAPTERS.iter().any(|part| name.contains(part));
    if names.clone().any(adapter) {
        return "this looks like an adapter that is not merged: save what `merge_and_unload` of PEFT (or mlx's `fuse`) returns";
    }
    let of = |name: &str| WRITERS.iter().find(|(part, _)| has_part(name, part));
    match names.clone().find_map(of) {
        Some((_, hint)) => hint,
        None => {
            "save the model with `save_pretrained` of transformers; config.json may belong to another checkpoint, or the \
             checkpoint has parts (biases, a value head, quantization scales) that are not supported"
        }
    }
}

/// What to do about a dtype that is not read.
pub(super) fn dtype_hint(dtype: &str) -> Option<&'static str> {
    match dtype {
        "U32" => Some(
            "mlx stores quantized weights so: take the checkpoint that the mlx one was made of, or \
             google/gemma-4-...-it-qat-q4_0-unquantized",
        ),
        "U8" | "I8" | "I32" | "I64" => Some(
            "integers mean numbers only beside a `quantization_config` in config.json that says which: fetch the config that \
             belongs to them, or take google/gemma-4-...-it-qat-q4_0-unquantized",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_transformers_finds_and_those_that_it_does_not() {
        use Class::{Audio, Buffer, Head, SharedKv, Text, Unknown, Vision};
        for (name, class) in [
            ("model.language_model.norm.weight", Text("norm.weight")),
            ("language_model.norm.weight", Text("norm.weight")),
            ("model.norm.weight", Text("norm.weight")),
            ("norm.weight", Text("norm.weight")),
            (
                "layers.0.self_attn.k_proj.weight",
                Text("layers.0.self_attn.k_proj.weight"),
            ),
            ("layers.3.self_attn.k_proj.weight", SharedKv),
            (
                "layers.3.self_attn.k_proj.lora_A.weight",
                Text("layers.3.self_attn.k_proj.lora_A.weight"),
            ),
            ("lm_head.weight", Head),
            ("model.lm_head.weight", Head),
            ("language_model.lm_head.weight", Unknown),
            ("lm_head.bias", Unknown),
            ("model.vision_tower.x.weight", Vision),
            ("embed_vision.x.weight", Vision),
            ("vision_embedder.patch_ln1.weight", Vision),
            ("audio_tower.x.weight", Audio),
            ("model.embed_audio.x", Audio),
            ("model.language_model.vision_tower.x", Unknown),
            ("model.my_vision.x", Unknown),
            ("multi_modal_projector.x", Unknown),
            ("model.rotary_emb.inv_freq", Buffer),
            (
                "model.language_model.rotary_emb.full_attention_original_inv_freq",
                Buffer,
            ),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", Buffer),
            (
                "model.layers.0.self_attn.inv_freq",
                Text("layers.0.self_attn.inv_freq"),
            ),
            ("model.embed_tokens.embed_scale", Buffer),
            ("model.layers.0.embed_scale", Text("layers.0.embed_scale")),
            ("language_model.model.norm.weight", Unknown),
            ("model.language_model.language_model.norm.weight", Unknown),
            ("model.model.norm.weight", Text("norm.weight")),
            (
                "model.model.language_model.norm.weight",
                Text("norm.weight"),
            ),
            ("model.model.vision_tower.x", Vision),
            ("model.model.lm_head.weight", Unknown),
            ("model.model.model.norm.weight", Unknown),
            ("base_model.model.model.norm.weight", Unknown),
            ("_orig_mod.model.norm.weight", Unknown),
            ("", Unknown),
            (".", Unknown),
        ] {
            assert_eq!(classify(name, 3), class, "{name}");
        }
    }
}
