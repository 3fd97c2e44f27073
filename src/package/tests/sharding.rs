//! Packages with several weight files.

use std::collections::BTreeMap;

use super::*;
use crate::package::{
    Binding, Error, PackageForecast, PartPlace, ReadValue, forecast_package, rewrite_package,
    weight_file_name,
};

/// Elements of one weight of 512 bytes.
const LENGTH: usize = 256;
/// Bytes that a weight of [`LENGTH`] takes with its metadata.
const WEIGHT: u64 = 512 + 64;
/// A limit that two weights and the header stay below, and three do not.
const TWO: u64 = 64 + 2 * WEIGHT + 1;

/// Every weight a dense vector, filled with a byte of its own; those of the same letter are equal.
struct Letters;

impl ConstSource for Letters {
    fn storage(&self, _: &DeferredConst) -> std::result::Result<Storage, BoxError> {
        Ok(Storage::Dense)
    }

    fn stream(
        &mut self,
        c: &DeferredConst,
        sink: &mut dyn PartSink,
    ) -> std::result::Result<(), BoxError> {
        for spec in Storage::Dense.parts(c)? {
            sink.write(spec.part, &content(c, spec.bytes))?;
        }
        Ok(())
    }
}

fn content(c: &DeferredConst, bytes: u64) -> Vec<u8> {
    vec![c.id.as_bytes()[0]; bytes as usize]
}

/// A program that adds weights of these ids and lengths, and their order.
fn program(ids: &[(&str, usize)]) -> (Program, Vec<String>) {
    let mut b = FunctionBuilder::new("main");
    let mut sum = b.input("x", DType::Fp16, &[1, 1]).unwrap();
    for (id, length) in ids {
        let w = DeferredConst::new(*id, DType::Fp16, &[*length, 1]);
        let w = b.weight(w).unwrap();
        let w = b.reduce_mean(&w, &[0, 1], true).unwrap();
        sum = b.add(&sum, &w).unwrap();
    }
    b.output("sum", &sum).unwrap();
    let order = ids.iter().map(|(id, _)| (*id).to_owned()).collect();
    (Program::single(b.finish().unwrap()), order)
}

fn spec<'a>(made: &'a (Program, Vec<String>), file_limit: u64) -> PackageSpec<'a> {
    PackageSpec {
        program: &made.0,
        description: ModelDescription::default(),
        blob_order: &made.1,
        file_limit,
    }
}

/// Writes the package, checks that it is as predicted and opens, and gives the report.
fn written(dir: &Path, ids: &[(&str, usize)], limit: u64) -> PackageReport {
    let made = program(ids);
    let predicted = forecast(&made, limit).unwrap();
    let report = write_package(dir, &spec(&made, limit), &mut Letters).unwrap();
    let mut found = BTreeMap::new();
    for file in crate::bundle::files::list(dir).unwrap() {
        let bytes = fs::metadata(dir.join(&file)).unwrap().len();
        found.insert(file, bytes);
    }
    assert_eq!(found, predicted.files, "{ids:?}");
    assert!(report.files.iter().all(|f| dir.join(f).is_file()));
    assert_eq!(report.files.len(), found.len());
    let package = Package::open(dir).unwrap();
    let blobs = package.weight_files().map(|(_, _, blobs)| blobs as u32);
    assert_eq!(blobs.sum::<u32>(), report.blobs);
    for (_, bytes, _) in package.weight_files() {
        assert!(bytes < limit);
    }
    for op in &package.functions()["main"].ops {
        if let Some(value @ ReadValue::Blob { .. }) = &op.value {
            let c = DeferredConst::new(op.name.clone(), DType::Fp16, &[]);
            let bytes = value.bytes();
            assert_eq!(*bytes, content(&c, bytes.len() as u64), "{}", op.name);
        }
    }
    report
}

fn forecast(made: &(Program, Vec<String>), limit: u64) -> Result<PackageForecast> {
    let mut data = |c: &DeferredConst| {
        let bytes = 2 * c.shape.iter().product::<usize>();
        Ok(Some(content(c, bytes as u64)))
    };
    forecast_package(&spec(made, limit), &|c| Letters.storage(c), &mut data)
}

/// File number and offset of a weight, and with whom it is shared.
fn place(report: &PackageReport, id: &str) -> (usize, u64, Option<String>) {
    let PartPlace::Blob(place) = &report.consts[id].parts[0].1 else {
        panic!("{id}: {report:?}");
    };
    let file = (0..20).find(|i| weight_file_name(*i) == place.file);
    (file.unwrap(), place.offset, place.shared_with.clone())
}

#[test]
fn a_weight_that_would_reach_the_limit_begins_the_next_file() {
    let ids: Vec<String> = (0..5).map(|i| format!("{}w", (b'a' + i) as char)).collect();
    let ids: Vec<(&str, usize)> = ids.iter().map(|id| (id.as_str(), LENGTH)).collect();
    let dir = tempfile::tempdir().unwrap();
    let report = written(dir.path(), &ids, TWO);
    let places: Vec<_> = ids.iter().map(|(id, _)| place(&report, id)).collect();
    let second = 64 + WEIGHT;
    let expected = [(0, 64), (0, second), (1, 64), (1, second), (2, 64)];
    assert_eq!(places, expected.map(|(file, at)| (file, at, None)));
    let weights = report.files.iter().filter(|f| f.starts_with(WEIGHTS_DIR));
    let names: Vec<String> = weights
        .map(|f| f.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["weight.bin", "weight_1.bin", "weight_2.bin"]);
    // A file of exactly the limit reaches it.
    let dir = tempfile::tempdir().unwrap();
    let report = written(dir.path(), &ids, TWO - 1);
    assert_eq!(place(&report, "bw"), (1, 64, None));
}

#[test]
fn a_shared_blob_refers_to_the_file_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let report = written(
        dir.path(),
        &[
            ("a1", LENGTH),
            ("b1", LENGTH),
            // Would begin a file, and needs none.
            ("a2", LENGTH),
            ("c1", LENGTH),
            ("b2", LENGTH),
            ("c2", LENGTH),
            ("a3", LENGTH / 2),
        ],
        TWO,
    );
    let shared = |id: &str| place(&report, id);
    assert_eq!(shared("a2"), (0, 64, Some("a1".to_owned())));
    assert_eq!(shared("c1"), (1, 64, None));
    assert_eq!(shared("b2"), (0, 64 + WEIGHT, Some("b1".to_owned())));
    assert_eq!(shared("c2"), (1, 64, Some("c1".to_owned())));
    // Fewer of the same bytes are another blob.
    assert_eq!(shared("a3"), (1, 64 + WEIGHT, None));
    assert_eq!(report.blobs, 4);
}

#[test]
fn a_file_is_removed_when_the_last_weight_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let ids = [("a1", LENGTH), ("b1", LENGTH), ("b2", LENGTH)];
    let report = written(dir.path(), &ids, TWO);
    assert_eq!(report.files.len(), 3);
    assert_eq!(report.weight_bytes, 64 + 2 * WEIGHT);
    // Small weights are in the program and need no file either.
    let dir = tempfile::tempdir().unwrap();
    let ids = [("a1", LENGTH), ("b1", LENGTH), ("small", 4)];
    assert_eq!(written(dir.path(), &ids, TWO).files.len(), 3);
}

#[test]
fn a_weight_larger_than_a_file_is_named() {
    let ids = [("a1", LENGTH), ("huge", 3 * LENGTH)];
    let made = program(&ids);
    let dir = tempfile::tempdir().unwrap();
    for error in [
        write_package(dir.path(), &spec(&made, TWO), &mut Letters).unwrap_err(),
        forecast(&made, TWO).unwrap_err(),
    ] {
        let text = error.to_string();
        let Error::WeightTooLarge {
            weight,
            bytes,
            limit,
        } = error
        else {
            panic!("{text}");
        };
        assert_eq!((weight.as_str(), bytes, limit), ("huge", 3 * 512, TWO));
        assert!(text.contains("\nhint: "), "{text}");
    }
}

#[test]
fn every_file_goes_with_a_package_that_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let (donor, over) = (dir.path().join("donor"), dir.path().join("over"));
    // Eleven files: `weight_10.bin` comes after `weight_2.bin`.
    let ids: Vec<String> = (0..22)
        .map(|i| format!("{}w", (b'a' + i) as char))
        .collect();
    let ids: Vec<(&str, usize)> = ids.iter().map(|id| (id.as_str(), LENGTH)).collect();
    let made = program(&ids);
    let report = written(&donor, &ids, TWO);
    let package = Package::open(&donor).unwrap();
    let again = rewrite_package(&over, &spec(&made, TWO), &package).unwrap();
    assert_eq!(format!("{again:?}"), format!("{report:?}"));
    for file in crate::bundle::files::list(&donor).unwrap() {
        let same = fs::read(donor.join(&file)).unwrap() == fs::read(over.join(&file)).unwrap();
        assert!(same, "{file}");
    }
    // A file that is gone is missed, and so is one that is another's.
    let second = donor.join(WEIGHTS_DIR).join("weight_1.bin");
    fs::remove_file(&second).unwrap();
    let error = Package::open(&donor).unwrap_err().to_string();
    assert!(error.contains("no weight file `weight_1.bin`"), "{error}");
}

#[test]
fn arguments_of_one_op_may_lie_in_two_files() {
    // Indices of their own beside a table that is known from the file before.
    struct SameTable;
    impl ConstSource for SameTable {
        fn storage(&self, _: &DeferredConst) -> std::result::Result<Storage, BoxError> {
            Ok(Storage::Palette {
                nbits: 4,
                lut_shape: vec![1, 1, 16, 1],
                vector_axis: None,
            })
        }
        fn stream(
            &mut self,
            c: &DeferredConst,
            sink: &mut dyn PartSink,
        ) -> std::result::Result<(), BoxError> {
            for spec in self.storage(c)?.parts(c)? {
                let fill = match spec.part {
                    crate::package::Part::Lut => b'l',
                    _ => c.id.as_bytes()[0],
                };
                sink.write(spec.part, &vec![fill; spec.bytes as usize])?;
            }
            Ok(())
        }
    }
    let made = program(&[("a1", 4 * LENGTH), ("b1", 4 * LENGTH)]);
    let dir = tempfile::tempdir().unwrap();
    let report = write_package(dir.path(), &spec(&made, TWO), &mut SameTable).unwrap();
    let files: Vec<String> = report.consts["b1"]
        .parts
        .iter()
        .map(|(_, place)| match place {
            PartPlace::Blob(place) => place.file.clone(),
            PartPlace::Immediate(_) => String::new(),
        })
        .collect();
    assert_eq!(files, ["weight_1.bin", "weight.bin"]);
    let package = Package::open(dir.path()).unwrap();
    let op = package.functions()["main"].ops.iter();
    let mut op = op.filter(|op| op.name == "b1");
    let op = op.next().unwrap();
    for (argument, fill) in [("indices", b'b'), ("lut", b'l')] {
        let Some(Binding::Value(value)) = op.input(argument) else {
            panic!("{op:?}");
        };
        assert!(value.bytes().iter().all(|b| *b == fill), "{argument}");
    }
}
