//! Chains of reallocations across all thresholds: in and out of scopes, by the owner and by others, contents verified; and
//! growth in place where it is promised.

mod support;

use serial_test::serial;
use std::sync::mpsc::channel;
use std::thread;
use stepalloc::{arena_scope, arena_scope_report, outside_scope, ArenaScope, StepAlloc};
use support::{in_thread, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Whether blocks are checked, and so move whenever they are resized.
const CHECKED: bool = cfg!(any(feature = "hardened", feature = "asan"));

/// Sizes at and around every threshold: granule, line, inline limit, SIMD, page, small limit, large, and beyond.
const EDGES: [usize; 11] = [
    16,
    64,
    1_024,
    2_048,
    4_096,
    8_192,
    32_768,
    65_536,
    131_072,
    1 << 20,
    3 << 20,
];

fn a_size(random: &mut Random) -> usize {
    match random.below(3) {
        0 => (EDGES[random.below(EDGES.len())] + random.below(5))
            .saturating_sub(2)
            .max(1),
        1 => random.size(2_000),
        _ => random.size(400_000),
    }
}

fn a_block(random: &mut Random) -> Block {
    let align = [1, 8, 16, 64, 512, 8_192][random.below(6)];
    Block::new(a_size(random), align)
}

fn chains(seed: u64, rounds: usize) -> Vec<Block> {
    let mut random = Random(seed);
    let mut blocks: Vec<Block> = vec![];
    let mut guards: Vec<ArenaScope> = vec![];
    for _ in 0..rounds {
        match random.below(12) {
            0 if guards.len() < 5 => guards.push(ArenaScope::enter()),
            1 if !guards.is_empty() => drop(guards.swap_remove(random.below(guards.len()))),
            2 | 3 if blocks.len() < 25 => blocks.push(a_block(&mut random)),
            4 if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
            5 if !blocks.is_empty() => {
                let which = random.below(blocks.len());
                assert!(outside_scope(|| blocks[which].resize(a_size(&mut random))));
            }
            _ if !blocks.is_empty() => {
                let which = random.below(blocks.len());
                assert!(blocks[which].resize(a_size(&mut random)));
            }
            _ => {}
        }
    }
    blocks.iter().for_each(Block::verify);
    blocks
}

#[test]
#[serial]
fn chains_by_the_owner_keep_their_bytes() {
    for seed in 1..20 {
        chains(seed, 500);
    }
}

#[test]
#[serial]
fn chains_in_a_counted_scope_keep_their_bytes_and_are_all_counted() {
    for seed in 30..36 {
        let (blocks, report) = arena_scope_report(|| chains(seed, 400));
        assert!(report.complete && report.fallbacks.total() == 0, "{report:?}");
        drop(blocks);
    }
}

#[test]
#[serial]
fn chains_by_other_threads_keep_their_bytes() {
    // Blocks go round three threads; each resizes what it gets, in or out of a scope, and makes some of its own.
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| channel::<Block>()).unzip();
    let threads: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(number, receiver)| {
            let next = senders[(number + 1) % 3].clone();
            thread::spawn(move || {
                let mut random = Random(number as u64 + 100);
                for round in 0..600 {
                    let scope = (round % 3 != 0).then(ArenaScope::enter);
                    if round < 500 && random.below(3) == 0 {
                        let _ = next.send(a_block(&mut random));
                    }
                    while let Ok(mut block) = receiver.try_recv() {
                        for _ in 0..1 + random.below(3) {
                            assert!(block.resize(a_size(&mut random)));
                        }
                        if random.below(8) != 0 {
                            let _ = next.send(block);
                        }
                    }
                    drop(scope);
                }
            })
        })
        .collect();
    drop(senders);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
#[serial]
fn chains_of_blocks_whose_thread_has_ended_keep_their_bytes() {
    for seed in 1..8 {
        let mut blocks = in_thread(|| chains(seed + 50, 300));
        let mut random = Random(seed);
        // Beside a new owner of the segment.
        in_thread(|| {
            for _ in 0..10 {
                for block in &mut blocks {
                    let scope = (random.below(2) == 0).then(ArenaScope::enter);
                    assert!(block.resize(a_size(&mut random)));
                    drop(scope);
                }
                drop(chains(seed + 70, 50));
            }
        });
        blocks.iter().for_each(Block::verify);
    }
}

#[test]
#[serial]
fn a_tail_given_up_by_another_thread_is_used_again_and_nothing_else_is() {
    arena_scope(|| {
        let mut blocks: Vec<Block> = (0..50).map(|n| Block::new(1_000 + n * 50, 8)).collect();
        let shrink = |blocks: &mut Vec<Block>| {
            for block in blocks.iter_mut() {
                let addr = block.addr();
                assert!(block.resize(block.size() / 3));
                assert!(block.addr() == addr || CHECKED, "shrinking stays");
            }
        };
        in_thread(|| shrink(&mut blocks));
        let between: Vec<Block> = (0..500).map(|n| Block::new(1 + n % 600, 8)).collect();
        in_thread(|| shrink(&mut blocks));
        let more: Vec<Block> = (0..500).map(|n| Block::new(1 + n % 300, 8)).collect();
        blocks.iter().chain(&between).chain(&more).for_each(Block::verify);
    });
}

/// Every small size resized to every other, by the owner and by another thread.
#[test]
#[serial]
fn every_small_size_becomes_every_other() {
    const MOST: usize = 140;
    for by_owner in [true, false] {
        arena_scope(|| {
            for old in 1..=MOST {
                let mut blocks: Vec<Block> = (0..MOST).map(|_| Block::new(old, 8)).collect();
                let mut resize = || {
                    for (block, new) in blocks.iter_mut().zip(1..) {
                        assert!(block.resize(new));
                    }
                };
                if by_owner {
                    resize();
                } else {
                    in_thread(resize);
                }
                blocks.iter().for_each(Block::verify);
            }
        });
    }
}

/// A block of 49 to 63 bytes has room for 64, but those begin at a line: whoever grows it moves it, unless it does.
#[test]
#[serial]
fn what_grows_to_a_line_begins_at_one() {
    for by_owner in [true, false] {
        arena_scope(|| {
            let shifts: Vec<(Block, Block)> = (0..200)
                .map(|n| (Block::new(16, 8), Block::new(49 + n % 15, 8)))
                .collect();
            let (shifts, mut blocks): (Vec<Block>, Vec<Block>) = shifts.into_iter().unzip();
            assert!(
                CHECKED || blocks.iter().any(|block| block.addr() % 64 != 0),
                "all begin at lines"
            );
            let mut grow = || blocks.iter_mut().for_each(|block| assert!(block.resize(64)));
            if by_owner {
                grow();
            } else {
                in_thread(grow);
            }
            blocks.iter().chain(&shifts).for_each(Block::verify);
        });
    }
}

/// Another thread cannot give up the tail of a large block, so it keeps the block where that wastes less than half of it.
#[test]
#[serial]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn a_large_block_resized_by_another_thread_stays_while_it_wastes_little() {
    const KIB: usize = 1 << 10;
    for (new, stays) in [
        (1024, true),
        (1000, true),
        (520, true),
        (500, false),
        (20, false),
        (1025, false),
    ] {
        let mut block = arena_scope(|| Block::new(1024 * KIB, 8));
        let addr = block.addr();
        in_thread(|| assert!(block.resize(new * KIB)));
        assert_eq!(block.addr() == addr, stays, "to {new} KiB");
    }
}

// ---- In place ----

#[test]
#[serial]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn the_last_block_of_a_scope_grows_in_place() {
    in_thread(|| {
        arena_scope(|| {
            let mut block = Block::new(64, 8);
            let addr = block.addr();
            // As long as it is a small block, over a hole's end.
            for size in (65..8_000).step_by(200) {
                assert!(block.resize(size));
                assert_eq!(block.addr(), addr, "{size}");
            }
        });
    });
}

#[test]
#[serial]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn a_block_grows_in_place_into_memory_free_behind_it_and_never_over_a_live_one() {
    in_thread(|| {
        arena_scope(|| {
            let (mut a, b, c) = (Block::new(1_024, 8), Block::new(1_024, 8), Block::new(64, 8));
            assert_eq!((b.addr(), c.addr()), (a.addr() + 1_024, a.addr() + 2_048));
            let addr = a.addr();
            drop(b);
            assert!(a.resize(2_048));
            assert_eq!(a.addr(), addr);
            assert!(a.resize(2_049));
            assert_ne!(a.addr(), addr);
            c.verify();
        });
    });
}

#[test]
#[serial]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn shrinking_stays_in_place_and_frees_the_tail() {
    in_thread(|| {
        arena_scope(|| {
            for (size, less) in [(1_024, 512), (20_000, 64), (1 << 20, 50_000)] {
                let (mut block, behind) = (Block::new(size, 8), Block::new(size, 8));
                let addr = block.addr();
                assert!(block.resize(less));
                assert_eq!(block.addr(), addr);
                assert!(block.resize(size));
                assert_eq!(block.addr(), addr, "the tail was free");
                behind.verify();
            }
        });
    });
}

#[test]
#[serial]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn a_span_grows_in_place_where_nothing_is_behind_it() {
    in_thread(|| {
        for in_scope in [true, false] {
            let _scope = in_scope.then(ArenaScope::enter);
            // Fills holes of earlier owners.
            let mut block = Block::new(8 << 20, 64);
            let addr = block.addr();
            for size in [9 << 20, 30 << 20, 1 << 20, 60 << 20] {
                assert!(block.resize(size));
                assert_eq!(block.addr(), addr, "{size}");
            }
        }
    });
}

#[test]
#[serial]
#[cfg_attr(any(feature = "hardened", feature = "asan"), ignore = "checked blocks always move")]
fn a_vector_pushed_to_64_mb_moves_only_while_it_is_small() {
    in_thread(|| {
        for in_scope in [true, false] {
            let _scope = in_scope.then(ArenaScope::enter);
            let mut vector: Vec<u64> = vec![];
            let (mut moves, mut last) = (0, vector.as_ptr());
            let mut large_moves = 0;
            for n in 0..1_000_000 {
                let chunk = [n; 8];
                vector.extend_from_slice(&chunk);
                if vector.as_ptr() != last {
                    moves += 1;
                    large_moves += u32::from(vector.capacity() > 1 << 17);
                    last = vector.as_ptr();
                }
            }
            assert!(
                moves < 20 && large_moves == 0,
                "{moves} moves, {large_moves} of them large"
            );
            assert!((0..1_000_000)
                .step_by(997)
                .all(|n| vector[n * 8..n * 8 + 8] == [n as u64; 8]));
        }
    });
}
