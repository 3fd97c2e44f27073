//! Elementwise functions of two operands with numpy broadcasting.

use super::strided::strides;

/// The broadcast of two shapes, or `None` if they do not fit.
pub(crate) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], i: usize| {
        let missing = rank - shape.len();
        if i < missing { 1 } else { shape[i - missing] }
    };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Strides of a tensor of `shape` read as `target`: 0 along repeated dims. `shape` must broadcast to `target`.
pub(crate) fn broadcast_strides(shape: &[usize], target: &[usize]) -> Vec<isize> {
    let own = strides(shape);
    let missing = target.len() - shape.len();
    (0..target.len())
        .map(|i| match i.checked_sub(missing) {
            Some(j) if shape[j] == target[i] => own[j] as isize,
            _ => 0,
        })
        .collect()
}

/// The loops of an elementwise function of two operands, neighbours merged where both are contiguous.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The broadcast shape.
    pub shape: Vec<usize>,
    /// Extent, stride of the first operand, stride of the second.
    loops: Vec<(usize, usize, usize)>,
}

impl Plan {
    /// The plan for operands of these shapes, or `None` if they do not broadcast.
    pub fn new(a: &[usize], b: &[usize]) -> Option<Self> {
        let shape = broadcast_shape(a, b)?;
        let sa = broadcast_strides(a, &shape);
        let sb = broadcast_strides(b, &shape);
        let mut loops: Vec<(usize, usize, usize)> = Vec::new();
        for i in 0..shape.len() {
            let (n, s, t) = (shape[i], sa[i] as usize, sb[i] as usize);
            if n == 1 {
                continue;
            }
            match loops.last_mut() {
                Some((m, ms, mt)) if *ms == s * n && *mt == t * n => {
                    *m *= n;
                    *ms = s;
                    *mt = t;
                }
                _ => loops.push((n, s, t)),
            }
        }
        Some(Self { shape, loops })
    }

    /// Number of results.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// `out[i] = f(a[i], b[i])` over the broadcast shape.
    pub fn apply<T: Copy>(&self, a: &[T], b: &[T], out: &mut [T], f: impl Fn(T, T) -> T + Copy) {
        if self.len() > 0 {
            turn(&self.loops, a, b, out, f);
        }
    }
}

fn turn<T: Copy>(
    loops: &[(usize, usize, usize)],
    a: &[T],
    b: &[T],
    out: &mut [T],
    f: impl Fn(T, T) -> T + Copy,
) {
    match loops {
        [] => out[0] = f(a[0], b[0]),
        [(n, 1, 1)] => {
            for ((o, &x), &y) in out.iter_mut().zip(&a[..*n]).zip(&b[..*n]) {
                *o = f(x, y);
            }
        }
        [(n, 1, 0)] => {
            let y = b[0];
            for (o, &x) in out.iter_mut().zip(&a[..*n]) {
                *o = f(x, y);
            }
        }
        [(n, 0, 1)] => {
            let x = a[0];
            for (o, &y) in out.iter_mut().zip(&b[..*n]) {
                *o = f(x, y);
            }
        }
        [(n, s, t)] => {
            for (i, o) in out.iter_mut().take(*n).enumerate() {
                *o = f(a[i * s], b[i * t]);
            }
        }
        [(n, s, t), rest @ ..] => {
            let inner = out.len() / n;
            for (i, o) in out.chunks_exact_mut(inner).enumerate() {
                turn(rest, &a[i * s..], &b[i * t..], o, f);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!(broadcast_shape(&[2, 1, 3], &[4, 1]), Some(vec![2, 4, 3]));
        assert_eq!(broadcast_shape(&[], &[2]), Some(vec![2]));
        assert_eq!(broadcast_shape(&[2, 3], &[2]), None);
    }

    #[test]
    fn every_loop_form() {
        let sub = |a: &[usize], b: &[usize]| {
            let plan = Plan::new(a, b).unwrap();
            let x: Vec<i32> = (0..a.iter().product::<usize>() as i32).collect();
            let y: Vec<i32> = (0..b.iter().product::<usize>() as i32)
                .map(|v| 10 * v)
                .collect();
            let mut out = vec![0; plan.len()];
            plan.apply(&x, &y, &mut out, |p, q| p - q);
            out
        };
        assert_eq!(sub(&[2, 2], &[2, 2]), [0, -9, -18, -27]);
        assert_eq!(sub(&[2, 2], &[1]), [0, 1, 2, 3]);
        assert_eq!(sub(&[], &[3]), [0, -10, -20]);
        assert_eq!(sub(&[2, 1], &[1, 3]), [0, -10, -20, 1, -9, -19]);
        assert_eq!(sub(&[2, 2], &[2, 1]), [0, 1, -8, -7]);
        assert_eq!(sub(&[], &[]), [0]);
    }
}
