//! Buffers of dead tensors, kept for the next result of about their size.

use super::tensor::{Data, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Freed buffers by capacity. Holds at most what was live at once.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    floats: BTreeMap<usize, Vec<Vec<f32>>>,
}

/// A buffer is reused for a result that fills at least this fraction (one in so many elements) of it.
const LARGEST_WASTE: usize = 4;

impl Pool {
    /// A buffer of `len` elements of unspecified value.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        let largest = len.saturating_mul(LARGEST_WASTE);
        // Lists that ran empty stay: their sizes come again.
        let mut fitting = self.floats.range_mut(len..=largest);
        match fitting.find_map(|(_, buffers)| buffers.pop()) {
            Some(mut buffer) => {
                buffer.resize(len, 0.0);
                buffer
            }
            None => vec![0.0; len],
        }
    }

    /// Takes the buffer of a tensor that nothing else shares.
    pub fn recycle(&mut self, tensor: Tensor) {
        if let Data::F32(data) = tensor.into_data()
            && let Ok(buffer) = Arc::try_unwrap(data)
        {
            self.recycle_floats(buffer);
        }
    }

    /// Takes a buffer.
    pub fn recycle_floats(&mut self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            self.floats
                .entry(buffer.capacity())
                .or_default()
                .push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(pool: &Pool) -> usize {
        pool.floats.values().map(Vec::len).sum()
    }

    #[test]
    fn a_unique_buffer_is_reused_and_a_shared_one_is_not() {
        let mut pool = Pool::default();
        let tensor = Tensor::f32(&[8], vec![1.0; 8]).unwrap();
        let shared = tensor.clone();
        pool.recycle(tensor);
        assert_eq!(buffers(&pool), 0);
        let address = shared.as_f32().unwrap().as_ptr();
        pool.recycle(shared);
        let reused = pool.floats(7);
        assert_eq!(reused.as_ptr(), address);
        assert_eq!(buffers(&pool), 0);
    }

    #[test]
    fn a_much_larger_buffer_is_left_for_larger_results() {
        let mut pool = Pool::default();
        pool.recycle_floats(vec![0.0; 100]);
        assert_eq!(pool.floats(10).len(), 10);
        assert_eq!(buffers(&pool), 1);
        assert_eq!(pool.floats(50).len(), 50);
        assert_eq!(buffers(&pool), 0);
    }
}
