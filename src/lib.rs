//! stepalloc: a global allocator with safe arena scopes.
mod align;
mod error;
mod global;
mod scope;
mod stats;
mod sync;
mod sys;
pub use error::AllocError;
pub use global::{is_installed, StepAlloc};
pub use scope::{
    arena_scope, arena_scope_report, outside_scope, scope_depth, ArenaScope, CountedScope, Fallbacks, ScopeReport,
};
pub use stats::{heap_stats, stats, trim, HeapStats, Stats};
