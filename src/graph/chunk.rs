//! A whole package: its inputs and outputs, in the order of the bundle contract.

use super::cache::{KvCache, ShiftCache};
use super::emitter::Emitter;
use super::error::{Error, Result};
use super::head::head;
use super::inputs::Inputs;
use super::layer::decoder_layer;
use super::split::ChunkSpec;
use super::weights::chunk_weights;
use super::{CacheForm, ChunkGraph, FunctionKind, GraphOptions};
use crate::gemma::ModelPlan;
use crate::mil::Program;

/// Writes one chunk as a MIL program.
///
/// # Errors
/// [`Error::Context`] for a context the model has no positions for; otherwise a plan whose parts contradict each other.
pub fn build_chunk(
    plan: &ModelPlan,
    spec: &ChunkSpec,
    options: &GraphOptions,
) -> Result<ChunkGraph> {
    if options.context == 0 || options.context > plan.max_positions {
        return Err(Error::Context {
            context: options.context,
            max_positions: plan.max_positions,
        });
    }
    let weights = chunk_weights(plan, spec)?;
    let mut e = Emitter::new(plan, &spec.name, &weights);
    match options.function {
        FunctionKind::Decode => decode(&mut e, spec, options)?,
    }
    let program = Program::single(e.fb.finish()?);
    Ok(ChunkGraph {
        name: spec.name.clone(),
        program,
        weights,
    })
}

/// One token through the layers of a chunk.
fn decode(e: &mut Emitter<'_>, spec: &ChunkSpec, options: &GraphOptions) -> Result<()> {
    let inputs = Inputs::from_features(e, spec, options.context)?;
    let mut cache: Box<dyn KvCache> = match options.cache {
        CacheForm::Shift => Box::new(ShiftCache::from_features(
            e,
            spec,
            &inputs,
            options.context,
        )?),
    };
    let plan = e.plan;
    let mut hidden = inputs.hidden.clone();
    for layer in &plan.layers[spec.layers.clone()] {
        hidden = decoder_layer(e, options, layer, &inputs, cache.as_mut(), &hidden)?;
    }
    if spec.last {
        let head = head(e, &hidden)?;
        e.fb.output("token_id", &head.token_id)?;
        e.fb.output("token_logit", &head.token_logit)?;
        hidden = head.hidden;
    }
    let hidden = e.as_feature(&hidden, plan.hidden)?;
    e.fb.output("hidden_states_out", &hidden)?;
    cache.outputs(e)?;
    if let (Some(combined), true, false) = (&inputs.per_layer, spec.first, spec.last) {
        let combined = e.as_feature(combined, plan.layers.len() * plan.ple_dim)?;
        e.fb.output("per_layer_combined_out", &combined)?;
    }
    Ok(())
}
