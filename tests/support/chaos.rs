//! A global allocator that opens and closes scopes on its own at arbitrary requests, under any program.
//!
//! At each request a random number of the thread decides whether to enter a scope, leave one (the newest, or any), forget
//! one, leave all, suspend all around this request, or to enter so many that the frame table is full. Fresh memory is
//! filled with junk, freed memory overwritten, `alloc_zeroed` and what `realloc` keeps are verified, and every live block
//! stands in the shadow map. It allocates nothing itself: guards are kept in a fixed array of the thread, without a
//! destructor, so that a thread's death forgets them.
//!
//! `STEPALLOC_CHAOS_SEED=n` replays: a thread's choices follow from the seed and the number that `name_thread` gave it
//! (or the order in which threads came). With `STEPALLOC_CHAOS_SHARE` set a process says at its end what the arena served of
//! it, and fails where that is less than nine in ten: for programs that do not know of the chaos in them.

use super::random::Random;
use super::shadow;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stepalloc::{arena_scope, outside_scope, scope_depth, ArenaScope, CountedScope};

/// Guards kept by a thread: more than the 64 frames of its heap, so that the frame table overflows too.
const GUARDS: usize = 80;
const FRESH: u8 = 0xa5;
const FREED: u8 = 0xdf;

enum Guard {
    Plain(#[allow(dead_code, reason = "kept for its drop")] ArenaScope),
    Counted(CountedScope),
}

/// An allocator under chaos.
pub struct Chaos<A> {
    inner: A,
}

impl<A> Chaos<A> {
    /// Over `inner`, which hands out stepalloc's memory or is broken on purpose.
    pub const fn over(inner: A) -> Chaos<A> {
        Chaos { inner }
    }
}

/// Guards that are kept are never dropped by the slot itself: it has no destructor, so that it can be used to a thread's end.
type Kept = Cell<ManuallyDrop<Option<Guard>>>;

struct Thread {
    random: Cell<Option<Random>>,
    busy: Cell<bool>,
    open: Cell<usize>,
    guards: [Kept; GUARDS],
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            random: Cell::new(None),
            busy: Cell::new(false),
            open: Cell::new(0),
            guards: [const { Cell::new(ManuallyDrop::new(None)) }; GUARDS],
        }
    };
}

static SEED: AtomicU64 = AtomicU64::new(0);
static THREADS: AtomicU64 = AtomicU64::new(1 << 32);

/// The process's seed: `STEPALLOC_CHAOS_SEED`, or the time. Said once on standard error.
pub fn seed() -> u64 {
    let known = SEED.load(Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: nothing in these tests changes the environment; the answer is null or a C string. `time` takes null.
    let asked = unsafe {
        let text = libc::getenv(c"STEPALLOC_CHAOS_SEED".as_ptr());
        if text.is_null() {
            libc::time(std::ptr::null_mut()) as u64 * 1_000_003 + u64::from(std::process::id())
        } else {
            libc::strtoull(text, std::ptr::null_mut(), 10)
        }
    };
    let asked = asked.max(1);
    match SEED.compare_exchange(0, asked, Relaxed, Relaxed) {
        Ok(_) => {
            shadow::say(format_args!("chaos: replay with STEPALLOC_CHAOS_SEED={asked}"));
            // SAFETY: as above; registers a function that only reads counters and prints.
            unsafe {
                if !libc::getenv(c"STEPALLOC_CHAOS_SHARE".as_ptr()).is_null() {
                    libc::atexit(share_at_exit);
                }
            }
            asked
        }
        Err(other) => other,
    }
}

/// Makes this thread's choices depend on the seed and `number` alone from here on.
pub fn name_thread(number: u64) {
    THREAD.with(|thread| thread.random.set(Some(Random::new(seed() ^ number << 32))));
}

impl Thread {
    fn random(&self) -> Random {
        self.random
            .get()
            .unwrap_or_else(|| Random::new(seed() ^ THREADS.fetch_add(1 << 32, Relaxed)))
    }

    fn take(&self, index: usize) -> Option<Guard> {
        ManuallyDrop::into_inner(self.guards[index].replace(ManuallyDrop::new(None)))
    }

    fn keep(&self, guard: Guard) {
        let open = self.open.get();
        if open < GUARDS {
            self.guards[open].set(ManuallyDrop::new(Some(guard)));
            self.open.set(open + 1);
        }
    }

    /// Takes any guard out; the newest moves into its place, so that the order is lost too.
    fn pick(&self, index: usize) -> Option<Guard> {
        let last = self.open.get().checked_sub(1)?;
        self.open.set(last);
        let guard = self.take(index.min(last));
        if index < last {
            let moved = self.take(last);
            self.guards[index].set(ManuallyDrop::new(moved));
        }
        guard
    }

    fn leave(&self, index: usize) {
        match self.pick(index) {
            // A report reads the thread's table: it must be right whatever was left before.
            Some(Guard::Counted(scope)) if index % 2 == 0 => {
                let report = scope.leave();
                let sane = report.escapees <= report.blocks && report.escapee_bytes <= report.bytes;
                if report.complete && !sane {
                    shadow::die(format_args!(
                        "chaos: {} of {} blocks escaped",
                        report.escapees, report.blocks
                    ));
                }
            }
            other => drop(other),
        }
    }
}

/// What to do around a request itself.
#[derive(Clone, Copy, PartialEq)]
enum Around {
    Nothing,
    Outside,
    ScopeInOutside,
    LeaveInOutside,
    Scope,
}

/// Opens and closes scopes as the thread's random numbers say.
fn act(thread: &Thread, random: &mut Random) -> Around {
    let open = thread.open.get();
    if open == 0 {
        if !random.one_in(16) {
            thread.keep(Guard::Plain(ArenaScope::enter()));
        }
        return Around::Nothing;
    }
    match random.below(128) {
        0..=4 => thread.keep(Guard::Plain(ArenaScope::enter())),
        5..=9 => thread.leave(open - 1),
        10 | 11 => thread.leave(random.below(open)),
        12 if random.one_in(4) => std::mem::forget(thread.pick(random.below(open))),
        13 if random.one_in(4) => {
            while thread.open.get() != 0 {
                thread.leave(random.below(thread.open.get()));
            }
        }
        14 if random.one_in(64) => {
            while thread.open.get() < GUARDS {
                thread.keep(Guard::Plain(ArenaScope::enter()));
            }
        }
        15 if random.one_in(4) => thread.keep(Guard::Counted(ArenaScope::enter_counted())),
        16 if random.one_in(64) => {
            stepalloc::trim();
        }
        17 if random.one_in(64) => {
            let stats = stepalloc::heap_stats();
            let parts = stats.table_bytes + stats.in_use_bytes + stats.pinned_bytes + stats.free_bytes;
            if parts != stats.committed_bytes {
                shadow::die(format_args!(
                    "chaos: heap_stats: {parts} is not {}",
                    stats.committed_bytes
                ));
            }
        }
        18 => return Around::Outside,
        19 => return Around::ScopeInOutside,
        20 => return Around::LeaveInOutside,
        21 => return Around::Scope,
        _ => {}
    }
    Around::Nothing
}

/// Of how many requests one is asked for its scopes: a thread whose frame table is full takes microseconds to answer in a
/// debug build.
const SAMPLE: usize = 8;

/// Runs `request` with scopes changed before it or around it; beside its result, of a sample, whether it ran in a scope.
fn with_chaos<R>(request: impl FnOnce() -> R) -> (R, Option<bool>) {
    THREAD.with(|thread| {
        if thread.busy.replace(true) {
            // The allocator, or a guard's report, asks on its own behalf.
            return (request(), None);
        }
        let mut random = thread.random();
        let around = act(thread, &mut random);
        let asked = random.one_in(SAMPLE);
        let inside = || {
            let active = asked.then(|| scope_depth() > 0);
            (request(), active)
        };
        let done = match around {
            Around::Nothing => inside(),
            Around::Outside => outside_scope(inside),
            Around::ScopeInOutside => outside_scope(|| arena_scope(inside)),
            Around::LeaveInOutside => outside_scope(|| {
                thread.leave(random.below(thread.open.get().max(1)));
                inside()
            }),
            Around::Scope => arena_scope(inside),
        };
        thread.random.set(Some(random));
        thread.busy.set(false);
        done
    })
}

// ---- What was served by whom ----

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static IN_SCOPES: AtomicU64 = AtomicU64::new(0);
static SERVED: AtomicU64 = AtomicU64::new(0);
static SERVED_IN_SCOPES: AtomicU64 = AtomicU64::new(0);

/// Counts of a sample of the requests (allocations and moves by `realloc`) so far.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// All of them.
    pub requests: u64,
    /// Those that ran in a scope that was not suspended.
    pub in_scopes: u64,
    /// Those that the arena served, in a scope or not.
    pub served: u64,
    /// Those that ran in a scope and that the arena served.
    pub served_in_scopes: u64,
}

/// What the arena really served so far.
pub fn share() -> Share {
    Share {
        requests: REQUESTS.load(Relaxed),
        in_scopes: IN_SCOPES.load(Relaxed),
        served: SERVED.load(Relaxed),
        served_in_scopes: SERVED_IN_SCOPES.load(Relaxed),
    }
}

/// At the end of a process that does not ask itself.
extern "C" fn share_at_exit() {
    let share = share();
    let (requests, served) = (share.requests, share.served);
    shadow::say(format_args!(
        "chaos: the arena served {served} of {requests} requests sampled"
    ));
    if requests > 1_000 && served * 10 < requests * 9 {
        shadow::die(format_args!("chaos: it ran in the fallback"));
    }
}

/// Says and asserts that the arena served at least nine requests in ten, of all and of those in scopes.
pub fn assert_share() {
    let share = share();
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
    let (all, scopes) = (
        percent(share.served, share.requests),
        percent(share.served_in_scopes, share.in_scopes),
    );
    let requests = share.requests;
    shadow::say(format_args!(
        "chaos: the arena served {all:.1} % of {requests} requests sampled, {scopes:.1} % of those in scopes"
    ));
    assert!(requests > 1_000, "too few requests to say anything: {share:?}");
    assert!(all >= 90.0 && scopes >= 90.0, "chaos ran in the fallback: {share:?}");
}

fn note(p: *mut u8, layout: Layout, in_scope: Option<bool>) {
    let Some(in_scope) = in_scope else { return };
    let served = stepalloc::in_arena(p);
    REQUESTS.fetch_add(1, Relaxed);
    IN_SCOPES.fetch_add(u64::from(in_scope), Relaxed);
    SERVED.fetch_add(u64::from(served), Relaxed);
    SERVED_IN_SCOPES.fetch_add(u64::from(served && in_scope), Relaxed);
    if served && in_scope && layout.size() >= 64 && p.addr() % 64 != 0 {
        shadow::die(format_args!("chaos: {p:p} of {} bytes is not at a line", layout.size()));
    }
}

/// A checksum of the first `len` bytes; of long blocks, of both ends and of words between.
fn sum(p: *const u8, len: usize) -> u64 {
    // SAFETY: the callers' blocks are live and at least `len` bytes long; chaos has filled them, so they are initialised.
    let bytes = unsafe { std::slice::from_raw_parts(p, len) };
    let step = (len / 1024).max(1);
    let mut sum = 0u64;
    for at in (0..len.min(64))
        .chain((64..len).step_by(step))
        .chain(len.saturating_sub(64)..len)
    {
        sum = sum.rotate_left(7) ^ u64::from(bytes[at]);
    }
    sum
}

// SAFETY: hands on what `inner` hands out for the same layouts; guards are scope hints and change no block.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Chaos<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let (p, in_scope) = with_chaos(|| unsafe { self.inner.alloc(layout) });
        if !p.is_null() {
            shadow::add(p, layout);
            // SAFETY: the block is fresh and of this size.
            unsafe { p.write_bytes(FRESH, layout.size()) };
            note(p, layout, in_scope);
        }
        p
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let (p, in_scope) = with_chaos(|| unsafe { self.inner.alloc_zeroed(layout) });
        if !p.is_null() {
            shadow::add(p, layout);
            // SAFETY: the block is fresh, of this size, and must be zero.
            let bytes = unsafe { std::slice::from_raw_parts(p, layout.size()) };
            // Zero at first, and every byte as the one before it: one `memcmp`, quick in debug builds too.
            if bytes[0] != 0 || bytes[..bytes.len() - 1] != bytes[1..] {
                shadow::die(format_args!("chaos: {p:p} of {} bytes is not zero", layout.size()));
            }
            note(p, layout, in_scope);
        }
        p
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        shadow::remove(p, layout);
        // SAFETY: the caller gives the block up.
        unsafe { p.write_bytes(FREED, layout.size()) };
        // SAFETY: the caller's promise.
        with_chaos(|| unsafe { self.inner.dealloc(p, layout) });
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        shadow::remove(p, layout);
        let kept = layout.size().min(new_size);
        let before = sum(p, kept);
        // SAFETY: the caller's promise.
        let (new, in_scope) = with_chaos(|| unsafe { self.inner.realloc(p, layout, new_size) });
        if new.is_null() {
            shadow::add(p, layout);
            return new;
        }
        // SAFETY: the caller's promise that the new size makes a layout with this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        shadow::add(new, new_layout);
        if sum(new, kept) != before {
            shadow::die(format_args!(
                "chaos: realloc to {new:p} of {new_size} bytes changed what it kept"
            ));
        }
        // SAFETY: what follows the kept bytes is fresh, inside the new block.
        unsafe { new.add(kept).write_bytes(FRESH, new_size - kept) };
        if new != p {
            note(new, new_layout, in_scope);
        }
        new
    }
}
