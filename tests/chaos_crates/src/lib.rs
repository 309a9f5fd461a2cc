//! The chaos of the main package's tests as a library: who links it runs under it.
//!
//! Apart from the main package so that `cargo test` there builds none of these crates.
//!
//! ```text
//! cargo test --release --manifest-path tests/chaos_crates/Cargo.toml       workloads over other crates, half a minute
//! STEPALLOC_CHAOS_SECONDS=600 ...                                          as long as said, seconds for each workload
//! STEPALLOC_CHAOS_SEED=n ...                                               replays
//! tests/chaos_crates/upstream.sh                                           those crates' own test suites
//! ```

#[path = "../../support/mod.rs"]
pub mod support;

use stepalloc::StepAlloc;
use support::chaos::Chaos;

#[global_allocator]
static GLOBAL: Chaos<StepAlloc> = Chaos::over(StepAlloc::new());
