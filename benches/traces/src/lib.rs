//! Replays recorded allocations of real programs: `tests/traces/README.md` has the format. The driver (`replays`) unpacks
//! a recording to a file; a child (`replay-on-…`, one for each allocator) maps it, replays it and prints its figures. The child's
//! tables stand in mappings that are resident before the first record, so what is counted is the allocator's.
//!
//! From below to above: [`trace`] (records as they are on disk), [`plan`] (where every block would go if all lifetimes
//! were known), [`replay`] (the engine), [`child`] (arguments in, figures out).
pub mod child;
pub mod plan;
pub mod replay;
pub mod trace;
