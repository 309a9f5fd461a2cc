//! A map of all live blocks, apart from the allocator it watches: a bit for 16 bytes of the address space, and the
//! layout of each block at its start. It aborts with a message when two live blocks share a byte, and when a block is
//! freed twice, with another layout, or was never made.
//!
//! The bits stand in leaves of 64 MiB of address space each, made when first touched by std's `System`, never through
//! the global allocator. All operations are atomic read-modify-writes, so that two threads that are handed the same
//! bytes at the same time cannot both pass.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::{self, Write};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

/// Bytes that a bit stands for. Every block of `System` and of stepalloc begins at a multiple of it.
const GRAIN: usize = 16;
const LEAF_GRAINS: usize = (64 << 20) / GRAIN;
/// Leaves for 47 bits of addresses.
const LEAVES: usize = (1 << 47) / GRAIN / LEAF_GRAINS;

struct Leaf {
    live: [AtomicU64; LEAF_GRAINS / 64],
    /// At a block's first grain: its size, shifted, and the logarithm of its alignment; else 0.
    layouts: [AtomicU64; LEAF_GRAINS],
}

static MAP: [AtomicPtr<Leaf>; LEAVES] = [const { AtomicPtr::new(ptr::null_mut()) }; LEAVES];

fn leaf(grain: usize) -> &'static Leaf {
    let Some(slot) = MAP.get(grain / LEAF_GRAINS) else {
        die(format_args!("shadow: an address of more than 47 bits"));
    };
    // Acquire and Release: who sees the pointer sees the zeros behind it.
    let mut made = slot.load(std::sync::atomic::Ordering::Acquire);
    if made.is_null() {
        let layout = Layout::new::<Leaf>();
        // SAFETY: the layout has a size, and all-zero is a valid `Leaf`; the loser of a race frees what it made.
        unsafe {
            let fresh = System.alloc_zeroed(layout).cast::<Leaf>();
            if fresh.is_null() {
                die(format_args!("shadow: no memory for the map"));
            }
            let (release, acquire) = (
                std::sync::atomic::Ordering::AcqRel,
                std::sync::atomic::Ordering::Acquire,
            );
            match slot.compare_exchange(ptr::null_mut(), fresh, release, acquire) {
                Ok(_) => made = fresh,
                Err(winner) => {
                    System.dealloc(fresh.cast(), layout);
                    made = winner;
                }
            }
        }
    }
    // SAFETY: leaves are never freed once they are in the map.
    unsafe { &*made }
}

fn pack(layout: Layout) -> u64 {
    (layout.size() as u64) << 6 | u64::from(layout.align().trailing_zeros())
}

/// Calls `f` with each word of `[first, last]`'s bits and the mask in it.
fn each_word(first: usize, last: usize, mut f: impl FnMut(&AtomicU64, u64)) {
    let mut at = first;
    while at <= last {
        let leaf = leaf(at);
        let end = (at | (LEAF_GRAINS - 1)).min(last);
        while at <= end {
            let count = (64 - at % 64).min(end - at + 1);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            f(&leaf.live[at % LEAF_GRAINS / 64], mask);
            at += count;
        }
    }
}

fn grains(p: *mut u8, layout: Layout) -> (usize, usize) {
    (p.addr() / GRAIN, (p.addr() + layout.size() - 1) / GRAIN)
}

/// Enters a block that was just made.
pub fn add(p: *mut u8, layout: Layout) {
    let (size, align) = (layout.size(), layout.align());
    if p.addr() % align.max(GRAIN) != 0 {
        die(format_args!(
            "shadow: misaligned: {p:p} of {size} bytes, alignment {align}"
        ));
    }
    let (first, last) = grains(p, layout);
    let mut shared = 0;
    each_word(first, last, |word, mask| shared |= word.fetch_or(mask, Relaxed) & mask);
    if shared != 0 {
        die(format_args!(
            "shadow: overlap: {p:p} of {size} bytes shares a byte with a live block"
        ));
    }
    leaf(first).layouts[first % LEAF_GRAINS].store(pack(layout), Relaxed);
}

/// Removes a block that is about to be freed.
pub fn remove(p: *mut u8, layout: Layout) {
    let (size, align) = (layout.size(), layout.align());
    let (first, last) = grains(p, layout);
    let made = leaf(first).layouts[first % LEAF_GRAINS].swap(0, Relaxed);
    if made == 0 {
        die(format_args!("shadow: freed twice or never made: {p:p} of {size} bytes"));
    }
    if made != pack(layout) {
        let (was, shift) = (made >> 6, made & 63);
        die(format_args!(
            "shadow: another layout: {p:p} freed with {size} bytes, alignment {align}; made with {was}, 2^{shift}"
        ));
    }
    let mut gone = 0;
    each_word(first, last, |word, mask| gone |= !word.fetch_and(!mask, Relaxed) & mask);
    if gone != 0 {
        die(format_args!("shadow: a live block lost bits: {p:p} of {size} bytes"));
    }
}

/// Writes a line to standard error without allocating, and aborts.
pub fn die(message: fmt::Arguments) -> ! {
    say(message);
    std::process::abort()
}

/// Writes a line to standard error without allocating and without std's locks.
pub fn say(message: fmt::Arguments) {
    struct Line([u8; 256], usize);
    impl Write for Line {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = self.0.len() - self.1;
            let count = text.len().min(room);
            self.0[self.1..self.1 + count].copy_from_slice(&text.as_bytes()[..count]);
            self.1 += count;
            Ok(())
        }
    }
    let mut line = Line([0; 256], 0);
    let _ = writeln!(line, "{message}");
    // SAFETY: the buffer holds that many bytes.
    let _ = unsafe { libc::write(2, line.0.as_ptr().cast(), line.1 as _) };
}
