//! Threads come and go without end, and their blocks outlive them: nothing adds up.
//!
//! `STEPALLOC_CHURN_SECONDS=300 cargo test --release --test churn` goes on for that time.

mod support;

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};
use stepalloc::{arena_scope, heap_stats, in_arena, outside_scope, stats, trim, ArenaScope, StepAlloc};
use support::{in_thread, resident, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Rounds where no time is given, each of `AT_ONCE` threads.
const ROUNDS: u64 = 60;
const AT_ONCE: u64 = 6;
/// Blocks that wait for who frees them, at most.
const KEPT: usize = 3_000;

/// A short life: some steps, what it inherits freed or resized in them, and escapees of all sizes. Some threads end in a
/// scope, and some are never in one. Says how many of its blocks the arena made.
fn live(seed: u64, mut inherited: Vec<Block>) -> (Vec<Block>, usize) {
    let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
    let (mut left, mut served) = (vec![], 0);
    if seed % 7 == 6 {
        inherited.truncate(inherited.len() / 2);
        return (inherited, 0);
    }
    for step in 0..4 {
        let scope = ArenaScope::enter();
        let mut blocks: Vec<Block> = (0..50).map(|_| Block::new(random.size(3_000), 8)).collect();
        blocks.push(Block::zeroed(random.size(400_000), 64));
        served += blocks
            .iter()
            .filter(|block| in_arena(block.addr() as *const u8))
            .count();
        if let Some(mut block) = inherited.pop() {
            assert!(block.resize(random.size(50_000)));
            left.push(block);
        }
        let half = inherited.len() / 2;
        inherited.truncate(half);
        outside_scope(|| left.reserve(8));
        left.extend(blocks.drain(..6 + step));
        if step == 3 && seed % 3 == 0 {
            std::mem::forget(scope);
        }
    }
    left.iter().for_each(Block::verify);
    (left, served)
}

#[test]
fn threads_come_and_go_and_nothing_adds_up() {
    let seconds = std::env::var("STEPALLOC_CHURN_SECONDS").ok();
    let end = seconds.map(|text| Instant::now() + Duration::from_secs(text.parse().unwrap()));
    let (mut round, mut served, mut made) = (0, 0, 0);
    let mut settled = (0, 0);
    // All of it on a thread of its own: this one has nothing in an arena.
    in_thread(|| {
        let (give, take) = sync_channel::<Vec<Block>>(2);
        // A thread that lives as long as all of them frees half of what they leave.
        let heir = thread::spawn(move || {
            let mut random = Random(9);
            for blocks in take {
                arena_scope(|| drop((blocks, Block::new(random.size(5_000), 8))));
            }
            assert!(heap_stats().has_segment);
        });
        let mut kept: Vec<Block> = Vec::with_capacity(KEPT);
        while end.map_or(round < ROUNDS, |end| Instant::now() < end) {
            let threads: Vec<_> = (0..AT_ONCE)
                .map(|number| {
                    let inherited = kept.split_off(kept.len() - kept.len().min(20));
                    thread::spawn(move || live(round * AT_ONCE + number, inherited))
                })
                .collect();
            for thread in threads {
                let (mut left, count) = thread.join().unwrap();
                served += count;
                made += 51 * 4;
                let rest = left.split_off(left.len() / 2);
                give.send(rest).unwrap();
                kept.extend(left);
            }
            if kept.len() > KEPT {
                kept.drain(..KEPT / 2);
            }
            round += 1;
            if round == ROUNDS / 2 {
                settled = (stats().committed_bytes, resident());
            }
        }
        drop(give);
        heir.join().unwrap();
        kept.iter().for_each(Block::verify);
    });
    assert!(round >= ROUNDS, "{round} rounds are too few to see anything");
    let figures = stats();
    // One in seven threads asks the arena for nothing.
    assert!(served * 10 >= made * 8, "the arena served {served} of {made}");
    assert_eq!(figures.fallbacks.total(), 0);
    assert!(figures.segments_peak as u64 <= AT_ONCE + 2, "{figures:?}");
    let (committed, memory) = settled;
    assert!(
        figures.committed_bytes <= 2 * committed,
        "from {committed}: {figures:?}"
    );
    let now = resident();
    assert!(now <= 2 * memory, "{} MiB resident, of {}", now >> 20, memory >> 20);
    trim();
    assert_eq!(stats().in_use_bytes, 0, "every block was freed");
    assert_eq!(stats().segments, 0, "every thread but this one has ended");
}
