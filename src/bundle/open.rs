//! Opening a bundle.

use super::chunk::Chunk;
use super::config::BundleConfig;
use super::error::{Error, Result, at};
use super::npy::NpyTable;
use super::provenance::Provenance;
use super::table::{RowTable, map_exact};
use super::{check, layout};
use crate::package::Package;
use memmap2::Mmap;
use std::path::{Path, PathBuf};

/// A complete bundle, everything memory-mapped and checked against everything else.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    config: BundleConfig,
    chunks: Vec<Chunk>,
    prefill: Vec<Chunk>,
    embed: RowTable,
    per_layer: Option<PerLayer>,
    rope: RopeTables,
    provenance: Provenance,
}

/// cos and sin, one row per position, fp16.
#[derive(Debug)]
pub struct RopeTables {
    /// `[P, head_dim]`.
    pub cos_sliding: NpyTable,
    /// `[P, head_dim]`.
    pub sin_sliding: NpyTable,
    /// `[P, global_head_dim]`.
    pub cos_full: NpyTable,
    /// `[P, global_head_dim]`.
    pub sin_full: NpyTable,
}

#[derive(Debug)]
struct PerLayer {
    table: RowTable,
    projection: Mmap,
    norm: Mmap,
}

impl Bundle {
    /// Opens the bundle in `dir` and checks it: every file there and of the right size, every package readable, all chunks
    /// agreeing with the config and with each other on context, window, KV shapes and widths. Reads no weights.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = BundleConfig::read(dir)?;
        check_hf_dir(dir)?;
        let rope = open_rope(dir, &config)?;
        let format = config.table_format;
        let embed = RowTable::open(
            dir,
            layout::EMBED_STEM,
            format,
            config.vocab_size,
            config.hidden_size,
        )?;
        let per_layer = if config.per_layer_dim > 0 {
            Some(open_per_layer(dir, &config)?)
        } else {
            None
        };
        let provenance = Provenance::read(dir)?;
        check_recorded(dir, &provenance)?;
        let names = config.chunks.iter().chain(&config.prefill_chunks);
        let mut chunks = Vec::new();
        for name in names {
            let path = dir.join(layout::package_dir(name));
            if !path.is_dir() {
                return Err(Error::Missing {
                    path,
                    hint: "the bundle is not complete: convert again",
                });
            }
            let package = Package::open(&path).map_err(|source| Error::Package {
                chunk: name.clone(),
                source: Box::new(source),
            })?;
            chunks.push(Chunk {
                name: name.clone(),
                path,
                package,
            });
        }
        let prefill = chunks.split_off(config.chunks.len());
        check::packages(&config, &chunks, &prefill)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            config,
            chunks,
            prefill,
            embed,
            per_layer,
            rope,
            provenance,
        })
    }

    /// The bundle's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `model_config.json`.
    pub fn config(&self) -> &BundleConfig {
        &self.config
    }

    /// Packages of decode in the order they run.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Packages that prefill has to itself, in the order they run; empty where it has none.
    pub fn prefill(&self) -> &[Chunk] {
        &self.prefill
    }

    /// Every package: those of decode, then those of prefill.
    pub fn packages(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().chain(&self.prefill)
    }

    /// RoPE tables.
    pub fn rope(&self) -> &RopeTables {
        &self.rope
    }

    /// `provenance.json`.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The directory of tokenizer files.
    pub fn hf_dir(&self) -> PathBuf {
        self.dir.join(layout::HF_DIR)
    }

    /// The token embedding table, `[V, H]`.
    pub fn embed_table(&self) -> &RowTable {
        &self.embed
    }

    /// The per-layer embedding table, `[Vp, L*D]`; none when the model has none.
    pub fn per_layer_table(&self) -> Option<&RowTable> {
        self.per_layer.as_ref().map(|p| &p.table)
    }

    /// `per_layer_projection.bin`: fp16 `[L*D, H]`, little-endian bytes.
    pub fn per_layer_projection(&self) -> Option<&[u8]> {
        self.per_layer.as_ref().map(|p| &p.projection[..])
    }

    /// `per_layer_norm_weight.bin`: fp32 `[D]`, little-endian bytes.
    pub fn per_layer_norm(&self) -> Option<&[u8]> {
        self.per_layer.as_ref().map(|p| &p.norm[..])
    }

    /// The scaled embedding of `token`, rounded to fp16, into `out` (H values).
    pub fn embed_row(&self, token: u32, out: &mut [f32]) -> Result<()> {
        self.embed
            .row(token as usize, self.config.embed_scale as f32, out)
    }

    /// The scaled per-layer embeddings of `token`, rounded to fp16, into `out` (L*D values; none without per-layer
    /// embeddings).
    pub fn per_layer_row(&self, token: u32, out: &mut [f32]) -> Result<()> {
        match &self.per_layer {
            Some(p) => {
                let scale = self.config.per_layer_embed_scale.unwrap_or(1.0) as f32;
                p.table.row(token as usize, scale, out)
            }
            None if out.is_empty() => Ok(()),
            None => Err(Error::RowLength {
                table: layout::PER_LAYER_STEM.into(),
                expected: 0,
                got: out.len(),
            }),
        }
    }
}

/// Every file that provenance.json lists must be there: without generation_config.json, say, decoding would go on, but past
/// the stop tokens.
fn check_recorded(dir: &Path, provenance: &Provenance) -> Result<()> {
    for name in provenance.files.keys() {
        let path = dir.join(name);
        std::fs::metadata(&path).map_err(at(&path))?;
    }
    Ok(())
}

fn check_hf_dir(dir: &Path) -> Result<()> {
    for name in layout::HF_REQUIRED {
        let path = dir.join(layout::HF_DIR).join(name);
        let meta = std::fs::metadata(&path).map_err(at(&path))?;
        if !meta.is_file() || meta.len() == 0 {
            return Err(Error::Size {
                path,
                expected: 1,
                why: "at least one byte".into(),
                got: 0,
            });
        }
    }
    Ok(())
}

fn open_rope(dir: &Path, config: &BundleConfig) -> Result<RopeTables> {
    let open = |i: usize, dim: usize| -> Result<NpyTable> {
        let path = dir.join(layout::ROPE[i]);
        let table = NpyTable::open(&path)?;
        if table.cols() != dim {
            let reason = format!(
                "rows have {} values, the head dimension is {dim}",
                table.cols()
            );
            return Err(Error::Npy { path, reason });
        }
        if table.rows() < config.context_length {
            let reason = format!(
                "{} rows for a context of {}",
                table.rows(),
                config.context_length
            );
            return Err(Error::Npy { path, reason });
        }
        Ok(table)
    };
    Ok(RopeTables {
        cos_sliding: open(0, config.head_dim)?,
        sin_sliding: open(1, config.head_dim)?,
        cos_full: open(2, config.global_head_dim)?,
        sin_full: open(3, config.global_head_dim)?,
    })
}

fn open_per_layer(dir: &Path, config: &BundleConfig) -> Result<PerLayer> {
    let width = config.per_layer_width();
    let (hidden, dim) = (config.hidden_size, config.per_layer_dim);
    let table = RowTable::open(
        dir,
        layout::PER_LAYER_STEM,
        config.per_layer_table_format(),
        config.per_layer_rows(),
        width,
    )?;
    let bytes = width as u64 * hidden as u64 * 2;
    let projection = map_exact(
        &dir.join(layout::PER_LAYER_PROJECTION),
        bytes,
        &format!("fp16 [{width}, {hidden}]"),
    )?;
    let norm = map_exact(
        &dir.join(layout::PER_LAYER_NORM),
        dim as u64 * 4,
        &format!("fp32 [{dim}]"),
    )?;
    Ok(PerLayer {
        table,
        projection,
        norm,
    })
}
