//! The units of a conversion: how large each is, and where it comes from.

use super::resolve::ResolvedChunk;
use super::task::Task;
use crate::bundle::layout;
use crate::checkpoint::Checkpoint;
use crate::gemma::{ModelPlan, names};
use crate::quantize::TableScheme;
use crate::recipe::QuantRules;

/// Everything that decides a bundle.
pub(in crate::convert) struct Job<'a> {
    pub checkpoint: &'a Checkpoint,
    pub plan: &'a ModelPlan,
    /// Recipe, context, packages, and what is kept of an earlier bundle.
    pub task: &'a Task,
}

/// What is resumed as a whole.
pub(in crate::convert) enum Unit<'a> {
    Package(PackageUnit<'a>),
    Table(TableSpec),
    PerLayer,
    Rope,
    TokenFiles,
}

/// A package to be written.
pub(in crate::convert) struct PackageUnit<'a> {
    pub chunk: &'a ResolvedChunk,
    /// The package (`chunk1`), earlier in the order of the units, whose weights this one has. Its tensors stand for both.
    pub weights_of: Option<String>,
}

/// Where a unit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::convert) enum Origin {
    /// The checkpoint and the recipe.
    Anew,
    /// A program of its own over the weights of the base's package.
    Rewritten,
    /// The base, as it is there.
    Kept,
}

/// A row table to be written.
#[derive(Debug, Clone)]
pub(in crate::convert) struct TableSpec {
    /// Checkpoint name without prefix.
    pub tensor: &'static str,
    /// Stem of the files.
    pub stem: &'static str,
    pub rows: usize,
    pub dim: usize,
    pub scheme: TableScheme,
    /// What readers multiply a row by.
    pub factor: f64,
}

impl TableSpec {
    /// Bytes of data and scales.
    pub fn bytes(&self) -> u64 {
        self.rows as u64 * self.scheme.row_bytes(self.dim) as u64 + self.scale_bytes()
    }

    /// Bytes of scales or steps.
    pub fn scale_bytes(&self) -> u64 {
        self.rows as u64 * self.scheme.row_scales(self.dim) as u64 * 2
    }
}

/// The tables of a model, in the order they are built.
fn tables(plan: &ModelPlan, rules: &QuantRules) -> Vec<TableSpec> {
    let mut tables = vec![TableSpec {
        tensor: names::EMBED,
        stem: layout::EMBED_STEM,
        rows: plan.vocab,
        dim: plan.hidden,
        scheme: rules.tables,
        factor: plan.embed_scale,
    }];
    if plan.ple_dim > 0 {
        tables.push(TableSpec {
            tensor: names::PER_LAYER_EMBED,
            stem: layout::PER_LAYER_STEM,
            rows: plan.ple_vocab,
            dim: plan.layers.len() * plan.ple_dim,
            scheme: rules.per_layer_tables(),
            factor: plan.ple_embed_scale,
        });
    }
    tables
}

impl<'a> Job<'a> {
    /// All units with their names, in the order they are built.
    pub fn units(&self) -> Vec<(String, Unit<'a>)> {
        let (plan, task) = (self.plan, self.task);
        let package = |(i, chunk): (usize, &'a ResolvedChunk)| {
            let earlier = task.chunks[..i].iter().find(|c| c.has_weights_of(chunk));
            let unit = PackageUnit {
                chunk,
                weights_of: earlier.map(|c| c.spec.name.clone()),
            };
            (layout::package_dir(&chunk.spec.name), Unit::Package(unit))
        };
        let chunks = task.chunks.iter().enumerate();
        let mut units: Vec<(String, Unit<'a>)> = chunks.map(package).collect();
        for spec in tables(plan, &task.recipe.quantize) {
            units.push((spec.stem.to_string(), Unit::Table(spec)));
        }
        if plan.ple_dim > 0 {
            units.push(("per_layer".to_string(), Unit::PerLayer));
        }
        units.push(("rope".to_string(), Unit::Rope));
        units.push((layout::HF_DIR.to_string(), Unit::TokenFiles));
        units
    }

    pub fn origin(&self, name: &str, unit: &Unit<'_>) -> Origin {
        let task = self.task;
        match (&task.base, &task.only, unit) {
            (None, ..) => Origin::Anew,
            (_, Some(only), Unit::Package(p)) if p.weights_of.as_ref() == Some(only) => {
                Origin::Anew
            }
            (_, Some(only), _) if name == layout::package_dir(only) => Origin::Anew,
            (_, Some(_), _) => Origin::Kept,
            (_, None, Unit::Package(p)) if p.weights_of.is_none() => Origin::Rewritten,
            (_, None, Unit::Package(_) | Unit::Rope | Unit::TokenFiles) => Origin::Anew,
            (_, None, Unit::Table(_) | Unit::PerLayer) => Origin::Kept,
        }
    }

    /// Names of the units whose weights or files are the base's.
    pub fn kept(&self, units: &[(String, Unit<'_>)]) -> Vec<String> {
        let kept = units.iter();
        kept.filter(|(name, unit)| self.origin(name, unit) != Origin::Anew)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What a unit's files begin with.
    pub fn tops(&self, name: &str, unit: &Unit<'_>) -> Vec<String> {
        match unit {
            Unit::Package(_) | Unit::TokenFiles => vec![name.to_string()],
            Unit::Table(spec) => [layout::table_data(spec.stem, spec.scheme)]
                .into_iter()
                .chain(layout::table_scales(spec.stem, spec.scheme))
                .collect(),
            Unit::PerLayer => [layout::PER_LAYER_PROJECTION, layout::PER_LAYER_NORM]
                .map(str::to_string)
                .to_vec(),
            Unit::Rope => layout::ROPE.map(str::to_string).to_vec(),
        }
    }

    /// Values read for a unit: the measure of progress.
    pub fn elements(&self, name: &str, unit: &Unit<'_>) -> u64 {
        let plan = self.plan;
        if self.origin(name, unit) != Origin::Anew {
            return 0;
        }
        match unit {
            Unit::Package(p) if p.weights_of.is_some() => 0,
            Unit::Package(p) => p.chunk.weights.iter().map(|w| w.elements).sum(),
            Unit::Table(spec) => spec.rows as u64 * spec.dim as u64,
            Unit::PerLayer => {
                let width = (plan.layers.len() * plan.ple_dim) as u64;
                width * plan.hidden as u64 + plan.ple_dim as u64
            }
            Unit::Rope | Unit::TokenFiles => 0,
        }
    }
}
