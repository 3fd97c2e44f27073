//! What palette indices mean: shapes, groups and places in a LUT.

use crate::runtime::values::tensor::elements;

/// Palette indices and their LUTs.
#[derive(Debug)]
pub(crate) struct Palette {
    /// Bits per index: 1, 2, 3, 4, 6 or 8.
    pub bits: u32,
    /// Shape of the indices.
    pub index_shape: Vec<usize>,
    /// `[g0, ..., 2^bits, vector]`: one LUT per group, each of the first dims dividing that of the indices.
    pub lut_shape: Vec<usize>,
    /// The LUT values, row-major.
    pub lut: Vec<f32>,
    /// The dim along which the vectors of the LUT lie; ignored for vectors of one.
    pub vector_axis: usize,
}

impl Palette {
    /// The shape of what is looked up. `None` if the shapes and the LUT do not fit together.
    pub fn shape(&self) -> Option<Vec<usize>> {
        let rank = self.index_shape.len();
        let (groups, rest) = self.lut_shape.split_at_checked(rank)?;
        let &[entries, vector] = rest else {
            return None;
        };
        let fits = groups
            .iter()
            .zip(&self.index_shape)
            .all(|(&g, &n)| g > 0 && n % g == 0);
        let full = elements(&self.lut_shape) == Some(self.lut.len());
        let bits = self.bits;
        let valid = fits && full && (1..=8).contains(&bits) && entries == 1 << bits && vector > 0;
        if !valid || rank == 0 || (vector > 1 && self.vector_axis >= rank) {
            return None;
        }
        let mut shape = self.index_shape.clone();
        if vector > 1 {
            let dim = &mut shape[self.vector_axis];
            *dim = dim.checked_mul(vector)?;
        }
        Some(shape)
    }

    pub fn vector(&self) -> usize {
        self.lut_shape[self.lut_shape.len() - 1]
    }

    /// Row of the indices that holds `row`, and where its LUTs start (the place in the vector included).
    pub fn row(&self, row: usize) -> (usize, usize) {
        let vector = self.vector();
        let (index_row, lane) = match vector > 1 && self.vector_axis == 0 {
            true => (row / vector, row % vector),
            false => (row, 0),
        };
        let group = index_row / (self.index_shape[0] / self.lut_shape[0]);
        let stride: usize = self.lut_shape[1..].iter().product();
        (index_row, group * stride + lane)
    }
}

/// The coordinates of every column of a weight of `shape`, in order.
pub(super) fn column_coordinates(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let dims = shape[1..].to_vec();
    let columns = dims.iter().product();
    (0..columns).map(move |mut column: usize| {
        let mut at = vec![0; dims.len()];
        for (c, &n) in at.iter_mut().zip(&dims).rev() {
            *c = column % n;
            column /= n;
        }
        at
    })
}

/// Flat index of the group that an element at `at` of a tensor of `shape` belongs to, with `groups` groups per dim.
pub(super) fn group_of(at: &[usize], shape: &[usize], groups: &[usize]) -> usize {
    let dims = at.iter().zip(shape).zip(groups);
    dims.fold(0, |flat, ((&i, &n), &g)| flat * g + i / (n / g))
}

/// Where each column finds its index and its LUT. `None` if it does not fit in `u32`.
pub(super) fn palette_columns(palette: &Palette, shape: &[usize]) -> Option<Vec<(u32, u32)>> {
    let rank = shape.len();
    let vector = palette.vector();
    let groups = &palette.lut_shape[1..rank];
    let index_dims = &palette.index_shape[1..];
    let in_columns = vector > 1 && palette.vector_axis > 0;
    if !in_columns && groups.iter().all(|&g| g == 1) {
        return Some(Vec::new());
    }
    let lut_size = (1 << palette.bits) * vector;
    column_coordinates(shape)
        .map(|mut at| {
            let mut lane = 0;
            if in_columns {
                let coordinate = &mut at[palette.vector_axis - 1];
                lane = *coordinate % vector;
                *coordinate /= vector;
            }
            let column = at
                .iter()
                .zip(index_dims)
                .fold(0, |flat, (&i, &n)| flat * n + i);
            let place = group_of(&at, index_dims, groups) * lut_size + lane;
            Some((u32::try_from(column).ok()?, u32::try_from(place).ok()?))
        })
        .collect()
}
