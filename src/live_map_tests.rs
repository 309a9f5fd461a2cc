//! The maps of one segment against two rows of flags: programs of takes, frees by owner and others, folds and searches,
//! shrunk by proptest where they fail.

use super::*;
use proptest::prelude::*;

const WORDS: usize = 4;
const GRANULES: usize = WORDS * WORD_GRANULES;

struct Model {
    live_words: Vec<AtomicU64>,
    remote_words: Vec<AtomicU64>,
    live: [bool; GRANULES],
    remote: [bool; GRANULES],
}

impl Model {
    fn new() -> Model {
        let zeros = || (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Model {
            live_words: zeros(),
            remote_words: zeros(),
            live: [false; GRANULES],
            remote: [false; GRANULES],
        }
    }

    fn map(&self) -> LiveMap {
        // SAFETY: both vectors outlive the map, and only their granules are asked about.
        unsafe { LiveMap::new(self.live_words.as_ptr(), self.remote_words.as_ptr()) }
    }

    fn fold(&mut self, word: usize) {
        for granule in word * WORD_GRANULES..(word + 1) * WORD_GRANULES {
            self.live[granule] &= !self.remote[granule];
            self.remote[granule] = false;
        }
    }

    fn fold_all(&mut self) {
        self.map().count(WORDS);
        (0..WORDS).for_each(|word| self.fold(word));
    }

    fn all_live(&self, start: usize, end: usize) -> bool {
        (start..end).all(|granule| self.live[granule] && !self.remote[granule])
    }

    fn first(&self, start: usize, limit: usize, live: bool) -> usize {
        (start..limit)
            .find(|&granule| self.live[granule] == live)
            .unwrap_or(limit)
    }

    /// Every word agrees; the maps may have folded more than the model, which then folds that too.
    fn check(&mut self) {
        for word in 0..WORDS {
            if self.remote_words[word].load(Ordering::Relaxed) == 0 {
                self.fold(word);
            }
            for bit in 0..WORD_GRANULES {
                let is = |words: &[AtomicU64]| words[word].load(Ordering::Relaxed) >> bit & 1 == 1;
                let granule = word * WORD_GRANULES + bit;
                assert_eq!(is(&self.live_words), self.live[granule], "live {granule}");
                assert_eq!(is(&self.remote_words), self.remote[granule], "remote {granule}");
                let peeked = self.map().peek(word) >> bit & 1 == 1;
                assert_eq!(peeked, self.live[granule] && !self.remote[granule], "peek {granule}");
            }
        }
    }

    fn step(&mut self, op: u8, a: u8, b: u8, c: u8) {
        let start = a as usize;
        let len = if c & 1 == 0 { 1 + b as usize % 8 } else { 1 + b as usize };
        let end = (start + len).min(GRANULES);
        assert_eq!(
            self.map().is_live(start, end),
            self.all_live(start, end),
            "{start} to {end}"
        );
        match op % 8 {
            0 | 1 => {
                self.fold_all();
                // Where all of it is free, as a taker has made sure.
                if (start..end).all(|granule| !self.live[granule]) {
                    self.map().set(start, end);
                    self.live[start..end].fill(true);
                }
            }
            2 if self.all_live(start, end) => {
                assert!(self.map().clear(start, end));
                self.live[start..end].fill(false);
            }
            2 if end - start <= WORD_GRANULES && c & 2 == 0 => {
                // Part of it is free. What is left is undefined, so only the answer counts; the words are put back.
                let before: Vec<u64> = self
                    .live_words
                    .iter()
                    .map(|word| word.load(Ordering::Relaxed))
                    .collect();
                assert!(!self.map().clear(start, end), "a double free is told");
                for (word, bits) in self.live_words.iter().zip(before) {
                    word.store(bits, Ordering::Relaxed);
                }
            }
            3 if self.all_live(start, end) => {
                assert!(self.map().free_remote(start, end));
                self.remote[start..end].fill(true);
                assert!(!self.map().free_remote(start, end), "a double free is told");
            }
            4 if self.all_live(start, end) && end - start <= WORD_GRANULES => {
                let live = by_address(&self.map(), 3 << 20);
                let (first, last) = ((3 << 20) + start * GRANULE, (3 << 20) + end * GRANULE - 1);
                // SAFETY: the map holds these granules, and this thread owns it.
                assert!(unsafe { clear_short(live, first, last - first) });
                self.live[start..end].fill(false);
            }
            4 if end - start <= WORD_GRANULES => {
                // Part of it is free; freed remotely and not folded counts as live on this path. As above.
                let before: Vec<u64> = self
                    .live_words
                    .iter()
                    .map(|word| word.load(Ordering::Relaxed))
                    .collect();
                let live = by_address(&self.map(), 3 << 20);
                let (first, last) = ((3 << 20) + start * GRANULE, (3 << 20) + end * GRANULE - 1);
                // SAFETY: as above.
                let done = unsafe { clear_short(live, first, last - first) };
                assert_eq!(
                    done,
                    self.live[start..end].iter().all(|&live| live),
                    "a double free is told"
                );
                for (word, bits) in self.live_words.iter().zip(before) {
                    word.store(bits, Ordering::Relaxed);
                }
            }
            5 => {
                let word = start % WORDS;
                let live = self.map().fold(word);
                self.fold(word);
                let count = self.live[word * WORD_GRANULES..][..WORD_GRANULES]
                    .iter()
                    .filter(|&&live| live)
                    .count();
                assert_eq!(live.count_ones() as usize, count);
            }
            6 => {
                self.fold_all();
                assert_eq!(self.map().first_live(start, end), self.first(start, end, true));
                assert_eq!(self.map().first_free(start, end), self.first(start, end, false));
                assert_eq!(self.map().count(WORDS), self.live.iter().filter(|&&live| live).count());
            }
            7 => self.search(
                start,
                1 + b as usize % 70,
                [1, 4, 16, 64, 256][c as usize % 5],
                8 << (c / 5 % 5),
            ),
            _ => {}
        }
        self.check();
    }

    /// The first place where the block fits is found, or one that the search may answer with before it.
    fn search(&mut self, from: usize, need: usize, align: usize, longest: usize) {
        self.fold_all();
        let found = self
            .map()
            .next_run(from, GRANULES, need, align, longest.max(need + align));
        let fits = |at: usize| at % align == 0 && at + need <= GRANULES && self.first(at, at + need, true) == at + need;
        let lowest = (from..GRANULES).find(|&at| fits(at));
        let Some((start, end)) = found else {
            assert_eq!(lowest, None, "{need} at {align} from {from}");
            return;
        };
        assert!(
            start >= from && end <= GRANULES && self.first(start, end, true) == end,
            "a live granule in the run"
        );
        let at = start.next_multiple_of(align);
        assert!(at + need <= end, "it does not fit");
        assert_eq!(
            Some(at),
            lowest,
            "not the first place for {need} at {align} from {from}"
        );
    }
}

proptest! {
    #[test]
    fn programs_agree_with_two_rows_of_flags(program in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..300)) {
        let mut model = Model::new();
        for (op, a, b, c) in program {
            model.step(op, a, b, c);
        }
    }
}
