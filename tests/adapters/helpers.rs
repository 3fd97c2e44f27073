//! Adapters and checkpoints made for a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gemma_coreml::checkpoint::{Adapter, Checkpoint};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::common::fixtures::fixture;

/// A stored adapter.
pub fn stored(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/adapters")
        .join(case)
}

/// A fixture with adapters.
pub fn adapted(name: &str, adapters: &[&Path]) -> Checkpoint {
    try_adapted(name, adapters).unwrap_or_else(|e| panic!("{adapters:?}: {e}"))
}

/// A fixture with adapters, or why not.
pub fn try_adapted(
    name: &str,
    adapters: &[&Path],
) -> Result<Checkpoint, gemma_coreml::checkpoint::Error> {
    let opened = adapters.iter().map(|path| Adapter::open(path));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    Checkpoint::open(&fixture(name))?.with_adapters(&opened)
}

/// All elements of a tensor.
pub fn all(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let shape = checkpoint.shape(name).unwrap().to_vec();
    let view = checkpoint.tensor(name, &shape).unwrap();
    let mut values = vec![0f32; view.len()];
    view.read_f32(0..view.len(), &mut values).unwrap();
    values
}

/// f32 tensors as a safetensors file.
pub fn save(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name.as_str(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let bytes = &bytes[name.as_str()];
        (
            name.as_str(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// An adapter that is made, and spoiled, piece by piece.
#[derive(Clone)]
pub struct Made {
    pub config: Value,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Made {
    /// LoRA of rank 2 for PEFT, without tensors.
    pub fn peft() -> Self {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
            "base_model_name_or_path": "textonly-tiny",
        });
        Self {
            config,
            tensors: BTreeMap::new(),
        }
    }

    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config[field] = value.into();
        self
    }

    pub fn tensor(mut self, name: &str, shape: &[usize], value: impl Fn(usize) -> f32) -> Self {
        let values = (0..shape.iter().product()).map(value).collect();
        self.tensors
            .insert(name.to_string(), (shape.to_vec(), values));
        self
    }

    /// A and B of a module of `[rows, columns]`: small powers of two.
    pub fn lora(self, module: &str, [rows, columns]: [usize; 2], rank: usize) -> Self {
        let power = |i: usize| [0.5, -0.25, 0.0, 1.0, 0.125][i % 5];
        self.tensor(&format!("{module}.lora_A.weight"), &[rank, columns], power)
            .tensor(
                &format!("{module}.lora_B.weight"),
                &[rows, rank],
                move |i| power(i + 3),
            )
    }

    /// Writes it as PEFT does.
    pub fn write(&self, dir: &Path) -> PathBuf {
        self.write_as(dir, "adapter_model.safetensors")
    }

    pub fn write_as(&self, dir: &Path, weights: &str) -> PathBuf {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("adapter_config.json"), self.config.to_string()).unwrap();
        save(&dir.join(weights), &self.tensors);
        dir.to_path_buf()
    }
}

/// The module that most cases adapt, in `textonly-tiny`: `[32, 32]`.
pub const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
/// Its tensor in the model.
pub const Q_WEIGHT: &str = "layers.0.self_attn.q_proj.weight";
