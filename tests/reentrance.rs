//! The backing allocator itself allocates through the global one, opens scopes, and frees what it made earlier, maybe in
//! another thread. No borrow, lock or frame of ours may be held while it runs.

mod support;

use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread;
use stepalloc::{arena_scope, arena_scope_report, outside_scope, scope_depth, stats, ArenaScope, StepAlloc};
use support::{Block, Random};

/// Small, so that scopes fall back on the backing too.
#[global_allocator]
static GLOBAL: StepAlloc<Reentrant> = StepAlloc::with_backing(Reentrant).reservation(32 << 20);

/// A backing that keeps a diary in memory of the global allocator.
struct Reentrant;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static INSIDE_SCOPES: AtomicUsize = AtomicUsize::new(0);

type Page = (Block, Block, Vec<u8>);
static DIARY: [AtomicPtr<Page>; 64] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 64];

impl Reentrant {
    fn note(&self) {
        if INSIDE.replace(true) {
            return; // its own request
        }
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        INSIDE_SCOPES.fetch_add(usize::from(scope_depth() > 0), Ordering::Relaxed);
        let page = || {
            (
                Block::new(1 + call % 700, 8),
                Block::new(200_000, 64),
                vec![call as u8; call % 3_000],
            )
        };
        let page = Box::new(match call % 4 {
            0 => arena_scope(page),
            1 => outside_scope(page),
            2 => outside_scope(|| arena_scope(page)),
            _ => page(),
        });
        let old = DIARY[call % DIARY.len()].swap(Box::into_raw(page), Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: the pointer came from `Box::into_raw` and was taken out by the swap.
            let (small, large, bytes) = *unsafe { Box::from_raw(old) };
            assert!(support::is_uniform(&bytes, bytes.first().copied().unwrap_or(0)));
            drop((small, large));
        }
        INSIDE.set(false);
    }
}

// SAFETY: every request is passed on to `System`; the diary is apart.
unsafe impl GlobalAlloc for Reentrant {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        self.note();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.note();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, new_size) }
    }
}

fn churn(seed: u64) {
    let mut random = Random(seed);
    let mut blocks: Vec<Block> = vec![];
    for round in 0..600 {
        let scope = (round % 3 != 0).then(ArenaScope::enter);
        for _ in 0..6 {
            let (size, align) = (random.size(400_000), 1 << random.below(8));
            blocks.push(if random.below(2) == 0 {
                Block::new(size, align)
            } else {
                Block::zeroed(size, align)
            });
            let which = random.below(blocks.len());
            assert!(blocks[which].resize(random.size(400_000)));
            if blocks.len() > 40 {
                drop(blocks.swap_remove(random.below(40)));
            }
        }
        drop(scope);
    }
}

#[test]
#[serial]
fn a_backing_that_allocates_through_the_global_allocator_is_served() {
    let before = (CALLS.load(Ordering::Relaxed), INSIDE_SCOPES.load(Ordering::Relaxed));
    thread::scope(|scope| {
        for seed in 1..4 {
            scope.spawn(move || churn(seed));
        }
    });
    let calls = CALLS.load(Ordering::Relaxed) - before.0;
    let inside = INSIDE_SCOPES.load(Ordering::Relaxed) - before.1;
    assert!(calls > 2_000 && inside > 100, "{calls} calls, {inside} in scopes");
    let stats = stats();
    assert!(stats.fallbacks.no_room > 100, "the arena ran full: {stats:?}");
}

#[test]
#[serial]
fn a_counted_scope_counts_what_the_backing_allocates() {
    let ((), report) = arena_scope_report(|| {
        churn(9);
        for _ in 0..200 {
            drop(outside_scope(|| Block::new(100, 8)));
        }
    });
    assert!(report.complete && report.blocks > 1_000, "{report:?}");
}
