//! Where the layers are cut into chunks, and which packages a bundle has.

use std::ops::Range;

use super::error::{Error, Result};
use super::forms::{CacheForm, FunctionKind, GraphOptions, Layout, PrefillPackages};
use crate::gemma::{LayerKind, ModelPlan};

impl Layout {
    /// File names of the packages without extension.
    fn names(self, cache: CacheForm) -> &'static [&'static str] {
        match (self, cache) {
            (Self::Swa4, CacheForm::State) => &["chunk_1", "chunk_2", "chunk_3", "chunk_4"],
            (Self::Swa4, _) => &["chunk1", "chunk2", "chunk3", "chunk4"],
            (Self::Swa3, CacheForm::State) => &["chunk_1", "chunk_2", "chunk_3"],
            (Self::Swa3, _) => &["chunk1", "chunk2_3way", "chunk3_3way"],
            (Self::Swa3Topology1, _) => &["chunk1_topoI", "chunk2_topoI", "chunk3_topoI"],
            (Self::Swa2, _) => &["merged_chunk1", "merged_chunk2"],
            (Self::Swa1, CacheForm::State) => &["model"],
            (Self::Swa1, _) => &["merged_full"],
            (Self::Lite2, _) => &["lite_chunk1", "lite_chunk2"],
            (Self::Monolithic, _) => &["model"],
        }
    }

    /// Which of the four cuts remain, by index.
    fn cuts(self) -> &'static [usize] {
        match self {
            Self::Swa4 => &[0, 1, 2, 3],
            Self::Swa3 => &[0, 2, 3],
            Self::Swa3Topology1 => &[1, 2, 3],
            Self::Swa2 | Self::Lite2 => &[1, 3],
            Self::Swa1 | Self::Monolithic => &[3],
        }
    }
}

/// One chunk: a package with a run of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSpec {
    /// File name of the package without extension: `chunk1`.
    pub name: String,
    /// The decoder layers in it.
    pub layers: Range<usize>,
    /// Whether it computes the per-layer inputs.
    pub first: bool,
    /// Whether it ends with the final norm and the head.
    pub last: bool,
    /// Its functions, the default one first.
    pub functions: Vec<FunctionKind>,
}

/// Names of the packages that prefill has to itself.
const PREFILL_NAMES: [&str; 4] = [
    "prefill_chunk1",
    "prefill_chunk2",
    "prefill_chunk3",
    "prefill_chunk4",
];

/// Every package of a bundle: the chunks of decode in the order they run, then those of prefill where it has its own.
///
/// # Errors
/// As [`chunks`]; [`Error::Combination`] for forms that do not go together, [`Error::NotForModel`] for functions that a model
/// with experts cannot have.
pub fn packages(plan: &ModelPlan, options: &GraphOptions) -> Result<Vec<ChunkSpec>> {
    options.check()?;
    if let (Some(function), true) = (options.functions.get(1), plan.moe.is_some()) {
        return Err(Error::NotForModel {
            form: function.to_string(),
            why: "it has experts, and they are picked for one token at a time".to_owned(),
        });
    }
    let mut with: Vec<FunctionKind> = Vec::new();
    let mut alone: Vec<FunctionKind> = Vec::new();
    for &function in &options.functions {
        match function {
            FunctionKind::Prefill(_) if options.prefill == PrefillPackages::Separate => {
                alone.push(function);
            }
            _ => with.push(function),
        }
    }
    let mut specs = named(
        plan,
        options.layout,
        options.layout.names(options.cache),
        &with,
    )?;
    if !alone.is_empty() {
        // The largest is the default.
        alone.sort_by_key(|f| std::cmp::Reverse(f.tokens()));
        specs.extend(named(plan, Layout::Swa4, &PREFILL_NAMES, &alone)?);
    }
    Ok(specs)
}

/// The chunks of decode of a layout, in the order they run.
///
/// With KV sharing the cuts of four chunks are at half of the own-KV layers (rounded up), at their end, and at half of
/// the sharing ones (rounded down); without it chunk i of four ends at `round(i * L / 4)`. These are the boundaries that
/// the published runtime computes for itself. Layouts with fewer chunks leave cuts out.
///
/// # Errors
/// [`Error::TooFewLayers`], or [`Error::ProducerElsewhere`] when a layer that others share K/V with would not lie in
/// the chunk that hands K/V on.
pub fn chunks(plan: &ModelPlan, layout: Layout) -> Result<Vec<ChunkSpec>> {
    named(
        plan,
        layout,
        layout.names(CacheForm::Shift),
        &[FunctionKind::Decode],
    )
}

fn named(
    plan: &ModelPlan,
    layout: Layout,
    names: &[&str],
    functions: &[FunctionKind],
) -> Result<Vec<ChunkSpec>> {
    let ends = ends(plan, layout)?;
    let mut start = 0;
    let mut specs = Vec::with_capacity(ends.len());
    for (i, (&end, name)) in ends.iter().zip(names).enumerate() {
        specs.push(ChunkSpec {
            name: (*name).to_owned(),
            layers: start..end,
            first: i == 0,
            last: i + 1 == ends.len(),
            functions: functions.to_vec(),
        });
        start = end;
    }
    producers_together(plan, layout, &specs)?;
    Ok(specs)
}

/// Where the chunks of a layout end.
fn ends(plan: &ModelPlan, layout: Layout) -> Result<Vec<usize>> {
    let layers = plan.layers.len();
    let own = plan.first_shared;
    let four = match own == layers {
        true => (1..=4).map(|i| (2 * i * layers + 4) / 8).collect(),
        false => vec![own.div_ceil(2), own, own + (layers - own) / 2, layers],
    };
    let ends: Vec<usize> = layout.cuts().iter().map(|&cut| four[cut]).collect();
    let starts = std::iter::once(&0).chain(&ends);
    if starts.zip(&ends).any(|(start, end)| start >= end) {
        let (what, expected, got) = match own == layers {
            true => ("layers", ends.len(), layers),
            false if own < 2 => ("layers with their own K/V", 2, own),
            false => ("layers that share K/V", 2, layers - own),
        };
        return Err(Error::TooFewLayers {
            layout: layout.to_string(),
            chunks: ends.len(),
            what,
            expected,
            got,
        });
    }
    Ok(ends)
}

/// Checks that both producers lie in the chunk that holds the last own-KV layer: it hands K/V on.
fn producers_together(plan: &ModelPlan, layout: Layout, specs: &[ChunkSpec]) -> Result<()> {
    let Some(producers) = &plan.producers else {
        return Ok(());
    };
    let holder = |layer: usize| specs.iter().find(|s| s.layers.contains(&layer));
    let Some(expected) = plan.first_shared.checked_sub(1).and_then(holder) else {
        return Ok(());
    };
    for (kind, producer) in [
        (LayerKind::Sliding, producers.sliding),
        (LayerKind::Full, producers.full),
    ] {
        let Some(producer) = producer else { continue };
        if let Some(found) = holder(producer)
            && found.name != expected.name
        {
            return Err(Error::ProducerElsewhere {
                layout: layout.to_string(),
                kind,
                producer,
                chunk: found.name.clone(),
                expected: expected.name.clone(),
            });
        }
    }
    Ok(())
}
