//! Fused steps against the ops one by one: equal as numbers (the sign of a zero may differ), norms to one unit in the last
//! place.

mod op_reference;

use gemma_coreml::mil::{DType, FunctionBuilder, Immediate, SliceParams, Var};
use gemma_coreml::package::Package;
use gemma_coreml::runtime::{Model, Precision, Tensor};
use op_reference::OneOp;
use std::collections::BTreeMap;

/// Allowed relative difference of a fused RMS norm: one unit in the last place of f32.
const RMS_TOLERANCE: f32 = 1.2e-7;

/// A repeatable stream of values in -1..1.
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as f32 / u32::MAX as f32 * 2.0 - 1.0
    }

    fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let values = (0..shape.iter().product::<usize>()).map(|_| self.next() * scale);
        Tensor::f32(shape, values.collect()).unwrap()
    }
}

fn package(build: impl FnOnce(&mut FunctionBuilder)) -> (tempfile::TempDir, Package) {
    let dir = tempfile::tempdir().unwrap();
    let mut one = OneOp::new();
    build(&mut one.builder);
    let package = one.write(&dir.path().join("fused.mlpackage"));
    (dir, package)
}

/// The fused model and the plain one.
fn both(package: &Package, keep: &[&str]) -> [Model; 2] {
    [
        Model::load(package, "main", Precision::F32, keep).unwrap(),
        Model::load_plain(package, "main", Precision::F32, keep).unwrap(),
    ]
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let equal = |(x, y): (&f32, &f32)| x == y || (x.is_nan() && y.is_nan());
    match (a.as_f32(), b.as_f32()) {
        (Ok(x), Ok(y)) => a.shape() == b.shape() && x.iter().zip(y).all(equal),
        _ => a == b,
    }
}

/// Runs both and compares what they give; returns it.
fn compare(
    models: &mut [Model; 2],
    feeds: &BTreeMap<&str, Tensor>,
    label: &str,
) -> BTreeMap<String, Tensor> {
    let [fused, plain] = models.each_mut().map(|m| m.run(feeds).unwrap());
    for (got, want) in [(&fused.outputs, &plain.outputs), (&fused.kept, &plain.kept)] {
        assert_eq!(got.len(), want.len());
        for (name, value) in got {
            assert!(same(value, &want[name]), "{label}: {name}");
        }
    }
    fused.outputs
}

fn slice(b: &mut FunctionBuilder, x: &Var, begin: &[i32], end: &[i32]) -> Var {
    b.slice_by_index(x, begin, end, &SliceParams::default())
        .unwrap()
}

/// `softmax(q kᵀ + mask) v` in its parts, as the graph writes it.
fn standard(b: &mut FunctionBuilder, q: &Var, k: &Var, v: &Var, mask: &Var) -> Var {
    let scores = b.matmul(q, k, false, true).unwrap();
    let scores = b.add(&scores, mask).unwrap();
    let max = b.reduce_max(&scores, &[3], true).unwrap();
    let shifted = b.sub(&scores, &max).unwrap();
    let exp = b.exp(&shifted).unwrap();
    let sum = b.reduce_sum(&exp, &[3], true).unwrap();
    let weights = b.real_div(&exp, &sum).unwrap();
    b.matmul(&weights, v, false, false).unwrap()
}

/// The same with a running maximum over slices of `width` keys.
fn flash(b: &mut FunctionBuilder, q: &Var, k: &Var, v: &Var, mask: &Var, width: usize) -> Var {
    let (d, dv) = (k.shape()[3] as i32, v.shape()[3] as i32);
    let (heads, length) = (k.shape()[1] as i32, k.shape()[2]);
    let rows = mask.shape()[2] as i32;
    let mut state: Option<(Var, Var, Var)> = None;
    for start in (0..length).step_by(width) {
        let (from, to) = (start as i32, (start + width).min(length) as i32);
        let whole = start == 0 && to as usize == length;
        let part = |b: &mut FunctionBuilder, x: &Var, begin: &[i32], end: &[i32]| match whole {
            true => x.clone(),
            false => slice(b, x, begin, end),
        };
        let keys = part(b, k, &[0, 0, from, 0], &[1, heads, to, d]);
        let values = part(b, v, &[0, 0, from, 0], &[1, heads, to, dv]);
        let mask = part(b, mask, &[0, 0, 0, from], &[1, 1, rows, to]);
        let scores = b.matmul(q, &keys, false, true).unwrap();
        let scores = b.add(&scores, &mask).unwrap();
        let max = b.reduce_max(&scores, &[3], true).unwrap();
        let before = match &state {
            Some((max, ..)) => max.clone(),
            None => b.scalar_f16(-65504.0).unwrap(),
        };
        let max = b.maximum(&max, &before).unwrap();
        let shifted = b.sub(&scores, &max).unwrap();
        let exp = b.exp(&shifted).unwrap();
        let mut sum = b.reduce_sum(&exp, &[3], true).unwrap();
        let mut out = b.matmul(&exp, &values, false, false).unwrap();
        if let Some((old_max, old_sum, old_out)) = &state {
            let drop = b.sub(old_max, &max).unwrap();
            let factor = b.exp(&drop).unwrap();
            let old_sum = b.mul(old_sum, &factor).unwrap();
            sum = b.add(&old_sum, &sum).unwrap();
            let old_out = b.mul(old_out, &factor).unwrap();
            out = b.add(&old_out, &out).unwrap();
        }
        state = Some((max, sum, out));
    }
    let (_, sum, out) = state.unwrap();
    b.real_div(&out, &sum).unwrap()
}

/// Names of masks, with what they add at a row and key of so many rows and keys.
type Mask = (&'static str, fn(usize, usize, [usize; 2]) -> f32);

const HIDDEN: f32 = f32::NEG_INFINITY;
const LOW: f32 = -65504.0;

fn hide(hidden: bool, by: f32) -> f32 {
    if hidden { by } else { 0.0 }
}

const MASKS: [Mask; 13] = [
    ("none", |_, _, _| 0.0),
    ("the first key", |_, key, _| hide(key > 0, HIDDEN)),
    ("the last key", |_, key, [_, n]| hide(key + 1 < n, HIDDEN)),
    ("half", |_, key, [_, n]| hide(key > n / 2, HIDDEN)),
    ("holes", |_, key, _| hide(key % 3 == 1, HIDDEN)),
    ("half, low", |_, key, [_, n]| hide(key > n / 2, LOW)),
    ("a window of low ones", |_, key, [_, n]| match key {
        _ if key > n / 2 => HIDDEN,
        _ => hide(key < n / 4, LOW),
    }),
    ("small numbers", |_, key, _| -(key as f32) / 8.0),
    ("numbers that might hide", |_, key, _| {
        hide(key % 2 == 1, -10_001.0)
    }),
    ("no key", |_, _, _| HIDDEN),
    ("no key, low", |_, _, _| LOW),
    ("causal", |row, key, [rows, n]| {
        hide(key * rows > row * n, HIDDEN)
    }),
    ("some rows see nothing", |row, key, _| {
        hide(row % 2 == 0 || key % 2 == 0, HIDDEN)
    }),
];

#[test]
fn attention_is_its_ops_one_by_one() {
    let mut noise = Noise(0x2545_f491);
    // Heads, rows, d, dv, keys; rows of the mask.
    let cases = [
        ([1, 1, 4, 4, 1], 1),
        ([1, 8, 40, 72, 150], 1),
        ([2, 3, 16, 8, 70], 3),
        ([2, 11, 33, 35, 97], 1),
        ([1, 20, 8, 64, 40], 20),
        ([3, 8, 256, 256, 600], 1),
    ];
    for ([heads, rows, d, dv, n], mask_rows) in cases {
        for width in [None, Some(7), Some(64), Some(1000)] {
            let (_dir, package) = package(|b| {
                let mut input =
                    |name: &str, shape: [usize; 4]| b.input(name, DType::Fp16, &shape).unwrap();
                let q = input("q", [1, heads, rows, d]);
                let k = input("k", [1, heads, n, d]);
                let v = input("v", [1, heads, n, dv]);
                let mask = input("mask", [1, 1, mask_rows, n]);
                let out = match width {
                    None => standard(b, &q, &k, &v, &mask),
                    Some(width) => flash(b, &q, &k, &v, &mask, width),
                };
                b.output("out", &out).unwrap();
            });
            let mut models = both(&package, &[]);
            assert_eq!(models[0].steps(), 1, "{width:?}");
            assert!(models[1].steps() >= 8);
            for (name, mask) in MASKS {
                // A long key may be seen through a low mask; one that is not finite through any.
                for (scale, spoilt) in [
                    (1.0, None),
                    (300.0, None),
                    (1.0, Some(f32::INFINITY)),
                    (1.0, Some(f32::NAN)),
                ] {
                    let mut k = noise.tensor(&[1, heads, n, d], scale);
                    if let Some(value) = spoilt {
                        let mut values = k.as_f32().unwrap().to_vec();
                        values[n / 2 * d] = value;
                        k = Tensor::f32(k.shape(), values).unwrap();
                    }
                    let values = (0..mask_rows * n).map(|i| mask(i / n, i % n, [mask_rows, n]));
                    let mask = Tensor::f32(&[1, 1, mask_rows, n], values.collect()).unwrap();
                    let feeds = BTreeMap::from([
                        ("q", noise.tensor(&[1, heads, rows, d], scale)),
                        ("k", k),
                        ("v", noise.tensor(&[1, heads, n, dv], 1.0)),
                        ("mask", mask),
                    ]);
                    let label = format!(
                        "{heads} {rows} {d} {dv} {n}, {width:?}, {name}, {scale} {spoilt:?}"
                    );
                    compare(&mut models, &feeds, &label);
                }
            }
        }
    }
}

/// What is not finite in a value that no mask shows still counts, as it does one by one.
#[test]
fn hidden_values_that_are_not_finite_count() {
    let mut noise = Noise(7);
    let (_dir, package) = package(|b| {
        let mut input = |name: &str, shape: [usize; 4]| b.input(name, DType::Fp16, &shape).unwrap();
        let (q, k, v) = (
            input("q", [1, 1, 2, 4]),
            input("k", [1, 1, 9, 4]),
            input("v", [1, 1, 9, 4]),
        );
        let mask = input("mask", [1, 1, 1, 9]);
        let out = standard(b, &q, &k, &v, &mask);
        b.output("out", &out).unwrap();
    });
    let mut models = both(&package, &[]);
    let mask = (0..9).map(|key| hide(key > 4, HIDDEN)).collect();
    let mut v = noise.tensor(&[1, 1, 9, 4], 1.0).as_f32().unwrap().to_vec();
    v[8 * 4 + 1] = f32::INFINITY;
    let feeds = BTreeMap::from([
        ("q", noise.tensor(&[1, 1, 2, 4], 1.0)),
        ("k", noise.tensor(&[1, 1, 9, 4], 1.0)),
        ("v", Tensor::f32(&[1, 1, 9, 4], v).unwrap()),
        ("mask", Tensor::f32(&[1, 1, 1, 9], mask).unwrap()),
    ]);
    let out = compare(&mut models, &feeds, "infinite value");
    let values = out["out"].as_f32().unwrap();
    assert!(values[1].is_nan() && values[0].is_finite());
}

#[test]
fn attention_does_not_depend_on_threads() {
    let mut noise = Noise(99);
    let [rows, d, n] = [8, 512, 700];
    let (_dir, package) = package(|b| {
        let mut input = |name: &str, shape: [usize; 4]| b.input(name, DType::Fp16, &shape).unwrap();
        let (q, k, v) = (
            input("q", [1, 1, rows, d]),
            input("k", [1, 1, n, d]),
            input("v", [1, 1, n, d]),
        );
        let mask = input("mask", [1, 1, 1, n]);
        let out = standard(b, &q, &k, &v, &mask);
        b.output("out", &out).unwrap();
    });
    let feeds = BTreeMap::from([
        ("q", noise.tensor(&[1, 1, rows, d], 0.2)),
        ("k", noise.tensor(&[1, 1, n, d], 0.2)),
        ("v", noise.tensor(&[1, 1, n, d], 1.0)),
        ("mask", Tensor::f32(&[1, 1, 1, n], vec![0.0; n]).unwrap()),
    ]);
    let mut models = both(&package, &[]);
    let run = |threads: usize, models: &mut [Model; 2]| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| compare(models, &feeds, &format!("{threads} threads")))
    };
    assert_eq!(run(1, &mut models), run(3, &mut models));
}

/// An inner value that is kept is what the ops make it.
#[test]
fn kept_values_are_those_of_the_ops() {
    let mut noise = Noise(5);
    let (_dir, package) = package(|b| {
        let mut input = |name: &str, shape: [usize; 4]| b.input(name, DType::Fp16, &shape).unwrap();
        let (q, k, v) = (
            input("q", [1, 1, 2, 4]),
            input("k", [1, 1, 9, 4]),
            input("v", [1, 1, 9, 4]),
        );
        let mask = input("mask", [1, 1, 1, 9]);
        let scores = b.matmul(&q, &k, false, true).unwrap();
        let scores = b.add(&scores, &mask).unwrap();
        let scores = b.name_value(&scores, "scores").unwrap();
        let max = b.reduce_max(&scores, &[3], true).unwrap();
        let shifted = b.sub(&scores, &max).unwrap();
        let exp = b.exp(&shifted).unwrap();
        let sum = b.reduce_sum(&exp, &[3], true).unwrap();
        let weights = b.real_div(&exp, &sum).unwrap();
        let weights = b.name_value(&weights, "weights").unwrap();
        let out = b.matmul(&weights, &v, false, false).unwrap();
        b.output("out", &out).unwrap();
    });
    let feeds = BTreeMap::from([
        ("q", noise.tensor(&[1, 1, 2, 4], 1.0)),
        ("k", noise.tensor(&[1, 1, 9, 4], 1.0)),
        ("v", noise.tensor(&[1, 1, 9, 4], 1.0)),
        ("mask", Tensor::f32(&[1, 1, 1, 9], vec![0.0; 9]).unwrap()),
    ]);
    let mut models = both(&package, &["scores", "weights"]);
    compare(&mut models, &feeds, "kept");
}

/// How a test writes a cache's update.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Shift,
    Scatter,
}

const ROWS: usize = 5;
const WIDTH: usize = 6;

/// The new slots of a cache `(slots, 2, ROWS, WIDTH)` from rows `row_0`, `row_1`, ...
fn updated(b: &mut FunctionBuilder, cache: &Var, slots: usize, rule: Rule) -> Vec<Var> {
    let (rows, width) = (ROWS as i32, WIDTH as i32);
    let update = b.input("update", DType::Fp16, &[1, 1, ROWS, 1]).unwrap();
    let one = b.scalar_f16(1.0).unwrap();
    let keep = b.sub(&one, &update).unwrap();
    let slot = |i: usize| {
        let row = b
            .input(&format!("row_{i}"), DType::Fp16, &[1, 2, 1, WIDTH])
            .unwrap();
        let at = i as i32;
        let old = match slots {
            1 => cache.clone(),
            _ => slice(b, cache, &[at, 0, 0, 0], &[at + 1, 2, rows, width]),
        };
        match rule {
            Rule::Shift => {
                let rest = slice(b, &old, &[0, 0, 1, 0], &[1, 2, rows, width]);
                b.concat(&[rest, row], 2).unwrap()
            }
            Rule::Scatter => {
                let kept = b.mul(&old, &keep).unwrap();
                let written = b.mul(&row, &update).unwrap();
                b.add(&kept, &written).unwrap()
            }
        }
    };
    (0..slots).map(slot).collect()
}

/// Something that reads a slot as a tensor, and a part of it that is handed out.
fn read_slots(b: &mut FunctionBuilder, slots: &[Var]) {
    for (i, slot) in slots.iter().enumerate() {
        let sum = b.reduce_sum(slot, &[2], true).unwrap();
        b.output(&format!("sum_{i}"), &sum).unwrap();
        let part = slice(b, slot, &[0, 0, 0, 0], &[1, 1, ROWS as i32, 4]);
        b.output(&format!("part_{i}"), &part).unwrap();
    }
}

fn joined(b: &mut FunctionBuilder, slots: &[Var]) -> Var {
    match slots {
        [one] => one.clone(),
        several => b.concat(several, 0).unwrap(),
    }
}

/// Updates of every kind, at every place: one row after another, none, two, and parts of one.
fn updates(step: usize) -> Vec<f32> {
    let mut update = vec![0.0; ROWS];
    match step % 8 {
        5 => {}
        6 => (update[1], update[3]) = (1.0, 1.0),
        7 => (update[0], update[2]) = (0.5, 1.0),
        _ => update[step % ROWS] = 1.0,
    }
    update
}

fn rows(noise: &mut Noise, slots: usize, step: usize) -> Vec<(String, Tensor)> {
    let row = |i: usize| {
        let mut row = noise.tensor(&[1, 2, 1, WIDTH], 1.0);
        if step == 13 {
            let mut values = row.as_f32().unwrap().to_vec();
            values[3] = f32::INFINITY;
            row = Tensor::f32(row.shape(), values).unwrap();
        }
        (format!("row_{i}"), row)
    };
    (0..slots).map(row).collect()
}

#[test]
fn caches_that_pass_through_are_changed_as_one_by_one() {
    for rule in [Rule::Shift, Rule::Scatter] {
        for slots in [1, 3] {
            let shape = [slots, 2, ROWS, WIDTH];
            let (_dir, package) = package(|b| {
                let cache = b.input("K_in", DType::Fp16, &shape).unwrap();
                let new = updated(b, &cache, slots, rule);
                read_slots(b, &new);
                let all = joined(b, &new);
                b.output("K_out", &all).unwrap();
            });
            let mut models = both(&package, &[]);
            // An update, a copy for the sum, and the sum, for each slot.
            assert_eq!(models[0].steps(), 3 * slots, "{rule:?} {slots}");
            let mut noise = Noise(3);
            let mut cache = noise.tensor(&shape, 1.0);
            for step in 0..20 {
                let update = Tensor::f32(&[1, 1, ROWS, 1], updates(step)).unwrap();
                let rows = rows(&mut noise, slots, step);
                let mut feeds = BTreeMap::from([("K_in", cache), ("update", update)]);
                feeds.extend(rows.iter().map(|(name, row)| (name.as_str(), row.clone())));
                let mut out = compare(&mut models, &feeds, &format!("{rule:?} {slots} {step}"));
                cache = out.remove("K_out").unwrap();
            }
        }
    }
}

/// A state that is read, updated and written as a whole.
#[test]
fn states_written_as_a_whole_are_changed_as_one_by_one() {
    for rule in [Rule::Shift, Rule::Scatter] {
        for slots in [1, 4] {
            let (_dir, package) = package(|b| {
                let state = b.state("kv", &[slots, 2, ROWS, WIDTH]).unwrap();
                let cache = b.read_state(&state).unwrap();
                let new = updated(b, &cache, slots, rule);
                read_slots(b, &new);
                let all = joined(b, &new);
                b.write_state(&state, &all).unwrap();
            });
            let mut models = both(&package, &[]);
            assert_eq!(models[0].steps(), 3 * slots, "{rule:?} {slots}");
            let mut noise = Noise(11);
            for step in 0..40 {
                if step == 20 {
                    models.iter_mut().for_each(Model::reset);
                }
                let update = Tensor::f32(&[1, 1, ROWS, 1], updates(step)).unwrap();
                let rows = rows(&mut noise, slots, step);
                let mut feeds = BTreeMap::from([("update", update)]);
                feeds.extend(rows.iter().map(|(name, row)| (name.as_str(), row.clone())));
                compare(&mut models, &feeds, &format!("{rule:?} {slots} {step}"));
            }
        }
    }
}

fn int32s(b: &mut FunctionBuilder, values: &[i32]) -> Var {
    b.immediate(Immediate::int32s(values)).unwrap()
}

/// A function whose state has rows put at a computed place, slot after slot; `early` reads a slot before it is written.
fn placed(slots: usize, early: bool) -> (tempfile::TempDir, Package) {
    package(|b| {
        let (rows, width) = (ROWS as i32, WIDTH as i32);
        let state = b.state("kv", &[slots, 2, ROWS, WIDTH]).unwrap();
        let at = b.input("at", DType::Int32, &[1]).unwrap();
        let one = int32s(b, &[1]);
        let after = b.add(&at, &one).unwrap();
        let mut tensor = b.read_state(&state).unwrap();
        let mut new = Vec::new();
        let mut before = Vec::new();
        for i in 0..slots {
            let slot = i as i32;
            let bounds = ([slot, 0, 0, 0], [slot + 1, 2, rows, width]);
            if early {
                before.push(slice(b, &tensor, &bounds.0, &bounds.1));
            }
            let row = b
                .input(&format!("row_{i}"), DType::Fp16, &[1, 2, 1, WIDTH])
                .unwrap();
            let from = [int32s(b, &[slot, 0]), at.clone(), int32s(b, &[0])];
            let to = [
                int32s(b, &[slot + 1, 2]),
                after.clone(),
                int32s(b, &[width]),
            ];
            let (begin, end) = (b.concat(&from, 0).unwrap(), b.concat(&to, 0).unwrap());
            tensor = b
                .slice_update(&tensor, &row, &begin, &end, &SliceParams::default())
                .unwrap();
            b.write_state(&state, &tensor).unwrap();
            tensor = b.read_state(&state).unwrap();
            new.push(slice(b, &tensor, &bounds.0, &bounds.1));
        }
        read_slots(b, &new);
        for (i, slot) in before.iter().enumerate() {
            let sum = b.reduce_sum(slot, &[2], true).unwrap();
            b.output(&format!("before_{i}"), &sum).unwrap();
        }
    })
}

/// Rings: rows put in place, around the end and on.
#[test]
fn states_written_in_place_are_changed_as_one_by_one() {
    for (slots, early) in [(1, false), (3, false), (3, true)] {
        let (_dir, package) = placed(slots, early);
        let mut models = both(&package, &[]);
        let mut noise = Noise(21);
        for step in 0..3 * ROWS {
            let rows = rows(&mut noise, slots, step);
            let at = Tensor::i32(&[1], vec![(step % ROWS) as i32]).unwrap();
            let mut feeds = BTreeMap::from([("at", at)]);
            feeds.extend(rows.iter().map(|(name, row)| (name.as_str(), row.clone())));
            compare(&mut models, &feeds, &format!("{slots} {early} {step}"));
        }
        let at = Tensor::i32(&[1], vec![ROWS as i32]).unwrap();
        let rows = rows(&mut noise, slots, 0);
        let mut feeds = BTreeMap::from([("at", at)]);
        feeds.extend(rows.iter().map(|(name, row)| (name.as_str(), row.clone())));
        for model in &mut models {
            assert!(model.run(&feeds).is_err(), "beyond the last row");
        }
    }
    // What was there before cannot be read from a state that was changed in place.
    let steps = |early: bool| {
        let (_dir, package) = placed(3, early);
        both(&package, &[]).map(|m| m.steps())
    };
    let ([fused, plain], [kept, _]) = (steps(false), steps(true));
    assert!(fused < plain && kept > fused, "{fused} {plain} {kept}");
}

#[test]
fn rms_norms_and_rope_are_their_ops() {
    for (shape, axis, gain) in [
        ([1, 96, 1, 1], 1, vec![1, 96, 1, 1]),
        ([1, 10, 1, 7], 1, vec![1, 10, 1, 1]),
        ([1, 3, 5, 40], 3, vec![40]),
        ([1, 3, 5, 40], 3, vec![]),
    ] {
        let (_dir, package) = package(|b| {
            let x = b.input("x", DType::Fp16, &shape).unwrap();
            let minus_one = b.scalar_f16(-1.0).unwrap();
            let negated = b.mul(&x, &minus_one).unwrap();
            let both = b.concat(&[x.clone(), negated], axis).unwrap();
            let normed = b.layer_norm(&both, &[axis], None, None, 1e-6).unwrap();
            let end = shape.map(|n| n as i32);
            let mut out = slice(b, &normed, &[0; 4], &end);
            if !gain.is_empty() {
                let gain = b.input("gain", DType::Fp16, &gain).unwrap();
                out = b.mul(&out, &gain).unwrap();
            }
            b.output("out", &out).unwrap();
        });
        let mut models = both(&package, &[]);
        assert_eq!(models[0].steps(), 1, "{shape:?}");
        let mut noise = Noise(77);
        for scale in [1e-4, 1.0, 1e4] {
            let mut feeds = BTreeMap::from([("x", noise.tensor(&shape, scale))]);
            if !gain.is_empty() {
                feeds.insert("gain", noise.tensor(&gain, 3.0));
            }
            let [fused, plain] = models.each_mut().map(|m| m.run(&feeds).unwrap().outputs);
            let pairs = fused["out"].as_f32().unwrap().iter();
            for (got, want) in pairs.zip(plain["out"].as_f32().unwrap()) {
                assert!(
                    (got - want).abs() <= RMS_TOLERANCE * want.abs(),
                    "{shape:?} {scale}"
                );
            }
        }
    }
    let (_dir, package) = package(|b| {
        let mut input = |name: &str, shape: [usize; 4]| b.input(name, DType::Fp16, &shape).unwrap();
        let (x, cos, sin) = (
            input("x", [1, 3, 4, 10]),
            input("cos", [1, 1, 4, 10]),
            input("sin", [1, 1, 4, 10]),
        );
        let first = slice(b, &x, &[0, 0, 0, 0], &[1, 3, 4, 5]);
        let second = slice(b, &x, &[0, 0, 0, 5], &[1, 3, 4, 10]);
        let minus_one = b.scalar_f16(-1.0).unwrap();
        let second = b.mul(&second, &minus_one).unwrap();
        let rotated = b.concat(&[second, first], 3).unwrap();
        let straight = b.mul(&x, &cos).unwrap();
        let turned = b.mul(&rotated, &sin).unwrap();
        let out = b.add(&straight, &turned).unwrap();
        b.output("out", &out).unwrap();
    });
    let mut models = both(&package, &[]);
    assert_eq!(models[0].steps(), 1);
    let mut noise = Noise(1);
    let feeds = BTreeMap::from([
        ("x", noise.tensor(&[1, 3, 4, 10], 2.0)),
        ("cos", noise.tensor(&[1, 1, 4, 10], 1.0)),
        ("sin", noise.tensor(&[1, 1, 4, 10], 1.0)),
    ]);
    compare(&mut models, &feeds, "rope");
}
