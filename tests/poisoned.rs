//! Free memory of the arenas is poisoned: the address sanitizer reports a use of it. `.ci/sanitizers` builds this with
//! the sanitizer; each fault is made in a child, which must be ended by its report, and done right must pass.

mod support;

use std::alloc::dealloc;
use stepalloc::{arena_scope, in_arena, ArenaScope, StepAlloc};
use support::{in_thread, role, run_child, text, told_wrong, Block};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

fn reported(test: &str, act: fn(bool)) {
    let Some(wrong) = told_wrong(test, act) else { return };
    assert!(!wrong.status.success(), "{}", text(&wrong));
    let said = text(&wrong);
    assert!(said.contains("AddressSanitizer: use-after-poison"), "{said}");
}

macro_rules! reported {
    ($($name:ident: $act:expr;)*) => {$(
        #[test]
        fn $name() {
            reported(stringify!($name), $act);
        }
    )*};
}

/// Makes a block, frees it, and reads it before or after.
fn read_late(size: usize, wrong: bool) {
    let (p, layout) = Block::new(size, 8).into_raw();
    assert!(in_arena(p));
    if !wrong {
        // SAFETY: the block is live.
        unsafe { p.read_volatile() };
    }
    // SAFETY: the block is live.
    unsafe { dealloc(p, layout) };
    if wrong {
        // SAFETY: none: this is what is to be reported.
        unsafe { p.read_volatile() };
    }
}

reported! {
    a_small_block_read_after_it_was_freed: |wrong| arena_scope(|| read_late(48, wrong));
    a_long_block_read_after_it_was_freed: |wrong| arena_scope(|| read_late(5_000, wrong));
    a_span_read_after_it_was_freed: |wrong| arena_scope(|| read_late(100_000, wrong));
    a_span_made_outside_scopes_read_after_it_was_freed: |wrong| read_late(500_000, wrong);
    a_block_between_others_read_after_it_was_freed: |wrong| {
        let _scope = ArenaScope::enter();
        let _before = Block::new(48, 8);
        let (p, layout) = Block::new(48, 8).into_raw();
        let _after = Block::new(48, 8);
        if wrong {
            // SAFETY: the block is live here, and not below: that is what is to be reported.
            unsafe { dealloc(p, layout) };
        }
        // SAFETY: as above.
        unsafe { p.write_volatile(1) };
    };
    a_block_read_after_another_thread_freed_it: |wrong| {
        let _scope = ArenaScope::enter();
        let (p, layout) = Block::new(48, 8).into_raw();
        let addr = p.expose_provenance();
        in_thread(move || {
            if wrong {
                // SAFETY: the block is live.
                unsafe { dealloc(std::ptr::with_exposed_provenance_mut(addr), layout) };
            }
        });
        // SAFETY: none where it was freed.
        unsafe { p.read_volatile() };
    };
    a_byte_read_behind_a_block: |wrong| {
        let _scope = ArenaScope::enter();
        let (block, _after) = (Block::new(48, 8), Block::new(48, 8));
        let at = if wrong { 48 } else { 47 };
        // SAFETY: none for the byte behind the block.
        unsafe { block.bytes().as_ptr().add(at).read_volatile() };
    };
    a_byte_read_behind_a_span: |wrong| {
        let (block, _after) = (Block::new(300_000, 8), Block::new(300_000, 8));
        let at = if wrong { 300_000 } else { 299_999 };
        // SAFETY: none for the byte behind the block.
        unsafe { block.bytes().as_ptr().add(at).read_volatile() };
    };
    memory_of_an_arena_read_after_its_reset: |wrong| {
        let mut arena = stepalloc::Arena::new();
        let p = std::ptr::from_mut(arena.alloc(7u64));
        if wrong {
            arena.reset();
        }
        // SAFETY: none after the reset.
        unsafe { p.read_volatile() };
        arena.reset();
        assert_eq!(*arena.alloc(9u64), 9, "usable again");
    };
    memory_of_an_arena_read_after_its_scope: |wrong| {
        let mut arena = stepalloc::Arena::new();
        let p = arena.scope(|step| {
            let p = std::ptr::from_mut(step.alloc(7u64));
            // SAFETY: live here.
            unsafe { p.read_volatile() };
            p
        });
        if wrong {
            // SAFETY: none after the scope.
            unsafe { p.read_volatile() };
        }
    };
    memory_of_an_arena_read_after_going_back: |wrong| {
        let arena = stepalloc::Arena::new();
        let _first = arena.alloc(1u64);
        let checkpoint = arena.checkpoint();
        let p = std::ptr::from_mut(arena.alloc(7u64));
        if wrong {
            // SAFETY: what was made since is not used, but for the fault.
            unsafe { arena.reset_to(&checkpoint).unwrap() };
        }
        // SAFETY: none after going back.
        unsafe { p.read_volatile() };
    };
    a_pools_slot_read_after_its_handle_was_dropped: |wrong| {
        let pool = stepalloc::Pool::new();
        let mut handles: Vec<_> = (0..9).map(|n| pool.alloc([n; 4])).collect();
        let p = std::ptr::from_mut(&mut *handles[3]);
        if wrong {
            handles.clear();
        }
        // SAFETY: none where the value was dropped.
        unsafe { p.cast::<u64>().add(1).read_volatile() };
    };
    a_pools_slot_read_that_was_given_back_last: |wrong| {
        let pool = stepalloc::SharedPool::new();
        let mut handle = pool.alloc(7u64);
        let p = std::ptr::from_mut(&mut *handle);
        if wrong {
            drop(handle);
        }
        // SAFETY: none where the value was dropped.
        unsafe { p.read_volatile() };
    };
    the_list_of_a_pools_free_slots_read: |wrong| {
        let pool = stepalloc::Pool::new();
        let mut handles: Vec<_> = (0..9).map(|n: u64| pool.alloc(n)).collect();
        let p = std::ptr::from_mut(&mut *handles[3]);
        handles.clear();
        handles.extend((0..if wrong { 1 } else { 9 }).map(|n| pool.alloc(n)));
        // SAFETY: none where the slot was not taken again.
        unsafe { p.read_volatile() };
    };
    a_raw_pools_object_read_after_it_was_freed: |wrong| {
        let mut pool = stepalloc::RawPool::growing(24, 2).unwrap();
        let objects: Vec<_> = (0..9).map(|_| pool.alloc().unwrap()).collect();
        if wrong {
            pool.free(objects[3]).unwrap();
        }
        // SAFETY: none where the object was given back.
        unsafe { objects[3].as_ptr().write_volatile(1) };
    };
    a_raw_pools_object_read_that_was_never_handed_out: |wrong| {
        let mut pool = stepalloc::RawPool::fixed(32, 9).unwrap();
        let mut object = pool.alloc().unwrap();
        if !wrong {
            object = pool.alloc().unwrap();
        }
        let at = if wrong { 32 } else { 0 };
        // SAFETY: none for the object behind the first.
        unsafe { object.as_ptr().add(at).write_volatile(1) };
    };
    memory_of_the_hole_read: |wrong| {
        let _scope = ArenaScope::enter();
        let block = Block::new(48, 8);
        if wrong {
            // SAFETY: none: nobody was given it.
            unsafe { block.bytes().as_ptr().add(4096).read_volatile() };
        }
    };
}

/// A block that an arena's block alone points to is no leak.
#[test]
fn blocks_of_the_backing_are_found_through_the_arena() {
    match role() {
        Some(_) => {
            let kept: &'static mut Vec<Box<u64>> = arena_scope(|| Box::leak(Box::new(Vec::with_capacity(9))));
            kept.push(Box::new(7));
            std::process::exit(i32::from(kept.len() != 1));
        }
        None => {
            let child = run_child("blocks_of_the_backing_are_found_through_the_arena", "child");
            assert!(child.status.success(), "{}", text(&child));
        }
    }
}
