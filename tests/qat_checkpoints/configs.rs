//! What `quantization_config` may say, and what is refused by name.

use crate::helpers::*;

/// The message for a fixture whose `quantization_config` is edited.
fn with(of: &str, edit: impl FnOnce(&mut Value)) -> String {
    refused(edited(of, |config, _| edit(&mut config["quantization_config"])).path())
}

fn weights(config: &mut Value) -> &mut Value {
    &mut config["config_groups"]["group_0"]["weights"]
}

#[test]
fn other_methods_are_named() {
    for method in [
        "gptq",
        "awq",
        "bitsandbytes",
        "fp8",
        "torchao",
        "hqq",
        "mxfp4",
        "quanto",
        "aqlm",
        "GEMMA",
        "modelopt",
        "",
    ] {
        let text = with("q4_0", |c| *c = json!({"quant_method": method, "bits": 4}));
        says(
            &text,
            &[
                "config.json",
                "`quantization_config.quant_method`",
                &format!("{method:?}"),
                "compressed-tensors",
                "gemma",
                "q4_0",
            ],
        );
    }
    for (config, field, found) in [
        (
            json!({"bits": 4, "group_size": 64}),
            "`quantization_config`",
            "\"bits\":4",
        ),
        (
            json!({"load_in_4bit": true}),
            "`quantization_config`",
            "load_in_4bit",
        ),
        (json!({}), "`quantization_config`", "{}"),
        (
            json!({"quant_type": "q8_0"}),
            "`quantization_config`",
            "q8_0",
        ),
        (
            json!({"quant_type": 4}),
            "`quantization_config.quant_type`",
            "4",
        ),
        (
            json!({"quant_method": ["gemma"]}),
            "`quantization_config.quant_method`",
            "gemma",
        ),
        (json!("gptq"), "`quantization_config`", "gptq"),
    ] {
        says(&with("q4_0", |c| *c = config), &[field, found]);
    }
    // Where it lies is of no matter.
    for level in ["text_config", ""] {
        for name in ["quantization_config", "compression_config"] {
            let dir = edited("q4_0", |config, _| {
                config["quantization_config"] = Value::Null;
                let at = if level.is_empty() {
                    config
                } else {
                    &mut config[level]
                };
                at[name] = json!({"quant_method": "gptq"});
            });
            says(&refused(dir.path()), &[name, level, "gptq"]);
        }
    }
}

#[test]
fn mlx_is_named() {
    for quantized in [
        json!({"group_size": 64, "bits": 4}),
        json!({"bits": 4, "mode": "affine", "model.layers.0": {"bits": 8}}),
    ] {
        let dir = edited("q4_0", |config, _| {
            config["quantization"] = quantized.clone();
            config["quantization_config"] = quantized;
        });
        says(
            &refused(dir.path()),
            &[
                "`quantization`",
                "mlx",
                "google/gemma-4-...-it-qat-q4_0-unquantized",
            ],
        );
    }
    let dir = edited("q4_0", |_, tensors| {
        find(tensors, "mlp.up_proj.weight").dtype = "U32".into()
    });
    let up = edited("q4_0", |_, tensors| {
        let up = find(tensors, "mlp.up_proj.weight");
        (up.dtype, up.shape) = ("U32".into(), vec![32, 32]);
    });
    drop(dir);
    says(
        &refused(up.path()),
        &["mlp.up_proj.weight", "U32", "mlx", "qat-q4_0-unquantized"],
    );
}

#[test]
fn gguf_folders_and_files_are_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(
        dir.path().join("gemma-4-E2B_q4_0-it.gguf"),
        b"GGUF\x03\0\0\0",
    )
    .unwrap();
    says(
        &refused(dir.path()),
        &[
            "GGUF",
            "gemma-4-E2B_q4_0-it.gguf",
            "google/gemma-4-...-it-qat-q4_0-unquantized",
        ],
    );
    std::fs::copy(
        qat("q4_0").join("config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    says(
        &refused(dir.path()),
        &[
            "gemma-4-E2B_q4_0-it.gguf",
            "google/gemma-4-...-it-qat-q4_0-unquantized",
        ],
    );
    std::fs::write(dir.path().join(SINGLE), b"GGUF\x03\0\0\0").unwrap();
    says(
        &refused(dir.path()),
        &[SINGLE, "GGUF", "google/gemma-4-...-it-qat-q4_0-unquantized"],
    );
}

#[test]
fn numbers_with_and_without_the_object() {
    for config in [
        Value::Null,
        json!({"quant_type": "q4_0"}),
        json!({"quant_type": "Q4_0", "group_size": 32}),
    ] {
        for of_text in [true, false] {
            let dir = edited("q4_0", |all, _| {
                all["quantization_config"] = Value::Null;
                let at = if of_text {
                    &mut all["text_config"]
                } else {
                    all
                };
                at["quantization_config"] = config.clone();
            });
            assert_eq!(
                opened(dir.path()).quantization().is_some(),
                !config.is_null()
            );
        }
    }
    // Twice, and the same, or not.
    let dir = edited("mobile", |config, _| {
        config["text_config"]["quantization_config"] = config["quantization_config"].clone();
    });
    opened(dir.path());
    let dir = edited("mobile", |config, _| {
        config["text_config"]["quantization_config"] = json!({"quant_type": "q4_0"});
    });
    says(
        &refused(dir.path()),
        &["text_config.quantization_config", "something else"],
    );
}

/// Integers in a file whose config says nothing of them.
#[test]
fn integers_without_a_config_are_not_numbers() {
    for (of, dtype) in [
        ("mobile", "dtype"),
        ("mobile-ct", "dtype"),
        ("w4a16-ct", "dtype"),
    ] {
        let text = with(of, |c| *c = Value::Null);
        says(&text, &[dtype, "quantization_config"]);
        let text = with(of, |c| *c = json!({"quant_type": "q4_0"}));
        says(&text, &[dtype]);
    }
    // The config of another form.
    let config = config_of("mobile")["quantization_config"].clone();
    refused(edited("mobile-ct", |c, _| c["quantization_config"] = config).path());
    let config = config_of("mobile-ct")["quantization_config"].clone();
    refused(edited("mobile", |c, _| c["quantization_config"] = config).path());
}

#[test]
fn what_compressed_tensors_can_do_and_this_cannot() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &[&str]); 30] = [
        (
            |c| weights(c)["symmetric"] = false.into(),
            &["group_0.weights.symmetric", "false", "zero points"],
        ),
        (
            |c| weights(c)["type"] = "float".into(),
            &["weights.type", "float", "\"int\""],
        ),
        (
            |c| weights(c)["dynamic"] = true.into(),
            &["weights.dynamic", "true"],
        ),
        (
            |c| weights(c)["dynamic"] = "local".into(),
            &["weights.dynamic", "local"],
        ),
        (
            |c| weights(c)["actorder"] = "group".into(),
            &["weights.actorder", "group"],
        ),
        (
            |c| weights(c)["actorder"] = "dynamic".into(),
            &["weights.actorder", "dynamic"],
        ),
        (
            |c| weights(c)["actorder"] = true.into(),
            &["weights.actorder", "true"],
        ),
        (
            |c| weights(c)["num_bits"] = 3.into(),
            &["weights.num_bits", "3", "2, 4, 8"],
        ),
        (
            |c| weights(c)["num_bits"] = 16.into(),
            &["weights.num_bits", "16"],
        ),
        (
            |c| weights(c)["num_bits"] = 0.into(),
            &["weights.num_bits", "0"],
        ),
        (
            |c| weights(c)["num_bits"] = "4".into(),
            &["weights.num_bits"],
        ),
        (
            |c| weights(c)["strategy"] = "block".into(),
            &["weights.strategy", "block"],
        ),
        (
            |c| weights(c)["strategy"] = "tensor_group".into(),
            &["weights.strategy", "tensor_group"],
        ),
        (
            |c| weights(c)["strategy"] = "channel".into(),
            &["weights.group_size", "32"],
        ),
        (
            |c| (weights(c)["strategy"], weights(c)["group_size"]) = ("tensor".into(), Value::Null),
            &["weights.strategy", "tensor"],
        ),
        (
            |c| (weights(c)["strategy"], weights(c)["group_size"]) = (Value::Null, Value::Null),
            &["weights.strategy"],
        ),
        (
            |c| weights(c)["group_size"] = Value::Null,
            &["weights.group_size", "missing"],
        ),
        (
            |c| weights(c)["group_size"] = 0.into(),
            &["weights.group_size", "0"],
        ),
        (
            |c| weights(c)["block_structure"] = json!([128, 128]),
            &["weights.block_structure"],
        ),
        (
            |c| weights(c)["rotation"] = "hadamard".into(),
            &["weights.rotation", "hadamard"],
        ),
        (|c| *weights(c) = Value::Null, &["group_0.weights"]),
        (
            |c| c["format"] = "float-quantized".into(),
            &["`quantization_config.format`", "float-quantized"],
        ),
        (
            |c| c["format"] = "nvfp4-pack-quantized".into(),
            &["`quantization_config.format`", "nvfp4"],
        ),
        (
            |c| c["format"] = "marlin-24".into(),
            &["`quantization_config.format`", "marlin-24"],
        ),
        (
            |c| c["quantization_status"] = "frozen".into(),
            &["quantization_status", "frozen", "compressed"],
        ),
        (
            |c| c["sparsity_config"] = json!({"format": "sparse-24-bitmask"}),
            &["sparsity_config", "sparse-24-bitmask"],
        ),
        (
            |c| c["transform_config"] = json!({"config_groups": {"u": {"type": "hadamard"}}}),
            &["transform_config", "hadamard"],
        ),
        (
            |c| c["config_groups"] = json!({"W4A16": ["Linear"]}),
            &["config_groups.W4A16", "written out"],
        ),
        (
            |c| c["config_groups"] = json!({}),
            &["config_groups", "at least one"],
        ),
        (
            |c| c["config_groups"]["group_0"]["targets"] = json!(["re:(", "Linear"]),
            &["group_0.targets", "regular expression"],
        ),
    ];
    for (edit, parts) in cases {
        says(&with("w4a16-ct", edit), parts);
    }
    type Activations = (&'static str, Value);
    let cases: [Activations; 5] = [
        ("dynamic", true.into()),
        ("num_bits", 4.into()),
        ("strategy", "token".into()),
        ("symmetric", false.into()),
        ("type", "float".into()),
    ];
    for (field, value) in cases {
        let text = with("mobile-ct", |c| {
            c["config_groups"]["group_1"]["input_activations"][field] = value.clone()
        });
        says(&text, &[&format!("group_1.input_activations.{field}")]);
    }
}

/// Fields that leave the numbers as they are.
#[test]
fn what_compressed_tensors_may_say() {
    type Edit = fn(&mut Value);
    let cases: [Edit; 9] = [
        |c| weights(c)["actorder"] = "weight".into(),
        |c| weights(c)["actorder"] = "static".into(),
        |c| weights(c)["scale_dtype"] = Value::Null,
        |c| weights(c)["strategy"] = Value::Null,
        |c| c["sparsity_config"] = json!({"format": "dense"}),
        |c| c["transform_config"] = json!({}),
        |c| c["version"] = "0.20.1".into(),
        |c| c["quantization_status"] = Value::Null,
        |c| {
            c["ignore"] = json!([
                "lm_head",
                "model.language_model.layers.3.per_layer_input_gate"
            ])
        },
    ];
    for edit in cases {
        let dir = edited("w4a16-ct", |config, _| {
            edit(&mut config["quantization_config"])
        });
        assert_eq!(opened(dir.path()).notices(), []);
    }
    let dir = edited("w4a16-ct", |config, _| {
        config["quantization_config"]["kv_cache_scheme"] = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false});
    });
    let notices = opened(dir.path()).notices().to_vec();
    let [notice @ Notice::CacheNotRounded { .. }] = &notices[..] else {
        panic!("{notices:?}");
    };
    says(&notice.to_string(), &["kv_cache_scheme"]);
    says(
        &with("w4a16-ct", |c| {
            c["kv_cache_scheme"] = json!({"num_bits": 8, "type": "float"})
        }),
        &["kv_cache_scheme.type"],
    );
}

#[test]
fn which_group_a_module_is_in() {
    // A name goes before a pattern, a pattern before a class, whatever their order.
    for targets in [
        json!(["Linear", "re:.*mlp.*"]),
        json!(["re:.*mlp.*", "Linear"]),
    ] {
        let dir = edited("w4a16-ct", |config, _| {
            let groups = &mut config["quantization_config"]["config_groups"];
            groups["group_1"] = groups["group_0"].clone();
            groups["group_1"]["targets"] = json!(["Linear"]);
            groups["group_0"]["targets"] = targets.clone();
            groups["group_0"]["weights"]["num_bits"] = 4.into();
        });
        opened(dir.path());
    }
    let eight = |targets: Value| {
        with("w4a16-ct", |c| {
            let groups = &mut c["config_groups"];
            groups["eight"] = groups["group_0"].clone();
            groups["eight"]["targets"] = targets;
            groups["eight"]["weights"]["num_bits"] = 8.into();
        })
    };
    let named = format!("{PREFIX}layers.0.mlp.up_proj");
    for target in [named.clone(), "re:.*layers.0.mlp.up_proj".into()] {
        let text = eight(json!([target]));
        says(
            &text,
            &[
                &format!("{named}.weight_packed"),
                "8 bits (eight of config.json)",
                "I32 [32, 16]",
                "I32 [32, 8]",
                "would be 4 bits",
            ],
        );
    }
    // A pattern is for the beginning of a name: this one is for none.
    let dir = edited("w4a16-ct", |config, _| {
        let groups = &mut config["quantization_config"]["config_groups"];
        groups["eight"] = groups["group_0"].clone();
        groups["eight"]["targets"] = json!(["re:layers.0.mlp.up_proj$X"]);
        groups["eight"]["weights"]["num_bits"] = 8.into();
    });
    opened(dir.path());
    // Of none, and left out.
    let text = with("w4a16-ct", |c| {
        c["config_groups"]["group_0"]["targets"] = json!(["re:.*self_attn.*"])
    });
    says(
        &text,
        &["weight_packed", "numbers", "no group in `config_groups`"],
    );
    let text = with("w4a16-ct", |c| {
        c["ignore"] = json!(["re:.*layers\\.(1\\.mlp|3\\.per)"])
    });
    says(&text, &["layers.1.mlp.down_proj.weight_packed", "`ignore`"]);
}

#[test]
fn what_the_gemma_method_may_say() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &[&str]); 11] = [
        (
            |c| c["num_bits"] = 3.into(),
            &["`quantization_config.num_bits`", "3", "2, 4, 8"],
        ),
        (
            |c| c["module_quant_configs"]["lm_head$"]["num_bits"] = 6.into(),
            &["module_quant_configs.lm_head$.num_bits", "6"],
        ),
        (
            |c| c["module_quant_configs"]["lm_head$"]["symmetric"] = false.into(),
            &["module_quant_configs.lm_head$.symmetric"],
        ),
        (
            |c| c["module_quant_configs"]["lm_head$"] = 2.into(),
            &["module_quant_configs.lm_head$"],
        ),
        (
            |c| c["module_quant_configs"] = json!(["lm_head"]),
            &["module_quant_configs"],
        ),
        (
            |c| c["module_quant_configs"]["("] = json!({"num_bits": 2}),
            &["module_quant_configs", "regular expression"],
        ),
        (
            |c| c["quantize_embeddings"] = false.into(),
            &["embed_tokens.embedding_quantized", "`quantize_embeddings`"],
        ),
        (
            |c| c["quantize_embeddings"] = 1.into(),
            &["quantize_embeddings"],
        ),
        (
            |c| c["modules_to_not_convert"] = json!(["o_proj"]),
            &["layers.0.self_attn.o_proj.weight", "modules_to_not_convert"],
        ),
        (
            |c| c["modules_to_not_convert"] = json!(["model.language_model.layers.1"]),
            &["layers.1.", "modules_to_not_convert"],
        ),
        (
            |c| c["modules_to_not_convert"] = "lm_head".into(),
            &["modules_to_not_convert", "a list of strings"],
        ),
    ];
    for (edit, parts) in cases {
        says(&with("mobile", edit), parts);
    }
    // A beginning ends where a component does.
    let dir = edited("mobile", |config, _| {
        config["quantization_config"]["modules_to_not_convert"] =
            json!(["model.language_model.layer", "mlp.gate"]);
    });
    opened(dir.path());
}

/// Bits that the shape of a tensor contradicts.
#[test]
fn a_width_that_is_not_that_of_the_file() {
    let text = with("mobile", |c| {
        c["module_quant_configs"]["self_attn\\.(q|k|v|o)_proj$"]["num_bits"] = 2.into()
    });
    says(
        &text,
        &[
            "layers.0.self_attn.k_proj.weight",
            "U8 [rows, 16] for 64 integers of 2 bits",
            "U8 [16, 32]",
            "would be 4 bits",
            "module_quant_configs",
        ],
    );
    let text = with("mobile", |c| {
        c["module_quant_configs"]["self_attn\\.(q|k|v|o)_proj$"]["num_bits"] = 8.into()
    });
    says(
        &text,
        &[
            "layers.0.self_attn.k_proj.weight",
            "I8 [rows, 64]",
            "U8 [16, 32]",
        ],
    );
    let text = with("mobile", |c| {
        c["module_quant_configs"] = json!({"embed_tokens": {"num_bits": 4}})
    });
    says(
        &text,
        &[
            "embed_tokens.embedding_quantized",
            "4 bits",
            "would be 2 bits",
        ],
    );
    // E4B's schedule for a model of E2B's kind: every MLP 4 bits.
    let text = with("mobile", |c| {
        c["module_quant_configs"]
            .as_object_mut()
            .unwrap()
            .remove("language_model\\.layers\\.\\d+\\.mlp\\.(gate|up|down)_proj$");
    });
    says(
        &text,
        &["layers.2.mlp.down_proj.weight", "4 bits", "would be 2 bits"],
    );
    // The order of the file decides between patterns that begin at one place.
    let text = with("mobile", |c| {
        let modules = c["module_quant_configs"].as_object_mut().unwrap();
        let first = modules
            .shift_remove("language_model\\.layers\\.(0|1)\\.mlp\\.(gate|up|down)_proj$")
            .unwrap();
        modules.insert(
            "language_model\\.layers\\.(0|1)\\.mlp\\.(gate|up|down)_proj$".into(),
            first,
        );
    });
    says(
        &text,
        &["layers.0.mlp.down_proj.weight", "2 bits", "would be 4 bits"],
    );
}
