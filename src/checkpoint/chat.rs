//! chat
use super::error::Result;
use std::path::Path;
/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// The text, or any JSON that the template understands.
    pub content: serde_json::Value,
}
/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {}
impl ChatTemplate {
    /// Opens `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; `None` when there is neither.
    pub fn open(_dir: &Path) -> Result<Option<Self>> {
        todo!()
    }
    /// The prompt text of a chat.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        todo!()
    }
}
/// Token ids that end a generation: generation_config.json, falling back to config.json.
pub fn stop_ids(_dir: &Path) -> Result<Vec<u32>> {
    todo!()
}
