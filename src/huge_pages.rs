//! Huge pages under a segment: asked for where a long fresh span or a small area that grows fills them, and put in place of
//! small pages where all of those are in memory already.
//!
//! **Problem.** A step that walks some MiB needs an entry of the page table for every 4 KiB; but a huge page that is not full
//! holds memory for nothing. **Answer.** 2 MiB whose small pages are all in memory cost no more as one page. So an area's
//! ranges of 2 MiB are looked at from time to time, and those that are full are *joined*, contents and all. **What is left as
//! it was.** What goes back to the system and is touched again comes in small pages, and is joined again when all of them
//! are there. So nothing here makes a program hold more than it would, but for the last huge page of a small area of more
//! than 32 MiB: its rest goes back when free pages do.
//!
//! Joining is paid for: a pass over an area begins when enough work was done in it since the last, and each range of the pass
//! is joined when so much more was done, so that no frame or request has to wait for all of them. How much work pays for a range
//! the areas say. With each refusal in turn it is twice as much: it may be chance, or the system may be one that joins nothing.
//!
//! Where a part of a huge page goes back Linux takes it from the program at once and reuses it much later, when memory runs
//! short. So such a range is *split*: then that part is free for all.
//!
//! Owner only; a byte of plain memory a range. Wrong bytes cost time or memory, never contents: joining and splitting change
//! none.

use crate::layout::HUGE_PAGE;
use crate::sys;

/// A pass begins after this many times the work that pays for it.
const SETTLED: usize = 2;
/// Ranges looked at in one call, of which one is joined: a third of a millisecond to one.
const LOOKS: usize = 8;
/// So many refusals in turn make the pass wait longer.
const REFUSALS: u32 = 16;

/// What backs a range: small pages, as far as is known. Fresh tables read so.
const SMALL: u8 = 0;
const JOINED: u8 = 1;
/// Huge pages, asked for: what is touched there when none of it is in memory comes in one.
const ASKED: u8 = 2;
/// As asked for, until it goes back.
const ASKED_ONCE: u8 = 3;

/// What backs the ranges of one segment, in its owner's hands.
#[derive(Clone, Copy)]
pub struct HugePages {
    backing: *mut u8,
    base: *mut u8,
}

/// Where the pass over an area stands.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Work done since the last pass ended or the last range was joined, in the area's own measure.
    pub worked: usize,
    /// The range to look at next; 0 between passes.
    next: usize,
    /// Refusals in turn.
    refusals: u32,
}

impl Pass {
    /// Nothing done.
    pub const NEW: Pass = Pass {
        worked: 0,
        next: 0,
        refusals: 0,
    };

    /// Whether it is time to go on, where `each` is the work that pays for one range of an area of so many bytes; for twice
    /// as much with each refusal.
    #[inline]
    pub fn is_due(&self, each: usize, bytes: usize) -> bool {
        let paid = if self.next == 0 {
            (bytes / HUGE_PAGE).max(1).wrapping_mul(SETTLED)
        } else {
            1
        };
        self.worked >> self.refusals > each.wrapping_mul(paid)
    }
}

impl HugePages {
    /// Of no segment.
    pub const NONE: HugePages = HugePages {
        backing: core::ptr::null_mut(),
        base: core::ptr::null_mut(),
    };

    /// One byte a range at `backing`, for the ranges from `base` on.
    ///
    /// # Safety
    /// `base` is a multiple of `HUGE_PAGE`. There is a byte for every range that is named later: committed, zero in a new
    /// segment, and this heap's alone while the value is in use.
    pub const unsafe fn new(backing: *mut u8, base: *mut u8) -> HugePages {
        HugePages { backing, base }
    }

    /// Asks for huge pages for the inside of fresh memory, whenever it is touched.
    ///
    /// # Safety
    /// The bytes are committed memory of the segment.
    pub unsafe fn ask(self, p: *mut u8, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.ask_as(ASKED, p, bytes) }
    }

    /// As `ask`, for the first touch only: what goes back comes again in small pages.
    ///
    /// # Safety
    /// As `ask`.
    pub unsafe fn ask_once(self, p: *mut u8, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.ask_as(ASKED_ONCE, p, bytes) }
    }

    unsafe fn ask_as(self, backing: u8, p: *mut u8, bytes: usize) {
        let (first, last) = self.ranges_inside(p, bytes);
        if last > first {
            // SAFETY: the ranges are among the caller's bytes.
            unsafe { sys::advise_huge(self.range(first), last.wrapping_sub(first).wrapping_mul(HUGE_PAGE)) };
            (first..last).for_each(|range| self.note(range, backing));
        }
    }

    /// Bytes from `p` on that came with the memory before it, in one huge page that was asked for once.
    pub fn came_along(self, p: *mut u8) -> usize {
        let offset = self.offset(p);
        match offset % HUGE_PAGE {
            0 => 0,
            _ if self.backing(offset / HUGE_PAGE) != ASKED_ONCE => 0,
            used => HUGE_PAGE.wrapping_sub(used),
        }
    }

    /// Notes that these pages went back.
    ///
    /// # Safety
    /// The bytes are committed memory of the segment.
    pub unsafe fn gone(self, p: *mut u8, bytes: usize) {
        let (first, last) = self.ranges_inside(p, bytes);
        let start = self.offset(p) / HUGE_PAGE;
        let end = self.offset(p).wrapping_add(bytes).div_ceil(HUGE_PAGE);
        for range in start..end {
            let backing = self.backing(range);
            let is_whole = range >= first && range < last;
            if backing == SMALL || (backing == ASKED && is_whole) {
                continue;
            }
            if !is_whole || backing == ASKED_ONCE {
                // SAFETY: what has huge pages is committed memory of the segment, the whole range.
                unsafe { sys::split(self.range(range), HUGE_PAGE) };
            }
            self.note(range, SMALL);
        }
    }

    /// Joins the next full range of an area, if one is near. `pass` is that area's.
    ///
    /// # Safety
    /// The bytes, which are the area's, are committed memory of the segment.
    #[cold]
    #[inline(never)]
    pub unsafe fn join(self, pass: &mut Pass, p: *mut u8, bytes: usize) {
        let (first, last) = self.ranges_inside(p, bytes);
        let first = pass.next.max(first);
        for range in first..last.min(first.wrapping_add(LOOKS)) {
            pass.next = range.wrapping_add(1);
            if self.backing(range) != SMALL {
                continue;
            }
            // SAFETY: the range is among the caller's bytes.
            let resident = unsafe { sys::resident(self.range(range), HUGE_PAGE) };
            if resident != HUGE_PAGE {
                continue;
            }
            // SAFETY: as above.
            if unsafe { sys::join(self.range(range), HUGE_PAGE) } {
                self.note(range, JOINED);
                pass.refusals = 0;
            } else {
                pass.refusals = pass.refusals.wrapping_add(1).min(REFUSALS);
            }
            pass.worked = 0;
            break;
        }
        if pass.next.max(first) >= last {
            (pass.worked, pass.next) = (0, 0);
        }
    }

    fn backing(self, range: usize) -> u8 {
        // SAFETY: the promise made to `new`.
        unsafe { self.backing.add(range).read() }
    }

    fn note(self, range: usize, backing: u8) {
        // SAFETY: the promise made to `new`.
        unsafe { self.backing.add(range).write(backing) };
    }

    fn offset(self, p: *mut u8) -> usize {
        p.addr().wrapping_sub(self.base.addr())
    }

    fn range(self, range: usize) -> *mut u8 {
        self.base.wrapping_add(range.wrapping_mul(HUGE_PAGE))
    }

    /// The first of the ranges that are wholly among these bytes, and the one behind the last.
    fn ranges_inside(self, p: *mut u8, bytes: usize) -> (usize, usize) {
        let offset = self.offset(p);
        (offset.div_ceil(HUGE_PAGE), offset.wrapping_add(bytes) / HUGE_PAGE)
    }
}

#[cfg(all(
    test,
    target_os = "linux",
    target_pointer_width = "64",
    not(any(loom, stepalloc_no_sys, stepalloc_small_space))
))]
#[path = "huge_pages_tests.rs"]
mod tests;
