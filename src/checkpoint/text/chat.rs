//! Chat templates as transformers renders them, and the tokens that end a generation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::super::config;
use super::super::error::{Error, Result};
use super::super::fields::{Fields, read_json};
use super::super::template::{Template, TemplateError};
use super::special;

/// One turn of a chat. Fields beyond role and content (tool calls, names) go to the template as they are.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `user`, `assistant`, `system`, or what else the template knows.
    pub role: String,
    /// The text, or a list of parts as the template understands them.
    pub content: Value,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Value::String(text.into()),
            extra: Map::new(),
        }
    }
}

/// Names a turn's reasoning is passed under, the one that templates read first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    template: Template,
    special: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Compiles `chat_template.jinja` of a directory, or `chat_template` of its `tokenizer_config.json`; `None` when there is
    /// neither. `strftime_now` tells the time in UTC.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let special = special::read(dir)?.named;
        match template_source(dir)? {
            Some((path, source)) => Self::compile(path, &source, special).map(Some),
            None => Ok(None),
        }
    }

    fn compile(path: PathBuf, source: &str, special: Vec<(String, String)>) -> Result<Self> {
        match Template::parse(source) {
            Ok(template) => Ok(Self {
                path,
                template,
                special,
            }),
            Err(e) => Err(template_error(&path, &e)),
        }
    }

    /// The prompt of a chat. `add_generation_prompt` ends it where the model's turn begins. The text has the first token
    /// written out where the template writes it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, add_generation_prompt, &BTreeMap::new())
    }

    /// [`render`](Self::render) with further variables (`tools`, `enable_thinking`), which win over special tokens.
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &BTreeMap<String, Value>,
    ) -> Result<String> {
        let mut context: Vec<(&str, Value)> = Vec::new();
        for (name, text) in &self.special {
            context.push((name, text.as_str().into()));
        }
        // transformers passes these as None when they are not given, which is not the same as undefined.
        context.push(("tools", Value::Null));
        context.push(("documents", Value::Null));
        let messages = messages.iter().map(message_value).collect();
        context.push(("messages", Value::Array(messages)));
        context.push(("add_generation_prompt", add_generation_prompt.into()));
        for (name, value) in variables {
            context.push((name, value.clone()));
        }
        let rendered = self.template.render(&context);
        rendered.map_err(|e| template_error(&self.path, &e))
    }
}

/// A turn as the template sees it: its reasoning under `reasoning_content` and `thinking` as well, whatever name it came under.
fn message_value(message: &Message) -> Value {
    let mut fields = Map::new();
    let reasoning = REASONING
        .iter()
        .find_map(|name| message.extra.get(*name).filter(|v| !v.is_null()));
    if let Some(reasoning) = reasoning {
        fields.insert("thinking".into(), reasoning.clone());
    }
    fields.insert("role".into(), message.role.as_str().into());
    fields.insert("content".into(), message.content.clone());
    for (name, value) in &message.extra {
        fields.insert(name.clone(), value.clone());
    }
    if let Some(reasoning) = reasoning {
        fields.insert(REASONING[0].into(), reasoning.clone());
    }
    Value::Object(fields)
}

fn template_error(path: &Path, e: &TemplateError) -> Error {
    Error::Template {
        path: path.to_path_buf(),
        message: e.to_string(),
    }
}

/// Where the template is and its text.
fn template_source(dir: &Path) -> Result<Option<(PathBuf, String)>> {
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        return match std::fs::read_to_string(&file) {
            Ok(source) => Ok(Some((file, source))),
            Err(source) => Err(Error::Io { path: file, source }),
        };
    }
    let path = dir.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let root = read_json(&path)?;
    let fields = Fields::top(&path, &root)?;
    let source = match fields.get("chat_template") {
        None => return Ok(None),
        Some(Value::String(source)) => source.clone(),
        Some(Value::Array(list)) => default_of(list).ok_or_else(|| {
            let expected = "a template, or a list with one named \"default\"";
            fields.invalid("chat_template", expected, "a list without it")
        })?,
        Some(_) => {
            let expected = "a template, or a list with one named \"default\"";
            return Err(fields.invalid("chat_template", expected, "neither"));
        }
    };
    Ok(Some((path, source)))
}

/// The template named `default` of a list of `{name, template}`.
fn default_of(list: &[Value]) -> Option<String> {
    let entry = list
        .iter()
        .find(|e| e.get("name").and_then(Value::as_str) == Some("default"))?;
    entry.get("template")?.as_str().map(str::to_string)
}

/// Token ids that end a generation: `eos_token_id` of `generation_config.json`, a number or a list, falling back to
/// `config.json`. Sorted, each once.
pub fn stop_ids(dir: &Path) -> Result<Vec<u32>> {
    let generation = dir.join("generation_config.json");
    let mut ids = Vec::new();
    if generation.is_file() {
        let root = read_json(&generation)?;
        ids = Fields::top(&generation, &root)?.token_ids("eos_token_id")?;
    }
    if ids.is_empty() {
        ids = config::eos_of_file(&config::path_in(dir)?)?;
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
