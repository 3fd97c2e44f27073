//! A Hugging Face snapshot: config, memory-mapped safetensors, tokenizer, hub download.
