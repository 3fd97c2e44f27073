//! The MIL language: types, programs, a typed builder with shape inference, op schema, text printer.
