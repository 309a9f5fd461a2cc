//! stepalloc: a global allocator with safe arena scopes.

// Layer 0: arithmetic and plain values.
mod align;
mod error;
mod sync;
mod zeroable;

// Layer 1: the outside.
mod sys;

// Layer 3: allocators without threads or globals.
mod aligned;
mod arena;
mod pool;

// Layer 5: the doors.
mod global;
mod scope;
mod stats;
mod tensor_arena;

// Prose.
pub mod migration;

pub use aligned::{aligned_alloc, aligned_alloc_zeroed, aligned_free, AlignedBuf};
pub use arena::{Arena, ArenaBox, ArenaBuilder, ArenaStats, Checkpoint, CheckpointError, Retain, Scope};
pub use error::AllocError;
pub use global::{is_installed, StepAlloc};
pub use pool::{Pool, PoolBox, PoolFreeError, RawPool, SharedPool, SharedPoolBox};
pub use scope::{
    arena_scope, arena_scope_report, outside_scope, scope_depth, ArenaScope, CountedScope, Fallbacks, ScopeReport,
};
pub use stats::{heap_stats, stats, trim, HeapStats, Stats};
pub use tensor_arena::{
    cleanup_tensor_arena, init_tensor_arena, tensor_arena, try_tensor_arena, TensorArena, TensorArenaError,
};
pub use zeroable::Zeroable;
