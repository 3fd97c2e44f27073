//! Tests of writer and reader that need the protobuf messages.

mod fuzz;
mod mutations;
mod rewriting;
mod sharding;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use prost::Message;
use tempfile::TempDir;

use super::proto::spec as pb;
use super::{
    BoxError, ConstSource, MODEL_PATH, ModelDescription, Package, PackageReport, PackageSpec,
    PartSink, Result, Storage, WEIGHT_FILE, WEIGHT_FILE_LIMIT, WEIGHTS_DIR, write_package,
};
use crate::mil::{
    DType, DeferredConst, Function, FunctionBuilder, Immediate, ImmediateData, Program,
};

/// Gives every weight bytes that count up from its id's length; unused bits are zero.
#[derive(Clone)]
struct Counting;

impl ConstSource for Counting {
    fn storage(&self, c: &DeferredConst) -> std::result::Result<Storage, BoxError> {
        Ok(match c.id.as_str() {
            "palette" => Storage::Palette {
                nbits: 3,
                lut_shape: vec![2, 1, 1, 1, 8, 1],
                vector_axis: None,
            },
            "blockwise" => Storage::Blockwise {
                data: DType::Int4,
                scale_shape: vec![6, 1],
                offset: true,
            },
            _ => Storage::Dense,
        })
    }

    fn stream(
        &mut self,
        c: &DeferredConst,
        sink: &mut dyn PartSink,
    ) -> std::result::Result<(), BoxError> {
        for spec in self.storage(c)?.parts(c)? {
            let start = c.id.len();
            let mut bytes: Vec<u8> = (0..spec.bytes as usize)
                .map(|i| (start + i) as u8)
                .collect();
            let elements: usize = spec.shape.iter().product();
            let used = elements * spec.dtype.bits() as usize % 8;
            if let Some(last) = bytes.last_mut()
                && used > 0
            {
                *last &= (1 << used) - 1;
            }
            for piece in bytes.chunks(7) {
                sink.write(spec.part, piece)?;
            }
        }
        Ok(())
    }
}

/// conv with a palette, linear with a blockwise weight, a dense and a small weight, a state,
/// immediates of several types.
fn sample_function(tokens: usize) -> Function {
    let mut b = FunctionBuilder::new("main");
    let x = b.input("x", DType::Fp16, &[1, 5, 1, tokens]).unwrap();
    let at = b.input("position", DType::Int32, &[4]).unwrap();
    let cache = b.state("cache", &[1, 6, 1, 4]).unwrap();
    let w = DeferredConst::new("palette", DType::Fp16, &[6, 5, 1, 1]);
    let w = b.weight(w).unwrap();
    let y = b.conv(&x, &w, None, &Default::default()).unwrap();
    let old = b.read_state(&cache).unwrap();
    let y = b.add(&old, &y).unwrap();
    b.write_state(&cache, &y).unwrap();
    let gain = b
        .weight(DeferredConst::new("dense", DType::Fp16, &[6, 1, 4]))
        .unwrap();
    let y = b.mul(&y, &gain).unwrap();
    let rows = b.transpose(&y, &[0, 2, 3, 1]).unwrap();
    let w = b
        .weight(DeferredConst::new("blockwise", DType::Fp16, &[6, 6]))
        .unwrap();
    let bias = b
        .weight(DeferredConst::new("small", DType::Fp16, &[6]))
        .unwrap();
    let rows = b.linear(&rows, &w, Some(&bias)).unwrap();
    let rows = b.softmax(&rows, -1).unwrap();
    let table: Vec<f16> = (0..12).map(|i| f16::from_f32(i as f32)).collect();
    let table = b
        .immediate(Immediate::fp16s(&[2, 6], table).unwrap())
        .unwrap();
    let row = Immediate::new(&[], ImmediateData::UInt16(vec![1])).unwrap();
    let row = b.immediate(row).unwrap();
    let row = b.gather(&table, &row, 0, 0).unwrap();
    let rows = b.add(&rows, &row).unwrap();
    let piece = b.slice_by_size(&rows, &at, &[1, 1, 1, 3]).unwrap();
    b.output("piece", &piece).unwrap();
    b.output("y", &rows).unwrap();
    b.finish().unwrap()
}

fn sample() -> Program {
    Program::single(sample_function(4))
}

fn order() -> Vec<String> {
    ["palette", "dense", "blockwise", "small"]
        .map(str::to_owned)
        .to_vec()
}

fn write(dir: &Path, program: &Program, source: &mut dyn ConstSource) -> Result<PackageReport> {
    let blob_order = order();
    let spec = PackageSpec {
        program,
        description: ModelDescription {
            author: "someone".to_owned(),
            user_defined: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        },
        blob_order: &blob_order,
        file_limit: WEIGHT_FILE_LIMIT,
    };
    write_package(dir, &spec, source)
}

/// The sample on disk.
struct Sample {
    dir: TempDir,
}

impl Sample {
    fn new() -> Self {
        let sample = Sample {
            dir: tempfile::tempdir().unwrap(),
        };
        write(&sample.path(), &self::sample(), &mut Counting).unwrap();
        sample
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("sample.mlpackage")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn weights(&self) -> PathBuf {
        self.path().join(WEIGHTS_DIR).join(WEIGHT_FILE)
    }

    fn open(&self) -> Result<Package> {
        Package::open(&self.path())
    }

    fn model(&self) -> pb::Model {
        pb::Model::decode(fs::read(self.file(MODEL_PATH)).unwrap().as_slice()).unwrap()
    }

    fn set_model(&self, model: &pb::Model) {
        fs::write(self.file(MODEL_PATH), model.encode_to_vec()).unwrap();
    }
}
