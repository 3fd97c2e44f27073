//! Choosing a width per tensor under a byte budget.

use super::error::{Error, Result};

/// One way to store a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Bytes that it takes.
    pub bytes: u64,
    /// What it costs in quality; smaller is better.
    pub cost: f64,
}

/// For each tensor the index of the choice taken, so that all together take at most `budget` bytes and the sum of costs is
/// small.
///
/// Each tensor begins with its smallest choice. The step that takes most cost off per byte is made first, over the lower
/// convex hulls of all tensors; a step that does not fit is passed over. Until the first of those the result is the optimum
/// for the bytes it takes (it is a vertex of the Lagrangian); after it at most one step's gain is lost. Ties go to the
/// tensor that comes first.
///
/// # Errors
/// [`Error::Empty`] for a tensor without choices, [`Error::Budget`] when the smallest choices take more.
pub fn allocate(tensors: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = tensors.iter().map(|c| hull(c)).collect();
    if hulls.iter().any(Vec::is_empty) {
        return Err(Error::Empty);
    }
    let mut taken = vec![0usize; tensors.len()];
    let first = |(choices, hull): (&Vec<Choice>, &Vec<usize>)| choices[hull[0]].bytes;
    let mut bytes: u64 = tensors.iter().zip(&hulls).map(first).sum();
    if bytes > budget {
        return Err(Error::Budget {
            least: bytes,
            budget,
        });
    }
    let step = |tensor: usize, at: usize| -> Option<(u64, f64)> {
        let (from, to) = (hulls[tensor][at], *hulls[tensor].get(at + 1)?);
        let (from, to) = (tensors[tensor][from], tensors[tensor][to]);
        Some((to.bytes - from.bytes, from.cost - to.cost))
    };
    // Steps of a hull get less steep, so sorting all of them keeps each tensor's own order.
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (tensor, hull) in hulls.iter().enumerate() {
        for at in 0..hull.len() - 1 {
            if let Some((more, gain)) = step(tensor, at) {
                steps.push((gain / more as f64, tensor, at));
            }
        }
    }
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    for (_, tensor, at) in steps {
        // A step behind one that was passed over is out of reach.
        if taken[tensor] != at {
            continue;
        }
        if let Some((more, _)) = step(tensor, at).filter(|(more, _)| bytes + more <= budget) {
            bytes += more;
            taken[tensor] += 1;
        }
    }
    Ok(taken
        .iter()
        .zip(&hulls)
        .map(|(&at, hull)| hull[at])
        .collect())
}

/// The choices on the lower convex hull of cost over bytes, by bytes; each costs less than the one before.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (choices[a], choices[b]);
        a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost))
    });
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        let c = choices[next];
        if hull
            .last()
            .is_some_and(|&l| choices[l].bytes == c.bytes || choices[l].cost <= c.cost)
        {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let (a, b) = (choices[a], choices[b]);
            let slope = |p: Choice, q: Choice| (p.cost - q.cost) / (q.bytes - p.bytes) as f64;
            if slope(a, b) > slope(b, c) {
                break;
            }
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(pairs: &[(u64, f64)]) -> Vec<Choice> {
        let choice = |&(bytes, cost): &(u64, f64)| Choice { bytes, cost };
        pairs.iter().map(choice).collect()
    }

    #[test]
    fn bytes_go_where_they_gain_most() {
        let tensors = [
            of(&[(10, 9.0), (20, 1.0), (40, 0.5)]),
            of(&[(10, 4.0), (20, 3.0), (30, 0.0)]),
        ];
        for (budget, expected) in [
            (20, [0, 0]),
            (30, [1, 0]),
            (39, [1, 0]),
            (50, [1, 2]),
            (70, [2, 2]),
        ] {
            assert_eq!(allocate(&tensors, budget).unwrap(), expected, "{budget}");
        }
        assert_eq!(
            allocate(&tensors, 19).unwrap_err(),
            Error::Budget {
                least: 20,
                budget: 19
            }
        );
        assert_eq!(allocate(&[Vec::new()], 1), Err(Error::Empty));
        // More bytes for nothing are not taken, and neither is a choice that costs more.
        let useless = [of(&[(1, 1.0), (2, 1.0), (3, 2.0), (1, 0.5)])];
        assert_eq!(allocate(&useless, 100).unwrap(), [3]);
    }

    proptest! {
        /// Within the budget, and no assignment that takes as few bytes as the greedy one costs less by more than one step.
        #[test]
        fn close_to_the_best_of_all_assignments(
            raw in prop::collection::vec(prop::collection::vec((1u64..40, 0f64..9.0), 1..4), 1..5),
            spare in 0u64..60,
        ) {
            let tensors: Vec<Vec<Choice>> = raw.iter().map(|c| of(c)).collect();
            let least: u64 = tensors.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap()).sum();
            let got = allocate(&tensors, least + spare).unwrap();
            let sum = |of: &[usize]| {
                let chosen = tensors.iter().zip(of).map(|(c, &i)| c[i]);
                chosen.fold((0, 0.0), |(b, c), x| (b + x.bytes, c + x.cost))
            };
            let (bytes, cost) = sum(&got);
            prop_assert!(bytes <= least + spare);
            let spread = |c: &Vec<Choice>| {
                let costs = c.iter().map(|c| c.cost);
                costs.clone().fold(0f64, f64::max) - costs.fold(f64::INFINITY, f64::min)
            };
            let step = tensors.iter().map(spread).fold(0f64, f64::max);
            let mut all = vec![vec![]];
            for choices in &tensors {
                all = all.into_iter().flat_map(|head: Vec<usize>| {
                    (0..choices.len()).map(move |i| { let mut h = head.clone(); h.push(i); h })
                }).collect();
            }
            for other in all {
                let (b, c) = sum(&other);
                if b <= least + spare {
                    prop_assert!(c >= cost - step - 1e-9, "{other:?} {c} against {got:?} {cost}");
                }
            }
        }
    }
}
