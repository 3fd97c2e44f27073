//! Tokenizer and chat template against what transformers gave for the same inputs.

use std::collections::BTreeMap;
use std::path::Path;

use gemma_coreml::checkpoint::{ChatTemplate, Error, Message, Tokenizer, stop_ids};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "common/fixtures.rs"]
mod fixtures;
use fixtures::fixture;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a readable file")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids");
    list.iter()
        .map(|v| v.as_u64().expect("an id") as u32)
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[test]
fn chats_render_as_in_transformers() {
    let dir = fixture("nano");
    let template = ChatTemplate::open(&dir)
        .expect("a template")
        .expect("there is one");
    let tokenizer = Tokenizer::open(&dir).expect("a tokenizer");
    let file = read(&dir.join("chat_cases.json"));
    let cases = file["cases"].as_array().expect("cases");
    assert!(cases.len() >= 4);
    for case in cases {
        let messages: Vec<Message> =
            serde_json::from_value(case["messages"].clone()).expect("messages");
        let prompt = case["add_generation_prompt"].as_bool().expect("a flag");
        let rendered = template.render(&messages, prompt).expect("a rendered chat");
        assert_eq!(rendered, text(&case["text"]));
        // The template writes the first token itself; asking for it again must not double it.
        for add_bos in [false, true] {
            assert_eq!(
                tokenizer.encode(&rendered, add_bos).expect("ids"),
                ids(&case["ids"])
            );
        }
    }
}

#[test]
fn chats_that_the_template_refuses() {
    let dir = fixture("nano");
    let template = ChatTemplate::open(&dir)
        .expect("a template")
        .expect("there is one");
    for (messages, said) in [
        (vec![Message::new("robot", "hi")], "unknown role robot"),
        (
            vec![Message::new("user", "a"), Message::new("user", "b")],
            "take turns",
        ),
    ] {
        let error = template.render(&messages, true).expect_err("refused");
        assert!(
            matches!(&error, Error::Template { message, .. } if message.contains(said)),
            "{error}"
        );
    }
}

#[test]
fn texts_encode_as_in_transformers() {
    let dir = fixture("nano");
    let tokenizer = Tokenizer::open(&dir).expect("a tokenizer");
    let cases = read(&dir.join("tokenizer_cases.json"));
    let cases = cases.as_array().expect("cases");
    assert!(cases.len() >= 6);
    for case in cases {
        let expected = ids(&case["ids"]);
        assert_eq!(
            tokenizer.encode(text(&case["text"]), false).expect("ids"),
            expected
        );
        let bos = tokenizer.id("<bos>").expect("a first token");
        let with_bos = tokenizer.encode(text(&case["text"]), true).expect("ids");
        assert_eq!(with_bos.first(), Some(&bos));
        assert_eq!(
            with_bos.len(),
            expected.len() + usize::from(expected.first() != Some(&bos))
        );
        assert_eq!(
            tokenizer.decode(&expected).expect("a text"),
            text(&case["decoded_skip_special"])
        );

        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for id in &expected {
            let piece = stream.push(*id).expect("a piece");
            assert!(
                !piece.contains('\u{FFFD}'),
                "an incomplete character: {piece:?}"
            );
            streamed += &piece;
        }
        streamed += &stream.finish().expect("the rest");
        assert_eq!(streamed, text(&case["decoded_skip_special"]));
    }
}

/// A character of four byte tokens comes out once its run of bytes ends; a broken one as U+FFFD once that is certain.
#[test]
fn streaming_holds_incomplete_characters() {
    let tokenizer = Tokenizer::open(&fixture("nano")).expect("a tokenizer");
    let byte = |b: u8| tokenizer.id(&format!("<0x{b:02X}>")).expect("a byte token");
    let smile = "🙂".as_bytes();
    let mut stream = tokenizer.stream();
    for b in &smile[..3] {
        assert_eq!(stream.push(byte(*b)).expect("a piece"), "");
    }
    // A further byte that breaks the run would make it four U+FFFD, so it is certain with the next token.
    assert_eq!(stream.push(byte(smile[3])).expect("a piece"), "");
    let a = tokenizer.encode("a", false).expect("ids");
    assert_eq!(stream.push(a[0]).expect("a piece"), "🙂a");

    assert_eq!(stream.push(byte(smile[0])).expect("a piece"), "");
    assert_eq!(stream.push(a[0]).expect("a piece"), "\u{FFFD}a");

    assert_eq!(stream.push(byte(0xC3)).expect("a piece"), "");
    assert_eq!(stream.finish().expect("the rest"), "\u{FFFD}");

    let mut stream = tokenizer.stream();
    let flood: String = (0..100)
        .map(|_| stream.push(byte(0xFF)).expect("a piece"))
        .collect();
    assert!(
        flood.chars().count() > 80,
        "bytes that never become text must not pile up"
    );
}

#[test]
fn stop_ids_of_generation_config_or_config() {
    assert_eq!(stop_ids(&fixture("nano")).expect("stop ids"), [1, 50, 106]);
    let dir = TempDir::new().expect("a temporary directory");
    let write = |name: &str, value: Value| {
        std::fs::write(dir.path().join(name), value.to_string()).expect("written")
    };
    assert!(matches!(
        stop_ids(dir.path()),
        Err(Error::MissingFile { .. })
    ));
    write(
        "config.json",
        json!({"eos_token_id": [1, 106], "text_config": {"eos_token_id": 9}}),
    );
    assert_eq!(stop_ids(dir.path()).expect("stop ids"), [1, 106]);
    write("config.json", json!({"text_config": {"eos_token_id": 9}}));
    assert_eq!(stop_ids(dir.path()).expect("stop ids"), [9]);
    write("generation_config.json", json!({"eos_token_id": 7}));
    assert_eq!(stop_ids(dir.path()).expect("stop ids"), [7]);
    write("generation_config.json", json!({"eos_token_id": null}));
    assert_eq!(stop_ids(dir.path()).expect("stop ids"), [9]);
    write("generation_config.json", json!({"eos_token_id": [-1]}));
    assert!(matches!(
        stop_ids(dir.path()),
        Err(Error::InvalidField { .. })
    ));
}

fn with_template(template: &str) -> (TempDir, Option<ChatTemplate>) {
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::write(dir.path().join("chat_template.jinja"), template).expect("written");
    let config = json!({"bos_token": {"content": "<bos>", "special": true}, "extra_special_tokens": {"soc_token": "<soc>"}});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("written");
    let compiled = ChatTemplate::open(dir.path()).expect("a template");
    (dir, compiled)
}

/// What Jinja with transformers' settings makes of the features that chat templates use. Expected texts were rendered by
/// transformers' `render_jinja_template`.
#[test]
fn jinja_features() {
    for (template, expected) in [
        // trim_blocks, lstrip_blocks and the final newline
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        (
            "{{ bos_token }}{{ soc_token }}|{{ absent }}|{{ tools is none }}",
            "<bos><soc>||True",
        ),
        (
            "{{ messages[0].content.strip().upper() }}{{ messages[0]['role'].startswith('us') }}",
            "HI \"É\"True",
        ),
        (
            "{{ messages[0] | tojson }}",
            "{\"role\": \"user\", \"content\": \" hi \\\"é\\\" \"}",
        ),
        (
            "{{ {'b': [1, 2.0], 'a': none} | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1,\n    2.0\n  ],\n  \"a\": null\n}",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{{ messages | length }}{{ messages[-1].role }}{{ messages[::-1][0].role }}",
            "2assistantassistant",
        ),
        (
            "{{ messages[1].get('tool_calls') is none }}{{ messages[1].items() | length }}",
            "True2",
        ),
        (
            "{{ 'x' if enable_thinking is defined and enable_thinking else 'y' }}",
            "x",
        ),
        (
            "{{ 'a,b'.split(',')[-1] }}{{ 'ab'[::-1] }}{{ ['p', 'q'] | join('-') }}",
            "bbap-q",
        ),
    ] {
        let (_dir, compiled) = with_template(template);
        let messages = [
            Message::new("user", " hi \"é\" "),
            Message::new("assistant", "yo"),
        ];
        let variables = BTreeMap::from([("enable_thinking".to_string(), json!(true))]);
        let rendered = compiled
            .expect("a template")
            .render_with(&messages, true, &variables);
        assert_eq!(rendered.expect(template), expected, "{template}");
    }
}

#[test]
fn templates_missing_broken_and_in_tokenizer_config() {
    let dir = TempDir::new().expect("a temporary directory");
    assert!(ChatTemplate::open(dir.path()).expect("nothing").is_none());
    let write = |value: Value| {
        std::fs::write(dir.path().join("tokenizer_config.json"), value.to_string())
            .expect("written")
    };
    write(json!({"chat_template": "one {{ messages[0].role }}"}));
    let render = || {
        ChatTemplate::open(dir.path())?
            .expect("a template")
            .render(&[Message::new("user", "")], false)
    };
    assert_eq!(render().expect("a rendered chat"), "one user");
    write(
        json!({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}),
    );
    assert_eq!(render().expect("a rendered chat"), "yes");
    write(json!({"chat_template": [{"name": "tool_use", "template": "no"}]}));
    assert!(matches!(render(), Err(Error::InvalidField { .. })));
    write(json!({"chat_template": "{% if %}"}));
    assert!(matches!(render(), Err(Error::Template { .. })));
    write(json!({"chat_template": "{{ messages[0].nothing.at_all }}"}));
    assert!(matches!(render(), Err(Error::Template { .. })));
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    write(json!({"chat_template": loops}));
    assert!(matches!(render(), Err(Error::Template { .. })));
}

#[test]
fn broken_tokenizers() {
    let dir = TempDir::new().expect("a temporary directory");
    assert!(matches!(
        Tokenizer::open(dir.path()),
        Err(Error::MissingFile { .. })
    ));
    for bytes in [
        &b""[..],
        b"{",
        b"{}",
        b"{\"model\": {\"type\": \"Nonsense\"}}",
    ] {
        std::fs::write(dir.path().join("tokenizer.json"), bytes).expect("written");
        let error = Tokenizer::open(dir.path()).err();
        assert!(match bytes.is_empty() {
            true => matches!(error, Some(Error::NotTheFile { .. })),
            false => matches!(error, Some(Error::Tokenizer { .. })),
        });
    }
}
