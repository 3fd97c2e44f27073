//! Values that lie in a larger buffer: caches whose rows move by moving their start, and parts of them.

use super::error::{Error, Result};
use super::kind::Kind;
use super::tensor::{Data, Tensor};
use crate::runtime::kernels::strided::strides;
use crate::runtime::kernels::strided::{View, copy};
use crate::runtime::kernels::wide::sum_of_squares;
use std::sync::Arc;

/// A value between two calls.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// On its own.
    Dense(Tensor),
    /// In a larger buffer.
    Strided(Strided),
}

impl Held {
    /// The value on its own.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Held::Dense(tensor) => Ok(tensor),
            Held::Strided(strided) => strided.to_tensor(),
        }
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Held::Dense(tensor) => tensor.shape(),
            Held::Strided(strided) => &strided.shape,
        }
    }

    /// What the elements are.
    pub fn kind(&self) -> Kind {
        match self {
            Held::Dense(tensor) => tensor.kind(),
            Held::Strided(_) => Kind::Float,
        }
    }

    /// The value as a cache, its memory taken over where nothing shares it.
    pub fn into_cache(self) -> Result<Strided> {
        match self {
            Held::Strided(strided) => Ok(strided),
            Held::Dense(tensor) => Strided::from_tensor(tensor),
        }
    }
}

/// A float tensor in a larger buffer, last stride 1. As a cache: `(slots, heads, rows, width)`, with room for more rows
/// behind those of each head.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    data: Arc<Vec<f32>>,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    offset: usize,
    strides: Vec<usize>,
    /// No run of the last axis that was ever written has a larger Euclidean norm; infinite if a value was not finite.
    pub largest: f32,
}

/// Bounds of [`Strided::largest`] are raised by this factor, more than the rounding of the norms.
const ROUNDING: f64 = 1.000_001;

/// The norm of a row, rounded up.
pub(crate) fn norm(row: &[f32]) -> f32 {
    let norm = (sum_of_squares(row).sqrt() * ROUNDING) as f32;
    if norm.is_finite() {
        norm
    } else {
        f32::INFINITY
    }
}

/// The largest norm of rows of `width`.
pub(crate) fn largest_norm(values: &[f32], width: usize) -> f32 {
    let rows = values.chunks_exact(width.max(1));
    rows.map(norm).fold(0.0, f32::max)
}

impl Strided {
    /// A tensor of four dims as a cache; an error for another rank or kind.
    pub fn from_tensor(tensor: Tensor) -> Result<Self> {
        let shape = tensor.shape().to_vec();
        if shape.len() != 4 {
            return Err(Error::TensorLength {
                expected: 4,
                got: shape.len(),
                shape,
            });
        }
        let largest = largest_norm(tensor.as_f32()?, shape[3]);
        let Data::F32(data) = tensor.into_data() else {
            return Err(Error::TensorKind {
                expected: Kind::Float,
                got: Kind::Int,
            });
        };
        Ok(Self {
            data,
            offset: 0,
            strides: strides(&shape),
            shape,
            largest,
        })
    }

    /// The value on its own.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut out = vec![0.0; self.shape.iter().product()];
        copy(
            &self.shape,
            &self.data,
            &self.view(),
            &mut out,
            &View::dense(&self.shape),
        );
        Tensor::f32(&self.shape, out)
    }

    fn view(&self) -> View {
        View {
            offset: self.offset,
            strides: self.strides.iter().map(|&s| s as isize).collect(),
        }
    }

    /// The elements from the first on, and how far apart neighbours of each axis are.
    pub fn elements(&self) -> (&[f32], &[usize]) {
        (&self.data[self.offset..], &self.strides)
    }

    /// Rows that a head has room for.
    fn capacity(&self) -> usize {
        self.strides[1] / self.strides[2].max(1)
    }

    fn start(&self) -> usize {
        self.offset / self.strides[2].max(1)
    }

    /// Makes room for `rows` more rows behind those of each head of a cache.
    pub fn make_room(&mut self, rows: usize) {
        let [slots, heads, length, width] = self.dims();
        let (capacity, start) = (self.capacity(), self.start());
        if start + length + rows <= capacity || width == 0 {
            return;
        }
        let block = |cap: usize| (cap * width).max(1);
        if length + rows <= capacity && Arc::get_mut(&mut self.data).is_some() {
            let data = Arc::make_mut(&mut self.data);
            for head in data.chunks_exact_mut(block(capacity)) {
                head.copy_within(start * width..(start + length) * width, 0);
            }
        } else {
            let larger = length + rows.max((length / 4).clamp(1, 128));
            let mut data = vec![0.0; slots * heads * larger * width];
            let old = self.data.chunks_exact(block(capacity));
            for (to, from) in data.chunks_exact_mut(block(larger)).zip(old) {
                to[..length * width]
                    .copy_from_slice(&from[start * width..(start + length) * width]);
            }
            self.data = Arc::new(data);
            self.strides = vec![heads * larger * width, larger * width, width, 1];
        }
        self.offset = 0;
    }

    /// The dims of a cache.
    pub fn dims(&self) -> [usize; 4] {
        let dim = |i: usize| self.shape.get(i).copied().unwrap_or(1);
        [dim(0), dim(1), dim(2), dim(3)]
    }

    /// Replaces values of a row of a cache from `column` on: of the rows it has, or, where there is room, behind them.
    pub fn write(
        &mut self,
        (slot, head, row): (usize, usize, usize),
        column: usize,
        values: &[f32],
    ) {
        let row = self.row_mut(slot, head, row);
        row[column..column + values.len()].copy_from_slice(values);
        let norm = norm(row);
        self.largest = self.largest.max(norm);
    }

    /// Changes the rows of a head of a cache in place.
    pub fn change(&mut self, (slot, head): (usize, usize), mut f: impl FnMut(usize, &mut [f32])) {
        let mut largest = self.largest;
        for row in 0..self.shape[2] {
            let values = self.row_mut(slot, head, row);
            f(row, values);
            largest = largest.max(norm(values));
        }
        self.largest = largest;
    }

    fn row_mut(&mut self, slot: usize, head: usize, row: usize) -> &mut [f32] {
        let at =
            self.offset + slot * self.strides[0] + head * self.strides[1] + row * self.strides[2];
        &mut Arc::make_mut(&mut self.data)[at..at + self.shape[3]]
    }

    /// Drops the oldest rows of a cache; those behind its rows take their places.
    pub fn advance(&mut self, rows: usize) {
        self.offset += rows * self.strides[2];
    }

    /// The elements from `begin` on, in their extents `size`. They must lie in the buffer.
    pub fn part(&self, begin: &[usize], size: &[usize]) -> Self {
        let moved: usize = begin.iter().zip(&self.strides).map(|(b, s)| b * s).sum();
        Self {
            data: self.data.clone(),
            shape: size.to_vec(),
            offset: self.offset + moved,
            strides: self.strides.clone(),
            largest: self.largest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> Strided {
        let values = (0..2 * 2 * 3 * 2).map(|v| v as f32).collect();
        Strided::from_tensor(Tensor::f32(&[2, 2, 3, 2], values).unwrap()).unwrap()
    }

    /// Appends a row of `value` to every head, as a list of every head's first column.
    fn appended(cache: &mut Strided, value: f32) -> Vec<f32> {
        cache.make_room(1);
        for slot in 0..2 {
            for head in 0..2 {
                cache.write((slot, head, 3), 0, &[value, value]);
            }
        }
        cache.advance(1);
        let tensor = cache.to_tensor().unwrap();
        tensor
            .as_f32()
            .unwrap()
            .iter()
            .copied()
            .step_by(2)
            .collect()
    }

    #[test]
    fn rows_move_on_whatever_the_room() {
        let mut cache = cache();
        let mut expected: Vec<Vec<f32>> = (0..4)
            .map(|h| (0..3).map(|r| (h * 6 + r * 2) as f32).collect())
            .collect();
        for step in 0..9 {
            let value = 100.0 + step as f32;
            for head in &mut expected {
                head.remove(0);
                head.push(value);
            }
            // Another owner forces a copy, which it does not see.
            let shared = (step % 3 == 0).then(|| cache.clone());
            let before = shared.as_ref().map(|s| s.to_tensor().unwrap());
            assert_eq!(appended(&mut cache, value), expected.concat(), "{step}");
            assert_eq!(shared.map(|s| s.to_tensor().unwrap()), before);
        }
        assert!(cache.largest >= 108.0 * 2f32.sqrt());
    }

    #[test]
    fn a_part_is_a_slice() {
        let cache = cache();
        let part = cache.part(&[1, 0, 1, 0], &[1, 2, 2, 1]);
        let tensor = part.to_tensor().unwrap();
        assert_eq!(tensor.as_f32().unwrap(), [14.0, 16.0, 20.0, 22.0]);
    }

    #[test]
    fn what_is_not_finite_has_no_bound() {
        assert_eq!(norm(&[3.0, f32::NAN]), f32::INFINITY);
        assert_eq!(
            largest_norm(&[3.0, 4.0, f32::INFINITY, 0.0], 2),
            f32::INFINITY
        );
        assert!((largest_norm(&[3.0, 4.0, 1.0, 0.0], 2) - 5.0).abs() < 1e-4);
    }
}
