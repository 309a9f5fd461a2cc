//! The memory of an arena: its blocks, in use and spare.
//!
//! ```text
//!   blocks[0] ... blocks[in_use - 1] | blocks[in_use] ...
//!   in use, in the order taken       | spare: kept warm for the next step
//!
//!   one block:  base        touched          committed        bytes
//!                |  may hold  |  known zero     |  reserved     |
//!                |  anything  |  and usable     |  only         |
//! ```
//!
//! A spare block is taken again before the system is asked, and the block that stands at `in_use` is tried first: a
//! program that makes the same requests each step therefore finds the same block at the same place each step, and its
//! pages warm. Nothing is ever dropped from the list except by `retain` and under a limit by `place`, which is what the C
//! library lacks: its growth after a reset wrote over the link to the blocks it still had.
//!
//! Invariants:
//! - **B1** `touched <= committed <= bytes`; `[base, base + committed)` is readable and writable.
//! - **B2** Memory in `[base + touched, base + committed)` was never handed out and is zero.
//! - **B3** A block is owned by exactly one list, and given back exactly once, by `Block`'s `Drop`.
//! - **B4** With 64-bit addresses a block ends at least 4 GiB below the end of the address space, so that the sum of
//!   an address in it and a few GiB does not wrap. (No system lets a program have that part.)

use crate::align::{align_down, align_up, checked_align_up, max, min, CACHE_LINE};
use crate::error::AllocError;
use crate::guard;
use crate::sys;
use core::alloc::Layout;
use core::ptr::NonNull;

/// The first commit of a block, bytes. Committing costs a system call (about 1 µs) and no memory, so it is generous.
const FIRST_COMMIT: usize = 1 << 20;

/// The most that is committed ahead at once, bytes: the C library's arena block.
const LAST_COMMIT: usize = 64 << 20;

/// How far beyond a request memory is declared touched, bytes: sixteen page faults a slow path, so that the slow
/// path is noise, and at most this much of a fresh block is zeroed by hand without need.
const TOUCH_STEP: usize = 64 << 10;

/// How far below the end of the address space a block ends, bytes (B4).
#[cfg(target_pointer_width = "64")]
const TOP: usize = 4 << 30;
#[cfg(not(target_pointer_width = "64"))]
const TOP: usize = 0;

/// Where blocks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Reservations of `sys`: committed as needed, known zero, given back to the system.
    System,
    /// The global allocator: whole blocks, contents unknown.
    Heap,
}

impl Source {
    /// The system where it offers reservations. (Miri knows `mmap`, but not protections; a model must not find a block
    /// that its last execution kept.)
    pub(super) const fn preferred() -> Source {
        if sys::HAS_RESERVATIONS && !cfg!(miri) && !cfg!(loom) {
            Source::System
        } else {
            Source::Heap
        }
    }
}

// SAFETY: a block owns its memory, and nothing else leads to it.
unsafe impl Send for Block {}

/// One block: a reservation, or a block of the global allocator.
#[derive(Debug)]
pub(super) struct Block {
    base: NonNull<u8>,
    bytes: usize,
    committed: usize,
    touched: usize,
    source: Source,
    /// What `base` is a multiple of.
    align: usize,
    /// The arena's current block and `filled` before this block was taken into use.
    before: (usize, usize),
}

impl Block {
    fn new(source: Source, bytes: usize, align: usize) -> Result<Block, AllocError> {
        let page = sys::page_size();
        let bytes = checked_align_up(max(bytes, 1), page).ok_or(AllocError::BadLayout)?;
        let align = match source {
            Source::System => page,
            Source::Heap => max(align, CACHE_LINE),
        };
        let layout = Layout::from_size_align(bytes, align).map_err(|_| AllocError::BadLayout)?;
        let (base, ready) = match source {
            Source::System => (sys::reserve(bytes), 0),
            // SAFETY: the layout's size is at least a page, not zero.
            Source::Heap => (unsafe { std::alloc::alloc(layout) }, bytes),
        };
        let base = NonNull::new(base).ok_or(AllocError::OutOfMemory)?;
        let block = Block {
            base,
            bytes,
            committed: ready,
            touched: ready,
            source,
            align,
            before: (0, 0),
        };
        if cfg!(target_pointer_width = "64") && block.base.addr().get() > usize::MAX - bytes - TOP {
            return Err(AllocError::OutOfMemory);
        }
        Ok(block)
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn before(&self) -> (usize, usize) {
        self.before
    }

    pub(super) fn set_before(&mut self, current: usize, filled: usize) {
        self.before = (current, filled);
    }

    pub(super) fn touched(&self) -> usize {
        self.touched
    }

    /// Whether `size` bytes at a multiple of `align` fit into the empty block.
    fn fits(&self, size: usize, align: usize) -> bool {
        let base = self.base.addr().get();
        match checked_align_up(base, align) {
            Some(start) => (start - base).checked_add(size).is_some_and(|need| need <= self.bytes),
            None => false,
        }
    }

    /// Makes the first `upto` bytes usable, and more ahead of need, but not past `most` without need.
    pub(super) fn commit(&mut self, upto: usize, most: usize) -> Result<(), AllocError> {
        debug_assert!(upto <= self.bytes);
        if upto <= self.committed {
            return Ok(());
        }
        let page = sys::page_size();
        let least = align_up(upto, page);
        let step = max(FIRST_COMMIT, min(self.committed, LAST_COMMIT));
        let wish = min(self.committed.saturating_add(step), align_down(most, page));
        let wish = min(max(least, align_down(wish, page)), self.bytes);
        for target in [wish, least] {
            // SAFETY: B1: `committed` and `target` are whole pages inside this live reservation (a heap block is
            // committed whole and never comes here).
            if unsafe { sys::commit(self.base.as_ptr().add(self.committed), target - self.committed) } {
                self.committed = target;
                return Ok(());
            }
        }
        Err(AllocError::OutOfMemory)
    }

    /// Declares the first `upto` bytes, and a step more, as handed out.
    pub(super) fn touch(&mut self, upto: usize, most: usize) -> Result<(), AllocError> {
        self.commit(upto, most)?;
        if upto > self.touched {
            self.touched = min(max(upto, self.touched.saturating_add(TOUCH_STEP)), self.committed);
        }
        Ok(())
    }

    /// Gives everything beyond the first `keep` bytes back; `false` if the system cannot.
    ///
    /// Nothing in the block may be in use.
    fn trim(&mut self, keep: usize) -> bool {
        if self.source == Source::Heap {
            return false;
        }
        // SAFETY: the block's own memory; it is usable again when it is committed again.
        unsafe { guard::usable(self.base.as_ptr().add(keep), self.committed - keep) };
        // SAFETY: B1: the range is whole pages of this reservation, and the caller says that nobody uses them.
        let gone = unsafe { sys::decommit(self.base.as_ptr().add(keep), self.committed - keep) };
        if gone {
            self.committed = keep;
            self.touched = min(self.touched, keep);
        }
        gone
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the block's own memory, whose next user knows nothing of us.
        unsafe { guard::usable(self.base.as_ptr(), self.committed) };
        match self.source {
            // SAFETY: B3: this is the one reservation made in `new`, and its owner goes away.
            Source::System => unsafe { sys::release(self.base.as_ptr(), self.bytes) },
            Source::Heap => {
                // SAFETY: `new` made a layout of exactly these numbers.
                let layout = unsafe { Layout::from_size_align_unchecked(self.bytes, self.align) };
                // SAFETY: B3: allocated in `new` with this layout, and its owner goes away.
                unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) }
            }
        }
    }
}

/// The blocks of one arena.
#[derive(Debug)]
pub(super) struct Blocks {
    list: Vec<Block>,
    source: Source,
    /// What an ordinary block holds, bytes.
    block_bytes: usize,
}

impl Blocks {
    pub(super) const fn new(source: Source, block_bytes: usize) -> Blocks {
        Blocks {
            list: Vec::new(),
            source,
            block_bytes,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, index: usize) -> &Block {
        &self.list[index]
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut Block {
        &mut self.list[index]
    }

    pub(super) fn committed(&self) -> usize {
        self.list.iter().map(|block| block.committed).sum()
    }

    pub(super) fn reserved(&self) -> usize {
        self.list.iter().map(|block| block.bytes).sum()
    }

    /// Puts an empty block that fits `size` bytes at a multiple of `align` at `in_use`, a spare one if there is one.
    ///
    /// `tight` says that a limit is set: spares that do not fit are given back before a new block is made.
    pub(super) fn place(&mut self, in_use: usize, size: usize, align: usize, tight: bool) -> Result<(), AllocError> {
        let room = |block: &Block| block.fits(size, align);
        if self.list.get(in_use).is_some_and(room) {
            return Ok(());
        }
        let spares = self.list.iter().enumerate().skip(in_use);
        let best = spares
            .filter(|(_, block)| room(block))
            .min_by_key(|(_, block)| block.bytes);
        if let Some((found, _)) = best {
            self.list.swap(in_use, found);
            return Ok(());
        }
        if tight {
            self.list.truncate(in_use);
        }
        // A reservation starts at a page, a heap block at the alignment asked for.
        let pad = match self.source {
            Source::System => align.saturating_sub(sys::page_size()),
            Source::Heap => 0,
        };
        let need = max(size.checked_add(pad).ok_or(AllocError::BadLayout)?, self.block_bytes);
        self.list.try_reserve(1).map_err(|_| AllocError::OutOfMemory)?;
        let heir = match self.source {
            // What a parked block has committed is not counted against a limit, so an arena with one begins afresh.
            Source::System if !tight => parked::take(need),
            _ => None,
        };
        let block = match heir {
            Some(block) => block,
            None => Block::new(self.source, need, align)?,
        };
        self.list.push(block);
        let last = self.list.len() - 1;
        self.list.swap(in_use, last);
        debug_assert!(self.list[in_use].fits(size, align));
        Ok(())
    }

    /// Keeps at most `keep` committed bytes, those of the first blocks, and gives the others back.
    ///
    /// Nothing in any block may be in use.
    pub(super) fn retain(&mut self, keep: usize) {
        let mut left = align_down(keep, sys::page_size());
        self.list.retain_mut(|block| {
            let share = min(left, block.committed);
            let kept = share == block.committed || (share > 0 && block.trim(share));
            if kept && share > 0 {
                left -= share;
            }
            kept && share > 0
        });
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if let Some(first) = self.list.drain(..).next() {
            parked::put(first);
        }
    }
}

/// The first block of the last arena that went away, for the next one of the same block size.
///
/// A program that makes an arena for each request or step would otherwise pay for three system calls and all page
/// faults each time (measured: 10,000 values of 24 bytes in a new arena, 140 µs against 15 µs).
mod parked {
    use super::{Block, Source};
    use crate::sys;
    use parking_lot::Mutex;

    /// The most committed memory that waits for the next arena, bytes: what `malloc` keeps, in order of magnitude.
    const MOST: usize = 1 << 20;

    static PARKED: Mutex<Option<Block>> = Mutex::new(None);

    /// The waiting block if it is just as large as one made for `bytes` would be.
    pub(super) fn take(bytes: usize) -> Option<Block> {
        let mut parked = PARKED.try_lock()?;
        let fits = |block: &Block| block.bytes - bytes.min(block.bytes) < sys::page_size() && block.bytes >= bytes;
        if parked.as_ref().is_some_and(fits) {
            parked.take()
        } else {
            None
        }
    }

    /// Lets a block wait, in place of the one that waits now; its contents are never used again.
    pub(super) fn put(mut block: Block) {
        let fits = block.source == Source::System && (block.committed <= MOST || block.trim(MOST));
        if !fits || block.committed == 0 {
            return;
        }
        let before = match PARKED.try_lock() {
            Some(mut parked) => parked.replace(block),
            None => Some(block),
        };
        drop(before);
    }
}
