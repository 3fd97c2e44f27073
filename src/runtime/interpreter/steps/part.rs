//! Parts of values and of caches: where they lie, not copied.

/// A part of a tensor: from `begin` on, in extents `size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub begin: Vec<usize>,
    pub size: Vec<usize>,
}

impl Region {
    /// All of a tensor of this shape.
    pub fn all(shape: &[usize]) -> Self {
        Self {
            begin: vec![0; shape.len()],
            size: shape.to_vec(),
        }
    }

    /// A part of this part.
    pub fn part(&self, inner: &Region) -> Self {
        let begin = self.begin.iter().zip(&inner.begin);
        Self {
            begin: begin.map(|(a, b)| a + b).collect(),
            size: inner.size.clone(),
        }
    }
}

/// Where a part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// In a value.
    Value(usize),
    /// In a cache. Rows that a step appends come behind those that it found.
    Cache(usize),
}

/// A part of a value or of a cache, not copied.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub base: Base,
    pub region: Region,
}

impl Part {
    /// A part of this part.
    pub fn part(&self, inner: &Region) -> Self {
        Self {
            base: self.base,
            region: self.region.part(inner),
        }
    }
}

/// A part of K or V where it lies: elements, strides, and the largest norm of a row where it is known.
pub(crate) struct Located<'a> {
    pub data: &'a [f32],
    pub strides: Vec<usize>,
    pub largest: Option<f32>,
}

impl Located<'_> {
    /// `width` elements of a row of a head.
    pub fn row(&self, head: usize, row: usize, width: usize) -> &[f32] {
        let start = head * self.strides[1] + row * self.strides[2];
        &self.data[start..start + width]
    }
}

/// Where the operands of a step are.
pub(crate) trait Operands {
    /// The elements of a value that is dense.
    fn dense(&self, value: usize) -> Option<&[f32]>;
    /// A part of a value or cache.
    fn part(&self, part: &Part) -> Option<Located<'_>>;
}
