//! Parity and quality figures: cosines, KL, token agreement, reports.
