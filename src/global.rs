//! The door that programs install: `GlobalAlloc` over the thread's heap and a backing.
//!
//! **Routing.** H7: where a block lives is decided by its address alone. In a scope requests go to the arena; outside,
//! small ones to the backing untouched, those of `simd_threshold` bytes with an alignment of 64, those of
//! `large_threshold` bytes to a span of the thread's heap. What the backing sees is a pure function of the caller's
//! layout, so that it is handed the same layout when it frees.
//!
//! Nothing here panics, formats, locks or allocates, in debug builds too; the one exit is `abort` after a static message.
//! The inline paths have no frame: every way out is a jump to a cold function.

use crate::align::{max, CACHE_LINE};
use crate::heap::{Bumped, FreedShort};
use crate::segment;
use crate::sync::{AtomicUsize, Ordering};
use crate::sys;
use crate::thread::{self, Outcome, Served, MISUSE};
use core::alloc::{GlobalAlloc, Layout};
use core::hint::black_box;
use core::ptr;
use std::alloc::System;

/// From this size a request outside scopes gets an alignment of 64, bytes. Measured against glibc: forcing it costs 2.3
/// to 4 times below 512 B, 1.3 at 1 KiB, 1.1 from 2 KiB on.
const SIMD_THRESHOLD: usize = 2048;
/// From this size a request outside scopes gets a span, bytes. At this size glibc begins to map, unmap and fault.
const LARGE_THRESHOLD: usize = 128 * 1024;

/// Up to this alignment, unless it is more than the size, `System` passes a request on without a frame.
const COMMON_ALIGN: usize = if cfg!(target_pointer_width = "64") { 16 } else { 8 };

/// A global allocator with arena scopes, over a backing allocator that serves what the arenas do not.
///
/// # Examples
/// ```
/// use stepalloc::{arena_scope, StepAlloc};
///
/// #[global_allocator]
/// static GLOBAL: StepAlloc = StepAlloc::new();
///
/// let total: usize = arena_scope(|| {
///     let words: Vec<String> = "all of this is bumped".split(' ').map(str::to_owned).collect();
///     words.iter().map(String::len).sum()
/// });
/// assert_eq!(total, 17);
/// assert!(stepalloc::is_installed());
/// ```
#[derive(Debug)]
pub struct StepAlloc<A = System> {
    backing: A,
    simd_threshold: usize,
    large_threshold: usize,
    reservation: usize,
}

impl StepAlloc<System> {
    /// Over std's `System` allocator.
    pub const fn new() -> StepAlloc<System> {
        StepAlloc::with_backing(System)
    }
}

impl Default for StepAlloc<System> {
    fn default() -> StepAlloc<System> {
        StepAlloc::new()
    }
}

impl<A> StepAlloc<A> {
    /// Over any allocator: it serves requests outside scopes below `large_threshold`, and all that the arenas cannot.
    ///
    /// # Examples
    /// ```
    /// use std::alloc::System;
    /// use stepalloc::StepAlloc;
    /// static GLOBAL: StepAlloc<System> = StepAlloc::with_backing(System).large_threshold(1 << 20);
    /// ```
    pub const fn with_backing(backing: A) -> StepAlloc<A> {
        StepAlloc {
            backing,
            simd_threshold: SIMD_THRESHOLD,
            large_threshold: LARGE_THRESHOLD,
            reservation: 0,
        }
    }

    /// From how many bytes on a request outside scopes gets 64-byte alignment; 2,048 unless set.
    ///
    /// In scopes that begins at 64 bytes, whatever is set here. `usize::MAX` passes every alignment on as asked.
    pub const fn simd_threshold(mut self, bytes: usize) -> StepAlloc<A> {
        self.simd_threshold = max(bytes, 1);
        self
    }

    /// From how many bytes on a request outside scopes gets a span of the thread's heap: 64-byte aligned, reused warm,
    /// grown in place; 131,072 unless set. `usize::MAX` sends all of them to the backing.
    pub const fn large_threshold(mut self, bytes: usize) -> StepAlloc<A> {
        self.large_threshold = max(bytes, 1);
        self
    }

    /// At most this many bytes of address space for all arenas of the process, for systems that charge for it; the
    /// default is 16 TiB, less where a limit is set. It must be at least 16 MiB to serve anyone, and is read when the
    /// first arena is made through this value; a segment is at most an eighth of it, or 1 GiB.
    pub const fn reservation(mut self, bytes: usize) -> StepAlloc<A> {
        self.reservation = max(bytes, 1);
        self
    }

    /// The layout that the backing gets for the caller's; size 0 counts as 1.
    #[inline(always)]
    fn backing_layout(&self, layout: Layout) -> Layout {
        let size = max(layout.size(), 1);
        let align = if size >= self.simd_threshold {
            max(layout.align(), CACHE_LINE)
        } else {
            layout.align()
        };
        // SAFETY: the alignment is a power of two. A size so near to `isize::MAX` that rounding to 64 passes it is kept
        // at the caller's alignment by the check.
        unsafe {
            if size > isize::MAX as usize - CACHE_LINE {
                return Layout::from_size_align_unchecked(size, layout.align());
            }
            Layout::from_size_align_unchecked(size, align)
        }
    }
}

/// Frees a block inside the reservation for which the others have no short way.
#[cold]
#[inline(never)]
fn dealloc_rest(addr: usize, size: usize) {
    if !thread::free_behind(addr, size) && thread::free_slow(addr, size) == Outcome::Misuse {
        sys::die(MISUSE);
    }
}

// What reads the thread's slot is generic: so it is compiled with the program, which is not moved in memory as a library
// may be, and the slot's address is a constant there, not a call.
impl<A: GlobalAlloc> StepAlloc<A> {
    /// Frees a block inside the reservation.
    #[cold]
    #[inline(never)]
    fn dealloc_inside(addr: usize, size: usize) {
        if !thread::free_near(addr, size) {
            Self::dealloc_theirs(addr, size);
        }
    }

    /// Frees a block inside the reservation that is another thread's, most likely.
    #[cold]
    #[inline(never)]
    fn dealloc_theirs(addr: usize, size: usize) {
        if !thread::free_beside(addr, size) {
            dealloc_rest(addr, size);
        }
    }

    // These take a layout's parts where a program's call has them, and the allocator last: so none has to be moved.

    /// Apart, so that a backing's own frame (`System` has one for large alignments) does not become that of `alloc`.
    #[inline(never)]
    unsafe fn alloc_backing(size: usize, align: usize, this: &Self) -> *mut u8 {
        // SAFETY: the caller's promise: they are a layout's.
        unsafe { this.backing.alloc(Layout::from_size_align_unchecked(size, align)) }
    }

    /// In a scope.
    #[cold]
    #[inline(never)]
    unsafe fn alloc_slow(size: usize, align: usize, this: &Self) -> *mut u8 {
        if let Some(again) = thread::alloc_again(size, align) {
            return again;
        }
        // SAFETY: the caller's promise.
        unsafe { Self::alloc_anew(size, align, this) }
    }

    /// Apart, so that its frame is not `alloc_slow`'s.
    #[inline(never)]
    unsafe fn alloc_anew(size: usize, align: usize, this: &Self) -> *mut u8 {
        let near = thread::alloc_near(size, align);
        if !near.is_null() {
            return near;
        }
        // SAFETY: the caller's promise: they are a layout's.
        let layout = unsafe { Layout::from_size_align_unchecked(size, align) };
        match this.serve(layout) {
            Served::Arena(p, _) => p,
            // SAFETY: the layout is the caller's, mapped; its size is not 0.
            Served::Backing => unsafe { this.backing.alloc(this.backing_layout(layout)) },
            Served::Nothing => ptr::null_mut(),
        }
    }

    /// In a scope.
    #[cold]
    #[inline(never)]
    unsafe fn alloc_zeroed_slow(&self, layout: Layout) -> *mut u8 {
        if let Some(p) = thread::alloc_again(layout.size(), layout.align()) {
            // SAFETY: a new block of this size.
            unsafe { p.write_bytes(0, layout.size()) };
            return p;
        }
        // SAFETY: the caller's promise.
        unsafe { self.alloc_zeroed_anew(layout) }
    }

    #[cold]
    #[inline(never)]
    unsafe fn alloc_zeroed_anew(&self, layout: Layout) -> *mut u8 {
        match self.serve(layout) {
            Served::Arena(p, dirty) => {
                // SAFETY: the block is new and at least `dirty` bytes long; behind them its memory was never used.
                unsafe { p.write_bytes(0, dirty) };
                p
            }
            // SAFETY: as in `alloc_slow`.
            Served::Backing => unsafe { self.backing.alloc_zeroed(self.backing_layout(layout)) },
            Served::Nothing => ptr::null_mut(),
        }
    }

    fn serve(&self, layout: Layout) -> Served {
        segment::limit_reservation(self.reservation);
        let size = max(layout.size(), 1);
        thread::alloc_slow(size, layout.align(), size >= self.large_threshold)
    }

    #[cold]
    #[inline(never)]
    unsafe fn dealloc_slow(&self, p: *mut u8, layout: Layout) {
        if !segment::contains(p.addr()) {
            // SAFETY: the backing made the block for the same mapped layout (H7).
            return unsafe { self.backing.dealloc(p, self.backing_layout(layout)) };
        }
        Self::dealloc_inside(p.addr(), layout.size());
    }

    #[inline(never)]
    unsafe fn realloc_slow(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new_size = max(new_size, 1);
        // SAFETY: `GlobalAlloc::realloc`'s caller promises that the new size makes a layout with this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if segment::contains(p.addr()) {
            if thread::resize(p.addr(), max(layout.size(), 1), new_size).is_some() {
                return p;
            }
            // SAFETY: the block and both layouts are the caller's.
            return unsafe { self.move_block(p, layout, new_layout) };
        }
        if layout.size() < self.large_threshold && new_size >= self.large_threshold {
            if let Served::Arena(to, _) = self.serve_span(new_layout) {
                // SAFETY: both blocks are live and as long as said; the old one is the backing's (H7).
                unsafe {
                    ptr::copy_nonoverlapping(p, to, layout.size());
                    self.backing.dealloc(p, self.backing_layout(layout));
                }
                return to;
            }
        }
        let (from, to) = (self.backing_layout(layout), self.backing_layout(new_layout));
        if from.align() == to.align() {
            // SAFETY: the backing made the block for `from`, and `to` differs from it in size only.
            return unsafe { self.backing.realloc(p, from, new_size) };
        }
        // The backing saw another alignment than it must see now: the block moves.
        // SAFETY: as above; the copy is as long as the shorter block.
        unsafe {
            let made = self.backing.alloc(to);
            if !made.is_null() {
                ptr::copy_nonoverlapping(p, made, layout.size().min(new_size));
                self.backing.dealloc(p, from);
            }
            made
        }
    }

    fn serve_span(&self, layout: Layout) -> Served {
        segment::limit_reservation(self.reservation);
        thread::alloc_span_slow(layout.size(), layout.align())
    }

    /// Allocates, copies and frees.
    unsafe fn move_block(&self, p: *mut u8, layout: Layout, new_layout: Layout) -> *mut u8 {
        // SAFETY: the new size is not 0, the old block is live and the caller's to give up.
        unsafe {
            let made = self.alloc(new_layout);
            if !made.is_null() {
                ptr::copy_nonoverlapping(p, made, layout.size().min(new_layout.size()));
                self.dealloc(p, layout);
            }
            made
        }
    }
}

// SAFETY: a block is handed out by the arena, which gives no byte to two live blocks (H1 to H5, the theorem), or by the
// backing, which is a GlobalAlloc; it is freed where it was made (H7) with the layout it was made with. Alignment and
// size are those asked or more. Nothing unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for StepAlloc<A> {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        match thread::with_heap(|heap| heap.bump(size, align)) {
            Bumped::Made(p) => p,
            // SAFETY: the layout is the caller's; its size is not 0; below both thresholds it is not mapped.
            Bumped::Outside if size.wrapping_sub(1) < self.small_outside() => unsafe {
                if align > COMMON_ALIGN || align > size {
                    return Self::alloc_backing(size, align, self);
                }
                self.backing.alloc(layout)
            },
            // SAFETY: the caller's promise.
            Bumped::Outside => unsafe { Self::alloc_anew(size, align, self) },
            // SAFETY: the caller's promise.
            Bumped::No => unsafe { Self::alloc_slow(size, align, self) },
        }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        let size = layout.size();
        match thread::with_heap(|heap| heap.free_short(p.addr(), size)) {
            FreedShort::Yes => {}
            FreedShort::Elsewhere if size.wrapping_sub(1) < self.small_outside() => {
                if segment::contains(p.addr()) {
                    return Self::dealloc_inside(p.addr(), size);
                }
                // SAFETY: the backing made the block (H7), and below both thresholds its layout is not mapped.
                unsafe { self.backing.dealloc(p, layout) }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.dealloc_slow(p, layout) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        match thread::with_heap(|heap| heap.bump(size, align)) {
            Bumped::Made(p) => {
                // SAFETY: a new block of this size.
                unsafe { p.write_bytes(0, size) };
                p
            }
            // SAFETY: as in `alloc`.
            Bumped::Outside if size.wrapping_sub(1) < self.small_outside() => unsafe {
                self.backing.alloc_zeroed(layout)
            },
            // SAFETY: the caller's promise.
            Bumped::Outside => unsafe { self.alloc_zeroed_anew(layout) },
            // SAFETY: the caller's promise.
            Bumped::No => unsafe { self.alloc_zeroed_slow(layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.realloc_slow(p, layout, new_size) }
    }
}

impl<A> StepAlloc<A> {
    /// Below this size less one a request outside scopes goes to the backing as it is.
    #[inline(always)]
    fn small_outside(&self) -> usize {
        crate::align::min(self.simd_threshold, self.large_threshold).wrapping_sub(1)
    }
}

/// Whether this program's global allocator is a [`StepAlloc`], perhaps inside a wrapper.
///
/// Found out once, by a request of one byte that the allocator recognises; later calls read the answer.
///
/// # Examples
/// ```
/// assert!(!stepalloc::is_installed()); // this program names no global allocator
/// ```
pub fn is_installed() -> bool {
    const NO: usize = 1;
    const YES: usize = 2;
    static ANSWER: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: every thread that asks finds the same answer.
    match ANSWER.load(Ordering::Relaxed) {
        NO => false,
        YES => true,
        _ => {
            let seen = thread::sees(|| {
                let layout = black_box(Layout::new::<u8>());
                // SAFETY: the layout has a size; what is handed out is handed back.
                unsafe {
                    let p = black_box(std::alloc::alloc(layout));
                    if !p.is_null() {
                        std::alloc::dealloc(p, layout);
                    }
                }
            });
            ANSWER.store(if seen { YES } else { NO }, Ordering::Relaxed);
            seen
        }
    }
}

/// Whether an arena, not the backing, made the block at `p`. For tests that count what was really served.
#[doc(hidden)]
pub fn in_arena(p: *const u8) -> bool {
    segment::contains(p.addr())
}
