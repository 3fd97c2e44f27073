//! How much is worked on at a time: what bounds the memory of a conversion.

/// Values of a tensor in memory at a time. With 4 bytes of f32, 2 of fp16 and 1 of index each, a tile is 14 MB.
pub(super) const TILE: usize = 1 << 21;
/// Units built at a time. Each has a tile and a palettizer's buffers per thread in memory.
pub(super) const LANES: usize = 2;
