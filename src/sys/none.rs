//! Systems without reservations: every request for memory is refused, so everything goes to the backing.

/// Whether `reserve` can ever succeed here.
pub const HAS_RESERVATIONS: bool = false;

/// A page size for arithmetic; nothing is ever committed here.
pub fn page_size() -> usize {
    4096
}

/// Always refused.
pub fn reserve(_bytes: usize) -> *mut u8 {
    core::ptr::null_mut()
}

/// Nothing was ever reserved.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn release(_p: *mut u8, _bytes: usize) {}

/// Always refused.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn commit(_p: *mut u8, _bytes: usize) -> bool {
    false
}

/// Nothing was ever committed.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn decommit(_p: *mut u8, _bytes: usize) -> bool {
    false
}

/// Nothing was ever committed.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn discard(_p: *mut u8, _bytes: usize) -> bool {
    false
}

/// Nothing was ever committed.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn advise_huge(_p: *mut u8, _bytes: usize) {}

/// Nothing was ever committed.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn join(_p: *mut u8, _bytes: usize) -> bool {
    false
}

/// Nothing was ever committed.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn split(_p: *mut u8, _bytes: usize) {}

/// Nothing is resident.
///
/// # Safety
/// None: there is no range to name.
pub unsafe fn resident(_p: *mut u8, _bytes: usize) -> usize {
    0
}

/// No address space to reserve.
pub fn address_space() -> usize {
    0
}

/// Unknown here.
pub fn thread_faults() -> Option<u64> {
    None
}

/// A clock that stands still: decay by time does not happen here.
pub fn coarse_millis() -> u64 {
    0
}

/// Aborts; there is no standard error to write to without std's locks.
#[cold]
pub fn die(_message: &'static str) -> ! {
    std::process::abort()
}
