//! A reservation made small on purpose: one segment of 8 MiB. The area runs full, more than one thread wants it, and
//! everything stays correct; what is freed is served by the arena again.

mod support;

use serial_test::serial;
use stepalloc::{arena_scope_report, stats, ArenaScope, StepAlloc};
use support::{child_passes, in_thread, role, Block};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new().reservation(16 << 20);

#[test]
#[serial]
fn the_reservation_is_as_small_as_asked() {
    in_thread(|| {
        drop(stepalloc::arena_scope(|| Block::new(100, 8)));
        let stats = stats();
        assert!((8 << 20..=16 << 20).contains(&stats.reserved_bytes), "{stats:?}");
        assert_eq!(stats.segments, 1);
    });
}

/// Of two allocators with limits of their own the smaller limit counts, whichever is asked first.
#[test]
#[serial]
fn of_two_limits_the_smaller_counts() {
    static LARGER: StepAlloc = StepAlloc::new().reservation(64 << 20);
    let name = "of_two_limits_the_smaller_counts";
    let layout = support::layout(4_000, 8); // large enough to come past the inline path
    match role().as_deref() {
        None => ["first", "last"].iter().for_each(|role| drop(child_passes(name, role))),
        Some(role) => {
            let mut last = (role == "last").then(|| Block::new(4_000, 8));
            drop(Block::from(&LARGER, layout, false));
            let block = last.take().unwrap_or_else(|| Block::new(4_000, 8));
            drop(stepalloc::arena_scope(|| Block::new(100, 8)));
            let stats = stats();
            assert!((8 << 20..=16 << 20).contains(&stats.reserved_bytes), "{stats:?}");
            drop(block);
        }
    }
}

/// Bytes behind each block that are its own too.
const GUARD: usize = if cfg!(any(feature = "hardened", feature = "asan")) {
    16
} else {
    0
};

fn fill_and_fill_again(size: usize, count: usize) {
    let mut blocks: Vec<Block> = Vec::with_capacity(count);
    let before = stats().fallbacks;
    let ((), report) = arena_scope_report(|| blocks.extend((0..count).map(|_| Block::new(size, 8))));
    assert!(report.complete, "{report:?}");
    assert!(report.fallbacks.no_room > 0, "the area ran full: {report:?}");
    assert_eq!(report.fallbacks.total(), report.fallbacks.no_room);
    assert_eq!(report.blocks + report.fallbacks.no_room, count as u64);
    assert_eq!(stats().fallbacks.no_room - before.no_room, report.fallbacks.no_room);
    let fit = report.blocks as usize;
    assert!(fit * (size + GUARD) > 1_500_000, "{fit} blocks of {size}");
    blocks.iter().for_each(Block::verify);
    // Half of them, from among the others: what the arena gets back it serves again.
    let mut index = 0;
    blocks.retain(|_| {
        index += 1;
        index % 2 == 0
    });
    let free = fit - fit / 2;
    let ((), report) = arena_scope_report(|| blocks.extend((0..free).map(|_| Block::new(size, 8))));
    assert!(report.blocks as usize >= free * 9 / 10, "{free} were free: {report:?}");
    blocks.iter().for_each(Block::verify);
    blocks.clear();
    // All of it.
    for _ in 0..3 {
        let ((), report) = arena_scope_report(|| blocks.extend((0..fit).map(|_| Block::new(size, 8))));
        assert_eq!(report.fallbacks.total(), report.fallbacks.no_room);
        // A look at a full area is paid for by an eighth of it asked for.
        assert!(report.blocks as usize >= fit - fit / 8, "{fit} fit: {report:?}");
        blocks.iter().for_each(Block::verify);
        blocks.clear();
    }
}

#[test]
#[serial]
fn small_blocks_run_full_and_come_back() {
    in_thread(|| fill_and_fill_again(1_000, 4_000));
}

#[test]
#[serial]
fn tiny_blocks_run_full_and_come_back() {
    in_thread(|| fill_and_fill_again(24, 90_000));
}

#[test]
#[serial]
fn long_small_blocks_run_full_and_come_back() {
    in_thread(|| fill_and_fill_again(30_000, 300));
}

#[test]
#[serial]
fn spans_run_full_and_come_back() {
    in_thread(|| fill_and_fill_again(200_000, 60));
}

#[test]
#[serial]
fn spans_outside_scopes_run_full_and_use_the_backing() {
    in_thread(|| {
        let before = stats().fallbacks.no_room;
        let blocks: Vec<Block> = (0..40).map(|_| Block::new(300_000, 8)).collect();
        let refused = stats().fallbacks.no_room - before;
        assert!(refused > 10 && refused < 40, "{refused}");
        drop(blocks);
        drop((0..10).map(|_| Block::new(300_000, 8)).collect::<Vec<_>>());
        assert_eq!(stats().fallbacks.no_room - before, refused);
    });
}

#[test]
#[serial]
fn growth_out_of_a_full_area_moves_to_the_backing_with_its_bytes() {
    in_thread(|| {
        let scope = ArenaScope::enter_counted();
        let mut blocks: Vec<Block> = (0..8).map(|_| Block::new(100_000, 8)).collect();
        for size in (200_000..3_000_000).step_by(400_000) {
            for block in &mut blocks {
                assert!(block.resize(size));
            }
        }
        for size in [1_000_000, 40_000, 1_000, 20] {
            for block in &mut blocks {
                assert!(block.resize(size));
            }
        }
        drop(blocks);
        let report = scope.leave();
        assert!(report.fallbacks.no_room > 0 && report.escapees == 0, "{report:?}");
    });
}

#[test]
#[serial]
fn a_second_thread_finds_no_segment_and_is_served_all_the_same() {
    in_thread(|| {
        let mine = stepalloc::arena_scope(|| Block::new(5_000, 8));
        let theirs = in_thread(|| {
            let mut blocks = vec![];
            let ((), report) =
                arena_scope_report(|| blocks.extend((0..500).map(|i| Block::new(1 + i * 997 % 60_000, 8))));
            assert_eq!(report.blocks, 0);
            assert!(report.fallbacks.no_segment >= 500, "{report:?}");
            blocks
        });
        drop((mine, theirs));
    });
    // The first has ended: its segment is the next one's.
    in_thread(|| {
        let ((), report) = arena_scope_report(|| drop(Block::new(5_000, 8)));
        assert_eq!((report.blocks, report.fallbacks.total()), (1, 0));
    });
}

/// Regression. A scope whose area had run full once asked the backing for ever, whatever was freed meanwhile: only what the
/// arena serves paid for the next look at it, and a dense area was never looked at.
fn a_full_area_serves_again_in_the_same_scope(size: usize, count: usize) {
    let mut blocks: Vec<Block> = Vec::with_capacity(count);
    let make = |blocks: &mut Vec<Block>, count: usize| blocks.extend((0..count).map(|_| Block::new(size, 8)));
    let no_room = || stats().fallbacks.no_room as usize;
    let _scope = ArenaScope::enter();
    let before = no_room();
    make(&mut blocks, count);
    let fit = count - (no_room() - before);
    assert!(fit < count);
    // Blocks of the backing came last. Four of five stay.
    blocks.truncate(fit);
    let mut index = 0;
    blocks.retain(|_| {
        index += 1;
        index % 5 != 0
    });
    let before = no_room();
    let mut more: Vec<Block> = Vec::with_capacity(fit / 2);
    make(&mut more, fit / 2);
    let served = more.len().saturating_sub(no_room() - before);
    assert!(served >= fit / 6, "{served} of {} free places were used", fit / 5);
    drop((blocks, more));
    let before = no_room();
    let mut again: Vec<Block> = Vec::with_capacity(fit);
    make(&mut again, fit);
    assert!(
        no_room() - before <= fit / 4,
        "{} of {fit} were refused",
        no_room() - before
    );
    drop(again);
}

#[test]
#[serial]
fn a_full_area_serves_small_blocks_again_in_the_same_scope() {
    in_thread(|| a_full_area_serves_again_in_the_same_scope(1_000, 4_000));
}

#[test]
#[serial]
fn a_full_area_serves_long_blocks_again_in_the_same_scope() {
    in_thread(|| a_full_area_serves_again_in_the_same_scope(3_000, 1_400));
}

#[test]
#[serial]
fn a_full_area_serves_spans_again_in_the_same_scope() {
    in_thread(|| a_full_area_serves_again_in_the_same_scope(40_000, 300));
}
