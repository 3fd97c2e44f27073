//! How fast a machine could decode: the bytes and weights that a token needs, against the memory bandwidth and the speed of
//! the kernels in cache.

use super::error::{Error, Result};
use super::kernels::codec::RowCoding;
use super::kernels::kernel::Kernel;
use super::kernels::matvec::{CodedRows, Vectors};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A weight that every token is multiplied with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// How it is stored: `palette4`, `fp16`, `int8`; other forms, which are decoded first, as `blocks` or `sparse`.
    pub coding: String,
    /// Its elements.
    pub elements: u64,
    /// Its bytes: data, LUTs, scales and masks.
    pub bytes: u64,
    /// Whether a kernel multiplies it as it is stored, and how it is coded then.
    pub(crate) direct: Option<RowCoding>,
}

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
    /// Bytes that a token reads: weights and what else was given.
    pub bytes: u64,
    /// The weights by coding.
    pub codings: Vec<CodingRate>,
}

impl Roofline {
    /// Measures for a model of these weights that reads `other` more bytes per token, with so many threads. Takes a second or
    /// two, and [`BUFFER`] bytes of memory.
    ///
    /// # Errors
    /// No threads, or no memory for the buffer.
    pub fn measure(
        weights: &[WeightUse],
        other: u64,
        kernel: Kernel,
        threads: usize,
    ) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool
            .build()
            .map_err(|source| Error::Threads { threads, source })?;
        let mut classes: BTreeMap<&str, (CodingRate, Option<RowCoding>)> = BTreeMap::new();
        for weight in weights {
            let empty = || {
                let rate = CodingRate {
                    coding: weight.coding.clone(),
                    elements: 0,
                    bytes: 0,
                    one_thread: None,
                    all_threads: None,
                };
                (rate, weight.direct)
            };
            let (rate, _) = classes.entry(&weight.coding).or_insert_with(empty);
            rate.elements += weight.elements;
            rate.bytes += weight.bytes;
        }
        let codings = classes.into_values().map(|(mut rate, coding)| {
            if let Some(coding) = coding {
                rate.one_thread = Some(in_cache(coding, kernel));
                let all = pool.broadcast(|_| in_cache(coding, kernel));
                rate.all_threads = Some(all.into_iter().sum());
            }
            rate
        });
        let codings: Vec<CodingRate> = codings.collect();
        Ok(Self {
            bandwidth: bandwidth(&pool)?,
            bytes: other + codings.iter().map(|c| c.bytes).sum::<u64>(),
            codings,
        })
    }

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

/// How often the buffer is read; the fastest counts.
const READS: usize = 8;

/// Bytes per second that the threads of a pool read.
fn bandwidth(pool: &rayon::ThreadPool) -> Result<f64> {
    let mut buffer: Vec<u64> = Vec::new();
    let words = BUFFER / 8;
    let failed = buffer.try_reserve_exact(words);
    failed.map_err(|_| Error::TooLarge {
        ty: format!("a buffer of {BUFFER} bytes"),
    })?;
    buffer.resize(words, 1);
    let part = words.div_ceil(pool.current_num_threads());
    let read = |buffer: &[u64]| {
        let mut sums = [0u64; 32];
        for block in buffer.as_chunks::<32>().0 {
            for (sum, word) in sums.iter_mut().zip(block) {
                *sum |= word;
            }
        }
        std::hint::black_box(sums);
    };
    let times = (0..READS).map(|_| {
        let begun = Instant::now();
        pool.broadcast(|context| {
            let from = (context.index() * part).min(words);
            read(&buffer[from..(from + part).min(words)]);
        });
        begun.elapsed()
    });
    let best = times.min().unwrap_or_default();
    Ok(BUFFER as f64 / best.as_secs_f64())
}

/// Columns of the matrix that is multiplied in cache: the width of a small Gemma 4.
const COLS: usize = 1536;

/// Its bytes: a quarter of a small L2.
const MATRIX_BYTES: usize = 1 << 18;

/// Time of one of the runs of which the fastest counts.
const RUN: Duration = Duration::from_millis(20);

/// Elements per second that the calling thread multiplies with one vector, the matrix in its cache.
fn in_cache(coding: RowCoding, kernel: Kernel) -> f64 {
    let rows = MATRIX_BYTES * 8 / (COLS * coding.bits()) / 32 * 32;
    let bytes: Vec<u8> = (0..MATRIX_BYTES as u32)
        .map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8)
        .collect();
    let parameters = vec![0.5; rows / 32 * 256];
    let Some(matrix) = CodedRows::new(coding, &bytes, (rows, COLS), (&parameters, 32)) else {
        return 0.0;
    };
    let x = Vectors::new(Some(coding), &[1.0; COLS], COLS, 1);
    let mut out = vec![0.0; rows];
    let mut best = 0.0f64;
    for _ in 0..READS {
        let (begun, mut products) = (Instant::now(), 0);
        while begun.elapsed() < RUN {
            matrix.multiply(kernel, 0, &x, &mut out);
            products += 1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        best = best.max((products * rows * COLS) as f64 / seconds);
    }
    std::hint::black_box(out);
    best
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
        let roofline = Roofline::measure(&weights, 5, Kernel::current(), 2).unwrap();
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
}
