//! Steps that go on get huge pages under what they use again and again, and hold no more memory for it.
//!
//! As `/proc` tells. Where Linux joins no pages (before 6.1, or where that is forbidden) only the second half is looked at.
#![cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    not(any(stepalloc_no_sys, stepalloc_small_space))
))]

mod support;

use serial_test::serial;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use stepalloc::{arena_scope, trim, StepAlloc};
use support::{child_passes, in_thread, proc_bytes, role, Block};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

const MIB: usize = 1 << 20;

/// Bytes in memory: exactly, where `status` adds up figures that are kept by processor.
fn resident() -> usize {
    proc_bytes("smaps_rollup", "Rss:")
}

fn in_huge_pages() -> usize {
    proc_bytes("smaps_rollup", "AnonHugePages:")
}

/// Whether small pages of this system can be joined, on a mapping of the test's own.
fn can_join() -> bool {
    const HUGE: usize = 2 * MIB;
    const COLLAPSE: i32 = 25;
    let forbidden = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if forbidden.is_ok_and(|text| text.contains("[never]")) {
        return false;
    }
    let (rw, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
    // SAFETY: a fresh mapping that is given back.
    unsafe {
        let raw = libc::mmap(null_mut(), 2 * HUGE, rw, kind, -1, 0);
        assert_ne!(raw, libc::MAP_FAILED);
        let p = raw.map_addr(|addr| addr.next_multiple_of(HUGE));
        for page in 0..HUGE / 4096 {
            p.cast::<u8>().add(page * 4096).write(1);
        }
        let can = (0..100).any(|_| libc::madvise(p, HUGE, COLLAPSE) == 0);
        assert_eq!(libc::munmap(raw, 2 * HUGE), 0);
        can
    }
}

/// A step of blocks of one size, each written and looked at.
fn step(bytes: usize, size: usize) {
    arena_scope(|| {
        let blocks: Vec<Block> = (0..bytes / size).map(|_| Block::new(size, 8)).collect();
        blocks.iter().for_each(Block::verify);
    });
}

/// How many huge pages this system has split. Others may split some meanwhile, so that more is no sign.
fn splits() -> usize {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix("thp_split_page "));
    number.map_or(0, |number| number.parse().unwrap())
}

/// Steps of blocks of one size, until their memory is in huge pages; then all of it goes back but one block, and then that.
fn steps_that_go_on(bytes: usize, size: usize) {
    let can_join = can_join();
    let left = in_thread(move || {
        let (before, huge_before) = (resident(), in_huge_pages());
        step(bytes, size);
        step(bytes, size);
        let early = resident() - before;
        // As soon as forty steps, unless the system refuses for a moment, which makes it wait.
        let joined = (0..10).any(|_| {
            (0..if can_join { 40 } else { 4 }).for_each(|_| step(bytes, size));
            in_huge_pages() - huge_before >= bytes - 4 * MIB
        });
        let late = resident() - before;
        assert!(early >= bytes && late <= early + MIB / 4, "{early} bytes became {late}");
        assert!(
            joined || !can_join,
            "{} bytes in huge pages",
            in_huge_pages() - huge_before
        );
        let kept = arena_scope(|| {
            let mut blocks: Vec<Block> = (0..bytes / size).map(|_| Block::new(size, 8)).collect();
            blocks.swap_remove(bytes / size / 2)
        });
        let split_before = splits();
        assert!(trim() >= bytes - MIB - size);
        assert!(
            !can_join || splits() > split_before,
            "the system keeps what went back beside a block"
        );
        drop(kept);
        trim();
        resident() - before
    });
    assert!(left <= MIB, "{left} bytes are left");
}

/// Whether fresh memory of this system comes in huge pages where they are asked for.
fn can_ask() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|text| text.contains("[madvise]"))
}

#[test]
#[serial]
fn what_a_long_small_area_grows_by_comes_in_huge_pages_whose_rest_goes_back() {
    if role().is_none() {
        // In a process whose areas are as long as they were made.
        child_passes(
            "what_a_long_small_area_grows_by_comes_in_huge_pages_whose_rest_goes_back",
            "grows",
        );
        return;
    }
    let left = in_thread(|| {
        // Its pages are in memory before those of the blocks.
        let mut blocks: Vec<Block> = Vec::with_capacity(101 * MIB / 512);
        blocks.spare_capacity_mut().fill_with(MaybeUninit::zeroed);
        let (before, huge_before) = (resident(), in_huge_pages());
        let above = |level: usize| resident().saturating_sub(level);
        arena_scope(|| {
            // 24 MiB are in small pages, and so is what is beyond 32 MiB in part: up to where the area's next step begins.
            blocks.extend((0..24 * MIB / 512).map(|_| Block::new(512, 8)));
            let less = above(before);
            assert!((24 * MIB..25 * MIB).contains(&less), "{less} bytes are held of 24 MiB");
            assert!(in_huge_pages() <= huge_before + 2 * MIB, "they are not from the first");
            blocks.extend((0..77 * MIB / 512).map(|_| Block::new(512, 8)));
            let (held, huge) = (above(before), in_huge_pages() - huge_before);
            assert!(
                (101 * MIB..104 * MIB).contains(&held),
                "{held} bytes are held of 101 MiB"
            );
            assert!(!can_ask() || huge >= 30 * MIB, "{huge} bytes in huge pages");
            trim();
            let held = above(before);
            assert!(held < 102 * MIB, "{held} bytes are held of 101 MiB after trim");
            blocks.iter().for_each(Block::verify);
            blocks.clear();
        });
        trim();
        // And comes again in small pages.
        let empty = above(before);
        arena_scope(|| {
            let _block = Block::new(512, 8);
            assert!(above(before) <= empty + MIB / 4);
        });
        empty
    });
    assert!(left <= MIB, "{left} bytes are left");
}

#[test]
#[serial]
fn large_blocks_of_steps_that_go_on_are_in_huge_pages() {
    steps_that_go_on(40 * MIB, MIB);
}

#[test]
#[serial]
fn small_blocks_of_steps_that_go_on_are_in_huge_pages() {
    steps_that_go_on(20 * MIB, 200);
}
