//! `base.safetensors`: what is kept of the f32 reference's logits over the text, so that they are computed once.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `log_sum`, `log_rest` | `[tokens]` | f64; `ln(sum(exp(logit)))` of all ids, and of those that are not in `ids` |
//! | `next` | `[tokens]` | f32; logit of the token that follows, NaN where none does |
//! | `ids`, `logits` | `[tokens, top]` | u32, f32; the largest logits, the largest first |
//!
//! The metadata has a `key`: a hash of checkpoint, ids, windows and tool version. A file with another key, or one that is
//! damaged, counts as absent. The file is written row by row beside its place and renamed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;
use serde_json::json;

use super::error::{Result, io};
use super::score::TopRow;
use crate::bundle::files;
use crate::checkpoint::{MapError, MappedSafetensors};

/// Rows written at a time.
const ROWS: usize = 256;

/// Names, element types and bytes per element, in file order; the last two have `top` elements for each token.
const PARTS: [(&str, Dtype, usize); 5] = [
    ("log_sum", Dtype::F64, 8),
    ("log_rest", Dtype::F64, 8),
    ("next", Dtype::F32, 4),
    ("ids", Dtype::U32, 4),
    ("logits", Dtype::F32, 4),
];

/// Where the parts lie behind the header.
struct Places {
    tokens: usize,
    top: usize,
    /// First byte of each part, and the end.
    starts: [usize; 6],
}

impl Places {
    fn new(tokens: usize, top: usize) -> Self {
        let mut starts = [0; 6];
        for (i, (_, _, size)) in PARTS.iter().enumerate() {
            starts[i + 1] = starts[i] + tokens * size * Self::width(i, top);
        }
        Self {
            tokens,
            top,
            starts,
        }
    }

    fn width(part: usize, top: usize) -> usize {
        if part < 3 { 1 } else { top }
    }

    fn header(&self, key: &str) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!({ "key": key }));
        for (i, (name, dtype, _)) in PARTS.iter().enumerate() {
            let shape = match i < 3 {
                true => vec![self.tokens],
                false => vec![self.tokens, self.top],
            };
            let info = json!({
                "dtype": format!("{dtype:?}"),
                "shape": shape,
                "data_offsets": [self.starts[i], self.starts[i + 1]],
            });
            header.insert((*name).into(), info);
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        bytes
    }
}

/// The stored logits.
pub struct Base {
    map: Mmap,
    data: usize,
    places: Places,
}

impl Base {
    /// Opens the file; `None` where there is none of this key and this many tokens.
    ///
    /// # Errors
    /// A file that is there but cannot be opened.
    pub fn open(path: &Path, key: &str, tokens: usize) -> Result<Option<Self>> {
        let MappedSafetensors {
            map,
            data,
            metadata,
        } = match MappedSafetensors::open(path) {
            Ok(file) => file,
            Err(MapError::Open(e)) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(MapError::Open(e) | MapError::Map(e)) => return Err(io(path)(e)),
            Err(MapError::Header(_)) => return Ok(None),
        };
        let written: Option<&HashMap<String, String>> = metadata.metadata().as_ref();
        if written.and_then(|m| m.get("key")).map(String::as_str) != Some(key) {
            return Ok(None);
        }
        let top = match metadata.info("ids").map(|i| i.shape.as_slice()) {
            Some(&[n, top]) if n == tokens => top,
            _ => return Ok(None),
        };
        let places = Places::new(tokens, top);
        let fits = PARTS.iter().enumerate().all(|(i, (name, dtype, _))| {
            metadata.info(name).is_some_and(|info| {
                info.dtype == *dtype
                    && info.data_offsets == (places.starts[i], places.starts[i + 1])
            })
        });
        let whole = map.len() == data + places.starts[5];
        Ok((fits && whole).then_some(Self { map, data, places }))
    }

    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.places.tokens
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.tokens == 0
    }

    /// Logits kept of each row.
    pub fn top(&self) -> usize {
        self.places.top
    }

    /// What is kept of the logits after token `index`.
    ///
    /// # Panics
    /// When `index` is past the end: a mistake of the caller, never of input.
    pub fn row(&self, index: usize) -> TopRow {
        let part = |i: usize| {
            let bytes = PARTS[i].2 * Places::width(i, self.places.top);
            let start = self.data + self.places.starts[i] + index * bytes;
            &self.map[start..start + bytes]
        };
        let words = |i: usize| part(i).as_chunks::<4>().0.iter();
        let double = |i: usize| {
            part(i)
                .first_chunk()
                .map_or(f64::NAN, |b| f64::from_le_bytes(*b))
        };
        TopRow {
            log_sum: double(0),
            log_rest: double(1),
            next: words(2).next().map_or(f32::NAN, |b| f32::from_le_bytes(*b)),
            ids: words(3).map(|b| u32::from_le_bytes(*b)).collect(),
            logits: words(4).map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }
}

/// Writes a [`Base`].
pub struct Writer {
    path: PathBuf,
    aside: PathBuf,
    file: File,
    data: usize,
    places: Places,
    written: usize,
    buffer: [Vec<u8>; 5],
}

impl Writer {
    /// Begins the file of so many tokens, with `top` logits for each.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, key: &str, tokens: usize, top: usize) -> Result<Self> {
        let aside = path.with_extension("partial");
        let places = Places::new(tokens, top);
        let header = places.header(key);
        let mut file = File::create(&aside).map_err(io(&aside))?;
        file.write_all(&header).map_err(io(&aside))?;
        Ok(Self {
            path: path.to_path_buf(),
            aside,
            file,
            data: header.len(),
            places,
            written: 0,
            buffer: Default::default(),
        })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, row: &TopRow) -> Result<()> {
        self.buffer[0].extend(row.log_sum.to_le_bytes());
        self.buffer[1].extend(row.log_rest.to_le_bytes());
        self.buffer[2].extend(row.next.to_le_bytes());
        self.buffer[3].extend(row.ids.iter().flat_map(|id| id.to_le_bytes()));
        self.buffer[4].extend(row.logits.iter().flat_map(|v| v.to_le_bytes()));
        match self.buffer[0].len() / 8 == ROWS {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = self.buffer[0].len() / 8;
        for (i, bytes) in self.buffer.iter_mut().enumerate() {
            let row = PARTS[i].2 * Places::width(i, self.places.top);
            let at = self.data + self.places.starts[i] + self.written * row;
            self.file
                .seek(SeekFrom::Start(at as u64))
                .and_then(|_| self.file.write_all(bytes))
                .map_err(io(&self.aside))?;
            bytes.clear();
        }
        self.written += rows;
        Ok(())
    }

    /// Brings the file to the disk and to its place.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.file.sync_all().map_err(io(&self.aside))?;
        std::fs::rename(&self.aside, &self.path).map_err(io(&self.path))?;
        if let Some(dir) = self.path.parent() {
            files::sync_dir(dir)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(i: u32) -> TopRow {
        TopRow {
            ids: vec![i, i + 1, 7],
            logits: vec![3.5, i as f32, -1.0],
            log_sum: f64::from(i) + 0.25,
            log_rest: f64::NEG_INFINITY,
            next: i as f32,
        }
    }

    #[test]
    fn what_is_written_is_read_and_another_key_or_a_cut_file_is_not() {
        const TOKENS: usize = ROWS * 2 + 3;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.safetensors");
        assert!(Base::open(&path, "k", TOKENS).unwrap().is_none());
        let mut writer = Writer::create(&path, "k", TOKENS, 3).unwrap();
        for i in 0..TOKENS as u32 {
            writer.push(&row(i)).unwrap();
        }
        assert!(!path.exists());
        writer.finish().unwrap();
        let base = Base::open(&path, "k", TOKENS).unwrap().unwrap();
        assert_eq!((base.len(), base.top()), (TOKENS, 3));
        for i in 0..TOKENS {
            assert_eq!(base.row(i), row(i as u32));
        }
        let bytes = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("logits").unwrap().shape(), [TOKENS, 3]);
        drop(base);
        assert!(Base::open(&path, "other", TOKENS).unwrap().is_none());
        assert!(Base::open(&path, "k", TOKENS + 1).unwrap().is_none());
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(Base::open(&path, "k", TOKENS).unwrap().is_none());
        std::fs::write(&path, b"{}").unwrap();
        assert!(Base::open(&path, "k", TOKENS).unwrap().is_none());
    }
}
