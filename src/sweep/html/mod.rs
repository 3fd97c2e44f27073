//! page
use super::Sweep;
/// page
pub fn page(_s: &Sweep) -> String {
    String::new()
}
