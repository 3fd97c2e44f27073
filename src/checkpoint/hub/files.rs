//! Which files of a repository are fetched, what a cached snapshot lacks, and what is said of a repository that is something else.

use std::collections::BTreeMap;
use std::path::Path;

use super::failure::printable;
use super::store;

/// Files fetched when the repository has them, besides the weights.
const SMALL_FILES: [&str; 7] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    // Tells that there is an adapter beside the weights.
    ADAPTER_CONFIG,
];
pub(super) const CONFIG: &str = "config.json";
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Weights of an adapter, as PEFT and as MLX name them.
const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapters.safetensors"];
/// Files whose names are given in a message.
const NAMED: usize = 3;

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// A checkpoint: config, tokenizer, weights.
    Model,
    /// A LoRA adapter: its config and weights.
    Adapter,
}

/// What a repository lacks, and what to do.
pub(super) struct Refusal {
    pub message: String,
    pub hint: String,
}

/// The small files to fetch of these, which come before the weights.
pub(super) fn small(want: Want, names: &[&str]) -> Vec<String> {
    let wanted: &[&str] = match want {
        Want::Model => &SMALL_FILES,
        Want::Adapter => &[ADAPTER_CONFIG],
    };
    let there = wanted.iter().filter(|name| names.contains(name));
    there.map(|name| name.to_string()).collect()
}

/// Where the weights are.
pub(super) enum Weights {
    /// In these files.
    Files(Vec<String>),
    /// In the shards that the index names.
    Indexed,
}

/// The weights to fetch of these files.
pub(super) fn weights(want: Want, names: &[&str]) -> Result<Weights, Refusal> {
    let has = |name: &str| names.contains(&name);
    let single = |name: &str| Ok(Weights::Files(vec![name.to_string()]));
    if want == Want::Adapter {
        return match ADAPTER_WEIGHTS.iter().find(|name| has(name)) {
            Some(name) => single(name),
            None => Err(refuse("adapter_model.safetensors", names)),
        };
    }
    if has(store::SINGLE) {
        return single(store::SINGLE);
    }
    if has(store::INDEX) {
        return Ok(Weights::Indexed);
    }
    let Some(shards) = shards(names) else {
        let absent = format!("{} and no {}", store::SINGLE, store::INDEX);
        return Err(refuse(&absent, names));
    };
    match shards.iter().find(|shard| !has(shard)) {
        None => Ok(Weights::Files(shards)),
        Some(absent) => Err(refuse(&format!("{absent} and no {}", store::INDEX), names)),
    }
}

/// What a snapshot in the cache lacks to be used without asking the hub.
pub(super) fn lacks(want: Want, dir: &Path) -> Option<String> {
    let is_there = |name: &str| dir.join(name).is_file();
    let first = match want {
        Want::Model => CONFIG,
        Want::Adapter => ADAPTER_CONFIG,
    };
    if !is_there(first) {
        return Some(first.to_string());
    }
    if want == Want::Adapter {
        let found = ADAPTER_WEIGHTS.iter().any(|name| is_there(name));
        return (!found).then(|| ADAPTER_WEIGHTS[0].to_string());
    }
    if store::has_weights(dir) {
        return None;
    }
    if is_there(store::INDEX) {
        return match store::shard_names(&dir.join(store::INDEX)) {
            Ok(shards) => shards.into_iter().find(|shard| !is_there(shard)),
            Err(_) => Some(store::INDEX.to_string()),
        };
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<String> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match shards(&names) {
        Some(shards) => shards.into_iter().find(|shard| !is_there(shard)),
        None => Some(store::SINGLE.to_string()),
    }
}

/// All names of the set that files like `model-00001-of-00003.safetensors` belong to; the largest set where there are several.
fn shards(names: &[&str]) -> Option<Vec<String>> {
    let mut sets: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, of) in names.iter().filter_map(|name| store::shard_number(name)) {
        *sets.entry(of).or_default() += 1;
    }
    let (of, _) = sets.into_iter().max_by_key(|(_, members)| *members)?;
    Some(
        (1..=of)
            .map(|number| store::shard_name(number, of))
            .collect(),
    )
}

/// What to say of a repository without a file that is needed.
pub(super) fn refuse(absent: &str, names: &[&str]) -> Refusal {
    let with = |ends: &[&str]| -> Vec<&str> {
        let fits = |name: &&str| ends.iter().any(|end| name.ends_with(end));
        names.iter().copied().filter(fits).collect()
    };
    let gguf = with(&[".gguf"]);
    let other = with(&[
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".npz",
        ".litertlm",
        ".task",
    ]);
    let safetensors = with(&[".safetensors"]);
    let inside = with(&["/config.json"]);
    let (there, hint) = if absent == CONFIG && !inside.is_empty() {
        (
            inside,
            "download the repository and give the folder that has config.json",
        )
    } else if absent == CONFIG && gguf.is_empty() {
        (
            vec![],
            "give a Gemma 4 checkpoint in the Hugging Face layout with safetensors weights",
        )
    } else if !gguf.is_empty() {
        (
            gguf,
            "GGUF is not read: give the repository that these files were made from, in safetensors; for Google's -qat-q4_0-gguf \
             that is google/gemma-4-...-it-qat-q4_0-unquantized",
        )
    } else if !safetensors.is_empty() {
        (
            safetensors,
            "weights must be model.safetensors, or shards with model.safetensors.index.json",
        )
    } else {
        (
            other,
            "only safetensors weights are read: give a repository that has them, or save the model anew with `save_pretrained`",
        )
    };
    let mut message = format!("the repository has no {absent}");
    if !there.is_empty() {
        let sample: Vec<String> = there
            .iter()
            .take(NAMED)
            .map(|name| printable(name))
            .collect();
        let more = there.len().saturating_sub(NAMED);
        message += &format!("; it has {}", sample.join(", "));
        if more > 0 {
            message += &format!(" and {more} more");
        }
    }
    Refusal {
        message,
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_shards_is_known_by_its_names() {
        let all = |names: &[&str]| shards(names).map(|s| s.len());
        assert_eq!(
            all(&["model-00002-of-00003.safetensors", "config.json"]),
            Some(3)
        );
        let two = [
            "model-00001-of-00009.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(all(&two), Some(2));
        for none in [
            "model-1-of-2.safetensors",
            "model-00001-of-00002.bin",
            "model-00000-of-00000.safetensors",
            "x/model-00001-of-00002.safetensors",
        ] {
            assert_eq!(all(&[none]), None, "{none}");
        }
    }
}
