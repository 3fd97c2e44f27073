//! Which recipes nothing beats.

/// For each point (cost, error), both smaller the better: whether no other point is at most as large in both and smaller in
/// one. A point that is not finite is never on the front.
pub fn pareto(points: &[(f64, f64)]) -> Vec<bool> {
    let beats =
        |a: &(f64, f64), b: &(f64, f64)| a.0 <= b.0 && a.1 <= b.1 && (a.0 < b.0 || a.1 < b.1);
    points
        .iter()
        .map(|p| p.0.is_finite() && p.1.is_finite() && !points.iter().any(|q| beats(q, p)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_beats_is_on_the_front() {
        let points = [
            (1.0, 9.0),
            (2.0, 4.0),
            (2.0, 5.0),
            (3.0, 4.0),
            (4.0, 1.0),
            (5.0, f64::NAN),
        ];
        assert_eq!(pareto(&points), [true, true, false, false, true, false]);
        // Equal points beat each other nowhere.
        assert_eq!(pareto(&[(1.0, 1.0), (1.0, 1.0)]), [true, true]);
    }
}
