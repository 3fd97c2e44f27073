//! What a conversion makes, and what it keeps of a bundle that is there.

use super::base::Base;
use super::resolve::{Grids, ResolvedChunk, resolve};
use super::{activations, steps};
use crate::bundle::provenance::RecipeRecord;
use crate::bundle::{files, layout};
use crate::calibrate::Stats;
use crate::checkpoint::{Checkpoint, Tokenizer, stop_ids};
use crate::convert::error::{Error, Result};
use crate::convert::options::Options;
use crate::gemma::ModelPlan;
use crate::gemma::names::{EMBED, PER_LAYER_EMBED};
use crate::graph::LinearActivations;
use crate::quantize::SharedPalettes;
use crate::recipe::{Activations, Recipe};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Name in `model_config.json` when the caller gives none.
const MODEL_ID: &str = "gemma4";

/// Everything that decides a bundle beside the checkpoint.
#[derive(Debug)]
pub(in crate::convert) struct Task {
    /// The bundle's recipe.
    pub recipe: Recipe,
    /// Recipes of packages that have another one, by package (`chunk4`).
    pub packages: BTreeMap<String, Recipe>,
    /// Those recipes as `provenance.json` keeps them.
    pub record: RecipeRecord,
    pub records: BTreeMap<String, RecipeRecord>,
    /// What the recipe of the packages that are built anew is applied with, where it asks for statistics.
    pub calibration: Option<Arc<Stats>>,
    /// Palettes shared with other conversions of the checkpoint.
    pub palettes: Option<Arc<SharedPalettes>>,
    pub context: usize,
    pub model_id: String,
    /// Every weight file that is written has fewer bytes.
    pub file_limit: u64,
    pub chunks: Vec<ResolvedChunk>,
    /// The bundle that is rewritten.
    pub base: Option<Base>,
    /// The only package that is built anew; the rest is the base's.
    pub only: Option<String>,
}

impl Task {
    /// What to do for `output`, which is locked: convert, rewrite the bundle there for another context, or rebuild one
    /// package of it.
    pub fn new(
        (checkpoint, plan): (&Checkpoint, &ModelPlan),
        recipe: &Recipe,
        output: &Path,
        options: &Options,
    ) -> Result<Self> {
        steps::check(checkpoint, recipe)?;
        let grids = Grids::of(checkpoint)?;
        let calibration = calibration(recipe, options)?;
        let record = recipe_record(recipe, calibration.as_deref());
        let there = output.join(layout::MODEL_CONFIG).is_file();
        if let Some(only) = &options.only {
            if !there {
                return Err(Error::NoBundle {
                    path: output.to_path_buf(),
                    package: only.clone(),
                });
            }
            let base = Base::read(output)?;
            let mut task = Self::rebuild((plan, &grids), (recipe, record), only, base, options)?;
            task.calibration = calibration;
            task.settle_activations(checkpoint, plan, options)?;
            return Ok(task);
        }
        let mut task = Self::anew(
            (plan, &grids),
            (recipe, record.clone()),
            calibration,
            options,
        )?;
        if there && !options.force {
            let base = Base::read(output)?;
            base.check_tool()?;
            let got = &base.provenance.recipe;
            if record != *got {
                return Err(base.other("recipe", describe(&record), describe(got)));
            }
            task.packages = base.packages.clone();
            task.records = base.provenance.packages.clone();
            task.base = Some(base);
        }
        task.settle_activations(checkpoint, plan, options)?;
        Ok(task)
    }

    /// A conversion anew. Statistics may be missing where only values depend on them.
    ///
    /// # Errors
    /// As [`Task::new`]; no statistics for a recipe that quantizes activations.
    pub fn planned(
        (checkpoint, plan): (&Checkpoint, &ModelPlan),
        recipe: &Recipe,
        options: &Options,
    ) -> Result<Self> {
        steps::check(checkpoint, recipe)?;
        let grids = Grids::of(checkpoint)?;
        let calibration = options.calibration.clone();
        let record = recipe_record(recipe, calibration.as_deref());
        let mut task = Self::anew((plan, &grids), (recipe, record), calibration, options)?;
        task.settle_activations(checkpoint, plan, options)?;
        Ok(task)
    }

    fn anew(
        (plan, grids): (&ModelPlan, &Grids),
        (recipe, record): (&Recipe, RecipeRecord),
        calibration: Option<Arc<Stats>>,
        options: &Options,
    ) -> Result<Self> {
        Ok(Task {
            recipe: with_tables(recipe, grids),
            packages: BTreeMap::new(),
            record,
            records: BTreeMap::new(),
            calibration,
            palettes: options.palettes.clone(),
            context: context(plan, recipe, options)?,
            model_id: options.model_id.as_deref().unwrap_or(MODEL_ID).to_string(),
            file_limit: options.file_limit(),
            chunks: resolve(plan, recipe, grids)?,
            base: None,
            only: None,
        })
    }

    fn rebuild(
        (plan, grids): (&ModelPlan, &Grids),
        (recipe, record): (&Recipe, RecipeRecord),
        only: &str,
        base: Base,
        options: &Options,
    ) -> Result<Self> {
        base.check_tool()?;
        let mut chunks = resolve(plan, &base.recipe, grids)?;
        let Some(at) = chunks.iter().position(|c| c.spec.name == only) else {
            return Err(Error::NoSuchPackage {
                package: only.to_string(),
                known: chunks.into_iter().map(|c| c.spec.name).collect(),
            });
        };
        agree(only, recipe, &base, options)?;
        let anew = resolve(plan, recipe, grids)?;
        // The layouts agree, so the package is there.
        if let Some(chunk) = anew.into_iter().find(|c| c.spec.name == only) {
            chunks[at] = chunk;
        }
        check_rules(recipe, &base.recipe, &chunks[at])?;
        let (mut packages, mut records) = (base.packages.clone(), base.provenance.packages.clone());
        packages.remove(only);
        records.remove(only);
        if record != base.provenance.recipe {
            packages.insert(only.to_string(), recipe.clone());
            records.insert(only.to_string(), record);
        }
        Ok(Task {
            recipe: with_tables(&base.recipe, grids),
            packages,
            record: base.provenance.recipe.clone(),
            records,
            calibration: None,
            palettes: options.palettes.clone(),
            context: base.config.context_length,
            model_id: base.config.model_name.clone(),
            file_limit: options.file_limit(),
            chunks,
            base: Some(base),
            only: Some(only.to_string()),
        })
    }

    /// Decides how activations are rounded in every program that is written, also over weights that are kept.
    fn settle_activations(
        &mut self,
        checkpoint: &Checkpoint,
        plan: &ModelPlan,
        options: &Options,
    ) -> Result<()> {
        let measured = |c: &ResolvedChunk| {
            let activations = self.recipe_of(&c.spec.name).quantize.activations;
            activations.is_some_and(|a| a.percentile().is_some())
        };
        if self.calibration.is_none() && self.chunks.iter().any(measured) {
            self.calibration = options.calibration.clone();
        }
        for at in 0..self.chunks.len() {
            let name = self.chunks[at].spec.name.clone();
            if self.only.as_ref().is_none_or(|only| *only == name) {
                steps::check(checkpoint, self.recipe_of(&name))?;
                self.activations(&self.chunks[at])?;
            }
            let activations = self.recipe_of(&name).quantize.activations;
            if let Some(Activations::Checkpoint { form }) = activations {
                steps::apply(checkpoint, plan, form, &mut self.chunks[at])?;
            }
        }
        Ok(())
    }

    /// How activations around the linear layers of a package are rounded, by tensor; none where the recipe leaves them as they
    /// are.
    pub fn activations(
        &self,
        chunk: &ResolvedChunk,
    ) -> Result<BTreeMap<String, LinearActivations>> {
        let recipe = self.recipe_of(&chunk.spec.name);
        let activations = recipe.quantize.activations;
        let Some(percentile) = activations.and_then(|a| a.percentile()) else {
            return Ok(chunk.activations.clone());
        };
        let Some(stats) = &self.calibration else {
            return Err(Error::NoCalibration {
                recipe: recipe.name.clone(),
                key: "activations",
            });
        };
        let record = self.record_of(&chunk.spec.name);
        if let (Some(base), Some(sha256)) = (&self.base, &record.calibration)
            && sha256 != stats.sha256()
        {
            let given = stats.sha256().to_string();
            return Err(base.other("calibration", given, sha256.clone()));
        }
        activations::measured(chunk, percentile, stats)
    }

    /// What a user should know of the checkpoint and the recipes of the packages that are written.
    pub fn notes(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let written = self.chunks.iter().map(|c| &c.spec.name);
        let written = written.filter(|name| self.only.as_ref().is_none_or(|only| only == *name));
        let mut notes: Vec<String> = written
            .filter_map(|name| steps::note(checkpoint, self.recipe_of(name)))
            .collect();
        notes.dedup();
        notes
    }

    /// The recipe of a package as `provenance.json` keeps it.
    fn record_of(&self, package: &str) -> &RecipeRecord {
        self.records.get(package).unwrap_or(&self.record)
    }

    /// The recipe of a package.
    pub fn recipe_of(&self, package: &str) -> &Recipe {
        self.packages.get(package).unwrap_or(&self.recipe)
    }
}

/// A recipe with the form of tables that the checkpoint gives, where it asks for that.
fn with_tables(recipe: &Recipe, grids: &Grids) -> Recipe {
    let mut recipe = recipe.clone();
    let [embedding, per_layer] = [EMBED, PER_LAYER_EMBED].map(|table| grids.given(table));
    recipe.quantize.keep_tables(embedding, per_layer);
    recipe
}

/// The plan of a checkpoint that has all that a bundle takes from it.
pub(in crate::convert) fn checked_plan(checkpoint: &Checkpoint) -> Result<ModelPlan> {
    let plan = ModelPlan::new(checkpoint.config())?;
    plan.check(checkpoint)?;
    check_token_files(checkpoint)?;
    Ok(plan)
}

fn check_token_files(checkpoint: &Checkpoint) -> Result<()> {
    for file in layout::HF_REQUIRED {
        if !checkpoint.dir().join(file).is_file() {
            return Err(crate::checkpoint::Error::MissingFile {
                dir: checkpoint.dir().to_path_buf(),
                file: file.to_string(),
                hint: "the device's tokenizer needs it; download the whole snapshot".to_string(),
            }
            .into());
        }
    }
    // What `decode` opens must open. A chat template is for the host alone, and may use what only Python's jinja knows.
    Tokenizer::open(checkpoint.dir())?;
    stop_ids(checkpoint.dir())?;
    Ok(())
}

/// A recipe as `provenance.json` keeps it, with the statistics that it is applied with.
fn recipe_record(recipe: &Recipe, calibration: Option<&Stats>) -> RecipeRecord {
    let used = calibration.filter(|_| recipe.quantize.calibrated_by().is_some());
    RecipeRecord {
        name: recipe.name.clone(),
        text: recipe.source.clone(),
        calibration: used.map(|stats| stats.sha256().to_string()),
    }
}

/// The statistics that the recipe asks for.
fn calibration(recipe: &Recipe, options: &Options) -> Result<Option<Arc<Stats>>> {
    match (recipe.quantize.calibrated_by(), &options.calibration) {
        (None, _) => Ok(None),
        (Some(_), Some(stats)) => Ok(Some(stats.clone())),
        (Some(key), None) => Err(Error::NoCalibration {
            recipe: recipe.name.clone(),
            key,
        }),
    }
}

/// The context asked for, if the model can have it.
fn context(plan: &ModelPlan, recipe: &Recipe, options: &Options) -> Result<usize> {
    let context = recipe.context_for(options.context, plan.max_positions);
    if context == 0 || context > plan.max_positions {
        return Err(Error::Context {
            context,
            max: plan.max_positions,
        });
    }
    Ok(context)
}

/// What all packages of a bundle must have in common. Schemes of weights and the form of attention are each package's own.
fn agree(only: &str, recipe: &Recipe, base: &Base, options: &Options) -> Result<()> {
    let there = base.config.context_length;
    let context = options.context.or(recipe.context).unwrap_or(there);
    let bundle = &base.recipe;
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    let facts = [
        ("context", context.to_string(), there.to_string()),
        (
            "layout",
            recipe.layout.name().to_string(),
            bundle.layout.name().to_string(),
        ),
        ("cache", text(&recipe.cache), text(&bundle.cache)),
        (
            "functions",
            text(&recipe.functions),
            text(&bundle.functions),
        ),
        (
            "pad_kv_heads",
            text(&recipe.pad_kv_heads),
            text(&bundle.pad_kv_heads),
        ),
        ("prefill", text(&recipe.prefill), text(&bundle.prefill)),
        ("compat", text(&recipe.compat), text(&bundle.compat)),
    ];
    match facts.into_iter().find(|(_, asked, there)| asked != there) {
        None => Ok(()),
        Some((what, asked, there)) => Err(Error::Inconsistent {
            package: only.to_string(),
            what,
            asked,
            there,
        }),
    }
}

/// A rule that the bundle's recipe does not have was meant for the package, so it must match there.
fn check_rules(recipe: &Recipe, bundle: &Recipe, chunk: &ResolvedChunk) -> Result<()> {
    let known = |pattern: &str| {
        let mut rules = bundle.quantize.rules.iter();
        rules.any(|rule| rule.pattern.as_str() == pattern)
    };
    for rule in &recipe.quantize.rules {
        let matches = chunk
            .weights
            .iter()
            .any(|w| w.binding.kind.is_quantizable() && rule.pattern.finds(&w.binding.tensor));
        if !matches && !known(rule.pattern.as_str()) {
            return Err(crate::recipe::Error::RuleMatchesNothing {
                recipe: recipe.name.clone(),
                pattern: rule.pattern.as_str().to_string(),
                scheme: rule.scheme.to_string(),
                hint: format!("only the weights of {} are built", chunk.spec.name),
            }
            .into());
        }
    }
    Ok(())
}

/// A recipe in an error: its name and the beginning of its text's hash, as texts of the same name may differ.
fn describe(recipe: &RecipeRecord) -> String {
    let hash = files::hex(&Sha256::digest(&recipe.text));
    let name = &recipe.name;
    match &recipe.calibration {
        None => format!("{name} (text {})", &hash[..12]),
        Some(sha) => {
            let sha = sha.get(..12).unwrap_or(sha);
            format!("{name} (text {}, calibration {sha})", &hash[..12])
        }
    }
}
