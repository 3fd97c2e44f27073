//! Files beside the packages: row tables, per-layer projection and norm, RoPE tables.

use crate::bundle::error::{at, writing};
use crate::bundle::provenance::TensorRecord;
use crate::bundle::{layout, npy};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::convert::decide::{TableSpec, tensor_record};
use crate::convert::error::{Error, Result};
use crate::convert::limits::TILE;
use crate::convert::weights::little_endian;
use crate::failpoint;
use crate::gemma::rope::{RopeSpec, rows_of};
use crate::package::SteadyFile;
use crate::progress::Progress;
use crate::quantize::pack::pack_int4;
use crate::quantize::table::{add_row_errors, quantize_row_int4, quantize_row_int8};
use crate::quantize::{ErrorStats, TableScheme, narrow};
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
    let name = layout::table_data(spec.stem, spec.format());
    let path = dir.join(&name);
    let mut data = SteadyFile::new(File::create(&path).map_err(writing(&path))?);
    let width = spec.format().row_bytes(spec.dim);
    let rows_per_tile = (TILE / spec.dim.max(1)).max(1);
    let mut total = ErrorStats::default();
    let mut scales = Vec::with_capacity(spec.rows);
    let mut bytes = vec![0; rows_per_tile.min(spec.rows) * width];
    for first in (0..spec.rows).step_by(rows_per_tile) {
        let count = rows_per_tile.min(spec.rows - first);
        let next = (first + count) * spec.dim;
        view.prefetch(next..next + count * spec.dim);
        let tile = &mut bytes[..count * width];
        let rows: Vec<Result<(f16, ErrorStats)>> = tile
            .par_chunks_mut(width)
            .enumerate()
            .map_init(
                || vec![0f32; spec.dim],
                |exact, (i, out)| write_row(&view, spec, first + i, exact, out),
            )
            .collect();
        for row in rows {
            let (scale, stats) = row?;
            scales.push(scale);
            total.merge(&stats);
        }
        data.write_all(tile).map_err(writing(&path))?;
        failpoint::reach("table.tile");
        progress.advance((count * spec.dim) as u64);
    }
    data.finish().map_err(writing(&path))?;
    failpoint::reach("table.scales");
    if let Some(file) = layout::table_scales(spec.stem, spec.format()) {
        little_endian(&scales, &mut bytes);
        let path = dir.join(file);
        std::fs::write(&path, &bytes).map_err(writing(&path))?;
    }
    let chosen = (spec.scheme.to_string(), "table".to_string());
    let size = (spec.rows as u64 * spec.dim as u64, spec.bytes());
    Ok(tensor_record(spec.tensor, &name, chosen, size, &total))
}

/// One row into its bytes; returns its scale (1 for fp16 rows) and error. `exact` has room for the row.
fn write_row(
    view: &TensorView<'_>,
    spec: &TableSpec,
    row: usize,
    exact: &mut [f32],
    out: &mut [u8],
) -> Result<(f16, ErrorStats)> {
    let start = row * spec.dim;
    view.read_f32(start..start + spec.dim, exact)?;
    let failed = |source| Error::Quantize {
        tensor: spec.tensor.to_string(),
        start,
        source,
    };
    let mut stats = ErrorStats::default();
    let scale = match spec.scheme {
        TableScheme::RowsInt8 => {
            let integers: &mut [i8] = bytemuck::cast_slice_mut(out);
            let scale = quantize_row_int8(exact, integers).map_err(failed)?;
            add_row_errors(exact, integers, scale.to_f64() / 127.0, &mut stats);
            scale
        }
        TableScheme::RowsInt4 => {
            let mut integers = vec![0i8; spec.dim];
            let scale = quantize_row_int4(exact, &mut integers).map_err(failed)?;
            let mut packed = Vec::with_capacity(out.len());
            pack_int4(&integers, &mut packed).map_err(failed)?;
            out.copy_from_slice(&packed);
            add_row_errors(exact, &integers, scale.to_f64() / 7.0, &mut stats);
            scale
        }
        TableScheme::RowsFp16 => {
            let mut stored = vec![f16::ZERO; spec.dim];
            narrow(exact, &mut stored).map_err(failed)?;
            for ((o, w), s) in out.chunks_exact_mut(2).zip(&*exact).zip(&stored) {
                o.copy_from_slice(&s.to_le_bytes());
                stats.add(f64::from(*w), s.to_f64(), 1);
            }
            f16::ONE
        }
    };
    check_range(spec, row, exact, scale)?;
    Ok((scale, stats))
}

/// The row as readers scale it must stay within fp16.
fn check_range(spec: &TableSpec, row: usize, exact: &[f32], scale: f16) -> Result<()> {
    let max = exact.iter().fold(0f32, |m, w| m.max(w.abs()));
    let stored = if spec.scheme == TableScheme::RowsFp16 {
        f64::from(max)
    } else {
        scale.to_f64()
    };
    if f16::from_f64(stored * spec.factor).is_finite() {
        return Ok(());
    }
    Err(Error::RowRange {
        tensor: spec.tensor.to_string(),
        row,
        value: max,
        factor: spec.factor,
    })
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
