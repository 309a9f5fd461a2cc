//! What breaks into a thread's work: signals, the end of its stack, its own end, in every order.
#![cfg(unix)]

mod support;

use std::cell::RefCell;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use stepalloc::{arena_scope, heap_stats, outside_scope, stats, ArenaScope, StepAlloc};
use support::{child_passes, figure, in_thread, role, run_child, text, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

/// Blocks of all kinds in scopes, verified; some that outlive their scope.
fn work(seed: u64) -> Vec<Block> {
    let mut random = Random(seed);
    let mut kept = vec![];
    for _ in 0..5 {
        arena_scope(|| {
            let mut blocks: Vec<Block> = (0..30).map(|_| Block::zeroed(random.size(40_000), 8)).collect();
            blocks.retain_mut(|block| block.size() % 3 != 0 && block.resize(block.size() * 2));
            outside_scope(|| kept.push(Block::new(300_000, 8)));
            kept.extend(blocks.pop());
        });
    }
    kept
}

// ---- Signals ----

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_signal: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A timer that interrupts the process as often as its clock of used time ticks, in the program and in system calls; the
/// handler has no `SA_RESTART`. (The alarm that ends a hanging child is of the other clock.)
fn interrupt_often() {
    // SAFETY: zero bytes are valid values of these plain structs; the handler only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGPROF, &action, std::ptr::null_mut()), 0);
        let often = libc::timeval {
            tv_sec: 0,
            tv_usec: 200,
        };
        let timer = libc::itimerval {
            it_interval: often,
            it_value: often,
        };
        assert_eq!(libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()), 0);
    }
}

#[test]
fn signals_at_any_point_change_nothing() {
    const TEST: &str = "signals_at_any_point_change_nothing";
    if role().is_none() {
        let text = child_passes(TEST, "interrupted");
        assert!(figure(&text, "signals") >= 100, "{text}");
        assert_eq!(figure(&text, "fallbacks"), 0, "{text}");
        return;
    }
    interrupt_often();
    let mut seed = 1;
    // Until enough signals came, however slow the machine.
    while SIGNALS.load(Ordering::Relaxed) < 150 {
        drop(work(seed));
        drop(in_thread(move || work(seed + 1)));
        stepalloc::trim();
        seed += 2;
        assert!(seed < 1_000_000, "no signal comes");
    }
    println!(
        "signals={} fallbacks={}",
        SIGNALS.load(Ordering::Relaxed),
        stats().fallbacks.total()
    );
}

// ---- The end of the stack ----

#[allow(unconditional_recursion, reason = "to its end")]
fn descend(depth: usize) -> usize {
    let block = Block::new(16 + depth % 100, 8);
    let below = descend(black_box(depth + 1));
    block.verify();
    below + block.size()
}

#[test]
fn a_stack_that_ends_in_a_scope_ends_the_process_with_the_guards_message() {
    const TEST: &str = "a_stack_that_ends_in_a_scope_ends_the_process_with_the_guards_message";
    if role().is_some() {
        let thread = std::thread::Builder::new().stack_size(256 << 10);
        let thread = thread.spawn(|| arena_scope(|| arena_scope(|| black_box(descend(0)))));
        let _ = thread.unwrap().join();
        return;
    }
    let output = run_child(TEST, "deep");
    let text = text(&output);
    // std's handler names the overflow and aborts; a stray access anywhere else would be a plain SIGSEGV.
    assert!(text.contains("has overflowed its stack"), "{}: {text}", output.status);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
}

// ---- Thread-local destructors ----

/// On its thread's end: verifies and frees what it holds, and makes, leaves and frees more, in scopes and out of them.
struct AtEnd {
    blocks: RefCell<Vec<Block>>,
    seed: u64,
}

static ENDED: AtomicUsize = AtomicUsize::new(0);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.blocks.borrow().iter().for_each(Block::verify);
        let kept = work(self.seed);
        self.blocks.borrow_mut().clear();
        arena_scope(|| drop(work(self.seed + 1)));
        kept.iter().for_each(Block::verify);
        std::mem::forget(ArenaScope::enter());
        drop(kept);
        ENDED.fetch_add(1, Ordering::Relaxed);
    }
}

thread_local! {
    static A: AtEnd = AtEnd { blocks: RefCell::new(work(11)), seed: 12 };
    static B: AtEnd = AtEnd { blocks: RefCell::new(work(21)), seed: 22 };
    static C: AtEnd = AtEnd { blocks: RefCell::new(vec![]), seed: 32 };
}

fn use_them(step: char) {
    match step {
        'a' => A.with(|end| end.blocks.borrow_mut().extend(work(13))),
        'b' => B.with(|end| end.blocks.borrow_mut().push(Block::new(200_000, 8))),
        'c' => C.with(|end| end.blocks.borrow_mut().extend(work(33))),
        // The arena's own end is registered with its first claim: this is where it stands in the order.
        _ => drop(arena_scope(|| Block::new(100, 8))),
    }
}

#[test]
fn thread_local_destructors_allocate_and_free_in_every_order() {
    let mut orders = vec![String::new()];
    for _ in 0..4 {
        orders = orders
            .iter()
            .flat_map(|order| {
                let left = "abcs".chars().filter(|step| !order.contains(*step));
                left.map(|step| format!("{order}{step}")).collect::<Vec<_>>()
            })
            .collect();
    }
    assert_eq!(orders.len(), 24);
    for order in &orders {
        let before = ENDED.load(Ordering::Relaxed);
        in_thread(|| order.chars().for_each(use_them));
        assert_eq!(ENDED.load(Ordering::Relaxed) - before, 3, "{order}");
    }
}

// ---- Threads that come and go ----

/// Seconds by `STEPALLOC_CHURN_SECONDS`; without, a fixed number of threads.
#[test]
fn threads_come_and_go_and_leave_blocks_behind() {
    let seconds: Option<u64> = std::env::var("STEPALLOC_CHURN_SECONDS")
        .ok()
        .map(|s| s.parse().unwrap());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (give, take) = channel::<Vec<Block>>();
    let (mut kept, mut random, mut rounds): (Vec<Block>, _, u64) = (vec![], Random(9), 0);
    while end.map_or(rounds < 40, |end| Instant::now() < end) {
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (give, seed) = (give.clone(), rounds * 4 + n + 1);
                std::thread::spawn(move || {
                    give.send(work(seed)).unwrap();
                    heap_stats().has_segment
                })
            })
            .collect();
        assert!(
            threads.into_iter().all(|thread| thread.join().unwrap()),
            "each has a segment"
        );
        kept.extend(take.try_iter().flatten());
        while kept.len() > 200 {
            kept.swap_remove(random.below(kept.len()));
        }
        rounds += 1;
    }
    kept.iter().for_each(Block::verify);
    assert!(rounds >= 1 && kept.len() > 10);
    assert!(stats().segments_peak < 64, "segments are taken over: {:?}", stats());
}
