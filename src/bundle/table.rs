//! Row tables: one row per token, read on demand from a memory map.
//!
//! | format | data | scales | value |
//! |---|---|---|---|
//! | int8 | i8 `[rows, dim]` | fp16 `[rows]` | `q * (scale / 127)` |
//! | int4 | two's complement nibbles, low one first, each row padded to a byte | fp16 `[rows]` | `q * (scale / 7)` |
//! | fp16 | fp16 `[rows, dim]` | none | the value |
//! | steps | two's complement of 2, 4 or 8 bits, lowest bits first, each row padded to a byte | fp16 `[rows, dim / block]`, rounded up | `q * step` |
//!
//! A reader multiplies by a constant (sqrt of the row width's model dimension) in f32 and rounds to fp16, as the device
//! runtime does (bundle contract, 4.2 and 5.2).

use super::error::{Error, Result, at};
use super::layout;
use crate::quantize::TableScheme;
use half::f16;
use memmap2::Mmap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A table on disk, `[rows, dim]`.
#[derive(Debug)]
pub struct RowTable {
    format: TableScheme,
    rows: usize,
    dim: usize,
    name: String,
    data: Mmap,
    scales: Option<Mmap>,
}

impl RowTable {
    /// Opens the table `stem` of bundle `dir` and checks the sizes of its files.
    pub fn open(
        dir: &Path,
        stem: &str,
        format: TableScheme,
        rows: usize,
        dim: usize,
    ) -> Result<Self> {
        let name = layout::table_data(stem, format);
        let why = format!("{rows} rows of {dim}");
        let bytes = rows as u64 * format.row_bytes(dim) as u64;
        let data = map_exact(&dir.join(&name), bytes, &why)?;
        // A token needs one row: a large page would keep hundreds of others in memory. A refusal of advice does not matter.
        #[cfg(target_os = "linux")]
        let _ = data.advise(memmap2::Advice::NoHugePage);
        let scales = match layout::table_scales(stem, format) {
            Some(file) => {
                let each = format.row_scales(dim);
                let why = match format {
                    TableScheme::RowsSteps { .. } => format!("{rows} rows of {each} fp16 steps"),
                    _ => format!("{rows} fp16 scales"),
                };
                let bytes = rows as u64 * each as u64 * 2;
                Some(map_exact(&dir.join(file), bytes, &why)?)
            }
            None => None,
        };
        Ok(Self {
            format,
            rows,
            dim,
            name,
            data,
            scales,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How rows are stored.
    pub fn format(&self) -> TableScheme {
        self.format
    }

    /// Row `row` times `multiplier`, each value rounded to fp16 at the end, into `out` (`dim` values).
    pub fn row(&self, row: usize, multiplier: f32, out: &mut [f32]) -> Result<()> {
        self.check(row, out.len())?;
        let width = self.format.row_bytes(self.dim);
        let bytes = &self.data[row * width..(row + 1) * width];
        let product = |q: i8, step: f32| stored(f32::from(q) * step * multiplier);
        match self.format {
            TableScheme::RowsInt8 => {
                let scale = self.scale(row) / 127.0;
                for (o, &b) in out.iter_mut().zip(bytes) {
                    *o = product(b as i8, scale);
                }
            }
            TableScheme::RowsInt4 => {
                let scale = self.scale(row) / 7.0;
                for (i, o) in out.iter_mut().enumerate() {
                    *o = product(integer(bytes, 4, i), scale);
                }
            }
            TableScheme::RowsFp16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = stored(f16::from_le_bytes([b[0], b[1]]).to_f32() * multiplier);
                }
            }
            TableScheme::RowsSteps { bits, .. } => {
                let block = self.format.block(self.dim);
                let first = row * self.format.row_scales(self.dim);
                for (i, out) in out.chunks_mut(block).enumerate() {
                    let step = self.scale(first + i);
                    for (j, o) in out.iter_mut().enumerate() {
                        *o = product(integer(bytes, bits.count(), i * block + j), step);
                    }
                }
            }
        }
        Ok(())
    }

    /// An fp16 scale or step; 1 for fp16 rows.
    fn scale(&self, at: usize) -> f32 {
        self.scales.as_ref().map_or(1.0, |s| {
            f16::from_le_bytes([s[at * 2], s[at * 2 + 1]]).to_f32()
        })
    }

    fn check(&self, row: usize, len: usize) -> Result<()> {
        if row >= self.rows {
            return Err(Error::Row {
                table: self.name.clone(),
                row,
                rows: self.rows,
            });
        }
        if len != self.dim {
            return Err(Error::RowLength {
                table: self.name.clone(),
                expected: self.dim,
                got: len,
            });
        }
        Ok(())
    }
}

/// Rounds to fp16, as the runtime stores the feature.
fn stored(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Integer `at` of a row of two's complement numbers of `nbits`, lowest bits first.
fn integer(bytes: &[u8], nbits: u8, at: usize) -> i8 {
    let bits = usize::from(nbits);
    let (byte, shift) = (at * bits / 8, at * bits % 8);
    ((bytes[byte] >> shift << (8 - bits)) as i8) >> (8 - bits)
}

/// Maps a file that must have exactly `expected` bytes.
pub(super) fn map_exact(path: &Path, expected: u64, why: &str) -> Result<Mmap> {
    let file = File::open(path).map_err(at(path))?;
    let got = file.metadata().map_err(at(path))?.len();
    if got != expected {
        return Err(size_error(path, expected, why, got));
    }
    // SAFETY: the map is read-only, and a bundle's files are never written in place once it is complete.
    unsafe { Mmap::map(&file) }.map_err(at(path))
}

fn size_error(path: &Path, expected: u64, why: &str, got: u64) -> Error {
    Error::Size {
        path: PathBuf::from(path),
        expected,
        why: why.to_string(),
        got,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, bytes: &[u8]) {
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    #[test]
    fn int8_rows_follow_the_published_formula() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "embed_tokens_q8.bin",
            &[127, 0x81, 1, 0, 64, 0xff],
        );
        let scales: Vec<u8> = [0.5f32, 3.0]
            .iter()
            .flat_map(|&s| f16::from_f32(s).to_le_bytes())
            .collect();
        write(dir.path(), "embed_tokens_scales.bin", &scales);
        let table =
            RowTable::open(dir.path(), "embed_tokens", TableScheme::RowsInt8, 2, 3).unwrap();
        let mut row = [0f32; 3];
        table.row(0, 8.0, &mut row).unwrap();
        // 127 * (0.5 / 127) * 8 = 4; 1 * (0.5 / 127) * 8 = 0.031496 -> nearest fp16
        assert_eq!(row, [4.0, -4.0, f16::from_f32(0.5 / 127.0 * 8.0).to_f32()]);
        table.row(1, 1.0, &mut row).unwrap();
        assert_eq!(row[0], 0.0);
        assert_eq!(row[1], f16::from_f32(64.0 * (3.0f32 / 127.0)).to_f32());
        assert!(matches!(
            table.row(2, 1.0, &mut row),
            Err(Error::Row {
                row: 2,
                rows: 2,
                ..
            })
        ));
    }

    #[test]
    fn int4_and_fp16_rows() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "t_q4.bin", &[0x97, 0x0f]);
        write(
            dir.path(),
            "t_scales.bin",
            &f16::from_f32(7.0).to_le_bytes(),
        );
        let table = RowTable::open(dir.path(), "t", TableScheme::RowsInt4, 1, 3).unwrap();
        let mut row = [0f32; 3];
        table.row(0, 2.0, &mut row).unwrap();
        assert_eq!(row, [14.0, -14.0, -2.0]);

        let values: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|&s| f16::from_f32(s).to_le_bytes())
            .collect();
        write(dir.path(), "t_fp16.bin", &values);
        let table = RowTable::open(dir.path(), "t", TableScheme::RowsFp16, 1, 2).unwrap();
        let mut row = [0f32; 2];
        table.row(0, 3.0, &mut row).unwrap();
        assert_eq!(row, [4.5, -6.0]);
    }

    /// Little-endian fp16.
    fn halves(values: &[f32]) -> Vec<u8> {
        let bytes = values.iter().map(|&v| f16::from_f32(v).to_le_bytes());
        bytes.flatten().collect()
    }

    #[test]
    fn rows_of_steps_are_the_integer_times_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let open = |format: &str, rows, dim| {
            let format = format.parse().unwrap();
            RowTable::open(dir.path(), "t", format, rows, dim)
        };
        // -2 -1 1 0, 1 -2 in two rows of three, each padded to a byte.
        write(dir.path(), "t_q2.bin", &[0b00_01_11_10, 0b00_10_01_00]);
        write(dir.path(), "t_steps.bin", &halves(&[0.5, 3.0]));
        let table = open("rows-int2-row", 2, 3).unwrap();
        let mut row = [0f32; 3];
        table.row(0, 8.0, &mut row).unwrap();
        assert_eq!(row, [-8.0, -4.0, 4.0]);
        table.row(1, 1.0, &mut row).unwrap();
        assert_eq!(row, [0.0, 3.0, -6.0]);

        write(dir.path(), "t_q4.bin", &[0x78, 0x0f]);
        write(dir.path(), "t_steps.bin", &halves(&[1.0, -2.0, 0.1]));
        let table = open("rows-int4-block1", 1, 3).unwrap();
        table.row(0, 1.5, &mut row).unwrap();
        let last = f16::from_f32(-f16::from_f32(0.1).to_f32() * 1.5).to_f32();
        assert_eq!(row, [-12.0, -21.0, last]);

        write(dir.path(), "t_q8.bin", &[0x80, 0x7f, 1, 0xff]);
        write(dir.path(), "t_steps.bin", &halves(&[2.0, 100.0]));
        let table = open("rows-int8-block2", 1, 4).unwrap();
        let mut row = [0f32; 4];
        table.row(0, 1.0, &mut row).unwrap();
        assert_eq!(row, [-256.0, 254.0, 100.0, -100.0]);
        let error = open("rows-int8-block2", 1, 6).unwrap_err().to_string();
        assert!(
            error.contains("t_q8.bin: expected 6 bytes (1 rows of 6), got 4"),
            "{error}"
        );
        write(dir.path(), "t_steps.bin", &[0; 5]);
        let error = open("rows-int8-block2", 1, 4).unwrap_err().to_string();
        assert!(
            error.contains("t_steps.bin: expected 4 bytes (1 rows of 2 fp16 steps), got 5"),
            "{error}"
        );
        std::fs::remove_file(dir.path().join("t_steps.bin")).unwrap();
        let error = open("rows-int8-block2", 1, 4).unwrap_err();
        assert!(matches!(&error, Error::Missing { path, .. } if path.ends_with("t_steps.bin")));
    }

    #[test]
    fn missing_and_short_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let open = || RowTable::open(dir.path(), "t", TableScheme::RowsInt8, 2, 3);
        assert!(matches!(open(), Err(Error::Missing { .. })));
        write(dir.path(), "t_q8.bin", &[0; 5]);
        assert!(matches!(
            open(),
            Err(Error::Size {
                expected: 6,
                got: 5,
                ..
            })
        ));
        write(dir.path(), "t_q8.bin", &[0; 6]);
        assert!(matches!(open(), Err(Error::Missing { .. })));
        write(dir.path(), "t_scales.bin", &[0; 3]);
        assert!(matches!(
            open(),
            Err(Error::Size {
                expected: 4,
                got: 3,
                ..
            })
        ));
    }
}
