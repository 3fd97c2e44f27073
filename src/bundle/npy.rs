//! fp16 tables in NumPy's npy format, version 1.
//!
//! Layout: `\x93NUMPY`, bytes 1 and 0, u16 LE header length, the header (a Python dict literal padded with spaces and
//! ended by a newline so that the data starts at a multiple of 64), then the values, little-endian, row-major
//! (numpy `lib/format.py`). The device runtime reads the header length as u16 at byte 8 and data from 10 + length.

use super::error::{Error, Result, at};
use half::f16;
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";
const PREFIX: usize = 10;

/// Writes the npy header of an fp16 `[rows, cols]` table; the values follow, `rows * cols * 2` bytes.
pub fn write_header(out: &mut dyn Write, rows: usize, cols: usize) -> io::Result<()> {
    let dict = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let total = (PREFIX + dict.len() + 1).next_multiple_of(64);
    let header = total - PREFIX;
    let length = u16::try_from(header).map_err(|_| io::Error::other("npy header too long"))?;
    out.write_all(MAGIC)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(dict.as_bytes())?;
    out.write_all(&vec![b' '; header - dict.len() - 1])?;
    out.write_all(b"\n")
}

/// A memory-mapped fp16 table, `[rows, cols]`.
#[derive(Debug)]
pub struct NpyTable {
    path: PathBuf,
    map: Mmap,
    data: usize,
    rows: usize,
    cols: usize,
}

impl NpyTable {
    /// Opens `path`, checks its header and that the file ends with the last value.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(at(path))?;
        let bad = |reason: String| Error::Npy {
            path: path.to_path_buf(),
            reason,
        };
        let len = file.metadata().map_err(at(path))?.len();
        if len < PREFIX as u64 {
            return Err(bad(format!("{len} bytes")));
        }
        // SAFETY: the map is read-only, and a bundle's files are never written in place once it is complete.
        let map = unsafe { Mmap::map(&file) }.map_err(at(path))?;
        let (data, rows, cols) = parse_header(&map).map_err(bad)?;
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(2));
        let Some(expected) = bytes.and_then(|b| b.checked_add(data)) else {
            return Err(bad(format!("shape ({rows}, {cols}) overflows")));
        };
        if expected != map.len() {
            return Err(Error::Size {
                path: path.to_path_buf(),
                expected: expected as u64,
                why: format!("header and fp16 [{rows}, {cols}]"),
                got: map.len() as u64,
            });
        }
        Ok(Self {
            path: path.to_path_buf(),
            map,
            data,
            rows,
            cols,
        })
    }

    /// Rows, one per position.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Copies row `row` into `out` (`cols` values).
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let table = || {
            self.path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        if row >= self.rows {
            return Err(Error::Row {
                table: table(),
                row,
                rows: self.rows,
            });
        }
        if out.len() != self.cols {
            return Err(Error::RowLength {
                table: table(),
                expected: self.cols,
                got: out.len(),
            });
        }
        let start = self.data + row * self.cols * 2;
        let bytes = &self.map[start..start + self.cols * 2];
        for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *o = f16::from_le_bytes([b[0], b[1]]).to_f32();
        }
        Ok(())
    }
}

/// Where the data starts, rows, columns.
fn parse_header(bytes: &[u8]) -> std::result::Result<(usize, usize, usize), String> {
    if bytes.get(..8) != Some(MAGIC.as_slice()) {
        return Err("wrong magic or version".into());
    }
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let data = PREFIX + length;
    let header = bytes
        .get(PREFIX..data)
        .ok_or("header longer than the file")?;
    let header = std::str::from_utf8(header).map_err(|_| "header is not text")?;
    if value_of(header, "descr")? != "'<f2'" {
        return Err(format!(
            "descr {}, expected '<f2'",
            value_of(header, "descr")?
        ));
    }
    if value_of(header, "fortran_order")? != "False" {
        return Err("column-major".into());
    }
    let shape = header.split_once("'shape':").ok_or("no shape")?.1;
    let shape = shape
        .trim_start()
        .strip_prefix('(')
        .and_then(|s| s.split_once(')'));
    let shape = shape.ok_or("shape is not a tuple")?.0;
    let dims: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().map_err(|_| format!("shape ({shape})")))
        .collect::<std::result::Result<_, _>>()?;
    match dims[..] {
        [rows, cols] => Ok((data, rows, cols)),
        _ => Err(format!("shape ({shape}), expected two dimensions")),
    }
}

/// The text of a dict entry that has no comma in its value.
fn value_of<'a>(header: &'a str, key: &str) -> std::result::Result<&'a str, String> {
    let missing = || format!("no {key}");
    let rest = header
        .split_once(&format!("'{key}':"))
        .ok_or_else(missing)?
        .1;
    Ok(rest.split([',', '}']).next().ok_or_else(missing)?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(bytes).unwrap();
        f
    }

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 3, 2).unwrap();
        for i in 0..6 {
            bytes.extend(f16::from_f32(i as f32 * 0.5).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn header_is_what_numpy_writes() {
        let bytes = sample();
        assert_eq!(bytes.len() % 64, 12);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert!(
            bytes[10..]
                .starts_with(b"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 2), }  ")
        );
        assert_eq!(bytes[127], b'\n');
    }

    #[test]
    fn rows_come_back() {
        let f = file(&sample());
        let table = NpyTable::open(f.path()).unwrap();
        let mut row = [0f32; 2];
        table.row(2, &mut row).unwrap();
        assert_eq!(row, [2.0, 2.5]);
        assert!(matches!(
            table.row(3, &mut row),
            Err(Error::Row {
                row: 3,
                rows: 3,
                ..
            })
        ));
        assert!(matches!(
            table.row(0, &mut [0.0; 3]),
            Err(Error::RowLength { .. })
        ));
    }

    #[test]
    fn damage_is_named() {
        let good = sample();
        let cut = file(&good[..good.len() - 1]);
        assert!(matches!(
            NpyTable::open(cut.path()),
            Err(Error::Size {
                expected: 140,
                got: 139,
                ..
            })
        ));
        let text = String::from_utf8_lossy(&good[10..128]).into_owned();
        for (from, to) in [
            ("<f2", "<f4"),
            ("False", "True "),
            ("(3, 2)", "(3, x)"),
            ("(3, 2)", "(6, ) "),
            ("shape", "shope"),
        ] {
            let mut bad = good.clone();
            bad[10..128].copy_from_slice(text.replace(from, to).as_bytes());
            assert!(
                matches!(NpyTable::open(file(&bad).path()), Err(Error::Npy { .. })),
                "{to}"
            );
        }
        for len in 0..good.len() {
            assert!(NpyTable::open(file(&good[..len]).path()).is_err(), "{len}");
        }
        let mut huge = good.clone();
        huge[8] = 0xff;
        huge[9] = 0xff;
        assert!(NpyTable::open(file(&huge).path()).is_err());
    }
}
