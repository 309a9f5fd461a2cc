//! A thread's arena: bump, free, reallocate, and the frames that scopes leave on it. Knows no threads and no globals.
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
//! **What the inline paths see.** A lane's `end` is its hole's `limit` while the thread is in a scope, 0 outside (nothing
//! fits below 0), and 1 where the slow path must be taken. `base` and `len` are the small area for local frees. While a
//! scope counts, position, end and area are masked so that every call takes the slow path.
//!
//! **Where the next hole comes from**, in this order: the free granules right behind the current one; the next run of
//! free granules from the search mark on; if enough was allocated since the last look to pay for one, and less than two
//! thirds of the area are live, the area's start; else memory never used. Blocks over 1 KiB that do not fit the hole
//! are placed by a search of their own, so that they do not cost the small ones their hole.
//!
//! **What leaving does.** The hole is given up and taken again from where the scope began, cut at the first live
//! granule. A step so walks the same warm memory each time. If escapees have made that stretch so dense that the
//! scope had to walk many times what it allocated, the beginning moves on instead: the walk of a step is bounded
//! however many escapees there are.

use crate::align::{align_down, align_up, CACHE_LINE};
use crate::guard::{self, CHECKED};
use crate::hint::unlikely;
use crate::layout::{
    granules, scope_align, units, SegmentLayout, CHUNK_GRANULES, GRANULE, GUARD, HOLE_MAX, LINE_FROM, SHORT_MAX,
    SMALL_ALIGN_MAX, SMALL_MAX, UNIT, WORD_GRANULES,
};
use crate::live_map::{by_address, clear_short, LiveMap};
use crate::marks::Marks;
use crate::segment::{Segment, SmallState};
use crate::spans::{Refused, Spans, COMMIT_FIRST, COMMIT_MOST};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::sys;
use core::ptr;

/// Scopes with a mark of their own; deeper ones run in the mark of the last. 64 frames are 4 KiB of a thread's
/// static memory, and no program we recorded nests more than four.
pub const FRAMES: usize = 64;
/// Fresh memory becomes a hole in steps of this, granules: as long as a hole may be.
const FRESH: usize = HOLE_MAX;
/// No shorter run of granules becomes a hole.
const RUN_MIN: usize = 2;
/// A scope may walk this many granules for each that it allocates before its beginning moves on: a walk of one word,
/// about a nanosecond, for eight granules used.
const WALK_SHARE: i64 = 8;
/// A look at the whole area must be paid for by allocating one in this many of its granules since the last look.
const LOOK_SHARE: usize = 32;
/// The area grows instead of being searched again when more than two thirds of it are live.
const DENSE: (usize, usize) = (2, 3);
/// A hole or block of more granules is placed by the search for long blocks.
const SHORT_GRANULES: usize = SHORT_MAX / GRANULE;
/// The clock is read on one slow path in this many.
const TICK_CALLS: u32 = 32;
/// An interval of use marks lasts at least this many milliseconds and steps, or this many milliseconds.
const TICK_MILLIS: u64 = 1_000;
const TICK_STEPS: u64 = 4;
const TICK_MOST_MILLIS: u64 = 30_000;

/// What kind of extent a frame stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A scope.
    Scope,
    /// A scope that counts.
    Counted,
    /// A suspension of all scopes below.
    Outside,
    /// A scope that was left inside a suspension deeper than the table, whose count it keeps until that ends.
    Left,
}

/// What an extent saved on entry. A hint.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Frame {
    serial: u64,
    /// Position and `debt` of each lane; the position is 1 where there was no segment.
    at: [(usize, i64); LANES],
    kind: Kind,
    /// Whether the thread was in a scope, not suspended, when it came in.
    was_active: bool,
    /// How many extents beyond the table suspend this frame.
    suspended: u32,
}

impl Frame {
    const NONE: Frame = Frame {
        serial: 0,
        at: [(1, 0); LANES],
        kind: Kind::Scope,
        was_active: false,
        suspended: 0,
    };
}

/// Lane 0 bumps blocks below 64 bytes, lane 1 those from there on.
const LANES: usize = 2;
/// In place of a lane, where searches are paid for: blocks over 1 KiB. Their walks are counted to lane 1.
const LONG: usize = LANES;

/// Where one kind of blocks is bumped. With a segment `[pos, limit)` is its hole, perhaps empty: then both are the mark
/// from which the next is searched. In lane 1 both are multiples of 64.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Lane {
    /// Address of the next block; 1 without a segment or while counting, 0 after the thread's end.
    pos: usize,
    /// Bytes walked in search of holes, less `WALK_SHARE` times the bytes found, plus as much for each address up to the
    /// limit: less `WALK_SHARE` times the position it is what was walked less what was paid for.
    debt: i64,
    /// What the inline path may fill: the limit, 0 outside scopes, or 1 to send it to the slow path.
    end: usize,
    /// One less than the grain, bytes: with the size less one it makes the block's last byte.
    mask: usize,
    /// The grain in bytes: the most alignment that the inline path serves.
    align: usize,
    /// Address of the hole's end.
    limit: usize,
    /// Where the hole began; a hint.
    start: usize,
    /// The position, while it is masked.
    parked: usize,
}

impl Lane {
    const fn new(index: usize) -> Lane {
        Lane {
            pos: 1,
            debt: 0,
            end: 0,
            mask: grain(index).wrapping_mul(GRANULE).wrapping_sub(1),
            align: grain(index).wrapping_mul(GRANULE),
            limit: 1,
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

    #[inline(always)]
    fn holds(&self, addr: usize) -> bool {
        addr >= self.pos && addr < self.limit
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
const fn lane_of(size_less_one: usize) -> usize {
    (size_less_one.wrapping_add(GUARD) >= LINE_FROM - 1) as usize
}

/// Names a frame, perhaps one that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    index: usize,
    serial: u64,
}

/// The index of a ticket for a scope deeper than the table.
const DEEPER: usize = FRAMES;
/// The index of a ticket for a suspension deeper than the table: it marked the topmost frame.
const DEEPER_OUTSIDE: usize = FRAMES + 1;

impl Ticket {
    /// Names no frame.
    pub const INERT: Ticket = Ticket {
        index: usize::MAX,
        serial: 0,
    };

    /// The serial of its frame.
    pub fn serial(self) -> u64 {
        self.serial
    }
}

#[repr(C)]
/// The arena of one thread; see the file's head for what the first four fields may hold.
pub struct Heap {
    lanes: [Lane; LANES],
    /// Address of the small area; 0 without a segment.
    pub base: usize,
    /// Bytes of the small area; 0 without a segment or while counting.
    pub len: usize,
    /// The live map, by address.
    pub live: *const AtomicU64,
    /// Not 0: entering and leaving take the slow path (a scope counts, or an extent deeper than the table is open).
    special: u32,
    active: bool,
    depth: usize,
    serial: u64,
    frames: [Frame; FRAMES],
    /// Scopes deeper than the table.
    deeper: u32,
    /// Suspensions deeper than the table: counts of all frames.
    suspensions: u32,
    counting: u32,
    map: LiveMap,
    marks: Marks,
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
            frames: [Frame::NONE; FRAMES],
            deeper: 0,
            suspensions: 0,
            counting: 0,
            map: LiveMap::NONE,
            marks: Marks::NONE,
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
            self.map = LiveMap::new(base.add(l.live).cast(), base.add(l.remote).cast());
            self.marks = Marks::new(base.add(l.marks).cast(), l.mark_words);
            let (tables, longest) = (base.add(l.tables), base.add(l.region_longest).cast());
            self.spans = Spans::new(
                tables,
                longest,
                &header.span_flag,
                base.add(l.spans),
                l.span_units,
                spans,
            );
            self.small_base = base.add(l.small);
            self.span_base = base.add(l.spans);
        }
        self.first = [None; LANES];
        self.search_long = 0;
        self.since_look = [0; LANES + 1];
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
        for lane in 0..LANES {
            self.give_up_hole(lane);
        }
        (self.depth, self.deeper, self.counting, self.active) = (0, 0, 0, false);
        self.suspensions = 0;
        for lane in &mut self.lanes {
            (lane.pos, lane.end, lane.limit, lane.start) = (0, 0, 0, 0);
        }
        (self.base, self.len) = (0, 0);
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

    /// Puts the real positions and area into the fields of the inline paths.
    fn show(&mut self) {
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
        let masked = self.is_masked();
        for lane in &mut self.lanes {
            lane.end = match (self.active, masked) {
                (false, _) => 0,
                (true, false) => lane.limit,
                (true, true) => 1,
            };
            if masked {
                lane.parked = lane.pos;
                lane.pos = 1;
            }
        }
        if masked {
            (self.base, self.len) = (0, 0);
        }
        self.note_special();
    }

    fn note_special(&mut self) {
        self.special = self.counting | self.suspensions | self.deeper | CHECKED as u32;
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

    /// Sends every allocation to the slow path, scope or not, until the ends returned are put back.
    pub fn divert(&mut self) -> [usize; LANES] {
        let mut ends = [0; LANES];
        for (lane, end) in self.lanes.iter_mut().zip(&mut ends) {
            *end = core::mem::replace(&mut lane.end, 1);
        }
        ends
    }

    /// Ends what `divert` began.
    pub fn undivert(&mut self, ends: [usize; LANES]) {
        for (lane, end) in self.lanes.iter_mut().zip(ends) {
            lane.end = end;
        }
    }

    // ---- Frames ----

    /// Opens a scope.
    #[inline]
    pub fn enter(&mut self) -> Ticket {
        if self.special != 0 || self.depth >= FRAMES {
            return self.enter_slow(Kind::Scope);
        }
        let was_active = self.active;
        if !was_active {
            self.lanes[0].end = self.lanes[0].limit;
            self.lanes[1].end = self.lanes[1].limit;
            self.active = true;
        }
        self.push(Kind::Scope, was_active)
    }

    #[inline(always)]
    fn push(&mut self, kind: Kind, was_active: bool) -> Ticket {
        self.serial = self.serial.wrapping_add(1);
        let frame = Frame {
            serial: self.serial,
            at: [
                (self.lanes[0].pos, self.lanes[0].debt),
                (self.lanes[1].pos, self.lanes[1].debt),
            ],
            kind,
            was_active,
            suspended: 0,
        };
        let index = self.depth;
        if let Some(slot) = self.frames.get_mut(index) {
            *slot = frame;
            self.depth = index.wrapping_add(1);
        }
        Ticket {
            index,
            serial: self.serial,
        }
    }

    /// Opens an extent of any kind.
    #[cold]
    pub fn enter_slow(&mut self, kind: Kind) -> Ticket {
        if self.depth >= FRAMES {
            return self.enter_deeper(kind);
        }
        self.show();
        let was_active = self.active;
        let ticket = self.push(kind, was_active);
        self.active = kind != Kind::Outside;
        self.counting = self.counting.wrapping_add(u32::from(kind == Kind::Counted));
        self.hide();
        ticket
    }

    fn enter_deeper(&mut self, kind: Kind) -> Ticket {
        let Some(top) = self.frames.get_mut(FRAMES - 1) else {
            return Ticket::INERT;
        };
        if kind == Kind::Outside {
            top.suspended = top.suspended.wrapping_add(1);
            self.suspensions = self.suspensions.wrapping_add(1);
            let serial = top.serial;
            self.show();
            self.active = false;
            self.hide();
            return Ticket {
                index: DEEPER_OUTSIDE,
                serial,
            };
        }
        self.deeper = self.deeper.saturating_add(1);
        self.note_special();
        Ticket {
            index: DEEPER,
            serial: 0,
        }
    }

    /// Closes an extent; does nothing if it is closed already.
    #[inline]
    pub fn leave(&mut self, ticket: Ticket) {
        if self.special == 0 && ticket.index.wrapping_add(1) == self.depth {
            if let Some(&Frame {
                serial,
                at,
                was_active,
                kind: Kind::Scope,
                ..
            }) = self.frames.get(ticket.index)
            {
                if serial == ticket.serial && at[0].0 == self.lanes[0].pos && at[1].0 == self.lanes[1].pos {
                    self.depth = ticket.index;
                    if !was_active {
                        self.lanes[0].end = 0;
                        self.lanes[1].end = 0;
                        self.active = false;
                    }
                    return;
                }
            }
        }
        self.leave_slow(ticket);
    }

    /// Whether the ticket's frame is still there.
    pub fn is_open(&self, ticket: Ticket) -> bool {
        self.find(ticket.index, ticket.serial).is_some()
    }

    /// Where the frame with this serial is now: at `index`, or below it if it is a suspension whose scope ended inside it.
    fn find(&self, index: usize, serial: u64) -> Option<usize> {
        if index >= FRAMES {
            return None;
        }
        let mut index = index.min(self.depth.checked_sub(1)?);
        loop {
            let frame = self.frames.get(index)?;
            if frame.serial <= serial {
                return (frame.serial == serial).then_some(index);
            }
            index = index.checked_sub(1)?;
        }
    }

    fn top_is_active(&self) -> bool {
        let top = self.depth.checked_sub(1).and_then(|index| self.frames.get(index));
        top.is_some_and(|top| top.kind != Kind::Outside && top.suspended == 0)
    }

    #[inline(never)]
    fn leave_slow(&mut self, ticket: Ticket) {
        if ticket.index == DEEPER {
            self.deeper = self.deeper.saturating_sub(1);
            self.note_special();
            return;
        }
        if ticket.index == DEEPER_OUTSIDE {
            return self.leave_deeper_outside(ticket.serial);
        }
        let Some(closing) = self.find(ticket.index, ticket.serial) else {
            return;
        };
        let Some(&frame) = self.frames.get(closing) else {
            return;
        };
        self.show();
        let mut kept = closing;
        for index in closing..self.depth {
            let Some(&above) = self.frames.get(index) else { break };
            // A suspension is a closure that is still running: it stays, whichever frame below it ends.
            let suspends = above.kind == Kind::Outside && index != closing;
            if suspends || above.suspended != 0 {
                let kind = if suspends { Kind::Outside } else { Kind::Left };
                if let Some(slot) = self.frames.get_mut(kept) {
                    *slot = Frame { kind, ..above };
                    kept = kept.wrapping_add(1);
                }
            }
            self.counting = self.counting.wrapping_sub(u32::from(above.kind == Kind::Counted));
        }
        self.depth = kept;
        self.deeper = 0;
        if frame.kind != Kind::Outside && self.segment.is_some() {
            for lane in 0..LANES {
                self.go_back(lane, &frame);
            }
            // Not forward: a look may have found room far below the scope's beginning.
            self.search_long = self.search_long.min(self.granule(self.lanes[1].limit));
        }
        self.active = self.top_is_active();
        self.hide();
    }

    fn leave_deeper_outside(&mut self, serial: u64) {
        let Some(index) = self.find(FRAMES - 1, serial) else {
            return;
        };
        let Some(frame) = self.frames.get_mut(index) else {
            return;
        };
        if frame.suspended == 0 {
            return;
        }
        frame.suspended = frame.suspended.wrapping_sub(1);
        self.suspensions = self.suspensions.wrapping_sub(1);
        let (suspended, kind) = (frame.suspended, frame.kind);
        if suspended != 0 {
            return;
        }
        self.show();
        if kind == Kind::Left {
            // Its scope is gone; so are those opened inside the suspension.
            let gone = self.frames.iter().take(self.depth).skip(index);
            let counted = gone.filter(|frame| frame.kind == Kind::Counted).count();
            self.counting = self.counting.wrapping_sub(counted as u32);
            self.depth = index;
            self.deeper = 0;
        }
        self.active = self.top_is_active();
        self.hide();
    }

    /// Takes the hole that begins where the frame began, as far as its memory is free.
    fn go_back(&mut self, index: usize, frame: &Frame) {
        let (Some(&lane), Some(&(pos, debt))) = (self.lanes.get(index), frame.at.get(index)) else {
            return;
        };
        let now = lane.debt.wrapping_sub(price(lane.pos));
        let walked = now.wrapping_sub(debt.wrapping_sub(price(pos)));
        let pos = match self.first.get(index) {
            _ if pos != 1 => pos,
            Some(&Some(first)) => first,
            _ => return, // no segment then, and no hole since
        };
        let start = lane.start.min(lane.pos);
        if pos <= lane.limit {
            if pos >= start && lane.pos <= pos {
                return; // all of it was freed, and perhaps a block from before
            }
            let (from, to) = (self.granule(pos), self.granule(lane.pos));
            // Longer than a hole, it is taken anew below: a step's end must not look at all that the step used.
            if from < to && to.wrapping_sub(from) <= HOLE_MAX {
                // Escapees in one piece at the beginning: the hole begins behind them.
                let free = align_up(self.map.first_free(from, to), grain(index));
                if self.map.first_live(free, to) == to {
                    self.map.set(free, to);
                    self.lanes[index % LANES].pos = self.addr(free);
                    return;
                }
            }
        }
        let mark = if walked > 0 && lane.pos < lane.limit {
            self.granule(start)
        } else {
            self.granule(pos)
        };
        self.give_up_hole(index);
        self.take_from(index, mark);
    }

    /// Makes the first free granules from `mark` on the lane's hole, if there are any near.
    fn take_from(&mut self, index: usize, mark: usize) {
        let high = self.small.high;
        // As many looks past live granules as a hole is long: escapees where a step begins would else stop every step.
        let start = self.map.first_free(mark, high.min(mark.wrapping_add(HOLE_MAX)));
        let end = self.map.first_live(start, high.min(start.wrapping_add(HOLE_MAX)));
        let (start, end) = (align_up(start, grain(index)), align_down(end, grain(index)));
        if start < end {
            self.take(index, start, end);
        } else {
            self.set_mark(index, start);
        }
    }

    /// How many scopes the thread's allocations are nested in: 0 outside and while suspended.
    pub fn depth(&self) -> usize {
        let mut open = 0usize;
        for frame in self.frames.iter().take(self.depth).rev() {
            if frame.kind == Kind::Outside || frame.suspended != 0 {
                break;
            }
            open = open.wrapping_add(1);
        }
        // Those beyond the table are in the scope at its end; in a suspension there they have no effect.
        if open == 0 {
            0
        } else {
            open.wrapping_add(self.deeper as usize)
        }
    }

    /// Scopes entered so far.
    pub fn entered(&self) -> u64 {
        self.serial
    }

    // ---- Holes ----

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

    /// Makes the free granules `[start, end)`, inwards to the lane's grain, its hole (H2). It has none now.
    fn take(&mut self, index: usize, start: usize, end: usize) {
        let (start, end) = (align_up(start, grain(index)), align_down(end, grain(index)));
        self.map.set(start, end);
        let (pos, limit) = (self.addr(start), self.addr(end));
        self.lanes[index % LANES].put(pos, limit);
        if let Some(first @ None) = self.first.get_mut(index) {
            *first = Some(pos);
        }
        self.used(index, start, end);
    }

    /// Lets the lane's next search begin at `mark`. It has no hole now.
    fn set_mark(&mut self, index: usize, mark: usize) {
        let at = self.addr(align_up(mark, grain(index)));
        self.lanes[index % LANES].put(at, at);
    }

    /// Accounts for granules that became a hole or a long block.
    fn used(&mut self, index: usize, start: usize, end: usize) {
        let count = end.wrapping_sub(start);
        self.pay(index, count);
        let lane = &mut self.lanes[index.min(LANES - 1)];
        lane.debt = lane.debt.wrapping_sub(price(count.wrapping_mul(GRANULE)));
        self.marks
            .touch(start / CHUNK_GRANULES, end.wrapping_sub(1) / CHUNK_GRANULES);
    }

    /// Ends the lane's hole: `[pos, limit)` is free (H2). Its limit stays as the mark.
    fn give_up_hole(&mut self, index: usize) {
        let lane = self.lanes[index % LANES];
        if lane.pos < lane.limit {
            let _whole = self.map.clear(self.granule(lane.pos), self.granule(lane.limit));
            let lane = &mut self.lanes[index % LANES];
            lane.debt = lane.debt.wrapping_add(price(lane.limit.wrapping_sub(lane.pos)));
            (lane.pos, lane.start) = (lane.limit, lane.limit);
        }
    }

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
        if self.lanes[0].end == 0 {
            return Bumped::Outside;
        }
        let less_one = size.wrapping_sub(1);
        if less_one >= SHORT_MAX {
            return Bumped::No;
        }
        let lane = &mut self.lanes[lane_of(less_one)];
        let at = lane.pos;
        let end = at.wrapping_add(less_one | lane.mask).wrapping_add(1);
        if end > lane.end {
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
        if unlikely(less_one >= SHORT_MAX) {
            return FreedShort::No;
        }
        let lane = &mut self.lanes[lane_of(less_one)];
        let last = addr.wrapping_add(less_one | lane.mask);
        let pos = lane.pos;
        if unlikely(last.wrapping_add(1) == pos) {
            lane.pos = addr; // H4: its bits now stand for the hole
            return FreedShort::Yes;
        }
        // In the hole there is no block: a second free of the last one would clear bits that stand for the hole.
        if unlikely(addr >= pos) && addr < lane.limit {
            return FreedShort::No;
        }
        // SAFETY: the block is in this heap's small area, so its bits are committed, and the caller is the owner.
        if unsafe { clear_short(self.live, addr, last) } {
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
        self.tick();
        if count > SHORT_GRANULES {
            return self.alloc_long(count, align);
        }
        self.refill(index, count, align / GRANULE)?;
        Ok(self.bump_any(index, count, align))
    }

    /// Lengthens the lane's hole by the free granules behind it.
    fn extend_hole(&mut self, index: usize) -> bool {
        let lane = self.lanes[index % LANES];
        if lane.pos >= lane.limit {
            return false;
        }
        let (end, high) = (self.granule(lane.limit), self.small.high);
        let free = self.map.first_live(end, high.min(end.wrapping_add(HOLE_MAX)));
        self.lengthen(index, free)
    }

    /// Takes the free granules from the lane's limit to `end` into its hole.
    fn lengthen(&mut self, index: usize, end: usize) -> bool {
        let from = self.granule(self.lanes[index % LANES].limit);
        let end = align_down(end, grain(index));
        if end <= from {
            return false;
        }
        self.map.set(from, end);
        let limit = self.addr(end);
        self.lanes[index % LANES].set_limit(limit);
        self.used(index, from, end);
        true
    }

    /// Finds a hole in which `count` granules fit at a multiple of `align` granules.
    fn refill(&mut self, index: usize, count: usize, align: usize) -> Result<(), Refused> {
        let lane = self.lanes[index % LANES];
        let mark = self.granule(lane.limit);
        let fresh = if mark == self.small.high {
            self.granule(lane.pos)
        } else {
            self.small.high
        };
        self.give_up_hole(index);
        let count_min = count.max(RUN_MIN);
        if let Some((start, end)) = self.walk(index, mark, count_min, align, HOLE_MAX) {
            self.take(index, start, end);
            return Ok(());
        }
        let paid = self.look_is_paid(index);
        if self.may_look_again(index) {
            if let Some((start, end)) = self.walk(index, 0, count_min, align, HOLE_MAX) {
                self.take(index, start, end);
                return Ok(());
            }
        }
        let need = count.wrapping_add(align).wrapping_add(grain(index));
        let (start, end) = match self.grow(fresh, fresh.wrapping_add(FRESH.max(need)), fresh.wrapping_add(need)) {
            Ok(end) => (fresh, end),
            Err(refused) => {
                let found = self.look_when_full(index, paid, count_min, align, HOLE_MAX);
                if found.is_none() {
                    self.set_mark(index, self.small.high);
                }
                found.ok_or(refused)?
            }
        };
        self.take(index, start, end);
        self.publish();
        Ok(())
    }

    fn walk(
        &mut self,
        index: usize,
        from: usize,
        count: usize,
        align: usize,
        longest: usize,
    ) -> Option<(usize, usize)> {
        let high = self.small.high;
        let found = self.map.next_run(from, high, count, align, longest);
        let to = found.map_or(high, |run| run.0);
        self.charge(index, to.saturating_sub(from));
        found
    }

    /// Counts granules that were walked.
    fn charge(&mut self, index: usize, count: usize) {
        let lane = &mut self.lanes[index.min(LANES - 1)];
        lane.debt = lane.debt.wrapping_add(count.wrapping_mul(GRANULE) as i64);
    }

    /// Adds to what has been allocated since the last look of this lane, or of the long blocks.
    fn pay(&mut self, index: usize, count: usize) {
        if let Some(since) = self.since_look.get_mut(index) {
            *since = since.wrapping_add(count as u64);
        }
    }

    /// A look begins: the next is to be paid for anew.
    fn forget_paid(&mut self, index: usize) {
        if let Some(since) = self.since_look.get_mut(index) {
            *since = 0;
        }
    }

    /// Whether a search of the whole area is paid for: `LOOK_SHARE`.
    fn look_is_paid(&self, index: usize) -> bool {
        let high = self.small.high;
        let since = self.since_look.get(index).copied().unwrap_or(0);
        high != 0 && since >= (high / LOOK_SHARE) as u64
    }

    /// The whole area is searched, however dense, when it cannot grow. What is refused pays for the next look, or an area
    /// that was full once would never be looked at again.
    fn look_when_full(
        &mut self,
        index: usize,
        paid: bool,
        count: usize,
        align: usize,
        longest: usize,
    ) -> Option<(usize, usize)> {
        self.pay(index, count);
        if !paid && !self.look_is_paid(index) {
            return None;
        }
        self.forget_paid(index);
        self.walk(index, 0, count, align, longest)
    }

    /// Whether a search of the whole area is paid for and promises enough: `DENSE`.
    fn may_look_again(&mut self, index: usize) -> bool {
        let high = self.small.high;
        if !self.look_is_paid(index) {
            return false;
        }
        self.forget_paid(index);
        // The look is a walk over all of it. Not charged, a small step that begins at the area's end would go back there
        // after each look, and the next would grow the area.
        self.charge(index, high);
        let live = self.map.count(high.div_ceil(WORD_GRANULES));
        live.wrapping_mul(DENSE.1) < high.wrapping_mul(DENSE.0)
    }

    /// Moves `high` to `wish`, or to `least` where the system refuses more; returns it.
    fn grow(&mut self, from: usize, wish: usize, least: usize) -> Result<usize, Refused> {
        let Some(segment) = self.segment else {
            return Err(Refused::NoRoom);
        };
        let limit = segment.layout.small_granules();
        if least > limit || from > limit {
            return Err(Refused::NoRoom);
        }
        let wish = wish.min(limit);
        let end = if wish <= self.small.committed || self.commit(wish) {
            wish
        } else if least <= self.small.committed || self.commit(least) {
            least
        } else {
            return Err(Refused::Commit);
        };
        self.small.high = self.small.high.max(end);
        Ok(end)
    }

    /// Commits the area and both maps up to at least `wish` granules.
    fn commit(&mut self, wish: usize) -> bool {
        let Some(segment) = self.segment else { return false };
        let limit = segment.layout.small_granules();
        let had = self.small.committed;
        let step = had.wrapping_mul(GRANULE).clamp(COMMIT_FIRST, COMMIT_MOST) / GRANULE;
        let ahead = align_up(had.wrapping_add(step).max(wish), CHUNK_GRANULES).min(limit);
        let least = align_up(wish, CHUNK_GRANULES).min(limit);
        self.commit_to(&segment, ahead) || self.commit_to(&segment, least)
    }

    fn commit_to(&mut self, segment: &Segment, granules: usize) -> bool {
        let page = sys::page_size();
        let had = self.small.committed;
        let map_from = align_down(had / 8, page);
        let map_bytes = align_up(granules / 8, page).wrapping_sub(map_from);
        let from = had.wrapping_mul(GRANULE);
        let bytes = granules.wrapping_mul(GRANULE).wrapping_sub(from);
        // SAFETY: page aligned and inside the parts of our own segment, which are multiples of 64 KiB.
        let done = unsafe {
            sys::commit(segment.base.add(segment.layout.live).add(map_from), map_bytes)
                && sys::commit(segment.base.add(segment.layout.remote).add(map_from), map_bytes)
                && sys::commit(self.small_base.add(from), bytes)
        };
        if done {
            self.small.committed = granules;
            // SAFETY: committed just now, so no block is in it.
            unsafe { guard::unusable(self.small_base.add(from), bytes) };
        }
        done
    }

    /// Places a block of more than 1 KiB that does not fit the hole, and leaves the hole alone.
    fn alloc_long(&mut self, count: usize, align: usize) -> Result<*mut u8, Refused> {
        let step = align / GRANULE;
        let need = count.wrapping_add(step);
        let mut paid = false;
        let mut found = self.walk(LONG, self.search_long, count, step, need);
        if found.is_none() {
            self.search_long = self.small.high;
            paid = self.look_is_paid(LONG);
            if self.may_look_again(LONG) {
                found = self.walk(LONG, 0, count, step, need);
            }
        }
        if found.is_none() {
            let high = self.small.high;
            let more = need.wrapping_add(grain(1));
            if self.granule(self.lanes[1].limit) == high {
                // The hole is the last of the area: lengthen it.
                if let Ok(end) = self.grow(high, high.wrapping_add(more.max(FRESH)), high.wrapping_add(more)) {
                    self.lengthen(1, end);
                    self.pay(LONG, end.wrapping_sub(high)); // it is for a long block that the area grew
                    self.publish();
                    return Ok(self.bump_any(1, count, align));
                }
            }
            found = match self.grow(high, high.wrapping_add(need), high.wrapping_add(need)) {
                Ok(end) => Some((high, end)),
                Err(refused) => Some(self.look_when_full(LONG, paid, count, step, need).ok_or(refused)?),
            };
            self.publish();
        }
        let Some((start, _)) = found else {
            return Err(Refused::NoRoom);
        };
        let at = align_up(start, step);
        let end = at.wrapping_add(count);
        self.map.set(at, end);
        self.used(LONG, at, end);
        self.search_long = end;
        Ok(self.small_ptr(self.addr(at)))
    }

    // ---- Spans ----

    /// Makes a span for `size` bytes; its pointer and how many of its bytes may hold old data.
    pub fn alloc_span(&mut self, size: usize, align: usize) -> Result<(*mut u8, usize), Refused> {
        if self.segment.is_none() || size > isize::MAX as usize - UNIT {
            return Err(Refused::NoRoom);
        }
        self.tick();
        let made = self.spans.alloc(units(size), (align / UNIT).max(1))?;
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
        let lane = &mut self.lanes[lane_of(size.max(1).wrapping_sub(1))];
        if addr.wrapping_add(count.wrapping_mul(GRANULE)) == lane.pos {
            lane.pos = addr;
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
            if want > have && self.spans.grow(unit, want).is_none() {
                return false;
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
        // Lane 1's position stays at a line: a block that shrinks below one leaves it.
        if self.addr(old_end) == self.lanes[index % LANES].pos && (index == 0 || new >= LINE_FROM) {
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
        self.map.set(old_end, new_end);
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

    // ---- Memory that comes back ----

    /// Ends an interval of use marks when it is time, and gives back what has aged.
    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks % TICK_CALLS != 0 {
            return;
        }
        let now = sys::coarse_millis();
        let since = now.wrapping_sub(self.tick_millis);
        let steps = self.serial.wrapping_sub(self.tick_entered);
        if since < TICK_MILLIS || (steps < TICK_STEPS && since < TICK_MOST_MILLIS) {
            return;
        }
        let first = self.tick_millis == 0;
        (self.tick_millis, self.tick_entered) = (now, self.serial);
        if first {
            return;
        }
        self.discard(true, false);
        self.marks.age(self.small.high.div_ceil(CHUNK_GRANULES));
        self.spans.age();
    }

    /// Gives pages of free memory back, all or the aged; the bytes that were resident, if asked for.
    fn discard(&mut self, only_aged: bool, count_resident: bool) -> usize {
        let spans = self.spans.discard_free(only_aged, count_resident);
        spans.wrapping_add(self.discard_small(only_aged, count_resident))
    }

    fn discard_small(&mut self, only_aged: bool, count_resident: bool) -> usize {
        let page = sys::page_size() / GRANULE;
        let high = self.small.high;
        let (mut given, mut run, mut at) = (0usize, 0usize, 0usize);
        // `[run, at)` are free pages not yet given back.
        while at < high {
            let next = at.wrapping_add(page).min(high);
            let chunk = at / CHUNK_GRANULES;
            let asked = !only_aged || self.marks.is_aged(chunk);
            let free = asked && next.wrapping_sub(at) == page && self.map.first_live(at, next) == next;
            if !free {
                given = given.wrapping_add(self.discard_run(run, at, count_resident));
                run = next;
            }
            if !asked {
                // Nothing of this chunk is wanted: on to the next.
                let chunk_end = chunk.wrapping_add(1).wrapping_mul(CHUNK_GRANULES);
                at = chunk_end.max(next);
                run = at;
            } else {
                at = next;
                if at % CHUNK_GRANULES == 0 || at >= high {
                    self.marks.clean(chunk);
                }
            }
        }
        given.wrapping_add(self.discard_run(run, high.max(run), count_resident))
    }

    fn discard_run(&mut self, from: usize, to: usize, count_resident: bool) -> usize {
        let page = sys::page_size() / GRANULE;
        let to = align_down(to, page);
        if to <= from {
            return 0;
        }
        let bytes = to.wrapping_sub(from).wrapping_mul(GRANULE);
        // SAFETY: whole pages without a live granule or part of the hole, in committed memory of our own.
        unsafe {
            let at = self.small_base.add(from.wrapping_mul(GRANULE));
            let resident = if count_resident { sys::resident(at, bytes) } else { 0 };
            if sys::discard(at, bytes) {
                resident
            } else {
                0
            }
        }
    }

    /// Gives back the pages of all free memory now; the bytes that were resident.
    pub fn trim(&mut self) -> usize {
        if self.segment.is_none() {
            return 0;
        }
        self.show();
        let mut marks = [0; LANES];
        for (index, mark) in marks.iter_mut().enumerate() {
            *mark = self.granule(self.lanes[index % LANES].pos);
            self.give_up_hole(index);
        }
        let given = self.discard(false, true);
        for (index, mark) in marks.into_iter().enumerate() {
            self.take_from(index, mark);
        }
        self.publish();
        self.hide();
        given
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
            assert!(pos == limit || self.granule(limit) <= self.small.high);
        }
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
        for lane in self.lanes {
            let inside = if self.is_masked() { 1 } else { lane.limit };
            let end = if self.active { inside } else { 0 };
            assert_eq!(lane.end, end, "what the inline path may fill");
            assert!(!self.is_masked() || lane.pos == 1, "a position is not masked");
        }
        assert_eq!(self.len == 0, self.is_masked(), "frees on the inline path");
        self.spans.debug_check();
    }

    /// Live granules of the small area after folding, the hole not counted. For tests.
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
