//! Palettizes one raw fp16 matrix on one thread and says how long it took.
//!
//! `palettize FILE ROWS COLS GROUP NBITS RUNS OUT`: `FILE` is row-major little-endian fp16; groups of
//! `GROUP` rows; the best of `RUNS`. Writes the tables, then the packed indices to `OUT` and prints
//! `{"cpu_s", "wall_s", "mse"}`. Timed: from the fp16 matrix in memory to tables and packed bytes in
//! memory, in CPU time of the process.

use std::error::Error;
use std::time::Instant;

use gemma_coreml::quantize::{BitPacker, ErrorStats, Scratch, packed_len, palettize_group};
use half::f16;

struct Packed {
    tables: Vec<f16>,
    indices: Vec<u8>,
    stats: ErrorStats,
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds `--bench`.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [file, rows, cols, group, nbits, runs, out] = args.as_slice() else {
        return Err("usage: palettize FILE ROWS COLS GROUP NBITS RUNS OUT".into());
    };
    let (rows, cols): (usize, usize) = (rows.parse()?, cols.parse()?);
    let group_len = group.parse::<usize>()? * cols;
    let nbits: u8 = nbits.parse()?;
    let bytes = std::fs::read(file)?;
    let (words, _) = bytes.as_chunks::<2>();
    let matrix: Vec<f16> = words.iter().map(|w| f16::from_le_bytes(*w)).collect();
    if matrix.len() != rows * cols || !matrix.len().is_multiple_of(group_len) {
        return Err("the matrix does not have that shape or those groups".into());
    }
    let mut best: Option<(f64, f64)> = None;
    let mut packed = None;
    for _ in 0..runs.parse()? {
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        packed = Some(palettize(&matrix, group_len, nbits)?);
        let took = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
        best = Some(best.map_or(took, |b| (b.0.min(took.0), b.1.min(took.1))));
    }
    let (Some(packed), Some((cpu, wall))) = (packed, best) else {
        return Err("no runs asked for".into());
    };
    let mut file: Vec<u8> = packed.tables.iter().flat_map(|v| v.to_le_bytes()).collect();
    file.extend_from_slice(&packed.indices);
    std::fs::write(out, file)?;
    let mse = packed.stats.mse();
    println!("{{\"cpu_s\": {cpu}, \"wall_s\": {wall}, \"mse\": {mse:e}}}");
    Ok(())
}

fn palettize(matrix: &[f16], group_len: usize, nbits: u8) -> Result<Packed, Box<dyn Error>> {
    let mut scratch = Scratch::new();
    let mut indices = vec![0u8; group_len];
    let mut packer = BitPacker::new(nbits)?;
    let mut packed = Packed {
        tables: Vec::new(),
        indices: Vec::with_capacity(packed_len(matrix.len(), nbits)),
        stats: ErrorStats::default(),
    };
    for group in matrix.chunks_exact(group_len) {
        let result = palettize_group(group, nbits, None, &mut scratch, &mut indices)?;
        packed.tables.extend_from_slice(result.lut.entries());
        packed.stats.merge(&result.stats);
        packer.push(&indices, &mut packed.indices)?;
    }
    packer.finish(&mut packed.indices);
    Ok(packed)
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours that lives through the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "no CPU clock");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
