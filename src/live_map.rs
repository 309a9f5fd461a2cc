//! Small blocks: one bit for sixteen bytes says whether memory may be used.
//!
//! **Problem.** Memory must be handed out by bumping and freed in any order by any thread, without headers, and a
//! scope may be left at any time. **Invariant.** H1: a granule's bit is set exactly while it is in a live block (freed
//! remotely and not yet folded counts as live) or in the current hole. H2: only the owner writes the live map, and it
//! takes granules only where the bits are clear after folding. H3: a remote free touches nothing but the remote map.
//! **Consequence.** Whatever the scopes do, no granule is in two live blocks.
//!
//! Threads. Synchronization: the live map is written by the segment's owner alone (plain loads and stores, Relaxed;
//! a new owner is ordered behind the old one by the segment bitmap's AcqRel). The remote map is shared: `free_remote`
//! sets bits with Release, `fold` takes them with Acquire, so that what the freeing thread did to the block
//! happens before its memory is used again.
//!
//! This file knows granule numbers of one segment, not addresses; which granules to ask about is `heap`'s affair.

use crate::hint::unlikely;
use crate::layout::{GRANULE, WORD_BYTES, WORD_GRANULES};
use crate::sync::{AtomicU64, Ordering};

/// The two maps of a segment.
#[derive(Clone, Copy)]
pub struct LiveMap {
    live: *const AtomicU64,
    remote: *const AtomicU64,
}

impl LiveMap {
    /// Maps of no segment: no granule may be asked about.
    pub const NONE: LiveMap = LiveMap {
        live: core::ptr::null(),
        remote: core::ptr::null(),
    };

    /// The maps that begin at `live` and `remote`.
    ///
    /// # Safety
    /// Both are committed, and stay so, for every granule that any method is asked about; else a stray write follows.
    pub const unsafe fn new(live: *const AtomicU64, remote: *const AtomicU64) -> LiveMap {
        LiveMap { live, remote }
    }

    #[inline(always)]
    fn live(&self, word: usize) -> &AtomicU64 {
        // SAFETY: by the promise made to `new`, the word is committed and valid for any bits.
        unsafe { &*self.live.add(word) }
    }

    #[inline(always)]
    fn remote(&self, word: usize) -> &AtomicU64 {
        // SAFETY: as for `live`.
        unsafe { &*self.remote.add(word) }
    }

    /// Folds the remote frees of one word in and returns what is live after it (H2). Owner only.
    #[inline]
    pub fn fold(&self, word: usize) -> u64 {
        // Relaxed: only this thread writes the live map.
        let mut live = self.live(word).load(Ordering::Relaxed);
        // Relaxed: a look whether there is anything to take; the swap does the ordering.
        if self.remote(word).load(Ordering::Relaxed) != 0 {
            // Acquire: partner of the Release in `free_remote`.
            live &= !self.remote(word).swap(0, Ordering::Acquire);
            self.live(word).store(live, Ordering::Relaxed);
        }
        live
    }

    /// The live word as it stands, for statistics from any thread.
    pub fn peek(&self, word: usize) -> u64 {
        // Relaxed: a snapshot for counting; nothing is decided by it.
        self.live(word).load(Ordering::Relaxed) & !self.remote(word).load(Ordering::Relaxed)
    }

    /// The same maps from a word on.
    pub fn from(&self, word: usize) -> LiveMap {
        LiveMap {
            live: self.live.wrapping_add(word),
            remote: self.remote.wrapping_add(word),
        }
    }

    /// Whether all of these bits of a word are set in the live map, freed remotely or not.
    #[inline(always)]
    pub fn is_set(&self, word: usize, bits: u64) -> bool {
        self.unset(word) & bits == 0
    }

    /// The bits of a word that are clear in the live map.
    #[inline(always)]
    pub fn unset(&self, word: usize) -> u64 {
        // Relaxed: as in `free_remote`.
        !self.live(word).load(Ordering::Relaxed)
    }

    /// Applies `change` to the live bits of granules `[start, end)`, word by word; it gets the word and the mask.
    #[inline(always)]
    fn each_word(start: usize, end: usize, mut change: impl FnMut(usize, u64)) {
        if start >= end {
            return;
        }
        let last_granule = end.wrapping_sub(1);
        let (first, last) = (start / WORD_GRANULES, last_granule / WORD_GRANULES);
        let from = u64::MAX << (start % WORD_GRANULES);
        let to = u64::MAX >> (WORD_GRANULES - 1 - last_granule % WORD_GRANULES);
        if first == last {
            return change(first, from & to);
        }
        change(first, from);
        // Words between the ends are whole: a hole has up to 64 of them.
        for word in first.wrapping_add(1)..last {
            change(word, u64::MAX);
        }
        change(last, to);
    }

    /// Whether all of `[start, end)` is live and nothing of it was freed remotely.
    pub fn is_live(&self, start: usize, end: usize) -> bool {
        let mut all = true;
        Self::each_word(start, end, |word, mask| all &= self.peek(word) & mask == mask);
        all
    }

    /// Marks `[start, end)` live. Owner only; the bits are clear.
    #[inline]
    pub fn set(&self, start: usize, end: usize) {
        Self::each_word(start, end, |word, mask| {
            let live = self.live(word);
            live.store(live.load(Ordering::Relaxed) | mask, Ordering::Relaxed);
        });
    }

    /// Clears `[start, end)`; `false` if a bit was clear already or was freed remotely: a double free. Owner only.
    #[inline]
    #[must_use]
    pub fn clear(&self, start: usize, end: usize) -> bool {
        let mut all = true;
        Self::each_word(start, end, |word, mask| {
            let live = self.live(word).load(Ordering::Relaxed);
            all &= live & mask == mask && self.remote(word).load(Ordering::Relaxed) & mask == 0;
            self.live(word).store(live & !mask, Ordering::Relaxed);
        });
        all
    }

    /// Frees `[start, end)` from a thread that does not own the segment (H3); `false` if any of it was free: a double
    /// free.
    #[must_use]
    pub fn free_remote(&self, start: usize, end: usize) -> bool {
        let mut all = true;
        Self::each_word(start, end, |word, mask| all &= self.free_bits(word, mask));
        all
    }

    /// Frees these bits of a word from a thread that does not own the segment (H3); `false` for a double free.
    #[must_use]
    pub fn free_bits(&self, word: usize, bits: u64) -> bool {
        // The block is live by the caller's word, so its bits were set before its pointer was passed on, and later writes of
        // the owner to this word keep them.
        let is_set = self.is_set(word, bits);
        // Release: partner of the Acquire in `fold`.
        is_set & (self.remote(word).fetch_or(bits, Ordering::Release) & bits == 0)
    }

    /// The first live granule of `[start, limit)` after folding, or `limit`. Owner only.
    pub fn first_live(&self, start: usize, limit: usize) -> usize {
        self.first(start, limit, |live| live)
    }

    /// The first free granule of `[start, limit)` after folding, or `limit`. Owner only.
    pub fn first_free(&self, start: usize, limit: usize) -> usize {
        self.first(start, limit, |live| !live)
    }

    #[inline(always)]
    fn first(&self, start: usize, limit: usize, wanted: impl Fn(u64) -> u64) -> usize {
        if start >= limit {
            return limit;
        }
        let mut word = start / WORD_GRANULES;
        let mut bits = wanted(self.fold(word)) & (u64::MAX << (start % WORD_GRANULES));
        while bits == 0 {
            word = word.wrapping_add(1);
            if word.wrapping_mul(WORD_GRANULES) >= limit {
                return limit;
            }
            bits = wanted(self.fold(word));
        }
        word.wrapping_mul(WORD_GRANULES)
            .wrapping_add(bits.trailing_zeros() as usize)
            .min(limit)
    }

    /// The next run of free granules in `[from, limit)`, cut at `longest`, in which `need` granules fit from a
    /// multiple of `align` (in granules, a power of two) on; it may begin at that multiple. Owner only.
    ///
    /// A word whose free granules stand too close for the block is passed by in one look: a live granule also blocks
    /// the places from which a block would run into it.
    pub fn next_run(
        &self,
        from: usize,
        limit: usize,
        need: usize,
        align: usize,
        longest: usize,
    ) -> Option<(usize, usize)> {
        let within = need.clamp(1, WORD_GRANULES);
        let starts = multiples(align.min(WORD_GRANULES));
        let candidates = |live: u64| run_starts(live, within) & starts;
        let mut at = from;
        loop {
            let start = self.first(at, limit, candidates);
            if start >= limit {
                return None;
            }
            let end = self.first_live(start, limit.min(start.wrapping_add(longest)));
            if crate::align::align_up(start, align).wrapping_add(need) <= end {
                return Some((start, end));
            }
            at = end.max(start.wrapping_add(1));
        }
    }

    /// Live granules of the words `[0, words)` after folding. Owner only.
    pub fn count(&self, words: usize) -> usize {
        let mut live = 0usize;
        for word in 0..words {
            live = live.wrapping_add(self.fold(word).count_ones() as usize);
        }
        live
    }
}

/// The places of a word that are multiples of `align` (a power of two, at most a word).
pub const fn multiples(align: usize) -> u64 {
    if align >= WORD_GRANULES {
        1
    } else {
        u64::MAX / (1u64 << align).wrapping_sub(1)
    }
}

/// Where in a word, if the next one were free, a run of `need` free granules (1 to 64) begins; `live` are the others.
///
/// A live granule also blocks the places from which a block would run into it: doubling makes it as many as the largest
/// power of two that the block is long, one more step the rest.
#[inline(always)]
pub fn run_starts(live: u64, need: usize) -> u64 {
    let mut blocked = live;
    let mut reach = 1u32;
    while reach as usize * 2 <= need {
        blocked |= blocked >> reach;
        reach *= 2;
    }
    !(blocked | blocked >> (need as u32 - reach))
}

/// The live map of a small area at `base`, moved so that an address of the area, divided by a word's bytes, is the index
/// of its word.
pub fn by_address(map: &LiveMap, base: usize) -> *const AtomicU64 {
    map.live.wrapping_sub(base / WORD_BYTES)
}

/// At each index one bit more than that, from the lowest on. Measured: a load in place of one shift by a variable count makes
/// batches of blocks 4 % faster. A constant, so that each program has its own beside its code and needs no load to find it.
const ONES: &[u64; WORD_GRANULES] = &{
    let mut ones = [1; WORD_GRANULES];
    let mut index = 1;
    while index < WORD_GRANULES {
        ones[index] = ones[index - 1] << 1 | 1;
        index += 1;
    }
    ones
};

/// Clears the bits of a short block, whose last byte is `reach` behind its first, in the owner's live map; `false` for a
/// double free and for a block longer than a word's memory.
///
/// # Safety
/// `live` is `by_address` of the owner's live map, committed for these addresses, and the caller is the owner.
#[inline(always)]
#[must_use]
pub unsafe fn clear_short(live: *const AtomicU64, first: usize, reach: usize) -> bool {
    // One compare with what is left of the word: whether it is in one, and so short.
    if unlikely(reach > !first % WORD_BYTES) {
        // SAFETY: the caller's promise.
        return reach < WORD_BYTES && unsafe { clear_across(live, first, first.wrapping_add(reach)) };
    }
    // Shifts take their count modulo 64.
    let ones = ONES[reach / GRANULE].wrapping_shl((first / GRANULE) as u32);
    // SAFETY: by the caller's promise.
    unsafe { clear_bits(&*live.wrapping_add(first / WORD_BYTES), ones) }
}

/// As `clear_short`, of a block that ends in the next word.
///
/// # Safety
/// As `clear_short`.
#[inline(always)]
unsafe fn clear_across(live: *const AtomicU64, first: usize, last: usize) -> bool {
    let low = u64::MAX.wrapping_shl((first / GRANULE) as u32);
    let high = ONES[last / GRANULE % WORD_GRANULES];
    // SAFETY: by the caller's promise; the block reaches into the second word, so it is committed too.
    unsafe { clear_in_two(live, (first, low), (last, high)) }
}

/// Clears these bits of the words of two addresses; `false` if one of them was clear. Then only the first word's may be.
///
/// # Safety
/// Both words are committed, and the caller is the owner.
#[inline(always)]
unsafe fn clear_in_two(live: *const AtomicU64, (first, low): (usize, u64), (last, high): (usize, u64)) -> bool {
    // SAFETY: by the caller's promise.
    unsafe {
        clear_bits(&*live.wrapping_add(first / WORD_BYTES), low)
            && clear_bits(&*live.wrapping_add(last / WORD_BYTES), high)
    }
}

/// Clears these bits if all are set.
#[inline(always)]
fn clear_bits(word: &AtomicU64, ones: u64) -> bool {
    // Relaxed: only the owner writes the live map. Where all were set, flipping clears them.
    let bits = word.load(Ordering::Relaxed) ^ ones;
    let done = bits & ones == 0;
    if done {
        word.store(bits, Ordering::Relaxed);
    }
    done
}

/// The bits of the granule `start` and of `behind` (0 to 63) of those behind it, without a branch that depends on where they
/// are: those in its word and those in the next.
#[inline(always)]
pub fn bits_of(start: usize, behind: usize) -> (u64, u64) {
    let ones = ONES[behind % WORD_GRANULES];
    // Shifts take their count modulo 64. What the first pushes out is the second word's; in two shifts, for nothing is
    // pushed out by 0.
    let shift = start as u32;
    (ones.wrapping_shl(shift), (ones >> 1).wrapping_shr(!shift))
}

/// As `clear_short` for a block of at most a word's memory, without a branch that depends on where it is. After a double free
/// some of its bits may be clear.
///
/// # Safety
/// As `clear_short`.
#[inline(always)]
#[must_use]
pub unsafe fn clear_anywhere(live: *const AtomicU64, first: usize, reach: usize) -> bool {
    let (low, high) = bits_of(first / GRANULE, reach / GRANULE);
    // SAFETY: by the caller's promise; the second word is the first again, of which nothing is asked, where the block ends
    // in it.
    unsafe { clear_in_two(live, (first, low), (first.wrapping_add(reach), high)) }
}

/// Sets the bits of a short block in the owner's live map if all are clear; whether they were.
///
/// # Safety
/// As `clear_short`.
#[inline(always)]
#[must_use]
pub unsafe fn take_short(live: *const AtomicU64, first: usize, reach: usize) -> bool {
    let (low, high) = bits_of(first / GRANULE, reach / GRANULE);
    // SAFETY: as in `clear_anywhere`.
    let (one, two) = unsafe {
        let last = first.wrapping_add(reach);
        (
            &*live.wrapping_add(first / WORD_BYTES),
            &*live.wrapping_add(last / WORD_BYTES),
        )
    };
    // Relaxed: only the owner writes the live map.
    if one.load(Ordering::Relaxed) & low != 0 || two.load(Ordering::Relaxed) & high != 0 {
        return false;
    }
    one.store(one.load(Ordering::Relaxed) | low, Ordering::Relaxed);
    two.store(two.load(Ordering::Relaxed) | high, Ordering::Relaxed);
    true
}

#[cfg(test)]
#[path = "live_map_tests.rs"]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    struct Maps {
        live: Vec<AtomicU64>,
        remote: Vec<AtomicU64>,
    }

    impl Maps {
        fn new(words: usize) -> Maps {
            let zeros = || (0..words).map(|_| AtomicU64::new(0)).collect();
            Maps {
                live: zeros(),
                remote: zeros(),
            }
        }
        fn map(&self) -> LiveMap {
            // SAFETY: both vectors outlive the map, and tests ask about their granules only.
            unsafe { LiveMap::new(self.live.as_ptr(), self.remote.as_ptr()) }
        }
        fn bits(&self) -> Vec<bool> {
            let bit = |g: usize| self.live[g / 64].load(Ordering::Relaxed) >> (g % 64) & 1 == 1;
            (0..self.live.len() * 64).map(bit).collect()
        }
    }

    #[test]
    fn setting_and_clearing_touch_exactly_the_range() {
        for start in 0..130 {
            for end in start + 1..=192 {
                let maps = Maps::new(3);
                maps.map().set(start, end);
                let expected: Vec<bool> = (0..192).map(|g| (start..end).contains(&g)).collect();
                assert_eq!(maps.bits(), expected);
                assert!(maps.map().clear(start, end));
                assert!(maps.bits().iter().all(|&bit| !bit));
                assert!(!maps.map().clear(start, end), "a second clear is a double free");
            }
        }
    }

    #[test]
    fn short_clears_agree_with_long_ones() {
        let base = 7 << 20;
        for start in 0..128 {
            for count in 1..=64 {
                let maps = Maps::new(4);
                maps.map().set(0, 256);
                let live = by_address(&maps.map(), base);
                let (first, last) = (base + start * GRANULE, base + (start + count) * GRANULE - 1);
                let expected: Vec<bool> = (0..256).map(|g| !(start..start + count).contains(&g)).collect();
                // SAFETY: the map holds 256 granules and this thread owns it.
                let short = || unsafe { clear_short(live, first, last - first) };
                // SAFETY: as above.
                let anywhere = || unsafe { clear_anywhere(live, first, last - first) };
                // SAFETY: as above.
                let take = || unsafe { take_short(live, first, last - first) };
                for clear in [&short as &dyn Fn() -> bool, &anywhere] {
                    assert!(!take(), "it is taken");
                    assert!(clear());
                    assert_eq!(maps.bits(), expected);
                    assert!(!clear(), "a second clear is a double free");
                    assert!(take());
                    assert!(maps.bits().iter().all(|&bit| bit));
                }
                for hole in 0..count {
                    maps.map().set(0, 256);
                    assert!(maps.map().clear(start + hole, start + hole + 1));
                    let one: Vec<bool> = (0..256).map(|g| g != start + hole).collect();
                    assert!(count == 1 || !take() && maps.bits() == one, "nothing has changed");
                    assert!(!anywhere());
                }
            }
        }
    }

    #[test]
    fn remote_frees_appear_after_folding_only() {
        let maps = Maps::new(2);
        let map = maps.map();
        map.set(10, 90);
        assert!(map.free_remote(20, 70));
        assert!(maps.bits()[20]);
        assert!(!map.free_remote(69, 71), "part of it is free already");
        assert_eq!(
            (map.fold(0), map.fold(1)),
            (0x3ff << 10, ((1 << 26) - 1) & !0x7f),
            "10..20 and 71..90"
        );
        assert_eq!(map.first_free(10, 128), 20);
        assert_eq!(map.first_live(20, 128), 71);
        assert!(!map.free_remote(30, 31), "free already");
    }

    #[test]
    fn runs_agree_with_a_naive_search() {
        let mut random = 88172645463325252u64;
        for _ in 0..2_000 {
            let maps = Maps::new(3);
            let map = maps.map();
            for word in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                maps.live[word].store(random & random.rotate_left(7), Ordering::Relaxed);
            }
            let bits = maps.bits();
            for (need, align) in [(1, 1), (3, 1), (4, 4), (9, 4), (20, 1)] {
                for from in (0..192).step_by(5) {
                    let found = map.next_run(from, 190, need, align, 40);
                    let fits = |s: usize| {
                        let end = (s..190).find(|&g| bits[g]).unwrap_or(190).min(s + 40);
                        (s == from || bits[s - 1] || s % 64 == from % 64).then_some(())?;
                        (!bits[s] && s.next_multiple_of(align) + need <= end).then_some((s, end))
                    };
                    if let Some((start, end)) = found {
                        assert!((start..end).all(|g| !bits[g]) && start.next_multiple_of(align) + need <= end);
                    } else {
                        assert!((from..190).filter_map(fits).next().is_none(), "{need} {align} {from}");
                    }
                }
            }
        }
    }
}
