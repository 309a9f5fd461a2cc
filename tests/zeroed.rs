//! `alloc_zeroed` is zero wherever its memory was before, and does not touch memory that is known to be.

mod support;

use stepalloc::{arena_scope, trim, ArenaScope, StepAlloc};
use support::{child_passes, in_thread, role, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Zeroed blocks verify themselves when they are made, and dirty their memory when they are freed.
fn zeroed_and_freed(size: usize, count: usize, align: usize) {
    let mut random = Random(size as u64);
    let mut blocks: Vec<Block> = vec![];
    for _ in 0..count {
        blocks.push(Block::zeroed(size, align));
        if random.below(3) == 0 {
            blocks.swap_remove(random.below(blocks.len()));
        }
    }
}

const SIZES: [usize; 12] = [
    1, 16, 17, 63, 64, 1_000, 1_025, 5_000, 32_768, 32_769, 100_000, 1_000_000,
];

#[test]
fn blocks_are_zero_in_fresh_and_in_dirty_memory_in_scopes() {
    for size in SIZES {
        for _ in 0..3 {
            arena_scope(|| zeroed_and_freed(size, 30, 8));
            arena_scope(|| zeroed_and_freed(size, 20, 256));
        }
    }
}

#[test]
fn blocks_are_zero_outside_scopes() {
    for size in SIZES {
        (0..3).for_each(|_| zeroed_and_freed(size, 30, 8));
    }
}

#[test]
fn sizes_mixed_over_the_same_memory_are_zero() {
    let mut random = Random(8);
    let mut blocks: Vec<Block> = vec![];
    for round in 0..400 {
        let scope = (round % 4 != 0).then(ArenaScope::enter);
        for _ in 0..10 {
            let size = random.size(200_000);
            blocks.push(if random.below(2) == 0 {
                Block::zeroed(size, 8)
            } else {
                Block::new(size, 8)
            });
            let which = random.below(blocks.len());
            assert!(blocks[which].resize(random.size(200_000)));
            if blocks.len() > 30 {
                blocks.swap_remove(random.below(30));
            }
        }
        drop(scope);
    }
}

/// In a long scope blocks are made in the place of others of their size, whose bytes are not zero.
#[test]
fn blocks_are_zero_in_the_place_of_others() {
    in_thread(|| {
        let mut random = Random(19);
        let _scope = ArenaScope::enter();
        let mut size = || 16 + random.below(1_009);
        let mut blocks: Vec<Block> = (0..4_000).map(|_| Block::zeroed(size(), 8)).collect();
        for round in 0..40_000 {
            let which = round * 2_654_435_761 % blocks.len();
            blocks.swap_remove(which);
            blocks.push(Block::zeroed(size(), 8));
        }
    });
}

#[test]
fn blocks_are_zero_after_trim() {
    in_thread(|| {
        for _ in 0..4 {
            for size in SIZES {
                arena_scope(|| zeroed_and_freed(size, 20, 8));
                trim();
                arena_scope(|| zeroed_and_freed(size, 25, 8));
            }
        }
    });
}

#[test]
fn blocks_are_zero_in_the_memory_of_a_thread_that_has_ended() {
    for _ in 0..4 {
        let kept = in_thread(|| {
            arena_scope(|| {
                zeroed_and_freed(1_000, 200, 8);
                zeroed_and_freed(200_000, 20, 8);
                [Block::new(700, 8), Block::new(70_000, 8)]
            })
        });
        in_thread(|| arena_scope(|| SIZES.map(|size| zeroed_and_freed(size, 20, 8))));
        drop(kept);
    }
}

#[test]
fn blocks_are_zero_partly_behind_the_furthest_memory_ever_used() {
    in_thread(|| {
        arena_scope(|| {
            // Each one begins in dirty memory and ends in fresh.
            for size in (100_000..4_000_000).step_by(150_000) {
                drop(Block::zeroed(size, 8));
            }
            for size in (100..32_000).step_by(700) {
                drop(Block::zeroed(size, 8));
            }
        });
    });
}

#[test]
fn blocks_are_zero_behind_spans_that_grew_and_shrank() {
    in_thread(|| {
        arena_scope(|| {
            let mut block = Block::new(100_000, 8);
            for size in [3_000_000, 200_000, 5_000_000, 40_000] {
                assert!(block.resize(size));
                drop(Block::zeroed(2_000_000, 8));
                drop(Block::zeroed(9_000_000, 8));
            }
        });
    });
}

/// Regression. An aligned block that fitted the free span at the top of the used area, though not with the slack that the
/// search asks for, moved the top down to its own end: what lay behind, used before, was taken for memory never used.
#[test]
fn blocks_are_zero_behind_an_aligned_one_at_the_top() {
    if role().is_none() {
        // In a process of its own: the area must be fresh.
        child_passes("blocks_are_zero_behind_an_aligned_one_at_the_top", "fresh");
        return;
    }
    for bits in 12..22 {
        for dirty in [20_000, 60_000, 1 << 20, 3 << 20] {
            for aligned in [10_000, dirty / 2, dirty - 5_000, dirty] {
                in_thread(|| {
                    arena_scope(|| {
                        drop(Block::new(dirty, 8));
                        drop(Block::new(aligned, 1 << bits));
                        drop(Block::zeroed(dirty + 50_000, 8));
                    });
                });
            }
        }
    }
}

#[test]
fn blocks_are_zero_where_spans_were_freed_by_other_threads() {
    arena_scope(|| {
        for _ in 0..10 {
            let blocks: Vec<Block> = (1..10).map(|n| Block::new(n * 20_000, 8)).collect();
            in_thread(|| drop(blocks));
            drop(Block::zeroed(900_000, 8));
            drop(Block::zeroed(1_100_000, 8));
        }
    });
}

/// Page faults of this thread while it makes a zeroed block of this size, not touched.
#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
fn faults_of_zeroed(size: usize) -> (u64, *mut u8) {
    let layout = support::layout(size, 64);
    let before = support::faults();
    // SAFETY: the layout has a size.
    let p = unsafe { std::alloc::alloc_zeroed(layout) };
    (support::faults() - before, p)
}

#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
#[test]
fn fresh_large_blocks_are_not_touched() {
    // In a process of its own: memory that other tests have used must be zeroed.
    if role().is_none() {
        child_passes("fresh_large_blocks_are_not_touched", "fresh");
        return;
    }
    for (in_scope, size) in [(true, 64 << 20), (false, 1 << 30)] {
        in_thread(|| {
            let scope = in_scope.then(ArenaScope::enter);
            let (touched, p) = faults_of_zeroed(size);
            // The second thread has the segment of the first, and 64 MiB of it are dirty.
            let dirty = if in_scope { 0 } else { (64 << 20) / 4_096 };
            assert!(!p.is_null() && touched < 40 + dirty, "{touched} faults");
            // SAFETY: made above with this layout; the bytes are initialised, being zero.
            unsafe {
                assert!((0..64 << 20).step_by(4_096).all(|at| *p.add(at) == 0));
                std::alloc::dealloc(p, support::layout(size, 64));
            }
            drop(scope);
        });
    }
}
