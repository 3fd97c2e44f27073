//! Layers with experts: what is bound, what is computed, and for how many tokens.

use super::*;
use crate::graph::emitter::Emitter;
use crate::graph::experts::beside_mlp;
use crate::graph::{Error, WeightKind, WeightLayout, chunk_weights};
use crate::mil::DType;

#[test]
fn every_tensor_is_bound_in_its_shape() {
    let plan = a4b();
    structure::check_weights(&plan, 512);
    let graphs = swa4(&plan, 512);
    let find = |tensor: &str| {
        let mut all = graphs.iter().flat_map(|g| &g.weights);
        let w = all.find(|w| w.tensor == tensor).unwrap();
        (w.kind, w.layout, w.konst.shape.clone())
    };
    use {WeightKind::*, WeightLayout::*};
    for (suffix, kind, layout, shape) in [
        ("router.proj.weight", Projection, Conv1x1, [128, 2816, 1, 1]),
        ("router.scale", Norm, Vector4, [1, 2816, 1, 1]),
        ("router.per_expert_scale", Scalar, Vector4, [1, 128, 1, 1]),
        (
            "experts.gate_up_proj",
            Projection,
            StackedConv1x1,
            [128 * 1408, 2816, 1, 1],
        ),
        (
            "experts.down_proj",
            Projection,
            StackedConv1x1,
            [128 * 2816, 704, 1, 1],
        ),
        (
            "pre_feedforward_layernorm_2.weight",
            Norm,
            Vector4,
            [1, 2816, 1, 1],
        ),
    ] {
        let tensor = format!("layers.17.{suffix}");
        assert_eq!(find(&tensor), (kind, layout, shape.to_vec()), "{tensor}");
    }
}

#[test]
fn op_counts_follow_from_the_layers() {
    let graphs = swa4(&a4b(), 512);
    // 8 layers, 1 of them full: q, k, v (not on the full one), o, three of the MLP, router, two of the experts.
    let f = main_of(&graphs[0]);
    let count = |name: &str| f.ops.iter().filter(|op| op.op_type.name() == name).count();
    assert_eq!(count("conv"), 8 * 10 - 1);
    // Four on the stream, three of the experts, the router's, and q, k, v.
    assert_eq!(count("layer_norm"), 8 * 11);
    assert_eq!(count("topk"), 8);
    // Factors and rows of the chosen experts.
    assert_eq!(count("gather"), 2 * 8);
    assert_eq!(count("gelu"), 2 * 8);
    let int32 = |ty: &TensorType| ty.dtype == DType::Int32;
    for op in f.ops.iter().filter(|op| op.value.is_none()) {
        for (name, ty) in &op.outputs {
            assert!(ty.shape.len() <= 4, "{name}");
            assert!(ty.dtype == DType::Fp16 || int32(ty), "{name}");
            assert!(!int32(ty) || op.op_type.name() == "topk", "{name}");
        }
    }
}

#[test]
fn the_interface_is_that_of_a_dense_model() {
    let graphs = swa4(&a4b(), 512);
    let dense = ModelPlan { moe: None, ..a4b() };
    for (graph, dense) in graphs.iter().zip(swa4(&dense, 512)) {
        assert_eq!(inputs(main_of(graph)), inputs(main_of(&dense)));
        assert_eq!(outputs(main_of(graph)), outputs(main_of(&dense)));
    }
}

#[test]
fn several_tokens_are_refused() {
    let plan = a4b();
    let spec = &split::chunks(&plan, Layout::Swa4).unwrap()[0];
    let options = GraphOptions::decode(512);
    let weights = chunk_weights(&plan, spec, &options).unwrap();
    for shape in [[1, 2816, 1, 4], [1, 2816, 4, 1], [4, 2816, 1, 1]] {
        let mut e = Emitter::new(&plan, &spec.name, &weights, 1);
        let x = e.fb.input("x", DType::Fp16, &shape).unwrap();
        let error = beside_mlp(&mut e, 3, plan.moe.unwrap(), &x, &x)
            .err()
            .unwrap();
        assert!(
            matches!(&error, Error::ExpertTokens { layer: 3, shape: s } if *s == shape),
            "{error}"
        );
    }
}
