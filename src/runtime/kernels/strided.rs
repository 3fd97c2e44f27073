//! Copies between strided views, the one primitive under transpose, slice, concat, split, tile and pad.

/// A view: where element `[0, 0, ...]` lies and how far apart neighbours are, in elements.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub offset: usize,
    pub strides: Vec<isize>,
}

impl View {
    /// The row-major view of a whole tensor of `shape`.
    pub fn dense(shape: &[usize]) -> Self {
        let strides = strides(shape);
        Self {
            offset: 0,
            strides: strides.into_iter().map(|s| s as isize).collect(),
        }
    }
}

/// Row-major strides of a shape, in elements.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Copies the elements of `shape` from view `from` of `src` to view `to` of `dst`. The views must lie inside the slices.
pub(crate) fn copy<T: Copy>(shape: &[usize], src: &[T], from: &View, dst: &mut [T], to: &View) {
    debug_assert_eq!(shape.len(), from.strides.len());
    debug_assert_eq!(shape.len(), to.strides.len());
    if shape.contains(&0) {
        return;
    }
    let dims = collapse(shape, &from.strides, &to.strides);
    recurse(&dims, src, from.offset as isize, dst, to.offset as isize);
}

/// One loop of a copy: extent, source stride, target stride.
type Loop = (usize, isize, isize);

/// Drops loops of one turn and merges neighbours that are contiguous in both views.
fn collapse(shape: &[usize], from: &[isize], to: &[isize]) -> Vec<Loop> {
    let mut loops: Vec<Loop> = Vec::with_capacity(shape.len());
    for ((&n, &s), &t) in shape.iter().zip(from).zip(to) {
        if n == 1 {
            continue;
        }
        match loops.last_mut() {
            Some((m, ms, mt)) if *ms == s * n as isize && *mt == t * n as isize => {
                *m *= n;
                *ms = s;
                *mt = t;
            }
            _ => loops.push((n, s, t)),
        }
    }
    loops
}

fn recurse<T: Copy>(loops: &[Loop], src: &[T], from: isize, dst: &mut [T], to: isize) {
    match loops {
        [] => dst[to as usize] = src[from as usize],
        [(n, s, t)] => innermost((*n, *s, *t), src, from, dst, to),
        [(n, s, t), rest @ ..] => {
            for i in 0..*n as isize {
                recurse(rest, src, from + i * s, dst, to + i * t);
            }
        }
    }
}

fn innermost<T: Copy>((n, s, t): Loop, src: &[T], from: isize, dst: &mut [T], to: isize) {
    match (s, t) {
        (1, 1) => {
            let (from, to) = (from as usize, to as usize);
            dst[to..to + n].copy_from_slice(&src[from..from + n]);
        }
        (0, 1) => dst[to as usize..to as usize + n].fill(src[from as usize]),
        _ => {
            for i in 0..n as isize {
                dst[(to + i * t) as usize] = src[(from + i * s) as usize];
            }
        }
    }
}

/// `[rows, cols]` to `[cols, rows]`.
pub(crate) fn transpose(x: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    for (c, out) in out.chunks_exact_mut(rows.max(1)).enumerate() {
        for (r, o) in out.iter_mut().enumerate() {
            *o = x[r * cols + c];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes() {
        let src: Vec<i32> = (0..6).collect();
        let mut dst = vec![0; 6];
        // [2, 3] read as its transpose [3, 2].
        let from = View {
            offset: 0,
            strides: vec![1, 3],
        };
        copy(&[3, 2], &src, &from, &mut dst, &View::dense(&[3, 2]));
        assert_eq!(dst, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn reverses_repeats_and_merges() {
        let src: Vec<i32> = (0..4).collect();
        let mut dst = vec![0; 8];
        let from = View {
            offset: 3,
            strides: vec![0, -1],
        };
        copy(&[2, 4], &src, &from, &mut dst, &View::dense(&[2, 4]));
        assert_eq!(dst, [3, 2, 1, 0, 3, 2, 1, 0]);
        let dense = View::dense(&[2, 1, 3, 4]);
        assert_eq!(
            collapse(&[2, 1, 3, 4], &dense.strides, &dense.strides),
            [(24, 1, 1)]
        );
    }

    #[test]
    fn a_scalar_and_an_empty_shape() {
        let mut dst = [0];
        copy(&[], &[7], &View::dense(&[]), &mut dst, &View::dense(&[]));
        assert_eq!(dst, [7]);
        let empty = View::dense(&[0, 3]);
        copy(&[0, 3], &[], &empty, &mut dst, &empty);
        assert_eq!(dst, [7]);
    }
}
