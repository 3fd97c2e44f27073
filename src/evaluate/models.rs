//! The two kinds of [`Subject`]: a bundle on the CPU runtime, a checkpoint in the f32 reference.

use std::sync::Arc;

use crate::bundle::{Bundle, BundleConfig, Chunk, NpyTable};
use crate::checkpoint::Checkpoint;
use crate::gemma::reference::{Cache, Keep, Reference};
use crate::runtime::{
    BoxError, ChainSpec, DecodeOptions, Decoder, MixScales, Overflow, Owner, PerLayerMix,
    Precision, RopeTable, RopeTables, Tensor, TokenRows,
};

use super::error::{Error, Result};
use super::exact_rows::ExactRows;
use super::subject::{Step, Subject};
use super::trace::argmax;

/// Where a bundle's decoder takes embedding and per-layer rows from.
#[derive(Clone)]
pub enum RowSource {
    /// The bundle's own tables.
    Bundle,
    /// A checkpoint.
    Exact(ExactRows),
}

/// Rows that several users share.
#[derive(Clone)]
struct Shared(Arc<dyn TokenRows + Sync>);

impl TokenRows for Shared {
    fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        self.0.embed(token, out)
    }

    fn per_layer(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        self.0.per_layer(token, out)
    }
}

/// The tables of a bundle.
struct BundleRows(Arc<Bundle>);

impl TokenRows for BundleRows {
    fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        Ok(self.0.embed_row(token, out)?)
    }

    fn per_layer(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        Ok(self.0.per_layer_row(token, out)?)
    }
}

/// Whether every weight of the packages is stored as fp16 (the tables are looked at apart).
pub fn is_unquantized(bundle: &Bundle) -> bool {
    let mut weights = bundle.provenance().tensors.iter();
    weights.all(|t| t.reason == "table" || t.scheme == "fp16")
}

/// What the decode loop needs of a bundle.
fn chain(bundle: &Arc<Bundle>) -> Result<ChainSpec> {
    let config = bundle.config();
    let rope = bundle.rope();
    let paths = |chunks: &[Chunk]| {
        let chunks = chunks.iter();
        chunks.map(|c| (c.name.clone(), c.path.clone())).collect()
    };
    Ok(ChainSpec {
        chunks: paths(bundle.chunks()),
        prefill: paths(bundle.prefill()),
        context: config.context_length,
        window: config.sliding_window,
        full_window: config.full_attention_window,
        per_layer_mix: per_layer_mix(bundle),
        owners: owners(config),
        hidden: config.hidden_size,
        per_layer: config.per_layer_width(),
        rope: RopeTables {
            cos_sliding: rope_table(&rope.cos_sliding)?,
            sin_sliding: rope_table(&rope.sin_sliding)?,
            cos_full: rope_table(&rope.cos_full)?,
            sin_full: rope_table(&rope.sin_full)?,
        },
    })
}

/// The layers that own K/V, each with its chunk.
fn owners(config: &BundleConfig) -> Vec<Owner> {
    let ends = config.chunk_ends();
    let own = config.num_layers - config.num_kv_shared_layers;
    let kinds = config.layer_types.iter().enumerate().take(own);
    let owners = kinds.map(|(layer, kind)| {
        Some(Owner {
            chunk: ends.iter().position(|&end| layer < end)?,
            sliding: kind == "sliding_attention",
        })
    });
    owners.collect::<Option<_>>().unwrap_or_default()
}

/// What combines per-layer rows, where the first chunk takes them combined.
fn per_layer_mix(bundle: &Arc<Bundle>) -> Option<PerLayerMix> {
    let package = &bundle.chunks().first()?.package;
    let decode = package.functions().get(package.default_function())?;
    decode.type_of("per_layer_combined")?;
    let norm = bundle.per_layer_norm()?;
    bundle.per_layer_projection()?;
    let config = bundle.config();
    let words = norm.as_chunks::<4>().0.iter();
    PerLayerMix::new(
        Arc::new(Projection(bundle.clone())),
        config.hidden_size,
        words.map(|&b| f32::from_le_bytes(b)).collect(),
        MixScales {
            projection: config.per_layer_model_projection_scale? as f32,
            combine: config.per_layer_input_scale? as f32,
            eps: config.rms_norm_eps as f32,
        },
    )
}

/// A bundle's per-layer projection, in its file.
struct Projection(Arc<Bundle>);

impl AsRef<[u8]> for Projection {
    fn as_ref(&self) -> &[u8] {
        self.0.per_layer_projection().unwrap_or_default()
    }
}

fn rope_table(table: &NpyTable) -> Result<RopeTable> {
    let (rows, dim) = (table.rows(), table.cols());
    let mut values = Vec::with_capacity(rows * dim);
    let mut row = vec![0.0; dim];
    for index in 0..rows {
        table.row(index, &mut row)?;
        values.extend(row.iter().map(|v| half::f16::from_f32(*v)));
    }
    Ok(RopeTable { rows, dim, values })
}

fn shared_rows(bundle: &Arc<Bundle>, source: &RowSource) -> Result<Shared> {
    let rows = match source {
        RowSource::Bundle => return Ok(Shared(Arc::new(BundleRows(bundle.clone())))),
        RowSource::Exact(rows) => rows,
    };
    let plan = rows.plan();
    let config = bundle.config();
    for (what, of_bundle, of_model) in [
        ("hidden size", config.hidden_size, plan.hidden),
        ("vocabulary size", config.vocab_size, plan.vocab),
        ("layers", config.num_layers, plan.layers.len()),
        ("per-layer width", config.per_layer_dim, plan.ple_dim),
    ] {
        if of_bundle != of_model {
            return Err(Error::Mismatch {
                what: format!("{what} of the model for exact tables"),
                expected: format!("{of_bundle} as in the bundle"),
                got: of_model.to_string(),
            });
        }
    }
    Ok(Shared(Arc::new(rows.clone())))
}

/// Opens a bundle's decoder.
///
/// # Errors
/// The bundle's packages do not load or do not agree; the exact rows are of another model.
pub fn open_decoder(
    bundle: &Arc<Bundle>,
    precision: Precision,
    source: &RowSource,
    options: DecodeOptions,
) -> Result<Decoder> {
    let rows = shared_rows(bundle, source)?;
    Ok(Decoder::open(
        chain(bundle)?,
        precision,
        Box::new(rows),
        options,
    )?)
}

/// A bundle that keeps logits, and layer states where they are asked for.
pub struct BundleSubject {
    decoder: Decoder,
    rows: Shared,
    precision: Precision,
    hidden: usize,
    vocab: usize,
    /// Names of the states after the embedding; empty when they are not kept.
    states: Vec<String>,
    overflows: Vec<(String, Overflow)>,
}

impl BundleSubject {
    /// Opens `bundle`. `states` keeps every layer's output and the final norm's.
    ///
    /// # Errors
    /// As [`open_decoder`].
    pub fn open(
        bundle: &Arc<Bundle>,
        precision: Precision,
        source: &RowSource,
        states: bool,
        threads: usize,
    ) -> Result<Self> {
        let rows = shared_rows(bundle, source)?;
        let layers = bundle.config().num_layers;
        let states: Vec<String> = match states {
            true => (0..layers)
                .map(|i| format!("layer_{i}_out"))
                .chain(std::iter::once("final_norm_out".to_string()))
                .collect(),
            false => Vec::new(),
        };
        let mut keep = vec!["logits".to_string()];
        keep.extend(states.iter().cloned());
        let decoder = Decoder::open(
            chain(bundle)?,
            precision,
            Box::new(rows.clone()),
            DecodeOptions {
                threads,
                keep,
                ..DecodeOptions::default()
            },
        )?;
        Ok(BundleSubject {
            decoder,
            rows,
            precision,
            hidden: bundle.config().hidden_size,
            vocab: bundle.config().vocab_size,
            states,
            overflows: Vec::new(),
        })
    }

    /// Values that became infinite in fp16, over all runs since opening, with the chunk each belongs to;
    /// [`Overflow::first_run`] is the position in the run it was first seen in. Resets the model.
    pub fn overflows(&mut self) -> Vec<(String, Overflow)> {
        self.collect_overflows();
        self.overflows.clone()
    }

    /// Takes over what the decoder counted; it forgets that with the next reset.
    fn collect_overflows(&mut self) {
        for (chunk, new) in self.decoder.overflows() {
            let known = |(c, o): &&mut (String, Overflow)| c == chunk && o.value == new.value;
            match self.overflows.iter_mut().find(known) {
                Some((_, old)) => old.count += new.count,
                None => self.overflows.push((chunk.to_string(), new.clone())),
            }
        }
        self.decoder.reset();
    }

    fn embedding(&self, token: u32) -> Result<Vec<f32>> {
        let mut row = vec![0.0; self.hidden];
        self.rows
            .embed(token, &mut row)
            .map_err(|source| crate::runtime::Error::TokenRow { token, source })?;
        if self.precision == Precision::F16 {
            for v in &mut row {
                *v = half::f16::from_f32(*v).to_f32();
            }
        }
        Ok(row)
    }
}

fn kept(step: &crate::runtime::StepOutput, name: &str, len: usize) -> Result<Vec<f32>> {
    let missing = |got: String| Error::Mismatch {
        what: format!("kept value `{name}` of the bundle"),
        expected: format!("{len} values"),
        got,
    };
    let tensor: &Tensor = step
        .kept
        .get(name)
        .ok_or_else(|| missing("none".to_string()))?;
    if tensor.len() != len {
        return Err(missing(tensor.len().to_string()));
    }
    Ok(tensor.as_f32()?.to_vec())
}

impl Subject for BundleSubject {
    fn reset(&mut self) -> Result<()> {
        self.collect_overflows();
        Ok(())
    }

    fn step(&mut self, token: u32, want_states: bool) -> Result<Step> {
        let out = self.decoder.step(token)?;
        let mut states = Vec::new();
        if want_states && !self.states.is_empty() {
            states.push(self.embedding(token)?);
            for name in &self.states {
                states.push(kept(&out, name, self.hidden)?);
            }
        }
        Ok(Step {
            token_id: out.token_id,
            logits: kept(&out, "logits", self.vocab)?,
            states,
        })
    }

    fn context(&self) -> Option<usize> {
        Some(self.decoder.context())
    }
}

/// A checkpoint in f32.
pub struct ReferenceSubject<'a> {
    reference: Reference<'a>,
    cache: Cache,
}

impl<'a> ReferenceSubject<'a> {
    /// Loads the text decoder as f32.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or not finite.
    pub fn load(checkpoint: &'a Checkpoint) -> Result<Self> {
        let reference = Reference::load(checkpoint)?;
        let cache = reference.cache();
        Ok(ReferenceSubject { reference, cache })
    }
}

impl Subject for ReferenceSubject<'_> {
    fn reset(&mut self) -> Result<()> {
        self.cache = self.reference.cache();
        Ok(())
    }

    fn step(&mut self, token: u32, want_states: bool) -> Result<Step> {
        let keep = Keep {
            all_logits: false,
            hidden: want_states,
        };
        let mut out = self.reference.forward(&[token], &mut self.cache, keep)?;
        let logits = out.logits.pop().unwrap_or_default();
        Ok(Step {
            token_id: argmax(&logits) as u32,
            logits,
            states: out.hidden,
        })
    }

    fn context(&self) -> Option<usize> {
        Some(self.reference.plan().max_positions)
    }
}
