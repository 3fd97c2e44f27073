//! Parts that are missing, too many, or of another form than they should be.

use crate::helpers::*;

fn without(of: &str, name: &str) -> String {
    refused(edited(of, |_, tensors| tensors.retain(|t| !t.name.ends_with(name))).path())
}

fn changed(of: &str, name: &str, edit: impl Fn(&mut Raw)) -> String {
    refused(edited(of, |_, tensors| edit(find(tensors, name))).path())
}

fn added(of: &str, name: &str, dtype: &str, shape: &[usize], bytes: usize) -> String {
    let full = if name.starts_with("lm_head") {
        name.to_string()
    } else {
        format!("{PREFIX}{name}")
    };
    refused(
        edited(of, |_, tensors| {
            tensors.push(Raw::new(&full, dtype, shape, vec![0; bytes]))
        })
        .path(),
    )
}

#[test]
fn a_part_that_is_missing_is_named() {
    for (of, name) in [
        ("w4a16-ct", "layers.0.mlp.up_proj.weight_scale"),
        ("w4a16-ct", "layers.0.mlp.up_proj.weight_shape"),
        ("mobile-ct", "layers.0.per_layer_input_gate.weight_scale"),
        ("mobile-ct", "layers.0.mlp.up_proj.input_scale"),
        ("mobile-ct", "layers.0.mlp.up_proj.output_scale"),
        ("mobile-ct", "embed_tokens.weight_shape"),
        ("mobile-ct", "embed_tokens_per_layer.weight_scale"),
        ("mobile-ct", "lm_head.weight_scale"),
        ("mobile", "layers.0.mlp.up_proj.weight_scale"),
        ("mobile", "layers.0.mlp.up_proj.input_activation_scale"),
        ("mobile", "layers.0.mlp.up_proj.output_activation_scale"),
        ("mobile", "embed_tokens.embedding_scale"),
        ("mobile", "embed_tokens_per_layer.embedding_scale"),
        ("mobile", "lm_head.weight_scale"),
        ("mobile", "lm_head.input_activation_scale"),
    ] {
        says(&without(of, name), &[name, "beside it", "no such tensor"]);
    }
    for (of, name, left) in [
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.weight_packed",
            "up_proj.weight_s",
        ),
        ("mobile", "layers.0.mlp.up_proj.weight", "up_proj."),
        (
            "mobile",
            "embed_tokens.embedding_quantized",
            "embed_tokens.embedding_scale",
        ),
        (
            "mobile-ct",
            "layers.0.per_layer_input_gate.weight",
            "per_layer_input_gate.",
        ),
    ] {
        says(&without(of, name), &[left, "integers beside it"]);
    }
    // Numbers in its place.
    for (of, name) in [
        ("w4a16-ct", "layers.1.mlp.up_proj"),
        ("mobile", "layers.1.mlp.up_proj"),
        ("mobile-ct", "layers.1.self_attn.o_proj"),
    ] {
        let dir = edited(of, |_, tensors| {
            tensors.retain(|t| !t.name.contains(name));
            let shape = if name.contains("up") {
                [32, 64]
            } else {
                [64, 64]
            };
            let bytes = vec![0; shape[0] * shape[1] * 2];
            tensors.push(Raw::new(
                &format!("{PREFIX}{name}.weight"),
                "BF16",
                &shape,
                bytes,
            ));
        });
        says(
            &refused(dir.path()),
            &[name, "integers", "config.json", "BF16 ["],
        );
    }
    // All of it: the weight is missing, as ever.
    let dir = edited("w4a16-ct", |_, tensors| {
        tensors.retain(|t| !t.name.contains("layers.0.mlp.up_proj"))
    });
    says(&refused(dir.path()), &[UP, "is missing"]);
}

#[test]
fn a_part_too_many_is_named() {
    for (of, name, dtype, shape, bytes) in [
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.weight_zero_point",
            "I32",
            vec![4, 2],
            32,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.weight_g_idx",
            "I32",
            vec![64],
            256,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.weight_global_scale",
            "F32",
            vec![1],
            4,
        ),
        (
            "mobile-ct",
            "layers.0.mlp.up_proj.input_zero_point",
            "I8",
            vec![1],
            1,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.input_scale",
            "F32",
            vec![1],
            4,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.weight",
            "BF16",
            vec![32, 64],
            4096,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.weight",
            "I8",
            vec![32, 64],
            2048,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.up_proj.bias",
            "BF16",
            vec![32],
            64,
        ),
        (
            "w4a16-ct",
            "layers.0.mlp.other_proj.weight_scale",
            "BF16",
            vec![32, 2],
            128,
        ),
        (
            "w4a16-ct",
            "embed_tokens.weight_scale",
            "BF16",
            vec![208, 1],
            416,
        ),
        (
            "w4a16-ct",
            "layers.0.input_layernorm.weight_scale",
            "BF16",
            vec![1],
            2,
        ),
        (
            "w4a16-ct",
            "lm_head.weight_scale",
            "BF16",
            vec![208, 1],
            416,
        ),
        (
            "mobile",
            "per_layer_model_projection.weight_scale",
            "F32",
            vec![128, 1],
            512,
        ),
        (
            "mobile",
            "embed_tokens.weight",
            "BF16",
            vec![208, 64],
            208 * 128,
        ),
        (
            "mobile",
            "embed_tokens.weight_scale",
            "F32",
            vec![208, 1],
            832,
        ),
        (
            "mobile",
            "embed_tokens.input_activation_scale",
            "F32",
            vec![],
            4,
        ),
        (
            "mobile",
            "layers.0.mlp.up_proj.embedding_scale",
            "F32",
            vec![32, 1],
            128,
        ),
        (
            "mobile",
            "layers.0.mlp.up_proj.weight_zero_point",
            "U8",
            vec![32],
            32,
        ),
        (
            "mobile",
            "layers.0.mlp.up_proj.weight_packed",
            "I32",
            vec![32, 8],
            1024,
        ),
        (
            "mobile",
            "layers.0.self_attn.q_cache_scale",
            "F32",
            vec![],
            4,
        ),
        ("mobile", "layers.0.mlp.k_cache_scale", "F32", vec![], 4),
    ] {
        let module = name.rsplit_once('.').unwrap().0;
        says(&added(of, name, dtype, &shape, bytes), &[module]);
    }
    // Under two prefixes.
    let dir = edited("w4a16-ct", |_, tensors| {
        let mut other = find(tensors, "layers.0.mlp.up_proj.weight_scale").clone();
        other.name = other.name.replacen("model.", "", 1);
        tensors.push(other);
    });
    says(&refused(dir.path()), &["up_proj.weight_scale", "again"]);
}

#[test]
fn dtypes_and_shapes_of_parts() {
    let cast = |to: &'static str, shape: &'static [usize]| {
        move |t: &mut Raw| (t.dtype, t.shape) = (to.to_string(), shape.to_vec())
    };
    let packed = "layers.0.mlp.up_proj.weight_packed";
    says(
        &changed("w4a16-ct", packed, cast("U32", &[32, 8])),
        &[packed, "I32 [32, 8]", "U32 [32, 8]"],
    );
    says(
        &changed("w4a16-ct", packed, cast("U8", &[32, 32])),
        &[packed, "I32 [32, 8]"],
    );
    says(
        &changed("w4a16-ct", packed, cast("I32", &[16, 16])),
        &[packed, "I32 [32, 8]", "I32 [16, 16]"],
    );
    says(
        &changed("w4a16-ct", packed, cast("I32", &[256])),
        &[packed, "I32 [32, 8]"],
    );
    let scale = "layers.0.mlp.up_proj.weight_scale";
    says(
        &changed("w4a16-ct", scale, cast("BF16", &[64, 1])),
        &[scale, "[32, 2]", "BF16 [64, 1]"],
    );
    says(
        &changed("w4a16-ct", scale, cast("BF16", &[64])),
        &[scale, "[32, 2]"],
    );
    says(
        &changed("w4a16-ct", scale, cast("F8_E4M3", &[32, 4])),
        &[scale, "F8_E4M3"],
    );
    says(
        &changed("mobile", scale, cast("F32", &[32])),
        &[scale, "[32, 1]"],
    );
    says(
        &changed("mobile", scale, cast("F32", &[1, 32])),
        &[scale, "[32, 1]"],
    );
    let codes = "layers.0.mlp.up_proj.weight";
    says(
        &changed("mobile", codes, cast("I8", &[32, 32])),
        &[codes, "U8 [rows, 32]", "I8 [32, 32]"],
    );
    says(
        &changed("mobile", codes, cast("F8_E4M3", &[32, 32])),
        &[codes, "U8", "F8_E4M3"],
    );
    says(
        &changed("mobile", codes, cast("U8", &[64, 16])),
        &[codes, "would be 2 bits"],
    );
    says(
        &changed("mobile", codes, cast("U8", &[2, 16, 32])),
        &[codes, "U8 [2, 16, 32]"],
    );
    says(
        &changed("mobile", codes, cast("BF16", &[32, 16])),
        &["up_proj."],
    );
    let gate = "layers.0.per_layer_input_gate.weight";
    says(
        &changed("mobile", gate, cast("U8", &[32, 64])),
        &[gate, "I8 [rows, 64]"],
    );
    says(
        &changed("mobile-ct", gate, cast("U8", &[32, 64])),
        &[gate, "I8"],
    );
    let table = "embed_tokens_per_layer.embedding_scale";
    says(
        &changed("mobile", table, cast("F32", &[832, 1])),
        &[table, "[208, "],
    );
    says(
        &changed("mobile", table, |t| {
            t.shape = vec![208, 3];
            t.bytes.truncate(208 * 12)
        }),
        &[table, "[208, "],
    );
    // One whose parts fit each other and not the model.
    let dir = edited("w4a16-ct", |_, tensors| {
        find(tensors, packed).shape = vec![64, 4];
        find(tensors, scale).shape = vec![64, 1];
        find(tensors, "layers.0.mlp.up_proj.weight_shape").bytes = sizes(&[64, 32]);
    });
    says(
        &refused(dir.path()),
        &["up_proj.weight_packed", "[32, 64]", "[64, 32]"],
    );
}

/// `weight_shape` is data: it may say anything.
#[test]
fn sizes_that_lie() {
    let shape = "layers.0.mlp.up_proj.weight_shape";
    for lie in [
        [32, 63],
        [32, 65],
        [31, 64],
        [64, 32],
        [0, 0],
        [-32, 64],
        [32, -64],
        [i64::MAX, i64::MAX],
        [i64::MIN, 1],
        [32, i64::MAX],
        [32, 1 << 61],
    ] {
        let text = changed("w4a16-ct", shape, |t| t.bytes = sizes(&lie));
        says(&text, &["layers.0.mlp.up_proj.weight_"]);
    }
    says(
        &changed("w4a16-ct", shape, |t| {
            (t.shape, t.bytes) = (vec![3], sizes(&[32, 64, 1]))
        }),
        &[shape, "I64 [2]"],
    );
    says(
        &changed("w4a16-ct", shape, |t| {
            (t.dtype, t.bytes) = ("I32".into(), vec![0; 8])
        }),
        &[shape, "I64 [2]"],
    );
    // Nothing is allocated for sizes that the config has.
    for (field, of) in [
        ("hidden_size", "mobile"),
        ("intermediate_size", "mobile"),
        ("hidden_size_per_layer_input", "mobile"),
        ("hidden_size", "w4a16-ct"),
    ] {
        refused(
            edited(of, |config, _| {
                config["text_config"][field] = (1u64 << 28).into()
            })
            .path(),
        );
    }
    let empty = edited("mobile", |_, tensors| {
        let codes = find(tensors, "layers.0.mlp.up_proj.weight");
        (codes.shape, codes.bytes) = (vec![0, 32], Vec::new());
        let scale = find(tensors, "layers.0.mlp.up_proj.weight_scale");
        (scale.shape, scale.bytes) = (vec![0, 1], Vec::new());
    });
    says(&refused(empty.path()), &["up_proj.weight", "U8 [0, 32]"]);
    let empty = edited("w4a16-ct", |_, tensors| {
        let codes = find(tensors, "layers.0.mlp.up_proj.weight_packed");
        (codes.shape, codes.bytes) = (vec![32, 0], Vec::new());
        find(tensors, "layers.0.mlp.up_proj.weight_shape").bytes = sizes(&[32, 0]);
    });
    says(&refused(empty.path()), &["up_proj.weight_shape"]);
}

#[test]
fn steps_of_activations_that_are_none() {
    for (of, name) in [
        ("mobile", "layers.0.mlp.up_proj.input_activation_scale"),
        ("mobile-ct", "layers.0.mlp.up_proj.output_scale"),
    ] {
        for bad in [-0.25f32, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            says(
                &changed(of, name, |t| t.bytes = floats(&[bad])),
                &[name, "not negative"],
            );
        }
        says(
            &changed(of, name, |t| {
                (t.shape, t.bytes) = (vec![2], floats(&[0.5, 0.5]))
            }),
            &[name, "F32 [2]"],
        );
        says(
            &changed(of, name, |t| (t.shape, t.bytes) = (vec![0], Vec::new())),
            &[name, "F32 [0]"],
        );
        says(
            &changed(of, name, |t| t.dtype = "I32".into()),
            &[name, "I32"],
        );
        for zero in [0.0, -0.0] {
            let dir = edited(of, |_, tensors| find(tensors, name).bytes = floats(&[zero]));
            opened(dir.path());
        }
        let dir = edited(of, |_, tensors| {
            let scale = find(tensors, name);
            (scale.dtype, scale.shape, scale.bytes) = (
                "BF16".into(),
                vec![1],
                half::bf16::from_f32(0.5).to_le_bytes().into(),
            );
        });
        let scales = opened(dir.path()).activation_scales(UP).unwrap();
        assert!(scales.input == 0.5 || scales.output == 0.5);
    }
    // Around the head nothing is rounded.
    let text = changed("mobile", "lm_head.input_activation_scale", |t| {
        t.bytes = floats(&[0.5])
    });
    says(&text, &["lm_head.input_activation_scale", "0.5"]);
}

/// A file cut anywhere is refused when it is opened.
#[test]
fn truncated() {
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        let file = std::fs::read(qat(of).join(SINGLE)).unwrap();
        for keep in [0, 7, 100, file.len() / 2, file.len() - 1] {
            let dir = written(&config_of(of), &[]);
            std::fs::write(dir.path().join(SINGLE), &file[..keep]).unwrap();
            says(&refused(dir.path()), &[SINGLE]);
        }
    }
}

/// Every tensor taken away, and every one turned into each other dtype of its size: never a panic, and read only where
/// the tensor has no part in the model.
#[test]
fn any_tensor_may_be_missing_or_of_another_dtype() {
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        let tensors = read_raw(&qat(of).join(SINGLE));
        let config = config_of(of);
        for (i, t) in tensors.iter().enumerate().step_by(7) {
            let mut others = tensors.clone();
            others.remove(i);
            let read = checked(written(&config, &others).path()).is_ok();
            let unused = [
                "_cache_scale",
                "layers.2.self_attn.k_",
                "layers.2.self_attn.v_",
                "layers.3.self_attn.k_",
                "layers.3.self_attn.v_",
            ];
            let unused =
                unused.iter().any(|part| t.name.contains(part)) || t.name.starts_with("lm_head.");
            assert!(!read || unused, "{of} without {}", t.name);
            let same_size: &[&str] = match t.dtype.as_str() {
                "U8" | "I8" => &["I8", "U8", "F8_E4M3", "BOOL"],
                "BF16" => &["I16", "U16"],
                "F32" | "I32" => &["I32", "U32", "F32"],
                _ => &["U64", "F64"],
            };
            for dtype in same_size.iter().filter(|d| **d != t.dtype) {
                let mut others = tensors.clone();
                others[i].dtype = dtype.to_string();
                let read = checked(written(&config, &others).path()).is_ok();
                assert!(!read || unused, "{of} with {} in {dtype}", t.name);
            }
        }
    }
}

/// Bytes of the config and of the header changed at random: an error or a checkpoint, every value of which is read or refused.
#[test]
fn damage_is_no_panic() {
    let rounds: usize = std::env::var("ROUNDS").map_or(60, |n| n.parse().unwrap());
    let mut state = 11u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for of in ["mobile", "mobile-ct", "w4a16-ct"] {
        let dir = written(&config_of(of), &[]);
        let config = config_of(of).to_string().into_bytes();
        let file = std::fs::read(qat(of).join(SINGLE)).unwrap();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut read = 0;
        for _ in 0..rounds {
            let (mut config, mut file) = (config.clone(), file.clone());
            for _ in 0..1 + next(3) {
                match next(3) {
                    0 => {
                        let at = next(config.len());
                        config[at] = b"0123456789{}[],\"a.\\"[next(19)]
                    }
                    1 => {
                        let at = next(header);
                        file[at] = b"0123456789{}[],\"IU8"[next(19)]
                    }
                    _ => {
                        let at = header + next(file.len() - header);
                        file[at] ^= 1 << next(8)
                    }
                }
            }
            std::fs::write(dir.path().join("config.json"), config).unwrap();
            std::fs::write(dir.path().join(SINGLE), file).unwrap();
            let Ok(checkpoint) = Checkpoint::open(dir.path()) else {
                continue;
            };
            read += 1;
            for name in checkpoint.names() {
                let view = checkpoint
                    .tensor(name, checkpoint.shape(name).unwrap())
                    .unwrap();
                let _ = view.read_f32(0..view.len(), &mut vec![0.0; view.len()]);
            }
        }
        assert!(read > 0 && read < rounds, "{of}: {read} of {rounds}");
    }
}
