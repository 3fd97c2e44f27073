//! The features that the decode loop fills, by name: rows of the token, masks, RoPE rows, positions.

use super::spec::{ChainSpec, RopeTable, TokenRows};
use crate::mil::{DType, TensorType};
use crate::runtime::values::error::{BoxError, Error, Result};
use crate::runtime::values::tensor::Tensor;

/// What a call feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// One token.
    Decode,
    /// So many tokens from position 0; a shorter prompt is padded behind.
    Prefill(usize),
    /// So many tokens at any position.
    Verify(usize),
}

impl CallKind {
    /// Tokens of the function.
    pub fn width(self) -> usize {
        match self {
            Self::Decode => 1,
            Self::Prefill(n) | Self::Verify(n) => n,
        }
    }
}

/// How the chunks of decode lay their caches, told by the features they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conventions {
    /// Sliding caches are rings (`ring_pos`): their mask counts from the left, and what is hidden is -65504, as the
    /// published stateful runtime writes it.
    pub ring: bool,
    /// Full layers keep the last so many positions, the newest last.
    pub full_window: Option<usize>,
}

/// A feature that the decode loop fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Hidden,
    PerLayerRaw,
    PerLayerCombined,
    CausalMask,
    FullMask,
    SlidingMask,
    UpdateMask,
    UpdateIndicator,
    CosSliding,
    SinSliding,
    CosFull,
    SinFull,
    CurrentPos,
    RingPos,
    PositionIds,
    InputIds,
    ImageEmbedding,
    LastPositionMask,
}

impl Host {
    /// Every feature with its name.
    const ALL: [(Host, &'static str); 18] = [
        (Host::Hidden, "hidden_states"),
        (Host::PerLayerRaw, "per_layer_raw"),
        (Host::PerLayerCombined, "per_layer_combined"),
        (Host::CausalMask, "causal_mask"),
        (Host::FullMask, "causal_mask_full"),
        (Host::SlidingMask, "causal_mask_sliding"),
        (Host::UpdateMask, "update_mask"),
        (Host::UpdateIndicator, "update_indicator"),
        (Host::CosSliding, "cos_s"),
        (Host::SinSliding, "sin_s"),
        (Host::CosFull, "cos_f"),
        (Host::SinFull, "sin_f"),
        (Host::CurrentPos, "current_pos"),
        (Host::RingPos, "ring_pos"),
        (Host::PositionIds, "position_ids"),
        (Host::InputIds, "input_ids"),
        (Host::ImageEmbedding, "image_embedding"),
        (Host::LastPositionMask, "last_position_mask"),
    ];

    pub fn named(name: &str) -> Option<Host> {
        let found = Host::ALL.iter().find(|(_, n)| *n == name);
        found.map(|(host, _)| *host)
    }

    fn is_int(self) -> bool {
        matches!(
            self,
            Host::CurrentPos | Host::RingPos | Host::PositionIds | Host::InputIds
        )
    }

    /// The shapes that the loop can make: one, but for the sliding mask of verify, whose graph may shift before it attends.
    fn shapes(self, spec: &ChainSpec, kind: CallKind, how: Conventions) -> Vec<Vec<usize>> {
        let (t, context, window) = (kind.width(), spec.context, spec.window);
        let one = |shape: &[usize]| vec![shape.to_vec()];
        match self {
            Host::Hidden => one(&[1, t, spec.hidden]),
            Host::PerLayerRaw | Host::PerLayerCombined => one(&[1, t, spec.per_layer]),
            Host::CausalMask => match kind {
                CallKind::Prefill(n) => one(&[1, 1, n, n]),
                _ => one(&[1, 1, t, context]),
            },
            Host::FullMask => one(&[1, 1, t, how.full_window.unwrap_or(context)]),
            Host::SlidingMask => match kind {
                CallKind::Verify(k) => vec![vec![1, 1, k, window + k], vec![1, 1, k, window]],
                _ => one(&[1, 1, t, window]),
            },
            Host::UpdateMask => one(&[1, 1, context, 1]),
            Host::UpdateIndicator => one(&[1, 1, context, t]),
            Host::CosSliding => one(&[1, 1, t, spec.rope.cos_sliding.dim]),
            Host::SinSliding => one(&[1, 1, t, spec.rope.sin_sliding.dim]),
            Host::CosFull => one(&[1, 1, t, spec.rope.cos_full.dim]),
            Host::SinFull => one(&[1, 1, t, spec.rope.sin_full.dim]),
            Host::CurrentPos | Host::RingPos | Host::PositionIds => one(&[1]),
            Host::InputIds => one(&[1, t]),
            Host::ImageEmbedding => one(&[1, t, spec.hidden]),
            Host::LastPositionMask => one(&[1, t, 1]),
        }
    }

    /// Whether the loop can fill a feature of this type; else the type that it would fill.
    pub fn accepts(
        self,
        ty: &TensorType,
        spec: &ChainSpec,
        kind: CallKind,
        how: Conventions,
    ) -> std::result::Result<(), TensorType> {
        let shapes = self.shapes(spec, kind, how);
        let kind_fits = match self.is_int() {
            true => ty.dtype == DType::Int32,
            false => ty.dtype.is_float(),
        };
        if kind_fits && shapes.contains(&ty.shape) {
            return Ok(());
        }
        let dtype = if self.is_int() {
            DType::Int32
        } else {
            DType::Fp16
        };
        Err(TensorType::new(dtype, &shapes[0]))
    }
}

/// What is fed, and where.
pub(crate) struct Call<'a> {
    pub spec: &'a ChainSpec,
    pub rows: &'a dyn TokenRows,
    pub kind: CallKind,
    pub how: Conventions,
    /// At most as many as the call is wide.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub position: usize,
    /// Threads to share work among.
    pub threads: Option<&'a rayon::ThreadPool>,
}

impl Call<'_> {
    /// The value of a feature of this shape.
    pub fn value(&self, host: Host, shape: &[usize]) -> Result<Tensor> {
        if host.is_int() {
            return Tensor::i32(shape, self.ints(host));
        }
        let mut out = vec![0.0; shape.iter().product()];
        self.fill(host, shape, &mut out)?;
        Tensor::f32(shape, out)
    }

    fn ints(&self, host: Host) -> Vec<i32> {
        let position = match host {
            Host::InputIds => return self.tokens.iter().map(|&t| t as i32).collect(),
            Host::RingPos => self.position % self.spec.window,
            _ => self.position,
        };
        vec![position as i32]
    }

    fn fill(&self, host: Host, shape: &[usize], out: &mut [f32]) -> Result<()> {
        let (context, p) = (self.spec.context, self.position);
        let width = shape.last().copied().unwrap_or(1).max(1);
        match host {
            Host::Hidden => self.token_rows(width, out, |t, o| self.rows.embed(t, o))?,
            Host::PerLayerRaw if self.spec.per_layer > 0 => {
                self.token_rows(width, out, |t, o| self.rows.per_layer(t, o))?;
            }
            Host::PerLayerCombined if self.spec.per_layer > 0 => {
                self.token_rows(width, out, |t, o| self.combined(t, o))?;
            }
            Host::PerLayerRaw | Host::PerLayerCombined | Host::ImageEmbedding => {}
            Host::CausalMask => self.mask(width, out, |row, at| at <= p + row),
            Host::FullMask => match self.how.full_window {
                Some(n) => self.mask(width, out, |_, at| at + (p + 1).min(n) >= n),
                None => self.mask(width, out, |row, at| at <= p + row),
            },
            Host::SlidingMask => self.sliding_mask(width, out),
            Host::UpdateMask => out[p] = 1.0,
            Host::UpdateIndicator => {
                for (column, at) in (p..context).enumerate().take(self.kind.width()) {
                    out[at * width + column] = 1.0;
                }
            }
            Host::CosSliding => self.rope(&self.spec.rope.cos_sliding, out),
            Host::SinSliding => self.rope(&self.spec.rope.sin_sliding, out),
            Host::CosFull => self.rope(&self.spec.rope.cos_full, out),
            Host::SinFull => self.rope(&self.spec.rope.sin_full, out),
            Host::LastPositionMask => out[self.tokens.len().saturating_sub(1)] = 1.0,
            Host::CurrentPos | Host::RingPos | Host::PositionIds | Host::InputIds => {}
        }
        Ok(())
    }

    /// One row of each token; zeros for padding.
    fn token_rows(
        &self,
        width: usize,
        out: &mut [f32],
        row: impl Fn(u32, &mut [f32]) -> std::result::Result<(), BoxError>,
    ) -> Result<()> {
        for (&token, out) in self.tokens.iter().zip(out.chunks_exact_mut(width)) {
            row(token, out).map_err(|source| Error::TokenRow { token, source })?;
        }
        Ok(())
    }

    /// What the first chunk would compute of embedding and per-layer row.
    fn combined(&self, token: u32, out: &mut [f32]) -> std::result::Result<(), BoxError> {
        let mix = self.spec.per_layer_mix.as_ref();
        let mix = mix.ok_or("the host is to combine per-layer rows, but has no projection")?;
        let mut embedding = vec![0.0; self.spec.hidden];
        self.rows.embed(token, &mut embedding)?;
        self.rows.per_layer(token, out)?;
        match self.threads {
            Some(threads) => threads.install(|| mix.combine(&embedding, out)),
            None => mix.combine(&embedding, out),
        }
    }

    /// Rows of 0 where `seen(row, column)`, of the value that hides elsewhere.
    fn mask(&self, width: usize, out: &mut [f32], seen: impl Fn(usize, usize) -> bool) {
        let off = if self.how.ring {
            -65504.0
        } else {
            f32::NEG_INFINITY
        };
        for (row, columns) in out.chunks_exact_mut(width).enumerate() {
            for (at, value) in columns.iter_mut().enumerate() {
                if !seen(row, at) {
                    *value = off;
                }
            }
        }
    }

    fn sliding_mask(&self, width: usize, out: &mut [f32]) {
        let (p, window) = (self.position, self.spec.window);
        match self.kind {
            // Cached rows of positions p - W to p - 1, then the new ones.
            CallKind::Verify(_) if width > window => self.mask(width, out, |row, at| {
                let new = at.checked_sub(window);
                new.map_or(at > row && at + p >= window, |new| {
                    new <= row && new + window > row
                })
            }),
            // The graph has dropped the k oldest rows: positions p + k - W to p + k - 1.
            CallKind::Verify(k) => self.mask(width, out, |row, at| {
                at + k <= window + row && at + p + k >= window && at + k > row
            }),
            _ if self.how.ring => self.mask(width, out, |_, at| at <= p),
            _ => self.mask(width, out, |_, at| at + (p + 1).min(window) >= window),
        }
    }

    fn rope(&self, table: &RopeTable, out: &mut [f32]) {
        let values = table.values.get(self.position * table.dim..);
        for (o, v) in out.iter_mut().zip(values.unwrap_or_default()) {
            *o = v.to_f32();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::decoder::spec::RopeTables;

    struct NoRows;

    impl TokenRows for NoRows {
        fn embed(&self, _: u32, _: &mut [f32]) -> std::result::Result<(), BoxError> {
            Ok(())
        }

        fn per_layer(&self, _: u32, _: &mut [f32]) -> std::result::Result<(), BoxError> {
            Ok(())
        }
    }

    /// The positions that a sliding mask shows to each row, by what its columns hold.
    fn shown(
        kind: CallKind,
        width: usize,
        position: usize,
        of: impl Fn(usize) -> i64,
    ) -> Vec<Vec<i64>> {
        let spec = ChainSpec {
            context: 64,
            window: 5,
            rope: RopeTables::default(),
            ..ChainSpec::default()
        };
        let call = Call {
            spec: &spec,
            rows: &NoRows,
            kind,
            how: Conventions::default(),
            tokens: &[0],
            position,
            threads: None,
        };
        let rows = kind.width();
        let mask = call.value(Host::SlidingMask, &[1, 1, rows, width]).unwrap();
        let values = mask.as_f32().unwrap().chunks(width);
        values
            .map(|row| (0..width).filter(|&c| row[c] == 0.0).map(&of).collect())
            .collect()
    }

    #[test]
    fn verify_sees_what_serial_decoding_sees() {
        for position in [0usize, 1, 4, 5, 9, 30] {
            let p = position as i64;
            // Also where a call is wider than the window.
            for k in [3, 7] {
                let rows = shown(CallKind::Verify(k), 5 + k, position, |c| p - 5 + c as i64);
                for (t, seen) in rows.iter().enumerate() {
                    let last = p + t as i64;
                    let expected: Vec<i64> = ((last - 4).max(0)..=last).collect();
                    assert_eq!(*seen, expected, "position {position}, row {t} of {k}");
                }
            }
            // Within the window the published form loses the oldest rows that it dropped, no more.
            let rows = shown(CallKind::Verify(3), 5, position, |c| p + 3 - 5 + c as i64);
            for (t, seen) in rows.iter().enumerate() {
                let last = p + t as i64;
                let expected: Vec<i64> = ((p - 2).max(0)..=last).collect();
                assert_eq!(*seen, expected, "position {position}, row {t}");
            }
        }
    }
}
