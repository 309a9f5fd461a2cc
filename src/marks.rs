//! Which chunks of an area have been used of late, and which may have pages in memory: three bitmaps, a bit a chunk. And
//! of chunks that have aged beside live blocks, which pages those kept.
//!
//! An interval ends when the heap says so (`age`). A chunk that was touched neither in the interval that ends nor in
//! the one before is *aged*: no step has used it for some time. Owner only; plain memory.

/// Three rows of words: touched in this interval, touched in the last one, perhaps resident.
#[derive(Clone, Copy)]
pub struct Marks {
    words: *mut u64,
    /// Words of a row.
    row: usize,
}

const TOUCHED: usize = 0;
const OLD: usize = 1;
const DIRTY: usize = 2;

impl Marks {
    /// Rows for no chunk.
    pub const NONE: Marks = Marks {
        words: core::ptr::null_mut(),
        row: 0,
    };

    /// Three rows of `row` words each that begin at `words`.
    ///
    /// # Safety
    /// The words are committed, valid, and this heap's alone while the value is in use.
    pub const unsafe fn new(words: *mut u64, row: usize) -> Marks {
        Marks { words, row }
    }

    #[inline]
    fn word(&mut self, which: usize, index: usize) -> &mut u64 {
        // SAFETY: `index` is below `row` for every chunk of the area, so the word is one of those promised to `new`.
        unsafe { &mut *self.words.add(which.wrapping_mul(self.row).wrapping_add(index)) }
    }

    /// Marks chunks `[first, last]` touched and dirty; how many were clean, or quiet.
    #[inline]
    pub fn touch(&mut self, first: usize, last: usize) -> usize {
        let (mut at, mut clean) = (first, 0usize);
        if first == last && self.is_recent(at) {
            return 0;
        }
        while at <= last {
            let count = (64 - at % 64).min(last.wrapping_sub(at).wrapping_add(1));
            let mask = crate::layout::low_mask(at % 64, count);
            let recent = *self.word(TOUCHED, at / 64) | *self.word(OLD, at / 64);
            *self.word(TOUCHED, at / 64) |= mask;
            let dirty = self.word(DIRTY, at / 64);
            let new = mask & !(*dirty & recent);
            if new != 0 {
                clean = clean.wrapping_add(new.count_ones() as usize);
                *dirty |= mask;
            }
            at = at.wrapping_add(count);
        }
        clean
    }

    /// Marks those of eight chunks touched that may have pages in memory; `first`, a multiple of eight, is the first.
    pub fn touch_dirty(&mut self, first: usize) {
        let dirty = *self.word(DIRTY, first / 64) & 0xFF << (first % 64);
        *self.word(TOUCHED, first / 64) |= dirty;
    }

    /// Whether touching the chunk again would change nothing: what was touched is dirty.
    #[inline]
    fn is_recent(&mut self, chunk: usize) -> bool {
        *self.word(TOUCHED, chunk / 64) >> (chunk % 64) & 1 == 1
    }

    /// How many of the first `chunks` chunks may have pages in memory.
    pub fn count_dirty(&mut self, chunks: usize) -> usize {
        let words = 0..chunks.div_ceil(64);
        words.map(|index| self.word(DIRTY, index).count_ones() as usize).sum()
    }

    /// Whether the chunk may have pages in memory.
    pub fn is_dirty(&mut self, chunk: usize) -> bool {
        *self.word(DIRTY, chunk / 64) >> (chunk % 64) & 1 == 1
    }

    /// Whether the chunk may have pages in memory and was touched in neither interval.
    pub fn is_aged(&mut self, chunk: usize) -> bool {
        let recent = *self.word(TOUCHED, chunk / 64) | *self.word(OLD, chunk / 64);
        self.is_dirty(chunk) && recent >> (chunk % 64) & 1 == 0
    }

    /// Notes that the chunk's pages were given back.
    pub fn clean(&mut self, chunk: usize) {
        let mask = !(1 << (chunk % 64));
        *self.word(DIRTY, chunk / 64) &= mask;
        *self.word(TOUCHED, chunk / 64) &= mask;
    }

    /// Notes that the chunk's free pages were given back, and that it has others: it may have pages in memory, and was not
    /// touched since.
    pub fn quiet(&mut self, chunk: usize) {
        let mask = !(1 << (chunk % 64));
        *self.word(TOUCHED, chunk / 64) &= mask;
        *self.word(OLD, chunk / 64) &= mask;
    }

    /// Ends an interval for the first `chunks` chunks.
    pub fn age(&mut self, chunks: usize) {
        for index in 0..chunks.div_ceil(64) {
            *self.word(OLD, index) = core::mem::take(self.word(TOUCHED, index));
        }
    }
}

/// For each chunk of the small area which pages had a live block when its others were given back for their age: a bit each,
/// 0 where none had. Who looks at these alone finds what was freed since, and asks the system once for each page.
#[derive(Clone, Copy)]
pub struct Stayed {
    pages: *mut u16,
}

impl Stayed {
    /// Of no chunk.
    pub const NONE: Stayed = Stayed {
        pages: core::ptr::null_mut(),
    };

    /// One number a chunk from `pages` on.
    ///
    /// # Safety
    /// There is one for every chunk that is asked for: committed, valid, and this heap's alone while the value is in use.
    pub const unsafe fn new(pages: *mut u16) -> Stayed {
        Stayed { pages }
    }

    /// The pages of the chunk that stayed.
    pub fn get(self, chunk: usize) -> u16 {
        // SAFETY: the promise made to `new`.
        unsafe { self.pages.add(chunk).read() }
    }

    /// Notes which stayed.
    pub fn put(self, chunk: usize, pages: u16) {
        // A page of zeros that nobody wrote to needs no memory.
        if self.get(chunk) != pages {
            // SAFETY: the promise made to `new`.
            unsafe { self.pages.add(chunk).write(pages) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_aged_after_two_quiet_intervals() {
        let mut words = [0u64; 9];
        // SAFETY: nine words are three rows of three.
        let mut marks = unsafe { Marks::new(words.as_mut_ptr(), 3) };
        assert_eq!((marks.touch(60, 100), marks.touch(60, 130)), (41, 30));
        assert_eq!(marks.count_dirty(192), 71);
        assert!(!marks.is_dirty(59) && marks.is_dirty(60) && marks.is_dirty(130) && !marks.is_dirty(131));
        marks.age(192);
        assert!(!marks.is_aged(100));
        marks.age(192);
        assert!(marks.is_aged(100) && !marks.is_aged(59));
        marks.clean(100);
        assert!(!marks.is_aged(100) && marks.is_aged(101));
        assert_eq!((marks.touch(100, 101), marks.count_dirty(192)), (2, 71));
        assert_eq!(marks.touch(100, 101), 0);
        marks.quiet(100);
        assert!(marks.is_aged(100) && marks.is_dirty(100) && !marks.is_aged(101));
        assert_eq!((marks.touch(99, 101), marks.count_dirty(192)), (2, 71));
        assert!(!marks.is_aged(101));
        marks.age(192);
        marks.age(192);
        marks.touch_dirty(96);
        assert!((96..104).all(|chunk| marks.is_dirty(chunk) && !marks.is_aged(chunk)));
        assert!(marks.is_aged(95) && marks.is_aged(104));
        marks.touch_dirty(128);
        assert!(!marks.is_aged(130) && !marks.is_dirty(131), "what is clean stays so");
    }
}
