//! File names of a bundle. The int8 and RoPE names are those of the published runtime (bundle contract, 4.1).

use crate::quantize::TableScheme;
use std::path::Path;

/// Model facts, read by the device runtime.
pub const MODEL_CONFIG: &str = "model_config.json";
/// How the bundle came to be.
pub const PROVENANCE: &str = "provenance.json";
/// Tokenizer files and the checkpoint's config.
pub const HF_DIR: &str = "hf_model";
/// Files of [`HF_DIR`] without which the tokenizer does not load.
pub const HF_REQUIRED: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];
/// Files of [`HF_DIR`] that are copied when the checkpoint has them.
pub const HF_OPTIONAL: [&str; 2] = ["generation_config.json", "chat_template.jinja"];
/// Stem of the token embedding table.
pub const EMBED_STEM: &str = "embed_tokens";
/// Stem of the per-layer embedding table.
pub const PER_LAYER_STEM: &str = "embed_tokens_per_layer";
/// fp16 `[L*D, H]`, the per-layer projection of the embedding.
pub const PER_LAYER_PROJECTION: &str = "per_layer_projection.bin";
/// fp32 `[D]`, the gain of the per-layer norm.
pub const PER_LAYER_NORM: &str = "per_layer_norm_weight.bin";
/// RoPE tables: cos and sin of sliding layers, cos and sin of full layers.
pub const ROPE: [&str; 4] = [
    "cos_sliding.npy",
    "sin_sliding.npy",
    "cos_full.npy",
    "sin_full.npy",
];
/// Packages of decode of each layout, as runtimes look for them: the first set that is there is taken.
const DECODE_SETS: [&[&str]; 9] = [
    &["chunk1", "chunk2_3way", "chunk3_3way"],
    &["chunk1", "chunk2", "chunk3", "chunk4"],
    &["chunk_1", "chunk_2", "chunk_3", "chunk_4"],
    &["chunk_1", "chunk_2", "chunk_3"],
    &["chunk1_topoI", "chunk2_topoI", "chunk3_topoI"],
    &["merged_chunk1", "merged_chunk2"],
    &["merged_full"],
    &["lite_chunk1", "lite_chunk2"],
    &["model"],
];
/// Packages that prefill has to itself.
const PREFILL_SET: [&str; 4] = [
    "prefill_chunk1",
    "prefill_chunk2",
    "prefill_chunk3",
    "prefill_chunk4",
];

/// The packages of decode and of prefill in a directory, by their names; empty where no set is whole.
pub fn find(dir: &Path) -> (Vec<String>, Vec<String>) {
    let whole = |set: &[&str]| set.iter().all(|name| dir.join(package_dir(name)).is_dir());
    let names = |set: &[&str]| set.iter().map(|name| (*name).to_owned()).collect();
    let decode = DECODE_SETS.iter().find(|set| whole(set));
    let prefill = whole(&PREFILL_SET).then_some(&PREFILL_SET[..]);
    (
        decode.map(|set| names(set)).unwrap_or_default(),
        prefill.map(names).unwrap_or_default(),
    )
}

/// Fewest rows of a RoPE table (bundle contract, section 7).
pub const MIN_ROPE_ROWS: usize = 4096;

/// Rows of the RoPE tables: twice the context, never fewer than [`MIN_ROPE_ROWS`].
pub fn rope_rows(context: usize) -> usize {
    context.saturating_mul(2).max(MIN_ROPE_ROWS)
}

/// Directory name of a package: `chunk1.mlpackage`.
pub fn package_dir(chunk: &str) -> String {
    format!("{chunk}.mlpackage")
}

/// File of a row table's values: `STEM_q8.bin`, `STEM_q4.bin`, `STEM_q2.bin` (integers of so many bits), `STEM_fp16.bin`.
pub fn table_data(stem: &str, format: TableScheme) -> String {
    match format {
        TableScheme::RowsInt8 => format!("{stem}_q8.bin"),
        TableScheme::RowsInt4 => format!("{stem}_q4.bin"),
        TableScheme::RowsFp16 => format!("{stem}_fp16.bin"),
        TableScheme::RowsSteps { bits, .. } => format!("{stem}_q{}.bin", bits.count()),
    }
}

/// File of a row table's fp16 scales, `STEM_scales.bin`, or steps, `STEM_steps.bin`: a runtime that knows scales alone does not
/// find them. `None` for fp16 rows, which have neither.
pub fn table_scales(stem: &str, format: TableScheme) -> Option<String> {
    match format {
        TableScheme::RowsInt8 | TableScheme::RowsInt4 => Some(format!("{stem}_scales.bin")),
        TableScheme::RowsFp16 => None,
        TableScheme::RowsSteps { .. } => Some(format!("{stem}_steps.bin")),
    }
}
