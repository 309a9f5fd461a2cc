//! What the features `hardened` and `asan` do with a block's memory; without them every function here is empty.
//!
//! ```text
//!   block      |  size bytes  | GUARD | rest of the last granule, line or unit |
//!   hardened      junk when     a mark made of address and size, looked at when
//!                 freed         the block is freed
//!   asan          usable only   poisoned, as all free memory of the arena is
//!                 while live
//! ```
//!
//! **How they get to see every block.** The heap masks its inline paths for good, as it does while a scope counts, so that
//! every call takes the slow path; there `made` and `freed` are called. So the inline paths have no line for this, and a
//! build without the features pays nothing.
//!
//! **What hardened mode sees.** A free of what is not live in the maps, also at the position, where the plain build does
//! not look; a write past a block's end, when it is freed; a free with another size, or of an address inside a block: the
//! mark there is not the one due. It does not see a write past the guard, nor one into a freed block, which is overwritten
//! only when it is freed.

/// Whether the heap sends every call to the slow path.
pub const CHECKED: bool = cfg!(any(feature = "hardened", feature = "asan"));

/// Whether the address sanitizer is told which memory is free.
pub const POISONING: bool = cfg!(feature = "asan");

#[cfg(feature = "hardened")]
mod hardened {
    use crate::layout::GUARD;
    use crate::sys;

    /// Freed memory is filled with this: no small number, no address, no float near 1.
    const JUNK: u8 = 0xdb;

    const OVERRUN: &str = "stepalloc: a block was written past its end, or freed by another address or size than it \
                           was made with\n";

    fn mark(addr: usize, size: usize) -> [u8; GUARD] {
        // Odd multipliers spread every bit of address and size over the mark (2^64 and 2^63 by the golden ratio).
        let low = (addr as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ size as u64;
        let high = (size as u64).wrapping_mul(0x4f1b_bcdc_bfa5_3e0b) ^ !(addr as u64);
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }

    pub unsafe fn made(p: *mut u8, size: usize) {
        // SAFETY: by the promise made to `made` the guard follows the block's bytes.
        unsafe { p.add(size).cast::<[u8; GUARD]>().write_unaligned(mark(p.addr(), size)) };
    }

    pub unsafe fn freed(p: *mut u8, size: usize) {
        // SAFETY: as above.
        if unsafe { p.add(size).cast::<[u8; GUARD]>().read_unaligned() } != mark(p.addr(), size) {
            sys::die(OVERRUN);
        }
        // SAFETY: the block is the caller's to give up.
        unsafe { p.write_bytes(JUNK, size + GUARD) };
    }
}

#[cfg(feature = "asan")]
mod asan {
    use core::ffi::c_void;

    // The sanitizer's runtime: it is linked in by `-Zsanitizer=address`, and nothing else has these.
    extern "C" {
        pub fn __asan_poison_memory_region(at: *const c_void, bytes: usize);
        pub fn __asan_unpoison_memory_region(at: *const c_void, bytes: usize);
        pub fn __lsan_register_root_region(at: *const c_void, bytes: usize);
    }
}

/// Notes that a block was made: `size` bytes are its user's, the guard is behind them.
///
/// # Safety
/// The block is new, and `size + GUARD` bytes at `p` are its own.
#[inline(always)]
pub unsafe fn made(p: *mut u8, size: usize) {
    if CHECKED {
        let _ = (p, size);
        // SAFETY: the caller's promise; the guard is written before it is poisoned.
        unsafe {
            #[cfg(feature = "hardened")]
            {
                usable(p, size.wrapping_add(crate::layout::GUARD));
                hardened::made(p, size);
                unusable(p, size.wrapping_add(crate::layout::GUARD));
            }
            usable(p, size);
        }
    }
}

/// Notes that a block is freed, and ends the program if its guard is not as it was.
///
/// # Safety
/// The maps say that the block is live, and it is the caller's to free: nobody can be given its memory before this ends.
#[inline(always)]
pub unsafe fn freed(p: *mut u8, size: usize) {
    if CHECKED {
        let _ = (p, size);
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(feature = "hardened")]
            {
                usable(p, size.wrapping_add(crate::layout::GUARD));
                hardened::freed(p, size);
            }
            unusable(p, size.wrapping_add(crate::layout::GUARD));
        }
    }
}

/// Poisons memory that no block has.
///
/// # Safety
/// It is memory of the crate's own, and no block is in it.
#[inline(always)]
pub unsafe fn unusable(p: *const u8, bytes: usize) {
    let _ = (p, bytes);
    #[cfg(feature = "asan")]
    // SAFETY: the runtime notes it in its own memory; the caller says that nobody uses the range.
    unsafe {
        asan::__asan_poison_memory_region(p.cast(), bytes);
    }
}

/// Ends the poisoning of a block that is handed out, or of memory that is given back.
///
/// # Safety
/// It is memory of the crate's own.
#[inline(always)]
pub unsafe fn usable(p: *const u8, bytes: usize) {
    let _ = (p, bytes);
    #[cfg(feature = "asan")]
    // SAFETY: the runtime notes it in its own memory.
    unsafe {
        asan::__asan_unpoison_memory_region(p.cast(), bytes);
    }
}

/// Lets the leak sanitizer look for pointers in a reservation: blocks of the arena own blocks of the backing.
///
/// # Safety
/// It is a reservation of the crate's own that is never given back.
#[inline(always)]
pub unsafe fn may_hold_pointers(p: *const u8, bytes: usize) {
    let _ = (p, bytes);
    #[cfg(feature = "asan")]
    // SAFETY: the runtime reads what of the range is readable, at the program's end.
    unsafe {
        asan::__lsan_register_root_region(p.cast(), bytes);
    }
}
