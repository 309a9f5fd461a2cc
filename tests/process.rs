//! The edges of a process: before `main`, in `atexit`, across `fork`, under signals, at the end of the stack, and at an
//! exit with scopes open.
#![cfg(unix)]

mod support;

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt;
use std::process::{exit, Output};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use stepalloc::{arena_scope, heap_stats, outside_scope, scope_depth, ArenaScope, StepAlloc};
use support::{hang_at_most, role, run_child, text, Block, Random};

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
            hang_at_most();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(std::panic::catch_unwind(child).is_err())) }
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
                let block = Block::new(480, 8); // eight lines, with a guard behind it too
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

/// Whether a new thread of the calling process, which may be a fork of several threads, works in a segment of its own.
///
/// The thread is the system's: std's `spawn` takes a lock in each thread that begins or ends, for the message of a stack
/// overflow, and where one of the parent's did so at the fork, the child would wait for it without end. A program of
/// std's alone does, once in some thousand forks.
fn served_in_new_thread() -> bool {
    extern "C" fn served(_: *mut libc::c_void) -> *mut libc::c_void {
        let served = std::panic::catch_unwind(|| {
            drop(work(80));
            heap_stats().has_segment
        });
        std::ptr::without_provenance_mut(usize::from(served.unwrap_or(false)))
    }
    let mut answer = std::ptr::null_mut();
    // SAFETY: the function takes nothing and stays, as all code does; the thread is joined once.
    unsafe {
        let mut thread = std::mem::zeroed();
        let made = libc::pthread_create(&mut thread, std::ptr::null(), served, std::ptr::null_mut());
        assert_eq!((made, libc::pthread_join(thread, &mut answer)), (0, 0));
    }
    !answer.is_null()
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
                    assert!(served_in_new_thread());
                }));
                go_on(mine, 90 + round);
            }
        });
        let result = forker.join();
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

/// One step of a program: makes, resizes, frees, opens and leaves scopes, as the numbers say.
fn any_step(random: &mut Random, blocks: &mut Vec<Block>, guards: &mut Vec<ArenaScope>) {
    match random.below(8) {
        0 if guards.len() < 5 => guards.push(ArenaScope::enter()),
        1 if !guards.is_empty() => drop(guards.swap_remove(random.below(guards.len()))),
        2 | 3 if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
        4 if !blocks.is_empty() => {
            let which = random.below(blocks.len());
            assert!(blocks[which].resize(random.size(100_000)));
        }
        5 => blocks.push(Block::zeroed(random.size(200_000), 8)),
        _ => blocks.push(Block::new(random.size(20_000), 8)),
    }
    if blocks.len() > 60 {
        blocks.truncate(20);
    }
}

#[test]
fn one_of_several_threads_forks_after_any_step() {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 100..102 {
            let stop = &stop;
            scope.spawn(move || {
                let (mut random, mut blocks, mut guards) = (Random(seed), vec![], vec![]);
                while !stop.load(Ordering::Relaxed) {
                    any_step(&mut random, &mut blocks, &mut guards);
                }
            });
        }
        let forker = scope.spawn(|| {
            let (mut random, mut blocks, mut guards) = (Random(103), vec![], vec![]);
            for round in 0..40 {
                for _ in 0..random.size(60) {
                    any_step(&mut random, &mut blocks, &mut guards);
                }
                let state = std::panic::AssertUnwindSafe((&mut blocks, &mut guards));
                forked(move || {
                    let state = state;
                    let (blocks, guards) = (&mut *state.0 .0, &mut *state.0 .1);
                    blocks.iter().for_each(Block::verify);
                    let mut random = Random(200 + round);
                    for _ in 0..60 {
                        any_step(&mut random, blocks, guards);
                    }
                    if round % 2 == 0 {
                        guards.clear();
                        blocks.clear();
                    }
                });
                blocks.iter().for_each(Block::verify);
            }
        });
        let result = forker.join();
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

// ---- Signals ----

static SIGNALS: AtomicUsize = AtomicUsize::new(0);
/// How many signals from now on fork.
static FORKS: AtomicUsize = AtomicUsize::new(0);
static CHILD: AtomicBool = AtomicBool::new(false);
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// Counts; forks if it is told to. It does not allocate.
extern "C" fn on_alarm(_signal: libc::c_int) {
    let number = SIGNALS.fetch_add(1, Ordering::Relaxed);
    if number % 4 != 0 || CHILD.load(Ordering::Relaxed) || FORKS.load(Ordering::Relaxed) == 0 {
        return;
    }
    FORKS.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: the system call that is `fork` everywhere, without the functions that libc runs around it: it may have been
    // interrupted in its allocator. The child has one thread, as the parent has, and goes on where it was.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        0 => CHILD.store(true, Ordering::Relaxed),
        pid => {
            let mut status = 0;
            // SAFETY: waits for our own child; the timer interrupts that.
            while pid > 0 && unsafe { libc::waitpid(pid as i32, &mut status, 0) } == -1 {}
            FAILED.fetch_add(usize::from(pid < 0 || status != 0), Ordering::Relaxed);
        }
    }
}

/// Interrupts the process after each so many microseconds of its time, and its system calls with it (no `SA_RESTART`).
fn interrupt_every(microseconds: libc::suseconds_t) {
    // SAFETY: plain structs for the system; the handler stays, as all code does.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut()), 0);
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        assert_eq!(libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()), 0);
    }
}

#[test]
fn signals_interrupt_threads_anywhere() {
    if role().is_none() {
        let output = run_child("signals_interrupt_threads_anywhere", "signals");
        assert!(output.status.success(), "{}: {}", output.status, text(&output));
        return;
    }
    interrupt_every(200);
    thread::scope(|scope| {
        for seed in 110..113 {
            scope.spawn(move || {
                let (mut random, mut blocks, mut guards) = (Random(seed), vec![], vec![]);
                let mut steps = 0;
                while SIGNALS.load(Ordering::Relaxed) < 300 || steps < 3_000 {
                    any_step(&mut random, &mut blocks, &mut guards);
                    steps += 1;
                }
            });
        }
    });
    assert!(SIGNALS.load(Ordering::Relaxed) >= 300);
    interrupt_every(0);
}

/// A handler forks wherever the program is, in the midst of the allocator too; both sides go on from there.
#[test]
fn a_process_forks_anywhere() {
    if role().is_none() {
        let output = run_child("a_process_forks_anywhere", "forks");
        assert!(output.status.success(), "{}: {}", output.status, text(&output));
        return;
    }
    // One thread: the test's own waits for it, blocked, and does not exist in the children.
    FORKS.store(20, Ordering::Relaxed);
    interrupt_every(1_000);
    let (mut random, mut blocks, mut guards) = (Random(120), vec![], vec![]);
    let mut more = 200;
    while (FORKS.load(Ordering::Relaxed) != 0 || CHILD.load(Ordering::Relaxed)) && more > 0 {
        any_step(&mut random, &mut blocks, &mut guards);
        more -= i32::from(CHILD.load(Ordering::Relaxed));
    }
    interrupt_every(0);
    blocks.iter().for_each(Block::verify);
    drop((blocks, guards));
    if CHILD.load(Ordering::Relaxed) {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    assert_eq!(FORKS.load(Ordering::Relaxed), 0);
    assert_eq!(FAILED.load(Ordering::Relaxed), 0, "children that did not end well");
}

// ---- The end of a thread and of the process, in every order ----

/// Blocks that a thread-local frees at the thread's end, and a scope that it leaves; it makes new ones meanwhile.
struct AtEnd(RefCell<(Vec<Block>, Option<ArenaScope>)>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        let (mut blocks, guard) = std::mem::take(self.0.get_mut());
        let made = arena_scope(|| [Block::new(100, 8), Block::new(60_000, 8), Block::zeroed(300_000, 8)]);
        for block in &mut blocks {
            assert!(block.resize(block.size() / 2 + 70));
        }
        drop(guard);
        drop(work(130));
        drop((made, blocks));
        ENDED.fetch_add(1, Ordering::Relaxed);
    }
}

static ENDED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static FIRST: AtEnd = const { AtEnd(RefCell::new((vec![], None))) };
    static SECOND: AtEnd = const { AtEnd(RefCell::new((vec![], None))) };
}

static EXITS_LEFT: AtomicUsize = AtomicUsize::new(0);

/// The second of two `atexit` functions to run ends the process: 7 if all went well.
extern "C" fn exiting() {
    let done = std::panic::catch_unwind(|| {
        drop(work(131));
        let blocks = FOR_EXIT.swap(std::ptr::null_mut(), Ordering::SeqCst);
        if !blocks.is_null() {
            // SAFETY: the pointer came from `Box::into_raw` and is taken once.
            drop(unsafe { Box::from_raw(blocks) });
        }
    });
    let last = EXITS_LEFT.fetch_sub(1, Ordering::SeqCst) == 1;
    if done.is_err() || last {
        let well = done.is_ok() && ENDED.load(Ordering::SeqCst) == 2;
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(if well { 7 } else { 8 }) };
    }
}

/// What a thread can do first: registrations run in the reverse of this order at its end.
fn begin(what: usize) {
    match what {
        0 => FIRST.with(|end| end.0.borrow_mut().0.extend(work(132))),
        1 => SECOND.with(|end| *end.0.borrow_mut() = (work(133), Some(ArenaScope::enter()))),
        2 => drop(arena_scope(|| Block::new(900, 8))),
        _ => {
            EXITS_LEFT.fetch_add(2, Ordering::SeqCst);
            FOR_EXIT.store(Box::into_raw(Box::new(work(134))), Ordering::SeqCst);
            // SAFETY: the function stays, as all code does.
            unsafe { assert_eq!((libc::atexit(exiting), libc::atexit(exiting)), (0, 0)) };
        }
    }
}

#[test]
fn thread_locals_and_atexit_functions_end_in_every_order() {
    if role().is_none() {
        let output = run_child("thread_locals_and_atexit_functions_end_in_every_order", "orders");
        assert!(output.status.success(), "{}: {}", output.status, text(&output));
        assert!(text(&output).contains("orders=24"));
        return;
    }
    let mut orders = 0;
    for number in 0..4usize.pow(4) {
        let order = [number % 4, number / 4 % 4, number / 16 % 4, number / 64];
        if (0..4).any(|what| !order.contains(&what)) {
            continue;
        }
        orders += 1;
        // SAFETY: the child uses this thread and one of its own only.
        let pid = unsafe { libc::fork() };
        assert_ne!(pid, -1, "fork was refused");
        if pid == 0 {
            hang_at_most();
            let all = thread::spawn(move || {
                order.into_iter().for_each(begin);
                exit(0) // this thread's destructors first, then the `atexit` functions
            });
            let _never = all.join();
            // SAFETY: ends the child at once; the thread should have.
            unsafe { libc::_exit(9) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7,
            "{order:?}: {status:#x}"
        );
    }
    println!("orders={orders}");
}

// ---- The end of the stack ----

/// Goes down until there is no stack left, with blocks of every level live.
fn deeper(level: usize) -> usize {
    let text = level.to_string();
    let block = Block::new(20 + level % 3_000, 8);
    let levels = arena_scope(|| deeper(std::hint::black_box(level + 1)));
    block.verify();
    levels + text.len()
}

#[test]
fn a_stack_overflow_in_scopes_is_std_s_own_death() {
    if role().is_none() {
        let output = run_child("a_stack_overflow_in_scopes_is_std_s_own_death", "deep");
        let text = text(&output);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {text}", output.status);
        assert!(text.contains("has overflowed its stack"), "{text}");
        assert!(!text.contains("stepalloc:") && !text.contains("panicked"), "{text}");
        return;
    }
    println!("{}", arena_scope(|| deeper(0)));
}
