//! A whole package: its functions, with their inputs and outputs in the order of the bundle contract.

use super::ChunkGraph;
use super::cache::{self, KvCache};
use super::emitter::Emitter;
use super::error::{Error, Result};
use super::forms::{CacheForm, FunctionKind, GraphOptions, Layout};
use super::head::{head, head_of_all, pick_token};
use super::inputs::Inputs;
use super::layer::decoder_layer;
use super::split::ChunkSpec;
use super::weights::{WeightBinding, chunk_weights};
use crate::gemma::ModelPlan;
use crate::mil::{DType, Function, Program, Var};

/// Writes one package as a MIL program. A single decode or prefill function is `main`; several have the names of
/// [`FunctionKind::function_name`], the first the default.
///
/// # Errors
/// [`Error::Context`] for a context the model has no positions for, [`Error::NotForModel`] for a form it cannot have;
/// otherwise a plan whose parts contradict each other.
pub fn build_chunk(
    plan: &ModelPlan,
    spec: &ChunkSpec,
    options: &GraphOptions,
) -> Result<ChunkGraph> {
    check_context(plan, options)?;
    let weights = chunk_weights(plan, spec, options)?;
    let mut functions = Vec::with_capacity(spec.functions.len());
    for &kind in &spec.functions {
        functions.push((kind, build_function(plan, spec, options, kind, &weights)?));
    }
    let program = match functions.as_slice() {
        [(FunctionKind::Decode | FunctionKind::Prefill(_), main)] => Program::single(main.clone()),
        _ => Program {
            default_function: spec.functions[0].function_name(),
            functions: functions
                .into_iter()
                .map(|(kind, function)| (kind.function_name(), function))
                .collect(),
        },
    };
    Ok(ChunkGraph {
        name: spec.name.clone(),
        program,
        weights,
    })
}

fn check_context(plan: &ModelPlan, options: &GraphOptions) -> Result<()> {
    let fits = |n: usize| n > 0 && n <= plan.max_positions;
    if !fits(options.context) {
        return Err(Error::Context {
            context: options.context,
            max_positions: plan.max_positions,
        });
    }
    let too_long = |what: String| {
        Err(Error::NotForModel {
            form: what,
            why: format!("the context has {} positions", options.context),
        })
    };
    match options.cache {
        CacheForm::Window(n) if n > options.context => too_long(options.cache.to_string())?,
        _ => {}
    }
    match options
        .functions
        .iter()
        .find(|f| f.tokens() > options.context)
    {
        Some(function) => too_long(function.to_string()),
        None => Ok(()),
    }
}

fn build_function(
    plan: &ModelPlan,
    spec: &ChunkSpec,
    options: &GraphOptions,
    kind: FunctionKind,
    weights: &[WeightBinding],
) -> Result<Function> {
    let mut emitter = Emitter::new(plan, &spec.name, weights, kind.tokens())
        .with_activations(&options.activations);
    let e = &mut emitter;
    let inputs = Inputs::declare(e, spec, options, kind)?;
    let mut cache = cache::declare(e, spec, options, kind, &inputs)?;
    let last_position = match (kind, spec.last) {
        (FunctionKind::Prefill(n), true) => {
            Some(e.fb.input("last_position_mask", DType::Fp16, &[1, n, 1])?)
        }
        _ => None,
    };
    let mut hidden = inputs.hidden.clone();
    for layer in &plan.layers[spec.layers.clone()] {
        hidden = decoder_layer(e, options, layer, &inputs, cache.as_mut(), &hidden)?;
    }
    let combined = match (&inputs.per_layer, spec.first, spec.last) {
        (Some(combined), true, false) if !options.cache.keeps_context() => Some(combined.clone()),
        _ => None,
    };
    match (kind, spec.last, last_position) {
        (_, false, _) => hidden_out(e, &hidden)?,
        (FunctionKind::Decode, ..) => decode_head(e, options, &hidden)?,
        (FunctionKind::Verify(_), ..) => {
            let ids = head_of_all(e, &hidden)?;
            e.fb.output("token_ids", &ids)?;
            hidden_out(e, &hidden)?
        }
        (FunctionKind::Prefill(_), _, None) => {}
        (FunctionKind::Prefill(_), _, Some(mask)) => {
            let hidden = pick_token(e, &hidden, &mask)?;
            let head = head(e, &hidden)?;
            e.fb.output("token_id", &head.token_id)?;
            e.fb.output("token_logit", &head.token_logit)?;
        }
    }
    carried(e, options, kind, cache.as_mut(), combined.as_ref())?;
    Ok(emitter.fb.finish()?)
}

fn hidden_out(e: &mut Emitter<'_>, hidden: &Var) -> Result<()> {
    let hidden = e.as_feature(hidden, e.plan.hidden)?;
    Ok(e.fb.output("hidden_states_out", &hidden)?)
}

/// Token, its logit, and the stream after the final norm under the name that the runtime of this form knows.
fn decode_head(e: &mut Emitter<'_>, options: &GraphOptions, hidden: &Var) -> Result<()> {
    let head = head(e, hidden)?;
    e.fb.output("token_id", &head.token_id)?;
    e.fb.output("token_logit", &head.token_logit)?;
    let name = match options.cache {
        CacheForm::Full | CacheForm::StateFull => return Ok(()),
        CacheForm::State => "hidden_normed",
        CacheForm::Shift | CacheForm::Window(_) | CacheForm::StateMask => "hidden_states_out",
    };
    let hidden = e.as_feature(&head.hidden, e.plan.hidden)?;
    Ok(e.fb.output(name, &hidden)?)
}

/// Caches, K/V for later chunks and combined per-layer inputs, in the order of the form.
fn carried(
    e: &mut Emitter<'_>,
    options: &GraphOptions,
    kind: FunctionKind,
    cache: &mut dyn KvCache,
    combined: Option<&Var>,
) -> Result<()> {
    let combined_out = |e: &mut Emitter<'_>| -> Result<()> {
        let Some(combined) = combined else {
            return Ok(());
        };
        let width = e.plan.layers.len() * e.plan.ple_dim;
        let combined = e.as_feature(combined, width)?;
        Ok(e.fb.output("per_layer_combined_out", &combined)?)
    };
    if kind != FunctionKind::Decode {
        combined_out(e)?;
        cache.outputs(e)?;
        return cache.handed_over(e);
    }
    cache.outputs(e)?;
    if options.layout == Layout::Swa2 {
        cache.handed_over(e)?;
        return combined_out(e);
    }
    combined_out(e)?;
    cache.handed_over(e)
}
