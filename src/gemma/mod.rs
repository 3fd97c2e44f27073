//! What Gemma 4 is: layer plan, KV roles, RoPE, and the f32 reference forward.
