//! Core ML `.mlpackage`: manifest, model spec and weight blobs; writer and reader.
