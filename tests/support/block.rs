//! A block that knows what it holds: filled with a pattern of its own when made, verified whole when read or freed.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

/// A live block of some allocator. It goes to any thread; it is not freed by dropping it.
#[derive(Debug)]
pub struct Block {
    p: *mut u8,
    layout: Layout,
    pattern: u64,
}

// SAFETY: a block is owned memory, reached only through its one `Block`.
unsafe impl Send for Block {}

/// From 64 bytes on a block of an arena begins at a cache line, however it came to be that large.
pub fn check_line(p: *const u8, layout: Layout) {
    let at_a_line = p.addr() % 64 == 0;
    assert!(
        at_a_line || layout.size() < 64 || !stepalloc::in_arena(p),
        "{layout:?} at {p:?}, no line"
    );
}

impl Block {
    /// Makes a block and fills it with the pattern of `id`; `zeroed` asks for zeros and verifies them first.
    pub fn make(from: &impl GlobalAlloc, layout: Layout, id: u64, zeroed: bool) -> Block {
        assert_ne!(layout.size(), 0);
        // SAFETY: the size is not 0.
        let p = unsafe {
            if zeroed {
                from.alloc_zeroed(layout)
            } else {
                from.alloc(layout)
            }
        };
        assert!(!p.is_null(), "no memory for {layout:?}");
        assert_eq!(p.addr() % layout.align(), 0, "misaligned: {p:p} for {layout:?}");
        check_line(p, layout);
        let mut block = Block {
            p,
            layout,
            pattern: id.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        if zeroed {
            block.expect(0, layout.size(), 0);
        }
        block.fill(0);
        block
    }

    /// Its address, for questions.
    pub fn ptr(&self) -> *const u8 {
        self.p
    }

    /// What it was made with.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Writes the pattern, eight bytes over and over, from byte `from` (rounded down to a word) on.
    fn fill(&mut self, from: usize) {
        let size = self.layout.size();
        let from = from & !7;
        let word = self.pattern.to_ne_bytes();
        let mut done = (size - from).min(8);
        // SAFETY: all writes are inside the block; source and destination of the copies do not overlap. Doubling keeps
        // it one `memcpy` for each power of two, quick in debug builds too.
        unsafe {
            let start = self.p.add(from);
            ptr::copy_nonoverlapping(word.as_ptr(), start, done);
            while done < size - from {
                let count = done.min(size - from - done);
                ptr::copy_nonoverlapping(start, start.add(done), count);
                done += count;
            }
        }
    }

    /// Panics unless the first `len` bytes are `pattern` over and over.
    fn expect(&self, at: usize, len: usize, pattern: u64) {
        // SAFETY: the block is live and initialised that far.
        let bytes = unsafe { std::slice::from_raw_parts(self.p.add(at), len) };
        let first = len.min(8);
        let same = bytes[..first] == pattern.to_ne_bytes()[..first] && bytes[..len - first] == bytes[first..];
        let (p, layout) = (self.p, self.layout);
        assert!(same, "the content of {p:p}, {layout:?}, has changed");
    }

    /// Panics unless every byte is as it was written.
    pub fn verify(&self) {
        self.expect(0, self.layout.size(), self.pattern);
    }

    /// Resizes it, verifies what it kept, and fills the rest.
    pub fn resize(&mut self, with: &impl GlobalAlloc, size: usize) {
        self.verify();
        let kept = self.layout.size().min(size);
        // SAFETY: the block was made by `with` for this layout; the new size is not 0.
        let p = unsafe { with.realloc(self.p, self.layout, size) };
        assert!(!p.is_null(), "no memory to resize {:?} to {size}", self.layout);
        self.p = p;
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
        assert_eq!(
            p.addr() % self.layout.align(),
            0,
            "misaligned: {p:p} for {:?}",
            self.layout
        );
        check_line(p, self.layout);
        self.expect(0, kept, self.pattern);
        self.fill(kept);
    }

    /// Verifies it, overwrites it, and frees it.
    pub fn free(self, to: &impl GlobalAlloc) {
        self.verify();
        // SAFETY: the block was made by `to` for this layout, and nobody else has it.
        unsafe {
            self.p.write_bytes(0xdf, self.layout.size());
            to.dealloc(self.p, self.layout);
        }
    }
}
