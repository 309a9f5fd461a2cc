//! stepalloc beside the general allocators. Each workload runs in a process of its own for each allocator (`on-…`), so that
//! pages and resident memory are that allocator's alone; the driver (`compare`) runs them all in interleaved rounds.
//!
//! From below to above: [`run`] (how a workload is run and timed), [`workloads`] (what is run), [`child`] (arguments in,
//! figures out).
pub mod child;
pub mod run;
pub mod workloads;
