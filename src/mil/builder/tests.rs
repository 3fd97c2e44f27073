//! Names, sharing of constants, outputs, faults.

use super::*;

fn builder() -> (FunctionBuilder, Var) {
    let mut b = FunctionBuilder::new("main");
    let x = b.input("x", DType::Fp16, &[1, 4]).unwrap();
    (b, x)
}

fn names(f: &Function) -> Vec<&str> {
    let results = f.ops.iter().flat_map(|op| &op.outputs);
    results.map(|(name, _)| name.as_str()).collect()
}

#[test]
fn names_have_scope_op_and_number() {
    let (mut b, x) = builder();
    b.push_scope("layer_0");
    b.push_scope("mlp.gate");
    let y = b.exp(&x).unwrap();
    let y = b.exp(&y).unwrap();
    b.pop_scope();
    let y = b.exp(&y).unwrap();
    b.pop_scope();
    b.output("y", &y).unwrap();
    let f = b.finish().unwrap();
    assert_eq!(
        names(&f),
        ["layer_0_mlp_gate_exp_0", "layer_0_mlp_gate_exp_1", "y"]
    );
    assert_eq!(f.ops[2].name, "y");
}

#[test]
fn a_name_asked_for_is_exact_and_automatic_names_give_way() {
    let (mut b, x) = builder();
    let first = b.exp(&x).unwrap();
    let second = b.tanh(&first).unwrap();
    b.name_value(&second, "exp_0").unwrap();
    b.output("y", &second).unwrap();
    let f = b.finish().unwrap();
    assert_eq!(names(&f), ["exp_0_1", "exp_0", "y"]);
    assert_eq!(f.ops[2].op_type, OpType::Identity);
}

#[test]
fn taken_names_are_refused() {
    let (mut b, x) = builder();
    let y = b.exp(&x).unwrap();
    b.name_value(&y, "kept").unwrap();
    let z = b.exp(&y).unwrap();
    let duplicate = |name: &str| Error::DuplicateName {
        name: name.to_owned(),
    };
    assert_eq!(b.name_value(&z, "kept").unwrap_err(), duplicate("kept"));
    assert_eq!(b.output("x", &z).unwrap_err(), duplicate("x"));
    let again = b.input("x", DType::Fp16, &[1]);
    assert_eq!(again.unwrap_err(), duplicate("x"));
    assert!(matches!(
        b.name_value(&z, "fp16"),
        Err(Error::Identifier { .. })
    ));
    b.output("y", &z).unwrap();
    b.finish().unwrap();
}

#[test]
fn outputs_of_inputs_weights_and_outputs_are_copies() {
    let (mut b, x) = builder();
    let w = b
        .weight(DeferredConst::new("w", DType::Fp16, &[2]))
        .unwrap();
    let y = b.exp(&x).unwrap();
    b.output("x_out", &x).unwrap();
    b.output("w_out", &w).unwrap();
    b.output("y_out", &y).unwrap();
    b.output("y_again", &y).unwrap();
    let f = b.finish().unwrap();
    assert_eq!(f.outputs, ["x_out", "w_out", "y_out", "y_again"]);
    assert_eq!(names(&f), ["w", "y_out", "x_out", "w_out", "y_again"]);
}

#[test]
fn a_kept_value_can_be_the_output_of_its_name() {
    let (mut b, x) = builder();
    let y = b.exp(&x).unwrap();
    let y = b.name_value(&y, "logits").unwrap();
    b.output("logits", &y).unwrap();
    let f = b.finish().unwrap();
    assert_eq!(names(&f), ["logits"]);
    assert_eq!(f.outputs, ["logits"]);
}

#[test]
fn equal_constants_are_one_value() {
    let (mut b, x) = builder();
    let (one, two) = (b.scalar_f16(1.0).unwrap(), b.scalar_f16(2.0).unwrap());
    let mut y = x;
    for _ in 0..3 {
        y = b.add(&y, &one).unwrap();
        y = b.mul(&y, &two).unwrap();
        y = b.softmax(&y, -1).unwrap();
    }
    // A vector of one element is another constant than the scalar.
    let vector = b.immediate(Immediate::int32s(&[-1])).unwrap();
    assert_eq!(vector.shape(), [1]);
    b.output("y", &y).unwrap();
    let f = b.finish().unwrap();
    let consts = f.ops.iter().filter(|op| op.op_type == OpType::Const);
    assert_eq!(consts.count(), 4);
}

#[test]
fn a_weight_is_one_value_with_one_type() {
    let (mut b, _) = builder();
    let w = |shape: &[usize]| DeferredConst::new("layers.0.w", DType::Fp16, shape);
    let first = b.weight(w(&[2, 3])).unwrap();
    assert_eq!(b.weight(w(&[2, 3])).unwrap().id, first.id);
    assert!(matches!(
        b.weight(w(&[3, 2])),
        Err(Error::WeightConflict { id, .. }) if id == "layers.0.w"
    ));
    // Another id that makes the same identifier is refused rather than mixed up.
    let other = DeferredConst::new("layers_0_w", DType::Fp16, &[2, 3]);
    assert!(matches!(b.weight(other), Err(Error::DuplicateName { .. })));
}

#[test]
fn faults_name_op_and_argument() {
    let (mut b, x) = builder();
    let y = b.input("y", DType::Fp32, &[1, 4]).unwrap();
    let text = |e: Error| e.to_string();
    let error = text(b.add(&x, &y).unwrap_err());
    assert!(
        error.contains("`add` (add_0)") && error.contains("`y`"),
        "{error}"
    );
    let error = text(b.reshape(&x, &[3, -1]).unwrap_err());
    assert!(
        error.contains("[3, -1]") && error.contains("[1, 4]"),
        "{error}"
    );
    let error = text(b.softmax(&x, 2).unwrap_err());
    assert!(error.contains("axis 2"), "{error}");
    let error = text(b.op(OpType::Softmax, &[]).unwrap_err());
    assert!(error.contains("`x` is missing"), "{error}");
    let error = text(b.linear(&x, &x, None).unwrap_err());
    assert!(error.contains("`weight`: expected a constant"), "{error}");
    let axis = [x.clone()];
    let args: [(&'static str, &[Var]); 2] = [("x", &axis), ("axis", &axis)];
    let error = text(b.op(OpType::Softmax, &args).unwrap_err());
    assert!(
        error.contains("`axis`: expected an immediate constant"),
        "{error}"
    );
    let state = b.state("cache", &[1, 4]).unwrap();
    let error = text(b.exp(&state).unwrap_err());
    assert!(error.contains("got a state"), "{error}");
    let wide = b.input("wide", DType::Fp16, &[1, 1, 1, 1, 4]).unwrap();
    let error = text(b.expand_dims(&wide, &[0]).unwrap_err());
    assert!(error.contains("rank over 5"), "{error}");
    let (mut other, z) = builder();
    assert!(matches!(b.exp(&z), Err(Error::ForeignVar { .. })));
    assert!(matches!(
        other.output("z", &x),
        Err(Error::ForeignVar { .. })
    ));
}

#[test]
fn features_have_their_rules() {
    let (mut b, _) = builder();
    assert!(matches!(
        b.input("s", DType::Fp16, &[]),
        Err(Error::Feature { .. })
    ));
    assert!(matches!(
        b.input("b", DType::Bool, &[1]),
        Err(Error::Feature { .. })
    ));
    assert!(matches!(
        b.input("e", DType::Fp16, &[0]),
        Err(Error::Feature { .. })
    ));
    assert!(matches!(
        b.input("1", DType::Fp16, &[1]),
        Err(Error::Identifier { .. })
    ));
    assert!(matches!(b.finish(), Err(Error::Function { .. })));
    let (mut b, x) = builder();
    b.push_scope("open");
    let y = b.exp(&x).unwrap();
    b.output("y", &y).unwrap();
    assert!(matches!(b.finish(), Err(Error::Function { .. })));
}
