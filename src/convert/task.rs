//! What a conversion makes, and what it keeps of a bundle that is there.

use super::Options;
use super::activations;
use super::error::{Error, Result};
use super::facts::recipe_record;
use super::resolve::{ResolvedChunk, resolve};
use crate::bundle::error::{at, writing};
use crate::bundle::provenance::{RecipeRecord, TensorRecord};
use crate::bundle::{BundleConfig, Provenance, files, layout};
use crate::calibrate::Stats;
use crate::checkpoint::MergedAdapter;
use crate::gemma::ModelPlan;
use crate::package::link_or_copy;
use crate::quantize::SharedPalettes;
use crate::recipe::Recipe;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name in `model_config.json` when the caller gives none.
const MODEL_ID: &str = "gemma4";

/// Everything that decides a bundle beside the checkpoint.
#[derive(Debug)]
pub(super) struct Task {
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
        plan: &ModelPlan,
        recipe: &Recipe,
        output: &Path,
        options: &Options,
    ) -> Result<Self> {
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
            let mut task = Self::rebuild(plan, (recipe, record), only, base, options)?;
            task.calibration = calibration;
            task.check_activations(options)?;
            return Ok(task);
        }
        let mut task = Self::anew(plan, (recipe, record.clone()), calibration, options)?;
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
        task.check_activations(options)?;
        Ok(task)
    }

    /// A conversion anew. Statistics may be missing where only values depend on them.
    ///
    /// # Errors
    /// As [`Task::new`]; no statistics for a recipe that quantizes activations.
    pub fn planned(plan: &ModelPlan, recipe: &Recipe, options: &Options) -> Result<Self> {
        let calibration = options.calibration.clone();
        let record = recipe_record(recipe, calibration.as_deref());
        let mut task = Self::anew(plan, (recipe, record), calibration, options)?;
        task.check_activations(options)?;
        Ok(task)
    }

    fn anew(
        plan: &ModelPlan,
        (recipe, record): (&Recipe, RecipeRecord),
        calibration: Option<Arc<Stats>>,
        options: &Options,
    ) -> Result<Self> {
        Ok(Task {
            recipe: recipe.clone(),
            packages: BTreeMap::new(),
            record,
            records: BTreeMap::new(),
            calibration,
            palettes: options.palettes.clone(),
            context: context(plan, recipe, options)?,
            model_id: options.model_id.as_deref().unwrap_or(MODEL_ID).to_string(),
            file_limit: options.file_limit(),
            chunks: resolve(plan, recipe)?,
            base: None,
            only: None,
        })
    }

    fn rebuild(
        plan: &ModelPlan,
        (recipe, record): (&Recipe, RecipeRecord),
        only: &str,
        base: Base,
        options: &Options,
    ) -> Result<Self> {
        base.check_tool()?;
        let mut chunks = resolve(plan, &base.recipe)?;
        let Some(at) = chunks.iter().position(|c| c.spec.name == only) else {
            return Err(Error::NoSuchPackage {
                package: only.to_string(),
                known: chunks.into_iter().map(|c| c.spec.name).collect(),
            });
        };
        agree(only, recipe, &base, options)?;
        let anew = resolve(plan, recipe)?;
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
            recipe: base.recipe.clone(),
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

    /// That every program that is written, also over weights that are kept, has the scales of its activations.
    fn check_activations(&mut self, options: &Options) -> Result<()> {
        let quantizes = |c: &ResolvedChunk| {
            let recipe = self.recipe_of(&c.spec.name);
            recipe.quantize.activations.is_some()
        };
        if self.calibration.is_none() && self.chunks.iter().any(quantizes) {
            self.calibration = options.calibration.clone();
        }
        let written = |c: &&ResolvedChunk| self.only.as_ref().is_none_or(|o| *o == c.spec.name);
        for chunk in self.chunks.iter().filter(written) {
            activations::scales(self, chunk)?;
        }
        Ok(())
    }

    /// The recipe of a package as `provenance.json` keeps it.
    pub fn record_of(&self, package: &str) -> &RecipeRecord {
        self.records.get(package).unwrap_or(&self.record)
    }

    /// The recipe of a package.
    pub fn recipe_of(&self, package: &str) -> &Recipe {
        self.packages.get(package).unwrap_or(&self.recipe)
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

/// The recipe that the bundle in `dir` was made with, rules that were added included.
///
/// # Errors
/// There is no bundle, or its recipe is not one that this version reads.
pub fn bundle_recipe(dir: &Path) -> Result<Recipe> {
    let record = Provenance::read(dir)?.recipe;
    Ok(parse(&record)?)
}

fn parse(record: &RecipeRecord) -> crate::recipe::Result<Recipe> {
    Recipe::parse(
        &format!("{}, recipe {}", layout::PROVENANCE, record.name),
        &record.text,
    )
}

/// A bundle of which parts are kept. Each file is compared with what its provenance says when it is taken over.
#[derive(Debug)]
pub(super) struct Base {
    pub dir: PathBuf,
    pub config: BundleConfig,
    pub provenance: Provenance,
    recipe: Recipe,
    packages: BTreeMap<String, Recipe>,
}

impl Base {
    fn read(dir: &Path) -> Result<Self> {
        let provenance = Provenance::read(dir)?;
        let packages = provenance.packages.iter();
        Ok(Self {
            dir: dir.to_path_buf(),
            config: BundleConfig::read(dir)?,
            recipe: parse(&provenance.recipe)?,
            packages: packages
                .map(|(name, record)| Ok((name.clone(), parse(record)?)))
                .collect::<Result<_>>()?,
            provenance,
        })
    }

    pub fn other(&self, what: &'static str, expected: String, got: String) -> Error {
        Error::OtherBundle {
            path: self.dir.clone(),
            what,
            expected,
            got,
        }
    }

    /// Another version may write other bytes.
    fn check_tool(&self) -> Result<()> {
        let tool = &self.provenance.tool;
        let got = format!("{} {}", tool.name, tool.version);
        match super::TOOL == got {
            true => Ok(()),
            false => Err(self.other("tool", super::TOOL.to_string(), got)),
        }
    }

    /// Whether the bundle was made with adapters of the same content, in the same order. The fingerprint says so too, but not
    /// what differs.
    pub fn check_adapters(&self, adapters: &[MergedAdapter]) -> Result<()> {
        let given: Vec<&str> = adapters.iter().map(|a| a.about.weights_sha256.as_str()).collect();
        let there = self.provenance.adapters.iter();
        let there: Vec<&str> = there.map(|a| a.weights_sha256.as_str()).collect();
        let text = |list: &[&str]| match list {
            [] => "none".to_string(),
            list => list.join(", "),
        };
        match given == there {
            true => Ok(()),
            false => Err(self.other("adapters", text(&given), text(&there))),
        }
    }

    /// Whether the bundle was made from this checkpoint.
    pub fn check_checkpoint(&self, fingerprint: &str) -> Result<()> {
        let got = &self.provenance.checkpoint.sha256;
        match got == fingerprint {
            true => Ok(()),
            false => Err(self.other("checkpoint", fingerprint.to_string(), got.clone())),
        }
    }

    /// Takes the bundle's files below these first path components over into `dir`.
    pub fn take(&self, tops: &[String], dir: &Path) -> Result<()> {
        for file in self.provenance.files.keys().filter(|f| below(f, tops)) {
            let (from, to) = (self.dir.join(file), dir.join(file));
            if !from.is_file() {
                return Err(at(&from)(std::io::ErrorKind::NotFound.into()).into());
            }
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(writing(parent))?;
            }
            link_or_copy(&from, &to).map_err(writing(&to))?;
        }
        Ok(())
    }

    /// The bundle's files below these first path components, with their bytes.
    pub fn sizes(&self, tops: &[String]) -> Vec<(String, u64)> {
        let files = self.provenance.files.iter().filter(|(f, _)| below(f, tops));
        files.map(|(f, record)| (f.clone(), record.bytes)).collect()
    }

    /// The records of the tensors in these files or packages.
    pub fn tensors(&self, tops: &[String]) -> Vec<TensorRecord> {
        let tensors = self.provenance.tensors.iter();
        tensors.filter(|t| below(&t.file, tops)).cloned().collect()
    }
}

fn below(file: &str, tops: &[String]) -> bool {
    let top = file.split('/').next().unwrap_or(file);
    tops.iter().any(|t| t == top)
}
