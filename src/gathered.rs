//! Small blocks that a thread frees of another's: those of one word of its maps are told together.
//!
//! **Problem.** Telling the owner is an atomic change of a line that the owner reads too. A thread that drops what another
//! made, mostly in the order in which it was made, would change each word several times over. **Invariant.** What is
//! gathered is live to everybody else until it is told (H3). **Consequence.** Late is safe: for each thread at most 1 KiB,
//! one word's memory, is free a little later.
//!
//! A word is told when a block of another is freed, when the thread asks for figures, and when it ends. While the owner
//! counts what others free, nothing is gathered.

use crate::layout::{granules, low_mask, GRANULE, SHORT_MAX, WORD_BYTES, WORD_GRANULES};
use crate::live_map::LiveMap;
use crate::sync::{AtomicU32, Ordering};
use core::ptr;

/// What one thread has freed in one word.
pub struct Gathered {
    /// The address that the word's first bit stands for; 0 if nothing is gathered.
    base: usize,
    /// The maps from this word on.
    map: LiveMap,
    bits: u64,
    /// Not 0 while the owner counts.
    counts: *const AtomicU32,
}

/// The small area of another thread's segment, in which blocks are freed.
#[derive(Clone, Copy)]
pub struct Theirs {
    /// The address that the maps' first bit stands for.
    pub base: usize,
    /// Its maps.
    pub map: LiveMap,
    /// Not 0 while the owner counts.
    pub counts: *const AtomicU32,
}

impl Gathered {
    /// Nothing.
    pub const NONE: Gathered = Gathered {
        base: 0,
        map: LiveMap::NONE,
        bits: 0,
        counts: ptr::null(),
    };

    /// Frees a block that lies in the word gathered; `false` if it does not, is free already, or the owner counts.
    #[inline(always)]
    pub fn add(&mut self, addr: usize, size: usize) -> bool {
        let offset = addr.wrapping_sub(self.base);
        let (start, count) = (offset / GRANULE, granules(size));
        let is_inside = offset < WORD_BYTES && offset % GRANULE == 0 && count <= WORD_GRANULES.wrapping_sub(start);
        is_inside && !self.is_counted() && self.add_bits(low_mask(start, count))
    }

    /// As `add`, of a block that reaches into the next word or lies in it. Hands what was gathered so far to `tell`.
    #[inline(always)]
    pub fn add_next(&mut self, addr: usize, size: usize, tell: impl FnMut(Told)) -> bool {
        let offset = addr.wrapping_sub(self.base);
        let is_near = offset < 2 * WORD_BYTES && offset % GRANULE == 0 && size <= SHORT_MAX;
        if !is_near || self.is_counted() {
            return false;
        }
        let theirs = Theirs {
            base: self.base,
            map: self.map,
            counts: self.counts,
        };
        self.free(theirs, offset / GRANULE, granules(size), tell)
    }

    /// Frees `count` granules (1 to 64) from `start` on, whether the owner counts or not; `false` if some are free already.
    /// Hands what was gathered in other words to `tell`.
    #[inline(always)]
    pub fn free(&mut self, theirs: Theirs, start: usize, count: usize, mut tell: impl FnMut(Told)) -> bool {
        let (word, first) = (start / WORD_GRANULES, start % WORD_GRANULES);
        let inside = WORD_GRANULES.wrapping_sub(first);
        self.go_to(theirs, word, &mut tell);
        let mut all = self.add_bits(low_mask(first, count.min(inside)));
        if count > inside {
            self.go_to(theirs, word.wrapping_add(1), &mut tell);
            all &= self.add_bits(low_mask(0, count.wrapping_sub(inside)));
        }
        all
    }

    /// Gathers this word's frees from now on.
    #[inline(always)]
    fn go_to(&mut self, theirs: Theirs, word: usize, tell: &mut impl FnMut(Told)) {
        let base = theirs.base.wrapping_add(word.wrapping_mul(WORD_BYTES));
        if base != self.base {
            self.take().into_iter().for_each(tell);
            *self = Gathered {
                base,
                map: theirs.map.from(word),
                bits: 0,
                counts: theirs.counts,
            };
        }
    }

    /// Whether the owner counts: asked once for each block, as it may begin to at any time.
    #[inline(always)]
    fn is_counted(&self) -> bool {
        // SAFETY: null, or in the header of a segment that was claimed, which stays.
        // Relaxed: what is made while the owner counts came here after it began to.
        unsafe { self.counts.as_ref() }.is_none_or(|counts| counts.load(Ordering::Relaxed) != 0)
    }

    #[inline(always)]
    fn add_bits(&mut self, bits: u64) -> bool {
        let is_live = self.map.is_set(0, bits) && self.bits & bits == 0;
        if is_live {
            self.bits |= bits;
        }
        is_live
    }

    /// What is gathered, from now on nothing.
    pub fn take(&mut self) -> Option<Told> {
        let Gathered { base, map, bits, .. } = core::mem::replace(self, Gathered::NONE);
        (bits != 0).then_some(Told { base, map, bits })
    }
}

/// Frees of one word, to be told.
pub struct Told {
    /// The address that the word's first bit stands for.
    pub base: usize,
    map: LiveMap,
    bits: u64,
}

impl Told {
    /// Tells the owner; `false` for a double free.
    #[must_use]
    pub fn tell(&self) -> bool {
        self.map.free_bits(0, self.bits)
    }

    /// Bytes of what is freed.
    pub fn bytes(&self) -> usize {
        (self.bits.count_ones() as usize).wrapping_mul(GRANULE)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::guard::CHECKED;
    use crate::sync::AtomicU64;
    use std::vec::Vec;

    /// Two maps of so many words, all of whose granules are live.
    struct Maps([Vec<AtomicU64>; 2], AtomicU32);

    const WORDS: usize = 16;
    const BASE: usize = 0x7000_0000;

    impl Maps {
        fn new() -> Maps {
            let words = |bits| (0..WORDS).map(|_| AtomicU64::new(bits)).collect();
            Maps([words(u64::MAX), words(0)], AtomicU32::new(0))
        }

        fn map(&self) -> LiveMap {
            // SAFETY: the vectors stay, and nobody asks about other granules.
            unsafe { LiveMap::new(self.0[0].as_ptr(), self.0[1].as_ptr()) }
        }

        fn theirs(&self) -> Theirs {
            Theirs {
                base: BASE,
                map: self.map(),
                counts: &self.1,
            }
        }

        /// Whether each granule is live, less what was freed remotely.
        fn live(&self) -> Vec<bool> {
            (0..WORDS * WORD_GRANULES)
                .map(|granule| self.map().is_live(granule, granule + 1))
                .collect()
        }
    }

    /// Frees by whichever way takes the block, as a thread does.
    fn free(gathered: &mut Gathered, maps: &Maps, addr: usize, size: usize, told: &mut usize) -> bool {
        let mut tell = |what: Told| {
            *told += what.bytes();
            assert!(what.tell(), "{:#x} is told twice", what.base);
        };
        let (start, count) = ((addr - BASE) / GRANULE, granules(size));
        gathered.add(addr, size)
            || gathered.add_next(addr, size, &mut tell)
            || maps.1.load(Ordering::Relaxed) == 0 && gathered.free(maps.theirs(), start, count, &mut tell)
    }

    /// Blocks one behind the other, in the order of a seed; every one is freed once and told once.
    #[test]
    fn what_is_gathered_is_told_once() {
        if CHECKED {
            return; // with a mark behind it a block is longer than a word
        }
        for seed in 0..300usize {
            let maps = Maps::new();
            let (mut gathered, mut told) = (Gathered::NONE, 0);
            let (mut blocks, mut at, mut random) = (Vec::new(), BASE + seed % 7 * GRANULE, seed + 1);
            loop {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let size = 1 + (random >> 33) % [48, 300, 700, 1_024][seed % 4];
                at += if size < 64 { 0 } else { (64 - at % 64) % 64 };
                let bytes = granules(size) * GRANULE;
                if at + bytes > BASE + WORDS * WORD_BYTES {
                    break;
                }
                blocks.push((at, size));
                at += bytes;
            }
            match seed % 3 {
                0 => {}
                1 => blocks.reverse(),
                _ => blocks.sort_by_key(|(addr, _)| addr.wrapping_mul(0x9e37_79b9) >> 16 & 0xff),
            }
            let (mut expected, mut freed) = (maps.live(), 0);
            for &(addr, size) in &blocks {
                let start = (addr - BASE) / GRANULE;
                expected[start..start + granules(size)].fill(false);
                freed += granules(size) * GRANULE;
                assert!(free(&mut gathered, &maps, addr, size, &mut told));
                assert!(freed - told <= WORD_BYTES, "{} bytes are late", freed - told);
            }
            if let Some(what) = gathered.take() {
                told += what.bytes();
                assert!(what.tell());
            }
            assert!(gathered.take().is_none());
            assert_eq!((told, maps.live()), (freed, expected), "seed {seed}");
        }
    }

    #[test]
    fn what_is_free_is_not_gathered() {
        if CHECKED {
            return;
        }
        let maps = Maps::new();
        let (mut gathered, mut told) = (Gathered::NONE, 0);
        assert!(!gathered.add(BASE, 16), "nothing is gathered yet");
        assert!(!gathered.add_next(BASE, 16, |_| unreachable!()));
        // Gathered already.
        assert!(free(&mut gathered, &maps, BASE + 64, 100, &mut told));
        assert!(!gathered.add(BASE + 64, 100));
        assert!(!free(&mut gathered, &maps, BASE + 64, 100, &mut told));
        // In the next word, whether the block begins there or here.
        assert!(free(&mut gathered, &maps, BASE + 960, 500, &mut told));
        assert!(!gathered.add(BASE + 1_024, 16) && !gathered.add_next(BASE + 1_024, 16, |_| unreachable!()));
        assert_eq!(told, 128 + 64);
        // Told already.
        assert!(free(&mut gathered, &maps, BASE + 8 * WORD_BYTES, 16, &mut told));
        assert_eq!(told, 128 + 512);
        assert!(free(&mut gathered, &maps, BASE + 64, 100, &mut told));
        assert!(
            gathered.take().is_some_and(|what| !what.tell()),
            "a second telling is seen"
        );
        // Free to its owner.
        assert!(maps.map().clear(100, 104));
        assert!(!free(&mut gathered, &maps, BASE + 100 * GRANULE, 64, &mut told));
        // No granule begins there.
        assert!(free(&mut gathered, &maps, BASE + 2 * WORD_BYTES, 16, &mut told));
        assert!(!gathered.add(BASE + 2 * WORD_BYTES + 24, 16));
        assert!(!gathered.add_next(BASE + 3 * WORD_BYTES + 24, 16, |_| unreachable!()));
    }

    #[test]
    fn nothing_is_gathered_while_the_owner_counts() {
        if CHECKED {
            return;
        }
        let maps = Maps::new();
        let (mut gathered, mut told) = (Gathered::NONE, 0);
        assert!(free(&mut gathered, &maps, BASE, 16, &mut told));
        maps.1.store(1, Ordering::Relaxed);
        for (addr, size) in [
            (BASE + 16, 16),
            (BASE + 960, 500),
            (BASE + 1_024, 16),
            (BASE + 9_000, 16),
        ] {
            assert!(!free(&mut gathered, &maps, addr / GRANULE * GRANULE, size, &mut told));
        }
        maps.1.store(0, Ordering::Relaxed);
        assert!(free(&mut gathered, &maps, BASE + 960, 500, &mut told));
        assert_eq!(told, 16 + 64, "what came before was told as ever");
    }
}
