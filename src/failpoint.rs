//! Named moments at which a test may end the process, to see what the next run makes of what is left.
//!
//! They exist in builds with debug assertions; in others [`reach`] is empty.

/// Every point, in the order in which a conversion comes by.
#[cfg(debug_assertions)]
pub const POINTS: [&str; 23] = [
    // The staging directory holds what an earlier run left, known good, or a journal without units.
    "resume.cleared",
    "resume.verified",
    "unit.made",
    "blob.begun",
    "blob.data",
    // weight.bin has all blobs, and a header that counts none.
    "weights.unpatched",
    // A package that is written over the weights of another has them, and nothing else.
    "package.linked",
    // A package has its model and no manifest.
    "package.model",
    "table.tile",
    "table.scales",
    "rope.table",
    // All files of a unit are there, then on the disk, then in part in the content, then all of them.
    "unit.written",
    "unit.synced",
    "unit.moving",
    "unit.moved",
    // Half a line, the whole line.
    "journal.torn",
    "journal.line",
    "facts.config",
    "facts.provenance",
    "facts.checked",
    // The old output is out of the way, the new one not in place; then it is.
    "install.between",
    "install.done",
    "discard.cleared",
];

#[cfg(debug_assertions)]
type Hook = Box<dyn Fn(&'static str) + Send + Sync>;

#[cfg(debug_assertions)]
static HOOK: std::sync::OnceLock<Hook> = std::sync::OnceLock::new();

/// Has `hook` called with the name of every point that the process reaches from now on, on the thread that does. The first
/// hook stays; answers whether this is it.
#[cfg(debug_assertions)]
pub fn on_reach(hook: impl Fn(&'static str) + Send + Sync + 'static) -> bool {
    HOOK.set(Box::new(hook)).is_ok()
}

/// Passes a point.
#[inline(always)]
pub(crate) fn reach(point: &'static str) {
    #[cfg(debug_assertions)]
    if let Some(hook) = HOOK.get() {
        debug_assert!(POINTS.contains(&point), "{point}");
        hook(point);
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}
