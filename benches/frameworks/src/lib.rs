//! Training programs that know nothing of allocators: `programs/` (what is trained, in which framework), `child` (what a
//! process measures). Each `bin/on-*.rs` runs them under one allocator; `bin/compare.rs` starts those and compares.
pub mod child;
pub mod draw;
pub mod programs;
