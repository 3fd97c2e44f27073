//! Reads a file of statistics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::histogram::{self, BINS};
use super::{FORMAT, HISTOGRAM, MEAN_ABS, MOMENTS, RANGE, SECOND_MOMENT, hex};
use crate::checkpoint::{MapError, MappedSafetensors};

/// By how much a mean of squares may fall short of the square of a mean, or exceed the largest square: rounding to f32.
const ROUNDING: f64 = 1e-5;

/// A file of statistics, memory-mapped. Vectors, ranges and histograms are checked on opening; matrices by size only.
pub struct Stats {
    path: PathBuf,
    map: memmap2::Mmap,
    sha256: String,
    checkpoint: String,
    tokens: u64,
    sequences: u64,
    source: &'static str,
    full: bool,
    /// Site of every linear layer's tensor.
    of_tensor: BTreeMap<String, String>,
    sites: BTreeMap<String, Site>,
}

/// Where a site's tensors lie in the map.
#[derive(Debug, Clone, Copy)]
struct Site {
    width: usize,
    rows: u64,
    /// Begin of second moments, mean magnitudes, range, histogram, and of the matrix in a full file.
    at: [usize; 4],
    moments: Option<usize>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats")
            .field("path", &self.path)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Stats {
    /// Whether the files have the same content.
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for Stats {}

impl Stats {
    /// Opens a file and checks it: metadata, every tensor's name, shape and dtype, that vectors, ranges and histograms are
    /// finite and agree with each other. Reads the whole file once, for its hash.
    ///
    /// # Errors
    /// Not readable, not safetensors, truncated, not written by [`calibrate`](super::calibrate()), or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedSafetensors::open(path).map_err(|e| match e {
            MapError::Open(source) | MapError::Map(source) => Error::Io {
                path: path.into(),
                source,
            },
            MapError::Header(source) => Error::Safetensors {
                path: path.into(),
                source,
            },
        })?;
        let meta = Meta {
            path,
            entries: file.metadata.metadata().clone().unwrap_or_default(),
        };
        meta.expect("format", FORMAT)?;
        let number = |key| meta.parsed::<u64>(key, "a number above 0", |n| *n > 0);
        let (tokens, sequences) = (number("tokens")?, number("sequences")?);
        let source = meta.one_of("source", ["text", "noise"])?;
        let full = meta.one_of("full", ["false", "true"])? == "true";
        let of_tensor = meta.sites()?;
        let checkpoint = meta
            .get("checkpoint", "the fingerprint of a checkpoint")?
            .to_string();
        let start = file.data;
        if !start.is_multiple_of(size_of::<f32>()) {
            return Err(Error::Tensor {
                path: path.into(),
                tensor: "the first".into(),
                expected: "a begin at a multiple of 4 bytes".into(),
                got: start.to_string(),
            });
        }
        let mut stats = Self {
            path: path.into(),
            sha256: hex(&Sha256::digest(&file.map)),
            map: file.map,
            checkpoint,
            tokens,
            sequences,
            source,
            full,
            of_tensor,
            sites: BTreeMap::new(),
        };
        stats.read_sites(&file.metadata, start)?;
        Ok(stats)
    }

    fn read_sites(&mut self, index: &Metadata, start: usize) -> Result<()> {
        let names: std::collections::BTreeSet<String> = self.of_tensor.values().cloned().collect();
        let mut known = std::collections::BTreeSet::new();
        for name in names {
            let mut find = |what: &str, dtype: Dtype, shape: Option<&[usize]>| {
                let tensor = format!("{name}.{what}");
                let info = index
                    .info(&tensor)
                    .ok_or_else(|| self.bad(&tensor, "a tensor of the site", "none".to_string()))?;
                if info.dtype != dtype || shape.is_some_and(|s| s != info.shape) {
                    let shape = shape.map_or("[n]".to_string(), |s| format!("{s:?}"));
                    let got = format!("{:?} {:?}", info.dtype, info.shape);
                    return Err(self.bad(&tensor, &format!("{dtype:?} {shape}"), got));
                }
                known.insert(tensor);
                Ok((start + info.data_offsets.0, info.shape.clone()))
            };
            let (second, shape) = find(SECOND_MOMENT, Dtype::F32, None)?;
            let width = match shape[..] {
                [width] if width > 0 => width,
                _ => {
                    let tensor = format!("{name}.{SECOND_MOMENT}");
                    return Err(self.bad(&tensor, "shape [n], n > 0", format!("{shape:?}")));
                }
            };
            let at = [
                second,
                find(MEAN_ABS, Dtype::F32, Some(&[width]))?.0,
                find(RANGE, Dtype::F32, Some(&[2]))?.0,
                find(HISTOGRAM, Dtype::U64, Some(&[BINS]))?.0,
            ];
            let moments = match self.full {
                true => Some(find(MOMENTS, Dtype::F32, Some(&[width, width]))?.0),
                false => None,
            };
            let mut site = Site {
                width,
                rows: 0,
                at,
                moments,
            };
            site.rows = self.check_values(&name, &site)?;
            self.sites.insert(name, site);
        }
        match index.tensors().keys().find(|name| !known.contains(*name)) {
            Some(name) => Err(self.bad(name, "no such tensor", "one".into())),
            None => Ok(()),
        }
    }

    /// That a site's values can be statistics of the same rows. Gives the number of rows.
    fn check_values(&self, name: &str, site: &Site) -> Result<u64> {
        let input = InputStats { stats: self, site };
        let bad = |what: &str, expected: &str, got: String| {
            Err(self.bad(&format!("{name}.{what}"), expected, got))
        };
        let (low, high) = input.range();
        if !(low.is_finite() && high.is_finite() && low <= high) {
            return bad(
                RANGE,
                "two finite ascending numbers",
                format!("{low}, {high}"),
            );
        }
        let largest = f64::from(input.max_abs());
        let means = input.mean_abs();
        for (channel, (&square, &mean)) in input.second_moment().iter().zip(&means).enumerate() {
            let (square, mean) = (f64::from(square), f64::from(mean));
            if !(mean.is_finite() && mean >= 0.0) {
                return bad(
                    MEAN_ABS,
                    "finite means",
                    format!("{mean} in channel {channel}"),
                );
            }
            // Squares of small values are zero in f32.
            let slack = f64::from(f32::MIN_POSITIVE);
            let least = mean * mean * (1.0 - ROUNDING) - slack;
            let most = largest * largest * (1.0 + ROUNDING) + slack;
            if !(least..=most).contains(&square) {
                let expected =
                    format!("from {least:e} to {most:e}, as the channel's mean and range imply");
                return bad(
                    SECOND_MOMENT,
                    &expected,
                    format!("{square:e} in channel {channel}"),
                );
            }
        }
        let sum = input.counts().try_fold(0u64, u64::checked_add);
        let rows = sum
            .filter(|n| n % site.width as u64 == 0)
            .map(|n| n / site.width as u64);
        match rows.filter(|rows| *rows > 0 && rows % self.tokens == 0) {
            Some(rows) => Ok(rows),
            None => bad(
                HISTOGRAM,
                &format!(
                    "a multiple of {} tokens times {} values",
                    self.tokens, site.width
                ),
                sum.map_or("more than 64 bits".into(), |n| format!("{n} values")),
            ),
        }
    }

    fn bad(&self, tensor: &str, expected: &str, got: String) -> Error {
        Error::Tensor {
            path: self.path.clone(),
            tensor: tensor.into(),
            expected: expected.into(),
            got,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the file, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// [Fingerprint](crate::checkpoint::Checkpoint::fingerprint) of the checkpoint that was run.
    pub fn checkpoint(&self) -> &str {
        &self.checkpoint
    }

    /// Tokens that were run.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sequences that they made up.
    pub fn sequences(&self) -> u64 {
        self.sequences
    }

    /// What the model was run over: `text` or `noise`.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Whether there are matrices.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Every linear layer's tensor (without prefix) with the tensor that its site is named after, sorted.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.of_tensor.iter().map(|(t, s)| (t.as_str(), s.as_str()))
    }

    /// Statistics of the input of a linear layer, by its tensor's name without prefix. The head is `embed_tokens.weight`.
    ///
    /// # Errors
    /// The file has none of that tensor; the error says what it has.
    pub fn input(&self, tensor: &str) -> Result<InputStats<'_>> {
        let site = self
            .of_tensor
            .get(tensor)
            .and_then(|name| self.sites.get(name));
        match site {
            Some(site) => Ok(InputStats { stats: self, site }),
            None => Err(Error::NoSuchInput {
                path: self.path.clone(),
                tensor: tensor.into(),
                has: self.summary(),
            }),
        }
    }

    fn summary(&self) -> String {
        let mut names = self.of_tensor.keys().map(String::as_str);
        let shown: Vec<&str> = names.by_ref().take(3).collect();
        match names.count() {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }

    fn floats(&self, begin: usize, len: usize) -> &[f32] {
        bytemuck::cast_slice(&self.map[begin..begin + len * size_of::<f32>()])
    }
}

/// Statistics of one input.
#[derive(Clone, Copy)]
pub struct InputStats<'a> {
    stats: &'a Stats,
    site: &'a Site,
}

impl<'a> InputStats<'a> {
    /// Length of the input vectors.
    pub fn width(&self) -> usize {
        self.site.width
    }

    /// Input vectors measured.
    pub fn rows(&self) -> u64 {
        self.site.rows
    }

    /// Mean of `x_j^2` of every channel, `[in]`.
    pub fn second_moment(&self) -> Vec<f32> {
        self.stats.floats(self.site.at[0], self.site.width).to_vec()
    }

    /// Mean of `abs(x_j)` of every channel, `[in]`.
    pub fn mean_abs(&self) -> Vec<f32> {
        self.stats.floats(self.site.at[1], self.site.width).to_vec()
    }

    /// Least and largest value.
    pub fn range(&self) -> (f32, f32) {
        let range = self.stats.floats(self.site.at[2], 2);
        (range[0], range[1])
    }

    /// Largest magnitude.
    pub fn max_abs(&self) -> f32 {
        let (low, high) = self.range();
        low.abs().max(high.abs())
    }

    /// The magnitude that `p` percent of all values do not exceed, within 1 % (and at least 2^-24): the middle of the
    /// histogram's bin that holds the value of rank `ceil(p / 100 * n)`. 100 and above is the largest magnitude itself; 0 and
    /// below is the least.
    pub fn percentile(&self, p: f64) -> f32 {
        let n = self.site.rows.saturating_mul(self.site.width as u64);
        match histogram::percentile_bin(self.counts(), n, p) {
            Some(bin) if bin < BINS - 1 => histogram::middle(bin).min(self.max_abs()),
            _ => self.max_abs(),
        }
    }

    /// The matrix of second moments, in a full file.
    pub fn moments(&self) -> Option<Moments<'a>> {
        let width = self.site.width;
        self.site.moments.map(|begin| Moments {
            width,
            values: self.stats.floats(begin, width * width),
        })
    }

    fn counts(&self) -> impl Iterator<Item = u64> + use<'a> {
        let begin = self.site.at[3];
        let bytes = &self.stats.map[begin..begin + BINS * size_of::<u64>()];
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| u64::from_le_bytes(*b))
    }
}

/// `[in, in]` means of `x x^T`, in the memory map.
#[derive(Debug, Clone, Copy)]
pub struct Moments<'a> {
    width: usize,
    values: &'a [f32],
}

impl<'a> Moments<'a> {
    /// Rows and columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row `r`, `[in]`. The matrix is symmetric. Values were not looked at when the file was opened.
    ///
    /// # Panics
    /// `r` is not below [`width`](Self::width).
    pub fn row(&self, r: usize) -> &'a [f32] {
        &self.values[r * self.width..(r + 1) * self.width]
    }
}

/// The metadata of a file, with errors that name the entry.
struct Meta<'a> {
    path: &'a Path,
    entries: std::collections::HashMap<String, String>,
}

impl Meta<'_> {
    fn bad(&self, key: &'static str, expected: &str, got: &str) -> Error {
        Error::Metadata {
            path: self.path.into(),
            key,
            expected: expected.into(),
            got: got.chars().take(80).collect(),
        }
    }

    fn get(&self, key: &'static str, expected: &str) -> Result<&str> {
        let value = self.entries.get(key);
        value
            .map(String::as_str)
            .ok_or_else(|| self.bad(key, expected, "none"))
    }

    fn expect(&self, key: &'static str, value: &str) -> Result<()> {
        match self.get(key, value)? {
            got if got == value => Ok(()),
            got => Err(self.bad(key, value, got)),
        }
    }

    fn one_of(&self, key: &'static str, values: [&'static str; 2]) -> Result<&'static str> {
        let expected = values.join(" or ");
        let got = self.get(key, &expected)?;
        let found = values.into_iter().find(|v| *v == got);
        found.ok_or_else(|| self.bad(key, &expected, got))
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        key: &'static str,
        expected: &str,
        good: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let got = self.get(key, expected)?;
        let value = got.parse().ok().filter(good);
        value.ok_or_else(|| self.bad(key, expected, got))
    }

    fn sites(&self) -> Result<BTreeMap<String, String>> {
        let expected = "an object from tensors to sites";
        let got = self.get("sites", expected)?;
        match serde_json::from_str::<BTreeMap<String, String>>(got) {
            Ok(sites) if !sites.is_empty() => Ok(sites),
            _ => Err(self.bad("sites", expected, got)),
        }
    }
}
