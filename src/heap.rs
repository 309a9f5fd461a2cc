//! A thread's arena: bump, free, reallocate. Knows no threads and no globals.
//!
//! **Invariants.** H1, H2 and H4 (with `live_map`), H5 (with `spans`), H8: frames are a stack, a ticket acts only while
//! its frame is there with its serial. **Consequence.** Frames say where to look for the next hole; the look reads the
//! bits. A wrong frame costs memory or time, never safety.
//!
//! ```text
//! small area   |live|free|live live|  hole: pos ····· limit |live| free ... | high: never used
//! bits          1111 0000 1111 1111         1111111111111    1111  0000        0000
//! ```
//!
//! **Two lanes.** Blocks below 64 bytes and blocks from 64 bytes on are bumped in a hole each: neither needs a gap to be
//! aligned, and small escapees, which are most, do not break up the stretch that a step's other blocks walk.
//!
//! **What the inline paths see.** `active` says whether the thread is in a scope; each lane has the position and the limit
//! of its hole. `base` and `len` are the small area for local frees. While a scope counts, positions and area are masked
//! so that every call takes the slow path; while the thread recycles the area is, so that every free does.
//!
//! Here are the inline paths, freeing and resizing; `holes` finds the next hole, `frames` has what scopes leave, `magazines`
//! where blocks were freed, `purge` what goes back to the system.

mod frames;
mod holes;
mod magazines;
mod purge;

pub use frames::{Kind, Ticket};

use crate::align::{align_down, align_up, CACHE_LINE};
use crate::guard::{self, CHECKED};
use crate::hint::unlikely;
use crate::huge_pages::{HugePages, Pass};
use crate::layout::{
    granules, scope_align, units, SegmentLayout, GRANULE, GUARD, LINE_FROM, SHORT_MAX, SMALL_ALIGN_MAX, SMALL_MAX,
    UNIT, WORD_GRANULES,
};
use crate::live_map::{by_address, clear_short, LiveMap};
use crate::marks::{Marks, Stayed};
use crate::segment::{Segment, SmallState};
use crate::spans::{Refused, Spans};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::sys;
use core::ptr;
use frames::{Frame, FRAMES};
use holes::SHORT_GRANULES;
use magazines::Magazines;
use purge::LOOK_CHUNKS;

/// A scope may walk this many granules for each that it allocates before its beginning moves on: a walk of one word,
/// about a nanosecond, for eight granules used.
const WALK_SHARE: i64 = 8;
/// Lane 0 bumps blocks below 64 bytes, lane 1 those from there on.
pub const LANES: usize = 2;
/// In place of a lane, where searches are paid for: blocks over 1 KiB. Their walks are counted to lane 1.
const LONG: usize = LANES;

/// A position behind every limit, to which no block can be added and at which none ends.
const MASKED: usize = usize::MAX - 4 * SHORT_MAX;

/// Where one kind of blocks is bumped. With a segment `[pos, limit)` is its hole, perhaps empty: then both are the mark
/// from which the next is searched. In lane 1 both are multiples of 64.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Lane {
    /// Address of the next block; 1 without a segment, 0 after the thread's end, `MASKED` while counting.
    pos: usize,
    /// Address of the hole's end.
    limit: usize,
    /// One less than the grain, bytes: with the size less one it makes the block's last byte.
    mask: usize,
    /// The grain in bytes: the most alignment that the inline path serves.
    align: usize,
    /// Bytes walked in search of holes, less `WALK_SHARE` times the bytes found, plus as much for each address up to the
    /// limit: less `WALK_SHARE` times the position it is what was walked less what was paid for. Only slow paths change it.
    debt: i64,
    /// Where the hole began; a hint.
    start: usize,
    /// The position, while it is masked.
    parked: usize,
}

impl Lane {
    const fn new(index: usize) -> Lane {
        Lane {
            pos: 1,
            limit: 1,
            mask: grain(index).wrapping_mul(GRANULE).wrapping_sub(1),
            align: grain(index).wrapping_mul(GRANULE),
            debt: 0,
            start: 1,
            parked: 1,
        }
    }

    /// Makes `[pos, limit)` its hole.
    #[inline]
    fn put(&mut self, pos: usize, limit: usize) {
        self.set_limit(limit);
        (self.pos, self.start) = (pos, pos);
    }

    /// Moves the limit; `debt` goes with it.
    #[inline]
    fn set_limit(&mut self, limit: usize) {
        self.debt = self.debt.wrapping_add(price(limit)).wrapping_sub(price(self.limit));
        self.limit = limit;
    }

    /// Whether the address is in the hole. One compare: whether a block is behind the position nobody can predict.
    #[inline(always)]
    fn holds(&self, addr: usize) -> bool {
        addr.wrapping_sub(self.pos) < self.limit.wrapping_sub(self.pos)
    }
}

/// What bytes that were allocated pay for.
#[inline(always)]
const fn price(bytes: usize) -> i64 {
    (bytes as i64).wrapping_mul(WALK_SHARE)
}

/// Granules that a lane's holes are multiples of.
#[inline(always)]
const fn grain(lane: usize) -> usize {
    if lane == 0 {
        1
    } else {
        CACHE_LINE / GRANULE
    }
}

/// The lane of blocks whose size less one is this; what is behind a block counts.
#[inline(always)]
pub const fn lane_of(size_less_one: usize) -> usize {
    (size_less_one.wrapping_add(GUARD) >= LINE_FROM - 1) as usize
}

#[repr(C)]
/// The arena of one thread; see the file's head for what the first four fields may hold.
pub struct Heap {
    lanes: [Lane; LANES],
    /// Address of the small area; 0 without a segment.
    pub base: usize,
    /// Bytes of the small area; 0 without a segment, while counting and while recycling.
    pub len: usize,
    /// The live map, by address.
    pub live: *const AtomicU64,
    /// Not 0: entering and leaving take the slow path (a scope counts, or an extent deeper than the table is open).
    special: u32,
    /// Whether the thread is in a scope that is not suspended.
    active: bool,
    depth: usize,
    serial: u64,
    /// The serial of the last frame whose `debts` are written.
    noted: u64,
    frames: [Frame; FRAMES],
    /// Scopes deeper than the table.
    deeper: u32,
    /// Suspensions deeper than the table: counts of all frames.
    suspensions: u32,
    counting: u32,
    magazines: Magazines,
    map: LiveMap,
    marks: Marks,
    stayed: Stayed,
    huge: HugePages,
    /// Of the small area; work is slow calls.
    pass: Pass,
    small: SmallState,
    /// Where each lane's first hole began, once it had one: where a scope goes back to that was opened before there was
    /// a segment.
    first: [Option<usize>; LANES],
    /// The search mark for blocks over 1 KiB.
    search_long: usize,
    /// Granules handed to each lane's holes, and to long blocks, since its last look at the whole area.
    since_look: [u64; LANES + 1],
    spans: Spans,
    segment: Option<Segment>,
    small_base: *mut u8,
    span_base: *mut u8,
    ticks: u32,
    tick_millis: u64,
    tick_entered: u64,
    /// Intervals that have ended.
    intervals: usize,
    /// Chunks used in the small area that were clean, since the last look at what is held, and at how many of both areas the
    /// next is due.
    dirtied: usize,
    look_at: usize,
    /// The scope whose growth had free pages given back; 0 once an interval has ended since.
    gave_up_in: u64,
}

/// What `divert` hid.
pub struct Diverted {
    active: bool,
    positions: [usize; LANES],
    recycled: usize,
}

/// What the inline half of allocation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bumped {
    /// The block.
    Made(*mut u8),
    /// The slow path's to serve.
    No,
    /// The thread is outside all scopes.
    Outside,
}

/// What the inline half of freeing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreedShort {
    /// Done.
    Yes,
    /// The slow path's to free.
    No,
    /// Not in this heap's small area, as the inline path sees it.
    Elsewhere,
}

/// What freeing found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// Done.
    Yes,
    /// The block was free already, or no block begins there.
    Misuse,
}

impl Heap {
    /// A heap without a segment: it serves nothing but keeps frames.
    pub const fn new() -> Heap {
        Heap {
            lanes: [Lane::new(0), Lane::new(1)],
            base: 0,
            len: 0,
            live: ptr::null(),
            special: CHECKED as u32,
            active: false,
            depth: 0,
            serial: 0,
            noted: 0,
            frames: [Frame::NONE; FRAMES],
            deeper: 0,
            suspensions: 0,
            counting: 0,
            magazines: Magazines::NONE,
            map: LiveMap::NONE,
            marks: Marks::NONE,
            stayed: Stayed::NONE,
            huge: HugePages::NONE,
            pass: Pass::NEW,
            small: SmallState { high: 0, committed: 0 },
            first: [None; LANES],
            search_long: 0,
            since_look: [0; LANES + 1],
            spans: Spans::NONE,
            segment: None,
            small_base: ptr::null_mut(),
            span_base: ptr::null_mut(),
            ticks: 0,
            tick_millis: 0,
            tick_entered: 0,
            intervals: 0,
            dirtied: 0,
            look_at: LOOK_CHUNKS,
            gave_up_in: 0,
        }
    }

    // ---- The segment ----

    /// The number of the heap's segment.
    pub fn segment_index(&self) -> Option<usize> {
        self.segment.map(|segment| segment.index)
    }

    /// Takes a segment over, where its last owner left it.
    ///
    /// # Safety
    /// The caller has just claimed it, and no other heap has it; else memory is handed out twice.
    pub unsafe fn attach(&mut self, segment: Segment) {
        let l: SegmentLayout = segment.layout;
        let base = segment.base;
        // SAFETY: the head is committed by the claim; maps and tables are parts of the segment, committed as far as the
        // kept state says; the claim makes this thread the owner.
        unsafe {
            let header = segment.header();
            let (small, spans) = header.kept.read();
            self.small = small;
            self.map = segment.live_map();
            self.marks = Marks::new(base.add(l.marks).cast(), l.mark_words);
            self.stayed = Stayed::new(base.add(l.stayed).cast());
            self.huge = HugePages::new(base.add(l.backing), base);
            let (tables, longest) = (base.add(l.tables), base.add(l.region_longest).cast());
            self.spans = Spans::new(
                tables,
                longest,
                &header.span_flag,
                base.add(l.spans),
                l.span_units,
                spans,
                self.huge,
            );
            self.magazines.attach(base.add(l.magazines), base.add(l.warm));
            self.small_base = base.add(l.small);
            self.span_base = base.add(l.spans);
        }
        self.first = [None; LANES];
        self.search_long = 0;
        self.since_look = [0; LANES + 1];
        self.pass = Pass::NEW;
        self.segment = Some(segment);
        self.live = by_address(&self.map, self.small_base.addr());
        self.show();
        let start = self.small_base.addr();
        for lane in &mut self.lanes {
            lane.put(start, start);
        }
        self.base = start;
        self.len = l.small_bytes;
        self.hide();
    }

    /// Ends this heap's use of its segment: pops all frames, gives the hole and the pages of free memory back, and
    /// returns the segment's number for the caller to give back.
    pub fn detach(&mut self) -> Option<usize> {
        self.show();
        self.stop_recycling();
        for lane in 0..LANES {
            self.give_up_hole(lane);
        }
        (self.depth, self.deeper, self.counting, self.active) = (0, 0, 0, false);
        self.suspensions = 0;
        for lane in &mut self.lanes {
            (lane.pos, lane.limit, lane.start) = (0, 0, 0);
        }
        (self.base, self.len) = (0, 0);
        self.note_special();
        let segment = self.segment?;
        self.discard(false, false);
        self.forget_if_empty();
        self.publish();
        // SAFETY: the header is committed, and only the owner reads or writes `kept`.
        unsafe { segment.header().kept.write((self.small, self.spans.state)) };
        self.segment = None;
        self.map = LiveMap::NONE;
        self.live = ptr::null();
        self.spans = Spans::NONE;
        Some(segment.index)
    }

    /// Gives the maps' pages back too where no block is left in the small area.
    fn forget_if_empty(&mut self) {
        let high = self.small.high;
        let words = high.div_ceil(WORD_GRANULES);
        let Some(segment) = self.segment else { return };
        if words == 0 || self.map.count(words) != 0 {
            return;
        }
        let bytes = align_down(words.wrapping_mul(8), sys::page_size());
        if bytes != 0 {
            // SAFETY: committed map pages of a segment that we own; all bits are clear, nobody holds a block of it who
            // could free remotely, and zero is what they read as afterwards.
            unsafe {
                sys::discard(segment.base.add(segment.layout.live), bytes);
                sys::discard(segment.base.add(segment.layout.remote), bytes);
            }
        }
        self.small.high = 0;
    }

    // ---- Masking ----

    /// Puts the real positions and area into the fields of the inline paths. Every slow path begins so.
    fn show(&mut self) {
        if self.noted != self.serial {
            self.note_debts();
        }
        if self.is_masked() {
            for lane in &mut self.lanes {
                lane.pos = lane.parked;
            }
            if let Some(segment) = &self.segment {
                self.base = self.small_base.addr();
                self.len = segment.layout.small_bytes;
            }
        }
    }

    /// Masks what the state says must be masked; undoes `show`.
    fn hide(&mut self) {
        if self.is_masked() {
            for lane in &mut self.lanes {
                lane.parked = core::mem::replace(&mut lane.pos, MASKED);
            }
            (self.base, self.len) = (0, 0);
        }
    }

    /// After every change of what it adds up.
    fn note_special(&mut self) {
        self.special = self.counting | self.suspensions | self.deeper | CHECKED as u32;
        if let Some(segment) = &self.segment {
            // SAFETY: the header of a claimed segment is committed.
            let told = unsafe { &segment.header().is_counting };
            let is_counting = u32::from(self.counting != 0);
            // Relaxed: what is made while it counts reaches another thread after this. Written only if changed, for others
            // read this line.
            if told.load(Ordering::Relaxed) != is_counting {
                told.store(is_counting, Ordering::Relaxed);
            }
        }
    }

    /// Whether the thread is in a scope that is not suspended.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// Whether the fields of the inline paths are masked: while a scope counts, and always where blocks are checked.
    #[inline]
    fn is_masked(&self) -> bool {
        CHECKED || self.counting != 0
    }

    /// Whether a scope counts.
    #[inline]
    pub fn is_counting(&self) -> bool {
        self.counting != 0
    }

    /// Sends every allocation to the slow path, scope or not, until what is returned is put back. Nothing may be freed
    /// or made by this heap meanwhile.
    pub fn divert(&mut self) -> Diverted {
        let active = core::mem::replace(&mut self.active, true);
        let positions = self
            .lanes
            .each_mut()
            .map(|lane| core::mem::replace(&mut lane.pos, MASKED));
        let recycled = self.magazines.hide();
        Diverted {
            active,
            positions,
            recycled,
        }
    }

    /// Ends what `divert` began.
    pub fn undivert(&mut self, diverted: Diverted) {
        self.active = diverted.active;
        self.magazines.show(diverted.recycled);
        for (lane, pos) in self.lanes.iter_mut().zip(diverted.positions) {
            lane.pos = pos;
        }
    }

    // ---- Addresses ----

    #[inline(always)]
    fn granule(&self, addr: usize) -> usize {
        addr.wrapping_sub(self.small_base.addr()) / GRANULE
    }

    #[inline(always)]
    fn addr(&self, granule: usize) -> usize {
        self.small_base.addr().wrapping_add(granule.wrapping_mul(GRANULE))
    }

    /// A block's pointer from its address in the small area.
    #[inline(always)]
    pub fn small_ptr(&self, addr: usize) -> *mut u8 {
        self.small_base.with_addr(addr)
    }

    // ---- Allocating small blocks ----

    /// Bumps in the lane's hole, any size and alignment; null if it does not fit.
    #[inline]
    fn bump_any(&mut self, index: usize, count: usize, align: usize) -> *mut u8 {
        let pos = self.lanes[index % LANES].pos;
        let at = align_up(pos, align);
        let end = at.wrapping_add(count.wrapping_mul(GRANULE));
        if end > self.lanes[index % LANES].limit {
            return ptr::null_mut();
        }
        if at != pos {
            // The gap leaves the hole (H1).
            let _whole = self.map.clear(self.granule(pos), self.granule(at));
        }
        self.lanes[index % LANES].pos = end;
        self.small_ptr(at)
    }

    /// The inline half of allocation: short blocks of common alignment that fit the hole, in a scope.
    #[inline(always)]
    pub fn bump(&mut self, size: usize, align: usize) -> Bumped {
        if !self.active {
            return Bumped::Outside;
        }
        let less_one = size.wrapping_sub(1);
        if less_one >= SHORT_MAX {
            return Bumped::No;
        }
        let lane = &mut self.lanes[lane_of(less_one)];
        let at = lane.pos;
        let end = at.wrapping_add(less_one | lane.mask).wrapping_add(1);
        if end > lane.limit {
            return Bumped::No;
        }
        if align > lane.align {
            return Bumped::No;
        }
        lane.pos = end;
        let p = self.small_ptr(at);
        // SAFETY: a hole that fits a block is inside the small area, and that is not at address 0.
        unsafe { core::hint::assert_unchecked(!p.is_null()) };
        Bumped::Made(p)
    }

    /// The inline half of freeing: short blocks of this heap.
    #[inline(always)]
    pub fn free_short(&mut self, addr: usize, size: usize) -> FreedShort {
        if unlikely(addr.wrapping_sub(self.base) >= self.len) {
            return FreedShort::Elsewhere;
        }
        let less_one = size.wrapping_sub(1);
        let lane = &mut self.lanes[lane_of(less_one)];
        let reach = less_one | lane.mask;
        if unlikely(addr.wrapping_add(reach).wrapping_add(1) == lane.pos) {
            lane.pos = addr; // H4: its bits now stand for the hole; longer blocks are bumped by the same rule
            return FreedShort::Yes;
        }
        // In the hole there is no block: a second free of the last one would clear bits that stand for the hole.
        if unlikely(lane.holds(addr)) {
            return FreedShort::No;
        }
        // SAFETY: the block is in this heap's small area, so its bits are committed, and the caller is the owner.
        if unsafe { clear_short(self.live, addr, reach) } {
            FreedShort::Yes
        } else {
            FreedShort::No
        }
    }

    /// Allocates `size` bytes (0 counts as 1) in the arena; why not, where it cannot.
    pub fn alloc(&mut self, size: usize, align: usize) -> Result<*mut u8, Refused> {
        if size > SMALL_MAX || align > SMALL_ALIGN_MAX {
            return self.alloc_span(size, align).map(|made| made.0);
        }
        self.show();
        let made = self.alloc_small(size, align);
        if self.is_recycling() {
            self.empty_holes();
        }
        self.hide();
        if let Ok(p) = made {
            // SAFETY: a new block; the guard is counted in its granules.
            unsafe { guard::made(p, size.max(1)) };
        }
        made
    }

    fn alloc_small(&mut self, size: usize, align: usize) -> Result<*mut u8, Refused> {
        let count = granules(size);
        let align = scope_align(size.wrapping_add(GUARD), align);
        let index = lane_of(size.max(1).wrapping_sub(1));
        let p = self.bump_any(index, count, align);
        if !p.is_null() {
            return Ok(p);
        }
        if self.extend_hole(index) {
            let p = self.bump_any(index, count, align);
            if !p.is_null() {
                return Ok(p);
            }
        }
        self.look_if_due();
        self.tick();
        if count > SHORT_GRANULES {
            return self.alloc_long(count, align);
        }
        let is_recycling = self.is_recycling();
        self.refill(index, count, align / GRANULE)?;
        let p = self.bump_any(index, count, align);
        if is_recycling {
            self.note_miss();
        }
        Ok(p)
    }

    // ---- Spans ----

    /// Makes a span for `size` bytes; its pointer and how many of its bytes may hold old data.
    pub fn alloc_span(&mut self, size: usize, align: usize) -> Result<(*mut u8, usize), Refused> {
        if self.segment.is_none() || size > isize::MAX as usize - UNIT {
            return Err(Refused::NoRoom);
        }
        self.tick();
        let made = self.spans.alloc(units(size), (align / UNIT).max(1))?;
        self.look_if_due();
        self.spans.join_if_due();
        self.publish_spans();
        let offset = made.unit.wrapping_mul(UNIT);
        // SAFETY: the unit is inside the span area.
        let p = unsafe { self.span_base.add(offset) };
        // SAFETY: a new block; the guard is counted in its units.
        unsafe { guard::made(p, size.max(1)) };
        Ok((p, made.dirty.wrapping_mul(UNIT)))
    }

    /// The unit of a span's address in this heap's span area; `None` for addresses elsewhere or inside a unit.
    #[inline]
    fn unit(&self, addr: usize) -> Option<usize> {
        let segment = self.segment.as_ref()?;
        let offset = addr.wrapping_sub(self.span_base.addr());
        (offset < segment.layout.span_units.wrapping_mul(UNIT) && offset % UNIT == 0).then_some(offset / UNIT)
    }

    /// Whether the address is in this heap's segment.
    #[inline]
    pub fn owns(&self, addr: usize) -> bool {
        self.segment
            .as_ref()
            .is_some_and(|segment| addr.wrapping_sub(segment.base.addr()) < segment.layout.bytes)
    }

    /// Whether the address is in this heap's small area.
    #[inline]
    fn owns_small(&self, addr: usize) -> bool {
        let Some(segment) = &self.segment else { return false };
        addr.wrapping_sub(self.small_base.addr()) < segment.layout.small_bytes
    }

    // ---- Freeing and resizing ----

    /// Frees a block of this heap's segment.
    pub fn free(&mut self, addr: usize, size: usize) -> Freed {
        let done = if self.owns_small(addr) {
            self.show();
            let done = self.free_small(addr, size);
            self.hide();
            done
        } else {
            let done = self.unit(addr).is_some_and(|unit| self.free_span(unit, addr, size));
            self.publish_spans();
            done
        };
        if done {
            Freed::Yes
        } else {
            Freed::Misuse
        }
    }

    fn free_span(&mut self, unit: usize, addr: usize, size: usize) -> bool {
        if CHECKED && self.spans.used_len(unit).is_some() && !self.spans.is_freed_remotely(unit) {
            // SAFETY: the block is live, and this thread's own until it is freed below.
            unsafe { guard::freed(self.span_base.with_addr(addr), size.max(1)) };
        }
        self.spans.free(unit)
    }

    fn free_small(&mut self, addr: usize, size: usize) -> bool {
        let (start, count) = (self.granule(addr), granules(size));
        if addr % GRANULE != 0 || self.lanes.iter().any(|lane| lane.holds(addr)) {
            return false;
        }
        if start.wrapping_add(count) > self.small.high {
            return false;
        }
        if CHECKED {
            if !self.map.is_live(start, start.wrapping_add(count)) {
                return false;
            }
            // SAFETY: the block is live, and this thread's own until it is freed below.
            unsafe { guard::freed(self.small_ptr(addr), size.max(1)) };
        }
        let index = lane_of(size.max(1).wrapping_sub(1));
        let is_last = addr.wrapping_add(count.wrapping_mul(GRANULE)) == self.lanes[index].pos;
        if is_last && !self.is_recycling() {
            self.lanes[index].pos = addr;
            return true;
        }
        self.map.clear(start, start.wrapping_add(count))
    }

    /// Gives a block of this heap's segment a new size where it stands, if it can.
    pub fn resize(&mut self, addr: usize, old: usize, new: usize) -> bool {
        if !self.owns_small(addr) {
            let Some(unit) = self.unit(addr) else { return false };
            let Some(have) = self.spans.used_len(unit) else {
                return false;
            };
            let want = units(new);
            if want > have {
                if self.spans.grow(unit, want).is_none() {
                    return false;
                }
                self.look_if_due();
            }
            if want < have {
                self.spans.shrink(unit, want);
            }
            self.publish_spans();
            return true;
        }
        let (have, want) = (granules(old), granules(new));
        // A block that grows into a line must begin at one.
        if new > SMALL_MAX || (new > old && addr % scope_align(new, 1) != 0) {
            return false;
        }
        if have == want {
            return true;
        }
        self.show();
        let done = self.resize_small(addr, (old, have), (new, want));
        self.hide();
        done
    }

    fn resize_small(&mut self, addr: usize, (old, have): (usize, usize), (new, want): (usize, usize)) -> bool {
        let start = self.granule(addr);
        let (old_end, new_end) = (start.wrapping_add(have), start.wrapping_add(want));
        let new_end_addr = addr.wrapping_add(want.wrapping_mul(GRANULE));
        let index = lane_of(old.max(1).wrapping_sub(1));
        // Lane 1's position stays at a line: a block that shrinks below one leaves it. Empty holes give and take nothing.
        let is_last = self.addr(old_end) == self.lanes[index % LANES].pos && !self.is_recycling();
        if is_last && (index == 0 || new >= LINE_FROM) {
            while new_end_addr > self.lanes[index % LANES].limit {
                if !self.extend_hole(index) {
                    return false;
                }
            }
            self.lanes[index % LANES].pos = new_end_addr;
            return true;
        }
        if want < have {
            let _whole = self.map.clear(new_end, old_end);
            return true;
        }
        if new_end > self.small.high || self.map.first_live(old_end, new_end) != new_end {
            return false;
        }
        self.set_free(old_end, new_end);
        true
    }

    /// Whether the live block at `addr` was freed by another thread, folded or not, since it was made. For counts.
    pub fn is_gone(&mut self, addr: usize) -> bool {
        if self.owns_small(addr) {
            let granule = self.granule(addr);
            let bit = self.map.peek(granule / WORD_GRANULES) >> (granule % WORD_GRANULES) & 1;
            return bit == 0
                || self
                    .real_holes()
                    .iter()
                    .any(|&(pos, limit)| addr >= pos && addr < limit);
        }
        match self.unit(addr) {
            Some(unit) => self.spans.used_len(unit).is_none() || self.spans.is_freed_remotely(unit),
            None => true,
        }
    }

    // ---- Figures ----

    fn publish(&mut self) {
        if let Some(segment) = self.segment {
            // SAFETY: the segment is ours, so its head is committed.
            let published = unsafe { &segment.header().published };
            let put = |to: &AtomicUsize, value| to.store(value, Ordering::Relaxed);
            put(&published.small_committed, self.small.committed);
            put(&published.small_high, self.small.high);
        }
        self.publish_spans();
    }

    fn publish_spans(&mut self) {
        if let Some(segment) = &self.segment {
            // SAFETY: as in `publish`.
            let published = unsafe { &segment.header().published };
            let state = &self.spans.state;
            let put = |to: &AtomicUsize, value| to.store(value, Ordering::Relaxed);
            put(&published.span_committed, state.committed);
            put(&published.span_tables, state.tables);
            put(&published.span_top, state.top);
            put(&published.span_used, state.used);
        }
    }

    /// Makes what the process totals read up to date, remote frees folded, and says how many bytes the hole has.
    pub fn settle(&mut self) -> usize {
        self.spans.fold();
        self.publish();
        let holes = self.real_holes();
        let bytes = holes.iter().map(|&(pos, limit)| limit.wrapping_sub(pos));
        bytes.fold(0, usize::wrapping_add)
    }

    /// The holes as they are behind the masks: position and limit.
    fn real_holes(&self) -> [(usize, usize); LANES] {
        self.lanes.map(|lane| {
            let pos = if self.is_masked() { lane.parked } else { lane.pos };
            (pos, lane.limit)
        })
    }

    /// The segment, for figures.
    pub fn segment(&self) -> Option<Segment> {
        self.segment
    }

    /// Panics unless the numbered invariants hold. For tests; never called by an allocation.
    #[cfg(test)]
    pub fn debug_check(&mut self) {
        if self.segment.is_none() {
            return;
        }
        let holes = self.real_holes();
        for (index, (pos, limit)) in holes.into_iter().enumerate() {
            assert!(pos <= limit && pos % (grain(index) * GRANULE) == 0 && limit % (grain(index) * GRANULE) == 0);
            for granule in self.granule(pos)..self.granule(limit) {
                let bit = self.map.peek(granule / WORD_GRANULES) >> (granule % WORD_GRANULES) & 1;
                assert_eq!(bit, 1, "H1: a granule of the hole is not marked");
            }
            assert!(
                self.granule(limit) <= self.small.high,
                "a mark beyond the furthest ever used"
            );
        }
        assert_eq!(self.small.high % grain(1), 0, "the furthest ever used is a line's end");
        let apart = holes[0].1 <= holes[1].0 || holes[1].1 <= holes[0].0;
        let empty = holes.iter().any(|(pos, limit)| pos == limit);
        assert!(apart || empty, "H1: the holes overlap");
        for word in self.small.high / WORD_GRANULES..self.small.committed / WORD_GRANULES {
            let from = self.small.high.saturating_sub(word * WORD_GRANULES).min(WORD_GRANULES);
            let beyond = if from == WORD_GRANULES { 0 } else { u64::MAX << from };
            assert_eq!(
                self.map.peek(word) & beyond,
                0,
                "a live granule beyond the furthest ever used"
            );
        }
        for word in 0..self.small.high.div_ceil(WORD_GRANULES) {
            let chunk = word.wrapping_mul(WORD_GRANULES) / crate::layout::CHUNK_GRANULES;
            let used = self.map.peek(word) == 0 || self.marks.is_dirty(chunk) || self.stayed.get(chunk) != 0;
            assert!(used, "a chunk with a live granule is taken for clean");
        }
        assert!(self.depth <= FRAMES);
        let mut last = 0;
        for frame in &self.frames[..self.depth] {
            assert!(frame.serial > last, "H8: serials grow");
            last = frame.serial;
        }
        let frames = &self.frames[..self.depth];
        let counted = frames.iter().filter(|frame| frame.kind == Kind::Counted).count();
        let suspended: u32 = frames.iter().map(|frame| frame.suspended).sum();
        let sums = (counted as u32, suspended);
        assert_eq!((self.counting, self.suspensions), sums, "H8: the sums of the frames");
        assert!(
            self.deeper == 0 || self.depth == FRAMES,
            "H8: deeper than a table with room"
        );
        assert_eq!(self.active, self.top_is_active(), "H8: the topmost frame decides");
        assert_eq!(
            self.special != 0,
            self.is_masked() || self.suspensions | self.deeper != 0
        );
        if self.is_recycling() {
            assert!(
                holes.iter().all(|(pos, limit)| pos == limit),
                "a free on the short way could clear a hole's bits"
            );
        }
        for lane in self.lanes {
            assert_eq!(
                self.is_masked(),
                lane.pos == MASKED,
                "a position is masked as it should be"
            );
        }
        let is_slow = self.is_masked() || self.is_recycling();
        assert_eq!(self.len == 0, is_slow, "frees on the inline path");
        self.spans.debug_check();
    }

    /// Live granules of the small area after folding; holes do not count. For tests.
    #[cfg(test)]
    pub fn live_granules(&mut self) -> usize {
        if self.segment.is_none() {
            return 0;
        }
        let holes = self.real_holes().map(|(pos, limit)| (limit - pos) / GRANULE);
        let hole = holes[0] + holes[1];
        self.map
            .count(self.small.high.div_ceil(WORD_GRANULES))
            .wrapping_sub(hole)
    }

    /// Units in used spans after folding. For tests.
    #[cfg(test)]
    pub fn used_units(&mut self) -> usize {
        self.spans.fold();
        self.spans.state.used
    }
}

#[cfg(test)]
#[path = "heap_tests.rs"]
mod tests;
