//! The workloads on a bare bump allocator: what a step costs when a block is an addition and freeing is nothing. No program
//! could use it (a step's blocks must all end with it); it is the floor of the bench itself.
use std::alloc::{GlobalAlloc, Layout, System};

use stepalloc_peers::run::bump;

struct Bump;

// SAFETY: in a step, blocks follow one another in memory that nothing else uses; outside, System serves. Which of the two
// made a block is told by its address.
unsafe impl GlobalAlloc for Bump {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match bump::alloc(layout) {
            Some(place) => place,
            // SAFETY: the caller's own promise.
            None => unsafe { System.alloc(layout) },
        }
    }
    #[inline]
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if !bump::contains(place) {
            // SAFETY: not from a step, so from System.
            unsafe { System.dealloc(place, layout) };
        }
    }
}

#[global_allocator]
static GLOBAL: Bump = Bump;

fn main() {
    stepalloc_peers::child::main();
}
