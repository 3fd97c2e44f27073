//! The work of a sweep.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::base::{Base, Writer};
use super::error::{Error, Result, io};
use super::front::pareto;
use super::memory;
use super::model::{Model, greedy};
use super::prepare::{self, Keys, write_json};
use super::recall::Recall;
use super::result::{
    BaseResult, Check, Conversion, Path as EvaluationPath, RecipeResult, Sample, Sweep, Weights,
};
use super::score::{Scores, TOP, TopRow};
use super::{Event, Settings, TOOL, html, result_path};
use crate::bundle::{Bundle, files};
use crate::checkpoint::{Checkpoint, Tokenizer, stop_ids};
use crate::convert::{self, convert};
use crate::evaluate::batched::{Batched, BundleWeights};
use crate::evaluate::text::windows;
use crate::evaluate::{BundleSubject, RowSource, open_decoder};
use crate::gemma::ModelPlan;
use crate::gemma::names::PER_LAYER_EMBED;
use crate::gemma::reference::Reference;
use crate::progress::Progress;
use crate::quantize::SharedPalettes;
use crate::recipe::Recipe;
use crate::runtime::generate::{Limits, generate};
use crate::runtime::sampling::{Sampler, SamplingOptions};
use crate::runtime::{DecodeOptions, Precision};

/// Values of a tensor that are read at a time.
const BLOCK: usize = 1 << 20;

/// Converts and evaluates every recipe of `settings` in the directory `dir`, which is made, and writes `sweep.json` and
/// `sweep.html` there. What an earlier run found under the same conditions is kept. Recipes whose two evaluations disagree are
/// in [`Sweep::disagree`].
///
/// # Errors
/// Before any work: recipes of one name, one that does not fit the model, ids that the vocabulary or positions that the
/// context does not have. Then: a failing conversion or evaluation; files that cannot be written.
pub fn sweep(
    checkpoint: &Checkpoint,
    settings: &Settings,
    dir: &Path,
    progress: &dyn Progress,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Sweep> {
    let plan = ModelPlan::new(checkpoint.config())?;
    plan.check(checkpoint)?;
    prepare::check(&plan, settings)?;
    for path in [dir.to_path_buf(), dir.join("results"), dir.join("bundles")] {
        std::fs::create_dir_all(&path).map_err(io(&path))?;
    }
    let _lock = lock(dir)?;
    let fingerprint = checkpoint.fingerprint(progress)?;
    let mut work = Work {
        checkpoint,
        plan,
        settings,
        dir,
        keys: Keys::new(&fingerprint, settings),
        palettes: prepare::shared_palettes(settings),
        windows: windows(&settings.ids, settings.context)?,
        tokenizer: Tokenizer::open(checkpoint.dir())?,
        stop: stop_ids(checkpoint.dir())?,
        progress,
    };
    let base = work.base()?;
    let reference = work.reference()?;
    let results = work.recipes(&base, &reference, tell)?;
    let sweep = work.summary(fingerprint, &base, reference, results);
    write_json(&dir.join("sweep.json"), &sweep)?;
    prepare::write_atomically(&dir.join("sweep.html"), html::page(&sweep).as_bytes())?;
    Ok(sweep)
}

/// The right to work in a directory, free again when the file is closed.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked {
            dir: dir.to_path_buf(),
        }),
        Err(TryLockError::Error(e)) => Err(io(&path)(e)),
    }
}

struct Work<'a> {
    checkpoint: &'a Checkpoint,
    plan: ModelPlan,
    settings: &'a Settings,
    dir: &'a Path,
    keys: Keys,
    /// Of the recipes that differ in width alone.
    palettes: Arc<SharedPalettes>,
    windows: Vec<Vec<u32>>,
    tokenizer: Tokenizer,
    stop: Vec<u32>,
    progress: &'a dyn Progress,
}

impl Work<'_> {
    /// Tokens that are fed, the first of each window included.
    fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// The stored logits of the reference, computed if they are not there.
    fn base(&self) -> Result<Base> {
        let path = self.dir.join("base.safetensors");
        if let Some(base) = Base::open(&path, &self.keys.base, self.tokens())? {
            return Ok(base);
        }
        let mut model = Model::Batched(Box::new(Reference::load(self.checkpoint)?));
        let top = TOP.min(self.plan.vocab);
        let mut writer = Writer::create(&path, &self.keys.base, self.tokens(), top)?;
        self.progress
            .begin_steps("f32 reference over the text", self.tokens());
        for window in &self.windows {
            model.over(window, &mut |i, mut row| {
                self.progress.advance(1);
                writer.push(&TopRow::of(&mut row, top, window.get(i + 1).copied()))
            })?;
        }
        self.progress.end();
        writer.finish()?;
        let base = Base::open(&path, &self.keys.base, self.tokens())?;
        base.ok_or_else(|| io(&path)(std::io::ErrorKind::InvalidData.into()))
    }

    /// Everything else of the reference.
    fn reference(&self) -> Result<BaseResult> {
        let path = self.dir.join("base.json");
        let key = &self.keys.reference;
        if let Some(known) = read_json::<BaseResult>(&path).filter(|b| b.key == *key) {
            return Ok(known);
        }
        let reference = Reference::load(self.checkpoint)?;
        let sample = match self.settings.sample_tokens {
            0 => None,
            count => {
                self.progress.begin_steps("f32 reference, sample", count);
                let prompt = &self.settings.prompt.1;
                let mut step = || self.progress.advance(1);
                let ids = greedy(&reference, prompt, count, &self.stop, &mut step)?;
                self.progress.end();
                Some(self.sample(ids)?)
            }
        };
        let recall = self.recall(&mut Model::Batched(Box::new(reference)), "f32 reference")?;
        let result = BaseResult {
            key: key.clone(),
            recall,
            sample,
            energies: self.energies()?,
        };
        write_json(&path, &result)?;
        Ok(result)
    }

    fn sample(&self, ids: Vec<u32>) -> Result<Sample> {
        let text = self.tokenizer.decode(&ids)?;
        Ok(Sample { ids, text })
    }

    /// Answers to the recall set; none without one.
    fn recall(&self, model: &mut Model<'_>, name: &str) -> Result<Option<Recall>> {
        let contexts = &self.settings.recall;
        if contexts.is_empty() {
            return Ok(None);
        }
        self.progress
            .begin_steps(&format!("{name}, recall"), contexts.len());
        let mut recall = Recall::default();
        for context in contexts {
            recall.add(context, &model.answers(context)?);
            self.progress.advance(1);
        }
        self.progress.end();
        Ok(Some(recall))
    }

    /// Sum of squares of each tensor that packages hold.
    fn energies(&self) -> Result<BTreeMap<String, f64>> {
        let mut energies = BTreeMap::new();
        let mut values = vec![0f32; BLOCK];
        for (name, shape) in self.plan.tensors() {
            if name == PER_LAYER_EMBED {
                continue;
            }
            let view = self.checkpoint.tensor(&name, &shape)?;
            let mut sum = 0.0f64;
            for start in (0..view.len()).step_by(BLOCK) {
                let end = view.len().min(start + BLOCK);
                let part = &mut values[..end - start];
                view.read_f32(start..end, part)?;
                sum += part
                    .iter()
                    .map(|v| f64::from(*v) * f64::from(*v))
                    .sum::<f64>();
            }
            energies.insert(name, sum);
        }
        Ok(energies)
    }

    /// Every recipe in order, then those on the front that have no check yet.
    fn recipes(
        &mut self,
        base: &Base,
        reference: &BaseResult,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<RecipeResult>> {
        let recipes = &self.settings.recipes;
        let mut results: Vec<RecipeResult> = Vec::new();
        for (i, recipe) in recipes.iter().enumerate() {
            let path = result_path(self.dir, &recipe.name);
            let key = self.keys.recipe(recipe, self.settings);
            if let Some(known) = read_json::<RecipeResult>(&path).filter(|r| r.key == key) {
                tell(Event::Kept(&known));
                results.push(known);
                continue;
            }
            tell(Event::Begun {
                name: &recipe.name,
                number: i + 1,
                of: recipes.len(),
            });
            let (bundle, mut result) = self.convert(recipe, reference, key)?;
            self.evaluate(&bundle, base, &mut result)?;
            results.push(result);
            // What is on the front of all is on the front of the first ones, so its bundle is still here.
            let on_front = front(&results).pop().unwrap_or(false);
            if let Some(result) = results.last_mut() {
                if on_front {
                    self.check(&bundle, base, result)?;
                }
                write_json(&path, result)?;
                tell(Event::Done(result));
            }
            drop(bundle);
            self.discard(recipe)?;
        }
        for i in 0..results.len() {
            // Only where an earlier sweep had recipes that this one does not have.
            if front(&results)[i] && needs_check(&results[i]) {
                let recipe = &recipes[i];
                let (bundle, _) = self.convert(recipe, reference, results[i].key.clone())?;
                self.check(&bundle, base, &mut results[i])?;
                write_json(&result_path(self.dir, &recipe.name), &results[i])?;
                drop(bundle);
                self.discard(recipe)?;
            }
        }
        Ok(results)
    }

    fn bundle_dir(&self, recipe: &Recipe) -> PathBuf {
        self.dir.join("bundles").join(&recipe.name)
    }

    fn discard(&self, recipe: &Recipe) -> Result<()> {
        match self.settings.keep {
            true => Ok(()),
            false => Ok(files::remove(&self.bundle_dir(recipe))?),
        }
    }

    /// Makes a recipe's bundle. The result has no figures yet.
    fn convert(
        &self,
        recipe: &Recipe,
        reference: &BaseResult,
        key: String,
    ) -> Result<(Arc<Bundle>, RecipeResult)> {
        let out = self.bundle_dir(recipe);
        let options = prepare::conversion_options(self.settings, recipe, &self.palettes);
        let begun = Instant::now();
        let (report, memory) =
            memory::watch(|| convert(self.checkpoint, recipe, &out, &options, self.progress));
        let failed = |source: convert::Error| Error::Convert {
            recipe: recipe.name.clone(),
            source: Box::new(source),
        };
        let report = report.map_err(failed)?;
        let seconds = begun.elapsed().as_secs_f64();
        let bundle = Arc::new(Bundle::open(&out)?);
        let weight_bytes = bundle.packages().map(|c| c.package.weight_bytes()).sum();
        let weights = Weights::new(
            &report.tensors,
            &reference.energies,
            weight_bytes,
            report.bytes,
        );
        let result = RecipeResult {
            key,
            name: recipe.name.clone(),
            description: recipe.description.clone(),
            path: EvaluationPath::Batched,
            weights,
            figures: Scores::default().figures(),
            kl_of_first: f64::NAN,
            recall: None,
            sample: None,
            conversion: Conversion {
                seconds,
                memory,
                resumed: report.resumed.len(),
            },
            evaluation_seconds: 0.0,
            check: None,
        };
        Ok((bundle, result))
    }

    /// Fills in what the bundle's weights make of text, recall set and prompt.
    fn evaluate(&self, bundle: &Arc<Bundle>, base: &Base, result: &mut RecipeResult) -> Result<()> {
        let begun = Instant::now();
        let weights;
        let mut model = match BundleWeights::find(bundle, &self.plan)? {
            Batched::Fit(found) => {
                weights = found;
                Model::Batched(Box::new(weights.reference(self.checkpoint)?))
            }
            Batched::Unfit(reason) => {
                result.path = EvaluationPath::Interpreter(reason);
                self.interpreter(bundle)?
            }
        };
        let scores = self.score(&mut model, base, &self.windows, &result.name)?;
        result.figures = scores.figures();
        result.kl_of_first = scores.kl_of_first(self.checked()?.iter().map(Vec::len).sum());
        result.recall = self.recall(&mut model, &result.name)?;
        result.sample = self.continued(bundle, &result.name)?;
        result.evaluation_seconds = begun.elapsed().as_secs_f64();
        Ok(())
    }

    fn interpreter(&self, bundle: &Arc<Bundle>) -> Result<Model<'static>> {
        let threads = self.settings.threads;
        let subject =
            BundleSubject::open(bundle, Precision::F32, &RowSource::Bundle, false, threads)?;
        Ok(Model::Interpreted(Box::new(subject)))
    }

    fn score(
        &self,
        model: &mut Model<'_>,
        base: &Base,
        windows: &[Vec<u32>],
        name: &str,
    ) -> Result<Scores> {
        let total = windows.iter().map(Vec::len).sum();
        self.progress
            .begin_steps(&format!("{name} over the text"), total);
        let mut scores = Scores::default();
        let mut first = 0;
        for window in windows {
            model.over(window, &mut |i, mut row| {
                if row.len() != self.plan.vocab {
                    return Err(Error::Width {
                        recipe: name.to_string(),
                        expected: self.plan.vocab,
                        got: row.len(),
                    });
                }
                scores.add(&base.row(first + i), &mut row, window.get(i + 1).copied());
                self.progress.advance(1);
                Ok(())
            })?;
            first += window.len();
        }
        self.progress.end();
        Ok(scores)
    }

    /// The first tokens of the text, in windows whose positions are the first ones of the whole.
    fn checked(&self) -> Result<Vec<Vec<u32>>> {
        let ids = &self.settings.ids;
        let count = self.settings.check_tokens.clamp(2, ids.len());
        Ok(windows(&ids[..count], self.settings.context)?)
    }

    /// Runs the first tokens op by op.
    fn check(&self, bundle: &Arc<Bundle>, base: &Base, result: &mut RecipeResult) -> Result<()> {
        if !needs_check(result) {
            return Ok(());
        }
        let windows = self.checked()?;
        let mut model = self.interpreter(bundle)?;
        let name = format!("{}, op by op,", result.name);
        let scores = self.score(&mut model, base, &windows, &name)?;
        let figures = scores.figures();
        result.check = Some(Check {
            tokens: figures.tokens,
            kl_batched: result.kl_of_first,
            kl_interpreter: figures.kl_mean,
        });
        Ok(())
    }

    /// What the bundle itself writes after the prompt, op by op.
    fn continued(&self, bundle: &Arc<Bundle>, name: &str) -> Result<Option<Sample>> {
        if self.settings.sample_tokens == 0 {
            return Ok(None);
        }
        self.progress
            .begin_steps(&format!("{name}, sample"), self.settings.sample_tokens);
        let options = DecodeOptions {
            threads: self.settings.threads,
            ..DecodeOptions::default()
        };
        let mut decoder = open_decoder(bundle, Precision::F32, &RowSource::Bundle, options)?;
        let mut sampler = Sampler::new(SamplingOptions::default())?;
        let limits = Limits {
            max_new: self.settings.sample_tokens,
            stop_ids: &self.stop,
        };
        let mut go_on = |_| {
            self.progress.advance(1);
            ControlFlow::Continue(())
        };
        let prompt = &self.settings.prompt.1;
        let generated = generate(&mut decoder, prompt, &mut sampler, &limits, &mut go_on)?;
        self.progress.end();
        self.sample(generated.tokens).map(Some)
    }

    fn summary(
        &self,
        checkpoint: String,
        base: &Base,
        reference: BaseResult,
        recipes: Vec<RecipeResult>,
    ) -> Sweep {
        let on_front = front(&recipes);
        let members = || recipes.iter().zip(&on_front).filter(|(_, on)| **on);
        let name = |(r, _): (&RecipeResult, &bool)| r.name.clone();
        let disagrees = |(r, _): &(&RecipeResult, &bool)| r.check.is_some_and(|c| !c.agrees());
        Sweep {
            tool: TOOL.to_string(),
            model: self.settings.model.clone(),
            checkpoint,
            tokens: self.tokens(),
            windows: self.windows.len(),
            context: self.settings.context,
            vocab: self.plan.vocab,
            top: base.top(),
            kl_is_exact: base.top() == self.plan.vocab,
            prompt: self.settings.prompt.0.clone(),
            perplexity: recipes
                .first()
                .map_or(f64::NAN, |r| r.figures.perplexity_reference),
            recall: reference.recall,
            sample: reference.sample,
            front: members().map(name).collect(),
            disagree: members().filter(disagrees).map(name).collect(),
            recipes,
        }
    }
}

/// Whether each recipe is on the front of KL against the bundle's bytes.
fn front(results: &[RecipeResult]) -> Vec<bool> {
    let points = results.iter();
    let points = points.map(|r| (r.weights.bundle_bytes as f64, r.figures.kl_mean));
    pareto(&points.collect::<Vec<_>>())
}

fn needs_check(result: &RecipeResult) -> bool {
    result.check.is_none() && result.path == EvaluationPath::Batched
}

/// A file of an earlier run; what is not there or cannot be read counts as absent and is made anew.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
