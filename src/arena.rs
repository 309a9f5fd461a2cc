//! The explicit arena: allocation by moving a position, freed all at once by moving it back.
//!
//! ```text
//!   block in use        current block                                  spare blocks
//!  +--------------+    +-----------+---------+------+-------------+    +--------+
//!  | full         |    | handed out|  room   | known zero ...     |    | warm   |
//!  +--------------+    +-----------+---------+------+-------------+    +--------+
//!                       floor ^    ^ position ^ end
//! ```
//!
//! The problem: a training step allocates thousands of temporaries and frees them together. The invariants below make
//! one move of `position` stand for all those frees, and the blocks stay mapped, so that from the second step on
//! nothing asks the system and no page faults. `blocks` owns the memory, `marks` decides which checkpoints still
//! hold, `values` makes typed values of it, `scope` is the safe form of a checkpoint, `owned` runs `Drop`.
//!
//! What it cannot do: free one block in the middle. Only the newest block can be given back or grown in place.
//!
//! Invariants:
//! - **A1** `[position, end)` is committed memory of the current block and in no block handed out and not yet taken
//!   back. Without a current block both are null. So every block handed out is disjoint from every other.
//! - **A2** Blocks of the list below `in_use` hold what was handed out; they stay where they are until `reset`,
//!   `reset_to`, the end of a scope, or drop.
//! - **A3** `position` is a multiple of the arena's alignment.
//! - **A4** Freeing, shrinking and growing in place never act on a block that begins below `floor`, the position of
//!   the newest live checkpoint or scope (else the start of the current block). So going back to it finds everything
//!   below as it was.
//! - **A5** `filled + (position - start of the current block)` is the arena's `used_bytes`, never above `max_bytes`;
//!   `end` is low enough that the fast path cannot pass the limit.
//!
//! Threads: an arena may move between threads and is used by one at a time (`Send`, not `Sync`).

mod blocks;
mod marks;
mod owned;
mod scope;
mod values;

#[cfg(feature = "allocator-api2")]
mod allocator_api2;

pub use marks::{Checkpoint, CheckpointError};
pub use owned::ArenaBox;
pub use scope::Scope;

use crate::align::{max, min, CACHE_LINE};
use crate::error::{self, AllocError};
use crate::guard;
use blocks::{Blocks, Source};
use core::alloc::Layout;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::ptr::{self, NonNull};
use marks::{Marks, Place};

/// The largest size and alignment that the fast path takes, bytes: it adds them without looking for a carry (B4).
const MOST_FAST: usize = 1 << 30;

/// What a block reserves unless told otherwise, bytes: the C library's 64 MiB. Only what is used is committed.
const BLOCK_BYTES: usize = 64 << 20;

/// The smallest alignment of an arena, bytes: the size of a pointer, so that most values need no arithmetic to align.
const LEAST_ALIGN: usize = 8;

/// The largest alignment of an arena, bytes: the smallest page, where every block begins. Single requests may ask for
/// more.
const MOST_ALIGN: usize = 4096;

/// A growing arena that frees everything at once.
///
/// Allocation moves a position: O(1), and the memory stays the arena's until [`reset`](Arena::reset), the end of a
/// [`scope`](Arena::scope), [`reset_to`](Arena::reset_to) or drop. Every block begins at a multiple of 64 unless the
/// arena is built with another alignment. Memory comes from the system in blocks of 64 MiB that are reserved whole
/// and committed as needed; `new` asks for none. When an arena goes away its memory goes back to the system, but for at
/// most 1 MiB in the process that waits for the next arena.
///
/// Values put into the arena by reference are not dropped; [`alloc_boxed`](Arena::alloc_boxed) runs `Drop`.
///
/// # Examples
/// ```
/// use stepalloc::Arena;
///
/// let mut arena = Arena::new();
/// let mut sum = 0.0;
/// for step in 0..3 {
///     arena.scope(|step_arena| {
///         let x = step_arena.alloc_slice_fill(1000, step as f32);
///         sum += x.iter().sum::<f32>();
///     });
/// }
/// assert_eq!(sum, 3000.0);
/// assert_eq!(arena.stats().used_bytes, 0);
/// ```
// The fields of the fast paths come first, in this order, so that they share two cache lines.
#[repr(C)]
pub struct Arena {
    /// The next free byte (A1).
    position: Cell<*mut u8>,
    /// The end of what the fast path may hand out (A1, A5).
    end: Cell<*mut u8>,
    /// The arena's alignment.
    align: usize,
    /// The highest position since the current block or `filled` last changed.
    high: Cell<*mut u8>,
    /// Which checkpoints hold, and the floor of A4.
    marks: Marks,
    /// How many blocks of the list are in use (A2).
    in_use: Cell<usize>,
    /// The start of the current block; null without one.
    start: Cell<*mut u8>,
    /// Bytes in use in all blocks but the current one.
    filled: Cell<usize>,
    /// The most that `used_bytes` was before the current block or `filled` last changed.
    peak: Cell<usize>,
    /// Index of the current block; meaningless without one.
    current: Cell<usize>,
    max_bytes: usize,
    blocks: RefCell<Blocks>,
}

// SAFETY: the pointers lead to memory that the arena owns; moving it moves no borrow, since every reference into it
// borrows the arena; and values left behind in it are never touched again.
unsafe impl Send for Arena {}

/// How much memory a reset keeps for the next use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retain {
    /// Everything: the next step faults no page and makes no system call.
    #[default]
    All,
    /// At most so many committed bytes, rounded down to whole pages.
    UpTo(usize),
    /// Nothing: all blocks go back to the system.
    None,
}

/// The numbers of one arena.
///
/// `used_bytes <= committed_bytes <= reserved_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ArenaStats {
    /// Bytes handed out now, with the padding of alignment.
    pub used_bytes: usize,
    /// The most that `used_bytes` ever was.
    pub peak_bytes: usize,
    /// Bytes that can be used without asking the system: in use, kept for the next step, or committed ahead.
    pub committed_bytes: usize,
    /// Bytes of address space held.
    pub reserved_bytes: usize,
    /// Blocks held, in use and spare.
    pub block_count: usize,
}

/// The settings of an [`Arena`] that is not the default one.
///
/// # Examples
/// ```
/// use stepalloc::{AllocError, Arena};
///
/// let arena = Arena::builder().block_size(1 << 20).align(16).max_bytes(64).build();
/// assert!(arena.try_alloc_slice_fill(64, 0u8).is_ok());
/// assert_eq!(arena.try_alloc(0u8), Err(AllocError::LimitReached));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ArenaBuilder {
    block_size: usize,
    align: usize,
    max_bytes: usize,
    source: Source,
}

impl ArenaBuilder {
    /// Sets what a block reserves, in bytes (64 MiB); rounded up to whole pages. A larger request gets a larger block.
    pub fn block_size(mut self, bytes: usize) -> ArenaBuilder {
        self.block_size = bytes;
        self
    }

    /// Sets the alignment of every block in bytes (64): a power of two up to 4096; below 8 it counts as 8.
    pub fn align(mut self, align: usize) -> ArenaBuilder {
        self.align = align;
        self
    }

    /// Sets the most that `used_bytes` may become; a request beyond it is refused with `LimitReached`.
    ///
    /// Committed memory stays within the limit rounded up to pages, save for what is lost at the ends of full blocks.
    pub fn max_bytes(mut self, bytes: usize) -> ArenaBuilder {
        self.max_bytes = bytes;
        self
    }

    /// Takes whole blocks from the global allocator, not from the system.
    ///
    /// This is what happens anyway where the system offers no reservations.
    pub fn blocks_from_global(mut self) -> ArenaBuilder {
        self.source = Source::Heap;
        self
    }

    /// Makes the arena; no memory is asked for yet.
    ///
    /// # Errors
    /// `BadLayout` if the alignment is not a power of two or above 4096.
    pub fn try_build(self) -> Result<Arena, AllocError> {
        if !self.align.is_power_of_two() || self.align > MOST_ALIGN {
            return Err(AllocError::BadLayout);
        }
        Ok(Arena {
            position: Cell::new(ptr::null_mut()),
            end: Cell::new(ptr::null_mut()),
            align: max(self.align, LEAST_ALIGN),
            marks: Marks::new(),
            high: Cell::new(ptr::null_mut()),
            start: Cell::new(ptr::null_mut()),
            filled: Cell::new(0),
            peak: Cell::new(0),
            in_use: Cell::new(0),
            current: Cell::new(0),
            max_bytes: self.max_bytes,
            blocks: RefCell::new(Blocks::new(self.source, self.block_size)),
        })
    }

    /// Makes the arena; no memory is asked for yet.
    ///
    /// # Panics
    /// If the alignment is not a power of two or above 4096.
    #[track_caller]
    pub fn build(self) -> Arena {
        match self.try_build() {
            Ok(arena) => arena,
            Err(_) => panic!("the alignment of an arena must be a power of two, at most 4096"),
        }
    }
}

/// Memory from the slow path.
struct Fresh {
    block: NonNull<u8>,
    /// From here on the memory is known to be zero.
    zero_from: usize,
}

impl Arena {
    /// Makes an arena with blocks of 64 MiB and 64-byte alignment; no memory is asked for yet.
    pub fn new() -> Arena {
        Arena::builder().build()
    }

    /// Makes an arena with blocks of `bytes` (`ac_arena_init`); no memory is asked for yet.
    pub fn with_block_size(bytes: usize) -> Arena {
        Arena::builder().block_size(bytes).build()
    }

    /// Makes an arena whose every block begins at a multiple of `align`.
    ///
    /// # Panics
    /// If the alignment is not a power of two or above 4096.
    #[track_caller]
    pub fn with_align(align: usize) -> Arena {
        Arena::builder().align(align).build()
    }

    /// Starts with the default settings.
    pub fn builder() -> ArenaBuilder {
        ArenaBuilder {
            block_size: BLOCK_BYTES,
            align: CACHE_LINE,
            max_bytes: usize::MAX,
            source: Source::preferred(),
        }
    }

    /// What every block of this arena is aligned to at least, in bytes.
    pub fn align(&self) -> usize {
        self.align
    }

    /// The limit of `used_bytes`, if one was set.
    pub fn max_bytes(&self) -> Option<usize> {
        (self.max_bytes != usize::MAX).then_some(self.max_bytes)
    }

    /// Takes an uninitialised block: `ac_arena_alloc` with a layout.
    ///
    /// The block stays valid until the arena is reset below it or dropped. A layout of size zero takes nothing.
    ///
    /// # Errors
    /// `BadLayout` if size and padding pass `isize::MAX`, `LimitReached` at `max_bytes`, `OutOfMemory` if the system
    /// refuses. The arena is then as before.
    ///
    /// # Examples
    /// ```
    /// use std::alloc::Layout;
    ///
    /// let arena = stepalloc::Arena::new();
    /// let block = arena.try_alloc_layout(Layout::new::<u8>()).unwrap();
    /// assert_eq!(block.addr().get() % 64, 0);
    /// assert!(arena.try_alloc_layout(Layout::array::<u8>(isize::MAX as usize).unwrap()).is_err());
    /// ```
    #[inline]
    pub fn try_alloc_layout(&self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        if layout.size() == 0 {
            return Ok(self.dangling(layout.align()));
        }
        self.bump(layout.size(), layout.align())
    }

    /// Takes an uninitialised block; see [`try_alloc_layout`](Arena::try_alloc_layout).
    ///
    /// # Panics
    /// Where `try_alloc_layout` gives an error; without memory it ends the process as std's collections do.
    #[inline]
    #[track_caller]
    pub fn alloc_layout(&self, layout: Layout) -> NonNull<u8> {
        match self.try_alloc_layout(layout) {
            Ok(block) => block,
            Err(refused) => error::refuse(refused, layout),
        }
    }

    /// Takes a zeroed block; memory that was never used is not touched for it.
    ///
    /// # Errors
    /// As [`try_alloc_layout`](Arena::try_alloc_layout).
    ///
    /// # Examples
    /// ```
    /// use std::alloc::Layout;
    ///
    /// let arena = stepalloc::Arena::new();
    /// let block = arena.try_alloc_layout_zeroed(Layout::new::<u64>()).unwrap();
    /// // SAFETY: the block is 8 bytes of zeros.
    /// assert_eq!(unsafe { block.cast::<u64>().read() }, 0);
    /// ```
    #[inline]
    pub fn try_alloc_layout_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        let (size, align) = (layout.size(), layout.align());
        if size == 0 {
            return Ok(self.dangling(align));
        }
        let (block, used) = match self.bump_fast(size, align) {
            Some(block) => (block, size),
            None => {
                let fresh = self.bump_slow(size, align)?;
                let used = fresh.zero_from.saturating_sub(fresh.block.addr().get());
                (fresh.block, min(used, size))
            }
        };
        // SAFETY: `used <= size`, and the block of `size` bytes is ours alone (A1). Beyond `used` it is zero (B2).
        unsafe { block.as_ptr().write_bytes(0, used) };
        Ok(block)
    }

    /// Takes a zeroed block; see [`try_alloc_layout_zeroed`](Arena::try_alloc_layout_zeroed).
    ///
    /// # Panics
    /// Where `try_alloc_layout_zeroed` gives an error; without memory it ends the process as std's collections do.
    #[inline]
    #[track_caller]
    pub fn alloc_layout_zeroed(&self, layout: Layout) -> NonNull<u8> {
        match self.try_alloc_layout_zeroed(layout) {
            Ok(block) => block,
            Err(refused) => error::refuse(refused, layout),
        }
    }

    /// Gives the newest block back; any other waits for the arena to be reset.
    ///
    /// A block made before the newest checkpoint or scope waits too.
    ///
    /// # Safety
    /// `block` is a live block of this arena with this `layout`, and nobody uses it afterwards: its bytes will be in
    /// another block.
    #[inline]
    pub unsafe fn dealloc(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 && self.is_newest(block, layout.size()) {
            self.note_high();
            self.position.set(self.with_addr(block.addr().get()));
        }
    }

    /// Makes a block larger: in place if it is the newest and there is room, else by copying it to a new one.
    ///
    /// # Errors
    /// As [`try_alloc_layout`](Arena::try_alloc_layout), and `BadLayout` if `new` is smaller than `old`; the block is
    /// then as before.
    ///
    /// # Safety
    /// `block` is a live block of this arena with layout `old`. On success it must not be used any more: the block
    /// returned takes its place.
    ///
    /// # Examples
    /// ```
    /// use std::alloc::Layout;
    ///
    /// let arena = stepalloc::Arena::new();
    /// let (small, large) = (Layout::new::<[u8; 100]>(), Layout::new::<[u8; 1000]>());
    /// let block = arena.alloc_layout(small);
    /// // SAFETY: the block was just made with this layout.
    /// let grown = unsafe { arena.grow(block, small, large) }.unwrap();
    /// assert_eq!(grown, block);
    /// ```
    pub unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<u8>, AllocError> {
        if new.size() < old.size() {
            return Err(AllocError::BadLayout);
        }
        let aligned = block.addr().get() & (new.align() - 1) == 0;
        if aligned && old.size() != 0 && self.is_newest(block, old.size()) {
            // Both are at most `isize::MAX` and the alignment is small, so neither sum wraps.
            let more = self.round_up(new.size()) - self.round_up(old.size());
            if more == 0 || self.extend(more) {
                return Ok(block);
            }
        }
        let moved = self.try_alloc_layout(new)?;
        // SAFETY: the caller vouches for `old.size()` bytes at `block`; the new block has at least as many and is
        // disjoint from every live one (A1).
        unsafe { ptr::copy_nonoverlapping(block.as_ptr(), moved.as_ptr(), old.size()) };
        Ok(moved)
    }

    /// Makes a block smaller, in place unless a larger alignment is asked for; only the newest gives bytes back.
    ///
    /// # Errors
    /// As [`try_alloc_layout`](Arena::try_alloc_layout), and `BadLayout` if `new` is larger than `old`; the block is
    /// then as before.
    ///
    /// # Safety
    /// As [`grow`](Arena::grow).
    pub unsafe fn shrink(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<u8>, AllocError> {
        if new.size() > old.size() {
            return Err(AllocError::BadLayout);
        }
        if block.addr().get() & (new.align() - 1) != 0 {
            let moved = self.try_alloc_layout(new)?;
            // SAFETY: as in `grow`, with the smaller size.
            unsafe { ptr::copy_nonoverlapping(block.as_ptr(), moved.as_ptr(), new.size()) };
            return Ok(moved);
        }
        if old.size() != 0 && self.is_newest(block, old.size()) {
            self.note_high();
            self.position
                .set(self.with_addr(block.addr().get() + self.round_up(new.size())));
        }
        Ok(block)
    }

    /// Makes room for `bytes` bytes of blocks, padding included, so that taking them makes no system call.
    ///
    /// Pages are still faulted in when they are first touched.
    ///
    /// # Errors
    /// `LimitReached` if they would pass `max_bytes`, `BadLayout` if they pass `isize::MAX`, `OutOfMemory` if the
    /// system refuses.
    ///
    /// # Examples
    /// ```
    /// let arena = stepalloc::Arena::new();
    /// arena.commit(10 << 20).unwrap();
    /// assert!(arena.stats().committed_bytes >= 10 << 20);
    /// ```
    pub fn commit(&self, bytes: usize) -> Result<(), AllocError> {
        if bytes > self.max_bytes - self.used() {
            return Err(AllocError::LimitReached);
        }
        if bytes > isize::MAX as usize {
            return Err(AllocError::BadLayout);
        }
        let mut blocks = self.blocks.borrow_mut();
        let most = self.most();
        if !self.start.get().is_null() {
            let block = blocks.get_mut(self.current.get());
            let offset = self.position.get().addr() - self.start.get().addr();
            if bytes <= block.bytes() - offset {
                return block.commit(offset + bytes, most);
            }
        }
        // The next block: a spare one, which the first request that does not fit here will take.
        let in_use = self.in_use.get();
        blocks.place(in_use, bytes, self.align, self.max_bytes != usize::MAX)?;
        blocks.get_mut(in_use).commit(bytes, most)
    }

    /// Frees everything and keeps all memory for the next use: `ac_arena_reset`.
    ///
    /// Checkpoints made before are stale afterwards.
    ///
    /// # Examples
    /// ```
    /// let mut arena = stepalloc::Arena::new();
    /// let first = arena.alloc_slice_fill(100, 1u8).as_ptr();
    /// arena.reset();
    /// assert_eq!(arena.alloc_slice_fill(100, 2u8).as_ptr(), first);
    /// ```
    pub fn reset(&mut self) {
        self.reset_with(Retain::All);
    }

    /// Frees everything and keeps as much memory as `retain` says.
    ///
    /// # Examples
    /// ```
    /// use stepalloc::{Arena, Retain};
    ///
    /// let mut arena = Arena::new();
    /// arena.alloc_slice_fill(1 << 20, 1u8);
    /// arena.reset_with(Retain::UpTo(64 << 10));
    /// assert!(arena.stats().committed_bytes <= 64 << 10);
    /// arena.reset_with(Retain::None);
    /// assert_eq!(arena.stats().reserved_bytes, 0);
    /// ```
    pub fn reset_with(&mut self, retain: Retain) {
        self.fold_peak();
        let blocks = self.blocks.get_mut();
        match retain {
            Retain::All => {}
            Retain::UpTo(bytes) => blocks.retain(bytes),
            Retain::None => blocks.retain(0),
        }
        // The first block becomes the current one at once, so that the next step starts on the fast path.
        let in_use = min(blocks.len(), 1);
        let start = match in_use {
            0 => ptr::null_mut(),
            _ => blocks.get(0).base().as_ptr(),
        };
        self.marks.clear(start);
        self.in_use.set(in_use);
        self.current.set(0);
        self.filled.set(0);
        self.enter_block(start, start);
    }

    /// Marks where the arena is, to go back to it with [`reset_to`](Arena::reset_to): `ac_arena_save`.
    ///
    /// [`scope`](Arena::scope) is the safe form. A new arena takes its first block here.
    ///
    /// # Examples
    /// ```
    /// let arena = stepalloc::Arena::new();
    /// let weights = arena.alloc_slice_fill(10, 0.5f32);
    /// for _step in 0..3 {
    ///     let start = arena.checkpoint();
    ///     let squares = arena.alloc_slice_from_iter(weights.iter().map(|w| w * w));
    ///     weights[0] += squares[1];
    ///     // SAFETY: nothing made since `start` is used any more.
    ///     unsafe { arena.reset_to(&start) }.unwrap();
    /// }
    /// assert_eq!(weights[0], 1.25);
    /// ```
    #[inline]
    pub fn checkpoint(&self) -> Checkpoint {
        let position = self.position.get();
        match self.marks.extend(position) {
            Some(serial) => Checkpoint { serial, position },
            None => self.checkpoint_slow(),
        }
    }

    /// Frees everything made since the checkpoint, in constant time, and keeps the memory: `ac_arena_restore`.
    ///
    /// The checkpoint stays valid: a loop may go back to it every step.
    ///
    /// # Errors
    /// `Foreign` for a checkpoint of another arena; `Stale` for one that an earlier `reset_to`, `reset` or end of a
    /// scope went back past, and for one made outside the innermost open scope. The arena is then as before.
    ///
    /// # Safety
    /// No block made since the checkpoint, and no block grown since, is used afterwards: its bytes will be in
    /// another block. (A refused call needs nothing.)
    #[inline]
    pub unsafe fn reset_to(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        if self.marks.is_newest(checkpoint.serial) {
            debug_assert_eq!(checkpoint.position, self.marks.floor());
            self.note_high();
            // The floor, not the checkpoint's own copy, so that the position does not wait for the value to come in.
            self.position.set(self.marks.floor());
            self.poison_free();
            return Ok(());
        }
        self.reset_to_slow(checkpoint)
    }

    /// The numbers of this arena; O(blocks).
    pub fn stats(&self) -> ArenaStats {
        let blocks = self.blocks.borrow();
        let used = self.used();
        ArenaStats {
            used_bytes: used,
            peak_bytes: max(self.peak.get(), max(used, self.used_at(self.high.get()))),
            committed_bytes: blocks.committed(),
            reserved_bytes: blocks.reserved(),
            block_count: blocks.len(),
        }
    }

    /// Takes `size` bytes, not zero, at a multiple of `align` and of the arena's alignment.
    #[inline(always)]
    fn bump(&self, size: usize, align: usize) -> Result<NonNull<u8>, AllocError> {
        match self.bump_fast(size, align) {
            Some(block) => Ok(block),
            None => self.bump_slow(size, align).map(|fresh| fresh.block),
        }
    }

    #[inline(always)]
    fn bump_fast(&self, size: usize, align: usize) -> Option<NonNull<u8>> {
        debug_assert!(size != 0 && align.is_power_of_two());
        let position = self.position.get();
        if (size | align) > MOST_FAST {
            return None;
        }
        let size = self.round_up_some(size);
        // A3: up to the least alignment the position needs no padding; callers with a constant layout save the sum.
        let pad = if align <= LEAST_ALIGN {
            0
        } else {
            position.addr().wrapping_neg() & (align - 1)
        };
        // Comparing ends, not room, saves a subtraction (2.4 against 1.8 ns for 64 bytes). B4: the sum cannot wrap.
        let next = position.wrapping_add(pad.wrapping_add(size));
        let wrapped =
            cfg!(not(target_pointer_width = "64")) && (pad.checked_add(size)).is_none_or(|sum| next.addr() < sum);
        if next.addr() > self.end.get().addr() || wrapped {
            return None;
        }
        // SAFETY: `position + pad + size <= end`, and `size` is not zero: this is inside the current block (A1), and
        // there is one, or `end` would be zero.
        let block = unsafe { position.add(pad) };
        // SAFETY: handed out here.
        unsafe { guard::usable(block, size) };
        self.position.set(next);
        // SAFETY: inside a block, so not null.
        Some(unsafe { NonNull::new_unchecked(block) })
    }

    /// Touches more of the current block, or takes the next one.
    #[cold]
    #[inline(never)]
    fn bump_slow(&self, size: usize, align: usize) -> Result<Fresh, AllocError> {
        let size = self.round_up(size);
        let align = max(align, self.align);
        if size > isize::MAX as usize - (align - 1) {
            return Err(AllocError::BadLayout);
        }
        let mut blocks = self.blocks.borrow_mut();
        let budget = self.max_bytes - self.used();
        let (position, start) = (self.position.get(), self.start.get());
        let mut left_here = 0;
        if !start.is_null() {
            let most = self.most();
            let block = blocks.get_mut(self.current.get());
            let offset = position.addr() - start.addr();
            left_here = block.bytes() - offset;
            let pad = position.addr().wrapping_neg() & (align - 1);
            if pad <= left_here && size <= left_here - pad {
                if pad + size > budget {
                    return Err(AllocError::LimitReached);
                }
                let zero_from = start.addr() + block.touched();
                block.touch(offset + pad + size, most)?;
                // SAFETY: `offset + pad + size` is within the block (its `bytes`).
                let (found, next) = unsafe { (position.add(pad), position.add(pad + size)) };
                // SAFETY: handed out here.
                unsafe { guard::usable(found, size) };
                self.position.set(next);
                self.end.set(self.end_of(&blocks));
                // SAFETY: inside a block, so not null.
                let block = unsafe { NonNull::new_unchecked(found) };
                return Ok(Fresh { block, zero_from });
            }
        }
        if size > budget {
            return Err(AllocError::LimitReached);
        }
        let in_use = self.in_use.get();
        blocks.place(in_use, size, align, self.max_bytes != usize::MAX)?;
        let block = blocks.get_mut(in_use);
        let base = block.base();
        let pad = base.addr().get().wrapping_neg() & (align - 1);
        let taken = pad + size;
        if taken > budget {
            return Err(AllocError::LimitReached);
        }
        self.marks.try_reserve()?;
        let zero_from = base.addr().get() + block.touched();
        block.touch(taken, budget)?;
        let left_there = block.bytes() - taken;
        block.set_before(self.current.get(), self.filled.get());
        // From here on nothing fails. The newest mark describes fewer blocks than will be in use.
        self.marks.bury(in_use);
        self.fold_peak();
        self.in_use.set(in_use + 1);
        // SAFETY: `pad <= taken <= bytes` of the block.
        let (found, next) = unsafe { (base.add(pad), base.add(taken)) };
        // SAFETY: handed out here.
        unsafe { guard::usable(found.as_ptr(), size) };
        if left_there > left_here {
            self.filled.set(self.used());
            self.current.set(in_use);
            self.marks.set_floor(base.as_ptr());
            self.start.set(base.as_ptr());
            self.position.set(next.as_ptr());
        } else {
            // The request filled its block, or nearly: the one with more room stays the current one.
            self.filled.set(self.filled.get() + taken);
        }
        self.high.set(self.position.get());
        self.end.set(self.end_of(&blocks));
        Ok(Fresh {
            block: found,
            zero_from,
        })
    }

    /// Moves the position `more` bytes up if the current block has the room.
    fn extend(&self, more: usize) -> bool {
        let position = self.position.get();
        let room = self.end.get().addr() - position.addr();
        if more > room {
            let mut blocks = self.blocks.borrow_mut();
            let most = self.most();
            let block = blocks.get_mut(self.current.get());
            let offset = position.addr() - self.start.get().addr();
            let fits = more <= block.bytes() - offset && more <= self.max_bytes - self.used();
            if !fits || block.touch(offset + more, most).is_err() {
                return false;
            }
            self.end.set(self.end_of(&blocks));
        }
        // SAFETY: handed out here, to the newest block.
        unsafe { guard::usable(position, more) };
        // SAFETY: `more` is at most the room in the block that was just checked.
        self.position.set(unsafe { position.add(more) });
        true
    }

    #[cold]
    #[inline(never)]
    fn checkpoint_slow(&self) -> Checkpoint {
        if self.start.get().is_null() {
            self.take_first();
        }
        Checkpoint {
            serial: self.marks.push(self.place()),
            position: self.position.get(),
        }
    }

    #[cold]
    #[inline(never)]
    fn reset_to_slow(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        if !self.marks.is_ours(checkpoint.serial) {
            return Err(CheckpointError::Foreign);
        }
        let found = self.marks.rewind(checkpoint, self.in_use.get());
        self.go_to(found.ok_or(CheckpointError::Stale)?);
        Ok(())
    }

    /// Makes ready for a scope where the marks are not untouched.
    #[cold]
    #[inline(never)]
    fn begin_touched(&self) -> u64 {
        if self.start.get().is_null() {
            self.take_first();
        }
        self.marks.begin_touched(self.in_use.get())
    }

    /// Takes the first block, so that going back to an empty arena keeps it. Where that fails the next request says so.
    #[cold]
    #[inline(never)]
    fn take_first(&self) {
        let _ = self.bump_slow(0, 1);
    }

    /// Where the arena is.
    #[inline(always)]
    fn place(&self) -> Place {
        Place {
            position: self.position.get(),
            in_use: self.in_use.get(),
        }
    }

    /// Goes back to a place where the arena has been.
    #[inline(always)]
    fn go_to(&self, place: Place) {
        if place.in_use == self.in_use.get() {
            // The same blocks are in use, so the current one is the same (A2).
            self.note_high();
            self.position.set(place.position);
            self.poison_free();
        } else {
            self.go_to_block(place);
        }
    }

    #[cold]
    #[inline(never)]
    fn go_to_block(&self, place: Place) {
        self.fold_peak();
        let blocks = self.blocks.borrow();
        // The first block taken since knows what was current when it was taken.
        let (current, filled) = blocks.get(place.in_use).before();
        let start = match place.position.is_null() {
            true => ptr::null_mut(),
            false => blocks.get(current).base().as_ptr(),
        };
        drop(blocks);
        self.in_use.set(place.in_use);
        self.current.set(current);
        self.filled.set(filled);
        self.enter_block(start, place.position);
    }

    /// Makes the block that begins at `start`, `blocks[current]`, the current one; null for none.
    fn enter_block(&self, start: *mut u8, position: *mut u8) {
        self.start.set(start);
        self.position.set(position);
        self.high.set(position);
        self.end.set(self.end_of(&self.blocks.borrow()));
        self.poison_free();
    }

    /// Poisons what is behind the position and in spare blocks, where the address sanitizer watches. (Not the ends of
    /// blocks in use that are not the current one: they are few bytes, and mostly never written.)
    #[inline(always)]
    fn poison_free(&self) {
        if guard::POISONING {
            let (position, start) = (self.position.get(), self.start.get());
            let blocks = self.blocks.borrow();
            if !start.is_null() {
                let block = blocks.get(self.current.get());
                let used = position.addr() - start.addr();
                // SAFETY: behind the position no block is live (A1).
                unsafe { guard::unusable(position, block.touched().saturating_sub(used)) };
            }
            for index in self.in_use.get()..blocks.len() {
                let block = blocks.get(index);
                // SAFETY: no block is in a spare one.
                unsafe { guard::unusable(block.base().as_ptr(), block.touched()) };
            }
        }
    }

    /// The end that the fast path may go to in the current block (A1, A5).
    fn end_of(&self, blocks: &Blocks) -> *mut u8 {
        let start = self.start.get();
        if start.is_null() {
            return start;
        }
        let usable = blocks.get(self.current.get()).touched();
        // The room below the limit is rounded down, so that the end, too, is a multiple of the alignment.
        let allowed = (self.max_bytes - self.filled.get()) & !(self.align - 1);
        // SAFETY: `usable` is at most the committed bytes of the block (B1).
        unsafe { start.add(min(usable, allowed)) }
    }

    /// How much of the current block the limit leaves to use.
    fn most(&self) -> usize {
        self.max_bytes - self.filled.get()
    }

    /// Bytes in use (A5).
    #[inline(always)]
    fn used(&self) -> usize {
        self.used_at(self.position.get())
    }

    /// Bytes in use when the position is, or was, `position` of the current block.
    #[inline(always)]
    fn used_at(&self, position: *mut u8) -> usize {
        self.filled.get() + (position.addr() - self.start.get().addr())
    }

    /// To be called before the position goes down.
    #[inline(always)]
    fn note_high(&self) {
        if self.position.get() > self.high.get() {
            self.set_high();
        }
    }

    /// Out of line, for only steps that are larger than all before come here.
    #[cold]
    #[inline(never)]
    fn set_high(&self) {
        self.high.set(self.position.get());
    }

    /// To be called before the current block or `filled` changes; `high` must then be set anew.
    fn fold_peak(&self) {
        self.note_high();
        self.peak.set(max(self.peak.get(), self.used_at(self.high.get())));
    }

    /// `size`, at most `isize::MAX`, rounded up to the arena's alignment; cannot wrap, the alignment is small.
    #[inline(always)]
    fn round_up(&self, size: usize) -> usize {
        (size + (self.align - 1)) & self.align.wrapping_neg()
    }

    /// `size`, not zero and at most `isize::MAX`, rounded up; a word or less, where that is known, to one of the least.
    #[inline(always)]
    fn round_up_some(&self, size: usize) -> usize {
        match size <= LEAST_ALIGN {
            true => self.align,
            false => self.round_up(size),
        }
    }

    /// Whether a block of `size` bytes ends at the position and may be given back (A4).
    #[inline(always)]
    fn is_newest(&self, block: NonNull<u8>, size: usize) -> bool {
        let addr = block.addr().get();
        addr >= self.marks.floor().addr() && addr + self.round_up(size) == self.position.get().addr()
    }

    /// A pointer into the current block.
    #[inline(always)]
    fn with_addr(&self, addr: usize) -> *mut u8 {
        self.position.get().with_addr(addr)
    }

    /// What stands for a block of no bytes.
    #[inline(always)]
    fn dangling(&self, align: usize) -> NonNull<u8> {
        let align = max(align, self.align);
        // SAFETY: an alignment is not zero.
        unsafe { NonNull::new_unchecked(ptr::without_provenance_mut(align)) }
    }
}

impl Default for Arena {
    fn default() -> Arena {
        Arena::new()
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("align", &self.align())
            .field("stats", &self.stats())
            .finish()
    }
}

/// The layout of `len` values.
#[inline(always)]
fn array<T>(len: usize) -> Result<Layout, AllocError> {
    Layout::array::<T>(len).map_err(|_| AllocError::BadLayout)
}
