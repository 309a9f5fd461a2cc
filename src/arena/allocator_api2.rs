//! `&Arena` as an allocator for the collections that are generic over one (feature `allocator-api2`).
//!
//! The trait asks that a block stay valid while the allocator or a copy of it lives: a `&Arena` keeps the arena from
//! being reset, moved or dropped. Blocks made before a checkpoint or scope and freed, shrunk or grown after it are
//! left where they are or moved (A4), never cut short by going back.

use super::Arena;
use allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

/// The block with its exact size.
fn sized(block: NonNull<u8>, size: usize) -> NonNull<[u8]> {
    NonNull::slice_from_raw_parts(block, size)
}

// SAFETY: blocks are disjoint (A1) and stay valid until the arena is reset or dropped, which the borrow forbids, or
// taken back by an unsafe call whose caller vouches for it; copies of the reference are the same allocator.
unsafe impl Allocator for &Arena {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.try_alloc_layout(layout).map_err(|_| AllocError)?;
        Ok(sized(block, layout.size()))
    }

    #[inline]
    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.try_alloc_layout_zeroed(layout).map_err(|_| AllocError)?;
        Ok(sized(block, layout.size()))
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise is the same.
        let grown = unsafe { Arena::grow(self, block, old, new) }.map_err(|_| AllocError)?;
        Ok(sized(grown, new.size()))
    }

    #[inline]
    unsafe fn grow_zeroed(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise is the same.
        let grown = unsafe { Arena::grow(self, block, old, new) }.map_err(|_| AllocError)?;
        // SAFETY: the block has `new.size()` bytes, not fewer than `old.size()`.
        unsafe { ptr::write_bytes(grown.as_ptr().add(old.size()), 0, new.size() - old.size()) };
        Ok(sized(grown, new.size()))
    }

    #[inline]
    unsafe fn shrink(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise is the same.
        let kept = unsafe { Arena::shrink(self, block, old, new) }.map_err(|_| AllocError)?;
        Ok(sized(kept, new.size()))
    }
}
