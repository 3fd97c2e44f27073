//! The protobuf messages, generated from `proto/`.

/// `CoreML.Specification`.
#[allow(missing_docs, clippy::enum_variant_names, clippy::large_enum_variant)]
pub mod spec {
    include!(concat!(env!("OUT_DIR"), "/core_ml.specification.rs"));

    /// `CoreML.Specification.MILSpec`.
    pub mod mil_spec {
        include!(concat!(
            env!("OUT_DIR"),
            "/core_ml.specification.mil_spec.rs"
        ));
    }
}
