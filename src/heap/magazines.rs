//! Where blocks were freed a moment ago, for the next request of their size: what is replaced at random is replaced in place.
//!
//! **Problem.** Where blocks live and die at random in one long scope, each new one goes to the next hole: a search, cold
//! memory, and holes that fit less and less. **Answer.** A block that is freed is *remembered* in the magazine of its size,
//! and the next request of that size looks there first. **Consequence.** Mostly its memory is still free, still in the
//! cache, and as long as is wanted. A magazine is a hint: the block is free like any other, its bits are clear (H1), a hole
//! may get its memory meanwhile, and whoever takes it reads the bits (H2). What it says wrongly costs a look.
//!
//! Steps that free what they made are better off without: so blocks are remembered only while a thread *recycles*. It begins
//! within one scope when many holes in turn were short, or when two looks at the area in turn find that some of it is free;
//! it ends when a scope is left or few requests find a block. Meanwhile the area is masked, so that frees take the slow path,
//! and holes are empty: a position stays where it is, and every set bit is a live block's.

use super::{Heap, LANES};
use crate::hint::unlikely;
use crate::layout::{line_mask, CHUNK_GRANULES, GRANULE, MAGAZINE_ROOM, SHORT_MAX, WARM_CHUNKS, WORD_GRANULES};
use crate::live_map::{clear_anywhere, take_short};

/// Recycling begins when this many holes in turn were short.
const STREAK: i32 = 512;
/// A hole of fewer granules is short.
const SHORT_HOLE: usize = 64;
/// It ends when so many more requests than these found nothing, each counted as `MISS` that found something; hits beyond
/// are forgotten.
const SCORE_MOST: i32 = 1_024;
const MISS: i32 = 4;
/// After that it begins no more for this many holes; each look is worth `REST_LOOK` of them.
const REST: i32 = 16_384;
const REST_LOOK: i32 = 4_096;
/// As many requests that found a block pay as much for huge pages as one slow call.
const FOUND_PAYS: usize = 64;
/// No block is remembered here; nor is one that begins at the area's first granule.
const NONE: u32 = 0;

/// Granules that are warm together.
const WARM: usize = CHUNK_GRANULES * WARM_CHUNKS;
const _: () = assert!(WARM_CHUNKS == 8, "as `Marks::touch_dirty` takes them");

/// A place in a magazine: one behind the last is the first again.
type Top = u8;
const _: () = assert!(MAGAZINE_ROOM == Top::MAX as usize + 1);

/// The first granules of the blocks of one size that were freed last; a new one takes the oldest's place.
type Magazine = [u32; MAGAZINE_ROOM];

/// A magazine for each number of granules of a short block, less one. Blocks of 49 to 63 bytes and of 64 share one; in others
/// from there on only each fourth is used, for blocks are of whole lines.
type Places = [Magazine; WORD_GRANULES];

/// What is remembered, and whether it is.
pub(super) struct Magazines {
    /// In the segment; null without one.
    places: *mut Places,
    /// A byte for every `WARM_CHUNKS` chunks of the small area: whether a block was made there in the place of another since
    /// the interval began.
    warm: *mut u8,
    /// Bytes of the small area while the thread recycles, else 0.
    area: usize,
    /// The place behind the last of each magazine.
    tops: [Top; WORD_GRANULES],
    /// Requests that found a block remembered, less `MISS` times those that were served otherwise, up to the last of these.
    score: i32,
    /// Requests that found one since.
    found: i32,
    /// Short holes in turn; below 0 for as long as it rests.
    streak: i32,
    /// The serial of the last scope entered when the area was looked at last.
    looked_in: u64,
}

impl Magazines {
    pub(super) const NONE: Magazines = Magazines {
        places: core::ptr::null_mut(),
        warm: core::ptr::null_mut(),
        area: 0,
        tops: [0; WORD_GRANULES],
        score: 0,
        found: 0,
        streak: 0,
        looked_in: 0,
    };

    /// Takes the segment's magazines, and its bytes of chunks.
    ///
    /// # Safety
    /// They are aligned, committed and this heap's alone as long as it recycles.
    pub(super) unsafe fn attach(&mut self, places: *mut u8, warm: *mut u8) {
        (self.places, self.warm) = (places.cast(), warm);
    }

    /// Remembers a free block of `others` granules and one, which begins at granule `start`.
    #[inline(always)]
    fn push(&mut self, others: usize, start: usize) {
        let top = &mut self.tops[others % WORD_GRANULES];
        // SAFETY: the promise made to `attach`, for there is a segment; any `Top` is a place.
        unsafe { (*self.places)[others % WORD_GRANULES][usize::from(*top)] = start as u32 };
        *top = top.wrapping_add(1);
    }

    /// Where the last such block began, if it is still remembered.
    #[inline(always)]
    fn pop(&mut self, others: usize) -> Option<usize> {
        let top = &mut self.tops[others % WORD_GRANULES];
        let last = top.wrapping_sub(1);
        // SAFETY: as in `push`.
        let place = unsafe { &mut (*self.places)[others % WORD_GRANULES][usize::from(last)] };
        if *place == NONE {
            return None;
        }
        *top = last;
        Some(core::mem::replace(place, NONE) as usize)
    }

    /// Hides what is remembered; for `show`.
    pub(super) fn hide(&mut self) -> usize {
        core::mem::take(&mut self.area)
    }

    /// Ends what `hide` began.
    pub(super) fn show(&mut self, hidden: usize) {
        self.area = hidden;
    }

    /// Remembers nothing that was. A magazine that nothing was put into is not written to: it needs no memory.
    fn forget(&mut self) {
        for others in 0..WORD_GRANULES {
            while self.pop(others).is_some() {}
        }
    }
}

impl Heap {
    /// Whether freed blocks are remembered.
    #[inline(always)]
    pub(super) fn is_recycling(&self) -> bool {
        self.magazines.area != 0
    }

    /// Notes that a hole of `count` granules was found.
    #[inline(always)]
    pub(super) fn note_hole(&mut self, count: usize) {
        let streak = self.magazines.streak;
        self.magazines.streak = if count < SHORT_HOLE {
            streak.wrapping_add(1)
        } else {
            streak.min(0)
        };
        if unlikely(self.magazines.streak >= STREAK) {
            self.start_recycling();
        }
    }

    /// Notes that a look at the whole area found free memory, though perhaps too little to be searched.
    pub(super) fn note_look(&mut self) {
        let before = core::mem::replace(&mut self.magazines.looked_in, self.serial);
        if self.magazines.streak < 0 {
            self.magazines.streak = self.magazines.streak.wrapping_add(REST_LOOK);
        } else if before == self.serial {
            self.start_recycling();
        }
    }

    /// Begins to remember blocks.
    #[cold]
    #[inline(never)]
    pub(super) fn start_recycling(&mut self) {
        self.magazines.streak = 0;
        if self.is_recycling() || self.is_masked() {
            return;
        }
        if let Some(segment) = self.segment {
            self.magazines.forget();
            self.magazines.area = segment.layout.small_bytes;
            (self.magazines.score, self.magazines.found) = (0, 0);
            self.len = 0;
            self.empty_holes();
        }
    }

    /// Ends both holes at their positions: what was left of them is free (H2), and where the next search begins.
    pub(super) fn empty_holes(&mut self) {
        for index in 0..LANES {
            let lane = self.lanes[index];
            if lane.pos < lane.limit {
                let _whole = self.map.clear(self.granule(lane.pos), self.granule(lane.limit));
                // `debt` stays: the limit is lower by as much as was not used of what was found.
                self.lanes[index].limit = lane.pos;
            }
        }
    }

    /// Remembers no more.
    #[inline]
    pub(super) fn stop_recycling(&mut self) {
        self.magazines.streak = self.magazines.streak.min(0);
        if self.is_recycling() {
            self.touch_warm();
            self.len = self.magazines.hide();
        }
    }

    /// Forgets what is remembered: pages of free memory go back, so that what was used is not any more.
    pub(super) fn forget_remembered(&mut self) {
        if self.is_recycling() {
            self.magazines.forget();
        }
    }

    /// Marks chunks touched where, or near where, blocks were made in the place of others.
    #[cold]
    pub(super) fn touch_warm(&mut self) {
        if !self.is_recycling() {
            return;
        }
        for index in 0..self.small.high.div_ceil(WARM) {
            // SAFETY: the promise made to `attach`; the index is of a part of the area.
            let warm = unsafe { &mut *self.magazines.warm.add(index) };
            if core::mem::take(warm) != 0 {
                self.marks.touch_dirty(index.wrapping_mul(WARM_CHUNKS));
            }
        }
    }

    /// A short block in the place of one of its size, while the thread recycles (H2).
    #[inline(always)]
    pub fn alloc_again(&mut self, size: usize, align: usize) -> Option<*mut u8> {
        let less_one = size.wrapping_sub(1);
        let mask = line_mask(less_one);
        if !self.is_recycling() || less_one >= SHORT_MAX || align.wrapping_sub(1) > mask {
            return None;
        }
        let reach = less_one | mask;
        let start = self.magazines.pop(reach / GRANULE)?;
        let first = self.addr(start);
        if unlikely(first & mask != 0) {
            return None;
        }
        // These first, then the bits: fewer values are needed at once. If somebody has the memory by then, it is no less warm.
        // SAFETY: the promise made to `attach`; the block is in the area.
        unsafe { *self.magazines.warm.add(start / WARM) = 1 };
        self.magazines.found = self.magazines.found.wrapping_add(1);
        // SAFETY: it was live when it was freed, since it began to recycle. So the map is committed there, the memory was used
        // (nothing went back since, or it would be forgotten), and the area's owner was this thread.
        if unlikely(!unsafe { take_short(self.live, first, reach) }) {
            return None;
        }
        Some(self.small_ptr(first))
    }

    /// Notes that a hole was found or memory taken for want of a remembered block.
    pub(super) fn note_miss(&mut self) {
        let found = core::mem::take(&mut self.magazines.found);
        self.pass.worked = self.pass.worked.wrapping_add(found as usize / FOUND_PAYS);
        let score = SCORE_MOST.min(self.magazines.score.saturating_add(found));
        self.magazines.score = score.wrapping_sub(MISS);
        if self.magazines.score < -SCORE_MOST {
            self.stop_recycling();
            self.magazines.streak = -REST;
        }
    }

    /// The quick half of freeing: a short block while the thread recycles. `false` leaves it to `free`.
    ///
    /// No branch here depends on where the block is or how long: a free of a block out of the cache would else keep the
    /// next from being begun.
    #[inline(always)]
    pub fn free_near(&mut self, addr: usize, size: usize) -> bool {
        let less_one = size.wrapping_sub(1);
        let offset = addr.wrapping_sub(self.small_base.addr());
        if unlikely(offset >= self.magazines.area || less_one >= SHORT_MAX) {
            return false;
        }
        let mask = line_mask(less_one);
        let reach = less_one | mask;
        if unlikely(addr & mask != 0) {
            return false;
        }
        // First, for the reason given in `alloc_again`. Where it is no live block after all the program ends.
        self.magazines.push(reach / GRANULE, offset / GRANULE);
        // No look at the positions: all bits that are set are blocks', for holes are empty.
        // SAFETY: the caller's promise to free: a block is in this heap's small area, and this thread is the owner.
        unsafe { clear_anywhere(self.live, addr, reach) }
    }

    /// How many blocks are remembered. For tests.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        if !self.is_recycling() {
            return 0;
        }
        // SAFETY: while it recycles there are magazines.
        let places = unsafe { &*self.magazines.places };
        places.iter().flatten().filter(|&&place| place != NONE).count()
    }
}
