//! Large blocks: spans of whole units, address-ordered first fit, neighbours merged at once, remainders split.
//!
//! **Problem.** A training step frees most of its tensors long before it ends; their memory must come round again
//! inside the step, and no size class may keep it from the next size. **Invariant.** H5: spans tile `[0, top)`; from
//! each head its length leads to the next head; no two free spans are neighbours. Only the owner changes the tiling.
//! A remote free sets one bit in a bitmap of its own, and a flag. **Consequence.** A unit is in one span, and a span
//! is free or one block's.
//!
//! ```text
//! unit        0      1..    5      6..          11                top ... limit
//! span        used 5        free 6              used 9            never used: reads as zero
//! length[]    U|5    .      .      .        F|6  U|9
//! free_len[]  0      .      6      .            0
//! ```
//!
//! A used span has its length at its head; a free one at its head in `free_len` and at its last unit in `length`, so
//! that both neighbours find it. Over `free_len` stand maxima of 16, of 256 and of the region's 4,096 entries: the
//! lowest free span that is long enough is found by one look at each level, and the work is bounded however many holes
//! there are. (A list of holes in address order is as quick for the 35 holes of real programs and hangs for a hostile
//! one; a cache keyed by size needs 1.05 of the live peak where this needs 1.03.)
//!
//! Threads. Synchronization: `remote` bits and the flag are set with Release and swapped out with Acquire; `length`
//! is atomic because a thread that frees remotely reads the entry of its own block; everything else is the
//! owner's alone.

use crate::align::{align_down, align_up, units_for};
use crate::huge_pages::{HugePages, Pass};
use crate::layout::{CHUNK, CHUNK_UNITS, REGION_BYTES, REGION_UNITS, UNIT};
use crate::marks::Marks;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys;

/// In `length`: the unit heads a used span.
const USED: u32 = 1 << 31;
/// In `length`: the unit ends a free span.
const TAIL: u32 = 1 << 30;
const LENGTH: u32 = TAIL - 1;

/// Entries under one maximum: `u32`s of one cache line.
const FAN: usize = 16;
/// From this length fresh spans ask for huge pages in their inside: at 4 MiB at least half of a span is filled by whole ones.
const HUGE_FROM: usize = 4 * 1024 * 1024 / UNIT;
/// Units made that pay for joining 2 MiB of small pages to a huge one: 4 MiB. It costs about half of what it costs to touch
/// them first.
const PAYS: usize = 4 * 1024 * 1024 / UNIT;

/// First and largest step of commit, bytes: doubling keeps the calls few, strict overcommit charges for what is ahead.
pub const COMMIT_FIRST: usize = 1 << 20;
/// See [`COMMIT_FIRST`].
pub const COMMIT_MOST: usize = 64 << 20;

const _: () = assert!(core::mem::size_of::<Region>() <= REGION_BYTES);

/// The tables of 4,096 units: apart what only the owner touches and what other threads touch too.
#[repr(C)]
struct Region {
    own: Own,
    shared: Shared,
}

#[repr(C)]
struct Own {
    free_len: [u32; REGION_UNITS],
    longest16: [u32; REGION_UNITS / FAN],
    longest256: [u32; REGION_UNITS / FAN / FAN],
    marks: [u64; 3 * REGION_UNITS / CHUNK_UNITS / 64],
}

#[repr(C)]
struct Shared {
    length: [AtomicU32; REGION_UNITS],
    remote: [AtomicU64; REGION_UNITS / 64],
}

/// The shared half of a region's record.
///
/// # Safety
/// The record of `index` is committed at `tables` for as long as the reference lives.
#[inline]
unsafe fn shared<'a>(tables: *mut u8, index: usize) -> &'a Shared {
    // SAFETY: by the caller's promise; any bits are valid, and all fields are atomics.
    unsafe { &(*tables.add(index.wrapping_mul(REGION_BYTES)).cast::<Region>()).shared }
}

/// What outlives an owner; kept in the segment's header between owners.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpanState {
    /// Units ever used: beyond them everything reads as zero. Never moves down while the memory may be dirty.
    pub top: usize,
    /// Units committed.
    pub committed: usize,
    /// Regions whose tables are committed.
    pub tables: usize,
    /// Units in used spans; freed remotely and not folded yet counts as used.
    pub used: usize,
}

/// Why a span was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The span area has no room for it.
    NoRoom,
    /// The system refused to make the pages usable.
    Commit,
}

/// A span just made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its first unit.
    pub unit: usize,
    /// How many of its units, from the first on, may hold old data; the rest reads as zero.
    pub dirty: usize,
}

/// The span area of one segment, in its owner's hands.
pub struct Spans {
    tables: *mut u8,
    longest: *mut u32,
    flag: *const AtomicU64,
    base: *mut u8,
    limit: usize,
    /// See [`SpanState`].
    pub state: SpanState,
    /// Chunks used that were clean, since somebody set it to 0.
    pub dirtied: usize,
    huge: HugePages,
    /// Work is units made.
    pass: Pass,
}

impl Spans {
    /// The spans of no segment.
    pub const NONE: Spans = Spans {
        tables: core::ptr::null_mut(),
        longest: core::ptr::null_mut(),
        flag: core::ptr::null(),
        base: core::ptr::null_mut(),
        limit: 0,
        state: SpanState {
            top: 0,
            committed: 0,
            tables: 0,
            used: 0,
        },
        dirtied: 0,
        huge: HugePages::NONE,
        pass: Pass::NEW,
    };

    /// The spans whose region records begin at `tables`, maxima by region at `longest`, area of `limit` units at `base`.
    ///
    /// # Safety
    /// All are parts of one reserved segment that the caller owns, and `huge` is its; `longest` and `flag` are committed;
    /// `state` is zero for a new segment and else what the last owner left. Otherwise memory is handed out twice.
    pub const unsafe fn new(
        tables: *mut u8,
        longest: *mut u32,
        flag: *const AtomicU64,
        base: *mut u8,
        limit: usize,
        state: SpanState,
        huge: HugePages,
    ) -> Spans {
        Spans {
            tables,
            longest,
            flag,
            base,
            limit,
            state,
            dirtied: 0,
            huge,
            pass: Pass::NEW,
        }
    }

    #[inline]
    fn region(&mut self, region: usize) -> &mut Own {
        // SAFETY: `region` is below `state.tables`, so its record is committed; any bits are valid; `&mut self` is the
        // owner's, and other threads touch only the shared half.
        unsafe { &mut (*self.tables.add(region.wrapping_mul(REGION_BYTES)).cast::<Region>()).own }
    }

    #[inline]
    fn shared(&self, region: usize) -> &Shared {
        // SAFETY: `region` is below `state.tables`, so its record is committed.
        unsafe { shared(self.tables, region) }
    }

    #[inline]
    fn length(&mut self, unit: usize) -> u32 {
        let entry = unit % REGION_UNITS;
        // Relaxed: the owner wrote it, or a past owner before the segment bitmap's AcqRel.
        self.shared(unit / REGION_UNITS).length[entry].load(Ordering::Relaxed)
    }

    #[inline]
    fn set_length(&mut self, unit: usize, value: u32) {
        let entry = unit % REGION_UNITS;
        // Relaxed: a remote thread reads only its own block's entry, written before it got the pointer.
        self.shared(unit / REGION_UNITS).length[entry].store(value, Ordering::Relaxed);
    }

    #[inline]
    fn free_len(&mut self, unit: usize) -> usize {
        let entry = unit % REGION_UNITS;
        self.region(unit / REGION_UNITS).free_len[entry] as usize
    }

    /// Writes a head's free length and carries the maxima up as far as they change. Where one length comes and one goes,
    /// the longer first: the group's maximum then is not looked for between the two.
    fn set_free_len(&mut self, unit: usize, value: u32) {
        let index = unit / REGION_UNITS;
        let entry = unit % REGION_UNITS;
        let longest = self.longest;
        let region = self.region(index);
        let old = core::mem::replace(&mut region.free_len[entry], value);
        let line = entry / FAN;
        let Some((old, value)) = raise(&mut region.longest16[line], old, value, &region.free_len, line) else {
            return;
        };
        let block = line / FAN;
        let Some((old, value)) = raise(&mut region.longest256[block], old, value, &region.longest16, block) else {
            return;
        };
        // SAFETY: an entry for each region of the area is committed at `longest`, and the owner's alone.
        let most = unsafe { &mut *longest.add(index) };
        raise(most, old, value, &region.longest256, 0);
    }

    fn put_free(&mut self, head: usize, count: usize) {
        self.set_free_len(head, count as u32);
        self.set_length(head.wrapping_add(count).wrapping_sub(1), TAIL | count as u32);
    }

    fn take_free(&mut self, head: usize, count: usize) {
        self.set_free_len(head, 0);
        self.set_length(head.wrapping_add(count).wrapping_sub(1), 0);
    }

    /// Takes units from `from` to `to` out of the free span of `free` units at `head`; what is before and behind them stays
    /// free. `to` may be behind the span's end.
    fn cut_free(&mut self, head: usize, free: usize, from: usize, to: usize) {
        let end = head.wrapping_add(free);
        if end > to {
            self.put_free(to, end.wrapping_sub(to));
        } else {
            self.set_length(end.wrapping_sub(1), 0);
        }
        if from > head {
            self.put_free(head, from.wrapping_sub(head));
        } else {
            self.set_free_len(head, 0);
        }
    }

    /// Makes `[head, head + count)` free and merges it with free neighbours.
    fn release(&mut self, head: usize, count: usize) {
        let (next, before) = (head.wrapping_add(count), head.wrapping_sub(1));
        let behind = if next < self.state.top { self.free_len(next) } else { 0 };
        let (mut head, mut count) = (head, count.wrapping_add(behind));
        if head > 0 {
            let tail = self.length(before);
            if tail & TAIL != 0 {
                let free = (tail & LENGTH) as usize;
                self.set_length(before, 0);
                (head, count) = (head.wrapping_sub(free), count.wrapping_add(free));
            }
        }
        self.put_free(head, count);
        if behind != 0 {
            self.set_free_len(next, 0);
        }
    }

    /// The lowest free span of at least `count` units.
    fn first_fit(&mut self, count: usize) -> Option<usize> {
        let wanted = count as u32;
        for index in 0..units_for(self.state.top, REGION_UNITS) {
            // SAFETY: as in `set_free_len`.
            if unsafe { *self.longest.add(index) } < wanted {
                continue;
            }
            let region = self.region(index);
            let block = first_of(&region.longest256, 0, wanted)?;
            let line = first_of(&region.longest16, block, wanted)?;
            let entry = first_of(&region.free_len, line, wanted)?;
            return Some(index.wrapping_mul(REGION_UNITS).wrapping_add(entry));
        }
        None
    }

    /// `unit` moved up until its address is a multiple of `align` units.
    fn align_unit(&self, unit: usize, align: usize) -> usize {
        let base = self.base.addr() / UNIT;
        align_up(base.wrapping_add(unit), align).wrapping_sub(base)
    }

    /// Makes a span of `count` units whose address is a multiple of `align` units (a power of two).
    pub fn alloc(&mut self, count: usize, align: usize) -> Result<Made, Refused> {
        self.fold();
        let slack = align.wrapping_sub(1);
        if count > self.limit || slack > self.limit {
            return Err(Refused::NoRoom);
        }
        if let Some(head) = self.first_fit(count.wrapping_add(slack)) {
            let free = self.free_len(head);
            let unit = self.align_unit(head, align);
            self.cut_free(head, free, unit, unit.wrapping_add(count));
            self.mark_used(unit, count);
            return Ok(Made { unit, dirty: count });
        }
        let top = self.state.top;
        let last_free = self.free_before_top();
        let start = top.wrapping_sub(last_free);
        let unit = self.align_unit(start, align);
        let end = unit.wrapping_add(count);
        self.extend(end)?;
        if last_free != 0 {
            self.take_free(start, last_free);
        }
        if unit > start {
            self.put_free(start, unit.wrapping_sub(start));
        }
        // An aligned block may end before the top: what is behind it was used and stays below the top.
        if end < top {
            self.put_free(end, top.wrapping_sub(end));
        }
        // It is 0 already. The next step splits free memory here and must not be the first to touch the table's page.
        self.region(unit / REGION_UNITS).free_len[unit % REGION_UNITS] = 0;
        self.mark_used(unit, count);
        Ok(Made {
            unit,
            dirty: top.saturating_sub(unit).min(count),
        })
    }

    /// Units of the free span that ends at the top; 0 if the last span is used.
    fn free_before_top(&mut self) -> usize {
        let top = self.state.top;
        if top == 0 {
            return 0;
        }
        let last = self.length(top.wrapping_sub(1));
        if last & TAIL != 0 {
            (last & LENGTH) as usize
        } else {
            0
        }
    }

    fn mark_used(&mut self, unit: usize, count: usize) {
        self.set_length(unit, USED | count as u32);
        self.state.used = self.state.used.wrapping_add(count);
        self.touch(unit, count);
    }

    fn touch(&mut self, unit: usize, count: usize) {
        self.pass.worked = self.pass.worked.wrapping_add(count);
        let first = unit / CHUNK_UNITS;
        let last = unit.wrapping_add(count).wrapping_sub(1) / CHUNK_UNITS;
        let mut at = first;
        while at <= last {
            let region = at / REGION_CHUNKS;
            let end = (region.wrapping_add(1).wrapping_mul(REGION_CHUNKS).wrapping_sub(1)).min(last);
            let clean = self.marks(region).touch(at % REGION_CHUNKS, end % REGION_CHUNKS);
            self.dirtied = self.dirtied.wrapping_add(clean);
            at = end.wrapping_add(1);
        }
    }

    fn marks(&mut self, region: usize) -> Marks {
        let words = self.region(region).marks.as_mut_ptr();
        // SAFETY: the record holds three rows of this many words, and the owner's `&mut self` covers the use.
        unsafe { Marks::new(words, REGION_CHUNKS / 64) }
    }

    /// Moves the top up to `end`, committing area and tables as needed. Nothing has changed where it is refused.
    fn extend(&mut self, end: usize) -> Result<(), Refused> {
        if end > self.limit {
            return Err(Refused::NoRoom);
        }
        let old_top = self.state.top;
        if end > self.state.committed {
            let step = self.state.committed.wrapping_mul(UNIT).clamp(COMMIT_FIRST, COMMIT_MOST) / UNIT;
            let ahead = self.state.committed.wrapping_add(step).max(end).min(self.limit);
            let least = units_for(end, CHUNK_UNITS).wrapping_mul(CHUNK_UNITS).min(self.limit);
            if !self.commit(units_for(ahead, CHUNK_UNITS).wrapping_mul(CHUNK_UNITS).min(self.limit))
                && !self.commit(least)
            {
                return Err(Refused::Commit);
            }
        }
        self.state.top = end.max(old_top);
        self.ask_for_huge(old_top, end);
        Ok(())
    }

    fn commit(&mut self, units: usize) -> bool {
        let regions = units_for(units, REGION_UNITS);
        if regions > self.state.tables {
            let at = self.state.tables.wrapping_mul(REGION_BYTES);
            let from = align_down(at, sys::page_size());
            let to = align_up(regions.wrapping_mul(REGION_BYTES), sys::page_size());
            // SAFETY: page aligned and inside the segment's table part, which is a multiple of 64 KiB.
            if !unsafe { sys::commit(self.tables.add(from), to.wrapping_sub(from)) } {
                return false;
            }
            self.state.tables = regions;
        }
        let from = self.state.committed.wrapping_mul(UNIT);
        let bytes = units.wrapping_mul(UNIT).wrapping_sub(from);
        // SAFETY: both ends are multiples of 64 KiB inside the span area.
        if !unsafe { sys::commit(self.base.add(from), bytes) } {
            return false;
        }
        // SAFETY: committed just now, so no block is in it.
        unsafe { crate::guard::unusable(self.base.add(from), bytes) };
        self.state.committed = units;
        true
    }

    /// Asks for huge pages for a long fresh span.
    fn ask_for_huge(&mut self, from: usize, to: usize) {
        if to > from && to.wrapping_sub(from) >= HUGE_FROM {
            let bytes = to.wrapping_sub(from).wrapping_mul(UNIT);
            // SAFETY: the units are committed.
            unsafe { self.huge.ask(self.base.add(from.wrapping_mul(UNIT)), bytes) };
        }
    }

    /// Joins small pages to huge ones if it is time. A large block does it when it was made.
    #[inline]
    pub fn join_if_due(&mut self) {
        let bytes = self.state.top.wrapping_mul(UNIT);
        if self.pass.is_due(PAYS, bytes) {
            // SAFETY: the area is committed up to its top.
            unsafe { self.huge.join(&mut self.pass, self.base, bytes) };
        }
    }

    /// Frees the used span that begins at `unit`; `false` if none does: a double free or a foreign pointer.
    #[must_use]
    pub fn free(&mut self, unit: usize) -> bool {
        if unit >= self.state.top {
            return false;
        }
        let length = self.length(unit);
        if length & USED == 0 || self.is_freed_remotely(unit) {
            return false;
        }
        self.free_known(unit, (length & LENGTH) as usize);
        true
    }

    fn free_known(&mut self, unit: usize, count: usize) {
        self.set_length(unit, 0);
        self.state.used = self.state.used.wrapping_sub(count);
        self.release(unit, count);
    }

    /// Units of the used span that begins at `unit`; `None` if none does.
    pub fn used_len(&mut self, unit: usize) -> Option<usize> {
        if unit >= self.state.top {
            return None;
        }
        let length = self.length(unit);
        (length & USED != 0).then_some((length & LENGTH) as usize)
    }

    /// Whether the used span at `unit` was freed by another thread and is not folded yet.
    pub fn is_freed_remotely(&mut self, unit: usize) -> bool {
        let entry = unit % REGION_UNITS;
        // Relaxed: a look; folding does the ordering.
        self.shared(unit / REGION_UNITS).remote[entry / 64].load(Ordering::Relaxed) >> (entry % 64) & 1 == 1
    }

    /// Folds remote frees in, each once; how many there were.
    pub fn fold(&mut self) -> usize {
        // SAFETY: `flag` is in the committed header; null only where there is no segment.
        let Some(flag) = (unsafe { self.flag.as_ref() }) else {
            return 0;
        };
        // Relaxed: a look whether there is anything; the swap orders.
        if flag.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        // Acquire: partner of the flag's Release in `free_remote`, so that the bits set before it are seen.
        let regions = flag.swap(0, Ordering::Acquire);
        let mut folded = 0usize;
        for index in 0..self.state.tables {
            if regions >> (index % 64) & 1 == 0 {
                continue;
            }
            for word in 0..REGION_UNITS / 64 {
                let remote = &self.shared(index).remote[word];
                // Relaxed: as above.
                if remote.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                // Acquire: partner of the Release in `free_remote`: what the freeing thread did to the block is over.
                let mut bits = remote.swap(0, Ordering::Acquire);
                while bits != 0 {
                    let entry = word.wrapping_mul(64).wrapping_add(bits.trailing_zeros() as usize);
                    bits &= bits.wrapping_sub(1);
                    let unit = index.wrapping_mul(REGION_UNITS).wrapping_add(entry);
                    if let Some(count) = self.used_len(unit) {
                        self.free_known(unit, count);
                        folded = folded.wrapping_add(1);
                    }
                }
            }
        }
        folded
    }

    /// Lengthens the used span at `unit` to `count` units where the units behind it are free; the units behind it
    /// that may hold old data are not cleared.
    pub fn grow(&mut self, unit: usize, count: usize) -> Option<Made> {
        self.fold();
        let old = self.used_len(unit)?;
        let (next, end) = (unit.wrapping_add(old), unit.wrapping_add(count));
        let top = self.state.top;
        let free = if next < top { self.free_len(next) } else { 0 };
        let free_end = next.wrapping_add(free);
        if end > free_end && (free_end != top || self.extend(end).is_err()) {
            return None;
        }
        if free != 0 && end > next {
            self.cut_free(next, free, next, end);
        }
        self.set_length(unit, USED | count as u32);
        self.state.used = self.state.used.wrapping_add(count.wrapping_sub(old));
        self.touch(next, count.wrapping_sub(old));
        Some(Made {
            unit,
            dirty: count.min(top.saturating_sub(unit)),
        })
    }

    /// Shortens the used span at `unit` to `count` units, at least one; the tail becomes free.
    pub fn shrink(&mut self, unit: usize, count: usize) {
        let Some(old) = self.used_len(unit) else { return };
        if count < old {
            self.set_length(unit, USED | count as u32);
            self.state.used = self.state.used.wrapping_sub(old.wrapping_sub(count));
            self.release(unit.wrapping_add(count), old.wrapping_sub(count));
        }
    }

    /// Gives pages of free spans back: all of them, or those of aged chunks only. Returns the bytes that were resident.
    pub fn discard_free(&mut self, only_aged: bool, count_resident: bool) -> usize {
        self.fold();
        let mut given = 0usize;
        let mut unit = 0usize;
        while unit < self.state.top {
            let free = self.free_len(unit);
            if free == 0 {
                match self.used_len(unit) {
                    Some(count) => unit = unit.wrapping_add(count),
                    None => break, // a broken tiling is `debug_check`'s to report, not ours to loop on
                }
                continue;
            }
            let end = unit.wrapping_add(free);
            let mut at = unit;
            while at < end {
                let chunk_end = align_down(at, CHUNK_UNITS).wrapping_add(CHUNK_UNITS).min(end);
                let mut run_end = at;
                // Gather neighbouring chunks into one call.
                let mut next_end = chunk_end;
                while run_end < end && self.may_discard(run_end, next_end, only_aged) {
                    run_end = next_end;
                    next_end = run_end.wrapping_add(CHUNK_UNITS).min(end);
                }
                if run_end > at {
                    given = given.wrapping_add(self.discard(at, run_end, count_resident));
                    at = run_end;
                } else {
                    at = chunk_end;
                }
            }
            unit = end;
        }
        given
    }

    fn may_discard(&mut self, from: usize, to: usize, only_aged: bool) -> bool {
        let chunk = from / CHUNK_UNITS;
        let mut marks = self.marks(chunk / REGION_CHUNKS);
        let inner = chunk % REGION_CHUNKS;
        if only_aged {
            to.wrapping_sub(from) == CHUNK_UNITS && marks.is_aged(inner)
        } else {
            marks.is_dirty(inner)
        }
    }

    fn discard(&mut self, from: usize, to: usize, count_resident: bool) -> usize {
        let page_units = sys::page_size().div_ceil(UNIT);
        let (first, last) = (align_up(from, page_units), align_down(to, page_units));
        if last <= first {
            return 0;
        }
        let bytes = last.wrapping_sub(first).wrapping_mul(UNIT);
        // SAFETY: the units are in a free span: committed, page aligned, and nobody's data.
        let resident = unsafe {
            let at = self.base.add(first.wrapping_mul(UNIT));
            let resident = if count_resident { sys::resident(at, bytes) } else { 0 };
            if !sys::discard(at, bytes) {
                return 0; // and the chunks stay marked, for the next time
            }
            self.huge.gone(at, bytes);
            resident
        };
        for chunk in from.div_ceil(CHUNK_UNITS)..to / CHUNK_UNITS {
            self.marks(chunk / REGION_CHUNKS).clean(chunk % REGION_CHUNKS);
        }
        resident
    }

    /// Chunks that may have pages in memory.
    pub fn count_dirty(&mut self) -> usize {
        let regions = 0..units_for(self.state.top, REGION_UNITS);
        regions
            .map(|region| self.marks(region).count_dirty(REGION_CHUNKS))
            .sum()
    }

    /// Ends an interval of use marks.
    pub fn age(&mut self) {
        for region in 0..units_for(self.state.top, REGION_UNITS) {
            self.marks(region).age(REGION_CHUNKS);
        }
    }

    /// Panics unless H5 holds and every index agrees with the tiling. For tests; never called by an allocation.
    #[cfg(test)]
    pub fn debug_check(&mut self) {
        let (mut unit, mut used, mut last_free) = (0, 0, false);
        while unit < self.state.top {
            let (free, length) = (self.free_len(unit), self.length(unit));
            assert!((free != 0) != (length & USED != 0), "H5: unit {unit} is not one head");
            if free != 0 {
                assert!(!last_free, "H5: free neighbours at {unit}");
                assert_eq!(self.length(unit + free - 1), TAIL | free as u32, "H5: tail of {unit}");
                for inner in unit + 1..unit + free {
                    assert_eq!(self.free_len(inner), 0, "H5: head inside a span");
                }
                unit += free;
            } else {
                let count = (length & LENGTH) as usize;
                assert!(count > 0, "H5: empty span at {unit}");
                for inner in unit + 1..unit + count {
                    assert_eq!(
                        (self.free_len(inner), self.length(inner)),
                        (0, 0),
                        "H5: head inside a span"
                    );
                }
                used += count;
                unit += count;
            }
            last_free = free != 0;
        }
        assert_eq!(unit, self.state.top, "H5: the tiling passes the top");
        assert_eq!(used, self.state.used, "H5: units in use");
        assert!(self.state.top <= self.state.committed && self.state.committed <= self.limit);
        for index in 0..units_for(self.state.top, REGION_UNITS) {
            let region = self.region(index);
            for line in 0..REGION_UNITS / FAN {
                assert_eq!(region.longest16[line], longest_of(&region.free_len, line));
            }
            for block in 0..REGION_UNITS / FAN / FAN {
                assert_eq!(region.longest256[block], longest_of(&region.longest16, block));
            }
            let most = longest_of(&region.longest256, 0);
            // SAFETY: as in `set_free_len`.
            assert_eq!(unsafe { *self.longest.add(index) }, most);
        }
    }
}

/// Chunks of a region.
const REGION_CHUNKS: usize = REGION_UNITS * UNIT / CHUNK;

/// Group `group` of the entries: one cache line of them.
#[inline(always)]
fn group(entries: &[u32], group: usize) -> &[u32; FAN] {
    // No table ends inside a group, and no group is asked for behind a table; what is returned then keeps this free of a
    // panic.
    const NONE: &[u32; FAN] = &[0; FAN];
    let from = entries.get(group.wrapping_mul(FAN)..).unwrap_or(NONE);
    from.first_chunk().unwrap_or(NONE)
}

/// The largest of the sixteen entries of group `group`.
#[inline]
fn longest_of(entries: &[u32], at: usize) -> u32 {
    group(entries, at).iter().fold(0, |most, &entry| most.max(entry))
}

/// Brings the maximum of group `group` up to date, where one of its entries went from `old` to `value`; the maximum before
/// and after, `None` where it stays. All are looked at only where the largest has gone.
#[inline(always)]
fn raise(most: &mut u32, old: u32, value: u32, entries: &[u32], group: usize) -> Option<(u32, u32)> {
    let before = *most;
    let now = if value >= before {
        value
    } else if old < before {
        return None;
    } else {
        longest_of(entries, group)
    };
    if now == before {
        return None;
    }
    *most = now;
    Some((before, now))
}

/// The first entry of group `group` that is at least `wanted`.
#[inline]
fn first_of(entries: &[u32], at: usize, wanted: u32) -> Option<usize> {
    let found = group(entries, at).iter().position(|&entry| entry >= wanted)?;
    Some(at.wrapping_mul(FAN).wrapping_add(found))
}

/// Frees the used span at `unit` from a thread that does not own the segment (H3, H5); `false` for a double free.
///
/// # Safety
/// `tables` and `flag` are those of a segment whose tables are committed for this unit; the block was that thread's to
/// free.
#[must_use]
pub unsafe fn free_remote(tables: *mut u8, flag: *const AtomicU64, unit: usize) -> bool {
    let index = unit / REGION_UNITS;
    let entry = unit % REGION_UNITS;
    // SAFETY: the record is committed because a block of it is live.
    let shared = unsafe { shared(tables, index) };
    let (length, remote) = (&shared.length[entry], &shared.remote[entry / 64]);
    let bit = 1u64 << (entry % 64);
    // Relaxed: written before this thread was given the block. Release: partners of the Acquires in `fold`.
    if length.load(Ordering::Relaxed) & USED == 0 || remote.fetch_or(bit, Ordering::Release) & bit != 0 {
        return false;
    }
    // SAFETY: the flag is in the segment's committed header.
    unsafe { &*flag }.fetch_or(1 << (index % 64), Ordering::Release);
    true
}

/// Whether a used span begins at `unit` that nobody has freed, as a thread sees it that does not own the segment.
///
/// # Safety
/// `tables` are those of a segment, committed for this unit.
pub unsafe fn is_live_remote(tables: *mut u8, unit: usize) -> bool {
    // SAFETY: the caller's promise.
    let shared = unsafe { shared(tables, unit / REGION_UNITS) };
    let entry = unit % REGION_UNITS;
    // Relaxed: as in `free_remote`.
    shared.length[entry].load(Ordering::Relaxed) & USED != 0
        && shared.remote[entry / 64].load(Ordering::Relaxed) >> (entry % 64) & 1 == 0
}

/// Units of the used span at `unit`, for a thread that holds its block but does not own the segment.
///
/// # Safety
/// As for [`free_remote`].
pub unsafe fn used_len_remote(tables: *mut u8, unit: usize) -> usize {
    // SAFETY: as in `free_remote`.
    let shared = unsafe { shared(tables, unit / REGION_UNITS) };
    // Relaxed: written before this thread was given the block.
    (shared.length[unit % REGION_UNITS].load(Ordering::Relaxed) & LENGTH) as usize
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
