//! A system without reservations: the crate compiles, scopes run, everything goes to the backing, and the figures say so.
//!
//! Such are 32-bit systems, wasm and unknown ones. `RUSTFLAGS='--cfg stepalloc_no_sys' cargo test --test no_reservation`
//! makes one of this system; elsewhere this file is empty.
#![cfg(any(stepalloc_no_sys, not(any(unix, windows)), not(target_pointer_width = "64")))]

mod support;

use std::collections::BTreeMap;
use std::thread;
use stepalloc::{arena_scope, arena_scope_report, heap_stats, in_arena, outside_scope, scope_depth, stats, trim};
use stepalloc::{ArenaScope, StepAlloc};
use support::Block;

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Blocks of every kind are made, grown, shrunk and freed with their contents, and none of them is the arena's.
fn blocks_of_every_kind() {
    for (size, align) in [
        (1, 1),
        (48, 8),
        (64, 64),
        (1_025, 16),
        (9_000, 4_096),
        (300_000, 8),
        (2_000_000, 1 << 16),
    ] {
        let mut block = Block::new(size, align);
        assert!(!in_arena(block.addr() as *const u8));
        assert!(block.resize(size * 3) && block.resize(size.div_ceil(2)));
        let zeroed = Block::zeroed(size, align);
        assert!(!in_arena(zeroed.addr() as *const u8));
    }
}

#[test]
fn every_block_is_the_backings() {
    blocks_of_every_kind();
    arena_scope(blocks_of_every_kind);
    arena_scope(|| outside_scope(blocks_of_every_kind));
    thread::spawn(|| arena_scope(blocks_of_every_kind)).join().unwrap();
    let _counted = ArenaScope::enter_counted();
    blocks_of_every_kind();
}

#[test]
fn collections_outlive_scopes_and_threads() {
    let kept: BTreeMap<u32, String> = thread::spawn(|| arena_scope(|| (0..500).map(|i| (i, i.to_string())).collect()))
        .join()
        .unwrap();
    assert!(kept.iter().all(|(key, text)| *text == key.to_string()));
}

#[test]
fn scopes_nest_as_ever() {
    let depths = arena_scope(|| (scope_depth(), arena_scope(scope_depth), outside_scope(scope_depth)));
    assert_eq!((depths, scope_depth()), ((1, 2, 0), 0));
}

#[test]
fn figures_say_why() {
    let (text, report) = arena_scope_report(|| "kept".repeat(10));
    assert_eq!(text.len(), 40);
    assert!(report.installed);
    assert_eq!((report.blocks, report.escapees), (0, 0));
    assert!(report.fallbacks.no_reservation >= 1);
    assert_eq!(report.fallbacks.total(), report.fallbacks.no_reservation);
    let stats = stats();
    assert_eq!((stats.reserved_bytes, stats.committed_bytes, stats.segments), (0, 0, 0));
    assert!(stats.fallbacks.no_reservation >= 1);
    assert!(!heap_stats().has_segment);
    assert_eq!(trim(), 0);
}
