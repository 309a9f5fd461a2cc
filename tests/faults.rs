//! Every system call made to fail: one after another, each and all from it on, and by kind. Nothing is lost, nothing is
//! wrong, nothing hangs or dies.
//!
//! `RUSTFLAGS='--cfg stepalloc_faults' CARGO_TARGET_DIR=target/faults cargo test --test faults` builds the crate with a
//! seam under its system calls; without it this file is empty. Each run is a forked child: the parent opens no scope and
//! makes no large block, so that each child makes the reservation anew and the same calls in the same order.
#![cfg(stepalloc_faults)]

mod support;

use std::alloc::Layout;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stepalloc::faults;
use stepalloc::{
    arena_scope, arena_scope_report, cleanup_tensor_arena, heap_stats, in_arena, init_tensor_arena, outside_scope,
    stats, tensor_arena, trim, try_tensor_arena, AlignedBuf, AllocError, Arena, ArenaScope, Pool, Retain, StepAlloc,
    TensorArenaError,
};
use support::{in_thread, is_uniform, set_limit, Block, Random};

#[global_allocator]
static GLOBAL: StepAlloc = StepAlloc::new();

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

// ---- The program ----

/// Small and large blocks in a scope, a part of them resized, freed and made again, zeroed ones among them; what escapes.
fn step(random: &mut Random, small: usize, large: usize) -> Vec<Block> {
    arena_scope(|| {
        let mut blocks: Vec<Block> = vec![];
        for number in 0..small {
            let size = random.size(8 * KIB);
            blocks.push(match number % 3 {
                0 => Block::zeroed(size, 8),
                _ => Block::new(size, if number % 7 == 0 { 256 } else { 8 }),
            });
            if number % 5 == 0 {
                let which = random.below(blocks.len());
                assert!(blocks[which].resize(random.size(4 * KIB)));
            }
            if number % 3 == 0 {
                drop(blocks.swap_remove(random.below(blocks.len())));
            }
        }
        for number in 0..large {
            let size = 20 * KIB + random.below(200 * KIB);
            blocks.push(match number % 2 {
                0 => Block::zeroed(size, 64),
                _ => Block::new(size, 8),
            });
            let which = random.below(blocks.len());
            let size = 10 * KIB + random.below(400 * KIB);
            assert!(number % 3 != 0 || blocks[which].resize(size));
        }
        blocks.iter().for_each(Block::verify);
        let mut kept = outside_scope(|| Vec::with_capacity(12));
        while kept.len() < 12.min(blocks.len()) {
            kept.push(blocks.swap_remove(random.below(blocks.len())));
        }
        kept
    })
}

/// Zeroed blocks of all sizes, one behind the other over whatever the memory held: each sees itself to be zero.
fn zeroed_everywhere() {
    arena_scope(|| {
        let large = [400, 150, 64, 9, 1_300, 20]
            .map(|kib| kib * KIB)
            .map(|size| Block::zeroed(size, 8));
        let small: Vec<Block> = (0..200).map(|n| Block::zeroed(1 + n * 37 % 8_000, 8)).collect();
        drop((large, small));
    });
}

/// Long enough for the arena to give back what no step has used.
fn time_goes_by() {
    for _ in 0..4 {
        faults::later(31_000);
        for _ in 0..40 {
            arena_scope(|| drop((Block::new(10 * KIB, 8), Block::new(100, 8))));
        }
    }
}

/// A counted scope that makes so many blocks that its table grows.
fn counted() {
    let (kept, report) = arena_scope_report(|| {
        let mut blocks: Vec<Block> = (0..2_500).map(|n| Block::new(8 + n % 50, 8)).collect();
        // Some of them all along, so that those are among them that a table which could not grow has missed.
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 70 == 0
        });
        blocks
    });
    if report.complete && report.fallbacks.total() == 0 {
        assert!(report.blocks >= 2_500 && report.escapees >= 35, "{report:?}");
    }
    drop(kept);
}

fn shorter(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.iter().for_each(Block::verify);
    let half = blocks.len() / 2;
    blocks.truncate(half);
    blocks
}

/// One thread's life; what outlives it.
fn thread(seed: u64) -> Vec<Block> {
    let mut random = Random(seed);
    let mut kept = step(&mut random, 500, 4);
    kept = shorter(kept);
    trim();
    zeroed_everywhere();
    kept.extend(step(&mut random, 150, 8));
    time_goes_by();
    zeroed_everywhere();
    counted();
    kept = shorter(kept);
    let figures = stats();
    assert_eq!(
        figures.reserved_bytes,
        figures.committed_bytes + figures.uncommitted_bytes
    );
    assert!(heap_stats().in_use_bytes <= figures.in_use_bytes);
    kept.extend(step(&mut random, 60, 3));
    kept.iter().for_each(Block::verify);
    kept
}

/// Threads that end and leave blocks behind, and one that frees what a living one has made.
fn threads() {
    let mut first = in_thread(|| thread(11));
    first.extend(in_thread(|| {
        let mine = thread(12);
        let mine = in_thread(move || {
            let freed = shorter(mine);
            zeroed_everywhere();
            freed
        });
        zeroed_everywhere();
        mine
    }));
    // Nobody owns these segments now: their pages are given back by who frees.
    let rest = in_thread(move || shorter(first));
    in_thread(zeroed_everywhere);
    drop(rest);
    in_thread(zeroed_everywhere);
}

fn refused<T>(result: Result<T, AllocError>) -> Option<T> {
    match result {
        Ok(made) => Some(made),
        Err(AllocError::OutOfMemory) => None,
        Err(other) => panic!("refused for another reason: {other}"),
    }
}

/// An arena's blocks, zeroed ones over memory that was used, given back in part and kept. What is refused is left out.
fn arena_steps(arena: &mut Arena) {
    // A block that has a mapping of its own, never touched.
    let alone = refused(arena.try_alloc_layout(Layout::from_size_align(3 * MIB, 16).unwrap()));
    assert!(alone.is_none_or(|block| block.addr().get() % 16 == 0));
    let retain = [Retain::UpTo(300 * KIB), Retain::None, Retain::All];
    for (round, retain) in retain.into_iter().enumerate() {
        let mut made: Vec<&mut [u8]> = vec![];
        for size in [100 * KIB, 10, 500 * KIB, 460 * KIB, 3_000] {
            let layout = Layout::from_size_align(size, 16).unwrap();
            let Some(block) = refused(arena.try_alloc_layout_zeroed(layout)) else {
                continue;
            };
            // SAFETY: the block was just made, this long, and is zero.
            let block = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), size) };
            assert!(
                is_uniform(block, 0),
                "round {round}: a block of {size} bytes is not zero"
            );
            block.fill(made.len() as u8 + 1);
            made.push(block);
        }
        for (number, block) in made.iter().enumerate() {
            assert!(
                is_uniform(block, number as u8 + 1),
                "round {round}: block {number} changed"
            );
        }
        arena.reset_with(retain);
        let figures = arena.stats();
        assert!(figures.committed_bytes <= figures.reserved_bytes);
    }
}

fn explicit() {
    for _ in 0..2 {
        let mut arena = Arena::builder().block_size(2 * MIB).build();
        arena_steps(&mut arena);
        arena.scope(|scope| {
            if let Some(text) = refused(scope.try_alloc_str("kept")) {
                assert_eq!(text, "kept");
            }
        });
    }
    let pool: Pool<[u64; 9]> = Pool::new();
    let objects: Vec<_> = (0..2_000u64).map(|n| pool.alloc([n; 9])).collect();
    assert!(objects.iter().zip(0..).all(|(object, n)| **object == [n; 9]));
    let zeros: AlignedBuf<u64> = AlignedBuf::zeroed(60_000);
    assert!(zeros.iter().all(|&zero| zero == 0));
    drop((objects, zeros));
    let made = init_tensor_arena(Arena::builder().block_size(2 * MIB));
    if made.is_err() {
        assert_eq!(made, Err(TensorArenaError::Alloc(AllocError::OutOfMemory)));
        drop(try_tensor_arena().unwrap()); // made on first use
    }
    tensor_arena().scope(|scope| {
        if let Some(sevens) = refused(scope.try_alloc_slice_fill(9_000, 7u32)) {
            assert!(sevens.iter().all(|&seven| seven == 7));
        }
    });
    cleanup_tensor_arena().unwrap();
}

fn program() {
    threads();
    in_thread(|| arena_scope(explicit));
}

/// What must be so when the calls work again.
fn nothing_is_lost() {
    // Spans that were freed remotely are folded by who trims.
    trim();
    let figures = stats();
    assert_eq!(figures.in_use_bytes, 0, "all blocks were freed: {figures:?}");
    if figures.reserved_bytes != 0 {
        in_thread(|| {
            arena_scope(|| {
                let blocks = [
                    Block::zeroed(100, 8),
                    Block::zeroed(9_000, 8),
                    Block::zeroed(4 * MIB, 64),
                ];
                assert!(
                    blocks.iter().all(|block| in_arena(block.addr() as *const u8)),
                    "the arena serves again"
                );
            });
            let _scope = ArenaScope::enter();
            assert!(heap_stats().has_segment);
        });
    }
    // The last arena's first block waits for the next arena.
    let last = Arena::builder().block_size(2 * MIB).build();
    assert_eq!(*last.alloc(1), 1);
    drop(last);
    let mappings = i64::from(figures.reserved_bytes != 0) + 1;
    assert_eq!(faults::held(), mappings, "the reservation and the waiting block");
}

// ---- Its runs ----

/// What a child tells its parent, in memory that both see.
struct Told {
    calls: AtomicU64,
    failed: AtomicU64,
    fallbacks: AtomicU64,
    reserved: AtomicU64,
    /// By kind: its calls, in the order of `KINDS`.
    kinds: [AtomicU64; KINDS.len()],
}

const KINDS: [&str; 12] = [
    "sysconf",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "mincore",
    "getrlimit",
    "getrusage",
    "open",
    "read",
    "close",
    "clock_gettime",
];

fn told() -> &'static Told {
    // SAFETY: a fresh mapping, zero and large enough, is a valid `Told`, and it is never unmapped.
    unsafe {
        let p = libc::mmap(
            std::ptr::null_mut(),
            size_of::<Told>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANON,
            -1,
            0,
        );
        assert_ne!(p, libc::MAP_FAILED);
        &*p.cast::<Told>()
    }
}

/// Which calls fail: those that `fails` says, by these numbers.
struct Plan {
    fails: faults::Plan,
    first: u64,
    last: u64,
    kind: usize,
    every: u64,
}

impl Plan {
    fn begin(&self) {
        FIRST.store(self.first, Relaxed);
        LAST.store(self.last, Relaxed);
        KIND.store(self.kind as u64, Relaxed);
        EVERY.store(self.every, Relaxed);
        faults::follow(Some(self.fails));
    }
}

const NOTHING: Plan = Plan {
    fails: by_number,
    first: 0,
    last: 0,
    kind: 0,
    every: 1,
};

/// The plan of a child. Set in the child alone, so that tests do not disturb each other.
static FIRST: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);
static KIND: AtomicU64 = AtomicU64::new(0);
static EVERY: AtomicU64 = AtomicU64::new(1);
/// Calls of each kind so far.
static SEEN: [AtomicU64; KINDS.len()] = [const { AtomicU64::new(0) }; KINDS.len()];

fn kind_of(call: &str) -> usize {
    KINDS.iter().position(|&kind| kind == call).unwrap_or(usize::MAX)
}

fn by_number(call: &'static str, number: u64) -> bool {
    SEEN[kind_of(call)].fetch_add(1, Relaxed);
    (FIRST.load(Relaxed)..=LAST.load(Relaxed)).contains(&number)
}

fn by_kind(call: &'static str, _number: u64) -> bool {
    let kind = kind_of(call);
    let number = SEEN[kind].fetch_add(1, Relaxed);
    kind as u64 == KIND.load(Relaxed) && number % EVERY.load(Relaxed) == 0
}

/// Calls fail by a stream of numbers that `first` seeds.
fn by_chance(_call: &'static str, number: u64) -> bool {
    let mut random = Random(FIRST.load(Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number << 20 ^ 1);
    random.next();
    random.below(EVERY.load(Relaxed) as usize) == 0
}

/// Runs the program in a child with the plan; panics unless it ended well.
fn run(told: &Told, plan: &Plan, what: &str) {
    in_child(what, || {
        // A limit, so that the reservation asks how much there is.
        set_limit(libc::RLIMIT_AS, 1 << 46);
        plan.begin();
        program();
        faults::follow(None);
        told.calls.store(faults::calls(), Relaxed);
        told.failed.store(faults::failed(), Relaxed);
        told.fallbacks.store(stats().fallbacks.total(), Relaxed);
        told.reserved.store(stats().reserved_bytes as u64, Relaxed);
        for (seen, kind) in SEEN.iter().zip(&told.kinds) {
            kind.store(seen.load(Relaxed), Relaxed);
        }
        nothing_is_lost();
    });
}

fn in_child(what: &str, child: impl FnOnce()) {
    // SAFETY: the child uses this thread and threads of its own only, and ends by `_exit`.
    let pid = unsafe { libc::fork() };
    assert_ne!(pid, -1, "fork was refused");
    if pid == 0 {
        // A child that hangs is ended.
        // SAFETY: asks for a signal.
        unsafe { libc::alarm(60) };
        let what = what.to_string();
        std::panic::set_hook(Box::new(move |panic| {
            let text = format!("{what}: {panic}\n");
            // SAFETY: the buffer is as long as said.
            unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        }));
        let done = catch_unwind(AssertUnwindSafe(|| {
            assert_eq!(faults::calls(), 0, "the parent has made calls");
            child();
        }));
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(
        libc::WIFEXITED(status),
        "{what}: ended by signal {}",
        libc::WTERMSIG(status)
    );
    assert_eq!(libc::WEXITSTATUS(status), 0, "{what}: panicked");
}

fn get(number: &AtomicU64) -> u64 {
    number.load(Relaxed)
}

/// The numbers of one run without a fault.
fn unharmed() -> &'static Told {
    let told = told();
    run(told, &NOTHING, "no fault");
    assert_eq!((get(&told.failed), get(&told.fallbacks)), (0, 0));
    for (kind, calls) in KINDS.iter().zip(&told.kinds) {
        assert!(get(calls) > 0, "the program never calls {kind}");
    }
    told
}

/// A run for each call that the program makes.
fn each_number(plan: impl Fn(u64) -> Plan, what: &str, check: impl Fn(&Told, &str)) {
    let calls = get(&unharmed().calls);
    let told = told();
    for number in 1..=calls {
        let what = format!("call {number} of {calls} {what}");
        run(told, &plan(number), &what);
        check(told, &what);
    }
}

#[test]
fn each_call_fails_alone() {
    let alone = |number| Plan {
        first: number,
        last: number,
        ..NOTHING
    };
    each_number(alone, "alone", |told, what| {
        assert_eq!(get(&told.failed), 1, "{what} was not reached");
        assert!(
            get(&told.reserved) > 1 << 40,
            "{what}: one refusal does not cost the reservation"
        );
        // A thread that was refused the head of its segment asks again on the 64th request.
        let fallbacks = get(&told.fallbacks);
        assert!(fallbacks <= 64, "{what}: {fallbacks} fallbacks");
    });
}

#[test]
fn each_call_fails_and_all_after_it() {
    let from = |number| Plan {
        first: number,
        last: u64::MAX,
        ..NOTHING
    };
    each_number(from, "and all after it", |told, what| {
        assert!(get(&told.failed) > 0, "{what} was not reached");
    });
}

#[test]
fn each_kind_of_call_fails_always_and_every_other_time() {
    let told = told();
    for (kind, name) in KINDS.iter().enumerate() {
        for every in [1, 2, 3, 5] {
            let plan = Plan {
                fails: by_kind,
                kind,
                every,
                ..NOTHING
            };
            run(told, &plan, &format!("{name}, one in {every}"));
            // Where nothing is mapped, or the head of no segment is committed, some kinds are not called at all; this one is.
            let (failed, calls) = (get(&told.failed), get(&told.kinds[kind]));
            assert!(
                failed > 0 && failed == calls.div_ceil(every),
                "{name}: {failed} of {calls}"
            );
        }
    }
}

#[test]
fn calls_fail_by_chance() {
    let told = told();
    for seed in 1..=30 {
        for every in [2, 4, 16] {
            let plan = Plan {
                fails: by_chance,
                first: seed,
                every,
                ..NOTHING
            };
            run(told, &plan, &format!("by chance, seed {seed}, one in {every}"));
            assert!(get(&told.failed) > 0);
        }
    }
}

#[test]
fn what_could_not_be_given_back_is_given_back_the_next_time() {
    in_child("trim", || {
        in_thread(|| {
            arena_scope(|| {
                drop((0..500).map(|_| Block::new(3_000, 8)).collect::<Vec<_>>());
                drop(Block::new(MIB, 8));
            });
            faults::follow(Some(|call, _| call == "madvise"));
            assert_eq!(trim(), 0, "nothing was given back, and it says so");
            faults::follow(None);
            let given = trim();
            assert!(given > 2 * MIB, "{given} bytes of what was used");
            assert_eq!(trim(), 0, "all is given back");
        });
    });
}

#[test]
fn segments_whose_heads_were_refused_are_free_again() {
    in_child("heads", || {
        faults::follow(Some(|call, _| call == "mprotect"));
        // More threads than there are segments.
        for _ in 0..300 {
            in_thread(|| drop(arena_scope(|| Block::new(100, 8))));
        }
        assert_eq!(stats().fallbacks.commit_refused, 300);
        faults::follow(None);
        in_thread(|| {
            let block = arena_scope(|| Block::new(100, 8));
            assert!(in_arena(block.addr() as *const u8), "{:?}", stats());
        });
    });
}

// ---- How often the system is asked ----

fn seen(kind: &str) -> u64 {
    get(&SEEN[kind_of(kind)])
}

#[test]
fn memory_that_no_step_uses_is_given_back_once_in_scopes_and_outside() {
    in_child("aging", || {
        NOTHING.begin();
        for scopes in [true, false] {
            in_thread(|| {
                let step = |small: usize, large: usize| {
                    let scope = scopes.then(ArenaScope::enter);
                    drop((0..small).map(|_| Block::new(3_000, 8)).collect::<Vec<_>>());
                    drop((0..large).map(|_| Block::new(200 * KIB, 8)).collect::<Vec<_>>());
                    drop(scope);
                };
                let intervals = |count| {
                    for _ in 0..count {
                        faults::later(31_000);
                        (0..40).for_each(|_| step(1, 1));
                    }
                };
                step(2_000, 40);
                intervals(5);
                let given = seen("madvise");
                intervals(20);
                let more = seen("madvise") - given;
                assert!(more <= 2, "{more} times more, in scopes: {scopes}");
                let left = trim();
                assert!(left < MIB, "{left} bytes had not come back, in scopes: {scopes}");
            });
        }
    });
}

#[test]
fn what_lived_long_beside_others_is_given_back_once_when_it_is_freed() {
    in_child("outliving", || {
        NOTHING.begin();
        in_thread(|| {
            let intervals = |count| {
                for _ in 0..count {
                    faults::later(31_000);
                    (0..40).for_each(|_| drop(arena_scope(|| (Block::new(3_000, 8), Block::new(200 * KIB, 8)))));
                }
            };
            let mut blocks = arena_scope(|| (0..8_000).map(|_| Block::new(3_000, 8)).collect::<Vec<_>>());
            // All of it ages while it lives. Then nine of ten are freed, then the last.
            for keep in [10, usize::MAX] {
                intervals(5);
                let (mut at, before) = (0, seen("madvise"));
                blocks.retain(|_| {
                    at += 1;
                    at % keep == 0
                });
                intervals(30);
                let given = seen("madvise") - before;
                assert!((1..2_500).contains(&given), "{given} calls for 24 MB");
                intervals(30);
                let more = seen("madvise") - before - given;
                assert!(more <= 2, "{more} times more");
                let left = trim();
                assert!(left < MIB / 2, "{left} bytes had not come back with one of {keep} kept");
            }
        });
    });
}

#[test]
fn who_joins_no_pages_is_asked_ever_more_seldom() {
    fn advice_is_refused(call: &'static str, _number: u64) -> bool {
        SEEN[kind_of(call)].fetch_add(1, Relaxed);
        call == "madvise"
    }
    let step = || {
        arena_scope(|| {
            drop((0..80).map(|_| Block::new(MIB / 2, 8)).collect::<Vec<_>>());
            drop((0..4_000).map(|_| Block::new(3_000, 8)).collect::<Vec<_>>());
        });
    };
    in_child("joining", || {
        for refused in [true, false] {
            in_thread(move || {
                NOTHING.begin();
                step();
                if refused {
                    faults::follow(Some(advice_is_refused));
                }
                let before = seen("madvise");
                (0..200).for_each(|_| step());
                let asked = seen("madvise") - before;
                // Refused: about ten times in each area, for the wait doubles. Else three times for each of 26 ranges.
                let most = if refused { 30 } else { 90 };
                assert!((8..most).contains(&asked), "asked {asked} times, refused: {refused}");
            });
        }
    });
}

#[test]
fn freeing_what_dead_threads_left_costs_few_calls() {
    in_child("orphans", || {
        NOTHING.begin();
        let blocks = || arena_scope(|| (0..5_000).map(|_| Block::new(1_000, 8)).collect::<Vec<_>>());
        let blocks = in_thread(blocks);
        let before = faults::calls();
        drop(blocks);
        let calls = faults::calls() - before;
        assert!((1..100).contains(&calls), "{calls} calls for 5 MB");
    });
}

#[test]
fn a_system_that_refuses_all_memory_is_not_asked_for_ever() {
    in_child("in vain", || {
        faults::follow(Some(|call, _| call == "mmap"));
        in_thread(|| (0..5_000).for_each(|_| drop(arena_scope(|| Block::new(100, 8)))));
        assert_eq!(stats().fallbacks.no_reservation, 5_000);
        let calls = faults::calls();
        assert!(calls < 100, "{calls} calls");
    });
}
