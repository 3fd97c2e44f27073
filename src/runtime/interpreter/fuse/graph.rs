//! Who makes and who reads the values of a plan.

use crate::mil::OpType;
use crate::runtime::interpreter::note::Note;
use crate::runtime::interpreter::plan::{Plan, Step};
use crate::runtime::interpreter::steps::part::{Base, Part, Region};
use crate::runtime::interpreter::value::Known;

/// Makers and readers of a plan's values as it was when they were looked up.
pub(super) struct Graph<'a> {
    pub plan: &'a Plan,
    made_by: Vec<Option<usize>>,
    read_by: Vec<Vec<usize>>,
    handed_out: Vec<bool>,
}

impl<'a> Graph<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        let mut made_by = vec![None; plan.values.len()];
        let mut read_by = vec![Vec::new(); plan.values.len()];
        let mut handed_out = vec![false; plan.values.len()];
        for (at, step) in plan.steps.iter().enumerate() {
            step.inputs.iter().for_each(|&i| read_by[i].push(at));
            step.outputs.iter().for_each(|&o| made_by[o] = Some(at));
        }
        for &value in plan.outputs.iter().chain(&plan.kept) {
            handed_out[value] = true;
        }
        Self {
            plan,
            made_by,
            read_by,
            handed_out,
        }
    }

    /// The step that makes a value, with its index.
    pub fn maker(&self, value: usize) -> Option<(usize, &'a Step)> {
        let at = self.made_by[value]?;
        Some((at, &self.plan.steps[at]))
    }

    /// The maker of a value, if it is an op of this type.
    pub fn made(&self, value: usize, op: OpType) -> Option<(usize, &'a Step)> {
        self.maker(value).filter(|(_, step)| step.op_type == op)
    }

    /// Steps that read a value, once for each time.
    pub fn readers(&self, value: usize) -> &[usize] {
        &self.read_by[value]
    }

    /// Whether a value is an output or kept.
    pub fn is_handed_out(&self, value: usize) -> bool {
        self.handed_out[value]
    }

    /// Whether `count` reads are all that is made of a value.
    pub fn is_inner(&self, value: usize, count: usize) -> bool {
        !self.handed_out[value] && self.read_by[value].len() == count
    }

    pub fn shape(&self, value: usize) -> &'a [usize] {
        &self.plan.values[value].ty.shape
    }

    /// The number of a constant of one element.
    pub fn scalar(&self, value: usize) -> Option<f32> {
        match &self.plan.values[value].known {
            Known::Constant(constant) => match constant.dense().as_f32() {
                Ok([number]) => Some(*number),
                _ => None,
            },
            _ => None,
        }
    }

    /// Both operands of an op of two that makes `value`.
    pub fn binary(&self, value: usize, op: OpType) -> Option<(usize, [usize; 2])> {
        let (at, step) = self.made(value, op)?;
        match step.inputs[..] {
            [x, y] => Some((at, [x, y])),
            _ => None,
        }
    }

    /// The slice that makes a value: its operand and the part of it.
    pub fn slice(&self, value: usize) -> Option<(usize, &'a Region)> {
        let (_, step) = self.made(value, OpType::SliceByIndex)?;
        match (&step.note, &step.inputs[..]) {
            (Note::Slice(region), &[x, ..]) => Some((x, region)),
            _ => None,
        }
    }

    /// Where the elements of a value lie, through slices and identities.
    pub fn part_of(&self, value: usize) -> Part {
        if let Some(part) = self.plan.parts.get(&value) {
            return part.clone();
        }
        if let Some((x, region)) = self.slice(value) {
            return self.part_of(x).part(region);
        }
        if let Some((_, step)) = self.made(value, OpType::Identity) {
            return self.part_of(step.inputs[0]);
        }
        Part {
            base: Base::Value(value),
            region: Region::all(self.shape(value)),
        }
    }

    /// The parts that a value is joined of along an axis.
    pub fn joined(&self, value: usize, axis: usize) -> Vec<Part> {
        let known = self.plan.parts.contains_key(&value);
        match self.maker(value) {
            Some((_, step)) if !known && matches!(step.note, Note::Concat(a) if a == axis) => {
                step.inputs.iter().map(|&i| self.part_of(i)).collect()
            }
            _ => vec![self.part_of(value)],
        }
    }
}
