//! Gemma 4 as MIL: one decoder layer, chunk split, functions.
