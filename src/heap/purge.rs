//! Memory that comes back to the system without a call: what no step has used for some time, and what a step has left
//! behind whose sizes drift.
//!
//! Looked at on slow paths only. Which chunks were used of late `marks` knows; which pages are free the maps say.

use super::{Heap, LANES};
use crate::align::{align_down, align_up};
use crate::layout::{CHUNK, CHUNK_GRANULES, GRANULE, UNIT, WORD_GRANULES};
use crate::sys;

/// The clock is read on one slow path in this many.
const TICK_CALLS: u32 = 32;
/// An interval of use marks lasts at least this many milliseconds and steps, or this many milliseconds.
const TICK_MILLIS: u64 = 1_000;
const TICK_STEPS: u64 = 4;
const TICK_MOST_MILLIS: u64 = 30_000;
/// What is held is compared with what lives whenever a sixteenth of it has been used that was clean, at least this much.
pub(super) const LOOK_CHUNKS: usize = (4 << 20) / CHUNK;
/// Free pages are given back then if no more than this share of what is held lives. At two thirds the first step of large
/// buffers lost a few pages that the second had to fault in.
const HELD: (usize, usize) = (1, 2);
/// Slow calls that pay for joining 2 MiB of small pages to a huge one. Where memory was used before such a call is for a hole
/// of at most 16 KiB: so the area is walked twice before a pass begins, or many of its blocks are replaced.
const PAYS: usize = 128;
/// A chunk that has aged beside live blocks is looked at again in one interval of this many: what was freed of it since
/// goes back. A look reads 512 bytes of bits.
const AGAIN: usize = 8;

impl Heap {
    /// Whether the next slow path is to look at what is held, or at the clock.
    #[inline(always)]
    pub(super) fn tick_is_due(&self) -> bool {
        self.is_look_due() || self.ticks.wrapping_add(1) % TICK_CALLS == 0
    }

    #[inline(always)]
    fn is_look_due(&self) -> bool {
        self.dirtied.wrapping_add(self.spans.dirtied) >= self.look_at
    }

    /// Compares what is held with what lives when that is due. A large block looks after it was made or grew: it lives
    /// then, and is most of what came into use. Before the next one it would be gone in a program that makes one a step.
    #[inline]
    pub(super) fn look_if_due(&mut self) {
        if self.is_look_due() {
            self.look_at_held();
        }
    }

    /// Joins small pages of the small area to huge ones if it is time.
    fn join_if_due(&mut self) {
        let bytes = self.small.high.wrapping_mul(GRANULE);
        self.pass.worked = self.pass.worked.wrapping_add(TICK_CALLS as usize);
        if self.pass.is_due(PAYS, bytes) {
            // SAFETY: the area is committed up to the furthest ever used.
            unsafe { self.huge.join(&mut self.pass, self.small_base, bytes) };
        }
    }

    /// Ends an interval of use marks when it is time, and gives back what has aged.
    pub(super) fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks % TICK_CALLS != 0 {
            return;
        }
        self.join_if_due();
        let now = sys::coarse_millis();
        let since = now.wrapping_sub(self.tick_millis);
        let steps = self.serial.wrapping_sub(self.tick_entered);
        if since < TICK_MILLIS || (steps < TICK_STEPS && since < TICK_MOST_MILLIS) {
            return;
        }
        let first = self.tick_millis == 0;
        (self.tick_millis, self.tick_entered) = (now, self.serial);
        if !first {
            self.end_interval();
        }
    }

    /// Gives back what was used neither in the interval that ends nor in the one before.
    pub(super) fn end_interval(&mut self) {
        self.gave_up_in = 0;
        self.touch_warm();
        self.intervals = self.intervals.wrapping_add(1);
        self.discard(true, false);
        self.marks.age(self.small.high.div_ceil(CHUNK_GRANULES));
        self.spans.age();
    }

    /// Gives all free pages back where the areas take up more and more though little of what they hold lives: sizes
    /// have drifted, and the clock would see that too late. Once an interval, or as often as it takes within one scope:
    /// steps that use one area and then the other must not be made to fault each time.
    #[cold]
    fn look_at_held(&mut self) {
        (self.dirtied, self.spans.dirtied) = (0, 0);
        let high = self.small.high;
        let small_chunks = self.marks.count_dirty(high.div_ceil(CHUNK_GRANULES));
        let chunks = small_chunks.wrapping_add(self.spans.count_dirty());
        self.look_at = LOOK_CHUNKS.max(chunks / 16);
        if self.gave_up_in != 0 && self.gave_up_in != self.serial {
            return;
        }
        let small = self.map.count(high.div_ceil(WORD_GRANULES)).wrapping_mul(GRANULE);
        let live = small.wrapping_add(self.spans.state.used.wrapping_mul(UNIT));
        if live.wrapping_mul(HELD.1) <= chunks.wrapping_mul(CHUNK).wrapping_mul(HELD.0) {
            self.gave_up_in = self.serial;
            self.discard(false, false);
        }
    }

    /// Gives pages of free memory back, all or the aged; the bytes that were resident, if asked for.
    pub(super) fn discard(&mut self, only_aged: bool, count_resident: bool) -> usize {
        let spans = self.spans.discard_free(only_aged, count_resident);
        spans.wrapping_add(self.discard_small(only_aged, count_resident))
    }

    fn discard_small(&mut self, only_aged: bool, count_resident: bool) -> usize {
        self.forget_remembered();
        let page = sys::page_size() / GRANULE;
        let high = self.small.high;
        // Never used, but in memory where it came along with what is before it: asked before parts of that are split off.
        let above = align_up(high, page);
        let along = self.huge.came_along(self.small_ptr(self.addr(above)));
        let mut given = self.discard_run(above, above.wrapping_add(along / GRANULE), count_resident);
        let (mut run, mut at, mut stayed) = (0usize, 0usize, 0u16);
        // `[run, at)` are free pages not yet given back; `stayed` are the chunk's others.
        while at < high {
            let next = at.wrapping_add(page).min(high);
            let chunk = at / CHUNK_GRANULES;
            let asked = if only_aged { self.aged_pages(chunk) } else { u16::MAX };
            let bit = asked & 1 << (at % CHUNK_GRANULES / page);
            let free = bit != 0 && next.wrapping_sub(at) == page && self.map.first_live(at, next) == next;
            if !free {
                given = given.wrapping_add(self.discard_run(run, at, count_resident));
                run = next;
                stayed |= bit;
            }
            if asked == 0 {
                // Nothing of this chunk is wanted: on to the next.
                let chunk_end = chunk.wrapping_add(1).wrapping_mul(CHUNK_GRANULES);
                at = chunk_end.max(next);
                run = at;
            } else {
                at = next;
                if at % CHUNK_GRANULES == 0 || at >= high {
                    // What has aged beside blocks that stay is not looked at in each interval.
                    if stayed == 0 || only_aged {
                        self.marks.clean(chunk);
                    } else {
                        self.marks.quiet(chunk);
                    }
                    self.stayed.put(chunk, stayed);
                    stayed = 0;
                }
            }
        }
        given.wrapping_add(self.discard_run(run, high.max(run), count_resident))
    }

    /// The pages of a chunk that are to go back for their age if they are free, a bit each: all of a chunk that has aged; what
    /// stayed of one that has aged before, when it is its turn.
    fn aged_pages(&mut self, chunk: usize) -> u16 {
        if self.marks.is_aged(chunk) {
            u16::MAX
        } else if chunk % AGAIN == self.intervals % AGAIN && !self.marks.is_dirty(chunk) {
            self.stayed.get(chunk)
        } else {
            0
        }
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
                self.huge.gone(at, bytes);
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
        if !self.is_recycling() {
            for (index, mark) in marks.into_iter().enumerate() {
                self.take_from(index, mark);
            }
        }
        self.publish();
        self.hide();
        given
    }
}
