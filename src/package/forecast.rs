//! What a package will take, before any of its weights is read.

use std::collections::{BTreeMap, HashMap};

use prost::Message;

use super::blob::{HEADER_BYTES, begins_file, end_of_blob, weight_file_name};
use super::error::{BoxError, Error, Result};
use super::manifest::Manifest;
use super::places::{BlobPlace, ConstPlace, PartPlace};
use super::storage::{Part, PartSpec, Storage};
use super::write::{PackageSpec, blob_bytes, checked, from_source};
use super::{MODEL_PATH, WEIGHTS_DIR, spec};
use crate::mil::DeferredConst;

/// Lengths of the weight files of a package, filled as the writer fills them.
#[derive(Debug, Clone)]
pub struct Shards {
    limit: u64,
    files: Vec<Shard>,
    /// Places of data that is known, by element type number and bytes, with the weight it came with.
    known: HashMap<(Option<u32>, Vec<u8>), (BlobPlace, String)>,
}

/// The length of one weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Bytes.
    pub bytes: u64,
    /// Blobs.
    pub blobs: u32,
}

/// A file without blobs.
const EMPTY: Shard = Shard {
    bytes: HEADER_BYTES,
    blobs: 0,
};

impl Shards {
    /// Files that stay below `limit` bytes ([`PackageSpec::file_limit`]).
    pub fn new(limit: u64) -> Self {
        Shards {
            limit,
            files: vec![EMPTY],
            known: HashMap::new(),
        }
    }

    /// The files in order: `weight.bin`, `weight_1.bin`, ...
    pub fn files(&self) -> &[Shard] {
        &self.files
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Adds a weight; gives the place of each part, immediates as zeros. `data` are the bytes of its [`Part::Data`] where
    /// they are known: the same bytes a second time take no room.
    ///
    /// # Errors
    /// [`Error::WeightTooLarge`].
    pub fn add(
        &mut self,
        c: &DeferredConst,
        parts: &[PartSpec],
        data: Option<&[u8]>,
    ) -> Result<Vec<PartPlace>> {
        let blobs: Vec<u64> = blob_bytes(parts).collect();
        let last = self.files[self.files.len() - 1];
        let begins = begins_file(&c.id, last.bytes, &blobs, self.limit)?;
        if begins {
            self.files.push(EMPTY);
        }
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            let data = data.filter(|_| part.part == Part::Data);
            places.push(match part.is_immediate() {
                true => PartPlace::Immediate(vec![0; part.bytes as usize]),
                false => PartPlace::Blob(self.place(c, part, data)?),
            });
        }
        if begins && self.files.last() == Some(&EMPTY) {
            self.files.pop();
        }
        Ok(places)
    }

    fn place(
        &mut self,
        c: &DeferredConst,
        part: &PartSpec,
        data: Option<&[u8]>,
    ) -> Result<BlobPlace> {
        let key = data.map(|data| (part.dtype.blob_number(), data.to_vec()));
        if let Some((place, weight)) = key.as_ref().and_then(|key| self.known.get(key)) {
            return Ok(BlobPlace {
                shared_with: Some(weight.clone()),
                ..place.clone()
            });
        }
        let at = self.files.len() - 1;
        let file = &mut self.files[at];
        let end = end_of_blob(file.bytes, part.bytes).ok_or_else(|| Error::Storage {
            weight: c.id.clone(),
            message: "the file becomes too large".to_owned(),
        })?;
        let place = BlobPlace {
            file: weight_file_name(at),
            offset: end - part.bytes - HEADER_BYTES,
            shared_with: None,
        };
        *file = Shard {
            bytes: end,
            blobs: file.blobs + 1,
        };
        if let Some(key) = key {
            self.known.insert(key, (place.clone(), c.id.clone()));
        }
        Ok(place)
    }
}

/// What [`super::write_package`] will write.
#[derive(Debug, Clone)]
pub struct PackageForecast {
    /// The weight files in order.
    pub weights: Vec<Shard>,
    /// Bytes of every file by its path in the package.
    pub files: BTreeMap<String, u64>,
}

/// Gives the bytes of a dense weight, or `None` where they are not known.
pub type KnownData<'a> =
    dyn FnMut(&DeferredConst) -> std::result::Result<Option<Vec<u8>>, BoxError> + 'a;

/// How a weight will be stored: what [`super::ConstSource::storage`] will say.
pub type StorageOf<'a> = dyn Fn(&DeferredConst) -> std::result::Result<Storage, BoxError> + 'a;

/// Predicts the files of a package to the byte, from the storages of its weights and the bytes of such dense weights as `data`
/// gives. Weights that `data` does not give are taken to differ from each other: where two of them have the same bytes, the
/// package is smaller.
///
/// # Errors
/// As [`super::write_package`], files apart, and those of `data`.
pub fn forecast_package(
    package: &PackageSpec<'_>,
    storage_of: &StorageOf<'_>,
    data: &mut KnownData<'_>,
) -> Result<PackageForecast> {
    let mut shards = Shards::new(package.file_limit);
    let mut consts = BTreeMap::new();
    for c in checked(package)? {
        let storage = storage_of(c).map_err(|e| from_source(c, e))?;
        let known = data(c).map_err(|e| from_source(c, e))?;
        let parts = storage.parts(c)?;
        let places = shards.add(c, &parts, known.as_deref())?;
        let parts = parts.into_iter().zip(places).collect();
        consts.insert(c.id.clone(), ConstPlace { storage, parts });
    }
    let model = spec::model(package.program, &package.description, &consts)?;
    let weights = shards.files;
    let named = weights.iter().enumerate();
    let mut files: BTreeMap<String, u64> = named
        .map(|(i, file)| (format!("{WEIGHTS_DIR}/{}", weight_file_name(i)), file.bytes))
        .collect();
    files.insert(MODEL_PATH.to_owned(), model.encoded_len() as u64);
    // Ids of all contents have the same length.
    let manifest = Manifest::new(&[0; 32]).to_json()?;
    files.insert("Manifest.json".to_owned(), manifest.len() as u64);
    Ok(PackageForecast { weights, files })
}
