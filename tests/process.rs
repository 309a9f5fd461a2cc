//! The edges of a process: before `main`, in `atexit`, across `fork`, and at an exit with scopes open.
#![cfg(unix)]

mod support;

use std::process::{exit, Output};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use stepalloc::{arena_scope, heap_stats, outside_scope, scope_depth, ArenaScope, StepAlloc};
use support::{role, run_child, text, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Blocks of all kinds in scopes, verified; returns some that outlive their scope.
fn work(seed: u64) -> Vec<Block> {
    let mut random = Random(seed);
    let mut kept = vec![];
    for _ in 0..10 {
        arena_scope(|| {
            let mut blocks: Vec<Block> = (0..30).map(|_| Block::new(random.size(50_000), 8)).collect();
            blocks.retain_mut(|block| block.size() % 3 != 0 && block.resize(block.size() * 2));
            outside_scope(|| kept.push(Block::new(500_000, 8)));
            kept.extend(blocks.pop());
        });
    }
    kept
}

// ---- Before main ----

#[used]
#[link_section = ".init_array"]
static BEFORE_MAIN: extern "C" fn() = before_main;

static MADE_BEFORE_MAIN: AtomicPtr<Vec<Block>> = AtomicPtr::new(std::ptr::null_mut());
static SERVED_BEFORE_MAIN: AtomicBool = AtomicBool::new(false);

extern "C" fn before_main() {
    let mut blocks = vec![Block::new(10, 1), Block::new(1 << 20, 64)];
    blocks.extend(work(1));
    SERVED_BEFORE_MAIN.store(heap_stats().small_in_use_bytes > 0, Ordering::SeqCst);
    MADE_BEFORE_MAIN.store(Box::into_raw(Box::new(blocks)), Ordering::SeqCst);
}

#[test]
fn blocks_made_before_main_are_served_and_live_on() {
    let blocks = MADE_BEFORE_MAIN.swap(std::ptr::null_mut(), Ordering::SeqCst);
    assert!(!blocks.is_null(), "the initialiser has run");
    assert!(SERVED_BEFORE_MAIN.load(Ordering::SeqCst), "by the arena");
    // SAFETY: the pointer came from `Box::into_raw` and is taken once.
    let mut blocks = *unsafe { Box::from_raw(blocks) };
    for block in &mut blocks {
        assert!(block.resize(block.size() + 100));
    }
}

// ---- At exit ----

static FOR_EXIT: AtomicPtr<Vec<Block>> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn at_exit() {
    let done = std::panic::catch_unwind(|| {
        // SAFETY: the pointer came from `Box::into_raw` and is taken once.
        let blocks = *unsafe { Box::from_raw(FOR_EXIT.swap(std::ptr::null_mut(), Ordering::SeqCst)) };
        drop(blocks);
        drop(work(2));
        let guard = ArenaScope::enter();
        std::mem::forget((Block::new(300, 8), guard));
    });
    let message: &[u8] = if done.is_ok() {
        b"exited well\n"
    } else {
        b"exited badly\n"
    };
    // SAFETY: the buffer is as long as said.
    unsafe { libc::write(1, message.as_ptr().cast(), message.len()) };
}

fn exited_well(output: &Output) {
    let text = text(output);
    assert!(output.status.success(), "{}: {text}", output.status);
    assert!(text.contains("exited well"), "{text}");
}

/// Runs `end` in a child with an `atexit` function that allocates and frees; the child must end well.
fn at_an_exit(test: &str, end: fn()) {
    if role().is_none() {
        return exited_well(&run_child(test, "exit"));
    }
    FOR_EXIT.store(Box::into_raw(Box::new(work(3))), Ordering::SeqCst);
    // SAFETY: the function stays, as all code does.
    assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    end();
}

#[test]
fn atexit_functions_allocate_and_free() {
    at_an_exit("atexit_functions_allocate_and_free", || drop(work(4)));
}

#[test]
fn a_process_exits_inside_a_scope() {
    at_an_exit("a_process_exits_inside_a_scope", || arena_scope(|| exit(0)));
}

#[test]
fn a_process_exits_deep_inside_scopes_and_suspensions() {
    at_an_exit("a_process_exits_deep_inside_scopes_and_suspensions", || {
        let _guards: Vec<ArenaScope> = (0..100).map(|_| ArenaScope::enter()).collect();
        outside_scope(|| arena_scope(|| outside_scope(|| exit(0))));
    });
}

#[test]
fn a_process_ends_with_a_scope_open() {
    at_an_exit("a_process_ends_with_a_scope_open", || {
        let guard = ArenaScope::enter();
        std::mem::forget((work(5), guard));
    });
}

#[test]
fn a_process_exits_in_one_thread_while_others_work_in_scopes() {
    at_an_exit("a_process_exits_in_one_thread_while_others_work_in_scopes", || {
        let (started, wait) = channel();
        for seed in 10..14 {
            let started = started.clone();
            thread::spawn(move || {
                let _scope = ArenaScope::enter();
                started.send(()).unwrap();
                loop {
                    drop(work(seed));
                }
            });
        }
        (0..4).for_each(|_| wait.recv().unwrap());
        arena_scope(|| exit(0));
    });
}

#[test]
fn main_returns_while_another_thread_is_inside_a_scope() {
    at_an_exit("main_returns_while_another_thread_is_inside_a_scope", || {
        let (started, wait) = channel();
        thread::spawn(move || {
            let _scope = ArenaScope::enter();
            let blocks = work(20);
            started.send(()).unwrap();
            thread::park();
            drop(blocks);
        });
        wait.recv().unwrap();
    });
}

// ---- Fork ----

/// Forks; the child runs `child` and ends, 0 if it did not panic. The parent waits and sees that.
fn forked(child: impl FnOnce() + std::panic::UnwindSafe) {
    // SAFETY: the child uses this thread only, and ends by `_exit`.
    match unsafe { libc::fork() } {
        -1 => panic!("fork was refused"),
        0 => {
            // SAFETY: asks for a signal that ends a child that hangs, then ends the child at once.
            unsafe {
                libc::alarm(20);
                libc::_exit(i32::from(std::panic::catch_unwind(child).is_err()))
            }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waits for our own child.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                "child: {status:#x}"
            );
        }
    }
}

/// Frees, changes and makes blocks, as both sides of a fork do.
fn go_on(blocks: &mut Vec<Block>, seed: u64) {
    blocks.iter().for_each(Block::verify);
    for block in blocks.iter_mut() {
        assert!(block.resize(block.size() / 2 + 50));
    }
    let half = blocks.len() / 2;
    blocks.truncate(half);
    blocks.extend(work(seed));
    blocks.iter().for_each(Block::verify);
}

#[test]
fn a_fork_inside_a_scope_leaves_both_sides_whole() {
    let mut outer = work(30);
    arena_scope(|| {
        let mut blocks = work(31);
        for round in 0..5 {
            let depth = scope_depth();
            let (mine, theirs) = (&mut outer, &mut blocks);
            forked(std::panic::AssertUnwindSafe(|| {
                assert_eq!(scope_depth(), depth);
                go_on(mine, 32 + round);
                go_on(theirs, 33 + round);
                let before = heap_stats().small_in_use_bytes;
                let block = Block::new(500, 8);
                assert_eq!(heap_stats().small_in_use_bytes, before + 512, "still in the arena");
                drop(block);
                mine.clear();
                theirs.clear();
            }));
            go_on(&mut outer, 40 + round);
            go_on(&mut blocks, 41 + round);
        }
    });
    drop(outer);
}

#[test]
fn a_scope_is_left_in_a_forked_child() {
    let guard = ArenaScope::enter();
    let blocks = work(50);
    let both = std::panic::AssertUnwindSafe((guard, blocks));
    forked(move || {
        let both = both;
        let (guard, blocks) = both.0;
        drop(guard);
        assert_eq!(scope_depth(), 0);
        drop(blocks);
        drop(work(51));
    });
}

#[test]
fn one_of_several_threads_forks_while_the_others_allocate() {
    let stop = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (give, blocks) = channel::<Vec<Block>>();
        for seed in 60..62 {
            let (stop, rounds, give) = (&stop, &rounds, give.clone());
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _scope = ArenaScope::enter();
                    let blocks = work(seed);
                    if rounds.fetch_add(1, Ordering::Relaxed) < 9 {
                        give.send(blocks).unwrap();
                    }
                }
            });
        }
        // Blocks of segments whose owners do not exist in the child.
        let mut theirs: Vec<Block> = (0..9).flat_map(|_| blocks.recv().unwrap()).collect();
        let forker = scope.spawn(move || {
            let _scope = ArenaScope::enter();
            let mut mine = work(70);
            for round in 0..6 {
                let (mine, theirs) = (&mut mine, &mut theirs);
                forked(std::panic::AssertUnwindSafe(|| {
                    go_on(mine, 71 + round);
                    go_on(theirs, 72 + round);
                    mine.clear();
                    theirs.clear();
                    // New threads of the child find segments.
                    let served = thread::spawn(|| {
                        drop(work(80));
                        heap_stats().has_segment
                    });
                    assert!(served.join().unwrap());
                }));
                go_on(mine, 90 + round);
            }
        });
        let result = forker.join();
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}
