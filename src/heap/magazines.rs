//! Blocks freed a moment ago, kept for the next request of their size: what is replaced at random is replaced in place.
//!
//! **Problem.** Where blocks live and die at random in one long scope, each new one goes to the next hole: a search, cold
//! memory, and holes that fit less and less. **Invariant.** A kept block's bits stay set (H1), so nobody else gets its
//! memory; it is in one magazine, once. **Consequence.** It can be handed out as it is, still in the cache, and what
//! lives stays as dense as it was.
//!
//! Steps that free what they made are better off without: so blocks are kept only while a thread *recycles*. It begins to
//! within one scope when many holes in turn were short, or when two looks at the area in turn find that some of it is free; it
//! ends when a scope is left or few requests find a block. Meanwhile the area is masked, so that frees take the slow path.

use super::{grain, lane_of, Heap, LANES};
use crate::hint::unlikely;
use crate::layout::{GRANULE, LINE_FROM, SHORT_MAX};
use crate::live_map::is_live_short;

/// Sizes of lane 0, in granules, and of lane 1, in lines.
const CLASSES_BELOW: usize = LINE_FROM / GRANULE;
const CLASSES: usize = CLASSES_BELOW + SHORT_MAX / LINE_FROM;
/// Blocks of one size that are kept. Pushes and pops at random meet one of the ends once in 33 times.
const ROOM: usize = 32;
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
/// No block begins here.
const NONE: u32 = u32::MAX;

/// A stack of blocks for each size, by their first granule.
#[repr(C, align(64))]
pub(super) struct Magazines {
    places: [[u32; ROOM]; CLASSES],
    counts: [u8; CLASSES],
    /// Whether the thread recycles.
    on: bool,
    /// Requests that found a block, less `MISS` times those that did not.
    score: i32,
    /// Short holes in turn; below 0 for as long as it rests.
    streak: i32,
    /// The serial of the last scope entered when the area was looked at last.
    looked_in: u64,
}

impl Magazines {
    pub(super) const EMPTY: Magazines = Magazines {
        places: [[NONE; ROOM]; CLASSES],
        counts: [0; CLASSES],
        on: false,
        score: 0,
        streak: 0,
        looked_in: 0,
    };
}

/// The magazine of blocks of `count` granules in a lane.
#[inline(always)]
fn class(lane: usize, count: usize) -> usize {
    let shift = grain(1).trailing_zeros().wrapping_mul(lane as u32);
    count
        .wrapping_shr(shift)
        .wrapping_add(lane.wrapping_mul(CLASSES_BELOW))
        .wrapping_sub(1)
}

/// The granules of a magazine's blocks.
fn granules_of(class: usize) -> usize {
    if class < CLASSES_BELOW {
        class.wrapping_add(1)
    } else {
        class.wrapping_sub(CLASSES_BELOW).wrapping_add(1).wrapping_mul(grain(1))
    }
}

impl Heap {
    /// Whether blocks are kept.
    #[inline(always)]
    pub(super) fn is_recycling(&self) -> bool {
        self.magazines.on
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

    /// Begins to keep blocks.
    #[cold]
    pub(super) fn start_recycling(&mut self) {
        self.magazines.streak = 0;
        if !self.magazines.on && !self.is_masked() {
            self.magazines.on = true;
            self.magazines.score = 0;
            self.len = 0;
        }
    }

    /// Frees all that is kept, and keeps no more.
    #[inline]
    pub(super) fn stop_recycling(&mut self) {
        self.magazines.streak = self.magazines.streak.min(0);
        if self.magazines.on {
            self.empty_magazines();
        }
    }

    #[cold]
    fn empty_magazines(&mut self) {
        self.magazines.on = false;
        let map = self.map;
        for (class, places) in self.magazines.places.iter_mut().enumerate() {
            for place in places.iter_mut().filter(|place| **place != NONE) {
                let start = core::mem::replace(place, NONE) as usize;
                let _whole = map.clear(start, start.wrapping_add(granules_of(class)));
            }
        }
        self.magazines.counts = [0; CLASSES];
        if let Some(segment) = &self.segment {
            self.len = segment.layout.small_bytes;
        }
    }

    /// A kept block for this request, if the thread is in a scope.
    #[inline(always)]
    pub fn alloc_kept(&mut self, size: usize, align: usize) -> Option<*mut u8> {
        let less_one = size.wrapping_sub(1);
        let index = lane_of(less_one);
        let lane = &self.lanes[index];
        if !self.is_recycling() || !self.is_active() || less_one >= SHORT_MAX || align > lane.align {
            return None;
        }
        let need = (less_one | lane.mask).wrapping_add(1) / GRANULE;
        self.reuse(index, need)
    }

    /// A kept block of `count` granules.
    #[inline(always)]
    pub(super) fn reuse(&mut self, lane: usize, count: usize) -> Option<*mut u8> {
        let class = class(lane, count);
        let magazines = &mut self.magazines;
        let (kept, places) = (magazines.counts.get_mut(class)?, magazines.places.get_mut(class)?);
        let last = kept.wrapping_sub(1);
        let place = places.get_mut(last as usize)?;
        let start = core::mem::replace(place, NONE);
        *kept = last;
        magazines.score = SCORE_MOST.min(magazines.score.wrapping_add(1));
        Some(self.small_ptr(self.addr(start as usize)))
    }

    /// Notes that a hole was found or memory taken for want of a kept block.
    pub(super) fn note_miss(&mut self) {
        self.magazines.score = self.magazines.score.wrapping_sub(MISS);
        if self.magazines.score < -SCORE_MOST {
            self.stop_recycling();
            self.magazines.streak = -REST;
        }
    }

    /// The quick half of freeing while blocks are kept: keeps this one. `false` leaves it to `free`.
    #[inline(always)]
    pub fn free_near(&mut self, addr: usize, size: usize) -> bool {
        self.is_recycling() && self.owns_small(addr) && self.recycle(addr, size) == Some(true)
    }

    /// Keeps a short block of the small area that its owner frees, if there is room; `None` if it is kept already.
    ///
    /// No branch here depends on where the block is or how long: a free of a block out of the cache would else keep the
    /// next from being begun.
    #[inline(always)]
    pub(super) fn recycle(&mut self, addr: usize, size: usize) -> Option<bool> {
        let less_one = size.wrapping_sub(1);
        let offset = addr.wrapping_sub(self.small_base.addr());
        let lane_index = lane_of(less_one);
        let lane = self.lanes[lane_index % LANES];
        let last = addr.wrapping_add(less_one | lane.mask);
        let count = last.wrapping_add(1).wrapping_sub(addr) / GRANULE;
        let class = class(lane_index, count);
        let high = self.small.high;
        let magazines = &mut self.magazines;
        if less_one >= SHORT_MAX || offset & lane.mask != 0 || (offset / GRANULE).wrapping_add(count) > high {
            return Some(false);
        }
        let (Some(kept), Some(places)) = (magazines.counts.get_mut(class), magazines.places.get_mut(class)) else {
            return Some(false);
        };
        let start = (offset / GRANULE) as u32;
        if unlikely(places.iter().fold(false, |seen, &place| seen | (place == start))) {
            return None;
        }
        // SAFETY: the caller's promise to `free`: the block is in this heap's small area, and this thread the owner.
        let is_live = unsafe { is_live_short(self.live, addr, last) };
        let is_last = last.wrapping_add(1) == lane.pos;
        if unlikely(!is_live | is_last | self.lanes[0].holds(addr) | self.lanes[1].holds(addr)) {
            return Some(false);
        }
        let Some(place) = places.get_mut(*kept as usize) else {
            return Some(false);
        };
        *place = start;
        *kept = kept.wrapping_add(1);
        Some(true)
    }

    /// `recycle` for a block that `free_near` did not keep.
    #[cold]
    #[inline(never)]
    pub(super) fn recycle_slow(&mut self, addr: usize, size: usize) -> Option<bool> {
        self.recycle(addr, size)
    }

    /// Granules of all that is kept. For tests.
    #[cfg(test)]
    pub(super) fn kept_granules(&self) -> usize {
        let counts = self.magazines.counts.iter().enumerate();
        counts
            .map(|(class, &count)| granules_of(class) * usize::from(count))
            .sum()
    }

    /// Panics unless what is kept is kept once, and its bits are set. For tests.
    #[cfg(test)]
    pub(super) fn check_magazines(&self) {
        let mut seen = std::collections::BTreeSet::new();
        for (class, places) in self.magazines.places.iter().enumerate() {
            let count = usize::from(self.magazines.counts[class]);
            assert!(places[count..].iter().all(|&place| place == NONE));
            for &place in &places[..count] {
                for granule in place as usize..place as usize + granules_of(class) {
                    assert!(seen.insert(granule), "H1: a granule is kept twice");
                    assert!(
                        self.map.is_live(granule, granule + 1),
                        "H1: a kept granule is not marked"
                    );
                    let addr = self.addr(granule);
                    let holes = self.real_holes();
                    assert!(
                        holes.iter().all(|&(pos, limit)| addr < pos || addr >= limit),
                        "H1: a kept granule in a hole"
                    );
                }
            }
        }
        assert!(seen.is_empty() || self.is_recycling());
    }
}
