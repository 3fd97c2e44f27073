//! Bringing the axes that an op runs over to the end.

use super::pool::Pool;
use crate::runtime::kernels::strided::{View, copy};
use std::borrow::Cow;

/// A tensor seen as `[outer, inner]`, `inner` running over the chosen axes in their order.
#[derive(Debug)]
pub(crate) struct AxesLast {
    permuted: Vec<usize>,
    view: View,
    /// Number of places that the op runs at.
    pub outer: usize,
    /// Number of elements that the op runs over.
    pub inner: usize,
    contiguous: bool,
}

impl AxesLast {
    /// For a tensor of `shape` and the axes where `chosen` is true.
    pub fn new(shape: &[usize], chosen: &[bool]) -> Self {
        let order: Vec<usize> = (0..shape.len())
            .filter(|&i| !chosen[i])
            .chain((0..shape.len()).filter(|&i| chosen[i]))
            .collect();
        let dense = View::dense(shape);
        let moving: Vec<usize> = order.iter().copied().filter(|&i| shape[i] != 1).collect();
        let product = |want: bool| {
            (0..shape.len())
                .filter(|&i| chosen[i] == want)
                .map(|i| shape[i])
                .product()
        };
        Self {
            permuted: order.iter().map(|&i| shape[i]).collect(),
            view: View {
                offset: 0,
                strides: order.iter().map(|&i| dense.strides[i]).collect(),
            },
            outer: product(false),
            inner: product(true),
            contiguous: moving.is_sorted(),
        }
    }

    /// The elements in `[outer, inner]` order.
    pub fn gather<'a>(&self, x: &'a [f32], pool: &mut Pool) -> Cow<'a, [f32]> {
        if self.contiguous {
            return Cow::Borrowed(x);
        }
        let mut out = pool.floats(x.len());
        let dense = View::dense(&self.permuted);
        copy(&self.permuted, x, &self.view, &mut out, &dense);
        Cow::Owned(out)
    }

    /// Back from `[outer, inner]` to the order of the tensor.
    pub fn scatter<T: Copy>(&self, y: Vec<T>) -> Vec<T> {
        if self.contiguous {
            return y;
        }
        let mut out = y.clone();
        let dense = View::dense(&self.permuted);
        copy(&self.permuted, &y, &dense, &mut out, &self.view);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_middle_axis_goes_to_the_end_and_back() {
        let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let axes = AxesLast::new(&[2, 3, 2], &[false, true, false]);
        let mut pool = Pool::default();
        assert_eq!((axes.outer, axes.inner), (4, 3));
        let y = axes.gather(&x, &mut pool).into_owned();
        assert_eq!(y[..6], [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(axes.scatter(y), x);
    }

    #[test]
    fn trailing_ones_need_no_copy() {
        let axes = AxesLast::new(&[2, 8, 1, 1], &[false, true, false, false]);
        let x = vec![0.0; 16];
        assert!(matches!(
            axes.gather(&x, &mut Pool::default()),
            Cow::Borrowed(_)
        ));
    }
}
