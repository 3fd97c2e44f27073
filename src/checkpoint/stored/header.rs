//! The header of a safetensors file, checked before the file is mapped.
//!
//! Layout: a little-endian u64 with the length of the header, the header as a JSON object from tensor names to
//! `{dtype, shape, data_offsets: [begin, end]}` (plus `__metadata__`), then the data that the offsets count from. The data
//! must be covered without holes or overlaps. The safetensors crate checks the same when candle maps the file, but says
//! neither which tensor is wrong nor what it expected.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::fields::shorten;

/// Longest header accepted, as in the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(in crate::checkpoint) struct Entry {
    /// Full name.
    pub name: String,
    /// dtype as the file names it.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Begin and end in the data.
    pub offsets: (u64, u64),
}

/// Reads and checks a header. Entries are in the order of their data.
pub(in crate::checkpoint) fn read(path: &Path) -> Result<Vec<Entry>> {
    let io = |source| Error::Io {
        path: path.to_path_buf(),
        source,
    };
    let bad = |what: &'static str, expected: String, got: String| Error::BadFile {
        path: path.to_path_buf(),
        what,
        expected,
        got,
    };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    let Some(rest) = file_len.checked_sub(8) else {
        return Err(bad(
            "file length",
            "at least 8 bytes".into(),
            format!("{file_len}"),
        ));
    };
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(io)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > rest.min(MAX_HEADER) {
        let expected = format!("at most {} bytes", rest.min(MAX_HEADER));
        return Err(bad("header length", expected, format!("{header_len}")));
    }
    let mut bytes = vec![0u8; header_len as usize];
    file.read_exact(&mut bytes).map_err(io)?;
    let mut entries = parse(path, &bytes)?;
    entries.sort_by(|a, b| (a.offsets, &a.name).cmp(&(b.offsets, &b.name)));
    check_cover(path, &entries, rest - header_len)?;
    Ok(entries)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let pairs = json
        .deserialize_map(Pairs)
        .and_then(|pairs| json.end().map(|()| pairs));
    let pairs = pairs.map_err(|e| Error::BadFile {
        path: path.to_path_buf(),
        what: "header",
        expected: "a JSON object from tensor names to their dtype, shape and offsets".into(),
        got: e.to_string(),
    })?;
    let mut entries = Vec::with_capacity(pairs.len());
    let mut names = std::collections::BTreeSet::new();
    for (name, value) in pairs.into_iter().filter(|(name, _)| name != "__metadata__") {
        if !names.insert(name.clone()) {
            return Err(Error::DuplicateTensor {
                tensor: name,
                first: path.to_path_buf(),
                second: path.to_path_buf(),
            });
        }
        entries.push(entry(path, name, &value)?);
    }
    Ok(entries)
}

fn entry(path: &Path, name: String, value: &Value) -> Result<Entry> {
    let bad = |what: &'static str, expected: &str, got: String| Error::BadTensor {
        path: path.to_path_buf(),
        tensor: name.clone(),
        what,
        expected: expected.into(),
        got,
    };
    let field = |key: &str| value.get(key).unwrap_or(&Value::Null);
    let dtype = field("dtype");
    let dtype = dtype
        .as_str()
        .ok_or_else(|| bad("dtype", "a string", shorten(dtype)))?
        .to_string();
    let numbers = |key: &str| {
        let list = field(key).as_array()?;
        list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()
    };
    let shape = numbers("shape")
        .and_then(|dims| dims.into_iter().map(|d| usize::try_from(d).ok()).collect())
        .ok_or_else(|| bad("shape", "a list of sizes", shorten(field("shape"))))?;
    let offsets = match numbers("data_offsets").as_deref() {
        Some(&[begin, end]) if begin <= end => (begin, end),
        _ => {
            let got = shorten(field("data_offsets"));
            return Err(bad("data_offsets", "two ascending numbers", got));
        }
    };
    Ok(Entry {
        name,
        dtype,
        shape,
        offsets,
    })
}

/// Offsets lie in the file, follow each other without hole or overlap, and agree with shape and dtype.
fn check_cover(path: &Path, entries: &[Entry], data_len: u64) -> Result<()> {
    let mut end = 0u64;
    for e in entries {
        let bad = |what: &'static str, expected: String, got: String| Error::BadTensor {
            path: path.to_path_buf(),
            tensor: e.name.clone(),
            what,
            expected,
            got,
        };
        if e.offsets.1 > data_len {
            let expected = format!("an end within the file's {data_len} bytes of data");
            return Err(bad("data_offsets", expected, format!("{}", e.offsets.1)));
        }
        if e.offsets.0 != end {
            let expected = format!("a begin at {end}, where the tensor before ends");
            return Err(bad("data_offsets", expected, format!("{}", e.offsets.0)));
        }
        end = e.offsets.1;
        let Some(bits) = dtype_bits(&e.dtype) else {
            return Err(bad("dtype", "a safetensors dtype".into(), e.dtype.clone()));
        };
        let elements = e
            .shape
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let size = elements
            .and_then(|n| n.checked_mul(bits))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8);
        if size != Some(e.offsets.1 - e.offsets.0) {
            let expected = match size {
                Some(bytes) => format!("{bytes} bytes for {} {:?}", e.dtype, e.shape),
                None => format!(
                    "a size in bytes that fits in 64 bits, for {} {:?}",
                    e.dtype, e.shape
                ),
            };
            return Err(bad(
                "size",
                expected,
                format!("{} bytes", e.offsets.1 - e.offsets.0),
            ));
        }
    }
    if end != data_len {
        return Err(Error::BadFile {
            path: path.to_path_buf(),
            what: "data length",
            expected: format!("{end} bytes, the end of the last tensor"),
            got: format!("{data_len}"),
        });
    }
    Ok(())
}

/// Bits of an element, `None` for a name that safetensors does not know.
fn dtype_bits(name: &str) -> Option<u64> {
    Some(match name {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// A JSON object as pairs, so that a name given twice is seen.
struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}
