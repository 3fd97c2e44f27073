//! tokenizer
use super::error::Result;
use std::path::Path;
/// Text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {}
impl Tokenizer {
    /// Opens `tokenizer.json` of a snapshot or bundle.
    pub fn open(_dir: &Path) -> Result<Self> {
        todo!()
    }
    /// Token ids of a text; special tokens written in the text are recognized.
    pub fn encode(&self, _text: &str, _add_bos: bool) -> Result<Vec<u32>> {
        todo!()
    }
    /// Text of token ids, special tokens left out.
    pub fn decode(&self, _ids: &[u32]) -> Result<String> {
        todo!()
    }
    /// A decoder that takes one id at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        todo!()
    }
}
/// Decodes ids one at a time and hands out complete UTF-8 only.
pub struct StreamDecoder<'a> {
    _t: &'a Tokenizer,
}
impl StreamDecoder<'_> {
    /// Takes an id; text that is complete now, if any.
    pub fn push(&mut self, _id: u32) -> Result<Option<String>> {
        todo!()
    }
    /// What is left at the end, incomplete bytes as U+FFFD.
    pub fn finish(self) -> Result<String> {
        todo!()
    }
}
