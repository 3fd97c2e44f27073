//! The tensors of an adapter by the modules that they belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::super::error::{AdapterError as Error, Result};
use super::names::{self, Key, Part};
use super::settings::{AdapterFormat, AdapterMethod, Config};
use super::stored::{Stored, wrong};

/// Which kind of module PEFT's names are of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Shape {
    #[default]
    Linear,
    Embedding,
}

/// What an adapter has for a module.
#[derive(Debug, Default)]
pub(super) struct Module {
    pub shape: Shape,
    pub a: Option<Stored>,
    pub b: Option<Stored>,
    pub magnitude: Option<Stored>,
    pub base: Option<Stored>,
    pub token_rows: Option<Stored>,
}

impl Module {
    fn all(&self) -> impl Iterator<Item = &Stored> {
        let all = [
            &self.a,
            &self.b,
            &self.magnitude,
            &self.base,
            &self.token_rows,
        ];
        all.into_iter().flatten()
    }

    /// Tensors of the module.
    pub fn count(&self) -> usize {
        self.all().count()
    }

    /// A tensor to name in a message.
    pub fn first(&self) -> Option<&Stored> {
        self.all().next()
    }

    /// Both factors, or neither.
    pub fn factors(&self, path: &Path) -> Result<Option<(&Stored, &Stored)>> {
        match (&self.a, &self.b) {
            (Some(a), Some(b)) => Ok(Some((a, b))),
            (None, None) => match &self.magnitude {
                None => Ok(None),
                Some(m) => Err(wrong(path, m, "module", "A and B beside it", "neither").into()),
            },
            (Some(a), None) => Err(wrong(path, a, "module", "A and B", "A alone").into()),
            (None, Some(b)) => Err(wrong(path, b, "module", "A and B", "B alone").into()),
        }
    }
}

/// An adapter's tensors.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By the path of the module.
    pub modules: BTreeMap<String, Module>,
    /// Tensors in the place of the model's, by their path.
    pub whole: BTreeMap<String, Stored>,
}

impl Parts {
    /// Sorts the tensors of the file at `path` and checks that they are what the config says, and finite.
    pub fn sort(path: &Path, config: &Config, tensors: Vec<Stored>) -> Result<Self> {
        let mut parts = Self::default();
        let mut adapters = BTreeSet::new();
        for stored in tensors {
            let name = stored.name.clone();
            let key = match config.format {
                AdapterFormat::Peft => names::peft(&name),
                AdapterFormat::MlxLm => names::mlx(&name),
            };
            match key {
                Key::Part {
                    module,
                    part,
                    adapter,
                } => {
                    adapters.extend(adapter.map(str::to_string));
                    if adapters.len() > 1 {
                        let got: Vec<_> = adapters.into_iter().collect();
                        let expected = "tensors of one adapter";
                        return Err(wrong(path, &stored, "name", expected, got.join(", ")).into());
                    }
                    parts.part(path, config, module, part, stored)?;
                }
                Key::Whole(whole) => {
                    let expected = "a part of LoRA (`lora_a`, `lora_b`, `m`)";
                    if config.format == AdapterFormat::MlxLm && config.method != AdapterMethod::Full
                    {
                        return Err(wrong(path, &stored, "name", expected, &name).into());
                    }
                    parts.whole.insert(whole, stored);
                }
                Key::Unknown => {
                    let expected = "a part of LoRA or DoRA (lora_A, lora_B, lora_embedding_A, lora_embedding_B, \
                                    lora_magnitude_vector)";
                    return Err(wrong(path, &stored, "name", expected, &name).into());
                }
            }
        }
        parts.check_method(path, config)?;
        Ok(parts)
    }

    fn part(
        &mut self,
        path: &Path,
        config: &Config,
        module: &str,
        part: Part,
        stored: Stored,
    ) -> Result<()> {
        if config.method == AdapterMethod::Full {
            let expected = "whole tensors, as `fine_tune_type` is full";
            let got = "a part of LoRA";
            return Err(wrong(path, &stored, "name", expected, got).into());
        }
        if part == Part::BiasOfB {
            let error = Error::Unmergeable {
                path: path.to_path_buf(),
                tensor: stored.name,
                why: "a bias (`lora_bias`), which the model's projections do not have".into(),
                hint: "train without lora_bias".into(),
            };
            return Err(error.into());
        }
        if part != Part::Base {
            check_values(path, &stored, part)?;
        }
        let known = self.modules.entry(module.to_string()).or_default();
        if matches!(part, Part::EmbeddingA | Part::EmbeddingB) {
            known.shape = Shape::Embedding;
        }
        let slot = match part {
            Part::A | Part::EmbeddingA => &mut known.a,
            Part::B | Part::EmbeddingB => &mut known.b,
            Part::Magnitude => &mut known.magnitude,
            Part::Base => &mut known.base,
            Part::TokenRows | Part::BiasOfB => &mut known.token_rows,
        };
        match slot.replace(stored) {
            None => Ok(()),
            Some(first) => {
                let got = "another tensor with the same part";
                Err(wrong(
                    path,
                    &first,
                    "name",
                    "one tensor for each part of a module",
                    got,
                )
                .into())
            }
        }
    }

    /// Lengths of rows where the config says DoRA, and only there.
    fn check_method(&self, path: &Path, config: &Config) -> Result<()> {
        let dora = config.method == AdapterMethod::Dora;
        for module in self.modules.values() {
            match (&module.a, &module.magnitude) {
                (Some(a), None) if dora => {
                    let expected = "a magnitude beside A and B, as the config says DoRA";
                    return Err(wrong(path, a, "module", expected, "none").into());
                }
                (_, Some(magnitude)) if !dora => {
                    let expected = "no magnitude, as the config does not say DoRA";
                    return Err(wrong(path, magnitude, "module", expected, "one").into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Finite numbers; lengths other than 0.
fn check_values(path: &Path, stored: &Stored, part: Part) -> Result<()> {
    if let Some((index, value)) = stored.find(|v| !v.is_finite()) {
        let got = format!("{value} at element {index}");
        return Err(wrong(path, stored, "values", "finite numbers", got).into());
    }
    if part == Part::Magnitude
        && let Some((index, _)) = stored.find(|v| v == 0.0)
    {
        let got = format!("0 at element {index}");
        return Err(wrong(path, stored, "values", "lengths other than 0", got).into());
    }
    Ok(())
}
