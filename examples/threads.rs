//! A scope covers the thread that opened it; what a thread makes may be freed by any other, even after it ended.
//! `cargo run --release --example threads`

use std::collections::HashMap;
use std::sync::mpsc;
use std::thread;

use stepalloc::{arena_scope, arena_scope_report, scope_depth, StepAlloc};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

const WORKERS: u64 = 4;
const STEPS: u64 = 200;

/// A step's work: counts words in a text that it makes up first.
fn count_words(worker: u64, step: u64) -> HashMap<String, u64> {
    let text: String = (0..500).map(|i| format!("word{} ", (i * step + worker) % 40)).collect();
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_string()).or_default() += 1;
    }
    counts
}

fn main() {
    let (results, inbox) = mpsc::channel();
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let results = results.clone();
            thread::spawn(move || {
                for step in 0..STEPS {
                    // Each thread has an arena of its own: no lock, no sharing. The table is sent away, so it escapes.
                    let counts = arena_scope(|| count_words(worker, step));
                    results.send(counts).expect("the main thread listens");
                }
                arena_scope_report(|| count_words(worker, STEPS))
            })
        })
        .collect();
    drop(results);

    // Frees here what was made in the workers' arenas, while they go on.
    let mut words = 0;
    let mut last: HashMap<String, u64> = HashMap::new();
    for counts in inbox {
        words += counts.values().sum::<u64>();
        last = counts;
    }
    for worker in workers {
        let (counts, report) = worker.join().expect("the worker has not panicked");
        assert_eq!(counts.values().sum::<u64>(), 500);
        assert!(report.installed && report.blocks >= 1_000 && report.escapees >= 1);
    }

    // The workers are gone; what they made is still here. A scope of this thread says nothing to another one.
    let elsewhere = arena_scope(|| thread::scope(|threads| threads.spawn(scope_depth).join()));
    println!(
        "counted {words} words; the last of {} tables came from a thread that has ended",
        WORKERS * STEPS
    );

    assert_eq!(elsewhere.expect("the thread has not panicked"), 0);
    assert_eq!(words, WORKERS * STEPS * 500);
    assert_eq!(last.values().sum::<u64>(), 500);
}
