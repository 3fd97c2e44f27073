//! Writes another program over the weights of a package that is there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::WEIGHTS_DIR;
use super::blob::HEADER_BYTES;
use super::error::{Error, Result};
use super::places::{BlobPlace, ConstPlace, PartPlace};
use super::read::{Binding, Package, ReadFunction, ReadOp, ReadValue};
use super::storage::{Part, Storage};
use super::write::{PackageReport, PackageSpec, StoredWeights, checked, write_model};
use crate::failpoint;
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
    let mut there: Vec<_> = donor.weight_files().collect();
    // weight_2.bin comes before weight_10.bin.
    there.sort_by_key(|(name, ..)| name.len());
    for (name, length, count) in there {
        take(&donor.weights_dir().join(name), &weights.join(name), length)?;
        files.push(name.to_owned());
        bytes += length;
        // The count of a file is read from 32 bits.
        blobs += count as u32;
    }
    failpoint::reach("package.linked");
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

/// An op and the function it is in.
type Found<'a> = (&'a ReadFunction, &'a ReadOp);

/// Every constant of a package by the name of its value; the first function that has it.
fn constants(donor: &Package) -> HashMap<&str, Found<'_>> {
    let mut found = HashMap::new();
    for f in donor.functions().values() {
        for op in &f.ops {
            if (op.op_type == OpType::Const || op.op_type.is_constexpr())
                && let [(name, _)] = op.outputs.as_slice()
            {
                found.entry(name.as_str()).or_insert((f, op));
            }
        }
    }
    found
}

/// Finds weights in a donor.
struct Finder<'a> {
    donor: &'a Package,
    ops: HashMap<&'a str, Found<'a>>,
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
        let Some((function, op)) = self.ops.get(name.as_str()).copied() else {
            let got = format!("no constant `{name}`");
            return Err(self.fault(c, c.ty().to_string(), got));
        };
        if let Some((_, ty)) = op.outputs.first()
            && *ty != c.ty()
        {
            return Err(self.fault(c, c.ty().to_string(), ty.to_string()));
        }
        let Some((storage, values)) = stored(function, op) else {
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

/// The value in place of an argument.
fn in_place<'a>(op: &'a ReadOp, arg: &str) -> Option<&'a ReadValue> {
    match op.input(arg) {
        Some(Binding::Value(value)) => Some(value),
        _ => None,
    }
}

/// The constexpr op of this type that makes what is bound to an argument.
fn maker<'a>(
    function: &'a ReadFunction,
    op: &ReadOp,
    arg: &str,
    op_type: OpType,
) -> Option<&'a ReadOp> {
    let Some(Binding::Name(value)) = op.input(arg) else {
        return None;
    };
    let mut ops = function.ops.iter().filter(|op| op.op_type == op_type);
    ops.find(|op| op.outputs.iter().any(|(name, _)| name == value))
}

/// The axis of vectors; outer none if it is not in place.
fn vector_axis(op: &ReadOp) -> Option<Option<usize>> {
    match op.input("vector_axis") {
        None => Some(None),
        Some(_) => Some(Some(integer(in_place(op, "vector_axis")?)?)),
    }
}

fn width(indices: &ReadValue) -> Option<u8> {
    u8::try_from(indices.ty().dtype.bits()).ok()
}

/// Storage and parts of a constant; none if it is no op that the writer makes of a weight.
fn stored<'a>(
    function: &'a ReadFunction,
    op: &'a ReadOp,
) -> Option<(Storage, Vec<(Part, &'a ReadValue)>)> {
    let argument = |name: &str| in_place(op, name);
    match op.op_type {
        OpType::Const => Some((Storage::Dense, vec![(Part::Data, op.value.as_ref()?)])),
        OpType::ConstexprLutToDense => {
            let indices = argument("indices")?;
            let nbits = width(indices)?;
            let scaled = OpType::ConstexprBlockwiseShiftScale;
            if let Some(scaled) = maker(function, op, "lut", scaled) {
                let (lut, scale) = (in_place(scaled, "data")?, in_place(scaled, "scale")?);
                let storage = Storage::PaletteInt8 {
                    nbits,
                    lut_shape: lut.ty().shape,
                };
                let parts = [
                    (Part::Data, indices),
                    (Part::Lut, lut),
                    (Part::Scale, scale),
                ];
                let plain = scaled.input("offset").is_none() && op.input("vector_axis").is_none();
                return plain.then(|| (storage, parts.to_vec()));
            }
            let lut = argument("lut")?;
            let storage = Storage::Palette {
                nbits,
                lut_shape: lut.ty().shape,
                vector_axis: vector_axis(op)?,
            };
            Some((storage, vec![(Part::Data, indices), (Part::Lut, lut)]))
        }
        OpType::ConstexprSparseToDense => {
            let sparse = OpType::ConstexprLutToSparse;
            let sparse = maker(function, op, "nonzero_data", sparse)?;
            let (mask, indices) = (
                in_place(sparse, "indices_mask")?,
                in_place(sparse, "indices_nonzero_data")?,
            );
            let lut = in_place(sparse, "lut")?;
            // The dense weight is made of both results of the one op.
            let [(mask_name, _), (data_name, _)] = sparse.outputs.as_slice() else {
                return None;
            };
            let is = |arg: &str, name: &String| matches!(op.input(arg), Some(Binding::Name(n)) if n == name);
            let storage = Storage::PaletteSparse {
                nbits: width(indices)?,
                lut_shape: lut.ty().shape,
                vector_axis: vector_axis(sparse)?,
                nonzero: indices.ty().elements()?,
            };
            let parts = vec![(Part::Data, indices), (Part::Mask, mask), (Part::Lut, lut)];
            (is("mask", mask_name) && is("nonzero_data", data_name)).then_some((storage, parts))
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
