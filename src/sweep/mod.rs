//! Recipes side by side: each is converted, its bundle evaluated over a text against the f32 reference, and all are put into
//! one table and one page.
//!
//! The directory of a sweep:
//!
//! | entry | content |
//! |---|---|
//! | `base.safetensors` | the reference's logits over the text: see [`base`] |
//! | `base.json` | what else is known of the reference: [`BaseResult`] |
//! | `results/NAME.json` | one recipe: [`RecipeResult`] |
//! | `bundles/NAME` | its bundle while it is at work, or for good if asked |
//! | `sweep.json`, `sweep.html` | everything: [`Sweep`] |
//! | `lock` | held by the process at work |
//!
//! A file is written when its part is done, under a key of all that decides it; another sweep in the same directory keeps what
//! has the same key. An interruption loses the recipe at work only, and of that what its conversion had not finished.
//!
//! Bundles are evaluated many tokens at once where the reference's forward can represent them ([`crate::evaluate::batched`]),
//! else op by op. A recipe that no other beats in bytes and KL is run op by op as well over the first tokens, and both mean KLs
//! must agree ([`Check`]).

pub mod base;
mod error;
mod front;
pub mod html;
mod memory;
mod model;
mod prepare;
mod recall;
mod result;
mod run;
mod score;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::{Error, Result};
pub use front::pareto;
pub use memory::{Peak, status};
pub(crate) use model::Model;
pub(crate) use prepare::write_atomically;
pub use recall::{Ask, Recall, RecallContext, read as read_recall};
pub use result::{
    BaseResult, CHECK_FLOOR, CHECK_SHARE, Check, Conversion, Path as EvaluationPath, RecipeResult,
    Sample, Sweep, TensorFigure, Weights,
};
pub use run::sweep;
pub use score::{Figures, Scores, TOP, TopRow};

use crate::calibrate::Stats;
use crate::recipe::Recipe;

/// Name and version of this program, a part of every key.
const TOOL: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// What a sweep is asked to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the page calls the model.
    pub model: String,
    /// Name for `model_config.json` of the bundles, as [`crate::convert::Options::model_id`].
    pub model_id: Option<String>,
    /// The recipes, each with a name of its own.
    pub recipes: Vec<Recipe>,
    /// The text.
    pub ids: Vec<u32>,
    /// Positions of a window of the text, and of the bundles.
    pub context: usize,
    /// What samples continue, as text and as ids.
    pub prompt: (String, Vec<u32>),
    /// Tokens of a sample; 0 for none.
    pub sample_tokens: usize,
    /// The recall set; empty for none.
    pub recall: Vec<RecallContext>,
    /// Tokens of the text that recipes on the front are run over op by op.
    pub check_tokens: usize,
    /// Statistics for the recipes that ask for some.
    pub calibration: Calibrations,
    /// Keep the bundles.
    pub keep: bool,
    /// Worker threads of conversion and interpreter; 0 means one per core.
    pub threads: usize,
}

/// Statistics of a checkpoint's activations, for several recipes.
#[derive(Debug, Clone, Default)]
pub struct Calibrations {
    /// For every recipe that is not named below.
    pub default: Option<Arc<Stats>>,
    /// By the recipe's name.
    pub by_recipe: BTreeMap<String, Arc<Stats>>,
}

impl Calibrations {
    /// The statistics of a recipe; `None` where it asks for none.
    pub fn of(&self, recipe: &Recipe) -> Option<Arc<Stats>> {
        let found = self.by_recipe.get(&recipe.name).or(self.default.as_ref());
        found
            .filter(|_| recipe.quantize.calibrated_by().is_some())
            .cloned()
    }
}

/// What a sweep is at.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A recipe is begun, the `number`th of `of`.
    Begun {
        /// Its name.
        name: &'a str,
        /// From 1.
        number: usize,
        /// Recipes in all.
        of: usize,
    },
    /// A recipe's result of an earlier run is kept.
    Kept(&'a RecipeResult),
    /// A recipe is done.
    Done(&'a RecipeResult),
}

/// The result file of a recipe.
pub fn result_path(dir: &Path, recipe: &str) -> PathBuf {
    dir.join("results").join(format!("{recipe}.json"))
}
