//! The template engine against jinja2 as transformers sets it up: `data/templates/cases.json`, written by `make.py` beside it.

use std::collections::BTreeMap;

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

/// What jinja2 prints is printed, or refused as not supported; what jinja2 refuses is refused.
#[test]
fn templates_print_what_jinja2_prints() {
    let file = crate::data("templates/cases.json");
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
            (Err(e), expected) => {
                wrong.push(format!("{template:?}\n  {e}\n  expected {expected:?}"))
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // What each of these is, docs/chat.md says.
    assert!(unsupported.len() <= 5, "{}", unsupported.join("\n"));
}

/// A template of any size and kind ends in a text or an error, in bounded memory and on a bounded stack.
#[test]
fn hostile_templates_are_refused() {
    let context = json!({"messages": [{"role": "user", "content": "x"}]});
    let deep = 100_000;
    for template in [
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}".to_string(),
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a.replace('x', 'xxxx') %}{% endfor %}".into(),
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}".into(),
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}".into(),
        "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}{% endfor %}".into(),
        "{{ 'a' * 10**12 }}".into(),
        "{{ [1] * 10**12 }}".into(),
        "{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}".into(),
        "{{ 'a\nb' | indent(10**10) }}".into(),
        "{{ '%1000000000000d' | format(1) }}".into(),
        "{{ '%.999999999f' % 1.0 }}".into(),
        "{{ '{:1000000000000}'.format(1) }}".into(),
        "{{ 'a'.center(10**12) }}".into(),
        "{{ 'a'.zfill(10**12) }}".into(),
        "{{ 'a\tb'.expandtabs(10**12) }}".into(),
        "{{ [1] | batch(10**12, 0) | list }}".into(),
        "{{ [1] | slice(10**12) | list }}".into(),
        "{{ [1] | tojson(indent=10**9) }}".into(),
        "{{ [1] | tojson(indent=18446744073709551615) }}".into(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{{ range(10**9) | list }}".into(),
        format!("{{{{ {}1 }}}}", "not ".repeat(deep)),
        format!("{{{{ {}1 }}}}", "-".repeat(deep)),
        format!("{{{{ 1{} }}}}", "+1".repeat(deep)),
        format!("{{{{ x{} }}}}", ".a".repeat(deep)),
        format!("{{{{ x{} }}}}", "|e".repeat(deep)),
        format!("{{{{ {}1{} }}}}", "(".repeat(deep), ")".repeat(deep)),
        format!("{{{{ {}1{} }}}}", "[".repeat(deep), "]".repeat(deep)),
        format!("{}{}", "{% if x %}".repeat(deep), "{% endif %}".repeat(deep)),
        "a".repeat(2 << 20),
    ] {
        let error = render(&template, &context).expect_err(&template[..template.len().min(80)]);
        assert!(matches!(error, Error::Template { .. }), "{error}");
    }
    // Long, but not deep.
    let elifs = format!(
        "{{% if x %}}{}{{% endif %}}ok",
        "{% elif x %}".repeat(20_000)
    );
    assert_eq!(render(&elifs, &context).expect("a text"), "ok");
}

#[test]
fn errors_name_the_line() {
    let context = json!({"messages": []});
    for (template, said) in [
        ("\n\n{{ 1 / 0 }}", "line 3"),
        (
            "{% generation %}\n\n{{ 1 / 0 }}{% endgeneration %}",
            "line 3",
        ),
        (
            "a\n{% endgeneration %}",
            "unknown tag 'endgeneration' (line 2)",
        ),
        ("{#\n#}\n{{ raise_exception('no') }}", "no (line 3)"),
        (
            "{% if x %}\n{{ messages[0].a.b }}{% endif %}{{ nothing.at_all }}",
            "'nothing' is undefined (line 2)",
        ),
    ] {
        let error = render(template, &context).expect_err("refused").to_string();
        assert!(error.contains(said), "{template:?}: {error}");
    }
}
