//! Number formats: palettes, linear integers, packing, row tables. Slices in, slices out.
