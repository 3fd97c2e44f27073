//! `decode` of a model that thinks: what is on the screen, in the JSON and in the history.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::fixture;
use crate::rename_tokens;

fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gemma-coreml"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    child.wait_with_output().expect("ended")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        std::fs::copy(&path, to.join(name)).expect("copied");
    }
}

/// nano speaks of the ids 405 and 792 by itself; renamed to the marks of a channel, its first turn is a thought and an answer.
#[test]
fn thoughts_are_told_apart_and_leave_the_history() {
    let dir = TempDir::new().expect("a temporary directory");
    let (model, bundle) = (dir.path().join("model"), dir.path().join("bundle"));
    copy(&fixture("nano"), &model);
    let path = model.join("tokenizer.json");
    let mut root = crate::json(&path);
    rename_tokens(&mut root, &json!({"<|channel>": 405, "<channel|>": 792}));
    std::fs::write(&path, root.to_string()).expect("written");
    // Says what the history holds in place of a second turn.
    let path = model.join("chat_template.jinja");
    let old = std::fs::read_to_string(&path).expect("a template");
    let show = "{%- if messages | length > 1 -%}{{ raise_exception('history: [' ~ messages[1].content ~ ']') }}{%- endif -%}";
    std::fs::write(&path, format!("{show}{old}")).expect("written");
    let (model, bundle) = (
        model.to_str().expect("UTF-8"),
        bundle.to_str().expect("UTF-8"),
    );
    let converted = run(&["convert", model, "-o", bundle, "-r", "swa4-fp16"], "");
    assert!(converted.status.success(), "{converted:?}");

    let chat = run(
        &["decode", bundle, "--chat", "-n", "20"],
        "Who is Zoe?\nAnd who is Tom?\n",
    );
    let (out, err) = (
        String::from_utf8_lossy(&chat.stdout),
        String::from_utf8_lossy(&chat.stderr),
    );
    assert_eq!(chat.status.code(), Some(3), "{err}");
    assert!(err.contains("history: [. I tell a story.]"), "{err}");
    assert_eq!(out, ". I tell a story.\n");
    assert!(err.contains("--show-thoughts"), "{err}");

    let args = ["decode", bundle, "--chat", "-p", "Who is Zoe?", "-n", "20"];
    let shown = run(&[&args[..], &["--show-thoughts"]].concat(), "");
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout),
        ". I tell a story.\n"
    );
    assert!(
        String::from_utf8_lossy(&shown.stderr).contains("am a little\n"),
        "{shown:?}"
    );

    let line = run(&[&args[..], &["--format", "json"]].concat(), "");
    let value: Value = serde_json::from_slice(&line.stdout).expect("JSON");
    assert_eq!(value["text"], ". I tell a story.");
    assert_eq!(value["reasoning"], " am a little");

    // Cut off within the thought, there is no answer yet.
    let cut = run(
        &[
            "decode",
            bundle,
            "--chat",
            "-p",
            "Who is Zoe?",
            "-n",
            "3",
            "--format",
            "json",
        ],
        "",
    );
    let value: Value = serde_json::from_slice(&cut.stdout).expect("JSON");
    assert_eq!(
        (&value["text"], &value["finish_reason"]),
        (&json!(""), &json!("length"))
    );
}
