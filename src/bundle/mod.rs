//! The directory a device loads: packages, tables, model_config.json.
