//! Which alignment a block gets beyond the one asked for: 64 bytes for blocks of 64 bytes or more in scopes, from the SIMD
//! threshold on outside them, and for all large ones.

mod support;

use stepalloc::{arena_scope, arena_scope_report, in_arena, ArenaScope, StepAlloc};
use support::{Block, Random};

const SIMD: usize = 1_000;
const LARGE: usize = 100_000;

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new().simd_threshold(SIMD).large_threshold(LARGE);

fn sizes() -> impl Iterator<Item = usize> {
    let around = [64, 1_000, 1_024, 2_048, 4_096, 32_768, 100_000, 1 << 20];
    (1..300).chain(around.into_iter().flat_map(|size| size - 1..=size + 1))
}

#[test]
fn blocks_of_64_bytes_or_more_begin_at_a_line_in_a_scope() {
    let check = || {
        // One kept between, so that the positions vary.
        let mut kept = vec![];
        for size in sizes() {
            for align in [1, 8, 16, 32] {
                let block = Block::new(size, align);
                let least = if size >= 64 { 64 } else { 16.max(align) };
                assert_eq!(block.addr() % least, 0, "{size} {align}");
                kept.push(Block::new(1 + size % 70, 1));
            }
        }
    };
    arena_scope(check);
    arena_scope_report(check);
}

#[test]
fn larger_alignments_are_given_in_a_scope() {
    arena_scope(|| {
        let mut kept = vec![];
        for bits in 0..=24 {
            for size in [1, 63, 64, 500, 5_000, 40_000] {
                kept.push(Block::new(size, 1 << bits)); // verifies its alignment
                kept.push(Block::new(24, 8));
            }
        }
    });
}

#[test]
fn growth_in_a_scope_reaches_the_line() {
    arena_scope(|| {
        let mut kept = vec![];
        for from in [1, 16, 30, 48, 63] {
            for to in [64, 65, 100, 900, 5_000, 100_000] {
                let mut block = Block::new(from, 8);
                assert!(block.resize(to));
                assert_eq!(block.addr() % 64, 0, "{from} to {to}");
                kept.push(block);
                kept.push(Block::new(24, 8));
            }
        }
        // Vectors grow so too.
        let mut vectors: Vec<Vec<f32>> = (0..50).map(|_| vec![]).collect();
        for n in 0..5_000u16 {
            let vector = &mut vectors[usize::from(n) % 50];
            vector.push(n.into());
            assert!(vector.capacity() < 16 || vector.as_ptr() as usize % 64 == 0);
        }
    });
}

/// Regression. A block of 49 to 63 bytes that grew to 64 within its last granule stayed where it was, at no line.
#[test]
fn growth_within_the_last_granule_reaches_the_line() {
    arena_scope(|| {
        let _shift = Block::new(16, 8);
        for from in 49..64 {
            let (mut own, mut others) = (Block::new(from, 8), Block::new(from, 8));
            assert!(own.resize(64));
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(others.resize(64)));
            });
            assert_eq!((own.addr() % 64, others.addr() % 16), (0, 0), "{from}");
        }
    });
}

#[test]
fn growth_outside_a_scope_of_a_block_made_inside_reaches_the_line_too() {
    let mut blocks: Vec<Block> = arena_scope(|| (1..64).map(|size| Block::new(size, 1)).collect());
    for block in &mut blocks {
        assert!(block.resize(2_000));
        assert_eq!(block.addr() % 64, 0);
    }
}

#[test]
fn blocks_from_the_simd_threshold_on_are_aligned_outside() {
    let mut kept = vec![];
    for size in [SIMD, SIMD + 1, 1_500, 5_000, 99_999, LARGE, LARGE + 1, 1 << 20] {
        for _ in 0..20 {
            for block in [Block::new(size, 4), Block::zeroed(size, 4)] {
                assert_eq!(block.addr() % 64, 0, "{size}");
                kept.push(block);
            }
            kept.push(Block::new(24, 8));
        }
    }
    // Below it they are the backing's as asked: some are not at a line.
    let plain: Vec<Block> = (0..20).map(|_| Block::new(SIMD - 1, 8)).collect();
    assert!(plain.iter().any(|block| block.addr() % 64 != 0));
}

#[test]
fn blocks_outside_scopes_are_the_backings_where_an_arena_has_room_too() {
    // Every other one goes before the scope ends: its arena has a hole for each of those below.
    let kept: Vec<Block> = arena_scope(|| {
        let blocks: Vec<Block> = (0..4_000).map(|_| Block::new(1_020, 8)).collect();
        let each_other = |(index, block)| (index % 2 == 0).then_some(block);
        blocks.into_iter().enumerate().filter_map(each_other).collect()
    });
    assert!(kept.iter().all(|block| in_arena(block.addr() as *const u8)));
    for size in [SIMD, SIMD + 1, 1_020, 1_024] {
        let outside: Vec<Block> = (0..50).map(|_| Block::new(size, 8)).collect();
        let served = outside
            .iter()
            .filter(|block| in_arena(block.addr() as *const u8))
            .count();
        assert_eq!(served, 0, "{size} bytes");
    }
}

#[test]
fn growth_and_shrinking_across_the_thresholds_keep_alignment_and_bytes() {
    let mut random = Random(4);
    let sizes = [10, 500, SIMD - 1, SIMD, 3_000, LARGE - 1, LARGE, 300_000];
    let mut block = Block::new(10, 8);
    let mut kept = vec![];
    for _ in 0..2_000 {
        let size = sizes[random.below(sizes.len())];
        let grown = size > block.size();
        let scope = (random.below(2) == 0).then(ArenaScope::enter);
        assert!(block.resize(size));
        drop(scope);
        if grown && size >= SIMD {
            assert_eq!(block.addr() % 64, 0, "{size}");
        }
        if random.below(10) == 0 {
            kept.push(std::mem::replace(&mut block, Block::new(10, 8)));
            if kept.len() > 10 {
                kept.swap_remove(random.below(10));
            }
        }
    }
}
