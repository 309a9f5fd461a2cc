//! stepalloc: a global allocator with safe arena scopes.

// Layer 0: arithmetic and plain values.
mod align;
mod error;
mod sync;
mod zeroable;

// Layer 1: the outside.
mod sys;

// Layer 3: allocators without threads or globals.
mod arena;

// Layer 5: the doors.
mod global;
mod scope;
mod stats;

pub use arena::{Arena, ArenaBox, ArenaBuilder, ArenaStats, Checkpoint, CheckpointError, Retain, Scope};
pub use error::AllocError;
pub use global::{is_installed, StepAlloc};
pub use scope::{
    arena_scope, arena_scope_report, outside_scope, scope_depth, ArenaScope, CountedScope, Fallbacks, ScopeReport,
};
pub use stats::{heap_stats, stats, trim, HeapStats, Stats};
pub use zeroable::Zeroable;
