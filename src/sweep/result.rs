//! What a sweep finds: one result for each recipe, and the whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::memory::Peak;
use super::recall::Recall;
use super::score::{Figures, number};
use crate::bundle::provenance::TensorRecord;

/// Batched and interpreted mean KL may differ by this share of the larger ...
pub const CHECK_SHARE: f64 = 0.002;
/// ... and by this many nats, which is what the order of f32 sums leaves.
pub const CHECK_FLOOR: f64 = 1e-7;

/// How a bundle was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Its weights, decoded from the packages, in the reference's forward over many tokens at once.
    Batched,
    /// The packages, op by op; why.
    Interpreter(String),
}

/// One weight of the packages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorFigure {
    /// Checkpoint name without prefix.
    pub tensor: String,
    /// How it is stored.
    pub scheme: String,
    /// Number of values.
    pub elements: u64,
    /// 8 * bytes / elements.
    pub bits_per_weight: f64,
    /// 10 log10(signal / noise) of its values; absent when nothing was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
}

impl From<&TensorRecord> for TensorFigure {
    fn from(r: &TensorRecord) -> Self {
        Self {
            tensor: r.tensor.clone(),
            scheme: r.scheme.clone(),
            elements: r.elements,
            bits_per_weight: r.bits_per_weight,
            sqnr_db: r.sqnr_db,
        }
    }
}

/// Size and error of the weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Bytes of the packages' weight files.
    pub weight_bytes: u64,
    /// Bytes of the whole bundle.
    pub bundle_bytes: u64,
    /// Bits for each value of the packages' weights: LUTs and scales counted, tables left out.
    pub bits_per_weight: f64,
    /// 10 log10(signal / noise) over all values of the packages; absent when nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Every weight of the packages, in file order.
    pub tensors: Vec<TensorFigure>,
}

impl Weights {
    /// Sums up what a conversion recorded. `energies` has the sum of squares of each checkpoint tensor.
    pub fn new(
        records: &[TensorRecord],
        energies: &BTreeMap<String, f64>,
        weight_bytes: u64,
        bundle_bytes: u64,
    ) -> Self {
        let in_packages = || records.iter().filter(|r| r.reason != "table");
        let (mut bytes, mut elements) = (0u64, 0u64);
        let (mut signal, mut noise) = (0.0, 0.0);
        for record in in_packages() {
            bytes += record.bytes;
            elements += record.elements;
            let energy = energies.get(&record.tensor).copied().unwrap_or(f64::NAN);
            signal += energy;
            if let Some(db) = record.sqnr_db {
                noise += energy * 10f64.powf(-db / 10.0);
            }
        }
        Self {
            weight_bytes,
            bundle_bytes,
            bits_per_weight: 8.0 * bytes as f64 / elements as f64,
            sqnr_db: (noise != 0.0).then(|| 10.0 * (signal / noise).log10()),
            tensors: in_packages().map(TensorFigure::from).collect(),
        }
    }
}

/// Text of the model's own choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// New tokens, a stop token included.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
}

/// What a conversion took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversion {
    /// Seconds from start to the final rename, hashing of the checkpoint included.
    pub seconds: f64,
    /// Memory meanwhile.
    pub memory: Peak,
    /// Files that an interrupted conversion had finished; time and memory do not count them.
    pub resumed: usize,
}

/// Mean KL of the first tokens, once batched and once op by op.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Tokens compared.
    pub tokens: usize,
    /// Mean KL of the batched evaluation.
    #[serde(deserialize_with = "number")]
    pub kl_batched: f64,
    /// Mean KL of the interpreter.
    #[serde(deserialize_with = "number")]
    pub kl_interpreter: f64,
}

impl Check {
    /// Whether the two agree within [`CHECK_SHARE`] and [`CHECK_FLOOR`].
    pub fn agrees(&self) -> bool {
        let (a, b) = (self.kl_batched, self.kl_interpreter);
        (a - b).abs() <= CHECK_SHARE * a.abs().max(b.abs()) + CHECK_FLOOR
    }
}

/// One recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeResult {
    /// Hash of everything that decides the figures.
    pub key: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// How it was evaluated.
    pub path: Path,
    /// Size and error of its weights.
    pub weights: Weights,
    /// Its logits over the text.
    pub figures: Figures,
    /// Mean KL over the first tokens of the text, which a check is held against.
    #[serde(deserialize_with = "number")]
    pub kl_of_first: f64,
    /// Facts recalled, where a set was given.
    pub recall: Option<Recall>,
    /// What it writes after the prompt.
    pub sample: Option<Sample>,
    /// Making the bundle.
    pub conversion: Conversion,
    /// Seconds of the evaluation.
    pub evaluation_seconds: f64,
    /// The comparison with the interpreter; absent where the recipe was never on the front, or was interpreted anyway.
    pub check: Option<Check>,
}

/// The f32 reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseResult {
    /// Hash of everything that decides the figures.
    pub key: String,
    /// Facts recalled, where a set was given.
    pub recall: Option<Recall>,
    /// What it writes after the prompt.
    pub sample: Option<Sample>,
    /// Sum of squares of each tensor of the checkpoint that packages hold.
    pub energies: BTreeMap<String, f64>,
}

/// A whole sweep: `sweep.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// Name and version of the program.
    pub tool: String,
    /// The model as the caller calls it.
    pub model: String,
    /// Hash of the checkpoint.
    pub checkpoint: String,
    /// Tokens of the text that were fed, with the first of each window.
    pub tokens: usize,
    /// Windows that the text was cut into.
    pub windows: usize,
    /// Positions of a window, and of the bundles.
    pub context: usize,
    /// Ids of a row of logits.
    pub vocab: usize,
    /// Largest logits of the reference that enter the KL each by itself.
    pub top: usize,
    /// Whether that is all of them; else the KL is a lower bound.
    pub kl_is_exact: bool,
    /// The text that samples continue.
    pub prompt: String,
    /// Perplexity of the f32 reference.
    pub perplexity: f64,
    /// Facts that the f32 reference recalls.
    pub recall: Option<Recall>,
    /// What the f32 reference writes.
    pub sample: Option<Sample>,
    /// Recipes in the order given.
    pub recipes: Vec<RecipeResult>,
    /// Names of those that no other beats in bundle bytes and KL.
    pub front: Vec<String>,
    /// Names of those on the front whose check does not agree.
    pub disagree: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_of_all_is_that_of_sums() {
        let record = |tensor: &str, sqnr_db, reason: &str| TensorRecord {
            tensor: tensor.into(),
            file: "chunk1.mlpackage".into(),
            scheme: "x".into(),
            reason: reason.into(),
            elements: 10,
            bytes: 5,
            bits_per_weight: 4.0,
            sqnr_db,
            max_abs_error: 0.0,
            grid: None,
        };
        let energies =
            BTreeMap::from([("a".into(), 1000.0), ("b".into(), 10.0), ("c".into(), 90.0)]);
        let records = [
            record("a", Some(20.0), "default"),
            record("b", Some(10.0), "default"),
            record("c", None, "norm"),
            record("t", Some(1.0), "table"),
        ];
        let weights = Weights::new(&records, &energies, 1, 2);
        // Noise: 10 and 1, signal 1100.
        assert!((weights.sqnr_db.unwrap() - 20.0).abs() < 1e-9);
        assert_eq!(weights.bits_per_weight, 4.0);
        assert_eq!(weights.tensors.len(), 3);
    }

    #[test]
    fn a_check_that_is_no_number_does_not_agree() {
        let check = |a, b| Check {
            tokens: 1,
            kl_batched: a,
            kl_interpreter: b,
        };
        assert!(check(0.1, 0.1 * (1.0 + CHECK_SHARE / 2.0)).agrees());
        assert!(!check(0.1, 0.1 * (1.0 + CHECK_SHARE * 2.0)).agrees());
        assert!(check(0.0, CHECK_FLOOR / 2.0).agrees());
        assert!(!check(f64::NAN, 0.1).agrees());
        let text = serde_json::to_string(&check(f64::NAN, 0.1)).unwrap();
        let read: Check = serde_json::from_str(&text).unwrap();
        assert!(read.kl_batched.is_nan());
    }
}
