//! Scopes opened, closed, forgotten and dropped out of order at arbitrary allocations, on several threads, under std's
//! collections, with a shadow map that aborts when two live blocks share a byte. `STEPALLOC_CHAOS_SEED=n` replays,
//! `STEPALLOC_CHAOS_SECONDS=n` runs for a time instead of a number of rounds.

mod support;

use std::time::{Duration, Instant};
use stepalloc::StepAlloc;
use support::chaos::{self, Chaos};
use support::random::Random;
use support::workload;

#[global_allocator]
static GLOBAL: Chaos<StepAlloc> = Chaos::over(StepAlloc::new());

/// Rounds of each thread: about five seconds in all in a debug build.
const ROUNDS: usize = 800;
const THREADS: u64 = 4;

#[test]
fn collections_on_many_threads() {
    let seconds = std::env::var("STEPALLOC_CHAOS_SECONDS")
        .ok()
        .map(|text| text.parse().unwrap());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                chaos::name_thread(number);
                let mut random = Random::new(chaos::seed() ^ number);
                let mut round = 0;
                while end.map_or(round < ROUNDS, |end| Instant::now() < end) {
                    workload::any(&mut random);
                    round += 1;
                }
            });
        }
    });
    assert!(stepalloc::is_installed());
    chaos::assert_share();
}
