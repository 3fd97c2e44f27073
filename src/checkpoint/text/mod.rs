//! Text and token ids: the tokenizer, streamed decoding, chats, and the thoughts in what a model says.

mod channels;
mod chat;
mod components;
mod composition;
mod special;
mod stream;
mod tokenizer;

pub use channels::{Piece, Reply, ReplyDecoder};
pub use chat::{ChatTemplate, Message, stop_ids};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
