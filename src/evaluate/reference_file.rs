//! Reference files: safetensors with, for prompt `i` counted from 0,
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `p{i}.prompt_ids` | `[P]` | i32 or i64 |
//! | `p{i}.generated_ids` | `[N]` | i32 or i64 |
//! | `p{i}.logits` | `[N, V]` | f32; row n is what generated id n was chosen from |
//! | `p{i}.hidden` (optional) | `[L+2, S, H]` | f32; scaled embedding, each layer's output, final norm; first S positions |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{TensorInfo, TensorView};

use super::error::{Error, Result};
use super::trace::{Hidden, Rows, Trace};
use crate::checkpoint::{MapError, MappedSafetensors};

/// An opened reference file. Header and shapes are checked on opening; values are read prompt by prompt.
pub struct ReferenceFile {
    path: PathBuf,
    file: MappedSafetensors,
    prompts: usize,
}

impl ReferenceFile {
    /// Opens `path` and checks every prompt's names, dtypes and shapes.
    ///
    /// # Errors
    /// Not readable, not safetensors, no prompt 0, a tensor missing, of another dtype, or shapes that do not agree.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedSafetensors::open(path).map_err(|e| match e {
            MapError::Open(source) | MapError::Map(source) => Error::Io {
                path: path.into(),
                source,
            },
            MapError::Header(source) => Error::Safetensors {
                path: path.into(),
                source,
            },
        })?;
        let mut this = ReferenceFile {
            path: path.into(),
            file,
            prompts: 0,
        };
        while this
            .file
            .metadata
            .info(&format!("p{}.prompt_ids", this.prompts))
            .is_some()
        {
            this.check_prompt(this.prompts)?;
            this.prompts += 1;
        }
        if this.prompts == 0 {
            return Err(Error::MissingTensor {
                path: path.into(),
                name: "p0.prompt_ids".into(),
            });
        }
        Ok(this)
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.prompts
    }

    /// Whether there are no prompts; never so for an opened file.
    pub fn is_empty(&self) -> bool {
        self.prompts == 0
    }

    /// Reads prompt `index`.
    ///
    /// # Errors
    /// An id that is negative or beyond the logits' width; `index` past the end.
    pub fn prompt(&self, index: usize) -> Result<Trace> {
        let name = |what: &str| format!("p{index}.{what}");
        if index >= self.prompts {
            return Err(Error::MissingTensor {
                path: self.path.clone(),
                name: name("prompt_ids"),
            });
        }
        let prompt_ids = self.ids(&name("prompt_ids"))?;
        let generated_ids = self.ids(&name("generated_ids"))?;
        let logits = self.info(&name("logits"))?;
        let vocab = logits.shape[1];
        for (what, ids) in [
            ("prompt_ids", &prompt_ids),
            ("generated_ids", &generated_ids),
        ] {
            if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                return Err(self.tensor_error(
                    &name(what),
                    format!("ids below the vocabulary size {vocab}"),
                    id.to_string(),
                ));
            }
        }
        let logits = Rows {
            width: vocab,
            data: self.floats(&name("logits"))?,
        };
        let hidden = match self.file.metadata.info(&name("hidden")) {
            None => None,
            Some(info) => Some(Hidden {
                states: info.shape[0],
                positions: info.shape[1],
                width: info.shape[2],
                data: self.floats(&name("hidden"))?,
            }),
        };
        Ok(Trace {
            prompt_ids,
            generated_ids,
            logits,
            hidden,
        })
    }

    /// Reads every prompt.
    ///
    /// # Errors
    /// As [`ReferenceFile::prompt`].
    pub fn read_all(&self) -> Result<Vec<Trace>> {
        (0..self.prompts).map(|i| self.prompt(i)).collect()
    }

    fn check_prompt(&self, index: usize) -> Result<()> {
        let name = |what: &str| format!("p{index}.{what}");
        let prompt = self.expect(&name("prompt_ids"), "[P], P > 0", |s| {
            s.len() == 1 && s[0] > 0
        })?;
        let prompt_len = prompt.shape[0];
        let generated = self.expect(&name("generated_ids"), "[N], N > 0", |s| {
            s.len() == 1 && s[0] > 0
        })?;
        let n = generated.shape[0];
        self.expect(&name("logits"), &format!("[{n}, V], V > 0"), |s| {
            s.len() == 2 && s[0] == n && s[1] > 0
        })?;
        if self.file.metadata.info(&name("hidden")).is_some() {
            let most = prompt_len + n;
            self.expect(
                &name("hidden"),
                &format!("[L + 2, S, H], S at most {most}"),
                |s| s.len() == 3 && s[0] > 2 && s[1] > 0 && s[1] <= most && s[2] > 0,
            )?;
        }
        for (what, allowed) in [
            ("prompt_ids", &[Dtype::I32, Dtype::I64][..]),
            ("generated_ids", &[Dtype::I32, Dtype::I64][..]),
            ("logits", &[Dtype::F32][..]),
            ("hidden", &[Dtype::F32][..]),
        ] {
            if let Some(info) = self.file.metadata.info(&name(what))
                && !allowed.contains(&info.dtype)
            {
                return Err(self.tensor_error(
                    &name(what),
                    format!("dtype {allowed:?}"),
                    format!("{:?}", info.dtype),
                ));
            }
        }
        Ok(())
    }

    fn expect(
        &self,
        name: &str,
        expected: &str,
        good: impl Fn(&[usize]) -> bool,
    ) -> Result<&TensorInfo> {
        let info = self.info(name)?;
        if good(&info.shape) {
            Ok(info)
        } else {
            Err(self.tensor_error(
                name,
                format!("shape {expected}"),
                format!("{:?}", info.shape),
            ))
        }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.file
            .metadata
            .info(name)
            .ok_or_else(|| Error::MissingTensor {
                path: self.path.clone(),
                name: name.into(),
            })
    }

    fn tensor_error(&self, name: &str, expected: String, got: String) -> Error {
        Error::Tensor {
            path: self.path.clone(),
            name: name.into(),
            expected,
            got,
        }
    }

    fn bytes(&self, name: &str) -> Result<(&[u8], Dtype)> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = self.file.map[self.file.data..]
            .get(start..end)
            .ok_or_else(|| {
                self.tensor_error(
                    name,
                    "offsets inside the file".into(),
                    format!("{start}..{end}"),
                )
            })?;
        Ok((bytes, info.dtype))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let (bytes, _) = self.bytes(name)?;
        Ok(bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let (bytes, dtype) = self.bytes(name)?;
        let as_i64: Vec<i64> = if dtype == Dtype::I32 {
            bytes
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect()
        } else {
            bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()))
                .collect()
        };
        as_i64
            .into_iter()
            .map(|id| {
                u32::try_from(id).map_err(|_| {
                    self.tensor_error(name, "ids of 0 and above".into(), id.to_string())
                })
            })
            .collect()
    }
}

/// Writes `traces` as a reference file.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, traces: &[Trace]) -> Result<()> {
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (i, t) in traces.iter().enumerate() {
        for (what, ids) in [
            ("prompt_ids", &t.prompt_ids),
            ("generated_ids", &t.generated_ids),
        ] {
            let bytes = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes());
            tensors.insert(
                format!("p{i}.{what}"),
                (Dtype::I64, vec![ids.len()], bytes.collect()),
            );
        }
        let f32_bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        tensors.insert(
            format!("p{i}.logits"),
            (
                Dtype::F32,
                vec![t.logits.len(), t.logits.width],
                f32_bytes(&t.logits.data),
            ),
        );
        if let Some(h) = &t.hidden {
            tensors.insert(
                format!("p{i}.hidden"),
                (
                    Dtype::F32,
                    vec![h.states, h.positions, h.width],
                    f32_bytes(&h.data),
                ),
            );
        }
    }
    let failed = |source| Error::Safetensors {
        path: path.into(),
        source,
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, (dtype, shape, bytes)) in &tensors {
        views.push((
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?,
        ));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => Error::Io {
            path: path.into(),
            source,
        },
        other => failed(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Trace {
        Trace {
            prompt_ids: vec![2, 7],
            generated_ids: vec![3, 1],
            logits: Rows {
                width: 8,
                data: (0..16).map(|v| v as f32).collect(),
            },
            hidden: Some(Hidden {
                states: 3,
                positions: 2,
                width: 2,
                data: (0..12).map(|v| v as f32).collect(),
            }),
        }
    }

    fn open_tensors(tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)>) -> Result<ReferenceFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.safetensors");
        let views: Vec<_> = tensors
            .iter()
            .map(|(n, d, s, b)| (*n, TensorView::new(*d, s.clone(), b).unwrap()))
            .collect();
        safetensors::serialize_to_file(views, None, &path).unwrap();
        ReferenceFile::open(&path)
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.safetensors");
        let mut second = sample();
        second.hidden = None;
        write(&path, &[sample(), second.clone()]).unwrap();
        let file = ReferenceFile::open(&path).unwrap();
        assert_eq!(file.read_all().unwrap(), [sample(), second]);
    }

    #[test]
    fn writing_is_deterministic() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write(&a, &[sample()]).unwrap();
        write(&b, &[sample()]).unwrap();
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    }

    #[test]
    fn malformed_files_are_errors() {
        let ids = |n: usize| vec![0u8; n * 8];
        let base = |logits: Vec<usize>| {
            let bytes = vec![0u8; logits.iter().product::<usize>() * 4];
            vec![
                ("p0.prompt_ids", Dtype::I64, vec![2], ids(2)),
                ("p0.generated_ids", Dtype::I64, vec![2], ids(2)),
                ("p0.logits", Dtype::F32, logits, bytes),
            ]
        };
        assert!(open_tensors(base(vec![2, 8])).is_ok());
        assert!(matches!(
            open_tensors(base(vec![3, 8])),
            Err(Error::Tensor { name, .. }) if name == "p0.logits"
        ));
        assert!(matches!(
            open_tensors(base(vec![2, 8])[..2].to_vec()),
            Err(Error::MissingTensor { name, .. }) if name == "p0.logits"
        ));
        assert!(matches!(
            open_tensors(base(vec![2, 8])[1..].to_vec()),
            Err(Error::MissingTensor { name, .. }) if name == "p0.prompt_ids"
        ));
        let mut wrong = base(vec![2, 8]);
        wrong[2] = ("p0.logits", Dtype::F16, vec![2, 8], vec![0; 32]);
        assert!(matches!(open_tensors(wrong), Err(Error::Tensor { .. })));
        let mut beyond = base(vec![2, 8]);
        beyond[0].3[0] = 8;
        let file = open_tensors(beyond).unwrap();
        assert!(matches!(file.prompt(0), Err(Error::Tensor { got, .. }) if got == "8"));
        let mut negative = base(vec![2, 8]);
        negative[0].3 = (-1i64).to_le_bytes().repeat(2);
        let file = open_tensors(negative).unwrap();
        assert!(matches!(file.prompt(0), Err(Error::Tensor { got, .. }) if got == "-1"));
        assert!(file.prompt(1).is_err());
    }

    #[test]
    fn truncated_and_foreign_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.safetensors");
        write(&path, &[sample()]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 9, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(ReferenceFile::open(&path).is_err(), "cut at {cut}");
        }
        assert!(ReferenceFile::open(&dir.path().join("none")).is_err());
        assert!(ReferenceFile::open(dir.path()).is_err());
    }
}
