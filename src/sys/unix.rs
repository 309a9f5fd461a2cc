//! Unix with 64-bit addresses: `mmap`, `mprotect`, `madvise`.
//!
//! `discard` is `MADV_DONTNEED` on Linux and never `MADV_FREE`: later reads must see zeros, or the known-zero marks
//! above would lie. On other systems, where `MADV_DONTNEED` may keep the contents, the range is mapped anew.
//! On macOS neither `MADV_DONTNEED` nor `MADV_FREE` promises zeros; a new mapping over the old one does (`mmap(2)`).
//!
//! Linux has run, on aarch64 under an emulator; of the other systems `.ci/ports` checks the types, and no more.
//! Thread-locals need nothing from here: those of macOS come from the system's `malloc` on first use, below any Rust
//! allocator.

#[cfg(all(stepalloc_faults, target_os = "linux"))]
use super::faults as libc;
use crate::sync::{AtomicUsize, Ordering};
use core::ffi::c_void;

const PROT_RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Gone from FreeBSD, which takes no swap for pages that are not touched.
#[cfg(any(target_os = "freebsd", target_os = "dragonfly"))]
const NO_RESERVE: i32 = 0;
#[cfg(not(any(target_os = "freebsd", target_os = "dragonfly")))]
const NO_RESERVE: i32 = libc::MAP_NORESERVE;
const MAP_PRIVATE_ANON: i32 = libc::MAP_PRIVATE | libc::MAP_ANON | NO_RESERVE;

/// Whether `reserve` can ever succeed here.
pub const HAS_RESERVATIONS: bool = true;

/// The system's page size; read once (Relaxed: every thread that asks reads the same number).
pub fn page_size() -> usize {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let known = PAGE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: sysconf reads a constant of the system.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = if answer >= 4096 { answer as usize } else { 4096 };
    PAGE.store(page, Ordering::Relaxed);
    page
}

/// Reserves `bytes` of address space; null if refused.
pub fn reserve(bytes: usize) -> *mut u8 {
    // SAFETY: a fresh anonymous mapping at a place of the system's choice touches no memory of ours.
    let p = unsafe { libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_NONE, MAP_PRIVATE_ANON, -1, 0) };
    if p == libc::MAP_FAILED {
        return core::ptr::null_mut();
    }
    // Where the system hands out huge pages unasked, sparse maps and small blocks must not take part: a huge page
    // under one touched granule would be 2 MiB resident for 16 bytes. `advise_huge` opts ranges back in.
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the mapping just made; the advice changes no contents.
    unsafe {
        libc::madvise(p, bytes, libc::MADV_NOHUGEPAGE);
    }
    p.cast()
}

/// Gives a whole reservation back.
///
/// # Safety
/// `p` and `bytes` are those of one `reserve`, and nothing uses the range any more.
pub unsafe fn release(p: *mut u8, bytes: usize) {
    // SAFETY: by the caller's promise the range is a mapping of ours that nobody uses.
    unsafe { libc::munmap(p.cast::<c_void>(), bytes) };
}

/// Makes whole pages usable; `false` if the system refuses.
///
/// # Safety
/// The range is page aligned and inside one live reservation.
pub unsafe fn commit(p: *mut u8, bytes: usize) -> bool {
    // SAFETY: the range is inside our own mapping; making it accessible invalidates nothing.
    bytes == 0 || unsafe { libc::mprotect(p.cast::<c_void>(), bytes, PROT_RW) == 0 }
}

/// Drops the contents of whole committed pages; they read as zero afterwards. `false` if the system refuses: then they
/// are as they were.
///
/// # Safety
/// The range is page aligned, committed, and holds no data that anyone will read again.
pub unsafe fn discard(p: *mut u8, bytes: usize) -> bool {
    if bytes == 0 {
        return true;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: by the caller's promise nobody reads the old contents. The call fails for locked pages, which then stay as
    // they are: zero is not promised for memory that was ever used (known-zero marks never move down).
    unsafe {
        libc::madvise(p.cast::<c_void>(), bytes, libc::MADV_DONTNEED) == 0
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    // SAFETY: replaces our own pages, whose contents nobody reads again, by fresh ones at the same place.
    unsafe {
        let flags = MAP_PRIVATE_ANON | libc::MAP_FIXED;
        libc::mmap(p.cast::<c_void>(), bytes, PROT_RW, flags, -1, 0) != libc::MAP_FAILED
    }
}

/// Takes whole pages back to merely reserved: no memory, no access; `false` if the system refuses, and then they may be
/// used as before, with any contents. Pages committed again are zero.
///
/// # Safety
/// The range is page aligned, inside one live reservation, and holds no data that anyone will read again.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub unsafe fn decommit(p: *mut u8, bytes: usize) -> bool {
    if bytes == 0 {
        return true;
    }
    // Not by mapping over them: such a call may take the old pages away before it fails. The contents go first, for pages
    // without access that kept them would not read as zero later.
    // SAFETY: our own pages, which by the caller's promise nobody uses.
    unsafe {
        libc::madvise(p.cast::<c_void>(), bytes, libc::MADV_DONTNEED) == 0
            && libc::mprotect(p.cast::<c_void>(), bytes, libc::PROT_NONE) == 0
    }
}

/// Takes whole pages back to merely reserved: no memory, no access; `false` if the system refuses.
///
/// No advice of these systems promises zeros, so the range is mapped anew.
///
/// # Safety
/// The range is page aligned, inside one live reservation, and holds no data that anyone will read again.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub unsafe fn decommit(p: *mut u8, bytes: usize) -> bool {
    let flags = MAP_PRIVATE_ANON | libc::MAP_FIXED;
    // SAFETY: replaces our own pages, which by the caller's promise nobody uses, by fresh ones at the same place.
    bytes == 0 || unsafe { libc::mmap(p.cast::<c_void>(), bytes, libc::PROT_NONE, flags, -1, 0) != libc::MAP_FAILED }
}

/// Asks for huge pages under a committed range.
///
/// # Safety
/// The range is page aligned and committed.
pub unsafe fn advise_huge(p: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on our own mapping changes no contents.
    unsafe {
        libc::madvise(p.cast::<c_void>(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (p, bytes);
}

/// Puts huge pages in place of small ones; `false` where not all was done.
///
/// # Safety
/// The range is committed and has whole huge pages.
pub unsafe fn join(p: *mut u8, bytes: usize) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on our own mapping changes no contents. Nothing is joined where huge pages are not wanted; but wanted
    // they must not stay, or the next touch of a page given back would bring 2 MiB.
    unsafe {
        let p = p.cast::<c_void>();
        if !joining_is_wished() || libc::madvise(p, bytes, libc::MADV_HUGEPAGE) != 0 {
            return false;
        }
        let done = libc::madvise(p, bytes, MADV_COLLAPSE) == 0;
        libc::madvise(p, bytes, libc::MADV_NOHUGEPAGE);
        done
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (p, bytes);
        false
    }
}

/// Frees what huge pages keep of pages that were discarded.
///
/// A huge page of which a part was discarded stays whole until memory runs short. But `MADV_COLD`, which lets pages go to
/// swap before others, splits those that are no longer mapped whole, and frees what nobody maps.
///
/// # Safety
/// The range is committed and has whole huge pages.
pub unsafe fn split(p: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on our own mapping changes no contents.
    unsafe {
        libc::madvise(p.cast::<c_void>(), bytes, libc::MADV_NOHUGEPAGE);
        libc::madvise(p.cast::<c_void>(), bytes, MADV_COLD);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (p, bytes);
}

/// Linux 5.4 and later, and 6.1; libc names them for some C libraries only.
#[cfg(target_os = "linux")]
const MADV_COLD: i32 = 20;
#[cfg(target_os = "linux")]
const MADV_COLLAPSE: i32 = 25;

/// Whether huge pages have `HUGE_PAGE` bytes, and are not forbidden by who runs this system. `MADV_COLLAPSE` does not look
/// at that, so we do; read once (Relaxed: every thread that asks reads the same).
#[cfg(target_os = "linux")]
fn joining_is_wished() -> bool {
    static WISHED: AtomicUsize = AtomicUsize::new(0);
    const NO: usize = 1;
    const YES: usize = 2;
    let known = WISHED.load(Ordering::Relaxed);
    if known != 0 {
        return known == YES;
    }
    let mut text = [0u8; 64];
    let got = read(c"/sys/kernel/mm/transparent_hugepage/enabled", &mut text);
    let is_forbidden = got.windows(7).any(|word| word == b"[never]");
    let wished = page_size() == 4096 && !is_forbidden;
    WISHED.store(if wished { YES } else { NO }, Ordering::Relaxed);
    wished
}

/// Bytes of the range that are resident now.
///
/// # Safety
/// The range is page aligned and committed.
pub unsafe fn resident(p: *mut u8, bytes: usize) -> usize {
    const PAGES: usize = 1024;
    /// No system has smaller ones. An emulator with larger pages than the system below it answers for each of the latter.
    const LEAST_PAGE: usize = 4096;
    let page = page_size();
    let mut found = 0;
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(PAGES * LEAST_PAGE);
        let mut marks = [0u8; PAGES];
        // SAFETY: `marks` has a byte for each page of the `len` bytes asked about, which are inside our mapping.
        let asked = unsafe { libc::mincore(p.add(at).cast::<c_void>(), len, marks.as_mut_ptr().cast()) };
        if asked == 0 {
            found += marks.iter().take(len / page).filter(|&&mark| mark & 1 != 0).count() * page;
        }
        at += len;
    }
    found
}

/// The most address space a reservation may take: an eighth of a 47-bit space, and half of what `RLIMIT_AS` leaves.
pub fn address_space() -> usize {
    const EIGHTH: usize = 1 << 44;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit fills the struct it is handed.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    if asked != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return EIGHTH;
    }
    let left = (limit.rlim_cur as usize).saturating_sub(mapped_now());
    EIGHTH.min(left / 2)
}

/// Bytes of address space mapped now: the first number of `/proc/self/statm`; 0 where there is no such file.
fn mapped_now() -> usize {
    let mut text = [0u8; 64];
    let mut pages = 0usize;
    for &byte in read(c"/proc/self/statm", &mut text) {
        if !byte.is_ascii_digit() {
            break;
        }
        pages = pages.wrapping_mul(10).wrapping_add(usize::from(byte - b'0'));
    }
    pages.saturating_mul(page_size())
}

/// The beginning of a file, as much as one call reads; nothing where it cannot be read.
fn read<'a>(path: &core::ffi::CStr, into: &'a mut [u8]) -> &'a [u8] {
    // SAFETY: the path is a C string, the buffer is as long as said, and the descriptor is closed again.
    let got = unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return &[];
        }
        let got = libc::read(fd, into.as_mut_ptr().cast(), into.len());
        libc::close(fd);
        got
    };
    into.get(..got.max(0) as usize).unwrap_or(&[])
}

/// Page faults (minor and major) of the calling thread.
pub fn thread_faults() -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        /// The kernel's `RUSAGE_THREAD`, which libc names on some systems only.
        const THREAD: libc::c_int = 1;
        // SAFETY: an all-zero rusage is a valid value of that plain struct.
        let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
        // SAFETY: getrusage fills the struct it is handed.
        let asked = unsafe { libc::getrusage(THREAD, &mut usage) };
        if asked == 0 {
            return Some((usage.ru_minflt + usage.ru_majflt) as u64);
        }
    }
    None
}

/// Milliseconds of a monotonic clock, a few milliseconds coarse.
pub fn coarse_millis() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC_COARSE;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills the struct it is handed.
    unsafe { libc::clock_gettime(CLOCK, &mut now) };
    (now.tv_sec as u64)
        .wrapping_mul(1_000)
        .wrapping_add(now.tv_nsec as u64 / 1_000_000)
}

/// Writes `message` to standard error and aborts. No allocation, no formatting, no unwinding.
#[cold]
pub fn die(message: &'static str) -> ! {
    // SAFETY: the buffer is the static string's; abort never returns.
    unsafe {
        let _ = libc::write(2, message.as_ptr().cast::<c_void>(), message.len());
        libc::abort()
    }
}
