//! Configs as fine-tuners write them.

use crate::helpers::*;

#[test]
fn configs_as_fine_tuners_write_them() {
    type Edit = fn(&mut Value);
    let same: [(&str, Edit); 9] = [
        ("torch_dtype", |c| {
            c.as_object_mut().unwrap().remove("dtype");
            c["torch_dtype"] = json!("bfloat16");
        }),
        ("extra keys", |c| {
            c["unsloth_version"] = json!("2026.9");
            c["unsloth_fixed"] = json!(true);
            c["_name_or_path"] = json!("google/gemma-4-E2B-it");
            c["use_cache"] = json!(false);
        }),
        ("null quantization", |c| {
            c["quantization_config"] = Value::Null
        }),
        ("Gemma4Model", |c| {
            c["architectures"] = json!(["Gemma4Model"])
        }),
        ("Gemma4TextModel", |c| {
            c["architectures"] = json!(["Gemma4TextModel"])
        }),
        ("Gemma4ForCausalLM", |c| {
            c["architectures"] = json!(["Gemma4ForCausalLM"])
        }),
        ("no architectures", |c| {
            drop(c.as_object_mut().unwrap().remove("architectures"))
        }),
        ("no inner model_type", |c| {
            drop(
                c["text_config"]
                    .as_object_mut()
                    .unwrap()
                    .remove("model_type"),
            )
        }),
        ("null rope_scaling", |c| {
            c["text_config"]["rope_scaling"] = Value::Null
        }),
    ];
    for (name, edit) in same {
        let dir = with_config(edit);
        checked(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    // Python's json writes these, and reads them.
    let dir = with_config(|c| c["loss"] = json!("NAN"));
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"NAN\"", "NaN");
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert_eq!(goes_on(dir.path()), NANO);
    let bad: [(&str, Edit); 3] = [
        ("rms_norm_eps", |c| {
            c["text_config"]["rms_norm_eps"] = json!("NaN")
        }),
        ("use_double_wide_mlp", |c| {
            c["text_config"]["use_double_wide_mlp"] = json!("false")
        }),
        ("text_config.hidden_size", |c| {
            c["text_config"]["hidden_size"] = json!(160.5)
        }),
    ];
    for (field, edit) in bad {
        says(&refused(with_config(edit).path()), &[field]);
    }
}
