//! stub
use core::marker::PhantomData;
/// Runs `f` in a scope.
pub fn arena_scope<R>(f: impl FnOnce() -> R) -> R {
    let _g = ArenaScope::enter();
    f()
}
/// Runs `f` in a counted scope.
pub fn arena_scope_report<R>(f: impl FnOnce() -> R) -> (R, ScopeReport) {
    let g = ArenaScope::enter_counted();
    let r = f();
    (r, g.leave())
}
/// Suspends all scopes.
pub fn outside_scope<R>(f: impl FnOnce() -> R) -> R {
    f()
}
/// Depth.
pub fn scope_depth() -> usize {
    0
}
/// A guard.
#[must_use]
pub struct ArenaScope {
    _not_send: PhantomData<*mut ()>,
}
impl ArenaScope {
    /// Opens a scope.
    pub fn enter() -> ArenaScope {
        ArenaScope { _not_send: PhantomData }
    }
    /// Opens a counted scope.
    pub fn enter_counted() -> CountedScope {
        CountedScope { _not_send: PhantomData }
    }
}
/// A counted guard.
#[must_use]
pub struct CountedScope {
    _not_send: PhantomData<*mut ()>,
}
impl CountedScope {
    /// Leaves and reports.
    pub fn leave(self) -> ScopeReport {
        ScopeReport::default()
    }
}
/// What fell back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fallbacks {
    /// no reservation
    pub no_reservation: u64,
    /// no segment left
    pub no_segment: u64,
    /// does not fit
    pub no_room: u64,
    /// the system refused to commit
    pub commit_refused: u64,
    /// thread is ending
    pub thread_ending: u64,
}
/// A report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScopeReport {
    /// installed?
    pub installed: bool,
    /// blocks made
    pub blocks: u64,
    /// bytes requested
    pub bytes: u64,
    /// peak live bytes
    pub peak_live_bytes: u64,
    /// escapees
    pub escapees: u64,
    /// escapee bytes
    pub escapee_bytes: u64,
    /// remote frees seen
    pub remote_frees: u64,
    /// fallbacks
    pub fallbacks: Fallbacks,
    /// page faults of this thread
    pub page_faults: Option<u64>,
}
