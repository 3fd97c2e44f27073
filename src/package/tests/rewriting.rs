//! Another program over the weights of a package that is there.

use std::collections::BTreeMap;

use super::*;
use crate::package::{Binding, Error, Part, PartPlace, ReadValue, rewrite_package};

/// Every way a weight can be stored; `tokens` is what differs between programs.
fn every_storage(tokens: usize) -> Function {
    let mut b = FunctionBuilder::new("main");
    let x = b.input("x", DType::Fp16, &[1, 32, 1, tokens]).unwrap();
    let mut y = x;
    for id in &IDS[..8] {
        let w = b
            .weight(DeferredConst::new(*id, DType::Fp16, &[32, 32, 1, 1]))
            .unwrap();
        y = b.conv(&y, &w, None, &Default::default()).unwrap();
    }
    let w = b
        .weight(DeferredConst::new("sma.ll", DType::Fp16, &[1, 1, 1, 1]))
        .unwrap();
    y = b.mul(&y, &w).unwrap();
    b.output("y", &y).unwrap();
    b.finish().unwrap()
}

const IDS: [&str; 9] = [
    "again", "palette", "vectors", "sparse", "lut8", "int8", "int4", "dense", "sma.ll",
];

/// Stores each weight as its id says; `dense` and `again` have the same bytes.
struct Every;

impl ConstSource for Every {
    fn storage(&self, c: &DeferredConst) -> std::result::Result<Storage, BoxError> {
        let blocks = |data, scale: [usize; 2], offset| Storage::Blockwise {
            data,
            scale_shape: vec![scale[0], scale[1], 1, 1],
            offset,
        };
        Ok(match c.id.as_str() {
            "palette" => Storage::Palette {
                nbits: 4,
                lut_shape: vec![2, 1, 1, 1, 16, 1],
                vector_axis: None,
            },
            "vectors" => Storage::Palette {
                nbits: 3,
                lut_shape: vec![1, 1, 1, 1, 8, 2],
                vector_axis: Some(1),
            },
            "sparse" => Storage::PaletteSparse {
                nbits: 3,
                lut_shape: vec![4, 1, 1, 1, 8, 1],
                vector_axis: None,
                nonzero: 512,
            },
            "lut8" => Storage::PaletteInt8 {
                nbits: 4,
                lut_shape: vec![2, 1, 1, 1, 16, 1],
            },
            "int8" => blocks(DType::Int8, [32, 1], true),
            "int4" => blocks(DType::Int4, [4, 2], false),
            _ => Storage::Dense,
        })
    }

    fn stream(
        &mut self,
        c: &DeferredConst,
        sink: &mut dyn PartSink,
    ) -> std::result::Result<(), BoxError> {
        for spec in self.storage(c)?.parts(c)? {
            let start = if c.id == "again" { 5 } else { c.id.len() };
            let byte = |i: u64| match spec.part {
                Part::Mask => 0x55,
                _ => start as u8 ^ i as u8,
            };
            let bytes: Vec<u8> = (0..spec.bytes).map(byte).collect();
            sink.write(spec.part, &bytes)?;
        }
        Ok(())
    }
}

fn order() -> Vec<String> {
    IDS.map(str::to_owned).to_vec()
}

fn spec<'a>(program: &'a Program, blob_order: &'a [String]) -> PackageSpec<'a> {
    PackageSpec {
        program,
        description: ModelDescription {
            version: "1".to_owned(),
            ..Default::default()
        },
        blob_order,
        file_limit: WEIGHT_FILE_LIMIT,
    }
}

fn fresh(dir: &Path, program: &Program) -> PackageReport {
    write_package(dir, &spec(program, &order()), &mut Every).unwrap()
}

fn rewritten(dir: &Path, program: &Program, donor: &Path) -> Result<PackageReport> {
    let donor = Package::open(donor)?;
    rewrite_package(dir, &spec(program, &order()), &donor)
}

/// Every file of a package.
fn bytes(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let list = crate::bundle::files::list(dir).unwrap();
    list.into_iter()
        .map(|f| (f.clone(), fs::read(dir.join(f)).unwrap()))
        .collect()
}

#[test]
fn a_rewritten_package_is_the_one_written_from_scratch() {
    let dir = tempfile::tempdir().unwrap();
    let donor = dir.path().join("donor");
    fresh(&donor, &Program::single(every_storage(1)));
    for tokens in [1, 8] {
        let program = Program::single(every_storage(tokens));
        let (scratch, over) = (dir.path().join("scratch"), dir.path().join("over"));
        let expected = fresh(&scratch, &program);
        let report = rewritten(&over, &program, &donor).unwrap();
        assert_eq!(bytes(&over), bytes(&scratch), "{tokens}");
        assert_eq!(format!("{report:?}"), format!("{expected:?}"), "{tokens}");
        assert_eq!(bytes(&over) == bytes(&donor), tokens == 1);
        Package::open(&over).unwrap();
        let PartPlace::Blob(place) = &report.consts["dense"].parts[0].1 else {
            panic!("{report:?}");
        };
        assert_eq!(place.shared_with.as_deref(), Some("again"));
        fs::remove_dir_all(scratch).unwrap();
        fs::remove_dir_all(over).unwrap();
    }
}

#[test]
fn the_weights_outlive_their_donor() {
    let dir = tempfile::tempdir().unwrap();
    let (donor, over) = (dir.path().join("donor"), dir.path().join("over"));
    let program = Program::single(every_storage(1));
    fresh(&donor, &program);
    rewritten(&over, &program, &donor).unwrap();
    let before = bytes(&over);
    let weights = |dir: &Path| dir.join(WEIGHTS_DIR).join(WEIGHT_FILE);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let inode = |dir: &Path| fs::metadata(weights(dir)).unwrap().ino();
        assert_eq!(inode(&donor), inode(&over), "a link, not a copy");
    }
    fs::remove_dir_all(&donor).unwrap();
    assert_eq!(bytes(&over), before);
    // Weights that are there are never written over: they may be another package's too.
    let error = rewritten(&over, &program, &over).unwrap_err();
    assert!(error.to_string().contains(WEIGHT_FILE), "{error}");
    assert_eq!(bytes(&over), before);
    // A weight file on another disk, behind a symbolic link, becomes a file.
    #[cfg(unix)]
    {
        let (elsewhere, again) = (dir.path().join("w"), dir.path().join("again"));
        fs::rename(weights(&over), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, weights(&over)).unwrap();
        rewritten(&again, &program, &over).unwrap();
        assert_eq!(bytes(&again), before);
    }
}

#[test]
fn several_functions_share_the_weights_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let (donor, over) = (dir.path().join("donor"), dir.path().join("over"));
    let one = Program::single(every_storage(1));
    let many = Program {
        functions: [("a", 1), ("b", 8)]
            .map(|(name, tokens)| (name.to_owned(), every_storage(tokens)))
            .into(),
        default_function: "b".to_owned(),
    };
    fresh(&donor, &one);
    rewritten(&over, &many, &donor).unwrap();
    assert_eq!(Package::open(&over).unwrap().functions().len(), 2);
    let back = dir.path().join("back");
    rewritten(&back, &one, &over).unwrap();
    assert_eq!(bytes(&back), bytes(&donor));
}

#[test]
fn a_mask_has_as_many_ones_as_there_are_elements() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p");
    fresh(&path, &Program::single(every_storage(1)));
    let package = Package::open(&path).unwrap();
    let mut ops = package.functions()["main"].ops.iter();
    let op = ops.find(|op| op.name == "sparse_sparse").unwrap();
    let Some(Binding::Value(ReadValue::Blob { offset, .. })) = op.input("indices_mask") else {
        panic!("{op:?}");
    };
    let file = path.join(WEIGHTS_DIR).join(WEIGHT_FILE);
    let mut bytes = fs::read(&file).unwrap();
    bytes[*offset] ^= 2;
    fs::write(&file, bytes).unwrap();
    let error = Package::open(&path).unwrap_err().to_string();
    assert!(error.contains("513 ones for 512 elements"), "{error}");
}

#[test]
fn names_of_ops_that_only_the_file_has_are_not_taken_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p");
    let mut b = FunctionBuilder::new("main");
    let x = b.input("lut8_lut", DType::Fp16, &[1, 32, 1, 1]).unwrap();
    let mut y = x;
    for id in ["lut8", "sparse", "sparse_mask"] {
        let w = DeferredConst::new(id, DType::Fp16, &[32, 32, 1, 1]);
        let w = b.weight(w).unwrap();
        y = b.conv(&y, &w, None, &Default::default()).unwrap();
    }
    b.output("y", &y).unwrap();
    let program = Program::single(b.finish().unwrap());
    let order = ["lut8", "sparse", "sparse_mask"].map(str::to_owned);
    write_package(&path, &spec(&program, &order), &mut Every).unwrap();
    let package = Package::open(&path).unwrap();
    let f = &package.functions()["main"];
    for name in ["lut8_lut_", "sparse_mask_", "sparse_nonzero"] {
        assert!(f.type_of(name).is_some(), "{name}");
    }
    let over = dir.path().join("over");
    rewrite_package(&over, &spec(&program, &order), &package).unwrap();
    assert_eq!(bytes(&over), bytes(&path));
}

#[test]
fn a_donor_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let donor = dir.path().join("donor");
    fresh(&donor, &Program::single(every_storage(1)));
    for (id, shape, got) in [
        ("other", [1, 32, 1, 1], "no constant `other`"),
        ("dense", [1, 32, 1, 1], "fp16[32, 32, 1, 1]"),
    ] {
        let mut b = FunctionBuilder::new("main");
        let x = b.input("x", DType::Fp16, &[1, 32, 1, 1]).unwrap();
        let w = b.weight(DeferredConst::new(id, DType::Fp16, &shape));
        let y = b.mul(&x, &w.unwrap()).unwrap();
        b.output("y", &y).unwrap();
        let program = Program::single(b.finish().unwrap());
        let package = Package::open(&donor).unwrap();
        let out = dir.path().join("out");
        let error = rewrite_package(&out, &spec(&program, &[id.to_owned()]), &package).unwrap_err();
        assert!(!out.exists(), "nothing is begun");
        let text = error.to_string();
        let Error::Donor {
            weight,
            expected,
            got: found,
            ..
        } = error
        else {
            panic!("{text}");
        };
        assert_eq!(weight, id);
        assert!(expected.contains("32"), "{text}");
        assert!(found.contains("32, 32") || found == got, "{text}");
        assert!(text.contains("\nhint: "), "{text}");
    }
}

#[test]
fn a_donor_that_was_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (donor, over) = (dir.path().join("donor"), dir.path().join("over"));
    let program = Program::single(every_storage(1));
    fresh(&donor, &program);
    let weights = donor.join(WEIGHTS_DIR).join(WEIGHT_FILE);
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(
        rewritten(&over, &program, &donor).unwrap_err(),
        Error::Blob { .. }
    ));
    // Replaced between opening and linking.
    fs::write(&weights, &whole).unwrap();
    let package = Package::open(&donor).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, &whole[..64]).unwrap();
    let error = rewrite_package(&over, &spec(&program, &order()), &package).unwrap_err();
    assert!(matches!(&error, Error::Blob { .. }), "{error}");
    assert!(error.to_string().contains("64 now"), "{error}");
}

/// A file that cannot be linked: `/proc` is a file system of its own.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_linked_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (Path::new("/proc/version"), dir.path().join("w"));
    crate::package::link_or_copy(from, &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), fs::read(from).unwrap());
    let again = crate::package::link_or_copy(from, &to).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
}
