//! Integers that a checkpoint holds, or that its numbers lie on: what is recorded of them, and what there is to say where a
//! recipe does not keep them.

use super::job::{Job, Origin, Unit};
use super::resolve::{Resolved, matrix};
use crate::bundle::provenance::GridRecord;
use crate::checkpoint::{Grid, TensorView};
use crate::convert::error::Result;
use crate::quantize::grid::recover;
use crate::quantize::{IntRange, Scheme, TableScheme};

/// Bits of the integers that are looked for in numbers.
pub(in crate::convert) const LOOKED_FOR: u8 = 4;

/// The grid of quantization-aware checkpoints whose numbers lie on one: inputs that share a step.
const BLOCK: usize = 32;
/// Tensors that are looked at, at most.
const TENSORS: usize = 6;
/// Groups of each that are looked at, at most.
const GROUPS: usize = 16;
/// A group whose integers are all smaller says little.
const TELLING: u8 = 3;

/// The record of a weight of `[outputs, inputs]` whose integers the scheme is to keep, with nothing counted yet; `None` where it
/// keeps none. `stored` is the grid of the checkpoint's integers; `tuned` tells that palettes are fitted to statistics.
pub(in crate::convert) fn grid_record(
    scheme: Scheme,
    [outputs, inputs]: [usize; 2],
    stored: Option<Grid>,
    tuned: bool,
) -> Option<GridRecord> {
    let (shared, looked_for) = match scheme {
        Scheme::Linear {
            nbits,
            block,
            range: IntRange::Full,
        } => (block, nbits == LOOKED_FOR),
        _ if tuned => return None,
        _ => match stored.filter(|g| scheme.keeps(g.nbits, g.block, inputs)) {
            Some(_) => (None, false),
            None => return None,
        },
    };
    let (nbits, block, given) = match stored {
        Some(grid) => (
            grid.nbits,
            Some(grid.block).filter(|block| *block != inputs || shared == Some(*block)),
            true,
        ),
        None if looked_for => (LOOKED_FOR, shared, false),
        None => return None,
    };
    Some(GridRecord {
        nbits,
        block,
        given,
        groups: (outputs * inputs / shared.unwrap_or(inputs).max(1)) as u64,
        on: 0,
        off: 0,
        inexact: 0,
    })
}

/// The record of a table of `[rows, values of a row]`, as of a weight: of the checkpoint's integers, whether the scheme holds
/// them or not, or of those that are looked for.
pub(in crate::convert) fn table_grid_record(
    scheme: TableScheme,
    [rows, dim]: [usize; 2],
    stored: Option<Grid>,
) -> Option<GridRecord> {
    let several = |block: usize| Some(block).filter(|block| *block != dim);
    let (nbits, block, given) = match (scheme, stored) {
        (TableScheme::RowsFp16, _) => return None,
        (_, Some(grid)) => (grid.nbits, several(grid.block), true),
        (TableScheme::RowsSteps { bits, .. }, None) => (
            bits.count().min(LOOKED_FOR),
            several(scheme.block(dim)),
            false,
        ),
        (_, None) => return None,
    };
    Some(GridRecord {
        nbits,
        block,
        given,
        groups: rows as u64 * scheme.row_scales(dim) as u64,
        on: 0,
        off: 0,
        inexact: 0,
    })
}

impl Job<'_> {
    /// What there is to say of weights on a grid that the recipe rounds anew. Headers tell it of integers that the checkpoint holds;
    /// of numbers a few groups of a few tensors are read.
    ///
    /// # Errors
    /// Tensors that are not there.
    pub fn grid_note(&self) -> Result<Option<String>> {
        let mut held = Vec::new();
        let mut numbers = Vec::new();
        for (name, unit) in self.units() {
            let Unit::Package(package) = &unit else {
                continue;
            };
            if self.origin(&name, &unit) != Origin::Anew || package.weights_of.is_some() {
                continue;
            }
            let weights = package.chunk.weights.iter();
            for weight in weights.filter(|w| w.scheme != Scheme::Fp16) {
                let inputs = matrix(&weight.binding)[1];
                let view = self.view(weight)?;
                match view.grid() {
                    Some(grid) if !weight.scheme.keeps(grid.nbits, grid.block, inputs) => {
                        held.push((weight, grid));
                    }
                    None if !weight.scheme.keeps(LOOKED_FOR, BLOCK, inputs)
                        && inputs.is_multiple_of(BLOCK) =>
                    {
                        numbers.push(weight);
                    }
                    _ => {}
                }
            }
        }
        if let Some((weight, grid)) = held.first() {
            let inputs = matrix(&weight.binding)[1];
            return Ok(Some(format!(
                "the checkpoint holds {} of the weights as integers with steps that the recipe does not keep, such as {} (int{}, a \
                 step for {}), which {} rounds anew; {}",
                held.len(),
                weight.binding.tensor,
                grid.nbits,
                match grid.block == inputs {
                    true => "each output channel".to_string(),
                    false => format!("{} inputs", grid.block),
                },
                weight.scheme,
                keeper(*grid, inputs)
            )));
        }
        let every = numbers.len().div_ceil(TENSORS).max(1);
        let (mut looked_at, mut on) = (0, Vec::new());
        for &weight in numbers.iter().step_by(every) {
            looked_at += 1;
            if lies_on_grid(&self.view(weight)?) {
                on.push(weight);
            }
        }
        Ok(on.first().map(|weight| {
            format!(
                "the weights lie on an int{LOOKED_FOR} grid of {BLOCK} inputs ({} of {looked_at} tensors looked at, such as {}), which \
                 {} rounds anew; recipe qat-int4 keeps it",
                on.len(),
                weight.binding.tensor,
                weight.scheme
            )
        }))
    }

    fn view(&self, weight: &Resolved) -> Result<TensorView<'_>> {
        let binding = &weight.binding;
        let view = self
            .checkpoint
            .tensor(&binding.tensor, &binding.source_shape)?;
        Ok(view)
    }
}

/// What keeps integers of a grid.
fn keeper(grid: Grid, inputs: usize) -> String {
    if grid.block == inputs {
        return "recipe qat-int8 keeps them".to_string();
    }
    if grid.nbits <= LOOKED_FOR && grid.block.is_multiple_of(BLOCK) {
        return "recipe qat-int4 keeps them".to_string();
    }
    let bits = grid.nbits.max(LOOKED_FOR);
    format!("scheme int{bits}-block{}-full keeps them", grid.block)
}

/// Whether a few groups of a tensor all lie on a grid, and some of them say so clearly. What cannot be read lies on none; the
/// conversion names it.
fn lies_on_grid(view: &TensorView<'_>) -> bool {
    let groups = view.len() / BLOCK;
    let every = groups.div_ceil(GROUPS).max(1);
    let (mut values, mut codes) = ([0f32; BLOCK], [0i8; BLOCK]);
    let (mut looked_at, mut telling) = (0, 0);
    for group in (0..groups).step_by(every) {
        let start = group * BLOCK;
        let read = view.read_f32(start..start + BLOCK, &mut values);
        if read.is_err() || !matches!(recover(&values, &mut codes), Ok(Some(_))) {
            return false;
        }
        looked_at += 1;
        telling += usize::from(codes.iter().any(|q| q.unsigned_abs() >= TELLING));
    }
    telling > 0 && 2 * telling >= looked_at
}
