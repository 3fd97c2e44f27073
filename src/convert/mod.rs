//! The pipeline: recipe × checkpoint → bundle.
