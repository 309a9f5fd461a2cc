//! Blocks freed twice, and blocks freed at the edges of a thread's life.
//!
//! A double free is undefined behaviour, and the allocator promises to end the program where its maps can see it: at
//! once, with a static message, no unwinding. The frees of dying threads are no misuse at all.

mod support;

use std::alloc::dealloc;
use std::cell::RefCell;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread;
use stepalloc::{arena_scope, arena_scope_report, outside_scope, scope_depth, stats, ArenaScope, StepAlloc};
use support::{aborted, in_thread, text, told_wrong, Block};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

// ---- Double frees ----

/// Makes a block of this size in a scope with neighbours on both sides.
fn between(size: usize) -> (Block, Block, Block) {
    (Block::new(48, 8), Block::new(size, 8), Block::new(48, 8))
}

/// Frees it, and then, where the role says so, once more.
fn free(block: Block, times: usize) {
    let (p, layout) = block.into_raw();
    for _ in 0..times {
        // SAFETY: none where it is freed twice: that is what these tests show to be caught.
        unsafe { dealloc(p, layout) };
    }
}

/// Runs `misuse` in a child, told to free twice: it must be killed by its own abort with our message. Told to free once it must
/// pass, so that it is the second free that is seen.
fn aborts(test: &str, misuse: fn(usize)) {
    let Some(twice) = told_wrong(test, |wrong| misuse(if wrong { 2 } else { 1 })) else {
        return;
    };
    let stderr = String::from_utf8_lossy(&twice.stderr);
    assert!(aborted(twice.status), "{}: {}", twice.status, text(&twice));
    assert!(stderr.contains("stepalloc: a block was freed twice"), "{stderr}");
    assert!(!stderr.contains("panicked"), "nothing unwinds: {stderr}");
}

macro_rules! double_free {
    ($($name:ident: $misuse:expr;)*) => {$(
        #[test]
        fn $name() {
            aborts(stringify!($name), $misuse);
        }
    )*};
}

double_free! {
    a_small_block_freed_twice_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (_a, block, _b) = between(100);
        free(block, times);
    };
    a_small_block_across_two_words_freed_twice_aborts: |times| {
        let _scope = ArenaScope::enter();
        let fill: Vec<Block> = (0..40).map(|_| Block::new(1_000, 8)).collect();
        let block = fill.iter().position(|block| (block.addr() / 1024) != (block.addr() + 900) / 1024).unwrap();
        let mut fill = fill;
        free(fill.swap_remove(block), times);
    };
    the_last_block_freed_twice_aborts: |times| {
        let _scope = ArenaScope::enter();
        free(Block::new(100, 8), times);
    };
    a_block_freed_again_after_the_one_behind_it_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (a, b) = (Block::new(64, 8), Block::new(64, 8));
        let (p, layout) = b.into_raw();
        // SAFETY: the block is live.
        unsafe { dealloc(p, layout) };
        drop(a);
        if times == 2 {
            // SAFETY: none: a double free.
            unsafe { dealloc(p, layout) };
        }
    };
    a_long_block_freed_twice_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (_a, block, _b) = between(20_000);
        free(block, times);
    };
    a_span_freed_twice_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (_a, block, _b) = (Block::new(50_000, 8), Block::new(50_000, 8), Block::new(50_000, 8));
        free(block, times);
    };
    the_last_span_freed_twice_aborts: |times| {
        let _scope = ArenaScope::enter();
        free(Block::new(5_000_000, 8), times);
    };
    a_span_made_outside_scopes_freed_twice_aborts: |times| free(Block::new(500_000, 8), times);
    a_small_block_freed_twice_outside_its_scope_aborts: |times| {
        let (_a, block, _b) = arena_scope(|| between(100));
        free(block, times);
    };
    a_small_block_freed_twice_in_a_counted_scope_aborts: |times| {
        let _scope = ArenaScope::enter_counted();
        let (_a, block, _b) = between(100);
        free(block, times);
    };
    the_last_block_freed_twice_in_a_counted_scope_aborts: |times| {
        let _scope = ArenaScope::enter_counted();
        free(Block::new(100, 8), times);
    };
    a_small_block_freed_twice_by_another_thread_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (_a, block, _b) = between(100);
        in_thread(|| free(block, times));
    };
    a_long_block_freed_twice_by_another_thread_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (_a, block, _b) = between(10_000);
        in_thread(|| free(block, times));
    };
    a_span_freed_twice_by_another_thread_aborts: |times| {
        let _scope = ArenaScope::enter();
        let block = Block::new(100_000, 8);
        in_thread(|| free(block, times));
    };
    a_small_block_freed_by_another_thread_and_its_own_aborts: |times| {
        let _scope = ArenaScope::enter();
        // Long, so that its own thread's free looks at both maps.
        let (_a, block, _b) = between(10_000);
        let (p, layout) = block.into_raw();
        let addr = p as usize;
        in_thread(move || {
            // SAFETY: the block is live.
            unsafe { dealloc(addr as *mut u8, layout) }
        });
        if times == 2 {
            // SAFETY: none: a double free.
            unsafe { dealloc(p, layout) };
        }
    };
    a_span_freed_by_another_thread_and_its_own_aborts: |times| {
        let _scope = ArenaScope::enter();
        let (p, layout) = Block::new(100_000, 8).into_raw();
        let addr = p as usize;
        in_thread(move || {
            // SAFETY: the block is live.
            unsafe { dealloc(addr as *mut u8, layout) }
        });
        if times == 2 {
            // SAFETY: none: a double free.
            unsafe { dealloc(p, layout) };
        }
    };
    a_block_of_a_dead_thread_freed_twice_aborts: |times| {
        let (_a, block, _b) = in_thread(|| arena_scope(|| between(100)));
        free(block, times);
    };
    a_span_of_a_dead_thread_freed_twice_aborts: |times| {
        let block = in_thread(|| arena_scope(|| Block::new(100_000, 8)));
        free(block, times);
    };
    the_middle_of_a_span_freed_aborts: |times| {
        let (p, layout) = Block::new(200_000, 8).into_raw();
        let p = if times == 2 { p.wrapping_add(8_192) } else { p };
        // SAFETY: none where no block begins at the address.
        unsafe { dealloc(p, layout) };
    };
}

/// Whether `act` ends a forked child by abort. Where another test held a lock of std's or the system's at the fork, the
/// child waits for it for ever: such a one is ended and the next tried.
#[cfg(all(unix, not(stepalloc_small_space)))]
fn dies(act: impl Fn()) -> bool {
    for _ in 0..10 {
        // SAFETY: the child uses this thread and one of its own, and ends at once; what it says is not wanted.
        let pid = unsafe { libc::fork() };
        assert_ne!(pid, -1, "fork was refused");
        if pid == 0 {
            // SAFETY: as above; a child that hangs is ended.
            unsafe {
                libc::alarm(5);
                libc::close(2);
            }
            act();
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        if !libc::WIFSIGNALED(status) || libc::WTERMSIG(status) != libc::SIGALRM {
            return libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT;
        }
    }
    panic!("ten children in turn did not end");
}

/// No block begins inside a granule or a unit, at whichever byte, whoever frees and whether the owner lives or not. (The
/// owner's inline path does not look at a short block's.) Not in qemu-user, which loses count of its threads in a fork.
#[cfg(all(unix, not(stepalloc_small_space)))]
#[test]
fn addresses_inside_a_granule_or_a_unit_freed_abort() {
    in_thread(|| {
        for size in [40, 900, 5_000, 100_000] {
            let grain = if size > 8_192 { 1_024 } else { 16 };
            for offset in [1, 2, 4, 8, 15, 16, 64, 512, 1_023]
                .into_iter()
                .filter(|offset| offset % grain != 0)
            {
                let (_a, block, _b) = arena_scope(|| between(size));
                let (p, layout) = block.into_raw();
                let addr = p as usize;
                // SAFETY: none where no block begins at the address: that is what this shows to be caught.
                let free = move |offset| unsafe { dealloc((addr + offset) as *mut u8, layout) };
                if size > 1_024 {
                    assert!(dies(|| free(offset)), "{size} bytes, {offset}");
                }
                assert!(
                    dies(|| in_thread(|| free(offset))),
                    "{size} bytes, {offset}, another thread"
                );
                assert!(!dies(|| in_thread(|| free(0))), "{size} bytes, the block itself");
                free(0);
            }
        }
    });
}

// ---- Threads that are dead, or dying ----

#[test]
fn blocks_of_a_dead_thread_are_freed_and_resized_by_others() {
    let mut blocks: Vec<Block> = in_thread(|| arena_scope(|| (0..200).map(|i| Block::new(1 + i * i * 3, 8)).collect()));
    blocks.iter().for_each(Block::verify);
    for (index, block) in blocks.iter_mut().enumerate() {
        assert!(block.resize([10, 3_000, 70_000][index % 3]));
    }
    // A new owner of the segment works beside them.
    in_thread(|| {
        let mut own: Vec<Block> = arena_scope(|| (0..200).map(|i| Block::new(1 + i * i * 3, 8)).collect());
        own.retain(|block| block.size() % 2 == 0);
        blocks.drain(..100);
        arena_scope(|| own.extend((0..100).map(|i| Block::new(1 + i * 50, 8))));
        own.iter().for_each(Block::verify);
    });
}

/// Does something when its thread ends.
struct AtEnd(Box<dyn FnMut()>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        (self.0)();
    }
}

thread_local! {
    /// Run when the thread ends, if something was put here.
    static FIRST: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
    static SECOND: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
    static GUARDS: RefCell<Vec<ArenaScope>> = const { RefCell::new(Vec::new()) };
}

/// Destructors of thread-locals run against the order of first use: what is touched before the first scope is destroyed
/// after the allocator's own teardown, what is touched later before it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Teardown {
    /// `f` runs before it.
    Before,
    /// `f` runs after it.
    After,
}

const BOTH: [Teardown; 2] = [Teardown::Before, Teardown::After];

/// Runs `body` on a thread of its own, with `f` as the destructor of a thread-local.
fn with_destructor<R: Send>(
    teardown: Teardown,
    f: impl FnMut() + Send + 'static,
    body: impl FnOnce() -> R + Send,
) -> R {
    in_thread(move || {
        if teardown == Teardown::After {
            FIRST.with(|_| ());
            GUARDS.with(|_| ());
        }
        // A span claims a segment, and so do scopes.
        drop(arena_scope(|| Block::new(50, 8)));
        FIRST.with(|slot| *slot.borrow_mut() = Some(AtEnd(Box::new(f))));
        body()
    })
}

/// Work with scopes, blocks and guards that has to come right anywhere.
fn work() {
    let mut kept = vec![];
    for _ in 0..3 {
        let outer = ArenaScope::enter();
        let blocks: Vec<Block> = (0..30).map(|i| Block::new(1 + i * i * 60, 8)).collect();
        let inner = ArenaScope::enter();
        kept.push(Block::new(777, 8));
        outside_scope(|| kept.push(Block::new(300_000, 8)));
        drop(outer);
        drop(blocks);
        drop(inner);
        std::mem::forget(ArenaScope::enter());
        for block in &mut kept {
            assert!(block.resize(block.size() * 2));
        }
    }
}

// Where thread-locals are keys of the system, destructors run by the age of the key and not in the thread's order: there
// none runs after the arena's.
#[cfg(not(all(windows, target_env = "gnu")))]
#[test]
fn destructors_of_thread_locals_allocate_and_open_scopes() {
    for teardown in BOTH {
        let (sender, receiver) = channel();
        with_destructor(
            teardown,
            move || {
                work();
                let ((), report) = arena_scope_report(work);
                sender.send((report, stats().fallbacks.thread_ending)).unwrap();
            },
            || (),
        );
        let (report, thread_ending) = receiver.recv().unwrap();
        match teardown {
            Teardown::Before => assert!(report.blocks > 90 && report.fallbacks.total() == 0, "{report:?}"),
            Teardown::After => assert!(report.blocks == 0 && thread_ending > 90, "{report:?} {thread_ending}"),
        }
    }
}

#[test]
fn destructors_of_thread_locals_free_blocks_of_their_own_thread() {
    for teardown in BOTH {
        let (hand_over, receiver): (Sender<Vec<Block>>, Receiver<Vec<Block>>) = channel();
        with_destructor(
            teardown,
            move || {
                let mut blocks = receiver.recv().unwrap();
                let half = blocks.len() / 2;
                for block in &mut blocks[..half] {
                    assert!(block.resize(block.size() / 2 + 1));
                }
                for block in &mut blocks[half..] {
                    assert!(block.resize(block.size() * 3));
                }
            },
            move || {
                hand_over
                    .send(arena_scope(|| (0..60).map(|i| Block::new(1 + i * i * 30, 8)).collect()))
                    .unwrap()
            },
        );
    }
}

#[test]
fn destructors_of_thread_locals_free_blocks_of_other_threads() {
    for teardown in BOTH {
        let blocks: Vec<Block> = arena_scope(|| (0..60).map(|i| Block::new(1 + i * i * 30, 8)).collect());
        let dead: Vec<Block> = in_thread(|| arena_scope(|| (0..60).map(|i| Block::new(1 + i * i * 30, 8)).collect()));
        let mut both = Some((blocks, dead));
        with_destructor(teardown, move || drop(both.take()), || ());
    }
    work();
}

#[test]
fn others_free_blocks_of_a_thread_that_is_ending() {
    for teardown in BOTH {
        let (give, blocks) = channel::<Vec<Block>>();
        let (freed, wait) = channel::<()>();
        let (started, begun) = channel::<()>();
        let other = thread::spawn(move || {
            started.send(()).unwrap();
            let blocks = blocks.recv().unwrap();
            blocks.iter().for_each(Block::verify);
            drop(blocks);
            freed.send(()).unwrap();
        });
        // Windows starts no thread while another's destructors run.
        begun.recv().unwrap();
        let (hand_over, receiver) = channel();
        with_destructor(
            teardown,
            move || {
                // The thread stays in its destructor until its blocks are gone.
                give.send(receiver.recv().unwrap()).unwrap();
                wait.recv().unwrap();
                work();
            },
            move || {
                let blocks: Vec<Block> = arena_scope(|| (0..60).map(|i| Block::new(1 + i * i * 30, 8)).collect());
                hand_over.send(blocks).unwrap();
            },
        );
        other.join().unwrap();
    }
}

#[test]
fn guards_are_dropped_by_destructors_of_thread_locals() {
    for teardown in BOTH {
        let kept = with_destructor(
            teardown,
            || (),
            || {
                let kept: Vec<Block> = (0..100)
                    .map(|i| {
                        GUARDS.with(|guards| guards.borrow_mut().push(ArenaScope::enter()));
                        Block::new(1 + i * 37, 8)
                    })
                    .collect();
                assert_eq!(scope_depth(), 100);
                kept
            },
        );
        kept.iter().for_each(Block::verify);
    }
}

// Where thread-locals are keys of the system, destructors run by the age of the key and not in the thread's order: there
// none runs after the arena's.
#[cfg(not(all(windows, target_env = "gnu")))]
#[test]
fn scopes_that_a_thread_left_open_end_with_its_arena() {
    for (teardown, expected) in BOTH.into_iter().zip([70, 0]) {
        let (sender, receiver) = channel();
        with_destructor(
            teardown,
            move || sender.send(scope_depth()).unwrap(),
            || (0..70).for_each(|_| std::mem::forget(ArenaScope::enter())),
        );
        assert_eq!(receiver.recv().unwrap(), expected);
    }
}

#[test]
fn guards_made_by_one_destructor_are_dropped_by_another() {
    for teardown in BOTH {
        with_destructor(
            teardown,
            || {
                let guards: Vec<ArenaScope> = (0..80).map(|_| ArenaScope::enter()).collect();
                let block = Block::new(100, 8);
                let rest = AtEnd(Box::new(move || {
                    let _block = &block;
                    work();
                }));
                let mut guards = Some(guards);
                SECOND.with(|slot| *slot.borrow_mut() = Some(rest));
                // Those of the vector go first to last.
                drop(guards.take());
            },
            work,
        );
    }
}

#[test]
fn the_first_scope_of_a_thread_is_opened_by_a_destructor() {
    let (sender, receiver) = channel();
    in_thread(move || {
        let f: Box<dyn FnMut()> = Box::new(move || {
            let ((), report) = arena_scope_report(work);
            let escapee = arena_scope(|| Block::new(5_000, 8));
            sender.send((report, escapee)).unwrap();
        });
        FIRST.with(|slot| *slot.borrow_mut() = Some(AtEnd(f)));
    });
    let (report, escapee) = receiver.recv().unwrap();
    assert!(report.blocks > 90, "{report:?}");
    escapee.verify();
    // Its segment was given back by the destructor's own hook.
    drop(escapee);
    in_thread(work);
}

#[test]
fn the_first_large_block_of_a_thread_is_made_by_a_destructor() {
    let (sender, receiver) = channel();
    in_thread(move || {
        let f: Box<dyn FnMut()> = Box::new(move || sender.send(Block::new(1 << 20, 64)).unwrap());
        FIRST.with(|slot| *slot.borrow_mut() = Some(AtEnd(f)));
    });
    receiver.recv().unwrap().verify();
}

#[test]
fn threads_that_end_give_their_segments_back_whatever_their_destructors_did() {
    for teardown in BOTH {
        for _ in 0..400 {
            with_destructor(teardown, || drop(arena_scope(|| Block::new(2_000, 8))), || ());
        }
    }
    // More threads than segments have come and gone.
    let ((), report) = in_thread(|| arena_scope_report(|| drop(Block::new(2_000, 8))));
    assert_eq!((report.blocks, report.fallbacks.total()), (1, 0));
}
