//! Weights with seeded content.

use std::collections::BTreeMap;

use gemma_coreml::mil::{DType, DeferredConst};
use gemma_coreml::package::{BoxError, ConstSource, Part, PartSink, PartSpec, Storage};
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Bytes written at a time: odd, so that pieces end anywhere.
const PIECE: usize = 997;

/// Gives each weight random content that depends on nothing but its seed, dense unless said
/// otherwise.
#[derive(Debug, Clone, Default)]
pub struct SeededSource {
    pub storages: BTreeMap<String, Storage>,
    /// Seeds by id; the id's length and letters make one where there is none. Equal seeds and
    /// storages make equal content.
    pub seeds: BTreeMap<String, u64>,
}

impl SeededSource {
    pub fn with(mut self, id: &str, storage: Storage) -> Self {
        self.storages.insert(id.to_owned(), storage);
        self
    }

    pub fn seeded(mut self, id: &str, seed: u64) -> Self {
        self.seeds.insert(id.to_owned(), seed);
        self
    }

    /// The packed bytes of a part.
    pub fn bytes(&self, c: &DeferredConst, spec: &PartSpec) -> Vec<u8> {
        let of_id = || {
            c.id.bytes()
                .fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(b))
        };
        let seed = self.seeds.get(&c.id).copied().unwrap_or_else(of_id);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ spec.part as u64);
        let elements: usize = spec.shape.iter().product();
        if let (Part::Mask, Some(Storage::PaletteSparse { nonzero, .. })) =
            (spec.part, self.storages.get(&c.id))
        {
            let mut bytes = vec![0; spec.bytes as usize];
            let mut left = *nonzero;
            for at in 0..elements {
                // Each of the rest has the same chance.
                if rng.random_range(0..elements - at) < left {
                    bytes[at / 8] |= 1 << (at % 8);
                    left -= 1;
                }
            }
            return bytes;
        }
        match spec.dtype {
            DType::Fp16 => (0..elements)
                .flat_map(|_| f16::from_f32(rng.random_range(-2.0f32..2.0)).to_le_bytes())
                .collect(),
            DType::Fp32 => (0..elements)
                .flat_map(|_| rng.random_range(-2.0f32..2.0).to_le_bytes())
                .collect(),
            dtype => {
                let mut bytes = vec![0; spec.bytes as usize];
                rng.fill(&mut bytes[..]);
                let used = elements * dtype.bits() as usize % 8;
                if let Some(last) = bytes.last_mut()
                    && used > 0
                {
                    *last &= (1 << used) - 1;
                }
                bytes
            }
        }
    }
}

impl ConstSource for SeededSource {
    fn storage(&self, c: &DeferredConst) -> Result<Storage, BoxError> {
        Ok(self.storages.get(&c.id).cloned().unwrap_or(Storage::Dense))
    }

    fn stream(&mut self, c: &DeferredConst, sink: &mut dyn PartSink) -> Result<(), BoxError> {
        for spec in self.storage(c)?.parts(c)? {
            let part: Part = spec.part;
            for piece in self.bytes(c, &spec).chunks(PIECE) {
                sink.write(part, piece)?;
            }
        }
        Ok(())
    }
}
