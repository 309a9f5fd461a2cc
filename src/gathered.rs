//! Small blocks that a thread frees of another's: those of one line of its maps are told together.
//!
//! **Problem.** Telling the owner is an atomic change of a line that the owner reads too. A thread that drops what another
//! made, mostly in the order in which it was made, would change each line many times over. **Invariant.** What is gathered
//! is live to everybody else until it is told (H3). **Consequence.** Late is safe: for each thread and lane at most 8 KiB,
//! one line's memory, is free a little later.
//!
//! A line is told when a block elsewhere in that lane is freed, when the thread asks for figures, and when it ends. While the
//! owner counts what others free, nothing is gathered.

use crate::align::CACHE_LINE;
use crate::layout::{GRANULE, WORD_BYTES, WORD_GRANULES};
use crate::live_map::{self, LiveMap};
use crate::sync::{AtomicU32, Ordering};
use core::ptr;

/// Words of a map that are told together.
const WORDS: usize = CACHE_LINE / 8;

/// Bytes that they stand for.
const GATHERED_BYTES: usize = WORDS * WORD_BYTES;

const GRANULES: usize = WORDS * WORD_GRANULES;

/// What one thread has freed in one line of maps.
pub struct Gathered {
    /// The address that the line's first bit stands for; 0 if nothing is gathered.
    base: usize,
    /// The maps from this line on.
    map: LiveMap,
    /// Not 0 while the owner counts.
    counts: *const AtomicU32,
    bits: [u64; WORDS],
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
        counts: ptr::null(),
        bits: [0; WORDS],
    };

    /// The granule that begins at an address, counted from the line's first. Where none begins, what is left of the division is
    /// in the uppermost bits: so one compare finds both.
    #[inline(always)]
    fn granule(&self, addr: usize) -> usize {
        addr.wrapping_sub(self.base).rotate_right(GRANULE.trailing_zeros())
    }

    /// Frees a block that has `behind` (0 to 63) granules behind its first and lies in the line gathered; `false` if it does
    /// not, is free already, or the owner counts.
    #[inline(always)]
    pub fn add(&mut self, addr: usize, behind: usize) -> bool {
        let start = self.granule(addr);
        start < GRANULES.wrapping_sub(behind) && !self.is_counted() && self.add_bits(start, behind)
    }

    /// As `add`, of a block that reaches into the next line or lies in it. Hands what was gathered so far to `tell`.
    #[inline(always)]
    pub fn add_next(&mut self, addr: usize, behind: usize, tell: impl FnMut(Told)) -> bool {
        let start = self.granule(addr);
        if start >= 2 * GRANULES || self.is_counted() {
            return false;
        }
        let theirs = Theirs {
            base: self.base,
            map: self.map,
            counts: self.counts,
        };
        self.free(theirs, start, behind, tell)
    }

    /// Frees the granule `start` and `behind` (0 to 63) of those behind it, whether the owner counts or not; `false` if some are
    /// free already. Hands what was gathered in other lines to `tell`.
    #[inline(always)]
    pub fn free(&mut self, theirs: Theirs, start: usize, behind: usize, mut tell: impl FnMut(Told)) -> bool {
        let (line, first) = (start / GRANULES, start % GRANULES);
        let inside = GRANULES.wrapping_sub(first).wrapping_sub(1);
        self.go_to(theirs, line, &mut tell);
        let mut all = self.add_bits(first, behind.min(inside));
        if behind > inside {
            self.go_to(theirs, line.wrapping_add(1), &mut tell);
            all &= self.add_bits(0, behind.wrapping_sub(inside).wrapping_sub(1));
        }
        all
    }

    /// Gathers this line's frees from now on.
    #[inline(always)]
    fn go_to(&mut self, theirs: Theirs, line: usize, tell: &mut impl FnMut(Told)) {
        let base = theirs.base.wrapping_add(line.wrapping_mul(GATHERED_BYTES));
        if base != self.base {
            self.take().into_iter().for_each(tell);
            self.base = base;
            self.map = theirs.map.from(line.wrapping_mul(WORDS));
            self.counts = theirs.counts;
        }
    }

    /// Whether the owner counts: asked once for each block, as it may begin to at any time. Something is gathered.
    #[inline(always)]
    fn is_counted(&self) -> bool {
        // SAFETY: in the header of a segment that was claimed, which stays; the callers found an address near the base, and
        // none is near 0.
        // Relaxed: what is made while the owner counts came here after it began to.
        unsafe { &*self.counts }.load(Ordering::Relaxed) != 0
    }

    /// Gathers a granule of the line and `behind` (0 to 63) of those behind it; `false` if one of them is free. No branch depends
    /// on where a word ends.
    #[inline(always)]
    fn add_bits(&mut self, start: usize, behind: usize) -> bool {
        let (low, high) = live_map::bits_of(start, behind);
        let word = start / WORD_GRANULES;
        // The same word again where nothing reaches into the next.
        let next = word.wrapping_add(usize::from(high != 0));
        let in_first = (self.bits[word % WORDS] | self.map.unset(word)) & low;
        let in_next = (self.bits[next % WORDS] | self.map.unset(next)) & high;
        let is_live = in_first | in_next == 0;
        if is_live {
            self.bits[word % WORDS] |= low;
            self.bits[next % WORDS] |= high;
        }
        is_live
    }

    /// What is gathered, from now on nothing.
    pub fn take(&mut self) -> Option<Told> {
        let Gathered { base, map, bits, .. } = core::mem::replace(self, Gathered::NONE);
        (base != 0).then_some(Told { base, map, bits })
    }
}

/// Frees of one line, to be told.
pub struct Told {
    /// The address that the line's first bit stands for.
    pub base: usize,
    map: LiveMap,
    bits: [u64; WORDS],
}

impl Told {
    /// Tells the owner; `false` for a double free.
    #[must_use]
    pub fn tell(&self) -> bool {
        let mut all = true;
        for (word, bits) in self.bits.into_iter().enumerate() {
            if bits != 0 {
                all &= self.map.free_bits(word, bits);
            }
        }
        all
    }

    /// Bytes of what is freed.
    pub fn bytes(&self) -> usize {
        let granules: u32 = self.bits.iter().map(|bits| bits.count_ones()).sum();
        (granules as usize).wrapping_mul(GRANULE)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::guard::CHECKED;
    use crate::layout::granules;
    use crate::sync::AtomicU64;
    use std::vec::Vec;

    /// Two maps of so many words, all of whose granules are live.
    struct Maps([Vec<AtomicU64>; 2], AtomicU32);

    const MAP_WORDS: usize = 5 * WORDS;
    const LINE: usize = GATHERED_BYTES;
    const BASE: usize = 0x7000_0000;

    impl Maps {
        fn new() -> Maps {
            let words = |bits| (0..MAP_WORDS).map(|_| AtomicU64::new(bits)).collect();
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
            (0..MAP_WORDS * WORD_GRANULES)
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
        gathered.add(addr, behind(size))
            || gathered.add_next(addr, behind(size), &mut tell)
            || maps.1.load(Ordering::Relaxed) == 0
                && gathered.free(maps.theirs(), (addr - BASE) / GRANULE, behind(size), &mut tell)
    }

    fn behind(size: usize) -> usize {
        granules(size) - 1
    }

    /// Blocks one behind the other, in the order of a seed; every one is freed once and told once.
    #[test]
    fn what_is_gathered_is_told_once() {
        if CHECKED {
            return; // nothing is gathered then, for blocks have a mark behind them
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
                if at + bytes > BASE + MAP_WORDS * WORD_BYTES {
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
                assert!(freed - told <= GATHERED_BYTES, "{} bytes are late", freed - told);
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
        assert!(!gathered.add(BASE, behind(16)), "nothing is gathered yet");
        assert!(!gathered.add_next(BASE, behind(16), |_| unreachable!()));
        // Gathered already.
        assert!(free(&mut gathered, &maps, BASE + 64, 100, &mut told));
        assert!(!gathered.add(BASE + 64, behind(100)));
        assert!(!free(&mut gathered, &maps, BASE + 64, 100, &mut told));
        // Gathered in one of two words.
        assert!(free(&mut gathered, &maps, BASE + 960, 500, &mut told));
        assert!(
            !gathered.add(BASE + 960, behind(64))
                && !gathered.add(BASE + 1_024, behind(16))
                && !gathered.add(BASE + 1_008, behind(32))
        );
        // In the next line, whether the block begins there or here.
        assert!(free(&mut gathered, &maps, BASE + LINE - 64, 500, &mut told));
        assert!(
            !gathered.add(BASE + LINE, behind(16)) && !gathered.add_next(BASE + LINE, behind(16), |_| unreachable!())
        );
        assert_eq!(told, 128 + 512 + 64);
        // Told already.
        assert!(free(&mut gathered, &maps, BASE + 4 * LINE, 16, &mut told));
        assert_eq!(told, 128 + 512 + 512);
        assert!(free(&mut gathered, &maps, BASE + 64, 100, &mut told));
        assert!(
            gathered.take().is_some_and(|what| !what.tell()),
            "a second telling is seen"
        );
        // Free to its owner: the first word's part of a block, or the second's.
        assert!(maps.map().clear(100, 104) && maps.map().clear(64 * 3, 64 * 3 + 4));
        for (granule, size) in [(100, 64), (98, 64), (103, 64), (64 * 3 - 2, 64), (64 * 3, 16)] {
            assert!(
                !free(&mut gathered, &maps, BASE + granule * GRANULE, size, &mut told),
                "{granule}"
            );
        }
    }

    #[test]
    fn what_is_elsewhere_is_not_gathered() {
        if CHECKED {
            return;
        }
        let maps = Maps::new();
        let (mut gathered, mut told) = (Gathered::NONE, 0);
        assert!(free(&mut gathered, &maps, BASE + LINE, 16, &mut told));
        for (offset, size, why) in [
            (LINE - 16, 16, "before the line"),
            (LINE - 1, 16, "before it, where no granule begins"),
            (LINE - 1, 1_024, "the same"),
            (LINE + 24, 16, "no granule begins there"),
            (2 * LINE - 8, 16, "at the line's end"),
            (2 * LINE, 16, "behind it"),
            (2 * LINE - 64, 65, "reaches out of it"),
            (2 * LINE - 960, 1_024, "the same"),
        ] {
            assert!(!gathered.add(BASE + offset, behind(size)), "{offset} {size}: {why}");
        }
        for (offset, size, why) in [
            (LINE - 16, 16, "before the line"),
            (2 * LINE + 24, 16, "no granule begins there"),
            (3 * LINE, 16, "behind the next"),
        ] {
            let tell = |_| unreachable!("{offset} {size}: {why}");
            assert!(
                !gathered.add_next(BASE + offset, behind(size), tell),
                "{offset} {size}: {why}"
            );
        }
        assert!(gathered.add(BASE + 2 * LINE - 64, behind(64)) && gathered.add(BASE + 2 * LINE - 1_088, behind(1_024)));
        assert!(gathered
            .take()
            .is_some_and(|what| what.bytes() == 16 + 64 + 1_024 && what.tell()));
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
            (BASE + LINE - 64, 500),
            (BASE + LINE, 16),
            (BASE + 3 * LINE, 16),
        ] {
            assert!(!free(&mut gathered, &maps, addr, size, &mut told));
        }
        maps.1.store(0, Ordering::Relaxed);
        assert!(free(&mut gathered, &maps, BASE + LINE - 64, 500, &mut told));
        assert_eq!(told, 16 + 64, "what came before was told as ever");
    }
}
