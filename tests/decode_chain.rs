//! The decode loop over small chains: what it feeds, what it carries, what it refuses.

mod op_reference;

use gemma_coreml::mil::{DType, Var};
use gemma_coreml::runtime::{
    BoxError, ChainSpec, DecodeOptions, Decoder, Error, Precision, RopeTable, RopeTables, TokenRows,
};
use half::f16;
use op_reference::OneOp;
use std::path::{Path, PathBuf};

const CONTEXT: usize = 5;
const WINDOW: usize = 3;

/// Rows that are the token itself.
struct Rows;

impl TokenRows for Rows {
    fn embed(&self, token: u32, out: &mut [f32]) -> Result<(), BoxError> {
        if token == 99 {
            return Err("no such token".into());
        }
        out.fill(token as f32);
        Ok(())
    }

    fn per_layer(&self, _: u32, _: &mut [f32]) -> Result<(), BoxError> {
        Err("this chain has no per-layer rows".into())
    }
}

fn rope(rows: usize) -> RopeTables {
    let table = |offset: usize| RopeTable {
        rows,
        dim: 2,
        values: (0..rows * 2)
            .map(|i| f16::from_f32((i / 2 + offset) as f32))
            .collect(),
    };
    RopeTables {
        cos_sliding: table(0),
        sin_sliding: table(100),
        cos_full: table(200),
        sin_full: table(300),
    }
}

fn spec(chunks: &[(&str, PathBuf)]) -> ChainSpec {
    ChainSpec {
        chunks: chunks
            .iter()
            .map(|(name, path)| ((*name).to_owned(), path.clone()))
            .collect(),
        context: CONTEXT,
        window: WINDOW,
        hidden: 2,
        per_layer: 0,
        rope: rope(CONTEXT),
        ..ChainSpec::default()
    }
}

/// One chunk: a cache `K_full` of what was fed, and the sum of what the masks show of it.
fn first_chunk(dir: &Path, positions: usize) -> PathBuf {
    let mut one = OneOp::new();
    let b = &mut one.builder;
    let hidden = b.input("hidden_states", DType::Fp16, &[1, 1, 2]).unwrap();
    let full = b
        .input("causal_mask_full", DType::Fp16, &[1, 1, 1, positions])
        .unwrap();
    let sliding = b
        .input("causal_mask_sliding", DType::Fp16, &[1, 1, 1, WINDOW])
        .unwrap();
    let update = b
        .input("update_mask", DType::Fp16, &[1, 1, positions, 1])
        .unwrap();
    let cos = b.input("cos_s", DType::Fp16, &[1, 1, 1, 2]).unwrap();
    let cache = b
        .input("K_full_in", DType::Fp16, &[1, 1, positions, 1])
        .unwrap();
    let token = b.slice_by_size_at_0(&hidden);
    let one_value = b.scalar_f16(1.0).unwrap();
    let keep = b.sub(&one_value, &update).unwrap();
    let kept = b.mul(&cache, &keep).unwrap();
    let new = b.mul(&update, &token).unwrap();
    let cache = b.add(&kept, &new).unwrap();
    let seen = |b: &mut gemma_coreml::mil::FunctionBuilder, mask: &Var| {
        let shown = b.exp(mask).unwrap();
        b.reduce_sum(&shown, &[-1], true).unwrap()
    };
    let full = seen(b, &full);
    let sliding = seen(b, &sliding);
    let total = b.reduce_sum(&cache, &[2], true).unwrap();
    let total = b.name_value(&total, "total").unwrap();
    let carried = b.concat(&[full, sliding, total], -1).unwrap();
    b.output("hidden_states_out", &hidden).unwrap();
    b.output("K_full_out", &cache).unwrap();
    b.output("seen", &carried).unwrap();
    b.output("position", &cos).unwrap();
    let path = dir.join(format!("first_{positions}.mlpackage"));
    one.write(&path);
    path
}

/// The last chunk: reads `seen` and `position` and makes a token of them.
fn last_chunk(dir: &Path, dtype: DType) -> PathBuf {
    let mut one = OneOp::new();
    let b = &mut one.builder;
    let hidden = b.input("hidden_states", DType::Fp16, &[1, 1, 2]).unwrap();
    let seen = b.input("seen", dtype, &[1, 1, 1, 3]).unwrap();
    let position = b.input("position", DType::Fp16, &[1, 1, 1, 2]).unwrap();
    let seen = b.name_value(&seen, "what_was_seen").unwrap();
    let position = b.name_value(&position, "where").unwrap();
    let hidden = b.name_value(&hidden, "fed").unwrap();
    let logit = b.reduce_sum(&hidden, &[2], true).unwrap();
    let logit = b.reshape(&logit, &[1]).unwrap();
    let id = b.cast(&logit, DType::Int32).unwrap();
    b.output("token_id", &id).unwrap();
    b.output("token_logit", &logit).unwrap();
    let _ = (seen, position);
    let path = dir.join(format!("last_{dtype}.mlpackage"));
    one.write(&path);
    path
}

trait Shorthand {
    fn slice_by_size_at_0(&mut self, hidden: &Var) -> Var;
}

impl Shorthand for gemma_coreml::mil::FunctionBuilder {
    /// The first element of the stream as `[1, 1, 1, 1]`.
    fn slice_by_size_at_0(&mut self, hidden: &Var) -> Var {
        let parts = self.split(hidden, &[1, 1], 2).unwrap();
        self.reshape(&parts[0], &[1, 1, 1, 1]).unwrap()
    }
}

fn open(spec: ChainSpec, keep: &[&str]) -> Result<Decoder, Error> {
    let options = DecodeOptions {
        threads: 1,
        keep: keep.iter().map(|&k| k.to_owned()).collect(),
        ..DecodeOptions::default()
    };
    Decoder::open(spec, Precision::F32, Box::new(Rows), options)
}

#[test]
fn masks_rope_caches_and_features_go_where_their_names_say() {
    let dir = tempfile::tempdir().unwrap();
    let chunks = [
        ("chunk1", first_chunk(dir.path(), CONTEXT)),
        ("chunk2", last_chunk(dir.path(), DType::Fp16)),
    ];
    let mut decoder = open(spec(&chunks), &["what_was_seen", "where", "total"]).unwrap();
    for round in 0..2 {
        let mut sum = 0.0;
        for position in 0..CONTEXT {
            assert_eq!(decoder.position(), position);
            let token = 3 + position as u32 + round;
            let step = decoder.step(token).unwrap();
            sum += token as f32;
            assert_eq!(
                (step.token_id, step.token_logit),
                (2 * token, 2.0 * token as f32)
            );
            let seen = step.kept["what_was_seen"].as_f32().unwrap().to_vec();
            let window = WINDOW.min(position + 1) as f32;
            assert_eq!(seen, [(position + 1) as f32, window, sum]);
            assert_eq!(step.kept["where"].as_f32().unwrap(), [position as f32; 2]);
            assert_eq!(step.kept["total"].as_f32().unwrap(), [sum]);
        }
        // The last slot is never written twice, however often one asks.
        for _ in 0..2 {
            let full = decoder.step(1);
            assert!(matches!(full, Err(Error::ContextFull { context: CONTEXT })));
            assert_eq!(decoder.position(), CONTEXT);
        }
        decoder.reset();
    }
}

#[test]
fn a_row_that_cannot_be_read_leaves_the_decoder_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let chunks = [
        ("chunk1", first_chunk(dir.path(), CONTEXT)),
        ("chunk2", last_chunk(dir.path(), DType::Fp16)),
    ];
    let mut decoder = open(spec(&chunks), &["total"]).unwrap();
    decoder.step(4).unwrap();
    assert!(matches!(
        decoder.step(99),
        Err(Error::TokenRow { token: 99, .. })
    ));
    assert_eq!(decoder.position(), 1);
    let step = decoder.step(5).unwrap();
    assert_eq!(step.kept["total"].as_f32().unwrap(), [9.0]);
}

#[test]
fn chunks_that_disagree_are_refused_with_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let good = ("chunk1", first_chunk(dir.path(), CONTEXT));
    let last = ("chunk2", last_chunk(dir.path(), DType::Fp16));
    let longer = [("chunk1", first_chunk(dir.path(), 7)), last.clone()];
    match open(spec(&longer), &[]) {
        Err(Error::Disagreement {
            left,
            right,
            left_name,
            ..
        }) => {
            assert!(left_name.contains("chunk1") && left.contains('7') && right.contains('5'));
        }
        other => panic!("{:?}", other.err()),
    }
    let retyped = [
        good.clone(),
        ("chunk2", last_chunk(dir.path(), DType::Fp32)),
    ];
    match open(spec(&retyped), &[]) {
        Err(Error::Disagreement {
            left_name,
            right_name,
            ..
        }) => {
            assert!(left_name.contains("chunk1") && right_name.contains("chunk2"));
        }
        other => panic!("{:?}", other.err()),
    }
    let mut short = spec(&[good.clone(), last.clone()]);
    short.rope = rope(CONTEXT - 1);
    assert!(matches!(open(short, &[]), Err(Error::Disagreement { .. })));
    // Without the first chunk nobody gives `seen`.
    assert!(matches!(
        open(spec(std::slice::from_ref(&last)), &[]),
        Err(Error::Chain { .. })
    ));
    // Without the last one there is no token.
    assert!(matches!(
        open(spec(std::slice::from_ref(&good)), &[]),
        Err(Error::Chain { .. })
    ));
    let unknown = open(spec(&[good, last]), &["logits"]);
    assert!(matches!(unknown, Err(Error::UnknownValue(name)) if name == "logits"));
}
