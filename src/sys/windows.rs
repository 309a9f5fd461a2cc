//! 64-bit Windows: `VirtualAlloc` and its kin, declared here by hand.
//!
//! | here | there |
//! |---|---|
//! | `reserve`, `release` | `MEM_RESERVE`; `MEM_RELEASE`, which takes the whole reservation |
//! | `commit`, `decommit` | `MEM_COMMIT` charges the system's commit limit and gives zero pages; `MEM_DECOMMIT` undoes both |
//! | `discard` | `MEM_RESET`, then `VirtualUnlock` |
//!
//! `discard` must leave the pages usable. To decommit and commit again would give zeros for sure, but the second half can be
//! refused, and then memory that the maps call usable is not. `MEM_RESET` cannot hurt: a page holds what it held until the
//! system takes it, and then zeros. The commit charge stays. `VirtualUnlock` of pages that nobody locked fails, and takes
//! them out of the working set: without it they would count as resident until the system is short of memory.
//!
//! **Thread-local storage** decides which Rust is old enough, not this file: targets with the MSVC linker have native
//! thread-locals; those with the GNU linker have `TlsAlloc`'s, each value a block of std. Since Rust 1.93 std takes it from
//! `System`; before, it asked the global allocator, which would come back to the slot that is being made.
//!
//! Sources: the functions' pages in the Windows API reference; on `MEM_RESET` and `VirtualUnlock` their remarks.

use crate::sync::{AtomicUsize, Ordering};
use core::ffi::c_void;
use core::ptr;

const MEM_COMMIT: u32 = 0x1000;
const MEM_RESERVE: u32 = 0x2000;
const MEM_DECOMMIT: u32 = 0x4000;
const MEM_RELEASE: u32 = 0x8000;
const MEM_RESET: u32 = 0x8_0000;
const PAGE_NOACCESS: u32 = 0x01;
const PAGE_READWRITE: u32 = 0x04;
const STD_ERROR_HANDLE: u32 = -12i32 as u32;

/// `SYSTEM_INFO`, 64-bit.
#[repr(C)]
struct SystemInfo {
    architecture: u32,
    page_bytes: u32,
    lowest: *mut c_void,
    highest: *mut c_void,
    processor_mask: usize,
    processors: u32,
    processor_type: u32,
    granularity: u32,
    processor_level: u16,
    processor_revision: u16,
}

/// `PSAPI_WORKING_SET_EX_INFORMATION`: the lowest bit of `flags` says whether the page is in the working set.
#[repr(C)]
#[derive(Clone, Copy)]
struct PageInfo {
    address: *mut c_void,
    flags: usize,
}

#[link(name = "kernel32")]
extern "system" {
    fn VirtualAlloc(address: *mut c_void, bytes: usize, how: u32, access: u32) -> *mut c_void;
    fn VirtualFree(address: *mut c_void, bytes: usize, how: u32) -> i32;
    fn VirtualUnlock(address: *mut c_void, bytes: usize) -> i32;
    fn GetSystemInfo(info: *mut SystemInfo);
    fn GetCurrentProcess() -> *mut c_void;
    fn K32QueryWorkingSetEx(process: *mut c_void, pages: *mut PageInfo, bytes: u32) -> i32;
    fn GetTickCount64() -> u64;
    fn GetStdHandle(which: u32) -> *mut c_void;
    fn WriteFile(file: *mut c_void, data: *const u8, bytes: u32, written: *mut u32, overlapped: *mut c_void) -> i32;
}

/// Whether `reserve` can ever succeed here.
pub const HAS_RESERVATIONS: bool = true;

fn system_info() -> SystemInfo {
    let mut info = SystemInfo {
        architecture: 0,
        page_bytes: 0,
        lowest: ptr::null_mut(),
        highest: ptr::null_mut(),
        processor_mask: 0,
        processors: 0,
        processor_type: 0,
        granularity: 0,
        processor_level: 0,
        processor_revision: 0,
    };
    // SAFETY: GetSystemInfo fills the struct it is handed, and cannot fail.
    unsafe { GetSystemInfo(&mut info) };
    info
}

/// The system's page size; read once (Relaxed: every thread that asks reads the same number).
pub fn page_size() -> usize {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let known = PAGE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let page = (system_info().page_bytes as usize).max(4096);
    PAGE.store(page, Ordering::Relaxed);
    page
}

/// Reserves `bytes` of address space; null if refused.
pub fn reserve(bytes: usize) -> *mut u8 {
    // SAFETY: a fresh reservation at a place of the system's choice touches no memory of ours.
    unsafe { VirtualAlloc(ptr::null_mut(), bytes, MEM_RESERVE, PAGE_NOACCESS) }.cast()
}

/// Gives a whole reservation back.
///
/// # Safety
/// `p` and `bytes` are those of one `reserve`, and nothing uses the range any more.
pub unsafe fn release(p: *mut u8, _bytes: usize) {
    // SAFETY: by the caller's promise a reservation of ours begins at `p` and nobody uses it; its size must not be said.
    unsafe { VirtualFree(p.cast(), 0, MEM_RELEASE) };
}

/// Makes whole pages usable; `false` if the system refuses. Pages that are usable keep their contents.
///
/// # Safety
/// The range is page aligned and inside one live reservation.
pub unsafe fn commit(p: *mut u8, bytes: usize) -> bool {
    // No page at all is an error there, and none here.
    // SAFETY: the range is inside our own reservation; committing it changes no contents.
    bytes == 0 || !unsafe { VirtualAlloc(p.cast(), bytes, MEM_COMMIT, PAGE_READWRITE) }.is_null()
}

/// Drops the contents of whole committed pages: each reads as zero afterwards, or as it did where the system has not taken
/// it yet. A page that held zeros holds zeros. `false` if the system refuses: then they are as they were.
///
/// # Safety
/// The range is page aligned, committed, and holds no data that anyone will read again, unless it is all zero.
pub unsafe fn discard(p: *mut u8, bytes: usize) -> bool {
    if bytes == 0 {
        return true;
    }
    // SAFETY: by the caller's promise nobody reads the old contents, or they are zero; the pages stay usable.
    if unsafe { VirtualAlloc(p.cast(), bytes, MEM_RESET, PAGE_READWRITE) }.is_null() {
        return false;
    }
    // SAFETY: our own pages; unlocking them changes no contents.
    unsafe { VirtualUnlock(p.cast(), bytes) };
    true
}

/// Takes whole pages back to merely reserved: no memory, no access; `false` if the system refuses.
///
/// # Safety
/// The range is page aligned, inside one live reservation, and holds no data that anyone will read again.
pub unsafe fn decommit(p: *mut u8, bytes: usize) -> bool {
    // A size of 0 would mean the whole reservation.
    // SAFETY: our own pages, which by the caller's promise nobody uses.
    bytes == 0 || unsafe { VirtualFree(p.cast(), bytes, MEM_DECOMMIT) } != 0
}

/// Nothing: large pages here are reserved and committed in one, and need a privilege.
///
/// # Safety
/// The range is page aligned and committed.
pub unsafe fn advise_huge(_p: *mut u8, _bytes: usize) {}

/// Never done here.
///
/// # Safety
/// None: the range is not looked at.
pub unsafe fn join(_p: *mut u8, _bytes: usize) -> bool {
    false
}

/// Nothing was ever joined.
///
/// # Safety
/// None: the range is not looked at.
pub unsafe fn split(_p: *mut u8, _bytes: usize) {}

/// Bytes of the range that are in the working set now.
///
/// # Safety
/// The range is page aligned and committed.
pub unsafe fn resident(p: *mut u8, bytes: usize) -> usize {
    /// Pages asked about at once: 4 KiB of stack.
    const PAGES: usize = 256;
    let page = page_size();
    let mut found = 0usize;
    let mut at = 0usize;
    while at < bytes {
        let mut infos = [PageInfo {
            address: ptr::null_mut(),
            flags: 0,
        }; PAGES];
        let mut asked = 0usize;
        for info in &mut infos {
            if at >= bytes {
                break;
            }
            info.address = p.wrapping_add(at).cast();
            at = at.wrapping_add(page);
            asked = asked.wrapping_add(1);
        }
        let size = asked.wrapping_mul(size_of::<PageInfo>()) as u32;
        // SAFETY: `infos` is at least `size` bytes of entries that name pages; the call fills in their flags.
        if unsafe { K32QueryWorkingSetEx(GetCurrentProcess(), infos.as_mut_ptr(), size) } != 0 {
            let here = infos.iter().take(asked).filter(|info| info.flags & 1 != 0).count();
            found = found.wrapping_add(here.wrapping_mul(page));
        }
    }
    found
}

/// The most address space a reservation may take: an eighth of what a process has, 16 TiB of 128.
pub fn address_space() -> usize {
    let info = system_info();
    info.highest.addr().wrapping_sub(info.lowest.addr()) / 8
}

/// Unknown: the system counts page faults of processes, not of threads.
pub fn thread_faults() -> Option<u64> {
    None
}

/// Milliseconds since the system was started, up to 16 coarse.
pub fn coarse_millis() -> u64 {
    // SAFETY: reads a counter.
    unsafe { GetTickCount64() }
}

/// Writes `message` to standard error and aborts. No allocation, no formatting, no unwinding.
#[cold]
pub fn die(message: &'static str) -> ! {
    let mut written = 0;
    // SAFETY: asks for a handle; one that is none makes the write fail, which nothing depends on.
    let file = unsafe { GetStdHandle(STD_ERROR_HANDLE) };
    // SAFETY: the buffer is the static string's, and the count is ours to fill.
    unsafe {
        WriteFile(
            file,
            message.as_ptr(),
            message.len() as u32,
            &mut written,
            ptr::null_mut(),
        )
    };
    std::process::abort()
}
