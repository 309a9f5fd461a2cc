//! The figures: every byte in one class, exact where that is promised; and memory that goes back to the system, on demand,
//! with a thread's end, and by itself.

mod support;

use serial_test::serial;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use stepalloc::{
    arena_scope, heap_stats, outside_scope, scope_depth, stats, trim, ArenaScope, HeapStats, Stats, StepAlloc,
};
use support::{in_thread, page_size, resident, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Bytes behind each block that are its own too.
const GUARD: usize = if cfg!(any(feature = "hardened", feature = "asan")) {
    16
} else {
    0
};

/// What a small block takes: whole granules, and whole lines from 64 bytes on.
fn occupied(size: usize) -> usize {
    let whole = size + GUARD;
    whole.next_multiple_of(if whole >= 64 { 64 } else { 16 })
}

/// The sums that the docs show.
fn sums_hold() -> HeapStats {
    let stats = stats();
    assert_eq!(
        stats.reserved_bytes,
        stats.committed_bytes + stats.uncommitted_bytes,
        "{stats:?}"
    );
    let classes = stats.table_bytes + stats.in_use_bytes + stats.pinned_bytes + stats.free_bytes;
    assert_eq!(stats.committed_bytes, classes, "{stats:?}");
    assert!(stats.segments <= stats.segments_peak);
    let heap = heap_stats();
    let classes = heap.table_bytes + heap.in_use_bytes + heap.pinned_bytes + heap.free_bytes;
    assert_eq!(heap.committed_bytes, classes, "{heap:?}");
    assert_eq!(heap.in_use_bytes, heap.small_in_use_bytes + heap.large_in_use_bytes);
    assert!(heap.committed_bytes <= heap.reserved_bytes && heap.committed_bytes <= stats.committed_bytes);
    heap
}

#[test]
#[serial]
fn a_thread_without_an_arena_has_none() {
    in_thread(|| {
        drop(Block::new(1_000, 8));
        let heap = sums_hold();
        assert!(!heap.has_segment);
        assert_eq!(
            (
                heap.reserved_bytes,
                heap.committed_bytes,
                heap.depth,
                heap.scopes_entered
            ),
            (0, 0, 0, 0)
        );
    });
}

/// Free bytes on pages of small blocks: the least and the most, for the holes may be anywhere.
fn pinned(blocks: &[Block]) -> (usize, usize) {
    let page = page_size();
    const HOLES: usize = 256 << 10;
    let mut pages = std::collections::BTreeMap::<usize, usize>::new();
    for block in blocks.iter().filter(|block| block.size() <= 8_000) {
        let (mut at, end) = (block.addr(), block.addr() + occupied(block.size()));
        while at < end {
            let next = (at / page + 1) * page;
            *pages.entry(at / page).or_default() += end.min(next) - at;
            at = next;
        }
    }
    let all = pages.values().map(|live| page - live).sum::<usize>();
    (all.saturating_sub(HOLES), all + 4 * page)
}

#[test]
#[serial]
fn the_figures_of_a_thread_are_exact() {
    in_thread(|| {
        arena_scope(|| drop(Block::new(100, 8)));
        let before = sums_hold();
        let mut blocks = Vec::with_capacity(3_000);
        let (mut small, mut large) = (0, 0);
        let mut random = Random(6);
        for round in 0..3_000 {
            // Small ones by the granule, large ones by whole pages, so that both are exact.
            let small_one = random.below(4) != 0;
            let size = if small_one {
                1 + random.below(8_000)
            } else {
                (9 + random.below(20)) * 4_096 - GUARD
            };
            let scope = ArenaScope::enter();
            blocks.push(Block::new(size, 8));
            drop(scope);
            match small_one {
                true => small += occupied(size),
                false => large += size + GUARD,
            }
            while blocks.len() > 200 || random.below(3) == 0 && !blocks.is_empty() {
                let block = blocks.swap_remove(random.below(blocks.len()));
                match block.size() {
                    size @ 0..=8_000 => small -= occupied(size),
                    size => large -= size + GUARD,
                }
                // Some are freed by another thread: folded in when asked.
                if random.below(50) == 0 {
                    in_thread(|| drop(block));
                }
            }
            if round % 20 == 0 {
                let heap = sums_hold();
                let (least, most) = pinned(&blocks);
                let pinned = heap.pinned_bytes - before.pinned_bytes;
                assert!(
                    (least..=most).contains(&pinned),
                    "{pinned} bytes, not {least} to {most}"
                );
                assert_eq!(heap.small_in_use_bytes - before.small_in_use_bytes, small);
                assert_eq!(heap.large_in_use_bytes - before.large_in_use_bytes, large);
            }
        }
        blocks.clear();
        let heap = sums_hold();
        assert_eq!(heap.in_use_bytes, before.in_use_bytes);
        assert_eq!(heap.scopes_entered, before.scopes_entered + 3_000);
    });
}

/// Bytes of `[from, from + bytes)` that may be read and written, as the system tells.
#[cfg(target_os = "linux")]
fn usable(from: usize, bytes: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let number = |text| usize::from_str_radix(text, 16).unwrap();
    let parts = maps.lines().filter(|line| line.contains(" rw")).map(|line| {
        let (low, high) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        number(high).min(from + bytes).saturating_sub(number(low).max(from))
    });
    parts.sum()
}

/// The figures against the system's own: nothing that is usable is left out, nothing counts that is not.
#[cfg(target_os = "linux")]
#[test]
#[serial]
fn committed_bytes_are_those_that_the_system_has_made_usable() {
    in_thread(|| {
        let addr = arena_scope(|| Block::new(100, 8).addr());
        let reserved = heap_stats().reserved_bytes;
        let segment = addr & !(reserved - 1);
        let mut random = Random(9);
        let mut blocks = vec![];
        for round in 0..150 {
            let size = random.size(if round % 10 == 0 { 6 << 20 } else { 60_000 });
            arena_scope(|| blocks.extend((0..5).map(|_| Block::new(size, 8))));
            while blocks.len() > 100 {
                drop(blocks.swap_remove(random.below(blocks.len())));
            }
            let before = sums_hold();
            assert_eq!(before.committed_bytes, usable(segment, reserved), "{before:?}");
        }
    });
}

#[test]
#[serial]
fn process_totals_add_up_while_other_threads_work() {
    let before = stats();
    let all_have_segments = Barrier::new(3);
    let work = |seed| {
        let mut random = Random(seed);
        arena_scope(|| drop(Block::new(100, 8)));
        all_have_segments.wait();
        for _ in 0..150 {
            arena_scope(|| drop((0..40).map(|_| Block::new(random.size(80_000), 8)).collect::<Vec<_>>()));
        }
    };
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (1..4).map(|seed| scope.spawn(move || work(seed))).collect();
        for _ in 0..50 {
            sums_hold();
        }
        // By handle: only that waits for thread-local destructors, which publish the last counts.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let after = stats();
    assert_eq!(after.scopes_entered, before.scopes_entered + 453);
    assert!(after.segments_peak >= 3 && after.segments <= after.segments_peak);
}

/// What owners publish is all there is: with a thread at rest the totals are its blocks and at most its holes, and its own
/// look at its arena changes none of them.
#[test]
#[serial]
fn totals_of_a_thread_at_rest_are_exact_but_for_its_holes() {
    const HOLES: usize = 256 << 10;
    let before = stats();
    let (tell, told) = sync_channel::<(bool, usize)>(0);
    let (go, wait) = sync_channel::<()>(0);
    let worker = thread::spawn(move || {
        let rest = |looked, blocks: &[Block]| {
            let whole = |block: &Block| match block.size() {
                size @ 0..=8_000 => occupied(size),
                size => (size + GUARD).next_multiple_of(1_024),
            };
            tell.send((looked, blocks.iter().map(whole).sum())).unwrap();
            wait.recv().unwrap();
        };
        let mut random = Random(10);
        let mut blocks: Vec<Block> = Vec::with_capacity(400);
        for step in 0..600 {
            let size = match step % 3 {
                0 => 1 + random.below(8_000),
                _ => 300_000 + random.below(400_000),
            };
            let which = random.below(blocks.len().max(1));
            match random.below(6) {
                0 | 1 if !blocks.is_empty() => drop(blocks.swap_remove(which)),
                2 if !blocks.is_empty() => assert!(arena_scope(|| blocks[which].resize(size))),
                3 => {
                    // For a while short ones alone make the area grow.
                    let most = if step / 50 % 2 == 0 { 900 } else { 8_000 };
                    (0..60).for_each(|n| blocks.push(arena_scope(|| Block::new(1 + (size + n) % most, 8))));
                }
                _ => blocks.push(arena_scope(|| Block::new(size, 8))),
            }
            if blocks.len() > 200 {
                blocks.truncate(50);
            }
            rest(false, &blocks);
            let _own = heap_stats();
            rest(true, &blocks);
        }
        blocks.clear();
        rest(false, &blocks);
    });
    let mut last = stats();
    while let Ok((looked, bytes)) = told.recv() {
        let now = stats();
        let all = before.in_use_bytes + bytes;
        assert!(
            (all..=all + HOLES).contains(&now.in_use_bytes),
            "{all} bytes in blocks, {now:?}"
        );
        if looked {
            let figures = |stats: &Stats| (stats.committed_bytes, stats.table_bytes, stats.in_use_bytes);
            assert_eq!(figures(&now), figures(&last), "all was published before");
        }
        last = now;
        go.send(()).unwrap();
    }
    worker.join().unwrap();
}

#[test]
#[serial]
fn what_another_thread_frees_is_told_when_it_asks_or_ends_and_all_but_8_kib_before() {
    let (give, take) = sync_channel::<Vec<Block>>(0);
    let (end, wait) = sync_channel::<()>(0);
    // The maker does nothing while what it made is freed.
    let maker = thread::spawn(move || {
        for size in [40, 100, 700] {
            give.send(arena_scope(|| (0..200).map(|_| Block::new(size, 8)).collect()))
                .unwrap();
            wait.recv().unwrap();
        }
    });
    for made in take.into_iter().take(3) {
        let mut blocks = Vec::with_capacity(200); // not the maker's
        blocks.extend(made);
        let size = occupied(blocks[0].size());
        for block in blocks.drain(100..) {
            let before = stats().in_use_bytes;
            drop(block);
            assert_eq!(stats().in_use_bytes, before - size);
        }
        let before = stats().in_use_bytes;
        let (tell, told) = sync_channel::<()>(0);
        let (go, rest) = sync_channel::<()>(0);
        let freer = thread::spawn(move || {
            blocks.into_iter().for_each(drop);
            tell.send(()).unwrap();
            rest.recv().unwrap();
        });
        told.recv().unwrap();
        let late = stats().in_use_bytes - (before - 100 * size);
        assert!(late <= 8 << 10, "{late} bytes are not told");
        go.send(()).unwrap();
        freer.join().unwrap();
        assert_eq!(stats().in_use_bytes, before - 100 * size);
        end.send(()).unwrap();
    }
    maker.join().unwrap();
}

#[test]
#[serial]
fn totals_see_escapees_and_their_end() {
    let before = stats();
    let kept: Vec<Block> = in_thread(|| {
        let mut blocks: Vec<Block> = arena_scope(|| (0..4_000).map(|_| Block::new(700, 8)).collect());
        let mut index = 0;
        blocks.retain(|_| {
            index += 1;
            index % 2 == 0
        });
        blocks
    });
    let with = stats();
    assert!(
        with.in_use_bytes >= before.in_use_bytes + 1_000_000,
        "{before:?} {with:?}"
    );
    // They keep the other half of their pages from being given back.
    assert!(with.pinned_bytes > before.pinned_bytes + 1_000_000);
    assert_eq!(with.segments, before.segments);
    drop(kept);
    trim(); // a large block counts until its segment's next owner has seen that it was freed
    let after = stats();
    assert!(after.in_use_bytes <= before.in_use_bytes, "{before:?} {after:?}");
}

#[test]
#[serial]
fn depth_and_scopes_entered_are_told() {
    in_thread(|| {
        arena_scope(|| {
            arena_scope(|| {
                assert_eq!((heap_stats().depth, scope_depth()), (2, 2));
                outside_scope(|| assert_eq!(heap_stats().depth, 0));
            });
        });
        assert_eq!(heap_stats().scopes_entered, 3);
    });
}

#[test]
#[serial]
fn scopes_of_a_thread_that_goes_on_are_in_the_totals_soon() {
    let before = stats().scopes_entered;
    let (entered, wait) = channel();
    let (looked, go_on) = channel::<()>();
    let thread = thread::spawn(move || {
        for _ in 0..1_000 {
            arena_scope(|| drop(Block::new(100_000, 64)));
        }
        entered.send(()).unwrap();
        go_on.recv().unwrap();
    });
    wait.recv().unwrap();
    let seen = stats().scopes_entered - before;
    looked.send(()).unwrap();
    thread.join().unwrap();
    assert!((900..=1_000).contains(&seen), "{seen} of 1,000");
    assert_eq!(stats().scopes_entered - before, 1_000);
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn trim_gives_back_what_it_says_and_resident_memory_falls() {
    in_thread(|| {
        trim();
        let keep = arena_scope(|| {
            let small: Vec<Block> = (0..30_000).map(|_| Block::new(1_000, 8)).collect();
            let large: Vec<Block> = (0..100).map(|_| Block::new(400_000, 8)).collect();
            drop((small, large));
            [Block::new(1_000, 8), Block::new(100_000, 8)]
        });
        let before = resident();
        let given = trim();
        let after = resident();
        assert!(given > 60_000_000, "{given}");
        let fell = before.saturating_sub(after);
        assert!(fell.abs_diff(given) < 4 << 20, "{fell} and {given}");
        assert!(trim() < 1 << 20, "there is no more");
        drop(keep);
        sums_hold();
        arena_scope(|| drop(Block::new(50_000, 8)));
    });
}

#[test]
#[serial]
fn trim_in_a_scope_leaves_its_blocks_and_their_places_alone() {
    in_thread(|| {
        arena_scope(|| drop((0..2_000).map(|_| Block::new(5_000, 8)).collect::<Vec<_>>()));
        let scope = ArenaScope::enter();
        let mut blocks: Vec<Block> = (0..500).map(|n| Block::new(1 + n * 40, 8)).collect();
        blocks.retain(|block| block.size() % 3 != 0);
        trim();
        blocks.iter().for_each(Block::verify);
        blocks.extend((0..500).map(|n| Block::new(1 + n * 40, 8)));
        trim();
        blocks.iter().for_each(Block::verify);
        drop(scope);
        drop(blocks);
        sums_hold();
    });
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn trim_reaches_the_memory_of_ended_threads() {
    trim();
    let blocks: Vec<Block> = in_thread(|| arena_scope(|| (0..20).map(|_| Block::new(45_000, 8)).collect()));
    let full = resident();
    // Too little to be given back by the frees alone, unless earlier ones have brought it near.
    drop(blocks);
    let given = trim();
    let fell = full.saturating_sub(resident());
    assert!(fell > 700_000 && given > 700_000, "{fell} and {given}");
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn memory_that_no_step_uses_comes_back_without_a_call() {
    in_thread(|| {
        trim();
        let start = resident();
        arena_scope(|| {
            let small: Vec<Block> = (0..40_000).map(|_| Block::new(1_000, 8)).collect();
            let large: Vec<Block> = (0..40).map(|_| Block::new(1 << 20, 64)).collect();
            drop((small, large));
        });
        let full = resident();
        assert!(full > start + (60 << 20));
        // Small steps go on; what the large one used has not been since.
        let began = Instant::now();
        let mut fell = 0;
        while fell < 60 << 20 && began.elapsed() < Duration::from_secs(12) {
            for _ in 0..20 {
                arena_scope(|| {
                    drop((0..40).map(|_| Block::new(40_000, 8)).collect::<Vec<_>>());
                    drop((0..40).map(|_| Block::new(5_000, 8)).collect::<Vec<_>>());
                });
            }
            thread::sleep(Duration::from_millis(20));
            fell = full.saturating_sub(resident());
        }
        assert!(
            fell >= 60 << 20,
            "{} of {} MiB came back",
            fell >> 20,
            (full - start) >> 20
        );
        assert!(
            began.elapsed() > Duration::from_millis(900),
            "what was just used stays warm for a while"
        );
    });
}

#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
#[test]
#[serial]
fn what_sizes_that_drift_leave_behind_comes_back_within_the_step() {
    in_thread(|| {
        trim();
        let start = resident();
        arena_scope(|| {
            drop((0..40_000).map(|_| Block::new(1_000, 8)).collect::<Vec<_>>());
            let large: Vec<Block> = (0..60).map(|_| Block::new(1 << 20, 64)).collect();
            let held = resident() - start;
            assert!(held > 55 << 20, "the blocks are written");
            assert!(held < 75 << 20, "{} MiB for 60 that live", held >> 20);
            drop(large);
            drop((0..60_000).map(|_| Block::new(1_000, 8)).collect::<Vec<_>>());
            let held = resident() - start;
            assert!(held < 80 << 20, "{} MiB for 60 that lived last", held >> 20);
        });
    });
}

#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
#[test]
#[serial]
fn steps_that_use_one_area_and_then_the_other_keep_both() {
    const STEPS: u64 = 20;
    in_thread(|| {
        let step = || {
            arena_scope(|| {
                drop((0..20_000).map(|_| Block::new(1_000, 8)).collect::<Vec<_>>());
                drop((0..20).map(|_| Block::new(1 << 20, 64)).collect::<Vec<_>>());
            });
        };
        (0..3).for_each(|_| step());
        let before = support::faults();
        (0..STEPS).for_each(|_| step());
        let faults = support::faults() - before;
        // Given back in each step it would be 5,000 pages a step at least; once an interval is four steps or more.
        assert!(faults < STEPS * 2_500, "{faults} in {STEPS} steps");
    });
}

#[cfg(all(target_os = "linux", not(stepalloc_small_space)))]
#[test]
#[serial]
fn steps_that_go_on_keep_their_memory() {
    in_thread(|| {
        let step = || {
            arena_scope(|| {
                drop((0..40).map(|_| Block::new(200_000, 8)).collect::<Vec<_>>());
                drop((0..400).map(|_| Block::new(3_000, 8)).collect::<Vec<_>>());
            });
        };
        let began = Instant::now();
        (0..10).for_each(|_| step());
        let before = support::faults();
        let mut steps = 0;
        while began.elapsed() < Duration::from_millis(3_500) {
            step();
            steps += 1;
            thread::sleep(Duration::from_millis(10));
        }
        let faults = support::faults() - before;
        assert!(steps > 20 && faults < 200, "{faults} faults in {steps} steps");
    });
}
