//! How fast a machine could decode: the bytes and weights that a token needs, against the memory bandwidth and the speed of
//! the kernels in cache.

pub use super::usage::WeightUse;
use crate::runtime::kernels::codec::RowCoding;
use crate::runtime::kernels::kernel::Kernel;
use crate::runtime::kernels::matvec::{AHEAD, CodedRows};
use crate::runtime::kernels::vectors::Vectors;
use crate::runtime::kernels::wide::{prefetch, widest};
use crate::runtime::values::error::{Error, Result};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// All weights of one coding.
#[derive(Clone, Debug, PartialEq)]
pub struct CodingRate {
    /// As [`WeightUse::coding`].
    pub coding: String,
    /// Elements per token.
    pub elements: u64,
    /// Bytes per token.
    pub bytes: u64,
    /// Elements per second that one thread multiplies in cache; `None` where no kernel takes them as they are stored.
    pub one_thread: Option<f64>,
    /// The same for all threads together.
    pub all_threads: Option<f64>,
}

/// What a machine allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// Bytes read from memory per second by all threads together.
    pub bandwidth: f64,
    /// The same of the fastest sample.
    pub bandwidth_best: f64,
    /// Bytes that a token reads: weights and what else was given.
    pub bytes: u64,
    /// The weights by coding.
    pub codings: Vec<CodingRate>,
}

impl Roofline {
    /// Tokens per second that the memory allows.
    pub fn memory_bound(&self) -> f64 {
        self.bandwidth / self.bytes as f64
    }

    /// Tokens per second that the kernels allow; `None` if there are weights that no kernel takes as they are stored.
    pub fn kernel_bound(&self) -> Option<f64> {
        let times = self.codings.iter();
        let times = times.map(|c| Some(c.elements as f64 / c.all_threads?));
        let seconds: f64 = times.sum::<Option<f64>>()?;
        (seconds > 0.0).then(|| seconds.recip())
    }

    /// The lower of the two bounds.
    pub fn bound(&self) -> f64 {
        let memory = self.memory_bound();
        self.kernel_bound().map_or(memory, |k| k.min(memory))
    }
}

/// Bytes that are read for the bandwidth: many times what caches hold.
pub const BUFFER: usize = 1 << 29;

/// Measures what the machine does, a little at a time, so that it can be done between the tokens that it is compared with:
/// other guests of a host change both from one second to the next.
pub struct Meter {
    pool: rayon::ThreadPool,
    kernel: Kernel,
    buffer: Vec<u64>,
    /// Bytes per second, of each sample.
    bandwidths: Vec<f64>,
    codings: Vec<CodingMeter>,
}

/// Samples of a coding.
struct CodingMeter {
    rate: CodingRate,
    direct: Option<RowCoding>,
    one_thread: Vec<f64>,
    all_threads: Vec<f64>,
}

impl Meter {
    /// For a model of these weights, with so many threads. Holds [`BUFFER`] bytes of memory.
    ///
    /// # Errors
    /// No threads, or no memory for the buffer.
    pub fn new(weights: &[WeightUse], kernel: Kernel, threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool
            .build()
            .map_err(|source| Error::Threads { threads, source })?;
        let mut codings: BTreeMap<&str, CodingMeter> = BTreeMap::new();
        for weight in weights {
            let of = codings
                .entry(&weight.coding)
                .or_insert_with(|| CodingMeter {
                    rate: CodingRate {
                        coding: weight.coding.clone(),
                        elements: 0,
                        bytes: 0,
                        one_thread: None,
                        all_threads: None,
                    },
                    direct: weight.direct,
                    one_thread: Vec::new(),
                    all_threads: Vec::new(),
                });
            of.rate.elements += weight.elements;
            of.rate.bytes += weight.bytes;
        }
        let mut buffer: Vec<u64> = Vec::new();
        let failed = buffer.try_reserve_exact(BUFFER / 8);
        failed.map_err(|_| Error::TooLarge {
            ty: format!("a buffer of {BUFFER} bytes"),
        })?;
        buffer.resize(BUFFER / 8, 1);
        Ok(Self {
            pool,
            kernel,
            buffer,
            bandwidths: Vec::new(),
            codings: codings.into_values().collect(),
        })
    }

    /// Measures everything once: some 20 ms for the memory, and twice [`RUN`] for each coding.
    pub fn sample(&mut self) {
        let part = self.buffer.len().div_ceil(self.pool.current_num_threads());
        let begun = Instant::now();
        self.pool.broadcast(|context| {
            let part = self.buffer.chunks(part).nth(context.index());
            read(part.unwrap_or_default());
        });
        let seconds = begun.elapsed().as_secs_f64();
        self.bandwidths.push(BUFFER as f64 / seconds);
        for of in &mut self.codings {
            let Some(coding) = of.direct else {
                continue;
            };
            of.one_thread.push(in_cache(coding, self.kernel));
            let all = self.pool.broadcast(|_| in_cache(coding, self.kernel));
            of.all_threads.push(all.into_iter().sum());
        }
    }

    /// Medians of the samples, for tokens that read `other` bytes besides the weights.
    pub fn roofline(self, other: u64) -> Roofline {
        let codings = self.codings.into_iter().map(|of| CodingRate {
            one_thread: median(of.one_thread),
            all_threads: median(of.all_threads),
            ..of.rate
        });
        let codings: Vec<CodingRate> = codings.collect();
        Roofline {
            bandwidth_best: self.bandwidths.iter().copied().fold(0.0, f64::max),
            bandwidth: median(self.bandwidths).unwrap_or(0.0),
            bytes: other + codings.iter().map(|c| c.bytes).sum::<u64>(),
            codings,
        }
    }
}

/// The middle of some values, the larger of two; `None` of no values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

widest! {
    /// Reads memory from one end to the other, asking for it ahead as the kernels do.
    fn read(buffer: &[u64]) {
        const WORDS: usize = 32;
        let mut sums = [0u64; WORDS];
        let ahead = AHEAD / size_of::<u64>();
        for (i, block) in buffer.as_chunks::<WORDS>().0.iter().enumerate() {
            let later = i * WORDS + ahead;
            prefetch(buffer.get(later..later + WORDS).unwrap_or_default());
            for (sum, word) in sums.iter_mut().zip(block) {
                *sum |= word;
            }
        }
        std::hint::black_box(sums);
    }
}

/// Columns of the matrix that is multiplied in cache: the width of a small Gemma 4.
const COLS: usize = 1536;

/// Its bytes: a quarter of a small L2.
const MATRIX_BYTES: usize = 1 << 18;

/// Time that products in cache are measured for.
pub const RUN: Duration = Duration::from_millis(10);

/// Elements per second that the calling thread multiplies with one vector, the matrix in its cache.
fn in_cache(coding: RowCoding, kernel: Kernel) -> f64 {
    let rows = MATRIX_BYTES * 8 / (COLS * coding.bits()) / 32 * 32;
    let bytes: Vec<u8> = (0..MATRIX_BYTES as u32)
        .map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8)
        .collect();
    let group = match coding {
        RowCoding::Blocks(_) => 1,
        _ => 32,
    };
    let parameters = vec![0.5; rows / group * coding.parameters(COLS) + coding.behind()];
    let Some(matrix) = CodedRows::new(coding, &bytes, (rows, COLS), (&parameters, group)) else {
        return 0.0;
    };
    let x = Vectors::new(Some(coding), &[1.0; COLS], COLS, 1);
    let mut out = vec![0.0; rows];
    let (begun, mut products) = (Instant::now(), 0);
    while begun.elapsed() < RUN {
        matrix.multiply(kernel, 0, &x, &mut out);
        products += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::hint::black_box(out);
    (products * rows * COLS) as f64 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allowed relative difference of a bound from the same computed another way.
    const BOUND_TOLERANCE: f64 = 1e-12;

    #[test]
    fn the_lower_bound_counts() {
        let coding = |elements, bytes, all_threads| CodingRate {
            coding: String::new(),
            elements,
            bytes,
            one_thread: all_threads,
            all_threads,
        };
        let mut roofline = Roofline {
            bandwidth: 100.0,
            bandwidth_best: 120.0,
            bytes: 50,
            codings: vec![coding(40, 20, Some(80.0)), coding(20, 20, Some(40.0))],
        };
        // 50 bytes at 100 bytes/s; half a second for each coding.
        assert!((roofline.memory_bound() - 2.0).abs() < BOUND_TOLERANCE);
        assert!((roofline.kernel_bound().unwrap() - 1.0).abs() < BOUND_TOLERANCE);
        assert!((roofline.bound() - 1.0).abs() < BOUND_TOLERANCE);
        roofline.codings.push(coding(1, 1, None));
        assert_eq!(roofline.kernel_bound(), None);
        assert!((roofline.bound() - 2.0).abs() < BOUND_TOLERANCE);
    }

    #[test]
    fn weights_of_one_coding_are_added_up() {
        let weight = |coding: &str, elements, bytes, direct| WeightUse {
            coding: coding.to_owned(),
            elements,
            bytes,
            direct,
        };
        let weights = [
            weight("palette4", 10, 6, Some(RowCoding::Palette(4))),
            weight("sparse", 8, 9, None),
            weight("palette4", 20, 11, Some(RowCoding::Palette(4))),
        ];
        let mut meter = Meter::new(&weights, Kernel::current(), 2).unwrap();
        meter.sample();
        let roofline = meter.roofline(5);
        assert_eq!(roofline.bytes, 31);
        assert!(roofline.bandwidth > 0.0);
        let [palette, sparse] = &roofline.codings[..] else {
            panic!("two codings");
        };
        assert_eq!((palette.elements, palette.bytes), (30, 17));
        assert!(palette.one_thread.unwrap() > 0.0 && palette.all_threads.unwrap() > 0.0);
        assert_eq!((sparse.elements, sparse.all_threads), (8, None));
        assert_eq!(roofline.kernel_bound(), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(vec![4.0, 9.0, 1.0, 2.0]), Some(4.0));
    }
}
