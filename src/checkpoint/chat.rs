//! Chat templates as transformers renders them, and the tokens that end a generation.
//!
//! The environment is that of `transformers/utils/chat_template_utils.py`: Jinja with `trim_blocks` and `lstrip_blocks`,
//! loop controls, `raise_exception`, `strftime_now`, a `tojson` that writes what Python's `json.dumps` writes, the methods
//! of Python's strings, lists and dicts, and the special tokens of `tokenizer_config.json` by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::value::{Kwargs, Value as Jinja, ValueKind};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::clock;
use super::config;
use super::error::{Error, Result};
use super::fields::{Fields, read_json};
use super::python_json;
use super::tokenizer::special_tokens;

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

const NAME: &str = "chat";
/// Instructions that one rendering may take: seconds of work, and far beyond what a chat of any length needs.
const FUEL: u64 = 50_000_000;

/// A compiled chat template.
pub struct ChatTemplate {
    path: PathBuf,
    env: Environment<'static>,
    special: BTreeMap<String, String>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("path", &self.path)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `chat_template.jinja` of a directory, or `chat_template` of its `tokenizer_config.json`; `None` when there is
    /// neither. `strftime_now` tells the time in UTC.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let special: BTreeMap<_, _> = special_tokens(dir)?.into_iter().collect();
        match template_source(dir)? {
            Some((path, source)) => Self::compile(path, source, special).map(Some),
            None => Ok(None),
        }
    }

    fn compile(path: PathBuf, source: String, special: BTreeMap<String, String>) -> Result<Self> {
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(|out, state, value| match python_name(value) {
            Some(name) => out.write_str(name).map_err(minijinja::Error::from),
            None => minijinja::escape_formatter(out, state, value),
        });
        env.add_filter("tojson", tojson);
        env.add_function(
            "raise_exception",
            |message: String| -> Result<Jinja, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        env.add_function("strftime_now", |format: String| {
            clock::strftime(SystemTime::now(), &format)
                .map_err(|m| minijinja::Error::new(ErrorKind::InvalidOperation, m))
        });
        let compiled = env.add_template_owned(NAME, source);
        compiled.map_err(|e| template_error(&path, &e))?;
        Ok(Self { path, env, special })
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
        let special = self
            .special
            .iter()
            .map(|(name, text)| (name.as_str(), Jinja::from(text.as_str())));
        let mut context: BTreeMap<&str, Jinja> = special.collect();
        // transformers passes these as None when they are not given, which is not the same as undefined.
        for name in ["tools", "documents"] {
            context.insert(name, Jinja::from(()));
        }
        context.insert("messages", Jinja::from_serialize(messages));
        context.insert("add_generation_prompt", Jinja::from(add_generation_prompt));
        for (name, value) in variables {
            context.insert(name, Jinja::from_serialize(value));
        }
        let template = self.env.get_template(NAME);
        let rendered = template.and_then(|t| t.render(context));
        rendered.map_err(|e| template_error(&self.path, &e))
    }
}

/// What Python prints for values that minijinja prints otherwise.
fn python_name(value: &Jinja) -> Option<&'static str> {
    match value.kind() {
        ValueKind::None => Some("None"),
        ValueKind::Bool if value.is_true() => Some("True"),
        ValueKind::Bool => Some("False"),
        _ => None,
    }
}

fn template_error(path: &Path, e: &minijinja::Error) -> Error {
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

/// `tojson` with the keyword arguments that transformers gives it.
fn tojson(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    let style = python_json::Style {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        indent: options.get::<Option<usize>>("indent")?,
        separators: options
            .get::<Option<Vec<String>>>("separators")?
            .map(Arc::from),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| failed(e.to_string()))?;
    python_json::dumps(&value, &style).map_err(failed)
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
