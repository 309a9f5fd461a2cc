// The README's links into the source. Of two definitions the first counts: here they are the modules' pages.
//! [The design]: crate::design
//! [The migration guide]: crate::migration
//!
#![doc = include_str!("../README.md")]

// Layer 0: arithmetic and plain values.
mod align;
mod error;
mod hint;
mod layout;
mod zeroable;

// Layer 1: the outside.
mod sync;
mod sys;
// What the features `hardened` and `asan` do with a block's memory.
mod guard;

// Layer 2: owned memory.
mod huge_pages;
mod live_map;
mod marks;
mod spans;
// A segment's header keeps the state of the spans.
mod segment;
// Frees of blocks in the live maps of others.
mod gathered;

// Layer 3: allocators; they know no threads and no globals.
mod aligned;
mod arena;
mod heap;
mod ledger;
mod pool;

// Layer 4: the thread.
mod thread;

// Layer 5: the doors.
mod global;
mod scope;
mod stats;
mod tensor_arena;

// Prose.
pub mod design;
pub mod migration;
pub mod safety;

/// Interleavings of all that two threads share, on the code above; `.ci/loom` runs them.
#[cfg(all(test, loom))]
#[path = "../tests/loom/models.rs"]
mod models;

pub use aligned::{aligned_alloc, aligned_alloc_zeroed, aligned_free, AlignedBuf};
pub use arena::{Arena, ArenaBox, ArenaBuilder, ArenaStats, Checkpoint, CheckpointError, Retain, Scope};
pub use error::AllocError;
#[doc(hidden)]
pub use global::in_arena;
pub use global::{is_installed, StepAlloc};
pub use pool::{Pool, PoolBox, PoolFreeError, RawPool, SharedPool, SharedPoolBox};
pub use scope::{
    arena_scope, arena_scope_report, outside_scope, scope_depth, ArenaScope, CountedScope, Fallbacks, ScopeReport,
};
pub use stats::{heap_stats, stats, trim, HeapStats, Stats};
#[cfg(all(
    stepalloc_faults,
    target_os = "linux",
    target_pointer_width = "64",
    not(stepalloc_no_sys)
))]
#[doc(hidden)]
pub use sys::faults;
pub use tensor_arena::{
    cleanup_tensor_arena, init_tensor_arena, tensor_arena, try_tensor_arena, TensorArena, TensorArenaError,
};
pub use zeroable::Zeroable;
