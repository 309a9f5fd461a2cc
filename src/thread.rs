//! The thread: its slot with the heap, when it claims a segment, and how it ends.
//!
//! **Teardown, case by case.** The slot is `const`-initialised and has no destructor, so it can be used at any time of a
//! thread's life. A hook with a destructor is registered *before* a segment is claimed (no hook, no claim). When it
//! runs it (1) notes that the thread is ending and tells others what it freed of theirs, (2) zeroes position, end and area in
//! the slot, pops all frames and gives the hole up, (3) gives back the pages of free memory, (4) releases the segment.
//!
//! | case | what happens |
//! |---|---|
//! | destructors of other thread-locals, before the hook | as ever: they allocate, free and leave scopes |
//! | … after the hook | allocations go to the backing, frees of arena blocks are remote, guards do nothing |
//! | first scope inside a thread-local destructor, hook not yet registered | it registers and claims, or is refused and uses the backing |
//! | first scope after the hook has run | the backing |
//! | process exit, other threads running | their memory goes with the process |
//! | `fork` | the child's one thread has its heap, copied; segments of other threads stay owned and unused |
//!
//! **Re-entrance.** A `&mut Heap` lives only inside `with_heap`, whose closures call nothing but the layers below:
//! no backing, no std, no user code.

use crate::align::max;
use crate::gathered::{Gathered, Theirs, Told};
use crate::guard::{self, CHECKED};
use crate::heap::{lane_of, Freed, Heap, Kind, Ticket, LANES};
use crate::layout::{
    granules, granules_behind, scope_align, units, GRANULE, SHORT_MAX, SMALL_ALIGN_MAX, SMALL_MAX, UNIT,
};
use crate::ledger::Ledger;
use crate::live_map::LiveMap;
use crate::segment::{self, NoSegment};
use crate::spans::{self, Refused};
use crate::sync::{AtomicU64, Ordering};
use core::cell::{Cell, UnsafeCell};

/// Why a request that the arena should have served went to the backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The system granted no address space.
    NoReservation = 0,
    /// All segments have owners.
    NoSegment = 1,
    /// The segment's area has no room for it.
    NoRoom = 2,
    /// The system refused to make pages usable.
    CommitRefused = 3,
    /// The thread is ending.
    ThreadEnding = 4,
}

/// How many reasons there are.
pub const REASONS: usize = 5;

/// Fallbacks of all threads by reason. Relaxed: counters that nothing is decided by.
static FALLBACKS: [AtomicU64; REASONS] = [const { AtomicU64::new(0) }; REASONS];
/// Scopes entered by threads that have ended.
static ENTERED: AtomicU64 = AtomicU64::new(0);

/// A thread publishes how many scopes it has entered on the first slow path after this many.
const PUBLISH_SCOPES: u64 = 64;

/// A thread without a segment asks again on one slow path in this many.
const RETRY: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Claiming,
    Claimed,
    Refused(Reason),
    Ended,
}

#[repr(C)]
struct Slot {
    heap: UnsafeCell<Heap>,
    /// For each lane.
    gathered: UnsafeCell<[Gathered; LANES]>,
    /// Whether the hook was registered.
    hooked: Cell<bool>,
    state: Cell<State>,
    retries: Cell<u32>,
    ledger: Cell<*mut Ledger>,
    fallbacks: Cell<[u64; REASONS]>,
    entered_published: Cell<u64>,
    probe: Cell<Probe>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Off,
    Waiting,
    Seen,
}

thread_local! {
    static SLOT: Slot = const {
        Slot {
            heap: UnsafeCell::new(Heap::new()),
            gathered: UnsafeCell::new([Gathered::NONE; LANES]),
            hooked: Cell::new(false),
            state: Cell::new(State::New),
            retries: Cell::new(0),
            ledger: Cell::new(core::ptr::null_mut()),
            fallbacks: Cell::new([0; REASONS]),
            entered_published: Cell::new(0),
            probe: Cell::new(Probe::Off),
        }
    };
    static HOOK: Hook = const { Hook };
}

/// Runs the teardown.
struct Hook;

impl Drop for Hook {
    fn drop(&mut self) {
        with_slot(|slot| {
            slot.state.set(State::Ended);
            publish_entered(slot);
            tell_all(slot);
            // SAFETY: as in `with_heap`.
            let index = unsafe { &mut *slot.heap.get() }.detach();
            if let Some(index) = index {
                segment::give_back(index);
            }
            let ledger = slot.ledger.replace(core::ptr::null_mut());
            if !ledger.is_null() {
                // SAFETY: the ledger is this thread's, and the slot no longer names it.
                unsafe { Ledger::close(ledger) };
            }
        });
    }
}

/// Runs `f` on the thread's slot.
#[inline(always)]
fn with_slot<R>(f: impl FnOnce(&Slot) -> R) -> R {
    // `with` is inlined for a closure as short as this one, but is not promised to be: it must not hold `f`.
    let slot = SLOT.with(core::ptr::from_ref);
    // SAFETY: the slot is this thread's and has no destructor, so it stays as long as the thread runs.
    f(unsafe { &*slot })
}

/// Runs `f` on the thread's heap.
#[inline(always)]
pub fn with_heap<R>(f: impl FnOnce(&mut Heap) -> R) -> R {
    // SAFETY: the slot is this thread's. No closure handed in here calls an allocator, std or user code (the file's
    // head), so no second borrow can begin while this one lives; signal handlers must not allocate, as ever.
    with_slot(|slot| f(unsafe { &mut *slot.heap.get() }))
}

/// Claims a segment if the thread has none.
fn ensure(slot: &Slot) -> Result<(), Reason> {
    match slot.state.get() {
        State::Claimed => return Ok(()),
        State::Ended => return Err(Reason::ThreadEnding),
        State::Claiming => return Err(Reason::NoSegment),
        State::Refused(reason) => {
            let retries = slot.retries.get().wrapping_add(1);
            slot.retries.set(retries);
            if retries % RETRY != 0 {
                return Err(reason);
            }
        }
        State::New => {}
    }
    claim(slot)
}

/// Sees to it that the teardown will run; `false` if it has, or is being seen to.
fn hook(slot: &Slot) -> bool {
    match slot.state.get() {
        State::Ended | State::Claiming => false,
        _ if slot.hooked.get() => true,
        state => {
            // Registering the hook may allocate through us; that request goes to the backing.
            slot.state.set(State::Claiming);
            let is_hooked = HOOK.try_with(|_| ()).is_ok();
            slot.hooked.set(is_hooked);
            slot.state.set(if is_hooked { state } else { State::Ended });
            is_hooked
        }
    }
}

#[cold]
fn claim(slot: &Slot) -> Result<(), Reason> {
    if !hook(slot) {
        return Err(Reason::ThreadEnding);
    }
    match segment::claim() {
        Ok(claimed) => {
            // SAFETY: just claimed; the borrow is as in `with_heap`.
            unsafe { (*slot.heap.get()).attach(claimed) };
            slot.state.set(State::Claimed);
            Ok(())
        }
        Err(why) => {
            let reason = match why {
                NoSegment::NoReservation => Reason::NoReservation,
                NoSegment::AllOwned => Reason::NoSegment,
                NoSegment::Commit => Reason::CommitRefused,
            };
            slot.state.set(State::Refused(reason));
            Err(reason)
        }
    }
}

fn publish_entered(slot: &Slot) {
    // SAFETY: as in `with_heap`.
    let entered = unsafe { &*slot.heap.get() }.entered();
    let before = slot.entered_published.replace(entered);
    if entered != before {
        ENTERED.fetch_add(entered.wrapping_sub(before), Ordering::Relaxed);
    }
}

fn note_fallback(slot: &Slot, reason: Reason) {
    if let Some(total) = FALLBACKS.get(reason as usize) {
        total.fetch_add(1, Ordering::Relaxed);
    }
    let mut counts = slot.fallbacks.get();
    if let Some(count) = counts.get_mut(reason as usize) {
        *count = count.wrapping_add(1);
    }
    slot.fallbacks.set(counts);
}

/// What the slow path of allocation decided.
pub enum Served {
    /// A block of the arena, and how many of its bytes, from the first, may hold old data.
    Arena(*mut u8, usize),
    /// The backing's to serve.
    Backing,
    /// The answer is null: `is_installed` is asking.
    Nothing,
}

/// What `Heap::next_hole` makes: a short block of a thread in a scope, where nothing but the next hole is wanted. Null
/// otherwise.
#[inline(always)]
pub fn alloc_near(size: usize, align: usize) -> *mut u8 {
    with_slot(|slot| {
        // SAFETY: as in `with_heap`.
        let heap = unsafe { &mut *slot.heap.get() };
        if !heap.is_active() || is_behind(slot, heap) {
            return core::ptr::null_mut();
        }
        heap.next_hole(size, align).unwrap_or(core::ptr::null_mut())
    })
}

/// A block in the place of one of its size, for a thread in a scope that remembers one.
#[inline(always)]
pub fn alloc_again(size: usize, align: usize) -> Option<*mut u8> {
    with_heap(|heap| heap.alloc_again(size, align))
}

/// Frees a block of another thread in the line of maps where the last one was. `false` leaves it to `free_behind`.
#[inline(always)]
pub fn free_beside(addr: usize, size: usize) -> bool {
    with_gathered(size, |gathered, behind| gathered.add(addr, behind))
}

/// Frees a block of another thread in the next line, or in both. `false` leaves it to `free_slow`.
#[inline(always)]
pub fn free_behind(addr: usize, size: usize) -> bool {
    with_gathered(size, |gathered, behind| gathered.add_next(addr, behind, told))
}

/// Frees a short block of a thread that remembers such blocks. `false` leaves it to `free_slow`.
#[inline(always)]
pub fn free_near(addr: usize, size: usize) -> bool {
    with_heap(|heap| heap.free_near(addr, size))
}

/// Runs `f` on what the thread has gathered of the lane of blocks of this size, and on how many granules such a block has behind
/// its first; `false` for a block that is not short. The lanes lie apart: who frees blocks of both would go from line to line with
/// each.
#[inline(always)]
fn with_gathered(size: usize, f: impl FnOnce(&mut Gathered, usize) -> bool) -> bool {
    let size_less_one = size.wrapping_sub(1);
    if size_less_one >= SHORT_MAX {
        return false;
    }
    let lane = lane_of(size_less_one);
    with_slot(|slot| {
        // SAFETY: as in `with_heap`: the slot is this thread's, and no closure touches what is gathered through the slot.
        let gathered = unsafe { &mut *slot.gathered.get() };
        f(&mut gathered[lane % LANES], granules_behind(size_less_one, lane != 0))
    })
}

/// Tells owners all that the thread has gathered.
fn tell_all(slot: &Slot) {
    // SAFETY: as in `with_gathered`.
    let gathered = unsafe { &mut *slot.gathered.get() };
    for what in gathered.iter_mut().filter_map(Gathered::take) {
        told(what);
    }
}

/// Whether more scopes were entered than the totals should be late by.
#[inline(always)]
fn is_behind(slot: &Slot, heap: &Heap) -> bool {
    slot.entered_published.get().wrapping_add(PUBLISH_SCOPES) < heap.entered()
}

/// The slow path: serves the request from the arena if the thread is in a scope or the request is `large`.
#[cold]
pub fn alloc_slow(size: usize, align: usize, large: bool) -> Served {
    with_slot(|slot| {
        if slot.probe.get() != Probe::Off {
            slot.probe.set(Probe::Seen);
            return Served::Nothing;
        }
        // SAFETY: as in `with_heap`; the borrow ends here.
        let active = unsafe { &*slot.heap.get() }.is_active();
        if active {
            serve(slot, size, |heap| {
                if size <= SMALL_MAX && align <= SMALL_ALIGN_MAX {
                    heap.alloc(size, align).map(|p| (p, size))
                } else {
                    heap.alloc_span(size, align)
                }
            })
        } else if large {
            serve(slot, size, |heap| heap.alloc_span(size, align))
        } else {
            Served::Backing
        }
    })
}

/// Serves the request by a span, whatever the scopes.
#[cold]
pub fn alloc_span_slow(size: usize, align: usize) -> Served {
    with_slot(|slot| serve(slot, size, |heap| heap.alloc_span(size, align)))
}

fn serve(slot: &Slot, size: usize, make: impl FnOnce(&mut Heap) -> Result<(*mut u8, usize), Refused>) -> Served {
    if let Err(reason) = ensure(slot) {
        note_fallback(slot, reason);
        return Served::Backing;
    }
    // SAFETY: as in `with_heap`.
    let heap = unsafe { &mut *slot.heap.get() };
    let made = make(heap);
    let counting = heap.is_counting();
    if is_behind(slot, heap) {
        publish_entered(slot);
    }
    match made {
        Ok((p, dirty)) => {
            if counting {
                with_ledger(slot, |ledger| ledger.made(p.addr(), size));
            }
            Served::Arena(p, dirty.min(size))
        }
        Err(refused) => {
            let reason = match refused {
                Refused::NoRoom => Reason::NoRoom,
                Refused::Commit => Reason::CommitRefused,
            };
            note_fallback(slot, reason);
            Served::Backing
        }
    }
}

fn with_ledger(slot: &Slot, f: impl FnOnce(&mut Ledger)) {
    // SAFETY: null or this thread's ledger, which is used nowhere else at the same time.
    if let Some(ledger) = unsafe { slot.ledger.get().as_mut() } {
        f(ledger);
    }
}

/// What freeing an address inside the reservation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Freed.
    Done,
    /// Freed already, or no block of the arena begins there.
    Misuse,
}

/// Frees a block inside the reservation that the inline path did not take.
#[cold]
pub fn free_slow(addr: usize, size: usize) -> Outcome {
    with_slot(|slot| {
        // SAFETY: as in `with_heap`.
        let heap = unsafe { &mut *slot.heap.get() };
        if heap.owns(addr) {
            if heap.is_counting() {
                with_ledger(slot, |ledger| ledger.freed(addr));
            }
            return match heap.free(addr, size) {
                Freed::Yes => Outcome::Done,
                Freed::Misuse => Outcome::Misuse,
            };
        }
        if CHECKED || size > SHORT_MAX || !hook(slot) {
            return free_remote(addr, size);
        }
        let done = segment::with(addr, |segment| match Place::of(segment, addr) {
            Place::Small(start) => {
                // SAFETY: a block of that segment is live, so its head is committed.
                let counts = unsafe { &segment.header().is_counting };
                // Relaxed: as in `Gathered::is_counted`.
                if counts.load(Ordering::Relaxed) != 0 {
                    return free_in(segment, addr, size) == Outcome::Done;
                }
                let theirs = Theirs {
                    base: segment.base.addr().wrapping_add(segment.layout.small),
                    map: remote_map(segment),
                    counts,
                };
                with_gathered(max(size, 1), |gathered, behind| {
                    gathered.free(theirs, start, behind, told)
                })
            }
            Place::Span(_) | Place::None => free_in(segment, addr, size) == Outcome::Done,
        });
        match done {
            Some(true) => Outcome::Done,
            _ => Outcome::Misuse,
        }
    })
}

/// Tells an owner what was gathered.
#[inline(never)]
fn told(what: Told) {
    if !what.tell() {
        crate::sys::die(MISUSE);
    }
    segment::with(what.base, |segment| {
        if !segment::is_owned(segment.index) {
            freed_in_orphan(segment, what.bytes());
        }
    });
}

/// Tells owners what this thread has freed of theirs, now.
pub fn tell() {
    with_slot(tell_all);
}

/// A segment's maps for a thread that does not own it.
fn remote_map(segment: &segment::Segment) -> LiveMap {
    // SAFETY: the callers ask about live blocks only, whose bits are committed.
    unsafe { segment.live_map() }
}

/// Where in a segment a block may begin that begins at an address.
enum Place {
    /// At this granule of the small area.
    Small(usize),
    /// At this unit of the span area.
    Span(usize),
    /// Nowhere.
    None,
}

impl Place {
    #[inline(always)]
    fn of(segment: &segment::Segment, addr: usize) -> Place {
        let l = &segment.layout;
        let offset = addr.wrapping_sub(segment.base.addr());
        if offset.wrapping_sub(l.small) < l.small_bytes && addr % GRANULE == 0 {
            Place::Small(offset.wrapping_sub(l.small) / GRANULE)
        } else if offset >= l.spans && addr % UNIT == 0 {
            Place::Span(offset.wrapping_sub(l.spans) / UNIT)
        } else {
            Place::None
        }
    }
}

/// Frees a block of a segment that the calling thread does not own.
#[inline]
pub fn free_remote(addr: usize, size: usize) -> Outcome {
    segment::with(addr, |segment| free_in(segment, addr, size)).unwrap_or(Outcome::Misuse)
}

#[inline(always)]
fn free_in(segment: &segment::Segment, addr: usize, size: usize) -> Outcome {
    if CHECKED && !check_remote(segment, addr, max(size, 1)) {
        return Outcome::Misuse;
    }
    let (done, bytes) = match Place::of(segment, addr) {
        Place::Small(start) => {
            let count = granules(size);
            (
                remote_map(segment).free_remote(start, start.wrapping_add(count)),
                count.wrapping_mul(GRANULE),
            )
        }
        Place::Span(unit) => {
            let tables = segment.base.wrapping_add(segment.layout.tables);
            // SAFETY: a block of that segment is live, so its head and this region's tables are committed.
            let done = unsafe { spans::free_remote(tables, &segment.header().span_flag, unit) };
            (done, units(size).wrapping_mul(UNIT))
        }
        Place::None => (false, 0),
    };
    if !done {
        return Outcome::Misuse;
    }
    if !segment::is_owned(segment.index) {
        freed_in_orphan(segment, bytes);
    }
    Outcome::Done
}

/// Looks at a block that another thread than its owner frees, as far as it can be seen from here.
fn check_remote(segment: &segment::Segment, addr: usize, size: usize) -> bool {
    if !segment::is_made(segment.index) {
        return false;
    }
    // SAFETY: the segment was claimed, so its head is committed.
    let published = unsafe { &segment.header().published };
    // Relaxed: published before the block's pointer was passed on; where it is not a block's, old is as good as new.
    let live = match Place::of(segment, addr) {
        Place::Small(start) => {
            let end = start.wrapping_add(granules(size));
            end <= published.small_high.load(Ordering::Relaxed) && remote_map(segment).is_live(start, end)
        }
        Place::Span(unit) => {
            let tables = segment.base.wrapping_add(segment.layout.tables);
            unit < published.span_top.load(Ordering::Relaxed)
                // SAFETY: below the top the tables are committed.
                && unsafe { spans::is_live_remote(tables, unit) }
        }
        Place::None => false,
    };
    if live {
        // SAFETY: the block is live and the caller's to free, and nobody is told that it is free before this ends.
        unsafe { guard::freed(segment.base.with_addr(addr), size) };
    }
    live
}

/// Bytes freed in a segment without an owner before somebody gives its pages back.
const ORPHAN_STEP: usize = 1 << 20;

#[cold]
fn freed_in_orphan(segment: &segment::Segment, bytes: usize) {
    // SAFETY: a block of that segment was live, so its head is committed.
    let freed = unsafe { &segment.header().orphan_freed };
    // Relaxed: a counter that paces work; claiming orders the work itself.
    if freed.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes) >= ORPHAN_STEP {
        reclaim(segment.index, false);
    }
}

/// Claims a segment that nobody owns, gives the pages of its free memory back, and releases it. The bytes that were
/// resident, if asked for.
pub fn reclaim(index: usize, count_resident: bool) -> usize {
    let Some(orphan) = segment::claim_orphan(index) else {
        return 0;
    };
    // SAFETY: a claimed segment's head is committed.
    let freed = unsafe { &orphan.header().orphan_freed };
    // Relaxed: as in `freed_in_orphan`; what is freed from now on counts for the next time.
    freed.store(0, Ordering::Relaxed);
    let mut heap = Heap::new();
    // SAFETY: just claimed, and given back below.
    unsafe { heap.attach(orphan) };
    let given = if count_resident { heap.trim() } else { 0 };
    heap.detach();
    segment::give_back(index);
    given
}

/// Gives a block inside the reservation a new size where it stands, if that can be; `None` if it must move.
#[cold]
pub fn resize(addr: usize, old: usize, new: usize) -> Option<()> {
    if CHECKED {
        return None; // it moves, so that whoever still uses the old place is found
    }
    with_slot(|slot| {
        // SAFETY: as in `with_heap`.
        let heap = unsafe { &mut *slot.heap.get() };
        if heap.owns(addr) {
            let done = heap.resize(addr, old, new);
            if done && heap.is_counting() {
                with_ledger(slot, |ledger| ledger.resized(addr, old, new));
            }
            return done.then_some(());
        }
        resize_remote(addr, old, new)
    })
}

/// A thread that does not own the block keeps it where it need not grow, and frees the tail remotely.
fn resize_remote(addr: usize, old: usize, new: usize) -> Option<()> {
    let segment = segment::of(addr)?;
    let l = &segment.layout;
    let offset = addr.wrapping_sub(segment.base.addr());
    if offset >= l.spans {
        let unit = offset.wrapping_sub(l.spans) / UNIT;
        // SAFETY: the caller holds the block, so the tables are committed.
        let have = unsafe { spans::used_len_remote(segment.base.add(l.tables), unit) };
        // The tail cannot be given up from here; keep it while that wastes less than half.
        return (units(new) <= have && units(new) >= have / 2).then_some(());
    }
    let (have, want) = (granules(old), granules(new));
    if want > have || (new > old && addr % scope_align(new, 1) != 0) {
        return None;
    }
    if want < have {
        let start = offset.wrapping_sub(l.small) / GRANULE;
        if !remote_map(&segment).free_remote(start.wrapping_add(want), start.wrapping_add(have)) {
            crate::sys::die(MISUSE);
        }
    }
    Some(())
}

/// What a program is told before it is aborted for a free that the maps show to be wrong.
pub const MISUSE: &str = "stepalloc: a block was freed twice, or no block of the arena begins at the address freed\n";

// ---- Scopes ----

/// Opens an extent.
#[inline(always)]
pub fn enter() -> Ticket {
    with_heap(Heap::enter)
}

/// Closes an extent.
#[inline(always)]
pub fn leave(ticket: Ticket) {
    with_heap(|heap| heap.leave(ticket));
}

/// Suspends all scopes.
pub fn enter_outside() -> Ticket {
    with_heap(|heap| heap.enter_slow(Kind::Outside))
}

/// A counted scope as it was opened. What needs no table is kept here, so that it is told where there is none.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Names its frame.
    pub ticket: Ticket,
    /// Whether there is a table to count in.
    pub counts: bool,
    fallbacks: [u64; REASONS],
    faults: Option<u64>,
}

/// Opens a counted scope.
pub fn enter_counted() -> Opened {
    with_slot(|slot| {
        let mut opened = Opened {
            ticket: Ticket::INERT,
            counts: false,
            fallbacks: slot.fallbacks.get(),
            faults: None,
        };
        if slot.state.get() == State::Ended || ensure(slot) == Err(Reason::ThreadEnding) {
            return opened;
        }
        if slot.ledger.get().is_null() {
            if let Some(ledger) = Ledger::open() {
                slot.ledger.set(ledger);
            }
        }
        let was_counting = with_heap(|heap| heap.is_counting());
        let ticket = with_heap(|heap| heap.enter_slow(Kind::Counted));
        with_ledger(slot, |ledger| {
            if !was_counting {
                ledger.clear();
            }
            opened.counts = with_heap(|heap| heap.is_open(ticket)) && ledger.begin(ticket.serial());
        });
        opened.ticket = ticket;
        opened.faults = crate::sys::thread_faults();
        opened
    })
}

/// What a counted scope saw.
pub struct Seen {
    /// The counts; all 0 where there was no table.
    pub counts: crate::ledger::Counts,
    /// Blocks still live, and their bytes.
    pub escapees: (u64, u64),
    /// Fallbacks during the scope by reason.
    pub fallbacks: [u64; REASONS],
    /// Page faults during the scope.
    pub faults: Option<u64>,
}

/// Closes a counted scope and says what it saw; `None` if it was closed before.
pub fn leave_counted(opened: &Opened) -> Option<Seen> {
    with_slot(|slot| {
        let ticket = opened.ticket;
        let seen = with_heap(|heap| heap.is_open(ticket)).then(|| {
            let mut finished = None;
            with_ledger(slot, |ledger| {
                finished = ledger.finish(ticket.serial(), |addr| with_heap(|heap| heap.is_gone(addr)));
            });
            let (counts, escapees, escapee_bytes) = finished.unwrap_or_default();
            let mut fallbacks = slot.fallbacks.get();
            for (now, before) in fallbacks.iter_mut().zip(opened.fallbacks) {
                *now = now.wrapping_sub(before);
            }
            let faults = crate::sys::thread_faults();
            let faults = faults.zip(opened.faults).map(|(now, before)| now.wrapping_sub(before));
            Seen {
                counts,
                escapees: (escapees, escapee_bytes),
                fallbacks,
                faults,
            }
        });
        leave(ticket);
        seen
    })
}

// ---- Questions ----

/// Asks whether `request`, which allocates through the program's global allocator, comes through here.
pub fn sees(request: impl FnOnce()) -> bool {
    with_slot(|slot| {
        let diverted = with_heap(Heap::divert);
        slot.probe.set(Probe::Waiting);
        request();
        let seen = slot.probe.replace(Probe::Off) == Probe::Seen;
        with_heap(|heap| heap.undivert(diverted));
        seen
    })
}

/// Fallbacks of all threads by reason.
pub fn fallbacks() -> [u64; REASONS] {
    let mut all = [0; REASONS];
    for (count, total) in all.iter_mut().zip(&FALLBACKS) {
        *count = total.load(Ordering::Relaxed);
    }
    all
}

/// Scopes entered: all that ended threads and slow paths have published, and this thread's.
pub fn entered() -> u64 {
    with_slot(publish_entered);
    ENTERED.load(Ordering::Relaxed)
}
