//! Any allocator can stand behind the arena: here one that counts what comes to it.
//! `cargo run --release --example other_backing`

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use stepalloc::{arena_scope, is_installed, outside_scope, StepAlloc};

/// `System`, counting blocks. mimalloc or jemalloc would stand in its place just so.
struct Counting;

static MADE: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is `System`'s with the caller's own arguments; the counting touches no block.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MADE.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        FREED.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract, and the block came from `alloc` above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static GLOBAL: StepAlloc<Counting> = StepAlloc::with_backing(Counting);

/// How many blocks the backing makes and frees while `work` runs.
fn backed(work: impl FnOnce()) -> (usize, usize) {
    let before = (MADE.load(Relaxed), FREED.load(Relaxed));
    work();
    (MADE.load(Relaxed) - before.0, FREED.load(Relaxed) - before.1)
}

fn thousand_boxes() {
    let boxes: Vec<Box<usize>> = (0..1_000).map(Box::new).collect();
    assert!(boxes.iter().enumerate().all(|(i, boxed)| i == **boxed));
}

fn main() {
    let outside = backed(thousand_boxes);
    // Counted inside the scope: what opening the first one needs is not the question here.
    let inside = arena_scope(|| backed(thousand_boxes));
    let suspended = arena_scope(|| backed(|| outside_scope(thousand_boxes)));

    // A block goes back to where it came from, whatever is open when it is freed.
    let mut from_backing = vec![1_u64; 100];
    let mut from_arena = arena_scope(|| vec![2_u64; 100]);
    let crossed = backed(|| {
        drop(std::mem::take(&mut from_arena));
        arena_scope(|| drop(std::mem::take(&mut from_backing)));
    });

    println!("the backing made and freed: outside a scope {outside:?}, in one {inside:?}, suspended {suspended:?}");
    assert!(is_installed());
    // The boxes and the vector of them.
    assert_eq!(outside, (1_001, 1_001));
    assert_eq!(inside, (0, 0));
    assert_eq!(suspended, (1_001, 1_001));
    assert_eq!(crossed, (0, 1));
}
