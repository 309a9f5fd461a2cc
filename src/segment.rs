//! The reservation, its division into segments, who owns which, and the membership test.
//!
//! **Invariant.** H6: a segment has at most one owner, by one bit of an atomic bitmap (AcqRel both ways), so that a
//! new owner sees all that the last one wrote. H7: an address inside the reservation belongs to an arena, any other
//! to the backing. **Consequence.** No lock is on any path: `fork` and re-entrance cannot deadlock.
//!
//! The reservation is made once and never given back. Two threads may make one each at the same time; one compare and
//! exchange decides, and the loser unmaps its own. Synchronization: `PACKED` publishes base, segment size and count in
//! one word (Release, read with Acquire). `EXTENT`, which the membership test reads, is derived from it and stored by
//! every thread before it claims, always with the same values; a thread that holds a pointer into an arena got it from
//! a thread that had stored them.

use crate::layout::{divide, SegmentLayout, HEADER_BYTES, SEGMENTS_MAX, SEGMENT_MAX, SEGMENT_MIN};
use crate::live_map::LiveMap;
use crate::spans::SpanState;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, Owned};
use crate::sys;
use core::ptr;

static PACKED: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// What the membership test reads, in one cache line.
#[repr(align(64))]
struct Extent {
    base: AtomicUsize,
    bytes: AtomicUsize,
}

static EXTENT: Extent = Extent {
    base: AtomicUsize::new(0),
    bytes: AtomicUsize::new(0),
};
/// The most bytes of address space to reserve; 0 says no limit.
static LIMIT: AtomicUsize = AtomicUsize::new(0);
/// Set once a reservation was refused altogether: nobody asks again.
static REFUSED: AtomicUsize = AtomicUsize::new(0);

const WORDS: usize = SEGMENTS_MAX / 64;
/// A bit for each segment that has an owner.
static OWNED: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// A bit for each segment whose head is committed; never cleared.
static MADE: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// What a small area's owner leaves to the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct SmallState {
    /// Granules ever used, whole lines; beyond them all bits are clear.
    pub high: usize,
    /// Granules committed, with their bits in both maps.
    pub committed: usize,
}

/// What an owner publishes on slow paths for `stats` in other threads. All Relaxed: snapshots, nothing is decided.
#[derive(Default)]
pub struct Published {
    /// Granules of the small area ever used.
    pub small_high: AtomicUsize,
    /// Granules of the small area committed.
    pub small_committed: AtomicUsize,
    /// Units of the span area ever used.
    pub span_top: AtomicUsize,
    /// Units of the span area committed.
    pub span_committed: AtomicUsize,
    /// Units in used spans.
    pub span_used: AtomicUsize,
    /// Regions with tables.
    pub span_tables: AtomicUsize,
}

/// The start of a segment.
#[repr(C, align(64))]
pub struct Header {
    /// A bit (region modulo 64) where spans were freed remotely; see `spans`.
    pub span_flag: AtomicU64,
    /// For `stats`.
    pub published: Published,
    /// Bytes freed remotely since the last reclaim while nobody owned the segment.
    pub orphan_freed: AtomicUsize,
    /// 1 while the owner counts what it allocates and what others free of it, else 0. Not in the line that it publishes in:
    /// who frees its blocks reads this for each.
    pub is_counting: AtomicU32,
    /// The owner's, between owners.
    pub kept: Owned<(SmallState, SpanState)>,
}

const _: () = assert!(core::mem::size_of::<Header>() <= HEADER_BYTES);
const _: () = assert!(core::mem::offset_of!(Header, is_counting) >= 64);

/// A segment by its base; owned or not, by context.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Its first byte, a multiple of its size.
    pub base: *mut u8,
    /// Its number in the reservation.
    pub index: usize,
    /// How it is divided.
    pub layout: SegmentLayout,
}

impl Segment {
    /// The header.
    ///
    /// # Safety
    /// The segment was claimed at least once, so that its head is committed.
    pub unsafe fn header(&self) -> &'static Header {
        // SAFETY: by the caller's promise; heads are never decommitted, zero bytes are a valid header.
        unsafe { &*self.base.cast::<Header>() }
    }

    /// The live and the remote map of its small area.
    ///
    /// # Safety
    /// Whoever uses it asks about granules only whose bits are committed, and heeds whose part is whose.
    pub unsafe fn live_map(&self) -> LiveMap {
        let (live, remote) = (self.layout.live, self.layout.remote);
        // SAFETY: offsets inside the segment; the rest is the caller's promise.
        unsafe { LiveMap::new(self.base.add(live).cast(), self.base.add(remote).cast()) }
    }
}

/// Why a thread has no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSegment {
    /// The system granted no reservation.
    NoReservation,
    /// Every segment has an owner.
    AllOwned,
    /// The system refused to commit the segment's head.
    Commit,
}

/// Limits the reservation that is still to be made; the smallest limit set counts. 0 changes nothing.
pub fn limit_reservation(bytes: usize) {
    if bytes != 0 {
        // Relaxed: a setting read once, before the first claim of threads that were ordered after this call.
        let known = LIMIT.load(Ordering::Relaxed);
        if known == 0 || bytes < known {
            LIMIT.store(bytes, Ordering::Relaxed);
        }
    }
}

/// Whether the address is inside the reservation (H7).
#[inline(always)]
pub fn contains(addr: usize) -> bool {
    // Acquire: the size is stored after the base.
    let bytes = EXTENT.bytes.load(Ordering::Acquire);
    addr.wrapping_sub(EXTENT.base.load(Ordering::Relaxed)) < bytes
}

fn pack(base: *mut u8, size: usize, count: usize) -> *mut u8 {
    // The base is a multiple of at least `SEGMENT_MIN`, so its low bits have room for shift and count.
    base.map_addr(|addr| addr | (size.trailing_zeros() as usize) << 8 | count.wrapping_sub(1))
}

fn unpack(packed: *mut u8) -> (*mut u8, usize, usize) {
    let bits = packed.addr();
    let base = packed.map_addr(|addr| addr & !(SEGMENT_MIN - 1));
    (base, 1 << (bits >> 8 & 63), (bits & 255).wrapping_add(1))
}

/// Base, segment size and count of the reservation, made now if it was not; `None` if the system grants none.
fn reservation() -> Option<(*mut u8, usize, usize)> {
    // Acquire: partner of the Release below.
    let mut packed = PACKED.load(Ordering::Acquire);
    if packed.is_null() {
        // Relaxed: a refusal is a hint that saves system calls.
        if REFUSED.load(Ordering::Relaxed) != 0 {
            return None;
        }
        packed = reserve_now();
        if packed.is_null() {
            REFUSED.store(1, Ordering::Relaxed);
            return None;
        }
    }
    let (base, size, count) = unpack(packed);
    // Relaxed, then Release: partner of the Acquire in `contains`. Every thread stores the same values.
    if EXTENT.bytes.load(Ordering::Relaxed) == 0 {
        EXTENT.base.store(base.addr(), Ordering::Relaxed);
        EXTENT.bytes.store(size.wrapping_mul(count), Ordering::Release);
    }
    Some((base, size, count))
}

#[cold]
fn reserve_now() -> *mut u8 {
    let limit = LIMIT.load(Ordering::Relaxed);
    let mut room = sys::address_space();
    if limit != 0 {
        room = room.min(limit);
    }
    // One segment of slack aligns the base to the segment size.
    while let Some((size, count)) = divide(room) {
        let (size, count) = if count > 1 {
            (size, count.wrapping_sub(1))
        } else {
            (size / 2, 1)
        };
        if size < SEGMENT_MIN {
            break;
        }
        let all = size.wrapping_mul(count.wrapping_add(1));
        let p = sys::reserve(all);
        if p.is_null() {
            room /= 2;
            continue;
        }
        let base = p.map_addr(|addr| crate::align::align_up(addr, size));
        let packed = pack(base, size, count);
        // AcqRel: publishes ours, or shows what the winner wrote.
        return match PACKED.compare_exchange(ptr::null_mut(), packed, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // SAFETY: the reservation just published, which is never given back.
                unsafe { crate::guard::may_hold_pointers(base, size.wrapping_mul(count)) };
                packed
            }
            Err(winner) => {
                // SAFETY: the mapping is ours, and nobody was told of it.
                unsafe { sys::release(p, all) };
                winner
            }
        };
    }
    ptr::null_mut()
}

/// Claims the lowest segment that nobody owns.
pub fn claim() -> Result<Segment, NoSegment> {
    let (base, size, count) = reservation().ok_or(NoSegment::NoReservation)?;
    for index in 0..count {
        if try_own(index) {
            return open(base, size, index);
        }
    }
    Err(NoSegment::AllOwned)
}

/// Claims this segment if it was ever used and nobody owns it.
pub fn claim_orphan(index: usize) -> Option<Segment> {
    let (base, size, count) = reservation()?;
    // Acquire: partner of the Release in `open`.
    if index >= count || !bit(&MADE, index, Ordering::Acquire) || !try_own(index) {
        return None;
    }
    open(base, size, index).ok()
}

fn bit(words: &[AtomicU64; WORDS], index: usize, order: Ordering) -> bool {
    words
        .get(index / 64)
        .is_some_and(|word| word.load(order) >> (index % 64) & 1 == 1)
}

fn try_own(index: usize) -> bool {
    let Some(word) = OWNED.get(index / 64) else {
        return false;
    };
    let mask = 1u64 << (index % 64);
    // Relaxed: a look that saves the locked instruction. AcqRel: after the last owner's Release, before the next.
    word.load(Ordering::Relaxed) & mask == 0 && word.fetch_or(mask, Ordering::AcqRel) & mask == 0
}

fn open(base: *mut u8, size: usize, index: usize) -> Result<Segment, NoSegment> {
    let layout = SegmentLayout::for_size(size);
    let segment = Segment {
        base: base.wrapping_add(index.wrapping_mul(size)),
        index,
        layout,
    };
    if !bit(&MADE, index, Ordering::Acquire) {
        // SAFETY: the head is page aligned and inside the reservation; we own the segment.
        if !unsafe { sys::commit(segment.base, layout.head_bytes) } {
            give_back(index);
            return Err(NoSegment::Commit);
        }
        if let Some(word) = MADE.get(index / 64) {
            // Release: who sees the bit sees a committed head.
            word.fetch_or(1 << (index % 64), Ordering::Release);
        }
    }
    Ok(segment)
}

/// Ends the ownership of a segment. The caller has written `kept` and touches the segment no more.
pub fn give_back(index: usize) {
    if let Some(word) = OWNED.get(index / 64) {
        // AcqRel: all writes of this owner come before the next owner's reads.
        word.fetch_and(!(1 << (index % 64)), Ordering::AcqRel);
    }
}

/// Whether anyone owns the segment now.
pub fn is_owned(index: usize) -> bool {
    // Relaxed: a hint; claiming decides.
    bit(&OWNED, index, Ordering::Relaxed)
}

/// Whether the segment was ever claimed, so that its head can be read.
pub fn is_made(index: usize) -> bool {
    bit(&MADE, index, Ordering::Acquire)
}

/// Runs `f` on the segment of an address inside the reservation; `None` where there is no reservation.
///
/// For paths that run often: the size of a segment is nearly always the largest, whose layout is known beforehand, and `f`
/// is compiled for that one with its offsets in place.
#[inline(always)]
pub fn with<R>(addr: usize, f: impl FnOnce(&Segment) -> R) -> Option<R> {
    #[cold]
    #[inline(never)]
    fn smaller<R>(base: *mut u8, size: usize, index: usize, f: impl FnOnce(&Segment) -> R) -> R {
        let layout = SegmentLayout::for_size(size);
        f(&Segment { base, index, layout })
    }
    // Acquire: partner of the Release in `reserve_now`.
    let packed = PACKED.load(Ordering::Acquire);
    if packed.is_null() {
        return None;
    }
    let (first, size, _) = unpack(packed);
    let index = addr.wrapping_sub(first.addr()) >> size.trailing_zeros();
    let base = first.wrapping_add(index.wrapping_mul(size));
    Some(if size == SEGMENT_MAX {
        let layout = const { SegmentLayout::for_size(SEGMENT_MAX) };
        f(&Segment { base, index, layout })
    } else {
        smaller(base, size, index, f)
    })
}

/// The segment of an address inside the reservation.
pub fn of(addr: usize) -> Option<Segment> {
    with(addr, |segment| *segment)
}

/// Bytes reserved; 0 before the first use and where the system grants none.
pub fn reserved_bytes() -> usize {
    EXTENT.bytes.load(Ordering::Acquire)
}

/// Touches every static of this file, so that loom knows them before a model starts its threads.
#[cfg(all(test, loom))]
pub fn known_to_model() {
    PACKED.load(Ordering::Relaxed);
    REFUSED.load(Ordering::Relaxed);
    EXTENT.base.load(Ordering::Relaxed);
    for index in 0..SEGMENTS_MAX {
        bit(&OWNED, index, Ordering::Relaxed);
        bit(&MADE, index, Ordering::Relaxed);
    }
    contains(LIMIT.load(Ordering::Relaxed));
}

/// Calls `f` for every segment that was ever claimed.
pub fn each_made(mut f: impl FnMut(Segment)) {
    let packed = PACKED.load(Ordering::Acquire);
    if packed.is_null() {
        return;
    }
    let (base, size, count) = unpack(packed);
    for index in 0..count {
        if bit(&MADE, index, Ordering::Acquire) {
            let layout = SegmentLayout::for_size(size);
            f(Segment {
                base: base.wrapping_add(index.wrapping_mul(size)),
                index,
                layout,
            });
        }
    }
}
