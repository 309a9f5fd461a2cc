//! The outside: address space, pages, clocks and the one exit. One contract, a file per system.
//!
//! | call | means |
//! |---|---|
//! | `reserve(bytes)` | address space that no access may touch yet, page aligned; null if refused |
//! | `release(p, bytes)` | gives a whole reservation back |
//! | `commit(p, bytes)` | makes whole pages of a reservation readable and writable, zero where never touched; `false` if refused |
//! | `discard(p, bytes)` | drops the contents of whole committed pages; they read as zero again and cost no memory until touched, or, where the system takes its time, read as before: zeros stay zeros; `false`, and all is as it was, if refused |
//! | `decommit(p, bytes)` | takes whole pages back to merely reserved; committed again they read as zero; `false` if refused |
//! | `advise_huge(p, bytes)` | a wish: back these committed pages with huge pages |
//! | `join(p, bytes)` | puts huge pages in place of the small ones of these pages, which begin and end at multiples of `HUGE_PAGE`, contents and all; `false` where not all was done |
//! | `split(p, bytes)` | the same range, of whose pages some were discarded: lets the system have what its huge pages keep of them |
//! | `resident(p, bytes)` | how many bytes of these whole pages are in memory now |
//! | `address_space()` | bytes of address space that a reservation may take at most |
//! | `thread_faults()` | page faults of the calling thread so far, or `None` where the system does not tell |
//! | `coarse_millis()` | a monotonic clock for decisions that tolerate a few milliseconds of error |
//! | `die(message)` | writes the static message to standard error and aborts |
//!
//! Neither `join` nor `split` changes how pages come that are touched later: small ones. No page at all is never refused, though systems differ in that: Linux does nothing, others call it an error.
//!
//! None of these allocates, formats, locks or panics: they are called below `GlobalAlloc`. Where the system offers
//! no reservation at all (32-bit, wasm, unknown systems) `reserve` answers null and the crate passes everything to
//! the backing. `--cfg stepalloc_no_sys` makes any system one of those, so that a build and a test can show it.
//! `--cfg stepalloc_small_space` limits the address space of a reservation, for emulators that pay for each reserved page.

#[cfg(all(unix, target_pointer_width = "64", not(stepalloc_no_sys)))]
#[path = "unix.rs"]
mod os;

#[cfg(all(windows, target_pointer_width = "64", not(stepalloc_no_sys)))]
#[path = "windows.rs"]
mod os;

#[cfg(not(all(any(unix, windows), target_pointer_width = "64", not(stepalloc_no_sys))))]
#[path = "none.rs"]
mod os;

// The calls of `unix.rs` with a seam for tests: see the file.
#[cfg(all(
    stepalloc_faults,
    target_os = "linux",
    target_pointer_width = "64",
    not(stepalloc_no_sys)
))]
pub mod faults;

pub use os::{
    advise_huge, coarse_millis, commit, decommit, die, discard, join, resident, split, thread_faults, HAS_RESERVATIONS,
};
#[cfg(not(loom))]
pub use os::{release, reserve};

/// Under a model checker an execution gives back what it has reserved: a model has many thousand of them.
#[cfg(loom)]
pub fn reserve(bytes: usize) -> *mut u8 {
    let p = os::reserve(bytes);
    let addr = p.expose_provenance();
    crate::sync::modelled::keep_mapping(
        addr,
        // SAFETY: the reservation just made; at its end nothing of the execution is used any more.
        Box::new(move || unsafe { os::release(core::ptr::with_exposed_provenance_mut(addr), bytes) }),
    );
    p
}

/// Undoes `reserve`.
///
/// # Safety
/// As for the system's.
#[cfg(loom)]
pub unsafe fn release(p: *mut u8, bytes: usize) {
    crate::sync::modelled::drop_mapping(p.addr());
    // SAFETY: the caller's promise.
    unsafe { os::release(p, bytes) }
}

/// The page that memory is committed and given back by: 4 KiB, a multiple of it where the system's is larger.
#[inline]
pub fn page_size() -> usize {
    os::page_size()
}

/// The most address space that a reservation may take, bytes.
pub fn address_space() -> usize {
    /// qemu-user 7 takes 6 GB of memory for a TiB that is reserved, so 200 MB for this.
    const SMALL: usize = 32 << 30;
    let most = os::address_space();
    if cfg!(stepalloc_small_space) {
        most.min(SMALL)
    } else {
        most
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
