//! PEFT's `LoraConfig`: what of it decides a merge, and what is refused.

use std::path::Path;

use serde_json::Value;

use super::super::error::Result;
use super::super::fields::{Fields, shorten};
use super::notice::AdapterNotice;
use super::patterns::{Modules, Overrides};
use super::settings::{
    AdapterFormat, AdapterMethod, Config, MAX_RANK, Scaling, Targets, Tokens, number, setting,
    strings,
};

/// Rank and alpha that PEFT takes where a config has none.
const DEFAULT: usize = 8;

/// Settings that must be absent, `null`, `false` or empty, and why.
const REFUSED: [(&str, &str); 13] = [
    (
        "alora_invocation_tokens",
        "an activated LoRA changes only the positions after its invocation tokens, which no merge does",
    ),
    (
        "arrow_config",
        "Arrow routes between adapters for each token, which no merge does",
    ),
    ("corda_config", BASE_CHANGED),
    (
        "kasa_config",
        "KaSA truncates the base weights and adds a diagonal between A and B",
    ),
    (
        "layer_replication",
        "the model would have other layers than its config says",
    ),
    (
        "lora_bias",
        "biases of B; the model's projections have none",
    ),
    ("lora_ga_config", BASE_CHANGED),
    ("megatron_config", "weights of Megatron's parallel layers"),
    (
        "monteclora_config",
        "weights that are drawn anew in training; only plain LoRA, rsLoRA and DoRA are merged",
    ),
    (
        "target_parameters",
        "adapters of parameters that are no modules (experts)",
    ),
    (
        "use_bdlora",
        "block-diagonal factors; only plain LoRA, rsLoRA and DoRA are merged",
    ),
    (
        "use_qalora",
        "QA-LoRA pools the inputs of groups; only plain LoRA, rsLoRA and DoRA are merged",
    ),
    (
        "velora_config",
        "compressed gradients; only plain LoRA, rsLoRA and DoRA are merged",
    ),
];

/// Why adapters that begin as a part of the base weights are refused.
const BASE_CHANGED: &str = "this initialisation moves a part of the base weights into the adapter, so that it fits the \
    changed base only; save it with `path_initial_model_for_weight_conversion`, which makes it a plain LoRA";

/// Settings that are read, or that change nothing of a merge.
const KNOWN: [&str; 31] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    // How A and B began; the base stays.
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    // Of older versions of PEFT.
    "enable_lora",
    "merge_weights",
];

/// Reads PEFT's settings.
pub(super) fn read(path: &Path, top: &Fields<'_>, sha256: String) -> Result<Config> {
    check_kind(path, top)?;
    let mut notices = Vec::new();
    let mut note = |field: &str, got: String, meaning| {
        notices.push(AdapterNotice::Setting {
            path: path.to_path_buf(),
            field: field.to_string(),
            got,
            meaning,
        });
    };
    for (name, value) in top.iter().filter(|(_, value)| is_set(value)) {
        let name = name.as_str();
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(setting(path, name, shorten(value), why).into());
        }
        if KNOWN.contains(&name) {
            continue;
        }
        if name.ends_with("_config") || (name.starts_with("use_") && *value == Value::Bool(true)) {
            let why = "an unknown variant of LoRA; only plain LoRA, rsLoRA and DoRA are merged";
            return Err(setting(path, name, shorten(value), why).into());
        }
        note(
            name,
            shorten(value),
            "an unknown setting, passed over as PEFT does",
        );
    }
    if check_initialisation(path, top)? || top.get("loftq_config").is_some_and(is_set) {
        let got = top.get("init_lora_weights").map_or("null".into(), shorten);
        note("init_lora_weights", got, LOFTQ);
    }
    if top.flag("fan_in_fan_out", false)? {
        note(
            "fan_in_fan_out",
            "true".into(),
            "passed over as PEFT does: the model's weights are [out, in]",
        );
    }
    let (dora, root) = (top.flag("use_dora", false)?, top.flag("use_rslora", false)?);
    Ok(Config {
        path: path.to_path_buf(),
        sha256,
        format: AdapterFormat::Peft,
        method: match (dora, root) {
            (true, _) => AdapterMethod::Dora,
            (false, true) => AdapterMethod::RsLora,
            (false, false) => AdapterMethod::Lora,
        },
        base_model: top
            .string_opt("base_model_name_or_path")?
            .map(str::to_string),
        scaling: scaling(path, top, root)?,
        targets: targets(path, top)?,
        tokens: tokens(top)?,
        tied: top.flag("ensure_weight_tying", false)?,
        notices,
    })
}

const LOFTQ: &str = "the adapter was made for a quantized base, and corrects the errors of its quantization in this one too";

/// Anything but what PEFT writes where an option is not used.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// Only LoRA of a language model, without biases.
fn check_kind(path: &Path, top: &Fields<'_>) -> Result<()> {
    let one_of = |field: &str, allowed: &[&str], why: &str| {
        let Some(value) = top.get(field) else {
            return Ok(());
        };
        match value.as_str() {
            Some(text) if allowed.contains(&text) => Ok(()),
            _ => Err(setting(path, field, shorten(value), why)),
        }
    };
    one_of("peft_type", &["LORA"], "LORA is")?;
    one_of("task_type", &["CAUSAL_LM"], "CAUSAL_LM, or none, is")?;
    one_of(
        "bias",
        &["none"],
        "the model's projections have no biases; `none` is",
    )?;
    Ok(())
}

/// Refuses initialisations that change the base; whether it is that of LoftQ.
fn check_initialisation(path: &Path, top: &Fields<'_>) -> Result<bool> {
    let name = "init_lora_weights";
    let text = match top.get(name) {
        None | Some(Value::Bool(_)) => return Ok(false),
        Some(Value::String(text)) => text.as_str(),
        Some(other) => return Err(top.invalid(name, "true, false or a name", shorten(other))),
    };
    match text.to_lowercase().as_str() {
        "gaussian" | "eva" | "orthogonal" | "mica" => Ok(false),
        "loftq" => Ok(true),
        "olora" | "lora_ga" => Err(setting(path, name, text, BASE_CHANGED).into()),
        other if other.starts_with("pissa") || other.starts_with("corda") => {
            Err(setting(path, name, text, BASE_CHANGED).into())
        }
        _ => {
            let why = "an unknown initialisation, which may have changed the base weights";
            Err(setting(path, name, text, why).into())
        }
    }
}

fn scaling(path: &Path, top: &Fields<'_>, root: bool) -> Result<Scaling> {
    let mut ranks = Overrides::default();
    if let Some(patterns) = top.object("rank_pattern")? {
        for (pattern, _) in patterns.iter() {
            let rank = patterns.count(pattern, MAX_RANK)?;
            ranks.push(path, "rank_pattern", pattern, rank)?;
        }
    }
    let mut alphas = Overrides::default();
    if let Some(patterns) = top.object("alpha_pattern")? {
        for (pattern, value) in patterns.iter() {
            let invalid = || patterns.invalid(pattern, "a number", shorten(value));
            let alpha = number(&patterns, pattern)?.ok_or_else(invalid)?;
            alphas.push(path, "alpha_pattern", pattern, alpha)?;
        }
    }
    Ok(Scaling::Peft {
        rank: top.count_opt("r", MAX_RANK)?.unwrap_or(DEFAULT),
        alpha: number(top, "lora_alpha")?.unwrap_or(DEFAULT as f64),
        root,
        ranks,
        alphas,
    })
}

fn targets(path: &Path, top: &Fields<'_>) -> Result<Targets> {
    let modules = |name: &str| -> Result<Option<Modules>> {
        match top.get(name).filter(|value| is_set(value)) {
            None => Ok(None),
            // Every linear layer but the head; PEFT writes their names instead when it saves.
            Some(Value::String(all)) if all.eq_ignore_ascii_case("all-linear") => Ok(None),
            Some(Value::String(pattern)) => Modules::whole(path, name, pattern).map(Some),
            Some(_) => Ok(Some(Modules::Ends(strings(top, name)?))),
        }
    };
    let layers = match top.get("layers_to_transform").filter(|v| is_set(v)) {
        None => None,
        Some(Value::Array(list)) => Some(indices(top, "layers_to_transform", list)?),
        Some(one) => {
            let list = std::slice::from_ref(one);
            Some(indices(top, "layers_to_transform", list)?)
        }
    };
    Ok(Targets {
        modules: modules("target_modules")?,
        exclude: modules("exclude_modules")?,
        layers,
        saved: strings(top, "modules_to_save")?,
    })
}

/// `trainable_token_indices`: a list for the embedding, or lists by the name of a table.
fn tokens(top: &Fields<'_>) -> Result<Vec<Tokens>> {
    let name = "trainable_token_indices";
    match top.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(vec![Tokens {
            module: None,
            rows: indices(top, name, list)?,
        }]),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(module, list)| {
                let invalid = || top.invalid(name, "lists of token ids", shorten(list));
                let list = list.as_array().ok_or_else(invalid)?;
                Ok(Tokens {
                    module: Some(module.clone()),
                    rows: indices(top, name, list)?,
                })
            })
            .collect(),
        Some(other) => Err(top.invalid(name, "a list of token ids", shorten(other))),
    }
}

fn indices(top: &Fields<'_>, name: &str, list: &[Value]) -> Result<Vec<usize>> {
    let one = |value: &Value| {
        let index = value.as_u64().and_then(|n| usize::try_from(n).ok());
        index.ok_or_else(|| top.invalid(name, "whole numbers from 0 on", shorten(value)))
    };
    list.iter().map(one).collect()
}
