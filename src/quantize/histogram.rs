//! How often each fp16 value occurs in a group.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::{Error, Result};
use super::fp16::first_not_finite;

/// fp16 bit patterns.
const PATTERNS: usize = 1 << 16;
/// Patterns that share one "something was counted here" mark.
const BLOCK: usize = 256;
/// Marks of the negative half follow those of the positive half.
const HALF: usize = PATTERNS / BLOCK / 2;
/// Blocks from here on (within a half) hold infinities and NaN.
const FINITE_BLOCKS: usize = 0x7c00 / BLOCK;

/// Counts of every fp16 bit pattern, with importance sums beside them where wanted. Adding is one
/// increment a weight; collecting and clearing touch only the blocks of patterns that occurred.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u32; PATTERNS]>,
    touched: [bool; PATTERNS / BLOCK],
    importance: Option<Box<[f64; PATTERNS]>>,
    weighted: bool,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// The most elements one histogram counts.
    pub const MAX_ELEMENTS: u64 = u32::MAX as u64;

    /// An empty histogram.
    pub fn new() -> Self {
        Histogram {
            counts: zeroed(0),
            touched: [false; PATTERNS / BLOCK],
            importance: None,
            weighted: false,
            total: 0,
        }
    }

    /// The histogram of `values`.
    pub fn from_f16(values: &[f16]) -> Result<Self> {
        let mut histogram = Histogram::new();
        histogram.add(values)?;
        Ok(histogram)
    }

    /// Elements counted since the last [`clear`](Self::clear).
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether elements were counted with an importance.
    pub fn is_weighted(&self) -> bool {
        self.weighted
    }

    /// Counts `values`. After an error the histogram is empty.
    pub fn add(&mut self, values: &[f16]) -> Result<()> {
        self.begin(values, false)?;
        let bits: &[u16] = values.reinterpret_cast();
        for &b in bits {
            self.counts[usize::from(b)] += 1;
            self.touched[usize::from(b >> 8)] = true;
        }
        self.check_finite(values)
    }

    /// Counts `values`, element `i` with importance `importance[i % importance.len()]`: one per
    /// element, or one per input channel of row-major rows. `importance.len()` divides
    /// `values.len()`. After an error the histogram is empty.
    pub fn add_weighted(&mut self, values: &[f16], importance: &[f32]) -> Result<()> {
        self.begin(values, true)?;
        if importance.is_empty() || !values.len().is_multiple_of(importance.len()) {
            self.clear();
            return Err(Error::Length {
                what: "importance",
                expected: values.len(),
                got: importance.len(),
            });
        }
        let wrong = importance.iter().position(|w| !w.is_finite() || *w < 0.0);
        if let Some(index) = wrong {
            self.clear();
            let value = importance[index];
            return Err(Error::Importance { index, value });
        }
        let sums = self.importance.get_or_insert_with(|| zeroed(0.0));
        let bits: &[u16] = values.reinterpret_cast();
        for row in bits.chunks(importance.len()) {
            for (&b, &w) in row.iter().zip(importance) {
                self.counts[usize::from(b)] += 1;
                sums[usize::from(b)] += f64::from(w);
                self.touched[usize::from(b >> 8)] = true;
            }
        }
        self.check_finite(values)
    }

    /// Forgets everything counted.
    pub fn clear(&mut self) {
        for (block, touched) in self.touched.iter_mut().enumerate() {
            if std::mem::take(touched) {
                let range = block * BLOCK..(block + 1) * BLOCK;
                self.counts[range.clone()].fill(0);
                if let Some(sums) = self.importance.as_mut().filter(|_| self.weighted) {
                    sums[range].fill(0.0);
                }
            }
        }
        self.weighted = false;
        self.total = 0;
    }

    fn begin(&mut self, values: &[f16], weighted: bool) -> Result<()> {
        if self.total > 0 && self.weighted != weighted {
            self.clear();
            return Err(Error::MixedImportance);
        }
        self.weighted = weighted;
        self.total += values.len() as u64;
        if self.total > Self::MAX_ELEMENTS {
            self.total = 0;
            self.clear();
            return Err(Error::TooLarge {
                max: Self::MAX_ELEMENTS,
            });
        }
        Ok(())
    }

    /// Infinities and NaN have blocks of their own, so one look at the marks finds them.
    fn check_finite(&mut self, values: &[f16]) -> Result<()> {
        let (positive, negative) = self.touched.split_at(HALF);
        let marks = positive[FINITE_BLOCKS..]
            .iter()
            .chain(&negative[FINITE_BLOCKS..]);
        if !marks.into_iter().any(|touched| *touched) {
            return Ok(());
        }
        self.clear();
        let index = first_not_finite(values).unwrap_or(0);
        Err(Error::NotFinite {
            index,
            value: values[index].to_f32(),
        })
    }

    /// The distinct values in ascending order, into `bins`. Both zeros are one value, +0.
    pub(super) fn collect(&self, bins: &mut Bins) {
        bins.clear();
        let touched = |block: &usize| self.touched[*block];
        for block in (HALF..HALF + FINITE_BLOCKS).rev().filter(touched) {
            for low in (0..BLOCK).rev() {
                let bits = block * BLOCK + low;
                if self.counts[bits] > 0 && bits != 0x8000 {
                    self.push(bins, bits as u16, &[bits]);
                }
            }
        }
        if self.counts[0] + self.counts[0x8000] > 0 {
            self.push(bins, 0, &[0, 0x8000]);
        }
        for block in (0..FINITE_BLOCKS).filter(touched) {
            for low in 0..BLOCK {
                let bits = block * BLOCK + low;
                if self.counts[bits] > 0 && bits != 0 {
                    self.push(bins, bits as u16, &[bits]);
                }
            }
        }
    }

    #[inline(always)]
    fn push(&self, bins: &mut Bins, bits: u16, patterns: &[usize]) {
        let count: u32 = patterns.iter().map(|&p| self.counts[p]).sum();
        bins.bits.push(bits);
        bins.counts.push(count);
        bins.values.push(f16::from_bits(bits).to_f64());
        bins.weights
            .push(match self.importance.as_ref().filter(|_| self.weighted) {
                Some(sums) => patterns.iter().map(|&p| sums[p]).sum(),
                None => f64::from(count),
            });
    }
}

fn zeroed<T: Copy>(zero: T) -> Box<[T; PATTERNS]> {
    match vec![zero; PATTERNS].into_boxed_slice().try_into() {
        Ok(bins) => bins,
        Err(_) => unreachable!("the vector was made with this length"),
    }
}

/// The distinct values of a group, ascending.
#[derive(Debug, Clone, Default)]
pub(super) struct Bins {
    /// fp16 bit patterns; zero as +0.
    pub bits: Vec<u16>,
    /// Elements with that value.
    pub counts: Vec<u32>,
    /// The value, exact.
    pub values: Vec<f64>,
    /// Sum of importances; the count where there are none.
    pub weights: Vec<f64>,
}

impl Bins {
    /// The bins with a weight above zero; where there is none, all of them with their counts.
    pub fn important(&self) -> Bins {
        let none = self.weights.iter().all(|w| *w == 0.0);
        let mut kept = Bins::default();
        for (i, &weight) in self.weights.iter().enumerate() {
            if none || weight > 0.0 {
                kept.bits.push(self.bits[i]);
                kept.counts.push(self.counts[i]);
                kept.values.push(self.values[i]);
                kept.weights.push(if none {
                    f64::from(self.counts[i])
                } else {
                    weight
                });
            }
        }
        kept
    }

    fn clear(&mut self) {
        self.bits.clear();
        self.counts.clear();
        self.values.clear();
        self.weights.clear();
    }
}
