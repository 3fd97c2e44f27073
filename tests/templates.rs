//! The template engine against jinja2 as transformers sets it up: `data/templates/cases.json`, written by `make.py` beside it.

use std::collections::BTreeMap;
use std::path::Path;

use gemma_coreml::checkpoint::{ChatTemplate, Error, Message};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Opens a folder with that chat template and renders it in the context of the cases.
fn render(template: &str, context: &Value) -> Result<String, Error> {
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::write(dir.path().join("chat_template.jinja"), template).expect("written");
    let config = json!({"bos_token": "<bos>"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("written");
    let messages: Vec<Message> =
        serde_json::from_value(context["messages"].clone()).expect("messages");
    let variables: BTreeMap<String, Value> = context
        .as_object()
        .expect("variables")
        .iter()
        .filter(|(name, _)| *name != "messages")
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let compiled = ChatTemplate::open(dir.path())?.expect("there is one");
    compiled.render_with(&messages, false, &variables)
}

fn cases() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates/cases.json");
    serde_json::from_slice(&std::fs::read(path).expect("the cases")).expect("JSON")
}

/// What jinja2 prints is printed, or refused as not supported; what jinja2 refuses is refused.
#[test]
fn templates_print_what_jinja2_prints() {
    let file = cases();
    let cases = file["cases"].as_array().expect("cases");
    assert!(cases.len() > 900, "{} cases", cases.len());
    let mut unsupported = Vec::new();
    let mut wrong = Vec::new();
    for case in cases {
        let template = case["template"].as_str().expect("a template");
        match (render(template, &file["context"]), case["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Ok(text), expected) => wrong.push(format!(
                "{template:?}\n  printed  {text:?}\n  expected {:?}",
                expected.or(case["error"].as_str())
            )),
            (Err(_), None) => {}
            (Err(e), Some(_)) if e.to_string().contains("is not supported") => {
                unsupported.push(format!("{template:?}: {e}"));
            }
            (Err(e), expected) => wrong.push(format!("{template:?}\n  {e}\n  expected {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("not supported:\n{}", unsupported.join("\n"));
}
