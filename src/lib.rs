#![doc = include_str!("../README.md")]

// Prose: the design.
pub mod design;
// Layer 0: arithmetic and plain values.
mod align;
mod error;
mod layout;
// Layer 1: the outside.
mod sync;
mod sys;
// Layer 2: owned memory.
mod live_map;
mod marks;
mod spans;
// A segment's header keeps the state of the spans.
mod segment;
// Layer 3: allocators; they know no threads and no globals.
mod heap;
mod ledger;
// Layer 4: the thread.
mod thread;
// Layer 5: the doors.
mod global;
mod scope;
mod stats;

pub use error::AllocError;
#[doc(hidden)]
pub use global::in_arena;
pub use global::{is_installed, StepAlloc};
pub use scope::{
    arena_scope, arena_scope_report, outside_scope, scope_depth, ArenaScope, CountedScope, Fallbacks, ScopeReport,
};
pub use stats::{heap_stats, stats, trim, HeapStats, Stats};
