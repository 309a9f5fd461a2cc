//! The arena against a naive oracle: programs of operations, with every block filled when it is made and verified
//! before it goes, so that an overlap or a lost byte shows at once.

#[path = "support/arena_program.rs"]
mod arena_program;
mod support;

use arena_program::{Block, Op, Oracle};
use proptest::prelude::*;
use std::alloc::Layout;
use std::cell::Cell;
use stepalloc::{AllocError, Arena, ArenaBuilder};
use support::page_size;

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![6 => 0usize..300, 3 => 300usize..9_000, 1 => 9_000usize..200_000];
    prop_oneof![
        10 => (size.clone(), 0u32..14).prop_map(|(size, shift)| Op::Alloc(size, shift)),
        3 => (size.clone(), 0u32..8).prop_map(|(size, shift)| Op::Zeroed(size, shift)),
        2 => Just(Op::FreeNewest),
        3 => (0usize..8, size, 0u32..9).prop_map(|(which, size, shift)| Op::Resize(which, size, shift)),
        4 => Just(Op::Checkpoint),
        4 => (0usize..64).prop_map(Op::ResetTo),
        1 => (0usize..100_000).prop_map(Op::Commit),
        1 => (0u8..3).prop_map(Op::Reset),
    ]
}

fn settings() -> impl Strategy<Value = ArenaBuilder> {
    (
        0u32..13,
        1usize..100_000,
        any::<bool>(),
        prop::option::of(0usize..1_000_000),
    )
        .prop_map(|(align, block, from_global, most)| {
            let mut settings = Arena::builder().align(1 << align).block_size(block);
            if from_global {
                settings = settings.blocks_from_global();
            }
            if let Some(most) = most {
                settings = settings.max_bytes(most);
            }
            settings
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 300 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn programs_agree_with_the_oracle(settings in settings(), ops in prop::collection::vec(op(), 1..150)) {
        let mut arena = settings.build();
        let mut oracle = Oracle::default();
        for op in ops {
            oracle.run(&mut arena, op);
        }
        oracle.blocks.iter().for_each(Block::verify);
    }
}

#[test]
fn every_block_is_64_byte_aligned_by_default() {
    let arena = Arena::new();
    assert_eq!(arena.align(), 64);
    let addresses = [
        arena.alloc(1u8) as *mut u8 as usize,
        arena.alloc_slice_copy(&[1u8; 3]).as_ptr() as usize,
        arena.alloc_str("x").as_ptr() as usize,
        arena.alloc_slice_from_iter((0..5u16).filter(|n| n % 2 == 0)).as_ptr() as usize,
        arena.alloc_slice_zeroed::<u8>(0).as_ptr() as usize,
        arena.alloc(()) as *mut () as usize,
    ];
    assert!(addresses.iter().all(|address| address % 64 == 0));
}

#[test]
fn larger_alignments_are_honoured() {
    #[repr(align(16384))]
    struct Wide(u8);
    let arena = Arena::builder().block_size(4096).build();
    for n in 0..5 {
        arena.alloc(n);
        let wide = arena.alloc(Wide(n));
        assert_eq!(wide.0, n);
        assert_eq!(std::ptr::from_mut(wide).addr() % 16384, 0);
    }
    let huge = Layout::from_size_align(10, 1 << 24).unwrap();
    assert_eq!(arena.alloc_layout(huge).addr().get() % (1 << 24), 0);
}

#[test]
fn hostile_layouts_are_errors_and_change_nothing() {
    let arena = Arena::new();
    arena.alloc(1u64);
    let before = arena.stats();
    for size in [
        isize::MAX as usize,
        isize::MAX as usize - 63,
        isize::MAX as usize / 2,
        1 << 47,
    ] {
        let layout = Layout::from_size_align(size, 1).unwrap();
        assert!(arena.try_alloc_layout(layout).is_err(), "{size}");
        assert!(arena.try_alloc_layout_zeroed(layout).is_err(), "{size}");
    }
    let most_aligned = Layout::from_size_align(1, 1 << (usize::BITS - 2)).unwrap();
    assert!(arena.try_alloc_layout(most_aligned).is_err());
    for len in [usize::MAX, usize::MAX / 2, usize::MAX / 8 + 1, isize::MAX as usize] {
        assert!(arena.try_alloc_slice_fill(len, 0u64).is_err(), "{len}");
        assert!(arena.try_alloc_slice_zeroed::<u64>(len).is_err(), "{len}");
        assert!(arena.try_alloc_slice_uninit::<u64>(len).is_err(), "{len}");
        assert!(arena
            .try_alloc_slice_fill_with(len, |_| -> u64 { panic!("called without memory") })
            .is_err());
    }
    assert!(arena.commit(usize::MAX).is_err());
    assert!(arena.commit(isize::MAX as usize).is_err());
    assert_eq!(arena.stats().used_bytes, before.used_bytes);
    assert_eq!(*arena.alloc(7), 7);
}

#[test]
fn bad_settings_are_errors() {
    for align in [0, 3, 48, 8192, usize::MAX] {
        assert_eq!(
            Arena::builder().align(align).try_build().err(),
            Some(AllocError::BadLayout),
            "{align}"
        );
    }
    let absurd = Arena::with_block_size(usize::MAX);
    assert!(absurd.try_alloc(1).is_err());
    absurd.checkpoint();
    assert_eq!(
        Arena::builder().max_bytes(0).build().try_alloc(1),
        Err(AllocError::LimitReached)
    );
    assert!(Arena::builder().block_size(0).build().try_alloc([0u8; 10_000]).is_ok());
}

#[test]
#[should_panic(expected = "the limit set for this allocator is reached")]
fn an_infallible_call_past_the_limit_panics() {
    Arena::builder().max_bytes(100).build().alloc_slice_fill(101, 0u8);
}

#[test]
fn the_limit_holds_over_many_blocks_and_is_met_again_after_a_reset() {
    let mut arena = Arena::builder().block_size(4096).max_bytes(100_000).build();
    for _ in 0..3 {
        let mut got = 0;
        while arena.try_alloc_slice_fill(1000, 1u8).is_ok() {
            got += 1;
        }
        assert_eq!(got, 100_000 / 1024);
        assert_eq!(arena.try_alloc_slice_fill(100_000, 1u8), Err(AllocError::LimitReached));
        arena.reset();
    }
}

#[cfg(all(target_os = "linux", not(miri), not(stepalloc_small_space)))]
#[test]
fn an_arena_that_ends_leaves_little_to_the_next() {
    const MANY: usize = 256 << 20;
    let before = support::resident();
    let arena = Arena::builder().block_size(MANY).build();
    arena.alloc_slice_fill(MANY - 4_096, 1u8);
    assert!(support::resident() > before + MANY / 2, "the slice is written");
    drop(arena);
    // Other tests have their arenas meanwhile.
    let left = support::resident().saturating_sub(before);
    assert!(left < MANY / 4, "{} MiB", left >> 20);
}

#[test]
fn committed_memory_stays_within_the_limit_too() {
    Arena::with_align(8).alloc_slice_fill(1 << 20, 1u8);
    let mut arena = Arena::builder().max_bytes(10_000).build();
    for _ in 0..3 {
        while arena.try_alloc_slice_fill(500, 1u8).is_ok() {}
        assert!(
            arena.stats().committed_bytes <= 10_000usize.next_multiple_of(page_size()) || cfg!(miri),
            "{:?}",
            arena.stats()
        );
        arena.reset();
    }
}

#[test]
fn an_oversized_request_does_not_waste_the_current_block() {
    let arena = Arena::builder().block_size(64 << 10).build();
    let first = arena.alloc([1u8; 64]) as *mut _ as usize;
    arena.alloc_slice_fill(1 << 20, 2u8);
    let second = arena.alloc([3u8; 64]) as *mut _ as usize;
    assert_eq!(second, first + 64);
    assert_eq!(arena.stats().block_count, 2);
}

#[test]
fn slices_strings_and_zeroed_values_hold_what_they_should() {
    let mut arena = Arena::new();
    for round in 0..3u8 {
        assert_eq!(arena.alloc_slice_fill(3, round), [round; 3]);
        assert_eq!(arena.alloc_slice_clone(&["a", "b"]).join("-"), "a-b");
        assert_eq!(arena.alloc_slice_zeroed::<u64>(100_000), vec![0; 100_000]);
        assert_eq!(*arena.alloc_zeroed::<[u32; 4]>(), [0; 4]);
        assert_eq!(arena.alloc_str("größer"), "größer");
        assert_eq!(*arena.alloc_with(|| arena.alloc_slice_copy(b"nested").len()), 6);
        assert_eq!(arena.alloc_slice_fill_with(4, |i| *arena.alloc(i * i)), [0, 1, 4, 9]);
        arena.alloc_slice_fill(1_000_000, 0xFFu8);
        arena.reset();
    }
}

#[test]
fn iterators_that_lie_about_their_length_are_taken_as_they_are() {
    struct Lies(usize, (usize, Option<usize>));
    impl Iterator for Lies {
        type Item = usize;
        fn next(&mut self) -> Option<usize> {
            self.0 = self.0.checked_sub(1)?;
            Some(self.0)
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            self.1
        }
    }
    impl ExactSizeIterator for Lies {}
    let arena = Arena::new();
    assert_eq!(arena.alloc_slice_from_iter(Lies(5, (100, Some(100)))), [4, 3, 2, 1, 0]);
    assert_eq!(arena.alloc_slice_from_iter(Lies(5, (2, Some(2)))), [4, 3, 2, 1, 0]);
    assert!(arena.try_alloc_slice_from_iter(Lies(5, (usize::MAX, None))).is_err());
    assert_eq!(
        arena.alloc_slice_from_iter((0..3).map(|i| *arena.alloc(i)).filter(|_| true)),
        [0, 1, 2]
    );
    assert_eq!(arena.alloc_slice_from_iter(std::iter::repeat_n((), 1000)).len(), 1000);
}

/// Counts its drops.
struct Counted<'a>(&'a Cell<usize>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_box_drops_once_and_a_reference_never() {
    let drops = Cell::new(0);
    let mut arena = Arena::new();
    arena.alloc(Counted(&drops));
    arena.alloc_slice_fill_with(3, |_| Counted(&drops));
    assert_eq!(drops.get(), 0);
    drop(arena.alloc_boxed(Counted(&drops)));
    assert_eq!(drops.get(), 1);
    drop(arena.alloc_boxed_slice((0..5).map(|_| Counted(&drops))));
    assert_eq!(drops.get(), 6);
    let kept = arena.alloc_boxed(Counted(&drops)).into_inner();
    assert_eq!(drops.get(), 6);
    drop(kept);
    assert_eq!(drops.get(), 7);
    stepalloc::ArenaBox::leak(arena.alloc_boxed(Counted(&drops)));
    arena.reset();
    assert_eq!(drops.get(), 7);
}

#[test]
fn a_panic_while_a_slice_is_made_drops_what_was_made() {
    let drops = Cell::new(0);
    let arena = Arena::new();
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        arena.alloc_slice_fill_with(10, |i| {
            assert!(i < 4, "the fifth");
            Counted(&drops)
        });
    }));
    assert!(made.is_err());
    assert_eq!(drops.get(), 4);
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        arena.alloc_slice_from_iter((0..10).map(|i| {
            assert!(i < 7, "the eighth");
            Counted(&drops)
        }));
    }));
    assert!(made.is_err());
    assert_eq!(drops.get(), 11);
    assert_eq!(arena.stats().used_bytes, 0, "the room of an unfinished slice was lost");
}

#[test]
fn without_memory_nothing_is_made_and_nothing_is_lost() {
    let drops = Cell::new(0);
    let arena = Arena::builder().max_bytes(64).build();
    assert!(arena
        .try_alloc_with(|| -> [u8; 65] { panic!("called without memory") })
        .is_err());
    let items = (0..)
        .map(|_| [0u64; 1])
        .take_while(|_| true)
        .map(|item| (item, Counted(&drops)));
    assert!(arena.try_alloc_slice_from_iter(items).is_err());
    assert_eq!((drops.get(), arena.stats().used_bytes), (5, 0));
    assert!(arena.try_alloc([0u8; 64]).is_ok());
}

#[test]
fn growth_happens_in_place_at_the_tip_only() {
    let arena = Arena::new();
    let (small, large) = (Layout::new::<[u8; 64]>(), Layout::new::<[u8; 1 << 20]>());
    let (first, second) = (arena.alloc_layout(small), arena.alloc_layout(small));
    // SAFETY: both are live with layout `small`; each is replaced by what comes back.
    unsafe {
        assert_eq!(arena.grow(second, small, large), Ok(second));
        let moved = arena.grow(first, small, large).unwrap();
        assert_ne!(moved, first);
        assert_eq!(arena.shrink(moved, large, small), Ok(moved));
        assert_eq!(arena.grow(moved, large, small), Err(AllocError::BadLayout));
        assert_eq!(arena.shrink(moved, small, large), Err(AllocError::BadLayout));
        let wider = Layout::from_size_align(64, 4096).unwrap();
        assert_eq!(arena.grow(moved, small, wider).unwrap().addr().get() % 4096, 0);
    }
}

#[test]
fn an_arena_moves_between_threads() {
    let mut arena = Arena::new();
    arena.alloc(1);
    std::thread::scope(|threads| {
        threads.spawn(|| arena.scope(|scope| assert_eq!(*scope.alloc(2), 2)));
    });
    std::thread::spawn(move || assert_eq!(*arena.alloc(3), 3))
        .join()
        .unwrap();
}

#[test]
fn the_next_arena_finds_known_zero_only_where_it_is() {
    for round in 1..4u8 {
        let arena = Arena::builder().block_size(1 << 20).build();
        let zeroed = arena.alloc_slice_zeroed::<u8>(300_000);
        assert!(zeroed.iter().all(|&byte| byte == 0));
        zeroed.fill(round);
    }
}

#[cfg(feature = "allocator-api2")]
mod collections {
    use super::*;
    use allocator_api2::alloc::Allocator;
    use allocator_api2::boxed::Box;
    use allocator_api2::vec::Vec;

    #[test]
    fn vectors_boxes_and_maps_live_in_an_arena() {
        let drops = Cell::new(0);
        let mut arena = Arena::new();
        {
            let mut numbers = Vec::new_in(&arena);
            numbers.extend(0..10_000u32);
            assert_eq!(
                arena.stats().used_bytes,
                numbers.capacity() * 4,
                "a lone vector grows in place"
            );
            let mut map = hashbrown::HashMap::new_in(&arena);
            for n in 0..1_000u32 {
                map.insert(n, Box::new_in(Counted(&drops), &arena));
            }
            numbers.extend(0..10_000u32);
            assert_eq!(
                numbers.iter().map(|&n| u64::from(n)).sum::<u64>(),
                2 * (9_999 * 10_000 / 2)
            );
            assert_eq!(map.len(), 1_000);
            map.retain(|n, _| n % 2 == 0);
            assert_eq!(drops.get(), 500);
        }
        assert_eq!(drops.get(), 1_000);
        arena.reset();
    }

    /// The defect class: a block from before a checkpoint is shrunk, freed or grown after it at what looks like the
    /// tip, the position moves below the checkpoint, and going back hands out live memory or loses count.
    #[test]
    fn blocks_of_an_outer_checkpoint_survive_what_is_done_to_them_inside() {
        let arena = Arena::with_align(8);
        let mut outer = Vec::new_in(&arena);
        outer.extend_from_slice(&[7u8; 4096]);
        let mut freed = Vec::new_in(&arena);
        freed.extend_from_slice(&[8u8; 4096]);
        let start = arena.checkpoint();
        let used = arena.stats().used_bytes;
        drop(freed);
        outer.truncate(100);
        outer.shrink_to_fit();
        assert_eq!(arena.stats().used_bytes, used, "the position went below a checkpoint");
        let inner = arena.alloc_slice_fill(10_000, 9u8);
        assert!(outer.iter().all(|&byte| byte == 7) && inner.iter().all(|&byte| byte == 9));
        // SAFETY: `inner` is not used any more.
        unsafe { arena.reset_to(&start) }.unwrap();
        assert_eq!(arena.stats().used_bytes, used);
        let inner = arena.alloc_slice_fill(10_000, 10u8);
        assert!(outer.iter().all(|&byte| byte == 7) && inner.iter().all(|&byte| byte == 10));
    }

    #[test]
    fn a_block_of_an_outer_checkpoint_does_not_grow_over_it() {
        let arena = Arena::new();
        let (small, large) = (Layout::new::<[u8; 64]>(), Layout::new::<[u8; 128]>());
        let outer = arena.alloc_layout(small);
        let start = arena.checkpoint();
        // SAFETY: `outer` is live; the grown copy is a block of the inside and forgotten before going back.
        unsafe {
            let inside = arena.grow(outer, small, large).unwrap();
            assert_ne!(inside, outer, "grew in place over a checkpoint");
            arena.reset_to(&start).unwrap();
        }
    }

    #[test]
    fn zeroed_growth_is_zero_and_refusals_are_errors() {
        let arena = Arena::builder().max_bytes(10_000).build();
        arena.alloc_slice_fill(2_000, 0xFFu8);
        let (small, large) = (Layout::new::<[u8; 10]>(), Layout::new::<[u8; 1_000]>());
        let start = arena.checkpoint();
        arena.alloc_slice_fill(5_000, 0xFFu8);
        // SAFETY: the slice is not used any more.
        unsafe { arena.reset_to(&start) }.unwrap();
        let block = (&arena).allocate_zeroed(small).unwrap();
        // SAFETY: the block is live with layout `small` and replaced by what comes back, of 1,000 zeroed bytes.
        unsafe {
            let grown = (&arena).grow_zeroed(block.cast(), small, large).unwrap();
            assert!(grown.as_ref().iter().all(|&byte| byte == 0));
        }
        assert!((&arena).allocate(Layout::new::<[u8; 10_000]>()).is_err());
        let mut vector: Vec<u8, &Arena> = Vec::new_in(&arena);
        assert!(vector.try_reserve(100_000).is_err());
        assert!(vector.try_reserve(usize::MAX).is_err());
    }
}
