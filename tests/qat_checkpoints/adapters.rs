//! Adapters over integers: dequantized, merged, no longer on the grid.

use gemma_coreml::checkpoint::Adapter;

use crate::helpers::*;

/// A LoRA of rank 1 on `up_proj` of layer 0, whose product is `b * a`.
fn lora(a: &[f32], b: &[f32]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let name = |part: &str| format!("base_model.model.{PREFIX}layers.0.mlp.up_proj.{part}.weight");
    let tensors = [
        Raw::new(&name("lora_A"), "F32", &[1, a.len()], floats(a)),
        Raw::new(&name("lora_B"), "F32", &[b.len(), 1], floats(b)),
    ];
    std::fs::write(
        dir.path().join("adapter_model.safetensors"),
        serialize(&tensors),
    )
    .unwrap();
    let config =
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["up_proj"]});
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn merged_matrices_are_the_sum_and_leave_the_grid() {
    let (a, b) = (
        [vec![0.5, -0.25], vec![0.0; 62]].concat(),
        [vec![0.125], vec![0.0; 31]].concat(),
    );
    let folder = lora(&a, &b);
    for of in ["mobile", "mobile-ct", "w4a16-ct", "q4_0"] {
        let plain = opened(&qat(of));
        let before = values(&plain, UP);
        let adapter = Adapter::open(folder.path()).unwrap();
        let merged = opened(&qat(of)).with_adapters(&[adapter]).unwrap();
        let after = values(&merged, UP);
        for (i, (old, new)) in before.iter().zip(&after).enumerate() {
            assert_eq!(*new, old + 2.0 * b[i / 64] * a[i % 64], "{of} {i}");
        }
        let view = merged.tensor(UP, &[32, 64]).unwrap();
        assert_eq!(view.grid(), None);
        let down = "layers.0.mlp.down_proj.weight";
        assert_eq!(grid(&merged, down), grid(&plain, down));
        assert_eq!(merged.activation_scales(UP), plain.activation_scales(UP));
        let [notice @ Notice::OffGrid { .. }] = merged.notices() else {
            panic!("{:?}", merged.notices());
        };
        says(&notice.to_string(), &["grid", UP]);
        assert_ne!(
            plain.fingerprint(&NoProgress).unwrap(),
            merged.fingerprint(&NoProgress).unwrap()
        );
        let bare = merged.with_adapters(&[]).unwrap();
        assert_eq!(
            (bare.notices(), grid(&bare, UP)),
            (&[][..], grid(&plain, UP))
        );
    }
    let adapter = Adapter::open(folder.path()).unwrap();
    let dense = opened(&qat("w4a16-dense"))
        .with_adapters(&[adapter])
        .unwrap();
    assert_eq!(dense.notices(), []);
}

/// A bad step is the checkpoint's fault, not the adapter's.
#[test]
fn a_negative_step_under_an_adapter() {
    let folder = lora(&[0.5; 64], &[0.125; 32]);
    let dir = edited("mobile", |_, tensors| {
        find(tensors, "layers.0.mlp.up_proj.weight_scale").bytes[..4]
            .copy_from_slice(&(-1f32).to_le_bytes());
    });
    let adapter = Adapter::open(folder.path()).unwrap();
    let merged = opened(dir.path()).with_adapters(&[adapter]).unwrap();
    let view = merged.tensor(UP, &[32, 64]).unwrap();
    let error = view
        .read_f32(0..64, &mut [0.0; 64])
        .unwrap_err()
        .to_string();
    says(&error, &[UP, "the step of element 0 is -1"]);
}
