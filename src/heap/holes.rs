//! Where the next hole comes from, and long blocks of the small area.
//!
//! In this order: the free granules right behind the current hole; the next run of free granules from the search mark on;
//! if enough was allocated since the last look to pay for one, and less than four fifths of the area are live, the area's
//! start; else memory never used. Blocks over 1 KiB that do not fit the hole are placed by a search of their own, so that
//! they do not cost the small ones their hole.
//!
//! `next_hole` is the second of these by itself, for short blocks whose next hole is near: where blocks are replaced one by
//! one, nearly every slow call wants no more.

use super::{grain, lane_of, price, Heap, LANES, LONG};
use crate::align::{align_down, align_up};
use crate::guard;
use crate::layout::{CHUNK_GRANULES, GRANULE, HOLE_MAX, SHORT_MAX, WORD_GRANULES};
use crate::live_map::{multiples, run_starts};
use crate::segment::Segment;
use crate::spans::{Refused, COMMIT_FIRST, COMMIT_MOST};
use crate::sys;

/// Fresh memory becomes a hole in steps of this, granules: as long as a hole may be.
const FRESH: usize = HOLE_MAX;
/// The same while the thread recycles: what is remembered serves most requests.
const FRESH_RECYCLING: usize = WORD_GRANULES;
/// A hole in memory used before is no longer than this at first, granules; it is lengthened when it is used up. Each step
/// that leaves an escapee takes its hole anew, bit by bit.
const HOLE_FIRST: usize = 16 * WORD_GRANULES;
/// No shorter run of granules becomes a hole.
const RUN_MIN: usize = 2;
/// From this length on, bytes, what the area grows by is asked for in huge pages: what comes along with the last of them is a
/// sixteenth of what is used at most. To join small ones later costs as much again.
const HUGE_FROM: usize = 32 << 20;
/// A look at the whole area must be paid for by allocating one in this many of its granules since the last look.
const LOOK_SHARE: usize = 32;
/// The area grows instead of being searched again when more than four fifths of it are live.
const DENSE: (usize, usize) = (4, 5);
/// The same while the thread recycles: one request in twenty needs a hole then.
const DENSE_RECYCLING: (usize, usize) = (15, 16);
/// With more than this share live, nothing much was freed yet: there is nothing to recycle.
const FULL: (usize, usize) = (63, 64);
/// A hole or block of more granules is placed by the search for long blocks.
pub(super) const SHORT_GRANULES: usize = SHORT_MAX / GRANULE;
/// Words that the short search looks at before it leaves the matter to the long one.
const NEAR_WORDS: usize = 64;
/// Where in a word a block of each lane may begin.
const STARTS: [u64; LANES] = [multiples(grain(0)), multiples(grain(1))];

impl Heap {
    /// Bumps a short block in the next hole behind its lane's, if that is near; else the lane keeps what it has.
    #[inline(always)]
    pub fn next_hole(&mut self, size: usize, align: usize) -> Option<*mut u8> {
        let less_one = size.wrapping_sub(1);
        let index = lane_of(less_one);
        let lane = &self.lanes[index];
        let (pos, limit) = (lane.pos, lane.limit);
        let offset = limit.wrapping_sub(self.small_base.addr());
        if less_one >= SHORT_MAX || align > lane.align || pos > limit {
            return None;
        }
        let need = (less_one | lane.mask).wrapping_add(1) / GRANULE;
        let run = need.max(RUN_MIN);
        let mark = offset / GRANULE;
        let mut word = mark / WORD_GRANULES;
        // Whole words that were used.
        let end = (self.small.high / WORD_GRANULES).min(word.wrapping_add(NEAR_WORDS));
        if word >= end || self.first[index].is_none() || self.tick_is_due() {
            return None;
        }
        if self.noted != self.serial {
            self.note_debts();
        }
        let mut live = self.map.fold(word);
        if pos < limit && live >> (mark % WORD_GRANULES) & 1 == 0 {
            return None; // the hole itself may be made longer
        }
        let mut places = STARTS[index] & (u64::MAX << (mark % WORD_GRANULES));
        let (start, count) = loop {
            let fits = run_starts(live, run) & places;
            places = STARTS[index];
            let bit = fits.trailing_zeros();
            let behind = live.wrapping_shr(bit);
            let start = word.wrapping_mul(WORD_GRANULES).wrapping_add(bit as usize);
            if fits != 0 && behind != 0 {
                break (start, behind.trailing_zeros() as usize);
            }
            // The run goes on in the next words, or there is none.
            let mut count = WORD_GRANULES.wrapping_sub(bit as usize);
            loop {
                word = word.wrapping_add(1);
                if word >= end {
                    return None;
                }
                live = self.map.fold(word);
                if fits == 0 || live != 0 || count >= HOLE_FIRST {
                    break;
                }
                count = count.wrapping_add(WORD_GRANULES);
            }
            count = HOLE_FIRST.min(count.wrapping_add(live.trailing_zeros() as usize));
            if fits != 0 && count >= run {
                break (start, count);
            }
        };
        let is_recycling = self.is_recycling();
        let count = if is_recycling { need } else { count };
        let end = start.wrapping_add(align_down(count, grain(index)));
        let unused = limit.wrapping_sub(pos) / GRANULE;
        let _whole = self.map.clear(mark.wrapping_sub(unused), mark);
        self.set_free(start, end);
        let at = self.addr(start);
        let found = end.wrapping_sub(start);
        let lane = &mut self.lanes[index];
        // What `give_up_hole`, `walk`, `put` and `used` do to it, added up.
        let walked = at.wrapping_sub(limit) as i64;
        lane.debt = lane.debt.wrapping_add(price(at.wrapping_sub(pos))).wrapping_add(walked);
        lane.pos = at.wrapping_add(need.wrapping_mul(GRANULE));
        (lane.start, lane.limit) = (at, at.wrapping_add(found.wrapping_mul(GRANULE)));
        self.ticks = self.ticks.wrapping_add(1);
        self.note_hole(found);
        if is_recycling {
            self.note_miss();
        }
        self.since_look[index] = self.since_look[index].wrapping_add(found as u64);
        Some(self.small_ptr(at))
    }

    /// Sets the bits of free granules that were used before (H2), and marks their chunks used. The only place that does.
    #[inline(always)]
    pub(super) fn set_free(&mut self, start: usize, end: usize) {
        #[cfg(test)]
        self.check_free(start, end);
        self.map.set(start, end);
        let (first, last) = (start / CHUNK_GRANULES, end.wrapping_sub(1) / CHUNK_GRANULES);
        self.dirtied = self.dirtied.wrapping_add(self.marks.touch(first, last));
    }

    /// Panics unless all granules of `[start, end)` are free and were used before. For tests.
    #[cfg(test)]
    fn check_free(&self, start: usize, end: usize) {
        assert!(end <= self.small.high, "H2: granules taken that were never used");
        let are_free = (start..end).all(|granule| {
            // Freed remotely and not folded counts as live.
            !self.map.is_set(granule / WORD_GRANULES, 1 << (granule % WORD_GRANULES))
        });
        assert!(are_free, "H2: granules taken that are not free");
    }

    /// Makes the free granules `[start, end)`, inwards to the lane's grain, its hole (H2). It has none now.
    pub(super) fn take(&mut self, index: usize, start: usize, end: usize) {
        let (start, end) = (align_up(start, grain(index)), align_down(end, grain(index)));
        self.set_free(start, end);
        let (pos, limit) = (self.addr(start), self.addr(end));
        self.lanes[index % LANES].put(pos, limit);
        if let Some(first @ None) = self.first.get_mut(index) {
            *first = Some(pos);
        }
        self.used(index, end.wrapping_sub(start));
    }

    /// Makes the free granules `[start, end)` its hole for a block of `count`.
    fn take_found(&mut self, index: usize, start: usize, end: usize, count: usize, align: usize) {
        let wanted = self.wanted(index, start, end, count, align);
        self.note_hole(align_down(wanted, grain(index)).wrapping_sub(start));
        // Asked again: it may have begun to recycle.
        let wanted = self.wanted(index, start, end, count, align);
        self.take(index, start, wanted);
    }

    /// Where a hole for a block of `count` granules is to end, of free ones up to `end`: behind the block while the thread
    /// recycles, for then no hole outlives the call.
    fn wanted(&self, index: usize, start: usize, end: usize, count: usize, align: usize) -> usize {
        let behind = align_up(start, align).wrapping_add(align_up(count, grain(index)));
        if self.is_recycling() {
            end.min(behind)
        } else {
            end
        }
    }

    /// Makes the first free granules from `mark` on the lane's hole, if there are any near.
    pub(super) fn take_from(&mut self, index: usize, mark: usize) {
        let high = self.small.high;
        // As many looks past live granules as a hole is long: escapees where a step begins would else stop every step.
        let start = self.map.first_free(mark, high.min(mark.wrapping_add(HOLE_MAX)));
        let end = self.map.first_live(start, high.min(start.wrapping_add(HOLE_FIRST)));
        let (start, end) = (align_up(start, grain(index)), align_down(end, grain(index)));
        if start < end {
            self.take(index, start, end);
        } else {
            self.set_mark(index, start);
        }
    }

    /// Lets the lane's next search begin at `mark`. It has no hole now.
    fn set_mark(&mut self, index: usize, mark: usize) {
        let at = self.addr(align_up(mark, grain(index)));
        self.lanes[index % LANES].put(at, at);
    }

    /// Accounts for `count` granules that became a hole or a long block.
    fn used(&mut self, index: usize, count: usize) {
        self.pay(index, count);
        let lane = &mut self.lanes[index.min(LANES - 1)];
        lane.debt = lane.debt.wrapping_sub(price(count.wrapping_mul(GRANULE)));
    }

    /// Ends the lane's hole: `[pos, limit)` is free (H2). Its limit stays as the mark.
    pub(super) fn give_up_hole(&mut self, index: usize) {
        let lane = self.lanes[index % LANES];
        if lane.pos < lane.limit {
            let _whole = self.map.clear(self.granule(lane.pos), self.granule(lane.limit));
            let lane = &mut self.lanes[index % LANES];
            lane.debt = lane.debt.wrapping_add(price(lane.limit.wrapping_sub(lane.pos)));
            (lane.pos, lane.start) = (lane.limit, lane.limit);
        }
    }

    /// Lengthens the lane's hole by the free granules behind it.
    pub(super) fn extend_hole(&mut self, index: usize) -> bool {
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
        self.set_free(from, end);
        let limit = self.addr(end);
        self.lanes[index % LANES].set_limit(limit);
        self.used(index, end.wrapping_sub(from));
        true
    }

    /// Finds a hole in which `count` granules fit at a multiple of `align` granules.
    pub(super) fn refill(&mut self, index: usize, count: usize, align: usize) -> Result<(), Refused> {
        let lane = self.lanes[index % LANES];
        let (pos, mark) = (self.granule(lane.pos), self.granule(lane.limit));
        self.give_up_hole(index);
        let count_min = count.max(RUN_MIN);
        if let Some((start, end)) = self.walk(index, mark, count_min, align, HOLE_FIRST) {
            self.take_found(index, start, end, count, align);
            return Ok(());
        }
        let paid = self.look_is_paid(index);
        if self.may_look_again(index) {
            if let Some((start, end)) = self.walk(index, 0, count_min, align, HOLE_FIRST) {
                self.take_found(index, start, end, count, align);
                return Ok(());
            }
        }
        let high = self.small.high;
        // What is free at the end is used with what is new.
        let fresh = if self.map.first_live(pos, high) == high {
            pos
        } else {
            high
        };
        let need = count.wrapping_add(align).wrapping_add(grain(index));
        let step = if self.is_recycling() { FRESH_RECYCLING } else { FRESH };
        let (start, end) = match self.grow(fresh, fresh.wrapping_add(step.max(need)), fresh.wrapping_add(need)) {
            Ok(end) => (fresh, end),
            Err(refused) => {
                let found = self.look_when_full(index, paid, count_min, align, HOLE_FIRST);
                if found.is_none() {
                    self.set_mark(index, self.small.high);
                }
                found.ok_or(refused)?
            }
        };
        let end = self.wanted(index, start, end, count, align);
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
        if live.wrapping_mul(FULL.1) < high.wrapping_mul(FULL.0) {
            self.note_look();
        }
        let dense = if self.is_recycling() { DENSE_RECYCLING } else { DENSE };
        live.wrapping_mul(dense.1) < high.wrapping_mul(dense.0)
    }

    /// Moves `high` to `wish`, or to `least` where the system refuses more; returns it. It ends at a line: a lane's mark,
    /// which is rounded up to one, is never behind it, or what a scope takes back could be.
    pub(super) fn grow(&mut self, from: usize, wish: usize, least: usize) -> Result<usize, Refused> {
        let Some(segment) = self.segment else {
            return Err(Refused::NoRoom);
        };
        let limit = segment.layout.small_granules();
        if least > limit || from > limit {
            return Err(Refused::NoRoom);
        }
        let [wish, least] = [wish.min(limit), least].map(|end| align_up(end, grain(1)));
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
    pub(super) fn commit(&mut self, wish: usize) -> bool {
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
            if from >= HUGE_FROM {
                // SAFETY: as above.
                unsafe { self.huge.ask_once(self.small_base.add(from), bytes) };
            }
        }
        done
    }

    /// Places a block of more than 1 KiB that does not fit the hole, and leaves the hole alone.
    pub(super) fn alloc_long(&mut self, count: usize, align: usize) -> Result<*mut u8, Refused> {
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
        self.set_free(at, end);
        self.used(LONG, count);
        self.search_long = end;
        Ok(self.small_ptr(self.addr(at)))
    }
}
