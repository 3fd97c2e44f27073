//! What the writer makes, byte by byte, and how it fails.

use super::*;
use crate::mil::OpType;
use crate::package::{
    Binding, Error, PackageForecast, Part, PartPlace, ReadValue, forecast_package,
};

#[test]
fn a_package_reads_back_as_it_was_written() {
    let sample = Sample::new();
    let package = sample.open().unwrap();
    let (read, program) = (&package.functions()["main"], self::sample());
    let main = &program.functions["main"];
    assert_eq!(read.inputs, main.inputs);
    assert_eq!(read.outputs, main.outputs);
    assert_eq!(read.ops.len(), main.ops.len());
    for (read, op) in read.ops.iter().zip(&main.ops) {
        assert_eq!((&read.name, &read.outputs), (&op.name, &op.outputs));
    }
    assert_eq!(package.default_function(), "main");
    assert_eq!(package.description().author, "someone");
    assert_eq!(package.description().user_defined["a"], "b");
    let text = package.mil_text();
    assert!(text.contains("state<tensor<fp16, [1, 6, 1, 4]>> cache"));
    assert!(text.contains(
        "indices = tensor<uint3, [6, 5, 1, 1]>(BLOBFILE(path = \
         string(\"@model_path/weights/weight.bin\"), offset = uint64(64)))"
    ));
    assert!(text.contains("axis = const_int32_"));
    assert!(text.ends_with("    } -> (piece, y);\n}\n"));
}

/// What is predicted of a package of `Counting`, whose data is all unknown.
fn forecast(program: &Program, order: &[String], file_limit: u64) -> Result<PackageForecast> {
    let spec = PackageSpec {
        program,
        description: Default::default(),
        blob_order: order,
        file_limit,
    };
    forecast_package(&spec, &|c| Counting.storage(c), &mut |_| Ok(None))
}

#[test]
fn weights_are_laid_out_in_order_and_aligned() {
    let sample = Sample::new();
    let bytes = fs::read(sample.weights()).unwrap();
    // Five blobs: indices (30 elements of 3 bits), lut (16 fp16), dense (24 fp16), int4 data (36).
    // Scales, offsets (6 each) and the small weight are immediates.
    assert_eq!(bytes[..8], [4, 0, 0, 0, 2, 0, 0, 0]);
    let header = |at: usize| {
        let word = |i: usize| u64::from_le_bytes(bytes[at + i..at + i + 8].try_into().unwrap());
        (bytes[at + 4], word(8), word(16), word(24))
    };
    assert_eq!(header(64), (12, 12, 128, 6));
    assert_eq!(header(192), (1, 32, 256, 0));
    assert_eq!(header(320), (1, 48, 384, 0));
    assert_eq!(header(448), (8, 18, 512, 0));
    assert_eq!(bytes.len(), 512 + 18);
    // The data of `palette` counts up from 7; the last of 90 bits leaves 6 unused.
    assert_eq!(
        bytes[128..140],
        [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18 & 3]
    );

    let mut source = Counting;
    let predicted = forecast(&self::sample(), &order(), WEIGHT_FILE_LIMIT).unwrap();
    assert_eq!(predicted.weights[0].bytes, bytes.len() as u64);
    let again = tempfile::tempdir().unwrap();
    let report = write(again.path(), &self::sample(), &mut source).unwrap();
    assert_eq!(report.weight_bytes, predicted.weights[0].bytes);
    assert_eq!(report.blobs, 4);
    assert_eq!(predicted.weights[0].blobs, 4);
    let small = &report.consts["small"].parts[0].1;
    assert!(matches!(small, PartPlace::Immediate(bytes) if bytes.len() == 12));
}

#[test]
fn small_parts_are_immediates() {
    let sample = Sample::new();
    let package = sample.open().unwrap();
    let ops = &package.functions()["main"].ops;
    let find = |op_type| ops.iter().find(|op| op.op_type == op_type).unwrap();
    let op = find(OpType::ConstexprBlockwiseShiftScale);
    let Some(Binding::Value(ReadValue::Immediate(offset))) = op.input("offset") else {
        panic!("{op:?}");
    };
    assert_eq!(offset.dtype(), DType::Int4);
    // 6 elements of 4 bits, counting up from the length of `blockwise`.
    assert_eq!(offset.to_bytes(), [9, 10, 11]);
    let Some(Binding::Value(data)) = op.input("data") else {
        panic!("{op:?}");
    };
    assert_eq!(data.bytes()[..3], [9, 10, 11]);
    let name = ops.iter().find(|op| op.name == "small").unwrap();
    assert!(matches!(&name.value, Some(ReadValue::Immediate(v)) if v.shape == [6]));
}

/// A source that does something wrong with the weight `dense`.
struct Wrong(fn(&mut dyn PartSink) -> std::io::Result<()>);

impl ConstSource for Wrong {
    fn storage(&self, c: &DeferredConst) -> std::result::Result<Storage, BoxError> {
        Counting.storage(c)
    }

    fn stream(
        &mut self,
        c: &DeferredConst,
        sink: &mut dyn PartSink,
    ) -> std::result::Result<(), BoxError> {
        match c.id.as_str() {
            "dense" => Ok((self.0)(sink)?),
            _ => Counting.stream(c, sink),
        }
    }
}

fn wrong(stream: fn(&mut dyn PartSink) -> std::io::Result<()>) -> Error {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), &mut Wrong(stream)).unwrap_err()
}

#[test]
fn a_source_that_streams_wrong_sizes_or_parts_is_refused() {
    assert!(matches!(
        wrong(|sink| sink.write(Part::Data, &[0; 47])),
        Error::PartLength {
            expected: 48,
            got: 47,
            ..
        }
    ));
    assert!(matches!(
        wrong(|sink| sink.write(Part::Data, &[0; 49])),
        Error::PartLength {
            expected: 48,
            got: 49,
            ..
        }
    ));
    assert!(matches!(
        wrong(|_| Ok(())),
        Error::PartLength {
            expected: 48,
            got: 0,
            ..
        }
    ));
    assert!(matches!(
        wrong(|sink| sink.write(Part::Lut, &[0; 48])),
        Error::PartOrder {
            expected: "data",
            got: "lut",
            ..
        }
    ));
    assert!(matches!(
        wrong(|sink| {
            sink.write(Part::Data, &[0; 48])?;
            sink.write(Part::Scale, &[0; 2])
        }),
        Error::PartOrder {
            expected: "nothing",
            got: "scale",
            ..
        }
    ));
    // A source that swallows the sink's error does not get away with it.
    assert!(matches!(
        wrong(|sink| {
            let _ = sink.write(Part::Data, &[0; 49]);
            Ok(())
        }),
        Error::PartLength { .. }
    ));
    let own = wrong(|_| Err(std::io::Error::other("the shard is gone")));
    assert!(matches!(&own, Error::Source { weight, .. } if weight == "dense"));
    assert!(own.to_string().contains("the shard is gone"));
}

#[test]
fn unused_bits_must_be_zero() {
    struct Dirty;
    impl ConstSource for Dirty {
        fn storage(&self, c: &DeferredConst) -> std::result::Result<Storage, BoxError> {
            Counting.storage(c)
        }
        fn stream(
            &mut self,
            c: &DeferredConst,
            sink: &mut dyn PartSink,
        ) -> std::result::Result<(), BoxError> {
            for spec in self.storage(c)?.parts(c)? {
                sink.write(spec.part, &vec![0xff; spec.bytes as usize])?;
            }
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let error = write(dir.path(), &sample(), &mut Dirty).unwrap_err();
    assert!(matches!(error, Error::PartPadding { weight, .. } if weight == "palette"));
}

#[test]
fn blob_order_must_name_every_weight_once() {
    let program = sample();
    let check = |order: &[&str]| {
        let order: Vec<String> = order.iter().map(|id| (*id).to_owned()).collect();
        forecast(&program, &order, WEIGHT_FILE_LIMIT)
    };
    assert!(check(&["palette", "dense", "blockwise", "small"]).is_ok());
    for bad in [
        vec!["palette", "dense", "blockwise"],
        vec!["palette", "dense", "blockwise", "small", "other"],
        vec!["palette", "dense", "dense", "blockwise", "small"],
    ] {
        assert!(
            matches!(check(&bad), Err(Error::BlobOrder { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn a_write_error_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "not a directory").unwrap();
    let error = write(&blocked, &sample(), &mut Counting).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("file/Data/com.apple.CoreML/weights"),
        "{error}"
    );
}

/// A full disk, stood in for by `/dev/full` in the place of weight.bin.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join(WEIGHTS_DIR);
    fs::create_dir_all(&weights).unwrap();
    std::os::unix::fs::symlink("/dev/full", weights.join(WEIGHT_FILE)).unwrap();
    let error = write(dir.path(), &sample(), &mut Counting).unwrap_err();
    let Error::Io { path, source, .. } = &error else {
        panic!("{error}");
    };
    assert!(path.ends_with(WEIGHT_FILE), "{error}");
    assert_eq!(source.raw_os_error(), Some(28), "ENOSPC, got {source}");
}

#[test]
fn equal_blobs_larger_than_the_buffer_are_shared() {
    let mut b = FunctionBuilder::new("main");
    let shape = [1 << 11, 1 << 9];
    let x = b.input("x", DType::Fp16, &shape).unwrap();
    let mut sum = x;
    for id in ["big_0", "big_1", "other"] {
        let w = b
            .weight(DeferredConst::new(id, DType::Fp16, &shape))
            .unwrap();
        sum = b.add(&sum, &w).unwrap();
    }
    b.output("sum", &sum).unwrap();
    let program = Program::single(b.finish().unwrap());
    let order = ["big_0", "big_1", "other"].map(str::to_owned);
    let spec = PackageSpec {
        program: &program,
        description: Default::default(),
        blob_order: &order,
        file_limit: WEIGHT_FILE_LIMIT,
    };
    // `Counting` begins at the length of the id, so `big_0` and `big_1` are equal, and so is
    // `other`; a different length makes it differ.
    let dir = tempfile::tempdir().unwrap();
    let report = write_package(dir.path(), &spec, &mut Counting).unwrap();
    assert_eq!(report.blobs, 1);
    assert_eq!(report.weight_bytes, 128 + (2 << 20));
    let PartPlace::Blob(place) = &report.consts["other"].parts[0].1 else {
        panic!("{report:?}");
    };
    assert_eq!(place.shared_with.as_deref(), Some("big_0"));
    Package::open(dir.path()).unwrap();
}
