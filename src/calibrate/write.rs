//! Writes a file of statistics from front to back: the header first, then site by site.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::collect::Sums;
use super::error::{Error, Result};
use super::histogram::BINS;
use super::sites::Site;
use super::{HISTOGRAM, MEAN_ABS, MOMENTS, RANGE, SECOND_MOMENT};

/// Safetensors headers are padded to this many bytes, so that values can be read where they lie.
const ALIGN: usize = 8;

/// A file that is being written beside its place, as `.NAME.partial`. It is put in place by [`finish`](Self::finish), and
/// removed when that is not reached; a process that is killed leaves a file that ends before its header says.
pub(super) struct Writer {
    partial: PathBuf,
    output: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Writer {
    /// Begins a file with this header. An existing `output` is an error unless `replace`.
    pub fn create(output: &Path, replace: bool, header: &[u8]) -> Result<Self> {
        check_free(output, replace)?;
        let Some(name) = output.file_name() else {
            return Err(Error::NotAFile {
                path: output.to_path_buf(),
            });
        };
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let partial = output.with_file_name(partial);
        if let Some(parent) = parent_of(output) {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&partial)
            .map_err(io(&partial))?;
        if file.try_lock().is_err() {
            return Err(Error::Locked { path: partial });
        }
        file.set_len(0).map_err(io(&partial))?;
        let mut writer = Self {
            partial,
            output: output.to_path_buf(),
            file: Some(BufWriter::new(file)),
        };
        writer.bytes(header)?;
        Ok(writer)
    }

    /// Writes what was summed over a site.
    pub fn site(&mut self, sums: &Sums) -> Result<()> {
        let rows = sums.rows as f64;
        let mean = |sum: &f64| (sum / rows) as f32;
        self.floats(sums.squares.iter().map(mean))?;
        self.floats(sums.magnitudes.iter().map(mean))?;
        self.floats([sums.least, sums.largest].into_iter())?;
        let counts = sums.histogram.iter();
        self.bytes(&counts.flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>())?;
        if let Some(products) = &sums.products {
            let mut row = Vec::with_capacity(sums.site.width);
            for r in 0..sums.site.width {
                products.row(r, &mut row);
                self.floats(row.iter().map(mean))?;
            }
        }
        Ok(())
    }

    /// Brings the file to the disk and to its place.
    pub fn finish(mut self) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let done = file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.partial, &self.output))
            .map_err(io(&self.output));
        if done.is_err() {
            // The error is what to report; what cannot be removed is not complete and says so when opened.
            let _ = fs::remove_file(&self.partial);
        }
        done
    }

    fn floats(&mut self, values: impl Iterator<Item = f32>) -> Result<()> {
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        self.bytes(&bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(io(&self.partial)),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // What is still buffered is not wanted any more.
            drop(file.into_parts());
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// An existing `output` is an error unless `replace`, and so is a directory.
pub(super) fn check_free(output: &Path, replace: bool) -> Result<()> {
    match fs::symlink_metadata(output) {
        Ok(meta) if meta.is_dir() => Err(Error::NotAFile {
            path: output.to_path_buf(),
        }),
        Ok(_) if !replace => Err(Error::Exists {
            path: output.to_path_buf(),
        }),
        _ => Ok(()),
    }
}

fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|p| !p.as_os_str().is_empty())
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}

/// The header of a file with these sites, its length before it.
pub(super) fn header(sites: &[&Site], full: bool, metadata: &BTreeMap<&str, String>) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!(metadata));
    let mut end = 0usize;
    for site in sites {
        let n = site.width;
        let mut add = |what: &str, dtype: &str, size: usize, shape: &[usize]| {
            let begin = end;
            end += size * shape.iter().product::<usize>();
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
            entries.insert(format!("{}.{what}", site.name), entry);
        };
        add(SECOND_MOMENT, "F32", 4, &[n]);
        add(MEAN_ABS, "F32", 4, &[n]);
        add(RANGE, "F32", 4, &[2]);
        add(HISTOGRAM, "U64", 8, &[BINS]);
        if full {
            add(MOMENTS, "F32", 4, &[n, n]);
        }
    }
    let mut text = Value::Object(entries).to_string();
    while !text.len().is_multiple_of(ALIGN) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.bytes());
    header
}
