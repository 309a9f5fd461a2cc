//! The defects of the C library's arena, each as a test that such an arena fails.
//!
//! The C library's arena is a list of blocks with a `used` count each. Its defects are classes of their own: links
//! lost, sizes that wrap, memory given back on a hot path, states that are trusted without a look.

use std::alloc::Layout;
use stepalloc::{AllocError, Arena, CheckpointError};

/// Growing after `reset` made a new block and wrote it over the link to the retained ones: they were lost.
#[test]
fn blocks_leaked_by_growth_after_reset() {
    let mut arena = Arena::with_block_size(64 << 10);
    let fill = |arena: &Arena| {
        for _ in 0..10 {
            arena.alloc_slice_fill(60_000, 1u8);
        }
    };
    fill(&arena);
    let held = arena.stats();
    for _ in 0..10 {
        arena.reset();
        fill(&arena);
        assert_eq!(arena.stats().block_count, held.block_count);
        assert_eq!(arena.stats().reserved_bytes, held.reserved_bytes);
    }
}

/// `restore` freed every block made since `save`, so that each step asked for them and faulted their pages again.
#[cfg(all(target_os = "linux", not(miri), not(stepalloc_small_space)))]
#[test]
fn memory_returned_to_the_system_at_every_restore() {
    fn faults() -> i64 {
        // SAFETY: a zeroed rusage is a valid one, and getrusage fills it.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
            usage.ru_minflt + usage.ru_majflt
        }
    }
    // The address sanitizer's shadow memory, which begins at a fixed address, faults pages of its own.
    let sanitized = std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .contains("7fff7000-");
    let arena = Arena::with_block_size(1 << 20);
    for step in 0..5 {
        let before = faults();
        let start = arena.checkpoint();
        for _ in 0..10 {
            arena.alloc_slice_fill(700_000, 1u8);
        }
        // SAFETY: nothing made since is used any more.
        unsafe { arena.reset_to(&start) }.unwrap();
        let faulted = faults() - before;
        assert!(
            if step == 0 {
                faulted > 1_000
            } else {
                faulted == 0 || sanitized
            },
            "{faulted} faults in step {step}"
        );
    }
}

/// `(size + 63) & ~63` wrapped to 0 for sizes near `SIZE_MAX`, and a block of no bytes was handed out.
#[test]
fn size_plus_63_overflow() {
    let arena = Arena::new();
    for size in isize::MAX as usize - 64..=isize::MAX as usize {
        let layout = Layout::from_size_align(size, 1).unwrap();
        assert!(arena.try_alloc_layout(layout).is_err(), "{size}");
    }
    for len in usize::MAX - 64..=usize::MAX {
        assert_eq!(
            arena.try_alloc_slice_uninit::<u8>(len).err(),
            Some(AllocError::BadLayout)
        );
    }
    assert_eq!(arena.stats().used_bytes, 0);
}

/// `restore` trusted whatever checkpoint it got: one from before a `reset`, of an inner save already passed, or of
/// another arena sent the position into the middle of live blocks.
#[test]
fn stale_checkpoint() {
    let mut arena = Arena::new();
    let back = |arena: &Arena, to: &_| {
        // SAFETY: refused calls need nothing, and the one that succeeds frees nothing in use.
        unsafe { arena.reset_to(to) }
    };
    let before_reset = arena.checkpoint();
    arena.reset();
    assert_eq!(back(&arena, &before_reset), Err(CheckpointError::Stale));
    let outer = arena.checkpoint();
    arena.alloc(1u8);
    let inner = arena.checkpoint();
    back(&arena, &outer).unwrap();
    let live = arena.alloc([7u8; 1000]);
    assert_eq!(back(&arena, &inner), Err(CheckpointError::Stale));
    assert_eq!(back(&Arena::new(), &outer), Err(CheckpointError::Foreign));
    assert_eq!(*live, [7; 1000]);
}

/// `init` did not look whether its first block was there, and `alloc` dereferenced it.
#[test]
fn failed_first_block_dereferenced() {
    let mut arena = Arena::with_block_size(1 << 62);
    assert!(arena.try_alloc(1u8).is_err());
    assert!(arena.commit(1).is_err());
    let start = arena.checkpoint();
    assert!(arena.try_alloc_slice_zeroed::<u8>(100).is_err());
    // SAFETY: nothing was made since.
    unsafe { arena.reset_to(&start) }.unwrap();
    arena.scope(|scope| assert!(scope.try_alloc(1u8).is_err()));
    arena.reset();
    assert_eq!(arena.stats().block_count, 0);
}

/// The same where the memory is refused later, on the way: what was there stays usable.
#[cfg(not(miri))]
#[test]
fn refused_growth_leaves_the_arena_usable() {
    let arena = Arena::with_block_size(1 << 20);
    let kept = arena.alloc_slice_fill(1000, 7u8);
    let start = arena.checkpoint();
    assert_eq!(
        arena.try_alloc_slice_uninit::<u8>(1 << 48).err(),
        Some(AllocError::OutOfMemory)
    );
    assert!(kept.iter().all(|&byte| byte == 7));
    assert!(arena.try_alloc_slice_fill(100_000, 1u8).is_ok());
    // SAFETY: nothing made since is used any more.
    unsafe { arena.reset_to(&start) }.unwrap();
}
