//! `StepAlloc` as a value that is handed a `Layout`: this program installs no global allocator.

mod support;

use std::alloc::{GlobalAlloc, System};
use stepalloc::{arena_scope, arena_scope_report, is_installed, outside_scope, StepAlloc};
use support::{in_thread, is_uniform, layout, Block, Random};

static VALUE: StepAlloc = StepAlloc::new();
static ALL_TO_THE_BACKING: StepAlloc<System> = StepAlloc::with_backing(System)
    .simd_threshold(usize::MAX)
    .large_threshold(usize::MAX);
static EVERYTHING_LARGE: StepAlloc<System> = StepAlloc::with_backing(System).simd_threshold(0).large_threshold(0);

const VALUES: [&StepAlloc; 3] = [&VALUE, &ALL_TO_THE_BACKING, &EVERYTHING_LARGE];

/// Runs `f` outside scopes, in one, and outside inside one.
fn everywhere(f: impl Fn()) {
    f();
    arena_scope(&f);
    arena_scope(|| outside_scope(&f));
    arena_scope_report(&f);
}

#[test]
fn it_is_not_installed_and_reports_say_so() {
    assert!(!is_installed());
    let (words, report) = arena_scope_report(|| ["not", "in", "the", "arena"].join(" "));
    assert_eq!(words.len(), 16);
    assert!(!report.installed && report.complete);
    assert_eq!(
        (report.blocks, report.bytes, report.escapees, report.fallbacks.total()),
        (0, 0, 0, 0)
    );
}

#[test]
fn blocks_made_by_hand_are_counted_all_the_same() {
    let (blocks, report) = arena_scope_report(|| {
        drop(Block::from(&VALUE, layout(10, 1), false));
        [
            Block::from(&VALUE, layout(100, 8), false).unwrap(),
            Block::from(&VALUE, layout(100_000, 8), true).unwrap(),
        ]
    });
    assert!(!report.installed);
    assert_eq!(
        (report.blocks, report.bytes, report.escapees, report.escapee_bytes),
        (3, 100_110, 2, 100_100)
    );
    assert!(!is_installed());
    drop(blocks);
}

#[test]
fn size_zero_is_served_freed_and_grown() {
    for value in VALUES {
        everywhere(|| {
            for align in [1, 2, 8, 16, 64, 4_096, 1 << 16] {
                let empty = layout(0, align);
                // SAFETY: this value promises to serve size 0; each block is freed once with the layout that it has.
                unsafe {
                    let (a, b) = (value.alloc(empty), value.alloc_zeroed(empty));
                    assert!(!a.is_null() && !b.is_null() && a != b);
                    assert!(a.addr() % align == 0 && b.addr() % align == 0);
                    let a = value.realloc(a, empty, 100);
                    a.write_bytes(7, 100);
                    let a = value.realloc(a, layout(100, align), 0);
                    assert!(!a.is_null());
                    let a = value.realloc(a, empty, 0);
                    let a = value.realloc(a, empty, 300_000);
                    a.write_bytes(7, 300_000);
                    value.dealloc(a, layout(300_000, align));
                    value.dealloc(b, empty);
                }
            }
        });
    }
}

#[test]
fn every_alignment_from_a_byte_to_a_gibibyte_is_given() {
    for value in VALUES {
        in_thread(|| {
            everywhere(|| {
                for bits in 0..=30 {
                    for size in [1, 40, 64, 1_000, 30_000, 200_000] {
                        let mut block = Block::from(value, layout(size, 1 << bits), size % 3 == 0).unwrap();
                        // One more beside it, and growth, keep the alignment.
                        let beside = Block::from(value, layout(size, 1 << bits), false).unwrap();
                        if bits < 22 {
                            assert!(block.resize(size * 3));
                            assert!(block.resize(size / 2 + 1));
                        }
                        drop((beside, block));
                    }
                }
            });
        });
    }
}

#[test]
fn random_blocks_keep_their_bytes() {
    for (seed, value) in VALUES.into_iter().enumerate() {
        let mut random = Random(seed as u64 + 5);
        let mut blocks: Vec<Block<StepAlloc>> = vec![];
        for round in 0..300 {
            let scope = (round % 2 == 0).then(stepalloc::ArenaScope::enter);
            for _ in 0..10 {
                let layout = layout(random.size(300_000), 1 << random.below(13));
                blocks.extend(Block::from(value, layout, random.below(2) == 0));
                let which = random.below(blocks.len());
                assert!(blocks[which].resize(random.size(300_000)));
                while blocks.len() > 30 {
                    blocks.swap_remove(random.below(blocks.len()));
                }
            }
            drop(scope);
        }
    }
}

#[test]
fn the_backing_alone_serves_where_the_thresholds_say_so() {
    in_thread(|| {
        let before = stepalloc::heap_stats();
        let blocks = [1, 3_000, 5_000_000].map(|size| Block::from(&ALL_TO_THE_BACKING, layout(size, 8), true).unwrap());
        assert_eq!(stepalloc::heap_stats().in_use_bytes, before.in_use_bytes);
        drop(blocks);
        let block = Block::from(&EVERYTHING_LARGE, layout(1, 1), true).unwrap();
        assert_eq!(stepalloc::heap_stats().large_in_use_bytes, 1_024);
        assert_eq!(block.addr() % 64, 0);
    });
}

#[test]
fn two_values_share_the_arenas_and_free_each_others_blocks_there() {
    arena_scope(|| {
        let (p, layout) = Block::from(&VALUE, layout(1_000, 8), false).unwrap().into_raw();
        // SAFETY: the block is in the arena, which is the same for both values.
        unsafe {
            let p = EVERYTHING_LARGE.realloc(p, layout, 2_000);
            assert!(is_uniform(std::slice::from_raw_parts(p, 1_000), *p));
            ALL_TO_THE_BACKING.dealloc(p, self::layout(2_000, 8));
        }
    });
}
