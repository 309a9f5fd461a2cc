//! What only hardened mode sees: each misuse is done in a child, which must be ended by our abort with the message that
//! names it; done right, the same child must pass.

mod support;

use std::alloc::{dealloc, Layout};
use std::os::unix::process::ExitStatusExt;
use stepalloc::{arena_scope, in_arena, ArenaScope, StepAlloc};
use support::{in_thread, layout, text, told_wrong, Block};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

const FREED: &str = "stepalloc: a block was freed twice, or no block of the arena begins at the address freed";
const GUARD: &str = "stepalloc: a block was written past its end, or freed by another address or size";

/// Runs `act` in a child, told to do right, and in one told to do wrong, which must be ended with `message`.
fn seen(test: &str, message: &str, act: fn(bool)) {
    let Some(wrong) = told_wrong(test, act) else { return };
    assert_eq!(wrong.status.signal(), Some(libc::SIGABRT), "{}", text(&wrong));
    assert!(text(&wrong).contains(message), "{}", text(&wrong));
    assert!(!text(&wrong).contains("panicked"), "nothing unwinds");
}

macro_rules! seen {
    ($($name:ident, $message:expr, $act:expr;)*) => {$(
        #[test]
        fn $name() {
            seen(stringify!($name), $message, $act);
        }
    )*};
}

/// A block of the arena, taken apart.
fn raw(size: usize) -> (*mut u8, Layout) {
    let (p, layout) = Block::new(size, 8).into_raw();
    assert!(in_arena(p), "the backing served it: nothing is shown");
    (p, layout)
}

/// Frees whatever is said, right or wrong.
fn free(p: *mut u8, layout: Layout) {
    // SAFETY: none where it is wrong: that is what these tests show to be seen.
    unsafe { dealloc(p, layout) };
}

/// Writes the byte `size` of a block: the first behind it.
fn overrun(p: *mut u8, size: usize) {
    // SAFETY: none: the byte is the guard's, which is memory of the arena.
    unsafe { *p.add(size) ^= 1 };
}

seen! {
    // The plain build takes the second free for one of the block at the position.
    a_block_freed_again_after_the_one_behind_it_was_the_last, FREED, |wrong| {
        let _scope = ArenaScope::enter();
        let (a, b) = (raw(48), raw(48));
        free(a.0, a.1);
        free(b.0, b.1);
        if wrong {
            free(a.0, a.1);
        }
    };
    // The plain build looks at its own map only where a free is inline.
    a_block_freed_by_another_thread_and_then_by_its_own, FREED, |wrong| {
        let _scope = ArenaScope::enter();
        let (a, _b) = (raw(48), Block::new(48, 8));
        let addr = a.0.expose_provenance();
        in_thread(|| free(std::ptr::with_exposed_provenance_mut(addr), a.1));
        if wrong {
            free(a.0, a.1);
        }
    };
    the_last_block_freed_by_another_thread_and_then_by_its_own, FREED, |wrong| {
        let _scope = ArenaScope::enter();
        let a = raw(48);
        let addr = a.0.expose_provenance();
        in_thread(|| free(std::ptr::with_exposed_provenance_mut(addr), a.1));
        if wrong {
            free(a.0, a.1);
        }
    };
    a_write_past_a_small_block, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let (a, _b) = (raw(48), Block::new(48, 8));
        if wrong {
            overrun(a.0, 48);
        }
        free(a.0, a.1);
    };
    a_write_past_a_span, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let (a, _b) = (raw(64 << 10), Block::new(64 << 10, 8));
        if wrong {
            overrun(a.0, 64 << 10);
        }
        free(a.0, a.1);
    };
    a_write_past_a_block_that_another_thread_frees, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let a = raw(1000);
        if wrong {
            overrun(a.0, 1000);
        }
        let addr = a.0.expose_provenance();
        in_thread(|| free(std::ptr::with_exposed_provenance_mut(addr), a.1));
    };
    a_write_past_a_span_that_another_thread_frees, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let a = raw(100_000);
        if wrong {
            overrun(a.0, 100_000);
        }
        let addr = a.0.expose_provenance();
        in_thread(|| free(std::ptr::with_exposed_provenance_mut(addr), a.1));
    };
    a_block_freed_with_a_smaller_size, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let (a, _b) = (raw(48), Block::new(48, 8));
        free(a.0, if wrong { layout(47, 8) } else { a.1 });
    };
    a_span_freed_with_another_size, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let a = raw(40_000);
        free(a.0, if wrong { layout(40_001, 8) } else { a.1 });
    };
    the_inside_of_a_block_freed, GUARD, |wrong| {
        let _scope = ArenaScope::enter();
        let (a, _b) = (raw(480), Block::new(48, 8));
        free(a.0, a.1);
        let (a, _c) = (raw(480), Block::new(48, 8));
        if wrong {
            free(a.0.wrapping_add(64), layout(48, 8));
        }
        free(a.0, a.1);
    };
    an_address_of_the_reservation_that_was_never_used_freed, FREED, |wrong| {
        let a = arena_scope(|| raw(48));
        if wrong {
            // Segments are 64 GiB at most and 1 GiB at least where there is room.
            free(a.0.wrapping_add(100 << 20), a.1);
        }
        free(a.0, a.1);
    };
    an_address_of_a_segment_that_was_never_claimed_freed, FREED, |wrong| {
        let a = arena_scope(|| raw(48));
        if wrong {
            free(a.0.wrapping_add(128 << 30), a.1);
        }
        free(a.0, a.1);
    };
    an_address_of_another_threads_unused_memory_freed, FREED, |wrong| {
        let _scope = ArenaScope::enter();
        let a = raw(48);
        let addr = a.0.expose_provenance();
        in_thread(|| {
            let _own = arena_scope(|| Block::new(48, 8));
            if wrong {
                free(std::ptr::with_exposed_provenance_mut(addr + (100 << 20)), a.1);
            }
        });
        free(a.0, a.1);
    };
}

/// Freed memory is overwritten, small and large, by its own thread and by another.
#[test]
fn freed_memory_is_junk() {
    let _scope = ArenaScope::enter();
    for size in [1, 48, 1_000, 8_000, 100_000] {
        for remote in [false, true] {
            let (p, layout) = raw(size);
            let addr = p.expose_provenance();
            if remote {
                in_thread(|| free(std::ptr::with_exposed_provenance_mut(addr), layout));
            } else {
                free(p, layout);
            }
            for at in 0..size {
                // SAFETY: none as to what the byte holds; it is memory of the arena that is not given out since.
                let byte = unsafe { p.add(at).read_volatile() };
                assert_eq!(byte, 0xdb, "byte {at} of {size}, remote: {remote}");
            }
        }
    }
}

/// A zeroed block is zero though what was there is junk.
#[test]
fn zeroed_blocks_are_zero_over_junk() {
    let _scope = ArenaScope::enter();
    for size in [1, 48, 1_000, 8_000, 100_000, 3_000_000] {
        drop(Block::new(size, 8));
        drop(Block::zeroed(size, 8)); // sees it
    }
}
