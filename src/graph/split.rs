//! Where the layers are cut into chunks.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::gemma::{LayerKind, ModelPlan};

/// How a model is split into packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Four chunks; sliding layers keep a window of K/V, full layers the whole context, both passed in and out.
    Swa4,
}

impl Layout {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swa4 => "swa4",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
}

/// Cuts a model into the chunks of a layout, in the order they run.
///
/// With KV sharing the cuts of four chunks are at half of the own-KV layers (rounded up), at their end, and at half of
/// the sharing ones (rounded down); without it chunk i of n ends at `round(i * L / n)`. These are the boundaries that
/// the published runtime computes for itself.
///
/// # Errors
/// [`Error::TooFewLayers`], or [`Error::ProducerElsewhere`] when a layer that others share K/V with would not lie in
/// the chunk that hands K/V on.
pub fn chunks(plan: &ModelPlan, layout: Layout) -> Result<Vec<ChunkSpec>> {
    match layout {
        Layout::Swa4 => swa4(plan, layout),
    }
}

fn swa4(plan: &ModelPlan, layout: Layout) -> Result<Vec<ChunkSpec>> {
    const CHUNKS: usize = 4;
    let layers = plan.layers.len();
    let own = plan.first_shared;
    let too_few = |what, expected, got| Error::TooFewLayers {
        layout: layout.to_string(),
        chunks: CHUNKS,
        what,
        expected,
        got,
    };
    if own == layers {
        if layers < CHUNKS {
            return Err(too_few("layers", CHUNKS, layers));
        }
        return Ok(named(&even_cuts(layers, CHUNKS)));
    }
    if own < 2 {
        return Err(too_few("layers with their own K/V", 2, own));
    }
    if layers - own < 2 {
        return Err(too_few("layers that share K/V", 2, layers - own));
    }
    let specs = named(&[own.div_ceil(2), own, own + (layers - own) / 2, layers]);
    producers_in(plan, layout, &specs, 1)?;
    Ok(specs)
}

/// Ends of n nearly equal runs: `round(i * layers / n)`, halves up.
fn even_cuts(layers: usize, n: usize) -> Vec<usize> {
    (1..=n).map(|i| (2 * i * layers + n) / (2 * n)).collect()
}

/// Chunks `chunk1`, `chunk2`, ... from their ends.
fn named(ends: &[usize]) -> Vec<ChunkSpec> {
    let mut start = 0;
    let mut specs = Vec::with_capacity(ends.len());
    for (i, &end) in ends.iter().enumerate() {
        specs.push(ChunkSpec {
            name: format!("chunk{}", i + 1),
            layers: start..end,
            first: i == 0,
            last: i + 1 == ends.len(),
        });
        start = end;
    }
    specs
}

/// Checks that both producers lie in chunk `index`.
fn producers_in(plan: &ModelPlan, layout: Layout, specs: &[ChunkSpec], index: usize) -> Result<()> {
    let Some(producers) = &plan.producers else {
        return Ok(());
    };
    for (kind, producer) in [
        (LayerKind::Sliding, producers.sliding),
        (LayerKind::Full, producers.full),
    ] {
        let Some(producer) = producer else { continue };
        if let Some(found) = specs.iter().find(|s| s.layers.contains(&producer))
            && found.name != specs[index].name
        {
            return Err(Error::ProducerElsewhere {
                layout: layout.to_string(),
                kind,
                producer,
                chunk: found.name.clone(),
                expected: specs[index].name.clone(),
            });
        }
    }
    Ok(())
}
