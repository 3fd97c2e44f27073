//! Thoughts told apart from answers, and the history that is left.

use gemma_coreml::checkpoint::{ChatTemplate, Message, Piece, Reply, ReplyDecoder, Tokenizer};
use serde_json::Value;
use tempfile::TempDir;

use crate::{data, ids, rename_tokens, text, tokenizer_folder};

/// The tokenizer and template of the stored chats.
fn thinking(file: &Value) -> (TempDir, Tokenizer, ChatTemplate) {
    let dir = TempDir::new().expect("a temporary directory");
    tokenizer_folder(dir.path(), |root| rename_tokens(root, &file["rename"]));
    std::fs::write(
        dir.path().join("chat_template.jinja"),
        text(&file["template"]),
    )
    .expect("written");
    let tokenizer = Tokenizer::open(dir.path()).expect("a tokenizer");
    let template = ChatTemplate::open(dir.path())
        .expect("a template")
        .expect("there is one");
    (dir, tokenizer, template)
}

fn decode(tokenizer: &Tokenizer, prompt: &[u32], reply: &[u32]) -> (Vec<Piece>, Reply) {
    let mut decoder = ReplyDecoder::new(tokenizer, prompt);
    let mut pieces = Vec::new();
    for id in reply {
        pieces.extend(decoder.push(*id).expect("pieces"));
    }
    let (last, reply) = decoder.finish().expect("a reply");
    pieces.extend(last);
    (pieces, reply)
}

/// Turn after turn, the prompt has the ids that transformers gives for the same history.
#[test]
fn history_is_that_of_transformers() {
    let file = data("channels/cases.json");
    let (_dir, tokenizer, template) = thinking(&file);
    let questions: Vec<&str> = file["questions"]
        .as_array()
        .expect("questions")
        .iter()
        .map(text)
        .collect();
    for case in file["cases"].as_array().expect("cases") {
        let mut messages = vec![Message::new("user", questions[0])];
        let replies = case["replies"].as_array().expect("replies");
        for (n, reply) in replies.iter().enumerate() {
            let prompt = template.render(&messages, true).expect("a prompt");
            let prompt = tokenizer.encode(&prompt, false).expect("ids");
            let (_, reply) = decode(&tokenizer, &prompt, &ids(reply));
            messages.push(Message::new("assistant", reply.answer));
            messages.push(Message::new("user", questions[n + 1]));
            let rendered = template.render(&messages, true).expect("a prompt");
            let got = tokenizer.encode(&rendered, false).expect("ids");
            assert_eq!(
                got,
                ids(&case["prompts"][n]),
                "{}: {rendered}",
                case["name"]
            );
        }
    }
}

/// Pieces in their order are the reply, and what is thought is told from what is said.
#[test]
fn pieces_are_the_reply() {
    let file = data("channels/cases.json");
    let (_dir, tokenizer, _) = thinking(&file);
    let reply_of = |name: &str| {
        let cases = file["cases"].as_array().expect("cases");
        let case = cases.iter().find(|c| c["name"] == name).expect("a case");
        let (pieces, reply) = decode(&tokenizer, &[], &ids(&case["replies"][0]));
        let mut said = String::new();
        let mut thought = String::new();
        for piece in pieces {
            match piece {
                Piece::Answer(text) => said += &text,
                Piece::Thought(text) => thought += &text,
            }
        }
        assert_eq!(said, reply.answer, "{name}");
        if reply.thoughts.len() == 1 {
            assert_eq!(thought, reply.thoughts[0], "{name}");
        }
        (reply.thoughts, reply.answer)
    };
    for (name, thoughts, answer) in [
        (
            "a thought and an answer",
            &["Zoe is a girl."][..],
            " Zoe had a dog.",
        ),
        ("an empty channel", &[], "Tom is sad."),
        ("a name alone", &[], "Tom is sad."),
        ("several channels", &["a", "b"], "One two  three"),
        ("cut off in a thought", &["The dog was"], "Well."),
        ("cut off in the name", &[], "Well."),
        ("no answer", &["nothing to say"], ""),
        ("a mark within a channel", &["ab"], " answer"),
        ("a mark that closes nothing", &[], "The dog went home."),
        ("no channel", &[], "Tom and the dog went home."),
        (
            "a character of bytes behind a thought",
            &["\u{FFFD}\u{FFFD}"],
            "🙂 a\u{FFFD}",
        ),
        ("an answer that begins with thought", &[], "thought\nZoe"),
    ] {
        let (got, said) = reply_of(name);
        assert_eq!(
            (got.as_slice(), said.as_str()),
            (
                thoughts
                    .iter()
                    .map(|t| t.to_string())
                    .collect::<Vec<_>>()
                    .as_slice(),
                answer
            ),
            "{name}"
        );
    }
}

/// A channel that the prompt opens goes on in the reply; one in an earlier turn does not.
#[test]
fn channels_that_the_prompt_opens() {
    let file = data("channels/cases.json");
    let (_dir, tokenizer, _) = thinking(&file);
    let encode = |text: &str| tokenizer.encode(text, false).expect("ids");
    let reply = encode("hm<channel|>Yes.");
    for (prompt, thoughts, answer) in [
        ("<|turn>model\n<|channel>thought\n", vec!["hm"], "Yes."),
        ("<|turn>model\n<|channel>", vec!["hm"], "Yes."),
        (
            "<|turn>model\n<|channel>thought\n<channel|>",
            vec![],
            "hmYes.",
        ),
        (
            "<|turn>user\nwhat is <|channel>?<turn|>\n<|turn>model\n",
            vec![],
            "hmYes.",
        ),
    ] {
        let (_, got) = decode(&tokenizer, &encode(prompt), &reply);
        assert_eq!(
            (got.thoughts, got.answer.as_str()),
            (thoughts.into_iter().map(String::from).collect(), answer),
            "{prompt}"
        );
    }
}

/// With a tokenizer that has no channels all of it is answer.
#[test]
fn tokenizers_without_channels() {
    let dir = TempDir::new().expect("a temporary directory");
    tokenizer_folder(dir.path(), |_| ());
    let tokenizer = Tokenizer::open(dir.path()).expect("a tokenizer");
    let reply = tokenizer
        .encode("<|channel>thought\nhm<channel|>Yes.", false)
        .expect("ids");
    let (_, got) = decode(&tokenizer, &[], &reply);
    assert_eq!(got.answer, tokenizer.decode(&reply).expect("a text"));
    assert!(got.thoughts.is_empty());
}
