//! Files beside the packages: row tables, per-layer projection and norm, RoPE tables.

use super::rows::{Buffers, Encoded, Rows};
use crate::bundle::error::{at, writing};
use crate::bundle::provenance::TensorRecord;
use crate::bundle::{layout, npy};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::convert::decide::{TableSpec, table_grid_record, tensor_record};
use crate::convert::error::{Error, Result};
use crate::convert::limits::TILE;
use crate::convert::weights::little_endian;
use crate::failpoint;
use crate::gemma::rope::{RopeSpec, rows_of};
use crate::package::SteadyFile;
use crate::progress::Progress;
use crate::quantize::ErrorStats;
use half::f16;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Rows of a RoPE table in memory at a time.
const ROPE_ROWS: usize = 256;

/// Writes a row table into `dir`, a tile of rows at a time.
pub(super) fn write_table(
    dir: &Path,
    spec: &TableSpec,
    checkpoint: &Checkpoint,
    progress: &dyn Progress,
) -> Result<TensorRecord> {
    let view = checkpoint.tensor(spec.tensor, &[spec.rows, spec.dim])?;
    progress.item(spec.tensor);
    let name = layout::table_data(spec.stem, spec.scheme);
    let create = |name: &str| {
        let path = dir.join(name);
        let file = File::create(&path).map_err(writing(&path))?;
        Ok::<_, Error>((SteadyFile::new(file), path))
    };
    let (mut data, path) = create(&name)?;
    let mut scale_file = layout::table_scales(spec.stem, spec.scheme)
        .map(|file| create(&file))
        .transpose()?;
    let (width, each) = (
        spec.scheme.row_bytes(spec.dim),
        spec.scheme.row_scales(spec.dim),
    );
    let rows_per_tile = (TILE / spec.dim.max(1)).max(1);
    let rows = Rows::new(&view, spec);
    let mut total = Encoded::default();
    let most = rows_per_tile.min(spec.rows);
    let mut bytes = vec![0; most * width];
    // fp16 rows have no scale: one that is not written.
    let mut scales = vec![f16::ZERO; most * each.max(1)];
    let mut scale_bytes = Vec::new();
    for first in (0..spec.rows).step_by(rows_per_tile) {
        let count = rows_per_tile.min(spec.rows - first);
        let next = (first + count) * spec.dim;
        view.prefetch(next..next + count * spec.dim);
        let (tile, scales) = (
            &mut bytes[..count * width],
            &mut scales[..count * each.max(1)],
        );
        let encoded: Vec<Result<Encoded>> = tile
            .par_chunks_mut(width)
            .zip(scales.par_chunks_mut(each.max(1)))
            .enumerate()
            .map_init(Buffers::default, |buffers, (i, (out, scales))| {
                rows.encode(first + i, buffers, out, scales)
            })
            .collect();
        for row in encoded {
            total.merge(&row?);
        }
        data.write_all(tile).map_err(writing(&path))?;
        if let Some((file, path)) = &mut scale_file {
            little_endian(scales, &mut scale_bytes);
            file.write_all(&scale_bytes).map_err(writing(path))?;
        }
        failpoint::reach("table.tile");
        progress.advance((count * spec.dim) as u64);
    }
    data.finish().map_err(writing(&path))?;
    failpoint::reach("table.scales");
    if let Some((file, path)) = scale_file {
        file.finish().map_err(writing(&path))?;
    }
    let chosen = (spec.scheme.to_string(), "table".to_string());
    let size = (spec.rows as u64 * spec.dim as u64, spec.bytes());
    let mut record = tensor_record(spec.tensor, &name, chosen, size, &total.stats);
    record.grid = table_grid_record(spec.scheme, [spec.rows, spec.dim], view.grid())
        .map(|empty| total.blocks.into_record(empty));
    Ok(record)
}

/// Writes a tensor as fp16 values.
pub(super) fn write_fp16(
    path: &Path,
    view: &TensorView<'_>,
    progress: &dyn Progress,
) -> Result<ErrorStats> {
    progress.item(view.name);
    let mut file = File::create(path).map_err(writing(path))?;
    let mut total = ErrorStats::default();
    let (mut exact, mut stored, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..view.len()).step_by(TILE) {
        let range = start..view.len().min(start + TILE);
        exact.resize(range.len(), 0.0);
        stored.resize(range.len(), f16::ZERO);
        view.read_f32(range.clone(), &mut exact)?;
        view.read_f16(range.clone(), &mut stored)?;
        for (w, s) in exact.iter().zip(&stored) {
            total.add(f64::from(*w), s.to_f64(), 1);
        }
        little_endian(&stored, &mut bytes);
        file.write_all(&bytes).map_err(writing(path))?;
        progress.advance(range.len() as u64);
    }
    Ok(total)
}

/// Writes a small tensor as fp32 values.
pub(super) fn write_fp32(
    path: &Path,
    view: &TensorView<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let mut values = vec![0f32; view.len()];
    view.read_f32(0..view.len(), &mut values)?;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(path, bytes).map_err(writing(path))?;
    progress.advance(values.len() as u64);
    Ok(())
}

/// Writes the four RoPE tables, `rows` positions each, [`ROPE_ROWS`] at a time.
pub(super) fn write_rope(
    dir: &Path,
    sliding: &RopeSpec,
    full: &RopeSpec,
    rows: usize,
) -> Result<()> {
    for (pair, spec) in [sliding, full].into_iter().enumerate() {
        for (which, name) in layout::ROPE[pair * 2..pair * 2 + 2].iter().enumerate() {
            let path = dir.join(name);
            let file = File::create(&path).map_err(writing(&path))?;
            let mut out = BufWriter::new(file);
            let written = rope_table(&mut out, spec, rows, which == 1).and_then(|()| out.flush());
            written.map_err(writing(&path))?;
            failpoint::reach("rope.table");
        }
    }
    Ok(())
}

fn rope_table(
    out: &mut dyn Write,
    spec: &RopeSpec,
    rows: usize,
    sine: bool,
) -> std::io::Result<()> {
    npy::write_header(out, rows, spec.head_dim)?;
    let mut bytes = Vec::new();
    for first in (0..rows).step_by(ROPE_ROWS) {
        let (cos, sin) = rows_of(spec, first..rows.min(first + ROPE_ROWS));
        bytes.clear();
        let values = if sine { sin } else { cos };
        bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Copies tokenizer files into `hf_model/` below `dir`.
pub(super) fn copy_token_files(dir: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let target = dir.join(layout::HF_DIR);
    std::fs::create_dir_all(&target).map_err(writing(&target))?;
    for path in checkpoint.token_files() {
        if let Some(name) = path.file_name() {
            let to = target.join(name);
            let mut from = File::open(&path).map_err(at(&path))?;
            let mut out = File::create(&to).map_err(writing(&to))?;
            std::io::copy(&mut from, &mut out).map_err(writing(&to))?;
        }
    }
    Ok(())
}
