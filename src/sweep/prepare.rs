//! What is checked before any work begins, and what decides a result.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::{Settings, TOOL, TOP};
use crate::bundle::files;
use crate::convert::{self, Grids, Options};
use crate::evaluate::text::windows;
use crate::gemma::ModelPlan;
use crate::quantize::{PaletteForm, Scheme, SharedPalettes};
use crate::recipe::Recipe;

/// A hash of parts, none of which can be taken for another.
pub(super) struct Key(Sha256);

impl Key {
    pub fn new(fingerprint: &str) -> Self {
        Self(Sha256::new()).with(TOOL).with(fingerprint)
    }

    pub fn with(mut self, part: &str) -> Self {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    pub fn ids(self, ids: &[u32]) -> Self {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.with(&files::hex(&Sha256::digest(bytes)))
    }

    pub fn hex(self) -> String {
        files::hex(&self.0.finalize())
    }
}

/// Keys of a sweep's files.
pub(super) struct Keys {
    /// Of `base.safetensors`.
    pub base: String,
    /// Of `base.json`.
    pub reference: String,
}

impl Keys {
    pub fn new(fingerprint: &str, settings: &Settings) -> Self {
        let base = Key::new(fingerprint)
            .ids(&settings.ids)
            .with(&settings.context.to_string())
            .with(&TOP.to_string())
            .hex();
        let reference = Key::new(&base)
            .ids(&settings.prompt.1)
            .with(&settings.sample_tokens.to_string())
            .with(&format!("{:?}", settings.recall))
            .hex();
        Self { base, reference }
    }

    /// Of a recipe's result.
    pub fn recipe(&self, recipe: &Recipe, settings: &Settings) -> String {
        let calibration = settings.calibration.of(recipe);
        Key::new(&self.reference)
            .with(&recipe.source)
            .with(&format!("{recipe:?}"))
            .with(calibration.as_ref().map_or("", |stats| stats.sha256()))
            .with(&settings.check_tokens.to_string())
            .with(settings.model_id.as_deref().unwrap_or_default())
            .hex()
    }
}

/// What the conversion by a recipe is asked for.
pub(super) fn conversion_options(
    settings: &Settings,
    recipe: &Recipe,
    palettes: &Arc<SharedPalettes>,
) -> Options {
    Options {
        threads: (settings.threads > 0).then_some(settings.threads),
        force: true,
        context: Some(settings.context),
        model_id: settings.model_id.clone(),
        calibration: settings.calibration.of(recipe),
        palettes: Some(palettes.clone()),
        ..Options::default()
    }
}

/// Palettes of every width that the recipes' rules name without asking for statistics: one histogram of a group serves all.
pub(super) fn shared_palettes(settings: &Settings) -> Arc<SharedPalettes> {
    let plain = settings.recipes.iter();
    let plain = plain.filter(|r| r.quantize.calibrated_by().is_none());
    let schemes = plain.flat_map(|r| {
        let rules = r.quantize.rules.iter().map(|rule| rule.scheme);
        rules
            .chain(r.quantize.otherwise)
            .chain([r.quantize.default])
    });
    let widths: BTreeSet<u8> = schemes
        .filter_map(|scheme| match scheme {
            Scheme::Palette {
                nbits,
                form: PaletteForm::Scalar,
                ..
            } => Some(nbits),
            _ => None,
        })
        .collect();
    Arc::new(SharedPalettes::new(widths))
}

/// Refuses what cannot be done.
pub(super) fn check(plan: &ModelPlan, settings: &Settings) -> Result<()> {
    let context = settings.context;
    if !(2..=plan.max_positions).contains(&context) {
        return Err(Error::Context {
            context,
            max: plan.max_positions,
        });
    }
    if settings.recipes.is_empty() {
        return Err(Error::NoRecipes);
    }
    let mut names = BTreeSet::new();
    for recipe in &settings.recipes {
        // Results are files, and file names may not tell case apart.
        if !names.insert(recipe.name.to_lowercase()) {
            return Err(Error::SameName {
                name: recipe.name.clone(),
            });
        }
        let failed = |source| Error::Convert {
            recipe: recipe.name.clone(),
            source: Box::new(source),
        };
        // Schemes for integers of the checkpoint always fit.
        convert::resolve(plan, recipe, &Grids::default()).map_err(failed)?;
        if let (Some(key), None) = (
            recipe.quantize.calibrated_by(),
            settings.calibration.of(recipe),
        ) {
            let recipe = recipe.name.clone();
            return Err(failed(convert::Error::NoCalibration { recipe, key }));
        }
    }
    windows(&settings.ids, context)?;
    check_ids("text", &settings.ids, plan.vocab)?;
    if settings.sample_tokens > 0 {
        let prompt = &settings.prompt.1;
        check_ids("prompt", prompt, plan.vocab)?;
        if prompt.is_empty() {
            return Err(crate::evaluate::Error::Mismatch {
                what: "tokens of the prompt".into(),
                expected: "1 or more".into(),
                got: "0".into(),
            }
            .into());
        }
        check_length(
            "the prompt with its sample",
            prompt.len() + settings.sample_tokens,
            context,
        )?;
    }
    for (i, recall) in settings.recall.iter().enumerate() {
        let what = format!("recall context {}", i + 1);
        check_ids(&what, &recall.ids, plan.vocab)?;
        let keys: Vec<u32> = recall.asks.iter().map(|ask| ask.key).collect();
        check_ids(&what, &keys, plan.vocab)?;
        check_length(&what, recall.ids.len() + 1, context)?;
    }
    Ok(())
}

fn check_ids(what: &str, ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::TokenId {
            what: what.to_string(),
            id: *id,
            vocab,
        }),
    }
}

fn check_length(what: &str, needed: usize, context: usize) -> Result<()> {
    match needed <= context {
        true => Ok(()),
        false => Err(Error::TooLong {
            what: what.to_string(),
            needed,
            context,
        }),
    }
}

/// Writes a file beside its place and renames it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    let aside = path.with_file_name(name);
    files::write_synced(&aside, bytes)?;
    std::fs::rename(&aside, path).map_err(super::error::io(path))?;
    if let Some(dir) = path.parent() {
        files::sync_dir(dir)?;
    }
    Ok(())
}

/// As [`write_atomically`], a value as indented JSON.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|source| Error::Json {
        what: path.display().to_string(),
        source,
    })?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}
