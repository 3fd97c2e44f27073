//! Caches that a function takes in and gives back, or keeps as a state, changed in place.
//!
//! A cache `(slots, heads, rows, width)` qualifies when nothing reads what it was, but each slot once to make it what it
//! will be, by one of three rules: the oldest row dropped and one appended; `old * (1 - update) + row * update`; a row put
//! at a computed place of a state.

use super::graph::Graph;
use crate::mil::OpType;
use crate::runtime::interpreter::note::Note;
use crate::runtime::interpreter::plan::{Action, CachePlan, Plan, Source, Step};
use crate::runtime::interpreter::steps::part::{Base, Part, Region};
use crate::runtime::interpreter::steps::update::{Rule, Update};
use crate::runtime::interpreter::value::Known;
use std::collections::HashMap;

/// Finds the caches of a plan and changes them in place. What is made of them becomes parts of them.
pub(super) fn apply(plan: &mut Plan) {
    let mut changes = Changes::default();
    let graph = Graph::new(plan);
    for found in whole_caches(&graph) {
        changes.take_whole(&graph, found);
    }
    for state in 0..plan.states.len() {
        if let Some(found) = placed_state(&graph, state) {
            changes.take_placed(&graph, state, found);
        }
    }
    let Changes {
        caches,
        parts,
        mut steps,
    } = changes;
    let old = std::mem::take(&mut plan.steps);
    for (at, step) in old.into_iter().enumerate() {
        match steps.remove(&at) {
            Some(replaced) => plan.steps.extend(replaced),
            None => plan.steps.push(step),
        }
    }
    plan.caches = caches;
    plan.parts = parts;
    parts_of_parts(plan);
}

/// Slices of parts are parts; slices of inputs are read where the input is.
fn parts_of_parts(plan: &mut Plan) {
    let inputs: Vec<usize> = plan.inputs.iter().map(|(value, _)| *value).collect();
    for step in &mut plan.steps {
        let (&[x, ..], &[out]) = (&step.inputs[..], &step.outputs[..]) else {
            continue;
        };
        let region = match &step.note {
            Note::Slice(region) => region.clone(),
            _ if step.op_type == OpType::Identity => Region::all(&plan.values[x].ty.shape),
            _ => continue,
        };
        if let Some(part) = plan.parts.get(&x) {
            let part = part.part(&region);
            step.action = Action::Copy(part.clone());
            step.inputs.clear();
            plan.parts.insert(out, part);
        } else if inputs.contains(&x)
            && plan.values[x].ty.dtype.is_float()
            && region.size.len() == 4
        {
            step.action = Action::Copy(Part {
                base: Base::Value(x),
                region,
            });
        }
    }
}

/// What becomes of the steps.
#[derive(Default)]
struct Changes {
    caches: Vec<CachePlan>,
    parts: HashMap<usize, Part>,
    /// What takes the place of a step.
    steps: HashMap<usize, Vec<Step>>,
}

/// The update of a slot, found.
struct Found {
    /// The step that makes the new slot.
    at: usize,
    new: usize,
    rule: Rule,
    inputs: Vec<usize>,
}

/// A cache whose slots are all updated and put together again.
struct Whole {
    source: Source,
    /// The value that is the cache before.
    old: usize,
    /// The value that is the cache after.
    new: usize,
    updates: Vec<Found>,
}

fn whole_caches(graph: &Graph<'_>) -> Vec<Whole> {
    let plan = graph.plan;
    let mut found: Vec<Whole> = Vec::new();
    let written = plan.steps.iter().filter_map(|step| match step.action {
        Action::WriteState(_) => Some(step.inputs[0]),
        _ => None,
    });
    for value in plan.outputs.iter().copied().chain(written) {
        if let Some(whole) = whole_cache(graph, value)
            && !found.iter().any(|f| f.old == whole.old)
        {
            found.push(whole);
        }
    }
    found
}

fn whole_cache(graph: &Graph<'_>, new: usize) -> Option<Whole> {
    let slots = match graph.made(new, OpType::Concat) {
        Some((_, step)) if matches!(step.note, Note::Concat(0)) => step.inputs.clone(),
        _ => vec![new],
    };
    let mut updates = Vec::with_capacity(slots.len());
    let mut old = None;
    for (slot, &value) in slots.iter().enumerate() {
        let (of, found) = slot_update(graph, value, (slot, slots.len()))?;
        let same_rule = updates.first().is_none_or(|f: &Found| f.rule == found.rule);
        if *old.get_or_insert(of) != of || !same_rule {
            return None;
        }
        updates.push(found);
    }
    let old = old.filter(|&old| graph.is_inner(old, slots.len()))?;
    let source = source(graph, old, new)?;
    Some(Whole {
        source,
        old,
        new,
        updates,
    })
}

/// Where a cache comes from and goes: it is an input and its new form an output, or both are one state's.
fn source(graph: &Graph<'_>, old: usize, new: usize) -> Option<Source> {
    let plan = graph.plan;
    if plan.inputs.iter().any(|(value, _)| *value == old) {
        return plan.outputs.contains(&new).then_some(Source::Input(old));
    }
    let (_, step) = graph.made(old, OpType::ReadState)?;
    let Action::ReadState(state) = step.action else {
        return None;
    };
    let (reads, writes) = state_steps(plan, state);
    let written = writes.iter().map(|&at| plan.steps[at].inputs[0]);
    (reads.len() == 1 && written.eq([new])).then_some(Source::State(state))
}

/// Indices of the steps that read and that write a state.
fn state_steps(plan: &Plan, state: usize) -> (Vec<usize>, Vec<usize>) {
    let steps = || plan.steps.iter().enumerate();
    let reads = steps().filter(|(_, s)| matches!(s.action, Action::ReadState(i) if i == state));
    let writes = steps().filter(|(_, s)| matches!(s.action, Action::WriteState(i) if i == state));
    (
        reads.map(|(at, _)| at).collect(),
        writes.map(|(at, _)| at).collect(),
    )
}

/// The value that `value` is a slice of, or itself, and the part; what lies between is read by nothing else.
fn sliced(graph: &Graph<'_>, value: usize) -> (usize, Region) {
    match graph.slice(value) {
        Some((x, inner)) if graph.is_inner(value, 1) => {
            let (base, outer) = sliced(graph, x);
            (base, outer.part(inner))
        }
        _ => (value, Region::all(graph.shape(value))),
    }
}

/// How `new` is made from slot `slot` of a cache of `slots`; with the value that is the cache.
fn slot_update(
    graph: &Graph<'_>,
    new: usize,
    (slot, slots): (usize, usize),
) -> Option<(usize, Found)> {
    let (at, step) = graph.maker(new)?;
    let &[1, heads, rows, width] = graph.shape(new) else {
        return None;
    };
    let is_row = |value: usize| graph.shape(value) == [1, heads, 1, width];
    let found = |rule, inputs| Found {
        at,
        new,
        rule,
        inputs,
    };
    let (old, first, count, found) = match (step.op_type, &step.note, &step.inputs[..]) {
        (OpType::Concat, Note::Concat(2), &[rest, row]) if is_row(row) => {
            (rest, 1, rows.checked_sub(1)?, found(Rule::Shift, vec![row]))
        }
        (OpType::Add, _, &[kept, written]) => {
            let (_, [old, keep]) = graph.binary(kept, OpType::Mul)?;
            let (_, [one, update]) = graph.binary(keep, OpType::Sub)?;
            let (_, pair) = graph.binary(written, OpType::Mul)?;
            let row = match pair {
                [row, by] | [by, row] if by == update => row,
                _ => return None,
            };
            let inner = graph.is_inner(kept, 1) && graph.is_inner(written, 1);
            let shapes = is_row(row) && graph.shape(update) == [1, 1, rows, 1];
            (inner && shapes && graph.scalar(one) == Some(1.0)).then_some(())?;
            (old, 0, rows, found(Rule::Scatter, vec![row, update]))
        }
        _ => return None,
    };
    let (base, region) = sliced(graph, old);
    let expected = Region {
        begin: vec![slot, 0, first, 0],
        size: vec![1, heads, count, width],
    };
    let fits = region == expected && graph.shape(base) == [slots, heads, rows, width];
    fits.then_some((base, found))
}

/// The updates of a state whose rows are put in their places one after another.
struct Placed {
    /// The state as it is read, before the first update and after each.
    read: Vec<usize>,
    updates: Vec<Found>,
    /// Steps that read and write the state.
    moves: Vec<usize>,
}

fn placed_state(graph: &Graph<'_>, state: usize) -> Option<Placed> {
    let plan = graph.plan;
    if plan.states[state].ty.rank() != 4 {
        return None;
    }
    let (reads, writes) = state_steps(plan, state);
    let read: Vec<usize> = reads.iter().map(|&at| plan.steps[at].outputs[0]).collect();
    let mut updates = Vec::with_capacity(writes.len());
    let mut slots = Vec::with_capacity(writes.len());
    for (k, &write) in writes.iter().enumerate() {
        let new = plan.steps[write].inputs[0];
        let (at, step) = graph.made(new, OpType::SliceUpdate)?;
        let &[x, row, begin, end] = &step.inputs[..] else {
            return None;
        };
        let ordered = reads[k] < at && reads.get(k + 1).is_none_or(|&next| write < next);
        let slot = leading(graph, begin)?;
        let one = leading(graph, end)? == slot + 1 && graph.shape(row)[0] == 1;
        let plain = matches!(step.note, Note::SliceUpdate) && graph.is_inner(new, 1);
        if !(ordered && one && plain) || Some(&x) != read.get(k) {
            return None;
        }
        slots.push(slot);
        updates.push(Found {
            at,
            new,
            rule: Rule::Place,
            inputs: vec![row, begin, end],
        });
    }
    if updates.is_empty() || reads.len() > writes.len() + 1 {
        return None;
    }
    for (k, &value) in read.iter().enumerate() {
        let later = &slots[k.min(slots.len())..];
        let fits = |&reader: &usize| match &plan.steps[reader].note {
            // What is read of a slot must not be what a later step writes.
            Note::Slice(region) => {
                let slots = region.begin[0]..region.begin[0] + region.size[0];
                !later.iter().any(|slot| slots.contains(slot))
            }
            Note::SliceUpdate => plan.steps[reader].inputs[0] == value,
            _ => false,
        };
        if graph.is_handed_out(value) || !graph.readers(value).iter().all(fits) {
            return None;
        }
    }
    Some(Placed {
        read,
        updates,
        moves: reads.into_iter().chain(writes).collect(),
    })
}

/// The first integer of a vector, if it is constant.
fn leading(graph: &Graph<'_>, value: usize) -> Option<usize> {
    match &graph.plan.values[value].known {
        Known::Constant(constant) => {
            let first = constant.dense().as_i32().ok()?.first()?;
            usize::try_from(*first).ok()
        }
        _ => match graph.made(value, OpType::Concat)?.1 {
            step if matches!(step.note, Note::Concat(0)) => leading(graph, step.inputs[0]),
            _ => None,
        },
    }
}

impl Changes {
    /// The steps in the place of one that made a new slot: the update, and its copy for who reads it otherwise.
    fn update(&mut self, graph: &Graph<'_>, found: Found, (cache, slot): (usize, usize)) {
        let old = &graph.plan.steps[found.at];
        let update = Update {
            cache,
            slot,
            rule: found.rule,
        };
        let step = Step::new(old, Action::Update(update), found.inputs, Vec::new());
        self.steps.entry(found.at).or_default().insert(0, step);
    }

    /// Says that a value is a part of a cache, and copies it for who needs it on its own.
    fn part(&mut self, graph: &Graph<'_>, value: usize, cache: usize, region: Region) {
        let part = Part {
            base: Base::Cache(cache),
            region,
        };
        if let Some((at, old)) = graph.maker(value) {
            let step = Step::new(old, Action::Copy(part.clone()), Vec::new(), vec![value]);
            self.steps.entry(at).or_default().push(step);
        }
        self.parts.insert(value, part);
    }

    fn take_whole(&mut self, graph: &Graph<'_>, whole: Whole) {
        let cache = self.caches.len();
        let shape = graph.shape(whole.old).to_vec();
        let appended = usize::from(whole.updates.iter().all(|f| f.rule == Rule::Shift));
        let region = |slot: usize, slots: usize| Region {
            begin: vec![slot, 0, appended, 0],
            size: vec![slots, shape[1], shape[2], shape[3]],
        };
        for (slot, found) in whole.updates.into_iter().enumerate() {
            let new = found.new;
            self.update(graph, found, (cache, slot));
            self.part(graph, new, cache, region(slot, 1));
        }
        if !self.parts.contains_key(&whole.new) {
            self.part(graph, whole.new, cache, region(0, shape[0]));
        }
        if let Source::State(state) = whole.source {
            let (reads, writes) = state_steps(graph.plan, state);
            for at in reads.into_iter().chain(writes) {
                self.steps.insert(at, Vec::new());
            }
        }
        self.caches.push(CachePlan {
            source: whole.source,
            appended,
        });
    }

    fn take_placed(&mut self, graph: &Graph<'_>, state: usize, placed: Placed) {
        let cache = self.caches.len();
        let shape = graph.plan.states[state].ty.shape.clone();
        for at in placed.moves {
            self.steps.insert(at, Vec::new());
        }
        for found in placed.updates {
            self.update(graph, found, (cache, 0));
        }
        for value in placed.read {
            let part = Part {
                base: Base::Cache(cache),
                region: Region::all(&shape),
            };
            self.parts.insert(value, part);
        }
        self.caches.push(CachePlan {
            source: Source::State(state),
            appended: 0,
        });
    }
}
