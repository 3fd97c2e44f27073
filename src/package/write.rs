//! Writes a package: weights streamed into weight files, then the model, then the manifest.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::blob::{BUFFER_BYTES, BlobFile, BlobKey, HEADER_BYTES, begins_file, weight_file_name};
use super::error::{BoxError, Error, Result};
use super::manifest::Manifest;
use super::places::{BlobPlace, ConstPlace, PartPlace};
use super::spec::ModelDescription;
use super::storage::{Part, PartSpec, Storage};
use super::{MODEL_PATH, WEIGHTS_DIR, spec};
use crate::failpoint;
use crate::mil::{DeferredConst, Program, ident};

/// Gives the bytes of the weights.
pub trait ConstSource {
    /// How a weight is stored. The answer must not change between calls.
    ///
    /// # Errors
    /// Whatever the source has; it is passed on with the weight's id.
    fn storage(&self, c: &DeferredConst) -> std::result::Result<Storage, BoxError>;

    /// Writes the parts of a weight in the order of [`Storage::parts`], exactly
    /// [`PartSpec::bytes`] each, in pieces of any size: packed little-endian elements, unused bits
    /// of the last byte zero.
    ///
    /// # Errors
    /// Whatever the source has, and the errors of the sink.
    fn stream(
        &mut self,
        c: &DeferredConst,
        sink: &mut dyn PartSink,
    ) -> std::result::Result<(), BoxError>;
}

/// Takes the bytes of the parts of one weight.
pub trait PartSink {
    /// The next bytes of a part.
    ///
    /// # Errors
    /// The file cannot be written, or the part is out of turn or too long. [`write_package`] then
    /// reports that fault, whatever the source makes of it.
    fn write(&mut self, part: Part, bytes: &[u8]) -> io::Result<()>;
}

/// What to write.
#[derive(Debug, Clone)]
pub struct PackageSpec<'a> {
    /// The program.
    pub program: &'a Program,
    /// Its metadata.
    pub description: ModelDescription,
    /// Ids of all weights of the program in the order of the files.
    pub blob_order: &'a [String],
    /// Every weight file has fewer bytes than this, [`super::WEIGHT_FILE_LIMIT`] for the Neural Engine. A package that is
    /// rewritten keeps its files as they are.
    pub file_limit: u64,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct PackageReport {
    /// Bytes of all weight files.
    pub weight_bytes: u64,
    /// Bytes of model.mlmodel.
    pub model_bytes: u64,
    /// Number of blobs in all weight files.
    pub blobs: u32,
    /// The files, relative to the package.
    pub files: Vec<PathBuf>,
    /// Where each weight is, by id.
    pub consts: BTreeMap<String, ConstPlace>,
}

/// Writes the package into the directory `dir`, which is made if it is not there. Nothing outside
/// it is touched; when an error is returned, what is in it is worth nothing.
///
/// # Errors
/// Faults of the program, of the blob order, of the source, and of the file system, each with the
/// weight or the path.
pub fn write_package(
    dir: &Path,
    package: &PackageSpec<'_>,
    source: &mut dyn ConstSource,
) -> Result<PackageReport> {
    let order = checked(package)?;
    let weights = dir.join(WEIGHTS_DIR);
    fs::create_dir_all(&weights).map_err(Error::io("cannot create", &weights))?;

    let mut writer = WeightWriter {
        files: vec![BlobFile::create(&weights.join(weight_file_name(0)))?],
        dir: weights,
        limit: package.file_limit,
        known: HashMap::new(),
        content: Sha256::new(),
        consts: BTreeMap::new(),
    };
    for c in order {
        writer.write(c, source)?;
    }
    write_model(dir, package, writer.finish()?)
}

/// Weights that are in place.
pub(super) struct StoredWeights {
    /// Names in the weights directory.
    pub files: Vec<String>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Blobs of all files.
    pub blobs: u32,
    /// Hash of the hashes of all parts, in the order of the weights.
    pub content: Sha256,
    /// Where each weight is.
    pub consts: BTreeMap<String, ConstPlace>,
}

/// Checks the names of the program and the order of its weights; gives the weights in that order.
pub(super) fn checked<'a>(package: &PackageSpec<'a>) -> Result<Vec<&'a DeferredConst>> {
    let program = package.program;
    for name in program.functions.keys() {
        ident::check("function", name)?;
    }
    if !program.functions.contains_key(&program.default_function) {
        return Err(Error::Program {
            function: program.default_function.clone(),
            op: String::new(),
            value: String::new(),
            message: "the default function is not in the program".to_owned(),
        });
    }
    ordered(program, package.blob_order)
}

/// Writes model and manifest beside weights that are in place, and syncs the directories.
pub(super) fn write_model(
    dir: &Path,
    package: &PackageSpec<'_>,
    weights: StoredWeights,
) -> Result<PackageReport> {
    let model = spec::model(package.program, &package.description, &weights.consts)?;
    let model = model.encode_to_vec();
    write_file(&dir.join(MODEL_PATH), &model)?;
    failpoint::reach("package.model");
    let content = weights.content.chain_update(&model).finalize().into();
    let manifest = Manifest::new(&content).to_json()?;
    write_file(&dir.join("Manifest.json"), manifest.as_bytes())?;
    for folder in ["", "Data", "Data/com.apple.CoreML", WEIGHTS_DIR] {
        let path = dir.join(folder);
        let synced = File::open(&path).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io("cannot sync", &path))?;
    }
    let mut files = vec![PathBuf::from(MODEL_PATH)];
    files.extend(weights.files.iter().map(|f| Path::new(WEIGHTS_DIR).join(f)));
    files.push("Manifest.json".into());
    Ok(PackageReport {
        weight_bytes: weights.bytes,
        model_bytes: model.len() as u64,
        blobs: weights.blobs,
        files,
        consts: weights.consts,
    })
}

/// The weights of the program in the order asked for, each once.
fn ordered<'a>(program: &'a Program, blob_order: &[String]) -> Result<Vec<&'a DeferredConst>> {
    let mut used: BTreeMap<&str, &DeferredConst> = BTreeMap::new();
    for function in program.functions.values() {
        for op in &function.ops {
            let Some(crate::mil::ConstValue::Deferred(c)) = &op.value else {
                continue;
            };
            if let Some(first) = used.insert(&c.id, c)
                && first != c
            {
                return Err(crate::mil::Error::WeightConflict {
                    id: c.id.clone(),
                    first: first.ty(),
                    second: c.ty(),
                }
                .into());
            }
        }
    }
    let fault = |weight: &str, message| Error::BlobOrder {
        weight: weight.to_owned(),
        message,
    };
    let mut out = Vec::with_capacity(used.len());
    for id in blob_order {
        let c = used.remove(id.as_str());
        out.push(c.ok_or_else(|| fault(id, "is named twice, or not used by the program"))?);
    }
    match used.keys().next() {
        Some(id) => Err(fault(id, "is used by the program and not named")),
        None => Ok(out),
    }
}

/// An error of whoever gives the weights.
pub(super) fn from_source(c: &DeferredConst, source: BoxError) -> Error {
    let weight = c.id.clone();
    Error::Source { weight, source }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    File::create(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(Error::io("cannot write", path))
}

/// The weight files and what is in them so far.
struct WeightWriter {
    dir: PathBuf,
    /// At least one; blobs go to the last.
    files: Vec<BlobFile>,
    limit: u64,
    /// Blobs with their file, their offset and the weight they came with.
    known: HashMap<BlobKey, (usize, u64, String)>,
    /// Hash of the hashes of all parts.
    content: Sha256,
    consts: BTreeMap<String, ConstPlace>,
}

impl WeightWriter {
    /// The file that blobs go to.
    fn file(&mut self) -> &mut BlobFile {
        let last = self.files.len() - 1;
        &mut self.files[last]
    }

    fn write(&mut self, c: &DeferredConst, source: &mut dyn ConstSource) -> Result<()> {
        let storage = source.storage(c).map_err(|e| from_source(c, e))?;
        let parts = storage.parts(c)?;
        let blobs: Vec<u64> = blob_bytes(&parts).collect();
        let begins = begins_file(&c.id, self.file().bytes(), &blobs, self.limit)?;
        if begins {
            let name = weight_file_name(self.files.len());
            self.files.push(BlobFile::create(&self.dir.join(name))?);
        }
        self.stream(c, storage, parts, source)?;
        // Nothing of the weight was new.
        if begins && self.file().count() == 0 {
            self.files.pop().map_or(Ok(()), BlobFile::remove)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<StoredWeights> {
        let stored = StoredWeights {
            files: (0..self.files.len()).map(weight_file_name).collect(),
            bytes: self.files.iter().map(BlobFile::bytes).sum(),
            blobs: self.files.iter().map(BlobFile::count).sum(),
            content: self.content,
            consts: self.consts,
        };
        self.files.into_iter().try_for_each(BlobFile::finish)?;
        Ok(stored)
    }

    /// Whether the blob that ended last has the same bytes as another, both read back.
    fn last_equals(&mut self, file: usize, offset: u64) -> Result<bool> {
        let last = self.files.len() - 1;
        let Some((ours, bytes)) = self.files[last].last() else {
            return Ok(false);
        };
        let theirs = offset + HEADER_BYTES;
        let mut left = vec![0; BUFFER_BYTES / 2];
        let mut right = left.clone();
        let mut done = 0;
        while done < bytes {
            let n = (bytes - done).min(left.len() as u64) as usize;
            self.files[last].read_back(ours + done, &mut left[..n])?;
            self.files[file].read_back(theirs + done, &mut right[..n])?;
            if left[..n] != right[..n] {
                return Ok(false);
            }
            done += n as u64;
        }
        Ok(true)
    }

    fn stream(
        &mut self,
        c: &DeferredConst,
        storage: Storage,
        parts: Vec<PartSpec>,
        source: &mut dyn ConstSource,
    ) -> Result<()> {
        let mut sink = Sink {
            weight: &c.id,
            writer: self,
            specs: &parts,
            places: Vec::with_capacity(parts.len()),
            current: None,
            failed: None,
        };
        let streamed = source.stream(c, &mut sink);
        if let Some(failed) = sink.failed.take() {
            return Err(failed);
        }
        streamed.map_err(|source| Error::Source {
            weight: c.id.clone(),
            source,
        })?;
        sink.finish_current()?;
        let places = std::mem::take(&mut sink.places);
        if let Some(missing) = parts.get(places.len()) {
            return Err(Error::PartLength {
                weight: c.id.clone(),
                part: missing.part.name(),
                expected: missing.bytes,
                got: 0,
            });
        }
        let parts = parts.into_iter().zip(places).collect();
        self.consts
            .insert(c.id.clone(), ConstPlace { storage, parts });
        Ok(())
    }
}

/// The sink of one weight.
struct Sink<'a> {
    weight: &'a str,
    writer: &'a mut WeightWriter,
    specs: &'a [PartSpec],
    places: Vec<PartPlace>,
    current: Option<Current>,
    /// The first fault; every call after it fails.
    failed: Option<Error>,
}

/// The part being streamed.
struct Current {
    got: u64,
    last: u8,
    /// Bytes of an immediate; none for a blob.
    immediate: Option<Vec<u8>>,
}

impl PartSink for Sink<'_> {
    fn write(&mut self, part: Part, bytes: &[u8]) -> io::Result<()> {
        if self.failed.is_none() {
            self.failed = self.accept(part, bytes).err();
        }
        match &self.failed {
            None => Ok(()),
            Some(Error::Io { source, .. }) => {
                Err(io::Error::new(source.kind(), source.to_string()))
            }
            Some(other) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                other.to_string(),
            )),
        }
    }
}

impl Sink<'_> {
    fn accept(&mut self, part: Part, bytes: &[u8]) -> Result<()> {
        let done = self.current.as_ref().is_some_and(|current| {
            let spec = &self.specs[self.places.len()];
            current.got == spec.bytes && spec.part != part
        });
        if done {
            self.finish_current()?;
        }
        let spec = self.specs.get(self.places.len());
        let Some(spec) = spec.filter(|spec| spec.part == part) else {
            return Err(Error::PartOrder {
                weight: self.weight.to_owned(),
                expected: spec.map_or("nothing", |spec| spec.part.name()),
                got: part.name(),
            });
        };
        if self.current.is_none() {
            self.begin(spec)?;
        }
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let got = current.got.saturating_add(bytes.len() as u64);
        if got > spec.bytes {
            return Err(Error::PartLength {
                weight: self.weight.to_owned(),
                part: part.name(),
                expected: spec.bytes,
                got,
            });
        }
        current.got = got;
        current.last = bytes.last().copied().unwrap_or(current.last);
        match &mut current.immediate {
            Some(data) => data.extend_from_slice(bytes),
            None => {
                let file = self.writer.file();
                let written = file.append(bytes);
                written.map_err(Error::io("cannot write", file.path()))?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, spec: &PartSpec) -> Result<()> {
        let immediate = spec.is_immediate();
        if !immediate {
            // `PartSpec` is only made for types that have a number.
            let number = spec.dtype.blob_number().unwrap_or_default();
            self.writer
                .file()
                .begin(number, spec.bytes, padding_bits(spec))?;
        }
        self.current = Some(Current {
            got: 0,
            last: 0,
            immediate: immediate.then(Vec::new),
        });
        Ok(())
    }

    fn finish_current(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let spec = &self.specs[self.places.len()];
        if current.got != spec.bytes {
            return Err(Error::PartLength {
                weight: self.weight.to_owned(),
                part: spec.part.name(),
                expected: spec.bytes,
                got: current.got,
            });
        }
        let used = 8 - padding_bits(spec) as u32;
        if u32::from(current.last).checked_shr(used).unwrap_or(0) != 0 {
            return Err(Error::PartPadding {
                weight: self.weight.to_owned(),
                part: spec.part.name(),
            });
        }
        let place = match current.immediate {
            Some(bytes) => {
                self.writer.content.update(Sha256::digest(&bytes));
                PartPlace::Immediate(bytes)
            }
            None => PartPlace::Blob(self.finish_blob()?),
        };
        self.places.push(place);
        Ok(())
    }

    /// Ends a blob, or gives it up for an equal one that is there already.
    fn finish_blob(&mut self) -> Result<BlobPlace> {
        let writer = &mut *self.writer;
        let mut at = writer.files.len() - 1;
        let mut place = BlobPlace {
            file: String::new(),
            offset: 0,
            shared_with: None,
        };
        let Some((offset, key)) = writer.file().end() else {
            return Ok(place);
        };
        writer.content.update(key.sha256);
        place.offset = offset;
        if let Some((file, known, weight)) = writer.known.get(&key).cloned()
            && writer.last_equals(file, known)?
        {
            at = file;
            place.offset = known;
            place.shared_with = Some(weight);
            writer.file().drop_last()?;
        } else {
            let weight = self.weight.to_owned();
            writer.known.insert(key, (at, offset, weight));
        }
        place.file = weight_file_name(at);
        Ok(place)
    }
}

/// Bytes of the parts that are blobs.
pub(super) fn blob_bytes(parts: &[PartSpec]) -> impl Iterator<Item = u64> {
    let blobs = parts.iter().filter(|part| !part.is_immediate());
    blobs.map(|part| part.bytes)
}

/// Unused bits in the last byte of a part.
fn padding_bits(spec: &PartSpec) -> u64 {
    let bits = u64::from(spec.dtype.bits());
    let elements = spec.shape.iter().map(|&dim| dim as u64);
    let rest = elements.fold(bits, |product, dim| product.wrapping_mul(dim) % 8);
    (8 - rest % 8) % 8
}
