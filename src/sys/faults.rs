//! Faults on demand: the system calls of `unix.rs`, each of which a test can make fail.
//!
//! Only `--cfg stepalloc_faults` builds this file; without it `unix.rs` names `libc` itself, and nothing is left of the
//! seam. A call that fails has done nothing and answers as the system would. The clock stands where the test puts it, so
//! that the same program makes the same calls each time, however slow the machine.
//!
//! Threads. All counters are SeqCst: tests compare them, and nothing here has to be quick.

use core::ptr;
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering::SeqCst};

// What is not defined below is the system's own.
pub use ::libc::*;

/// Decides whether a call fails: it is told the call's name and the call's number, from 1. It must not allocate.
pub type Plan = fn(call: &'static str, number: u64) -> bool;

static PLAN: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
static CALLS: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicI64 = AtomicI64::new(0);
static MILLIS: AtomicU64 = AtomicU64::new(1);

/// From now on `plan` decides which calls fail; `None` lets all pass.
pub fn follow(plan: Option<Plan>) {
    PLAN.store(plan.map_or(ptr::null_mut(), |plan| plan as *mut ()), SeqCst);
}

/// How many calls were made.
pub fn calls() -> u64 {
    CALLS.load(SeqCst)
}

/// How many calls were made to fail.
pub fn failed() -> u64 {
    FAILED.load(SeqCst)
}

/// Mappings made and not given back; one whose end was refused counts as given back.
pub fn held() -> i64 {
    HELD.load(SeqCst)
}

/// Moves the clock on.
pub fn later(millis: u64) {
    MILLIS.fetch_add(millis, SeqCst);
}

fn fails(call: &'static str) -> bool {
    let number = CALLS.fetch_add(1, SeqCst) + 1;
    let plan = PLAN.load(SeqCst);
    if plan.is_null() {
        return false;
    }
    // SAFETY: only `follow` stores here, and what it stores was a `Plan`.
    let plan = unsafe { core::mem::transmute::<*mut (), Plan>(plan) };
    let fails = plan(call, number);
    FAILED.fetch_add(u64::from(fails), SeqCst);
    fails
}

/// The calls as `libc` has them, with what they answer when they fail.
macro_rules! calls {
    ($($name:ident($($argument:ident: $of:ty),*) -> $result:ty, $refused:expr;)*) => {$(
        /// As `libc` has it.
        ///
        /// # Safety
        /// That of the system call.
        pub unsafe fn $name($($argument: $of),*) -> $result {
            if fails(stringify!($name)) {
                return $refused;
            }
            // SAFETY: the caller's promise.
            unsafe { ::libc::$name($($argument),*) }
        }
    )*};
}

calls! {
    sysconf(name: c_int) -> c_long, -1;
    mprotect(p: *mut c_void, bytes: size_t, protection: c_int) -> c_int, -1;
    madvise(p: *mut c_void, bytes: size_t, advice: c_int) -> c_int, -1;
    mincore(p: *mut c_void, bytes: size_t, marks: *mut c_uchar) -> c_int, -1;
    getrlimit(resource: __rlimit_resource_t, limit: *mut rlimit) -> c_int, -1;
    getrusage(who: c_int, usage: *mut rusage) -> c_int, -1;
    open(path: *const c_char, flags: c_int) -> c_int, -1;
    read(file: c_int, into: *mut c_void, bytes: size_t) -> ssize_t, -1;
    close(file: c_int) -> c_int, -1;
}

/// As `libc` has it.
///
/// # Safety
/// That of the system call.
pub unsafe fn mmap(
    p: *mut c_void,
    bytes: size_t,
    protection: c_int,
    flags: c_int,
    file: c_int,
    at: off_t,
) -> *mut c_void {
    if fails("mmap") {
        return MAP_FAILED;
    }
    // SAFETY: the caller's promise.
    let made = unsafe { ::libc::mmap(p, bytes, protection, flags, file, at) };
    HELD.fetch_add(i64::from(made != MAP_FAILED && flags & MAP_FIXED == 0), SeqCst);
    made
}

/// As `libc` has it.
///
/// # Safety
/// That of the system call.
pub unsafe fn munmap(p: *mut c_void, bytes: size_t) -> c_int {
    HELD.fetch_sub(1, SeqCst);
    if fails("munmap") {
        return -1;
    }
    // SAFETY: the caller's promise.
    unsafe { ::libc::munmap(p, bytes) }
}

/// The clock that `later` moves, whichever is asked for.
///
/// # Safety
/// That of the system call.
pub unsafe fn clock_gettime(_clock: clockid_t, now: *mut timespec) -> c_int {
    if fails("clock_gettime") {
        return -1;
    }
    let millis = MILLIS.load(SeqCst) as i64;
    // SAFETY: by the caller's promise `now` is a `timespec`.
    unsafe { (*now).tv_sec = millis / 1_000 };
    // SAFETY: as above.
    unsafe { (*now).tv_nsec = millis % 1_000 * 1_000_000 };
    0
}
