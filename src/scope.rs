//! The doors to scopes: closures and guards over the thread's frames, and the reports of counted ones.
//!
//! Nothing here is `unsafe`, and nothing here can make memory unsafe: a scope is a hint where the thread's next hole
//! begins. A guard that is forgotten, dropped out of order, or dropped while the thread ends costs memory or time.

use crate::heap::Ticket;
use crate::thread::{self, Opened};
use core::marker::PhantomData;

/// Runs `f` in a scope: every allocation that this thread makes in it is a pointer bump in the thread's arena, and its
/// end makes the memory of all that was freed ready for the next scope, warm, in constant time.
///
/// What escapes stays valid, wherever it goes and whoever frees it. A panic in `f` leaves the scope too. Costs about as
/// much as one small allocation. Covers this thread's Rust allocations only: not what C code allocates, not what other
/// threads do meanwhile.
///
/// # Examples
/// ```
/// let kept = stepalloc::arena_scope(|| {
///     let temporary: Vec<u64> = (0..1000).collect();
///     temporary.iter().rev().copied().take(3).collect::<Vec<_>>()
/// });
/// assert_eq!(kept, [999, 998, 997]);
/// ```
#[inline]
pub fn arena_scope<R>(f: impl FnOnce() -> R) -> R {
    let _scope = ArenaScope::enter();
    f()
}

/// Runs `f` in a counted scope and says what the allocator saw.
///
/// Counting sends every allocation and free of the scope through a table: some tens of nanoseconds each. Use it to look
/// at a step now and then, not in every step.
///
/// # Examples
/// ```
/// let (sum, report) = stepalloc::arena_scope_report(|| (0..10).map(Box::new).map(|b| *b).sum::<u32>());
/// assert_eq!(sum, 45);
/// // In this program stepalloc is not the global allocator, and the report says so.
/// assert!(!report.installed);
/// assert_eq!(report.blocks, 0);
/// ```
pub fn arena_scope_report<R>(f: impl FnOnce() -> R) -> (R, ScopeReport) {
    let scope = ArenaScope::enter_counted();
    let result = f();
    (result, scope.leave())
}

/// Runs `f` with all scopes of this thread suspended: what it allocates goes where it would go outside any scope.
///
/// For what lives longer than a step: caches, lazily built statics, maps that grow. Scopes opened inside `f` work as
/// ever and end with it. A scope around it that is left inside `f` ends, and `f` stays outside.
///
/// # Examples
/// ```
/// use std::collections::HashMap;
/// let mut cache: HashMap<u32, String> = HashMap::new();
/// stepalloc::arena_scope(|| {
///     stepalloc::outside_scope(|| cache.insert(1, "lives on".to_string()));
/// });
/// assert_eq!(cache[&1], "lives on");
/// ```
pub fn outside_scope<R>(f: impl FnOnce() -> R) -> R {
    struct Outside(Ticket);
    impl Drop for Outside {
        fn drop(&mut self) {
            thread::leave(self.0);
        }
    }
    let _outside = Outside(thread::enter_outside());
    f()
}

/// How many scopes the allocations of this thread are nested in: 0 outside any and inside [`outside_scope`], where
/// scopes opened there count from 1 again.
///
/// # Examples
/// ```
/// use stepalloc::{arena_scope, outside_scope, scope_depth};
/// assert_eq!(scope_depth(), 0);
/// arena_scope(|| {
///     assert_eq!(scope_depth(), 1);
///     outside_scope(|| assert_eq!(scope_depth(), 0));
/// });
/// ```
pub fn scope_depth() -> usize {
    thread::with_heap(|heap| heap.depth())
}

/// An open scope as a guard; dropping it leaves.
///
/// Guards may be dropped in any order: leaving a scope leaves those opened inside it too, and their guards then do
/// nothing. It belongs to its thread (`!Send`), so it cannot be held across an `.await` of a task that moves.
///
/// # Examples
/// ```
/// let scope = stepalloc::ArenaScope::enter();
/// let kept = vec![1, 2, 3];
/// drop(scope);
/// assert_eq!(kept, [1, 2, 3]);
/// ```
///
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// send(stepalloc::ArenaScope::enter());
/// ```
#[must_use = "the scope ends where its guard is dropped: at once, if it is not kept in a variable"]
#[derive(Debug)]
pub struct ArenaScope {
    ticket: Ticket,
    not_send: PhantomData<*mut ()>,
}

impl ArenaScope {
    /// Opens a scope.
    #[inline]
    pub fn enter() -> ArenaScope {
        ArenaScope {
            ticket: thread::enter(),
            not_send: PhantomData,
        }
    }

    /// Opens a scope that counts; see [`arena_scope_report`] for what that costs.
    pub fn enter_counted() -> CountedScope {
        CountedScope {
            opened: thread::enter_counted(),
            not_send: PhantomData,
        }
    }
}

impl Drop for ArenaScope {
    #[inline]
    fn drop(&mut self) {
        thread::leave(self.ticket);
    }
}

/// An open counted scope; dropping it leaves without a report.
#[must_use = "the scope ends where its guard is dropped: at once, if it is not kept in a variable"]
#[derive(Debug)]
pub struct CountedScope {
    opened: Opened,
    not_send: PhantomData<*mut ()>,
}

impl CountedScope {
    /// Leaves the scope and says what it saw.
    ///
    /// # Examples
    /// ```
    /// let scope = stepalloc::ArenaScope::enter_counted();
    /// let report = scope.leave();
    /// assert_eq!(report.escapees, 0);
    /// ```
    pub fn leave(self) -> ScopeReport {
        let installed = crate::global::is_installed();
        let seen = thread::leave_counted(&self.opened);
        let counts = self.opened.counts;
        core::mem::forget(self); // left already
        let Some(seen) = seen else {
            return ScopeReport {
                installed,
                ..ScopeReport::default()
            };
        };
        let [no_reservation, no_segment, no_room, commit_refused, thread_ending] = seen.fallbacks;
        ScopeReport {
            installed,
            complete: counts && seen.counts.missed == 0,
            blocks: seen.counts.blocks,
            bytes: seen.counts.bytes,
            peak_live_bytes: seen.counts.peak_bytes,
            escapees: seen.escapees.0,
            escapee_bytes: seen.escapees.1,
            remote_frees: seen.counts.remote_frees,
            fallbacks: Fallbacks {
                no_reservation,
                no_segment,
                no_room,
                commit_refused,
                thread_ending,
            },
            page_faults: seen.faults,
        }
    }
}

impl Drop for CountedScope {
    fn drop(&mut self) {
        thread::leave(self.opened.ticket);
    }
}

/// Requests that the arena should have served and the backing did, by reason. Counts of requests, not bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fallbacks {
    /// The system granted no address space for arenas, or has none (32-bit, wasm).
    pub no_reservation: u64,
    /// More threads wanted an arena than there are segments.
    pub no_segment: u64,
    /// The thread's area has no room for a block of that size.
    pub no_room: u64,
    /// The system refused to make pages usable.
    pub commit_refused: u64,
    /// The thread was ending: its arena was given back already.
    pub thread_ending: u64,
}

impl Fallbacks {
    /// All of them.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(stepalloc::stats().fallbacks.total(), 0);
    /// ```
    pub fn total(&self) -> u64 {
        self.no_reservation + self.no_segment + self.no_room + self.commit_refused + self.thread_ending
    }
}

/// What a counted scope saw of its thread, nested scopes included, time inside [`outside_scope`] not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScopeReport {
    /// Whether this program's global allocator is a [`StepAlloc`](crate::StepAlloc). If it is not, a scope sees only what
    /// is allocated from such a value by hand, and all counts are usually 0.
    pub installed: bool,
    /// Whether everything was counted. `false` if a scope around it was left first, if more than 32 counted scopes were
    /// nested, if it was opened below 64 others or in an ending thread, or if the system had no memory for the table.
    pub complete: bool,
    /// Blocks that the arena made, large ones that were made outside any scope meanwhile included. A block that
    /// `realloc` had to move counts again; one that the backing made does not count.
    pub blocks: u64,
    /// Bytes asked for by those blocks, and by which `realloc` grew them in place; without rounding.
    pub bytes: u64,
    /// The most bytes of those blocks that were live at once, as asked for; blocks freed by other threads count as live
    /// until the scope ends or their memory is used again.
    pub peak_live_bytes: u64,
    /// Blocks made in the scope and still live at its end.
    pub escapees: u64,
    /// Their bytes, as asked for.
    pub escapee_bytes: u64,
    /// Blocks made in the scope and freed by other threads before its end.
    pub remote_frees: u64,
    /// Requests that the arena should have served and the backing did.
    pub fallbacks: Fallbacks,
    /// Page faults of this thread from the scope's beginning to its end, whatever caused them; `None` where the system
    /// does not tell them by thread.
    pub page_faults: Option<u64>,
}
