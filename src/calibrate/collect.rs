//! Adds up what an observer of the forward pass sees.

use candle_core::{Result as CandleResult, Tensor};

use super::error::Error;
use super::histogram::{self, BINS};
use super::sites::Site;
use crate::gemma::Observer;

/// Rows of the matrix of second moments that are computed at a time.
const BLOCK: usize = 512;

/// Sums over the rows of one site. Vectors are summed in f64, row after row.
pub(super) struct Sums {
    pub site: Site,
    /// Rows seen.
    pub rows: u64,
    pub squares: Vec<f64>,
    pub magnitudes: Vec<f64>,
    pub least: f32,
    pub largest: f32,
    pub histogram: Vec<u64>,
    pub products: Option<Products>,
}

impl Sums {
    fn new(site: Site, full: bool) -> Self {
        let width = site.width;
        Self {
            site,
            rows: 0,
            squares: vec![0.0; width],
            magnitudes: vec![0.0; width],
            least: f32::INFINITY,
            largest: f32::NEG_INFINITY,
            histogram: vec![0; BINS],
            products: full.then(|| Products::new(width)),
        }
    }

    /// Adds the rows of `x`, `[rows, width]`. The error is the first channel that is not finite, with its value.
    fn add(&mut self, x: &Tensor) -> CandleResult<Option<(usize, f32)>> {
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        for row in values.chunks_exact(self.site.width) {
            if let Some(channel) = row.iter().position(|v| !v.is_finite()) {
                return Ok(Some((channel, row[channel])));
            }
            let sums = self.squares.iter_mut().zip(&mut self.magnitudes);
            for (&value, (square, magnitude)) in row.iter().zip(sums) {
                let wide = f64::from(value);
                *square += wide * wide;
                *magnitude += wide.abs();
                self.least = self.least.min(value);
                self.largest = self.largest.max(value);
                self.histogram[histogram::bin(value)] += 1;
            }
            self.rows += 1;
        }
        if let Some(products) = &mut self.products {
            products.add(x)?;
        }
        Ok(None)
    }
}

/// Sum of `x x^T`: the upper triangle row by row. The rows of one call are multiplied in f32 (a sequence at most, so that a
/// sum has no more terms than that), and calls are summed in f64.
pub(super) struct Products {
    width: usize,
    upper: Vec<f64>,
}

impl Products {
    fn new(width: usize) -> Self {
        Self {
            width,
            upper: vec![0.0; width * (width + 1) / 2],
        }
    }

    /// Where row `r` begins, at its diagonal.
    fn start(&self, r: usize) -> usize {
        // Rows above have width, width - 1, ... values.
        r * (2 * self.width + 1 - r) / 2
    }

    fn add(&mut self, x: &Tensor) -> CandleResult<()> {
        for first in (0..self.width).step_by(BLOCK) {
            let rows = BLOCK.min(self.width - first);
            let columns = self.width - first;
            let left = x.narrow(1, first, rows)?.t()?.contiguous()?;
            let right = x.narrow(1, first, columns)?.contiguous()?;
            let block = left.matmul(&right)?.flatten_all()?.to_vec1::<f32>()?;
            for (i, values) in block.chunks_exact(columns).enumerate() {
                let start = self.start(first + i);
                let sums = &mut self.upper[start..start + columns - i];
                for (sum, value) in sums.iter_mut().zip(&values[i..]) {
                    *sum += f64::from(*value);
                }
            }
        }
        Ok(())
    }

    /// Row `r` of the whole symmetric matrix.
    pub fn row(&self, r: usize, out: &mut Vec<f64>) {
        out.clear();
        out.extend((0..r).map(|c| self.upper[self.start(c) + r - c]));
        let start = self.start(r);
        out.extend(&self.upper[start..start + self.width - r]);
    }
}

/// Collects the sites of one stage at a time.
pub(super) struct Collector {
    full: bool,
    sums: Vec<Sums>,
    /// Our own error, when that is what stopped the pass.
    pub failed: Option<Error>,
}

impl Collector {
    pub fn new(full: bool) -> Self {
        Self {
            full,
            sums: Vec::new(),
            failed: None,
        }
    }

    /// From here on these sites are seen.
    pub fn begin(&mut self, sites: Vec<Site>) {
        let full = self.full;
        self.sums = sites.into_iter().map(|s| Sums::new(s, full)).collect();
    }

    /// The sums of the stage. Every site must have seen its rows of `tokens` tokens.
    pub fn end(&mut self, tokens: u64) -> Result<Vec<Sums>, Error> {
        let sums = std::mem::take(&mut self.sums);
        for s in &sums {
            let expected = tokens * s.site.rows_per_token as u64;
            if s.rows != expected {
                return Err(Error::Rows {
                    tensor: s.site.name.clone(),
                    expected,
                    got: s.rows,
                });
            }
        }
        Ok(sums)
    }

    fn fail(&mut self, error: Error) -> CandleResult<()> {
        let text = error.to_string();
        self.failed = Some(error);
        candle_core::bail!("{text}")
    }
}

impl Observer for Collector {
    fn input(&mut self, tensor: &str, x: &Tensor) -> CandleResult<()> {
        let known = |s: &Sums| s.site.tensors.iter().any(|t| t == tensor);
        let Some(sums) = self.sums.iter_mut().find(|s| known(s)) else {
            let got = x.dim(0)? as u64;
            return self.fail(Error::Rows {
                tensor: tensor.into(),
                expected: 0,
                got,
            });
        };
        // The others of a site have the input of its first tensor.
        if sums.site.name != tensor {
            return Ok(());
        }
        match sums.add(x)? {
            None => Ok(()),
            Some((channel, value)) => self.fail(Error::NotFinite {
                tensor: tensor.into(),
                channel,
                value,
            }),
        }
    }
}
