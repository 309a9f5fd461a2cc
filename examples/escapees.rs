//! What escapes a scope stays valid; what is meant to stay is better made with `outside_scope`.
//! `cargo run --release --example escapees`

use std::collections::HashMap;

use stepalloc::{arena_scope, arena_scope_report, outside_scope, scope_depth, StepAlloc};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// A cache that outlives every step. Growing inside a scope would move its table into the arena, where it would
/// take room from the steps until the cache is dropped; so it is filled outside.
#[derive(Default)]
struct Cache(HashMap<u64, String>);

impl Cache {
    fn get(&mut self, key: u64) -> &str {
        self.0.entry(key).or_insert_with(|| format!("the value of {key}"))
    }

    fn get_outside(&mut self, key: u64) -> &str {
        outside_scope(|| self.get(key))
    }
}

fn main() {
    // Correct whatever escapes: strings made in a thousand scopes, among others that do not stay.
    let mut kept = Vec::new();
    for step in 0..1_000 {
        arena_scope(|| {
            let scratch: Vec<String> = (0..50).map(|i| format!("step {step}, scratch {i}")).collect();
            kept.push(scratch[step % 50].clone());
        });
    }
    assert!(kept
        .iter()
        .enumerate()
        .all(|(step, text)| *text == format!("step {step}, scratch {}", step % 50)));

    // Freed in any order, inside a scope or not.
    arena_scope(|| kept.retain(|text| text.ends_with('7')));
    assert_eq!(kept.len(), 100);
    drop(kept);

    // A cache filled inside a scope: each value and the table stay behind as escapees.
    let mut careless = Cache::default();
    let (length, report) = arena_scope_report(|| (0..100).map(|key| careless.get(key).len()).sum::<usize>());
    println!(
        "filled inside: {} blocks, {} escapees, {} bytes",
        report.blocks, report.escapees, report.escapee_bytes
    );
    assert!(report.installed);
    assert_eq!((length, report.escapees), (10 * 14 + 90 * 15, 101));

    // Filled outside, it leaves nothing in the arena.
    let mut careful = Cache::default();
    let (length, report) = arena_scope_report(|| (0..100).map(|key| careful.get_outside(key).len()).sum::<usize>());
    println!("filled outside: {} blocks, {} escapees", report.blocks, report.escapees);
    assert_eq!((length, report.escapees), (10 * 14 + 90 * 15, 0));
    assert_eq!(careful.0, careless.0);

    // Scopes nest, and `outside_scope` suspends all of them for its closure.
    assert_eq!(scope_depth(), 0);
    let depths = arena_scope(|| {
        let nested = arena_scope(scope_depth);
        let outside = outside_scope(|| (scope_depth(), arena_scope(scope_depth)));
        (scope_depth(), nested, outside)
    });
    assert_eq!(depths, (1, 2, (0, 1)));
    assert_eq!(scope_depth(), 0);
}
