//! Steps of a conversion and of a decoding step, one by one, on one thread.
//!
//! `cargo bench --bench steps [-- FILTER]`. The matrix is `[ROWS, COLS]`, groups of [`GROUP`] rows, Gaussian, rounded to bf16
//! as a checkpoint's weights are. Every input is written below the target directory (`tmp/steps/`), so that
//! `steps_vs_coremltools.py` times coremltools on the same ones.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, Divan};
use gemma_coreml::mil::{DType, DeferredConst, FunctionBuilder, Program};
use gemma_coreml::package::{
    BoxError, ConstSource, ModelDescription, Package, PackageSpec, Part, PartSink, Storage,
    WEIGHT_FILE_LIMIT, write_package,
};
use gemma_coreml::quantize::table::quantize_row_int8;
use gemma_coreml::quantize::{
    BitPacker, Histogram, Scratch, narrow, pack, packed_len, palettize_group, unpack,
};
use gemma_coreml::runtime::{IntegerMatrix, Kernel, PalettizedMatrix, StoredWeights};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rows of the matrix.
const ROWS: usize = 1024;
/// Columns of the matrix: E2B's hidden size.
const COLS: usize = 1536;
/// Rows that share a palette.
const GROUP: usize = 32;
/// Weights of a group.
const GROUP_LEN: usize = GROUP * COLS;
/// Elements of the matrix.
const LEN: usize = ROWS * COLS;
/// Standard deviation of the weights.
const SIGMA: f32 = 0.02;
/// Palette widths that are measured.
const WIDTHS: [u8; 5] = [2, 3, 4, 6, 8];
/// fp16 elements of the blob that is written, 63 MB: the matrix 20 times.
const BLOB_LEN: usize = 20 * LEN;
/// Id of the weight of a package.
const WEIGHT: &str = "weight";
/// A file system in memory, to tell the work of writing from the disk.
const MEMORY_DISK: &str = "/dev/shm";

/// The matrix as f32, bf16-born.
static WEIGHTS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let mut gaussian = || {
        // Box and Muller.
        let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
    };
    (0..LEN)
        .map(|_| bf16::from_f32(gaussian() * SIGMA).to_f32())
        .collect()
});

/// The matrix as fp16.
static MATRIX: LazyLock<Vec<f16>> = LazyLock::new(|| {
    let mut matrix = vec![f16::ZERO; LEN];
    narrow(&WEIGHTS, &mut matrix).expect("the weights fit fp16");
    matrix
});

/// Indices and tables of the matrix for 4 bits.
static PALETTE4: LazyLock<(Vec<u8>, Vec<f16>)> = LazyLock::new(|| {
    let mut scratch = Scratch::new();
    let mut indices = vec![0; LEN];
    let mut tables = Vec::new();
    for (group, indices) in groups().zip(indices.chunks_exact_mut(GROUP_LEN)) {
        let result = palettize_group(group, 4, None, &mut scratch, indices).expect("finite");
        tables.extend_from_slice(result.lut.entries());
    }
    (indices, tables)
});

/// Where inputs and outputs are.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("steps")
}

fn main() {
    let dir = directory();
    fs::create_dir_all(&dir).expect("the target directory can be written");
    let write = |name: &str, bytes: Vec<u8>| {
        fs::write(dir.join(name), bytes).expect("the target directory can be written");
    };
    write("weights.f16", le_bytes(&MATRIX));
    write("indices4.u8", PALETTE4.0.clone());
    write("tables4.f16", le_bytes(&PALETTE4.1));
    Divan::default()
        .sample_count(40)
        .sample_size(1)
        .config_with_args()
        .main();
}

fn le_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn groups() -> std::slice::ChunksExact<'static, f16> {
    MATRIX.chunks_exact(GROUP_LEN)
}

/// Indices below `2^nbits`, as many as the matrix has elements.
fn indices(nbits: u8) -> Vec<u8> {
    let shift = 8 - u32::from(nbits);
    (0..LEN as u32)
        .map(|i| (i.wrapping_mul(0x9E37_79B1) >> 24) as u8 >> shift)
        .collect()
}

/// bf16 to fp16: the matrix from f32, which is how bf16 reaches the quantizer.
#[divan::bench]
fn fp16(bencher: Bencher) {
    let mut out = vec![f16::ZERO; LEN];
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| narrow(black_box(&WEIGHTS), &mut out));
}

/// Counting the values of every group.
#[divan::bench]
fn histogram(bencher: Bencher) {
    let mut histogram = Histogram::new();
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| {
        for group in groups() {
            histogram.add(black_box(group)).expect("finite");
            histogram.clear();
        }
    });
}

/// One group: its histogram to a table and the index of every value.
#[divan::bench(args = WIDTHS)]
fn kmeans(bencher: Bencher, nbits: u8) {
    let scratch = RefCell::new(Scratch::new());
    let mut groups = groups().cycle();
    bencher
        .counter(ItemsCount::new(GROUP_LEN))
        .with_inputs(|| {
            let group = groups.next().expect("a cycle has no end");
            scratch.borrow_mut().histogram.add(group).expect("finite");
        })
        .bench_local_values(|()| scratch.borrow_mut().fit(nbits));
}

/// Groups to tables and indices, one per byte.
#[divan::bench(args = WIDTHS)]
fn palettize(bencher: Bencher, nbits: u8) {
    let mut scratch = Scratch::new();
    let mut out = vec![0; GROUP_LEN];
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| {
        for group in groups() {
            let group = black_box(group);
            black_box(palettize_group(group, nbits, None, &mut scratch, &mut out)).expect("finite");
        }
    });
}

/// Groups to tables and packed indices.
#[divan::bench(args = WIDTHS)]
fn palettize_and_pack(bencher: Bencher, nbits: u8) {
    let mut scratch = Scratch::new();
    let mut indices = vec![0; GROUP_LEN];
    let mut packed = Vec::with_capacity(packed_len(LEN, nbits));
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| {
        packed.clear();
        let mut packer = BitPacker::new(nbits).expect("a width of Core ML");
        for group in groups() {
            let group = black_box(group);
            palettize_group(group, nbits, None, &mut scratch, &mut indices).expect("finite");
            packer.push(&indices, &mut packed).expect("in range");
        }
        packer.finish(&mut packed);
    });
}

/// One index per byte to the bit stream of a weight file.
#[divan::bench(name = "pack", args = WIDTHS)]
fn pack_indices(bencher: Bencher, nbits: u8) {
    let indices = indices(nbits);
    let mut out = Vec::with_capacity(packed_len(LEN, nbits));
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| {
        out.clear();
        pack(black_box(&indices), nbits, &mut out)
    });
}

/// The bit stream to one index per byte.
#[divan::bench(name = "unpack", args = WIDTHS)]
fn unpack_indices(bencher: Bencher, nbits: u8) {
    let mut packed = Vec::new();
    pack(&indices(nbits), nbits, &mut packed).expect("in range");
    let mut out = vec![0; LEN];
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| unpack(black_box(&packed), nbits, &mut out));
}

/// Rows of a table to int8 and a scale each.
#[divan::bench]
fn table_rows_int8(bencher: Bencher) {
    let mut out = vec![0; COLS];
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| {
        for row in WEIGHTS.chunks_exact(COLS) {
            black_box(quantize_row_int8(black_box(row), &mut out)).expect("finite");
        }
    });
}

/// A palettized matrix times one vector: as many multiplications as weights. At 4 bits the indices (786 kB) stay in
/// the second-level cache.
#[divan::bench(args = products())]
fn matrix_vector(bencher: Bencher, product: &Product) {
    let Product { kernel, nbits } = *product;
    let mut packed = Vec::new();
    pack(&indices(nbits), nbits, &mut packed).expect("in range");
    let tables = &WEIGHTS[..(ROWS / GROUP) << nbits];
    let matrix = PalettizedMatrix::new(nbits.into(), (ROWS, COLS), packed, tables, GROUP);
    let matrix = matrix.expect("sizes fit");
    let x = &WEIGHTS[LEN - COLS..];
    let mut out = vec![0.0; ROWS];
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| matrix.multiply(kernel, black_box(x), 1, &mut out));
}

/// A kernel and a palette width.
struct Product {
    kernel: Kernel,
    nbits: u8,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kernel.name(), self.nbits)
    }
}

/// Every kernel of this CPU with every width.
fn products() -> impl Iterator<Item = Product> {
    let kernels = Kernel::available().into_iter();
    kernels.flat_map(|kernel| WIDTHS.map(|nbits| Product { kernel, nbits }))
}

/// The same with integers and a scale for each block of a row.
#[divan::bench(args = integers())]
fn matrix_vector_integers(bencher: Bencher, integers: &Integers) {
    let Integers {
        kernel,
        nbits,
        block,
    } = *integers;
    let mut packed = Vec::new();
    pack(&indices(nbits), nbits, &mut packed).expect("in range");
    let scales = &WEIGHTS[..LEN / block];
    let matrix = IntegerMatrix::new(nbits.into(), (ROWS, COLS), packed, scales);
    let matrix = matrix.expect("sizes fit");
    let x = &WEIGHTS[LEN - COLS..];
    let mut out = vec![0.0; ROWS];
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| matrix.multiply(kernel, black_box(x), 1, &mut out));
}

/// A kernel, the bits of integers, and columns that share a scale.
struct Integers {
    kernel: Kernel,
    nbits: u8,
    block: usize,
}

impl fmt::Display for Integers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            nbits,
            block,
        } = self;
        write!(f, "{}-{nbits}-block{block}", kernel.name())
    }
}

/// Every kernel of this CPU with blocks of 32 and 128 columns and of a row.
fn integers() -> impl Iterator<Item = Integers> {
    let kernels = Kernel::available().into_iter();
    kernels.flat_map(|kernel| {
        let widths = [4, 8].into_iter();
        widths.flat_map(move |nbits| {
            [32, 128, COLS].map(|block| Integers {
                kernel,
                nbits,
                block,
            })
        })
    })
}

/// A palettized 4-bit matrix of a package to f32, as the runtime reads it.
#[divan::bench]
fn decompress_palette4(bencher: Bencher) {
    let (indices, tables) = &*PALETTE4;
    let mut packed = Vec::new();
    pack(indices, 4, &mut packed).expect("in range");
    let tables = le_bytes(tables);
    let dir = directory().join("palette.mlpackage");
    let storage = Storage::Palette {
        nbits: 4,
        lut_shape: vec![ROWS / GROUP, 1, 16, 1],
        vector_axis: None,
    };
    let parts = vec![(Part::Data, packed), (Part::Lut, tables)];
    write_weight(&dir, &[ROWS, COLS], &mut Weight { storage, parts });
    let package = Package::open(&dir).expect("just written");
    let weights = StoredWeights::of(&package.functions()["main"]).expect("just written");
    let is_matrix = |n: &&str| weights.shape(n) == Some(&[ROWS, COLS]);
    let name = weights.names().find(is_matrix);
    let name = name.expect("just written");
    let mut out = vec![0.0; LEN];
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| weights.read(black_box(name), 0, &mut out));
}

/// A package with one large blob, brought to the disk: layout, hash, `fsync`.
#[divan::bench]
fn write_blob_disk(bencher: Bencher) {
    write_blob(bencher, &directory());
}

/// The same into memory, where `fsync` costs nothing.
#[divan::bench]
fn write_blob_memory(bencher: Bencher) {
    if Path::new(MEMORY_DISK).is_dir() {
        write_blob(bencher, &Path::new(MEMORY_DISK).join("gemma-coreml-steps"));
    }
}

fn write_blob(bencher: Bencher, dir: &Path) {
    let dir = dir.join("blob.mlpackage");
    let (rows, cols) = (BLOB_LEN / COLS, COLS);
    let mut weight = Weight {
        storage: Storage::Dense,
        parts: vec![(Part::Data, le_bytes(&MATRIX).repeat(BLOB_LEN / LEN))],
    };
    bencher
        .counter(BytesCount::new(2 * rows * cols))
        .with_inputs(|| drop(fs::remove_dir_all(&dir)))
        .bench_local_values(|()| write_weight(&dir, &[rows, cols], &mut weight));
    drop(fs::remove_dir_all(&dir));
}

/// One weight and the bytes of its parts.
struct Weight {
    storage: Storage,
    parts: Vec<(Part, Vec<u8>)>,
}

impl ConstSource for Weight {
    fn storage(&self, _: &DeferredConst) -> Result<Storage, BoxError> {
        Ok(self.storage.clone())
    }

    fn stream(&mut self, _: &DeferredConst, sink: &mut dyn PartSink) -> Result<(), BoxError> {
        for (part, bytes) in &self.parts {
            sink.write(*part, bytes)?;
        }
        Ok(())
    }
}

/// A package whose only weight is a matrix of that shape.
fn write_weight(dir: &Path, shape: &[usize; 2], weight: &mut Weight) {
    let mut b = FunctionBuilder::new("main");
    let x = b.input("x", DType::Fp16, &[1, shape[1]]);
    let w = b.weight(DeferredConst::new(WEIGHT, DType::Fp16, shape));
    let y = b.linear(&x.expect("a new name"), &w.expect("a new name"), None);
    b.output("y", &y.expect("shapes fit")).expect("a new name");
    let spec = PackageSpec {
        program: &Program::single(b.finish().expect("complete")),
        description: ModelDescription::default(),
        blob_order: &[WEIGHT.to_owned()],
        file_limit: WEIGHT_FILE_LIMIT,
    };
    write_package(dir, &spec, weight).expect("the directory can be written");
}
