//! What happens when memory is refused by the backing, or asked for beyond reason: null, nothing is lost, nothing panics.
//! What the system refuses by limits on the process is in `limits.rs`.

mod support;

use std::alloc::{alloc, alloc_zeroed, dealloc, realloc, GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use stepalloc::{arena_scope, arena_scope_report, outside_scope, ArenaScope, StepAlloc};
use support::{Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc<Refusing> = StepAlloc::with_backing(Refusing);

/// A backing that refuses every n-th request of a thread that asks for it; 0 refuses none.
struct Refusing;

thread_local! {
    static REFUSE: Cell<usize> = const { Cell::new(0) };
    static ASKED: Cell<usize> = const { Cell::new(0) };
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

impl Refusing {
    fn refuses(&self) -> bool {
        let every = REFUSE.get();
        if every == 0 {
            return false;
        }
        ASKED.set(ASKED.get() + 1);
        let refused = ASKED.get() % every == 0;
        REFUSED.set(REFUSED.get() + usize::from(refused));
        refused
    }
}

// SAFETY: passes everything on to `System`, or answers null.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.refuses() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, new_size) }
    }
}

/// Runs `f` with every `n`-th request to the backing refused; how many were.
fn refusing<R>(n: usize, f: impl FnOnce() -> R) -> (R, usize) {
    REFUSED.set(0);
    ASKED.set(0);
    REFUSE.set(n);
    let result = f();
    REFUSE.set(0);
    (result, REFUSED.get())
}

/// All four methods with layouts that nobody can serve: null, and the block at hand stays as it was.
fn monstrous_layouts_are_refused() {
    const MOST: usize = isize::MAX as usize;
    let mut tried = 0;
    for less in [
        0,
        1,
        14,
        15,
        16,
        17,
        62,
        63,
        64,
        65,
        127,
        4_094,
        4_095,
        4_096,
        8_192,
        1 << 20,
        1 << 30,
    ] {
        for align in [1, 2, 16, 32, 64, 128, 4_096, 8_192, 1 << 20, 1 << 30] {
            let size = MOST - less;
            let Ok(layout) = Layout::from_size_align(size, align) else {
                continue;
            };
            tried += 1;
            // SAFETY: the layout has a size.
            assert!(black_box(unsafe { alloc(layout) }).is_null(), "{layout:?}");
            // SAFETY: as above.
            assert!(black_box(unsafe { alloc_zeroed(layout) }).is_null(), "{layout:?}");
            for have in [1, 40, 64, 3_000, 50_000, 200_000] {
                let mut block = Block::new(have, align.min(4_096));
                if Layout::from_size_align(size, align.min(4_096)).is_ok() {
                    assert!(!block.resize(size), "{layout:?}");
                }
            }
        }
    }
    assert!(tried > 40, "{tried}");
    // Alignments that no segment can give, small sizes. The heap of Windows makes room for the alignment and touches all of
    // it, where that is to be had.
    let bits: &[u32] = if cfg!(windows) { &[62] } else { &[37, 40, 45, 62] };
    for bits in bits {
        let layout = Layout::from_size_align(8, 1 << bits).unwrap();
        // SAFETY: the layout has a size, and what is handed out is handed back.
        unsafe {
            for p in [black_box(alloc(layout)), black_box(alloc_zeroed(layout))] {
                if !p.is_null() {
                    assert_eq!(p.addr() % (1 << bits), 0);
                    dealloc(p, layout);
                }
            }
        }
    }
}

#[test]
fn layouts_near_the_end_of_the_address_space_are_refused_outside_scopes() {
    monstrous_layouts_are_refused();
}

#[test]
fn layouts_near_the_end_of_the_address_space_are_refused_in_scopes() {
    arena_scope(monstrous_layouts_are_refused);
    arena_scope(|| arena_scope(|| outside_scope(monstrous_layouts_are_refused)));
}

#[test]
fn layouts_near_the_end_of_the_address_space_are_refused_in_counted_scopes() {
    let ((), report) = arena_scope_report(monstrous_layouts_are_refused);
    assert!(report.complete && report.fallbacks.no_room > 100, "{report:?}");
    assert_eq!(report.escapees, 0);
}

#[test]
fn a_backing_that_refuses_everything_yields_null_and_loses_nothing() {
    let mut kept: Vec<Block> = Vec::with_capacity(8);
    kept.extend([1, 64, 1_000, 2_040, 3_000, 100_000].map(|size| Block::new(size, 8)));
    let ((), refused) = refusing(1, || {
        for size in [1, 100, 2_047, 2_048, 10_000, 131_071] {
            for align in [1, 16, 64, 4_096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout has a size.
                unsafe { assert!(black_box(alloc(layout)).is_null() && black_box(alloc_zeroed(layout)).is_null()) };
            }
        }
        for block in &mut kept {
            // Growth below both thresholds, across the alignment threshold, and shrinking: all asked of the backing.
            for size in [5, 200, 1_500, 2_500, 60_000, 120_000] {
                assert!(!block.resize(size));
            }
        }
    });
    assert_eq!(refused, 6 * 4 * 2 + 6 * 6);
    // In a scope the backing is not asked, and large blocks have spans outside too.
    let ((), refused) = refusing(1, || {
        let large = Block::new(200_000, 64);
        let small = arena_scope(|| {
            [
                Block::new(1, 1),
                Block::new(1_000, 8),
                Block::new(30_000, 8),
                Block::new(1 << 20, 8),
            ]
        });
        drop((large, small));
    });
    assert_eq!(refused, 0);
    // A block of the backing that grows into a span moves there.
    let ((), refused) = refusing(1, || {
        for block in &mut kept {
            assert!(block.resize(140_000));
        }
    });
    assert_eq!(refused, 0);
}

#[test]
fn what_the_arena_cannot_serve_and_the_backing_refuses_is_null() {
    let (report, refused) = refusing(1, || {
        let layout = Layout::from_size_align(1 << 40, 8).unwrap();
        let scope = ArenaScope::enter_counted();
        let mut block = Block::new(100, 8);
        // SAFETY: the layout has a size.
        unsafe { assert!(black_box(alloc(layout)).is_null() && black_box(alloc_zeroed(layout)).is_null()) };
        assert!(!block.resize(1 << 40));
        // SAFETY: `realloc` has left a block of its own alone before; here one of the arena's is asked to grow.
        unsafe {
            let own = Layout::from_size_align(100_000, 8).unwrap();
            let p = black_box(alloc(own));
            assert!(!p.is_null() && black_box(realloc(p, own, 1 << 40)).is_null());
            dealloc(p, own);
        }
        drop(block);
        scope.leave()
    });
    assert_eq!((refused, report.fallbacks.no_room, report.fallbacks.total()), (4, 4, 4));
}

#[test]
fn a_backing_that_refuses_now_and_then_corrupts_nothing() {
    for every in [2, 3, 7, 50] {
        let mut random = Random(every as u64);
        let mut blocks: Vec<Block> = Vec::with_capacity(100);
        let ((), refused) = refusing(every, || {
            for _ in 0..5_000 {
                let scope = (random.below(2) == 0).then(ArenaScope::enter);
                match random.below(4) {
                    0 | 1 if blocks.len() < 100 => blocks.extend(Block::try_new(random.size(200_000), 8)),
                    2 if !blocks.is_empty() => {
                        let which = random.below(blocks.len());
                        blocks[which].resize(random.size(200_000));
                    }
                    _ if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
                    _ => {}
                }
                drop(scope);
            }
        });
        assert!(refused > 20, "{every}: {refused}");
    }
}
