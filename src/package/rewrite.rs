//! Writes another program over the weights of a package that is there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::WEIGHTS_DIR;
use super::blob::HEADER_BYTES;
use super::error::{Error, Result};
use super::read::{Binding, Package, ReadOp, ReadValue};
use super::storage::{Part, Storage};
use super::write::{
    BlobPlace, ConstPlace, PackageReport, PackageSpec, PartPlace, StoredWeights, checked,
    write_model,
};
use crate::mil::{DType, DeferredConst, OpType, TensorType, ident};

/// Writes a package into `dir` that has the weight files of `donor` and another program. Every weight of the program must
/// be one of the donor's, in any of its functions, with the same element type and shape; how it is stored is the donor's
/// choice. Nothing is quantized. With all of the donor's weights in their order the result equals, byte for byte, what
/// [`super::write_package`] makes of the same program and weights.
///
/// The weight files are hard links where the file system has them, else copies. No package is changed in place, so a link
/// stays what it is when the donor is deleted or replaced. For the same reason `dir` must not hold weight files yet.
///
/// # Errors
/// [`Error::Donor`] with the weight that the donor does not have as needed; faults of the program, of the blob order and of
/// the file system.
pub fn rewrite_package(
    dir: &Path,
    package: &PackageSpec<'_>,
    donor: &Package,
) -> Result<PackageReport> {
    let order = checked(package)?;
    let mut finder = Finder {
        donor,
        ops: constants(donor),
        content: Sha256::new(),
        known: HashMap::new(),
    };
    let mut consts = BTreeMap::new();
    for c in order {
        consts.insert(c.id.clone(), finder.place(c)?);
    }
    let weights = dir.join(WEIGHTS_DIR);
    fs::create_dir_all(&weights).map_err(Error::io("cannot create", &weights))?;
    let (mut files, mut bytes, mut blobs) = (Vec::new(), 0, 0);
    for (name, length, count) in donor.weight_files() {
        take(&donor.weights_dir().join(name), &weights.join(name), length)?;
        files.push(name.to_owned());
        bytes += length;
        // The count of a file is read from 32 bits.
        blobs += count as u32;
    }
    let stored = StoredWeights {
        files,
        bytes,
        blobs,
        content: finder.content,
        consts,
    };
    write_model(dir, package, stored)
}

/// Takes over a weight file that was read with `length` bytes.
fn take(from: &Path, to: &Path, length: u64) -> Result<()> {
    link_or_copy(from, to).map_err(Error::io("cannot link or copy to", to))?;
    let now = fs::metadata(to)
        .map_err(Error::io("cannot read", to))?
        .len();
    if now == length {
        return Ok(());
    }
    Err(Error::Blob {
        path: from.to_owned(),
        offset: now.min(length),
        message: format!("the file had {length} bytes when it was read and has {now} now"),
    })
}

/// Makes `to`, which must not exist, another name of the file `from`, or a copy of it where the file system has no links or
/// the two are on different ones. The content is on the disk afterwards; the entry in the directory is for the caller to sync.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    // A link to a symbolic link would be a symbolic link.
    let from = fs::canonicalize(from)?;
    match fs::hard_link(&from, to) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(e),
        Err(_) => {
            io::copy(&mut File::open(&from)?, &mut File::create_new(to)?)?;
        }
    }
    File::open(to)?.sync_all()
}

/// Every constant of a package by the name of its value; the first function that has it.
fn constants(donor: &Package) -> HashMap<&str, &ReadOp> {
    let mut found = HashMap::new();
    for op in donor.functions().values().flat_map(|f| &f.ops) {
        if (op.op_type == OpType::Const || op.op_type.is_constexpr())
            && let [(name, _)] = op.outputs.as_slice()
        {
            found.entry(name.as_str()).or_insert(op);
        }
    }
    found
}

/// Finds weights in a donor.
struct Finder<'a> {
    donor: &'a Package,
    ops: HashMap<&'a str, &'a ReadOp>,
    /// Hash of the hashes of all parts, as the writer makes it.
    content: Sha256,
    /// Hash of each blob and the weight that had it first, by file and offset.
    known: HashMap<(String, u64), ([u8; 32], String)>,
}

impl Finder<'_> {
    fn fault(&self, c: &DeferredConst, expected: String, got: String) -> Error {
        Error::Donor {
            donor: self.donor.dir().to_owned(),
            weight: c.id.clone(),
            expected,
            got,
        }
    }

    /// Where the donor has a weight.
    fn place(&mut self, c: &DeferredConst) -> Result<ConstPlace> {
        let name = ident::sanitize(&c.id);
        let Some(op) = self.ops.get(name.as_str()).copied() else {
            let got = format!("no constant `{name}`");
            return Err(self.fault(c, c.ty().to_string(), got));
        };
        if let Some((_, ty)) = op.outputs.first()
            && *ty != c.ty()
        {
            return Err(self.fault(c, c.ty().to_string(), ty.to_string()));
        }
        let Some((storage, values)) = stored(op) else {
            let expected = "a const, a palette or blocks with all parts in place".to_owned();
            return Err(self.fault(c, expected, format!("`{}`", op.op_type)));
        };
        let specs = storage.parts(c)?;
        let mut parts = Vec::with_capacity(specs.len());
        for spec in specs {
            let value = values.iter().find(|(part, _)| *part == spec.part);
            let ty = value.map(|(_, value)| value.ty());
            let (Some((_, value)), true) = (value, ty.as_ref() == Some(&spec.ty())) else {
                let got = ty.map_or("none".to_owned(), |ty: TensorType| ty.to_string());
                let part = spec.part.name();
                return Err(self.fault(
                    c,
                    format!("{part} {}", spec.ty()),
                    format!("{part} {got}"),
                ));
            };
            let place = self.part_place(c, value);
            parts.push((spec, place));
        }
        Ok(ConstPlace { storage, parts })
    }

    fn part_place(&mut self, c: &DeferredConst, value: &ReadValue) -> PartPlace {
        let ReadValue::Blob { name, offset, .. } = value else {
            let bytes = value.bytes().into_owned();
            self.content.update(Sha256::digest(&bytes));
            return PartPlace::Immediate(bytes);
        };
        let place = BlobPlace {
            file: name.to_string(),
            // The reader has checked that the data follows its metadata.
            offset: *offset as u64 - HEADER_BYTES,
            shared_with: None,
        };
        let key = (place.file.clone(), place.offset);
        let first = self.known.get(&key);
        let shared_with = first.map(|(_, weight)| weight.clone());
        let hash = first.map_or_else(|| Sha256::digest(value.bytes()).into(), |(hash, _)| *hash);
        self.content.update(hash);
        if shared_with.is_none() {
            self.known.insert(key, (hash, c.id.clone()));
        }
        PartPlace::Blob(BlobPlace {
            shared_with,
            ..place
        })
    }
}

/// Storage and parts of a constant; none if it is no op that the writer makes of a weight.
fn stored(op: &ReadOp) -> Option<(Storage, Vec<(Part, &ReadValue)>)> {
    let argument = |name: &str| match op.input(name) {
        Some(Binding::Value(value)) => Some(value),
        _ => None,
    };
    match op.op_type {
        OpType::Const => Some((Storage::Dense, vec![(Part::Data, op.value.as_ref()?)])),
        OpType::ConstexprLutToDense => {
            let (indices, lut) = (argument("indices")?, argument("lut")?);
            let vector_axis = match op.input("vector_axis") {
                None => None,
                Some(_) => Some(integer(argument("vector_axis")?)?),
            };
            let storage = Storage::Palette {
                nbits: u8::try_from(indices.ty().dtype.bits()).ok()?,
                lut_shape: lut.ty().shape,
                vector_axis,
            };
            Some((storage, vec![(Part::Data, indices), (Part::Lut, lut)]))
        }
        OpType::ConstexprBlockwiseShiftScale => {
            let (data, scale) = (argument("data")?, argument("scale")?);
            let mut parts = vec![(Part::Data, data), (Part::Scale, scale)];
            if op.input("offset").is_some() {
                parts.push((Part::Offset, argument("offset")?));
            }
            let storage = Storage::Blockwise {
                data: data.ty().dtype,
                scale_shape: scale.ty().shape,
                offset: parts.len() == 3,
            };
            Some((storage, parts))
        }
        _ => None,
    }
}

/// A single int32 that is not negative.
fn integer(value: &ReadValue) -> Option<usize> {
    if value.ty() != TensorType::new(DType::Int32, &[]) {
        return None;
    }
    let bytes: [u8; 4] = value.bytes().as_ref().try_into().ok()?;
    usize::try_from(i32::from_le_bytes(bytes)).ok()
}
