//! What one model computed over one prompt: logits per generated token and hidden states of the first positions.

/// Rows of f32 of one width, row-major.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Values per row; at least 1 when there are rows.
    pub width: usize,
    /// `rows * width` values.
    pub data: Vec<f32>,
}

impl Rows {
    /// No rows yet.
    pub fn new(width: usize) -> Self {
        Rows {
            width,
            data: Vec::new(),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.data.len().checked_div(self.width).unwrap_or(0)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Row `index`; `None` past the end.
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        let start = index.checked_mul(self.width)?;
        self.data.get(start..start.checked_add(self.width)?)
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact(self.width.max(1))
    }

    /// Appends a row.
    ///
    /// # Panics
    /// When `row` does not have the width of the others: a mistake of the caller, never of input.
    pub fn push(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.width, "row width");
        self.data.extend_from_slice(row);
    }
}

/// Hidden states `[states, positions, width]` of the first positions of a sequence. State 0 is the scaled
/// embedding, state `i + 1` the output of layer `i` (after its `layer_scalar`), the last one the final norm's output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hidden {
    /// Layers + 2.
    pub states: usize,
    /// Positions held, counted from the start of the sequence.
    pub positions: usize,
    /// Hidden size.
    pub width: usize,
    /// State-major values.
    pub data: Vec<f32>,
}

impl Hidden {
    /// The vector of `state` at `position`; `None` outside.
    pub fn get(&self, state: usize, position: usize) -> Option<&[f32]> {
        if state >= self.states || position >= self.positions {
            return None;
        }
        let start = (state * self.positions + position) * self.width;
        self.data.get(start..start + self.width)
    }

    /// Puts position-major rows (`by_position[p][state]`) into state-major order.
    pub fn from_positions(by_position: &[Vec<Vec<f32>>]) -> Self {
        let states = by_position.first().map_or(0, Vec::len);
        let width = by_position
            .first()
            .and_then(|p| p.first())
            .map_or(0, Vec::len);
        let mut data = Vec::with_capacity(states * by_position.len() * width);
        for state in 0..states {
            for position in by_position {
                data.extend_from_slice(&position[state]);
            }
        }
        Hidden {
            states,
            positions: by_position.len(),
            width,
            data,
        }
    }

    /// What state `index` of `states` is called in reports: `embedding`, `layer_3_out`, `final_norm_out`.
    pub fn state_name(index: usize, states: usize) -> String {
        match index {
            0 => "embedding".into(),
            i if i + 1 == states => "final_norm_out".into(),
            i => format!("layer_{}_out", i - 1),
        }
    }
}

/// One prompt and what a model made of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// The prompt, at least one id.
    pub prompt_ids: Vec<u32>,
    /// Ids that follow it.
    pub generated_ids: Vec<u32>,
    /// Row `n` holds the logits that `generated_ids[n]` was chosen from: `[generated, vocab]`.
    pub logits: Rows,
    /// States of the first positions of prompt + generated; absent when the source does not have them.
    pub hidden: Option<Hidden>,
}

impl Trace {
    /// How many positions must run to fill a trace with `states` positions of hidden states: the last generated id
    /// is only run when its states are asked for.
    pub fn positions_to_run(prompt: usize, generated: usize, states: usize) -> usize {
        let for_logits = (prompt + generated).saturating_sub(1);
        for_logits.max(states.min(prompt + generated))
    }
}

/// Index of the largest value, the lowest index on a tie; 0 for an empty row.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in row.iter().enumerate() {
        if *v > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_is_state_major() {
        let by_position = vec![
            vec![vec![1.0, 2.0], vec![3.0, 4.0]],
            vec![vec![5.0, 6.0], vec![7.0, 8.0]],
        ];
        let hidden = Hidden::from_positions(&by_position);
        assert_eq!(hidden.data, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        assert_eq!(hidden.get(1, 0), Some(&[3.0, 4.0][..]));
        assert_eq!(hidden.get(2, 0), None);
        assert_eq!(hidden.get(0, 2), None);
    }

    #[test]
    fn states_are_named_from_the_ends() {
        let names: Vec<_> = (0..4).map(|i| Hidden::state_name(i, 4)).collect();
        assert_eq!(
            names,
            ["embedding", "layer_0_out", "layer_1_out", "final_norm_out"]
        );
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn the_last_generated_id_runs_only_for_its_states() {
        assert_eq!(Trace::positions_to_run(3, 4, 2), 6);
        assert_eq!(Trace::positions_to_run(3, 4, 7), 7);
        assert_eq!(Trace::positions_to_run(3, 4, 9), 7);
    }
}
