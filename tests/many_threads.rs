//! More threads than segments, threads that come and go, and blocks that outlive the thread that made them.

mod support;

use serial_test::serial;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Barrier};
use std::thread;
use stepalloc::{arena_scope, arena_scope_report, heap_stats, stats, trim, ArenaScope, StepAlloc};
use support::{in_thread, resident, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// No reservation has more.
const SEGMENTS: usize = 256;

#[test]
#[serial]
fn two_thousand_threads_at_once_are_all_served() {
    const THREADS: usize = 2_000;
    let all_have_blocks = Arc::new(Barrier::new(THREADS + 1));
    let all_seen = Arc::new(Barrier::new(THREADS + 1));
    let with_segment = Arc::new(AtomicUsize::new(0));
    let before = stats();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (all_have_blocks, all_seen) = (all_have_blocks.clone(), all_seen.clone());
            let with_segment = with_segment.clone();
            let builder = thread::Builder::new().stack_size(128 << 10);
            let work = move || {
                let mut random = Random(number as u64 + 1);
                let scope = ArenaScope::enter();
                let mut blocks: Vec<Block> = (0..20).map(|_| Block::new(random.size(2_000), 8)).collect();
                blocks.push(Block::new(40_000, 64));
                with_segment.fetch_add(usize::from(heap_stats().has_segment), Ordering::Relaxed);
                all_have_blocks.wait();
                all_seen.wait();
                for block in &mut blocks {
                    assert!(block.resize(random.size(4_000)));
                }
                drop(scope);
                let escapee = blocks.swap_remove(3);
                drop(blocks);
                escapee
            };
            builder.spawn(work).unwrap()
        })
        .collect();
    all_have_blocks.wait();
    let full = stats();
    all_seen.wait();
    let escapees: Vec<Block> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let served = with_segment.load(Ordering::Relaxed);
    // A small space has few segments; what matters then is that they come back.
    let least = if cfg!(stepalloc_small_space) { 2 } else { SEGMENTS / 2 };
    assert!((least..=SEGMENTS).contains(&served), "{served} threads had a segment");
    let refused = full.fallbacks.no_segment - before.fallbacks.no_segment;
    assert!(refused as usize >= (THREADS - served) * 21, "{refused}");
    assert_eq!(full.fallbacks.total() - before.fallbacks.total(), refused);
    // Their segments are free again.
    for _ in 0..300 {
        in_thread(|| {
            let (block, report) = arena_scope_report(|| Block::new(100, 8));
            assert_eq!((report.blocks, report.fallbacks.total()), (1, 0), "{report:?}");
            assert!(heap_stats().has_segment);
            drop(block);
        });
    }
    drop(escapees);
    assert!(stats().segments <= 2, "{:?}", stats());
}

#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
#[test]
#[serial]
fn two_hundred_threads_in_turn_leave_little_behind() {
    for turn in 0..200 {
        // Every page written by some of them: one that kept its memory would show.
        let written = turn % 10 == 0 || turn == 199;
        in_thread(|| {
            arena_scope(|| {
                let make = |bytes: usize| {
                    if written {
                        vec![1u8; bytes]
                    } else {
                        Vec::with_capacity(bytes)
                    }
                };
                let small: Vec<Vec<u8>> = (0..500).map(|_| make(20_000)).collect();
                let large: Vec<Vec<u8>> = (0..9).map(|_| make(10_000_000)).collect();
                assert_eq!(small[499].len() + large[8].len(), if written { 10_020_000 } else { 0 });
                assert!(!written || resident() > 100_000_000);
            });
        });
    }
    let after = resident();
    assert!(after <= 64 << 20, "{} MiB resident", after >> 20);
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn escapees_of_ended_threads_are_freed_by_others_and_their_memory_comes_back() {
    trim();
    let before = stats();
    let resident_before = resident();
    let mut kept: Vec<Block> = Vec::with_capacity(200_000);
    for round in 0..60u64 {
        let escapees = thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|number| {
                    scope.spawn(move || {
                        let mut random = Random(round * 3 + number + 1);
                        let mut escapees = vec![];
                        for step in 0..10 {
                            arena_scope(|| {
                                let mut blocks: Vec<Block> =
                                    (0..60).map(|_| Block::new(random.size(3_000), 8)).collect();
                                blocks.push(Block::new(33_000 + random.below(100_000), 64));
                                let keep = blocks.len() - 12 - (step == 9) as usize;
                                escapees.extend(blocks.drain(keep..));
                            });
                        }
                        escapees
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        kept.extend(escapees);
        // Some are freed while other threads own the segments they are in.
        if round % 4 == 3 {
            let half = kept.len() / 2;
            let freed: Vec<Block> = kept.drain(..half).collect();
            in_thread(|| drop(freed));
        }
    }
    kept.iter().for_each(Block::verify);
    assert!(stats().in_use_bytes > before.in_use_bytes + (1 << 20));
    drop(kept);
    trim();
    // This thread's own hole aside, all is as before.
    let after = stats();
    assert!(after.in_use_bytes <= before.in_use_bytes, "{before:?} {after:?}");
    // An emulator keeps memory of its own for each thread there ever was.
    assert!(
        resident() <= resident_before + (8 << 20) || cfg!(stepalloc_small_space),
        "{} MiB",
        (resident() - resident_before) >> 20
    );
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn memory_of_an_ended_thread_comes_back_as_others_free_it_without_a_call() {
    for (count, size) in [(800, 60_000), (100_000, 500)] {
        // The vector is the backing's: to free it must not look like a large block that comes back.
        let mut blocks = Vec::with_capacity(count);
        in_thread(|| arena_scope(|| (0..count).for_each(|_| blocks.push(Block::new(size, 8)))));
        let full = resident();
        drop(blocks);
        let after = resident();
        assert!(
            after + (40 << 20) < full,
            "{size} bytes: {} of {} MiB resident",
            after >> 20,
            full >> 20
        );
    }
}

#[test]
#[serial]
fn blocks_pass_through_channels_between_living_threads() {
    // Each thread makes blocks in scopes, passes them on, and frees what it gets; nobody frees its own.
    const THREADS: usize = 4;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Block>()).unzip();
    let threads: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(number, receiver)| {
            let next = senders[(number + 1) % THREADS].clone();
            thread::spawn(move || {
                let mut random = Random(number as u64 + 99);
                for _ in 0..200 {
                    let scope = ArenaScope::enter();
                    for _ in 0..20 {
                        next.send(Block::new(random.size(40_000), 8)).unwrap();
                    }
                    drop(scope);
                    while let Ok(mut block) = receiver.try_recv() {
                        if random.below(3) == 0 {
                            assert!(block.resize(random.size(40_000)));
                        }
                    }
                }
                drop(next);
                let ((), report) = arena_scope_report(|| receiver.iter().for_each(drop));
                assert_eq!(report.fallbacks.total(), 0);
            })
        })
        .collect();
    drop(senders);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    trim();
    assert!(stats().fallbacks.no_room == 0);
}
